//! Finds the rules that a packet may meet without looking at all of them: tuple space search.
//!
//! Rules are grouped by their shape: which fields they fix, and to how many bits. Within a shape a rule is a value of
//! these fields, so one lookup in a hash table, of the packet's fields cut to the same bits, finds every rule of the shape
//! that is worth a look (Srinivasan, Suri, Varghese: Packet Classification Using Tuple Space Search, SIGCOMM 1999). A lookup
//! costs as many steps as there are shapes, and a list of thousands of rules has few. Port ranges are looked up in an
//! interval list ([`super::bucket`]). What hashing does not decide (a `!`, a second range) is checked rule by rule.
use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::ops::RangeInclusive;

use ahash::RandomState;
use ipnet::IpNet;

use super::bucket::{Bucket, Member};
use super::rules::{Action, Condition, Rule};
use crate::flow::Tuple;
use crate::packet::Headers;

/// Shapes of fewer rules are not worth a hash: their rules are checked one by one.
const FEW: usize = 4;

/// What a rule says about a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// It is not met.
    No,
    /// Met, if its probability strikes.
    Perhaps,
    /// Met.
    Yes,
}

/// What the rules say about a packet, by their places in the list.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// Those before `certain` that are met if their probability strikes, in their order.
    pub(super) perhaps: Vec<usize>,
    /// The first that is met for certain.
    pub(super) certain: Option<usize>,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Classifier {
    /// Those first whose first rule comes first.
    groups: Vec<Group>,
}

/// The rules of one shape.
#[derive(Debug)]
struct Group {
    shape: Shape,
    /// The first of its rules.
    first: usize,
    buckets: HashMap<Key, Bucket, RandomState>,
}

/// Which fields of a packet are hashed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Shape {
    protocol: bool,
    source: Option<Prefix>,
    destination: Option<Prefix>,
    source_port: bool,
    destination_port: bool,
    /// A port that has to lie in a range.
    range: Option<Side>,
}

/// The leading bits of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Prefix {
    v4: bool,
    mask: u128,
}

/// Whose port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Side {
    Source,
    Destination,
}

/// The values of the hashed fields; zero where a field is not hashed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    source: u128,
    destination: u128,
    /// Protocol and ports.
    rest: u64,
}

impl Classifier {
    /// A classifier of rules in their order.
    pub(super) fn new<'a>(rules: impl Iterator<Item = &'a Rule>) -> Self {
        let rules: Vec<&Rule> = rules.collect();
        let mut shapes: BTreeMap<Shape, Vec<usize>> = BTreeMap::new();
        for (index, rule) in rules.iter().enumerate() {
            shapes.entry(Shape::of(rule)).or_default().push(index);
        }
        let (enough, few): (Vec<_>, Vec<_>) = shapes.into_iter().partition(|(_, members)| members.len() >= FEW);
        let mut others: Vec<usize> = few.into_iter().flat_map(|(_, members)| members).collect();
        others.sort_unstable();
        let others = (Shape::default(), others);
        let shapes = enough.into_iter().chain((!others.1.is_empty()).then_some(others));
        let mut groups: Vec<Group> = shapes
            .map(|(shape, members)| Group::new(shape, &members, &rules))
            .collect();
        groups.sort_by_key(|group| group.first);
        Self { groups }
    }

    /// Asks `ask` about every rule that may be met and comes before the first that is met for certain.
    pub(super) fn search(&self, headers: &Headers, tuple: Option<&Tuple>, ask: impl Fn(usize) -> Answer) -> Found {
        let mut perhaps = Vec::new();
        let mut certain = usize::MAX;
        for group in &self.groups {
            if group.first > certain {
                break;
            }
            for &index in group.candidates(headers, tuple) {
                let index = index as usize;
                if index > certain {
                    break;
                }
                match ask(index) {
                    Answer::No => {}
                    Answer::Perhaps => perhaps.push(index),
                    Answer::Yes => certain = index,
                }
            }
        }
        perhaps.retain(|&index| index < certain);
        perhaps.sort_unstable();
        let certain = (certain != usize::MAX).then_some(certain);
        Found { perhaps, certain }
    }
}

impl Group {
    /// `members` is in order, and not empty.
    fn new(shape: Shape, members: &[usize], rules: &[&Rule]) -> Self {
        let mut buckets: HashMap<Key, Vec<Member>, RandomState> = HashMap::default();
        for &index in members {
            let rule = rules[index];
            let member = Member {
                index: index as u32,
                ports: shape
                    .range
                    .map(|side| side.ports(rule).cloned().unwrap_or(0..=u16::MAX)),
                certain: shape.decides(rule),
            };
            buckets.entry(shape.key_of_rule(rule)).or_default().push(member);
        }
        let buckets = buckets.into_iter().map(|(key, members)| (key, Bucket::new(&members)));
        Self {
            shape,
            first: members[0],
            buckets: buckets.collect(),
        }
    }

