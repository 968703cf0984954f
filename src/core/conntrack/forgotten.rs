//! Flows that lbd has forgotten while their backend might still answer: what it sends then must not reach a client that knows only
//! the service, from an address that the client has never heard of.
//!
//! Only what was a flow is known here. So a connection that goes past the services, whose packets look the same, passes,
//! whenever it began and even if lbd has seen none of it; and after a start without flows nothing is held to be a late answer.
//!
//! Tables of fixed size without collisions to resolve, as `bypass.rs`: what is forgotten last has the place. Flows that a
//! stranger makes with a single packet have a table of their own, so that they push out none of the others.
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use super::connection::{Class, Dialogue, State};
use super::signal::Signal;
use super::timeout::Timeouts;
use super::wheel::TICK_BITS;
use crate::flow::Protocol;
use crate::packet::TcpFlags;
use crate::packet::sctp::Chunk;
use crate::time::Instant;

/// Places of each table, 8 bytes each.
const PLACES: usize = 1 << 16;

/// See the module. A place holds the upper half of the hash of the backend's packets, and the tick at which the flow was over.
#[derive(Debug)]
pub(super) struct Forgotten {
    proven: Places,
    unproven: Places,
}

type Places = Box<[AtomicU64]>;

impl Default for Forgotten {
    fn default() -> Self {
        let places = || std::iter::repeat_with(AtomicU64::default).take(PLACES).collect();
        Self {
            proven: places(),
            unproven: places(),
        }
    }
}

impl Forgotten {
    /// Whether the backend of a flow in this state may still say something.
    pub(super) const fn may_answer(&self, state: State, dialogue: Dialogue) -> bool {
        self.table(state, dialogue).is_some()
    }

    /// A flow is forgotten; `hash` is that of its backend's packets.
    pub(super) fn note(&self, hash: u64, state: State, dialogue: Dialogue, over: Instant) {
        if let Some(places) = self.table(state, dialogue) {
            place(places, hash).store(hash >> 32 << 32 | ticks(over), Relaxed);
        }
    }

    /// None: all has been said, or what its backend may still say opens a connection, and passes.
    const fn table(&self, state: State, dialogue: Dialogue) -> Option<&Places> {
        match (state, dialogue) {
            (State::Tcp(_) | State::Sctp(_), Dialogue::Asked) => return None,
            (State::Tcp(state), _) if state.is_reusable() => return None,
            (State::Sctp(state), _) if state.is_reusable() => return None,
            (State::Udp, Dialogue::Asked | Dialogue::Answered) => return Some(&self.unproven),
            (State::Tcp(_) | State::Sctp(_) | State::Udp, _) => {}
        }
        match Class::of(state, dialogue) {
            Class::Embryonic => Some(&self.unproven),
            Class::Closing | Class::Established => Some(&self.proven),
        }
    }

    /// The same addresses and ports are used by a connection past the services.
    pub(super) fn recall(&self, hash: u64) {
        for places in [&self.proven, &self.unproven] {
            let place = place(places, hash);
            if is_of(place.load(Relaxed), hash) {
                place.store(0, Relaxed);
            }
        }
    }

    /// Whether a backend's packet is of a flow that was forgotten. A datagram is, for as long again as its flow lived without one:
    /// a client may ask the backend itself later, from the same port, and no packet shows it.
    pub(super) fn has(&self, hash: u64, signal: Signal, timeouts: &Timeouts, now: Instant) -> bool {
        let is_fresh = |place: u64| match signal.protocol() {
            Protocol::Tcp | Protocol::Sctp => true,
            Protocol::Udp => {
                // One that was evicted was over before its time.
                let age = (ticks(now) as u32).wrapping_sub(place as u32) as i32;
                u64::try_from(age).is_ok_and(|age| Duration::from_nanos(age << TICK_BITS) <= timeouts.udp) || age < 0
            }
        };
        let mut places = [&self.proven, &self.unproven]
            .into_iter()
            .map(|places| place(places, hash).load(Relaxed));
        places.any(|place| is_of(place, hash) && is_fresh(place))
    }
}

/// Whether it is the beginning of a connection, or the answer to one: a flow of that name, which is forgotten, had one before.
pub(super) const fn begins(signal: Signal) -> bool {
    match signal {
        Signal::Tcp(flags) => flags.has(TcpFlags::SYN) && !flags.has(TcpFlags::RST),
        Signal::Udp => false,
        Signal::Sctp(chunk) => matches!(chunk, Chunk::Init | Chunk::InitAck),
    }
}

fn place(places: &Places, hash: u64) -> &AtomicU64 {
    &places[hash as usize % PLACES]
}

const fn is_of(place: u64, hash: u64) -> bool {
    place != 0 && place >> 32 == hash >> 32
}

const fn ticks(time: Instant) -> u64 {
    time.as_nanos() >> TICK_BITS & u32::MAX as u64
}
