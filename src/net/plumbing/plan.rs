//! What a policy needs of the kernel, as plain sets.
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;

use super::cover::Cover;
use super::object::{Family, LAST_PORT};
use lbd_core::flow::{Endpoint, Protocol};
use lbd_core::matcher::rules::{Action, Condition, Rule};
use lbd_core::policy::{Masquerade, Mode, OwnSources, Policy, ServiceSpec};

/// Protocols of flows.
const PROTOCOLS: [Protocol; 3] = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];

/// What is to be led into the TUN device. Equal plans need no change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Service, external and pool addresses, of families that have services: whatever goes there goes to lbd.
    pub routes: BTreeSet<IpNet>,
    /// Node ports, and services on this host's own addresses: only these ports go to lbd.
    pub local_ports: BTreeSet<(Protocol, Endpoint)>,
    /// Backends: what they answer goes to lbd.
    pub replies: BTreeSet<(Protocol, Endpoint)>,
    /// Interfaces whose packets an XDP program has judged already: what it left to the kernel is no reply of lbd's.
    pub served: BTreeSet<String>,
    /// This host's own addresses and ports that flows are masqueraded with: only an XDP program leads these to lbd.
    pub masqueraded: BTreeSet<Cover>,
    /// Destinations of rules that lead to a service, in iptables mode.
    pub diverted: BTreeSet<Cover>,
    /// The same, as far as they are this host's own addresses.
    pub diverted_locally: BTreeSet<Cover>,
    /// This host's own addresses.
    pub own: BTreeSet<IpAddr>,
    /// Whether lbd can send on in the host's name what the host says in ICMP about packets that are none of lbd's: then all that it
    /// says about packets on their way may be led to lbd.
    pub returns_errors: bool,
}

/// A policy that the kernel's routing cannot serve.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// The kernel never routes loopback addresses out of a device (`ip_route_output_key_hash_rcu`).
    #[error(
        "service {service:?}: {address} is a loopback address, which the kernel never routes; give the service an address of its own"
    )]
    Loopback {
        /// Its name.
        service: String,
        /// Its address.
        address: IpAddr,
    },
    /// No policy rule may name the last port, and only a rule leads a port of this host's own address to lbd.
    #[error(
        "service {service:?}: {endpoint} is this host's own address, of which the kernel's policy rules can lead only ports up to {LAST_PORT} to lbd; choose another port"
    )]
    LastPort {
        /// Its name.
        service: String,
        /// Its address and port.
        endpoint: Endpoint,
    },
    /// Replies to this host's own addresses are delivered to the host, never to lbd.
    #[error(
        "nat.pool: {pool} contains {address}, this host's own address, so replies to it would not come back to lbd; choose addresses that nobody has"
    )]
    OwnedPool {
        /// The prefix.
        pool: IpNet,
        /// The address of this host within it.
        address: IpAddr,
    },
}

impl Plan {
    /// The plan for `policy` on a host that has the addresses `owned` (see [`super::owned_addresses`]).
    ///
    /// # Errors
    /// When a service or the pool has an address that cannot be routed to lbd.
    pub fn new(policy: &Policy, owned: &[IpAddr]) -> Result<Self, PlanError> {
        let mut plan = Self::default();
        for &pool in &policy.nat.pool {
            if let Some(&address) = owned.iter().find(|&address| pool.contains(address)) {
                return Err(PlanError::OwnedPool { pool, address });
            }
            // A family without services is none of lbd's business: the host may not even have it.
            let family = Family::of(pool.addr());
            if policy
                .services
                .iter()
                .any(|service| Family::of(service.address.address) == family)
            {
                plan.routes.insert(pool.trunc());
            }
        }
        let owned: BTreeSet<IpAddr> = owned.iter().chain(&policy.node_addresses).copied().collect();
        plan.own = owned.iter().copied().filter(|own| !own.is_loopback()).collect();
        for service in &policy.services {
            plan.add_service(service, policy, &owned)?;
        }
        if policy.mode == Mode::Iptables {
            for rule in &policy.rules {
                plan.add_rule(rule, policy, &owned);
            }
        }
        Ok(plan)
    }

