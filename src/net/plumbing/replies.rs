//! Rules for single backends, beside those that cover all of them.
use std::collections::BTreeSet;

use ipnet::IpNet;

use super::cover::{Cover, LIMIT};
use super::object::{
    Action, Family, Object, Rule, SERVICES, Selector, fragments_rule, is_services_rule, reply_rule, resets_rule,
};
use super::plan::{Plan, has_host};
use lbd_core::flow::{Endpoint, Protocol};

/// The rules that `replies` need in addition, for whole packets and for fragments. None: all have to be covered anew.
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
        let (whole, fragments) = covers(installed, family);
        let is_new = |&&(protocol, backend): &&(Protocol, Endpoint)| {
            let mut covers = whole.iter();
            !covers.any(|cover| cover.contains(protocol, backend))
        };
        let new: Vec<(Protocol, Endpoint)> = of_family.filter(is_new).copied().collect();
        if new.is_empty() {
            continue;
        }
        // A rule more costs each packet on the host; and rules for fragments alone need others before them.
        let needs_more = new.iter().any(|(protocol, _)| protocol.has_fragments()) && fragments.is_empty();
        // And so do those of this host itself, which sends other things, too.
        let needs_more = needs_more || new.iter().any(|(_, backend)| plan.own.contains(&backend.address));
        if !plan.has_replies(family) || needs_more || whole.len() + new.len() > LIMIT {
            return None;
        }
        let hosts: BTreeSet<(Protocol, IpNet)> = new.iter().map(host).collect();
        let hosts = hosts.into_iter().filter(|(protocol, net)| {
            let mut known = fragments.iter();
            protocol.has_fragments() && !known.any(|(other, wider)| other == protocol && wider.contains(net))
        });
        added.extend(new.iter().map(|&reply| exactly(reply)));
        added.extend(hosts.flat_map(|(protocol, net)| fragments_rules(protocol, net)));
    }
    // Port 0 stands for a range.
    replies.iter().all(|(_, backend)| backend.port != 0).then_some(added)
}

/// Puts rules in their place among what is installed: those for whole packets before the rule that uses the routes, those for
/// fragments behind the others of these.
pub(super) fn insert(installed: &mut Vec<Object>, rules: Vec<Rule>) {
    for rule in rules {
        let is_last = |object: &Object| is_fragments(object, rule.family);
        let place = match matches!(rule.selector, Selector::AllFrom(..) | Selector::OwnFrom(_)) {
            true => installed.iter().rposition(is_last).map(|at| at + 1),
            false => installed
                .iter()
                .position(|object| is_services_rule(object, rule.family)),
        };
        installed.insert(place.unwrap_or(installed.len()), Object::Rule(rule));
    }
}

/// The installed rules that are for one of `replies` and nothing else that is in `rest`.
pub(super) fn alone(
    installed: &[Object],
    replies: &BTreeSet<(Protocol, Endpoint)>,
    rest: &BTreeSet<(Protocol, Endpoint)>,
) -> Vec<Object> {
    let whole = replies.iter().map(|&reply| exactly(reply));
    let hosts = replies
        .iter()
        .filter(|(protocol, backend)| !has_host(rest, (*protocol, backend.address)));
    let fragments = hosts.flat_map(|reply| {
        let (protocol, net) = host(reply);
        fragments_rules(protocol, net)
    });
    let rules: Vec<Object> = whole.chain(fragments).map(Object::Rule).collect();
    let installed = installed.iter().filter(|object| match object {
        Object::Rule(_) => rules.contains(object),
        Object::Route(_) | Object::NoFirstLocalRule(..) => false,
    });
    installed.cloned().collect()
}

/// For fragments from a host of backends, and what this host says in its name.
fn fragments_rules(protocol: Protocol, net: IpNet) -> impl Iterator<Item = Rule> {
    let family = Family::of(net.addr());
    let resets = (family == Family::V4 && protocol == Protocol::Tcp).then(|| resets_rule(net));
    std::iter::once(fragments_rule(family, protocol, net)).chain(resets)
}

fn host(&(protocol, backend): &(Protocol, Endpoint)) -> (Protocol, IpNet) {
    (protocol, backend.address.into())
}

fn exactly((protocol, backend): (Protocol, Endpoint)) -> Rule {
    let cover = Cover {
        protocol,
        net: backend.address.into(),
        ports: (backend.port, backend.port),
    };
    reply_rule(Family::of(backend.address), cover)
}

/// What rules lead to lbd already: of whole packets, and of fragments.
fn covers(installed: &[Object], family: Family) -> (Vec<Cover>, Vec<(Protocol, IpNet)>) {
    let (mut whole, mut fragments) = (Vec::new(), Vec::new());
    for object in installed {
        let Object::Rule(rule) = object else { continue };
        if rule.family == family {
            match rule.selector {
                Selector::From(cover) => whole.push(cover),
                Selector::AllFrom(protocol, net) => fragments.push((protocol, net)),
                Selector::All
                | Selector::FromDevice
                | Selector::FromInterface(_)
                | Selector::To(_)
                | Selector::WithSourcePort
                | Selector::WithDestinationPort
                | Selector::AllTo(..)
                | Selector::OwnError(..)
                | Selector::OwnFrom(_)
                | Selector::OwnIcmp
                | Selector::Icmp => {}
            }
        }
    }
    (whole, fragments)
}

fn is_fragments(object: &Object, family: Family) -> bool {
    match object {
        Object::Rule(rule) => {
            let action = rule.action != Action::Goto(SERVICES);
            rule.family == family && action && matches!(rule.selector, Selector::AllFrom(..) | Selector::OwnFrom(_))
        }
        Object::Route(_) | Object::NoFirstLocalRule(..) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::super::object::{FirstLocalRules, objects};
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
        let installed = objects(&plan, &BTreeSet::new(), &FirstLocalRules::default());
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
        assert_eq!(
            rules.len(),
            3,
            "one for whole packets, one for fragments, one for RSTs: {rules:?}"
        );
        insert(&mut installed, rules);
        let place = |wanted: &dyn Fn(&Object) -> bool| installed.iter().position(wanted).unwrap();
        let own = Object::Rule(exactly((Protocol::Tcp, "10.2.0.9:80".parse().unwrap())));
        assert!(place(&|object| *object == own) < place(&|object| is_services_rule(object, Family::V4)));
        assert!(is_fragments(installed.last().unwrap(), Family::V4));
        let gone = alone(&installed, &new, &plan.replies);
        installed.retain(|object| !gone.contains(object));
        assert_eq!(installed, before);
    }

    #[test]
    fn a_rule_that_covers_others_stays_when_one_of_its_backends_goes() {
        let (_, wide) = installed(&["10.2.0.0:80", "10.2.0.1:80"]);
        let rest = replies(&["10.2.0.0:80"]);
        assert!(alone(&wide, &replies(&["10.2.0.1:80"]), &rest).is_empty());
        let (_, two_ports) = installed(&["10.2.0.1:80", "10.2.0.1:90"]);
        let left = alone(&two_ports, &replies(&["10.2.0.1:80"]), &replies(&["10.2.0.1:90"]));
        assert_eq!(left.len(), 1, "fragments of the other port come from there too");
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
