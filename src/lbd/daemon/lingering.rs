//! What is in the kernel beyond the plan, and which flows still need it there (`on_backend_removed = "preserve"`).
//!
//! A flow needs the route or local port of the address that its client asked, and the rule for what its backend answers. A
//! backend counts its flows, so what removed services and backends leave behind is told by their counts, at the cost of what
//! was removed. All addresses of a removed service are kept as long as any of its flows lives.
//!
//! Counts do not tell which of its addresses a service's flows use that is still there, and who uses an old pool, an old
//! address of this host, or the destination of an old rule. For these alone the table is looked through ([`Query`]), by
//! whoever has time, with no lock held; `LEAST_PAUSE` and `SHARE` say how often.
use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::{Arc, Weak};
use std::time::Duration;

use ahash::RandomState;
use ipnet::IpNet;

use lbd_core::conntrack::connection::Connection;
use lbd_core::flow::{Endpoint, Protocol};
use lbd_core::matcher::rules::Action;
use lbd_core::policy::{Mode, Policy};
use lbd_core::service::{Backend, Service};
use lbd_core::time::Instant;
use lbd_net::plumbing::{Cover, Plan};

type Set<T> = HashSet<T, RandomState>;
type Map<K, V> = HashMap<K, V, RandomState>;
/// An address and port of a service, or of a backend.
type Place = (Protocol, Endpoint);

/// Between two looks through the table.
const LEAST_PAUSE: Duration = Duration::from_secs(2);
/// The table is looked through for at most a hundredth of the time.
const SHARE: u32 = 100;

/// A backend that has left the configuration; flows may hold it.
#[derive(Debug)]
struct Removed {
    backend: Weak<Backend>,
    service: u64,
    place: Place,
}

impl Removed {
    fn has_flows(&self) -> bool {
        let backend = self.backend.upgrade();
        backend.is_some_and(|backend| backend.active() > 0 || backend.inactive() > 0)
    }
}

/// Addresses that a service does not have any more.
#[derive(Debug, Default)]
struct Lost {
    places: Set<Place>,
    /// Whether the service itself is still there.
    is_configured: bool,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Lingering {
    surplus: Plan,
    /// The part of the surplus of which counts do not tell.
    untold: Plan,
    /// Changes with every change of the surplus but for its removal.
    epoch: u64,
    /// When the table may be looked through again.
    next_look: Option<Instant>,
    /// By their numbers.
    backends: Map<u64, Removed>,
    /// By the numbers of the services.
    lost: Map<u64, Lost>,
}

impl Lingering {
    /// Takes note of services that changed: `before` and `after` are all there were and are, or those of some places.
    pub fn follow(&mut self, before: &[Arc<Service>], after: &[Arc<Service>]) {
        let (before, after) = different(before, after);
        let present: Set<u64> = after
            .iter()
            .flat_map(|service| &service.backends)
            .map(|backend| backend.id)
            .collect();
        let former = before.iter().flat_map(|service| {
            let protocol = service.protocol;
            service.backends.iter().map(move |backend| (protocol, backend))
        });
        for (protocol, backend) in former.filter(|(_, backend)| !present.contains(&backend.id)) {
            let removed = Removed {
                backend: Arc::downgrade(&backend.backend),
                service: backend.service.id,
                place: (protocol, backend.address),
            };
            self.backends.insert(backend.id, removed);
        }
        // Batches that are under way may still open flows to them.
        self.backends.retain(|id, _| !present.contains(id));
        self.lose(&before, &after);
    }

    fn lose(&mut self, before: &[&Arc<Service>], after: &[&Arc<Service>]) {
        for service in before {
            let lost = self.lost.entry(service.identity.id).or_default();
            lost.places.extend(places(service));
            lost.is_configured = false;
        }
        for service in after {
            if let Some(lost) = self.lost.get_mut(&service.identity.id) {
                lost.is_configured = true;
                for place in places(service) {
                    lost.places.remove(&place);
                }
            }
        }
        self.lost.retain(|_, lost| !lost.places.is_empty());
    }

    /// `surplus` is in the kernel beyond what the policy `now` needs, to which `services` belong; `former` was the one before.
    /// [`Self::follow`] has been told already.
    pub fn set(&mut self, surplus: Plan, former: &Policy, now: &Policy, services: &[Arc<Service>]) {
        self.epoch += 1;
        self.next_look = None;
        self.surplus = surplus;
        self.forget_lost();
        if self.is_empty() {
            self.untold = Plan::default();
            return;
        }
        // Rules lead other addresses to a service than its own.
        let by_rules = leads_by_rules(former) || leads_by_rules(now) || !self.surplus.diverted.is_empty();
        let untold = if by_rules {
            self.surplus.clone()
        } else {
            self.untold_of(services)
        };
        self.untold = Plan {
            // They are of no flow.
            served: BTreeSet::new(),
            ..untold
        };
    }

