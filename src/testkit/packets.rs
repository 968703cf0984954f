//! Packets for tests, made and checked by etherparse, which shares no code with lbd.
//!
//! Endpoints are given as anything that prints like one: `"10.1.0.2:40000"`, a `SocketAddr`, an `Endpoint`.
use std::fmt::Display;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use etherparse::{
    Icmpv4Type, Icmpv6Type, IpHeaders, NetSlice, PacketBuilder, PacketBuilderStep, SlicedPacket, TcpHeader,
    TransportSlice, icmpv4, icmpv6,
};

/// The TCP flag FIN (RFC 9293 section 3.1); flags are combined with `|`.
pub const FIN: u8 = 0x01;
/// The TCP flag SYN.
pub const SYN: u8 = 0x02;
/// The TCP flag RST.
pub const RST: u8 = 0x04;
/// The TCP flag PSH.
pub const PSH: u8 = 0x08;
/// The TCP flag ACK.
pub const ACK: u8 = 0x10;

/// The TTL or hop limit of every packet made here.
pub const TTL: u8 = 64;

/// The source address of [`ethernet`] frames.
pub const SOURCE_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
/// The destination address of [`ethernet`] frames.
pub const DESTINATION_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];

/// What an ICMP error says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IcmpError {
    /// The host cannot be reached.
    HostUnreachable,
    /// Nobody listens at the port.
    PortUnreachable,
    /// The TTL or hop limit came to 0 in transit.
    TimeExceeded,
    /// IPv4 "fragmentation needed", IPv6 "packet too big".
    TooBig {
        /// What the link takes, in bytes.
        mtu: u16,
    },
}

/// Reads an endpoint from what it prints as.
pub fn socket(text: impl Display) -> SocketAddr {
    let text = text.to_string();
    text.parse().unwrap_or_else(|_| panic!("{text:?} is not ADDRESS:PORT"))
}

/// A TCP segment.
pub fn tcp(source: impl Display, destination: impl Display, flags: u8, seq: u32, ack: u32, payload: &[u8]) -> Vec<u8> {
    let (source, destination) = (socket(source), socket(destination));
    let mut header = TcpHeader::new(source.port(), destination.port(), seq, 64_240);
    header.acknowledgment_number = ack;
    header.fin = flags & FIN != 0;
    header.syn = flags & SYN != 0;
    header.rst = flags & RST != 0;
    header.psh = flags & PSH != 0;
    header.ack = flags & ACK != 0;
    let builder = ip(source.ip(), destination.ip()).tcp_header(header);
    let mut packet = Vec::with_capacity(builder.size(payload.len()));
    builder.write(&mut packet, payload).unwrap();
    packet
}

/// A SYN with sequence number 1000.
pub fn syn(source: impl Display, destination: impl Display) -> Vec<u8> {
    tcp(source, destination, SYN, 1_000, 0, &[])
}

/// A UDP datagram.
pub fn udp(source: impl Display, destination: impl Display, payload: &[u8]) -> Vec<u8> {
    let (source, destination) = (socket(source), socket(destination));
    let builder = ip(source.ip(), destination.ip()).udp(source.port(), destination.port());
    let mut packet = Vec::with_capacity(builder.size(payload.len()));
    builder.write(&mut packet, payload).unwrap();
    packet
}

/// An SCTP packet with one chunk of this type (RFC 9260 section 3) and its CRC32c.
pub fn sctp(source: impl Display, destination: impl Display, chunk_type: u8) -> Vec<u8> {
    sctp_of(source, destination, &chunk(chunk_type, b""))
}

/// A chunk, padded to whole words.
pub fn chunk(chunk_type: u8, value: &[u8]) -> Vec<u8> {
    let [high, low] = u16::try_from(4 + value.len()).unwrap().to_be_bytes();
    let mut chunk = [&[chunk_type, 0, high, low], value].concat();
    chunk.resize(chunk.len().next_multiple_of(4), 0);
    chunk
}

/// An SCTP packet of these chunks.
pub fn sctp_of(source: impl Display, destination: impl Display, chunks: &[u8]) -> Vec<u8> {
    const SCTP: u8 = 132;
    let (source, destination) = (socket(source), socket(destination));
    let mut segment = Vec::new();
    segment.extend_from_slice(&source.port().to_be_bytes());
    segment.extend_from_slice(&destination.port().to_be_bytes());
    segment.extend_from_slice(&[0, 0, 0, 1, 0, 0, 0, 0]);
    segment.extend_from_slice(chunks);
    let crc = crc32c(&segment).to_le_bytes();
    segment[8..12].copy_from_slice(&crc);
    let builder = ip(source.ip(), destination.ip());
    let mut packet = Vec::new();
    builder.write(&mut packet, SCTP.into(), &segment).unwrap();
    packet
}

/// An ICMP echo request.
pub fn ping(source: IpAddr, destination: IpAddr) -> Vec<u8> {
    let mut packet = Vec::new();
    let builder = ip(source, destination);
    match source {
        IpAddr::V4(_) => builder.icmpv4_echo_request(7, 1).write(&mut packet, b"ping"),
        IpAddr::V6(_) => builder.icmpv6_echo_request(7, 1).write(&mut packet, b"ping"),
    }
    .unwrap();
    packet
}

