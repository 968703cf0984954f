//! A part of the connection table: flows in slots, found by the tuple of either direction.
use std::sync::Arc;

use ahash::RandomState;

use super::ages::Ages;
use super::allocator::Allocator;
use super::away::Away;
use super::census::Census;
use super::connection::{Class, Connection, State, Tenant};
use super::evictable::Mark;
use super::flow::{Flow, Slots};
use super::forgotten::Forgotten;
use super::index::{Entry, Index};
use super::timeout::Timeouts;
use super::wheel::{Tick, Wheel};
use super::window::Window;
use crate::affinity::Template;
use crate::flow::{Direction, Key};
use crate::time::Instant;

/// So many flows are looked at ahead, and forgotten under the lock at a time.
pub(super) const AHEAD: usize = 64;

/// See the module.
#[derive(Debug)]
pub struct Shard {
    hasher: RandomState,
    index: Index,
    slots: Slots,
    wheel: Wheel,
    embryonic: Ages,
    closing: Ages,
    /// Tells others whether these lists are empty.
    mark: Mark,
    forgotten: Arc<Forgotten>,
    census: Census,
    live: usize,
    /// Ports that masqueraded flows have.
    pub(super) allocator: Allocator,
    pub(super) away: Away,
}

impl Shard {
    /// An empty shard; `hasher` is the table's, seeded once a process against hash flooding. It has room for `room` flows,
    /// to which more must be moved at once. Its share of an address's ports takes `words` words of bits.
    pub(super) fn new(
        hasher: RandomState,
        (room, words): (usize, usize),
        mark: Mark,
        forgotten: Arc<Forgotten>,
        now: Instant,
    ) -> Self {
        Self {
            allocator: Allocator::new(hasher.clone(), words),
            away: Away::new(hasher.clone()),
            hasher,
            index: Index::new(),
            slots: Slots::with_capacity(room),
            wheel: Wheel::new(now),
            embryonic: Ages::default(),
            closing: Ages::default(),
            mark,
            forgotten,
            census: Census::default(),
            live: 0,
        }
    }

    /// Bytes that it takes for its flows.
    pub(super) fn memory(&self) -> usize {
        self.index.memory() + self.slots.memory() + self.allocator.memory() + self.away.memory()
    }

