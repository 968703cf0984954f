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
use crate::nat::Pool;
use crate::policy::{BackendSpec, Mode, Policy, ServiceSpec};
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
    /// The masquerade pool.
    pub pool: Pool,
    local_addresses: HashSet<IpAddr, RandomState>,
    /// Service and backend addresses: a fragment from or to one of them may belong to a flow.
    known_addresses: HashSet<IpAddr, RandomState>,
    frontends: HashSet<Endpoint, RandomState>,
}

impl Ruleset {
    fn new(policy: Arc<Policy>, matcher: Matcher, services: Vec<Arc<Service>>) -> Self {
        let endpoints = services.iter().flat_map(|service| service.endpoints.iter().copied());
        let frontends: HashSet<Endpoint, RandomState> = endpoints.collect();
        let backends = services.iter().flat_map(|service| service.backends.iter());
        let known = backends.map(|backend| backend.address.address);
        let local = policy.node_addresses.iter().chain(&policy.local_addresses);
        Self {
            known_addresses: known.chain(frontends.iter().map(|endpoint| endpoint.address)).collect(),
            local_addresses: local.copied().collect(),
            pool: Pool::new(&policy.nat.pool),
            policy,
            matcher,
            services,
            frontends,
        }
    }

    /// Whether this node owns the address, so that a client at it is local.
    #[must_use]
    pub fn is_local(&self, address: &IpAddr) -> bool {
        address.is_loopback() || self.local_addresses.contains(address)
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

/// What outlives every ruleset: identities of services and removed backends that flows still hold.
#[derive(Debug)]
pub struct Registry {
    lanes: usize,
    last_id: u64,
    /// A service that comes back while flows of it live is the same service.
    identities: HashMap<String, Weak<ServiceIdentity>>,
    removed: HashMap<(u64, Endpoint), Weak<Backend>>,
}

impl Registry {
    /// An empty registry for `lanes` workers.
    #[must_use]
    pub fn new(lanes: usize) -> Self {
        Self {
            lanes,
            last_id: 0,
            identities: HashMap::new(),
            removed: HashMap::new(),
        }
    }

    /// Makes a ruleset of a policy. What `previous` has in common with it goes on: counters, loads, and the place of each
    /// scheduler. Nothing that packets are judged by changes before [`Prepared::commit`].
    pub fn prepare(&mut self, policy: Arc<Policy>, previous: Option<&Ruleset>) -> Prepared {
        let former = Former::of(previous, &policy);
        let mut changes = Vec::new();
        let services: Vec<Arc<Service>> = policy
            .services
            .iter()
            .map(|spec| match former.find(spec) {
                Some((service, old)) if former.is_unchanged(spec, old) => Arc::clone(service),
                known => {
                    let service = Arc::new(self.build_service(&policy, spec, known.map(|(service, _)| service)));
                    let before = known.map(|(service, old)| (Arc::clone(service), old.backends != spec.backends));
                    changes.push(Change {
                        service: Arc::clone(&service),
                        backends: spec.backends.clone(),
                        before,
                    });
                    service
                }
            })
            .collect();
        let gone = self.bury(previous, &services);
        let matcher = build_matcher(&policy, &services, previous, self.lanes);
        let ruleset = Ruleset::new(policy, matcher, services);
        Prepared { ruleset, changes, gone }
    }

    fn build_service(&mut self, policy: &Policy, spec: &ServiceSpec, known: Option<&Arc<Service>>) -> Service {
        let identity = match known {
            Some(service) => Arc::clone(&service.identity),
            None => self.identity(&spec.name),
        };
        let former: HashMap<Endpoint, &Arc<Backend>> = known.map_or_else(HashMap::new, |service| {
            let backends = service.backends.iter();
            backends.map(|backend| (backend.address, backend)).collect()
        });
        let backends = spec.backends.iter().map(|wanted| {
            let revived = former.get(&wanted.address).map(|backend| Arc::clone(backend));
            revived
                .or_else(|| self.removed.remove(&(identity.id, wanted.address))?.upgrade())
                .unwrap_or_else(|| Arc::new(Backend::new(self.next_id(), wanted, Arc::clone(&identity), self.lanes)))
        });
        let backends: Vec<Arc<Backend>> = backends.collect();
        let kind = policy.scheduler_of(spec);
        Service {
            scheduler: Mutex::new(Scheduler::new(kind, spec.flags, &[])),
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

    fn identity(&mut self, name: &str) -> Arc<ServiceIdentity> {
        if let Some(known) = self.identities.get(name).and_then(Weak::upgrade) {
            return known;
        }
        let identity = Arc::new(ServiceIdentity {
            id: self.next_id(),
            name: name.to_owned(),
            stats: Stats::new(self.lanes),
        });
        self.identities.insert(name.to_owned(), Arc::downgrade(&identity));
        identity
    }

    const fn next_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }

    /// The backends that are in `previous` but not in `services`, remembered for their return.
    fn bury(&mut self, previous: Option<&Ruleset>, services: &[Arc<Service>]) -> Vec<Arc<Backend>> {
        self.removed.retain(|_, backend| backend.strong_count() > 0);
        self.identities.retain(|_, identity| identity.strong_count() > 0);
        let Some(previous) = previous else { return Vec::new() };
        let backends = services.iter().flat_map(|service| &service.backends);
        let kept: HashSet<u64, RandomState> = backends.map(|backend| backend.id).collect();
        let all = previous.services.iter().flat_map(|service| &service.backends);
        let gone = all.filter(|backend| !kept.contains(&backend.id)).map(Arc::clone);
        let gone: Vec<Arc<Backend>> = gone.collect();
        for backend in &gone {
            let key = (backend.service.id, backend.address);
            self.removed.insert(key, Arc::downgrade(backend));
        }
        gone
    }
}

/// A service that is new or not as it was.
#[derive(Debug)]
struct Change {
    service: Arc<Service>,
    backends: Vec<BackendSpec>,
    /// The service as it was, and whether its backends are other ones, or weigh another weight, than before.
    before: Option<(Arc<Service>, bool)>,
}

/// A ruleset that is ready but for what takes effect at once.
#[derive(Debug)]
pub struct Prepared {
    ruleset: Ruleset,
    changes: Vec<Change>,
    gone: Vec<Arc<Backend>>,
}

impl Prepared {
    /// What it was made from.
    #[must_use]
    pub fn policy(&self) -> &Policy {
        &self.ruleset.policy
    }

    /// Gives backends their weights and schedulers their place. No packet may be judged meanwhile.
    #[must_use]
    pub fn commit(self) -> Ruleset {
        for backend in &self.gone {
            backend.remove();
        }
        for Change {
            service,
            backends,
            before,
        } in &self.changes
        {
            for (backend, spec) in service.backends.iter().zip(backends) {
                backend.configure(spec);
                backend.set_one_packet(service.one_packet);
            }
            *service.scheduler.lock() = continue_scheduler(service, before.as_ref());
        }
        self.ruleset
    }
}

fn continue_scheduler(service: &Service, before: Option<&(Arc<Service>, bool)>) -> Scheduler {
    let same = before.filter(|(old, _)| (old.kind, old.flags) == (service.kind, service.flags));
    let Some((old, other_backends)) = same else {
        return Scheduler::new(service.kind, service.flags, &service.backends);
    };
    let mut scheduler = old.scheduler.lock().clone();
    if *other_backends {
        scheduler.backends_changed(&old.backends, &service.backends);
    }
    scheduler
}

/// The services of the ruleset before, by name.
struct Former<'a> {
    services: HashMap<&'a str, (&'a Arc<Service>, &'a ServiceSpec)>,
    same_surroundings: bool,
}

impl<'a> Former<'a> {
    fn of(previous: Option<&'a Ruleset>, policy: &Policy) -> Self {
        let Some(previous) = previous else {
            return Self {
                services: HashMap::new(),
                same_surroundings: false,
            };
        };
        let old = &*previous.policy;
        let pairs = previous.services.iter().zip(&old.services);
        Self {
            services: pairs
                .map(|(service, spec)| (spec.name.as_str(), (service, spec)))
                .collect(),
            same_surroundings: old.mode == policy.mode
                && old.scheduler == policy.scheduler
                && old.node_addresses == policy.node_addresses,
        }
    }

    fn find(&self, spec: &ServiceSpec) -> Option<(&'a Arc<Service>, &'a ServiceSpec)> {
        self.services.get(spec.name.as_str()).copied()
    }

    fn is_unchanged(&self, spec: &ServiceSpec, old: &ServiceSpec) -> bool {
        self.same_surroundings && old == spec
    }
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
