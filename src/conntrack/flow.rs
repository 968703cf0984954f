//! A flow as the table keeps it: what every packet needs in one cache line, the rest in another place.
//!
//! So a packet of a known flow reads a line of the index and a line here; of the record of 160 bytes that this was before it
//! read three. What it came to is said in [`super`].
use std::mem;
use std::sync::Arc;

use super::ages::{Link, Links};
use super::connection::{Class, Connection, State};
use super::wheel::{ShortTick, Timer, Timers};
use crate::affinity::Template;
use crate::flow::{Address, Direction, Endpoint, Key, Protocol};
use crate::service::Backend;
use crate::time::Instant;

/// See the module.
#[derive(Debug)]
#[repr(align(64))]
pub(crate) struct Flow {
    client: Address,
    virtual_address: Address,
    client_port: u16,
    virtual_port: u16,
    /// The client's, unless it is masqueraded.
    source_port: u16,
    protocol: Protocol,
    is_masqueraded: bool,
    has_template: bool,
    /// Whether the backend has sent anything.
    pub(crate) answered: bool,
    /// How far it is.
    pub(crate) state: State,
    /// When the wheel will look at it at the latest.
    pub(super) due: ShortTick,
    /// When it is forgotten unless a packet comes.
    pub(crate) expires: Instant,
    /// Who answers.
    pub(crate) backend: Arc<Backend>,
}

const _: () = assert!(size_of::<Option<Flow>>() == 64, "a flow is a cache line");

impl Flow {
    /// What eviction makes of it.
    #[inline]
    pub(crate) const fn class(&self) -> Class {
        Class::of(self.state, self.answered)
    }
}

/// What few packets need.
#[derive(Debug, Default)]
struct Rest {
    /// The sender that the backend sees.
    source: Address,
    template: Option<Arc<Template>>,
    opened: Instant,
    timer: Timer,
    /// Its place among the flows of its class.
    link: Link,
}

/// Flows by number.
#[derive(Debug, Default)]
pub(super) struct Slots {
    flows: Vec<Option<Flow>>,
    rest: Vec<Rest>,
    free: Vec<u32>,
}

impl Slots {
    pub(super) fn with_capacity(room: usize) -> Self {
        Self {
            flows: Vec::with_capacity(room),
            rest: Vec::with_capacity(room),
            free: Vec::new(),
        }
    }

    /// Bytes that the flows take which were there at once.
    pub(super) fn memory(&self) -> usize {
        self.flows.len() * (size_of::<Option<Flow>>() + size_of::<Rest>()) + self.free.capacity() * size_of::<u32>()
    }

    #[inline]
    pub(super) fn get(&self, slot: u32) -> Option<&Flow> {
        self.flows.get(slot as usize)?.as_ref()
    }

    #[inline]
    pub(super) fn get_mut(&mut self, slot: u32) -> Option<&mut Flow> {
        self.flows.get_mut(slot as usize)?.as_mut()
    }

    /// Slots are numbered below this.
    pub(super) const fn len(&self) -> usize {
        self.flows.len()
    }

    pub(super) fn insert(&mut self, connection: Connection) -> u32 {
        let (flow, rest) = split(connection);
        if let Some(slot) = self.free.pop() {
            self.flows[slot as usize] = Some(flow);
            self.rest[slot as usize] = rest;
            return slot;
        }
        self.flows.push(Some(flow));
        self.rest.push(rest);
        // `max_flows` keeps the number below 2^30.
        (self.flows.len() - 1) as u32
    }

    pub(super) fn remove(&mut self, slot: u32) -> Option<Connection> {
        let flow = self.flows.get_mut(slot as usize)?.take()?;
        let rest = mem::take(&mut self.rest[slot as usize]);
        self.free.push(slot);
        Some(join(&flow, rest.source, rest.template, rest.opened))
    }

    /// A copy of a flow.
    pub(super) fn connection(&self, slot: u32) -> Option<Connection> {
        let flow = self.get(slot)?;
        let rest = &self.rest[slot as usize];
        Some(join(flow, rest.source, rest.template.clone(), rest.opened))
    }

    /// The client affinity that a flow keeps alive.
    #[inline]
    pub(super) fn template(&self, slot: u32) -> Option<&Template> {
        let has_one = self.get(slot)?.has_template;
        has_one.then(|| self.rest[slot as usize].template.as_deref()).flatten()
    }

    /// The key that packets of a flow arrive with.
    pub(super) fn arriving(&self, slot: u32, direction: Direction) -> Option<Key> {
        let flow = self.get(slot)?;
        Some(match direction {
            Direction::Original => flow.to_client().reply(),
            Direction::Reply => flow.to_backend(self.source(slot, flow)).reply(),
        })
    }

    /// The key that packets of a flow leave with.
    #[inline]
    pub(super) fn leaving(&self, slot: u32, direction: Direction) -> Option<Key> {
        let flow = self.get(slot)?;
        Some(match direction {
            Direction::Original => flow.to_backend(self.source(slot, flow)),
            Direction::Reply => flow.to_client(),
        })
    }

    /// Whether packets of a flow in `direction` arrive with `key`.
    #[inline]
    pub(super) fn arrives_with(&self, slot: u32, direction: Direction, key: &Key) -> bool {
        self.arriving(slot, direction).as_ref() == Some(key)
    }

    #[inline]
    fn source(&self, slot: u32, flow: &Flow) -> Address {
        match flow.is_masqueraded {
            false => flow.client,
            true => self.rest[slot as usize].source,
        }
    }
}

impl Flow {
    #[inline]
    const fn to_client(&self) -> Key {
        Key::new(
            self.protocol,
            (self.virtual_address, self.virtual_port),
            (self.client, self.client_port),
        )
    }

    #[inline]
    fn to_backend(&self, source: Address) -> Key {
        let server = (self.backend.host, self.backend.port(self.virtual_port));
        Key::new(self.protocol, (source, self.source_port), server)
    }
}

fn split(connection: Connection) -> (Flow, Rest) {
    let is_masqueraded = connection.is_masqueraded();
    let source: Address = connection.source.address.into();
    let flow = Flow {
        client: connection.client.address.into(),
        virtual_address: connection.virtual_address.address.into(),
        client_port: connection.client.port,
        virtual_port: connection.virtual_address.port,
        source_port: connection.source.port,
        protocol: connection.protocol,
        is_masqueraded,
        has_template: connection.template.is_some(),
        answered: connection.answered,
        state: connection.state,
        due: ShortTick::default(),
        expires: connection.expires,
        backend: connection.backend,
    };
    let rest = Rest {
        source,
        template: connection.template,
        opened: connection.opened,
        timer: Timer::default(),
        link: Link::default(),
    };
    (flow, rest)
}

fn join(flow: &Flow, source: Address, template: Option<Arc<Template>>, opened: Instant) -> Connection {
    Connection {
        protocol: flow.protocol,
        client: Endpoint::new(flow.client.into(), flow.client_port),
        virtual_address: Endpoint::new(flow.virtual_address.into(), flow.virtual_port),
        source: Endpoint::new(source.into(), flow.source_port),
        backend: Arc::clone(&flow.backend),
        template,
        state: flow.state,
        answered: flow.answered,
        opened,
        expires: flow.expires,
    }
}

impl Links for Slots {
    fn link(&mut self, slot: u32) -> &mut Link {
        &mut self.rest[slot as usize].link
    }
}

impl Timers for Slots {
    fn timer(&mut self, slot: u32) -> &mut Timer {
        &mut self.rest[slot as usize].timer
    }
}
