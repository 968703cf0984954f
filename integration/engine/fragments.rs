//! Datagrams in fragments: each of them goes the way of its datagram, in whatever order they come.
use std::net::SocketAddr;
use std::sync::Arc;

use proptest::prelude::*;

use lbd::flow::Protocol;
use lbd::packet::frame::Checksum;
use lbd::policy::Mode;
use lbd::verdict::{Drop, Pass, Reject, Verdict};

use crate::fragments::{cut, fragment, header, over, whole};
use crate::packets::{self, ACK, IcmpError, SYN};
use crate::world::{Case, Outcome, World};

const MTU: usize = 1_500;

fn segment(case: Case, from: SocketAddr, to: SocketAddr, length: usize) -> Vec<u8> {
    let payload: Vec<u8> = (0..length).map(|n| n as u8).collect();
    match case.protocol {
        Protocol::Tcp => packets::tcp(from, to, ACK, 1_000, 7_000, &payload),
        Protocol::Udp | Protocol::Sctp => packets::udp(from, to, &payload),
    }
}

#[track_caller]
fn send(world: &mut World, fragment: &[u8]) -> Outcome {
    let outcome = world.send_as(fragment, Checksum::Complete);
    let header = &outcome.packet[..header(&outcome.packet)];
    if outcome.verdict == Verdict::Forward && header[0] >> 4 == 4 {
        let sum: u32 = header
            .chunks(2)
            .map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1]))
            .sum();
        assert_eq!((sum & 0xffff) + (sum >> 16), 0xffff, "IPv4 header checksum");
    }
    outcome
}

/// What leaves when these come: each fragment that is forwarded, held ones when they are released.
#[track_caller]
fn leaving(world: &mut World, fragments: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let mut left = Vec::new();
    for fragment in fragments {
        let outcome = send(world, fragment);
        match outcome.verdict {
            Verdict::Forward => left.push(outcome.packet),
            Verdict::Hold => {}
            other @ (Verdict::Drop(_) | Verdict::Pass(_) | Verdict::Reject(_)) => panic!("{other:?}"),
        }
        left.extend(world.released.drain(..).map(|released| {
            assert_eq!(released.verdict, Verdict::Forward);
            released.packet
        }));
    }
    left
}

fn reversed(mut fragments: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    fragments.reverse();
    fragments
}

fn udp() -> impl Iterator<Item = Case> {
    Case::all().filter(|case| case.protocol == Protocol::Udp)
}

fn verdicts(world: &mut World, fragments: &[Vec<u8>]) -> Vec<Verdict> {
    fragments.iter().map(|fragment| send(world, fragment).verdict).collect()
}

#[test]
fn sixty_kilobytes_go_there_and_back_whole_whether_the_first_fragment_comes_first_or_last() {
    for case in Case::tcp_and_udp() {
        for masquerade in ["auto", "always"] {
            for turn in [|fragments| fragments, reversed] {
                let mut world = case
                    .setup()
                    .tables(&format!("[nat]\nmasquerade = \"{masquerade}\""))
                    .world();
                let flow = world.connect(case.protocol, case.client(2, 40_000), case.service());
                let request = segment(case, flow.client, flow.service, 60_000);
                let left = leaving(&mut world, &turn(over(&request, 7, MTU)));
                assert_eq!(
                    whole(&left),
                    segment(case, flow.source, flow.backend, 60_000),
                    "{case:?}"
                );
                let answer = segment(case, flow.backend, flow.source, 60_000);
                let left = leaving(&mut world, &turn(over(&answer, 8, MTU)));
                assert_eq!(
                    whole(&left),
                    segment(case, flow.service, flow.client, 60_000),
                    "{case:?}"
                );
                assert_eq!(world.engine.fragments(), Default::default(), "nothing is left behind");
            }
        }
    }
}

#[test]
fn a_first_fragment_may_open_a_flow_and_the_later_ones_that_waited_follow_it() {
    for case in udp() {
        let mut world = case.setup().world();
        let (client, service) = (case.client(2, 40_000), case.service());
        let request = reversed(over(&segment(case, client, service, 4_000), 7, MTU));
        let (first, later) = request.split_last().unwrap();
        assert_eq!(verdicts(&mut world, later), [Verdict::Hold; 2]);
        assert_eq!(world.count(Verdict::Hold), 2);
        let mut left = vec![send(&mut world, first).packet];
        assert_eq!(world.count(Verdict::Hold), 0);
        assert_eq!(world.count(Verdict::Forward), 3);
        left.extend(world.released.drain(..).map(|released| released.packet));
        assert_eq!(whole(&left), segment(case, client, case.backend(1), 4_000));
    }
}

