//! `shadow = true`: the other mode's matcher is asked about every packet that reaches the live one, and what it would have
//! said otherwise is counted and named, so that an operator knows what a switch of the mode would change.
//!
//! It changes nothing for packets: no counter of a rule, no random draw, no scheduler. Answers are compared by the service,
//! or by what becomes of the packet (pass, reject, drop). Only the rules of iptables mode can be a matter of chance, so all
//! answers are looked at that they could give: where all differ from the virtual servers' answer, the matchers disagree;
//! where only some do, it is up to chance, and counted as that.
use std::collections::{HashSet, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use ahash::RandomState;
use crossbeam_utils::CachePadded;
use parking_lot::Mutex;

use crate::flow::Tuple;
use crate::matcher::{Match, Matcher};
use crate::packet::Headers;
use crate::service::ServiceIdentity;
use crate::time::Instant;

/// So many different disagreements are remembered, those that were seen last.
pub const REMEMBERED: usize = 16;

/// So many different disagreements are told of, each once: strangers must not be able to fill the log or the memory.
const TOLD: usize = 1000;

/// See the module.
#[derive(Debug)]
pub struct Shadow {
    matcher: Matcher,
    record: Arc<Record>,
}

/// What became of the comparisons since the shadow was set, or the mode last changed.
#[derive(Debug)]
pub struct Record {
    lanes: Box<[CachePadded<Lane>]>,
    seen: Mutex<Seen>,
}

/// Comparisons by their outcome.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Both said the same.
    pub agreed: u64,
    /// A rule with a probability could make them differ.
    pub by_chance: u64,
    /// They said something else, whatever a rule with a probability would have drawn.
    pub disagreed: u64,
}

/// What one worker counted; no other thread writes to it.
#[derive(Debug, Default)]
struct Lane {
    agreed: AtomicU64,
    by_chance: AtomicU64,
    disagreed: AtomicU64,
}

#[derive(Debug, Default)]
struct Seen {
    /// The latest one comes last.
    last: VecDeque<Disagreement>,
    /// Not told yet, and each only once.
    news: VecDeque<Disagreement>,
    /// What was ever among the news.
    told: HashSet<Kind, RandomState>,
}

/// What makes disagreements the same one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Kind {
    protocol: u8,
    destination: Party,
    live: Answer,
    shadow: Answer,
}

/// An address, and a port where the protocol has some.
pub type Party = (IpAddr, Option<u16>);

/// What both matchers said about packets of one protocol to one destination.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disagreement {
    kind: Kind,
    /// Of the last such packet.
    pub source: Party,
    /// Such packets, since it was last forgotten among newer ones.
    pub count: u64,
    /// When the last one came.
    pub last: Instant,
}

/// What a matcher says.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Answer {
    /// The user rule that says it, from 1.
    pub rule: Option<usize>,
    /// What becomes of the packet.
    pub outcome: Outcome,
}

/// What becomes of a packet.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// It is for the service of this identity and name.
    Service(u64, String),
    /// It is left alone.
    Pass,
    /// It is refused.
    Reject,
    /// It is discarded.
    Drop,
}

impl Disagreement {
    /// The packets' protocol, as its number.
    #[must_use]
    pub const fn protocol(&self) -> u8 {
        self.kind.protocol
    }

    /// Where the packets go.
    #[must_use]
    pub const fn destination(&self) -> Party {
        self.kind.destination
    }

    /// What became of them.
    #[must_use]
    pub const fn live(&self) -> &Answer {
        &self.kind.live
    }

    /// What the other mode would have made of them.
    #[must_use]
    pub const fn shadow(&self) -> &Answer {
        &self.kind.shadow
    }
}

impl Answer {
    fn new(rule: Option<usize>, found: Match<'_>) -> Self {
        let outcome = match found {
            Match::Service(service) => {
                let ServiceIdentity { id, name, .. } = &*service.identity;
                Outcome::Service(*id, name.clone())
            }
            Match::Drop => Outcome::Drop,
            Match::Reject => Outcome::Reject,
            Match::Pass | Match::None => Outcome::Pass,
        };
        Self {
            rule: rule.map(|index| index + 1),
            outcome,
        }
    }
}

/// Whether two answers make the same of a packet.
fn is_same(one: Match<'_>, other: Match<'_>) -> bool {
    match (one, other) {
        (Match::Service(one), Match::Service(other)) => one.identity.id == other.identity.id,
        (Match::Drop, Match::Drop) | (Match::Reject, Match::Reject) => true,
        (Match::Pass | Match::None, Match::Pass | Match::None) => true,
        (Match::Service(_) | Match::Drop | Match::Reject | Match::Pass | Match::None, _) => false,
    }
}

