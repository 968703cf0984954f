//! A policy made ready for packets: the matcher built, services joined to the backends and counters they had before.
use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::{Arc, Weak};

use ahash::RandomState;
use parking_lot::Mutex;

use crate::flow::{Endpoint, Tuple};
use crate::matcher::Matcher;
use crate::matcher::rules::RuleList;
use crate::matcher::virtual_servers::VirtualServers;
use crate::policy::{Mode, Policy, ServiceSpec};
use crate::scheduler::Scheduler;
use crate::service::{Backend, Service, ServiceIdentity, Stats};

/// What packets are judged by.
#[derive(Debug)]
pub struct Ruleset {
    /// What it was made from.
    pub policy: Arc<Policy>,
    /// The matcher of the mode.
    pub matcher: Matcher,
    /// In the order of the configuration.
    pub services: Vec<Arc<Service>>,
    node_addresses: HashSet<IpAddr, RandomState>,
    /// Service and backend addresses: a fragment from or to one of them may belong to a flow.
    known_addresses: HashSet<IpAddr, RandomState>,
    frontends: HashSet<Endpoint, RandomState>,
}

impl Ruleset {
    /// Whether this node owns the address, so that a client at it is local.
    #[must_use]
    pub fn is_local(&self, address: &IpAddr) -> bool {
        address.is_loopback() || self.node_addresses.contains(address)
    }

    /// Whether the address is a service's or a backend's.
    #[must_use]
    pub fn is_known(&self, address: &IpAddr) -> bool {
        self.known_addresses.contains(address)
    }

    /// Whether a packet of `tuple` is more likely a client's than a backend's.
    #[must_use]
    pub fn is_to_service(&self, tuple: &Tuple) -> bool {
        self.frontends.contains(&tuple.destination)
    }
}

/// What outlives every ruleset: identities of services, numbers of backends, and removed backends that flows still hold.
#[derive(Debug)]
pub struct Registry {
    lanes: usize,
    last_id: u64,
    removed: HashMap<(String, Endpoint), Weak<Backend>>,
}

impl Registry {
    /// An empty registry for `lanes` workers.
    #[must_use]
    pub fn new(lanes: usize) -> Self {
        Self {
            lanes,
            last_id: 0,
            removed: HashMap::new(),
        }
    }

    /// Turns a policy into a ruleset. What `previous` had in common with it goes on: counters, loads, and the place
    /// of each scheduler. No packet may be judged meanwhile, since weights take effect at once.
    pub fn build(&mut self, policy: Arc<Policy>, previous: Option<&Ruleset>) -> Ruleset {
        let former: HashMap<&str, &Arc<Service>> = previous.map_or_else(HashMap::new, |ruleset| {
            let services = ruleset.services.iter();
            services
                .map(|service| (service.identity.name.as_str(), service))
                .collect()
        });
        let unchanged = Unchanged::between(previous, &policy);
        let build_service = |spec: &ServiceSpec| match former.get(spec.name.as_str()) {
            Some(service) if unchanged.contains(spec) => Arc::clone(service),
            known => {
                let old = known.copied().zip(unchanged.former.get(spec.name.as_str()).copied());
                Arc::new(self.build_service(&policy, spec, old))
            }
        };
        let services: Vec<Arc<Service>> = policy.services.iter().map(build_service).collect();
        self.bury(previous, &services);
        let matcher = build_matcher(&policy, &services, previous, self.lanes);
        let frontends: HashSet<Endpoint, RandomState> = services
            .iter()
            .flat_map(|service| service.endpoints.iter().copied())
            .collect();
        let backends = services.iter().flat_map(|service| service.backends.iter());
        let known_addresses = backends.map(|backend| backend.address.address);
        Ruleset {
            known_addresses: known_addresses
                .chain(frontends.iter().map(|endpoint| endpoint.address))
                .collect(),
            node_addresses: policy.node_addresses.iter().copied().collect(),
            policy,
            matcher,
            services,
            frontends,
        }
    }

