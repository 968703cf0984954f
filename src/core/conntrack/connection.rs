//! One flow: who talks to which backend through which service, and how far they are.
use std::sync::Arc;
use std::time::Duration;

use super::signal::Signal;
use super::timeout::Timeouts;
use super::window::Window;
use super::{sctp, tcp};
use crate::affinity::Template;
use crate::flow::{Direction, Endpoint, Protocol, Tuple};
use crate::packet::TcpFlags;
use crate::service::Backend;
use crate::time::Instant;

/// How far a flow is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// By the state table.
    Tcp(tcp::State),
    /// UDP knows one state.
    Udp,
    /// By the state table.
    Sctp(sctp::State),
}

/// Flows of a lower class are evicted first; see [`super::Conntrack`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Class {
    /// The backend has not answered or the handshake is not over: the client's address may be forged.
    Embryonic,
    /// Over, but remembered for late packets; or a question over UDP and its answer, which a forged address gets as well.
    Closing,
    /// In use; never evicted.
    Established,
}

/// Who has spoken so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialogue {
    /// The client only.
    Asked,
    /// The backend as well.
    Answered,
    /// The client has gone on after that. Who forges an address would have to send again without having heard the answer.
    Continued,
}

impl Dialogue {
    /// After a packet.
    #[must_use]
    #[inline]
    pub const fn next(self, direction: Direction) -> Self {
        match (self, direction) {
            (Self::Asked, Direction::Reply) => Self::Answered,
            (Self::Answered, Direction::Original) => Self::Continued,
            (Self::Asked, Direction::Original)
            | (Self::Answered, Direction::Reply)
            | (Self::Continued, Direction::Original | Direction::Reply) => self,
        }
    }
}

impl State {
    /// The state before the first packet.
    #[must_use]
    pub const fn new(protocol: Protocol) -> Self {
        match protocol {
            Protocol::Tcp => Self::Tcp(tcp::State::None),
            Protocol::Udp => Self::Udp,
            Protocol::Sctp => Self::Sctp(sctp::State::None),
        }
    }

    /// Whose state it is.
    #[must_use]
    pub const fn protocol(self) -> Protocol {
        match self {
            Self::Tcp(_) => Protocol::Tcp,
            Self::Udp => Protocol::Udp,
            Self::Sctp(_) => Protocol::Sctp,
        }
    }

    /// The word in `ipvsadm -Lc`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp(state) => state.name(),
            Self::Udp => "UDP",
            Self::Sctp(state) => state.name(),
        }
    }

    /// Whether the flow counts as ActiveConn.
    #[must_use]
    pub const fn is_active(self) -> bool {
        match self {
            Self::Tcp(state) => state.is_active(),
            Self::Udp => false,
            Self::Sctp(state) => state.is_active(),
        }
    }

    /// The state after a packet; a TCP segment without any of SYN, FIN, RST and ACK changes nothing.
    #[must_use]
    pub fn next(self, direction: Direction, signal: Signal) -> Self {
        match (self, signal) {
            (Self::Tcp(state), Signal::Tcp(flags)) => match event(flags) {
                Some(event) => Self::Tcp(state.next(direction, event)),
                None => self,
            },
            (Self::Sctp(state), Signal::Sctp(chunk)) => Self::Sctp(state.next(direction, chunk)),
            // A packet is of its flow's protocol.
            (Self::Tcp(_) | Self::Udp | Self::Sctp(_), Signal::Tcp(_) | Signal::Udp | Signal::Sctp(_)) => self,
        }
    }

    /// How long a flow in this state is remembered without a packet.
    #[must_use]
    pub const fn timeout(self, timeouts: &Timeouts) -> Duration {
        match self {
            Self::Tcp(state) => timeouts.tcp(state),
            Self::Udp => timeouts.udp,
            Self::Sctp(state) => timeouts.sctp(state),
        }
    }
}

/// `tcp_state_idx` of ip_vs_proto_tcp.c: RST before SYN before FIN before ACK.
const fn event(flags: TcpFlags) -> Option<tcp::Event> {
    if flags.has(TcpFlags::RST) {
        Some(tcp::Event::Rst)
    } else if flags.has(TcpFlags::SYN) {
        Some(tcp::Event::Syn)
    } else if flags.has(TcpFlags::FIN) {
        Some(tcp::Event::Fin)
    } else if flags.has(TcpFlags::ACK) {
        Some(tcp::Event::Ack)
    } else {
        None
    }
}

