//! A slow and obvious engine: lists that are searched from end to end, one rule after the other, as CONTRACT.md tells it.
//!
//! It shares no code with lbd's engine, only the names of verdicts, and SCTP's state table, whose unit tests compare every
//! cell with the kernel's. It knows one service each for TCP, UDP and SCTP with two addresses, round robin, persistence,
//! one rule, and fragments.
#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test that includes this module uses some of it"
)]
#[path = "reference/bypass.rs"]
mod bypass;
#[path = "reference/fragments.rs"]
mod fragments;
#[path = "reference/said.rs"]
mod said;

use std::collections::HashMap;
use std::net::SocketAddr;

use lbd::conntrack::sctp;
use lbd::flow::{Direction, Protocol};
use lbd::packet::sctp::Chunk;
use lbd::verdict::{Drop, Pass, Reject, Verdict};

use super::packets::{ACK, FIN, RST, SYN};
pub use fragments::Piece;
pub use said::Said;
use said::Talk;

/// The state table of the Linux kernel as printed in ip_vs_proto_tcp.c: rows syn, fin, ack, rst.
const STATES: &str = "NO ES SS SR FW TW CL CW LA LI SA";
const INPUT: [&str; 4] = [
    "SR ES ES SR SR SR SR SR SR SR SR",
    "CL CW SS TW TW TW CL CW LA LI TW",
    "ES ES SS ES FW TW CL CW CL LI ES",
    "CL CL CL SR CL CL CL CL LA LI SR",
];
const OUTPUT: [&str; 4] = [
    "SS ES SS SR SS SS SS SS SS LI SR",
    "TW FW SS TW FW TW CL TW LA LI TW",
    "ES ES SS ES FW TW CL CW LA ES ES",
    "CL CL SS CL CL TW CL CL CL CL CL",
];
const TIMEOUTS: [u64; 11] = [2, 900, 120, 60, 120, 120, 10, 60, 30, 120, 120];

const SECOND: u64 = 1_000_000_000;
/// How fine the engine's timer wheel is, in powers of two of a nanosecond.
const TICK: u32 = 27;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removed {
    Preserve,
    Reset,
    Reschedule,
    Drop,
}

/// A configuration. Backends are numbers.
#[derive(Clone, Debug)]
pub struct Rules {
    pub iptables: bool,
    /// Backend and weight, in order, of each service.
    pub backends: Vec<(u16, u32)>,
    pub removed: Removed,
    pub masquerade: bool,
    pub persistent: bool,
    pub max_flows: usize,
    /// In iptables mode nothing new from here.
    pub banned: SocketAddr,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ends {
    pub protocol: Protocol,
    pub from: SocketAddr,
    pub to: SocketAddr,
}

#[derive(Clone, Debug)]
pub struct ModelFlow {
    pub arrives: Ends,
    pub leaves: Ends,
    pub backend: u16,
    /// "UDP", a word of STATES, or that of `ipvsadm -Lc` for SCTP.
    pub state: &'static str,
    answered: bool,
    /// The client has sent something after an answer.
    continued: bool,
    expires: u64,
    /// When it was last used, where it is in use; when it became established.
    since: u64,
    template: Option<u64>,
    talk: Talk,
}

/// What must become of a packet; a forwarded one may come from anywhere in the pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    Verdict(Verdict),
    Forward(Ends),
    ForwardFromPool { to: SocketAddr },
}

#[derive(Clone, Copy, Debug)]
struct Template {
    id: u64,
    backend: u16,
    expires: u64,
}

pub struct Model {
    pub rules: Rules,
    pub now: u64,
    pub flows: Vec<ModelFlow>,
    /// Address of backend number n.
    address: fn(u16) -> SocketAddr,
    services: Vec<SocketAddr>,
    last: HashMap<Protocol, u16>,
    templates: HashMap<(Protocol, std::net::IpAddr), Template>,
    sequence: u64,
    /// Connections past the services.
    bypass: Vec<bypass::Connection>,
    /// What backends would send on flows that are forgotten, and when those were over.
    late: Vec<(Ends, u64)>,
    datagrams: Vec<fragments::Datagram>,
    /// Of fragments that are held, the number of the next one.
    tickets: u64,
    given_out: Vec<(u64, Expected)>,
}

impl Ends {
    fn reply(self) -> Self {
        Self {
            from: self.to,
            to: self.from,
            ..self
        }
    }
}

