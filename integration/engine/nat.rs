//! Addresses, ports and checksums of what is forwarded.
use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::Arc;

use lbd::flow::Protocol;
use lbd::packet::frame::Checksum;
use lbd::policy::{Mode, OwnSources};
use lbd::verdict::{Drop, Pass, Verdict};

use crate::packets::{self, ACK, SYN};
use crate::world::{Case, World, chunk_type, packet, unfinished};

/// The pseudo-header's sum as Linux puts it into the field of a packet that the device completes, one's complement
/// sum over 16-bit words, not complemented.
fn pseudo_sum(packet: &[u8]) -> u16 {
    let (addresses, transport, protocol) = match packet[0] >> 4 {
        4 => (&packet[12..20], 20, packet[9]),
        _ => (&packet[8..40], 40, packet[6]),
    };
    let words = addresses
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1]));
    let mut sum = words.sum::<u32>() + u32::from(protocol) + (packet.len() - transport) as u32;
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

fn field_of(packet: &[u8], protocol: Protocol) -> std::ops::Range<usize> {
    let transport = if packet[0] >> 4 == 4 { 20 } else { 40 };
    let field = transport + if protocol == Protocol::Tcp { 16 } else { 6 };
    field..field + 2
}

/// The packet as a local stack hands it to a device that computes checksums.
pub(crate) fn partial(packet: &[u8], protocol: Protocol) -> Vec<u8> {
    let mut packet = packet.to_vec();
    let sum = pseudo_sum(&packet);
    let field = field_of(&packet, protocol);
    packet[field].copy_from_slice(&sum.to_be_bytes());
    packet
}

/// What the device makes of it: the checksum of a rebuilt packet.
fn completed(outcome: &[u8], protocol: Protocol, payload: &[u8], flags: u8) -> Vec<u8> {
    let (from, to) = packets::endpoints(outcome);
    segment(protocol, from, to, payload, flags)
}

fn segment(protocol: Protocol, from: SocketAddr, to: SocketAddr, payload: &[u8], flags: u8) -> Vec<u8> {
    match protocol {
        Protocol::Tcp => packets::tcp(from, to, flags, 1, if flags & ACK == 0 { 0 } else { 1 }, payload),
        Protocol::Udp => packets::udp(from, to, payload),
        Protocol::Sctp => packets::sctp_of(from, to, &packets::chunk(chunk_type(flags), payload)),
    }
}

#[test]
fn a_clients_packet_goes_to_the_backends_address_and_port_and_the_answer_comes_from_the_service() {
    for case in Case::all() {
        let mut world = case.setup().world();
        let flow = world.connect(case.protocol, case.client(2, 40_000), case.service());
        assert_eq!(
            (flow.source, flow.backend),
            (case.client(2, 40_000), case.backend(1)),
            "{case:?}"
        );
        world.up(&flow, ACK);
        world.down(&flow, ACK);
    }
}

#[test]
fn only_addresses_ports_and_checksums_are_changed() {
    for case in Case::all() {
        let mut world = case.setup().world();
        let flow = world.connect(case.protocol, case.client(2, 40_000), case.service());
        let sent = segment(case.protocol, flow.client, flow.service, b"some payload", ACK);
        let outcome = world.send(&sent);
        let expected = segment(case.protocol, flow.source, flow.backend, b"some payload", ACK);
        assert_eq!(outcome.packet, expected, "{case:?}");
        let answer = segment(case.protocol, flow.backend, flow.source, b"an answer", ACK);
        let expected = segment(case.protocol, flow.service, flow.client, b"an answer", ACK);
        assert_eq!(world.send(&answer).packet, expected, "{case:?}");
    }
}

#[test]
fn a_packet_to_no_service_passes() {
    for case in Case::all() {
        let mut world = case.setup().world();
        let mut elsewhere = case.service();
        elsewhere.set_port(81);
        let client = case.client(2, 40_000);
        assert_eq!(
            world.try_open(case.protocol, client, elsewhere),
            Verdict::Pass(Pass::NoMatch)
        );
        let other = if case.protocol == Protocol::Tcp {
            Protocol::Udp
        } else {
            Protocol::Tcp
        };
        assert_eq!(
            world.try_open(other, client, case.service()),
            Verdict::Pass(Pass::NoMatch)
        );
    }
}

#[test]
fn a_backends_own_packets_pass() {
    for case in Case::all() {
        let mut world = case.setup().world();
        let unasked = packet(case.protocol, case.backend(1), case.client(2, 40_000), SYN | ACK);
        assert_eq!(world.send(&unasked).verdict, Verdict::Pass(Pass::NoMatch));
    }
}