    /// XDP programs on `interfaces` judge what comes in there; flows may be masqueraded with `own` addresses.
    pub fn serve(&mut self, interfaces: BTreeSet<String>, own: Option<&OwnSources>) {
        self.served.extend(interfaces);
        if let Some(own) = own {
            self.masqueraded.extend(masqueraded(own));
        }
    }

    /// The part that leads answers: to be in place before requests come.
    #[must_use]
    pub fn answers(&self) -> Self {
        Self {
            replies: self.replies.clone(),
            served: self.served.clone(),
            masqueraded: self.masqueraded.clone(),
            own: self.own.clone(),
            returns_errors: self.returns_errors,
            ..Self::default()
        }
    }

    /// This plan and `other` together: flows of services and backends that are gone need the old one as long as they
    /// live (`on_backend_removed = "preserve"`).
    #[must_use]
    pub fn union(mut self, other: &Self) -> Self {
        self.routes.extend(&other.routes);
        self.local_ports.extend(&other.local_ports);
        self.replies.extend(&other.replies);
        self.served.extend(other.served.iter().cloned());
        self.masqueraded.extend(&other.masqueraded);
        self.diverted.extend(&other.diverted);
        self.diverted_locally.extend(&other.diverted_locally);
        // Of the host as it is now, not as it was.
        self
    }

    pub(super) fn has_local_ports(&self) -> bool {
        !self.local_ports.is_empty() || !self.diverted_locally.is_empty()
    }

    /// Backends that are this host itself.
    pub(super) fn own_backends(&self) -> impl Iterator<Item = Ipv4Addr> + '_ {
        let own = self.own.iter().filter(|&&own| {
            let mut protocols = PROTOCOLS.into_iter();
            protocols.any(|protocol| has_host(&self.replies, (protocol, own)))
        });
        own.filter_map(|own| match own {
            IpAddr::V4(v4) => Some(*v4),
            IpAddr::V6(_) => None,
        })
    }

    /// Whether backends of `family` answer to clients themselves, so that routers also tell these about what lbd sent in
    /// their name.
    pub(super) fn has_replies(&self, family: Family) -> bool {
        self.replies
            .iter()
            .any(|(_, backend)| Family::of(backend.address) == family)
    }

    pub(super) fn uses(&self, family: Family) -> bool {
        let endpoints = || self.local_ports.iter().chain(&self.replies);
        self.routes.iter().any(|route| Family::of(route.addr()) == family)
            || endpoints().any(|(_, endpoint)| Family::of(endpoint.address) == family)
            || self.diverted.iter().any(|cover| Family::of(cover.net.addr()) == family)
    }

    fn add_service(
        &mut self,
        service: &ServiceSpec,
        policy: &Policy,
        owned: &BTreeSet<IpAddr>,
    ) -> Result<(), PlanError> {
        for endpoint in service.endpoints(&policy.node_addresses) {
            let address = endpoint.address;
            if address.is_loopback() {
                let service = service.name.clone();
                return Err(PlanError::Loopback { service, address });
            }
            if owned.contains(&address) {
                if endpoint.port > LAST_PORT {
                    let service = service.name.clone();
                    return Err(PlanError::LastPort { service, endpoint });
                }
                self.local_ports.insert((service.protocol, endpoint));
            } else {
                self.routes.insert(address.into());
            }
        }
        self.replies.extend(Self::replies_of(service, policy));
        Ok(())
    }
}

/// Whether one of `replies` is of this host.
pub(crate) fn has_host(replies: &BTreeSet<(Protocol, Endpoint)>, (protocol, address): (Protocol, IpAddr)) -> bool {
    let at = |port| (protocol, Endpoint::new(address, port));
    replies.range(at(0)..=at(u16::MAX)).next().is_some()
}