#[test]
fn a_segment_in_fragments_of_a_tcp_connection_follows_it_and_a_syn_in_fragments_opens_one() {
    for case in Case::tcp() {
        let mut world = case.setup().world();
        let (client, service) = (case.client(2, 40_000), case.service());
        let syn = packets::tcp(client, service, SYN, 1, 0, &[7; 100]);
        let left = leaving(&mut world, &reversed(cut(&syn, 7, &[24, 64])));
        let expected = packets::tcp(client, case.backend(1), SYN, 1, 0, &[7; 100]);
        assert_eq!(whole(&left), expected);
    }
}

#[test]
fn every_fragment_of_a_flow_is_counted_with_its_bytes() {
    for case in udp() {
        let mut world = case.setup().world();
        let request = over(&segment(case, case.client(2, 9), case.service(), 4_000), 7, MTU);
        let bytes: usize = request.iter().map(Vec::len).sum();
        leaving(&mut world, &reversed(request));
        let totals = world.backend(case.backend(1)).stats.totals();
        assert_eq!((totals.in_packets, totals.in_bytes), (3, bytes as u64));
        assert_eq!(totals.connections, 1);
    }
}

#[test]
fn one_packet_scheduling_takes_a_datagram_as_one_however_many_fragments_it_has() {
    for case in udp() {
        let mut policy = (*case.setup().world().engine.ruleset().policy).clone();
        Arc::make_mut(&mut policy.services[0]).one_packet = true;
        let mut world = case.setup().world();
        world.engine.apply(Arc::new(policy));
        for (identification, n) in [(7, 1), (8, 2), (9, 3), (10, 1)] {
            let request = segment(case, case.client(2, 9), case.service(), 3_000);
            let left = leaving(&mut world, &reversed(over(&request, identification, MTU)));
            let (_, backend) = packets::endpoints(&whole(&left));
            assert_eq!(backend, case.backend(n), "round robin, a datagram each");
            let answer = segment(case, backend, case.client(2, 9), 3_000);
            let left = leaving(&mut world, &reversed(over(&answer, identification, MTU)));
            assert_eq!(whole(&left), segment(case, case.service(), case.client(2, 9), 3_000));
        }
    }
}

#[test]
fn datagrams_in_fragments_without_a_checksum_stay_without_one() {
    let case = Case::UDP;
    let mut world = case.setup().world();
    let mut request = segment(case, case.client(2, 9), case.service(), 3_000);
    request[26..28].fill(0);
    let left = whole(&leaving(&mut world, &over(&request, 7, MTU)));
    assert_eq!(left[26..28], [0, 0]);
    assert_eq!(packets::endpoints(&left).1, case.backend(1));
}

#[test]
fn behind_the_fragment_header_extension_headers_are_seen_through() {
    let case = Case { v6: true, ..Case::UDP };
    for order in [[0, 1], [1, 0]] {
        let mut world = case.setup().world();
        let plain = segment(case, case.client(2, 9), case.service(), 2_000);
        let mut options = plain[..40].to_vec();
        options[6] = 60;
        options.extend([17, 0, 1, 4, 0, 0, 0, 0]);
        options.extend(&plain[40..]);
        let fragments = over(&options, 7, MTU);
        let turned = order.map(|place| fragments[place].clone());
        let left = leaving(&mut world, &turned);
        let expected = segment(case, case.client(2, 9), case.backend(1), 2_000);
        let whole = reassembled(&left);
        assert_eq!(whole[8..], expected[40..], "{order:?}");
    }
}

/// The packet with destination options before what it carries, which is now of protocol `upper`.
fn behind_options(packet: &[u8], upper: u8) -> Vec<u8> {
    let mut longer = packet[..40].to_vec();
    longer[6] = 60;
    longer.extend([upper, 0, 1, 4, 0, 0, 0, 0]);
    longer.extend(&packet[40..]);
    longer
}

