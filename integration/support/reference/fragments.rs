//! What becomes of the fragments of a datagram: a list of datagrams, each with the numbers of the bytes that have come.
//!
//! Not in it: the bounds in number and bytes, which nothing here comes near.
use std::collections::BTreeSet;
use std::net::IpAddr;

use lbd::flow::Protocol;
use lbd::verdict::{Drop, Pass, Verdict};

use super::{Ends, Expected, Model, SECOND, Said};

/// A fragment as it is sent.
#[derive(Clone, Debug)]
pub struct Piece {
    /// Of the datagram.
    pub ends: Ends,
    /// What the whole datagram says.
    pub said: Said,
    pub identification: u32,
    /// Which bytes of the datagram it has.
    pub start: usize,
    pub end: usize,
    pub more: bool,
    pub packet: Vec<u8>,
}

/// In IPv6 the protocol does not count.
type Key = (IpAddr, IpAddr, Option<Protocol>, u32);

impl Piece {
    fn key(&self) -> Key {
        let Ends { protocol, from, to } = self.ends;
        (
            from.ip(),
            to.ip(),
            from.is_ipv4().then_some(protocol),
            self.identification,
        )
    }

    /// What it says itself, if it is the first one.
    fn said(&self) -> Said {
        Said {
            length: self.end.saturating_sub(self.header()) as u32,
            is_cut: self.more,
            ..self.said
        }
    }

    fn is_malformed(&self) -> bool {
        let length = self.end - self.start;
        length == 0 || (self.more && !length.is_multiple_of(8))
    }

    /// Whether it shows what belongs together: ports, and in TCP flags.
    fn is_beginning(&self) -> bool {
        self.start == 0 && self.end >= self.header()
    }

    fn header(&self) -> usize {
        match self.ends.protocol {
            Protocol::Tcp => 20,
            Protocol::Udp => 8,
            Protocol::Sctp => 12,
        }
    }

    /// Nobody but an attacker cuts within the TCP header, nor writes over it.
    fn is_tiny(&self) -> bool {
        match self.start {
            0 => self.end < self.header(),
            start => self.ends.protocol == Protocol::Tcp && start < self.header(),
        }
    }
}

/// What is known of a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Course {
    Waiting,
    /// As its first fragment.
    Decided(Expected),
    Spoilt(Drop),
}

#[derive(Debug)]
pub struct Datagram {
    key: Key,
    came: BTreeSet<usize>,
    end: Option<usize>,
    course: Course,
    first: Option<Vec<u8>>,
    /// The tickets of fragments that wait.
    held: Vec<u64>,
    dies: u64,
}

impl Datagram {
    /// Takes note of a piece, or says why it is dropped; and whether with it all of the datagram is.
    fn add(&mut self, piece: &Piece) -> Result<(), (Drop, bool)> {
        let bytes: BTreeSet<usize> = (piece.start..piece.end).collect();
        let farthest = self.came.last().map_or(0, |last| last + 1);
        let is_beyond = match self.end {
            Some(end) => piece.end > end || !piece.more,
            None => !piece.more && piece.end < farthest,
        };
        if piece.end > 65_535 {
            return Err((Drop::FragmentTooLong, true));
        } else if bytes.is_subset(&self.came) {
            return Err((Drop::FragmentDuplicate, false));
        } else if !bytes.is_disjoint(&self.came) {
            return Err((Drop::FragmentOverlap, true));
        } else if is_beyond {
            return Err((Drop::FragmentTooLong, true));
        }
        if !piece.more {
            self.end = Some(piece.end);
        }
        self.came.extend(bytes);
        Ok(())
    }

    fn is_whole(&self) -> bool {
        self.end == Some(self.came.len())
    }

    fn is_forgotten(&self) -> bool {
        matches!(self.course, Course::Decided(_)) && self.held.is_empty() && self.is_whole()
    }
}

impl Model {
    /// What must become of the fragment. Then comes [`Self::learn`] where it opens a flow from the pool, and in any case
    /// [`Self::released`].
    pub fn fragment(&mut self, piece: &Piece) -> Expected {
        let is_known = self.is_known(piece.ends.from.ip()) || self.is_known(piece.ends.to.ip());
        if piece.is_malformed() {
            return Expected::Verdict(Verdict::Drop(Drop::Malformed));
        }
        if piece.start == 0 && !piece.more {
            return self.packet(piece.ends, piece.said());
        }
        if piece.ends.protocol == Protocol::Sctp {
            return self.without_ports(piece, is_known);
        }
        if piece.is_tiny() && is_known && piece.start > 0 {
            return Expected::Verdict(Verdict::Drop(Drop::FragmentTiny));
        }
        let is_of_a_flow = match piece.start {
            0 => piece.is_beginning() && self.find(&piece.ends).is_some(),
            _ => self.is_decided(piece),
        };
        match (is_known || is_of_a_flow, piece.is_beginning()) {
            (true, _) => self.arrive(piece),
            (false, true) => self.begin(piece),
            (false, false) => self.without_ports(piece, false),
        }
    }

