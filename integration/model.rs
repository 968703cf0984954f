//! Random operations on the engine and on a slow and obvious model of it, side by side: packets, reloads, mode switches
//! and time. After each one both must agree on the verdict, the ends of the packet, the flows and the backends' loads.
#![allow(
    clippy::unwrap_used,
    reason = "a test ends at the first surprise, in its helpers too"
)]

#[path = "support/packets.rs"]
mod packets;
#[path = "support/reference.rs"]
mod reference;
#[path = "support/world.rs"]
mod world;

use std::net::SocketAddr;
use std::time::Duration;

use proptest::prelude::*;

use lbd::flow::Protocol;
use lbd::verdict::Verdict;

use packets::{ACK, FIN, PSH, RST, SYN};
use reference::{Ends, Expected, Model, Removed, Rules};
use world::{Case, World, packet};

#[derive(Clone, Debug)]
enum Op {
    /// From a client that may have no flow.
    Client {
        protocol: Protocol,
        n: u16,
        port: u16,
        to: usize,
        flags: u8,
    },
    /// Of a flow that there is or was.
    Flow {
        which: prop::sample::Index,
        up: bool,
        flags: u8,
    },
    Wait(Duration),
    Reload(Rules),
}

fn flags() -> impl Strategy<Value = u8> {
    prop_oneof![
        4 => Just(SYN), 4 => Just(ACK), 2 => Just(SYN | ACK), 3 => Just(FIN | ACK), 2 => Just(RST), 1 => Just(PSH),
        1 => Just(RST | ACK), 1 => 0..64_u8,
    ]
}

fn rules() -> impl Strategy<Value = Rules> {
    let backends = Just((1..=5_u16).collect::<Vec<_>>()).prop_shuffle();
    let weights = prop::collection::vec(prop_oneof![1 => Just(0_u32), 4 => 1..4_u32], 5);
    let removed = prop_oneof![Just(Removed::Preserve), Just(Removed::Reset), Just(Removed::Reschedule)];
    let max_flows = prop_oneof![2 => Just(1_000_usize), 2 => Just(10), 1 => 1..6_usize];
    (
        any::<bool>(),
        backends,
        weights,
        0..6_usize,
        removed,
        any::<bool>(),
        any::<bool>(),
        max_flows,
    )
        .prop_map(
            |(iptables, backends, weights, count, removed, masquerade, persistent, max_flows)| Rules {
                iptables,
                backends: backends.into_iter().zip(weights).take(count).collect(),
                removed,
                masquerade,
                persistent,
                max_flows,
                banned: Case::TCP.client(4, 0),
            },
        )
}

fn protocol() -> impl Strategy<Value = Protocol> {
    prop_oneof![Just(Protocol::Tcp), Just(Protocol::Udp), Just(Protocol::Sctp)]
}

/// Something else to say, in SCTP: a chunk, so that handshakes come about (INIT, INIT ACK, COOKIE ECHO, COOKIE ACK).
const fn chunk(flags: u8) -> u8 {
    const SYN_ACK: u8 = SYN | ACK;
    const FIN_ACK: u8 = FIN | ACK;
    const RST_ACK: u8 = RST | ACK;
    match flags {
        SYN => 1,
        SYN_ACK => 2,
        PSH => 10,
        ACK => 11,
        FIN_ACK => 7,
        RST_ACK => 8,
        RST => 6,
        other => other % 16,
    }
}

fn op() -> impl Strategy<Value = Op> {
    let wait = prop_oneof![3 => 0..3_000_u64, 2 => 0..130_000_u64, 1 => 0..1_000_000_u64, 1 => (0..1_000_u64).prop_map(|s| s * 1_000)];
    prop_oneof![
        6 => (protocol(), 1..5_u16, 1..4_u16, 0..3_usize, flags())
            .prop_map(|(protocol, n, port, to, flags)| Op::Client { protocol, n, port, to, flags }),
        12 => (any::<prop::sample::Index>(), any::<bool>(), flags())
            .prop_map(|(which, up, flags)| Op::Flow { which, up, flags }),
        3 => wait.prop_map(|millis| Op::Wait(Duration::from_millis(millis))),
        1 => rules().prop_map(Op::Reload),
    ]
}

fn backend(n: u16) -> SocketAddr {
    Case::TCP.backend(n)
}

