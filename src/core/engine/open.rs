//! The first packet of a flow: its service, its backend, its sender, and its place in the table.
use std::sync::Arc;

use super::follow::{Known, Segment, count};
use super::{LaneState, Processor, Stop};
use crate::conntrack::bypass::Side;
use crate::conntrack::connection::{Connection, Dialogue, State};
use crate::conntrack::signal::Signal;
use crate::conntrack::window::Window;
use crate::conntrack::{Refused, Trace};
use crate::flow::{Direction, Key, Tuple};
use crate::matcher::Match;
use crate::nat::{self, NoSource};
use crate::packet::Headers;
use crate::policy::{UnknownReply, UnknownTcp};
use crate::rewrite::verify::Integrity;
use crate::scheduler::Rng;
use crate::service::{Backend, Service};
use crate::time::Instant;
use crate::verdict::{Drop, Pass, Reject};

impl Processor<'_> {
    /// Finds a service and a backend for a packet without a flow, and remembers the choice.
    pub(super) fn open(
        &mut self,
        headers: &Headers,
        segment: &Segment,
        trace: Trace,
        now: Instant,
    ) -> Result<Key, Stop> {
        self.may_be_from(segment.key.source)?;
        let tuple = Tuple::from(segment.key);
        let LaneState { index: lane, rng, .. } = &mut *self.lane;
        let ruleset = self.ruleset;
        let service = match ruleset.find(headers, Some(&tuple), rng, *lane, now) {
            Match::Service(service) => service,
            Match::None => return Err(self.unserved(segment, trace, now)),
            Match::Pass => return Err(self.bypass(segment, trace, Pass::Rule, now)),
            Match::Reject => return Err(Stop::Reject(Reject::Rule)),
            Match::Drop => return Err(Stop::Drop(Drop::Rule)),
        };
        let is_own = self.ruleset.is_local(&tuple.destination.address);
        if !segment.opens() {
            return Err(match service.is_usable() {
                _ if is_own => self.bypass(segment, trace, opens_nothing(segment), now),
                true => self.stray(segment),
                false => Stop::Reject(Reject::NoBackend),
            });
        }
        if !self.ruleset.may_ask(&tuple) {
            return Err(Stop::Drop(Drop::Unanswerable));
        }
        if is_own && segment.signal == Signal::Udp && self.host.as_mut().is_some_and(|host| host.owns(&tuple)) {
            return Err(self.bypass(segment, trace, Pass::Host, now));
        }
        match self.establish(service, segment, &tuple, now) {
            // Refused by a full table that was looked through for the flow.
            full @ Err(Stop::Drop(Drop::TableFull)) => full,
            // Another worker may have been faster with a packet of the same flow, and then this one follows.
            Err(stop @ Stop::Drop(_)) => {
                let mut leaving = segment.key;
                match self.follow(segment, trace, now, &mut leaving, || Integrity::Unknown) {
                    Known::Flow => Ok(leaving),
                    Known::No | Known::Ended | Known::Aborted | Known::Waits => Err(stop),
                }
            }
            decided @ (Ok(_)
            | Err(
                Stop::Pass(_) | Stop::Reject(_) | Stop::Abort(_) | Stop::Complain(_) | Stop::Echo | Stop::Hold,
            )) => decided,
        }
    }

    /// No service has this port of the address. Where lbd answers for the address, nobody else would say so.
    fn unserved(&self, segment: &Segment, trace: Trace, now: Instant) -> Stop {
        if let Some(stop) = self.late_answer(segment, now) {
            return stop;
        }
        let address = segment.key.destination.into();
        match super::refuses_other_ports(self.elsewhere, self.ruleset, &address) {
            true => Stop::Reject(Reject::NoService),
            false => self.bypass(segment, trace, Pass::NoMatch, now),
        }
    }

    /// What becomes of a backend's late answer to a client that knows only the service.
    fn late_answer(&self, segment: &Segment, now: Instant) -> Option<Stop> {
        let policy = &self.ruleset.policy.conntrack;
        let is_late = self
            .conntrack
            .is_late_answer(&segment.key, segment.signal, &policy.timeouts, now);
        is_late.then_some(match policy.unknown_reply {
            UnknownReply::Drop => Stop::Drop(Drop::UnknownReply),
            UnknownReply::Reset => Stop::Reject(Reject::UnknownReply),
        })
    }

    /// A packet that passes may be of a connection between a client and a backend that goes past the services.
    fn bypass(&self, segment: &Segment, trace: Trace, reason: Pass, now: Instant) -> Stop {
        if self.ruleset.is_known(&segment.key.source.into()) {
            self.conntrack
                .note_bypass(trace.hash(), Side::Server, segment.signal, now);
        }
        if self.ruleset.is_known(&segment.key.destination.into()) {
            let answer = self.conntrack.hash(&segment.key.reply());
            self.conntrack.note_bypass(answer, Side::Client, segment.signal, now);
        }
        Stop::Pass(reason)
    }

    /// What becomes of a packet to a service that has no flow and opens none.
    pub(super) fn stray(&self, segment: &Segment) -> Stop {
        match segment.signal {
            Signal::Tcp(_) | Signal::Udp => self.ruleset.policy.conntrack.unknown_tcp.into(),
            Signal::Sctp(_) => Stop::Drop(Drop::NotInit),
        }
    }

    /// Chooses a backend and a source for a new flow, and stores it.
    fn establish(&mut self, service: &Service, segment: &Segment, tuple: &Tuple, now: Instant) -> Result<Key, Stop> {
        let LaneState {
            index: lane,
            rng,
            exhausted,
            ..
        } = &mut *self.lane;
        let client = tuple.source.address;
        let chosen = self.affinity.choose(service, client, now, &self.ruleset.policy, || {
            pick(service, tuple, now, rng)
        });
        let (backend, template) = chosen.ok_or(Stop::Reject(Reject::NoBackend))?;
        let source = nat::source(self.ruleset, self.conntrack, tuple, &backend, now, rng, exhausted)?;
        let state = State::new(tuple.protocol).next(Direction::Original, segment.signal);
        let connection = Connection {
            protocol: tuple.protocol,
            client: tuple.source,
            virtual_address: tuple.destination,
            source,
            backend: Arc::clone(&backend),
            template: template.clone(),
            state,
            dialogue: Dialogue::Asked,
            window: Window::opened(&segment.numbers),
            opened: now,
            expires: now + state.timeout(&self.ruleset.policy.conntrack.timeouts),
        };
        let leaving = connection.leaving(Direction::Original);
        self.conntrack.insert(connection, now)?;
        if let (Some(template), Some(persistence)) = (template, &service.persistence) {
            template.renew(now + persistence.timeout);
        }
        backend.stats.count_connection(*lane);
        count(&backend, Direction::Original, *lane, segment.length);
        Ok(leaving.into())
    }
}

/// As which it is the host's, at one of its own addresses.
pub const fn opens_nothing(segment: &Segment) -> Pass {
    match segment.signal {
        Signal::Tcp(_) | Signal::Udp => Pass::NotSyn,
        Signal::Sctp(_) => Pass::NotInit,
    }
}

fn pick(service: &Service, tuple: &Tuple, now: Instant, rng: &mut Rng) -> Option<Arc<Backend>> {
    let chosen = service.scheduler.pick(tuple, &service.backends, now, rng)?;
    service.backends.get(chosen).map(|member| Arc::clone(&member.backend))
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