/// The error that `router` sends to the source of the packet `about`, quoting as much of it as RFC 1812 section
/// 4.3.2.3 (576 bytes in all) and RFC 4443 section 2.4 (1,280) say.
pub fn icmp_error(router: IpAddr, error: IcmpError, about: &[u8]) -> Vec<u8> {
    let (sender, _) = addresses(about);
    let builder = ip(router, sender);
    let mut packet = Vec::new();
    match router {
        IpAddr::V4(_) => {
            let quote = &about[..about.len().min(576 - 28)];
            builder.icmpv4(icmpv4_type(error)).write(&mut packet, quote)
        }
        IpAddr::V6(_) => {
            let quote = &about[..about.len().min(1_280 - 48)];
            builder.icmpv6(icmpv6_type(error)).write(&mut packet, quote)
        }
    }
    .unwrap();
    packet
}

/// The packet in an Ethernet frame, behind `vlans` tags: the outer of two is 802.1ad, all others are 802.1Q.
pub fn ethernet(packet: &[u8], vlans: &[u16]) -> Vec<u8> {
    let mut frame = [DESTINATION_MAC, SOURCE_MAC].concat();
    for (index, vlan) in vlans.iter().enumerate() {
        let outer_of_two = index == 0 && vlans.len() > 1;
        let tag: u16 = if outer_of_two { 0x88a8 } else { 0x8100 };
        frame.extend_from_slice(&tag.to_be_bytes());
        frame.extend_from_slice(&vlan.to_be_bytes());
    }
    let is_v6 = packet.first().is_some_and(|first| first >> 4 == 6);
    let ethertype: u16 = if is_v6 { 0x86dd } else { 0x0800 };
    frame.extend_from_slice(&ethertype.to_be_bytes());
    frame.extend_from_slice(packet);
    frame
}

/// An ARP request, as an example of a frame that is not IP.
pub fn arp() -> Vec<u8> {
    let mut frame = [[0xff; 6], SOURCE_MAC].concat();
    frame.extend_from_slice(&[0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 1]);
    frame.resize(60, 0);
    frame
}

/// Source and destination of a packet; ports are 0 where it has none.
pub fn endpoints(packet: &[u8]) -> (SocketAddr, SocketAddr) {
    let (source, destination) = addresses(packet);
    let sliced = SlicedPacket::from_ip(packet).expect("a packet that etherparse understands");
    let (from, to) = match sliced.transport {
        Some(TransportSlice::Tcp(tcp)) => (tcp.source_port(), tcp.destination_port()),
        Some(TransportSlice::Udp(udp)) => (udp.source_port(), udp.destination_port()),
        _ => sctp_ports(&sliced).unwrap_or((0, 0)),
    };
    (SocketAddr::new(source, from), SocketAddr::new(destination, to))
}

/// etherparse does not look into SCTP.
fn sctp_ports(sliced: &SlicedPacket<'_>) -> Option<(u16, u16)> {
    let (segment, number) = match sliced.net.as_ref()? {
        NetSlice::Ipv4(v4) => (v4.payload().payload, v4.payload().ip_number),
        NetSlice::Ipv6(v6) => (v6.payload().payload, v6.payload().ip_number),
        NetSlice::Arp(_) => return None,
    };
    let port = |at| u16::from_be_bytes([segment[at], segment[at + 1]]);
    (number.0 == 132).then(|| (port(0), port(2)))
}

/// Source and destination address of a packet.
pub fn addresses(packet: &[u8]) -> (IpAddr, IpAddr) {
    let sliced = etherparse::LaxSlicedPacket::from_ip(packet).expect("an IP packet");
    match sliced.net.expect("an IP packet") {
        etherparse::LaxNetSlice::Ipv4(v4) => (v4.header().source_addr().into(), v4.header().destination_addr().into()),
        etherparse::LaxNetSlice::Ipv6(v6) => (v6.header().source_addr().into(), v6.header().destination_addr().into()),
        other => panic!("not IP: {other:?}"),
    }
}

/// Decodes `packet` and checks every length and checksum in it; in an ICMP error also those of the packet it quotes.
#[track_caller]
pub fn assert_valid(packet: &[u8]) {
    let sliced =
        SlicedPacket::from_ip(packet).unwrap_or_else(|error| panic!("malformed packet: {error}: {packet:02x?}"));
    let (segment, number) = match sliced.net.as_ref().expect("an IP packet") {
        NetSlice::Ipv4(v4) => {
            assert_eq!(usize::from(v4.header().total_len()), packet.len(), "total length");
            assert_eq!(checksum(v4.header().slice()), 0, "IPv4 header checksum");
            (v4.payload().payload, v4.payload().ip_number)
        }
        NetSlice::Ipv6(v6) => {
            let len = usize::from(v6.header().payload_length()) + 40;
            assert_eq!(len, packet.len(), "payload length");
            (v6.payload().payload, v6.payload().ip_number)
        }
        NetSlice::Arp(_) => panic!("not IP"),
    };
    assert_transport_valid(packet, number.0, segment);
    match sliced.transport {
        Some(TransportSlice::Icmpv4(icmp)) if matches!(icmp.type_u8(), 3 | 11 | 12) => {
            assert_quote_valid(icmp.payload());
        }
        Some(TransportSlice::Icmpv6(icmp)) if icmp.type_u8() < 128 => {
            assert_quote_valid(icmp.payload());
        }
        _ => {}
    }
}

