//! What would happen to a packet, step by step: the way of [`lbd_core::engine`], without leaving a trace.
//!
//! Nothing is counted, stored or drawn: flows and templates are only read, a scheduler picks on a copy of its state, and where
//! chance decides, all that it may choose from is shown. The verdict is the one that the packet would get at this moment,
//! unless it is a datagram to one of the host's own addresses, of which a socket of the host's may have it; where lbd itself is the router (AF_XDP), it may yet be too long for its way, or have come too far, and where
//! lbd has answered too many of late, there may be no answer.
mod choice;
mod fragment;
mod packet;
mod rules;

use std::borrow::Cow;

use crate::protocol::explanation::{Explanation, FlowStep, RewriteStep, Step};
use lbd_core::conntrack::connection::{Connection, State};
use lbd_core::conntrack::signal::Signal;
use lbd_core::engine::{
    Engine, Known, Orphan, Segment, is_balanced, is_believed, is_direct, is_reopened, may_be_ours, opens_nothing,
    orphaned, segment, told_by,
};
use lbd_core::flow::{Direction, Key, Tuple};
use lbd_core::matcher::Match;
use lbd_core::packet::frame::{Checksum, Frame};
use lbd_core::packet::{Headers, ParseError, Payload, echo, icmp, refusal};
use lbd_core::policy::{UnknownReply, UnknownTcp};
use lbd_core::rewrite::verify::{self, Integrity};
use lbd_core::ruleset::Ruleset;
use lbd_core::time::Instant;
use lbd_core::verdict::{Drop, Pass, Reject, Verdict};

pub use self::packet::packet;

/// Room for an answer that is longer than the packet.
const TAIL: usize = 1_500;

/// What would happen to this IP packet now.
#[must_use]
pub fn explain(engine: &Engine, packet: &[u8], now: Instant) -> Explanation {
    let ruleset = engine.ruleset();
    let explanation = Explanation {
        mode: ruleset.policy.mode,
        steps: Vec::new(),
        verdict: Cow::Borrowed(""),
        reason: None,
        service: None,
        backend: None,
        by_chance: false,
        notes: Vec::new(),
    };
    let mut way = Way {
        engine,
        ruleset: &ruleset,
        packet,
        now,
        told: explanation,
    };
    let verdict = way.judge();
    way.told.end(verdict);
    way.told
}

/// A packet on its way.
struct Way<'a> {
    engine: &'a Engine,
    ruleset: &'a Ruleset,
    packet: &'a [u8],
    now: Instant,
    told: Explanation,
}

impl<'a> Way<'a> {
    fn push(&mut self, step: Step) {
        self.told.steps.push(step);
    }

    /// The steps of `Processor::forward`.
    fn judge(&mut self) -> Verdict {
        let headers = match Headers::parse(self.packet) {
            Ok(headers) => headers,
            Err(error) => return self.unreadable(error),
        };
        self.push(Step::Packet(packet::step(&headers, self.packet)));
        if !may_be_ours(self.ruleset, &headers) {
            let note =
                "neither address is a service's or a backend's: such a packet does not come to lbd, unless by a detour";
            self.told.notes.push(Cow::Borrowed(note));
        }
        match (segment(&headers, self.packet), &headers.payload) {
            (Some(segment), _) => self.with_ports(&headers, &segment),
            (None, Payload::Fragment(fragment)) => self.fragment(&headers, fragment),
            (None, Payload::Tcp(..) | Payload::Udp(_) | Payload::Sctp(..) | Payload::IcmpError | Payload::Other) => {
                self.without_ports(&headers)
            }
        }
    }

    fn with_ports(&mut self, headers: &Headers, segment: &Segment) -> Verdict {
        let (known, flow) = self.follow(headers, segment);
        let leaving = match &flow {
            Some((connection, direction)) => connection.leaving(*direction).into(),
            None => segment.key,
        };
        let forgotten = flow.map(|(connection, _)| connection);
        match known {
            Known::Flow => self.leave(&leaving.into(), false),
            Known::Ended => self.refuse(headers, Reject::BackendRemoved),
            Known::Aborted => self.abort(headers, &leaving),
            Known::Waits => Verdict::Drop(Drop::BackendRemoved),
            Known::No => self.open(headers, segment, forgotten.as_ref()),
        }
    }

    fn unreadable(&mut self, error: ParseError) -> Verdict {
        let verdict = match error {
            ParseError::NotIp => Verdict::Pass(Pass::NotIp),
            ParseError::Malformed => Verdict::Drop(Drop::Malformed),
        };
        let problem = Cow::Borrowed(verdict.reason().unwrap_or_default());
        self.push(Step::Unreadable { problem });
        verdict
    }

