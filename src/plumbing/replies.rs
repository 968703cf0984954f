//! Rules for single backends, beside those that cover all of them.
use std::collections::BTreeSet;

use super::cover::{Cover, LIMIT};
use super::object::{Family, Object, Rule, Selector, is_services_rule, reply_rule};
use super::plan::Plan;
use crate::flow::{Endpoint, Protocol};

/// The rules that `replies` need in addition. None: all have to be covered anew.
pub(super) fn additions(
    installed: &[Object],
    plan: &Plan,
    replies: &BTreeSet<(Protocol, Endpoint)>,
) -> Option<Vec<Rule>> {
    let mut added = Vec::new();
    for family in Family::BOTH {
        let covers: Vec<Cover> = installed.iter().filter_map(|object| cover(object, family)).collect();
        let of_family = replies
            .iter()
            .filter(|(_, backend)| Family::of(backend.address) == family);
        let is_new = |&&(protocol, backend): &&(Protocol, Endpoint)| {
            let mut covers = covers.iter();
            !covers.any(|cover| cover.contains(protocol, backend))
        };
        let new: Vec<Rule> = of_family.filter(is_new).map(|&reply| exactly(reply)).collect();
        // A widened rule more costs each packet on the host; and port 0 stands for a range.
        if !new.is_empty() && (!plan.uses(family) || covers.len() + new.len() > LIMIT) {
            return None;
        }
        added.extend(new);
    }
    replies.iter().all(|(_, backend)| backend.port != 0).then_some(added)
}

/// Puts rules in their place among what is installed.
pub(super) fn insert(installed: &mut Vec<Object>, rules: Vec<Rule>) {
    for rule in rules {
        let place = installed
            .iter()
            .position(|object| is_services_rule(object, rule.family));
        installed.insert(place.unwrap_or(installed.len()), Object::Rule(rule));
    }
}

/// The installed rules that are for one of `replies` and nothing else.
pub(super) fn alone(installed: &[Object], replies: &BTreeSet<(Protocol, Endpoint)>) -> Vec<Object> {
    let rules: Vec<Object> = replies.iter().map(|&reply| Object::Rule(exactly(reply))).collect();
    let installed = installed.iter().filter(|object| match object {
        Object::Rule(_) => rules.contains(object),
        Object::Route(_) | Object::NoFirstLocalRule(_) => false,
    });
    installed.cloned().collect()
}

fn exactly((protocol, backend): (Protocol, Endpoint)) -> Rule {
    let cover = Cover {
        protocol,
        net: backend.address.into(),
        ports: (backend.port, backend.port),
    };
    reply_rule(Family::of(backend.address), cover)
}

fn cover(object: &Object, family: Family) -> Option<Cover> {
    match object {
        Object::Rule(rule) if rule.family == family => match &rule.selector {
            Selector::From(cover) => Some(*cover),
            Selector::All | Selector::FromDevice | Selector::FromInterface(_) | Selector::To(_) => None,
        },
        Object::Rule(_) | Object::Route(_) | Object::NoFirstLocalRule(_) => None,
    }
}
