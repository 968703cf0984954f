//! Persistence: a client's flows go to one backend for a while.
use std::collections::HashSet;
use std::time::Duration;

use lbd::flow::Protocol;
use lbd::policy::Mode;
use lbd::verdict::{Drop, Verdict};

use crate::packets::{ACK, RST, SYN};
use crate::world::{Case, Setup, World};

const MINUTE: &str = "persistence = { timeout = \"60s\" }";

fn persistent(case: Case) -> Setup {
    case.setup().keys(MINUTE)
}

/// Number of the backend that a new flow of client `n` goes to.
#[track_caller]
fn pick(world: &mut World, case: Case, n: u16, port: u16) -> u16 {
    let backend = world.open(case.protocol, case.client(n, port), case.service()).backend;
    (1..9).find(|&n| case.backend(n) == backend).unwrap()
}

#[test]
fn every_flow_of_a_client_goes_to_its_backend_and_other_clients_go_round() {
    for case in Case::all() {
        let mut world = persistent(case).world();
        assert_eq!(pick(&mut world, case, 1, 1), 1);
        assert_eq!(pick(&mut world, case, 2, 1), 2);
        for port in 2..9 {
            assert_eq!(
                (pick(&mut world, case, 1, port), pick(&mut world, case, 2, port)),
                (1, 2)
            );
        }
        assert_eq!(pick(&mut world, case, 3, 1), 3, "they took no turn");
    }
}

#[test]
fn a_netmask_makes_one_client_of_a_network() {
    for case in Case::all() {
        let netmask = if case.v6 { "64" } else { "\"255.255.255.0\"" };
        let keys = format!("persistence = {{ timeout = \"60s\", netmask = {netmask} }}");
        let mut world = case.setup().keys(&keys).world();
        assert_eq!(pick(&mut world, case, 1, 1), 1);
        assert_eq!(pick(&mut world, case, 2, 1), 1);
        let elsewhere = if case.v6 { "[fd00:9::1]:5" } else { "10.9.0.1:5" };
        let flow = world.open(case.protocol, elsewhere, case.service());
        assert_eq!(flow.backend, case.backend(2));
    }
}

#[test]
fn it_ends_its_timeout_after_the_last_new_flow() {
    for case in Case::tcp() {
        let mut world = persistent(case).world();
        for port in 1..4 {
            let flow = world.connect(Protocol::Tcp, case.client(1, port), case.service());
            assert_eq!(flow.backend, case.backend(1));
            world.up(&flow, RST);
            world.seconds(59);
        }
        world.seconds(1);
        assert_eq!(pick(&mut world, case, 1, 9), 2);
    }
}

#[test]
fn a_living_flow_holds_it_beyond_its_timeout_in_ipvs_mode() {
    for case in Case::all().filter(|case| case.mode == Mode::Ipvs) {
        let mut world = persistent(case).world();
        let flow = world.connect(case.protocol, case.client(1, 1), case.service());
        for _ in 0..10 {
            world.seconds(200);
            world.up(&flow, ACK);
        }
        assert_eq!(pick(&mut world, case, 1, 2), 1);
    }
}

#[test]
fn in_iptables_mode_only_new_flows_prolong_it() {
    for case in Case::all() {
        let mut world = persistent(case).mode(Mode::Iptables).scheduler("rr").world();
        let flow = world.connect(case.protocol, case.client(1, 1), case.service());
        world.seconds(59);
        assert_eq!(pick(&mut world, case, 1, 2), 1);
        world.seconds(59);
        world.up(&flow, ACK);
        assert_eq!(pick(&mut world, case, 1, 3), 1);
        world.seconds(61);
        world.up(&flow, ACK);
        assert_eq!(
            pick(&mut world, case, 1, 4),
            2,
            "its flows live on, and count for nothing"
        );
        assert_eq!(pick(&mut world, case, 1, 5), 2);
        world.up(&flow, ACK);
    }
}

#[test]
fn a_switch_to_ipvs_mode_has_its_living_flows_count_and_one_back_has_not() {
    let case = Case::UDP;
    let setup = |mode| persistent(case).mode(mode).scheduler("rr");
    let mut world = setup(Mode::Iptables).world();
    world.connect(Protocol::Udp, case.client(1, 1), case.service());
    world.seconds(100);
    world.reload(&setup(Mode::Ipvs).toml());
    assert_eq!(pick(&mut world, case, 1, 2), 1);
    world.seconds(100);
    world.reload(&setup(Mode::Iptables).toml());
    assert_ne!(pick(&mut world, case, 1, 3), 1);
}

