//! Who answers where: no name and no (protocol, address:port) may belong to two services.
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::IpAddr;

use crate::config::diagnostic::Report;
use crate::config::raw::Scalar;
use lbd_core::flow::{Endpoint, Protocol};

/// What is taken already, and by which service.
#[derive(Debug, Default)]
pub(super) struct Claims<'t> {
    endpoints: HashMap<(Protocol, Endpoint), &'t str>,
    /// By protocol, whether IPv4, and port.
    node_ports: HashMap<(Protocol, bool, u16), &'t str>,
    /// This node's addresses, where the configuration gives them.
    nodes: Vec<IpAddr>,
}

/// A key whose value claims something.
#[derive(Clone, Copy, Debug)]
pub(super) struct Claimant<'t> {
    /// The service's name.
    pub(super) service: &'t str,
    /// Its protocol.
    pub(super) protocol: Protocol,
    /// The key.
    pub(super) key: &'static str,
    /// Its value.
    pub(super) written: Scalar<'t>,
    /// Where that is.
    pub(super) offset: usize,
}

impl<'t> Claims<'t> {
    /// Nothing is claimed yet.
    pub(super) fn new(nodes: &[IpAddr]) -> Self {
        Self {
            nodes: nodes.to_vec(),
            ..Self::default()
        }
    }

    /// Claims an address and port, or reports who has it.
    pub(super) fn endpoint(&mut self, endpoint: Endpoint, by: Claimant<'t>, report: &mut Report) {
        match self.endpoints.entry((by.protocol, endpoint)) {
            Entry::Vacant(free) => {
                free.insert(by.service);
            }
            Entry::Occupied(taken) => by.refuse(endpoint, taken.get(), report),
        }
    }

    /// The service that answers there.
    pub(super) fn owner(&self, protocol: Protocol, endpoint: Endpoint) -> Option<&'t str> {
        self.endpoints.get(&(protocol, endpoint)).copied()
    }

    /// Claims a port on every node address of a family, or reports who has it.
    pub(super) fn node_port(&mut self, port: u16, v4: bool, by: Claimant<'t>, report: &mut Report) {
        match self.node_ports.entry((by.protocol, v4, port)) {
            Entry::Occupied(taken) => return by.refuse(port, taken.get(), report),
            Entry::Vacant(free) => {
                free.insert(by.service);
            }
        }
        let nodes = std::mem::take(&mut self.nodes);
        for &address in nodes.iter().filter(|node| node.is_ipv4() == v4) {
            self.endpoint(Endpoint::new(address, port), by, report);
        }
        self.nodes = nodes;
    }
}

impl Claimant<'_> {
    fn refuse(self, what: impl std::fmt::Display, owner: &str, report: &mut Report) {
        let Self { protocol, .. } = self;
        let problem = if owner == self.service {
            format!("{protocol} {what} is given twice in this service: remove one")
        } else {
            format!("{protocol} {what} is already taken by service {owner:?}: give another address or port")
        };
        report.bad(self.offset, self.key, self.written, problem);
    }
}
