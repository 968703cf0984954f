//! Packets: checked once by [`Headers::parse`], their offsets kept, so that nothing behind it checks again.
//!
//! Own offsets instead of etherparse in the path: 3.3 ns against 7 to 12 a packet, and etherparse has neither mutable
//! slices nor the ports of fragments. It is the independent decoder of the tests instead.
pub mod checksum;
pub mod crc32c;
pub mod echo;
pub mod ethernet;
pub mod fragment;
pub mod frame;
pub mod icmp;
pub mod ip;
pub mod refusal;
pub mod sctp;

use self::fragment::Fragment;
use crate::flow::{Address, Key, Protocol, Tuple};

/// Why bytes are no packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ParseError {
    /// Neither IPv4 nor IPv6.
    NotIp,
    /// Shorter than its headers say, or they contradict each other.
    Malformed,
}

/// The IP version of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Version {
    /// RFC 791.
    V4,
    /// RFC 8200.
    V6,
}

/// The flag bits of a TCP segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TcpFlags(pub u8);

impl TcpFlags {
    /// RFC 9293 section 3.1.
    pub const FIN: u8 = 0x01;
    /// See [`Self::FIN`].
    pub const SYN: u8 = 0x02;
    /// See [`Self::FIN`].
    pub const RST: u8 = 0x04;
    /// See [`Self::FIN`].
    pub const ACK: u8 = 0x10;

    /// Whether any of `bits` is set.
    #[must_use]
    pub const fn has(self, bits: u8) -> bool {
        self.0 & bits != 0
    }

    /// How many numbers of the stream they take: one each for SYN and FIN.
    #[inline]
    const fn length(self) -> u32 {
        self.has(Self::SYN) as u32 + self.has(Self::FIN) as u32
    }

    /// Whether the segment asks for a new connection: SYN without ACK or RST.
    #[must_use]
    pub const fn opens(self) -> bool {
        self.0 & (Self::SYN | Self::ACK | Self::RST) == Self::SYN
    }
}

/// Where a TCP segment is in its stream, and what its sender has got of the other one (RFC 9293 section 3.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Numbers {
    /// The number of its first byte, or of its SYN.
    pub first: u32,
    /// The number behind its last byte; SYN and FIN count as one byte each.
    pub end: u32,
    /// The number that its sender waits for. It means nothing without the ACK flag.
    pub acknowledged: u32,
}

/// What a packet carries, as far as a balancer cares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Payload {
    /// A whole TCP segment.
    Tcp(Ports, TcpFlags),
    /// A whole UDP datagram.
    Udp(Ports),
    /// A whole SCTP packet, and what it says about its association.
    Sctp(Ports, sctp::Chunk),
    /// Part of a datagram.
    Fragment(Fragment),
    /// An ICMP message about another packet, whose beginning it quotes; see [`icmp::quoted`].
    IcmpError,
    /// Anything else.
    Other,
}

/// Source and destination port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ports {
    /// Of the sender.
    pub source: u16,
    /// Of the receiver.
    pub destination: u16,
}

/// A packet's headers, checked: every offset lies within the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Headers {
    /// IP version.
    pub version: Version,
    /// Sender.
    pub source: Address,
    /// Receiver.
    pub destination: Address,
    /// IANA number of the upper-layer protocol.
    pub protocol: u8,
    /// Offset of the upper-layer header.
    pub transport: usize,
    /// Length of the packet by its IP header; what the frame holds beyond is padding.
    pub length: usize,
    /// What it carries.
    pub payload: Payload,
}