#[test]
fn what_is_none_of_lbds_business_behind_destination_options_goes_the_way_of_its_first_fragment() {
    let case = Case { v6: true, ..Case::UDP };
    let plain = segment(case, case.client(2, 9), case.service(), 3_000);
    let (passed, dropped) = (Verdict::Pass(Pass::NoMatch), Verdict::Drop(Drop::Fragment));
    let tiny = Verdict::Drop(Drop::FragmentTiny);
    let icmp = over(&behind_options(&plain, 58), 7, MTU);
    let sctp = over(&behind_options(&plain, 132), 7, MTU);
    let cut_off = cut(&behind_options(&plain, 17), 7, &[8, 1_400]);
    for (fragments, verdict) in [(icmp, passed), (sctp, dropped), (cut_off, tiny)] {
        let mut world = case.setup().world();
        assert_eq!(verdicts(&mut world, &fragments), [verdict; 3]);
        let expected = [Verdict::Hold, Verdict::Hold, verdict];
        assert_eq!(verdicts(&mut world, &reversed(fragments)), expected);
        assert_eq!(world.count(verdict), 6, "with what was held");
        assert_eq!(world.engine.fragments(), Default::default());
    }
}

#[test]
fn an_identification_that_is_used_again_after_a_fragment_was_lost_is_another_datagram() {
    for case in udp() {
        let mut world = case.setup().world();
        for (n, port) in [(1, 9), (2, 10), (3, 11)] {
            let fragments = over(&segment(case, case.client(2, port), case.service(), 4_000), 7, MTU);
            let but_one = [fragments[0].clone(), fragments[2].clone()];
            leaving(&mut world, &but_one);
            let other = segment(case, case.client(2, port + 10), case.service(), 4_000);
            let left = leaving(&mut world, &over(&other, 7, MTU));
            let expected = case.backend([2, 1, 3][n - 1]);
            assert_eq!(
                packets::endpoints(&whole(&left)).1,
                expected,
                "not after the first datagram"
            );
        }
    }
}

/// The bytes of the datagram, put together by their offsets: etherparse checks no checksum behind extension headers.
fn reassembled(fragments: &[Vec<u8>]) -> Vec<u8> {
    let offset = |fragment: &Vec<u8>| usize::from(u16::from_be_bytes([fragment[42], fragment[43]]) & 0xfff8);
    let mut sorted: Vec<&Vec<u8>> = fragments.iter().collect();
    sorted.sort_by_key(|fragment| offset(fragment));
    sorted.iter().flat_map(|fragment| &fragment[48..]).copied().collect()
}

#[test]
fn fragments_of_who_is_none_of_lbds_business_pass_in_any_order() {
    for case in udp() {
        let mut world = case.setup().world();
        let other = packets::socket(if case.v6 { "[fd00:99::1]:80" } else { "10.99.0.1:80" });
        let stranger = segment(case, case.client(2, 9), other, 3_000);
        let passed = Verdict::Pass(Pass::NoMatch);
        for fragments in [over(&stranger, 7, MTU), reversed(over(&stranger, 8, MTU))] {
            assert_eq!(verdicts(&mut world, &fragments), [passed; 3]);
        }
        assert_eq!(world.engine.fragments(), Default::default());
    }
}

#[test]
fn what_a_backend_says_to_others_passes_unchanged_in_any_order() {
    for case in udp() {
        let mut world = case.setup().world();
        let mut from = case.backend(1);
        from.set_port(2049);
        let answer = segment(case, from, case.client(2, 9), 3_000);
        let passed = Verdict::Pass(Pass::NoMatch);
        assert_eq!(verdicts(&mut world, &over(&answer, 7, MTU)), [passed; 3]);
        let fragments = reversed(over(&answer, 8, MTU));
        assert_eq!(verdicts(&mut world, &fragments), [Verdict::Hold, Verdict::Hold, passed]);
        let released: Vec<(Verdict, Vec<u8>)> = world.released.drain(..).map(|r| (r.verdict, r.packet)).collect();
        assert_eq!(
            released,
            [(passed, fragments[0].clone()), (passed, fragments[1].clone())]
        );
        assert_eq!(world.count(passed), 6);
    }
}

#[test]
fn the_fragments_of_a_refused_datagram_are_refused_with_it() {
    for case in udp() {
        let mut world = case.setup().weights(&[]).world();
        let request = segment(case, case.client(2, 9), case.service(), 3_000);
        let fragments = over(&request, 7, MTU);
        assert_eq!(send(&mut world, &fragments[1]).verdict, Verdict::Hold);
        let answered = send(&mut world, &fragments[0]);
        assert_eq!(answered.verdict, Verdict::Reject(Reject::NoBackend));
        assert_eq!(
            packets::addresses(&answered.packet),
            (case.service().ip(), case.client(2, 9).ip())
        );
        let unanswerable = Verdict::Drop(Drop::Unanswerable);
        assert_eq!(world.released.pop().unwrap().verdict, unanswerable);
        assert_eq!(send(&mut world, &fragments[2]).verdict, unanswerable);
    }
}

