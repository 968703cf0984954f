//! What can happen to a packet: the one list behind counters, `lbctl drops`, replay's verdicts and the tests.

/// The end of a packet's way through the engine. Packets in = forward + pass + reject + drop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[must_use = "a verdict that nobody acts on loses or leaks a packet"]
pub enum Verdict {
    /// Rewritten; send it on.
    Forward,
    /// Not lbd's; send it on untouched.
    Pass(Pass),
    /// Refused, or a question to lbd itself; the packet buffer now holds the answer to its sender.
    Reject(Reject),
    /// Gone.
    Drop(Drop),
    /// Not decided yet: a fragment that came before the first one of its datagram, and of which a copy is kept. Once it is
    /// decided about, it is counted as what it became, and no more here: it is in the sum as long as it is held.
    Hold,
}

macro_rules! reasons {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $word:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name { $($(#[$vdoc])* $variant,)+ }

        impl $name {
            /// Every reason, in the order of the counters.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The reason's name in counters, JSON and logs.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $word,)+ }
            }
        }
    };
}

reasons! {
    /// Why a packet is none of lbd's business.
    Pass {
        /// No rule and no virtual server matches.
        NoMatch = "no_match",
        /// A rule with `action = "pass"`.
        Rule = "rule",
        /// A TCP packet to a service that belongs to no flow and does not open one, where `unknown_tcp = "pass"`, or to an
        /// address of this host: it may be of a connection of the host's own.
        NotSyn = "not_syn",
        /// A protocol that lbd does not balance, e.g. GRE.
        UntrackedProtocol = "untracked_protocol",
        /// Not IP at all, e.g. ARP.
        NotIp = "not_ip",
        /// An SCTP packet to a service at an address of this host that belongs to no flow and does not open one: it may be of
        /// an association of the host's own.
        NotInit = "not_init",
        /// A datagram to a service at an address of this host that a socket or the connection tracking of the host has.
        Host = "host",
    }
}

reasons! {
    /// Why a packet was answered with a TCP RST or an ICMP message.
    Reject {
        /// The service has no backend that may take a new flow.
        NoBackend = "no_backend",
        /// A rule with `action = "reject"`.
        Rule = "rule",
        /// The flow's backend was taken out of the configuration, and `on_backend_removed` says to end its flows.
        BackendRemoved = "backend_removed",
        /// Longer than the way on carries, and not to be fragmented; answered with ICMP fragmentation needed, or packet too
        /// big. Only where lbd is the router (AF_XDP).
        TooBig = "too_big",
        /// Its time to live, or hop limit, is over; answered with ICMP time exceeded. Only where lbd is the router.
        TimeExceeded = "time_exceeded",
        /// A TCP packet to a service that belongs to no flow and does not open one, where `unknown_tcp = "reset"`.
        NotSyn = "not_syn",
        /// A backend's late answer, on a flow that lbd has forgotten, where `unknown_reply = "reset"`.
        UnknownReply = "unknown_reply",
        /// No refusal, but an echo request to a service's address: lbd answered it with an echo reply.
        Echo = "echo",
        /// An address of a service, and a port that no service has there.
        NoService = "no_service",
    }
}

reasons! {
    /// Why a packet was dropped.
    Drop {
        /// The packet is shorter than its own headers say, or they contradict each other.
        Malformed = "malformed",
        /// A fragment of a protocol whose fragments lbd cannot translate, to or from an address of lbd's.
        Fragment = "fragment",
        /// A rule with `action = "drop"`.
        Rule = "rule",
        /// A TCP packet to a service that belongs to no flow and does not open one, where `unknown_tcp = "drop"`.
        NotSyn = "not_syn",
        /// A backend's late answer, on a flow that lbd has forgotten, where `unknown_reply = "drop"`: the client knows only the
        /// service.
        UnknownReply = "unknown_reply",
        /// An SCTP packet to a service that belongs to no flow and does not open one.
        NotInit = "not_init",
        /// The flow's backend was taken out of the configuration, and `on_backend_removed = "drop"`.
        BackendRemoved = "backend_removed",
        /// `max_flows` is reached, and no flow may be evicted for this one.
        TableFull = "table_full",
        /// Another flow to the same backend, or a connection past the services, already has this client's address and port.
        TupleInUse = "tuple_in_use",
        /// No free address and port is left in the masquerade pool.
        PoolExhausted = "pool_exhausted",
        /// A first fragment without the whole transport header (RFC 1858, RFC 3128, RFC 7112).
        FragmentTiny = "fragment_tiny",
        /// A fragment whose bytes have all come before: the same packet once more.
        FragmentDuplicate = "fragment_duplicate",
        /// A fragment of a datagram with fragments that overlap (RFC 5722, RFC 8900 section 3.7).
        FragmentOverlap = "fragment_overlap",
        /// A fragment of a datagram that goes on behind its last fragment, or beyond 65,535 bytes.
        FragmentTooLong = "fragment_too_long",
        /// A fragment of a datagram with more fragments than any link makes of one.
        FragmentTooMany = "fragment_too_many",
        /// A fragment that was held, and whose datagram made room for a newer one; or one of a datagram that is itself more than
        /// may be held.
        FragmentTableFull = "fragment_table_full",
        /// A fragment that was held, and the first one of its datagram did not come in time.
        FragmentTimeout = "fragment_timeout",
        /// The packet had to be refused, but may not be answered (RFC 1122 section 3.2.2, RFC 9293 section 3.5.2); or it would
        /// open a flow from an address that is no single host's, whom no backend could answer (RFC 1122 section 3.2.1.3).
        Unanswerable = "unanswerable",
        /// From an address that no packet on a link may come from: loopback, a group's, this host's own, a network's broadcast
        /// (RFC 1812 section 5.3.7; `ip_route_input_slow` of net/ipv4/route.c). Only where lbd is the router (AF_XDP): the
        /// kernel lets none through to a TUN device.
        MartianSource = "martian_source",
        /// Sent to a broadcast or multicast address of the link, but to the IP address of a single host (RFC 1122 section
        /// 3.3.6, RFC 1812 section 5.3.4). Only on AF_XDP: the kernel forwards none (`ip_forward`).
        UnicastInL2Multicast = "unicast_in_l2_multicast",
        /// The packet had to be refused, but lbd has answered too many of late (RFC 4443 section 2.4(f), RFC 1812 section
        /// 4.3.2.8).
        RateLimited = "rate_limited",
    }
}

impl Verdict {
    /// `forward`, `pass`, `reject` or `drop`; `hold` as long as nothing is decided.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Forward => "forward",
            Self::Pass(_) => "pass",
            Self::Reject(_) => "reject",
            Self::Drop(_) => "drop",
            Self::Hold => "hold",
        }
    }

    /// The reason's name; a forwarded packet needs none.
    #[must_use]
    pub const fn reason(self) -> Option<&'static str> {
        match self {
            Self::Forward | Self::Hold => None,
            Self::Pass(reason) => Some(reason.name()),
            Self::Reject(reason) => Some(reason.name()),
            Self::Drop(reason) => Some(reason.name()),
        }
    }

    /// How many different verdicts there are.
    pub const COUNT: usize = 2 + Pass::ALL.len() + Reject::ALL.len() + Drop::ALL.len();

    /// Every verdict, in the order of [`Verdict::index`].
    pub fn all() -> impl Iterator<Item = Self> {
        std::iter::once(Self::Forward)
            .chain(Pass::ALL.iter().copied().map(Self::Pass))
            .chain(Reject::ALL.iter().copied().map(Self::Reject))
            .chain(Drop::ALL.iter().copied().map(Self::Drop))
            .chain(std::iter::once(Self::Hold))
    }

    /// A dense number for counters, below [`Verdict::COUNT`].
    #[must_use]
    pub const fn index(self) -> usize {
        match self {
            Self::Forward => 0,
            Self::Pass(reason) => 1 + reason as usize,
            Self::Reject(reason) => 1 + Pass::ALL.len() + reason as usize,
            Self::Drop(reason) => 1 + Pass::ALL.len() + Reject::ALL.len() + reason as usize,
            Self::Hold => Self::COUNT - 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Verdict;

    #[test]
    fn every_verdict_has_a_counter_of_its_own() {
        let indices: Vec<usize> = Verdict::all().map(Verdict::index).collect();
        assert_eq!(indices, (0..Verdict::COUNT).collect::<Vec<_>>());
    }
}
