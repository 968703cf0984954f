//! The part of iptables mode's list that is made from the services: a rule for each address of each.
//!
//! All these rules have one shape, an exact protocol, address and port (or all ports), so a hash table finds the one that
//! a packet meets. Only a rule for all ports and one for a single port of the same address can both be met: their ranks
//! say which comes first.
use std::collections::BTreeMap;
use std::sync::Arc;

use super::address::Address;
use super::difference::Difference;
use super::shared_map::SharedMap;
use super::tally::{Tallies, Tally};
use crate::flow::Tuple;
use crate::service::Service;

/// Between the ranks of neighbours, so that others fit in between later on.
const GAP: u64 = 1 << 24;

/// A rule.
#[derive(Clone, Debug)]
pub(super) struct ServiceRule {
    pub(super) service: Arc<Service>,
    /// Packets that it decided on.
    pub(super) stats: Tally,
    rank: u64,
}

/// The place of a rule in the list.
#[derive(Clone, Copy, Debug)]
struct Place {
    /// Ascending.
    rank: u64,
    address: Address,
}

/// See the module.
#[derive(Clone, Debug)]
pub(super) struct ServiceRules {
    table: SharedMap<Address, ServiceRule>,
    order: Arc<Vec<Place>>,
    /// How many rules are for all ports.
    all_ports: usize,
    /// By rank: rules that are never met, because an earlier one has the same address. A node's address that only the
    /// kernel knows may be a service's, too.
    shadowed: BTreeMap<u64, ServiceRule>,
}

impl ServiceRules {
    /// The rules of these services. Those that are in `previous`, too, keep their counters.
    pub(super) fn new(services: &[Arc<Service>], previous: Option<&Self>, lanes: usize) -> Self {
        let mut rules = Self {
            table: SharedMap::with_capacity(count_of(services)),
            order: Arc::default(),
            all_ports: 0,
            shadowed: BTreeMap::new(),
        };
        let places = rules.insert(services, (0, GAP), previous, lanes);
        rules.order = Arc::new(places);
        rules
    }

    /// The rules with those of some services in the place of those of others. None: they have to be built anew.
    pub(super) fn changed(&self, difference: &Difference<'_>, lanes: usize) -> Option<Self> {
        if !self.shadowed.is_empty() {
            return None;
        }
        let mut rules = self.clone();
        for (_, service) in &difference.replaced {
            for address in Address::all_of(service) {
                let rule = self.table.get(&address)?.clone();
                let service = Arc::clone(service);
                rules.table.insert(address, ServiceRule { service, ..rule });
            }
        }
        if !difference.before.is_empty() || !difference.after.is_empty() {
            rules.splice(self, difference, lanes)?;
        }
        rules.shadowed.is_empty().then_some(rules)
    }

    fn splice(&mut self, previous: &Self, difference: &Difference<'_>, lanes: usize) -> Option<()> {
        let Difference {
            before, after, behind, ..
        } = difference;
        let start = previous.position(before.iter().chain(*behind))?;
        let end = previous.position(behind.iter())?;
        for address in before.iter().flat_map(|service| Address::all_of(service)) {
            self.table.remove(&address);
            self.all_ports -= usize::from(address.is_for_all_ports());
        }
        let (ahead, rest) = (&previous.order[..start], &previous.order[end..]);
        let room = room(ahead.last(), rest.first(), after)?;
        let places = self.insert(after, room, Some(previous), lanes);
        self.order = Arc::new([ahead, &places, rest].concat());
        Some(())
    }

    /// Where in the order the first rule of these services is; the end of the list where they have none.
    fn position<'a>(&self, mut services: impl Iterator<Item = &'a Arc<Service>>) -> Option<usize> {
        let Some(address) = services.find_map(|service| Address::all_of(service).next()) else {
            return Some(self.order.len());
        };
        let rank = self.table.get(&address)?.rank;
        Some(self.order.partition_point(|place| place.rank < rank))
    }

    /// Fills rules in; returns their places, `step` ranks apart, the first one a step above `rank`.
    fn insert(
        &mut self,
        services: &[Arc<Service>],
        (mut rank, step): (u64, u64),
        previous: Option<&Self>,
        lanes: usize,
    ) -> Vec<Place> {
        let mut places = Vec::new();
        let mut tallies = Tallies::new(lanes, count_of(services));
        for service in services {
            for address in Address::all_of(service) {
                rank += step;
                places.push(Place { rank, address });
                self.all_ports += usize::from(address.is_for_all_ports());
                let service = Arc::clone(service);
                let stats = previous.and_then(|previous| previous.stats(&address, &service));
                let stats = stats.unwrap_or_else(|| tallies.next());
                let rule = ServiceRule { service, stats, rank };
                match self.at(&address).is_some() {
                    true => self.shadowed.insert(rank, rule),
                    false => self.table.insert(address, rule),
                };
            }
        }
        places
    }

    /// The counters of a service's rule.
    fn stats(&self, address: &Address, service: &Service) -> Option<Tally> {
        let rule = self.table.get(address)?;
        (rule.service.identity.name == service.identity.name).then(|| rule.stats.clone())
    }

    /// The rule that has this very address and port.
    pub(super) fn at(&self, address: &Address) -> Option<&ServiceRule> {
        self.table.get(address)
    }

    /// The first rule that a packet meets.
    pub(super) fn find(&self, tuple: &Tuple) -> Option<&ServiceRule> {
        let address = Address::of(tuple);
        let exact = self.table.get(&address);
        if self.all_ports == 0 {
            return exact;
        }
        let all_ports = self.table.get(&address.on_all_ports());
        exact.into_iter().chain(all_ports).min_by_key(|rule| rule.rank)
    }

    /// The same, found one by one.
    pub(super) fn walk(&self, tuple: &Tuple) -> Option<&ServiceRule> {
        let place = self.order.iter().find(|place| place.address.takes(tuple))?;
        self.table.get(&place.address)
    }

    /// Every rule in its order.
    pub(super) fn in_order(&self) -> impl Iterator<Item = (Address, &ServiceRule)> {
        self.order.iter().filter_map(|&Place { rank, address }| {
            let rule = self.table.get(&address).filter(|rule| rule.rank == rank);
            Some((address, rule.or_else(|| self.shadowed.get(&rank))?))
        })
    }
}

fn count_of(services: &[Arc<Service>]) -> usize {
    services.iter().map(|service| service.endpoints.len()).sum()
}

/// The rank before the first of the rules of `services`, and their distance, where they come between these two.
fn room(ahead: Option<&Place>, rest: Option<&Place>, services: &[Arc<Service>]) -> Option<(u64, u64)> {
    let low = ahead.map_or(0, |place| place.rank);
    let count = count_of(services);
    let step = rest.map_or(GAP, |place| (place.rank - low) / (count as u64 + 1));
    (step > 0).then_some((low, step))
}
