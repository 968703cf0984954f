//! Where the IP packet of a captured frame begins.

use lbd_core::packet::ethernet;

/// What the bytes of a captured packet begin with (<https://www.tcpdump.org/linktypes.html>).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkType {
    /// EN10MB: an Ethernet header.
    Ethernet,
    /// RAW: an IP header of either version.
    Raw,
    /// IPV4: an IPv4 header.
    Ipv4,
    /// IPV6: an IPv6 header.
    Ipv6,
}

/// What a frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Payload {
    /// An IP packet from this offset to the end, Ethernet padding included.
    Ip(usize),
    /// Something else, e.g. ARP.
    NotIp,
    /// Less than its headers say, or another IP version.
    Malformed,
}

impl LinkType {
    /// The link type with this number in a capture, where it is supported.
    #[must_use]
    pub const fn from_number(number: u32) -> Option<Self> {
        match number {
            1 => Some(Self::Ethernet),
            // 12 and 14 are DLT_RAW, which differs between systems and is in files of careless writers.
            12 | 14 | 101 => Some(Self::Raw),
            228 => Some(Self::Ipv4),
            229 => Some(Self::Ipv6),
            _ => None,
        }
    }

    /// Finds the IP packet in a `frame` of this type.
    #[must_use]
    pub fn payload(self, frame: &[u8]) -> Payload {
        match self {
            Self::Ethernet => ethernet(frame),
            Self::Raw => Payload::Ip(0),
            Self::Ipv4 => ip(frame, 0, 4),
            Self::Ipv6 => ip(frame, 0, 6),
        }
    }
}

fn ethernet(frame: &[u8]) -> Payload {
    match ethernet::network(frame) {
        Some((ethernet::IPV4, at)) => ip(frame, at, 4),
        Some((ethernet::IPV6, at)) => ip(frame, at, 6),
        Some(_) => Payload::NotIp,
        None => Payload::Malformed,
    }
}

/// A header of another version than announced is refused by the receiver (`ip_rcv_core` of net/ipv4/ip_input.c).
fn ip(frame: &[u8], at: usize, version: u8) -> Payload {
    match frame.get(at) {
        Some(first) if first >> 4 == version => Payload::Ip(at),
        Some(_) | None => Payload::Malformed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(after_addresses: &[u8]) -> Vec<u8> {
        [&[2; 12], after_addresses].concat()
    }

    #[test]
    fn the_ip_packet_is_found_behind_up_to_two_vlan_tags() {
        let plain = frame(&[0x08, 0, 0x45]);
        let tagged = frame(&[0x81, 0, 0, 7, 0x86, 0xdd, 0x60]);
        let twice = frame(&[0x88, 0xa8, 0, 7, 0x81, 0, 0, 8, 0x08, 0, 0x45]);
        assert_eq!(LinkType::Ethernet.payload(&plain), Payload::Ip(14));
        assert_eq!(LinkType::Ethernet.payload(&tagged), Payload::Ip(18));
        assert_eq!(LinkType::Ethernet.payload(&twice), Payload::Ip(22));
    }

    #[test]
    fn arp_and_a_third_tag_are_not_ip() {
        let arp = frame(&[0x08, 0x06, 0, 1]);
        let thrice = frame(&[0x81, 0, 0, 1, 0x81, 0, 0, 2, 0x81, 0, 0, 3, 8, 0, 0x45]);
        assert_eq!(LinkType::Ethernet.payload(&arp), Payload::NotIp);
        assert_eq!(LinkType::Ethernet.payload(&thrice), Payload::NotIp);
    }

    #[test]
    fn a_frame_shorter_than_its_header_or_of_another_version_is_malformed() {
        let no_packet = frame(&[0x08, 0]);
        let six_as_four = frame(&[0x08, 0, 0x60]);
        for runt in [&[][..], &[2; 13], &no_packet, &six_as_four] {
            assert_eq!(LinkType::Ethernet.payload(runt), Payload::Malformed);
        }
        assert_eq!(LinkType::Ipv4.payload(&[0x60]), Payload::Malformed);
        assert_eq!(LinkType::Ipv6.payload(&[0x60]), Payload::Ip(0));
    }
}
