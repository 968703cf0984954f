//! A part of the connection table: flows in slots, found by the tuple of either direction.

use ahash::RandomState;

use super::ages::{Ages, Link, Links};
use super::connection::{Class, Connection};
use super::index::{Entry, Index};
use super::wheel::{Tick, Timer, Timers, Wheel};
use crate::flow::{Direction, Tuple};
use crate::time::Instant;

/// A flow in its slot.
#[derive(Debug)]
struct Occupied {
    connection: Connection,
    /// When the wheel will look at it.
    timer: Timer,
    /// Its place among the flows of its class.
    link: Link,
}

#[derive(Debug, Default)]
struct Slots {
    occupied: Vec<Option<Occupied>>,
    free: Vec<u32>,
}

impl Slots {
    fn get(&self, slot: u32) -> Option<&Occupied> {
        self.occupied.get(slot as usize)?.as_ref()
    }

    fn get_mut(&mut self, slot: u32) -> Option<&mut Occupied> {
        self.occupied.get_mut(slot as usize)?.as_mut()
    }

    fn insert(&mut self, occupied: Occupied) -> u32 {
        if let Some(slot) = self.free.pop() {
            self.occupied[slot as usize] = Some(occupied);
            return slot;
        }
        self.occupied.push(Some(occupied));
        // `max_flows` keeps the number below 2^31.
        (self.occupied.len() - 1) as u32
    }

    fn remove(&mut self, slot: u32) -> Option<Occupied> {
        let occupied = self.occupied.get_mut(slot as usize)?.take()?;
        self.free.push(slot);
        Some(occupied)
    }
}

impl Links for Slots {
    fn link(&mut self, slot: u32) -> &mut Link {
        match &mut self.occupied[slot as usize] {
            Some(occupied) => &mut occupied.link,
            None => unreachable!("a linked slot is occupied"),
        }
    }
}

impl Timers for Slots {
    fn timer(&mut self, slot: u32) -> &mut Timer {
        match &mut self.occupied[slot as usize] {
            Some(occupied) => &mut occupied.timer,
            None => unreachable!("an armed slot is occupied"),
        }
    }
}

/// See the module.
#[derive(Debug)]
pub struct Shard {
    hasher: RandomState,
    index: Index,
    slots: Slots,
    wheel: Wheel,
    embryonic: Ages,
    closing: Ages,
    live: usize,
}

