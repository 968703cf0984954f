//! Service addresses on a local network: who asks for the link address of one that no interface owns gets lbd's answer, by
//! ARP (RFC 826) or neighbour discovery (RFC 4861), and hears of it unasked when lbd starts to serve it.
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use lbd_core::packet::ethernet::HEADER as ETHERNET;
use lbd_core::packet::icmp::ICMPV6;
use lbd_core::packet::ip::IPV6_HEADER;
use lbd_core::packet::{checksum, ethernet};

/// An Ethernet address.
pub type Mac = [u8; 6];

const BROADCAST: Mac = [0xff; 6];
const ARP: [u8; 2] = ethernet::ARP.to_be_bytes();
const IPV6: [u8; 2] = ethernet::IPV6.to_be_bytes();
/// Hardware type Ethernet, protocol type IPv4, and their lengths (RFC 826).
const ARP_START: [u8; 6] = [0, 1, 0x08, 0, 6, 4];
const ARP_LENGTH: usize = 28;
const REQUEST: [u8; 2] = [0, 1];
const REPLY: [u8; 2] = [0, 2];

/// Neighbour discovery comes and goes with it, so that no router can have forwarded it (RFC 4861 section 3.1).
const HOP_LIMIT: u8 = 255;
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
/// An advertisement with the target link-layer address option: 8, 16 and 8 bytes (RFC 4861 sections 4.4 and 4.6.1).
const ADVERTISEMENT_LENGTH: usize = 32;
const TARGET_LINK_LAYER_ADDRESS: u8 = 2;
const SOLICITED: u8 = 0x40;
const OVERRIDE: u8 = 0x20;
/// `ff02::1`, all nodes on the link, and its Ethernet address (RFC 2464 section 7).
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ALL_NODES_MAC: Mac = [0x33, 0x33, 0, 0, 0, 1];

/// The longest packet that is made here.
pub const LONGEST: usize = ETHERNET + IPV6_HEADER + ADVERTISEMENT_LENGTH;

/// A question for the link address of `target`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Question {
    /// The address asked for.
    pub target: IpAddr,
    asker: IpAddr,
    asker_mac: Mac,
}

/// Reads the question in a frame that carries `ethertype` from `start` on; None when it is something else.
#[must_use]
pub fn question(frame: &[u8], ethertype: u16, start: usize) -> Option<Question> {
    match ethertype {
        ethernet::ARP => arp_question(frame.get(start..)?),
        ethernet::IPV6 => solicitation(frame, start),
        _ => None,
    }
}

fn arp_question(arp: &[u8]) -> Option<Question> {
    let arp: &[u8; ARP_LENGTH] = arp.first_chunk()?;
    if arp[..6] != ARP_START || arp[6..8] != REQUEST {
        return None;
    }
    Some(Question {
        target: v4(arp, 24).into(),
        asker: v4(arp, 14).into(),
        asker_mac: mac(arp, 8),
    })
}

/// RFC 4861 section 7.1.1: what is not valid is ignored.
fn solicitation(frame: &[u8], start: usize) -> Option<Question> {
    let packet: &[u8; IPV6_HEADER + 24] = frame.get(start..)?.first_chunk()?;
    if packet[6] != ICMPV6 || packet[IPV6_HEADER..IPV6_HEADER + 2] != [SOLICITATION, 0] {
        return None;
    }
    let length = IPV6_HEADER + usize::from(u16::from_be_bytes([packet[4], packet[5]]));
    let (source, destination) = (v6(packet, 8), v6(packet, 24));
    let message = frame.get(start + IPV6_HEADER..start + length)?;
    let sum = checksum::pseudo_header(source.into(), destination.into(), ICMPV6, message.len());
    let is_valid = packet[7] == HOP_LIMIT && checksum::finish(checksum::add(sum, message)) == 0;
    is_valid.then(|| Question {
        target: v6(packet, 48).into(),
        asker: source.into(),
        asker_mac: mac(frame, 6),
    })
}

/// Writes the answer in the place of the question, up to two VLAN tags before `start` kept; returns where it ends. None
/// where it has no room.
#[must_use]
pub fn answer(question: &Question, frame: &mut [u8], start: usize, own: Mac) -> Option<usize> {
    frame.copy_within(6..12, 0);
    frame[6..12].copy_from_slice(&own);
    match (question.target, question.asker) {
        (IpAddr::V4(target), IpAddr::V4(asker)) => {
            let arp = frame.get_mut(start..start + ARP_LENGTH)?;
            write_arp(arp, REPLY, (own, target), (question.asker_mac, asker));
            Some(start + ARP_LENGTH)
        }
        (IpAddr::V6(target), IpAddr::V6(asker)) => {
            // Who has no address yet, and checks whether this one is free, is told as everybody is (section 7.2.4).
            let (to, flags) = match asker.is_unspecified() {
                true => (ALL_NODES, OVERRIDE),
                false => (asker, SOLICITED | OVERRIDE),
            };
            if asker.is_unspecified() {
                frame[..6].copy_from_slice(&ALL_NODES_MAC);
            }
            let end = start + IPV6_HEADER + ADVERTISEMENT_LENGTH;
            write_advertisement(frame.get_mut(start..end)?, target, own, to, flags);
            Some(end)
        }
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => None,
    }
}

