//! The connection table: which flow a packet belongs to, in constant time, bounded, shared by all workers.
//!
//! Both directions of a flow live in one shard, chosen by the endpoint that both have in common: the sender that the
//! backend sees. So a flow is stored in both directions or not at all under one lock, and a packet takes one lock.
//!
//! **Bounded.** At `max_flows` a new flow takes the place of the oldest embryonic one (handshake not over, or the
//! backend never answered), else of the oldest closing one. Established flows are never evicted.
//!
//! The index (`index.rs`) is our own, hashed with ahash: of the fast hashers the only one that claims resistance to
//! flooding, and strangers choose these keys. dashmap took 127 ns a hit at a million flows where hashbrown took 70, and
//! could not hold both directions under one lock; what hashbrown took here is said there.
pub mod ages;
pub mod connection;
mod index;
pub mod sctp;
pub mod shard;
pub mod signal;
pub mod tcp;
pub mod timeout;
pub mod wheel;

use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use ahash::RandomState;
use crossbeam_utils::CachePadded;
use parking_lot::{Mutex, MutexGuard};

use crate::flow::{Direction, Endpoint, Tuple};
use crate::time::Instant;
use connection::{Class, Connection};
use shard::Shard;

/// Flows that room is made for at the start; the kernel gives the memory when it is used.
const MOST_ROOM: usize = 1 << 20;

/// A shard has at least as many ports of each address that stands for clients, where there are so many. Clients come to
/// shards by chance, so of small shares one would be used up long before the others.
const LEAST_SHARE: usize = 32;

/// Every flow.
#[derive(Debug)]
pub struct Conntrack {
    shards: Box<[CachePadded<Mutex<Shard>>]>,
    hasher: RandomState,
    flows: AtomicUsize,
    max_flows: AtomicUsize,
}

/// Why a flow was not stored.
#[derive(Debug)]
pub enum Refused {
    /// The table is full of flows that may not be evicted.
    Full,
    /// A packet of one of its directions belongs to another flow.
    InUse,
}

impl Conntrack {
    /// An empty table for `workers` threads. A single worker gets a single shard, so that eviction is exactly by age.
    /// Masqueraded flows share `ports` ports of an address, see [`Self::ports_beside`].
    #[must_use]
    pub fn new(workers: usize, ports: usize, max_flows: usize, hasher: RandomState, now: Instant) -> Self {
        let count = shards(workers, ports);
        // Room from the start: growing moves everything at once, 0.2 s at a million flows in one shard.
        let room = max_flows.min(MOST_ROOM) / count;
        let shard = || CachePadded::new(Mutex::new(Shard::new(hasher.clone(), room, now)));
        Self {
            shards: std::iter::repeat_with(shard).take(count).collect(),
            hasher,
            flows: AtomicUsize::new(0),
            max_flows: AtomicUsize::new(max_flows),
        }
    }

    /// Changes the bound. Flows beyond a lower one stay until they end.
    pub fn set_max_flows(&self, max_flows: usize) {
        self.max_flows.store(max_flows, Relaxed);
    }

    /// The bound.
    #[must_use]
    pub fn max_flows(&self) -> usize {
        self.max_flows.load(Relaxed)
    }

    /// How many flows there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.flows.load(Relaxed)
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Locks the shard of the flow that `tuple` belongs to and looks the flow up. `likely` is the direction to try
    /// first; the other one is tried too.
    #[inline]
    pub fn with_flow<R>(
        &self,
        tuple: &Tuple,
        likely: Direction,
        now: Instant,
        mut act: impl FnMut(&mut Shard, u32, Direction) -> R,
    ) -> Option<R> {
        let first = self.shard_index(&near_endpoint(tuple, likely));
        let mut shard = self.lock(first);
        if let Some((slot, direction, _)) = shard.find(tuple, now) {
            return Some(self.accounted(&mut shard, |shard| act(shard, slot, direction)));
        }
        drop(shard);
        let second = self.shard_index(&near_endpoint(tuple, opposite(likely)));
        if first == second {
            return None;
        }
        let mut shard = self.lock(second);
        let (slot, direction, _) = shard.find(tuple, now)?;
        Some(self.accounted(&mut shard, |shard| act(shard, slot, direction)))
    }

    /// Stores a new flow, evicting another one where the table is full.
    ///
    /// # Errors
    /// When nothing may be evicted, or the flow's packets are another flow's.
    pub fn insert(&self, connection: Connection, now: Instant) -> Result<(), Refused> {
        let home = self.shard_index(&connection.source);
        debug_assert_eq!(home, self.shard_index(&connection.client));
        self.reserve(home)?;
        let mut shard = self.lock(home);
        let before = shard.len();
        let result = shard.insert(connection, now);
        // One was reserved; flows that were over may have made room as well.
        self.flows.fetch_sub(before + 1 - shard.len(), Relaxed);
        result.map_err(|_other| Refused::InUse)
    }

    /// The ports of `address` that may stand for `client` towards a backend, since their flow must live in one shard: the
    /// first one from `from` on, and the distance to the next one.
    #[must_use]
    pub fn ports_beside(&self, client: &Endpoint, address: &IpAddr, from: u16) -> (usize, usize) {
        let count = self.shards.len();
        let least = Endpoint::new(*address, from);
        let distance = self.shard_index(client).wrapping_sub(self.shard_index(&least)) & (count - 1);
        (usize::from(from) + distance, count)
    }

