//! Backends that come, drain and go, and schedulers that stay or change, while flows live.
use lbd::flow::Protocol;
use lbd::policy::Mode;
use lbd::verdict::{Drop, Pass, Reject, Verdict};

use crate::packets::{self, ACK, FIN, RST, SYN};
use crate::world::{Case, Flow, Setup, World};

/// The numbers of the backends that the next flows go to.
#[track_caller]
fn next(world: &mut World, case: Case, ports: std::ops::Range<u16>) -> Vec<u16> {
    let mut number = |port| {
        let backend = world.open(case.protocol, case.client(9, port), case.service()).backend;
        (1..9).find(|&n| case.backend(n) == backend).unwrap()
    };
    ports.map(&mut number).collect()
}

fn on_removed(case: Case, action: &str) -> Setup {
    case.setup()
        .tables(&format!("[conntrack]\non_backend_removed = \"{action}\""))
}

#[test]
fn round_robin_walks_in_the_order_of_the_configuration() {
    for case in Case::all() {
        let mut world = case.setup().world();
        assert_eq!(next(&mut world, case, 1..8), [1, 2, 3, 1, 2, 3, 1]);
    }
}

#[test]
fn a_backend_with_weight_zero_keeps_its_flows_and_gets_no_new_one() {
    for case in Case::all() {
        let mut world = case.setup().world();
        let flow = world.connect(case.protocol, case.client(2, 40_000), case.service());
        world.reload(&case.setup().weights(&[0, 1, 1]).toml());
        assert_eq!(next(&mut world, case, 1..5), [2, 3, 2, 3]);
        world.up(&flow, ACK);
        world.down(&flow, ACK);
        world.reload(&case.setup().toml());
        assert_eq!(next(&mut world, case, 10..12), [1, 2]);
    }
}

#[test]
fn a_reload_that_changes_nothing_of_the_service_keeps_round_robins_place() {
    for case in Case::all() {
        let mut world = case.setup().world();
        assert_eq!(next(&mut world, case, 1..2), [1]);
        world.reload(&case.setup().toml());
        assert_eq!(next(&mut world, case, 2..3), [2]);
        world.reload(&case.setup().tables("[conntrack]\nudp = \"10s\"").toml());
        assert_eq!(next(&mut world, case, 3..4), [3]);
        world.reload(&case.setup().keys("node_port = 30080").toml());
        assert_eq!(next(&mut world, case, 4..5), [1]);
        let other = if case.mode == Mode::Ipvs {
            Mode::Iptables
        } else {
            Mode::Ipvs
        };
        world.reload(&case.setup().mode(other).toml());
        assert_eq!(next(&mut world, case, 5..6), [2]);
    }
}

#[test]
fn another_scheduler_begins_at_its_own_beginning_and_sees_the_load_there_is() {
    for case in Case::tcp() {
        let mut world = case.setup().world();
        next(&mut world, case, 1..3);
        world.reload(&case.setup().scheduler("lc").toml());
        assert_eq!(next(&mut world, case, 3..5), [3, 1]);
        world.reload(&case.setup().toml());
        assert_eq!(next(&mut world, case, 5..6), [1]);
    }
}

#[test]
fn preserve_lets_the_flows_of_a_removed_backend_go_on() {
    for case in Case::all() {
        let mut world = on_removed(case, "preserve").world();
        let flow = world.connect(case.protocol, case.client(2, 40_000), case.service());
        world.reload(&on_removed(case, "preserve").backends(&[(2, 1)]).toml());
        for _ in 0..3 {
            world.up(&flow, ACK);
            world.down(&flow, ACK);
            world.seconds(200);
        }
        assert_eq!(next(&mut world, case, 1..3), [2, 2]);
    }
}