#[test]
fn a_backend_with_weight_zero_loses_its_persistent_clients_new_flows_but_not_the_old() {
    for case in Case::all() {
        let mut world = persistent(case).world();
        let flow = world.connect(case.protocol, case.client(1, 1), case.service());
        world.reload(&persistent(case).weights(&[0, 1, 1]).toml());
        assert_eq!(pick(&mut world, case, 1, 2), 2);
        world.up(&flow, ACK);
        world.reload(&persistent(case).toml());
        assert_eq!(pick(&mut world, case, 1, 3), 2, "the choice was made anew");
    }
}

#[test]
fn a_removed_backend_loses_its_persistent_clients() {
    for case in Case::all() {
        let mut world = persistent(case).world();
        world.connect(case.protocol, case.client(1, 1), case.service());
        world.reload(&persistent(case).backends(&[(2, 1), (3, 1)]).toml());
        assert_ne!(pick(&mut world, case, 1, 2), 1);
    }
}

#[test]
fn it_outlives_a_reload_and_a_mode_switch() {
    for case in Case::all() {
        let mut world = persistent(case).world();
        world.connect(case.protocol, case.client(1, 1), case.service());
        for mode in [Mode::Iptables, Mode::Ipvs] {
            world.reload(&persistent(case).mode(mode).backends(&[(4, 1), (1, 1), (2, 1)]).toml());
            assert_eq!(pick(&mut world, case, 1, 2), 1);
        }
    }
}

#[test]
fn without_the_key_no_client_is_remembered() {
    let case = Case::TCP;
    let mut world = persistent(case).world();
    assert_eq!(pick(&mut world, case, 1, 1), 1);
    world.reload(&case.setup().toml());
    assert_eq!(pick(&mut world, case, 1, 2), 2);
}

#[test]
fn a_flow_that_could_not_be_stored_binds_no_client() {
    let case = Case::UDP;
    let full = "[conntrack]\nmax_flows = 1";
    let mut world = persistent(case).tables(full).world();
    let only = world.connect(Protocol::Udp, case.client(1, 1), case.service());
    assert_eq!(only.backend, case.backend(1));
    // Client 2 is turned away, and round robin has moved on.
    let refused = world.try_open(Protocol::Udp, case.client(2, 1), case.service());
    assert_eq!(refused, Verdict::Drop(Drop::TableFull));
    world.reload(&persistent(case).toml());
    assert_eq!(pick(&mut world, case, 2, 2), 3);
}

#[test]
fn forged_clients_without_number_leave_no_more_templates_than_flows_may_be() {
    let case = Case::UDP;
    let mut world = three_hours_and_fifty_flows(case);
    for n in 0..2_000_u32 {
        let client = format!("10.1.{}.{}:1", n / 250, 1 + n % 250);
        world.open(Protocol::Udp, client, case.service());
    }
    assert!(world.engine.affinity().len() <= 50, "{}", world.engine.affinity().len());
    world.seconds(3 * 3_600);
    // They are looked through bit by bit.
    (0..10).for_each(|_| steps_of_a_second(&mut world));
    assert!(world.engine.affinity().is_empty());
}

fn three_hours_and_fifty_flows(case: Case) -> World {
    let persistent = case.setup().keys("persistence = { timeout = \"3h\" }");
    persistent.tables("[conntrack]\nmax_flows = 50").world()
}

fn steps_of_a_second(world: &mut World) {
    (0..8).for_each(|_| world.advance(Duration::from_millis(135)));
}

#[test]
fn soon_after_a_flood_of_forged_clients_real_ones_are_remembered_again() {
    for case in [Case::TCP, Case::UDP] {
        assert_remembered_after_a_flood(case);
    }
}

#[track_caller]
fn assert_remembered_after_a_flood(case: Case) {
    let mut world = three_hours_and_fifty_flows(case);
    for n in 10..100 {
        let forged = world.open(case.protocol, case.client(n, 1), case.service());
        world.down(&forged, SYN | ACK);
    }
    world.seconds(301);
    assert!(world.engine.conntrack().is_empty(), "the flood is over");
    (0..10).for_each(|_| steps_of_a_second(&mut world));
    let backends: HashSet<u16> = (1..5).map(|port| pick(&mut world, case, 1, port)).collect();
    assert_eq!(backends.len(), 1, "{backends:?}");
}
