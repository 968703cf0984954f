//! What `lbctl explain` tells is what then happens, and telling it changes nothing.
use std::net::SocketAddr;

use lbd::control::protocol::explanation::{Explanation, Question, Step};
use lbd::explain::{self, explain};
use lbd::flow::Protocol;
use lbd::matcher::Matcher;
use lbd::packet::frame::Checksum;
use lbd::packet::icmp::HEADER;
use lbd::policy::Mode;
use lbd::verdict::{Drop, Pass, Reject, Verdict};

use crate::fragments;
use crate::packets::{self, ACK, FIN, IcmpError, RST, SYN};
use crate::world::{Case, Flow, World, packet};

/// Schedulers that leave nothing to chance.
const CERTAIN: [&str; 13] = [
    "rr", "wrr", "lc", "wlc", "sh", "dh", "mh", "sed", "nq", "fo", "ovf", "lblc", "lblcr",
];

/// All that a packet may change.
#[derive(Debug, PartialEq)]
struct Trace {
    verdicts: Vec<u64>,
    flows: Vec<String>,
    templates: Vec<String>,
    services: Vec<String>,
    rules: Vec<(u64, u64)>,
}

impl Trace {
    fn of(world: &World) -> Self {
        let (engine, now) = (&world.engine, world.now);
        let mut flows = Vec::new();
        engine.conntrack().each(now, |flow| flows.push(format!("{flow:?}")));
        let mut templates = Vec::new();
        engine
            .affinity()
            .each(engine.ruleset().policy.mode, now, |service, client, template| {
                templates.push(format!("{service} {client} {template:?}"));
            });
        let ruleset = engine.ruleset();
        // With the schedulers' state, loads and counters.
        let services = ruleset.services.iter().map(|service| format!("{service:?}")).collect();
        let rules = match &ruleset.matcher {
            Matcher::Rules(list) => list.entries(),
            Matcher::VirtualServers(_) => Vec::new(),
        };
        let totals = rules.iter().map(|entry| entry.stats.totals());
        Self {
            verdicts: Verdict::all().map(|verdict| engine.count(verdict)).collect(),
            flows,
            templates,
            services,
            rules: totals.map(|totals| (totals.in_packets, totals.in_bytes)).collect(),
        }
    }
}

/// The first step of a kind.
macro_rules! step {
    ($told:expr, $kind:ident) => {
        $told
            .steps
            .iter()
            .find_map(|step| if let Step::$kind(step) = step { Some(step) } else { None })
    };
}

/// What became of a packet, as was told.
struct Seen(Verdict, Explanation);

#[track_caller]
fn told(world: &World, packet: &[u8]) -> Explanation {
    let before = Trace::of(world);
    let told = explain(&world.engine, packet, world.now);
    assert_eq!(Trace::of(world), before, "nothing changes");
    told
}

/// Sends a packet, which must fare as was told: the same verdict, and from and to whom it leaves.
#[track_caller]
fn as_told(world: &mut World, packet: &[u8]) -> Seen {
    let told = told(world, packet);
    let outcome = world.send(packet);
    assert_eq!(told.verdict, outcome.verdict.name(), "{told:#?}");
    assert_eq!(told.reason.as_deref(), outcome.verdict.reason(), "{told:#?}");
    if let (Verdict::Forward, Some(Step::Rewrite(rewrite))) = (outcome.verdict, told.steps.last())
        && !rewrite.of_quoted
    {
        let (source, destination) = packets::endpoints(&outcome.packet);
        assert_eq!(rewrite.destination, destination.into(), "{told:#?}");
        assert!(rewrite.source.is_none_or(|from| from == source.into()), "{told:#?}");
    }
    Seen(outcome.verdict, told)
}

#[track_caller]
fn open_as_told(world: &mut World, case: Case, client: SocketAddr) -> Explanation {
    let Seen(verdict, told) = as_told(world, &packet(case.protocol, client, case.service(), SYN));
    assert_eq!(verdict, Verdict::Forward);
    told
}

#[test]
fn a_first_packet_goes_where_was_told_with_every_scheduler_that_leaves_nothing_to_chance() {
    for case in Case::all() {
        for scheduler in CERTAIN {
            let mut world = case.setup().scheduler(scheduler).weights(&[3, 0, 1, 2]).world();
            for n in 1..=12 {
                let client = case.client(n, 40_000);
                // sh, dh and mh refuse clients of a drained backend.
                let first = packet(case.protocol, client, case.service(), SYN);
                let Seen(_, told) = as_told(&mut world, &first);
                assert!(!told.by_chance, "{scheduler}");
            }
        }
    }
}

