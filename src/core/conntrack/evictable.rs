//! Which shards have flows that may be evicted, known without their locks: whoever finds the table full looks here first, and
//! locks one shard at most.
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::connection::Class;

/// A bit a shard, of each class that may be evicted. A bit is written under its shard's lock, only where the shard gets the first
/// flow of the class or loses the last one; read without, it may be out of date by a moment.
#[derive(Debug)]
pub(super) struct Evictable {
    shards: usize,
    embryonic: Box<[AtomicU64]>,
    closing: Box<[AtomicU64]>,
}

const BITS: usize = u64::BITS as usize;

impl Evictable {
    /// For so many shards, all of them empty.
    pub(super) fn new(shards: usize) -> Self {
        let none = || (0..shards.div_ceil(BITS)).map(|_| AtomicU64::new(0)).collect();
        Self {
            shards,
            embryonic: none(),
            closing: none(),
        }
    }

    fn words(&self, class: Class) -> &[AtomicU64] {
        match class {
            Class::Embryonic => &self.embryonic,
            Class::Closing => &self.closing,
            Class::Established => &[],
        }
    }

    /// The first shard from `home` on, and round to it, that has a flow of `class`.
    pub(super) fn next(&self, class: Class, home: usize) -> Option<usize> {
        let words = self.words(class);
        let (first, bit) = (home / BITS, home % BITS);
        // The first word comes twice: its upper bits at first, the lower ones at last.
        (0..=words.len()).find_map(|step| {
            let at = (first + step) % words.len().max(1);
            let mask = match step {
                0 => u64::MAX << bit,
                _ if step == words.len() => !(u64::MAX << bit),
                _ => u64::MAX,
            };
            let found = words.get(at)?.load(Relaxed) & mask;
            (found != 0).then(|| at * BITS + found.trailing_zeros() as usize)
        })
    }
}

/// The bits of one shard.
#[derive(Clone, Debug)]
pub(super) struct Mark {
    evictable: Arc<Evictable>,
    shard: usize,
}

impl Mark {
    /// Each shard's.
    pub(super) fn all(evictable: &Arc<Evictable>) -> impl Iterator<Item = Self> {
        (0..evictable.shards).map(|shard| Self {
            evictable: Arc::clone(evictable),
            shard,
        })
    }

    /// The shard has the first flow of a class, or none any more.
    pub(super) fn set(&self, class: Class, has_some: bool) {
        let bit = 1 << (self.shard % BITS);
        if let Some(word) = self.evictable.words(class).get(self.shard / BITS) {
            match has_some {
                true => word.fetch_or(bit, Relaxed),
                false => word.fetch_and(!bit, Relaxed),
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_shard_with_a_flow_of_a_class_is_found_from_any_shard_on() {
        for shards in [1_usize, 2, 64, 128, 512] {
            let evictable = Arc::new(Evictable::new(shards));
            let marks: Vec<Mark> = Mark::all(&evictable).collect();
            assert_eq!(evictable.next(Class::Embryonic, shards - 1), None);
            let marked = [0, shards / 3, shards / 2 + 1].map(|shard| shard % shards);
            marked
                .iter()
                .for_each(|&shard| marks[shard].set(Class::Embryonic, true));
            for home in 0..shards {
                let expected = (home..shards).chain(0..home).find(|shard| marked.contains(shard));
                assert_eq!(evictable.next(Class::Embryonic, home), expected, "{home} of {shards}");
                assert_eq!(evictable.next(Class::Closing, home), None);
                assert_eq!(evictable.next(Class::Established, home), None, "never evicted");
            }
            marked
                .iter()
                .for_each(|&shard| marks[shard].set(Class::Embryonic, false));
            assert_eq!(evictable.next(Class::Embryonic, 0), None);
        }
    }
}