/// A flow.
#[derive(Clone, Debug)]
pub struct Connection {
    /// Transport protocol.
    pub protocol: Protocol,
    /// Who asked.
    pub client: Endpoint,
    /// Which service address was asked.
    pub virtual_address: Endpoint,
    /// The sender that the backend sees: the client, or one of the masquerade pool.
    pub source: Endpoint,
    /// Who answers; its address never changes.
    pub backend: Arc<Backend>,
    /// The client affinity that it keeps alive.
    pub template: Option<Arc<Template>>,
    /// How far it is.
    pub state: State,
    /// Who has spoken.
    pub dialogue: Dialogue,
    /// Which segments of it are believed; of TCP only.
    pub window: Window,
    /// When its first packet came; a stored one remembers the tick ([`super::wheel`]).
    pub opened: Instant,
    /// When it is forgotten unless a packet comes.
    pub expires: Instant,
}

impl Class {
    /// A client alone makes no established flow: SYN and ACK can be forged blindly. Nor does one datagram and its answer;
    /// netfilter, too, wants to see more of a UDP flow before it counts as assured (`nf_conntrack_udp_packet`,
    /// nf_conntrack_proto_udp.c).
    #[must_use]
    #[inline]
    pub const fn of(state: State, dialogue: Dialogue) -> Self {
        match (dialogue, state) {
            (Dialogue::Asked, _) => Self::Embryonic,
            (_, State::Tcp(state)) if state.is_embryonic() => Self::Embryonic,
            (_, State::Sctp(state)) if state.is_embryonic() => Self::Embryonic,
            (Dialogue::Answered, State::Udp) => Self::Closing,
            (Dialogue::Continued, State::Udp)
            | (_, State::Tcp(tcp::State::Established) | State::Sctp(sctp::State::Established)) => Self::Established,
            (_, State::Tcp(_) | State::Sctp(_)) => Self::Closing,
        }
    }
}

/// Who has a tuple.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tenant {
    /// Nobody.
    Nobody,
    /// A flow that has to yield where there is no other place.
    Idle,
    /// A flow that is in use.
    Busy,
}

/// A handshake takes less, even with a SYN or two lost on the way.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// `UDP_CT_UNREPLIED` of nf_conntrack_proto_udp.c: whose one question was answered is not waited for for longer.
const UNCONFIRMED: Duration = Duration::from_secs(30);

impl Tenant {
    /// The tenant of a living flow's tuple that `expires` then. One whose connection is over yields at once (as `nf_nat_may_kill`,
    /// nf_nat_core.c), and one whose client may be forged once it has been silent for a while.
    #[must_use]
    pub fn of(state: State, dialogue: Dialogue, expires: Instant, timeouts: &Timeouts, now: Instant) -> Self {
        let is_silent = |limit: Duration| expires + limit <= now + state.timeout(timeouts);
        let yields = match (Class::of(state, dialogue), state) {
            (Class::Embryonic, _) => is_silent(HANDSHAKE),
            (Class::Closing, State::Udp) => is_silent(UNCONFIRMED),
            (Class::Closing, State::Tcp(state)) => state.is_reusable(),
            (Class::Closing, State::Sctp(state)) => state.is_reusable(),
            (Class::Established, _) => false,
        };
        if yields { Self::Idle } else { Self::Busy }
    }
}

impl Connection {
    /// What eviction makes of it.
    #[must_use]
    pub const fn class(&self) -> Class {
        Class::of(self.state, self.dialogue)
    }

    /// Where the backend gets this flow's packets.
    #[must_use]
    #[inline]
    pub fn server(&self) -> Endpoint {
        self.backend.server(self.virtual_address.port)
    }

    /// The tuple that packets in `direction` arrive with.
    #[must_use]
    #[inline]
    pub fn arriving(&self, direction: Direction) -> Tuple {
        match direction {
            Direction::Original => self.tuple(self.client, self.virtual_address),
            Direction::Reply => self.tuple(self.server(), self.source),
        }
    }

    /// The tuple that packets in `direction` leave with.
    #[must_use]
    #[inline]
    pub fn leaving(&self, direction: Direction) -> Tuple {
        match direction {
            Direction::Original => self.tuple(self.source, self.server()),
            Direction::Reply => self.tuple(self.virtual_address, self.client),
        }
    }

    /// Whether the backend sees another sender than the client.
    #[must_use]
    pub fn is_masqueraded(&self) -> bool {
        self.source != self.client
    }

    #[inline]
    const fn tuple(&self, source: Endpoint, destination: Endpoint) -> Tuple {
        Tuple {
            protocol: self.protocol,
            source,
            destination,
        }
    }
}
