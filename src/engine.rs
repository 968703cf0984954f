//! The way of a packet, top to bottom: [`Processor::process`] is the one place where the order of steps is written.
//!
//! An [`Engine`] is shared by all workers. A worker enters it for one batch ([`Engine::enter`]), which keeps the ruleset
//! as it is until the batch is done; [`Engine::apply`] waits for every batch to end, so a new policy takes effect
//! between batches, whole, and for all workers at once.
mod echo;
mod errors;
mod fragments;
mod limits;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use ahash::RandomState;
use parking_lot::{Mutex, RwLock, RwLockReadGuard};

use self::limits::Limits;
use crate::affinity::Affinity;
use crate::conntrack::connection::{Class, Connection, State};
use crate::conntrack::shard::Shard;
use crate::conntrack::signal::Signal;
use crate::conntrack::tcp;
use crate::conntrack::timeout::Timeouts;
use crate::conntrack::wheel::Tick;
use crate::conntrack::{Conntrack, Refused, Trace};
use crate::flow::{Direction, Key, Protocol, Tuple};
use crate::fragments::{Holding, Table};
use crate::matcher::Match;
use crate::nat::{self, Exhausted, NoSource};
use crate::packet::frame::Frame;
use crate::packet::refusal::{self, Complaint};
use crate::packet::sctp::Chunk;
use crate::packet::{Headers, ParseError, Payload, TcpFlags};
use crate::policy::{OnBackendRemoved, Policy, UnknownTcp};
use crate::rewrite;
use crate::router::Router;
use crate::ruleset::{Registry, Ruleset};
use crate::scheduler::Rng;
use crate::service::{Backend, Service};
use crate::time::Instant;
use crate::verdict::{Drop, Pass, Reject, Verdict};

pub use self::fragments::Released;
pub(crate) use self::fragments::{Course, begun, is_followed, is_tiny, may_be_ours};

/// Verdicts given so far, one counter each; written by one worker, read by anyone.
#[derive(Debug)]
pub struct Counters([AtomicU64; Verdict::COUNT]);

impl Default for Counters {
    fn default() -> Self {
        Self([const { AtomicU64::new(0) }; Verdict::COUNT])
    }
}

impl Counters {
    fn count(&self, verdict: Verdict) {
        let counter = &self.0[verdict.index()];
        counter.store(counter.load(Relaxed).wrapping_add(1), Relaxed);
    }

    /// How often this verdict was given.
    #[must_use]
    pub fn get(&self, verdict: Verdict) -> u64 {
        self.0[verdict.index()].load(Relaxed)
    }
}

/// Where randomness comes from.
#[derive(Clone, Debug)]
pub struct Seeds {
    /// Of schedulers, rule probabilities and masquerade ports: the same seed makes the same choices.
    pub choices: u64,
    /// Of the connection table's hash. It changes no choice, and strangers must not be able to guess it.
    pub hashing: RandomState,
}

/// What belongs to one worker alone.
#[derive(Debug)]
pub struct Lane {
    index: usize,
    rng: Rng,
    counters: Arc<Counters>,
    /// The last tick at which this worker looked for flows whose time is over.
    expired: Tick,
    exhausted: Exhausted,
    limits: Limits,
    /// Room for the packets of a batch.
    arrivals: Vec<Arrival>,
}

/// A packet that was checked, and its parts found.
#[derive(Clone, Copy, Debug)]
struct Arrived {
    headers: Headers,
    /// None for a packet without ports.
    segment: Option<(Segment, Trace)>,
}

type Arrival = Result<Arrived, ParseError>;

/// The packet path with everything it knows.
#[derive(Debug)]
pub struct Engine {
    ruleset: RwLock<Ruleset>,
    registry: Mutex<Registry>,
    conntrack: Conntrack,
    affinity: Affinity,
    /// Locked by fragments only.
    fragments: Mutex<Table<Course>>,
    counters: Vec<Arc<Counters>>,
}