impl ModelFlow {
    fn class(&self) -> u8 {
        match self.state {
            _ if !self.answered => 0,
            "UDP" if !self.continued => 1,
            "UDP" | "ES" | "ESTABLISHED" => 2,
            "SR" | "SS" | "NO" => 0,
            "NONE" | "INIT1" | "INIT" | "C-SENT" | "C-REPLIED" | "C-WAIT" | "COOKIE" | "C-ECHOED" => 0,
            _ => 1,
        }
    }

    pub fn is_active(&self) -> bool {
        ["ES", "SR", "SS", "ESTABLISHED"].contains(&self.state)
    }

    /// Whether its backend may still answer, other than by opening a connection.
    fn may_answer(&self) -> bool {
        match self.arrives.protocol {
            Protocol::Udp => true,
            Protocol::Tcp | Protocol::Sctp => self.answered && !["TW", "CL", "CLOSED"].contains(&self.state),
        }
    }

    fn timeout(&self, iptables: bool) -> u64 {
        let place = STATES.split(' ').position(|state| state == self.state);
        let seconds = match self.state {
            "UDP" => 300,
            "ES" if iptables => 86_400,
            "CW" if iptables => 3_600,
            "NONE" => 2,
            "INIT1" | "REJECTED" => 4,
            "ESTABLISHED" => 900,
            _ => place.map_or(61, |place| TIMEOUTS[place]),
        };
        SECOND * seconds
    }
}

/// The SCTP chunks that tell a state, by their numbers (RFC 9260 table 1); any other one is as DATA.
const CHUNKS: [(u8, Chunk); 9] = [
    (INIT, Chunk::Init),
    (2, Chunk::InitAck),
    (ABORT, Chunk::Abort),
    (7, Chunk::Shutdown),
    (8, Chunk::ShutdownAck),
    (9, Chunk::Error),
    (10, Chunk::CookieEcho),
    (11, Chunk::CookieAck),
    (14, Chunk::ShutdownComplete),
];
const INIT: u8 = 1;
const ABORT: u8 = 6;

