//! Fragments: the first one of a datagram goes the way of a whole packet, the others go after it.
use std::net::IpAddr;

use parking_lot::Mutex;

use super::{Counters, Processor, Segment, Stop};
use crate::conntrack::signal::Signal;
use crate::flow::{Address, Key, Protocol, Tuple};
use crate::fragments::{self, Arrival, Held, Piece, Table};
use crate::packet::fragment::{Fragment, Opening};
use crate::packet::frame::{Checksum, Frame};
use crate::packet::{Headers, Version, ip};
use crate::rewrite;
use crate::ruleset::Ruleset;
use crate::time::Instant;
use crate::verdict::{Drop, Pass, Verdict};

/// What was decided about the first fragment of a datagram, and so about all.
#[derive(Clone, Copy, Debug)]
pub enum Course {
    /// They follow its flow.
    Forward(Way),
    /// They are not lbd's.
    Pass(Pass),
    /// They are dropped.
    Drop(Drop),
}

/// How the fragments of a flow's datagram leave.
#[derive(Clone, Copy, Debug)]
pub struct Way {
    /// Of the flow, as the datagram came.
    pub key: Key,
    /// The sender that they leave with.
    pub source: Address,
    /// The receiver that they leave for.
    pub destination: Address,
}

/// A packet that was held, and what became of it; it is counted.
#[derive(Clone, Debug)]
pub struct Released {
    /// How many packets the engine had held before it.
    pub ticket: u64,
    /// What became of it.
    pub verdict: Verdict,
    /// The packet as it is to be sent, its checksums complete.
    pub packet: Vec<u8>,
    /// The flow that it belongs to, by the tuple of the datagram as it came.
    pub flow: Option<Tuple>,
}

