//! Places of the filter table that no chain of endpoints is for: services without endpoints.
use std::collections::HashMap;

use super::endpoints::Context;
use super::frontends::{Entrances, Frontend, Place, Way};
use super::refusals::{Refusal, Refusals};
use lbd_core::flow::Protocol;

/// A service without endpoints.
#[derive(Debug)]
pub(super) struct Empty {
    pub(super) name: String,
    pub(super) v4: bool,
    /// Where it answers.
    pub(super) members: Vec<Frontend>,
    /// Those of its places that drop, and do not refuse.
    pub(super) dropping: Vec<Place>,
}

/// Of node ports without a backend on the node.
pub(super) const NOT_DROPPED: &str = "there is no backend for it on this node, and packets to it from outside are dropped: lbd leaves them to the kernel";
/// Of refusals in the filter table, which sees packets after the nat table has sent them to endpoints.
const BEFORE_IT: &str = "no packet comes here: the nat table has a way for what is sent there";

/// The services without endpoints. A place that is dropped joins its service, where that has endpoints elsewhere.
pub(super) fn sort_out(refusals: &Refusals, entrances: &mut Entrances, context: &mut Context<'_>) -> Vec<Empty> {
    let place = |frontend: &Frontend| (frontend.v4, frontend.protocol, frontend.place);
    // Whether packets get to endpoints there.
    let served = |frontend: &Frontend| (place(frontend), frontend.way.list.is_some());
    let known: HashMap<(bool, Protocol, Place), bool> = entrances.frontends.iter().map(served).collect();
    let mut chains: HashMap<(bool, Protocol, String), String> = HashMap::new();
    for frontend in &entrances.frontends {
        let name = frontend.name.clone().unwrap_or_default();
        let key = (frontend.v4, frontend.protocol, name);
        chains.entry(key).or_insert_with(|| frontend.service.clone());
    }
    let mut empty: Vec<Empty> = Vec::new();
    let mut index: HashMap<(bool, Protocol, String), usize> = HashMap::new();
    for refusal in &refusals.all {
        context.ledger.used(refusal.line);
        if let Some(served) = known.get(&(refusal.v4, refusal.protocol, refusal.place)) {
            if *served || !refusal.drops {
                context.ledger.lost(refusal.line, BEFORE_IT);
            } else if matches!(refusal.place, Place::NodePort(_)) {
                context.ledger.lost(refusal.line, NOT_DROPPED);
            }
            continue;
        }
        let name = refusal.name.clone().unwrap_or_else(|| default_name(refusal));
        let key = (refusal.v4, refusal.protocol, name);
        match chains.get(&key).filter(|_| refusal.drops) {
            Some(chain) => entrances.frontends.push(frontend(refusal, chain)),
            None => {
                let at = *index.entry(key.clone()).or_insert_with(|| {
                    empty.push(Empty {
                        name: key.2,
                        v4: refusal.v4,
                        members: Vec::new(),
                        dropping: Vec::new(),
                    });
                    empty.len() - 1
                });
                empty[at].members.push(frontend(refusal, ""));
                empty[at].dropping.extend(refusal.drops.then_some(refusal.place));
            }
        }
    }
    empty.into_iter().map(|service| on_one_port(service, context)).collect()
}

fn default_name(refusal: &Refusal) -> String {
    match refusal.place {
        Place::At(endpoint) => format!("{} {endpoint}", refusal.protocol),
        Place::NodePort(port) => format!("{} node port {port}", refusal.protocol),
    }
}

fn frontend(refusal: &Refusal, chain: &str) -> Frontend {
    Frontend {
        place: refusal.place,
        protocol: refusal.protocol,
        v4: refusal.v4,
        external: refusal.external,
        way: Way::default(),
        name: refusal.name.clone(),
        service: chain.to_owned(),
        line: refusal.line,
    }
}

/// All addresses of a service have the port of the first, and there is one.
fn on_one_port(mut empty: Empty, context: &mut Context<'_>) -> Empty {
    let port = empty.members.iter().find_map(|member| Some(member.address()?.port));
    let fits = |member: &Frontend| port.is_some() && member.address().is_none_or(|at| Some(at.port) == port);
    let (members, others): (Vec<Frontend>, Vec<Frontend>) = empty.members.into_iter().partition(fits);
    for other in others {
        let why = "a service has an address, and the same port at all of its addresses";
        context.ledger.lost(other.line, why);
    }
    empty.members = members;
    empty
}