/// Writes what tells everybody on the link, unasked, that `address` is at `own`: a gratuitous ARP request (RFC 5227 section
/// 3: more stacks heed it than a reply), or an unsolicited advertisement (RFC 4861 section 7.2.6). Returns its length.
#[must_use]
pub fn announcement(address: IpAddr, own: Mac, frame: &mut [u8; LONGEST]) -> usize {
    frame[6..12].copy_from_slice(&own);
    match address {
        IpAddr::V4(address) => {
            frame[..6].copy_from_slice(&BROADCAST);
            frame[12..ETHERNET].copy_from_slice(&ARP);
            let end = ETHERNET + ARP_LENGTH;
            write_arp(&mut frame[ETHERNET..end], REQUEST, (own, address), ([0; 6], address));
            end
        }
        IpAddr::V6(address) => {
            frame[..6].copy_from_slice(&ALL_NODES_MAC);
            frame[12..ETHERNET].copy_from_slice(&IPV6);
            write_advertisement(&mut frame[ETHERNET..], address, own, ALL_NODES, OVERRIDE);
            LONGEST
        }
    }
}

fn write_arp(arp: &mut [u8], operation: [u8; 2], sender: (Mac, Ipv4Addr), target: (Mac, Ipv4Addr)) {
    arp[..6].copy_from_slice(&ARP_START);
    arp[6..8].copy_from_slice(&operation);
    arp[8..14].copy_from_slice(&sender.0);
    arp[14..18].copy_from_slice(&sender.1.octets());
    arp[18..24].copy_from_slice(&target.0);
    arp[24..28].copy_from_slice(&target.1.octets());
}

fn write_advertisement(packet: &mut [u8], target: Ipv6Addr, own: Mac, to: Ipv6Addr, flags: u8) {
    let (header, message) = packet.split_at_mut(IPV6_HEADER);
    header.fill(0);
    header[0] = 0x60;
    header[4..6].copy_from_slice(&(ADVERTISEMENT_LENGTH as u16).to_be_bytes());
    header[6] = ICMPV6;
    header[7] = HOP_LIMIT;
    header[8..24].copy_from_slice(&target.octets());
    header[24..40].copy_from_slice(&to.octets());
    message.fill(0);
    message[0] = ADVERTISEMENT;
    message[4] = flags;
    message[8..24].copy_from_slice(&target.octets());
    message[24] = TARGET_LINK_LAYER_ADDRESS;
    // In units of 8 bytes.
    message[25] = 1;
    message[26..32].copy_from_slice(&own);
    let sum = checksum::pseudo_header(target.into(), to.into(), ICMPV6, ADVERTISEMENT_LENGTH);
    let check = checksum::finish(checksum::add(sum, message));
    message[2..4].copy_from_slice(&check.to_be_bytes());
}

fn mac(bytes: &[u8], at: usize) -> Mac {
    let mut mac = [0; 6];
    mac.copy_from_slice(&bytes[at..at + 6]);
    mac
}

fn v4(bytes: &[u8], at: usize) -> Ipv4Addr {
    Ipv4Addr::new(bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3])
}