#[test]
fn a_choice_by_chance_is_said_to_be_one_with_all_who_may_be_chosen() {
    for case in Case::all() {
        for scheduler in ["random", "twos"] {
            let world = case.setup().scheduler(scheduler).weights(&[1, 0, 2]).world();
            let told = told(&world, &packet(case.protocol, case.client(1, 1), case.service(), SYN));
            assert!(told.by_chance);
            let scheduler = step!(told, Scheduler);
            let scheduler = scheduler.unwrap();
            let weights: Vec<u32> = scheduler.candidates.iter().map(|each| each.weight).collect();
            assert_eq!(weights, [1, 0, 2]);
            assert_ne!(scheduler.pick, Some(case.backend(2).into()), "it is drained");
        }
    }
}

#[test]
fn packets_of_a_flow_follow_it_in_both_directions_until_it_is_over() {
    for case in Case::all() {
        let mut world = case.setup().world();
        open_as_told(&mut world, case, case.client(1, 40_000));
        let flow = Flow {
            protocol: case.protocol,
            client: case.client(1, 40_000),
            service: case.service(),
            backend: case.backend(1),
            source: case.client(1, 40_000),
        };
        for flags in [SYN | ACK, ACK, FIN | ACK, ACK, RST] {
            as_told(&mut world, &packet(case.protocol, flow.backend, flow.source, flags));
            let Seen(verdict, told) = as_told(
                &mut world,
                &packet(case.protocol, flow.client, flow.service, flags & !SYN),
            );
            assert_eq!(verdict, Verdict::Forward);
            assert_eq!(told.service.as_deref(), Some("web"));
            assert_eq!(told.backend, Some(flow.backend.into()));
        }
    }
}

#[test]
fn an_icmp_error_about_a_flow_goes_where_was_told() {
    for case in Case::all() {
        let mut world = case.setup().world();
        let flow = world.connect(case.protocol, case.client(1, 40_000), case.service());
        let to_backend = packet(case.protocol, flow.source, flow.backend, ACK);
        let to_client = packet(case.protocol, flow.service, flow.client, ACK);
        for about in [to_backend, to_client] {
            let error = packets::icmp_error(case.client(9, 1).ip(), IcmpError::HostUnreachable, &about);
            let told = told(&world, &error);
            let outcome = world.send(&error);
            assert_eq!(outcome.verdict, Verdict::Forward);
            assert_eq!(told.verdict, "forward");
            let rewrite = step!(told, Rewrite).unwrap();
            let (_, receiver) = packets::addresses(&outcome.packet);
            assert!(
                rewrite.of_quoted && rewrite.destination.address == receiver,
                "{told:#?}"
            );
        }
    }
}

#[test]
fn a_client_that_opens_anew_from_an_old_port_gets_the_choice_that_was_told() {
    for case in Case::tcp() {
        for scheduler in CERTAIN {
            let mut world = case.setup().scheduler(scheduler).world();
            for _ in 0..3 {
                let flow = world.connect(case.protocol, case.client(1, 40_000), case.service());
                world.client_closes(&flow);
                let told = open_as_told(&mut world, case, flow.client);
                let reopened = told
                    .steps
                    .iter()
                    .any(|step| matches!(step, Step::Flow(flow) if flow.outcome == "reopened"));
                assert!(reopened, "{told:#?}");
                world.seconds(1_000);
            }
        }
    }
}

#[test]
fn client_affinity_is_told_and_not_made() {
    for case in Case::all() {
        let mut world = case.setup().keys("persistence = { timeout = \"60s\" }").world();
        for (port, seconds) in [(1, 0), (2, 0), (3, 1_000), (4, 30), (5, 30)] {
            world.seconds(seconds);
            let told = open_as_told(&mut world, case, case.client(1, port));
            assert!(told.steps.iter().any(|step| matches!(step, Step::Affinity(_))));
        }
    }
}