    /// The packet's flow, if it still is, and the packet's direction.
    fn follow(&mut self, headers: &Headers, segment: &Segment) -> (Known, Option<(Connection, Direction)>) {
        let Some((connection, direction)) = self.engine.conntrack().get(&segment.key.into(), self.now) else {
            self.push(Step::NoFlow);
            return (Known::No, None);
        };
        let policy = &self.ruleset.policy.conntrack;
        let (rule, reuse, generation) = (policy.on_backend_removed, policy.conn_reuse, self.ruleset.generation);
        let state = connection.state;
        let integrity = || self.integrity(headers);
        let is_believed = is_believed(state, &connection.window, segment, direction, integrity);
        let reuse = reuse && is_believed;
        let orphan = connection.backend.orphans(rule, connection.protocol, generation);
        let orphan = orphan.map_or(Orphan::GoesOn, |rule| orphaned(rule, segment, is_believed, direction));
        let (known, outcome) = match orphan {
            _ if is_reopened(state, &connection.backend, generation, reuse, segment, direction) => {
                (Known::No, "reopened")
            }
            _ if is_direct(state, connection.is_masqueraded(), segment, direction, integrity) => (Known::No, "over"),
            Orphan::GoesOn => (Known::Flow, "follows"),
            Orphan::Waits => (Known::Waits, "waits"),
            Orphan::Ends => (told_by(state, direction), "ends"),
            Orphan::IsForgotten(Known::No) => (Known::No, "rescheduled"),
            Orphan::IsForgotten(known) => (known, "ends"),
        };
        let next = match known {
            Known::Waits => state,
            Known::Flow if !is_believed => state,
            Known::Flow | Known::No | Known::Ended | Known::Aborted => state.next(direction, segment.signal),
        };
        if known == Known::Flow && !is_believed {
            self.told.notes.push(Cow::Borrowed(match integrity() {
                Integrity::Wrong => "its checksum is wrong: it is forwarded, and changes nothing",
                Integrity::Right | Integrity::Unknown => {
                    "it does not fit what both sides have said before: it is forwarded, and does not change the state"
                }
            }));
        }
        self.found(&connection, direction, next, outcome);
        (known, Some((connection, direction)))
    }

    /// Whether the packet is what its sender has sent.
    fn integrity(&self, headers: &Headers) -> Integrity {
        let mut packet = self.packet.to_vec();
        let length = packet.len();
        verify::integrity(&Frame::new(&mut packet, 0, length, Checksum::Complete), headers)
    }

    fn found(&mut self, connection: &Connection, direction: Direction, next: State, outcome: &'static str) {
        let backend = connection.server();
        let service = connection.backend.service.name.clone();
        self.told.service = Some(service.clone());
        self.told.backend = Some(backend);
        self.push(Step::Flow(Box::new(FlowStep {
            service,
            backend,
            client: connection.client,
            virtual_address: connection.virtual_address,
            source: connection.source,
            direction: direction.name().into(),
            state: connection.state.name().into(),
            next_state: next.name().into(),
            expires_seconds: (connection.expires - self.now).as_secs(),
            backend_removed: connection.backend.is_removed(self.ruleset.generation),
            outcome: outcome.into(),
        })));
    }

    /// `Processor::forward_without_ports`
    fn without_ports(&mut self, headers: &Headers) -> Verdict {
        let quoted = icmp::quoted(self.packet, headers);
        let flow = quoted.and_then(|quoted| self.engine.conntrack().get(&quoted.key.reply().into(), self.now));
        if let Some((connection, direction)) = flow {
            self.found(&connection, direction, connection.state, "follows");
            return self.leave(&connection.leaving(direction), true);
        }
        self.push(Step::NoFlow);
        match self.find(headers, None) {
            Match::Drop => Verdict::Drop(Drop::Rule),
            Match::Reject => self.refuse(headers, Reject::Rule),
            Match::Pass => Verdict::Pass(Pass::Rule),
            Match::Service(_) | Match::None => match headers.payload {
                Payload::Fragment(_) if is_balanced(headers) && self.concerns_services(headers) => {
                    Verdict::Drop(Drop::Fragment)
                }
                Payload::Fragment(_) => Verdict::Pass(Pass::NoMatch),
                Payload::Other if self.is_pinged(headers) => {
                    let answered = self.on_a_copy(|frame| echo::answer(frame, headers).is_ok());
                    self.answer(answered, "icmp_echo_reply", Reject::Echo)
                }
                Payload::Other | Payload::IcmpError | Payload::Tcp(..) | Payload::Udp(_) | Payload::Sctp(..) => {
                    Verdict::Pass(Pass::UntrackedProtocol)
                }
            },
        }
    }

    fn concerns_services(&self, headers: &Headers) -> bool {
        self.ruleset.is_known(&headers.source.into()) || self.ruleset.is_known(&headers.destination.into())
    }

    fn is_pinged(&self, headers: &Headers) -> bool {
        let is_answered = self.ruleset.policy.icmp.echo && self.ruleset.is_virtual(&headers.destination.into());
        is_answered && echo::is_request(self.packet, headers)
    }

