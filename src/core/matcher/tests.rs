//! The compiled list against the linear walk: rules, packets and reloads at random, over few values, so that much matches.
//!
//! `LBD_RULE_LISTS=100000 cargo test --release --lib matcher::` looks at that many lists, with some 200 packets each.
use std::convert::identity;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;
use std::sync::Arc;

use ipnet::IpNet;

use super::rules::{Action, Condition, Entry, Origin, Probability, Rule, RuleList};
use super::{Match, Matcher};
use crate::conntrack::timeout::Timeouts;
use crate::flow::{Direction, Endpoint, Protocol};
use crate::packet::fragment::Fragment;
use crate::packet::{Headers, Payload, Ports, TcpFlags, Version};
use crate::policy::{
    BackendSpec, Conntrack, Evaluation, Icmp, Mode, Nat, Policy, ServiceSpec, UnknownReply, UnknownTcp,
};
use crate::ruleset::{Registry, Ruleset};
use crate::scheduler::{Flags, Rng};
use crate::service::Service;

const LISTS: u64 = 600;
const RELOADS: usize = 3;
const PACKETS: usize = 50;

const PROTOCOLS: [Protocol; 3] = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];
const PORTS: [u16; 8] = [0, 1, 79, 80, 81, 443, 30_080, u16::MAX];

fn pick<T: Clone>(rng: &mut Rng, from: &[T]) -> T {
    from[rng.usize(..from.len())].clone()
}

fn address(rng: &mut Rng, v4: bool) -> IpAddr {
    let last = pick(rng, &[0, 1, 2, 3, 4, 7, 8, 255]);
    let far = rng.u8(..8) == 0;
    match v4 {
        true => Ipv4Addr::new(10, 0, u8::from(far), last).into(),
        false => Ipv6Addr::new(0xfd00, 0, 0, u16::from(far), 0, 0, 0, last.into()).into(),
    }
}

fn protocol(rng: &mut Rng) -> Protocol {
    PROTOCOLS[[0, 0, 0, 1, 1, 2][rng.usize(..6)]]
}

const LATER: Fragment = Fragment {
    identification: 7,
    protocol: 6,
    offset: 8,
    length: 8,
    more: false,
    opening: None,
};

fn packet(rng: &mut Rng) -> Headers {
    let v4 = rng.u8(..4) != 0;
    let ports = Ports {
        source: pick(rng, &PORTS),
        destination: pick(rng, &PORTS),
    };
    let (protocol, payload) = match rng.u8(..10) {
        0 => (pick(rng, &[6, 17, 132, 1]), Payload::Fragment(LATER)),
        1 => (1, pick(rng, &[Payload::IcmpError, Payload::Other])),
        2 => (132, Payload::Other),
        3..6 => (17, Payload::Udp(ports)),
        _ => (6, Payload::Tcp(ports, TcpFlags(TcpFlags::SYN))),
    };
    Headers {
        version: if v4 { Version::V4 } else { Version::V6 },
        source: address(rng, v4).into(),
        destination: address(rng, v4).into(),
        protocol,
        transport: 20,
        length: rng.usize(20..1500),
        payload,
    }
}

/// How the conditions of some rules look; most lists have few kinds.
#[derive(Clone)]
struct Kind {
    v4: bool,
    /// For each condition: none, plain, or negated.
    conditions: [Option<bool>; 5],
    prefix_lengths: [u8; 2],
    ranges: [bool; 2],
    probable: bool,
    action: usize,
}

fn kind(rng: &mut Rng) -> Kind {
    let v4 = rng.u8(..4) != 0;
    let mut condition = || [None, None, None, Some(false), Some(false), Some(true)][rng.usize(..6)];
    let conditions = std::array::from_fn(|_| condition());
    let lengths: &[u8] = if v4 {
        &[0, 8, 24, 29, 30, 31, 32, 32]
    } else {
        &[0, 64, 125, 126, 127, 128, 128]
    };
    Kind {
        v4,
        conditions,
        prefix_lengths: [pick(rng, lengths), pick(rng, lengths)],
        ranges: [rng.bool(), rng.bool()],
        probable: rng.u8(..3) == 0,
        action: rng.usize(..6),
    }
}

fn port_range(rng: &mut Rng, wide: bool) -> RangeInclusive<u16> {
    let (a, b) = (pick(rng, &PORTS), pick(rng, &PORTS));
    if wide { a.min(b)..=a.max(b) } else { a..=a }
}

