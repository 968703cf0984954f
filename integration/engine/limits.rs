//! How much lbd answers.
use std::time::Duration;

use lbd::flow::Protocol;
use lbd::verdict::{Drop, Reject, Verdict};

use crate::packets::{ACK, SYN, ping};
use crate::world::{Case, Setup, World, packet};

const LIMITED: Verdict = Verdict::Drop(Drop::RateLimited);

/// Nobody serves there, so each datagram is answered by an ICMP error and each SYN by a RST.
fn refusing(case: Case) -> Setup {
    case.setup().weights(&[])
}

fn answered(world: &mut World, case: Case, tries: u16) -> usize {
    let mut answers = 0;
    for port in 1..=tries {
        let verdict = world.try_open(case.protocol, case.client(2, port), case.service());
        if verdict != LIMITED {
            assert_eq!(verdict, Verdict::Reject(Reject::NoBackend));
            answers += 1;
        }
    }
    answers
}

#[test]
fn of_icmp_errors_there_are_fifty_at_once_and_a_thousand_a_second() {
    for case in Case::all().filter(|case| case.protocol == Protocol::Udp) {
        let mut world = refusing(case).world();
        assert_eq!(answered(&mut world, case, 200), 50);
        assert_eq!(world.count(LIMITED), 150, "by name");
        world.advance(Duration::from_millis(30));
        assert_eq!(answered(&mut world, case, 200), 30);
        world.seconds(100);
        assert_eq!(answered(&mut world, case, 200), 50);
    }
}

#[test]
fn of_resets_there_are_ten_times_as_many() {
    for case in Case::tcp() {
        let mut world = refusing(case).world();
        assert_eq!(answered(&mut world, case, 10_100), 10_000);
        world.advance(Duration::from_millis(30));
        assert_eq!(answered(&mut world, case, 1_000), 300);
    }
}

#[test]
fn the_limit_is_the_operators_and_zero_is_none() {
    let case = Case::UDP;
    let limited = |rate: u32| refusing(case).tables(&format!("[icmp]\nrate_limit = {rate}"));
    let mut world = limited(0).world();
    assert_eq!(answered(&mut world, case, 5_000), 5_000);
    world.reload(&limited(10).toml());
    assert_eq!(answered(&mut world, case, 100), 50);
    world.seconds(1);
    assert_eq!(answered(&mut world, case, 100), 10);
}

#[test]
fn pings_and_resets_of_flows_are_not_limited_by_it() {
    let tables = "[icmp]\nrate_limit = 1\n[conntrack]\non_backend_removed = \"reset\"";
    let case = Case::TCP;
    let mut world = case.setup().tables(tables).world();
    let flows: Vec<_> = (1..=200)
        .map(|port| world.connect(Protocol::Tcp, case.client(2, port), case.service()))
        .collect();
    for _ in 0..500 {
        let asked = ping(case.client(2, 0).ip(), case.service().ip());
        assert_eq!(world.send(&asked).verdict, Verdict::Reject(Reject::Echo));
    }
    world.reload(&case.setup().tables(tables).weights(&[]).toml());
    for flow in &flows {
        let told = world.try_down(flow, ACK).verdict;
        assert_eq!(told, Verdict::Reject(Reject::BackendRemoved), "the client learns it");
    }
}

#[test]
fn a_packet_that_may_not_be_answered_uses_nothing_up() {
    let case = Case::UDP;
    let mut world = refusing(case).world();
    for _ in 0..100 {
        let bad = packet(case.protocol, "0.0.0.0:1".parse().unwrap(), case.service(), SYN);
        assert_eq!(world.send(&bad).verdict, Verdict::Drop(Drop::Unanswerable));
    }
    assert_eq!(answered(&mut world, case, 100), 50);
}
