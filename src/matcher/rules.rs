//! iptables mode: an ordered list of rules, checked one by one until the first match.
use std::ops::RangeInclusive;

use ipnet::IpNet;

use crate::flow::Protocol;

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
