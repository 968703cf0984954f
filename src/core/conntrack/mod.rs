//! The connection table: which flow a packet belongs to, in constant time, bounded, shared by all workers.
//!
//! Both directions of a flow live in one shard, chosen by the endpoint that both have in common: the sender that the
//! backend sees. So a flow is stored in both directions or not at all under one lock, and a packet takes one lock.
//! A client that is masqueraded gets a port of its own shard as long as there is one (`masquerade.rs`, `allocator.rs`); after
//! that a port of any other, and its own shard notes where its flow is (`away.rs`).
//!
//! **Bounded.** At `max_flows` a new flow takes the place of the oldest embryonic one (handshake not over, or the
//! backend never answered), else of the oldest closing one, or UDP flow that was no more than a question and what came in answer.
//! Established flows are never evicted. *Oldest* is exact with one worker. Where workers share the table, it is the oldest one in
//! the new flow's own shard, or else in the next shard that has one of the class; a class that any shard has goes before the
//! next class. Which shards have some is known without their locks (`evictable.rs`), so that a flow is refused, or gets its
//! place, under one lock: of a table made for 16 workers it took those of all 512 shards twice, 21 us.
//!
//! The index (`index.rs`) is our own, hashed with ahash: of the fast hashers the only one that claims resistance to
//! flooding, and strangers choose these keys. dashmap took 127 ns a hit at a million flows where hashbrown took 70, and
//! could not hold both directions under one lock; what hashbrown took here is said there.
//!
//! What a TCP packet of a known flow takes in the whole engine, in nanoseconds (`benches/engine`, one core of an AMD EPYC, flows at
//! random, batches of 64, writing the packet included, which takes 4; the first column with other builds beside it):
//!
//! | flows | packet by packet, `IpAddr`s, a flow in one record | a batch's flows read ahead | prefetched (`ahead.rs`) |
//! | ---: | ---: | ---: | ---: |
//! | 1 | 114 | 52 | 53 |
//! | 1,000 | 116 | 57 | 58 |
//! | 1,000,000 | 520 | 99 to 107 | 71 to 74 |
//! | 1,000,000, two workers: the time between two packets | | 126 | 51 to 56 |
//!
//! Huge pages (`GLIBC_TUNABLES=glibc.malloc.hugetlb=1`) made nothing of it smaller on this machine, and 13 to 23 % on another
//! one. A flow takes 64 bytes here, 32 for what few packets need, and 32 in a full index: 128, where it was 152. Which segments
//! of it are believed ([`window`]) is among the 64 bytes where the addresses leave room, in IPv4, and else 16 bytes more.
pub mod ages;
mod ahead;
mod allocator;
mod away;
pub mod bypass;
mod census;
pub mod connection;
mod evictable;
mod flow;
mod forgotten;
mod index;
pub mod masquerade;
pub mod sctp;
pub mod shard;
pub mod signal;
mod sweep;
pub mod tcp;
pub mod timeout;
pub mod wheel;
pub mod window;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use ahash::RandomState;
use crossbeam_utils::CachePadded;
use parking_lot::{Mutex, MutexGuard};

use crate::flow::ports::{MOST_SHARES, place};
use crate::flow::{Address, Direction, Endpoint, Key, Protocol, Tuple};
use crate::service::Backend;
use crate::time::Instant;
use ahead::{Scout, Signpost};
use bypass::{Bypass, Side, Sighting};
use connection::{Class, Connection, State, Tenant};
use evictable::{Evictable, Mark};
use flow::Flow;
use forgotten::Forgotten;
use shard::Shard;
use signal::Signal;
use timeout::Timeouts;

pub use sweep::Sweep;

/// Flows that a worker looks at in one go when it forgets what is over: some 100 us of 4,000,000 flows (`benches/expiry`). More
/// than a batch opens, so that flows are forgotten faster than they come.
const BUDGET: usize = 256;

/// Flows that room is made for at the start; the kernel gives the memory when it is used.
const MOST_ROOM: usize = 1 << 20;

/// A shard has at least about as many ports of each address that stands for clients, where there are so many. Clients come to
/// shards by chance, so of small shares one would be used up long before the others, and its flows would live elsewhere.
const LEAST_SHARE: usize = 32;