impl Processor<'_> {
    /// The packets that were held until now, each to be sent as its verdict says.
    #[must_use]
    pub fn take_released(&mut self) -> Vec<Released> {
        std::mem::take(&mut self.released)
    }

    /// The flow of the last fragment that was forwarded, by the tuple of its datagram as it came.
    #[must_use]
    pub const fn flow_of_fragment(&self) -> Option<Tuple> {
        self.flow_of_fragment
    }

    /// The way of a fragment.
    pub(super) fn forward_fragment(
        &mut self,
        frame: &mut Frame<'_>,
        headers: &Headers,
        fragment: &Fragment,
        now: Instant,
    ) -> Result<(), Stop> {
        let concerns_flows = may_be_ours(self.ruleset, headers);
        match (begun(headers, fragment, frame.bytes()), fragment.is_first()) {
            _ if !is_followed(headers, fragment) => Err(self.without_flow(headers, now)),
            (Some(segment), _) if concerns_flows || self.conntrack.get(&segment.key.into(), now).is_some() => {
                self.flow_of_fragment = Some(segment.key.into());
                self.forward_first(frame, headers, fragment, now, |this, frame| {
                    this.forward_begun(frame, headers, &segment, now)
                })
            }
            // Nobody's: at most a rule has a say.
            (Some(segment), _) => self.forward_begun(frame, headers, &segment, now).map(|_way| ()),
            // The later ones do not tell that there is nothing in it for lbd: they wait for this one as well.
            (None, true) if concerns_flows => self.forward_first(frame, headers, fragment, now, |this, _| {
                Err(match is_tiny(headers, fragment) {
                    true => Stop::Drop(Drop::FragmentTiny),
                    false => this.without_flow(headers, now),
                })
            }),
            (None, true) => Err(self.without_flow(headers, now)),
            (None, false) if is_tiny(headers, fragment) && concerns_flows => Err(Stop::Drop(Drop::FragmentTiny)),
            (None, false) => self.forward_later(frame, headers, fragment, concerns_flows, now),
        }
    }

    /// A first fragment, which is decided about by `decide`, and what was held of its datagram.
    fn forward_first(
        &mut self,
        frame: &mut Frame<'_>,
        headers: &Headers,
        fragment: &Fragment,
        now: Instant,
        decide: impl FnOnce(&mut Self, &mut Frame<'_>) -> Result<Way, Stop>,
    ) -> Result<(), Stop> {
        let key = fragments::Key::new(headers, fragment);
        self.arrive(&key, fragment, frame, now)?;
        let decided = decide(self, frame);
        let course = Course::of(&decided);
        let held = self.fragments.lock().settle(&key, course);
        self.release(held, course, now);
        decided.map(|_way| ())
    }

    /// From the flow on, as a whole packet.
    fn forward_begun(
        &mut self,
        frame: &mut Frame<'_>,
        headers: &Headers,
        segment: &Segment,
        now: Instant,
    ) -> Result<Way, Stop> {
        let trace = self.trace(&segment.key);
        let mut leaving = segment.key;
        self.forward_segment(frame, headers, segment, trace, now, &mut leaving)?;
        Ok(Way {
            key: segment.key,
            source: leaving.source,
            destination: leaving.destination,
        })
    }

    fn forward_later(
        &mut self,
        frame: &mut Frame<'_>,
        headers: &Headers,
        fragment: &Fragment,
        concerns_flows: bool,
        now: Instant,
    ) -> Result<(), Stop> {
        let key = fragments::Key::new(headers, fragment);
        if !concerns_flows && self.fragments.lock().course(&key).is_none() {
            return Err(self.without_flow(headers, now));
        }
        match self.arrive(&key, fragment, frame, now)? {
            Some(course) => self.go_after(frame, headers, course, now),
            None => Err(Stop::Hold),
        }
    }

    /// What was decided about the datagram, if anything.
    fn arrive(
        &mut self,
        key: &fragments::Key,
        fragment: &Fragment,
        frame: &Frame<'_>,
        now: Instant,
    ) -> Result<Option<Course>, Stop> {
        let packet = frame.bytes();
        let length = ip::length(packet).map_or(packet.len(), |length| length.min(packet.len()));
        let (arrival, evicted) = {
            let mut table = self.fragments.lock();
            let arrival = table.arrive(*key, Piece::from(fragment), &packet[..length], now);
            (arrival, table.take_evicted())
        };
        if !evicted.is_empty() {
            self.release(evicted, Course::Drop(Drop::FragmentTableFull), now);
        }
        match arrival {
            Arrival::First | Arrival::Held => Ok(None),
            Arrival::Follows(course) => Ok(Some(course)),
            Arrival::Dropped(reason, held) => {
                self.release(held, Course::Drop(reason), now);
                Err(Stop::Drop(reason))
            }
        }
    }

    /// A fragment goes the way of the first one. Its flow, if that is still there, counts it.
    fn go_after(&mut self, frame: &mut Frame<'_>, headers: &Headers, course: Course, now: Instant) -> Result<(), Stop> {
        let way = match course {
            Course::Forward(way) => way,
            Course::Pass(reason) => return Err(Stop::Pass(reason)),
            Course::Drop(reason) => return Err(Stop::Drop(reason)),
        };
        self.may_go_on(frame.bytes(), headers, way.destination)?;
        rewrite::addresses(frame, way.source, way.destination);
        self.count_fragment(&way.key, headers.length, now);
        self.flow_of_fragment = Some(way.key.into());
        Ok(())
    }

    fn count_fragment(&self, key: &Key, length: usize, now: Instant) {
        let (trace, lane) = (self.trace(key), self.lane.index);
        self.conntrack.with_flow(key, trace, now, |shard, slot, direction| {
            if let Some(flow) = shard.get_mut(slot) {
                super::count(&flow.backend, direction, lane, length);
            }
        });
    }

    fn release(&mut self, held: Vec<Held>, course: Course, now: Instant) {
        for Held { ticket, mut packet } in held {
            let length = packet.len();
            let mut frame = Frame::new(&mut packet, 0, length, Checksum::Complete);
            let result = Headers::parse(frame.bytes())
                .map_err(Stop::from)
                .and_then(|headers| self.go_after(&mut frame, &headers, course, now));
            let verdict = self.conclude(&mut frame, result, now);
            let length = frame.len();
            packet.truncate(length);
            self.lane.counters.count(verdict);
            let flow = match course {
                Course::Forward(way) => Some(way.key.into()),
                Course::Pass(_) | Course::Drop(_) => None,
            };
            self.released.push(Released {
                ticket,
                verdict,
                packet,
                flow,
            });
        }
    }
}

