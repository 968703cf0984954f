//! The change that a large cluster sees all the time: the services stay, and backends of a few come and go. It costs what
//! these cost, however many there are.
use std::collections::BTreeSet;

use crate::flow::{Endpoint, Protocol};
use crate::plumbing::Plan;
use crate::policy::{Nat, Policy, ServiceSpec, common};

/// Backends, as the kernel knows them.
pub(super) type Replies = BTreeSet<(Protocol, Endpoint)>;

/// Below this many backends all can be compared, and covered exactly, in no time.
const MANY: usize = 1000;

/// See the module.
#[derive(Debug)]
pub(super) struct Turnover {
    /// Of the services whose backends are others, or weigh another weight.
    pub(super) places: Vec<usize>,
    /// Backends that were no service's.
    pub(super) come: Replies,
    /// Backends that are no service's any more.
    pub(super) gone: Replies,
}

/// Whether there are so many backends that not all are to be looked at.
pub(super) fn are_many(plan: &Plan) -> bool {
    plan.replies.len() >= MANY
}

impl Turnover {
    /// What comes and goes with a policy, where `plan` is that of the former one. None: more than backends changed, or so
    /// few are there that it is not worth while.
    pub(super) fn between(old: &Policy, new: &Policy, plan: &Plan) -> Option<Self> {
        if !are_many(plan) || !is_same_around(old, new, plan) {
            return None;
        }
        let (head, tail) = common(&old.services, &new.services);
        let mut places: Vec<usize> = (head..new.services.len() - tail).collect();
        places.retain(|&at| old.services[at] != new.services[at]);
        // Without a change, something else asks for it.
        if places.is_empty()
            || !places
                .iter()
                .all(|&at| has_same_keys(&old.services[at], &new.services[at]))
        {
            return None;
        }
        let all = |policy: &Policy| -> Replies {
            let services = places.iter().map(|&at| &policy.services[at]);
            services.flat_map(|service| Plan::replies_of(service, policy)).collect()
        };
        let (before, after) = (all(old), all(new));
        let come = after.difference(&plan.replies).copied().collect();
        let mut gone: Replies = before.difference(&after).copied().collect();
        if !gone.is_empty() {
            for service in &new.services {
                for backend in &service.backends {
                    gone.remove(&(service.protocol, backend.address));
                }
            }
        }
        Some(Self { places, come, gone })
    }
}

/// Whether all but the services is the same, and they are as many. The host's own addresses may be known for more backends.
fn is_same_around(old: &Policy, new: &Policy, plan: &Plan) -> bool {
    let Policy {
        mode,
        shadow,
        evaluation,
        scheduler,
        node_addresses,
        local_addresses,
        nat: Nat { masquerade, pool, own },
        conntrack,
        icmp,
        rules,
        services,
    } = new;
    let is_led = || match (&old.nat.own, own) {
        (None, None) => true,
        (Some(_), Some(own)) => plan.leads(own),
        (None, Some(_)) | (Some(_), None) => false,
    };
    (*mode, *shadow, *evaluation, *scheduler) == (old.mode, old.shadow, old.evaluation, old.scheduler)
        && *node_addresses == old.node_addresses
        && *local_addresses == old.local_addresses
        && (masquerade, pool) == (&old.nat.masquerade, &old.nat.pool)
        && (conntrack, icmp) == (&old.conntrack, &old.icmp)
        && *rules == old.rules
        && services.len() == old.services.len()
        && (*own == old.nat.own || is_led())
}

fn has_same_keys(old: &ServiceSpec, new: &ServiceSpec) -> bool {
    let ServiceSpec {
        name,
        protocol,
        address,
        external_addresses,
        node_port,
        scheduler,
        flags,
        persistence,
        one_packet,
        on_backend_removed,
        backends: _,
    } = new;
    (name, protocol, address) == (&old.name, &old.protocol, &old.address)
        && (external_addresses, node_port) == (&old.external_addresses, &old.node_port)
        && (scheduler, flags) == (&old.scheduler, &old.flags)
        && (persistence, one_packet) == (&old.persistence, &old.one_packet)
        && *on_backend_removed == old.on_backend_removed
}