#[test]
fn a_rule_with_a_port_decides_about_all_fragments_of_a_datagram() {
    let case = Case::UDP.in_mode(Mode::Iptables);
    let rule = "[[rules]]\ndestination_port = 80\naction = \"drop\"";
    let mut world = case.setup().tables(rule).world();
    let fragments = reversed(over(&segment(case, case.client(2, 9), case.service(), 3_000), 7, MTU));
    let dropped = Verdict::Drop(Drop::Rule);
    assert_eq!(
        verdicts(&mut world, &fragments),
        [Verdict::Hold, Verdict::Hold, dropped]
    );
    assert_eq!(world.count(dropped), 3);
}

#[test]
fn a_rule_that_leads_another_address_to_a_service_leads_its_fragments_too() {
    let case = Case::UDP.in_mode(Mode::Iptables);
    let rule = "[[rules]]\ndestination = \"10.99.0.0/16\"\naction = \"service:web\"";
    let mut world = case.setup().tables(rule).world();
    let request = segment(case, case.client(2, 9), packets::socket("10.99.0.1:80"), 3_000);
    let left = leaving(&mut world, &reversed(over(&request, 7, MTU)));
    assert_eq!(packets::endpoints(&whole(&left)).1, case.backend(1));
}

#[test]
fn a_later_fragment_whose_first_one_never_comes_is_dropped_in_time() {
    for (case, seconds) in [(Case::UDP, 30), (Case { v6: true, ..Case::UDP }, 60)] {
        let mut world = case.setup().world();
        let fragments = over(&segment(case, case.client(2, 9), case.service(), 3_000), 7, MTU);
        assert_eq!(verdicts(&mut world, &fragments[1..]), [Verdict::Hold; 2]);
        world.seconds(seconds - 1);
        assert_eq!(world.count(Verdict::Hold), 2);
        world.seconds(2);
        assert_eq!(world.count(Verdict::Drop(Drop::FragmentTimeout)), 2);
        assert_eq!(world.total(), 2, "each is counted once");
        assert_eq!(world.engine.fragments(), Default::default());
    }
}

/// 588 a second were enough to fill the table for as long as each was waited for.
#[test]
fn lone_fragments_keep_no_datagram_of_others_out_and_each_ends_by_name() {
    const LONE: usize = 18_000;
    let case = Case::UDP;
    for senders in [1, LONE] {
        let mut world = case.setup().world();
        let flow = world.connect(case.protocol, case.client(2, 1), case.service());
        for number in 0..LONE {
            let sender = std::net::Ipv4Addr::from_bits((11 << 24) + (number % senders) as u32);
            let datagram = segment(case, SocketAddr::new(sender.into(), 9), case.service(), 100);
            let lone = &cut(&datagram, number as u32, &[40, 68])[1];
            assert_eq!(send(&mut world, lone).verdict, Verdict::Hold);
        }
        let sent = segment(case, flow.client, flow.service, 3_000);
        let fragments = reversed(over(&sent, 7, 1_500));
        assert_eq!(
            verdicts(&mut world, &fragments),
            [Verdict::Hold, Verdict::Hold, Verdict::Forward]
        );
        world.seconds(31);
        let (full, timeout) = (Drop::FragmentTableFull, Drop::FragmentTimeout);
        let ended = [full, timeout].map(|reason| world.count(Verdict::Drop(reason)));
        assert_eq!(ended.iter().sum::<u64>(), LONE as u64);
        assert_eq!((world.count(Verdict::Hold), world.engine.fragments().datagrams), (0, 0));
    }
}