    fn build_service(
        &mut self,
        policy: &Policy,
        spec: &ServiceSpec,
        old: Option<(&Arc<Service>, &ServiceSpec)>,
    ) -> Service {
        let known = old.map(|(service, _)| service);
        let identity = match known {
            Some(service) => Arc::clone(&service.identity),
            None => Arc::new(ServiceIdentity {
                id: self.next_id(),
                name: spec.name.clone(),
                stats: Stats::new(self.lanes),
            }),
        };
        let former: HashMap<Endpoint, &Arc<Backend>> = known.map_or_else(HashMap::new, |service| {
            service
                .backends
                .iter()
                .map(|backend| (backend.address, backend))
                .collect()
        });
        let backends = spec.backends.iter().map(|wanted| {
            let revived = former.get(&wanted.address).map(|backend| Arc::clone(backend));
            let revived = revived.or_else(|| self.exhume(&identity, wanted.address));
            let Some(backend) = revived else {
                return Arc::new(Backend::new(self.next_id(), wanted, Arc::clone(&identity), self.lanes));
            };
            backend.configure(wanted);
            backend
        });
        let backends: Vec<Arc<Backend>> = backends.collect();
        backends
            .iter()
            .for_each(|backend| backend.set_one_packet(spec.one_packet));
        let kind = policy.scheduler_of(spec);
        Service {
            scheduler: Mutex::new(continue_scheduler(policy, spec, old, &backends)),
            identity,
            protocol: spec.protocol,
            endpoints: spec.endpoints(&policy.node_addresses).collect(),
            backends,
            kind,
            flags: spec.flags,
            persistence: spec.persistence,
            one_packet: spec.one_packet,
        }
    }

    const fn next_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }

    /// Marks backends that are in `previous` but not in `services` as removed, and remembers them for their return.
    fn bury(&mut self, previous: Option<&Ruleset>, services: &[Arc<Service>]) {
        self.removed.retain(|_, backend| backend.strong_count() > 0);
        let Some(previous) = previous else { return };
        let kept: HashSet<u64> = services
            .iter()
            .flat_map(|service| service.backends.iter().map(|backend| backend.id))
            .collect();
        let all = previous.services.iter().flat_map(|service| &service.backends);
        for backend in all.filter(|backend| !kept.contains(&backend.id)) {
            backend.remove();
            let key = (backend.service.name.clone(), backend.address);
            self.removed.insert(key, Arc::downgrade(backend));
        }
    }

    /// A removed backend that flows still hold. A service that came back after its own removal has a new identity,
    /// and its flows of old keep counting for the old one.
    fn exhume(&mut self, identity: &Arc<ServiceIdentity>, address: Endpoint) -> Option<Arc<Backend>> {
        let backend = self.removed.remove(&(identity.name.clone(), address))?.upgrade()?;
        Arc::ptr_eq(&backend.service, identity).then_some(backend)
    }
}

/// The services whose runtime state can stay as it is.
struct Unchanged<'a> {
    former: HashMap<&'a str, &'a ServiceSpec>,
    same_surroundings: bool,
}

impl<'a> Unchanged<'a> {
    fn between(previous: Option<&'a Ruleset>, policy: &Policy) -> Self {
        let Some(old) = previous.map(|ruleset| &*ruleset.policy) else {
            return Self {
                former: HashMap::new(),
                same_surroundings: false,
            };
        };
        Self {
            former: old.services.iter().map(|spec| (spec.name.as_str(), spec)).collect(),
            same_surroundings: old.mode == policy.mode
                && old.scheduler == policy.scheduler
                && old.node_addresses == policy.node_addresses,
        }
    }

    fn contains(&self, spec: &ServiceSpec) -> bool {
        self.same_surroundings && self.former.get(spec.name.as_str()).is_some_and(|old| *old == spec)
    }
}

fn continue_scheduler(
    policy: &Policy,
    spec: &ServiceSpec,
    old: Option<(&Arc<Service>, &ServiceSpec)>,
    backends: &[Arc<Backend>],
) -> Scheduler {
    let kind = policy.scheduler_of(spec);
    let same = old.filter(|(service, _)| service.kind == kind && service.flags == spec.flags);
    let Some((service, former)) = same else {
        return Scheduler::new(kind, spec.flags, backends);
    };
    let mut scheduler = service.scheduler.lock().clone();
    if former.backends != spec.backends {
        scheduler.backends_changed(&service.backends, backends);
    }
    scheduler
}

fn build_matcher(policy: &Policy, services: &[Arc<Service>], previous: Option<&Ruleset>, lanes: usize) -> Matcher {
    match policy.mode {
        Mode::Ipvs => Matcher::VirtualServers(VirtualServers::new(services)),
        Mode::Iptables => {
            let former = match previous.map(|ruleset| &ruleset.matcher) {
                Some(Matcher::Rules(rules)) => Some(rules),
                Some(Matcher::VirtualServers(_)) | None => None,
            };
            Matcher::Rules(RuleList::new(&policy.rules, services, former, lanes))
        }
    }
}
