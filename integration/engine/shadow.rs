//! `shadow = true`: what the other mode would have done, counted and named, without a trace in what is done.
use lbd::flow::Protocol;
use lbd::matcher::Matcher;
use lbd::policy::Mode;
use lbd::shadow::{Counts, Disagreement, Outcome, REMEMBERED};
use lbd::verdict::{Drop, Pass, Reject, Verdict};

use crate::packets::{ACK, ping};
use crate::world::{Case, Setup, World};

const SHADOW: &str = "shadow = true\n";
const NO_GUESTS: &str = "[[rules]]\nsource = \"198.51.100.0/24\"\naction = \"drop\"\n";

fn setup(mode: Mode, rules: &str) -> Setup {
    Case::TCP.in_mode(mode).setup().tables(&format!("{SHADOW}{rules}"))
}

fn counts(world: &World) -> Counts {
    let ruleset = world.engine.ruleset();
    ruleset.shadow.as_ref().expect("a shadow").record().counts()
}

fn agreed(packets: u64) -> Counts {
    Counts {
        agreed: packets,
        ..Counts::default()
    }
}

fn disagreements(world: &World) -> Vec<Disagreement> {
    let ruleset = world.engine.ruleset();
    ruleset.shadow.as_ref().expect("a shadow").record().disagreements()
}

fn web(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Service(_, name) if name == "web")
}

#[test]
fn without_the_setting_there_is_no_shadow() {
    let world = Case::TCP.setup().world();
    assert!(world.engine.ruleset().shadow.is_none());
}

#[test]
fn where_both_modes_do_the_same_all_new_flows_agree() {
    for case in Case::all() {
        let mut world = case.setup().tables(SHADOW).world();
        let flow = world.connect(case.protocol, case.client(2, 40_000), case.service());
        world.up(&flow, ACK);
        assert_eq!(counts(&world), agreed(1), "packets of a known flow are not looked at");
        let stranger = world.try_open(case.protocol, case.client(2, 40_001), case.external());
        assert_eq!(stranger, Verdict::Pass(Pass::NoMatch));
        assert_eq!(counts(&world), agreed(2), "both leave a stranger alone");
        assert!(disagreements(&world).is_empty());
    }
}

#[test]
fn in_ipvs_mode_a_rule_that_would_drop_is_named_and_nothing_is_dropped() {
    let mut world = setup(Mode::Ipvs, NO_GUESTS).world();
    let service = Case::TCP.service();
    world.open(Protocol::Tcp, "198.51.100.7:40000", service);
    world.open(Protocol::Tcp, "198.51.100.8:40000", service);
    world.open(Protocol::Tcp, "10.1.0.2:40000", service);
    let expected = Counts {
        agreed: 1,
        by_chance: 0,
        disagreed: 2,
    };
    assert_eq!(counts(&world), expected);
    let [only] = &disagreements(&world)[..] else {
        panic!("{:#?}", disagreements(&world))
    };
    assert_eq!((only.protocol(), only.count, only.last), (6, 2, world.now));
    assert_eq!(only.destination(), (service.ip(), Some(80)));
    assert_eq!(only.source, ("198.51.100.8".parse().unwrap(), Some(40_000)));
    assert!(web(&only.live().outcome) && only.live().rule.is_none());
    assert_eq!((&only.shadow().outcome, only.shadow().rule), (&Outcome::Drop, Some(1)));
}

#[test]
fn in_iptables_mode_what_a_rule_drops_is_named_and_stays_dropped() {
    let mut world = setup(Mode::Iptables, NO_GUESTS).world();
    let verdict = world.try_open(Protocol::Tcp, "198.51.100.7:40000", Case::TCP.service());
    assert_eq!(verdict, Verdict::Drop(Drop::Rule));
    let [only] = &disagreements(&world)[..] else {
        panic!("{:#?}", disagreements(&world))
    };
    assert_eq!((&only.live().outcome, only.live().rule), (&Outcome::Drop, Some(1)));
    assert!(web(&only.shadow().outcome));
}