impl Engine {
    /// An engine for as many workers as lanes are returned.
    #[must_use]
    pub fn new(policy: Arc<Policy>, workers: usize, seeds: Seeds, now: Instant) -> (Self, Vec<Lane>) {
        let mut rng = Rng::with_seed(seeds.choices);
        let mut registry = Registry::new(workers);
        let counters: Vec<Arc<Counters>> = (0..workers).map(|_| Arc::default()).collect();
        let ports = nat::ports(&policy.nat).len();
        let fragments = Table::new(seeds.hashing.clone(), crate::fragments::Limits::default());
        let conntrack = Conntrack::new(workers, ports, policy.conntrack.max_flows, seeds.hashing, now);
        let lanes = counters.iter().enumerate().map(|(index, counters)| Lane {
            index,
            rng: rng.fork(),
            counters: Arc::clone(counters),
            expired: Tick::default(),
            exhausted: Exhausted::default(),
            limits: Limits::default(),
            arrivals: Vec::new(),
        });
        let lanes = lanes.collect();
        let engine = Self {
            ruleset: RwLock::new(registry.prepare(policy, None).commit()),
            registry: Mutex::new(registry),
            conntrack,
            affinity: Affinity::default(),
            fragments: Mutex::new(fragments),
            counters,
        };
        (engine, lanes)
    }

    /// Forgets flows whose time is over, in this worker's share of the table, and holds the ruleset for one batch.
    pub fn enter<'a>(&'a self, lane: &'a mut Lane, now: Instant) -> Processor<'a> {
        let released = self.expire(lane, now);
        Processor {
            ruleset: self.ruleset.read(),
            conntrack: &self.conntrack,
            affinity: &self.affinity,
            fragments: &self.fragments,
            released,
            flow_of_fragment: None,
            lane,
            router: None,
        }
    }

    fn expire(&self, lane: &mut Lane, now: Instant) -> Vec<Released> {
        let tick = Tick::at(now);
        if tick == lane.expired {
            return Vec::new();
        }
        lane.expired = tick;
        self.conntrack.expire(lane.index, self.counters.len(), now);
        if lane.index != 0 {
            return Vec::new();
        }
        self.affinity.expire(now);
        fragments::expire(&self.fragments, &lane.counters, now)
    }

    /// Puts a new policy into effect once every batch under way is done. Flows stay.
    pub fn apply(&self, policy: Arc<Policy>) {
        let mut registry = self.registry.lock();
        let prepared = registry.prepare(policy, Some(&self.ruleset.read()));
        let mut ruleset = self.ruleset.write();
        self.conntrack.set_max_flows(prepared.policy().conntrack.max_flows);
        let former = std::mem::replace(&mut *ruleset, prepared.commit());
        drop(ruleset);
        // Giving back the memory of thousands of services takes a while.
        drop(former);
    }

    /// The ruleset in effect. Holding it keeps a new one from being applied.
    pub fn ruleset(&self) -> RwLockReadGuard<'_, Ruleset> {
        self.ruleset.read()
    }

    /// The connection table.
    #[must_use]
    pub const fn conntrack(&self) -> &Conntrack {
        &self.conntrack
    }

    /// Client affinity.
    #[must_use]
    pub const fn affinity(&self) -> &Affinity {
        &self.affinity
    }

    /// The datagrams whose fragments are under way.
    #[must_use]
    pub fn fragments(&self) -> Holding {
        self.fragments.lock().holding()
    }

    /// What was decided about the datagram of a fragment.
    pub(crate) fn course(&self, key: &crate::fragments::Key) -> Option<Result<Course, Drop>> {
        self.fragments.lock().course(key)
    }

    /// How often a verdict was given, by all workers together; of [`Verdict::Hold`], how many packets are held now.
    #[must_use]
    pub fn count(&self, verdict: Verdict) -> u64 {
        if verdict == Verdict::Hold {
            return self.fragments().packets as u64;
        }
        self.counters.iter().map(|counters| counters.get(verdict)).sum()
    }
}

/// Why a packet's way ended before it was forwarded.
#[derive(Clone, Copy, Debug)]
enum Stop {
    Pass(Pass),
    Reject(Reject),
    Abort(Key),
    Complain(Complaint),
    Echo,
    Drop(Drop),
    Hold,
}

/// A packet that belongs, or could belong, to a flow.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Segment {
    pub(crate) key: Key,
    /// What it says to its flow.
    pub(crate) signal: Signal,
    /// Of the IP packet, in bytes.
    length: usize,
}

impl Segment {
    /// Whether it may open a flow.
    pub(crate) const fn opens(&self) -> bool {
        self.signal.opens()
    }
}

/// What the connection table says about a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Known {
    /// It follows its flow.
    Flow,
    /// It belongs to no flow, or opens a new one in the place of an old one.
    No,
    /// Its flow has lost its backend, and ends: the sender is told.
    Ended,
    /// The same, but the receiver of this TCP segment is told first.
    Aborted,
}