impl Plan {
    /// What a service adds to [`Self::replies`].
    pub fn replies_of<'a>(
        service: &'a ServiceSpec,
        policy: &'a Policy,
    ) -> impl Iterator<Item = (Protocol, Endpoint)> + 'a {
        let backends = service.backends.iter().map(|backend| backend.address);
        let seen = backends.filter(|backend| !always_masqueraded(policy, backend.address));
        seen.map(|backend| (service.protocol, backend))
    }

    /// Whether flows may be masqueraded with all these addresses.
    pub fn leads(&self, own: &OwnSources) -> bool {
        masqueraded(own).all(|cover| self.masqueraded.contains(&cover))
    }
}

/// The host's own addresses that stand for clients, with their ports.
fn masqueraded(own: &OwnSources) -> impl Iterator<Item = Cover> {
    let addresses: BTreeSet<IpAddr> = own.towards.values().copied().collect();
    let ranges = own.ports.ranges();
    addresses.into_iter().flat_map(move |address| {
        let covers = ranges.iter().flat_map(|ports| {
            PROTOCOLS.map(|protocol| Cover {
                protocol,
                net: address.into(),
                ports: (*ports.start(), *ports.end()),
            })
        });
        covers.collect::<Vec<Cover>>()
    })
}

impl Plan {
    /// A rule may lead any destination to a service, not only the service's own addresses, as in iptables' PREROUTING
    /// and OUTPUT. Rules that do something else act on what lbd gets anyway.
    fn add_rule(&mut self, rule: &Rule, policy: &Policy, owned: &BTreeSet<IpAddr>) {
        let Action::Service(name) = &rule.action else {
            return;
        };
        let service = policy.services.iter().find(|service| service.name == *name);
        let Some(service) = service.filter(|service| may_match(rule.protocol.as_ref(), service.protocol)) else {
            return;
        };
        let family = Family::of(service.address.address);
        let net = plain(rule.destination.as_ref()).map_or_else(|| family.default_net(), |net| net.trunc());
        // Port 0 stands for a fragment in policy rules.
        let ports = plain(rule.destination_port.as_ref()).map_or((1, u16::MAX), |ports| (*ports.start(), *ports.end()));
        let protocol = service.protocol;
        self.diverted.insert(Cover { protocol, net, ports });
        let local = owned
            .iter()
            .filter(|address| !address.is_loopback() && net.contains(*address));
        self.diverted_locally.extend(local.map(|&address| Cover {
            protocol,
            net: address.into(),
            ports,
        }));
    }
}

fn may_match(condition: Option<&Condition<Protocol>>, protocol: Protocol) -> bool {
    condition.is_none_or(|condition| (condition.value == protocol) != condition.negated)
}

/// The value of a condition that is not negated: a negated one excludes little, and lbd itself checks it.
fn plain<T>(condition: Option<&Condition<T>>) -> Option<&T> {
    condition
        .filter(|condition| !condition.negated)
        .map(|condition| &condition.value)
}

