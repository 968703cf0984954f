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
