//! The way of a packet, top to bottom: [`Processor::process`] is the one place where the order of steps is written.
//!
//! An [`Engine`] is shared by all workers. A worker enters it for one batch ([`Engine::enter`]), for which the ruleset stays as it
//! is; [`Engine::apply`] builds the next one meanwhile, and each worker has it from its next batch on. So a new policy takes
//! effect between batches and whole, and neither side waits for the other.
mod current;
mod echo;
mod errors;
mod follow;
mod fragments;
mod limits;
mod open;

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use ahash::RandomState;
use parking_lot::{Mutex, RwLock};

use self::current::Current;
use self::limits::Limits;
use crate::affinity::Affinity;
use crate::conntrack::wheel::Tick;
use crate::conntrack::{Conntrack, Sweep, Trace};
use crate::flow::{Address, Key, Protocol, Tuple};
use crate::fragments::{Holding, Table};
use crate::host::Host;
use crate::matcher::Match;
use crate::nat::{self, Exhausted};
use crate::packet::frame::Frame;
use crate::packet::refusal::{self, Complaint};
use crate::packet::{Headers, ParseError, Payload, ip};
use crate::policy::Policy;
use crate::rewrite::{self, verify};
use crate::router::Router;
use crate::ruleset::{Registry, Ruleset};
use crate::scheduler::Rng;
use crate::time::Instant;
use crate::verdict::{Drop, Pass, Reject, Verdict};

use self::follow::count;
pub use self::follow::{Known, Orphan, Segment, is_believed, is_direct, is_reopened, orphaned, segment, told_by};
pub use self::fragments::Released;
pub use self::fragments::{Course, begun, is_followed, is_tiny, may_be_ours};
pub use self::open::opens_nothing;

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

/// Has work that takes long done somewhere, once, and returns when it is done.
pub type Builder = fn(&mut (dyn FnMut() + Send));

/// What belongs to one worker alone.
#[derive(Debug)]
pub struct Lane {
    /// What its packets are judged by.
    ruleset: Arc<Ruleset>,
    state: LaneState,
}

/// What a worker has of its own and changes.
#[derive(Debug)]
struct LaneState {
    index: usize,
    rng: Rng,
    counters: Arc<Counters>,
    /// The last tick at which this worker began to look for flows whose time is over, and how far it is.
    expired: Tick,
    sweep: Sweep,
    /// Whether there are fragments that it is to give up.
    gives_up_fragments: bool,
    exhausted: Exhausted,
    limits: Limits,
    /// Room for the packets of a batch.
    arrivals: Vec<Arrival>,
    /// And for the keys of those of them that may open flows.
    strangers: Vec<Key>,
}

/// A packet that was checked, and its parts found.
#[derive(Clone, Copy, Debug)]
struct Arrived {
    headers: Headers,
    /// None for a packet without ports.
    segment: Option<(Segment, Trace)>,
}

type Arrival = Result<Arrived, ParseError>;

impl Lane {
    /// Whether flows or fragments are over that this worker has not forgotten yet, since that is done a bounded number at a time:
    /// it is to enter the engine again before it sleeps.
    #[must_use]
    pub const fn is_behind(&self) -> bool {
        self.state.sweep.is_under_way() || self.state.gives_up_fragments
    }
}

/// The packet path with everything it knows.
#[derive(Debug)]
pub struct Engine {
    ruleset: Current,
    builder: Builder,
    registry: Mutex<Registry>,
    conntrack: Conntrack,
    affinity: Affinity,
    /// Locked by fragments only.
    fragments: Mutex<Table<Course>>,
    counters: Vec<Arc<Counters>>,
    /// Service addresses that other hosts have, once somebody has looked. Locked only by packets to ports of service addresses
    /// that no service has.
    elsewhere: RwLock<Option<HashSet<IpAddr>>>,
}

