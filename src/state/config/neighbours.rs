//! Which other services a changed one has to get along with. With these and the settings it can be validated without
//! the thousands of others.
use std::collections::{BTreeSet, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use lbd_core::flow::{Endpoint, Protocol};
use lbd_core::matcher::rules::{Action, Rule};
use lbd_core::policy::{ServiceSpec, differing};

/// Most often empty, or of a few: then quicker than one that hashes.
type Set<T> = BTreeSet<T>;

/// What services that are new or not as they were have that they had not before, and that no two may have.
#[derive(Debug, Default)]
pub(super) struct Novelties<'a> {
    names: Set<&'a str>,
    endpoints: Set<(Protocol, Endpoint)>,
    /// By protocol, whether IPv4, and port.
    node_ports: Set<(Protocol, bool, u16)>,
    /// Packets to these leave lbd, and must not be for another service.
    backends: Set<(Protocol, Endpoint)>,
}

impl<'a> Novelties<'a> {
    /// Of `after`, where there was `before`. `nodes` are this node's addresses, as far as the configuration gives them.
    pub(super) fn new<'s>(
        before: impl Iterator<Item = &'s Arc<ServiceSpec>>,
        after: impl Iterator<Item = &'a Arc<ServiceSpec>>,
        nodes: &[IpAddr],
    ) -> Self {
        let mut new = Self::default();
        for service in after {
            let protocol = service.protocol;
            new.names.insert(&service.name);
            new.endpoints
                .extend(service.endpoints(nodes).map(|endpoint| (protocol, endpoint)));
            new.node_ports.extend(node_port(service));
            let backends = service.backends.iter();
            new.backends.extend(backends.map(|backend| (protocol, backend.address)));
        }
        for service in before {
            let protocol = service.protocol;
            new.names.remove(service.name.as_str());
            for endpoint in service.endpoints(nodes) {
                new.endpoints.remove(&(protocol, endpoint));
            }
            node_port(service).map(|port| new.node_ports.remove(&port));
            for backend in &service.backends {
                new.backends.remove(&(protocol, backend.address));
            }
        }
        new
    }

    /// Whether another service has something to do with them.
    pub(super) fn concern(&self, other: &ServiceSpec, nodes: &[IpAddr]) -> bool {
        let protocol = other.protocol;
        let is_claimed = |endpoint| {
            let key = (protocol, endpoint);
            self.endpoints.contains(&key) || self.backends.contains(&key)
        };
        let leads_here = || {
            let mut backends = other.backends.iter();
            backends.any(|backend| self.endpoints.contains(&(protocol, backend.address)))
        };
        self.names.contains(other.name.as_str())
            || other.endpoints(nodes).any(is_claimed)
            || node_port(other).is_some_and(|port| self.node_ports.contains(&port))
            || (!self.endpoints.is_empty() && leads_here())
    }
}

fn node_port(service: &ServiceSpec) -> Option<(Protocol, bool, u16)> {
    let v4 = service.address.address.is_ipv4();
    service.node_port.map(|port| (service.protocol, v4, port))
}

/// Services that differ between two lists: as they were, and as they are.
pub(super) fn changes<'a>(
    old: &'a [Arc<ServiceSpec>],
    new: &'a [Arc<ServiceSpec>],
) -> (Vec<&'a Arc<ServiceSpec>>, Vec<&'a Arc<ServiceSpec>>) {
    let (old, new) = differing(old, new);
    let known =
        |services: &[Arc<ServiceSpec>]| -> Set<*const ServiceSpec> { services.iter().map(Arc::as_ptr).collect() };
    let (before, after) = (known(old), known(new));
    let gone = old.iter().filter(|service| !after.contains(&Arc::as_ptr(service)));
    let come = new.iter().filter(|service| !before.contains(&Arc::as_ptr(service)));
    (gone.collect(), come.collect())
}

/// The names of services that rules lead to.
pub(super) fn targets(rules: &[Rule]) -> HashSet<&str> {
    rules.iter().filter_map(target).collect()
}

fn target(rule: &Rule) -> Option<&str> {
    match &rule.action {
        Action::Service(name) => Some(name),
        Action::Drop | Action::Reject | Action::Pass => None,
    }
}
