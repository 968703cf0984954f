//! iptables mode: an ordered list of rules, checked one by one until the first match.
use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;

use ipnet::IpNet;

use super::Match;
use crate::flow::{Endpoint, Protocol, Tuple};
use crate::packet::Headers;
use crate::scheduler::Rng;
use crate::service::{Service, Stats};

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

    fn strikes(self, rng: &mut Rng) -> bool {
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
            && network(&self.source, headers.source)
            && network(&self.destination, headers.destination)
            && port(&self.source_port, tuple.map(|tuple| tuple.source.port))
            && port(&self.destination_port, tuple.map(|tuple| tuple.destination.port))
    }
}

/// What a rule of the compiled list does.
#[derive(Clone, Debug)]
enum Target {
    Drop,
    Reject,
    Pass,
    Service(Arc<Service>),
}

/// Where a rule comes from; it keeps its counters over a reload while this stays the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// `[[rules]]`
    User(Rule),
    /// One address of a service.
    Service {
        /// The service's name.
        name: String,
        /// Its protocol.
        protocol: Protocol,
        /// The address.
        endpoint: Endpoint,
    },
}

/// A rule in its place in the list.
#[derive(Debug)]
pub struct Entry {
    /// Where it comes from.
    pub origin: Origin,
    /// New flows that it decided on, and their first packets' bytes.
    pub stats: Arc<Stats>,
    target: Target,
}

/// The ordered list: user rules first, then one rule for each address of each service.
#[derive(Debug, Default)]
pub struct RuleList {
    entries: Vec<Entry>,
}

impl RuleList {
    /// Builds the list; counters of rules that were in `previous` go on.
    #[must_use]
    pub fn new(rules: &[Rule], services: &[Arc<Service>], previous: Option<&Self>, lanes: usize) -> Self {
        let mut counters = Counters::of(previous);
        let mut entry = |origin: Origin, target| {
            let stats = counters.take(&origin).unwrap_or_else(|| Arc::new(Stats::new(lanes)));
            Entry { origin, stats, target }
        };
        let by_name: HashMap<&str, &Arc<Service>> = services
            .iter()
            .map(|service| (service.identity.name.as_str(), service))
            .collect();
        let mut entries: Vec<Entry> = Vec::new();
        for rule in rules {
            if let Some(target) = target_of(&rule.action, &by_name) {
                entries.push(entry(Origin::User(rule.clone()), target));
            }
        }
        for service in services {
            entries.extend(service.endpoints.iter().map(|&endpoint| {
                let name = service.identity.name.clone();
                let protocol = service.protocol;
                let origin = Origin::Service {
                    name,
                    protocol,
                    endpoint,
                };
                entry(origin, Target::Service(Arc::clone(service)))
            }));
        }
        Self { entries }
    }

    /// Walks the list to the first rule that matches.
    pub fn find(&self, headers: &Headers, tuple: Option<&Tuple>, rng: &mut Rng, lane: usize) -> Match<'_> {
        let Some(entry) = self.entries.iter().find(|entry| entry.strikes(headers, tuple, rng)) else {
            return Match::None;
        };
        entry.stats.count_in(lane, headers.length);
        match &entry.target {
            Target::Drop => Match::Drop,
            Target::Reject => Match::Reject,
            Target::Pass => Match::Pass,
            Target::Service(service) => Match::Service(service),
        }
    }

    /// The rules in the order in which they are checked.
    #[must_use]
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }
}

impl Entry {
    fn strikes(&self, headers: &Headers, tuple: Option<&Tuple>, rng: &mut Rng) -> bool {
        match &self.origin {
            Origin::Service { protocol, endpoint, .. } => {
                let port = |port| endpoint.port == 0 || endpoint.port == port;
                tuple.is_some_and(
                    |Tuple {
                         destination,
                         protocol: of,
                         ..
                     }| {
                        destination.address == endpoint.address && port(destination.port) && of == protocol
                    },
                )
            }
            Origin::User(rule) => {
                // A service takes only packets of its own protocol.
                let fits = match &self.target {
                    Target::Service(service) => tuple.is_some_and(|tuple| service.takes(tuple)),
                    Target::Drop | Target::Reject | Target::Pass => true,
                };
                fits && rule.matches(headers, tuple) && rule.probability.is_none_or(|share| share.strikes(rng))
            }
        }
    }
}

fn target_of(action: &Action, services: &HashMap<&str, &Arc<Service>>) -> Option<Target> {
    match action {
        Action::Drop => Some(Target::Drop),
        Action::Reject => Some(Target::Reject),
        Action::Pass => Some(Target::Pass),
        Action::Service(name) => {
            let named = services.get(name.as_str());
            named.map(|service| Target::Service(Arc::clone(service)))
        }
    }
}

/// The counters of a former list, each given out once.
struct Counters {
    services: HashMap<(Protocol, Endpoint), (String, Arc<Stats>)>,
    /// In order: most rules stay in their order, and are found at the front.
    users: VecDeque<(Rule, Arc<Stats>)>,
}

impl Counters {
    fn of(previous: Option<&RuleList>) -> Self {
        let mut counters = Self {
            services: HashMap::new(),
            users: VecDeque::new(),
        };
        for entry in previous.map_or(&[][..], RuleList::entries) {
            let stats = Arc::clone(&entry.stats);
            match &entry.origin {
                Origin::User(rule) => counters.users.push_back((rule.clone(), stats)),
                Origin::Service {
                    name,
                    protocol,
                    endpoint,
                } => {
                    counters.services.insert((*protocol, *endpoint), (name.clone(), stats));
                }
            }
        }
        counters
    }

    fn take(&mut self, origin: &Origin) -> Option<Arc<Stats>> {
        match origin {
            Origin::User(rule) => {
                let at = self.users.iter().position(|(other, _)| other == rule)?;
                Some(self.users.remove(at)?.1)
            }
            Origin::Service {
                name,
                protocol,
                endpoint,
            } => {
                let (owner, stats) = self.services.remove(&(*protocol, *endpoint))?;
                (owner == *name).then_some(stats)
            }
        }
    }
}
