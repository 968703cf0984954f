//! ICMP errors: about packets of a flow, from either side and from routers between; and lbd's own, where it routes.
use std::net::{IpAddr, SocketAddr};

use lbd::flow::Protocol;
use lbd::packet::frame::{Checksum, Frame};
use lbd::router::Router;
use lbd::time::Instant;
use lbd::verdict::{Drop, Pass, Reject, Verdict};

use crate::packets::{self, ACK, IcmpError, SYN, addresses, icmp_error};
use crate::world::{Case, Flow, World, packet};

/// What lies behind the ICMP header.
fn quote(error: &[u8]) -> &[u8] {
    match error[0] >> 4 {
        4 => &error[28..],
        _ => &error[48..],
    }
}

fn router(case: Case) -> IpAddr {
    match case.v6 {
        false => "192.0.2.1".parse().unwrap(),
        true => "2001:db8::1".parse().unwrap(),
    }
}

const ERRORS: [IcmpError; 2] = [IcmpError::PortUnreachable, IcmpError::TooBig { mtu: 1280 }];

/// A world with a flow that the backend has answered, what the client sent last, and what the backend got of it.
fn flow(case: Case, tables: &str) -> (World, Flow, Vec<u8>, Vec<u8>) {
    let mut world = case.setup().tables(tables).world();
    let flow = world.connect(case.protocol, case.client(1, 40_000), case.service());
    let sent = packet(case.protocol, flow.client, flow.service, ACK);
    let got = world.send(&sent).packet;
    (world, flow, sent, got)
}

const MASQUERADE: &str = "[nat]\nmasquerade = \"always\"";

#[test]
fn an_error_about_a_clients_packet_reaches_the_client_as_if_the_service_had_sent_it() {
    for case in Case::all() {
        for tables in ["", MASQUERADE] {
            for error in ERRORS {
                let (mut world, flow, sent, got) = flow(case, tables);
                for from in [router(case), flow.backend.ip()] {
                    let told = world.send(&icmp_error(from, error, &got));
                    assert_eq!(told.verdict, Verdict::Forward);
                    assert_eq!(addresses(&told.packet), (flow.service.ip(), flow.client.ip()));
                    assert_eq!(quote(&told.packet), sent, "the client knows its own packet again");
                }
            }
        }
    }
}

#[test]
fn an_error_about_an_answer_reaches_the_backend_which_knows_its_packet_again() {
    for case in Case::all() {
        for (tables, masqueraded) in [("", false), (MASQUERADE, true)] {
            let (mut world, flow, ..) = flow(case, tables);
            let answer = packet(case.protocol, flow.backend, flow.source, ACK);
            let got = world.send(&answer).packet;
            for from in [router(case), flow.client.ip()] {
                let told = world.send(&icmp_error(from, IcmpError::TooBig { mtu: 1280 }, &got));
                assert_eq!(told.verdict, Verdict::Forward);
                let source = if masqueraded { flow.source.ip() } else { from };
                assert_eq!(addresses(&told.packet), (source, flow.backend.ip()));
                assert_eq!(quote(&told.packet), answer);
            }
        }
    }
}

/// A segment or datagram with two bytes of payload, on which its checksum depends.
fn with_payload(case: Case, from: SocketAddr, to: SocketAddr, payload: [u8; 2]) -> Vec<u8> {
    match case.protocol {
        Protocol::Tcp => packets::tcp(from, to, ACK, 1, 1, &payload),
        Protocol::Udp | Protocol::Sctp => packets::udp(from, to, &payload),
    }
}

/// In TCP a checksum may be zero; in UDP it is all ones then, since zero says that there is none (RFC 768).
#[test]
fn an_error_about_a_packet_whose_checksum_comes_to_zero_is_translated_like_any_other() {
    for case in Case::tcp_and_udp() {
        let checksum = |packet: &[u8]| {
            let transport = if case.v6 { 40 } else { 20 };
            let at = transport + if case.protocol == Protocol::Tcp { 16 } else { 6 };
            [packet[at], packet[at + 1]]
        };
        let (mut world, flow, ..) = flow(case, "");
        // What makes the checksum zero of what the client sends, and of what the backend gets.
        let plain = with_payload(case, flow.client, flow.service, [0, 0]);
        for payload in [checksum(&plain), checksum(&world.send(&plain).packet)] {
            let sent = with_payload(case, flow.client, flow.service, payload);
            let got = world.send(&sent).packet;
            let zero = if case.protocol == Protocol::Tcp {
                [0; 2]
            } else {
                [0xff; 2]
            };
            assert!(checksum(&sent) == zero || checksum(&got) == zero);
            let told = world.send(&icmp_error(router(case), IcmpError::TooBig { mtu: 1280 }, &got));
            assert_eq!(quote(&told.packet), sent, "{case:?}");
        }
    }
}