    /// Which share of an address's ports may stand for `client`: that of its shard.
    #[must_use]
    pub fn share(&self, client: &Endpoint) -> usize {
        self.shard_index(client)
    }

    /// Whether no flow has packets of this tuple, which must be a reply's.
    #[must_use]
    pub fn is_free(&self, reply: &Tuple, now: Instant) -> bool {
        let mut shard = self.lock(self.shard_index(&reply.destination));
        self.accounted(&mut shard, |shard| shard.is_free(reply, now))
    }

    /// Forgets what is over in this worker's share of the table.
    pub fn expire(&self, worker: usize, workers: usize, now: Instant) {
        for shard in self.shards.iter().skip(worker).step_by(workers.max(1)) {
            let gone = shard.lock().expire(now);
            self.flows.fetch_sub(gone, Relaxed);
        }
    }

    /// A copy of the flow that `tuple` belongs to, and the direction of its packet.
    #[must_use]
    pub fn get(&self, tuple: &Tuple, now: Instant) -> Option<(Connection, Direction)> {
        [Direction::Original, Direction::Reply].into_iter().find_map(|way| {
            let shard = self.lock(self.shard_index(&near_endpoint(tuple, way)));
            let (_, direction, connection) = shard.find(tuple, now)?;
            Some((connection.clone(), direction))
        })
    }

    /// Shows every flow to `see`; a shard is locked for some thousand flows at a time, so that packets go on meanwhile.
    pub fn each(&self, now: Instant, mut see: impl FnMut(&Connection)) {
        for shard in &self.shards {
            let mut from = 0;
            while let Some(next) = shard.lock().visit_some(from, now, &mut see) {
                from = next;
            }
        }
    }

    fn lock(&self, index: usize) -> MutexGuard<'_, Shard> {
        self.shards[index].lock()
    }

    #[inline]
    fn shard_index(&self, endpoint: &Endpoint) -> usize {
        match self.shards.len() {
            1 => 0,
            // A power of two. The port is added, not hashed, so that masquerading can choose one for a given shard.
            count => {
                let hash = self.hasher.hash_one(endpoint.address) as usize;
                hash.wrapping_add(usize::from(endpoint.port)) & (count - 1)
            }
        }
    }

    /// Runs `act`, which may remove flows, and keeps the count right.
    fn accounted<R>(&self, shard: &mut Shard, act: impl FnOnce(&mut Shard) -> R) -> R {
        let before = shard.len();
        let result = act(shard);
        let gone = before - shard.len();
        if gone > 0 {
            self.flows.fetch_sub(gone, Relaxed);
        }
        result
    }

    /// Takes one of `max_flows`, from an evicted flow if need be.
    fn reserve(&self, home: usize) -> Result<(), Refused> {
        if self.flows.fetch_add(1, Relaxed) < self.max_flows() {
            return Ok(());
        }
        let evicted = [Class::Embryonic, Class::Closing]
            .into_iter()
            .any(|class| self.evict(home, class));
        self.flows.fetch_sub(1, Relaxed);
        match evicted {
            true => Ok(()),
            false => Err(Refused::Full),
        }
    }

    fn evict(&self, home: usize, class: Class) -> bool {
        let count = self.shards.len();
        (0..count).any(|step| self.lock((home + step) % count).evict(class).is_some())
    }
}

/// A power of two.
fn shards(workers: usize, ports: usize) -> usize {
    let wanted = match workers {
        0 | 1 => 1,
        // Enough that two workers rarely meet at one lock.
        workers => (workers * 32).next_power_of_two(),
    };
    let most = (ports / LEAST_SHARE).checked_ilog2().map_or(1, |bits| 1 << bits);
    wanted.min(most)
}

const fn opposite(direction: Direction) -> Direction {
    match direction {
        Direction::Original => Direction::Reply,
        Direction::Reply => Direction::Original,
    }
}

/// The endpoint that both directions of a flow have in common.
#[inline]
const fn near_endpoint(tuple: &Tuple, direction: Direction) -> Endpoint {
    match direction {
        Direction::Original => tuple.source,
        Direction::Reply => tuple.destination,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_client_has_ports_to_be_masqueraded_with_however_many_workers_and_few_ports_there_are() {
        for workers in [1, 2, 3, 16, 200] {
            for count in [1_u16, 31, 100, 4_536, 64_512] {
                let (first, last) = (1_000, 1_000 + count - 1);
                let table = Conntrack::new(workers, count.into(), 1, RandomState::new(), Instant::ZERO);
                for port in 0..1_000 {
                    let client = Endpoint::new([192, 0, 2, 1].into(), port);
                    let (from, distance) = table.ports_beside(&client, &[10, 0, 0, 1].into(), first);
                    let ports = (from..=last.into()).step_by(distance).count();
                    assert!(
                        ports >= usize::from(count).min(LEAST_SHARE),
                        "{workers} workers: {ports} of {count}"
                    );
                }
            }
        }
    }
}
