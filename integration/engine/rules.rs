//! iptables mode: the ordered list, its conditions and actions; and the addresses that a service answers on.
use std::net::SocketAddr;

use lbd::flow::Protocol;
use lbd::matcher::Matcher;
use lbd::policy::Mode;
use lbd::verdict::{Drop, Pass, Reject, Verdict};

use crate::packets::{self, ACK, SYN, socket};
use crate::world::{Case, World, packet};

const DROPPED: Verdict = Verdict::Drop(Drop::Rule);

fn iptables(case: Case, rules: &str) -> World {
    case.in_mode(Mode::Iptables).setup().tables(rules).world()
}

fn rule(text: &str) -> String {
    format!("[[rules]]\n{text}\n")
}

/// The verdict on a first packet of another protocol or from elsewhere than usual.
#[track_caller]
fn verdict(world: &mut World, protocol: Protocol, from: impl ToString, to: impl ToString) -> Verdict {
    world
        .send(&packet(protocol, socket(from.to_string()), socket(to.to_string()), SYN))
        .verdict
}

/// Each condition with a packet that meets it and one that does not.
fn conditions(case: Case) -> Vec<(String, SocketAddr, SocketAddr, SocketAddr, SocketAddr)> {
    let (client, service) = (case.client(2, 40_000), case.service());
    let (near, far) = if case.v6 {
        ("fd00:1::/64", "[fd00:9::2]:40000")
    } else {
        ("10.1.0.0/24", "10.9.0.2:40000")
    };
    let other_port = |mut endpoint: SocketAddr| {
        endpoint.set_port(endpoint.port() + 1);
        endpoint
    };
    vec![
        (format!("source = \"{near}\""), client, service, socket(far), service),
        (
            format!("source = \"{}\"", client.ip()),
            client,
            service,
            case.client(3, 40_000),
            service,
        ),
        (
            format!("destination = \"{}\"", service.ip()),
            client,
            service,
            client,
            case.external(),
        ),
        (
            "source_port = \"40000\"".into(),
            client,
            service,
            other_port(client),
            service,
        ),
        (
            "source_port = \"39999-40000\"".into(),
            client,
            service,
            other_port(client),
            service,
        ),
        (
            "destination_port = \"80\"".into(),
            client,
            service,
            client,
            other_port(service),
        ),
        (
            "destination_port = \"1-80\"".into(),
            client,
            service,
            client,
            other_port(service),
        ),
    ]
}

#[test]
fn every_condition_matches_what_it_says_and_nothing_else() {
    for case in Case::all() {
        for (text, from, to, other_from, other_to) in conditions(case) {
            let rules = rule(&format!("{text}\naction = \"drop\""));
            let mut world = iptables(case, &rules);
            assert_eq!(verdict(&mut world, case.protocol, from, to), DROPPED, "{text}");
            assert_ne!(
                verdict(&mut world, case.protocol, other_from, other_to),
                DROPPED,
                "{text}"
            );
        }
    }
}

#[test]
fn an_exclamation_mark_turns_every_condition_round() {
    for case in Case::all() {
        for (text, from, to, other_from, other_to) in conditions(case) {
            let negated = text.replace(" = \"", " = \"!");
            let mut world = iptables(case, &rule(&format!("{negated}\naction = \"drop\"")));
            assert_ne!(verdict(&mut world, case.protocol, from, to), DROPPED, "{negated}");
            assert_eq!(
                verdict(&mut world, case.protocol, other_from, other_to),
                DROPPED,
                "{negated}"
            );
        }
    }
}

#[test]
fn a_rule_for_a_protocol_leaves_the_other_alone() {
    let (from, to) = ("10.1.0.2:1", "10.99.0.1:9");
    for (condition, tcp, udp) in [("tcp", true, false), ("udp", false, true), ("!tcp", false, true)] {
        let mut world = iptables(
            Case::TCP,
            &rule(&format!("protocol = \"{condition}\"\naction = \"drop\"")),
        );
        assert_eq!(
            verdict(&mut world, Protocol::Tcp, from, to) == DROPPED,
            tcp,
            "{condition}"
        );
        assert_eq!(
            verdict(&mut world, Protocol::Udp, from, to) == DROPPED,
            udp,
            "{condition}"
        );
    }
}