#[test]
fn a_syn_never_goes_to_a_removed_backend_whatever_becomes_of_its_flows() {
    for case in Case::tcp() {
        for action in ["preserve", "reset", "reschedule"] {
            let mut world = on_removed(case, action).world();
            let half_open = world.open(Protocol::Tcp, case.client(2, 40_000), case.service());
            let established = world.connect(Protocol::Tcp, case.client(2, 40_001), case.service());
            assert_eq!(
                (half_open.backend, established.backend),
                (case.backend(1), case.backend(2))
            );
            world.reload(&on_removed(case, action).backends(&[(3, 1)]).toml());
            world.seconds(3);
            for old in [half_open, established] {
                let again = world.open(Protocol::Tcp, old.client, old.service);
                assert_eq!(again.backend, case.backend(3), "{action}");
            }
        }
    }
}

#[test]
fn the_backend_of_a_reset_download_tells_the_client_which_only_listens() {
    for case in Case::tcp() {
        let mut world = on_removed(case, "reset").world();
        let flow = world.connect(Protocol::Tcp, case.client(2, 40_000), case.service());
        world.reload(&on_removed(case, "reset").backends(&[(2, 1)]).toml());
        let told = world.try_down(&flow, ACK);
        assert_eq!(told.verdict, Verdict::Reject(Reject::BackendRemoved));
        assert_eq!(
            packets::endpoints(&told.packet),
            (flow.service, flow.client),
            "the client first"
        );
        let told = world.try_down(&flow, ACK);
        assert_eq!(told.verdict, Verdict::Reject(Reject::BackendRemoved));
        assert_eq!(
            packets::endpoints(&told.packet),
            (flow.source, flow.backend),
            "then the backend"
        );
    }
}

#[test]
fn a_removed_backend_that_goes_on_after_both_have_closed_is_told_itself() {
    for case in Case::tcp() {
        let mut world = on_removed(case, "reset").world();
        let flow = world.connect(Protocol::Tcp, case.client(2, 40_000), case.service());
        world.client_closes(&flow);
        world.down(&flow, FIN | ACK);
        assert_eq!(world.state(&flow), "TIME_WAIT");
        world.reload(&on_removed(case, "reset").backends(&[(2, 1)]).toml());
        for _ in 0..3 {
            let told = world.try_down(&flow, FIN | ACK);
            assert_eq!(told.verdict, Verdict::Reject(Reject::BackendRemoved));
            assert_eq!(packets::endpoints(&told.packet), (flow.source, flow.backend));
        }
    }
}

#[test]
fn a_service_that_comes_back_finds_its_flows() {
    for case in Case::all() {
        let mut world = on_removed(case, "reset").world();
        let flow = world.connect(case.protocol, case.client(2, 40_000), case.service());
        let load = world.load(flow.backend);
        world.reload(&format!("mode = \"{}\"", case.mode.name()));
        world.reload(&on_removed(case, "reset").toml());
        world.up(&flow, ACK);
        world.down(&flow, ACK);
        assert_eq!(world.load(flow.backend), load);
    }
}

#[test]
fn preserve_keeps_flows_of_a_service_that_is_gone() {
    for case in Case::all() {
        let mut world = on_removed(case, "preserve").world();
        let flow = world.connect(case.protocol, case.client(2, 40_000), case.service());
        let nothing = "[conntrack]\non_backend_removed = \"preserve\"";
        world.reload(&format!("mode = \"{}\"\n{nothing}", case.mode.name()));
        world.up(&flow, ACK);
        world.down(&flow, ACK);
    }
}

#[test]
fn where_nobody_says_anything_a_connection_goes_on_and_a_datagram_goes_elsewhere_at_once() {
    for case in Case::all() {
        let mut world = case.setup().world();
        let flow = world.connect(case.protocol, case.client(2, 40_000), case.service());
        world.reload(&case.setup().backends(&[(2, 1)]).toml());
        world.down(&flow, ACK);
        match case.protocol {
            Protocol::Tcp => world.up(&flow, ACK),
            Protocol::Udp | Protocol::Sctp => {
                let next = world.open(case.protocol, flow.client, flow.service);
                assert_eq!(next.backend, case.backend(2));
                world.down(&next, 0);
                assert_eq!(world.engine.conntrack().len(), 1);
            }
        }
    }
}