impl Headers {
    /// Reads and checks the headers of an IP packet.
    ///
    /// # Errors
    /// When the bytes are no IP packet, or one that contradicts itself.
    #[inline]
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        ip::parse(bytes, |ip| Self::complete(&ip, bytes))
    }

    #[inline]
    fn complete(ip: &ip::Ip, bytes: &[u8]) -> Result<Self, ParseError> {
        let behind = bytes.get(ip.transport..ip.length).ok_or(ParseError::Malformed)?;
        let payload = match ip.fragment {
            true => return Self::of_fragment(*ip, bytes),
            false => parse_payload(ip, behind)?,
        };
        Ok(Self {
            version: ip.version,
            source: ip.source,
            destination: ip.destination,
            protocol: ip.protocol,
            transport: ip.transport,
            length: ip.length,
            payload,
        })
    }

    #[cold]
    fn of_fragment(mut ip: ip::Ip, bytes: &[u8]) -> Result<Self, ParseError> {
        let payload = Payload::Fragment(fragment::parse(&mut ip, bytes)?);
        Ok(Self {
            version: ip.version,
            source: ip.source,
            destination: ip.destination,
            protocol: ip.protocol,
            transport: ip.transport,
            length: ip.length,
            payload,
        })
    }

    /// The tuple by which the connection table knows the packet, which is `packet`: its own, that of the datagram which it
    /// begins, or for an ICMP error that of an answer to the packet that it quotes.
    #[must_use]
    pub fn flow(&self, packet: &[u8]) -> Option<Tuple> {
        let own = self.key().or_else(|| self.begun_key());
        let key = own.or_else(|| Some(icmp::quoted(packet, self)?.key.reply()));
        key.map(Tuple::from)
    }

    /// The numbers of a TCP segment, which is in `packet`; of one that comes in fragments as far as the first one tells.
    #[must_use]
    #[inline]
    pub fn numbers(&self, packet: &[u8]) -> Option<Numbers> {
        let flags = match self.payload {
            Payload::Tcp(_, flags) => flags,
            Payload::Fragment(fragment) => fragment.opening?.flags?,
            Payload::Udp(_) | Payload::Sctp(..) | Payload::IcmpError | Payload::Other => return None,
        };
        let segment = packet.get(self.transport..self.length)?;
        let header: &[u8; 20] = segment.first_chunk()?;
        let word = |at| u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        let first = word(4);
        let data = segment.len() - usize::from(header[12] >> 4) * 4;
        // No packet is longer than 64 KB.
        let end = first.wrapping_add(data as u32 + flags.length());
        Some(Numbers {
            first,
            end,
            acknowledged: word(8),
        })
    }

    /// Offset of the Internet checksum field in the transport header (RFC 9293 section 3.1, RFC 768).
    #[must_use]
    pub const fn checksum_offset(&self) -> Option<u16> {
        match self.payload {
            Payload::Tcp(..) => Some(16),
            Payload::Udp(_) => Some(6),
            Payload::Fragment(fragment) => fragment.checksum_offset(),
            Payload::Sctp(..) | Payload::IcmpError | Payload::Other => None,
        }
    }

    /// The time to live, or hop limit, of the packet, which is `packet`.
    #[must_use]
    #[inline]
    pub fn hop_limit(&self, packet: &[u8]) -> u8 {
        match self.version {
            Version::V4 => packet[8],
            Version::V6 => packet[7],
        }
    }

    /// Whether routers may not fragment it: the DF bit (RFC 791), and IPv6 always (RFC 8200 section 5).
    #[must_use]
    #[inline]
    pub fn is_unfragmentable(&self, packet: &[u8]) -> bool {
        match self.version {
            Version::V4 => packet[6] & 0x40 != 0,
            Version::V6 => true,
        }
    }

    /// The 5-tuple, where the packet has one.
    #[must_use]
    #[inline]
    pub fn tuple(&self) -> Option<Tuple> {
        self.key().map(Tuple::from)
    }

    /// The 5-tuple in words.
    #[must_use]
    #[inline]
    pub const fn key(&self) -> Option<Key> {
        let (protocol, ports) = match self.payload {
            Payload::Tcp(ports, _) => (Protocol::Tcp, ports),
            Payload::Udp(ports) => (Protocol::Udp, ports),
            Payload::Sctp(ports, _) => (Protocol::Sctp, ports),
            Payload::Fragment(_) | Payload::IcmpError | Payload::Other => return None,
        };
        Some(Key::new(
            protocol,
            (self.source, ports.source),
            (self.destination, ports.destination),
        ))
    }
}

#[inline]
fn parse_payload(ip: &ip::Ip, bytes: &[u8]) -> Result<Payload, ParseError> {
    match Protocol::from_number(ip.protocol) {
        Some(Protocol::Tcp) => parse_tcp(bytes),
        Some(Protocol::Udp) => parse_udp(bytes),
        Some(Protocol::Sctp) => sctp::parse(bytes),
        None => Ok(match (ip.version, ip.protocol, bytes) {
            (Version::V4, icmp::ICMP, [kind, ..]) | (Version::V6, icmp::ICMPV6, [kind, ..])
                if icmp::is_error(ip.version, *kind) =>
            {
                Payload::IcmpError
            }
            (Version::V4 | Version::V6, _, _) => Payload::Other,
        }),
    }
}

#[inline]
fn parse_tcp(bytes: &[u8]) -> Result<Payload, ParseError> {
    let header: &[u8; 20] = bytes.first_chunk().ok_or(ParseError::Malformed)?;
    let header_length = usize::from(header[12] >> 4) * 4;
    if header_length < header.len() || header_length > bytes.len() {
        return Err(ParseError::Malformed);
    }
    Ok(Payload::Tcp(ports(header), TcpFlags(header[13])))
}

#[inline]
fn parse_udp(bytes: &[u8]) -> Result<Payload, ParseError> {
    let header: &[u8; 8] = bytes.first_chunk().ok_or(ParseError::Malformed)?;
    let length = usize::from(u16::from_be_bytes([header[4], header[5]]));
    if length < header.len() || length > bytes.len() {
        return Err(ParseError::Malformed);
    }
    Ok(Payload::Udp(ports(header)))
}

#[inline]
fn ports(header: &[u8]) -> Ports {
    Ports {
        source: u16::from_be_bytes([header[0], header[1]]),
        destination: u16::from_be_bytes([header[2], header[3]]),
    }
}