#[test]
fn a_quotation_of_just_the_ports_is_enough() {
    for case in Case::all() {
        let (mut world, flow, sent, got) = flow(case, "");
        let header = if case.v6 { 40 } else { 20 };
        let told = world.send(&icmp_error(
            router(case),
            IcmpError::TooBig { mtu: 1280 },
            &got[..header + 8],
        ));
        assert_eq!(told.verdict, Verdict::Forward);
        assert_eq!(addresses(&told.packet).1, flow.client.ip());
        assert_eq!(
            quote(&told.packet)[..header + 4],
            sent[..header + 4],
            "addresses and ports"
        );
    }
}

#[test]
fn a_quotation_that_ends_before_the_ports_is_about_no_flow() {
    for case in Case::all() {
        let (mut world, _, _, got) = flow(case, "");
        let header = if case.v6 { 40 } else { 20 };
        for length in [header + 3, header, header - 1, 1, 0] {
            // The quotation's sender is cut off as well, so the error is built about the whole and then shortened.
            let whole = icmp_error(router(case), IcmpError::TooBig { mtu: 1280 }, &got);
            let cut = shortened(&whole, quote(&whole).len() - length);
            let told = world.send_as(&cut, Checksum::Complete);
            assert_eq!(told.verdict, Verdict::Pass(Pass::UntrackedProtocol), "{length}");
        }
    }
}

/// The packet without its last bytes, its length field right; its checksums are not.
fn shortened(packet: &[u8], by: usize) -> Vec<u8> {
    let mut packet = packet[..packet.len() - by].to_vec();
    let (field, length) = match packet[0] >> 4 {
        4 => (2, packet.len()),
        _ => (4, packet.len() - 40),
    };
    packet[field..field + 2].copy_from_slice(&u16::try_from(length).unwrap().to_be_bytes());
    packet
}

#[test]
fn an_error_about_no_flow_passes_as_it_came() {
    for case in Case::all() {
        let (mut world, flow, ..) = flow(case, "");
        let stranger = SocketAddr::new(flow.client.ip(), 50_000);
        for about in [
            packet(case.protocol, stranger, flow.backend, ACK),
            packet(case.protocol, flow.backend, stranger, ACK),
            packets::ping(flow.client.ip(), flow.backend.ip()),
        ] {
            let told = world.send(&icmp_error(router(case), IcmpError::TooBig { mtu: 1280 }, &about));
            assert_eq!(told.verdict, Verdict::Pass(Pass::UntrackedProtocol));
        }
    }
}

#[test]
fn an_error_that_goes_to_another_host_than_the_sender_of_what_it_quotes_is_about_no_flow() {
    for case in Case::all() {
        let (mut world, flow, _, got) = flow(case, "");
        let mut error = icmp_error(router(case), IcmpError::TooBig { mtu: 1280 }, &got);
        let (last, sum) = if case.v6 { (39, Some(42)) } else { (19, None) };
        error[last] ^= 1;
        // The change of the destination is made up for in the checksum that covers it, so the packet stays valid.
        let field = sum.unwrap_or(10);
        let (old, step) = (u16::from_be_bytes([error[field], error[field + 1]]), error[last] & 1);
        let new = if step == 1 {
            old.wrapping_sub(1)
        } else {
            old.wrapping_add(1)
        };
        error[field..field + 2].copy_from_slice(&new.to_be_bytes());
        assert_ne!(addresses(&error).1, flow.source.ip());
        let told = world.send_as(&error, Checksum::Complete);
        assert_eq!(told.verdict, Verdict::Pass(Pass::UntrackedProtocol));
    }
}

#[test]
fn an_error_keeps_no_flow_alive_and_ends_none() {
    for case in Case::all() {
        let (mut world, flow, _, got) = flow(case, "");
        let before = world.entry(&flow).unwrap();
        world.seconds(10);
        let error = icmp_error(router(case), IcmpError::PortUnreachable, &got);
        assert_eq!(world.send(&error).verdict, Verdict::Forward);
        let after = world.entry(&flow).unwrap();
        assert_eq!((before.expires, before.state), (after.expires, after.state));
    }
}

/// A router with one way on.
#[derive(Debug)]
struct Way {
    mtu: Option<usize>,
    own: Option<IpAddr>,
    host: Vec<IpAddr>,
}

impl Router for Way {
    fn begin(&mut self, _: Instant) {}

