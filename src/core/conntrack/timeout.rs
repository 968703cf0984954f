//! How long an idle flow is remembered, by state: the defaults of IPVS.
use std::time::Duration;

use super::sctp;
use super::tcp::State;

/// Idle timeouts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// By TCP state, indexed by [`State`].
    pub tcp: [Duration; State::ALL.len()],
    /// UDP flows.
    pub udp: Duration,
    /// By SCTP state, indexed by [`sctp::State`].
    pub sctp: [Duration; sctp::State::ALL.len()],
}

impl Timeouts {
    /// The timeout of a TCP state.
    #[must_use]
    pub const fn tcp(&self, state: State) -> Duration {
        self.tcp[state as usize]
    }

    /// The timeout of an SCTP state.
    #[must_use]
    pub const fn sctp(&self, state: sctp::State) -> Duration {
        self.sctp[state as usize]
    }
}

impl Default for Timeouts {
    /// `tcp_timeouts` of net/netfilter/ipvs/ip_vs_proto_tcp.c, `udp_timeouts` of ip_vs_proto_udp.c and
    /// `sctp_timeouts` of ip_vs_proto_sctp.c.
    fn default() -> Self {
        Self {
            tcp: [2, 900, 120, 60, 120, 120, 10, 60, 30, 120, 120].map(Duration::from_secs),
            udp: Duration::from_secs(300),
            sctp: [2, 4, 61, 61, 61, 61, 61, 61, 900, 61, 61, 61, 4, 61].map(Duration::from_secs),
        }
    }
}