#[test]
fn a_udp_datagram_without_checksum_stays_without() {
    for mode in [Mode::Ipvs, Mode::Iptables] {
        let case = Case::UDP.in_mode(mode);
        let mut world = case.setup().world();
        let flow = world.open(Protocol::Udp, case.client(2, 40_000), case.service());
        for (from, to) in [(flow.client, flow.service), (flow.backend, flow.source)] {
            let mut sent = packets::udp(from, to, b"hello");
            sent[26..28].fill(0);
            assert_eq!(world.send(&sent).packet[26..28], [0, 0]);
        }
    }
}

#[test]
fn a_udp_checksum_that_comes_out_as_zero_is_sent_as_all_ones() {
    for case in Case::all().filter(|case| case.protocol == Protocol::Udp) {
        let mut world = case.setup().world();
        let flow = world.open(Protocol::Udp, case.client(2, 40_000), case.service());
        // The word of payload that makes the forwarded datagram's sum all ones, and so its checksum zero.
        let plain = packets::udp(flow.source, flow.backend, &[0, 0]);
        let word = &plain[field_of(&plain, Protocol::Udp)];
        let outcome = world.send(&packets::udp(flow.client, flow.service, word));
        assert_eq!(
            outcome.packet[field_of(&outcome.packet, Protocol::Udp)],
            [0xff, 0xff],
            "{case:?}"
        );
    }
}

#[test]
fn an_unfinished_checksum_stays_one_that_the_device_can_finish() {
    for case in Case::tcp_and_udp() {
        let mut world = case.setup().world();
        let flow = world.connect(case.protocol, case.client(2, 40_000), case.service());
        for (from, to) in [(flow.client, flow.service), (flow.backend, flow.source)] {
            let sent = partial(&segment(case.protocol, from, to, b"payload", ACK), case.protocol);
            let outcome = world.send_as(&sent, unfinished(&sent));
            assert_eq!(outcome.verdict, Verdict::Forward);
            let finished = completed(&outcome.packet, case.protocol, b"payload", ACK);
            // The device sums from the transport header on and complements: so the field must be the new pseudo-header's.
            assert_eq!(outcome.packet, partial(&finished, case.protocol), "{case:?}");
        }
    }
}

#[test]
fn the_complete_checksum_of_a_tunnel_is_kept_right_while_the_device_finishes_an_inner_one() {
    for case in Case::all() {
        let mut world = case.setup().world();
        let sent = packet(case.protocol, case.client(2, 40_000), case.service(), SYN);
        let inner = Checksum::Partial {
            start: sent.len() - 1,
            offset: 0,
        };
        let outcome = world.send_as(&sent, inner);
        assert_eq!(outcome.verdict, Verdict::Forward);
        packets::assert_valid(&outcome.packet);
    }
}

#[test]
fn a_first_packet_may_have_an_unfinished_checksum() {
    for case in Case::tcp_and_udp() {
        let mut world = case.setup().world();
        let first = packet(case.protocol, case.client(2, 40_000), case.service(), SYN);
        let outcome = world.send_as(&partial(&first, case.protocol), unfinished(&first));
        let arrives = packet(case.protocol, case.client(2, 40_000), case.backend(1), SYN);
        assert_eq!(outcome.packet, partial(&arrives, case.protocol), "{case:?}");
    }
}

#[test]
fn a_super_packet_of_64_kilobytes_is_rewritten_as_its_segments_are() {
    for case in Case::tcp_and_udp() {
        let mut world = case.setup().world();
        let flow = world.connect(case.protocol, case.client(2, 40_000), case.service());
        let headers = packet(case.protocol, flow.client, flow.service, ACK).len();
        let payload: Vec<u8> = (0..65_535 - headers).map(|n| (n % 251) as u8).collect();
        let whole = segment(case.protocol, flow.client, flow.service, &payload, ACK);
        let outcome = world.send_as(&partial(&whole, case.protocol), unfinished(&whole));
        let expected = segment(case.protocol, flow.source, flow.backend, &payload, ACK);
        assert_eq!(outcome.verdict, Verdict::Forward);
        assert!(outcome.packet == partial(&expected, case.protocol), "{case:?}");
        let one = world.send(&segment(
            case.protocol,
            flow.client,
            flow.service,
            &payload[..1_000],
            ACK,
        ));
        assert_eq!(packets::endpoints(&one.packet), packets::endpoints(&outcome.packet));
    }
}

#[test]
fn bytes_behind_the_packet_such_as_ethernet_padding_are_left_alone() {
    let case = Case::UDP;
    let mut world = case.setup().world();
    let mut sent = packets::udp(case.client(2, 40_000), case.service(), b"x");
    sent.extend_from_slice(&[0xee; 17]);
    let outcome = world.send_as(&sent, Checksum::Complete);
    assert_eq!(outcome.verdict, Verdict::Forward);
    let length = outcome.packet.len() - 17;
    packets::assert_valid(&outcome.packet[..length]);
    assert_eq!(outcome.packet[length..], [0xee; 17]);
}