    fn mtu(&mut self, _: IpAddr) -> Option<usize> {
        self.mtu
    }

    fn is_martian(&mut self, source: IpAddr) -> bool {
        self.host.contains(&source)
    }

    fn ends_here(&mut self, destination: IpAddr) -> bool {
        self.host.contains(&destination)
    }

    fn own_address(&mut self, _: IpAddr) -> Option<IpAddr> {
        self.own
    }
}

/// What becomes of a packet where lbd is the router.
fn routed(world: &mut World, packet: &[u8], way: &mut Way) -> (Verdict, Vec<u8>) {
    let mut storage = packet.to_vec();
    storage.resize(packet.len() + 1_500, 0);
    let mut frame = Frame::new(&mut storage, 0, packet.len(), Checksum::Complete);
    let processor = world.engine.enter(&mut world.lanes[0], world.now);
    let verdict = processor.routed_by(Some(way)).process(&mut frame, world.now);
    (verdict, frame.bytes().to_vec())
}

fn with_hop_limit(mut packet: Vec<u8>, limit: u8) -> Vec<u8> {
    match packet[0] >> 4 {
        4 => {
            let by = u16::from(packet[8] - limit) << 8;
            packet[8] = limit;
            let (sum, carry) = u16::from_be_bytes([packet[10], packet[11]]).overflowing_add(by);
            packet[10..12].copy_from_slice(&(sum + u16::from(carry)).to_be_bytes());
        }
        _ => packet[7] = limit,
    }
    packets::assert_valid(&packet);
    packet
}

#[test]
fn where_lbd_is_the_router_nobody_opens_a_flow_from_an_address_that_no_link_brings() {
    for case in Case::all() {
        let mut world = case.setup().world();
        let (martian, client) = (case.client(2, 40_000), case.client(3, 40_000));
        let mut way = Way {
            mtu: None,
            own: None,
            host: vec![martian.ip()],
        };
        let dropped = Verdict::Drop(Drop::MartianSource);
        let first = packet(case.protocol, martian, case.service(), SYN);
        assert_eq!(routed(&mut world, &first, &mut way).0, dropped, "{case:?}");
        let ping = packets::ping(martian.ip(), case.service().ip());
        assert_eq!(routed(&mut world, &ping, &mut way).0, dropped, "{case:?}");
        assert!(world.engine.conntrack().is_empty());
        let first = packet(case.protocol, client, case.service(), SYN);
        assert_eq!(routed(&mut world, &first, &mut way).0, Verdict::Forward);
        // A TUN device has it from the kernel, which looked at it, and from this host itself.
        let mut world = case.setup().world();
        assert_eq!(world.try_open(case.protocol, martian, case.service()), Verdict::Forward);
    }
}

#[test]
fn what_a_link_carried_to_many_is_dropped_and_moves_no_flow() {
    for case in Case::all() {
        let (mut world, flow, sent, got) = flow(case, "");
        let before = world.entry(&flow).unwrap();
        world.seconds(1);
        let error = icmp_error(router(case), IcmpError::PortUnreachable, &got);
        let stranger = packet(case.protocol, case.client(9, 40_000), flow.service, SYN);
        let ping = packets::ping(flow.client.ip(), flow.service.ip());
        for bytes in [sent, error, stranger, ping] {
            let mut storage = bytes.clone();
            let length = storage.len();
            let mut frame = Frame::new(&mut storage, 0, length, Checksum::Complete);
            frame.to_group = true;
            let verdict = world
                .engine
                .enter(&mut world.lanes[0], world.now)
                .process(&mut frame, world.now);
            assert_eq!(verdict, Verdict::Drop(Drop::UnicastInL2Multicast), "{case:?}");
            assert_eq!(frame.bytes(), bytes);
        }
        let after = world.entry(&flow).unwrap();
        assert_eq!((before.expires, before.state), (after.expires, after.state));
    }
}

