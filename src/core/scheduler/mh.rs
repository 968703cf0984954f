//! `mh`: Maglev hashing of the client's address (ip_vs_mh.c).
//!
//! Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load Balancer" (NSDI 2016), section 3.4: every backend
//! has its own order of preference over all buckets, and backends take turns in taking the best bucket that is left. So
//! a backend that comes or goes moves few clients of the others.
use super::Flags;
use super::hash::{fold, hsiphash};
use super::load::common_divisor;
use super::table::Table;
use crate::flow::Tuple;
use crate::service::Member;
use std::net::IpAddr;

/// The keys of `generate_hash_secret`, for the offset (and the lookup) and for the skip.
const OFFSET_KEY: u64 = 2_654_435_761;
const SKIP_KEY: u64 = 2_654_446_892;

/// Table sizes from `CONFIG_IP_VS_MH_TAB_INDEX` 12, the default, upwards. The kernel refuses backends beyond the size of
/// its table; here it gets the next size.
const SIZES: [(u32, usize); 6] = [
    (12, 4093),
    (13, 8191),
    (14, 16381),
    (15, 32749),
    (16, 65521),
    (17, 131_071),
];

/// A bucket that nobody has taken yet.
const FREE: u32 = u32::MAX;

/// Maglev hashing: buckets handed out by weight and preference.
#[derive(Clone, Debug)]
pub struct Mh {
    flags: Flags,
    table: Table,
}

impl Mh {
    /// `ip_vs_mh_reassign`. The last weight that was not 0 counts, so that draining a backend moves no client of another.
    pub(super) fn new(flags: Flags, backends: &[Member]) -> Self {
        let (tab_index, size) = table_size(backends.len());
        let mut preferences = preferences(backends, tab_index, size);
        let table = if preferences.iter().any(|preference| preference.turns > 0) {
            Table::new(populate(&mut preferences, size).into_iter())
        } else {
            Table::default()
        };
        Self { flags, table }
    }

    /// The backend of the client, if it takes new flows; with `mh-fallback`, otherwise another one.
    pub(super) fn pick(&self, tuple: &Tuple, backends: &[Member]) -> Option<usize> {
        let size = self.table.len();
        if size == 0 {
            return None;
        }
        let port = if self.flags.port { tuple.source.port } else { 0 };
        let bucket = |offset: usize| {
            let word = address_word(tuple.source.address, port).wrapping_add(offset as u32);
            hsiphash(word, OFFSET_KEY) as usize % size
        };
        let hash = bucket(0);
        let hashed = self.table.pick(hash, backends);
        if hashed.is_some() || !self.flags.fallback {
            return hashed;
        }
        let others = (0..size).map(|offset| bucket((offset + hash) % size));
        self.table.pick_first(others, backends)
    }

    /// `ip_vs_mh_dest_changed`.
    pub(super) fn backends_changed(&mut self, after: &[Member]) {
        *self = Self::new(self.flags, after);
    }
}

/// The order in which a backend prefers buckets: `next`, and every `skip`-th after it.
struct Preference {
    next: usize,
    skip: usize,
    /// How many buckets it takes at once.
    turns: u32,
}

fn table_size(backends: usize) -> (u32, usize) {
    let largest = SIZES[SIZES.len() - 1];
    let fits = |&(_, size): &(u32, usize)| backends <= size;
    SIZES.into_iter().find(fits).unwrap_or(largest)
}

/// `ip_vs_mh_permutate`.
fn preferences(backends: &[Member], tab_index: u32, size: usize) -> Vec<Preference> {
    let weights = || backends.iter().map(|backend| backend.last_weight());
    let divisor = common_divisor(weights()).max(1);
    let shift = shift(weights().max().unwrap_or(0) / divisor, tab_index);
    backends
        .iter()
        .map(|backend| {
            let word = address_word(backend.address.address, backend.address.port);
            let weight = backend.last_weight();
            Preference {
                next: hsiphash(word, OFFSET_KEY) as usize % size,
                skip: hsiphash(word, SKIP_KEY) as usize % (size - 1) + 1,
                turns: ((weight / divisor) >> shift).max(weight.min(1)),
            }
        })
        .collect()
}

