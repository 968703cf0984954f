//! What can happen to a packet: the one list behind counters, `lbctl drops`, replay's verdicts and the tests.

/// The end of a packet's way through the engine. Packets in = forward + pass + reject + drop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[must_use = "a verdict that nobody acts on loses or leaks a packet"]
pub enum Verdict {
    /// Rewritten; send it on.
    Forward,
    /// Not lbd's; send it on untouched.
    Pass(Pass),
    /// Refused; the packet buffer now holds the answer to its sender.
    Reject(Reject),
    /// Gone.
    Drop(Drop),
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
        /// A protocol that lbd does not balance, e.g. GRE.
        UntrackedProtocol = "untracked_protocol",
        /// Not IP at all, e.g. ARP.
        NotIp = "not_ip",
    }
}

reasons! {
    /// Why a packet was answered with a TCP RST or an ICMP error.
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
    }
}

reasons! {
    /// Why a packet was dropped.
    Drop {
        /// The packet is shorter than its own headers say, or they contradict each other.
        Malformed = "malformed",
        /// A fragment: its ports are not known.
        Fragment = "fragment",
        /// A rule with `action = "drop"`.
        Rule = "rule",
        /// A TCP packet to a service that belongs to no flow and does not open one.
        NotSyn = "not_syn",
        /// An SCTP packet to a service that belongs to no flow and does not open one.
        NotInit = "not_init",
        /// `max_flows` is reached, and no flow may be evicted for this one.
        TableFull = "table_full",
        /// Another flow to the same backend already has this client's address and port.
        TupleInUse = "tuple_in_use",
        /// No free address and port is left in the masquerade pool.
        PoolExhausted = "pool_exhausted",
        /// The packet had to be refused, but may not be answered (RFC 1122 section 3.2.2, RFC 9293 section 3.5.2).
        Unanswerable = "unanswerable",
    }
}

impl Verdict {
    /// `forward`, `pass`, `reject` or `drop`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Forward => "forward",
            Self::Pass(_) => "pass",
            Self::Reject(_) => "reject",
            Self::Drop(_) => "drop",
        }
    }

    /// The reason's name; a forwarded packet needs none.
    #[must_use]
    pub const fn reason(self) -> Option<&'static str> {
        match self {
            Self::Forward => None,
            Self::Pass(reason) => Some(reason.name()),
            Self::Reject(reason) => Some(reason.name()),
            Self::Drop(reason) => Some(reason.name()),
        }
    }

    /// How many different verdicts there are.
    pub const COUNT: usize = 1 + Pass::ALL.len() + Reject::ALL.len() + Drop::ALL.len();

    /// Every verdict, in the order of [`Verdict::index`].
    pub fn all() -> impl Iterator<Item = Self> {
        std::iter::once(Self::Forward)
            .chain(Pass::ALL.iter().copied().map(Self::Pass))
            .chain(Reject::ALL.iter().copied().map(Self::Reject))
            .chain(Drop::ALL.iter().copied().map(Self::Drop))
    }

    /// A dense number for counters, below [`Verdict::COUNT`].
    #[must_use]
    pub const fn index(self) -> usize {
        match self {
            Self::Forward => 0,
            Self::Pass(reason) => 1 + reason as usize,
            Self::Reject(reason) => 1 + Pass::ALL.len() + reason as usize,
            Self::Drop(reason) => 1 + Pass::ALL.len() + Reject::ALL.len() + reason as usize,
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
