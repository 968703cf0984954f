//! Connections between clients and backends that go past the services, as far as packets of them were seen: they pass, and are
//! no flows. A client may use the same port for one of them and, through a service, to the same backend: then the backend could
//! not tell them apart, and the answers to both would be translated (kubernetes#90042).
//!
//! A table of fixed size without collisions to resolve: where two connections have the same place, the later one has it. What
//! is forgotten so is as if it had not been seen.
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use super::signal::Signal;
use super::timeout::Timeouts;
use super::wheel::TICK_BITS;
use super::{sctp, tcp};
use crate::flow::Protocol;
use crate::packet::TcpFlags;
use crate::packet::sctp::Chunk;
use crate::time::Instant;

/// Places, 8 bytes each.
const PLACES: usize = 1 << 15;
const CLOSING: u64 = 1 << 31;
const OPENING: u64 = 1 << 30;
/// The client was heard.
const CLIENT: u64 = 1 << 29;
/// The server was heard.
const SERVER: u64 = 1 << 28;
const BOTH: u64 = CLIENT | SERVER;
/// 28 bits of the wheel's ticks: a year.
const TICKS: u64 = SERVER - 1;

/// See the module. A place holds the upper half of the hash of the server's packets, whether the connection is being closed,
/// whether only its beginning was seen, which sides were heard, and when it was last seen.
#[derive(Debug)]
pub(super) struct Bypass(Box<[AtomicU64]>);

impl Default for Bypass {
    fn default() -> Self {
        Self(std::iter::repeat_with(AtomicU64::default).take(PLACES).collect())
    }
}

/// What is known of a connection past the services.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sighting {
    /// One side was heard, and nothing shows that the other side has answered: one packet with a forged sender is enough.
    OneSided,
    /// Both sides were heard; or the server has gone on after its answer, which it does only once its client has answered as
    /// well. On TUN the packets of a client to a server do not come to lbd.
    Confirmed,
}

/// Who sent a packet of a connection past the services.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Whoever talks to a backend or service address.
    Client,
    /// The backend.
    Server,
}

/// What a packet says about its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Word {
    Opens,
    GoesOn,
    Closes,
    Ends,
}

impl Word {
    const fn of(signal: Signal) -> Self {
        match signal {
            Signal::Tcp(flags) if flags.has(TcpFlags::RST) => Self::Ends,
            Signal::Tcp(flags) if flags.has(TcpFlags::SYN) => Self::Opens,
            Signal::Tcp(flags) if flags.has(TcpFlags::FIN) => Self::Closes,
            Signal::Tcp(_) => Self::GoesOn,
            Signal::Udp => Self::Opens,
            Signal::Sctp(chunk) => match chunk {
                Chunk::Init | Chunk::InitAck => Self::Opens,
                Chunk::Shutdown | Chunk::ShutdownAck => Self::Closes,
                Chunk::Abort | Chunk::ShutdownComplete => Self::Ends,
                Chunk::Data | Chunk::CookieEcho | Chunk::CookieAck | Chunk::Error => Self::GoesOn,
            },
        }
    }
}

impl Bypass {
    /// Takes note of a packet of a connection; `hash` is that of the server's packets, and `from` says who sent this one. Only
    /// one that opens it is believed that there is one: any other may be the last of a flow that lbd has forgotten.
    pub(super) fn note(&self, hash: u64, from: Side, signal: Signal, now: Instant) {
        let place = &self.0[hash as usize % PLACES];
        let before = place.load(Relaxed);
        let is_known = before >> 32 == hash >> 32;
        let before = if is_known { before } else { 0 };
        let (how_far, heard) = match Word::of(signal) {
            // What was proved stays so: this packet may be a forged one.
            Word::Opens if is_confirmed(before) && before & CLOSING == 0 => (0, before & BOTH),
            Word::Opens => (OPENING, if before & OPENING == 0 { 0 } else { before & BOTH }),
            Word::GoesOn if is_known => (before & CLOSING, before & BOTH),
            Word::Closes if is_known => (CLOSING, before & BOTH),
            Word::Ends if is_known => return place.store(0, Relaxed),
            Word::GoesOn | Word::Closes | Word::Ends => return,
        };
        let (how_far, own) = match from {
            // What a client goes on with proves nothing.
            Side::Client => (how_far | before & OPENING, CLIENT),
            Side::Server => (how_far, SERVER),
        };
        place.store(hash >> 32 << 32 | how_far | heard | own | ticks(now), Relaxed);
    }

    /// What is known of the connection, for as long as a flow like it would be remembered.
    pub(super) fn sighting(
        &self,
        hash: u64,
        protocol: Protocol,
        timeouts: &Timeouts,
        now: Instant,
    ) -> Option<Sighting> {
        let place = self.0[hash as usize % PLACES].load(Relaxed);
        let age = ticks(now).wrapping_sub(place) & TICKS;
        let is_there =
            place >> 32 == hash >> 32 && Duration::from_nanos(age << TICK_BITS) < life(protocol, place, timeouts);
        is_there.then_some(match is_confirmed(place) {
            true => Sighting::Confirmed,
            false => Sighting::OneSided,
        })
    }
}

const fn is_confirmed(place: u64) -> bool {
    place & SERVER != 0 && (place & CLIENT != 0 || place & OPENING == 0)
}

const fn ticks(now: Instant) -> u64 {
    now.as_nanos() >> TICK_BITS & TICKS
}

const fn life(protocol: Protocol, place: u64, timeouts: &Timeouts) -> Duration {
    let (is_closing, is_opening) = (place & CLOSING != 0, place & OPENING != 0);
    match (protocol, is_closing, is_opening) {
        (Protocol::Tcp, true, _) => timeouts.tcp(tcp::State::FinWait),
        (Protocol::Tcp, false, true) => timeouts.tcp(tcp::State::SynRecv),
        (Protocol::Tcp, false, false) => timeouts.tcp(tcp::State::Established),
        (Protocol::Udp, _, _) => timeouts.udp,
        (Protocol::Sctp, true, _) => timeouts.sctp(sctp::State::ShutdownSent),
        (Protocol::Sctp, false, true) => timeouts.sctp(sctp::State::CookieWait),
        (Protocol::Sctp, false, false) => timeouts.sctp(sctp::State::Established),
    }
}
