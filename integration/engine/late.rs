//! What a backend sends on a connection that lbd has forgotten, to a client that knows only the service.
use std::net::SocketAddr;
use std::time::Duration;

use lbd::flow::Protocol;
use lbd::policy::Mode;
use lbd::verdict::{Drop, Pass, Reject, Verdict};

use crate::packets::{self, ACK, FIN, RST, SYN};
use crate::world::{Case, Flow, World, packet};

const LATE: Verdict = Verdict::Drop(Drop::UnknownReply);
const NOT_OURS: Verdict = Verdict::Pass(Pass::NoMatch);

/// The verdict on a packet of the flow's backend.
fn answered(world: &mut World, flow: &Flow, flags: u8) -> Verdict {
    world
        .send(&packet(flow.protocol, flow.backend, flow.source, flags))
        .verdict
}

#[test]
fn a_late_answer_on_a_connection_that_the_client_has_closed_its_side_of_is_dropped_by_name() {
    for case in Case::tcp() {
        for mode in [Mode::Ipvs, Mode::Iptables] {
            let close_wait = "[conntrack]\ntcp_close_wait = \"2s\"";
            let mut world = case.setup().mode(mode).tables(close_wait).world();
            let flow = world.connect(case.protocol, case.client(2, 1), case.service());
            world.up(&flow, FIN | ACK);
            // Over, and not yet forgotten.
            world.now = world.now + Duration::from_secs(2);
            for flags in [ACK, FIN | ACK, RST] {
                assert_eq!(answered(&mut world, &flow, flags), LATE);
            }
            world.seconds(1_000);
            assert!(world.engine.conntrack().is_empty());
            assert_eq!(answered(&mut world, &flow, ACK), LATE);
        }
    }
}

#[test]
fn it_is_dropped_after_any_silence_and_after_an_eviction() {
    for case in Case::all() {
        let mut world = case.setup().tables("[conntrack]\nmax_flows = 1").world();
        let flow = world.connect(case.protocol, case.client(2, 1), case.service());
        world.seconds(86_401);
        assert_eq!(
            answered(&mut world, &flow, ACK),
            if case.protocol == Protocol::Udp { NOT_OURS } else { LATE }
        );
    }
    for case in Case::tcp() {
        let mut world = case.setup().tables("[conntrack]\nmax_flows = 1").world();
        let flow = world.connect(case.protocol, case.client(2, 1), case.service());
        world.up(&flow, FIN | ACK);
        world.open(case.protocol, case.client(2, 2), case.service());
        assert_eq!(answered(&mut world, &flow, ACK), LATE, "its place was needed");
    }
}

#[test]
fn an_answer_to_a_question_over_udp_is_late_for_as_long_again() {
    for case in Case::all().filter(|case| case.protocol == Protocol::Udp) {
        let mut world = case.setup().tables("[conntrack]\nudp = \"10s\"").world();
        let flow = world.open(case.protocol, case.client(2, 1), case.service());
        world.seconds(15);
        assert_eq!(answered(&mut world, &flow, 0), LATE);
        world.seconds(15);
        assert_eq!(
            answered(&mut world, &flow, 0),
            NOT_OURS,
            "somebody may have asked the backend itself"
        );
    }
}

#[test]
fn the_backend_is_told_where_that_is_set() {
    for case in Case::tcp() {
        let mut world = case.setup().tables("[conntrack]\nunknown_reply = \"reset\"").world();
        let flow = world.connect(case.protocol, case.client(2, 1), case.service());
        world.seconds(86_401);
        let late = packet(case.protocol, flow.backend, flow.source, ACK);
        let outcome = world.send(&late);
        assert_eq!(outcome.verdict, Verdict::Reject(Reject::UnknownReply));
        assert_eq!(packets::endpoints(&outcome.packet), (flow.source, flow.backend));
        let transport = if case.v6 { 40 } else { 20 };
        assert_ne!(outcome.packet[transport + 13] & RST, 0);
        let reset = answered(&mut world, &flow, RST);
        assert_eq!(reset, Verdict::Drop(Drop::Unanswerable), "but for its own reset");
    }
}

/// On TUN the client's packets to a backend do not come to lbd.
fn goes_on_directly(world: &mut World, client: SocketAddr, backend: SocketAddr, sees_client: bool) {
    let talk = [
        (true, SYN),
        (false, SYN | ACK),
        (true, ACK),
        (false, ACK),
        (false, ACK),
        (true, FIN | ACK),
        (false, FIN | ACK),
    ];
    for (up, flags) in talk {
        let (from, to) = if up { (client, backend) } else { (backend, client) };
        if !up || sees_client {
            assert_eq!(world.send(&packet(Protocol::Tcp, from, to, flags)).verdict, NOT_OURS);
        }
        world.seconds(300);
    }
}

#[test]
fn a_connection_past_the_services_goes_on_however_long_it_is_silent_and_whenever_it_began() {
    for case in Case::tcp() {
        for sees_client in [false, true] {
            let mut world = case.setup().world();
            goes_on_directly(&mut world, case.client(2, 1), case.backend(1), sees_client);
            let old = packet(Protocol::Tcp, case.backend(1), case.client(3, 1), ACK);
            for _ in 0..3 {
                assert_eq!(world.send(&old).verdict, NOT_OURS, "from before lbd's start");
                world.seconds(10_000);
            }
        }
    }
}

#[test]
fn a_connection_past_the_services_from_the_port_of_a_forgotten_one_goes_on() {
    for case in Case::tcp() {
        for sees_client in [false, true] {
            let mut world = case.setup().weights(&[1]).world();
            let flow = world.connect(case.protocol, case.client(2, 1), case.service());
            world.seconds(86_401);
            assert_eq!(answered(&mut world, &flow, ACK), LATE);
            goes_on_directly(&mut world, flow.client, flow.backend, sees_client);
        }
    }
}

#[test]
fn a_connection_that_both_sides_have_closed_leaves_nothing_to_be_late() {
    let case = Case::TCP;
    let mut world = case.setup().world();
    let flow = world.connect(case.protocol, case.client(2, 1), case.service());
    world.up(&flow, FIN | ACK);
    world.down(&flow, FIN | ACK);
    world.up(&flow, ACK);
    world.seconds(200);
    assert_eq!(answered(&mut world, &flow, ACK), NOT_OURS);
}

#[test]
fn in_iptables_mode_connections_live_as_long_as_with_kube_proxy_and_a_switch_of_modes_keeps_what_was_written() {
    let case = Case::TCP;
    let setup = |mode| case.setup().mode(mode);
    let mut world = setup(Mode::Iptables).world();
    let idle = world.connect(case.protocol, case.client(2, 1), case.service());
    let half = world.connect(case.protocol, case.client(2, 2), case.service());
    world.up(&half, FIN | ACK);
    world.seconds(3_599);
    world.down(&half, ACK);
    world.seconds(23 * 3_600);
    world.down(&idle, ACK);
    let ruleset = world.engine.ruleset();
    let mut policy = (*ruleset.policy).clone();
    drop(ruleset);
    policy.conntrack.timeouts.udp = Duration::from_secs(77);
    let before = policy.clone();
    policy.switch_mode(Mode::Ipvs);
    let mut expected = Mode::Ipvs.default_timeouts();
    expected.udp = Duration::from_secs(77);
    assert_eq!(policy.conntrack.timeouts, expected);
    policy.switch_mode(Mode::Iptables);
    assert_eq!(policy, before);
}