/// `ip_vs_mh_shift_weight`: weights of more than half as many bits as the table has lose their lowest bits.
const fn shift(greatest: u32, tab_index: u32) -> u32 {
    let bits = u32::BITS - greatest.leading_zeros();
    bits.saturating_sub(tab_index / 2)
}

/// `ip_vs_mh_populate`. At least one backend has a turn.
fn populate(preferences: &mut [Preference], size: usize) -> Vec<u32> {
    let mut buckets = vec![FREE; size];
    let mut left = size;
    while left > 0 {
        for (index, preference) in (0..).zip(&mut *preferences) {
            for _ in 0..preference.turns.min(left as u32) {
                let bucket = take_best(preference, &buckets);
                buckets[bucket] = index;
                left -= 1;
            }
        }
    }
    buckets
}

/// The best bucket that is free; the size is prime, so that the order visits every one.
fn take_best(preference: &mut Preference, buckets: &[u32]) -> usize {
    while buckets[preference.next] != FREE {
        // Both are below the size, and a division for each of the many steps took most of the time.
        preference.next += preference.skip;
        if preference.next >= buckets.len() {
            preference.next -= buckets.len();
        }
    }
    preference.next
}

/// What is hashed of a backend or of a client (`ip_vs_mh_hashkey`).
fn address_word(address: IpAddr, port: u16) -> u32 {
    fold(address).wrapping_add(u32::from(port))
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Ending, Pattern, World, assert_refuses_then_moves, backends, flags, while_drained};
    use super::super::{Flags, Kind};

    fn choices(flags: &str, pattern: Pattern) -> String {
        World::kernel(Kind::Mh, flags).run(pattern, Ending::Closed)
    }

    #[test]
    fn a_client_meets_the_same_backend_whatever_its_port_and_the_virtual_address() {
        for flags in ["", "mh-fallback"] {
            assert_eq!(choices(flags, Pattern::Ports), "333333333333333333333333");
        }
        assert_eq!(choices("", Pattern::Vips), "333333333333333333333333");
    }

    #[test]
    fn clients_are_spread_by_their_addresses() {
        for flags in ["", "mh-fallback"] {
            assert_eq!(choices(flags, Pattern::Sources), "331313331223223223213333");
        }
    }

    #[test]
    fn with_mh_port_each_port_is_a_client_of_its_own() {
        assert_eq!(choices("mh-port", Pattern::Ports), "333231222313333333313312");
        assert_eq!(choices("mh-port", Pattern::Sources), "333231222313333333313312");
    }

    #[test]
    fn its_clients_are_refused_while_a_backend_is_drained_and_move_when_it_is_removed() {
        assert_refuses_then_moves(Kind::Mh);
    }

    #[test]
    fn with_mh_fallback_another_backend_takes_the_clients_of_a_drained_one() {
        let mut world = World::with(Kind::Mh, flags("mh-fallback"), backends(&[1, 1]));
        let first: u64 = world.picks(1).parse().unwrap();
        world.set_weight(first, 0);
        assert_eq!(world.picks(1), (3 - first).to_string());
        world.set_weight(3 - first, 0);
        assert_eq!(world.picks(1), "X");
    }

    #[test]
    fn with_mh_fallback_the_clients_of_a_drained_backend_are_spread_over_the_others() {
        // Computed apart from this code, by the formula of `ip_vs_mh_get_fallback`.
        let (before, drained) = while_drained(Kind::Mh, "mh-fallback");
        assert_eq!(before, "131113311223123123213222");
        assert_eq!(drained, "333223332223223223223222");
    }

    #[test]
    fn a_backend_that_never_had_a_weight_gets_no_bucket() {
        let mut world = World::with(Kind::Mh, Flags::default(), backends(&[0, 1]));
        assert!(world.run(Pattern::Sources, Ending::Closed).chars().all(|it| it == '2'));
        let mut empty = World::with(Kind::Mh, flags("mh-fallback"), backends(&[0]));
        assert_eq!(empty.picks(1), "X");
    }

    #[test]
    fn more_backends_than_the_kernels_table_has_buckets_all_get_a_share() {
        let table = super::Mh::new(Flags::default(), &backends(&[1; 5000])).table;
        let mut seen = vec![false; 5000];
        let all = backends(&[1; 5000]);
        (0..table.len()).for_each(|bucket| seen[table.pick(bucket, &all).unwrap()] = true);
        assert!(seen.into_iter().all(|it| it));
    }
}
