//! Ethernet frames of 64 bytes with one small UDP datagram, built here to the last checksum, as from a wire: the kernel
//! has nothing left to do for them but carry them.
use std::net::{Ipv4Addr, SocketAddrV4};

use lbd::packet::checksum;

use crate::rig::CLIENTS;

/// A frame of 64 bytes without its frame check sequence: 14 Ethernet, 20 IPv4, 8 UDP, 18 payload.
pub(crate) const LENGTH: usize = 60;
const IP: usize = 14;
const UDP: usize = 34;
/// Ports of one address.
const PORTS: u32 = 50_000;
const FIRST_PORT: u32 = 10_000;
/// `IPPROTO_UDP`
const PROTOCOL: u8 = 17;

/// One frame of a flow.
pub(crate) fn frame(macs: [[u8; 6]; 2], flow: u32, target: SocketAddrV4) -> [u8; LENGTH] {
    let [from, to] = macs;
    let mut frame = [0; LENGTH];
    frame[..6].copy_from_slice(&to);
    frame[6..12].copy_from_slice(&from);
    frame[12..14].copy_from_slice(&[0x08, 0x00]);
    // RFC 791: version 4, five words, do not fragment, 64 hops.
    frame[IP] = 0x45;
    frame[IP + 2..IP + 4].copy_from_slice(&((LENGTH - IP) as u16).to_be_bytes());
    frame[IP + 6] = 0x40;
    frame[IP + 8] = 64;
    frame[IP + 9] = PROTOCOL;
    frame[IP + 16..IP + 20].copy_from_slice(&target.ip().octets());
    frame[UDP + 2..UDP + 4].copy_from_slice(&target.port().to_be_bytes());
    frame[UDP + 4..UDP + 6].copy_from_slice(&((LENGTH - UDP) as u16).to_be_bytes());
    set_flow(&mut frame, flow);
    frame
}

/// Makes it a frame of another flow.
pub(crate) fn set_flow(frame: &mut [u8; LENGTH], flow: u32) {
    let (address, port) = source(flow);
    frame[IP + 12..IP + 16].copy_from_slice(&address.octets());
    frame[UDP..UDP + 2].copy_from_slice(&port.to_be_bytes());
    set_checksums(frame);
}

fn source(flow: u32) -> (Ipv4Addr, u16) {
    let [a, b, c, first] = CLIENTS;
    let address = Ipv4Addr::new(a, b, c, first + (flow / PORTS % 64) as u8);
    (address, (FIRST_PORT + flow % PORTS) as u16)
}

/// RFC 1071, RFC 768.
fn set_checksums(frame: &mut [u8; LENGTH]) {
    frame[IP + 10..IP + 12].fill(0);
    frame[UDP + 6..UDP + 8].fill(0);
    let header = !checksum::fold(checksum::add(0, &frame[IP..UDP]));
    frame[IP + 10..IP + 12].copy_from_slice(&header.to_be_bytes());
    let pseudo = u64::from(PROTOCOL) + (LENGTH - UDP) as u64;
    let sum = checksum::add(checksum::add(pseudo, &frame[IP + 12..UDP]), &frame[UDP..]);
    let sum = match !checksum::fold(sum) {
        0 => 0xffff,
        sum => sum,
    };
    frame[UDP + 6..UDP + 8].copy_from_slice(&sum.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use etherparse::{NetHeaders, PacketHeaders, TransportHeader};

    use super::*;

    fn example(flow: u32) -> [u8; LENGTH] {
        frame([[2; 6], [4; 6]], flow, "10.96.0.16:9".parse().unwrap())
    }

    #[test]
    fn a_frame_has_the_right_checksums_for_every_flow() {
        for flow in [0, 1, 49_999, 50_000, 1_000_000] {
            let frame = example(flow);
            let headers = PacketHeaders::from_ethernet_slice(&frame).unwrap();
            let (Some(NetHeaders::Ipv4(ip, _)), Some(TransportHeader::Udp(udp))) = (headers.net, headers.transport)
            else {
                panic!("flow {flow} is no UDP over IPv4");
            };
            assert_eq!(ip.header_checksum, ip.calc_header_checksum());
            assert_eq!(
                udp.checksum,
                udp.calc_checksum_ipv4(&ip, headers.payload.slice()).unwrap()
            );
        }
    }

    #[test]
    fn a_million_flows_are_a_million_sources() {
        let sources: HashSet<_> = (0..1_000_000).map(source).collect();
        assert_eq!(sources.len(), 1_000_000);
    }
}
