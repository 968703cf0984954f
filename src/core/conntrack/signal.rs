//! What a packet says to its flow.
use crate::flow::Protocol;
use crate::packet::sctp::Chunk;
use crate::packet::{Payload, TcpFlags};

/// What drives the state of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// Of a segment.
    Tcp(TcpFlags),
    /// A datagram says nothing.
    Udp,
    /// Of an SCTP packet.
    Sctp(Chunk),
}

impl Signal {
    /// That of a packet with ports.
    #[must_use]
    pub const fn of(payload: Payload) -> Option<Self> {
        match payload {
            Payload::Tcp(_, flags) => Some(Self::Tcp(flags)),
            Payload::Udp(_) => Some(Self::Udp),
            Payload::Sctp(_, chunk) => Some(Self::Sctp(chunk)),
            Payload::Fragment(_) | Payload::IcmpError | Payload::Other => None,
        }
    }

    /// Whether it opens, closes or aborts nothing.
    #[must_use]
    #[inline]
    pub const fn goes_on(self) -> bool {
        match self {
            Self::Tcp(flags) => !flags.has(TcpFlags::SYN | TcpFlags::FIN | TcpFlags::RST),
            Self::Udp => true,
            Self::Sctp(chunk) => matches!(chunk, Chunk::Data),
        }
    }

    /// Of what protocol the packet is.
    #[must_use]
    pub const fn protocol(self) -> Protocol {
        match self {
            Self::Tcp(_) => Protocol::Tcp,
            Self::Udp => Protocol::Udp,
            Self::Sctp(_) => Protocol::Sctp,
        }
    }

    /// Whether it may open a flow: a datagram always, a TCP segment if it is a plain SYN, an SCTP packet if it is an INIT
    /// (`sctp_conn_schedule`, net/netfilter/ipvs/ip_vs_proto_sctp.c).
    #[must_use]
    pub const fn opens(self) -> bool {
        match self {
            Self::Tcp(flags) => flags.opens(),
            Self::Udp => true,
            Self::Sctp(chunk) => matches!(chunk, Chunk::Init),
        }
    }
}