impl Shard {
    /// An empty shard; `hasher` is the table's, seeded once a process against hash flooding. It does
    /// not grow before it holds `room` flows.
    #[must_use]
    pub fn new(hasher: RandomState, room: usize, now: Instant) -> Self {
        Self {
            hasher,
            index: Index::with_room(2 * room),
            slots: Slots {
                occupied: Vec::with_capacity(room),
                free: Vec::new(),
            },
            wheel: Wheel::new(now),
            embryonic: Ages::default(),
            closing: Ages::default(),
            live: 0,
        }
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

    /// The flow that a packet of `tuple` belongs to, its slot, and the packet's direction.
    #[must_use]
    #[inline]
    pub fn find(&self, tuple: &Tuple, now: Instant) -> Option<(u32, Direction, &Connection)> {
        let entry = self.entry(tuple)?;
        let connection = &self.slots.get(entry.slot())?.connection;
        (connection.expires > now).then_some((entry.slot(), entry.direction(), connection))
    }

    /// The flow in an occupied slot, for a change that [`Self::changed`] must be told of.
    pub fn get_mut(&mut self, slot: u32) -> Option<&mut Connection> {
        Some(&mut self.slots.get_mut(slot)?.connection)
    }

    /// Stores a flow in both directions, or not at all: the backend's direction may be another flow's.
    ///
    /// # Errors
    /// Gives the flow back if a packet of either direction already belongs to another flow.
    pub fn insert(&mut self, connection: Connection, now: Instant) -> Result<(), Connection> {
        let tuples = [Direction::Original, Direction::Reply].map(|way| (way, connection.arriving(way)));
        if tuples.iter().any(|(_, tuple)| !self.is_free(tuple, now)) {
            return Err(connection);
        }
        let due = Tick::after(connection.expires);
        let class = connection.class();
        connection.backend.bind();
        if connection.state.is_active() {
            connection.backend.set_active(true);
        }
        let slot = self.slots.insert(Occupied {
            connection,
            timer: Timer::default(),
            link: Link::default(),
        });
        for (way, tuple) in tuples {
            self.index.insert(self.hasher.hash_one(tuple), Entry::new(slot, way));
        }
        self.wheel.arm(&mut self.slots, slot, due);
        self.enlist(slot, class);
        self.live += 1;
        Ok(())
    }

    /// Whether no living flow has packets of this tuple; one that is over but not yet forgotten makes room.
    pub fn is_free(&mut self, tuple: &Tuple, now: Instant) -> bool {
        match self.entry(tuple) {
            None => true,
            Some(_) if self.find(tuple, now).is_some() => false,
            Some(entry) => {
                self.remove(entry.slot());
                true
            }
        }
    }

    /// Keeps the lists right after a change of a flow's state or deadline.
    #[inline]
    pub fn changed(&mut self, slot: u32, before: Class) {
        let Some(occupied) = self.slots.get(slot) else {
            return;
        };
        let due = Tick::after(occupied.connection.expires);
        let class = occupied.connection.class();
        if due < occupied.timer.due() {
            self.wheel.arm(&mut self.slots, slot, due);
        }
        // One that is in use without an answer, as syslog over UDP, is not the oldest any more.
        if class != before || class == Class::Embryonic {
            self.delist(slot, before);
            self.enlist(slot, class);
        }
    }

    /// Forgets a flow.
    pub fn remove(&mut self, slot: u32) -> Option<Connection> {
        let connection = &self.slots.get(slot)?.connection;
        let class = connection.class();
        for way in [Direction::Original, Direction::Reply] {
            let hash = self.hasher.hash_one(self.slots.get(slot)?.connection.arriving(way));
            self.index.remove(hash, Entry::new(slot, way));
        }
        self.delist(slot, class);
        self.wheel.disarm(&mut self.slots, slot);
        let connection = self.slots.remove(slot)?.connection;
        connection.backend.unbind(connection.state.is_active());
        self.live -= 1;
        Some(connection)
    }

    /// Forgets the oldest flow of a class that may be evicted.
    pub fn evict(&mut self, class: Class) -> Option<Connection> {
        let oldest = self.list(class)?.oldest()?;
        self.remove(oldest)
    }

    /// Forgets every flow whose time is over; returns how many.
    pub fn expire(&mut self, now: Instant) -> usize {
        let before = self.live;
        while let Some((tick, slots)) = self.wheel.advance(&mut self.slots, now) {
            for slot in slots {
                self.visit(slot, tick);
            }
        }
        before - self.live
    }

    /// Shows the living flows of some slots from `from` on to `see`; returns where to go on, None at the end.
    pub fn visit_some(&self, from: usize, now: Instant, see: &mut impl FnMut(&Connection)) -> Option<usize> {
        const SOME: usize = 2048;
        let occupied = self.slots.occupied.iter().skip(from).take(SOME).flatten();
        let connections = occupied.map(|occupied| &occupied.connection);
        connections.filter(|connection| connection.expires > now).for_each(see);
        (from + SOME < self.slots.occupied.len()).then_some(from + SOME)
    }

    fn visit(&mut self, slot: u32, tick: Tick) {
        let Some(occupied) = self.slots.get(slot) else {
            return;
        };
        let due = Tick::after(occupied.connection.expires);
        if due <= tick {
            self.remove(slot);
        } else {
            // A packet came since, or it waited in a coarse bucket.
            self.wheel.arm(&mut self.slots, slot, due);
        }
    }

    #[inline]
    fn entry(&self, tuple: &Tuple) -> Option<Entry> {
        let slots = &self.slots;
        let matches = |entry: Entry| {
            slots
                .get(entry.slot())
                .is_some_and(|occupied| occupied.connection.arrives_with(entry.direction(), tuple))
        };
        self.index.find(self.hasher.hash_one(tuple), matches)
    }

    const fn list(&mut self, class: Class) -> Option<&mut Ages> {
        match class {
            Class::Embryonic => Some(&mut self.embryonic),
            Class::Closing => Some(&mut self.closing),
            Class::Established => None,
        }
    }

    fn enlist(&mut self, slot: u32, class: Class) {
        match class {
            Class::Embryonic => self.embryonic.push(&mut self.slots, slot),
            Class::Closing => self.closing.push(&mut self.slots, slot),
            Class::Established => {}
        }
    }

    fn delist(&mut self, slot: u32, class: Class) {
        match class {
            Class::Embryonic => self.embryonic.remove(&mut self.slots, slot),
            Class::Closing => self.closing.remove(&mut self.slots, slot),
            Class::Established => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::conntrack::connection::State;
    use crate::flow::{Endpoint, Protocol};
    use crate::policy::BackendSpec;
    use crate::service::{Backend, ServiceIdentity, Stats};

    fn backend() -> Arc<Backend> {
        let service = Arc::new(ServiceIdentity {
            id: 1,
            name: "web".into(),
            stats: Stats::new(1),
            on_backend_removed: Default::default(),
        });
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
            answered: false,
            opened: Instant::ZERO,
            expires,
        }
    }

    #[test]
    fn evicted_flows_leave_nothing_behind_for_the_wheel() {
        let (backend, mut now) = (backend(), Instant::from_nanos(1_000_000_000_000));
        let mut shard = Shard::new(RandomState::with_seeds(1, 2, 3, 4), 0, now);
        for port in 1..50_000 {
            shard
                .insert(connection(&backend, port, now + Duration::from_secs(60)), now)
                .unwrap();
            if shard.len() > 10 {
                shard.evict(Class::Embryonic).unwrap();
            }
            now = now + Duration::from_millis(7);
            shard.expire(now);
        }
        assert_eq!((shard.len(), shard.wheel.waiting(&mut shard.slots)), (10, 10));
    }

    #[test]
    fn a_flow_whose_end_comes_nearer_and_goes_away_again_is_visited_once_a_turn() {
        let (backend, mut now) = (backend(), Instant::from_nanos(1_000_000_000_000));
        let mut shard = Shard::new(RandomState::with_seeds(1, 2, 3, 4), 0, now);
        shard
            .insert(connection(&backend, 1, now + Duration::from_secs(900)), now)
            .unwrap();
        for round in 0..1_000 {
            let timeout = if round % 2 == 0 { 10 } else { 900 };
            shard.get_mut(0).unwrap().expires = now + Duration::from_secs(timeout);
            shard.changed(0, Class::Embryonic);
            now = now + Duration::from_secs(5);
            shard.expire(now);
        }
        assert_eq!((shard.len(), shard.wheel.waiting(&mut shard.slots)), (1, 1));
    }
}
