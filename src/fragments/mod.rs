//! Datagrams whose fragments are under way. Only the first fragment has ports, so it alone can be decided about; the others
//! follow it, and those that come before it are held here.
//!
//! **Bounded** in datagrams, fragments a datagram, bytes held and time, all as the kernel's own reassembly is or stricter.
//! A datagram is forgotten as soon as all of it has come, since its sender will use the identification again; where a
//! fragment was lost, as soon as the first one of another datagram comes.
//!
//! One table for all workers, since the fragments of a datagram may come by different queues. What was decided about a
//! datagram is the caller's to say ([`Table::settle`]) and of no interest here.
mod pieces;

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use ahash::RandomState;

pub use self::pieces::{MOST, Piece};
use self::pieces::{Misfit, Pieces};
use crate::flow::Address;
use crate::packet::fragment::Fragment;
use crate::packet::{Headers, Version};
use crate::time::Instant;
use crate::verdict::Drop;

/// `IP_FRAG_TIME`, include/net/ip.h; from the first fragment that came on.
const LIFE_V4: Duration = Duration::from_secs(30);
/// `IPV6_FRAG_TIMEOUT`, include/net/ipv6.h, as RFC 8200 section 4.5 asks.
const LIFE_V6: Duration = Duration::from_secs(60);

/// How much there may be at once.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Datagrams under way.
    pub datagrams: usize,
    /// Bytes of fragments that are held.
    pub bytes: usize,
}

impl Default for Limits {
    /// The bytes are those of `ipfrag_high_thresh` (`ipv4_frags_init_net`, net/ipv4/ip_fragment.c).
    fn default() -> Self {
        Self {
            datagrams: 16_384,
            bytes: 4 << 20,
        }
    }
}

/// What the fragments of a datagram have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    source: Address,
    destination: Address,
    /// 0 for IPv6, where it does not count (RFC 8200 section 4.5).
    protocol: u8,
    identification: u32,
}

impl Key {
    /// Of the datagram of this fragment.
    #[must_use]
    pub const fn new(headers: &Headers, fragment: &Fragment) -> Self {
        Self {
            source: headers.source,
            destination: headers.destination,
            protocol: match headers.version {
                Version::V4 => headers.protocol,
                Version::V6 => 0,
            },
            identification: fragment.identification,
        }
    }

    const fn life(&self) -> Duration {
        match self.source.as_v4() {
            Some(_) => LIFE_V4,
            None => LIFE_V6,
        }
    }
}

/// A fragment that came before the first one of its datagram.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// How many were held before it.
    pub ticket: u64,
    /// The IP packet, as it came.
    pub packet: Vec<u8>,
}

/// What is to be done with a fragment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Arrival<C> {
    /// It is the first one: decide, then [`Table::settle`].
    First,
    /// The first one has been decided about.
    Follows(C),
    /// A copy of it waits for the first one.
    Held,
    /// It is dropped, and with it what was held of its datagram.
    Dropped(Drop, Vec<Held>),
}

#[derive(Debug)]
enum Course<C> {
    Open,
    Settled(C),
    /// Nobody will get it whole: what still comes of it is dropped as well (RFC 5722 section 3).
    Spoilt(Drop),
}

/// When a datagram's time is over, and a number of its own.
type Age = (Instant, u64);

#[derive(Debug)]
struct Datagram<C> {
    pieces: Pieces,
    course: Course<C>,
    /// Of the first fragment, once that has come.
    digest: Option<u64>,
    held: Vec<Held>,
    age: Age,
}

/// How much there is now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Holding {
    /// Datagrams of which some fragments have come, and not all.
    pub datagrams: usize,
    /// Fragments that wait for the first one.
    pub packets: usize,
    /// The length of these.
    pub bytes: usize,
}

/// Every datagram under way.
#[derive(Debug)]
pub struct Table<C> {
    datagrams: HashMap<Key, Datagram<C>, RandomState>,
    ages: BTreeMap<Age, Key>,
    limits: Limits,
    holding: Holding,
    begun: u64,
    tickets: u64,
}

impl<C: Clone> Table<C> {
    /// An empty table. Strangers choose the keys, and must not be able to guess the hash.
    #[must_use]
    pub fn new(hasher: RandomState, limits: Limits) -> Self {
        Self {
            datagrams: HashMap::with_hasher(hasher),
            ages: BTreeMap::new(),
            limits,
            holding: Holding::default(),
            begun: 0,
            tickets: 0,
        }
    }

    /// How much there is now.
    #[must_use]
    pub fn holding(&self) -> Holding {
        Holding {
            datagrams: self.datagrams.len(),
            ..self.holding
        }
    }

    /// What was decided about the datagram, if it is under way and its first fragment has come.
    #[must_use]
    pub fn course(&self, key: &Key) -> Option<Result<C, Drop>> {
        match &self.datagrams.get(key)?.course {
            Course::Open => None,
            Course::Settled(course) => Some(Ok(course.clone())),
            &Course::Spoilt(reason) => Some(Err(reason)),
        }
    }