fn toml(rules: &Rules) -> String {
    let mode = if rules.iptables { "iptables" } else { "ipvs" };
    let masquerade = if rules.masquerade { "auto" } else { "never" };
    let removed = match rules.removed {
        Removed::Preserve => "preserve",
        Removed::Reset => "reset",
        Removed::Reschedule => "reschedule",
    };
    let persistence = if rules.persistent {
        "persistence = { timeout = \"60s\" }"
    } else {
        ""
    };
    let backends = rules
        .backends
        .iter()
        .map(|&(n, weight)| format!("{{ address = \"{}\", weight = {weight} }}", backend(n)));
    let backends = backends.collect::<Vec<_>>().join(", ");
    let service = |protocol: &str| {
        format!(
            "[[services]]\nname = \"{protocol}\"\nprotocol = \"{protocol}\"\naddress = \"{}\"\n\
             external_addresses = [\"{}\"]\n{persistence}\nbackends = [{backends}]\n",
            Case::TCP.service(),
            Case::TCP.external().ip()
        )
    };
    format!(
        "mode = \"{mode}\"\nscheduler = \"rr\"\n[nat]\nmasquerade = \"{masquerade}\"\n[conntrack]\n\
         on_backend_removed = \"{removed}\"\nmax_flows = {}\n[[rules]]\nsource = \"{}\"\naction = \"drop\"\n{}{}{}",
        rules.max_flows,
        rules.banned.ip(),
        service("tcp"),
        service("udp"),
        service("sctp")
    )
}

/// The engine and its model.
struct Pair {
    world: World,
    model: Model,
    /// Every flow there ever was, as it arrives and as it leaves.
    known: Vec<(Ends, Ends)>,
}

impl Pair {
    fn new(rules: Rules) -> Self {
        let world = World::new(&toml(&rules));
        let services = vec![Case::TCP.service(), Case::TCP.external()];
        let model = Model::new(rules, world.now.as_nanos(), backend, services);
        Self {
            world,
            model,
            known: Vec::new(),
        }
    }

    fn step(&mut self, op: &Op) {
        match op {
            Op::Client {
                protocol,
                n,
                port,
                to,
                flags,
            } => {
                let to = [Case::TCP.service(), Case::TCP.external(), Case::TCP.node(80)][*to];
                let from = Case::TCP.client(*n, *port);
                let protocol = *protocol;
                self.send(Ends { protocol, from, to }, *flags);
            }
            Op::Flow { which, up, flags } if !self.known.is_empty() => {
                let (arrives, leaves) = *which.get(&self.known);
                let reply = Ends {
                    protocol: leaves.protocol,
                    from: leaves.to,
                    to: leaves.from,
                };
                self.send(if *up { arrives } else { reply }, *flags);
            }
            Op::Flow { .. } => {}
            Op::Wait(duration) => {
                self.world.advance(*duration);
                self.model.advance(u64::try_from(duration.as_nanos()).unwrap());
            }
            Op::Reload(rules) => {
                self.world.reload(&toml(rules));
                self.model.reload(rules.clone());
            }
        }
        self.compare();
    }

    fn send(&mut self, ends: Ends, flags: u8) {
        let (told, packet) = match ends.protocol {
            Protocol::Tcp | Protocol::Udp => (flags, packet(ends.protocol, ends.from, ends.to, flags)),
            Protocol::Sctp => (chunk(flags), packets::sctp(ends.from, ends.to, chunk(flags))),
        };
        let outcome = self.world.send(&packet);
        let (from, to) = packets::endpoints(&outcome.packet);
        let expected = self.model.packet(ends, told);
        match expected {
            Expected::Verdict(verdict) => assert_eq!(outcome.verdict, verdict),
            Expected::Forward(left) => {
                assert_eq!((outcome.verdict, from, to), (Verdict::Forward, left.from, left.to));
            }
            Expected::ForwardFromPool { to: backend } => {
                assert_eq!((outcome.verdict, to), (Verdict::Forward, backend));
                assert!(from.to_string().starts_with("198.18.0."), "{from}");
                self.model.learn(from);
            }
        }
        let flows = self.model.flows.iter().map(|flow| (flow.arrives, flow.leaves));
        let new: Vec<_> = flows.filter(|flow| !self.known.contains(flow)).collect();
        self.known.extend(new);
    }

    fn compare(&self) {
        assert_eq!(self.world.engine.conntrack().len(), self.model.flows.len(), "flows");
        let ruleset = self.world.engine.ruleset();
        for service in &ruleset.services {
            for backend in &service.backends {
                let address: SocketAddr = SocketAddr::new(backend.address.address, backend.address.port);
                let flows = self.model.flows.iter();
                let mine = flows.filter(|flow| flow.arrives.protocol == service.protocol && flow.leaves.to == address);
                let (active, inactive): (Vec<_>, Vec<_>) = mine.partition(|flow| flow.is_active());
                assert_eq!(
                    (backend.active() as usize, backend.inactive() as usize),
                    (active.len(), inactive.len())
                );
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_engine_does_what_the_model_says(rules in rules(), ops in prop::collection::vec(op(), 1..300)) {
        let mut pair = Pair::new(rules);
        for op in &ops {
            pair.step(op);
        }
    }
}
