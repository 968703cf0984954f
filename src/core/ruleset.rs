//! A policy made ready for packets: the matcher built, services joined to the backends and counters they had before.
//!
//! A new ruleset shares with the former one what has not changed, so that a change costs little among many services.
//!
//! All of it is built while packets are judged by the former one: weights are the ruleset's own ([`Member`]), schedulers share
//! what they remember with those before, and what flows ask their backends is told by [`Generation`]. So to put it into effect is
//! to change a pointer.
mod addresses;
mod former;

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::{Arc, Weak};

use ahash::RandomState;

use self::addresses::Addresses;
use self::former::Former;
use crate::flow::{Direction, Endpoint, Key, Tuple};
use crate::matcher::{Difference, Match, Matcher};
use crate::nat::Pool;
use crate::packet::{Headers, refusal};
use crate::policy::{Mode, Policy, ServiceSpec};
use crate::scheduler::{Flags, Kind, Rng, Scheduler};
use crate::service::{Backend, Generation, Member, Service, ServiceIdentity};
use crate::shadow::Shadow;
use crate::time::Instant;

/// With fewer services all that new flows need of them stays in the near caches.
const NEAR: usize = 256;

/// So many new flows are looked ahead for: a batch of a device.
const AHEAD: usize = 64;

/// So many backends of a service are looked at ahead of the scheduler: with more of them most would be fetched in vain.
const CANDIDATES: usize = 4;

/// What packets are judged by.
#[derive(Debug)]
pub struct Ruleset {
    /// Which one it is.
    pub generation: Generation,
    /// What it was made from.
    pub policy: Arc<Policy>,
    /// The matcher of the mode.
    pub matcher: Matcher,
    /// The other mode's matcher, with `shadow = true`.
    pub shadow: Option<Shadow>,
    /// In the order of the configuration.
    pub services: Vec<Arc<Service>>,
    /// The masquerade pool.
    pub pool: Pool,
    local_addresses: HashSet<IpAddr, RandomState>,
    known_addresses: Addresses,
}

impl Ruleset {
    fn new(
        generation: Generation,
        policy: Arc<Policy>,
        (matcher, shadow): (Matcher, Option<Shadow>),
        services: Vec<Arc<Service>>,
        known_addresses: Addresses,
    ) -> Self {
        let local = policy.node_addresses.iter().chain(&policy.local_addresses);
        Self {
            generation,
            known_addresses,
            local_addresses: local.copied().collect(),
            pool: Pool::new(&policy.nat.pool),
            policy,
            matcher,
            shadow,
            services,
        }
    }

