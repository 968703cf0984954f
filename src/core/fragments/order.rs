//! Datagrams in the order in which they began: whose time is over, and which one makes room for another one.
use std::collections::{BTreeMap, HashMap};

use ahash::RandomState;

use super::Key;
use crate::time::Instant;

/// When a datagram began, and when its time is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Age {
    /// How many began before it.
    pub(super) number: u64,
    pub(super) ends: Instant,
}

/// Datagrams by age; those of IPv6 live longer, so that in each version the oldest one is also the first to be given up.
#[derive(Clone, Debug, Default)]
pub(super) struct Order {
    v4: BTreeMap<u64, (Instant, Key)>,
    v6: BTreeMap<u64, (Instant, Key)>,
}

impl Order {
    const fn of(&mut self, key: &Key) -> &mut BTreeMap<u64, (Instant, Key)> {
        match key.is_v4() {
            true => &mut self.v4,
            false => &mut self.v6,
        }
    }

    pub(super) fn insert(&mut self, age: Age, key: Key) {
        self.of(&key).insert(age.number, (age.ends, key));
    }

    pub(super) fn remove(&mut self, age: Age, key: &Key) {
        self.of(key).remove(&age.number);
    }

    /// One whose time is over.
    pub(super) fn due(&self, now: Instant) -> Option<Key> {
        let first = [&self.v4, &self.v6]
            .into_iter()
            .filter_map(|order| order.values().next());
        first.filter(|(ends, _)| *ends <= now).map(|(_, key)| *key).next()
    }

    /// The one that began first.
    pub(super) fn oldest(&self) -> Option<Key> {
        self.oldest_where(|_| true)
    }

    /// The one that began first of all but `key`.
    pub(super) fn oldest_but(&self, key: &Key) -> Option<Key> {
        self.oldest_where(|other| other != key)
    }

    fn oldest_where(&self, fits: impl Fn(&Key) -> bool) -> Option<Key> {
        let first = |order: &BTreeMap<u64, (Instant, Key)>| {
            let mut all = order.iter().map(|(number, (_, key))| (*number, *key));
            all.find(|(_, key)| fits(key))
        };
        let oldest = [first(&self.v4), first(&self.v6)].into_iter().flatten();
        oldest.min_by_key(|(number, _)| *number).map(|(_, key)| key)
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.v4.len() + self.v6.len()
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Who may have a share of the table: an IPv4 address, or a /64 of IPv6, which is what a host gets (RFC 6177 section 2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Sender([u64; 2]);

impl Sender {
    pub(super) const fn of(key: &Key) -> Self {
        let [high, low] = key.source.halves();
        match key.is_v4() {
            true => Self([high, low]),
            false => Self([high, 0]),
        }
    }
}

/// What there is of a sender.
#[derive(Debug, Default)]
struct Share {
    datagrams: BTreeMap<u64, Key>,
    /// Those of which fragments are held.
    waiting: BTreeMap<u64, Key>,
    /// That are held.
    bytes: usize,
}

/// Every sender of which a datagram is under way.
#[derive(Debug)]
pub(super) struct Senders(HashMap<Sender, Share, RandomState>);

impl Senders {
    pub(super) fn new(hasher: RandomState) -> Self {
        Self(HashMap::with_hasher(hasher))
    }

    /// How many datagrams of a sender are under way.
    pub(super) fn datagrams(&self, sender: &Sender) -> usize {
        self.0.get(sender).map_or(0, |share| share.datagrams.len())
    }

    /// How many bytes of a sender are held.
    pub(super) fn bytes(&self, sender: &Sender) -> usize {
        self.0.get(sender).map_or(0, |share| share.bytes)
    }

    /// The sender's datagram that began first.
    pub(super) fn oldest(&self, sender: &Sender) -> Option<Key> {
        self.0.get(sender)?.datagrams.values().next().copied()
    }

    /// The first one of all but `key` of which fragments are held.
    pub(super) fn oldest_waiting(&self, sender: &Sender, key: &Key) -> Option<Key> {
        let mut waiting = self.0.get(sender)?.waiting.values().copied();
        waiting.find(|other| other != key)
    }

    pub(super) fn begin(&mut self, sender: &Sender, age: Age, key: Key) {
        self.0.entry(*sender).or_default().datagrams.insert(age.number, key);
    }

    pub(super) fn hold(&mut self, sender: &Sender, age: Age, key: Key, bytes: usize) {
        if let Some(share) = self.0.get_mut(sender) {
            share.waiting.insert(age.number, key);
            share.bytes += bytes;
        }
    }

    /// Nothing is held of a datagram any more; these were its bytes.
    pub(super) fn release(&mut self, sender: &Sender, age: Age, bytes: usize) {
        if let Some(share) = self.0.get_mut(sender) {
            share.waiting.remove(&age.number);
            share.bytes -= bytes;
        }
    }

    /// A datagram is forgotten.
    pub(super) fn end(&mut self, sender: &Sender, age: Age) {
        if let Some(share) = self.0.get_mut(sender) {
            share.datagrams.remove(&age.number);
            if share.datagrams.is_empty() {
                self.0.remove(sender);
            }
        }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}