    /// Forgets what services have lost that are gone, where nobody will ask.
    fn forget_lost(&mut self) {
        let with_flows: Set<u64> = self.backends.values().map(|removed| removed.service).collect();
        let Plan {
            routes, local_ports, ..
        } = &self.surplus;
        let is_in_kernel =
            |place: &Place| routes.contains(&IpNet::from(place.1.address)) || local_ports.contains(place);
        self.lost
            .retain(|id, lost| lost.is_configured || with_flows.contains(id) || lost.places.iter().any(is_in_kernel));
    }

    fn untold_of(&self, services: &[Arc<Service>]) -> Plan {
        let surplus = &self.surplus;
        let owned = |is_configured| {
            let lost = self
                .lost
                .values()
                .filter(move |lost| lost.is_configured == is_configured);
            lost.flat_map(|lost| lost.places.iter().copied())
        };
        let (gone, shared): (Set<Place>, Set<Place>) = (owned(false).collect(), owned(true).collect());
        let hosts = |places: &Set<Place>| -> Set<IpNet> {
            places.iter().map(|(_, endpoint)| endpoint.address.into()).collect()
        };
        let (gone_hosts, shared_hosts) = (hosts(&gone), hosts(&shared));
        let is_told = |route: &&IpNet| gone_hosts.contains(*route) && !shared_hosts.contains(*route);
        // Masqueraded otherwise than before, or of another protocol.
        let hidden: Set<Endpoint> = surplus.replies.iter().map(|&(_, endpoint)| endpoint).collect();
        let configured = services.iter().flat_map(|service| &service.backends);
        let shown: Set<Endpoint> = match hidden.is_empty() {
            true => Set::default(),
            false => configured
                .map(|backend| backend.address)
                .filter(|address| hidden.contains(address))
                .collect(),
        };
        Plan {
            routes: surplus.routes.iter().filter(|route| !is_told(route)).copied().collect(),
            local_ports: {
                let is_told = |place: &&Place| gone.contains(*place) && !shared.contains(*place);
                surplus
                    .local_ports
                    .iter()
                    .filter(|place| !is_told(place))
                    .copied()
                    .collect()
            },
            replies: surplus
                .replies
                .iter()
                .filter(|(_, endpoint)| shown.contains(endpoint))
                .copied()
                .collect(),
            ..surplus.clone()
        }
    }

    /// The services have the addresses that they had, and these backends come and go.
    pub fn turn_over(&mut self, come: &BTreeSet<Place>, gone: &BTreeSet<Place>) {
        self.epoch += 1;
        for reply in come {
            self.surplus.replies.remove(reply);
            self.untold.replies.remove(reply);
        }
        self.surplus.replies.extend(gone);
    }

    fn is_empty(&self) -> bool {
        self.surplus == Plan::default()
    }

    /// What no flow needs any more, as far as counts tell.
    #[must_use]
    pub fn unneeded(&mut self) -> Plan {
        self.backends.retain(|_, removed| removed.has_flows());
        if self.is_empty() {
            return Plan::default();
        }
        let services: Set<u64> = self.backends.values().map(|removed| removed.service).collect();
        let replies: Set<Place> = self.backends.values().map(|removed| removed.place).collect();
        let living = self.lost.iter().filter(|(id, _)| services.contains(id));
        let places: Set<Place> = living.flat_map(|(_, lost)| lost.places.iter().copied()).collect();
        let hosts: Set<IpNet> = places.iter().map(|(_, endpoint)| endpoint.address.into()).collect();
        let Plan {
            routes,
            local_ports,
            replies: led,
            served,
            ..
        } = &self.surplus;
        let untold = &self.untold;
        let without_route = routes
            .difference(&untold.routes)
            .filter(|route| !hosts.contains(*route));
        let without_port = local_ports.difference(&untold.local_ports);
        let without_reply = led.difference(&untold.replies);
        Plan {
            routes: without_route.copied().collect(),
            local_ports: without_port.filter(|place| !places.contains(*place)).copied().collect(),
            replies: without_reply
                .filter(|reply| !replies.contains(*reply))
                .copied()
                .collect(),
            served: served.clone(),
            ..Plan::default()
        }
    }

    /// This is in the kernel no more.
    pub fn forget(&mut self, gone: &Plan) {
        self.surplus = difference(&self.surplus, gone);
        self.untold = difference(&self.untold, gone);
    }

    /// What to look through the table for, if it is time to.
    #[must_use]
    pub fn query(&self, now: Instant) -> Option<Query> {
        let is_time = self.next_look.is_none_or(|time| time <= now);
        (is_time && self.untold != Plan::default()).then(|| Query::new(self.untold.clone(), self.epoch))
    }