    /// What a packet without a flow is, and with a shadow whether the other mode would say the same.
    pub fn find(
        &self,
        headers: &Headers,
        tuple: Option<&Tuple>,
        rng: &mut Rng,
        lane: usize,
        now: Instant,
    ) -> Match<'_> {
        let found = self.matcher.find(headers, tuple, rng, lane);
        if let Some(shadow) = &self.shadow {
            shadow.compare((&self.matcher, found), headers, tuple, lane, now);
        }
        found
    }

    /// Whether there are so many services that most lie far from the CPU.
    #[must_use]
    pub const fn is_far(&self) -> bool {
        self.services.len() >= NEAR
    }

    /// Has the CPU fetch what packets of these keys that open flows will need. Each of a dozen reads of a service out of many
    /// waits for the memory, and here those of a batch wait side by side.
    pub fn prefetch(&self, keys: &[Key], lane: usize) {
        let mut found = [None; AHEAD];
        for (place, key) in found.iter_mut().zip(keys) {
            *place = self.matcher.prefetch(&Tuple::from(*key), lane);
            place.inspect(|service| service.prefetch());
        }
        let services = || found.iter().copied().flatten();
        let backends = || services().flat_map(|service| service.backends.iter().take(CANDIDATES));
        services().for_each(|service| service.prefetch_list(CANDIDATES));
        backends().for_each(|backend| backend.prefetch());
        backends().for_each(|backend| backend.prefetch_stats(lane));
    }

    /// The matcher of a mode, if it is there.
    fn matcher_of(&self, mode: Mode) -> Option<&Matcher> {
        let shadow = self.shadow.as_ref().map(Shadow::matcher);
        [Some(&self.matcher), shadow]
            .into_iter()
            .flatten()
            .find(|matcher| matcher.mode() == mode)
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

    /// Whether the address is a service's and no interface's of this host.
    #[must_use]
    pub fn is_virtual(&self, address: &IpAddr) -> bool {
        self.known_addresses.is_service(address) && !self.is_local(address)
    }

    /// Whether the sender of a packet may be a client: a single host, and no service of lbd's. Otherwise a datagram with a forged
    /// sender would go from one service's backend to the other's for ever. Linux drops both before IPVS sees them
    /// (`ip_route_input_slow`, net/ipv4/route.c), where service addresses are its own.
    #[must_use]
    pub fn may_ask(&self, tuple: &Tuple) -> bool {
        let (sender, asked) = (tuple.source.address, tuple.reply());
        // Of the host's own addresses only these very ports are services'.
        let is_service = self.known_addresses.is_service(&sender)
            && (self.matcher.is_address(&asked)
                || !self.is_local(&sender) && self.matcher.is_address_of_all_ports(&asked));
        refusal::is_one_host(sender.into()) && !is_service
    }

    /// Whether a packet of `key` is more likely a client's or a backend's.
    #[must_use]
    pub fn likely(&self, key: &Key) -> Direction {
        match self.matcher.is_address(&Tuple::from(*key)) {
            true => Direction::Original,
            false => Direction::Reply,
        }
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
    /// How many identities and removed backends there may be before those that nobody holds are looked for.
    purge_at: (usize, usize),
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
            purge_at: (0, 0),
        }
    }

    /// Makes a ruleset of a policy. What `previous` has in common with it goes on: counters, loads, and the place of each
    /// scheduler. Nothing that packets are judged by changes before [`Prepared::commit`]; it must come before the next
    /// preparation.
    pub fn prepare(&mut self, policy: Arc<Policy>, previous: Option<&Ruleset>) -> Prepared {
        let generation = previous
            .map_or_else(Generation::default, |previous| previous.generation)
            .next();
        let former = Former::of(previous, &policy);
        let mut changes = Vec::new();
        let mut thresholds = Vec::new();
        let services: Vec<Arc<Service>> = policy
            .services
            .iter()
            .enumerate()
            .map(|(place, spec)| match former.find(place, spec) {
                Some((service, old)) if former.is_unchanged(spec, old) => Arc::clone(service),
                known => {
                    let before = known.map(|(service, old)| (service, old.backends != spec.backends));
                    let service = self.build_service(&policy, spec, before, previous.is_some());
                    configure(&service, spec, generation, &mut thresholds);
                    let service = Arc::new(service);
                    changes.push(Change {
                        place,
                        service: Arc::clone(&service),
                        before: known.map(|(service, _)| Arc::clone(service)),
                    });
                    service
                }
            })
            .collect();
        let difference = difference(&former, &services, &changes);
        self.bury(&difference, generation);
        let lanes = self.lanes;
        let matcher = |mode| match previous.and_then(|previous| previous.matcher_of(mode)) {
            Some(former) => former.changed(&policy, &services, &difference, lanes),
            None => Matcher::new(mode, &policy, &services, lanes),
        };
        let known = previous.map(|previous| previous.known_addresses.changed(&difference));
        let known = known.unwrap_or_else(|| Addresses::of(&services));
        let shadow = policy.shadow.then(|| {
            let former = previous.and_then(|previous| previous.shadow.as_ref());
            Shadow::new(matcher(policy.mode.other()), former, lanes)
        });
        let matchers = (matcher(policy.mode), shadow);
        Prepared {
            ruleset: Ruleset::new(generation, policy, matchers, services, known),
            thresholds,
        }
    }

    /// `before` is the service as it was, and whether its backends are other ones, or weigh another weight, than then.
    fn build_service(
        &mut self,
        policy: &Policy,
        spec: &ServiceSpec,
        before: Option<(&Arc<Service>, bool)>,
        is_successor: bool,
    ) -> Service {
        let identity = match before {
            Some((service, _)) => Arc::clone(&service.identity),
            None => self.identity(&spec.name),
        };
        let backends = self.members(spec, &identity, before.map(|(service, _)| &**service));
        let kind = policy.scheduler_of(spec);
        let scheduler = match before {
            Some((old, changed)) if (old.kind, old.flags) == (kind, spec.flags) => {
                let mut scheduler = old.scheduler.clone();
                if changed {
                    scheduler.backends_changed(&old.backends, &backends);
                }
                scheduler
            }
            None if is_successor => added_scheduler(kind, spec.flags, &backends),
            Some(_) | None => Scheduler::new(kind, spec.flags, &backends),
        };
        Service {
            scheduler,
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

    fn members(
        &mut self,
        spec: &ServiceSpec,
        identity: &Arc<ServiceIdentity>,
        before: Option<&Service>,
    ) -> Vec<Member> {
        let former: HashMap<Endpoint, &Member, RandomState> = before.map_or_else(HashMap::default, |service| {
            let members = service.backends.iter();
            members.map(|member| (member.address, member)).collect()
        });
        let members = spec.backends.iter().map(|wanted| {
            let former = former.get(&wanted.address).copied();
            let backend = former
                .map(|member| Arc::clone(&member.backend))
                .or_else(|| self.removed.remove(&(identity.id, wanted.address))?.upgrade())
                .unwrap_or_else(|| Arc::new(Backend::new(self.next_id(), wanted, Arc::clone(identity), self.lanes)));
            Member::new(backend, wanted, former)
        });
        members.collect()
    }

    fn identity(&mut self, name: &str) -> Arc<ServiceIdentity> {
        if let Some(known) = self.identities.get(name).and_then(Weak::upgrade) {
            return known;
        }
        let identity = Arc::new(ServiceIdentity::new(self.next_id(), name));
        self.identities.insert(name.to_owned(), Arc::downgrade(&identity));
        identity
    }

    const fn next_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }

    /// The backends that are no more are removed, and remembered for their return.
    fn bury(&mut self, difference: &Difference<'_>, generation: Generation) {
        self.purge();
        let backends = difference.present().flat_map(|service| &service.backends);
        let kept: HashSet<u64, RandomState> = backends.map(|backend| backend.id).collect();
        let all = difference.former().flat_map(|service| &service.backends);
        for member in all.filter(|member| !kept.contains(&member.id)) {
            member.remove(generation);
            let key = (member.service.id, member.address);
            self.removed.insert(key, Arc::downgrade(&member.backend));
        }
    }

    /// Forgets what nobody holds any more, each time there is twice as much as was left the last time.
    fn purge(&mut self) {
        let (identities, removed) = self.purge_at;
        if self.identities.len() > identities {
            self.identities.retain(|_, identity| identity.strong_count() > 0);
            self.purge_at.0 = 2 * self.identities.len();
        }
        if self.removed.len() > removed {
            self.removed.retain(|_, backend| backend.strong_count() > 0);
            self.purge_at.1 = 2 * self.removed.len();
        }
    }
}