/// Every flow.
#[derive(Debug)]
pub struct Conntrack {
    shards: Box<[CachePadded<Mutex<Shard>>]>,
    signposts: Box<[Signpost]>,
    hasher: RandomState,
    /// What addresses are spread over the shards with; odd.
    spread: u64,
    /// How far right a port's place is shifted to number its share, of as many as there are shards.
    shift: u32,
    flows: AtomicUsize,
    max_flows: AtomicUsize,
    evictable: Arc<Evictable>,
    bypass: Bypass,
    forgotten: Arc<Forgotten>,
    exhausted: Mutex<Option<(Protocol, Endpoint)>>,
}

/// With fewer flows the table stays in the near caches.
const NEAR: usize = 2_000;

/// Where a packet's flow may be, worked out once.
#[derive(Clone, Copy, Debug)]
pub struct Trace {
    hash: u64,
    /// The shards that it may be in, the likely one first; twice the same where there is one only.
    homes: [u32; 2],
}

impl Trace {
    /// The hash of the packet's key.
    #[must_use]
    pub const fn hash(self) -> u64 {
        self.hash
    }
}

/// Where a walk through the table has come to; the default is its beginning.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cursor {
    shard: usize,
    slot: usize,
}

/// A shard that is locked, and the slot of the wanted flow there with the direction of its packet.
type Located<'a> = (MutexGuard<'a, Shard>, Option<(u32, Direction)>);

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
    /// Masqueraded flows share `ports` ports of an address.
    #[must_use]
    pub fn new(workers: usize, ports: usize, max_flows: usize, hasher: RandomState, now: Instant) -> Self {
        let count = shards(workers, ports);
        // Room for flows from the start: growing moves them at once. The index grows bit by bit.
        let room = max_flows.min(MOST_ROOM) / count;
        let evictable = Arc::new(Evictable::new(count));
        let forgotten = Arc::<Forgotten>::default();
        let sizes = (room, MOST_SHARES / count);
        let shard = |mark| {
            let shard = Shard::new(hasher.clone(), sizes, mark, Arc::clone(&forgotten), now);
            CachePadded::new(Mutex::new(shard))
        };
        let shards: Box<[_]> = Mark::all(&evictable).map(shard).collect();
        Self {
            signposts: shards.iter().map(|shard| Signpost::to(&shard.lock())).collect(),
            shards,
            spread: hasher.hash_one(0_u64) | 1,
            shift: u16::BITS - count.trailing_zeros(),
            hasher,
            flows: AtomicUsize::new(0),
            max_flows: AtomicUsize::new(max_flows),
            evictable,
            bypass: Bypass::default(),
            forgotten,
            exhausted: Mutex::default(),
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

    /// Bytes that the flows take, and those which were there before: 128 a flow in a full table, both directions together, 16 more
    /// for TCP over IPv6, and 24 more where it is masqueraded or goes by client affinity. Templates are not counted; each takes about 150 more.
    #[must_use]
    pub fn memory(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().memory()).sum()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The hash of packets of `key`.
    #[must_use]
    #[inline]
    pub fn hash(&self, key: &Key) -> u64 {
        self.hasher.hash_one(key)
    }

    /// Where the flow of a packet of `key` may be: a client's packet is found by its source, a backend's by its destination.
    /// Where these are two shards, `likely` says which way the packet goes most likely.
    #[must_use]
    #[inline]
    pub fn trace(&self, key: &Key, likely: impl FnOnce() -> Direction) -> Trace {
        let original = self.home(key.source, key.source_port());
        let reply = self.home(key.destination, key.destination_port());
        let is_reply = original != reply && matches!(likely(), Direction::Reply);
        Trace {
            hash: self.hash(key),
            homes: if is_reply { [reply, original] } else { [original, reply] },
        }
    }

    /// Whether there are so many flows that most lie far from the CPU.
    #[must_use]
    pub fn is_far(&self) -> bool {
        self.len() >= NEAR
    }

    /// Has the CPU fetch where in the index the flow of a packet most likely is.
    #[inline]
    pub fn prefetch(&self, trace: Trace) {
        self.signposts[trace.homes[0] as usize].prefetch(trace.hash);
    }

    /// Looks ahead for the flows of a batch.
    #[must_use]
    pub const fn scout(&self) -> Scout<'_> {
        Scout::new(self)
    }

    /// Locks the shard of the flow that a packet of `key` belongs to and looks the flow up.
    #[inline]
    pub fn with_flow<R>(
        &self,
        key: &Key,
        trace: Trace,
        now: Instant,
        mut act: impl FnMut(&mut Shard, u32, Direction) -> R,
    ) -> Option<R> {
        let Trace {
            hash,
            homes: [first, second],
        } = trace;
        let (mut shard, mut found) = self.locate(first, key, hash, now);
        if found.is_none() && first != second {
            drop(shard);
            (shard, found) = self.locate(second, key, hash, now);
        }
        let (slot, direction) = found?;
        let result = self.accounted(&mut shard, |shard| act(shard, slot, direction));
        self.release(shard);
        Some(result)
    }

    /// Locks the shard that has the flow of a packet, by what the shard `home` knows, and looks the flow up there.
    #[inline]
    fn locate(&self, home: u32, key: &Key, hash: u64, now: Instant) -> Located<'_> {
        let shard = self.lock(home);
        let found = shard.find(key, hash, now);
        match shard.away.host(key) {
            Some(host) if found.is_none() => {
                drop(shard);
                let shard = self.lock(host);
                let found = shard.find(key, hash, now);
                (shard, found)
            }
            Some(_) | None => (shard, found),
        }
    }

    /// Stores a new flow, evicting another one where the table is full.
    ///
    /// # Errors
    /// When nothing may be evicted, or the flow's packets are another flow's.
    pub fn insert(&self, connection: Connection, now: Instant) -> Result<(), Refused> {
        let [home, of_client] = [connection.source, connection.client].map(|end| self.shard_index(&end));
        if !self.reserve(home) {
            return Err(self.refusal(of_client, &connection, now));
        }
        match home == of_client {
            true => self.store(home as u32, connection, None, now),
            false => self.insert_away(connection, now),
        }
    }

    /// Stores a flow that room was reserved for; with the ticket of the note in its client's shard, where that is another one.
    fn store(&self, home: u32, connection: Connection, ticket: Option<u32>, now: Instant) -> Result<(), Refused> {
        let mut shard = self.lock(home);
        if ticket.is_none() && shard.away.has_notes() {
            drop(shard);
            let original = Key::from(connection.arriving(Direction::Original));
            if !self.is_vacant(home, &original, now) {
                self.give_back_room();
                return Err(Refused::InUse);
            }
            shard = self.lock(home);
        }
        let before = shard.len();
        let result = shard.insert(connection, now);
        self.signposts[home as usize].follow(&shard);
        // One was reserved; flows that were over may have made room as well.
        self.flows.fetch_sub(before + 1 - shard.len(), Relaxed);
        if let (Ok(slot), Some(ticket)) = (&result, ticket) {
            shard.away.welcome(*slot, ticket);
        }
        self.release(shard);
        result.map(|_slot| ()).map_err(|_other| Refused::InUse)
    }

    /// One of `max_flows` that was reserved is not needed.
    fn give_back_room(&self) {
        self.flows.fetch_sub(1, Relaxed);
    }

    /// Whose packets have this tuple, which must be a reply's.
    #[must_use]
    pub fn tenant(&self, reply: &Tuple, timeouts: &Timeouts, now: Instant) -> Tenant {
        self.at(reply, |shard, key, hash| shard.tenant(key, hash, timeouts, now))
    }

    /// Forgets the flow whose packets have this tuple, which must be a reply's, if it yields; says whether the tuple is free then.
    #[must_use]
    pub fn reclaim(&self, reply: &Tuple, timeouts: &Timeouts, now: Instant) -> bool {
        self.at(reply, |shard, key, hash| shard.reclaim(key, hash, timeouts, now))
    }

    fn at<R>(&self, reply: &Tuple, act: impl FnOnce(&mut Shard, &Key, u64) -> R) -> R {
        let key = Key::from(*reply);
        let home = self.home(key.destination, key.destination_port());
        self.in_shard(home, |shard| act(shard, &key, self.hash(&key)))
    }

    /// Takes note of a packet that passes between a client and a server; `hash` is that of the server's packets.
    pub fn note_bypass(&self, hash: u64, from: Side, signal: Signal, now: Instant) {
        if from == Side::Client || forgotten::begins(signal) {
            self.forgotten.recall(hash);
        }
        self.bypass.note(hash, from, signal, now);
    }

    /// What is known of a connection past the services with packets of this tuple, which must be those of its server.
    #[must_use]
    pub fn bypass(&self, reply: &Tuple, timeouts: &Timeouts, now: Instant) -> Option<Sighting> {
        let hash = self.hash(&Key::from(*reply));
        self.bypass.sighting(hash, reply.protocol, timeouts, now)
    }

    /// Whether a packet of `key`, which belongs to no flow, is a backend's late answer on a flow that is over.
    #[must_use]
    pub fn is_late_answer(&self, key: &Key, signal: Signal, timeouts: &Timeouts, now: Instant) -> bool {
        if forgotten::begins(signal) {
            return false;
        }
        let (hash, home) = (self.hash(key), self.home(key.destination, key.destination_port()));
        self.forgotten.has(hash, signal, timeouts, now) || self.lock(home).is_late_answer(key, hash, now)
    }

    /// A tick is over, so that all of a worker's share of the table is to be looked at.
    pub fn begin(&self, sweep: &mut Sweep) {
        sweep.begin(self.shards.len());
    }

    /// Goes on with a worker's sweep through its share of the table, where it forgets what is over: a bounded part of it, so that
    /// packets do not wait; no shard is locked for more than a few flows at a time.
    pub fn expire(&self, sweep: &mut Sweep, now: Instant) {
        let mut budget = BUDGET;
        while let Some(at) = sweep.shard() {
            let looked = self.in_shard(at as u32, |shard| shard.expire_some(now));
            match looked {
                0 => sweep.next(self.shards.len()),
                looked if looked < budget => budget -= looked,
                _ => return,
            }
        }
    }

    /// A copy of the flow that `tuple` belongs to, and the direction of its packet.
    #[must_use]
    pub fn get(&self, tuple: &Tuple, now: Instant) -> Option<(Connection, Direction)> {
        let key = Key::from(*tuple);
        let Trace { hash, homes } = self.trace(&key, || Direction::Original);
        homes.into_iter().find_map(|home| {
            let (shard, found) = self.locate(home, &key, hash, now);
            let (slot, direction) = found?;
            Some((shard.connection(slot)?, direction))
        })
    }

    /// Shows every flow to `see`; a shard is locked for some thousand flows at a time, so that packets go on meanwhile.
    pub fn each(&self, now: Instant, see: impl FnMut(&Connection)) {
        self.each_of(now, |_| true, see);
    }

    /// Shows every flow of the `wanted` backends to `see`, as [`Self::each`] does.
    pub fn each_of(&self, now: Instant, wanted: impl Fn(&Backend) -> bool, mut see: impl FnMut(&Connection)) {
        let wanted = |flow: &Flow| wanted(&flow.backend);
        for shard in &self.shards {
            let mut from = 0;
            while let Some(next) = shard.lock().visit_some(from, now, wanted, &mut see) {
                from = next;
            }
        }
    }

    /// Shows some thousand flows from `cursor` on to `see`, and moves it there. False: there are no more. No lock is held
    /// between two parts of a walk.
    pub fn visit(&self, cursor: &mut Cursor, now: Instant, see: impl FnMut(&Connection)) -> bool {
        let Some(shard) = self.shards.get(cursor.shard) else {
            return false;
        };
        match shard.lock().visit_some(cursor.slot, now, |_| true, see) {
            Some(next) => cursor.slot = next,
            None => (cursor.shard, cursor.slot) = (cursor.shard + 1, 0),
        }
        true
    }

    /// How many flows are in each state, those included that are over and not forgotten yet; parts of it may come separately.
    pub fn states(&self) -> impl Iterator<Item = (State, u64)> {
        self.shards.iter().flat_map(|shard| shard.lock().states())
    }

    #[inline]
    fn lock(&self, home: u32) -> MutexGuard<'_, Shard> {
        self.shards[home as usize].lock()
    }

    fn shard_index(&self, endpoint: &Endpoint) -> usize {
        self.home(endpoint.address.into(), endpoint.port) as usize
    }

    /// The shard of an endpoint's flows. What the address says is added to what the port says, so that masquerading can choose a
    /// port for a given shard.
    #[inline]
    fn home(&self, address: Address, port: u16) -> u32 {
        // The upper half of a product with a secret number depends on all bits (Knuth, TAOCP 6.4).
        let [high, low] = address.halves().map(|half| half.wrapping_mul(self.spread) >> 32);
        let share = u32::from(place(port)) >> self.shift;
        // There is a power of two of them.
        ((high.rotate_left(7) ^ low) as u32).wrapping_add(share) & (self.shards.len() - 1) as u32
    }

    /// Unlocks a shard, which may have lost flows whose clients other shards have notes about.
    #[inline]
    fn release(&self, mut shard: MutexGuard<'_, Shard>) {
        let departed = shard.away.take_departed();
        drop(shard);
        self.forget_departed(departed);
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

    /// Takes one of `max_flows`, from an evicted flow if need be; false: there is none, which is found out without a lock.
    fn reserve(&self, home: usize) -> bool {
        let max_flows = self.max_flows();
        if self.len() < max_flows {
            if self.flows.fetch_add(1, Relaxed) < max_flows {
                return true;
            }
            // Another worker has taken the last place meanwhile.
            self.flows.fetch_sub(1, Relaxed);
        }
        let classes = [Class::Embryonic, Class::Closing];
        classes.into_iter().any(|class| self.evict(home, class))
    }

    /// Evicts the oldest flow of a class in the flow's own shard, or else in the next one that has any.
    fn evict(&self, home: usize, class: Class) -> bool {
        while let Some(shard) = self.evictable.next(class, home) {
            let mut shard = self.shards[shard].lock();
            let evicted = shard.evict(class).is_some();
            self.release(shard);
            if evicted {
                return true;
            }
            // Another worker was faster.
        }
        false
    }

    /// Why a flow has no place in a full table: another worker may have stored it just now.
    fn refusal(&self, home: usize, connection: &Connection, now: Instant) -> Refused {
        let key = Key::from(connection.arriving(Direction::Original));
        let hash = self.hash(&key);
        match self.shards[home].lock().find(&key, hash, now) {
            Some(_) => Refused::InUse,
            None => Refused::Full,
        }
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
    wanted.min(most).min(MOST_SHARES)
}

#[cfg(test)]
mod tests {
    use super::connection::{Dialogue, State};
    use super::*;
    use crate::flow::Protocol;
    use crate::policy::BackendSpec;
    use crate::service::{Backend, ServiceIdentity};

    const NOW: Instant = Instant::from_nanos(1_000_000_000_000);

    fn full(max_flows: usize) -> Conntrack {
        Conntrack::new(16, 64_512, max_flows, RandomState::with_seeds(1, 2, 3, 4), NOW)
    }

    fn backend() -> Arc<Backend> {
        let spec = BackendSpec {
            address: "10.2.0.11:53".parse().unwrap(),
            weight: 1,
            upper_threshold: 0,
            lower_threshold: 0,
        };
        Arc::new(Backend::new(1, &spec, Arc::new(ServiceIdentity::new(1, "dns")), 1))
    }

    fn connection(backend: &Arc<Backend>, port: u16, dialogue: Dialogue) -> Connection {
        let client = Endpoint::new([10, 1, 0, 2].into(), port);
        Connection {
            protocol: Protocol::Udp,
            client,
            virtual_address: "10.96.0.10:53".parse().unwrap(),
            source: client,
            backend: Arc::clone(backend),
            template: None,
            state: State::Udp,
            dialogue,
            window: window::Window::default(),
            opened: NOW,
            expires: NOW + std::time::Duration::from_secs(300),
        }
    }

    /// The locks of all shards but those of these flows.
    fn others<'a>(table: &'a Conntrack, flows: &[&Connection]) -> Vec<MutexGuard<'a, Shard>> {
        let homes: Vec<usize> = flows.iter().map(|flow| table.shard_index(&flow.client)).collect();
        let others = table.shards.iter().enumerate().filter(|(at, _)| !homes.contains(at));
        others.map(|(_, shard)| shard.lock()).collect()
    }

    #[test]
    fn a_full_table_refuses_a_flow_while_all_shards_but_its_own_are_locked() {
        let (table, backend) = (full(1), backend());
        let kept = connection(&backend, 1, Dialogue::Continued);
        table.insert(kept.clone(), NOW).unwrap();
        let new = connection(&backend, 2, Dialogue::Asked);
        assert_ne!(table.shard_index(&new.client), table.shard_index(&kept.client));
        let locked = others(&table, &[&new]);
        assert!(matches!(table.insert(new, NOW), Err(Refused::Full)));
        drop(locked);
        let same = connection(&backend, 1, Dialogue::Asked);
        assert!(
            matches!(table.insert(same, NOW), Err(Refused::InUse)),
            "its flow is there"
        );
    }

    #[test]
    fn a_full_table_evicts_while_all_shards_are_locked_but_the_two_of_both_flows() {
        let (table, backend) = (full(2), backend());
        let kept = connection(&backend, 1, Dialogue::Continued);
        let closing = connection(&backend, 2, Dialogue::Answered);
        let new = connection(&backend, 3, Dialogue::Asked);
        for flow in [&kept, &closing] {
            table.insert(flow.clone(), NOW).unwrap();
        }
        let locked = others(&table, &[&closing, &new]);
        table.insert(new.clone(), NOW).unwrap();
        drop(locked);
        let is_there = |flow: &Connection| table.get(&flow.arriving(Direction::Original), NOW).is_some();
        assert_eq!([kept, closing, new].map(|flow| is_there(&flow)), [true, false, true]);
        assert_eq!(table.len(), 2);
    }
}