#[test]
fn a_packet_of_no_service_passes_and_one_without_a_backend_is_refused_as_told() {
    for case in Case::all() {
        let mut world = case.setup().weights(&[0, 0]).world();
        let (client, service) = (case.client(1, 1), case.service());
        let Seen(verdict, _) = as_told(&mut world, &packet(case.protocol, client, case.external(), SYN));
        assert_eq!(verdict, Verdict::Pass(Pass::NoMatch));
        let Seen(verdict, _) = as_told(&mut world, &packet(case.protocol, client, service, SYN));
        assert_eq!(verdict, Verdict::Reject(Reject::NoBackend));
    }
    for case in Case::tcp() {
        let mut world = case.setup().world();
        let Seen(verdict, _) = as_told(
            &mut world,
            &packet(case.protocol, case.client(1, 1), case.service(), ACK),
        );
        assert_eq!(verdict, Verdict::Drop(Drop::NotSyn));
    }
}

#[test]
fn a_flow_that_loses_its_backend_fares_as_told() {
    for rule in ["preserve", "reset", "reschedule"] {
        for case in Case::all() {
            let setup = case
                .setup()
                .tables(&format!("[conntrack]\non_backend_removed = \"{rule}\""));
            for flags in [SYN, ACK, RST] {
                let mut world = setup.world();
                let flow = world.connect(case.protocol, case.client(1, 1), case.service());
                world.reload(&setup.clone().backends(&[(2, 1), (3, 1)]).toml());
                as_told(
                    &mut world,
                    &packet(case.protocol, flow.backend, flow.source, flags & !SYN | ACK),
                );
                as_told(&mut world, &packet(case.protocol, flow.client, flow.service, flags));
            }
        }
    }
}

#[test]
fn rules_are_told_in_their_order_with_the_condition_that_is_not_met() {
    for case in Case::all() {
        let rules =
            (0..30).map(|number| format!("[[rules]]\nsource_port = \"{}\"\naction = \"drop\"\n", 50_000 + number));
        let rules = rules.collect::<String>() + "[[rules]]\nsource_port = \"40000\"\naction = \"reject\"\n";
        let mut world = case.in_mode(Mode::Iptables).setup().tables(&rules).world();
        let Seen(verdict, told) = as_told(
            &mut world,
            &packet(case.protocol, case.client(1, 40_000), case.service(), SYN),
        );
        assert_eq!(verdict, Verdict::Reject(Reject::Rule));
        let rules = step!(told, Rules);
        let rules = rules.unwrap();
        assert_eq!(
            (rules.looked_at.len(), rules.not_shown, rules.matched),
            (21, 10, Some(31))
        );
        assert_eq!(rules.looked_at[0].why, "source port is 40000, not 50000");
        // The service's own rule comes after them.
        open_as_told(&mut world, case, case.client(1, 1));
    }
}

#[test]
fn a_rule_that_matches_by_chance_is_said_to_do_so() {
    for case in Case::all() {
        let rule = "[[rules]]\nprobability = 0.25\naction = \"drop\"";
        let world = case.in_mode(Mode::Iptables).setup().tables(rule).world();
        let told = told(&world, &packet(case.protocol, case.client(1, 1), case.service(), SYN));
        assert!(told.by_chance);
        assert_eq!(told.verdict, "forward");
        let why = step!(told, Rules).map(|rules| rules.looked_at[0].why.clone());
        assert_eq!(why.as_deref(), Some("by chance, 25.0000 % of such packets"));
    }
}

#[test]
fn masquerading_is_told_with_its_addresses() {
    for case in Case::all() {
        let pool = if case.v6 { "fd00:198::/128" } else { "198.18.0.1/32" };
        let nat = format!("[nat]\nmasquerade = \"always\"\npool = [\"{pool}\"]");
        let mut world = case.setup().tables(&nat).world();
        let told = open_as_told(&mut world, case, case.client(1, 1));
        let source = step!(told, Source);
        let source = source.unwrap();
        assert!(source.masqueraded && source.source.is_none());
        assert_eq!(source.addresses, [pool]);
    }
}

#[test]
fn a_client_port_that_another_flow_to_the_backend_has_is_told() {
    for (masquerade, verdict) in [("auto", Verdict::Forward), ("never", Verdict::Drop(Drop::TupleInUse))] {
        for case in Case::all() {
            let pool = if case.v6 { "fd00:198::/124" } else { "198.18.0.0/28" };
            let nat = format!("[nat]\nmasquerade = \"{masquerade}\"\npool = [\"{pool}\"]");
            let external = format!("external_addresses = [\"{}\"]", case.external().ip());
            let mut world = case.setup().tables(&nat).keys(&external).weights(&[1]).world();
            open_as_told(&mut world, case, case.client(1, 1));
            let Seen(seen, _) = as_told(
                &mut world,
                &packet(case.protocol, case.client(1, 1), case.external(), SYN),
            );
            assert_eq!(seen, verdict);
        }
    }
}