/// What becomes of a flow whose backend was removed, at its next packet.
pub(crate) enum Orphan {
    GoesOn,
    /// Both sides are told, one after the other, while the flow stays.
    Ends,
    IsForgotten(Known),
}

pub(crate) fn orphaned(rule: OnBackendRemoved, segment: &Segment, direction: Direction) -> Orphan {
    let opens = segment.opens() && direction == Direction::Original;
    match (rule, segment.signal, opens) {
        // A SYN or INIT, sent again or for a new connection from an old port, has nothing to preserve: never to a removed
        // backend.
        (_, Signal::Tcp(_) | Signal::Sctp(_), true) | (OnBackendRemoved::Reschedule, Signal::Udp, true) => {
            Orphan::IsForgotten(Known::No)
        }
        // An answer under way still arrives.
        (OnBackendRemoved::Preserve, _, _) | (OnBackendRemoved::Reschedule, Signal::Udp, false) => Orphan::GoesOn,
        (OnBackendRemoved::Reset, Signal::Udp, true) => Orphan::IsForgotten(Known::Ended),
        (OnBackendRemoved::Reset, _, false)
        | (OnBackendRemoved::Reschedule, Signal::Tcp(_) | Signal::Sctp(_), false) => Orphan::Ends,
    }
}

/// An engine during one batch of one worker.
#[derive(Debug)]
pub struct Processor<'a> {
    ruleset: RwLockReadGuard<'a, Ruleset>,
    conntrack: &'a Conntrack,
    affinity: &'a Affinity,
    fragments: &'a Mutex<Table<Course>>,
    released: Vec<Released>,
    flow_of_fragment: Option<Tuple>,
    lane: &'a mut Lane,
    router: Option<&'a mut dyn Router>,
}

impl<'a> Processor<'a> {
    /// From now on packets are sent on by `router`, where one is given, else by the kernel.
    #[must_use]
    pub fn routed_by(self, router: Option<&'a mut dyn Router>) -> Self {
        Self { router, ..self }
    }
}