impl Course {
    fn of(decided: &Result<Way, Stop>) -> Self {
        match decided {
            Ok(way) => Self::Forward(*way),
            Err(Stop::Pass(reason)) => Self::Pass(*reason),
            Err(Stop::Drop(reason)) => Self::Drop(*reason),
            // The sender has its answer, and none may be about a later fragment.
            Err(Stop::Reject(_) | Stop::Abort(_) | Stop::Complain(_) | Stop::Echo | Stop::Hold) => {
                Self::Drop(Drop::Unanswerable)
            }
        }
    }
}

/// Gives up some of the datagrams whose first fragment has not come in time; says whether there are more.
pub(super) fn expire(table: &Mutex<Table<Course>>, counters: &Counters, now: Instant) -> (Vec<Released>, bool) {
    let verdict = Verdict::Drop(Drop::FragmentTimeout);
    let give_up = |Held { ticket, packet }| {
        counters.count(verdict);
        Released {
            ticket,
            verdict,
            packet,
            flow: None,
        }
    };
    let mut table = table.lock();
    let held = table.expire(now);
    (held.into_iter().map(give_up).collect(), table.is_behind(now))
}

/// The datagram that begins with this fragment, if all of its transport header is there.
pub fn begun(headers: &Headers, fragment: &Fragment, packet: &[u8]) -> Option<Segment> {
    let Opening { flags, .. } = fragment.opening?;
    Some(Segment {
        key: headers.begun_key()?,
        signal: flags.map_or(Signal::Udp, Signal::Tcp),
        numbers: headers.numbers(packet).unwrap_or_default(),
        length: headers.length,
    })
}

/// Whether it may be part of a segment or datagram that lbd translates. Behind an extension header of IPv6 a later fragment
/// does not tell.
pub fn is_followed(headers: &Headers, fragment: &Fragment) -> bool {
    leads_to_ports(headers.version, fragment.protocol)
}

/// Whether a part of the headers up to the transport header is, or must be, in another fragment: nobody but an attacker cuts
/// there.
pub fn is_tiny(headers: &Headers, fragment: &Fragment) -> bool {
    /// The fixed part of the TCP header (RFC 9293 section 3.1): no fragment begins within it (RFC 3128).
    const TCP_HEADER: u16 = 20;
    match fragment.is_first() {
        true => fragment.opening.is_none() && leads_to_ports(headers.version, headers.protocol),
        false => headers.protocol == Protocol::Tcp.number() && fragment.offset < TCP_HEADER,
    }
}

/// Whether this protocol is, or may be an extension header before, one whose fragments lbd translates.
fn leads_to_ports(version: Version, protocol: u8) -> bool {
    match Protocol::from_number(protocol) {
        Some(protocol) => protocol.has_fragments(),
        None => version == Version::V6 && ip::is_seen_through(protocol),
    }
}

/// Whether a fragment may belong to a flow: it is from or to a service or a backend, or to where a rule leads to a service.
pub fn may_be_ours(ruleset: &Ruleset, headers: &Headers) -> bool {
    let (source, destination) = (IpAddr::from(headers.source), IpAddr::from(headers.destination));
    ruleset.is_known(&source) || ruleset.is_known(&destination) || ruleset.matcher.may_lead(destination)
}