fn rule(rng: &mut Rng, kind: &Kind) -> Rule {
    let network = |rng: &mut Rng, side: usize| IpNet::new(address(rng, kind.v4), kind.prefix_lengths[side]).unwrap();
    let [source, destination, protocol, source_port, destination_port] = kind.conditions;
    let service = format!("s{}", rng.u8(..8));
    Rule {
        name: None,
        source: source.map(|negated| Condition {
            negated,
            value: network(rng, 0),
        }),
        destination: destination.map(|negated| Condition {
            negated,
            value: network(rng, 1),
        }),
        protocol: protocol.map(|negated| Condition {
            negated,
            value: self::protocol(rng),
        }),
        source_port: source_port.map(|negated| Condition {
            negated,
            value: port_range(rng, kind.ranges[0]),
        }),
        destination_port: destination_port.map(|negated| Condition {
            negated,
            value: port_range(rng, kind.ranges[1]),
        }),
        probability: kind.probable.then(|| Probability(rng.u64(1..=1 << 32))),
        action: pick(
            rng,
            &[
                Action::Drop,
                Action::Reject,
                Action::Pass,
                Action::Service(service.clone()),
                Action::Service(service),
                Action::Drop,
            ][kind.action..][..1],
        ),
    }
}

fn rules(rng: &mut Rng) -> Vec<Rule> {
    let kinds: Vec<Kind> = (0..rng.usize(1..6)).map(|_| kind(rng)).collect();
    let count = pick(rng, &[0, 1, 4, 12, 30, 60]);
    (0..count)
        .map(|_| {
            let kind = pick(rng, &kinds);
            rule(rng, &kind)
        })
        .collect()
}

fn service(rng: &mut Rng, name: u8) -> ServiceSpec {
    let v4 = rng.u8(..4) != 0;
    let addresses = rng.usize(..3);
    let port = |rng: &mut Rng| pick(rng, &[0, 79, 80, 80, 81]);
    ServiceSpec {
        name: format!("s{name}"),
        protocol: protocol(rng),
        address: Endpoint::new(address(rng, v4), port(rng)),
        external_addresses: (0..addresses).map(|_| address(rng, v4)).collect(),
        node_port: (rng.u8(..4) == 0).then_some(30_080),
        scheduler: None,
        flags: Flags::default(),
        persistence: None,
        one_packet: false,
        on_backend_removed: None,
        backends: backends(rng, v4),
    }
}

fn backends(rng: &mut Rng, v4: bool) -> Vec<BackendSpec> {
    let count = rng.usize(..3);
    let backend = |rng: &mut Rng| BackendSpec {
        address: Endpoint::new(address(rng, v4), 8080),
        weight: 1,
        upper_threshold: 0,
        lower_threshold: 0,
    };
    (0..count).map(|_| backend(rng)).collect()
}

/// Whether no two services have an address in common, as the validation of the configuration sees to.
fn are_apart(services: &[Arc<ServiceSpec>], nodes: &[IpAddr]) -> bool {
    let mut seen = std::collections::HashSet::new();
    let mut all = services.iter().flat_map(|service| {
        let endpoints = service.endpoints(nodes);
        endpoints.map(|endpoint| (service.protocol, endpoint))
    });
    all.all(|address| seen.insert(address))
}

fn policy(rng: &mut Rng) -> Policy {
    let mut services: Vec<Arc<ServiceSpec>> = Vec::new();
    let sloppy = rng.u8(..8) == 0;
    for name in 0..rng.u8(..8) {
        services.push(Arc::new(service(rng, name)));
        if !sloppy && !are_apart(&services, &[]) {
            services.pop();
        }
    }
    Policy {
        mode: Mode::Iptables,
        shadow: false,
        evaluation: Evaluation::Compiled,
        scheduler: None,
        node_addresses: vec![address(rng, true), address(rng, false)],
        local_addresses: Vec::new(),
        nat: Nat::default(),
        conntrack: Conntrack {
            max_flows: 1,
            on_backend_removed: None,
            unknown_tcp: UnknownTcp::Drop,
            unknown_reply: UnknownReply::Drop,
            expire_quiescent_template: true,
            conn_reuse: true,
            timeouts: Timeouts::default(),
        },
        icmp: Icmp::default(),
        rules: rules(rng),
        services,
    }
}

fn at(policy: &mut Policy, place: usize) -> &mut ServiceSpec {
    Arc::make_mut(&mut policy.services[place])
}

/// One of the changes that operators make.
fn edit(policy: &mut Policy, rng: &mut Rng) {
    let count = policy.services.len();
    let place = rng.usize(..=count);
    match rng.u8(..10) {
        0 => policy.rules = rules(rng),
        1 => policy.node_addresses = vec![address(rng, true)],
        2 | 3 => {
            let free = (0..20).find(|name| !policy.services.iter().any(|service| service.name == format!("s{name}")));
            let new = Arc::new(service(rng, free.unwrap()));
            policy.services.insert(place, new);
        }
        4 if place < count => drop(policy.services.remove(place)),
        5 if place < count => {
            let moved = policy.services.remove(place);
            policy.services.insert(rng.usize(..count), moved);
        }
        6 if place < count => at(policy, place).external_addresses.push(address(rng, true)),
        _ if place < count => {
            let v4 = policy.services[place].address.address.is_ipv4();
            at(policy, place).backends = backends(rng, v4);
        }
        _ => {}
    }
}

