//! Rules for what a list of backends cannot say: source ranges, addresses that drop, and pods that are held to no node.
use ipnet::IpNet;

use super::endpoints::Context;
use super::frontends::{Entrances, Frontend, Place};
use super::ledger::{Ledger, Plumbing};
use super::refusals::Refusals;
use super::services::{Group, MadeRule};
use lbd_core::matcher::rules::{Action, Condition, Rule};

/// The rules of one group of places, in the order in which they are to be checked.
pub(super) fn rules(groups: &[Group], index: usize, context: &mut Context<'_>) -> Vec<MadeRule> {
    let mut made = Vec::new();
    let Some(group) = groups.get(index) else { return made };
    for member in &group.members {
        let exempt = Exempt::of(member, groups, index, context.ledger);
        if member.address().is_some() {
            let mut at = Fenced {
                member,
                group,
                made: &mut made,
            };
            at.rules(&exempt, context);
        }
    }
    made
}

/// Senders at a place that are not held to its group's backends: their network, line and service.
struct Exempt(Vec<(IpNet, usize, String)>);

impl Exempt {
    /// Those that get the same backends as all others need no rule: their line is used as it is.
    fn of(member: &Frontend, groups: &[Group], index: usize, ledger: &mut Ledger) -> Self {
        let drops = member.way.list.is_none();
        let leads_to = |chain: &str| {
            let has = |group: &Group| group.members.iter().any(|m| m.way.list.as_deref() == Some(chain));
            groups.iter().position(has)
        };
        if let Some((line, chain)) = &member.way.from_here
            && !drops
            && leads_to(chain) == Some(index)
        {
            ledger.needless(*line, Plumbing::SameForAll);
        }
        let mut exempt = Vec::new();
        for (net, line, chain) in &member.way.pods {
            match leads_to(chain) {
                Some(target) if target == index && !drops => ledger.needless(*line, Plumbing::SameForAll),
                Some(target) if member.address().is_some() => {
                    let service = groups.get(target).map(|group| group.name.clone());
                    exempt.extend(service.map(|service| (*net, *line, service)));
                }
                Some(_) => {}
                None => ledger.idle(
                    *line,
                    format!("{chain} is no service's that has an address in this dump"),
                ),
            }
        }
        Self(exempt)
    }
}

/// An address whose rules are being made.
struct Fenced<'a> {
    member: &'a Frontend,
    group: &'a Group,
    made: &'a mut Vec<MadeRule>,
}

impl Fenced<'_> {
    fn rules(&mut self, Exempt(pods): &Exempt, context: &mut Context<'_>) {
        let (way, own) = (&self.member.way, self.group.name.clone());
        let drops = way.list.is_none();
        if way.ranges.is_some() {
            (pods.iter()).for_each(|(_, line, _)| context.ledger.idle(*line, "no source range lets these senders in"));
        }
        for &(range, line) in way.ranges.iter().flatten() {
            for (pods, at, target) in pods {
                if let Some(both) = common(range, *pods) {
                    self.rule("pods", Some(both), Action::Service(target.clone()), line);
                    context.ledger.used(line);
                    context.ledger.used(*at);
                }
            }
            if !drops {
                self.rule("source range", Some(range), Action::Service(own.clone()), line);
                context.ledger.used(line);
            }
        }
        if way.ranges.is_none() {
            for (net, line, target) in pods {
                self.rule("pods", Some(*net), Action::Service(target.clone()), *line);
                context.ledger.used(*line);
            }
        }
        if way.ranges.is_some() || drops {
            self.last(drops, context);
        }
    }

    /// What drops all others.
    fn last(&mut self, drops: bool, context: &mut Context<'_>) {
        let member = self.member;
        let mut fences = context.refusals.fences.iter();
        let fence = fences.find(|fence| (fence.protocol, fence.place) == (member.protocol, member.place));
        let line = fence.map_or(member.line, |fence| fence.line);
        context.ledger.used(line);
        let name = if drops { "no backend here" } else { "other sources" };
        self.rule(name, None, Action::Drop, line);
    }

    fn rule(&mut self, name: &str, source: Option<IpNet>, action: Action, line: usize) {
        let own = &self.group.name;
        self.made.push(MadeRule {
            rule: at(self.member, format!("{own} {name}"), source, action),
            line,
            service: Some(own.clone()),
        });
    }
}

/// The rule of a place that drops for want of a backend on this node, where there is none to send anyone to.
pub(super) fn dropping(member: &Frontend, service: &str) -> MadeRule {
    MadeRule {
        rule: at(member, format!("{service} no backend here"), None, Action::Drop),
        line: member.line,
        service: Some(service.to_owned()),
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