#[test]
fn a_datagram_of_a_service_that_is_gone_is_no_longer_lbds() {
    let case = Case::UDP;
    let mut world = case.setup().world();
    let flow = world.connect(case.protocol, case.client(2, 40_000), case.service());
    world.reload("");
    assert_eq!(world.try_up(&flow, 0).verdict, Verdict::Pass(Pass::NoMatch));
    assert!(world.engine.conntrack().is_empty());
}

#[test]
fn what_a_removed_backend_still_answers_to_a_datagram_arrives_until_the_client_asks_again() {
    for case in Case::all().filter(|case| case.protocol == Protocol::Udp) {
        let mut world = on_removed(case, "reschedule").world();
        let flow = world.connect(case.protocol, case.client(2, 40_000), case.service());
        world.reload(&on_removed(case, "reschedule").backends(&[(2, 1)]).toml());
        world.down(&flow, 0);
        world.down(&flow, 0);
        world.open(case.protocol, flow.client, flow.service);
        assert_eq!(world.try_down(&flow, 0).verdict, Verdict::Drop(Drop::UnknownReply));
    }
}

#[test]
fn with_drop_a_flow_waits_for_its_backend_until_its_time_is_over() {
    for case in Case::all() {
        let mut world = on_removed(case, "drop").world();
        let flow = world.connect(case.protocol, case.client(2, 40_000), case.service());
        let gone = on_removed(case, "drop").backends(&[(2, 1)]).toml();
        world.reload(&gone);
        let dropped = Verdict::Drop(Drop::BackendRemoved);
        assert_eq!(world.try_up(&flow, ACK).verdict, dropped, "{case:?}");
        world.down(&flow, ACK);
        world.reload(&on_removed(case, "drop").toml());
        world.up(&flow, ACK);
        world.reload(&gone);
        // A client that sends all the while does not keep it alive.
        for _ in 0..20 {
            world.seconds(50);
            let verdict = world.try_up(&flow, ACK).verdict;
            if verdict != dropped {
                break;
            }
        }
        let other = world.open(case.protocol, flow.client, flow.service);
        assert_eq!(other.backend, case.backend(2), "{case:?}");
    }
}

#[test]
fn a_service_has_its_own_word_on_flows_of_removed_backends() {
    let setup = |case: Case, general: &str, own: &str| {
        let own = format!("on_backend_removed = \"{own}\"");
        on_removed(case, general).keys(&own)
    };
    for case in Case::all() {
        let mut world = setup(case, "reset", "preserve").world();
        let flow = world.connect(case.protocol, case.client(2, 40_000), case.service());
        world.reload(&setup(case, "reset", "preserve").backends(&[(2, 1)]).toml());
        world.up(&flow, ACK);
        world.down(&flow, ACK);
        // Another word counts for backends that are gone already, too.
        world.reload(&setup(case, "preserve", "reset").backends(&[(2, 1)]).toml());
        let verdict = world.try_up(&flow, ACK).verdict;
        assert_eq!(verdict, Verdict::Reject(Reject::BackendRemoved));
    }
}

#[test]
fn the_word_of_a_service_outlives_it() {
    let own = "on_backend_removed = \"preserve\"";
    let mut world = Case::UDP.setup().keys(own).world();
    let flow = world.connect(Protocol::Udp, Case::UDP.client(2, 40_000), Case::UDP.service());
    world.reload("");
    world.up(&flow, 0);
    world.down(&flow, 0);
}

#[test]
fn a_client_that_keeps_sending_from_one_port_is_never_stuck_with_a_dead_backend() {
    for case in Case::all().filter(|case| case.protocol == Protocol::Udp) {
        let mut world = case.setup().world();
        let (client, service) = (case.client(2, 40_000), case.service());
        for gone in [1, 2, 3, 1, 2, 3] {
            let rest: Vec<(u16, u32)> = (1..=3).filter(|&n| n != gone).map(|n| (n, 1)).collect();
            world.reload(&case.setup().backends(&rest).toml());
            for _ in 0..3 {
                let flow = world.open(Protocol::Udp, client, service);
                assert_ne!(flow.backend, case.backend(gone));
                world.down(&flow, 0);
                world.seconds(1);
            }
        }
        // A backend of weight 0 is not dead: it drains.
        let last = world.open(Protocol::Udp, client, service);
        world.reload(&case.setup().weights(&[0, 0, 0]).toml());
        world.up(&last, 0);
    }
}