impl Engine {
    /// An engine for as many workers as lanes are returned.
    #[must_use]
    pub fn new(policy: Arc<Policy>, workers: usize, seeds: Seeds, now: Instant) -> (Self, Vec<Lane>) {
        let mut rng = Rng::with_seed(seeds.choices);
        let mut registry = Registry::new(workers);
        let counters: Vec<Arc<Counters>> = (0..workers).map(|_| Arc::default()).collect();
        let ports = nat::ports(&policy.nat).len();
        let affinity = Affinity::new(&seeds.hashing);
        let fragments = Table::new(seeds.hashing.clone(), crate::fragments::Limits::default());
        let conntrack = Conntrack::new(workers, ports, policy.conntrack.max_flows, seeds.hashing, now);
        let ruleset = registry.prepare(policy, None).commit(Arc::new);
        let lanes = counters.iter().enumerate().map(|(index, counters)| Lane {
            ruleset: Arc::clone(&ruleset),
            state: LaneState {
                index,
                rng: rng.fork(),
                counters: Arc::clone(counters),
                expired: Tick::default(),
                sweep: Sweep::new(index, workers),
                gives_up_fragments: false,
                exhausted: Exhausted::default(),
                limits: Limits::default(),
                arrivals: Vec::new(),
                strangers: Vec::new(),
            },
        });
        let lanes = lanes.collect();
        let engine = Self {
            ruleset: Current::new(ruleset),
            builder: |work| work(),
            registry: Mutex::new(registry),
            conntrack,
            affinity,
            fragments: Mutex::new(fragments),
            counters,
            elsewhere: RwLock::new(None),
        };
        (engine, lanes)
    }

    /// From now on rulesets are built and freed by `builder`; before, by whoever asks for it.
    #[must_use]
    pub fn built_by(self, builder: Builder) -> Self {
        Self { builder, ..self }
    }

    /// Forgets flows whose time is over, in this worker's share of the table, and takes up the ruleset in effect for one batch.
    pub fn enter<'a>(&'a self, lane: &'a mut Lane, now: Instant) -> Processor<'a> {
        let Lane { ruleset, state: lane } = lane;
        self.ruleset.follow(ruleset);
        let released = self.expire(lane, now);
        Processor {
            ruleset,
            conntrack: &self.conntrack,
            affinity: &self.affinity,
            fragments: &self.fragments,
            released,
            flow_of_fragment: None,
            lane,
            router: None,
            host: None,
            restores_hop: false,
            elsewhere: &self.elsewhere,
        }
    }

    fn expire(&self, lane: &mut LaneState, now: Instant) -> Vec<Released> {
        let tick = Tick::at(now);
        let is_new = tick != lane.expired;
        if is_new {
            lane.expired = tick;
            self.conntrack.begin(&mut lane.sweep);
        }
        if lane.sweep.is_under_way() {
            self.conntrack.expire(&mut lane.sweep, now);
        }
        if is_new && lane.index == 0 {
            self.affinity.expire(self.conntrack.max_flows(), now);
            lane.gives_up_fragments = true;
        }
        if !lane.gives_up_fragments {
            return Vec::new();
        }
        let (released, has_more) = fragments::expire(&self.fragments, &lane.counters, now);
        lane.gives_up_fragments = has_more;
        released
    }

    /// Puts a new policy into effect: every batch that begins after this is judged by it. Flows stay.
    ///
    /// All that takes time is done while packets are judged by the policy before, and no packet waits for it.
    pub fn apply(&self, policy: Arc<Policy>) {
        let mut policy = Some(policy);
        (self.builder)(&mut || {
            if let Some(policy) = policy.take() {
                self.build(policy);
            }
        });
    }

    fn build(&self, policy: Arc<Policy>) {
        let mut registry = self.registry.lock();
        let max_flows = policy.conntrack.max_flows;
        let prepared = registry.prepare(policy, Some(&self.ruleset()));
        prepared.commit(|ruleset| self.ruleset.publish(ruleset));
        self.conntrack.set_max_flows(max_flows);
        self.ruleset.reclaim();
    }

