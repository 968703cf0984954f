//! The change that a large cluster sees all the time: the services stay, and backends of a few come and go. It costs what
//! these cost, however many there are.
//!
//! With 10,000 services of 10 backends each, on two shared cores: a backend is added by a command in 3 to 7 ms where it took
//! 300, and SIGHUP takes over a file with one other backend in 25 to 65 ms where it took 300 to 480. `cargo bench --bench
//! reload` shows the steps.
use std::collections::BTreeSet;

use lbd_core::flow::{Endpoint, Protocol};
use lbd_core::policy::{Nat, Policy, ServiceSpec, common};
use lbd_net::plumbing::Plan;

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

/// Whether many backends, or as many addresses, are left without some.
pub(super) fn are_many_without(plan: &Plan, gone: &Plan) -> bool {
    plan.replies.len() >= MANY + gone.replies.len() || plan.routes.len() >= MANY + gone.routes.len()
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

#[cfg(test)]
mod tests {
    use super::*;
    use lbd_state::config::parse;

    /// As many services as make it worth while, `first` the backends of the first one.
    fn policy(head: &str, first: &str) -> Policy {
        let service = |n: usize| {
            let backends = match n {
                0 => first.to_owned(),
                _ => format!("{{ address = \"10.2.{}.{}:80\" }}", n >> 8, n & 255),
            };
            let address = format!("10.96.{}.{}:80", n >> 8, n & 255);
            format!(
                "[[services]]\nname = \"s{n}\"\nprotocol = \"tcp\"\naddress = \"{address}\"\nbackends = [{backends}]\n"
            )
        };
        let services: String = (0..=MANY).map(service).collect();
        parse("test", &format!("{head}{services}")).unwrap().config.policy
    }

    fn between(old: &Policy, new: &Policy) -> Option<Turnover> {
        Turnover::between(old, new, &Plan::new(old, &[]).unwrap())
    }

    fn texts(replies: &Replies) -> Vec<String> {
        replies.iter().map(|(_, backend)| backend.to_string()).collect()
    }

    #[test]
    fn backends_come_and_go_unless_another_service_has_them_too() {
        let old = policy("", "{ address = \"10.3.0.1:80\" }, { address = \"10.2.0.7:80\" }");
        let new = policy("", "{ address = \"10.3.0.2:80\" }, { address = \"10.2.0.8:80\" }");
        let turnover = between(&old, &new).unwrap();
        assert_eq!(turnover.places, [0]);
        assert_eq!(texts(&turnover.come), ["10.3.0.2:80"], "10.2.0.8 is there for s8");
        assert_eq!(texts(&turnover.gone), ["10.3.0.1:80"], "10.2.0.7 stays for s7");
    }

    #[test]
    fn another_weight_brings_and_takes_nobody() {
        let old = policy("", "{ address = \"10.3.0.1:80\" }");
        let new = policy("", "{ address = \"10.3.0.1:80\", weight = 3 }");
        let turnover = between(&old, &new).unwrap();
        assert_eq!(
            (turnover.places.len(), turnover.come.len(), turnover.gone.len()),
            (1, 0, 0)
        );
    }

    #[test]
    fn what_changes_more_than_backends_is_no_turnover() {
        let old = policy("", "{ address = \"10.3.0.1:80\" }");
        let other_key = {
            let mut policy = old.clone();
            std::sync::Arc::make_mut(&mut policy.services[3]).node_port = Some(30_080);
            policy
        };
        let fewer = Policy {
            services: old.services[1..].to_vec(),
            ..old.clone()
        };
        let another_mode = policy("mode = \"iptables\"\n", "{ address = \"10.3.0.1:80\" }");
        for new in [&old, &other_key, &fewer, &another_mode] {
            assert!(between(&old, new).is_none());
        }
    }

    #[test]
    fn among_few_backends_all_are_compared() {
        let few = |first| {
            let mut policy = policy("", first);
            policy.services.truncate(2);
            policy
        };
        let (old, new) = (few("{ address = \"10.3.0.1:80\" }"), few(""));
        assert!(between(&old, &new).is_none());
    }
}
