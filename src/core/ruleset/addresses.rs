//! Who is known: the addresses of services and backends.
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use crate::matcher::Difference;
use crate::matcher::shared_map::SharedMap;
use crate::service::Service;

/// How often an address is one of each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Uses {
    services: usize,
    backends: usize,
}

/// Each address, and what it is used for.
#[derive(Clone, Debug)]
pub(super) struct Addresses(SharedMap<IpAddr, Uses>);

impl Addresses {
    pub(super) fn of(services: &[Arc<Service>]) -> Self {
        let count = services
            .iter()
            .map(|service| service.endpoints.len() + service.backends.len());
        let mut addresses = Self(SharedMap::with_capacity(count.sum()));
        for (address, role) in services.iter().flat_map(all_of) {
            addresses.add(address, role.change(1));
        }
        addresses
    }

    pub(super) fn changed(&self, difference: &Difference<'_>) -> Self {
        let mut changes: HashMap<IpAddr, Change> = HashMap::new();
        let former = difference
            .former()
            .flat_map(all_of)
            .map(|(address, role)| (address, role.change(-1)));
        let present = difference
            .present()
            .flat_map(all_of)
            .map(|(address, role)| (address, role.change(1)));
        for (address, change) in former.chain(present) {
            changes.entry(address).or_default().add(change);
        }
        let mut addresses = self.clone();
        for (address, change) in changes.into_iter().filter(|&(_, change)| change != Change::default()) {
            addresses.add(address, change);
        }
        addresses
    }

    pub(super) fn contains(&self, address: &IpAddr) -> bool {
        self.0.get(address).is_some()
    }

    pub(super) fn is_service(&self, address: &IpAddr) -> bool {
        self.0.get(address).is_some_and(|uses| uses.services > 0)
    }

    fn add(&mut self, address: IpAddr, change: Change) {
        let before = self.0.get(&address).copied().unwrap_or_default();
        let after = Uses {
            services: before.services.saturating_add_signed(change.services),
            backends: before.backends.saturating_add_signed(change.backends),
        };
        match after == Uses::default() {
            true => self.0.remove(&address),
            false => self.0.insert(address, after),
        };
    }
}

/// More or less uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Change {
    services: isize,
    backends: isize,
}

impl Change {
    const fn add(&mut self, other: Self) {
        self.services += other.services;
        self.backends += other.backends;
    }
}

#[derive(Clone, Copy, Debug)]
enum Role {
    Service,
    Backend,
}

impl Role {
    const fn change(self, by: isize) -> Change {
        match self {
            Self::Service => Change {
                services: by,
                backends: 0,
            },
            Self::Backend => Change {
                services: 0,
                backends: by,
            },
        }
    }
}

fn all_of(service: &Arc<Service>) -> impl Iterator<Item = (IpAddr, Role)> + '_ {
    let endpoints = service
        .endpoints
        .iter()
        .map(|endpoint| (endpoint.address, Role::Service));
    let backends = service.backends.iter();
    endpoints.chain(backends.map(|backend| (backend.address.address, Role::Backend)))
}
