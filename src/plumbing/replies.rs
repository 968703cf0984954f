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

#[cfg(test)]
mod tests {
    use super::super::object::{Families, objects};
    use super::*;

    fn replies(texts: &[&str]) -> BTreeSet<(Protocol, Endpoint)> {
        texts
            .iter()
            .map(|text| (Protocol::Tcp, text.parse().unwrap()))
            .collect()
    }

    /// A service with these backends, and what is installed for it.
    fn installed(backends: &[&str]) -> (Plan, Vec<Object>) {
        let plan = Plan {
            routes: ["10.96.0.10/32".parse().unwrap()].into(),
            replies: replies(backends),
            ..Plan::default()
        };
        let installed = objects(&plan, Families::default());
        (plan, installed)
    }

    #[test]
    fn a_backend_that_a_rule_covers_already_needs_none() {
        let (plan, installed) = installed(&["10.2.0.0:80", "10.2.0.1:80"]);
        assert_eq!(
            additions(&installed, &plan, &replies(&["10.2.0.1:80"])),
            Some(Vec::new())
        );
    }

    #[test]
    fn a_backend_beside_all_rules_gets_one_of_its_own_which_goes_with_it() {
        let (plan, mut installed) = installed(&["10.2.0.0:80", "10.2.0.1:80"]);
        let before = installed.clone();
        let new = replies(&["10.2.0.9:80"]);
        let rules = additions(&installed, &plan, &new).unwrap();
        assert_eq!(rules.len(), 1);
        insert(&mut installed, rules);
        let last = installed.last().unwrap();
        assert!(
            is_services_rule(last, Family::V4),
            "the rule that uses the routes stays the last one"
        );
        let gone = alone(&installed, &new);
        installed.retain(|object| !gone.contains(object));
        assert_eq!(installed, before);
    }

    #[test]
    fn a_rule_that_covers_others_stays_when_one_of_its_backends_goes() {
        let (_, installed) = installed(&["10.2.0.0:80", "10.2.0.1:80"]);
        assert!(alone(&installed, &replies(&["10.2.0.1:80"])).is_empty());
    }

    #[test]
    fn beyond_the_limit_and_for_a_new_family_all_are_covered_anew() {
        let (plan, installed) = installed(&["10.2.0.1:80"]);
        let many: Vec<String> = (0..LIMIT).map(|n| format!("10.3.{n}.1:{}", 8000 + n)).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert_eq!(additions(&installed, &plan, &replies(&many)), None);
        assert_eq!(additions(&installed, &plan, &replies(&["[fd00::1]:80"])), None);
    }
}
