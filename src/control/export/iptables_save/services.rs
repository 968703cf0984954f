//! The chains of services and of their backends.
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::text::{Family, Table, comment, fitting, probability};
use super::unsaid::unsaid;
use crate::import::kube_proxy::{
    ENDPOINT, EXTERNAL, EXTERNAL_SERVICES, MARK_MASQUERADE, NODE_PORTS, SERVICE, SERVICES, endpoint_hash, service_hash,
};
use lbd_core::flow::Endpoint;
use lbd_core::policy::{BackendSpec, Masquerade, Persistence, Policy, ServiceSpec};
use lbd_core::scheduler::Kind;

/// All services.
#[derive(Debug)]
pub(super) struct Written<'p> {
    all: Vec<One<'p>>,
    /// By name, of those that have backends.
    chains: HashMap<&'p str, String>,
}

impl<'p> Written<'p> {
    /// Names every chain; what is not shown goes into the remarks.
    pub(super) fn of(policy: &'p Policy, remarks: &mut Vec<String>) -> Self {
        let one = |service: &'p Arc<ServiceSpec>| One::of(service, policy, remarks);
        let all: Vec<One<'p>> = policy.services.iter().map(one).collect();
        let full = all.iter().filter(|one| !one.backends.is_empty());
        let chains = full.map(|one| (one.service.name.as_str(), one.chain(SERVICE)));
        Self {
            chains: chains.collect(),
            all,
        }
    }

    /// The chain of a service that has backends.
    pub(super) fn chain(&self, name: &str) -> Option<&str> {
        self.chains.get(name).map(String::as_str)
    }

    /// Writes them.
    pub(super) fn print(&self, masquerade: Masquerade, nodes: Option<&[IpAddr]>, nat: &mut Table, filter: &mut Table) {
        for one in &self.all {
            if one.backends.is_empty() {
                one.refuse(filter);
            } else {
                one.balance(masquerade, nat);
            }
        }
        last_of_services(nodes, nat);
    }
}

/// Who comes here is for no service's address, but maybe for a node port.
fn last_of_services(nodes: Option<&[IpAddr]>, nat: &mut Table) {
    let note = comment("kubernetes service nodeports; NOTE: this must be the last rule in this chain");
    let Some(nodes) = nodes else {
        let rule = format!("{note} -m addrtype --dst-type LOCAL -j {NODE_PORTS}");
        return nat.rule(Family::Both, SERVICES, &rule);
    };
    for &node in nodes {
        let rule = format!("-d {} {note} -j {NODE_PORTS}", IpNet::from(node));
        nat.rule(Family::of(node), SERVICES, &rule);
    }
}

/// A service as it is written.
#[derive(Debug)]
struct One<'p> {
    service: &'p ServiceSpec,
    /// The end of the names of its chains.
    hash: String,
    family: Family,
    /// Those that take new flows, and their parts of them.
    backends: Vec<(&'p BackendSpec, u32)>,
}

impl<'p> One<'p> {
    fn of(service: &'p ServiceSpec, policy: &Policy, remarks: &mut Vec<String>) -> Self {
        let kind = policy.scheduler_of(service);
        remarks.extend(unsaid(service, kind));
        let taking = service.backends.iter().filter(|backend| backend.weight > 0);
        // `random` gives equal shares, whatever the weights.
        let weight = |backend: &BackendSpec| if kind == Kind::Random { 1 } else { backend.weight };
        Self {
            hash: service_hash(&service.name, service.protocol),
            family: Family::of(service.address.address),
            backends: taking.map(|backend| (backend, weight(backend))).collect(),
            service,
        }
    }

    fn chain(&self, prefix: &str) -> String {
        format!("{prefix}{}", self.hash)
    }

    fn endpoint_chain(&self, backend: &BackendSpec) -> String {
        let ServiceSpec { name, protocol, .. } = self.service;
        format!("{ENDPOINT}{}", endpoint_hash(name, *protocol, backend.address))
    }

    /// The name as a comment, with what kube-proxy says of the rule where there is room.
    fn name(&self, ending: &str) -> String {
        let name = &self.service.name;
        let all = format!("{name}{ending}");
        comment(if fitting(&all) == all { &all } else { name })
    }

    /// ` -m tcp --dport 80`; nothing for all ports.
    fn port(&self, port: u16) -> String {
        match port {
            0 => String::new(),
            port => format!(" -m {} --dport {port}", self.service.protocol),
        }
    }

    fn at(&self, address: IpAddr, ending: &str) -> String {
        let ServiceSpec { protocol, .. } = self.service;
        let (name, port) = (self.name(ending), self.port(self.service.address.port));
        format!("-d {} -p {protocol} {name}{port}", IpNet::from(address))
    }

