//! A flow as the table keeps it: what every packet needs in one cache line, the rest in another place.
//!
//! So a packet of a known flow reads a line of the index and a line here; of the record of 160 bytes that this was before it
//! read three. What it came to is said in [`super`]. Half a line more is for what few packets need, and what few flows have is
//! elsewhere, so that a flow with its two entries in a full index takes 128 bytes; an IPv6 one has its [`Window`] elsewhere, too,
//! and takes 16 more.
use std::mem;
use std::net::IpAddr;
use std::sync::Arc;

use super::ages::{Ages, Link, Links};
use super::connection::{Class, Connection, Dialogue, State};
use super::wheel::{ShortTick, Tick, Timer, Timers};
use super::window::Window;
use crate::affinity::Template;
use crate::flow::{Address, Direction, Endpoint, Key, Protocol};
use crate::service::Backend;
use crate::time::Instant;
use lbd_prefetch as prefetch;

/// See the module.
#[derive(Debug)]
#[repr(align(64))]
pub(crate) struct Flow {
    ends: Ends,
    client_port: u16,
    virtual_port: u16,
    /// The client's, unless it is masqueraded.
    source_port: u16,
    protocol: Protocol,
    traits: Traits,
    /// Who has spoken.
    pub(crate) dialogue: Dialogue,
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

/// The addresses of the client and of the service. IPv6 fills it; IPv4 addresses leave room for the window, which every packet
/// needs as well.
#[derive(Clone, Copy, Debug)]
struct Ends([u64; 4]);

/// What a flow has, or is.
#[derive(Clone, Copy, Debug)]
struct Traits(u8);

impl Traits {
    const MASQUERADED: u8 = 1;
    const TEMPLATE: u8 = 2;
    const V4: u8 = 4;

    const fn with(self, is: bool, bit: u8) -> Self {
        Self(if is { self.0 | bit } else { self.0 })
    }

    #[inline]
    const fn has(self, bit: u8) -> bool {
        self.0 & bit != 0
    }
}

impl Flow {
    /// What eviction makes of it.
    #[inline]
    pub(crate) const fn class(&self) -> Class {
        Class::of(self.state, self.dialogue)
    }

    /// Whether the backend sees another sender than the client.
    #[inline]
    pub(crate) const fn is_masqueraded(&self) -> bool {
        self.traits.has(Traits::MASQUERADED)
    }

    #[inline]
    const fn client(&self) -> Address {
        let Ends([first, second, ..]) = self.ends;
        match self.traits.has(Traits::V4) {
            true => Address::v4((first >> 32) as u32),
            false => Address::v6(first, second),
        }
    }

    #[inline]
    const fn virtual_address(&self) -> Address {
        let Ends([first, _, third, fourth]) = self.ends;
        match self.traits.has(Traits::V4) {
            true => Address::v4(first as u32),
            false => Address::v6(third, fourth),
        }
    }

    /// Whether its template is assured: where it is established, or over UDP answered (`udp_state_transition`,
    /// ip_vs_proto_udp.c).
    #[inline]
    pub(crate) fn is_assured(&self) -> bool {
        let is_answered = || self.state == State::Udp && self.dialogue != Dialogue::Asked;
        self.class() == Class::Established || is_answered()
    }
}

/// What few packets need.
#[derive(Debug, Default)]
struct Rest {
    extra: Option<Box<Extra>>,
    opened: ShortTick,
    timer: Timer,
    /// Its place among the flows of its class, or among the free slots.
    link: Link,
}

const _: () = assert!(size_of::<Rest>() == 32, "half a cache line");

/// What few flows have: those that are masqueraded, or go by client affinity.
#[derive(Clone, Debug)]
struct Extra {
    /// The sender that the backend sees.
    source: Address,
    template: Option<Arc<Template>>,
}

/// Flows by number.
#[derive(Debug, Default)]
pub(super) struct Slots {
    flows: Vec<Option<Flow>>,
    rest: Vec<Rest>,
    /// The windows of IPv6 flows.
    windows: Vec<[u64; 2]>,
    /// Slots below this may have had one there.
    wide: usize,
    free: Ages,
    /// How many flows have an [`Extra`].
    extras: usize,
}

impl Slots {
    pub(super) fn with_capacity(room: usize) -> Self {
        Self {
            flows: Vec::with_capacity(room),
            rest: Vec::with_capacity(room),
            // Of plain zeros: the kernel gives memory for those when they are first written to.
            windows: vec![[0; 2]; room],
            wide: 0,
            free: Ages::default(),
            extras: 0,
        }
    }