/// What is different from the former services.
fn difference<'a>(former: &Former<'a>, services: &'a [Arc<Service>], changes: &[Change]) -> Difference<'a> {
    let moved = former.moved();
    let in_place = changes.iter().filter(|change| !moved.contains(&change.place));
    let replaced = in_place.filter_map(|change| {
        let old = change.before.as_ref()?;
        Some((Arc::clone(old), Arc::clone(&change.service)))
    });
    let (before, behind) = former.moved_and_behind();
    Difference {
        replaced: replaced.collect(),
        before,
        after: &services[moved],
        behind,
    }
}

/// Tells its backends, and who comes after them, what a service makes of them from a generation on. Collects the thresholds that
/// change.
fn configure(service: &Service, spec: &ServiceSpec, generation: Generation, thresholds: &mut Vec<Thresholds>) {
    let rule = spec.on_backend_removed;
    service.identity.set_on_backend_removed(generation, rule);
    for (member, spec) in service.backends.iter().zip(&spec.backends) {
        member.configure(generation, spec.weight, service.one_packet);
        let wanted = (spec.upper_threshold, spec.lower_threshold);
        if member.thresholds() != wanted {
            thresholds.push((Arc::clone(&member.backend), wanted));
        }
    }
}

/// A service that is new or not as it was.
#[derive(Debug)]
struct Change {
    /// In the list of services.
    place: usize,
    service: Arc<Service>,
    before: Option<Arc<Service>>,
}

/// Those that a backend gets, upper and lower.
type Thresholds = (Arc<Backend>, (u32, u32));

/// A ruleset that is ready.
#[derive(Debug)]
pub struct Prepared {
    ruleset: Ruleset,
    thresholds: Vec<Thresholds>,
}

impl Prepared {
    /// Has the ruleset put into effect by `publish`, and then the thresholds of its backends, one by one: they are not the
    /// ruleset's.
    pub fn commit<R>(self, publish: impl FnOnce(Ruleset) -> R) -> R {
        let published = publish(self.ruleset);
        for (backend, thresholds) in self.thresholds {
            backend.set_thresholds(thresholds);
        }
        published
    }
}

/// Of a service that was not there before: it begins empty, as with `ipvsadm -A`, and then has its backends.
fn added_scheduler(kind: Kind, flags: Flags, backends: &[Member]) -> Scheduler {
    let mut scheduler = Scheduler::new(kind, flags, &[]);
    scheduler.backends_changed(&[], backends);
    scheduler
}