fn v6(bytes: &[u8], at: usize) -> Ipv6Addr {
    let mut octets = [0; 16];
    octets.copy_from_slice(&bytes[at..at + 16]);
    octets.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: Mac = [2, 0, 0, 0, 0, 9];
    const ASKER: Mac = [2, 0, 0, 0, 0, 1];

    fn arp_request(tags: &[u8]) -> Vec<u8> {
        let mut arp = [0; ARP_LENGTH];
        let (asker, target) = (Ipv4Addr::new(10, 1, 0, 2), Ipv4Addr::new(10, 1, 0, 100));
        write_arp(&mut arp, REQUEST, (ASKER, asker), ([0; 6], target));
        [&BROADCAST, &ASKER, tags, &ARP, &arp].concat()
    }

    /// As Linux sends it: to the solicited-node address, with the asker's link address as an option.
    fn solicitation_from(asker: &str) -> Vec<u8> {
        let (asker, target): (Ipv6Addr, Ipv6Addr) = (asker.parse().unwrap(), "fd00:1::100".parse().unwrap());
        let to: Ipv6Addr = "ff02::1:ff00:100".parse().unwrap();
        let mut message = [
            &[SOLICITATION, 0, 0, 0, 0, 0, 0, 0],
            &target.octets()[..],
            &[1, 1],
            &ASKER,
        ]
        .concat();
        let sum = checksum::pseudo_header(asker.into(), to.into(), ICMPV6, message.len());
        let check = checksum::finish(checksum::add(sum, &message)).to_be_bytes();
        message[2..4].copy_from_slice(&check);
        let header = [&[0x60, 0, 0, 0, 0, 32, ICMPV6, 255], &asker.octets()[..], &to.octets()].concat();
        [&[0x33, 0x33, 0xff, 0, 1, 0][..], &ASKER, &IPV6, &header[..], &message].concat()
    }

    fn answered(mut frame: Vec<u8>, start: usize) -> Option<Vec<u8>> {
        let (ethertype, at) = ethernet::network(&frame)?;
        assert_eq!(at, start);
        let question = question(&frame, ethertype, start)?;
        frame.resize(200, 0);
        let end = answer(&question, &mut frame, start, OWN)?;
        frame.truncate(end);
        Some(frame)
    }

    #[test]
    fn an_arp_request_is_answered_to_who_asked() {
        let answer = answered(arp_request(&[]), 14).unwrap();
        let arp = [
            &[0, 1, 8, 0, 6, 4, 0, 2],
            &OWN[..],
            &[10, 1, 0, 100],
            &ASKER,
            &[10, 1, 0, 2],
        ]
        .concat();
        assert_eq!(answer, [&ASKER, &OWN, &ARP[..], &arp].concat());
    }

    #[test]
    fn the_tag_of_a_vlan_stays_on_the_answer() {
        let tag = [0x81, 0, 0, 100];
        let answer = answered(arp_request(&tag), 18).unwrap();
        assert_eq!(answer[..18], [&ASKER, &OWN, &tag[..], &ARP].concat());
    }

    #[test]
    fn a_neighbour_solicitation_is_answered_with_an_advertisement_that_is_valid() {
        let answer = answered(solicitation_from("fd00:1::2"), 14).unwrap();
        assert_eq!(answer[..14], [&ASKER, &OWN, &IPV6[..]].concat());
        let (header, message) = answer[14..].split_at(40);
        assert_eq!((header[6], header[7]), (58, 255));
        assert_eq!(
            (v6(header, 8), v6(header, 24)),
            ("fd00:1::100".parse().unwrap(), "fd00:1::2".parse().unwrap())
        );
        assert_eq!(
            (message[0], message[1], message[4]),
            (136, 0, 0x60),
            "solicited, overriding"
        );
        assert_eq!(
            (v6(message, 8), &message[24..]),
            (v6(header, 8), &[&[2, 1], &OWN[..]].concat()[..])
        );
        let sum = checksum::pseudo_header(v6(header, 8).into(), v6(header, 24).into(), 58, 32);
        assert_eq!(checksum::finish(checksum::add(sum, message)), 0);
    }

    #[test]
    fn who_checks_whether_the_address_is_free_is_told_as_everybody() {
        let answer = answered(solicitation_from("::"), 14).unwrap();
        assert_eq!(answer[..6], ALL_NODES_MAC);
        assert_eq!((v6(&answer, 14 + 24), answer[14 + 40 + 4]), (ALL_NODES, OVERRIDE));
    }

    #[test]
    fn anything_else_is_no_question() {
        let mut reply = arp_request(&[]);
        reply[21] = 2;
        let mut routed = solicitation_from("fd00:1::2");
        routed[21] = 64;
        let mut broken = solicitation_from("fd00:1::2");
        broken[80] ^= 1;
        let short = arp_request(&[])[..41].to_vec();
        for frame in [reply, routed, broken, short] {
            assert_eq!(answered(frame, 14), None);
        }
    }

    #[test]
    fn everybody_on_the_link_is_told_where_an_address_is() {
        let mut frame = [0; LONGEST];
        let end = announcement("10.1.0.100".parse().unwrap(), OWN, &mut frame);
        let address = [10, 1, 0, 100];
        let arp = [&[0, 1, 8, 0, 6, 4, 0, 1], &OWN[..], &address, &[0; 6], &address].concat();
        assert_eq!(frame[..end], [&BROADCAST, &OWN, &ARP[..], &arp].concat());
        let end = announcement("fd00:1::100".parse().unwrap(), OWN, &mut frame);
        assert_eq!(
            (&frame[..6], end, frame[14 + 40 + 4]),
            (&ALL_NODES_MAC[..], LONGEST, OVERRIDE)
        );
    }
}