fn next_sctp(state: &'static str, original: bool, chunk: u8) -> &'static str {
    let known = CHUNKS.iter().find(|(number, _)| *number == chunk);
    let chunk = known.map_or(Chunk::Data, |(_, chunk)| *chunk);
    let direction = if original {
        Direction::Original
    } else {
        Direction::Reply
    };
    let mut states = sctp::State::ALL.into_iter();
    states
        .find(|other| other.name() == state)
        .unwrap()
        .next(direction, chunk)
        .name()
}

fn next_state(state: &'static str, original: bool, flags: u8) -> &'static str {
    let row = [RST, SYN, FIN, ACK].iter().position(|flag| flags & flag != 0);
    let Some(row) = row else { return state };
    let row = [3, 0, 1, 2][row];
    let table = if original { INPUT } else { OUTPUT };
    let column = STATES.split(' ').position(|other| other == state).unwrap();
    table[row].split(' ').nth(column).unwrap()
}

/// `told` are TCP flags, or the number of an SCTP chunk.
fn opens(ends: &Ends, told: u8) -> bool {
    match ends.protocol {
        Protocol::Tcp => told & (SYN | ACK | RST) == SYN,
        Protocol::Udp => true,
        Protocol::Sctp => told == INIT,
    }
}

/// RST and ABORT are never answered.
fn is_last_word(ends: &Ends, told: u8) -> bool {
    match ends.protocol {
        Protocol::Tcp => told & RST != 0,
        Protocol::Udp => false,
        Protocol::Sctp => told == ABORT,
    }
}

impl Model {
    pub fn new(rules: Rules, now: u64, address: fn(u16) -> SocketAddr, services: Vec<SocketAddr>) -> Self {
        Self {
            rules,
            now,
            flows: Vec::new(),
            address,
            services,
            last: HashMap::new(),
            templates: HashMap::new(),
            sequence: 0,
            bypass: Vec::new(),
            late: Vec::new(),
            datagrams: Vec::new(),
            tickets: 0,
            given_out: Vec::new(),
        }
    }

    pub fn advance(&mut self, nanos: u64) {
        let before = self.flows.clone();
        self.pass(nanos);
        self.remember(&before);
    }

    /// Flows that are forgotten now.
    fn remember(&mut self, before: &[ModelFlow]) {
        let is_there = |old: &&ModelFlow| {
            let mut flows = self.flows.iter();
            flows.any(|flow| (flow.arrives, flow.leaves) == (old.arrives, old.leaves))
        };
        let gone = before.iter().filter(|old| !is_there(old) && old.may_answer());
        let gone: Vec<_> = gone.map(|old| (old.leaves.reply(), old.expires)).collect();
        for (ends, over) in gone {
            self.late.retain(|(other, _)| *other != ends);
            self.late.push((ends, over));
        }
    }

    /// Whether a packet of no flow is a backend's late answer.
    fn is_late(&self, ends: &Ends, told: u8) -> bool {
        if ends.protocol != Protocol::Udp && bypass::opens(ends.protocol, told) {
            return false;
        }
        let is_over = |flow: &ModelFlow| flow.expires <= self.now && flow.may_answer() && flow.leaves.reply() == *ends;
        let is_fresh = |over: u64| {
            let age = (self.now >> TICK).saturating_sub(over >> TICK) << TICK;
            ends.protocol != Protocol::Udp || age <= 300 * SECOND
        };
        let mut late = self.late.iter();
        late.any(|(other, over)| other == ends && is_fresh(*over)) || self.flows.iter().any(is_over)
    }

    fn pass(&mut self, nanos: u64) {
        self.now += nanos;
        let now = self.now;
        if (now - nanos) >> TICK == now >> TICK {
            return;
        }
        self.flows.retain(|flow| flow.expires >> TICK >= now >> TICK);
        let flows = &self.flows;
        let held = |id| flows.iter().any(|flow| flow.template == Some(id));
        self.templates
            .retain(|_, template| held(template.id) || template.expires > now);
        self.expire_fragments();
    }

    pub fn reload(&mut self, rules: Rules) {
        for last in [Protocol::Tcp, Protocol::Udp, Protocol::Sctp] {
            let Some(place) = self.last.get(&last).copied() else {
                continue;
            };
            // Round robin keeps its place; it steps back where its last one is gone.
            let upto = self.rules.backends.iter().position(|(n, _)| *n == place).unwrap();
            let stays = self.rules.backends[..=upto].iter().rev();
            let mut stays = stays.filter(|(n, _)| rules.backends.iter().any(|(other, _)| other == n));
            match stays.next() {
                Some((n, _)) => self.last.insert(last, *n),
                None => self.last.remove(&last),
            };
        }
        self.rules = rules;
    }

    fn find(&self, ends: &Ends) -> Option<(usize, bool)> {
        let alive = |flow: &ModelFlow| flow.expires > self.now;
        let original = |flow: &ModelFlow| alive(flow) && flow.arrives == *ends;
        let reply = |flow: &ModelFlow| {
            let Ends { protocol, from, to } = flow.leaves;
            alive(flow)
                && *ends
                    == Ends {
                        protocol,
                        from: to,
                        to: from,
                    }
        };
        let at = self.flows.iter().position(original).map(|at| (at, true));
        at.or_else(|| self.flows.iter().position(reply).map(|at| (at, false)))
    }

    /// Whether the address is a service's or a backend's.
    fn is_known(&self, address: std::net::IpAddr) -> bool {
        let mut backends = self.rules.backends.iter();
        self.services.iter().any(|service| service.ip() == address)
            || backends.any(|&(n, _)| (self.address)(n).ip() == address)
    }

    fn is_configured(&self, backend: u16) -> bool {
        self.rules.backends.iter().any(|(n, _)| *n == backend)
    }

    /// What must become of the packet. A flow from the pool must be told its source by [`Self::learn`].
    pub fn packet(&mut self, ends: Ends, said: Said) -> Expected {
        let before = self.flows.clone();
        let expected = self.judge(ends, said);
        self.remember(&before);
        expected
    }

    fn judge(&mut self, ends: Ends, said: Said) -> Expected {
        let told = said.told;
        let Some((at, original)) = self.find(&ends) else {
            return self.open(ends, said);
        };
        let flow = &self.flows[at];
        let is_believed = match ends.protocol {
            Protocol::Tcp => flow.talk.believes(flow.state, original, said),
            Protocol::Udp => true,
            Protocol::Sctp => said.is_intact || !CHUNKS.iter().any(|(number, _)| *number == told),
        };
        let reopens = is_believed && original && opens(&ends, told);
        if reopens && ["TW", "CL", "CLOSED"].contains(&flow.state) {
            self.flows.remove(at);
            return self.open(ends, said);
        }
        let answers_another = !original && told & (SYN | ACK | RST) == SYN | ACK && said.is_intact && !said.is_cut;
        let is_direct = answers_another && flow.leaves.from == flow.arrives.from;
        if ends.protocol == Protocol::Tcp && ["TW", "CL"].contains(&flow.state) && is_direct {
            self.flows.remove(at);
            return self.open(ends, said);
        }
        let orphan = !self.is_configured(flow.backend);
        if orphan && reopens && (ends.protocol != Protocol::Udp || self.rules.removed == Removed::Reschedule) {
            self.flows.remove(at);
            return self.open(ends, said);
        }
        if orphan && original && self.rules.removed == Removed::Drop {
            return Expected::Verdict(Verdict::Drop(Drop::BackendRemoved));
        }
        let goes_on = match self.rules.removed {
            Removed::Preserve | Removed::Drop => true,
            // What the backend still answers arrives.
            Removed::Reschedule => ends.protocol == Protocol::Udp && !original,
            Removed::Reset => false,
        };
        if orphan && !goes_on {
            match reopens {
                true => drop(self.flows.remove(at)),
                false => self.end(at, original),
            }
            return Expected::Verdict(match is_last_word(&ends, told) {
                true => Verdict::Drop(Drop::Unanswerable),
                false => Verdict::Reject(Reject::BackendRemoved),
            });
        }
        match is_believed {
            true => {
                let state = self.flows[at].state;
                self.flows[at].talk.note(original, said);
                let expires = self.flows[at].expires;
                let expected = self.follow(at, original, Some(told));
                // A SYN that nobody has answered yet takes no time away.
                let is_half_closed = ["FW", "CW", "LA"].contains(&state);
                if ends.protocol == Protocol::Tcp && opens(&ends, told) && is_half_closed {
                    self.flows[at].expires = self.flows[at].expires.max(expires);
                }
                expected
            }
            false if ends.protocol == Protocol::Tcp && told & (SYN | FIN | RST) == 0 => self.follow(at, original, None),
            // It is sent on, and that is all.
            false => self.on(at, original),
        }
    }

    /// Both sides of a TCP or SCTP flow are told in turn, as by a RST or ABORT of the other one, so the flow is closed.
    fn end(&mut self, at: usize, original: bool) {
        if self.flows[at].state == "UDP" {
            self.sequence += 1;
            self.flows[at].since = self.sequence;
            return;
        }
        let last = if self.flows[at].arrives.protocol == Protocol::Tcp {
            RST
        } else {
            ABORT
        };
        self.follow(at, original, Some(last));
    }

    /// `told` is None where it is not believed.
    fn follow(&mut self, at: usize, original: bool, told: Option<u8>) -> Expected {
        self.sequence += 1;
        let flow = &mut self.flows[at];
        let class = flow.class();
        flow.continued |= flow.answered && original;
        flow.answered |= !original;
        flow.state = match (flow.arrives.protocol, told) {
            (Protocol::Tcp, Some(told)) => next_state(flow.state, original, told),
            (Protocol::Sctp, Some(told)) => next_sctp(flow.state, original, told),
            (Protocol::Tcp | Protocol::Udp | Protocol::Sctp, _) => flow.state,
        };
        if flow.class() != class || class != 2 {
            flow.since = self.sequence;
        }
        flow.expires = self.now + flow.timeout(self.rules.iptables);
        self.on(at, original)
    }

    fn on(&self, at: usize, original: bool) -> Expected {
        let flow = &self.flows[at];
        let Ends { protocol, from, to } = flow.arrives;
        Expected::Forward(match original {
            true => flow.leaves,
            false => Ends {
                protocol,
                from: to,
                to: from,
            },
        })
    }

    fn is_banned(&self, ends: &Ends) -> bool {
        self.rules.iptables && ends.from.ip() == self.rules.banned.ip()
    }

    fn open(&mut self, ends: Ends, said: Said) -> Expected {
        let told = said.told;
        if self.is_banned(&ends) {
            return Expected::Verdict(Verdict::Drop(Drop::Rule));
        }
        if !self.services.contains(&ends.to) {
            if self.is_late(&ends, told) {
                return Expected::Verdict(Verdict::Drop(Drop::UnknownReply));
            }
            self.note_bypass(ends, told);
            return Expected::Verdict(Verdict::Pass(Pass::NoMatch));
        }
        if !opens(&ends, told) {
            let is_sctp = ends.protocol == Protocol::Sctp;
            let is_usable = self.rules.backends.iter().any(|&(_, weight)| weight > 0);
            return Expected::Verdict(match (is_usable, is_last_word(&ends, told)) {
                (true, _) => Verdict::Drop(if is_sctp { Drop::NotInit } else { Drop::NotSyn }),
                (false, true) => Verdict::Drop(Drop::Unanswerable),
                (false, false) => Verdict::Reject(Reject::NoBackend),
            });
        }
        let Some((backend, template)) = self.choose(&ends) else {
            return Expected::Verdict(Verdict::Reject(Reject::NoBackend));
        };
        let to = (self.address)(backend);
        let direct = Ends {
            from: ends.from,
            to,
            ..ends
        };
        let taken = self
            .flows
            .iter()
            .any(|flow| flow.leaves == direct && flow.expires > self.now);
        let in_use = taken
            || match self.past_services(direct) {
                Some(both_heard) => both_heard || self.rules.masquerade,
                None => false,
            };
        if in_use && !self.rules.masquerade {
            return Expected::Verdict(Verdict::Drop(Drop::TupleInUse));
        }
        if !taken {
            self.flows.retain(|flow| flow.leaves != direct);
        }
        if !self.make_room() {
            return Expected::Verdict(Verdict::Drop(Drop::TableFull));
        }
        self.flows.retain(|flow| flow.arrives != ends);
        self.store(ends, direct, backend, template, said);
        match in_use {
            true => Expected::ForwardFromPool { to },
            false => Expected::Forward(direct),
        }
    }

    fn store(&mut self, arrives: Ends, leaves: Ends, backend: u16, template: Option<u64>, said: Said) {
        self.sequence += 1;
        let mut flow = ModelFlow {
            arrives,
            leaves,
            backend,
            state: match arrives.protocol {
                Protocol::Tcp => "SR",
                Protocol::Udp => "UDP",
                Protocol::Sctp => "INIT1",
            },
            answered: false,
            continued: false,
            expires: 0,
            since: self.sequence,
            template,
            talk: Talk::default(),
        };
        flow.talk.note(true, said);
        flow.expires = self.now + flow.timeout(self.rules.iptables);
        self.flows.push(flow);
        let expires = self.now + 60 * SECOND;
        if let Some(known) = self
            .templates
            .get_mut(&(arrives.protocol, arrives.from.ip()))
            .filter(|_| template.is_some())
        {
            known.expires = expires;
        }
    }

    /// The last flow comes from this place of the pool; what it leaves as.
    pub fn learn(&mut self, source: SocketAddr) -> Ends {
        let flow = self.flows.last_mut().unwrap();
        flow.leaves.from = source;
        let leaves = flow.leaves;
        self.learn_of_fragments(leaves);
        leaves
    }

    fn make_room(&mut self) -> bool {
        if self.flows.len() < self.rules.max_flows {
            return true;
        }
        let candidates = self.flows.iter().enumerate().filter(|(_, flow)| flow.class() < 2);
        let first = candidates
            .min_by_key(|(_, flow)| (flow.class(), flow.since))
            .map(|(at, _)| at);
        first.map(|at| self.flows.remove(at)).is_some()
    }

    fn choose(&mut self, ends: &Ends) -> Option<(u16, Option<u64>)> {
        if !self.rules.persistent {
            return Some((self.round_robin(ends.protocol)?, None));
        }
        let key = (ends.protocol, ends.from.ip());
        if let Some(known) = self.templates.get(&key) {
            let usable = self
                .rules
                .backends
                .iter()
                .any(|&(n, weight)| n == known.backend && weight > 0);
            let held = !self.rules.iptables && self.flows.iter().any(|flow| flow.template == Some(known.id));
            if usable && (held || known.expires > self.now) {
                return Some((known.backend, Some(known.id)));
            }
        }
        let backend = self.round_robin(ends.protocol)?;
        if self.templates.len() >= self.rules.max_flows && !self.templates.contains_key(&key) {
            return Some((backend, None));
        }
        self.sequence += 1;
        let id = self.sequence;
        self.templates.insert(
            key,
            Template {
                id,
                backend,
                expires: 0,
            },
        );
        Some((backend, Some(id)))
    }

    fn round_robin(&mut self, protocol: Protocol) -> Option<u16> {
        let backends = &self.rules.backends;
        let last = self.last.get(&protocol);
        let start = last.map_or(0, |last| 1 + backends.iter().position(|(n, _)| n == last).unwrap());
        let turn = backends.iter().cycle().skip(start).take(backends.len());
        let chosen = turn.copied().find(|(_, weight)| *weight > 0)?.0;
        self.last.insert(protocol, chosen);
        Some(chosen)
    }
}