    fn is_decided(&self, piece: &Piece) -> bool {
        let mut datagrams = self.datagrams.iter();
        datagrams.any(|datagram| datagram.key == piece.key() && datagram.course != Course::Waiting)
    }

    fn without_ports(&self, piece: &Piece, is_known: bool) -> Expected {
        Expected::Verdict(match (self.is_banned(&piece.ends), is_known) {
            (true, _) => Verdict::Drop(Drop::Rule),
            (false, true) => Verdict::Drop(Drop::Fragment),
            (false, false) => Verdict::Pass(Pass::NoMatch),
        })
    }

    /// As the whole packet; but nothing of TCP is answered without all of it.
    fn begin(&mut self, piece: &Piece) -> Expected {
        match self.packet(piece.ends, piece.said()) {
            Expected::Verdict(Verdict::Reject(_)) if piece.ends.protocol == Protocol::Tcp => {
                Expected::Verdict(Verdict::Drop(Drop::Unanswerable))
            }
            other @ (Expected::Verdict(_) | Expected::Forward(_) | Expected::ForwardFromPool { .. }) => other,
        }
    }

    fn arrive(&mut self, piece: &Piece) -> Expected {
        let at = self.place(piece);
        if let Course::Spoilt(reason) = self.datagrams[at].course {
            return Expected::Verdict(Verdict::Drop(reason));
        }
        if let Err((reason, spoils)) = self.datagrams[at].add(piece) {
            if spoils {
                self.datagrams[at].course = Course::Spoilt(reason);
            }
            return Expected::Verdict(Verdict::Drop(reason));
        }
        match self.datagrams[at].course {
            Course::Decided(course) => course,
            Course::Waiting | Course::Spoilt(_) if piece.start == 0 => {
                let expected = match piece.is_tiny() {
                    true => Expected::Verdict(Verdict::Drop(Drop::FragmentTiny)),
                    false => self.begin(piece),
                };
                self.datagrams[at].first = Some(piece.packet.clone());
                self.datagrams[at].course = Course::Decided(later(expected));
                expected
            }
            Course::Waiting | Course::Spoilt(_) => {
                self.datagrams[at].held.push(self.tickets);
                self.tickets += 1;
                Expected::Verdict(Verdict::Hold)
            }
        }
    }

    /// Where the datagram is in the list; it is put there if it is not. Another first fragment than the one that was decided
    /// about is of another datagram with the same identification.
    fn place(&mut self, piece: &Piece) -> usize {
        self.datagrams.retain(|datagram| {
            let is_another = piece.start == 0
                && matches!(datagram.course, Course::Decided(_))
                && datagram.first.as_ref() != Some(&piece.packet);
            datagram.key != piece.key() || !is_another
        });
        if let Some(at) = self.datagrams.iter().position(|known| known.key == piece.key()) {
            return at;
        }
        let seconds = if piece.ends.from.is_ipv4() { 30 } else { 60 };
        self.datagrams.push(Datagram {
            key: piece.key(),
            came: BTreeSet::new(),
            end: None,
            course: Course::Waiting,
            first: None,
            held: Vec::new(),
            dies: self.now + seconds * SECOND,
        });
        self.datagrams.len() - 1
    }

    /// The flow that a first fragment opened comes from this place of the pool, and so do the later ones.
    pub(super) fn learn_of_fragments(&mut self, leaves: Ends) {
        for datagram in &mut self.datagrams {
            if let Course::Decided(Expected::ForwardFromPool { .. }) = datagram.course {
                datagram.course = Course::Decided(Expected::Forward(leaves));
            }
        }
    }

    pub(super) fn expire_fragments(&mut self) {
        for datagram in self.datagrams.iter_mut().filter(|datagram| datagram.dies <= self.now) {
            datagram.course = Course::Spoilt(Drop::FragmentTimeout);
        }
        self.release();
        self.datagrams.retain(|datagram| datagram.dies > self.now);
    }

    /// What must have become, since the last time, of the fragments that were held, by the order in which they came.
    pub fn released(&mut self) -> Vec<(u64, Expected)> {
        self.release();
        self.datagrams.retain(|datagram| !datagram.is_forgotten());
        std::mem::take(&mut self.given_out)
    }

    fn release(&mut self) {
        for datagram in &mut self.datagrams {
            let course = match datagram.course {
                Course::Waiting => continue,
                Course::Decided(course) => course,
                Course::Spoilt(reason) => Expected::Verdict(Verdict::Drop(reason)),
            };
            let held = datagram.held.drain(..);
            self.given_out.extend(held.map(|ticket| (ticket, course)));
        }
    }

    /// Datagrams under way, and fragments that wait.
    pub fn holding(&self) -> (usize, usize) {
        let held = self.datagrams.iter().map(|datagram| datagram.held.len());
        (self.datagrams.len(), held.sum())
    }
}

/// What the later fragments are told: none of them is answered.
fn later(first: Expected) -> Expected {
    match first {
        Expected::Verdict(Verdict::Reject(_)) => Expected::Verdict(Verdict::Drop(Drop::Unanswerable)),
        other @ (Expected::Verdict(_) | Expected::Forward(_) | Expected::ForwardFromPool { .. }) => other,
    }
}
