//! ipvs mode: a hash table of virtual servers by protocol, address and port, as `ip_vs_svc_table` (ip_vs_ctl.c).
use std::sync::Arc;

use super::Match;
use super::address::Address;
use super::difference::Difference;
use super::shared_map::SharedMap;
use crate::flow::Tuple;
use crate::service::Service;

/// See the module.
#[derive(Clone, Debug)]
pub struct VirtualServers {
    table: SharedMap<Address, Arc<Service>>,
    /// How many services have port 0: where none has, a packet that is none of ours costs one lookup, not two.
    all_ports: usize,
    /// Whether an address is given twice: then it is the first service's, as in iptables mode. A node's address that only the
    /// kernel knows may be a service's, too.
    ambiguous: bool,
}

impl VirtualServers {
    /// A table of every address of every service.
    #[must_use]
    pub fn new(services: &[Arc<Service>]) -> Self {
        let addresses = services.iter().map(|service| service.endpoints.len()).sum();
        let mut servers = Self {
            table: SharedMap::with_capacity(addresses),
            all_ports: 0,
            ambiguous: false,
        };
        services.iter().for_each(|service| servers.add(service));
        servers
    }

    /// The table with these services in the place of those. None: it has to be built anew.
    #[must_use]
    pub fn changed(&self, difference: &Difference<'_>) -> Option<Self> {
        if self.ambiguous {
            return None;
        }
        let mut servers = self.clone();
        for service in difference.former() {
            for address in Address::all_of(service) {
                servers.table.remove(&address);
                servers.all_ports -= usize::from(address.is_for_all_ports());
            }
        }
        difference.present().for_each(|service| servers.add(service));
        (!servers.ambiguous).then_some(servers)
    }

    fn add(&mut self, service: &Arc<Service>) {
        for address in Address::all_of(service) {
            self.all_ports += usize::from(address.is_for_all_ports());
            if self.at(&address).is_some() {
                self.ambiguous = true;
            } else {
                self.table.insert(address, Arc::clone(service));
            }
        }
    }

    /// The service that has this very address and port.
    pub(super) fn at(&self, address: &Address) -> Option<&Arc<Service>> {
        self.table.get(address)
    }

    /// The service that a packet's destination is an address of; else the one of all ports of that address
    /// (`ip_vs_service_find`, ip_vs_ctl.c).
    #[must_use]
    pub fn find(&self, tuple: &Tuple) -> Match<'_> {
        let address = Address::of(tuple);
        let all_ports = || match self.all_ports {
            0 => None,
            _ => self.table.get(&address.on_all_ports()),
        };
        self.table
            .get(&address)
            .or_else(all_ports)
            .map_or(Match::None, Match::Service)
    }
}