#[test]
fn reset_tells_both_sides_of_a_tcp_flow_and_the_client_may_connect_again() {
    for case in Case::tcp() {
        let mut world = on_removed(case, "reset").world();
        let flow = world.connect(Protocol::Tcp, case.client(2, 40_000), case.service());
        world.reload(&on_removed(case, "reset").backends(&[(2, 1)]).toml());
        let answer = world.try_up(&flow, ACK);
        assert_eq!(answer.verdict, Verdict::Reject(Reject::BackendRemoved));
        assert_eq!(packets::endpoints(&answer.packet), (flow.service, flow.client));
        let answer = world.try_down(&flow, ACK);
        assert_eq!(answer.verdict, Verdict::Reject(Reject::BackendRemoved));
        assert_eq!(packets::endpoints(&answer.packet), (flow.source, flow.backend));
        assert_eq!(world.try_up(&flow, RST).verdict, Verdict::Drop(Drop::Unanswerable));
        let again = world.open(Protocol::Tcp, flow.client, flow.service);
        assert_eq!(again.backend, case.backend(2));
        world.down(&again, SYN | ACK);
    }
}

#[test]
fn reset_tells_a_udp_client_once_and_its_next_datagram_goes_elsewhere() {
    for case in Case::all().filter(|case| case.protocol == Protocol::Udp) {
        let mut world = on_removed(case, "reset").world();
        let flow = world.connect(Protocol::Udp, case.client(2, 40_000), case.service());
        world.reload(&on_removed(case, "reset").backends(&[(2, 1)]).toml());
        let answer = world.try_down(&flow, 0);
        assert_eq!(answer.verdict, Verdict::Reject(Reject::BackendRemoved));
        let answer = world.try_up(&flow, 0);
        assert_eq!(answer.verdict, Verdict::Reject(Reject::BackendRemoved));
        assert_eq!(
            packets::addresses(&answer.packet),
            (flow.service.ip(), flow.client.ip())
        );
        let again = world.open(Protocol::Udp, flow.client, flow.service);
        assert_eq!(again.backend, case.backend(2));
        world.down(&again, 0);
    }
}

#[test]
fn reschedule_sends_the_next_datagram_elsewhere_and_resets_an_open_connection() {
    for case in Case::all() {
        let mut world = on_removed(case, "reschedule").world();
        let flow = world.connect(case.protocol, case.client(2, 40_000), case.service());
        world.reload(&on_removed(case, "reschedule").backends(&[(2, 1)]).toml());
        if case.protocol != Protocol::Udp {
            let verdict = world.try_up(&flow, ACK).verdict;
            assert_eq!(verdict, Verdict::Reject(Reject::BackendRemoved));
        }
        let again = world.open(case.protocol, flow.client, flow.service);
        assert_eq!(again.backend, case.backend(2));
        world.down(&again, SYN | ACK);
        assert_eq!(world.engine.conntrack().len(), 1);
    }
}

#[test]
fn a_flow_that_was_told_to_end_is_not_kept_alive_by_further_packets() {
    let case = Case::TCP;
    let mut world = on_removed(case, "reset").world();
    let flow = world.connect(Protocol::Tcp, case.client(2, 40_000), case.service());
    world.reload(&on_removed(case, "reset").backends(&[(2, 1)]).toml());
    world.seconds(890);
    assert_eq!(
        world.try_up(&flow, ACK).verdict,
        Verdict::Reject(Reject::BackendRemoved)
    );
    world.seconds(10);
    assert_eq!(world.try_up(&flow, ACK).verdict, Verdict::Drop(Drop::NotSyn));
}