    /// From now on packets to ports of service addresses that no service has are refused, as by a host that has these addresses,
    /// but for the addresses `elsewhere`, which other hosts have. Before, they pass.
    pub fn refuse_other_ports(&self, elsewhere: HashSet<IpAddr>) {
        *self.elsewhere.write() = Some(elsewhere);
    }

    /// Whether packets to ports of this address that no service has are refused.
    pub fn refuses_other_ports(&self, ruleset: &Ruleset, address: &IpAddr) -> bool {
        refuses_other_ports(&self.elsewhere, ruleset, address)
    }

    /// The ruleset in effect, which stays as it is while it is held. Another one may be put into effect meanwhile.
    #[must_use]
    pub fn ruleset(&self) -> Arc<Ruleset> {
        self.ruleset.get()
    }

    /// Gives back the memory of rulesets that were in effect before and that no worker uses any more; to be called now and then.
    /// Returns how many are in use still.
    pub fn reclaim(&self) -> usize {
        let mut held = self.ruleset.retired();
        if held > 0 {
            (self.builder)(&mut || held = self.ruleset.reclaim());
        }
        held
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
    pub fn course(&self, key: &crate::fragments::Key) -> Option<Result<Course, Drop>> {
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

fn refuses_other_ports(elsewhere: &RwLock<Option<HashSet<IpAddr>>>, ruleset: &Ruleset, address: &IpAddr) -> bool {
    let is_here = |elsewhere: &HashSet<IpAddr>| !elsewhere.contains(address);
    ruleset.is_virtual(address) && elsewhere.read().as_ref().is_some_and(is_here)
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

/// An engine during one batch of one worker.
#[derive(Debug)]
pub struct Processor<'a> {
    ruleset: &'a Ruleset,
    conntrack: &'a Conntrack,
    affinity: &'a Affinity,
    fragments: &'a Mutex<Table<Course>>,
    released: Vec<Released>,
    flow_of_fragment: Option<Tuple>,
    lane: &'a mut LaneState,
    router: Option<&'a mut dyn Router>,
    host: Option<&'a mut dyn Host>,
    restores_hop: bool,
    elsewhere: &'a RwLock<Option<HashSet<IpAddr>>>,
}

impl<'a> Processor<'a> {
    /// From now on packets are sent on by `router`, where one is given, else by the kernel.
    #[must_use]
    pub fn routed_by(self, router: Option<&'a mut dyn Router>) -> Self {
        Self { router, ..self }
    }

    /// From now on packets that go on get back one hop of their TTL: the kernel forwards them to lbd and once more from there, and
    /// takes one each time, though this host is one router (RFC 1812 section 5.3.1).
    #[must_use]
    pub fn restoring_hop(self, restores_hop: bool) -> Self {
        Self { restores_hop, ..self }
    }

    /// From now on `host` is asked what is its own.
    #[must_use]
    pub fn on_host(self, host: Option<&'a mut dyn Host>) -> Self {
        Self { host, ..self }
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
        self.look_ahead(&arrivals);
        for (frame, arrival) in frames.iter_mut().zip(&arrivals) {
            let verdict = self.decide(frame, arrival, now);
            done(frame, verdict);
        }
        arrivals.clear();
        self.lane.arrivals = arrivals;
    }

    /// Has the CPU fetch what the packets of a batch will need, where that lies far away: their flows, and the services of those
    /// that have none.
    fn look_ahead(&mut self, arrivals: &[Arrival]) {
        let segments = arrivals.iter().flatten().filter_map(|arrived| arrived.segment.as_ref());
        let are_flows_far = self.conntrack.is_far();
        if are_flows_far {
            segments.clone().for_each(|(_, trace)| self.conntrack.prefetch(*trace));
        } else if !self.ruleset.is_far() {
            return;
        }
        self.lane.strangers.clear();
        let mut scout = self.conntrack.scout();
        for (segment, trace) in segments.filter(|(segment, _)| are_flows_far || segment.opens()) {
            if !scout.prefetch(*trace) && segment.opens() {
                self.lane.strangers.push(segment.key);
            }
        }
        drop(scout);
        if self.ruleset.is_far() {
            self.ruleset.prefetch(&self.lane.strangers, self.lane.index);
        }
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
            Ok(()) => {
                if self.restores_hop {
                    ip::restore_hop(frame.bytes_mut());
                }
                Verdict::Forward
            }
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
        let segment = segment(&headers, frame.bytes()).map(|segment| (segment, self.trace(&segment.key)));
        Ok(Arrived { headers, segment })
    }

    /// Where the flow of a packet of `key` may be.
    #[inline]
    fn trace(&self, key: &Key) -> Trace {
        self.conntrack.trace(key, || self.ruleset.likely(key))
    }

    /// The way of a packet.
    #[inline]
    fn forward(&mut self, frame: &mut Frame<'_>, arrival: &Arrival, now: Instant) -> Result<(), Stop> {
        // 1. It was checked, and its parts found, with all of its batch, so that what it needs next is in the cache.
        let Arrived { headers, segment } = arrival.as_ref().map_err(|&error| Stop::from(error))?;
        if frame.to_group {
            return Err(Stop::Drop(Drop::UnicastInL2Multicast));
        }
        // 2. Whose is it? A packet without ports can only be about another one, or meet a rule.
        let Some((segment, trace)) = segment else {
            return self.forward_without_ports(frame, headers, now);
        };
        let mut leaving = segment.key;
        self.forward_segment(frame, headers, segment, *trace, now, &mut leaving)
    }

    /// The rest of the way, which the first fragment of a datagram goes as well. `leaving`, at first the packet's own key,
    /// becomes the one that it leaves with.
    #[inline]
    fn forward_segment(
        &mut self,
        frame: &mut Frame<'_>,
        headers: &Headers,
        segment: &Segment,
        trace: Trace,
        now: Instant,
        leaving: &mut Key,
    ) -> Result<(), Stop> {
        // 3. A packet of a known flow follows its flow.
        let integrity = || verify::integrity(frame, headers);
        match self.follow(segment, trace, now, leaving, integrity) {
            Known::Flow => {}
            Known::Ended => return Err(Stop::Reject(Reject::BackendRemoved)),
            Known::Aborted => return Err(Stop::Abort(*leaving)),
            Known::Waits => return Err(Stop::Drop(Drop::BackendRemoved)),
            // 4. Any other one needs a service, a backend and a place in the table.
            Known::No => {
                *leaving = self.open(headers, segment, trace, now)?;
                frame.opens_flow = true;
            }
        }
        // 5. Where lbd is the router: does it fit, and may it go on?
        self.may_go_on(frame.bytes(), headers, leaving.destination)?;
        // 6. Translate it.
        rewrite::apply(frame, headers, leaving);
        Ok(())
    }

    /// A packet that lbd does not track: a rule may still have a say, and such fragments of services cannot be translated.
    fn without_flow(&mut self, headers: &Headers, now: Instant) -> Stop {
        let LaneState { index: lane, rng, .. } = &mut *self.lane;
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

    /// Where lbd is the router, it has not been asked yet whether a packet may be from `source` (RFC 1812 section 5.3.7).
    fn may_be_from(&mut self, source: Address) -> Result<(), Stop> {
        let router = self.router.as_mut();
        match router.is_some_and(|router| router.is_martian(source.into())) {
            true => Err(Stop::Drop(Drop::MartianSource)),
            false => Ok(()),
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

/// Whether it is of a protocol that services have. ICMP is not fragmented where it matters to lbd: an error is short.
pub fn is_balanced(headers: &Headers) -> bool {
    Protocol::from_number(headers.protocol).is_some()
}

impl From<ParseError> for Stop {
    fn from(error: ParseError) -> Self {
        match error {
            ParseError::NotIp => Self::Pass(Pass::NotIp),
            ParseError::Malformed => Self::Drop(Drop::Malformed),
        }
    }
}