#[test]
fn a_rule_that_passes_what_is_no_services_anyway_is_no_disagreement() {
    let mut world = setup(
        Mode::Iptables,
        "[[rules]]\naction = \"pass\"\ndestination = \"10.9.0.0/16\"",
    )
    .world();
    let verdict = world.try_open(Protocol::Tcp, "10.1.0.2:40000", "10.9.0.1:80");
    assert_eq!(verdict, Verdict::Pass(Pass::Rule));
    assert_eq!(counts(&world), agreed(1));
}

#[test]
fn packets_without_ports_are_compared_too() {
    let mut world = setup(Mode::Ipvs, "[[rules]]\naction = \"drop\"").world();
    world.send(&ping("10.1.0.2".parse().unwrap(), "10.96.0.10".parse().unwrap()));
    let [only] = &disagreements(&world)[..] else {
        panic!("{:#?}", disagreements(&world))
    };
    assert_eq!((only.protocol(), only.destination().1), (1, None));
    assert_eq!(only.live().outcome, Outcome::Pass);
}

/// A first packet, and what becomes of it.
fn knock(world: &mut World, port: u16) {
    let verdict = world.try_open(Protocol::Tcp, Case::TCP.client(2, 40_000 + port), Case::TCP.service());
    let possible = [
        Verdict::Forward,
        Verdict::Drop(Drop::Rule),
        Verdict::Reject(Reject::Rule),
    ];
    assert!(possible.contains(&verdict), "{verdict:?}");
}

#[test]
fn what_is_up_to_a_probability_is_no_disagreement() {
    for mode in [Mode::Ipvs, Mode::Iptables] {
        let mut world = setup(mode, "[[rules]]\nprobability = 0.5\naction = \"drop\"").world();
        for port in 0..100 {
            knock(&mut world, port);
        }
        let all_by_chance = Counts {
            by_chance: 100,
            ..Counts::default()
        };
        assert_eq!(counts(&world), all_by_chance);
        assert!(disagreements(&world).is_empty());
    }
}

#[test]
fn where_no_draw_could_make_them_agree_they_disagree() {
    for mode in [Mode::Ipvs, Mode::Iptables] {
        let rules = "[[rules]]\nprobability = 0.5\naction = \"drop\"\n[[rules]]\naction = \"reject\"";
        let mut world = setup(mode, rules).world();
        for port in 0..100 {
            knock(&mut world, port);
        }
        assert_eq!(counts(&world).disagreed, 100);
        let named = disagreements(&world);
        let rules: u64 = named.iter().map(|each| each.count).sum();
        assert_eq!(rules, 100);
        // Live, both rules struck; in the shadow nothing is drawn.
        assert_eq!(named.len(), if mode == Mode::Iptables { 2 } else { 1 });
    }
}

#[test]
fn a_rule_that_strikes_always_leaves_nothing_to_chance() {
    let rules = "[[rules]]\nprotocol = \"udp\"\naction = \"reject\"\n[[rules]]\nprobability = 1.0\naction = \"drop\"";
    let mut world = setup(Mode::Ipvs, rules).world();
    world.open(Protocol::Tcp, "10.1.0.2:40000", Case::TCP.service());
    assert_eq!(counts(&world).disagreed, 1);
    assert_eq!(disagreements(&world)[0].shadow().rule, Some(2));
}

/// The backends of a hundred flows, and the packets that each rule counts.
fn trace(mode: Mode, scheduler: &'static str, shadow: &str) -> (Vec<Option<u16>>, Vec<u64>) {
    let rules = "[[rules]]\nprobability = 0.5\naction = \"drop\"\n";
    let setup = Case::UDP.in_mode(mode).setup().scheduler(scheduler);
    let mut world = setup.tables(&format!("{shadow}{rules}")).world();
    let mut ports = Vec::new();
    for port in 0..100 {
        let client = Case::UDP.client(2, 40_000 + port);
        let is_open = world.try_open(Protocol::Udp, client, Case::UDP.service()) == Verdict::Forward;
        let flow = is_open.then(|| world.open(Protocol::Udp, client, Case::UDP.service()));
        ports.push(flow.map(|flow| match flow.backend.ip() {
            std::net::IpAddr::V4(address) => u16::from(address.octets()[3]),
            std::net::IpAddr::V6(_) => 0,
        }));
    }
    let ruleset = world.engine.ruleset();
    let lists = [
        Some(&ruleset.matcher),
        ruleset.shadow.as_ref().map(|shadow| shadow.matcher()),
    ];
    let counted = lists.into_iter().flatten().flat_map(|matcher| match matcher {
        Matcher::Rules(list) => list.entries(),
        Matcher::VirtualServers(_) => Vec::new(),
    });
    (ports, counted.map(|entry| entry.stats.totals().in_packets).collect())
}

