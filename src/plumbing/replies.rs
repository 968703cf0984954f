//! Rules for single backends, beside those that cover all of them.
use std::collections::{BTreeSet, HashSet};

use ipnet::IpNet;

use super::cover::{Cover, LIMIT};
use super::object::{Family, Object, Rule, Selector, fragment_rule, is_services_rule, reply_rule};
use super::plan::Plan;
use crate::flow::{Endpoint, Protocol};

/// The rules that `replies` need in addition. None: all have to be covered anew.
///
/// A host's fragments come to lbd until then, also when its last backend is gone: lbd gives back what is not its own.
pub(super) fn additions(
    installed: &[Object],
    plan: &Plan,
    replies: &BTreeSet<(Protocol, Endpoint)>,
) -> Option<Vec<Rule>> {
    let mut added = Vec::new();
    for family in Family::BOTH {
        let of_family = replies
            .iter()
            .filter(|(_, backend)| Family::of(backend.address) == family);
        let led = Led::of(installed, family);
        let mut new: Vec<Rule> = of_family.flat_map(|&reply| led.lacks(reply)).collect();
        // Two new backends may be on one new host.
        let mut seen = HashSet::new();
        new.retain(|rule| seen.insert(rule.clone()));
        // Where no fragments come yet, whole packets do not go past the rules for them either. And a widened rule more costs
        // each packet on the host.
        let is_first = led.fragments.is_empty() && new.iter().any(is_for_fragments);
        let is_too_much = led.covers.len() + led.fragments.len() + new.len() > 2 * LIMIT;
        if !new.is_empty() && (!plan.uses(family) || is_first || is_too_much) {
            return None;
        }
        added.extend(new);
    }
    // Port 0 stands for a range.
    replies.iter().all(|(_, backend)| backend.port != 0).then_some(added)
}

/// What the installed rules of a family lead to lbd.
struct Led {
    covers: Vec<Cover>,
    fragments: Vec<(Protocol, IpNet)>,
}

impl Led {
    fn of(installed: &[Object], family: Family) -> Self {
        let mut led = Self {
            covers: Vec::new(),
            fragments: Vec::new(),
        };
        for object in installed {
            let Object::Rule(rule) = object else { continue };
            match &rule.selector {
                _ if rule.family != family => {}
                Selector::From(cover) => led.covers.push(*cover),
                Selector::AllFrom(protocol, net) => led.fragments.push((*protocol, *net)),
                Selector::All
                | Selector::FromDevice
                | Selector::FromInterface(_)
                | Selector::To(_)
                | Selector::WithSourcePort
                | Selector::WithDestinationPort
                | Selector::AllTo(..)
                | Selector::OwnTooBig
                | Selector::OwnIcmp
                | Selector::Icmp => {}
            }
        }
        led
    }

    /// The rules that a backend needs beside these.
    fn lacks(&self, (protocol, backend): (Protocol, Endpoint)) -> impl Iterator<Item = Rule> + use<> {
        let is_led = self.covers.iter().any(|cover| cover.contains(protocol, backend));
        let mut fragments = self.fragments.iter();
        let are_fragments_led = !protocol.has_fragments()
            || fragments.any(|(other, net)| *other == protocol && net.contains(&backend.address));
        let family = Family::of(backend.address);
        let whole = (!is_led).then(|| exactly((protocol, backend)));
        let fragments = (!are_fragments_led).then(|| fragment_rule(family, protocol, backend.address.into()));
        whole.into_iter().chain(fragments)
    }
}

fn is_for_fragments(rule: &Rule) -> bool {
    matches!(rule.selector, Selector::AllFrom(..))
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
        let fragments = fragment_rule(Family::V4, Protocol::Tcp, "10.2.0.9/32".parse().unwrap());
        assert_eq!(
            rules,
            [
                exactly((Protocol::Tcp, "10.2.0.9:80".parse().unwrap())),
                fragments.clone()
            ]
        );
        insert(&mut installed, rules);
        let place = |object: &Object| installed.iter().position(|other| other == object).unwrap();
        let services = installed
            .iter()
            .position(|object| is_services_rule(object, Family::V4))
            .unwrap();
        assert!(
            place(&Object::Rule(fragments.clone())) < services,
            "the rule that uses the routes comes behind it"
        );
        let gone = alone(&installed, &new);
        installed.retain(|object| !gone.contains(object));
        assert_eq!(
            additions(&installed, &plan, &new).unwrap().len(),
            1,
            "its fragments still come to lbd"
        );
        installed.retain(|object| *object != Object::Rule(fragments.clone()));
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