    /// Bytes that the flows take which were there at once.
    pub(super) fn memory(&self) -> usize {
        self.flows.len() * (size_of::<Option<Flow>>() + size_of::<Rest>())
            + self.wide * size_of::<Window>()
            + self.extras * size_of::<Extra>()
    }

    /// Has the CPU fetch what every packet of a flow needs.
    #[inline]
    pub(super) fn prefetch(&self, slot: u32) {
        prefetch::line(self.flows.as_ptr().wrapping_add(slot as usize));
        if (slot as usize) < self.wide {
            prefetch::line(self.windows.as_ptr().wrapping_add(slot as usize));
        }
    }

    /// And what few packets need.
    pub(super) fn prefetch_whole(&self, slot: u32) {
        self.prefetch(slot);
        prefetch::line(self.rest.as_ptr().wrapping_add(slot as usize));
    }

    #[inline]
    pub(super) fn get(&self, slot: u32) -> Option<&Flow> {
        self.flows.get(slot as usize)?.as_ref()
    }

    #[inline]
    pub(super) fn get_mut(&mut self, slot: u32) -> Option<&mut Flow> {
        self.flows.get_mut(slot as usize)?.as_mut()
    }

    /// What tells which segments of a flow are believed.
    #[inline]
    pub(super) fn window(&self, slot: u32) -> Window {
        let Some(flow) = self.get(slot) else {
            return Window::default();
        };
        let words = match flow.traits.has(Traits::V4) {
            true => [flow.ends.0[1], flow.ends.0[2]],
            false => self.windows.get(slot as usize).copied().unwrap_or_default(),
        };
        words.into()
    }

    #[inline]
    pub(super) fn set_window(&mut self, slot: u32, window: Window) {
        let words = <[u64; 2]>::from(window);
        match self.get_mut(slot) {
            Some(flow) if flow.traits.has(Traits::V4) => [flow.ends.0[1], flow.ends.0[2]] = words,
            Some(_) | None => {
                if let Some(wide) = self.windows.get_mut(slot as usize) {
                    *wide = words;
                }
            }
        }
    }

    /// Has room for the window of a new flow.
    fn widen(&mut self, slot: u32) {
        let is_wide = |flow: &Flow| !flow.traits.has(Traits::V4) && flow.protocol == Protocol::Tcp;
        if self.get(slot).is_some_and(is_wide) {
            let wide = slot as usize + 1;
            self.wide = self.wide.max(wide);
            if self.windows.len() < wide {
                self.windows.resize(wide, [0; 2]);
            }
        }
    }

    /// Slots are numbered below this.
    pub(super) const fn len(&self) -> usize {
        self.flows.len()
    }

    pub(super) fn insert(&mut self, connection: Connection) -> u32 {
        let window = connection.window;
        let slot = self.place(connection);
        self.widen(slot);
        self.set_window(slot, window);
        slot
    }

