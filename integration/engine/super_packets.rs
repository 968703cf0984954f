//! A super-packet is many segments in one (TSO, USO): the device cuts it after lbd has rewritten it. What leaves must be what
//! would have left had it been cut before.
use std::net::SocketAddr;

use proptest::prelude::*;

use lbd::flow::Protocol;
use lbd::packet::frame::Checksum;
use lbd::verdict::Verdict;

use crate::fragments::header;
use crate::nat::partial;
use crate::packets::{self, ACK, FIN, PSH};
use crate::world::{Case, Flow, World, unfinished};

/// TCP timestamps with two no-operations before them (RFC 7323 appendix A).
const TIMESTAMPS: [u8; 12] = [1, 1, 8, 10, 0, 1, 2, 3, 4, 5, 6, 7];

fn tcp_header(packet: &[u8]) -> usize {
    usize::from(packet[header(packet) + 12] >> 4) * 4
}

fn transport_header(packet: &[u8], protocol: Protocol) -> usize {
    match protocol {
        Protocol::Tcp => tcp_header(packet),
        Protocol::Udp | Protocol::Sctp => 8,
    }
}

/// The one's complement sum of these bytes and 16 bits more.
fn sum(bytes: &[u8], more: u16) -> u16 {
    let words = bytes
        .chunks(2)
        .map(|pair| u64::from(pair[0]) << 8 | pair.get(1).map_or(0, |&low| u64::from(low)));
    let mut sum = words.sum::<u64>() + u64::from(more);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

fn put(packet: &mut [u8], at: usize, word: u16) {
    packet[at..at + 2].copy_from_slice(&word.to_be_bytes());
}

fn get(packet: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([packet[at], packet[at + 1]])
}

/// Cuts a super-packet as a device does, which takes the checksum field as it is for the sum over the pseudo-header
/// (`tcp_gso_segment`, net/ipv4/tcp_offload.c; `__udp_gso_segment`, net/ipv4/udp_offload.c).
fn cut(packet: &[u8], protocol: Protocol, size: usize) -> Vec<Vec<u8>> {
    let headers = header(packet) + transport_header(packet, protocol);
    let chunks: Vec<&[u8]> = packet[headers..].chunks(size).collect();
    let segment = |(number, chunk): (usize, &&[u8])| {
        let mut segment = [&packet[..headers], chunk].concat();
        match protocol {
            Protocol::Tcp => go_on(&mut segment, number * size, number + 1 == chunks.len()),
            Protocol::Udp | Protocol::Sctp => {
                let at = header(packet) + 4;
                let length = (8 + chunk.len()) as u16;
                put(&mut segment, at, length);
            }
        }
        finish_ip(&mut segment, number as u16);
        finish_transport(&mut segment, packet.len(), protocol);
        segment
    };
    chunks.iter().enumerate().map(segment).collect()
}

/// A TCP segment so many bytes behind the first one. FIN and PSH are the last one's.
fn go_on(segment: &mut [u8], behind: usize, is_last: bool) {
    let at = header(segment);
    let sequence = u32::from_be_bytes([segment[at + 4], segment[at + 5], segment[at + 6], segment[at + 7]]);
    segment[at + 4..at + 8].copy_from_slice(&sequence.wrapping_add(behind as u32).to_be_bytes());
    if !is_last {
        segment[at + 13] &= !(FIN | PSH);
    }
}

fn finish_ip(segment: &mut [u8], number: u16) {
    let length = segment.len() as u16;
    if segment[0] >> 4 == 6 {
        return put(segment, 4, length - 40);
    }
    put(segment, 2, length);
    let identification = get(segment, 4).wrapping_add(number);
    put(segment, 4, identification);
    put(segment, 10, 0);
    let check = !sum(&segment[..20], 0);
    put(segment, 10, check);
}

/// The field holds a sum that counts the length of the whole super-packet.
fn finish_transport(segment: &mut [u8], whole: usize, protocol: Protocol) {
    let at = header(segment);
    let field = at + if protocol == Protocol::Tcp { 16 } else { 6 };
    let shorter = (whole - segment.len()) as u16;
    let pseudo = sum(&get(segment, field).to_be_bytes(), !shorter);
    put(segment, field, 0);
    let check = match (!sum(&segment[at..], pseudo), protocol) {
        (0, Protocol::Udp) => 0xffff,
        (check, Protocol::Tcp | Protocol::Udp | Protocol::Sctp) => check,
    };
    put(segment, field, check);
}

/// A packet as a local stack makes it, its checksum unfinished.
fn super_packet(protocol: Protocol, from: SocketAddr, to: SocketAddr, flags: u8, payload: &[u8]) -> Vec<u8> {
    let made = match protocol {
        Protocol::Tcp => {
            let mut made = packets::tcp(from, to, flags, u32::MAX - 5_000, 7, &[&TIMESTAMPS, payload].concat());
            let offset = header(&made) + 12;
            made[offset] = 8 << 4;
            made
        }
        Protocol::Udp | Protocol::Sctp => packets::udp(from, to, payload),
    };
    partial(&made, protocol)
}

fn payload() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        prop::collection::vec(any::<u8>(), 1..3_000),
        (1..60_000_usize, any::<u8>()).prop_map(|(length, step)| {
            let bytes = (0..length).map(|n| (n as u8).wrapping_mul(step));
            bytes.collect()
        }),
        (1..20_000_usize, prop_oneof![Just(0_u8), Just(0xff)]).prop_map(|(length, byte)| vec![byte; length]),
    ]
}

/// A world with a flow that was opened; any two of the same case are alike.
fn opened(case: Case, masqueraded: bool) -> (World, Flow) {
    let masquerade = if masqueraded { "always" } else { "auto" };
    let mut world = case
        .setup()
        .tables(&format!("[nat]\nmasquerade = \"{masquerade}\""))
        .world();
    let flow = world.connect(case.protocol, case.client(2, 40_000), case.service());
    (world, flow)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_super_packet_and_its_segments_are_rewritten_alike(
        number in 0..8_usize,
        (masqueraded, up, told) in any::<(bool, bool, bool)>(),
        flags in 0..32_u8,
        payload in payload(),
        size in prop_oneof![Just(1_448_usize), 8..200_usize, 500..9_000_usize],
    ) {
        let case = Case::tcp_and_udp().nth(number).unwrap();
        let (mut world, flow) = opened(case, masqueraded);
        let (mut other, same) = opened(case, masqueraded);
        prop_assert_eq!(flow, same);
        let (from, to, leaves) = match up {
            true => (flow.client, flow.service, (flow.source, flow.backend)),
            false => (flow.backend, flow.source, (flow.service, flow.client)),
        };
        let sent = super_packet(case.protocol, from, to, flags & (FIN | PSH) | ACK, &payload);
        let checksum = if told { unfinished(&sent) } else { Checksum::Unsure };

        let whole = world.send_as(&sent, checksum);
        prop_assert_eq!(whole.verdict, Verdict::Forward);
        prop_assert_eq!(whole.checksum, unfinished(&sent), "still the device's to finish");
        let cut_after = cut(&whole.packet, case.protocol, size);

        let cut_before = cut(&sent, case.protocol, size);
        prop_assert_eq!(cut_before.len(), payload.len().div_ceil(size));
        for (segment, expected) in cut_before.iter().zip(&cut_after) {
            let outcome = other.send(segment);
            prop_assert_eq!(outcome.verdict, Verdict::Forward);
            prop_assert_eq!(packets::endpoints(&outcome.packet), leaves);
            prop_assert_eq!(&outcome.packet, expected);
        }
    }
}
