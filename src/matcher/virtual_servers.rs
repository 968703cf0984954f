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
}

impl VirtualServers {
    /// A table of every address of every service.
    #[must_use]
    pub fn new(services: &[Arc<Service>]) -> Self {
        let entries = services.iter().flat_map(|service| {
            let keys = service.endpoints.iter();
            keys.map(|&endpoint| ((service.protocol, endpoint), Arc::clone(service)))
        });
        Self {
            table: entries.collect(),
        }
    }

    /// The service that a packet's destination is an address of.
    #[must_use]
    pub fn find(&self, tuple: &Tuple) -> Match<'_> {
        self.table
            .get(&(tuple.protocol, tuple.destination))
            .map_or(Match::None, Match::Service)
    }
}