#[test]
fn all_conditions_of_a_rule_must_hold() {
    let mut world = iptables(
        Case::TCP,
        &rule("source = \"10.1.0.0/24\"\nprotocol = \"tcp\"\ndestination_port = 80\naction = \"drop\""),
    );
    assert_eq!(
        verdict(&mut world, Protocol::Tcp, "10.1.0.2:1", "10.99.0.1:80"),
        DROPPED
    );
    for (protocol, from, to) in [
        (Protocol::Udp, "10.1.0.2:1", "10.99.0.1:80"),
        (Protocol::Tcp, "10.1.1.2:1", "10.99.0.1:80"),
        (Protocol::Tcp, "10.1.0.2:1", "10.99.0.1:81"),
    ] {
        assert_eq!(verdict(&mut world, protocol, from, to), Verdict::Pass(Pass::NoMatch));
    }
}

#[test]
fn the_first_rule_that_matches_decides() {
    let actions = ["drop", "reject", "pass", "service:web"];
    let verdicts = [
        DROPPED,
        Verdict::Reject(Reject::Rule),
        Verdict::Pass(Pass::Rule),
        Verdict::Forward,
    ];
    for case in Case::all() {
        for (first, expected) in actions.iter().zip(verdicts) {
            for second in actions {
                let rules = [*first, second].map(|action| rule(&format!("action = \"{action}\"")));
                let mut world = iptables(case, &rules.concat());
                assert_eq!(
                    verdict(&mut world, case.protocol, case.client(2, 1), case.service()),
                    expected
                );
            }
        }
    }
}

#[test]
fn a_passed_packet_of_a_service_is_not_balanced() {
    for case in Case::all() {
        let mut world = iptables(case, &rule("action = \"pass\""));
        let to = case.service();
        assert_eq!(
            verdict(&mut world, case.protocol, case.client(2, 1), to),
            Verdict::Pass(Pass::Rule)
        );
        assert!(world.engine.conntrack().is_empty());
    }
}

#[test]
fn a_rule_may_send_any_destination_to_a_service_and_its_answers_come_from_there() {
    for case in Case::all() {
        let mut world = iptables(
            case,
            &rule("destination_port = \"8000-9000\"\naction = \"service:web\""),
        );
        let to = if case.v6 { "[fd00:99::1]:8443" } else { "10.99.0.1:8443" };
        let flow = world.connect(case.protocol, case.client(2, 40_000), to);
        assert_eq!(flow.backend, case.backend(1));
        world.down(&flow, ACK);
    }
}

#[test]
fn a_service_rule_is_skipped_by_packets_of_another_protocol_or_ip_version() {
    let rules = rule("action = \"service:web\"");
    let mut world = iptables(Case::TCP, &rules);
    let passed = Verdict::Pass(Pass::NoMatch);
    assert_eq!(verdict(&mut world, Protocol::Udp, "10.1.0.2:1", "10.99.0.1:80"), passed);
    assert_eq!(
        verdict(&mut world, Protocol::Tcp, "[fd00:1::2]:1", "[fd00:99::1]:80"),
        passed
    );
    assert_eq!(
        verdict(&mut world, Protocol::Tcp, "10.1.0.2:1", "10.99.0.1:80"),
        Verdict::Forward
    );
}

#[test]
fn packets_of_a_known_flow_meet_no_rule() {
    for case in Case::all() {
        let case = case.in_mode(Mode::Iptables);
        let mut world = case.setup().world();
        let flow = world.connect(case.protocol, case.client(2, 40_000), case.service());
        world.reload(&case.setup().tables(&rule("action = \"drop\"")).toml());
        world.up(&flow, ACK);
        world.down(&flow, ACK);
        assert_eq!(
            verdict(&mut world, case.protocol, case.client(2, 1), case.service()),
            DROPPED
        );
    }
}

#[test]
fn user_rules_are_ignored_in_ipvs_mode_and_count_again_after_a_switch() {
    for case in Case::all() {
        let setup = case.setup().tables(&rule("action = \"drop\""));
        let mut world = setup.clone().mode(Mode::Ipvs).world();
        let (client, service) = (case.client(2, 1), case.service());
        assert_eq!(verdict(&mut world, case.protocol, client, service), Verdict::Forward);
        world.reload(&setup.mode(Mode::Iptables).toml());
        assert_eq!(verdict(&mut world, case.protocol, case.client(2, 2), service), DROPPED);
    }
}

#[test]
fn a_probability_is_the_share_of_packets_that_match() {
    let rules = rule("probability = 0.25\naction = \"drop\"");
    let toml = Case::UDP.in_mode(Mode::Iptables).setup().tables(&rules).toml();
    let run = |seed| -> Vec<bool> {
        let mut world = World::build(&toml, 1, seed);
        let mut strike =
            |port| verdict(&mut world, Protocol::Udp, format!("10.1.0.2:{port}"), "10.99.0.1:9") == DROPPED;
        (1..=4_000).map(&mut strike).collect()
    };
    let struck = run(1);
    let share = struck.iter().filter(|&&struck| struck).count();
    assert!((900..1_100).contains(&share), "{share} of 4000");
    assert_eq!(struck, run(1), "the same seed strikes the same packets");
    assert_ne!(struck, run(2));
}

