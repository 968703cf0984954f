//! The life of a flow: its states, its deadlines, and whom it counts for.
use std::net::SocketAddr;
use std::time::Duration;

use lbd::flow::Protocol;
use lbd::policy::Mode;
use lbd::verdict::{Drop, Pass, Reject, Verdict};

use crate::packets::{self, ACK, FIN, PSH, RST, SYN};
use crate::world::{Case, Flow, World, packet};

/// A step of an exchange: who sends what, and what `ipvsadm -Lc` says then.
#[derive(Clone, Copy)]
enum Step {
    Up(u8, &'static str),
    Down(u8, &'static str),
}

use Step::{Down, Up};

#[track_caller]
fn play(world: &mut World, flow: &Flow, steps: &[Step]) {
    for (number, step) in steps.iter().enumerate() {
        let state = match *step {
            Up(flags, state) => {
                world.up(flow, flags);
                state
            }
            Down(flags, state) => {
                world.down(flow, flags);
                state
            }
        };
        assert_eq!(world.state(flow), state, "after step {number}");
        let active = matches!(state, "ESTABLISHED" | "SYN_RECV" | "SYN_SENT");
        let expected = if active { (1, 0) } else { (0, 1) };
        assert_eq!(world.load(flow.backend), expected, "after step {number}");
    }
}

const HANDSHAKE: [Step; 2] = [Down(SYN | ACK, "SYN_RECV"), Up(ACK, "ESTABLISHED")];

/// An exchange after a SYN, and the seconds for which the flow is remembered after it.
fn exchanges() -> Vec<(Vec<Step>, u64)> {
    let after = |steps: &[Step]| [&HANDSHAKE[..], steps].concat();
    vec![
        (vec![], 60),
        (vec![Up(SYN, "SYN_RECV")], 60),
        (vec![Down(SYN | ACK, "SYN_RECV")], 60),
        (vec![Down(RST | ACK, "CLOSE")], 10),
        (vec![Up(RST, "SYN_RECV")], 60),
        (after(&[]), 900),
        (
            after(&[Up(PSH | ACK, "ESTABLISHED"), Down(PSH | ACK, "ESTABLISHED")]),
            900,
        ),
        (after(&[Up(PSH, "ESTABLISHED"), Up(0, "ESTABLISHED")]), 900),
        // The client closes first.
        (after(&[Up(FIN | ACK, "CLOSE_WAIT"), Down(ACK, "CLOSE_WAIT")]), 60),
        (
            after(&[
                Up(FIN | ACK, "CLOSE_WAIT"),
                Down(FIN | ACK, "TIME_WAIT"),
                Up(ACK, "TIME_WAIT"),
            ]),
            120,
        ),
        // The backend closes first.
        (after(&[Down(FIN | ACK, "FIN_WAIT"), Up(ACK, "FIN_WAIT")]), 120),
        (
            after(&[
                Down(FIN | ACK, "FIN_WAIT"),
                Up(FIN | ACK, "TIME_WAIT"),
                Down(ACK, "TIME_WAIT"),
            ]),
            120,
        ),
        // Somebody aborts.
        (after(&[Up(RST, "CLOSE")]), 10),
        (after(&[Down(RST, "CLOSE")]), 10),
        (after(&[Up(RST | ACK, "CLOSE"), Down(ACK, "CLOSE")]), 10),
        (after(&[Up(FIN | ACK, "CLOSE_WAIT"), Down(RST, "CLOSE")]), 10),
    ]
}

#[test]
fn a_tcp_flow_has_the_states_loads_and_deadlines_of_ipvs_or_in_iptables_mode_of_kube_proxy() {
    for case in Case::tcp() {
        for (steps, seconds) in exchanges() {
            let mut world = case.setup().weights(&[1]).world();
            let flow = world.open(Protocol::Tcp, case.client(2, 40_000), case.service());
            assert_eq!((world.state(&flow), world.load(flow.backend)), ("SYN_RECV", (1, 0)));
            play(&mut world, &flow, &steps);
            let seconds = match (case.mode, world.state(&flow)) {
                (Mode::Iptables, "ESTABLISHED") => 24 * 3_600,
                (Mode::Iptables, "CLOSE_WAIT") => 3_600,
                (Mode::Iptables | Mode::Ipvs, _) => seconds,
            };
            world.advance(Duration::from_secs(seconds) - Duration::from_nanos(1));
            assert!(world.is_alive(&flow), "{seconds} s");
            world.advance(Duration::from_nanos(1));
            assert!(!world.is_alive(&flow), "{seconds} s");
            assert_load_gone_within_a_tick(&mut world, &flow);
        }
    }
}

/// The wheel may be 2^27 ns late.
fn assert_load_gone_within_a_tick(world: &mut World, flow: &Flow) {
    world.advance(Duration::from_nanos(1 << 27));
    assert_eq!(world.load(flow.backend), (0, 0));
    assert!(world.engine.conntrack().is_empty());
}

#[test]
fn a_udp_flow_lives_for_five_minutes_after_its_last_datagram_in_either_direction() {
    for case in Case::all().filter(|case| case.protocol == Protocol::Udp) {
        let mut world = case.setup().weights(&[1]).world();
        let flow = world.open(Protocol::Udp, case.client(2, 40_000), case.service());
        assert_eq!((world.state(&flow), world.load(flow.backend)), ("UDP", (0, 1)));
        world.seconds(299);
        world.down(&flow, 0);
        world.seconds(299);
        world.up(&flow, 0);
        world.advance(Duration::from_secs(300) - Duration::from_nanos(1));
        assert!(world.is_alive(&flow));
        world.advance(Duration::from_nanos(1));
        assert!(!world.is_alive(&flow));
        assert_load_gone_within_a_tick(&mut world, &flow);
    }
}

#[test]
fn every_packet_of_a_flow_puts_its_end_off() {
    let mut world = Case::TCP.setup().world();
    let flow = world.connect(Protocol::Tcp, Case::TCP.client(2, 40_000), Case::TCP.service());
    for round in 0..200 {
        world.seconds(890);
        match round % 2 {
            0 => world.up(&flow, ACK),
            _ => world.down(&flow, ACK),
        }
    }
    world.seconds(900);
    assert!(!world.is_alive(&flow));
}

#[test]
fn timeouts_of_the_configuration_are_used_and_a_new_one_counts_from_the_next_packet() {
    let text = |seconds: u32| format!("[conntrack]\ntcp_established = {seconds}\ntcp_fin = \"7s\"\nudp = \"30s\"");
    let mut world = Case::TCP.setup().tables(&text(50)).world();
    let flow = world.connect(Protocol::Tcp, Case::TCP.client(2, 40_000), Case::TCP.service());
    world.reload(&Case::TCP.setup().tables(&text(100)).toml());
    world.seconds(49);
    world.up(&flow, ACK);
    world.seconds(99);
    world.down(&flow, FIN | ACK);
    world.seconds(6);
    assert_eq!(world.state(&flow), "FIN_WAIT");
    world.seconds(1);
    assert!(!world.is_alive(&flow));
}

#[test]
fn a_segment_of_a_forgotten_flow_is_dropped_and_a_datagram_opens_a_new_one() {
    for case in Case::all() {
        let mut world = case.setup().world();
        let flow = world.connect(case.protocol, case.client(2, 40_000), case.service());
        world.seconds(86_401);
        match case.protocol {
            Protocol::Tcp => {
                for flags in [ACK, FIN | ACK, RST, SYN | ACK, 0] {
                    assert_eq!(world.try_up(&flow, flags).verdict, Verdict::Drop(Drop::NotSyn));
                }
            }
            Protocol::Sctp => {
                for flags in [ACK, FIN, RST, SYN | ACK] {
                    assert_eq!(world.try_up(&flow, flags).verdict, Verdict::Drop(Drop::NotInit));
                }
            }
            Protocol::Udp => {
                let next = world.open(case.protocol, flow.client, flow.service);
                assert_eq!(next.backend, case.backend(2));
            }
        }
    }
}

#[test]
fn a_port_that_is_opened_again_gets_a_fresh_choice_at_once() {
    for case in Case::tcp() {
        type Ending = fn(&mut World, &Flow);
        let endings: [Ending; 4] = [
            World::client_closes,
            World::backend_closes,
            World::client_resets,
            |world, flow| world.down(flow, RST | ACK),
        ];
        for end in endings {
            let mut world = case.setup().world();
            let first = world.connect(Protocol::Tcp, case.client(2, 40_000), case.service());
            end(&mut world, &first);
            let second = world.open(Protocol::Tcp, first.client, first.service);
            assert_eq!((first.backend, second.backend), (case.backend(1), case.backend(2)));
            assert_eq!(
                (world.load(first.backend), world.load(second.backend)),
                ((0, 0), (1, 0))
            );
            assert_eq!(world.engine.conntrack().len(), 1);
            world.down(&second, SYN | ACK);
            world.up(&second, ACK);
            assert_eq!(world.state(&second), "ESTABLISHED");
        }
    }
}

#[test]
fn a_syn_of_a_flow_that_is_not_over_goes_to_the_same_backend() {
    for case in Case::tcp() {
        let mut world = case.setup().world();
        let flow = world.connect(Protocol::Tcp, case.client(2, 40_000), case.service());
        world.up(&flow, SYN);
        assert_eq!(world.state(&flow), "ESTABLISHED");
        world.up(&flow, FIN | ACK);
        world.up(&flow, SYN);
        assert_eq!(world.state(&flow), "SYN_RECV");
    }
}

#[test]
fn nobody_opens_a_flow_from_an_address_that_is_no_single_hosts() {
    for case in Case::all() {
        let addresses: &[&str] = match case.v6 {
            true => &["ff02::1", "ff0e::7", "::"],
            false => &["255.255.255.255", "224.0.0.1", "0.0.0.0", "0.1.2.3"],
        };
        for address in addresses {
            let mut world = case.setup().world();
            let from = SocketAddr::new(address.parse().unwrap(), 40_000);
            let verdict = world.try_open(case.protocol, from, case.service());
            assert_eq!(verdict, Verdict::Drop(Drop::Unanswerable), "{from}");
            let stranger = case.node(80);
            let verdict = world.try_open(case.protocol, from, stranger);
            assert_eq!(verdict, Verdict::Pass(Pass::NoMatch), "none of lbd's business");
        }
    }
}

#[test]
fn a_service_is_no_client_of_another_or_its_own() {
    for case in Case::all() {
        for asked in [case.service(), case.external()] {
            let external = format!("external_addresses = [\"{}\"]", case.external().ip());
            let mut world = case.setup().keys(&external).world();
            let verdict = world.try_open(case.protocol, case.service(), asked);
            assert_eq!(verdict, Verdict::Drop(Drop::Unanswerable), "{case:?}");
            // A host whose address is an external one of a service has other ports to ask from.
            let host = SocketAddr::new(case.external().ip(), 40_000);
            assert_eq!(world.open(case.protocol, host, asked).client, host);
        }
    }
}

#[test]
fn services_on_all_ports_and_node_ports_are_no_clients_of_each_other_either() {
    let toml = |mode: &str| {
        let service = |name: &str, address: &str, keys: &str, backend: &str| {
            format!(
                "[[services]]\nname = \"{name}\"\nprotocol = \"udp\"\naddress = \"{address}\"\n{keys}\n\
                 backends = [{{ address = \"{backend}\" }}]\n"
            )
        };
        let all = [
            service("a", "10.96.0.10:0", "persistence = {}", "10.2.0.11:0"),
            service("b", "10.96.0.11:0", "persistence = {}", "10.2.0.12:0"),
            service("c", "10.96.0.12:7", "node_port = 30007", "10.2.0.11:7"),
            service("d", "10.96.0.13:7", "node_port = 30008", "10.2.0.12:7"),
        ];
        format!(
            "mode = \"{mode}\"\n[node]\naddresses = [\"192.168.0.2\"]\n{}",
            all.concat()
        )
    };
    for mode in ["ipvs", "iptables"] {
        let mut world = World::new(&toml(mode));
        let mut ask = |from: &str, to: &str| {
            let [from, to] = [from, to].map(|text| text.parse::<SocketAddr>().unwrap());
            world.send(&packet(Protocol::Udp, from, to, 0)).verdict
        };
        let refused = Verdict::Drop(Drop::Unanswerable);
        assert_eq!(ask("10.96.0.10:7", "10.96.0.11:7"), refused);
        assert_eq!(ask("192.168.0.2:30007", "192.168.0.2:30008"), refused);
        assert_eq!(ask("192.168.0.2:40000", "192.168.0.2:30008"), Verdict::Forward);
    }
}

#[test]
fn a_masqueraded_flows_backend_that_answers_again_is_heard() {
    let case = Case::TCP;
    let mut world = case.setup().tables("[nat]\nmasquerade = \"always\"").world();
    let flow = world.open(Protocol::Tcp, case.client(2, 1), case.service());
    world.down(&flow, SYN | ACK);
    world.up(&flow, FIN | ACK);
    assert_eq!(world.state(&flow), "TIME_WAIT");
    // The FIN was lost behind lbd.
    world.down(&flow, SYN | ACK);
    world.up(&flow, FIN | ACK);
}

#[test]
fn a_client_that_goes_to_the_backend_itself_from_the_port_of_a_closed_flow_gets_its_answer_untranslated() {
    for case in Case::tcp() {
        let mut world = case.setup().weights(&[1]).world();
        let flow = world.connect(Protocol::Tcp, case.client(2, 40_000), case.service());
        world.client_closes(&flow);
        assert_eq!(world.state(&flow), "TIME_WAIT");
        let answer = world.send(&packet(Protocol::Tcp, flow.backend, flow.client, SYN | ACK));
        assert_eq!(answer.verdict, Verdict::Pass(Pass::NoMatch));
        assert!(world.engine.conntrack().is_empty());
    }
}

#[test]
fn a_backends_syn_does_not_reopen_a_flow() {
    let mut world = Case::TCP.setup().world();
    let flow = world.connect(Protocol::Tcp, Case::TCP.client(2, 40_000), Case::TCP.service());
    world.client_closes(&flow);
    world.down(&flow, SYN);
    assert_eq!(world.state(&flow), "SYN_SENT");
}

#[test]
fn a_reopened_port_whose_service_is_gone_leaves_nothing_behind() {
    let mut world = Case::TCP.setup().world();
    let flow = world.connect(Protocol::Tcp, Case::TCP.client(2, 40_000), Case::TCP.service());
    world.client_closes(&flow);
    world.reload(&Case::TCP.setup().weights(&[0]).toml());
    assert_eq!(world.try_up(&flow, SYN).verdict, Verdict::Reject(Reject::NoBackend));
    assert!(world.engine.conntrack().is_empty());
}

#[test]
fn the_same_client_port_to_two_services_is_two_flows() {
    for case in Case::all() {
        let external = format!("external_addresses = [\"{}\"]", case.external().ip());
        let mut world = case.setup().keys(&external).world();
        let client = case.client(2, 40_000);
        let one = world.connect(case.protocol, client, case.service());
        let two = world.connect(case.protocol, client, case.external());
        assert_eq!((one.backend, two.backend), (case.backend(1), case.backend(2)));
        world.down(&one, ACK);
        world.down(&two, ACK);
    }
}

#[test]
fn tcp_and_udp_of_the_same_ports_are_two_flows() {
    let text = Case::TCP.setup().toml();
    let service = text.split_once("[[services]]").unwrap().1;
    let udp = service.replace("\"web\"", "\"dns\"").replace("\"tcp\"", "\"udp\"");
    let mut world = World::new(&format!("{text}\n[[services]]{udp}"));
    let client = Case::TCP.client(2, 40_000);
    let tcp = world.connect(Protocol::Tcp, client, Case::TCP.service());
    let udp = world.connect(Protocol::Udp, client, Case::TCP.service());
    assert_eq!(tcp.backend, udp.backend);
    world.down(&tcp, ACK);
    world.down(&udp, 0);
    assert_eq!(world.engine.conntrack().len(), 2);
}

#[test]
fn traffic_is_counted_for_the_backend_and_the_service_in_ip_bytes() {
    for case in Case::all() {
        let mut world = case.setup().weights(&[1]).world();
        let flow = world.open(case.protocol, case.client(2, 40_000), case.service());
        let mut sent = world::sizes(case, &flow);
        world.up(&flow, ACK);
        world.down(&flow, ACK);
        sent.0 *= 2;
        let backend = world.backend(flow.backend);
        for totals in [backend.stats.totals(), backend.service.stats.totals()] {
            assert_eq!((totals.connections, totals.in_packets, totals.out_packets), (1, 2, 1));
            assert_eq!((totals.in_bytes, totals.out_bytes), sent);
        }
    }
}

mod world {
    use super::{Case, Flow};
    use crate::world::packet;

    /// Bytes of a packet from the client, and of one from the backend.
    pub(super) fn sizes(case: Case, flow: &Flow) -> (u64, u64) {
        let one = |from, to| packet(case.protocol, from, to, 0).len() as u64;
        (one(flow.client, flow.service), one(flow.backend, flow.source))
    }
}

#[test]
fn a_capture_that_leaps_over_a_day_forgets_what_is_over_and_nothing_else() {
    let long = "[conntrack]\ntcp_established = \"31days\"";
    let mut world = Case::TCP.setup().tables(long).world();
    let kept = world.connect(Protocol::Tcp, Case::TCP.client(2, 1), Case::TCP.service());
    let over = world.open(Protocol::Tcp, Case::TCP.client(2, 2), Case::TCP.service());
    world.seconds(30 * 86_400);
    assert!(world.is_alive(&kept) && !world.is_alive(&over));
    assert_eq!(world.engine.conntrack().len(), 1);
    world.seconds(86_399);
    assert!(world.is_alive(&kept));
    world.seconds(2);
    assert!(world.engine.conntrack().is_empty());
}

#[test]
fn modes_agree_on_every_exchange() {
    for (steps, _) in exchanges() {
        for mode in [Mode::Ipvs, Mode::Iptables] {
            let mut world = Case::TCP.setup().weights(&[1]).world();
            let flow = world.open(Protocol::Tcp, Case::TCP.client(2, 40_000), Case::TCP.service());
            world.reload(&Case::TCP.setup().weights(&[1]).mode(mode).toml());
            play(&mut world, &flow, &steps);
        }
    }
}

#[test]
fn a_segment_outside_of_every_window_is_forwarded_and_never_answered() {
    let mut world = Case::TCP.setup().world();
    let flow = world.connect(Protocol::Tcp, Case::TCP.client(2, 40_000), Case::TCP.service());
    for number in [0, 1, 0x8000_0000, u32::MAX] {
        let wild = packets::tcp(flow.client, flow.service, ACK, number, !number, b"wild");
        assert_eq!(world.send(&wild).verdict, Verdict::Forward);
    }
}