#[test]
fn a_packet_that_is_too_long_for_the_way_on_is_answered_by_lbd_as_the_router() {
    for case in Case::all() {
        let (mut world, flow, ..) = flow(case, "");
        let own = router(case);
        let payload = vec![7; 1_400];
        let mut way = Way {
            mtu: Some(1_300),
            own: Some(own),
            host: Vec::new(),
        };
        let to_service = |from, to| match case.protocol {
            Protocol::Tcp => packets::tcp(from, to, ACK, 1, 1, &payload),
            Protocol::Udp => packets::udp(from, to, &payload),
            Protocol::Sctp => packets::sctp_of(from, to, &packets::chunk(0, &payload)),
        };
        for (from, to) in [(flow.client, flow.service), (flow.backend, flow.source)] {
            let long = to_service(from, to);
            let (verdict, answer) = routed(&mut world, &long, &mut way);
            assert_eq!(verdict, Verdict::Reject(Reject::TooBig), "{case:?}");
            packets::assert_valid(&answer);
            assert_eq!(addresses(&answer), (own, from.ip()));
            let expected = icmp_error(own, IcmpError::TooBig { mtu: 1_300 }, &long);
            assert_eq!(quote(&answer), quote(&expected), "as it was sent");
            assert_eq!(
                answer[answer.len() - quote(&answer).len() - 4..][..4],
                1_300_u32.to_be_bytes()
            );
            way.mtu = Some(long.len());
            assert_eq!(routed(&mut world, &long, &mut way).0, Verdict::Forward, "it just fits");
            way.mtu = None;
            assert_eq!(
                routed(&mut world, &long, &mut way).0,
                Verdict::Forward,
                "the kernel's concern"
            );
            way.mtu = Some(1_300);
        }
    }
}

#[test]
fn an_ipv4_packet_that_may_be_fragmented_goes_on() {
    let (mut world, flow, ..) = flow(Case::UDP, "");
    let mut long = packets::udp(flow.client, flow.service, &[7; 1_400]);
    assert_eq!(long[6] & 0x40, 0x40);
    long[6] = 0;
    // The flags' change is made up for.
    let sum = u16::from_be_bytes([long[10], long[11]]);
    let (sum, carry) = sum.overflowing_add(0x4000);
    long[10..12].copy_from_slice(&(sum + u16::from(carry)).to_be_bytes());
    packets::assert_valid(&long);
    let mut way = Way {
        mtu: Some(1_300),
        own: None,
        host: Vec::new(),
    };
    assert_eq!(routed(&mut world, &long, &mut way).0, Verdict::Forward);
}

#[test]
fn a_packet_without_a_hop_left_is_answered_by_lbd_as_the_router() {
    for case in Case::all() {
        let (mut world, flow, ..) = flow(case, "");
        let mut way = Way {
            mtu: None,
            own: Some(router(case)),
            host: Vec::new(),
        };
        for (from, to) in [(flow.client, flow.service), (flow.backend, flow.source)] {
            let last = with_hop_limit(packet(case.protocol, from, to, ACK), 1);
            let (verdict, answer) = routed(&mut world, &last, &mut way);
            assert_eq!(verdict, Verdict::Reject(Reject::TimeExceeded));
            packets::assert_valid(&answer);
            assert_eq!(addresses(&answer), (router(case), from.ip()));
            assert_eq!(quote(&answer), last);
            let two = with_hop_limit(packet(case.protocol, from, to, ACK), 2);
            assert_eq!(routed(&mut world, &two, &mut way).0, Verdict::Forward);
        }
        way.own = None;
        let last = with_hop_limit(packet(case.protocol, flow.client, flow.service, SYN), 1);
        let (_, answer) = routed(&mut world, &last, &mut way);
        assert_eq!(
            addresses(&answer).0,
            flow.service.ip(),
            "for want of an address of its own"
        );
    }
}

#[test]
fn no_error_is_made_about_an_error() {
    for case in Case::all() {
        let (mut world, _, _, got) = flow(case, "");
        let error = with_hop_limit(icmp_error(router(case), IcmpError::TooBig { mtu: 1280 }, &got), 1);
        let mut way = Way {
            mtu: None,
            own: None,
            host: Vec::new(),
        };
        let (verdict, after) = routed(&mut world, &error, &mut way);
        assert_eq!(verdict, Verdict::Drop(Drop::Unanswerable));
        assert_eq!(after, error);
    }
}

#[test]
fn a_packet_to_a_backend_on_lbds_own_host_needs_no_hop_left() {
    for case in Case::all() {
        let (mut world, flow, ..) = flow(case, "");
        let mut way = Way {
            mtu: None,
            own: Some(router(case)),
            host: vec![flow.backend.ip()],
        };
        for limit in [1, 0] {
            let last = with_hop_limit(packet(case.protocol, flow.client, flow.service, ACK), limit);
            let (verdict, after) = routed(&mut world, &last, &mut way);
            assert_eq!(verdict, Verdict::Forward);
            assert_eq!(packets::endpoints(&after), (flow.source, flow.backend));
        }
        let answer = with_hop_limit(packet(case.protocol, flow.backend, flow.source, ACK), 1);
        let (verdict, _) = routed(&mut world, &answer, &mut way);
        assert_eq!(
            verdict,
            Verdict::Reject(Reject::TimeExceeded),
            "the client is elsewhere"
        );
    }
}