#[test]
fn a_certain_rule_strikes_every_packet() {
    let mut world = iptables(Case::UDP, &rule("probability = 1.0\naction = \"drop\""));
    for port in 1..2_000 {
        assert_eq!(
            verdict(&mut world, Protocol::Udp, format!("10.1.0.2:{port}"), "10.99.0.1:9"),
            DROPPED
        );
    }
}

#[test]
fn rules_without_ports_see_pings_and_fragments_and_rules_with_ports_do_not() {
    let ping = packets::ping("10.1.0.2".parse().unwrap(), "10.99.0.1".parse().unwrap());
    let mut world = iptables(Case::TCP, &rule("destination = \"10.99.0.0/16\"\naction = \"drop\""));
    assert_eq!(world.send(&ping).verdict, DROPPED);
    for port in ["80", "!80"] {
        let mut world = iptables(
            Case::TCP,
            &rule(&format!("destination_port = \"{port}\"\naction = \"drop\"")),
        );
        assert_eq!(world.send(&ping).verdict, Verdict::Pass(Pass::UntrackedProtocol));
    }
}

#[test]
fn rules_count_what_they_decided_on_and_keep_counting_over_a_reload() {
    let rules = rule("destination_port = 9\naction = \"drop\"");
    let mut world = iptables(Case::TCP, &rules);
    let text = Case::TCP.in_mode(Mode::Iptables).setup().tables(&rules);
    for port in 1..4 {
        let client = format!("10.1.0.2:{port}");
        assert_eq!(verdict(&mut world, Protocol::Tcp, &client, "10.99.0.1:9"), DROPPED);
        assert_eq!(
            verdict(&mut world, Protocol::Tcp, &client, Case::TCP.service()),
            Verdict::Forward
        );
        world.reload(
            &text
                .clone()
                .tables(&rule("source_port = 9999\naction = \"drop\""))
                .toml(),
        );
    }
    let ruleset = world.engine.ruleset();
    let Matcher::Rules(list) = &ruleset.matcher else {
        panic!("iptables mode has a list")
    };
    let counted: Vec<u64> = list
        .entries()
        .iter()
        .map(|entry| entry.stats.totals().in_packets)
        .collect();
    assert_eq!(counted, [3, 0, 3]);
}

#[test]
fn a_reload_may_have_rules_walked_one_by_one_and_compiled_again_and_they_keep_their_counts() {
    let rules = rule("destination_port = 9\naction = \"drop\"");
    let setup = Case::TCP.in_mode(Mode::Iptables).setup().tables(&rules);
    let mut world = setup.world();
    for (evaluation, port) in ["linear", "compiled", "linear"].into_iter().zip(1..) {
        let client = format!("10.1.0.2:{port}");
        assert_eq!(verdict(&mut world, Protocol::Tcp, &client, "10.99.0.1:9"), DROPPED);
        let forwarded = verdict(&mut world, Protocol::Tcp, &client, Case::TCP.service());
        assert_eq!(forwarded, Verdict::Forward);
        let table = format!("[iptables]\nevaluation = \"{evaluation}\"\n");
        world.reload(&setup.clone().tables(&table).toml());
        let ruleset = world.engine.ruleset();
        let Matcher::Rules(list) = &ruleset.matcher else {
            panic!("iptables mode has a list")
        };
        let counted = list.entries().into_iter().map(|entry| entry.stats.totals().in_packets);
        assert_eq!(counted.collect::<Vec<u64>>(), [port, port]);
    }
}

#[test]
fn a_service_answers_on_its_address_its_external_addresses_and_its_node_port() {
    for case in Case::all() {
        let node = format!("[node]\naddresses = [\"{}\"]", case.node(0).ip());
        let keys = format!("external_addresses = [\"{}\"]\nnode_port = 30080", case.external().ip());
        let mut world = case.setup().tables(&node).keys(&keys).world();
        for to in [case.service(), case.external(), case.node(30_080)] {
            let flow = world.connect(case.protocol, case.client(2, 40_000), to);
            world.up(&flow, ACK);
        }
        for to in [case.node(80), case.node(30_081)] {
            assert_eq!(
                verdict(&mut world, case.protocol, case.client(2, 1), to),
                Verdict::Pass(Pass::NoMatch)
            );
        }
        let mut outside = case.external();
        outside.set_port(30_080);
        assert_eq!(
            verdict(&mut world, case.protocol, case.client(2, 1), outside),
            Verdict::Pass(Pass::NoMatch)
        );
    }
}