    /// What no flow needs, by a look through the table that took from `start` to `end`.
    #[must_use]
    pub fn answered(&mut self, query: Query, start: Instant, end: Instant) -> Plan {
        self.next_look = Some(end + LEAST_PAUSE.max((end - start) * SHARE));
        // What has changed meanwhile may have come back, and gone again with flows that were not seen.
        match query.epoch == self.epoch {
            true => query.missing,
            false => Plan::default(),
        }
    }
}

/// Those of two lists that are not in both.
fn different<'s>(
    before: &'s [Arc<Service>],
    after: &'s [Arc<Service>],
) -> (Vec<&'s Arc<Service>>, Vec<&'s Arc<Service>>) {
    let known = |services: &'s [Arc<Service>]| -> Set<*const Service> { services.iter().map(Arc::as_ptr).collect() };
    let (had, has) = (known(before), known(after));
    let gone = before.iter().filter(|service| !has.contains(&Arc::as_ptr(service)));
    let come = after.iter().filter(|service| !had.contains(&Arc::as_ptr(service)));
    (gone.collect(), come.collect())
}

fn places(service: &Service) -> impl Iterator<Item = Place> + '_ {
    service.endpoints.iter().map(|&endpoint| (service.protocol, endpoint))
}

fn leads_by_rules(policy: &Policy) -> bool {
    let mut actions = policy.rules.iter().map(|rule| &rule.action);
    policy.mode == Mode::Iptables && actions.any(|action| matches!(action, Action::Service(_)))
}

/// The part of `before` that `after` lacks.
#[must_use]
pub fn difference(before: &Plan, after: &Plan) -> Plan {
    Plan {
        routes: before.routes.difference(&after.routes).copied().collect(),
        local_ports: before.local_ports.difference(&after.local_ports).copied().collect(),
        replies: before.replies.difference(&after.replies).copied().collect(),
        served: before.served.difference(&after.served).cloned().collect(),
        masqueraded: before.masqueraded.difference(&after.masqueraded).copied().collect(),
        diverted: before.diverted.difference(&after.diverted).copied().collect(),
        diverted_locally: before
            .diverted_locally
            .difference(&after.diverted_locally)
            .copied()
            .collect(),
        ..Plan::default()
    }
}

/// `plan` without what of it is `gone`.
#[must_use]
pub fn without(plan: &Plan, gone: &Plan) -> Plan {
    Plan {
        own: plan.own.clone(),
        returns_errors: plan.returns_errors,
        ..difference(plan, gone)
    }
}

/// Whether nothing but routes and what leads replies is in it.
#[must_use]
pub fn is_only_of_routes_and_replies(plan: &Plan) -> bool {
    let Plan {
        routes: _,
        replies: _,
        local_ports,
        served,
        masqueraded,
        diverted,
        diverted_locally,
        own: _,
        returns_errors: _,
    } = plan;
    let covers = [masqueraded, diverted, diverted_locally];
    local_ports.is_empty() && served.is_empty() && covers.iter().all(|covers| covers.is_empty())
}

/// A search for flows that need something of a plan.
#[derive(Debug)]
pub struct Query {
    epoch: u64,
    /// What no flow has needed so far.
    missing: Plan,
    routes: Set<IpAddr>,
    /// Routes to more than one host: those of pools.
    prefixes: Vec<IpNet>,
    local_ports: Set<Place>,
    replies: Set<Place>,
}

impl Query {
    fn new(plan: Plan, epoch: u64) -> Self {
        let (hosts, prefixes): (Vec<IpNet>, Vec<IpNet>) = plan
            .routes
            .iter()
            .partition(|route| route.prefix_len() == route.max_prefix_len());
        Self {
            epoch,
            routes: hosts.iter().map(IpNet::addr).collect(),
            prefixes,
            local_ports: plan.local_ports.iter().copied().collect(),
            replies: plan.replies.iter().copied().collect(),
            missing: plan,
        }
    }

    /// Whether every part is needed: there is no use in looking on.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.missing == Plan::default()
    }

    /// Takes note of what `flow` needs to come to lbd.
    pub fn see(&mut self, flow: &Connection) {
        let asked = (flow.protocol, flow.virtual_address);
        let all_ports = (flow.protocol, Endpoint::new(flow.virtual_address.address, 0));
        for place in [asked, all_ports] {
            if self.local_ports.remove(&place) {
                self.missing.local_ports.remove(&place);
            }
        }
        let reply = (flow.protocol, flow.backend.address);
        if self.replies.remove(&reply) {
            self.missing.replies.remove(&reply);
        }
        for address in [flow.virtual_address.address, flow.source.address] {
            if self.routes.remove(&address) {
                self.missing.routes.remove(&IpNet::from(address));
            }
            let Self { prefixes, missing, .. } = self;
            for prefix in prefixes.extract_if(.., |prefix| prefix.contains(&address)) {
                missing.routes.remove(&prefix);
            }
        }
        let leads_here = |cover: &Cover| cover.contains(flow.protocol, flow.virtual_address);
        self.missing.diverted.retain(|cover| !leads_here(cover));
        self.missing.diverted_locally.retain(|cover| !leads_here(cover));
        let stands_for = |cover: &Cover| cover.contains(flow.protocol, flow.source);
        self.missing.masqueraded.retain(|cover| !stands_for(cover));
    }
}

#[cfg(test)]
mod tests;