    /// In the filter table: nobody is there.
    fn refuse(&self, filter: &mut Table) {
        let with = match self.family {
            Family::V6 => "icmp6-port-unreachable",
            Family::V4 | Family::Both => "icmp-port-unreachable",
        };
        let refused = |to: &str| format!("{to} -j REJECT --reject-with {with}");
        let ending = " has no endpoints";
        let cluster = self.at(self.service.address.address, ending);
        filter.rule(self.family, SERVICES, &refused(&cluster));
        for &external in &self.service.external_addresses {
            filter.rule(self.family, EXTERNAL_SERVICES, &refused(&self.at(external, ending)));
        }
        if let Some(port) = self.service.node_port {
            let (protocol, name) = (self.service.protocol, self.name(ending));
            let to = format!("-p {protocol} {name} -m addrtype --dst-type LOCAL{}", self.port(port));
            filter.rule(self.family, EXTERNAL_SERVICES, &refused(&to));
        }
    }

    /// In the nat table: from its addresses to its backends.
    fn balance(&self, masquerade: Masquerade, nat: &mut Table) {
        let service = self.service;
        let (own, external_chain) = (self.chain(SERVICE), self.chain(EXTERNAL));
        let cluster = self.at(service.address.address, " cluster IP");
        nat.rule(self.family, SERVICES, &format!("{cluster} -j {own}"));
        for &external in &service.external_addresses {
            let external = self.at(external, " external IP");
            nat.rule(self.family, SERVICES, &format!("{external} -j {external_chain}"));
        }
        if let Some(port) = service.node_port {
            let rule = format!("-p {} {}{}", service.protocol, self.name(""), self.port(port));
            nat.rule(self.family, NODE_PORTS, &format!("{rule} -j {external_chain}"));
        }
        if service.node_port.is_some() || !service.external_addresses.is_empty() {
            nat.full_chain(&external_chain, self.family, self.external(masquerade));
        }
        let marked = (masquerade == Masquerade::Always).then(|| format!("{cluster} -j {MARK_MASQUERADE}"));
        let choice = marked.into_iter().chain(self.affinity()).chain(self.lots());
        nat.full_chain(&own, self.family, choice);
        for (backend, _) in &self.backends {
            let rules = self.endpoint(backend, masquerade);
            nat.full_chain(&self.endpoint_chain(backend), self.family, rules);
        }
    }

    fn external(&self, masquerade: Masquerade) -> Vec<String> {
        let name = &self.service.name;
        let to_service = format!("-j {}", self.chain(SERVICE));
        let mark = match masquerade {
            Masquerade::Never => return vec![to_service],
            Masquerade::Always => comment(&format!("masquerade traffic for {name} external destinations")),
            Masquerade::Auto => {
                let note = comment(&format!("masquerade LOCAL traffic for {name} external destinations"));
                format!("{note} -m addrtype --src-type LOCAL")
            }
        };
        vec![format!("{mark} -j {MARK_MASQUERADE}"), to_service]
    }

    /// To the backend that a client had last.
    fn affinity(&self) -> Vec<String> {
        let Some(affinity) = self.service.persistence else {
            return Vec::new();
        };
        // `recent` counts whole seconds.
        let seconds = affinity.timeout.as_secs() + u64::from(affinity.timeout.subsec_nanos() > 0);
        let rule = |(backend, _): &(&BackendSpec, u32)| {
            let chain = self.endpoint_chain(backend);
            let (name, list) = (self.arrow(backend), self.recent(affinity, &chain));
            format!("{name} -m recent --rcheck --seconds {seconds} --reap {list} -j {chain}")
        };
        self.backends.iter().map(rule).collect()
    }

    /// To one by lot: each rule takes its share of what those before it have left.
    fn lots(&self) -> Vec<String> {
        let mut left: u64 = self.backends.iter().map(|&(_, weight)| u64::from(weight)).sum();
        let rule = |&(backend, weight): &(&BackendSpec, u32)| {
            let (name, chain) = (self.arrow(backend), self.endpoint_chain(backend));
            let share = probability(f64::from(weight) / left as f64);
            left -= u64::from(weight);
            match left {
                0 => format!("{name} -j {chain}"),
                _ => format!("{name} -m statistic --mode random --probability {share} -j {chain}"),
            }
        };
        self.backends.iter().map(rule).collect()
    }

    fn arrow(&self, backend: &BackendSpec) -> String {
        self.name(&format!(" -> {}", backend.address))
    }

    fn recent(&self, affinity: Persistence, list: &str) -> String {
        let whole = IpNet::from(self.service.address.address);
        let network = IpNet::new(whole.addr(), affinity.prefix_length).unwrap_or(whole);
        format!("--name {list} --mask {} --rsource", network.netmask())
    }

    fn endpoint(&self, backend: &BackendSpec, masquerade: Masquerade) -> Vec<String> {
        let ServiceSpec { protocol, .. } = self.service;
        let Endpoint { address, port } = backend.address;
        let name = self.name("");
        let hairpin = format!("-s {} {name} -j {MARK_MASQUERADE}", IpNet::from(address));
        let recent = self.service.persistence.map_or_else(String::new, |affinity| {
            let list = self.recent(affinity, &self.endpoint_chain(backend));
            format!(" -m recent --set {list}")
        });
        let to = match port {
            0 => address.to_string(),
            _ => backend.address.to_string(),
        };
        let there = format!("-p {protocol} {name}{recent} -m {protocol} -j DNAT --to-destination {to}");
        match masquerade {
            Masquerade::Never => vec![there],
            Masquerade::Auto | Masquerade::Always => vec![hairpin, there],
        }
    }
}