#[test]
fn a_full_table_is_told() {
    for case in Case::all() {
        let mut world = case.setup().tables("[conntrack]\nmax_flows = 2").world();
        for n in 1..=2 {
            world.connect(case.protocol, case.client(n, 1), case.service());
        }
        let Seen(verdict, _) = as_told(
            &mut world,
            &packet(case.protocol, case.client(3, 1), case.service(), SYN),
        );
        assert_eq!(verdict, Verdict::Drop(Drop::TableFull));
    }
}

#[test]
fn a_tuple_stands_for_a_first_packet() {
    for case in Case::all() {
        let mut world = case.setup().world();
        let (client, service) = (case.client(1, 40_000), case.service());
        let question = Question::First {
            protocol: case.protocol,
            source: client.into(),
            destination: service.into(),
        };
        let tuple = told(&world, &explain::packet(&question).unwrap());
        let whole = open_as_told(&mut world, case, client);
        assert_eq!(tuple.steps[1..], whole.steps[1..]);
        assert_eq!((tuple.verdict, tuple.backend), (whole.verdict, whole.backend));
    }
}

#[test]
fn bytes_that_are_no_packet_or_have_no_ports_fare_as_told() {
    for case in Case::all() {
        let mut world = case.setup().world();
        let (client, service) = (case.client(1, 1), case.service());
        as_told(&mut world, &packets::ping(client.ip(), service.ip()));
        as_told(&mut world, &packet(Protocol::Sctp, client, service, SYN));
        let short = &packet(case.protocol, client, service, SYN)[..HEADER];
        let told = told(&world, short);
        assert_eq!(
            (told.verdict.as_ref(), told.reason.as_deref()),
            ("drop", Some("malformed"))
        );
        let (verdict, reason) = (explain(&world.engine, &packets::arp(), world.now), Some("not_ip"));
        assert_eq!((verdict.verdict.as_ref(), verdict.reason.as_deref()), ("pass", reason));
    }
}

#[test]
fn a_fragment_fares_as_told() {
    for case in Case::tcp_and_udp() {
        let mut world = case.setup().world();
        let flow = world.connect(case.protocol, case.client(2, 9), case.service());
        let payload = [7; 3_000];
        let request = match case.protocol {
            Protocol::Tcp => packets::tcp(flow.client, flow.service, ACK, 1, 1, &payload),
            Protocol::Udp | Protocol::Sctp => packets::udp(flow.client, flow.service, &payload),
        };
        let fragments = fragments::over(&request, 7, 1_500);
        for (place, verdict) in [(1, Verdict::Hold), (0, Verdict::Forward), (2, Verdict::Forward)] {
            let told = told(&world, &fragments[place]);
            assert_eq!(told.verdict, verdict.name(), "{told:#?}");
            assert_eq!(world.send_as(&fragments[place], Checksum::Complete).verdict, verdict);
            if verdict == Verdict::Forward {
                assert_eq!(told.backend, Some(flow.backend.into()), "{told:#?}");
            }
        }
    }
}

#[test]
fn of_a_packet_between_strangers_it_is_told_that_it_does_not_come_to_lbd() {
    let case = Case::TCP;
    let strangers = packet(Protocol::Tcp, case.client(2, 40_000), case.client(3, 80), SYN);
    let ours = packet(Protocol::Tcp, case.client(2, 40_000), case.service(), SYN);
    let world = case.setup().world();
    let notes = |bytes: &[u8]| explain(&world.engine, bytes, world.now).notes;
    assert!(
        notes(&strangers)[0].contains("does not come to lbd"),
        "{:?}",
        notes(&strangers)
    );
    assert!(notes(&ours).is_empty(), "{:?}", notes(&ours));
}

#[test]
fn an_answer_to_a_connection_past_the_services_is_told_to_end_what_is_left_of_a_flow() {
    let case = Case::TCP;
    let mut world = case.setup().world();
    let flow = world.connect(Protocol::Tcp, case.client(2, 40_000), case.service());
    world.client_closes(&flow);
    let Seen(verdict, told) = as_told(&mut world, &packet(Protocol::Tcp, flow.backend, flow.client, SYN | ACK));
    assert_eq!(verdict, Verdict::Pass(Pass::NoMatch));
    let is_over = |step: &Step| matches!(step, Step::Flow(flow) if flow.outcome == "over");
    assert!(told.steps.iter().any(is_over), "{told:#?}");
}
