//! Rules for what a list of backends cannot say: source ranges, addresses that drop, and pods that are held to no node.
use ipnet::IpNet;

use super::frontends::{Entrances, Frontend, Place};
use super::ledger::Ledger;
use super::refusals::Refusals;
use super::services::{Group, MadeRule};
use crate::matcher::rules::{Action, Condition, Rule};

/// The rules of one group of places, in the order in which they are to be checked.
pub(super) fn rules(groups: &[Group], index: usize, refusals: &Refusals, ledger: &mut Ledger) -> Vec<MadeRule> {
    let mut made = Vec::new();
    let members = groups.get(index).map_or(&[][..], |group| &group.members);
    for member in members.iter().filter(|member| member.address().is_some()) {
        at_place(member, groups, index, refusals, ledger, &mut made);
    }
    made
}

fn at_place(
    member: &Frontend,
    groups: &[Group],
    index: usize,
    refusals: &Refusals,
    ledger: &mut Ledger,
    made: &mut Vec<MadeRule>,
) {
    let own = groups.get(index).map_or("", |group| group.name.as_str());
    let drops = member.way.list.is_none();
    let elsewhere = |chain: &str| {
        let target = groups
            .iter()
            .position(|group| group.members.iter().any(|m| m.way.list.as_deref() == Some(chain)));
        let target = target.filter(|&target| drops || target != index);
        target
            .and_then(|target| groups.get(target))
            .map(|group| group.name.clone())
    };
    let pods: Vec<(IpNet, usize, String)> = (member.way.pods.iter())
        .filter_map(|(net, line, chain)| Some((*net, *line, elsewhere(chain)?)))
        .collect();
    if let Some(line) = member.way.from_here.filter(|_| drops || index > 0) {
        ledger.lost(
            line,
            "lbd has no rules for clients on this node: they are treated as others",
        );
    }
    let mut rule = |name: &str, source: Option<IpNet>, action: Action, line: usize| {
        let rule = at(member, format!("{own} {name}"), source, action);
        made.push(MadeRule { rule, line });
    };
    let everyone = Vec::new();
    for (range, line) in member.way.ranges.as_ref().unwrap_or(&everyone) {
        for (pods, _, target) in &pods {
            if let Some(both) = common(*range, *pods) {
                rule("pods", Some(both), Action::Service(target.clone()), *line);
            }
        }
        if !drops {
            rule("source range", Some(*range), Action::Service(own.to_owned()), *line);
        }
    }
    if member.way.ranges.is_none() {
        for (net, line, target) in &pods {
            rule("pods", Some(*net), Action::Service(target.clone()), *line);
        }
    }
    if member.way.ranges.is_some() || drops {
        let fence = refusals
            .fences
            .iter()
            .find(|fence| (fence.protocol, fence.place) == (member.protocol, member.place));
        let line = fence.map_or(member.line, |fence| fence.line);
        ledger.used(line);
        let name = if drops { "no backend here" } else { "other sources" };
        rule(name, None, Action::Drop, line);
    }
}

/// The rule of a place that drops for want of a backend on this node, where there is none to send anyone to.
pub(super) fn dropping(member: &Frontend, service: &str) -> MadeRule {
    MadeRule {
        rule: at(member, format!("{service} no backend here"), None, Action::Drop),
        line: member.line,
    }
}

/// A rule for packets to a place.
fn at(member: &Frontend, name: String, source: Option<IpNet>, action: Action) -> Rule {
    let address = member.address();
    let port = member.place.port();
    Rule {
        name: Some(name),
        source: source.map(is),
        destination: address.map(|endpoint| is(IpNet::from(endpoint.address))),
        protocol: Some(is(member.protocol)),
        source_port: None,
        destination_port: (port != 0).then(|| is(port..=port)),
        probability: None,
        action,
    }
}

const fn is<T>(value: T) -> Condition<T> {
    Condition { negated: false, value }
}

/// Two networks have nothing in common, or one of them.
fn common(a: IpNet, b: IpNet) -> Option<IpNet> {
    match (a.contains(&b), b.contains(&a)) {
        (true, _) => Some(b),
        (false, true) => Some(a),
        (false, false) => None,
    }
}

/// Drops of KUBE-PROXY-FIREWALL that belong to no source range.
pub(super) fn check(refusals: &Refusals, entrances: &Entrances, ledger: &mut Ledger) {
    for fence in &refusals.fences {
        let known = entrances.frontends.iter().any(|frontend| {
            let place: (_, Place) = (frontend.protocol, frontend.place);
            place == (fence.protocol, fence.place) && frontend.way.ranges.is_some()
        });
        if !known {
            ledger.lost(fence.line, "no source range of this dump is for this address");
        }
    }
}