    /// `Processor::open`, in the place of the flow that is `forgotten`.
    fn open(&mut self, headers: &Headers, segment: &Segment, forgotten: Option<&Connection>) -> Verdict {
        (self.told.service, self.told.backend) = (None, None);
        let service = match self.find(headers, Some(&segment.key.into())) {
            Match::Service(service) => service,
            Match::None => {
                return self
                    .late_answer(headers, segment)
                    .unwrap_or_else(|| self.unserved(headers));
            }
            Match::Pass => return Verdict::Pass(Pass::Rule),
            Match::Reject => return self.refuse(headers, Reject::Rule),
            Match::Drop => return Verdict::Drop(Drop::Rule),
        };
        self.told.service = Some(service.identity.name.clone());
        if !segment.opens() {
            return match service.is_usable() {
                _ if self.ruleset.is_local(&headers.destination.into()) => self.pass_to_host(segment),
                true => self.stray(headers, segment),
                false => self.refuse(headers, Reject::NoBackend),
            };
        }
        if !self.ruleset.may_ask(&segment.key.into()) {
            return Verdict::Drop(Drop::Unanswerable);
        }
        self.establish(headers, &segment.key.into(), service, forgotten)
    }

    /// `Processor::unserved`
    fn unserved(&mut self, headers: &Headers) -> Verdict {
        let address = headers.destination.into();
        match self.engine.refuses_other_ports(self.ruleset, &address) {
            true => self.refuse(headers, Reject::NoService),
            false => Verdict::Pass(Pass::NoMatch),
        }
    }

    /// It opens nothing at an address of this host.
    fn pass_to_host(&mut self, segment: &Segment) -> Verdict {
        self.push(match segment.signal {
            Signal::Tcp(_) | Signal::Udp => Step::NotSyn,
            Signal::Sctp(_) => Step::NotInit,
        });
        Verdict::Pass(opens_nothing(segment))
    }

    /// `Processor::late_answer`
    fn late_answer(&mut self, headers: &Headers, segment: &Segment) -> Option<Verdict> {
        let (table, policy) = (self.engine.conntrack(), &self.ruleset.policy.conntrack);
        if !table.is_late_answer(&segment.key, segment.signal, &policy.timeouts, self.now) {
            return None;
        }
        let note = "a backend's late answer on a connection that lbd has forgotten: its client knows only the service";
        self.told.notes.push(Cow::Borrowed(note));
        Some(match policy.unknown_reply {
            UnknownReply::Drop => Verdict::Drop(Drop::UnknownReply),
            UnknownReply::Reset => self.refuse(headers, Reject::UnknownReply),
        })
    }

    /// `Processor::stray`
    fn stray(&mut self, headers: &Headers, segment: &Segment) -> Verdict {
        if matches!(segment.signal, Signal::Sctp(_)) {
            self.push(Step::NotInit);
            return Verdict::Drop(Drop::NotInit);
        }
        self.push(Step::NotSyn);
        match self.ruleset.policy.conntrack.unknown_tcp {
            UnknownTcp::Drop => Verdict::Drop(Drop::NotSyn),
            UnknownTcp::Pass => Verdict::Pass(Pass::NotSyn),
            UnknownTcp::Reset => self.refuse(headers, Reject::NotSyn),
        }
    }

    fn leave(&mut self, leaving: &Tuple, of_quoted: bool) -> Verdict {
        self.push(Step::Rewrite(RewriteStep::to(leaving, of_quoted)));
        Verdict::Forward
    }

    fn refuse(&mut self, headers: &Headers, reason: Reject) -> Verdict {
        let answered = self.on_a_copy(|frame| refusal::answer(frame, headers).is_ok());
        let answer = match headers.payload {
            Payload::Tcp(..) => "tcp_reset",
            Payload::Udp(_) | Payload::Sctp(..) | Payload::Fragment(_) | Payload::IcmpError | Payload::Other => {
                "icmp_port_unreachable"
            }
        };
        self.answer(answered, answer, reason)
    }

    fn abort(&mut self, headers: &Headers, leaving: &Key) -> Verdict {
        let answered = self.on_a_copy(|frame| refusal::abort(frame, headers, leaving).is_ok());
        self.answer(answered, "tcp_reset_to_receiver", Reject::BackendRemoved)
    }

    fn answer(&mut self, answered: bool, answer: &'static str, reason: Reject) -> Verdict {
        let answer = Cow::Borrowed(if answered { answer } else { "none" });
        self.push(Step::Answer { answer });
        match answered {
            true => Verdict::Reject(reason),
            false => Verdict::Drop(Drop::Unanswerable),
        }
    }

    fn on_a_copy(&self, act: impl FnOnce(&mut Frame<'_>) -> bool) -> bool {
        let length = self.packet.len();
        let mut storage = vec![0; length + TAIL];
        storage[..length].copy_from_slice(self.packet);
        act(&mut Frame::new(&mut storage, 0, length, Checksum::Complete))
    }
}