#[test]
fn overlapping_fragments_are_dropped_with_all_of_their_datagram_and_its_flow_goes_on() {
    for case in udp() {
        let mut world = case.setup().world();
        let request = segment(case, case.client(2, 9), case.service(), 3_000);
        let fragments = over(&request, 7, MTU);
        let overlap = Verdict::Drop(Drop::FragmentOverlap);
        assert_eq!(send(&mut world, &fragments[0]).verdict, Verdict::Forward);
        let crafted = fragment(&request, 7, 8, &[0x66; 1_600], true);
        assert_eq!(send(&mut world, &crafted).verdict, overlap);
        assert_eq!(verdicts(&mut world, &fragments[1..]), [overlap; 2]);
        let left = leaving(&mut world, &over(&request, 8, MTU));
        assert_eq!(packets::endpoints(&whole(&left)).1, case.backend(1));
    }
}

#[test]
fn the_same_fragment_twice_leaves_once() {
    for case in udp() {
        let mut world = case.setup().world();
        let fragments = over(&segment(case, case.client(2, 9), case.service(), 3_000), 7, MTU);
        let duplicate = Verdict::Drop(Drop::FragmentDuplicate);
        let twice: Vec<Vec<u8>> = fragments[..2].iter().flat_map(|f| [f.clone(), f.clone()]).collect();
        let expected = [Verdict::Forward, duplicate, Verdict::Forward, duplicate];
        assert_eq!(verdicts(&mut world, &twice), expected);
    }
}

#[test]
fn what_goes_on_behind_its_end_or_beyond_the_longest_datagram_is_dropped() {
    for case in udp() {
        let mut world = case.setup().world();
        let request = segment(case, case.client(2, 9), case.service(), 3_000);
        let too_long = Verdict::Drop(Drop::FragmentTooLong);
        let beyond = fragment(&request, 7, 65_528, &[0; 16], false);
        assert_eq!(send(&mut world, &beyond).verdict, too_long);
        let fragments = over(&request, 8, MTU);
        assert_eq!(send(&mut world, &fragments[2]).verdict, Verdict::Hold);
        let behind = fragment(&request, 8, 8_000, &[0; 16], true);
        assert_eq!(send(&mut world, &behind).verdict, too_long);
        assert_eq!(world.released.pop().unwrap().verdict, too_long);
        assert_eq!(send(&mut world, &fragments[0]).verdict, too_long);
    }
}

#[test]
fn an_endless_datagram_is_dropped() {
    for case in udp() {
        let mut world = case.setup().world();
        let request = segment(case, case.client(2, 9), case.service(), 3_000);
        for n in 1..=256 {
            let one = fragment(&request, 7, 16 * n, &[0; 8], true);
            assert_eq!(send(&mut world, &one).verdict, Verdict::Hold);
        }
        let too_many = Verdict::Drop(Drop::FragmentTooMany);
        assert_eq!(
            send(&mut world, &fragment(&request, 7, 8_000, &[0; 8], true)).verdict,
            too_many
        );
        assert_eq!(world.count(too_many), 257);
    }
}

#[test]
fn a_transport_header_in_more_than_one_fragment_is_dropped() {
    let tiny = Verdict::Drop(Drop::FragmentTiny);
    for case in Case::tcp_and_udp() {
        let mut world = case.setup().world();
        let request = segment(case, case.client(2, 9), case.service(), 100);
        let shortest = if case.protocol == Protocol::Tcp { 16 } else { 0 };
        let fragments = cut(&request, 7, &[shortest.max(8)]);
        let verdict = send(&mut world, &fragments[0]).verdict;
        assert_eq!(verdict == tiny, case.protocol == Protocol::Tcp, "{verdict:?}");
    }
    for case in Case::tcp() {
        let mut world = case.setup().world();
        let request = segment(case, case.client(2, 9), case.service(), 100);
        let overwriting = fragment(&request, 7, 8, &[0; 16], false);
        assert_eq!(send(&mut world, &overwriting).verdict, tiny, "RFC 3128");
    }
    let case = Case { v6: true, ..Case::UDP };
    let mut world = case.setup().world();
    let mut cut_off = segment(case, case.client(2, 9), case.service(), 100);
    cut_off[6] = 60;
    let chain = fragment(&cut_off, 7, 0, &[60, 1, 0, 0, 0, 0, 0, 0], true);
    assert_eq!(
        send(&mut world, &chain).verdict,
        tiny,
        "not even all extension headers (RFC 7112)"
    );
}