impl Processor<'_> {
    /// Decides on a batch of packets as [`Self::process`] does on each, and tells `done` about each as it goes.
    pub fn process_batch(
        &mut self,
        frames: &mut [Frame<'_>],
        now: Instant,
        mut done: impl FnMut(&mut Frame<'_>, Verdict),
    ) {
        let mut arrivals = std::mem::take(&mut self.lane.arrivals);
        arrivals.extend(frames.iter().map(|frame| self.read(frame)));
        let arrived = arrivals.iter().flatten();
        self.conntrack
            .touch(arrived.filter_map(|arrived| Some(arrived.segment.as_ref()?.1)));
        for (frame, arrival) in frames.iter_mut().zip(&arrivals) {
            let verdict = self.decide(frame, arrival, now);
            done(frame, verdict);
        }
        arrivals.clear();
        self.lane.arrivals = arrivals;
    }

    /// Decides on a packet and rewrites it. After [`Verdict::Reject`] the frame holds the answer to its sender.
    pub fn process(&mut self, frame: &mut Frame<'_>, now: Instant) -> Verdict {
        let arrival = self.read(frame);
        self.decide(frame, &arrival, now)
    }

    #[inline]
    fn decide(&mut self, frame: &mut Frame<'_>, arrival: &Arrival, now: Instant) -> Verdict {
        let result = self.forward(frame, arrival, now);
        let verdict = self.conclude(frame, result, now);
        self.lane.counters.count(verdict);
        verdict
    }

    #[inline]
    fn conclude(&mut self, frame: &mut Frame<'_>, result: Result<(), Stop>, now: Instant) -> Verdict {
        match result {
            Ok(()) => Verdict::Forward,
            Err(Stop::Pass(reason)) => Verdict::Pass(reason),
            Err(Stop::Drop(reason)) => Verdict::Drop(reason),
            Err(Stop::Reject(reason)) => self.refuse(frame, reason, now),
            Err(Stop::Abort(leaving)) => abort(frame, &leaving),
            Err(Stop::Complain(complaint)) => self.complain(frame, complaint, now),
            Err(Stop::Echo) => echo::answer(frame),
            Err(Stop::Hold) => Verdict::Hold,
        }
    }

    /// Checks a packet and finds its parts, once.
    #[inline]
    fn read(&self, frame: &Frame<'_>) -> Arrival {
        let headers = Headers::parse(frame.bytes())?;
        let segment = segment(&headers).map(|segment| (segment, self.conntrack.trace(&segment.key)));
        Ok(Arrived { headers, segment })
    }

    /// The way of a packet.
    #[inline]
    fn forward(&mut self, frame: &mut Frame<'_>, arrival: &Arrival, now: Instant) -> Result<(), Stop> {
        // 1. It was checked, and its parts found, with all of its batch, so that what it needs next is in the cache.
        let Arrived { headers, segment } = arrival.as_ref().map_err(|&error| Stop::from(error))?;
        // 2. Whose is it? A packet without ports can only be about another one, or meet a rule.
        let Some((segment, trace)) = segment else {
            return self.forward_without_ports(frame, headers, now);
        };
        // 3. A packet of a known flow follows its flow.
        let mut leaving = segment.key;
        match self.follow(segment, *trace, now, &mut leaving) {
            Known::Flow => {}
            Known::Ended => return Err(Stop::Reject(Reject::BackendRemoved)),
            Known::Aborted => return Err(Stop::Abort(leaving)),
            // 4. Any other one needs a service, a backend and a place in the table.
            Known::No => {
                leaving = self.open(headers, segment, *trace, now)?;
                frame.opens_flow = true;
            }
        }
        // 5. Where lbd is the router: does it fit, and may it go on?
        self.may_go_on(frame.bytes(), headers, leaving.destination)?;
        // 6. Translate it.
        rewrite::apply(frame, headers, &leaving);
        Ok(())
    }

    /// Looks up the packet's flow and takes note of the packet there. `leaving` becomes the key that it leaves with; as a part
    /// of the answer it would be copied in pieces, and the CPU would wait for each (see [`crate::flow::Key`]).
    #[inline]
    fn follow(&self, segment: &Segment, trace: Trace, now: Instant, leaving: &mut Key) -> Known {
        let policy = &self.ruleset.policy.conntrack;
        let lane = self.lane.index;
        let likely = || self.ruleset.likely(&segment.key);
        let found = self
            .conntrack
            .with_flow(&segment.key, trace, likely, now, |shard, slot, direction| {
                let (Some(key), Some(flow)) = (shard.leaving(slot, direction), shard.get_mut(slot)) else {
                    return Known::No;
                };
                *leaving = key;
                if is_reopened(flow.state, &flow.backend, segment, direction) {
                    shard.remove(slot);
                    return Known::No;
                }
                if let Some(rule) = flow.backend.orphans(policy.on_backend_removed, segment.key.protocol()) {
                    match orphaned(rule, segment, direction) {
                        Orphan::GoesOn => {}
                        Orphan::Ends => return end(shard, slot, direction, now, &policy.timeouts),
                        Orphan::IsForgotten(then) => {
                            shard.remove(slot);
                            return then;
                        }
                    }
                }
                count(&flow.backend, direction, lane, segment.length);
                advance(shard, slot, direction, segment.signal, now, &policy.timeouts);
                Known::Flow
            });
        found.unwrap_or(Known::No)
    }

    /// Finds a service and a backend for a packet without a flow, and remembers the choice.
    fn open(&mut self, headers: &Headers, segment: &Segment, trace: Trace, now: Instant) -> Result<Key, Stop> {
        let tuple = Tuple::from(segment.key);
        let Lane { index: lane, rng, .. } = &mut *self.lane;
        let service = match self.ruleset.find(headers, Some(&tuple), rng, *lane, now) {
            Match::Service(service) => service,
            Match::None => return Err(Stop::Pass(Pass::NoMatch)),
            Match::Pass => return Err(Stop::Pass(Pass::Rule)),
            Match::Reject => return Err(Stop::Reject(Reject::Rule)),
            Match::Drop => return Err(Stop::Drop(Drop::Rule)),
        };
        if !segment.opens() {
            return Err(self.stray(segment));
        }
        let service = Arc::clone(service);
        match self.establish(&service, segment, &tuple, now) {
            // Another worker may have been faster with a packet of the same flow, and then this one follows.
            Err(stop @ Stop::Drop(_)) => {
                let mut leaving = segment.key;
                match self.follow(segment, trace, now, &mut leaving) {
                    Known::Flow => Ok(leaving),
                    Known::No | Known::Ended | Known::Aborted => Err(stop),
                }
            }
            decided @ (Ok(_)
            | Err(
                Stop::Pass(_) | Stop::Reject(_) | Stop::Abort(_) | Stop::Complain(_) | Stop::Echo | Stop::Hold,
            )) => decided,
        }
    }

    /// What becomes of a packet to a service that has no flow and opens none.
    fn stray(&self, segment: &Segment) -> Stop {
        match segment.signal {
            Signal::Tcp(_) | Signal::Udp => self.ruleset.policy.conntrack.unknown_tcp.into(),
            Signal::Sctp(_) => Stop::Drop(Drop::NotInit),
        }
    }

    /// Chooses a backend and a source for a new flow, and stores it.
    fn establish(&mut self, service: &Service, segment: &Segment, tuple: &Tuple, now: Instant) -> Result<Key, Stop> {
        let Lane {
            index: lane,
            rng,
            exhausted,
            ..
        } = &mut *self.lane;
        let client = tuple.source.address;
        let chosen = self
            .affinity
            .choose(service, client, now, self.conntrack.max_flows(), || {
                pick(service, tuple, now, rng)
            });
        let (backend, template) = chosen.ok_or(Stop::Reject(Reject::NoBackend))?;
        let source = nat::source(&self.ruleset, self.conntrack, tuple, &backend, now, rng, exhausted)?;
        let state = State::new(tuple.protocol).next(Direction::Original, segment.signal);
        let connection = Connection {
            protocol: tuple.protocol,
            client: tuple.source,
            virtual_address: tuple.destination,
            source,
            backend: Arc::clone(&backend),
            template: template.clone(),
            state,
            answered: false,
            opened: now,
            expires: now + state.timeout(&self.ruleset.policy.conntrack.timeouts),
        };
        let leaving = connection.leaving(Direction::Original);
        self.conntrack.insert(connection, now)?;
        if let (Some(template), Some(persistence)) = (template, &service.persistence) {
            template.renew(now + persistence.timeout);
        }
        backend.stats.count_connection(*lane);
        backend.service.stats.count_connection(*lane);
        count(&backend, Direction::Original, *lane, segment.length);
        Ok(leaving.into())
    }

    /// A packet that lbd does not track: a rule may still have a say, and such fragments of services cannot be translated.
    fn without_flow(&mut self, headers: &Headers, now: Instant) -> Stop {
        let Lane { index: lane, rng, .. } = &mut *self.lane;
        match self.ruleset.find(headers, None, rng, *lane, now) {
            Match::Drop => Stop::Drop(Drop::Rule),
            Match::Reject => Stop::Reject(Reject::Rule),
            Match::Pass => Stop::Pass(Pass::Rule),
            Match::Service(_) | Match::None => match headers.payload {
                Payload::Fragment(_) if is_balanced(headers) && self.concerns_services(headers) => {
                    Stop::Drop(Drop::Fragment)
                }
                Payload::Fragment(_) => Stop::Pass(Pass::NoMatch),
                Payload::Other | Payload::IcmpError | Payload::Tcp(..) | Payload::Udp(_) | Payload::Sctp(..) => {
                    Stop::Pass(Pass::UntrackedProtocol)
                }
            },
        }
    }

    fn concerns_services(&self, headers: &Headers) -> bool {
        self.ruleset.is_known(&headers.source.into()) || self.ruleset.is_known(&headers.destination.into())
    }
}

/// Not limited: there is one for each flow.
fn abort(frame: &mut Frame<'_>, leaving: &Key) -> Verdict {
    match Headers::parse(frame.bytes()) {
        Ok(headers) if refusal::abort(frame, &headers, leaving).is_ok() => Verdict::Reject(Reject::BackendRemoved),
        Ok(_) | Err(_) => Verdict::Drop(Drop::Unanswerable),
    }
}

#[inline]
pub(crate) fn segment(headers: &Headers) -> Option<Segment> {
    Some(Segment {
        key: headers.key()?,
        signal: Signal::of(headers.payload)?,
        length: headers.length,
    })
}

/// Whether a client opens a new connection from a port whose last one is over (`is_new_conn_expected`, ip_vs_core.c):
/// it gets a fresh choice at once.
#[inline]
pub(crate) fn is_reopened(state: State, backend: &Backend, segment: &Segment, direction: Direction) -> bool {
    let over = match state {
        State::Tcp(state) => state.is_reusable(),
        State::Sctp(state) => state.is_reusable(),
        // One-packet scheduling: the flow remains for the replies only, until the next datagram.
        State::Udp => backend.is_one_packet(),
    };
    over && direction == Direction::Original && segment.opens()
}

/// Ends a flow whose backend was removed. A client that only listens, as in a download, sends nothing that could be
/// answered, so the first segment of the backend is turned into the client's RST; the backend is told by its next one.
fn end(shard: &mut Shard, slot: u32, direction: Direction, now: Instant, timeouts: &Timeouts) -> Known {
    let Some((state, class)) = shard.get_mut(slot).map(|flow| (flow.state, flow.class())) else {
        return Known::Ended;
    };
    let last = match state {
        State::Tcp(_) => Some(Signal::Tcp(TcpFlags(TcpFlags::RST))),
        State::Sctp(_) => Some(Signal::Sctp(Chunk::Abort)),
        State::Udp => None,
    };
    match last {
        Some(signal) => advance(shard, slot, direction, signal, now, timeouts),
        None => shard.changed(slot, class),
    }
    told_by(state, direction)
}

/// Who is told that a flow ends, by its next packet.
pub(crate) const fn told_by(state: State, direction: Direction) -> Known {
    match (state, direction) {
        (State::Udp | State::Sctp(_), _)
        | (State::Tcp(_), Direction::Original)
        | (State::Tcp(tcp::State::Close), Direction::Reply) => Known::Ended,
        (State::Tcp(_), Direction::Reply) => Known::Aborted,
    }
}

/// Takes note of a packet of a flow.
#[inline]
fn advance(shard: &mut Shard, slot: u32, direction: Direction, signal: Signal, now: Instant, timeouts: &Timeouts) {
    let Some(flow) = shard.get_mut(slot) else { return };
    let (before, was_active) = (flow.class(), flow.state.is_active());
    flow.state = flow.state.next(direction, signal);
    flow.answered |= direction == Direction::Reply;
    flow.expires = now + flow.state.timeout(timeouts);
    let is_active = flow.state.is_active();
    if was_active != is_active {
        flow.backend.set_active(is_active);
    }
    if flow.class() == Class::Established
        && let Some(template) = shard.template(slot)
    {
        template.assure();
    }
    shard.changed(slot, before);
}

fn count(backend: &Backend, direction: Direction, lane: usize, bytes: usize) {
    match direction {
        Direction::Original => {
            backend.stats.count_in(lane, bytes);
            backend.service.stats.count_in(lane, bytes);
        }
        Direction::Reply => {
            backend.stats.count_out(lane, bytes);
            backend.service.stats.count_out(lane, bytes);
        }
    }
}

/// Whether it is of a protocol that services have. ICMP is not fragmented where it matters to lbd: an error is short.
pub(crate) fn is_balanced(headers: &Headers) -> bool {
    Protocol::from_number(headers.protocol).is_some()
}

fn pick(service: &Service, tuple: &Tuple, now: Instant, rng: &mut Rng) -> Option<Arc<Backend>> {
    let chosen = service.scheduler.lock().pick(tuple, &service.backends, now, rng)?;
    service.backends.get(chosen).map(Arc::clone)
}

impl From<UnknownTcp> for Stop {
    fn from(rule: UnknownTcp) -> Self {
        match rule {
            UnknownTcp::Drop => Self::Drop(Drop::NotSyn),
            UnknownTcp::Pass => Self::Pass(Pass::NotSyn),
            UnknownTcp::Reset => Self::Reject(Reject::NotSyn),
        }
    }
}

impl From<ParseError> for Stop {
    fn from(error: ParseError) -> Self {
        match error {
            ParseError::NotIp => Self::Pass(Pass::NotIp),
            ParseError::Malformed => Self::Drop(Drop::Malformed),
        }
    }
}

impl From<Refused> for Stop {
    fn from(error: Refused) -> Self {
        match error {
            Refused::Full => Self::Drop(Drop::TableFull),
            Refused::InUse => Self::Drop(Drop::TupleInUse),
        }
    }
}

impl From<NoSource> for Stop {
    fn from(error: NoSource) -> Self {
        match error {
            NoSource::InUse => Self::Drop(Drop::TupleInUse),
            NoSource::PoolExhausted => Self::Drop(Drop::PoolExhausted),
        }
    }
}