#[test]
fn what_is_not_ip_passes_and_what_contradicts_itself_is_dropped() {
    let mut world = Case::TCP.setup().world();
    let valid = packet(Protocol::Tcp, Case::TCP.client(2, 40_000), Case::TCP.service(), SYN);
    assert_eq!(
        world.send_as(&[], Checksum::Complete).verdict,
        Verdict::Pass(Pass::NotIp)
    );
    assert_eq!(
        world.send_as(&[0; 60], Checksum::Complete).verdict,
        Verdict::Pass(Pass::NotIp)
    );
    let broken = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut packet = valid.clone();
        change(&mut packet);
        packet
    };
    let all = [
        broken(&|packet| packet.truncate(39)),
        broken(&|packet| packet.truncate(10)),
        broken(&|packet| packet[0] = 0x44),
        broken(&|packet| packet[0] = 0x4f),
        broken(&|packet| packet[3] += 1),
        broken(&|packet| packet[3] = 19),
        broken(&|packet| packet[32] = 0x40),
        broken(&|packet| packet[32] = 0xf0),
    ];
    for bytes in all {
        let verdict = world.send_as(&bytes, Checksum::Complete).verdict;
        assert_eq!(verdict, Verdict::Drop(Drop::Malformed), "{bytes:02x?}");
    }
}

#[test]
fn a_packet_whose_source_route_goes_on_behind_the_service_address_is_left_as_it_is() {
    let with_route = |kind: u8, pointer: u8| {
        let mut packet = packet(Protocol::Tcp, Case::TCP.client(2, 40_000), Case::TCP.service(), SYN);
        packet[0] = 0x47;
        packet[3] += 8;
        packet.splice(20..20, [1, kind, 7, pointer, 10, 77, 0, 1]);
        packet
    };
    for (kind, pointer, expected) in [
        (131, 4, Verdict::Pass(Pass::UntrackedProtocol)),
        (137, 4, Verdict::Pass(Pass::UntrackedProtocol)),
        (131, 8, Verdict::Forward),
        (7, 4, Verdict::Forward),
    ] {
        let mut world = Case::TCP.setup().world();
        let sent = with_route(kind, pointer);
        let outcome = world.send_as(&sent, Checksum::Complete);
        assert_eq!(outcome.verdict, expected, "option {kind}, pointer {pointer}");
        assert_eq!(outcome.packet == sent, expected != Verdict::Forward);
    }
}

#[test]
fn a_do_not_fragment_bit_makes_no_fragment() {
    let case = Case::UDP;
    let mut world: World = case.setup().world();
    let mut sent = packets::udp(case.client(2, 40_000), case.service(), b"hello");
    sent[6] = 0x40;
    assert_eq!(world.send_as(&sent, Checksum::Complete).verdict, Verdict::Forward);
}

#[test]
fn where_the_device_does_not_tell_an_unfinished_checksum_is_recognized_and_stays_for_the_device_to_finish() {
    for case in Case::tcp_and_udp() {
        let mut world = case.setup().world();
        let (client, service) = (case.client(1, 40_000), case.service());
        let whole = segment(case.protocol, client, service, b"payload", SYN);
        let outcome = world.send_as(&partial(&whole, case.protocol), Checksum::Unsure);
        assert_eq!(outcome.verdict, Verdict::Forward);
        assert_eq!(outcome.checksum, unfinished(&whole));
        let sum = pseudo_sum(&outcome.packet).to_be_bytes();
        assert_eq!(outcome.packet[field_of(&outcome.packet, case.protocol)], sum);
        let outcome = world.send_as(&whole, Checksum::Unsure);
        assert_eq!(outcome.checksum, Checksum::Complete);
        packets::assert_valid(&outcome.packet);
    }
}

#[test]
fn a_host_without_a_pool_masquerades_with_its_own_address_and_ports_of_lbds_own() {
    for case in Case::all() {
        let mut world = case
            .setup()
            .tables("[nat]\nmasquerade = \"always\"")
            .weights(&[1])
            .world();
        let mut policy = (*world.engine.ruleset().policy).clone();
        let own = case.node(0).ip();
        policy.nat.own = Some(OwnSources {
            ports: Arc::new((61_000..=61_003).into()),
            towards: Arc::new([(case.backend(1).ip(), own)].into()),
        });
        world.engine.apply(Arc::new(policy));
        let mut seen = HashSet::new();
        for n in 1..=4 {
            let flow = world.connect(case.protocol, case.client(n, 40_000), case.service());
            assert_eq!(flow.source.ip(), own);
            assert!((61_000..=61_003).contains(&flow.source.port()), "{}", flow.source);
            assert!(seen.insert(flow.source), "each from a port of its own");
        }
        let one_too_many = world.try_open(case.protocol, case.client(5, 40_000), case.service());
        assert_eq!(one_too_many, Verdict::Drop(Drop::PoolExhausted));
    }
}