/// A ruleset that was changed step by step, and the same list built anew and walked.
struct Pair {
    registry: Registry,
    ruleset: Ruleset,
    reference: RuleList,
}

fn linear(policy: &Policy) -> Policy {
    Policy {
        evaluation: Evaluation::Linear,
        ..policy.clone()
    }
}

impl Pair {
    fn new(policy: &Policy) -> Self {
        let mut registry = Registry::new(1);
        let ruleset = registry.prepare(Arc::new(policy.clone()), None).commit(identity);
        let reference = RuleList::new(&linear(policy), &ruleset.services, None, 1);
        Self {
            registry,
            ruleset,
            reference,
        }
    }

    fn reload(&mut self, policy: &Policy) {
        let prepared = self.registry.prepare(Arc::new(policy.clone()), Some(&self.ruleset));
        self.ruleset = prepared.commit(identity);
        self.reference = RuleList::new(&linear(policy), &self.ruleset.services, Some(&self.reference), 1);
    }

    fn compare(&self, headers: &Headers, rng: &mut Rng, context: &str) -> bool {
        let (mut one, mut other) = (rng.fork(), rng.clone());
        other.clone_from(&one);
        let tuple = headers.tuple();
        let found = self.ruleset.matcher.find(headers, tuple.as_ref(), &mut one, 0);
        let walked = self.reference.find(headers, tuple.as_ref(), &mut other, 0);
        assert!(
            is_same(found, walked),
            "{found:?} is not {walked:?} for {headers:?}, {context}"
        );
        assert_eq!(
            one.u64(..),
            other.u64(..),
            "other random draws for {headers:?}, {context}"
        );
        !matches!(found, Match::None)
    }

    fn compare_counts(&self, context: &str) {
        let Matcher::Rules(list) = &self.ruleset.matcher else {
            panic!("iptables mode has a list")
        };
        assert_eq!(counts(&list.entries()), counts(&self.reference.entries()), "{context}");
    }
}

fn is_same(one: Match<'_>, other: Match<'_>) -> bool {
    match (one, other) {
        (Match::Service(one), Match::Service(other)) => Arc::ptr_eq(one, other),
        (one, other) => std::mem::discriminant(&one) == std::mem::discriminant(&other),
    }
}

fn counts(entries: &[Entry]) -> Vec<(&Origin, u64, u64)> {
    let count = |entry: &Entry| {
        let totals = entry.stats.totals();
        (totals.in_packets, totals.in_bytes)
    };
    entries
        .iter()
        .map(|entry| (&entry.origin, count(entry).0, count(entry).1))
        .collect()
}

#[test]
fn the_compiled_list_answers_draws_and_counts_as_the_walk_does_over_any_reloads() {
    let lists = std::env::var("LBD_RULE_LISTS").map_or(LISTS, |count| count.parse().unwrap());
    let (mut packets, mut matches) = (0_usize, 0_usize);
    for seed in 0..lists {
        let mut rng = Rng::with_seed(seed);
        let mut policy = policy(&mut rng);
        let mut pair = Pair::new(&policy);
        for reload in 0..=RELOADS {
            let context = format!("seed {seed}, reload {reload}");
            for _ in 0..PACKETS {
                matches += usize::from(pair.compare(&packet(&mut rng), &mut rng, &context));
                packets += 1;
            }
            pair.compare_counts(&context);
            (0..rng.u8(1..3)).for_each(|_| edit(&mut policy, &mut rng));
            pair.reload(&policy);
        }
    }
    assert!(
        matches * 4 > packets,
        "{matches} of {packets} packets matched: the test tests little"
    );
}

#[test]
fn a_ruleset_that_was_changed_step_by_step_knows_what_one_made_at_once_knows() {
    for seed in 0..200 {
        let mut rng = Rng::with_seed(seed);
        let mut policy = Policy {
            mode: Mode::Ipvs,
            ..policy(&mut rng)
        };
        let mut registry = Registry::new(1);
        let mut ruleset = registry.prepare(Arc::new(policy.clone()), None).commit(identity);
        for _ in 0..6 {
            let fresh = Registry::new(1)
                .prepare(Arc::new(policy.clone()), None)
                .commit(identity);
            for _ in 0..PACKETS {
                let packet = packet(&mut rng);
                assert_eq!(
                    answers(&ruleset, &packet),
                    answers(&fresh, &packet),
                    "seed {seed}: {packet:?}"
                );
            }
            edit(&mut policy, &mut rng);
            if rng.u8(..8) == 0 {
                policy.mode = pick(&mut rng, &[Mode::Ipvs, Mode::Iptables]);
            }
            ruleset = registry
                .prepare(Arc::new(policy.clone()), Some(&ruleset))
                .commit(identity);
        }
    }
}

