//! The answers to what is refused.
use etherparse::{Icmpv4Type, Icmpv6Type, SlicedPacket, TransportSlice, icmpv4, icmpv6};

use lbd::flow::Protocol;
use lbd::packet::frame::{Checksum, Frame};
use lbd::policy::Mode;
use lbd::verdict::{Drop, Reject, Verdict};

use crate::packets::{self, ACK, FIN, PSH, RST, SYN, socket};
use crate::world::{Case, World, packet, unfinished};

const REJECT_ALL: &str = "[[rules]]\naction = \"reject\"";

/// A world in iptables mode that refuses everything.
fn refusing(case: Case) -> World {
    case.in_mode(Mode::Iptables).setup().tables(REJECT_ALL).world()
}

/// Flags, sequence and acknowledgement number of a segment.
type Control = (u8, u32, u32);

fn control(packet: &[u8]) -> Control {
    let sliced = SlicedPacket::from_ip(packet).unwrap();
    let Some(TransportSlice::Tcp(tcp)) = sliced.transport else {
        panic!("not TCP: {packet:02x?}")
    };
    assert_eq!((tcp.payload().len(), tcp.data_offset()), (0, 5));
    (tcp.slice()[13], tcp.sequence_number(), tcp.acknowledgment_number())
}

/// What an ICMP port unreachable quotes.
fn quoted(packet: &[u8]) -> Vec<u8> {
    let sliced = SlicedPacket::from_ip(packet).unwrap();
    match sliced.transport {
        Some(TransportSlice::Icmpv4(icmp)) => {
            let wanted = Icmpv4Type::DestinationUnreachable(icmpv4::DestUnreachableHeader::Port);
            assert_eq!(icmp.header().icmp_type, wanted);
            assert_eq!(icmp.slice()[4..8], [0; 4]);
            icmp.payload().to_vec()
        }
        Some(TransportSlice::Icmpv6(icmp)) => {
            let wanted = Icmpv6Type::DestinationUnreachable(icmpv6::DestUnreachableCode::Port);
            assert_eq!(icmp.header().icmp_type, wanted);
            assert_eq!(icmp.slice()[4..8], [0; 4]);
            icmp.payload().to_vec()
        }
        other => panic!("not ICMP: {other:?}"),
    }
}

#[test]
fn without_a_usable_backend_tcp_gets_a_reset_and_udp_and_sctp_port_unreachable() {
    for case in Case::all() {
        for weights in [&[][..], &[0], &[0, 0, 0]] {
            let mut world = case.setup().weights(weights).world();
            let (client, service) = (case.client(2, 40_000), case.service());
            let first = packet(case.protocol, client, service, SYN);
            let outcome = world.send(&first);
            assert_eq!(outcome.verdict, Verdict::Reject(Reject::NoBackend), "{case:?}");
            let (from, to) = packets::addresses(&outcome.packet);
            assert_eq!((from, to), (service.ip(), client.ip()));
            match case.protocol {
                Protocol::Tcp => {
                    assert_eq!(packets::endpoints(&outcome.packet), (service, client));
                    assert_eq!(control(&outcome.packet), (RST | ACK, 0, 1_001));
                }
                Protocol::Udp | Protocol::Sctp => assert_eq!(quoted(&outcome.packet), first),
            }
            assert!(world.engine.conntrack().is_empty(), "a refused packet leaves no flow");
        }
    }
}

#[test]
fn a_reset_has_the_numbers_of_rfc_9293() {
    let (seq, ack) = (0xffff_fffe, 77);
    // Section 3.10.7.1: the sequence number is the segment's acknowledgement, or else 0, and then its end is acknowledged.
    let cases: [(u8, &[u8], Control); 7] = [
        (SYN, b"", (RST | ACK, 0, 0xffff_ffff)),
        (SYN, b"early", (RST | ACK, 0, 4)),
        (SYN | FIN, b"", (RST | ACK, 0, 0)),
        (FIN, b"12", (RST | ACK, 0, 1)),
        (0, b"123", (RST | ACK, 0, 1)),
        (ACK, b"data", (RST, 77, 0)),
        (SYN | ACK | PSH | FIN, b"data", (RST, 77, 0)),
    ];
    for case in Case::tcp() {
        for (flags, payload, expected) in cases {
            let mut world = refusing(case);
            let sent = packets::tcp(case.client(2, 40_000), case.service(), flags, seq, ack, payload);
            let outcome = world.send(&sent);
            assert_eq!(outcome.verdict, Verdict::Reject(Reject::Rule));
            assert_eq!(control(&outcome.packet), expected, "{flags:#x} {payload:?}");
        }
    }
}

#[test]
fn a_reset_is_never_answered() {
    for case in Case::tcp() {
        for flags in [RST, RST | ACK, RST | SYN] {
            let sent = packet(Protocol::Tcp, case.client(2, 40_000), case.service(), flags);
            let verdict = refusing(case).send(&sent).verdict;
            assert_eq!(verdict, Verdict::Drop(Drop::Unanswerable));
        }
    }
}

#[test]
fn an_icmp_error_is_never_answered_but_a_refused_ping_is() {
    for case in Case::all() {
        let mut world = refusing(case);
        let (client, service) = (case.client(2, 40_000), case.service());
        let about = packet(case.protocol, service, client, ACK);
        let error = packets::icmp_error(client.ip(), packets::IcmpError::PortUnreachable, &about);
        let ping = packets::ping(client.ip(), service.ip());
        assert_eq!(world.send(&error).verdict, Verdict::Drop(Drop::Unanswerable));
        assert_eq!(world.send(&ping).verdict, Verdict::Reject(Reject::Rule));
    }
}

