//! A hash table whose copies share what they have in common, so that a change costs little however large the table is.
//!
//! It lies in shards behind [`Arc`]s. A copy costs a pointer a shard; a change copies the one shard that it is in. A lookup
//! costs one step more than in a plain table, and the list of shards is small enough for a near cache.
use std::hash::Hash;
use std::sync::Arc;

use ahash::RandomState;
use hashbrown::HashTable;
use hashbrown::hash_table::Entry;

/// Members of a shard in a new table, at most; about the square root of 100,000, which makes copies and changes cheap alike.
const NEW_SHARD: usize = 256;
/// Members of a shard on average before a table that has grown is spread over more of them.
const FULL_SHARD: usize = 4 * NEW_SHARD;

type Shard<K, V> = Arc<HashTable<(K, V)>>;

/// See the module. Keys may be chosen by strangers: the hash is seeded.
#[derive(Clone, Debug)]
pub(crate) struct SharedMap<K, V> {
    /// A power of two.
    shards: Box<[Shard<K, V>]>,
    hasher: RandomState,
    len: usize,
}

impl<K: Hash + Eq + Clone, V: Clone> SharedMap<K, V> {
    /// An empty table in as many shards as are good for so many members.
    pub(crate) fn with_capacity(members: usize) -> Self {
        let shards = members.div_ceil(NEW_SHARD).next_power_of_two();
        let shard = || Arc::new(HashTable::with_capacity(members / shards));
        Self {
            shards: (0..shards).map(|_| shard()).collect(),
            hasher: RandomState::new(),
            len: 0,
        }
    }

    /// The value of a key.
    pub(crate) fn get(&self, key: &K) -> Option<&V> {
        let hash = self.hasher.hash_one(key);
        let found = self.shards[self.shard_of(hash)].find(hash, |(other, _)| other == key);
        found.map(|(_, value)| value)
    }

    /// Sets the value of a key, and returns the former one.
    pub(crate) fn insert(&mut self, key: K, value: V) -> Option<V> {
        if self.len >= self.shards.len() * FULL_SHARD {
            self.spread();
        }
        let hash = self.hasher.hash_one(&key);
        let shard = Arc::make_mut(&mut self.shards[self.shard_of(hash)]);
        let rehash = |(key, _): &(K, V)| self.hasher.hash_one(key);
        match shard.entry(hash, |(other, _)| *other == key, rehash) {
            Entry::Occupied(mut taken) => Some(std::mem::replace(&mut taken.get_mut().1, value)),
            Entry::Vacant(free) => {
                free.insert((key, value));
                self.len += 1;
                None
            }
        }
    }

    /// Takes a key out, and returns its value.
    pub(crate) fn remove(&mut self, key: &K) -> Option<V> {
        let hash = self.hasher.hash_one(key);
        let shard = Arc::make_mut(&mut self.shards[self.shard_of(hash)]);
        let found = shard.find_entry(hash, |(other, _)| other == key).ok()?;
        self.len -= 1;
        Some(found.remove().0.1)
    }

    /// The lower bits of the hash choose the place in a shard, and its seven upper ones are the tag there.
    const fn shard_of(&self, hash: u64) -> usize {
        (hash >> 32) as usize & (self.shards.len() - 1)
    }

    fn spread(&mut self) {
        let mut wider = Self::with_capacity(self.len * 2);
        for (key, value) in self.shards.iter().flat_map(|shard| shard.iter()) {
            wider.insert(key.clone(), value.clone());
        }
        *self = wider;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    #[test]
    fn a_table_holds_what_a_plain_one_holds_while_it_grows_and_shrinks() {
        let (mut shared, mut plain) = (SharedMap::with_capacity(0), HashMap::new());
        let mut rng = fastrand::Rng::with_seed(1);
        for value in 0..20_000_u32 {
            let key = rng.u32(..6_000);
            if rng.u8(..3) == 0 {
                assert_eq!(shared.remove(&key), plain.remove(&key));
            } else {
                assert_eq!(shared.insert(key, value), plain.insert(key, value));
            }
            assert_eq!(shared.len, plain.len());
        }
        assert!((0..6_000).all(|key| shared.get(&key) == plain.get(&key)));
    }

    #[test]
    fn a_change_to_a_copy_leaves_the_original_and_shares_all_other_shards() {
        let mut old = SharedMap::with_capacity(100_000);
        for key in 0..100_000_u32 {
            old.insert(key, key);
        }
        let mut new = old.clone();
        assert_eq!(new.insert(7, 8), Some(7));
        assert_eq!((old.get(&7), new.get(&7)), (Some(&7), Some(&8)));
        let pairs = old.shards.iter().zip(&new.shards);
        assert_eq!(pairs.filter(|(old, new)| !Arc::ptr_eq(old, new)).count(), 1);
    }
}