    /// The rules that a packet may meet, in order.
    fn candidates(&self, headers: &Headers, tuple: Option<&Tuple>) -> &[u32] {
        let bucket = self
            .shape
            .key_of_packet(headers, tuple)
            .and_then(|key| self.buckets.get(&key));
        bucket.map_or(&[], |bucket| {
            let port = self.shape.range.zip(tuple).map(|(side, tuple)| side.port(tuple));
            bucket.candidates(port)
        })
    }
}

impl Shape {
    fn of(rule: &Rule) -> Self {
        let is_exact = |side: Side| side.ports(rule).is_some_and(is_one);
        let is_range = |side: &Side| side.ports(rule).is_some_and(|ports| !is_one(ports));
        Self {
            protocol: plain(rule.protocol.as_ref()).is_some(),
            source: plain(rule.source.as_ref()).map(Prefix::of),
            destination: plain(rule.destination.as_ref()).map(Prefix::of),
            source_port: is_exact(Side::Source),
            destination_port: is_exact(Side::Destination),
            range: [Side::Destination, Side::Source].into_iter().find(is_range),
        }
    }

    /// Whether a packet with the hashed fields of the rule, and the right port in the range, meets the rule for certain.
    fn decides(&self, rule: &Rule) -> bool {
        let fixed = Self::of(rule);
        let hashed = |side: Side| match side {
            Side::Source => self.source_port,
            Side::Destination => self.destination_port,
        };
        let port = |side: Side, condition: &Option<Condition<RangeInclusive<u16>>>| {
            condition.is_none() || hashed(side) || (side.ports(rule).is_some() && self.range == Some(side))
        };
        let simple = rule.probability.is_none() && !matches!(rule.action, Action::Service(_));
        simple
            && (rule.protocol.is_none() || (self.protocol && fixed.protocol))
            && (rule.source.is_none() || (self.source.is_some() && self.source == fixed.source))
            && (rule.destination.is_none() || (self.destination.is_some() && self.destination == fixed.destination))
            && port(Side::Source, &rule.source_port)
            && port(Side::Destination, &rule.destination_port)
    }

    fn key_of_rule(&self, rule: &Rule) -> Key {
        let address = |prefix: Option<Prefix>, network: Option<&IpNet>| {
            let address = prefix
                .zip(network)
                .and_then(|(prefix, network)| prefix.cut(network.addr()));
            address.unwrap_or_default()
        };
        let port = |hashed: bool, side: Side| match (hashed, side.ports(rule)) {
            (true, Some(ports)) => *ports.start(),
            (true, None) | (false, _) => 0,
        };
        let protocol = plain(rule.protocol.as_ref()).filter(|_| self.protocol);
        let ports = (
            port(self.source_port, Side::Source),
            port(self.destination_port, Side::Destination),
        );
        Key {
            source: address(self.source, plain(rule.source.as_ref())),
            destination: address(self.destination, plain(rule.destination.as_ref())),
            rest: rest(protocol.map_or(0, |protocol| protocol.number()), ports),
        }
    }

    /// None: no rule of this shape is for such a packet.
    fn key_of_packet(&self, headers: &Headers, tuple: Option<&Tuple>) -> Option<Key> {
        let address = |prefix: Option<Prefix>, address| prefix.map_or(Some(0), |prefix| prefix.cut(address));
        let port = |hashed: bool, side: Side| match hashed {
            true => tuple.map(|tuple| side.port(tuple)),
            false => Some(0),
        };
        if self.range.is_some() && tuple.is_none() {
            return None;
        }
        let protocol = if self.protocol { headers.protocol } else { 0 };
        let ports = (
            port(self.source_port, Side::Source)?,
            port(self.destination_port, Side::Destination)?,
        );
        Some(Key {
            source: address(self.source, headers.source.into())?,
            destination: address(self.destination, headers.destination.into())?,
            rest: rest(protocol, ports),
        })
    }
}

impl Prefix {
    fn of(network: &IpNet) -> Self {
        match network {
            IpNet::V4(network) => Self {
                v4: true,
                mask: network.netmask().to_bits().into(),
            },
            IpNet::V6(network) => Self {
                v4: false,
                mask: network.netmask().to_bits(),
            },
        }
    }

    /// The leading bits of an address, if it is of the same IP version.
    fn cut(self, address: IpAddr) -> Option<u128> {
        let bits = match (self.v4, address) {
            (true, IpAddr::V4(address)) => u128::from(address.to_bits()),
            (false, IpAddr::V6(address)) => address.to_bits(),
            (true, IpAddr::V6(_)) | (false, IpAddr::V4(_)) => return None,
        };
        Some(bits & self.mask)
    }
}

impl Side {
    const fn port(self, tuple: &Tuple) -> u16 {
        match self {
            Self::Source => tuple.source.port,
            Self::Destination => tuple.destination.port,
        }
    }

