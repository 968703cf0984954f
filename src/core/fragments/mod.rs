//! Datagrams whose fragments are under way. Only the first fragment has ports, so it alone can be decided about; the others
//! follow it, and those that come before it are held here.
//!
//! **Bounded** in datagrams, fragments a datagram, bytes held and time, all as the kernel's own reassembly is or stricter. Where
//! there is no place left, the oldest datagram goes, as does the oldest of a sender that has its share: lone fragments, however
//! many, keep others out for no longer than it takes to fill the table with them, and those of one sender do not at all.
//! A datagram is forgotten as soon as all of it has come, since its sender will use the identification again; where a
//! fragment was lost, as soon as the first one of another datagram comes.
//!
//! One table for all workers, since the fragments of a datagram may come by different queues. What was decided about a
//! datagram is the caller's to say ([`Table::settle`]) and of no interest here.
mod order;
mod pieces;

use std::collections::HashMap;
use std::time::Duration;

use ahash::RandomState;

use self::order::{Age, Order, Sender, Senders};
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
    /// Datagrams under way of one sender: an IPv4 address, or a /64 of IPv6.
    pub datagrams_of_sender: usize,
    /// Bytes that are held of one sender.
    pub bytes_of_sender: usize,
}

impl Default for Limits {
    /// The bytes are those of `ipfrag_high_thresh` (`ipv4_frags_init_net`, net/ipv4/ip_fragment.c). A sender has a share of 1/16
    /// of the datagrams, which of a host that loses none is more than ever are under way, and 1/4 of the bytes.
    fn default() -> Self {
        Self {
            datagrams: 16_384,
            bytes: 4 << 20,
            datagrams_of_sender: 1_024,
            bytes_of_sender: 1 << 20,
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
        match self.is_v4() {
            true => LIFE_V4,
            false => LIFE_V6,
        }
    }

    const fn is_v4(&self) -> bool {
        self.source.as_v4().is_some()
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

/// Datagrams that are given up at a time.
const AT_ONCE: usize = 256;

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
    /// All of them, and those of which fragments are held.
    ages: Order,
    waiting: Order,
    senders: Senders,
    limits: Limits,
    holding: Holding,
    begun: u64,
    tickets: u64,
    /// What was held of datagrams that had to make room.
    evicted: Vec<Held>,
}

impl<C: Clone> Table<C> {
    /// An empty table. Strangers choose the keys, and must not be able to guess the hash.
    #[must_use]
    pub fn new(hasher: RandomState, limits: Limits) -> Self {
        Self {
            datagrams: HashMap::with_hasher(hasher.clone()),
            ages: Order::default(),
            waiting: Order::default(),
            senders: Senders::new(hasher),
            limits,
            holding: Holding::default(),
            begun: 0,
            tickets: 0,
            evicted: Vec::new(),
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
        self.begin(key, now);
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

    /// What was held of datagrams that made room for others since the last time; [`Drop::FragmentTableFull`] is why they go.
    #[must_use]
    pub fn take_evicted(&mut self) -> Vec<Held> {
        std::mem::take(&mut self.evicted)
    }

    /// Forgets datagrams whose time is over, a bounded number at a time: gives out what was held of them in vain.
    pub fn expire(&mut self, now: Instant) -> Vec<Held> {
        let mut held = Vec::new();
        for _ in 0..AT_ONCE {
            let Some(key) = self.ages.due(now) else {
                break;
            };
            held.extend(self.release(&key));
            self.forget(&key);
        }
        held
    }

    /// Whether there are more whose time is over.
    #[must_use]
    pub fn is_behind(&self, now: Instant) -> bool {
        self.ages.due(now).is_some()
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

    /// Makes a place for a datagram that has none yet, in that of the oldest one if need be.
    fn begin(&mut self, key: Key, now: Instant) {
        if self.datagrams.contains_key(&key) {
            return;
        }
        let sender = Sender::of(&key);
        if self.senders.datagrams(&sender) >= self.limits.datagrams_of_sender
            && let Some(oldest) = self.senders.oldest(&sender)
        {
            self.evict(&oldest);
        }
        if self.datagrams.len() >= self.limits.datagrams
            && let Some(oldest) = self.ages.oldest()
        {
            self.evict(&oldest);
        }
        self.begun += 1;
        let age = Age {
            number: self.begun,
            ends: now + key.life(),
        };
        self.ages.insert(age, key);
        self.senders.begin(&sender, age, key);
        let datagram = Datagram {
            pieces: Pieces::default(),
            course: Course::Open,
            digest: None,
            held: Vec::new(),
            age,
        };
        self.datagrams.insert(key, datagram);
    }

    fn evict(&mut self, key: &Key) {
        let held = self.release(key);
        self.evicted.extend(held);
        self.forget(key);
    }

    fn hold(&mut self, key: &Key, packet: &[u8]) -> Arrival<C> {
        let has_room = self.make_room(key, packet.len());
        match self.datagrams.get_mut(key) {
            Some(datagram) if has_room => {
                if datagram.held.is_empty() {
                    self.waiting.insert(datagram.age, *key);
                }
                datagram.held.push(Held {
                    ticket: self.tickets,
                    packet: packet.to_vec(),
                });
                self.senders.hold(&Sender::of(key), datagram.age, *key, packet.len());
                self.tickets += 1;
                self.holding.packets += 1;
                self.holding.bytes += packet.len();
                Arrival::Held
            }
            // Without this one it will never be whole.
            Some(_) | None => Arrival::Dropped(Drop::FragmentTableFull, self.spoil(key, Drop::FragmentTableFull)),
        }
    }

    /// Evicts the oldest datagrams of which something is held, but for `key`, until there is room for so many bytes of it.
    fn make_room(&mut self, key: &Key, bytes: usize) -> bool {
        let sender = Sender::of(key);
        loop {
            let oldest = if self.senders.bytes(&sender) + bytes > self.limits.bytes_of_sender {
                self.senders.oldest_waiting(&sender, key)
            } else if self.holding.bytes + bytes > self.limits.bytes {
                self.waiting.oldest_but(key)
            } else {
                return true;
            };
            match oldest {
                Some(oldest) => self.evict(&oldest),
                None => return false,
            }
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
        let bytes = held.iter().map(|held| held.packet.len()).sum::<usize>();
        self.holding.packets -= held.len();
        self.holding.bytes -= bytes;
        if !held.is_empty() {
            self.waiting.remove(datagram.age, key);
            self.senders.release(&Sender::of(key), datagram.age, bytes);
        }
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
            self.ages.remove(datagram.age, key);
            self.senders.end(&Sender::of(key), datagram.age);
        }
    }
}

#[cfg(test)]
mod tests;