impl Shadow {
    /// A shadow with this matcher. It goes on with the record of the former one, if that was of the same mode.
    #[must_use]
    pub fn new(matcher: Matcher, former: Option<&Self>, lanes: usize) -> Self {
        let record = former.filter(|former| former.matcher.mode() == matcher.mode());
        let record = record.map(|former| Arc::clone(&former.record));
        Self {
            matcher,
            record: record.unwrap_or_else(|| Arc::new(Record::new(lanes))),
        }
    }

    /// The other mode's matcher.
    #[must_use]
    pub const fn matcher(&self) -> &Matcher {
        &self.matcher
    }

    /// What became of the comparisons.
    #[must_use]
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// Takes note of whether this matcher says of a packet what the live one said. `lane` is the worker.
    pub fn compare(
        &self,
        (live, found): (&Matcher, Match<'_>),
        headers: &Headers,
        tuple: Option<&Tuple>,
        lane: usize,
        now: Instant,
    ) {
        let (rules, servers, rules_are_live) = match (live, &self.matcher) {
            (Matcher::Rules(rules), Matcher::VirtualServers(servers)) => {
                (rules, tuple.map_or(Match::None, |tuple| servers.find(tuple)), true)
            }
            (Matcher::VirtualServers(_), Matcher::Rules(rules)) => (rules, found, false),
            (Matcher::Rules(_), Matcher::Rules(_)) | (Matcher::VirtualServers(_), Matcher::VirtualServers(_)) => return,
        };
        let possible = rules.possible(headers, tuple);
        let alike = possible.iter().filter(|(_, answer)| is_same(*answer, servers)).count();
        let lane = &self.record.lanes[lane];
        if alike > 0 {
            let counter = match alike == possible.len() {
                true => &lane.agreed,
                false => &lane.by_chance,
            };
            return count(counter);
        }
        count(&lane.disagreed);
        // What was drawn, if the rules are live; else what is left when no draw strikes.
        let drawn = possible
            .iter()
            .find(|(_, answer)| rules_are_live && is_same(*answer, found));
        let Some(&(rule, answer)) = drawn.or_else(|| possible.last()) else {
            return;
        };
        let (rules, servers) = (Answer::new(rule, answer), Answer::new(None, servers));
        let (live, shadow) = if rules_are_live {
            (rules, servers)
        } else {
            (servers, rules)
        };
        let ports = tuple.map(|tuple| (tuple.source.port, tuple.destination.port)).unzip();
        let kind = Kind {
            protocol: headers.protocol,
            destination: (headers.destination.into(), ports.1),
            live,
            shadow,
        };
        self.record
            .seen
            .lock()
            .note(kind, (headers.source.into(), ports.0), now);
    }
}

fn count(counter: &AtomicU64) {
    counter.store(counter.load(Relaxed).wrapping_add(1), Relaxed);
}

impl Record {
    fn new(lanes: usize) -> Self {
        Self {
            lanes: (0..lanes).map(|_| CachePadded::default()).collect(),
            seen: Mutex::default(),
        }
    }

    /// The comparisons of all workers.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.lanes.iter().fold(Counts::default(), |sum, lane| Counts {
            agreed: sum.agreed + lane.agreed.load(Relaxed),
            by_chance: sum.by_chance + lane.by_chance.load(Relaxed),
            disagreed: sum.disagreed + lane.disagreed.load(Relaxed),
        })
    }

    /// The different disagreements that were seen last, the latest first.
    #[must_use]
    pub fn disagreements(&self) -> Vec<Disagreement> {
        self.seen.lock().last.iter().rev().cloned().collect()
    }

    /// Some of the disagreements that were not told of yet, `most` at the most, the oldest first.
    #[must_use]
    pub fn news(&self, most: usize) -> Vec<Disagreement> {
        let mut seen = self.seen.lock();
        let count = most.min(seen.news.len());
        seen.news.drain(..count).collect()
    }
}

impl Seen {
    fn note(&mut self, kind: Kind, source: Party, now: Instant) {
        let known = self.last.iter().position(|other| other.kind == kind);
        let count = known.and_then(|at| self.last.remove(at)).map_or(0, |other| other.count);
        let disagreement = Disagreement {
            kind,
            source,
            count: count + 1,
            last: now,
        };
        if count == 0 && self.told.len() < TOLD && self.told.insert(disagreement.kind.clone()) {
            self.news.push_back(disagreement.clone());
        }
        if self.last.len() == REMEMBERED {
            self.last.pop_front();
        }
        self.last.push_back(disagreement);
    }
}