    /// Takes note of a fragment, which is `packet`.
    pub fn arrive(&mut self, key: Key, piece: Piece, packet: &[u8], now: Instant) -> Arrival<C> {
        let digest = piece.is_first().then(|| self.datagrams.hasher().hash_one(packet));
        if self.is_used_again(&key, digest) {
            self.forget(&key);
        }
        if !self.begin(key, now) {
            return Arrival::Dropped(Drop::FragmentTableFull, Vec::new());
        }
        let Some(datagram) = self.datagrams.get_mut(&key) else {
            return Arrival::Dropped(Drop::FragmentTableFull, Vec::new());
        };
        if let Course::Spoilt(reason) = datagram.course {
            return Arrival::Dropped(reason, Vec::new());
        }
        match datagram.pieces.add(piece) {
            Ok(()) => {}
            Err(Misfit::Duplicate) => return Arrival::Dropped(Drop::FragmentDuplicate, Vec::new()),
            Err(Misfit::Spoils(reason)) => return Arrival::Dropped(reason, self.spoil(&key, reason)),
        }
        match &datagram.course {
            Course::Settled(course) => {
                let course = course.clone();
                self.forget_whole(&key);
                Arrival::Follows(course)
            }
            Course::Open | Course::Spoilt(_) if piece.is_first() => {
                datagram.digest = digest;
                Arrival::First
            }
            Course::Open | Course::Spoilt(_) => self.hold(&key, packet),
        }
    }

    /// The first fragment was decided about: gives out what was held of its datagram, in the order in which it came.
    pub fn settle(&mut self, key: &Key, course: C) -> Vec<Held> {
        let Some(datagram) = self.datagrams.get_mut(key) else {
            return Vec::new();
        };
        match datagram.course {
            Course::Open => datagram.course = Course::Settled(course),
            Course::Settled(_) | Course::Spoilt(_) => return Vec::new(),
        }
        let held = self.release(key);
        self.forget_whole(key);
        held
    }

    /// Forgets datagrams whose time is over: gives out what was held of them in vain.
    pub fn expire(&mut self, now: Instant) -> Vec<Held> {
        let mut held = Vec::new();
        while let Some((&(time, _), &key)) = self.ages.first_key_value()
            && time <= now
        {
            held.extend(self.release(&key));
            self.forget(&key);
        }
        held
    }

    /// Whether a first fragment is another one than that which was decided about. A fragment of that datagram was lost on its
    /// way to lbd, and its sender uses the identification again, which at high rates takes seconds only (RFC 4963 section 2).
    fn is_used_again(&self, key: &Key, digest: Option<u64>) -> bool {
        let Some(datagram) = self.datagrams.get(key) else {
            return false;
        };
        match datagram.course {
            Course::Settled(_) => digest.is_some() && digest != datagram.digest,
            Course::Open | Course::Spoilt(_) => false,
        }
    }

    /// Makes a place for a datagram that has none yet; false where there is no place left.
    fn begin(&mut self, key: Key, now: Instant) -> bool {
        if self.datagrams.contains_key(&key) {
            return true;
        }
        if self.datagrams.len() >= self.limits.datagrams {
            return false;
        }
        self.begun += 1;
        let age = (now + key.life(), self.begun);
        self.ages.insert(age, key);
        let datagram = Datagram {
            pieces: Pieces::default(),
            course: Course::Open,
            digest: None,
            held: Vec::new(),
            age,
        };
        self.datagrams.insert(key, datagram);
        true
    }

    fn hold(&mut self, key: &Key, packet: &[u8]) -> Arrival<C> {
        let room = self.limits.bytes - self.holding.bytes;
        match self.datagrams.get_mut(key) {
            Some(datagram) if packet.len() <= room => {
                datagram.held.push(Held {
                    ticket: self.tickets,
                    packet: packet.to_vec(),
                });
                self.tickets += 1;
                self.holding.packets += 1;
                self.holding.bytes += packet.len();
                Arrival::Held
            }
            // Without this one it will never be whole.
            Some(_) | None => Arrival::Dropped(Drop::FragmentTableFull, self.spoil(key, Drop::FragmentTableFull)),
        }
    }

    fn spoil(&mut self, key: &Key, reason: Drop) -> Vec<Held> {
        if let Some(datagram) = self.datagrams.get_mut(key) {
            datagram.course = Course::Spoilt(reason);
        }
        self.release(key)
    }

    fn release(&mut self, key: &Key) -> Vec<Held> {
        let Some(datagram) = self.datagrams.get_mut(key) else {
            return Vec::new();
        };
        let held = std::mem::take(&mut datagram.held);
        self.holding.packets -= held.len();
        self.holding.bytes -= held.iter().map(|held| held.packet.len()).sum::<usize>();
        held
    }

    fn forget_whole(&mut self, key: &Key) {
        if self
            .datagrams
            .get(key)
            .is_some_and(|datagram| datagram.pieces.is_whole())
        {
            self.forget(key);
        }
    }

    fn forget(&mut self, key: &Key) {
        if let Some(datagram) = self.datagrams.remove(key) {
            self.ages.remove(&datagram.age);
        }
    }
}

#[cfg(test)]
mod tests;