/// Replies to the pool come back by the pool's route; no rule a backend is needed.
fn always_masqueraded(policy: &Policy, backend: IpAddr) -> bool {
    let mut pool = policy.nat.pool.iter();
    policy.nat.masquerade == Masquerade::Always && pool.any(|pool| Family::of(pool.addr()) == Family::of(backend))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use lbd_core::conntrack::timeout::Timeouts;
    use lbd_core::policy::{BackendSpec, Conntrack, Icmp, Nat, UnknownReply, UnknownTcp};
    use lbd_core::scheduler::Flags;

    fn service(address: &str, node_port: Option<u16>, backends: &[&str]) -> ServiceSpec {
        let backend = |text: &&str| BackendSpec {
            address: text.parse().unwrap(),
            weight: 1,
            upper_threshold: 0,
            lower_threshold: 0,
        };
        ServiceSpec {
            name: address.into(),
            protocol: Protocol::Tcp,
            address: address.parse().unwrap(),
            external_addresses: Vec::new(),
            node_port,
            scheduler: None,
            flags: Flags::default(),
            persistence: None,
            one_packet: false,
            on_backend_removed: None,
            backends: backends.iter().map(backend).collect(),
        }
    }

    fn policy(services: Vec<ServiceSpec>) -> Policy {
        Policy {
            mode: Mode::Ipvs,
            shadow: false,
            evaluation: lbd_core::policy::Evaluation::Compiled,
            scheduler: None,
            node_addresses: vec!["192.168.0.2".parse().unwrap()],
            local_addresses: Vec::new(),
            nat: Nat::default(),
            conntrack: Conntrack {
                max_flows: 1,
                on_backend_removed: None,
                unknown_tcp: UnknownTcp::Drop,
                unknown_reply: UnknownReply::Drop,
                expire_quiescent_template: true,
                conn_reuse: true,
                timeouts: Timeouts::default(),
            },
            icmp: Icmp::default(),
            rules: Vec::new(),
            services: services.into_iter().map(Arc::new).collect(),
        }
    }

    fn owned() -> Vec<IpAddr> {
        ["127.0.0.1", "192.168.0.2", "203.0.113.1"]
            .map(|text| text.parse().unwrap())
            .into()
    }

    fn endpoints(set: &BTreeSet<(Protocol, Endpoint)>) -> Vec<String> {
        set.iter().map(|(_, endpoint)| endpoint.to_string()).collect()
    }

    #[test]
    fn two_services_on_one_address_with_one_backend_need_one_route_and_one_reply_rule() {
        let backends = ["10.2.0.11:8080"];
        let services = vec![
            service("10.96.0.10:80", None, &backends),
            service("10.96.0.10:443", None, &backends),
        ];
        let plan = Plan::new(&policy(services), &owned()).unwrap();
        assert_eq!(plan.routes, BTreeSet::from(["10.96.0.10/32".parse().unwrap()]));
        assert_eq!(endpoints(&plan.replies), ["10.2.0.11:8080"]);
        assert!(plan.local_ports.is_empty());
    }

    #[test]
    fn a_service_on_an_address_of_this_host_takes_its_port_only() {
        let plan = Plan::new(&policy(vec![service("203.0.113.1:80", None, &[])]), &owned()).unwrap();
        assert!(plan.routes.is_empty());
        assert_eq!(endpoints(&plan.local_ports), ["203.0.113.1:80"]);
    }

    #[test]
    fn a_node_port_is_taken_on_every_node_address_of_the_family() {
        let mut policy = policy(vec![service("10.96.0.10:80", Some(30080), &[])]);
        policy.node_addresses.push("fd00::2".parse().unwrap());
        policy.node_addresses.push("192.0.2.7".parse().unwrap());
        let plan = Plan::new(&policy, &owned()).unwrap();
        assert_eq!(endpoints(&plan.local_ports), ["192.0.2.7:30080", "192.168.0.2:30080"]);
    }

    #[test]
    fn external_and_pool_addresses_are_routed_too() {
        let mut web = service("10.96.0.10:80", None, &[]);
        web.external_addresses = vec!["203.0.113.10".parse().unwrap()];
        let mut policy = policy(vec![web]);
        policy.nat.pool = vec!["198.18.0.5/28".parse().unwrap()];
        let plan = Plan::new(&policy, &owned()).unwrap();
        let routes: Vec<String> = plan.routes.iter().map(ToString::to_string).collect();
        assert_eq!(routes, ["10.96.0.10/32", "198.18.0.0/28", "203.0.113.10/32"]);
    }

    #[test]
    fn a_pool_is_routed_only_where_a_service_of_its_family_is() {
        let pool = ["198.18.0.0/28", "2001:2::/124"].map(|net| net.parse().unwrap());
        let routes = |services| {
            let mut policy = policy(services);
            policy.nat.pool = pool.to_vec();
            let plan = Plan::new(&policy, &owned()).unwrap();
            plan.routes.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        let v4 = || service("10.96.0.10:80", None, &["10.2.0.11:80"]);
        let v6 = || service("[fd00::10]:80", None, &[]);
        assert!(routes(Vec::new()).is_empty());
        assert_eq!(routes(vec![v4()]), ["10.96.0.10/32", "198.18.0.0/28"]);
        assert_eq!(routes(vec![v6()]), ["2001:2::/124", "fd00::10/128"]);
        assert_eq!(routes(vec![v4(), v6()]).len(), 4);
    }

    #[test]
    fn where_every_flow_is_masqueraded_no_backend_needs_a_rule() {
        let mut policy = policy(vec![service("10.96.0.10:80", None, &["10.2.0.11:8080"])]);
        policy.nat.masquerade = Masquerade::Always;
        policy.nat.pool = vec!["198.18.0.0/28".parse().unwrap()];
        assert!(Plan::new(&policy, &owned()).unwrap().replies.is_empty());
    }

    #[test]
    fn a_service_on_a_loopback_address_is_refused_by_name() {
        let error = Plan::new(&policy(vec![service("127.0.0.1:80", None, &[])]), &owned());
        let text = error.unwrap_err().to_string();
        assert!(text.contains("127.0.0.1:80") && text.contains("loopback"), "{text}");
    }

    #[test]
    fn a_port_of_this_hosts_own_address_that_no_policy_rule_can_name_is_refused() {
        for refused in [
            service("10.96.0.10:80", Some(65_535), &[]),
            service("203.0.113.1:65535", None, &[]),
        ] {
            let text = Plan::new(&policy(vec![refused]), &owned()).unwrap_err().to_string();
            assert!(text.contains(":65535") && text.contains("65534"), "{text}");
        }
        // An address that nobody has is routed, whatever the port.
        Plan::new(&policy(vec![service("10.96.0.10:65535", Some(65_534), &[])]), &owned()).unwrap();
    }

    #[test]
    fn a_pool_with_an_address_of_this_host_is_refused() {
        let mut policy = policy(Vec::new());
        policy.nat.pool = vec!["203.0.113.0/28".parse().unwrap()];
        let error = Plan::new(&policy, &owned()).unwrap_err();
        assert!(error.to_string().contains("203.0.113.1"), "{error}");
    }

    #[test]
    fn while_old_flows_live_the_union_serves_both_configurations() {
        let old = Plan::new(&policy(vec![service("10.96.0.10:80", None, &["10.2.0.11:80"])]), &[]);
        let new = Plan::new(&policy(vec![service("10.96.0.10:80", None, &["10.2.0.12:80"])]), &[]);
        let both = new.unwrap().union(&old.unwrap());
        assert_eq!(endpoints(&both.replies), ["10.2.0.11:80", "10.2.0.12:80"]);
    }

    fn rule(destination: &str, port: u16, service: &str) -> Rule {
        let condition = |value| Some(Condition { negated: false, value });
        Rule {
            name: None,
            source: None,
            destination: condition(destination.parse().unwrap()),
            protocol: None,
            source_port: None,
            destination_port: Some(Condition {
                negated: false,
                value: port..=port,
            }),
            probability: None,
            action: Action::Service(service.into()),
        }
    }

    #[test]
    fn a_rule_that_leads_to_a_service_takes_its_destination_even_on_this_host() {
        let mut policy = policy(vec![service("10.96.0.10:80", None, &[])]);
        policy.rules = vec![rule("192.168.0.0/24", 8000, "10.96.0.10:80")];
        let show = |covers: &BTreeSet<Cover>| -> Vec<String> {
            covers
                .iter()
                .map(|cover| format!("{} {:?}", cover.net, cover.ports))
                .collect()
        };
        assert!(
            Plan::new(&policy, &owned()).unwrap().diverted.is_empty(),
            "ipvs mode has no rules"
        );
        policy.mode = Mode::Iptables;
        let plan = Plan::new(&policy, &owned()).unwrap();
        assert_eq!(show(&plan.diverted), ["192.168.0.0/24 (8000, 8000)"]);
        assert_eq!(show(&plan.diverted_locally), ["192.168.0.2/32 (8000, 8000)"]);
    }
}
