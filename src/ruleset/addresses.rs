//! Who is known: the addresses of services and backends.
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use crate::matcher::Difference;
use crate::matcher::shared_map::SharedMap;
use crate::service::Service;

/// Each address, and how often it is one.
#[derive(Clone, Debug)]
pub(super) struct Addresses(SharedMap<IpAddr, usize>);

impl Addresses {
    pub(super) fn of(services: &[Arc<Service>]) -> Self {
        let count = services
            .iter()
            .map(|service| service.endpoints.len() + service.backends.len());
        let mut addresses = Self(SharedMap::with_capacity(count.sum()));
        for address in services.iter().flat_map(all_of) {
            addresses.add(address, 1);
        }
        addresses
    }

    pub(super) fn changed(&self, difference: &Difference<'_>) -> Self {
        let mut changes: HashMap<IpAddr, isize> = HashMap::new();
        for address in difference.former().flat_map(all_of) {
            *changes.entry(address).or_default() -= 1;
        }
        for address in difference.present().flat_map(all_of) {
            *changes.entry(address).or_default() += 1;
        }
        let mut addresses = self.clone();
        for (address, change) in changes.into_iter().filter(|&(_, change)| change != 0) {
            addresses.add(address, change);
        }
        addresses
    }

    pub(super) fn contains(&self, address: &IpAddr) -> bool {
        self.0.get(address).is_some()
    }

    fn add(&mut self, address: IpAddr, change: isize) {
        let before = self.0.get(&address).copied().unwrap_or_default();
        match before.saturating_add_signed(change) {
            0 => self.0.remove(&address),
            after => self.0.insert(address, after),
        };
    }
}

fn all_of(service: &Arc<Service>) -> impl Iterator<Item = IpAddr> + '_ {
    let endpoints = service.endpoints.iter().map(|endpoint| endpoint.address);
    endpoints.chain(service.backends.iter().map(|backend| backend.address.address))
}