/// Checks the packet that an ICMP error quotes; its transport checksum only where all of it is there.
#[track_caller]
pub fn assert_quote_valid(quote: &[u8]) {
    if SlicedPacket::from_ip(quote).is_ok() {
        assert_valid(quote);
    } else if quote.first().is_some_and(|first| first >> 4 == 4) {
        let header_len = usize::from(quote[0] & 0x0f) * 4;
        assert_eq!(checksum(&quote[..header_len]), 0, "quoted IPv4 checksum");
    }
}

#[track_caller]
fn assert_transport_valid(packet: &[u8], number: u8, segment: &[u8]) {
    let (source, destination) = addresses(packet);
    let sum = || checksum(&[&pseudo_header(source, destination, number, segment.len()), segment].concat());
    match number {
        1 => assert_eq!(checksum(segment), 0, "ICMP checksum"),
        6 => assert_eq!(sum(), 0, "TCP checksum"),
        // RFC 768: no checksum; not in IPv6 (RFC 8200 section 8.1).
        17 if source.is_ipv4() && segment[6..8] == [0, 0] => {}
        17 => {
            assert_ne!(segment[6..8], [0, 0], "UDP over IPv6 has a checksum");
            assert_eq!(sum(), 0, "UDP checksum");
        }
        58 => assert_eq!(sum(), 0, "ICMPv6 checksum"),
        132 => assert_sctp_valid(segment),
        _ => {}
    }
}

#[track_caller]
fn assert_sctp_valid(segment: &[u8]) {
    let mut zeroed = segment.to_vec();
    zeroed[8..12].fill(0);
    assert_eq!(segment[8..12], crc32c(&zeroed).to_le_bytes(), "SCTP CRC");
}

/// RFC 768 and RFC 8200 section 8.1; for the sum it is the same whether lengths have 16 bits or 32.
fn pseudo_header(source: IpAddr, destination: IpAddr, number: u8, len: usize) -> Vec<u8> {
    let mut header = Vec::new();
    for address in [source, destination] {
        match address {
            IpAddr::V4(v4) => header.extend_from_slice(&v4.octets()),
            IpAddr::V6(v6) => header.extend_from_slice(&v6.octets()),
        }
    }
    header.extend_from_slice(&u32::try_from(len).unwrap().to_be_bytes());
    header.extend_from_slice(&[0, 0, 0, number]);
    header
}

/// RFC 1071, the plain way; 0 over data that includes a right checksum.
fn checksum(data: &[u8]) -> u16 {
    let mut sum: u32 = 0;
    for pair in data.chunks(2) {
        sum += u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |&low| u32::from(low));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap()
}

/// RFC 9260 appendix A, bit by bit.
fn crc32c(data: &[u8]) -> u32 {
    !data.iter().fold(!0, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| (crc >> 1) ^ (0x82f6_3b78 * (crc & 1)))
    })
}

fn ip(source: IpAddr, destination: IpAddr) -> PacketBuilderStep<IpHeaders> {
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            PacketBuilder::ipv4(Ipv4Addr::octets(&source), destination.octets(), TTL)
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            PacketBuilder::ipv6(Ipv6Addr::octets(&source), destination.octets(), TTL)
        }
        _ => panic!("{source} and {destination} are of different families"),
    }
}

fn icmpv4_type(error: IcmpError) -> Icmpv4Type {
    use icmpv4::DestUnreachableHeader::{FragmentationNeeded, Host, Port};
    match error {
        IcmpError::HostUnreachable => Icmpv4Type::DestinationUnreachable(Host),
        IcmpError::PortUnreachable => Icmpv4Type::DestinationUnreachable(Port),
        IcmpError::TimeExceeded => Icmpv4Type::TimeExceeded(icmpv4::TimeExceededCode::TtlExceededInTransit),
        IcmpError::TooBig { mtu } => Icmpv4Type::DestinationUnreachable(FragmentationNeeded { next_hop_mtu: mtu }),
    }
}

fn icmpv6_type(error: IcmpError) -> Icmpv6Type {
    use icmpv6::DestUnreachableCode::{Address, Port};
    match error {
        IcmpError::HostUnreachable => Icmpv6Type::DestinationUnreachable(Address),
        IcmpError::PortUnreachable => Icmpv6Type::DestinationUnreachable(Port),
        IcmpError::TimeExceeded => Icmpv6Type::TimeExceeded(icmpv6::TimeExceededCode::HopLimitExceeded),
        IcmpError::TooBig { mtu } => Icmpv6Type::PacketTooBig { mtu: mtu.into() },
    }
}
