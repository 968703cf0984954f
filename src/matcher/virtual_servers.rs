//! ipvs mode: a hash table of virtual servers by protocol, address and port, as `ip_vs_svc_table` (ip_vs_ctl.c).
use std::collections::HashMap;
use std::sync::Arc;

use ahash::RandomState;

use super::Match;
use crate::flow::{Endpoint, Protocol, Tuple};
use crate::service::Service;

/// See the module.
#[derive(Debug, Default)]
pub struct VirtualServers {
    table: HashMap<(Protocol, Endpoint), Arc<Service>, RandomState>,
    /// Whether any service has port 0: else a packet that is none of ours costs one lookup, not two.
    has_all_ports: bool,
}

impl VirtualServers {
    /// A table of every address of every service.
    #[must_use]
    pub fn new(services: &[Arc<Service>]) -> Self {
        let entries = services.iter().flat_map(|service| {
            let keys = service.endpoints.iter();
            keys.map(|&endpoint| ((service.protocol, endpoint), Arc::clone(service)))
        });
        let mut endpoints = services.iter().flat_map(|service| &service.endpoints);
        Self {
            has_all_ports: endpoints.any(|endpoint| endpoint.port == 0),
            table: entries.collect(),
        }
    }

    /// The service that a packet's destination is an address of; else the one of all ports of that address
    /// (`ip_vs_service_find`, ip_vs_ctl.c).
    #[must_use]
    pub fn find(&self, tuple: &Tuple) -> Match<'_> {
        let all_ports = || {
            let endpoint = Endpoint::new(tuple.destination.address, 0);
            self.table
                .get(&(tuple.protocol, endpoint))
                .filter(|_| self.has_all_ports)
        };
        self.table
            .get(&(tuple.protocol, tuple.destination))
            .or_else(all_ports)
            .map_or(Match::None, Match::Service)
    }
}