#[test]
fn nobody_answers_to_or_for_an_address_that_is_no_single_hosts() {
    let pairs = [
        ("10.1.0.2:1", "224.0.0.1:80"),
        ("10.1.0.2:1", "255.255.255.255:80"),
        ("10.1.0.2:1", "0.0.0.0:80"),
        ("224.0.0.1:1", "10.96.0.10:80"),
        ("255.255.255.255:1", "10.96.0.10:80"),
        ("0.0.0.0:1", "10.96.0.10:80"),
        ("[fd00:1::2]:1", "[ff02::1]:80"),
        ("[ff02::1]:1", "[fd00:96::10]:80"),
        ("[::]:1", "[fd00:96::10]:80"),
        ("[fd00:1::2]:1", "[::]:80"),
    ];
    for (from, to) in pairs {
        for case in [Case::TCP, Case::UDP] {
            let verdict = refusing(case)
                .send(&packet(case.protocol, socket(from), socket(to), SYN))
                .verdict;
            assert_eq!(verdict, Verdict::Drop(Drop::Unanswerable), "{from} {to}");
        }
    }
}

#[test]
fn a_later_fragment_is_not_answered() {
    let mut sent = packets::udp("10.1.0.2:40000", "10.99.0.1:80", b"0123456789abcdef");
    sent[7] = 9;
    let outcome = refusing(Case::UDP).send_as(&sent, Checksum::Complete);
    assert_eq!(outcome.verdict, Verdict::Drop(Drop::Unanswerable));
}

#[test]
fn port_unreachable_quotes_as_much_as_its_rfc_allows() {
    for (v6, most, headers) in [(false, 576, 28), (true, 1_280, 48)] {
        let case = Case { v6, ..Case::UDP };
        for length in [0, 1, 100, 519, 520, 521, 548, 549, 1_183, 1_184, 1_185, 1_400] {
            let payload: Vec<u8> = (0..length).map(|n| n as u8).collect();
            let sent = packets::udp(case.client(2, 40_000), case.service(), &payload);
            let outcome = refusing(case).send(&sent);
            assert_eq!(outcome.packet.len(), (sent.len() + headers).min(most), "{length}");
            assert_eq!(quoted(&outcome.packet), sent[..sent.len().min(most - headers)]);
        }
    }
}

#[test]
fn a_refused_packet_is_answered_with_a_fresh_hop_limit() {
    for case in Case::all().filter(|case| case.v6) {
        let mut sent = packet(case.protocol, case.client(2, 9), case.service(), SYN);
        sent[7] = 1;
        assert_eq!(refusing(case).send(&sent).packet[7], 64, "{case:?}");
    }
}

#[test]
fn a_super_packet_with_unfinished_checksum_gets_one_whole_answer() {
    for case in Case::all() {
        let payload = vec![7; 60_000];
        let (client, service) = (case.client(2, 40_000), case.service());
        let sent = match case.protocol {
            Protocol::Tcp => packets::tcp(client, service, ACK, 5, 9, &payload),
            Protocol::Udp => packets::udp(client, service, &payload),
            Protocol::Sctp => packets::sctp_of(client, service, &packets::chunk(0, &payload)),
        };
        let outcome = refusing(case).send_as(&sent, unfinished(&sent));
        assert_eq!(outcome.verdict, Verdict::Reject(Reject::Rule));
        assert!(outcome.packet.len() <= 1_280);
    }
}

#[test]
fn a_segment_behind_ipv4_options_or_ipv6_extension_headers_is_answered_as_any_other() {
    let mut options = packet(Protocol::Tcp, Case::TCP.client(2, 40_000), Case::TCP.service(), SYN);
    options[0] = 0x46;
    options[3] += 4;
    options.splice(20..20, [1, 1, 1, 0]);
    let answer = refusing(Case::TCP).send_as(&options, Checksum::Complete).packet;
    assert_eq!(control(&answer), (RST | ACK, 0, 1_001));

    let case = Case { v6: true, ..Case::TCP };
    let mut extended = packet(Protocol::Tcp, case.client(2, 40_000), case.service(), SYN);
    extended[6] = 0;
    extended[5] += 8;
    extended.splice(40..40, [6, 0, 1, 4, 0, 0, 0, 0]);
    let answer = refusing(case).send_as(&extended, Checksum::Complete).packet;
    assert_eq!(control(&answer), (RST | ACK, 0, 1_001));
}

#[test]
fn padding_behind_a_packet_is_not_quoted() {
    let sent = packets::udp(Case::UDP.client(2, 40_000), Case::UDP.service(), b"x");
    let mut padded = sent.clone();
    padded.extend_from_slice(&[0xee; 17]);
    let answer = refusing(Case::UDP).send_as(&padded, Checksum::Complete).packet;
    assert_eq!(quoted(&answer), sent);
}

#[test]
fn an_answer_that_has_no_room_is_not_sent_in_part() {
    let sent = packets::udp(Case::UDP.client(2, 40_000), Case::UDP.service(), b"x");
    let world = Case::UDP.setup().weights(&[]).world();
    let (mut lanes, mut storage) = (world.lanes, sent.clone());
    let mut frame = Frame::new(&mut storage, 0, sent.len(), Checksum::Complete);
    let verdict = world
        .engine
        .enter(&mut lanes[0], world.now)
        .process(&mut frame, world.now);
    assert_eq!((verdict, frame.bytes()), (Verdict::Drop(Drop::Unanswerable), &sent[..]));
}