#[test]
fn no_choice_and_no_count_is_another_one_because_of_a_shadow() {
    for scheduler in ["random", "rr"] {
        let live = trace(Mode::Iptables, scheduler, "");
        assert_eq!(trace(Mode::Iptables, scheduler, SHADOW), live);
        let (choices, counted) = trace(Mode::Ipvs, scheduler, SHADOW);
        assert_eq!(choices, trace(Mode::Ipvs, scheduler, "").0);
        assert_eq!(counted, [0, 0], "the shadow's rules count nothing");
    }
}

#[test]
fn a_shadow_follows_reloads_and_goes_on_counting() {
    let mut world = setup(Mode::Ipvs, NO_GUESTS).world();
    world.open(Protocol::Tcp, "198.51.100.7:40000", Case::TCP.service());
    world.reload(&setup(Mode::Ipvs, "").toml());
    world.open(Protocol::Tcp, "198.51.100.7:40001", Case::TCP.service());
    let expected = Counts {
        agreed: 1,
        by_chance: 0,
        disagreed: 1,
    };
    assert_eq!(counts(&world), expected);
    world.reload(
        &setup(Mode::Ipvs, "")
            .keys("external_addresses = [\"203.0.113.10\"]")
            .toml(),
    );
    world.open(Protocol::Tcp, "198.51.100.7:40002", Case::TCP.external());
    assert_eq!(counts(&world).agreed, 2, "it knows the new address");
    world.reload(&Case::TCP.setup().toml());
    assert!(world.engine.ruleset().shadow.is_none(), "it is gone with the setting");
}

#[test]
fn a_switch_of_the_mode_turns_the_shadow_round_and_counts_from_zero() {
    let mut world = setup(Mode::Ipvs, NO_GUESTS).world();
    world.open(Protocol::Tcp, "198.51.100.7:40000", Case::TCP.service());
    world.reload(&setup(Mode::Iptables, NO_GUESTS).toml());
    assert_eq!(counts(&world), Counts::default());
    let verdict = world.try_open(Protocol::Tcp, "198.51.100.7:40001", Case::TCP.service());
    assert_eq!(verdict, Verdict::Drop(Drop::Rule));
    assert_eq!(counts(&world).disagreed, 1);
    assert!(web(&disagreements(&world)[0].shadow().outcome));
}

#[test]
fn the_disagreements_that_were_seen_last_are_remembered_and_each_is_told_once() {
    let mut world = setup(Mode::Iptables, "[[rules]]\naction = \"reject\"").world();
    let open = |world: &mut World, n: u16| {
        let verdict = world.try_open(Protocol::Tcp, "10.1.0.2:40000", format!("10.9.0.1:{n}"));
        assert_eq!(verdict, Verdict::Reject(Reject::Rule));
    };
    let many = REMEMBERED as u16 + 4;
    (1..=many).for_each(|port| open(&mut world, port));
    (1..=many).for_each(|port| open(&mut world, port));
    let remembered = disagreements(&world);
    assert_eq!(remembered.len(), REMEMBERED);
    assert_eq!(remembered[0].destination().1, Some(many), "the latest comes first");
    let ruleset = world.engine.ruleset();
    let record = ruleset.shadow.as_ref().unwrap().record();
    let told = |most| record.news(most).len();
    assert_eq!((told(4), told(1000), told(4)), (4, usize::from(many) - 4, 0));
}
