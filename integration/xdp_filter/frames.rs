//! Packets that etherparse's builders do not make: fragments, chains of extension headers, ARP and solicitations.
use std::net::{Ipv4Addr, Ipv6Addr};

use crate::packets::SOURCE_MAC;

/// The IPv4 packet as the fragment of datagram `id` at `offset` (in units of eight bytes). The checksum is then wrong.
pub(crate) fn fragment_v4(packet: &[u8], id: u16, offset: u16, more: bool) -> Vec<u8> {
    let mut fragment = packet.to_vec();
    fragment[4..6].copy_from_slice(&id.to_be_bytes());
    let flags = offset | u16::from(more) << 13;
    fragment[6..8].copy_from_slice(&flags.to_be_bytes());
    fragment
}

/// The IPv4 packet with `words` words of options (no-operation).
pub(crate) fn with_options(packet: &[u8], words: u8) -> Vec<u8> {
    let mut header = packet[..20].to_vec();
    header[0] += words;
    header.resize(20 + usize::from(words) * 4, 1);
    [&header, &packet[20..]].concat()
}

/// An extension header: its number, and its bytes behind the first one.
pub(crate) type Extension = (u8, Vec<u8>);

pub(crate) fn hop_by_hop() -> Extension {
    (0, vec![0, 1, 4, 0, 0, 0, 0])
}

/// Sixteen bytes.
pub(crate) fn destination_options() -> Extension {
    (60, [&[1, 1, 12][..], &[0; 12]].concat())
}

/// Sixteen bytes (RFC 4302: four words, minus two).
pub(crate) fn authentication() -> Extension {
    (51, [&[2][..], &[0; 14]].concat())
}

pub(crate) fn fragment_v6(id: u32, offset: u16, more: bool) -> Extension {
    let offset = offset << 3 | u16::from(more);
    (44, [&[0][..], &offset.to_be_bytes(), &id.to_be_bytes()].concat())
}

/// The IPv6 packet with these headers before its transport header.
pub(crate) fn with_extensions(packet: &[u8], extensions: &[Extension]) -> Vec<u8> {
    let mut header = packet[..40].to_vec();
    let mut chain = Vec::new();
    let transport = header[6];
    let following = extensions.iter().skip(1).map(|(number, _)| *number).chain([transport]);
    for ((_, rest), next) in extensions.iter().zip(following) {
        chain.push(next);
        chain.extend(rest);
    }
    header[6] = extensions.first().map_or(transport, |(number, _)| *number);
    let length = u16::try_from(chain.len() + packet.len() - 40).unwrap();
    header[4..6].copy_from_slice(&length.to_be_bytes());
    [&header, &chain, &packet[40..]].concat()
}

/// A broadcast ARP request for `target`.
pub(crate) fn who_has(target: Ipv4Addr) -> Vec<u8> {
    let mut frame = [[0xff; 6], SOURCE_MAC].concat();
    frame.extend([0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 1]);
    frame.extend(SOURCE_MAC);
    frame.extend([10, 1, 0, 2, 0, 0, 0, 0, 0, 0]);
    frame.extend(target.octets());
    frame.resize(60, 0);
    frame
}

/// A neighbour solicitation for `target`, to its solicited-node multicast address (RFC 4291 section 2.7.1).
pub(crate) fn solicitation(target: Ipv6Addr) -> Vec<u8> {
    let low = &target.octets()[13..];
    let mut frame = [&[0x33, 0x33, 0xff], low, &SOURCE_MAC, &[0x86, 0xdd]].concat();
    frame.extend([0x60, 0, 0, 0, 0, 24, 58, 255]);
    frame.extend("fd00::2".parse::<Ipv6Addr>().unwrap().octets());
    frame.extend([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff]);
    frame.extend(low);
    frame.extend([135, 0, 0, 0, 0, 0, 0, 0]);
    frame.extend(target.octets());
    frame
}

/// The frame to another address.
pub(crate) fn sent_to(frame: &[u8], address: [u8; 6]) -> Vec<u8> {
    [&address, &frame[6..]].concat()
}