#[test]
fn fragments_of_sctp_to_a_service_are_dropped_as_such_and_those_of_pings_pass() {
    let case = Case::UDP;
    let mut world = case.setup().world();
    let ping = packets::ping(case.client(2, 9).ip(), case.service().ip());
    let sctp = packets::sctp(case.client(2, 9), case.service(), 1);
    for (whole, verdict) in [
        (ping, Verdict::Pass(Pass::NoMatch)),
        (sctp, Verdict::Drop(Drop::Fragment)),
    ] {
        for (offset, more) in [(0, true), (8, true), (8, false)] {
            let one = fragment(&whole, 7, offset, &whole[20..28], more);
            assert_eq!(send(&mut world, &one).verdict, verdict);
        }
    }
}

#[test]
fn fragments_that_contradict_themselves_are_malformed() {
    for case in udp() {
        let mut world = case.setup().world();
        let request = segment(case, case.client(2, 9), case.service(), 100);
        for (bytes, more) in [(&[][..], true), (&[][..], false), (&[0; 12][..], true)] {
            let one = fragment(&request, 7, 8, bytes, more);
            assert_eq!(send(&mut world, &one).verdict, Verdict::Drop(Drop::Malformed));
        }
    }
}

#[test]
fn an_icmp_error_about_a_first_fragment_reaches_its_sender() {
    for case in udp() {
        let mut world = case.setup().world();
        let (client, service) = (case.client(2, 9), case.service());
        let left = leaving(&mut world, &over(&segment(case, client, service, 3_000), 7, MTU));
        let router = case.node(1).ip();
        let error = packets::icmp_error(router, IcmpError::TooBig { mtu: 1_300 }, &left[0]);
        let outcome = world.send_as(&error, Checksum::Complete);
        assert_eq!(outcome.verdict, Verdict::Forward);
        assert_eq!(packets::addresses(&outcome.packet).1, client.ip());
        let quote = &outcome.packet[header(&outcome.packet) + 8..];
        assert_eq!(packets::addresses(quote), (client.ip(), service.ip()));
    }
}

#[test]
fn the_fragments_of_a_datagram_may_come_to_different_workers() {
    for case in udp() {
        let mut world = World::build(&case.setup().toml(), 2, 7);
        let request = segment(case, case.client(2, 9), case.service(), 8_000);
        let mut left = Vec::new();
        for (n, fragment) in reversed(over(&request, 7, MTU)).iter().enumerate() {
            world.lane = n % 2;
            left.extend(leaving(&mut world, std::slice::from_ref(fragment)));
        }
        assert_eq!(packets::endpoints(&whole(&left)).1, case.backend(1));
    }
}

/// Requests or answers of three flows, each cut somehow.
fn datagrams() -> impl Strategy<Value = Vec<(u16, bool, usize, Vec<usize>)>> {
    let lengths = prop::collection::vec((3..60_usize).prop_map(|eighths| eighths * 8), 1..8);
    prop::collection::vec((1..4_u16, any::<bool>(), 0..3_000_usize, lengths), 1..5)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn in_whatever_order_fragments_come_the_same_datagrams_leave(
        number in 0..8_usize,
        masqueraded in any::<bool>(),
        datagrams in datagrams(),
        seed in any::<u64>(),
    ) {
        let case = Case::tcp_and_udp().nth(number).unwrap();
        let masquerade = if masqueraded { "always" } else { "auto" };
        let mut world = case.setup().tables(&format!("[nat]\nmasquerade = \"{masquerade}\"")).world();
        let flows = [1, 2, 3].map(|n| world.connect(case.protocol, case.client(n, 9), case.service()));
        let (mut coming, mut expected) = (Vec::new(), Vec::new());
        for (identification, (n, up, length, lengths)) in (0..).zip(datagrams) {
            let flow = &flows[usize::from(n) - 1];
            let (from, to, leaves_from, leaves_to) = match up {
                true => (flow.client, flow.service, flow.source, flow.backend),
                false => (flow.backend, flow.source, flow.service, flow.client),
            };
            coming.extend(cut(&segment(case, from, to, length), identification, &lengths));
            expected.extend(cut(&segment(case, leaves_from, leaves_to, length), identification, &lengths));
        }
        fastrand::Rng::with_seed(seed).shuffle(&mut coming);
        let mut left = Vec::new();
        for packet in &coming {
            // A datagram of one piece is a whole packet in IPv4, and in IPv6 an atomic fragment (RFC 6946).
            left.extend(leaving(&mut world, std::slice::from_ref(packet)));
        }
        left.sort();
        expected.sort();
        prop_assert_eq!(left, expected);
        prop_assert_eq!(world.engine.fragments(), Default::default());
    }
}