    /// The ports that the rule wants on this side, unless it says which it does not want.
    fn ports(self, rule: &Rule) -> Option<&RangeInclusive<u16>> {
        plain(match self {
            Self::Source => rule.source_port.as_ref(),
            Self::Destination => rule.destination_port.as_ref(),
        })
    }
}

fn is_one(ports: &RangeInclusive<u16>) -> bool {
    ports.start() == ports.end()
}

fn rest(protocol: u8, (source, destination): (u16, u16)) -> u64 {
    u64::from(protocol) << 32 | u64::from(source) << 16 | u64::from(destination)
}

/// The value of a condition without `!`.
fn plain<T>(condition: Option<&Condition<T>>) -> Option<&T> {
    condition
        .filter(|condition| !condition.negated)
        .map(|condition| &condition.value)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::flow::{Endpoint, Protocol};
    use crate::packet::{Payload, Ports, TcpFlags, Version};

    /// A list of rules, each with these lines of `KEY = "VALUE"`.
    fn list(conditions: impl Fn(u32) -> String, count: u32) -> Vec<Rule> {
        (0..count).map(|number| rule(&conditions(number))).collect()
    }

    fn rule(conditions: &str) -> Rule {
        let value = |wanted: &str| {
            let lines = conditions.lines().filter_map(|line| line.split_once(" = "));
            let mut found = lines.filter(|(key, _)| *key == wanted);
            found.next().map(|(_, value)| value.trim_matches('"').to_owned())
        };
        Rule {
            name: None,
            source: value("source").map(|text| condition(&text, network)),
            destination: value("destination").map(|text| condition(&text, network)),
            protocol: value("protocol").map(|text| condition(&text, |text| text.parse().unwrap())),
            source_port: value("source_port").map(|text| condition(&text, ports)),
            destination_port: value("destination_port").map(|text| condition(&text, ports)),
            probability: None,
            action: Action::Drop,
        }
    }

    fn condition<T>(text: &str, parse: impl Fn(&str) -> T) -> Condition<T> {
        let plain = text.trim_start_matches('!');
        Condition {
            negated: plain != text,
            value: parse(plain),
        }
    }

    fn network(text: &str) -> IpNet {
        let host = || text.parse::<IpAddr>().map(IpNet::from);
        text.parse().or_else(|_| host()).unwrap()
    }

    fn ports(text: &str) -> RangeInclusive<u16> {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        first.parse().unwrap()..=last.parse().unwrap()
    }

    /// How many rules a packet is compared with before one is met.
    fn looks(rules: &[Rule], to: &str) -> usize {
        let destination: Endpoint = to.parse().unwrap();
        let ports = Ports {
            source: 40_000,
            destination: destination.port,
        };
        let headers = Headers {
            version: Version::V4,
            source: IpAddr::from([10, 1, 0, 2]).into(),
            destination: destination.address.into(),
            protocol: Protocol::Tcp.number(),
            transport: 20,
            length: 40,
            payload: Payload::Tcp(ports, TcpFlags(TcpFlags::SYN)),
        };
        let (tuple, looks) = (headers.tuple(), Cell::new(0));
        let found = Classifier::new(rules.iter()).search(&headers, tuple.as_ref(), |index| {
            looks.set(looks.get() + 1);
            match rules[index].matches(&headers, tuple.as_ref()) {
                true => Answer::Yes,
                false => Answer::No,
            }
        });
        assert!(found.certain.is_some(), "{to} is met by a rule");
        looks.get()
    }

    #[test]
    fn of_ten_thousand_rules_for_addresses_and_ports_a_packet_is_compared_with_one() {
        let address = |n: u32| format!("10.9.{}.{}", n / 250, n % 250);
        let rules = list(
            |n| format!("destination = \"{}\"\ndestination_port = 80", address(n)),
            10_000,
        );
        assert_eq!(looks(&rules, "10.9.39.200:80"), 1);
    }

    #[test]
    fn of_ten_thousand_port_ranges_a_packet_is_compared_with_one() {
        let apart = list(|n| format!("destination_port = \"{}-{}\"", n * 6, n * 6 + 3), 10_000);
        assert_eq!(looks(&apart, "10.9.0.1:59997"), 1);
        let within = list(
            |n| format!("destination_port = \"{}-{}\"", 20_000 - n, 40_000 + n),
            10_000,
        );
        assert_eq!(looks(&within, "10.9.0.1:10002"), 1);
    }

    #[test]
    fn a_packet_is_compared_with_few_of_many_networks_with_something_negated() {
        let network = |n: u32| format!("destination = \"10.{n}.0.0/16\"\nsource = \"!10.1.0.0/24\"");
        let mut rules = list(network, 250);
        rules.extend(list(|n| format!("source = \"10.{n}.0.0/16\"\nprotocol = \"tcp\""), 250));
        assert_eq!(looks(&rules, "10.200.0.1:80"), 2);
    }
}