#[test]
fn a_drained_backend_that_is_still_configured_is_not_a_removed_one() {
    for action in ["reset", "reschedule"] {
        let case = Case::TCP;
        let mut world = on_removed(case, action).world();
        let flow = world.connect(Protocol::Tcp, case.client(2, 40_000), case.service());
        world.reload(&on_removed(case, action).weights(&[0, 1]).toml());
        world.up(&flow, ACK);
    }
}

#[test]
fn a_backend_that_comes_back_finds_its_flows_and_counts() {
    for action in ["preserve", "reset", "reschedule"] {
        for case in Case::all() {
            let setup = on_removed(case, action);
            let mut world = setup.world();
            let flow = world.connect(case.protocol, case.client(2, 40_000), case.service());
            let before = world.backend(flow.backend).stats.totals();
            let load = world.load(flow.backend);
            world.reload(&setup.clone().backends(&[(2, 1), (3, 1)]).toml());
            world.seconds(5);
            world.reload(&setup.toml());
            assert_eq!(world.load(flow.backend), load, "{case:?}");
            assert_eq!(world.backend(flow.backend).stats.totals(), before);
            world.up(&flow, ACK);
            world.down(&flow, ACK);
        }
    }
}

#[test]
fn a_backend_that_comes_back_after_its_flows_ended_begins_at_zero() {
    let case = Case::TCP;
    let mut world = case.setup().world();
    let flow = world.connect(Protocol::Tcp, case.client(2, 40_000), case.service());
    world.reload(&case.setup().backends(&[(2, 1)]).toml());
    world.seconds(901);
    world.reload(&case.setup().toml());
    assert_eq!(world.load(flow.backend), (0, 0));
}

#[test]
fn a_mode_switch_keeps_every_flow() {
    for case in Case::all() {
        let mut world = case.setup().world();
        let flows: Vec<Flow> = (1..10)
            .map(|port| world.connect(case.protocol, case.client(2, port), case.service()))
            .collect();
        for mode in [Mode::Iptables, Mode::Ipvs, Mode::Iptables] {
            world.reload(&case.setup().mode(mode).toml());
            for flow in &flows {
                world.up(flow, ACK);
                world.down(flow, ACK);
            }
            assert_eq!(world.load(case.backend(1)).0 + world.load(case.backend(1)).1, 3);
        }
    }
}

#[test]
fn reordered_and_reweighted_backends_keep_their_flows() {
    for case in Case::all() {
        let mut world = case.setup().world();
        let flows: Vec<Flow> = (1..7)
            .map(|port| world.connect(case.protocol, case.client(2, port), case.service()))
            .collect();
        world.reload(&case.setup().backends(&[(3, 5), (4, 1), (1, 0), (2, 7)]).toml());
        for flow in &flows {
            world.up(flow, ACK);
            world.down(flow, ACK);
        }
    }
}

#[test]
fn a_backend_at_its_upper_threshold_gets_no_new_flow_until_it_is_below_the_lower_one() {
    let case = Case::UDP;
    let text = case.setup().weights(&[1, 1]).toml();
    let text = text.replacen("weight = 1", "weight = 1, upper_threshold = 2, lower_threshold = 1", 1);
    let mut world = World::new(&text);
    assert_eq!(next(&mut world, case, 1..7), [1, 2, 1, 2, 2, 2]);
    world.seconds(301);
    assert_eq!(next(&mut world, case, 7..9), [1, 2]);
}

#[test]
fn a_weighted_round_gives_each_backend_its_share() {
    for case in Case::all() {
        let mut world = case.setup().scheduler("wrr").weights(&[4, 0, 2]).world();
        let picks = next(&mut world, case, 1..61);
        let share = |n| picks.iter().filter(|&&pick| pick == n).count();
        assert_eq!((share(1), share(2), share(3)), (40, 0, 20), "{case:?}");
    }
}

#[test]
fn source_hashing_sends_one_client_to_one_backend_whatever_its_port() {
    for case in Case::all() {
        let mut world = case.setup().scheduler("sh").world();
        let picks = next(&mut world, case, 1..30);
        assert!(picks.iter().all(|pick| *pick == picks[0]), "{picks:?}");
    }
}
