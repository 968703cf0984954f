//! iptables mode: rules as configured, and what they match.
use std::net::IpAddr;
use std::ops::RangeInclusive;

use ipnet::IpNet;

pub use super::list::{Entry, Origin, RuleList};
use crate::flow::{Protocol, Tuple};
use crate::packet::Headers;
use crate::scheduler::Rng;

/// A condition, possibly inverted by a `!` before its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition<T> {
    /// `!`: the value must not match.
    pub negated: bool,
    /// What is compared with the packet.
    pub value: T,
}

/// What a matching rule does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Discard silently.
    Drop,
    /// Refuse with TCP RST or ICMP port unreachable.
    Reject,
    /// Leave the packet alone, whatever follows in the list.
    Pass,
    /// Balance it over the backends of the service of this name.
    Service(String),
}

/// A probability, in 1/2^32: iptables' own resolution is 2^31 (`xt_statistic`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probability(pub u64);

/// A rule as configured. A condition that is not given matches everything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// For people; need not be unique.
    pub name: Option<String>,
    /// Network of the sender.
    pub source: Option<Condition<IpNet>>,
    /// Network of the receiver.
    pub destination: Option<Condition<IpNet>>,
    /// Transport protocol.
    pub protocol: Option<Condition<Protocol>>,
    /// Port of the sender.
    pub source_port: Option<Condition<RangeInclusive<u16>>>,
    /// Port of the receiver.
    pub destination_port: Option<Condition<RangeInclusive<u16>>>,
    /// A share of the packets that match all else.
    pub probability: Option<Probability>,
    /// What happens then.
    pub action: Action,
}

impl<T> Condition<T> {
    fn allows(&self, holds: impl FnOnce(&T) -> bool) -> bool {
        holds(&self.value) != self.negated
    }
}

impl Probability {
    /// Every packet.
    pub const ONE: Self = Self(1 << 32);

    pub(super) fn strikes(self, rng: &mut Rng) -> bool {
        u64::from(rng.u32(..)) < self.0
    }
}

impl Rule {
    /// Whether the packet meets every condition but the probability. A condition on ports is met by no packet without.
    #[must_use]
    pub fn matches(&self, headers: &Headers, tuple: Option<&Tuple>) -> bool {
        let network = |condition: &Option<Condition<IpNet>>, address: IpAddr| {
            condition
                .as_ref()
                .is_none_or(|condition| condition.allows(|network| network.contains(&address)))
        };
        let port = |condition: &Option<Condition<RangeInclusive<u16>>>, port: Option<u16>| match (condition, port) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(condition), Some(port)) => condition.allows(|range| range.contains(&port)),
        };
        let protocol = |condition: &Condition<Protocol>| condition.allows(|wanted| wanted.number() == headers.protocol);
        self.protocol.as_ref().is_none_or(protocol)
            && network(&self.source, headers.source.into())
            && network(&self.destination, headers.destination.into())
            && port(&self.source_port, tuple.map(|tuple| tuple.source.port))
            && port(&self.destination_port, tuple.map(|tuple| tuple.destination.port))
    }
}