/// What a ruleset says about a packet, but for rules with a probability.
fn answers(ruleset: &Ruleset, headers: &Headers) -> (Option<String>, bool, bool, bool) {
    let tuple = headers.tuple();
    let mut rng = Rng::with_seed(7);
    let name = match ruleset.matcher.find(headers, tuple.as_ref(), &mut rng, 0) {
        Match::Service(service) => Some(describe(service)),
        Match::Drop | Match::Reject | Match::Pass | Match::None => None,
    };
    (
        name,
        ruleset.is_known(&headers.source.into()),
        ruleset.is_known(&headers.destination.into()),
        tuple.is_some_and(|tuple| ruleset.likely(&tuple.into()) == Direction::Original),
    )
}

#[test]
fn where_two_services_have_one_address_both_modes_serve_the_first_of_them() {
    let mut rng = Rng::with_seed(1);
    let mut packet = packet(&mut rng);
    let ports = Ports {
        source: 1,
        destination: 80,
    };
    (packet.version, packet.protocol) = (Version::V4, 6);
    packet.payload = Payload::Tcp(ports, TcpFlags(TcpFlags::SYN));
    packet.source = IpAddr::from([10, 0, 8, 1]).into();
    packet.destination = IpAddr::from([10, 0, 9, 1]).into();
    let spec = |rng: &mut Rng, name| ServiceSpec {
        protocol: Protocol::Tcp,
        address: Endpoint::new([10, 0, 9, 1].into(), 80),
        node_port: None,
        external_addresses: Vec::new(),
        ..service(rng, name)
    };
    let mut policy = Policy {
        rules: Vec::new(),
        services: vec![Arc::new(spec(&mut rng, 0)), Arc::new(spec(&mut rng, 1))],
        ..policy(&mut rng)
    };
    for mode in [Mode::Ipvs, Mode::Iptables] {
        policy.mode = mode;
        let ruleset = Registry::new(1)
            .prepare(Arc::new(policy.clone()), None)
            .commit(identity);
        let (found, ..) = answers(&ruleset, &packet);
        assert!(
            found.as_ref().is_some_and(|name| name.starts_with("s0 ")),
            "{mode:?}: {found:?}"
        );
    }
}

fn describe(service: &Service) -> String {
    let backends: Vec<Endpoint> = service.backends.iter().map(|backend| backend.address).collect();
    format!("{} {:?} {backends:?}", service.identity.name, service.endpoints)
}

#[test]
fn a_rule_keeps_its_counts_while_its_address_is_the_same_services() {
    let mut rng = Rng::with_seed(1);
    let mut policy = Policy {
        rules: Vec::new(),
        services: vec![Arc::new(service(&mut rng, 0)), Arc::new(service(&mut rng, 1))],
        ..policy(&mut rng)
    };
    for (place, last) in [(0, 1), (1, 2)] {
        let spec = at(&mut policy, place);
        spec.address = Endpoint::new([10, 0, 9, last].into(), 80);
        (spec.protocol, spec.node_port) = (Protocol::Tcp, None);
        spec.external_addresses.clear();
    }
    let mut pair = Pair::new(&policy);
    let counted = |pair: &Pair| {
        let mut headers = packet(&mut Rng::with_seed(1));
        let ports = Ports {
            source: 1,
            destination: 80,
        };
        (headers.protocol, headers.payload) = (6, Payload::Tcp(ports, TcpFlags(TcpFlags::SYN)));
        for last in [1, 2] {
            headers.destination = IpAddr::from([10, 0, 9, last]).into();
            assert!(pair.compare(&headers, &mut Rng::with_seed(1), "both are there"));
        }
        pair.compare_counts("both count alike");
        let entries = pair.reference.entries();
        [0, 1].map(|place: usize| entries[place].stats.totals().in_packets)
    };
    assert_eq!(counted(&pair), [1, 1]);
    at(&mut policy, 0).backends = backends(&mut rng, true);
    pair.reload(&policy);
    assert_eq!(counted(&pair), [2, 2], "other backends");
    policy.services.swap(0, 1);
    pair.reload(&policy);
    assert_eq!(counted(&pair), [3, 3], "another order");
    let addresses = [0, 1].map(|place: usize| policy.services[place].address);
    at(&mut policy, 0).address = addresses[1];
    at(&mut policy, 1).address = addresses[0];
    pair.reload(&policy);
    assert_eq!(counted(&pair), [1, 1], "another service's address");
    at(&mut policy, 0).name = "s9".to_owned();
    pair.reload(&policy);
    assert_eq!(counted(&pair), [1, 2], "another name");
}