    fn place(&mut self, connection: Connection) -> u32 {
        let (flow, rest) = split(connection);
        self.extras += usize::from(rest.extra.is_some());
        // The one that was freed last may still be in a near cache.
        if let Some(slot) = self.free.youngest() {
            self.with_free(|free, slots| free.remove(slots, slot));
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
        let window = self.window(slot);
        let flow = self.flows.get_mut(slot as usize)?.take()?;
        let rest = mem::take(&mut self.rest[slot as usize]);
        self.extras -= usize::from(rest.extra.is_some());
        self.with_free(|free, slots| free.push(slots, slot));
        Some(join(&flow, window, rest.opened, rest.extra.map(|extra| *extra)))
    }

    /// The links of the free slots are in the slots.
    fn with_free(&mut self, act: impl FnOnce(&mut Ages, &mut Self)) {
        let mut free = self.free;
        act(&mut free, self);
        self.free = free;
    }

    /// A copy of a flow.
    pub(super) fn connection(&self, slot: u32) -> Option<Connection> {
        let flow = self.get(slot)?;
        let rest = &self.rest[slot as usize];
        Some(join(
            flow,
            self.window(slot),
            rest.opened,
            rest.extra.as_deref().cloned(),
        ))
    }

    /// The client affinity that a flow keeps alive.
    #[inline]
    pub(super) fn template(&self, slot: u32) -> Option<&Template> {
        let has_one = self.get(slot)?.traits.has(Traits::TEMPLATE);
        has_one.then(|| self.extra(slot)?.template.as_deref()).flatten()
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
        let extra = flow.is_masqueraded().then(|| self.extra(slot)).flatten();
        extra.map_or_else(|| flow.client(), |extra| extra.source)
    }

    #[inline]
    fn extra(&self, slot: u32) -> Option<&Extra> {
        self.rest[slot as usize].extra.as_deref()
    }
}

impl Flow {
    #[inline]
    const fn to_client(&self) -> Key {
        Key::new(
            self.protocol,
            (self.virtual_address(), self.virtual_port),
            (self.client(), self.client_port),
        )
    }

    #[inline]
    fn to_backend(&self, source: Address) -> Key {
        let server = (self.backend.host, self.backend.port(self.virtual_port));
        Key::new(self.protocol, (source, self.source_port), server)
    }
}

impl Ends {
    fn of(client: IpAddr, virtual_address: IpAddr) -> Self {
        let [client, service] = [client, virtual_address].map(Address::from);
        match (client.as_v4(), service.as_v4()) {
            (Some(client), Some(service)) => Self([u64::from(client) << 32 | u64::from(service), 0, 0, 0]),
            (Some(_) | None, _) => {
                let ([first, second], [third, fourth]) = (client.halves(), service.halves());
                Self([first, second, third, fourth])
            }
        }
    }
}

fn split(connection: Connection) -> (Flow, Rest) {
    let is_masqueraded = connection.is_masqueraded();
    let has_template = connection.template.is_some();
    let extra = (is_masqueraded || has_template).then(|| {
        Box::new(Extra {
            source: connection.source.address.into(),
            template: connection.template,
        })
    });
    let traits = Traits(0)
        .with(is_masqueraded, Traits::MASQUERADED)
        .with(has_template, Traits::TEMPLATE)
        .with(connection.client.address.is_ipv4(), Traits::V4);
    let flow = Flow {
        ends: Ends::of(connection.client.address, connection.virtual_address.address),
        client_port: connection.client.port,
        virtual_port: connection.virtual_address.port,
        source_port: connection.source.port,
        protocol: connection.protocol,
        traits,
        dialogue: connection.dialogue,
        state: connection.state,
        due: ShortTick::default(),
        expires: connection.expires,
        backend: connection.backend,
    };
    let rest = Rest {
        extra,
        opened: Tick::at(connection.opened).into(),
        timer: Timer::default(),
        link: Link::default(),
    };
    (flow, rest)
}

fn join(flow: &Flow, window: Window, opened: ShortTick, extra: Option<Extra>) -> Connection {
    let (source, template) = extra.map_or_else(|| (flow.client(), None), |extra| (extra.source, extra.template));
    Connection {
        protocol: flow.protocol,
        client: Endpoint::new(flow.client().into(), flow.client_port),
        virtual_address: Endpoint::new(flow.virtual_address().into(), flow.virtual_port),
        source: Endpoint::new(source.into(), flow.source_port),
        backend: Arc::clone(&flow.backend),
        template,
        state: flow.state,
        dialogue: flow.dialogue,
        window,
        opened: opened.before(flow.expires),
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
