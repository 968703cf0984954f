//! What of an old plan must stay in the kernel because flows still need it.
use std::net::IpAddr;

use ipnet::IpNet;

use crate::conntrack::connection::Connection;
use crate::flow::Endpoint;
use crate::plumbing::{Cover, Plan};

/// The part of `before` that `after` lacks.
pub(super) fn gone(before: &Plan, after: &Plan) -> Plan {
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

/// Whether nothing but what leads replies is in it.
pub(super) fn is_only_of_replies(plan: &Plan) -> bool {
    let Plan {
        routes,
        local_ports,
        replies: _,
        served,
        masqueraded,
        diverted,
        diverted_locally,
        own: _,
        returns_errors: _,
    } = plan;
    let covers = [masqueraded, diverted, diverted_locally];
    routes.is_empty() && local_ports.is_empty() && served.is_empty() && covers.iter().all(|covers| covers.is_empty())
}

/// Adds to `kept` what of `plan` the packets of `flow` need to come to lbd.
pub(super) fn keep(kept: &mut Plan, plan: &Plan, flow: &Connection) {
    let local = (flow.protocol, flow.virtual_address);
    let all_ports = (flow.protocol, Endpoint::new(flow.virtual_address.address, 0));
    let reply = (flow.protocol, flow.backend.address);
    kept.local_ports.extend(plan.local_ports.get(&local));
    kept.local_ports.extend(plan.local_ports.get(&all_ports));
    kept.replies.extend(plan.replies.get(&reply));
    let leads_here = |cover: &&Cover| cover.contains(flow.protocol, flow.virtual_address);
    kept.diverted.extend(plan.diverted.iter().filter(leads_here));
    kept.diverted_locally
        .extend(plan.diverted_locally.iter().filter(leads_here));
    let stands_for = |cover: &&Cover| cover.contains(flow.protocol, flow.source);
    kept.masqueraded.extend(plan.masqueraded.iter().filter(stands_for));
    for address in [flow.virtual_address.address, flow.source.address] {
        kept.routes.extend(covering(plan, address));
    }
}

fn covering(plan: &Plan, address: IpAddr) -> impl Iterator<Item = IpNet> + '_ {
    // A host route is found at once; what is left are the few prefixes of the pool.
    let host = plan.routes.get(&IpNet::from(address)).copied();
    let is_prefix = |route: &&IpNet| route.prefix_len() < route.max_prefix_len();
    let prefixes = plan.routes.iter().filter(is_prefix).copied();
    host.into_iter()
        .chain(prefixes.filter(move |route| route.contains(&address)))
}