    /// How many flows it holds.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.live
    }

    /// Whether it holds no flow.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.live == 0
    }

    /// The slot of the flow that a packet of `key` belongs to, and the packet's direction. `hash` is the key's.
    #[must_use]
    #[inline]
    pub fn find(&self, key: &Key, hash: u64, now: Instant) -> Option<(u32, Direction)> {
        let entry = self.entry(key, hash)?;
        let is_alive = self.slots.get(entry.slot())?.expires > now;
        is_alive.then_some((entry.slot(), entry.direction()))
    }

    /// Whether a backend's packet of `key` is of a flow that is over, and not forgotten yet, on which it may still have answered.
    pub(super) fn is_late_answer(&self, key: &Key, hash: u64, now: Instant) -> bool {
        let flow = self.entry(key, hash).and_then(|entry| match entry.direction() {
            Direction::Original => None,
            Direction::Reply => self.slots.get(entry.slot()),
        });
        flow.is_some_and(|flow| flow.expires <= now && self.forgotten.may_answer(flow.state, flow.dialogue))
    }

    /// The flow in an occupied slot, for a change that [`Self::changed`] must be told of.
    #[inline]
    pub(crate) fn get_mut(&mut self, slot: u32) -> Option<&mut Flow> {
        self.slots.get_mut(slot)
    }

    /// What tells which segments of a flow are believed.
    #[inline]
    pub(crate) fn window(&self, slot: u32) -> Window {
        self.slots.window(slot)
    }

    /// Changes that.
    #[inline]
    pub(crate) fn set_window(&mut self, slot: u32, window: Window) {
        self.slots.set_window(slot, window);
    }

    /// The key that packets of a flow leave with.
    #[inline]
    pub(crate) fn leaving(&self, slot: u32, direction: Direction) -> Option<Key> {
        self.slots.leaving(slot, direction)
    }

    /// The key that packets of a flow arrive with.
    pub(crate) fn arriving(&self, slot: u32, direction: Direction) -> Option<Key> {
        self.slots.arriving(slot, direction)
    }

    /// The client affinity that a flow keeps alive.
    #[inline]
    pub(crate) fn template(&self, slot: u32) -> Option<&Template> {
        self.slots.template(slot)
    }

    /// A copy of a flow.
    #[must_use]
    pub fn connection(&self, slot: u32) -> Option<Connection> {
        self.slots.connection(slot)
    }

    /// Where the cells of its index are, and how far right a hash is shifted to number its cell.
    pub(super) const fn cells(&self) -> (*const u64, u32) {
        self.index.cells()
    }

    /// Has the CPU fetch the flow that a key of `hash` most likely belongs to. False: there is none.
    #[inline]
    pub(super) fn prefetch(&self, hash: u64) -> bool {
        let likely = self.index.find(hash, |_| true);
        likely.inspect(|entry| self.slots.prefetch(entry.slot())).is_some()
    }

    /// The hash of packets of `key`.
    pub(super) fn hash(&self, key: &Key) -> u64 {
        self.hasher.hash_one(key)
    }

    /// Stores a flow in both directions, or not at all: the backend's direction may be another flow's. Yields its slot.
    ///
    /// # Errors
    /// Gives the flow back if a packet of either direction already belongs to another flow.
    pub fn insert(&mut self, connection: Connection, now: Instant) -> Result<u32, Connection> {
        let ways = [Direction::Original, Direction::Reply].map(|way| {
            let key = Key::from(connection.arriving(way));
            (way, key, self.hasher.hash_one(key))
        });
        if ways.iter().any(|(_, key, hash)| !self.is_free(key, *hash, now)) {
            return Err(connection);
        }
        let due = Tick::after(connection.expires);
        let class = connection.class();
        connection.backend.bind();
        if connection.state.is_active() {
            connection.backend.set_active(true);
        }
        self.census.add(connection.state);
        if connection.is_masqueraded() {
            let [_, (_, reply, _)] = &ways;
            self.allocator.take(reply);
        }
        let slot = self.slots.insert(connection);
        for (way, _, hash) in ways {
            self.index.insert(hash, Entry::new(slot, way));
        }
        self.arm(slot, due);
        self.enlist(slot, class);
        self.live += 1;
        Ok(slot)
    }

    /// Whether no living flow has packets of this key; one that is over but not yet forgotten makes room. `hash` is the key's.
    pub fn is_free(&mut self, key: &Key, hash: u64, now: Instant) -> bool {
        self.occupant(key, hash, now).is_none()
    }

    fn occupant(&mut self, key: &Key, hash: u64, now: Instant) -> Option<u32> {
        let slot = self.entry(key, hash)?.slot();
        let is_alive = self.slots.get(slot)?.expires > now;
        if !is_alive {
            self.remove(slot);
        }
        is_alive.then_some(slot)
    }

    /// Whose packets have this key. `hash` is the key's.
    pub fn tenant(&mut self, key: &Key, hash: u64, timeouts: &Timeouts, now: Instant) -> Tenant {
        let slot = self.occupant(key, hash, now);
        self.tenant_of(slot, timeouts, now)
    }

    fn tenant_of(&self, slot: Option<u32>, timeouts: &Timeouts, now: Instant) -> Tenant {
        let flow = slot.and_then(|slot| self.slots.get(slot));
        flow.map_or(Tenant::Nobody, |flow| {
            Tenant::of(flow.state, flow.dialogue, flow.expires, timeouts, now)
        })
    }

    /// Forgets the flow whose packets have this key, if it yields; says whether the key is free then.
    pub fn reclaim(&mut self, key: &Key, hash: u64, timeouts: &Timeouts, now: Instant) -> bool {
        let slot = self.occupant(key, hash, now);
        let tenant = self.tenant_of(slot, timeouts, now);
        if let (Tenant::Idle, Some(slot)) = (tenant, slot) {
            self.remove(slot);
        }
        tenant != Tenant::Busy
    }

    /// Keeps the lists right after a change of a flow's state or deadline.
    #[inline]
    pub fn changed(&mut self, slot: u32, before: Class) {
        let Some(flow) = self.slots.get(slot) else {
            return;
        };
        let due = Tick::after(flow.expires);
        let class = flow.class();
        if flow.due.is_after(due) {
            self.arm(slot, due);
        }
        if class == before {
            return self.refresh(slot, class);
        }
        self.delist(slot, before);
        self.enlist(slot, class);
    }

    /// Forgets a flow.
    pub fn remove(&mut self, slot: u32) -> Option<Connection> {
        let flow = self.slots.get(slot)?;
        let (class, state, dialogue, over) = (flow.class(), flow.state, flow.dialogue, flow.expires);
        let is_masqueraded = flow.is_masqueraded();
        for way in [Direction::Original, Direction::Reply] {
            let key = self.slots.arriving(slot, way)?;
            let hash = self.hasher.hash_one(key);
            self.index.remove(hash, Entry::new(slot, way));
            match way {
                Direction::Original => self.away.leave(slot, &key),
                Direction::Reply => {
                    self.forgotten.note(hash, state, dialogue, over);
                    if is_masqueraded {
                        self.allocator.release(&key);
                    }
                }
            }
        }
        self.delist(slot, class);
        self.wheel.disarm(&mut self.slots, slot);
        let connection = self.slots.remove(slot)?;
        connection.backend.unbind(connection.state.is_active());
        self.census.remove(connection.state);
        self.live -= 1;
        Some(connection)
    }

    /// Forgets the oldest flow of a class that may be evicted.
    pub fn evict(&mut self, class: Class) -> Option<Connection> {
        let oldest = self.list(class)?.oldest()?;
        self.remove(oldest)
    }

    /// Looks at a few flows that are due by `now`, and forgets those whose time is over; returns how many it has looked at. 0:
    /// there are no more.
    pub fn expire_some(&mut self, now: Instant) -> usize {
        let mut slots = [0; AHEAD];
        let due = self.wheel.take(&mut self.slots, now, &mut slots);
        let slots = &slots[..due];
        self.prefetch_all(slots);
        slots.iter().for_each(|&slot| self.visit(slot, now));
        due
    }

    /// Shows those of the living flows of some slots from `from` on that are `wanted` to `see`; returns where to go on, None at
    /// the end. To copy a flow costs several times what it costs to look at it.
    pub(super) fn visit_some(
        &self,
        from: usize,
        now: Instant,
        wanted: impl Fn(&Flow) -> bool,
        mut see: impl FnMut(&Connection),
    ) -> Option<usize> {
        const SOME: usize = 2048;
        let end = self.slots.len().min(from + SOME);
        let is_wanted = |flow: &Flow| flow.expires > now && wanted(flow);
        let slots = (from..end).map(|slot| slot as u32);
        let wanted = slots.filter(|&slot| self.slots.get(slot).is_some_and(is_wanted));
        let connections = wanted.filter_map(|slot| self.slots.connection(slot));
        connections.for_each(|connection| see(&connection));
        (end < self.slots.len()).then_some(end)
    }

    /// How many flows are in each state.
    pub(super) fn states(&self) -> impl Iterator<Item = (State, u64)> + use<> {
        self.census.clone().into_counts()
    }

    /// A flow is not in the state `before` any more.
    #[inline]
    pub(crate) fn recount(&mut self, before: State, after: State) {
        if before != after {
            self.census.remove(before);
            self.census.add(after);
        }
    }

    /// Has the CPU fetch what forgetting the flows in some slots changes. It was last used when the flows were, so each would wait
    /// for the memory, and here they do side by side.
    fn prefetch_all(&self, slots: &[u32]) {
        slots.iter().for_each(|&slot| self.slots.prefetch_whole(slot));
        let flows = slots.iter().filter_map(|&slot| self.slots.get(slot));
        flows.for_each(|flow| flow.backend.prefetch());
        let both = |&slot: &u32| [Direction::Original, Direction::Reply].map(|way| self.slots.arriving(slot, way));
        let keys = slots.iter().flat_map(both).flatten();
        keys.for_each(|key| self.index.prefetch(self.hasher.hash_one(key)));
    }

    fn visit(&mut self, slot: u32, now: Instant) {
        let Some(flow) = self.slots.get(slot) else {
            return;
        };
        let due = Tick::after(flow.expires);
        if due <= Tick::at(now) {
            self.remove(slot);
        } else {
            // A packet came since, or it is due beyond a turn of the wheel.
            self.arm(slot, due);
        }
    }

    fn arm(&mut self, slot: u32, due: Tick) {
        let at = self.wheel.arm(&mut self.slots, slot, due);
        if let Some(flow) = self.slots.get_mut(slot) {
            flow.due = at.into();
        }
    }

    #[inline]
    fn entry(&self, key: &Key, hash: u64) -> Option<Entry> {
        let matches = |entry: Entry| self.slots.arrives_with(entry.slot(), entry.direction(), key);
        self.index.find(hash, matches)
    }

    const fn list(&self, class: Class) -> Option<&Ages> {
        match class {
            Class::Embryonic => Some(&self.embryonic),
            Class::Closing => Some(&self.closing),
            Class::Established => None,
        }
    }

    const fn list_mut(&mut self, class: Class) -> Option<(&mut Ages, &mut Slots, &Mark)> {
        let list = match class {
            Class::Embryonic => &mut self.embryonic,
            Class::Closing => &mut self.closing,
            Class::Established => return None,
        };
        Some((list, &mut self.slots, &self.mark))
    }

    fn enlist(&mut self, slot: u32, class: Class) {
        if let Some((list, slots, mark)) = self.list_mut(class) {
            if list.oldest().is_none() {
                mark.set(class, true);
            }
            list.push(slots, slot);
        }
    }

    fn delist(&mut self, slot: u32, class: Class) {
        if let Some((list, slots, mark)) = self.list_mut(class) {
            list.remove(slots, slot);
            if list.oldest().is_none() {
                mark.set(class, false);
            }
        }
    }

    /// One that is in use, as syslog over UDP without an answer, is not the oldest of its class any more.
    #[inline]
    fn refresh(&mut self, slot: u32, class: Class) {
        if let Some((list, slots, _)) = self.list_mut(class)
            && list.youngest() != Some(slot)
        {
            list.remove(slots, slot);
            list.push(slots, slot);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::conntrack::connection::Dialogue;
    use crate::conntrack::evictable::Evictable;
    use crate::flow::{Endpoint, Protocol};
    use crate::policy::BackendSpec;
    use crate::service::{Backend, ServiceIdentity};

    fn empty(room: usize, now: Instant) -> Shard {
        let mark = Mark::all(&Arc::new(Evictable::new(1))).next().unwrap();
        Shard::new(
            RandomState::with_seeds(1, 2, 3, 4),
            (room, 1),
            mark,
            Arc::default(),
            now,
        )
    }

    fn backend() -> Arc<Backend> {
        let service = Arc::new(ServiceIdentity::new(1, "web"));
        let spec = BackendSpec {
            address: "10.2.0.11:80".parse().unwrap(),
            weight: 1,
            upper_threshold: 0,
            lower_threshold: 0,
        };
        Arc::new(Backend::new(1, &spec, service, 1))
    }

    fn connection(backend: &Arc<Backend>, port: u16, expires: Instant) -> Connection {
        let client = Endpoint::new([10, 1, 0, 2].into(), port);
        Connection {
            protocol: Protocol::Udp,
            client,
            virtual_address: "10.96.0.10:80".parse().unwrap(),
            source: client,
            backend: Arc::clone(backend),
            template: None,
            state: State::Udp,
            dialogue: Dialogue::Asked,
            window: Window::default(),
            opened: Instant::ZERO,
            expires,
        }
    }

    #[test]
    fn a_flow_in_a_full_table_takes_128_bytes_with_both_its_directions_and_gives_them_back() {
        const FLOWS: usize = 1 << 15;
        let (backend, now) = (backend(), Instant::from_nanos(1_000_000_000_000));
        let mut shard = empty(FLOWS, now);
        for _ in 0..3 {
            for port in 0..FLOWS as u16 {
                shard
                    .insert(connection(&backend, port, now + Duration::from_secs(60)), now)
                    .unwrap();
            }
            assert_eq!((shard.len(), shard.memory()), (FLOWS, 128 * FLOWS));
            while shard.evict(Class::Embryonic).is_some() {}
        }
    }

    #[test]
    fn evicted_flows_leave_nothing_behind_for_the_wheel() {
        let (backend, mut now) = (backend(), Instant::from_nanos(1_000_000_000_000));
        let mut shard = empty(0, now);
        for port in 1..50_000 {
            shard
                .insert(connection(&backend, port, now + Duration::from_secs(60)), now)
                .unwrap();
            if shard.len() > 10 {
                shard.evict(Class::Embryonic).unwrap();
            }
            now = now + Duration::from_millis(7);
            while shard.expire_some(now) > 0 {}
        }
        assert_eq!((shard.len(), shard.wheel.waiting()), (10, 10));
    }

    #[test]
    fn a_flow_whose_end_comes_nearer_and_goes_away_again_is_visited_once_a_turn() {
        let (backend, mut now) = (backend(), Instant::from_nanos(1_000_000_000_000));
        let mut shard = empty(0, now);
        shard
            .insert(connection(&backend, 1, now + Duration::from_secs(900)), now)
            .unwrap();
        for round in 0..1_000 {
            let timeout = if round % 2 == 0 { 10 } else { 900 };
            shard.get_mut(0).unwrap().expires = now + Duration::from_secs(timeout);
            shard.changed(0, Class::Embryonic);
            now = now + Duration::from_secs(5);
            while shard.expire_some(now) > 0 {}
        }
        assert_eq!((shard.len(), shard.wheel.waiting()), (1, 1));
    }
}
