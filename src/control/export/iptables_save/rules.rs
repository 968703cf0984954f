//! `[[rules]]`, in a chain of lbd's own that is checked before the services.
use std::ops::RangeInclusive;

use ipnet::IpNet;

use super::services::Written;
use super::text::{Family, Table, comment, fitting};
use crate::import::kube_proxy::{OWN_DROP, OWN_FIREWALL, OWN_REJECT, OWN_RULES, SERVICES};
use lbd_core::flow::Protocol;
use lbd_core::matcher::rules::{Action, Condition, Probability, Rule};

/// The protocols that have ports.
const WITH_PORTS: [Protocol; 3] = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];

/// Whether a rule has an address of IPv6.
pub(super) fn have_ipv6(rules: &[Rule]) -> bool {
    rules.iter().any(|rule| family(rule) == Family::V6)
}

/// Writes every rule; what is not shown as it is goes into the remarks.
pub(super) fn own_rules(
    rules: &[Rule],
    written: &Written<'_>,
    nat: &mut Table,
    filter: &mut Table,
    remarks: &mut Vec<String>,
) {
    if rules.is_empty() {
        return;
    }
    nat.chain(OWN_RULES);
    nat.rule(Family::Both, SERVICES, &format!("-j {OWN_RULES}"));
    stops(nat, filter);
    for (number, rule) in (1..).zip(rules) {
        let (target, bodies) = (target(rule, written), bodies(rule));
        let checks = [
            (
                bodies.len() > 1,
                "shown once for each protocol, since iptables has no ports without one",
            ),
            (
                target.is_none(),
                "shown as a refusal, since its service has no backend that takes new flows",
            ),
            (
                has_long_name(rule),
                "shown without the end of its name, which is too long for a comment",
            ),
        ];
        let told = checks.into_iter().filter(|(holds, _)| *holds);
        remarks.extend(told.map(|(_, what)| format!("rule {number} as it is: it is {what}")));
        for body in bodies {
            let target = target.unwrap_or(OWN_REJECT);
            nat.rule(family(rule), OWN_RULES, &format!("{body}-j {target}"));
        }
    }
}

fn has_long_name(rule: &Rule) -> bool {
    rule.name.as_ref().is_some_and(|name| fitting(name) != name)
}

/// The nat table may not drop: it marks, and leaves the rest to the filter table.
fn stops(nat: &mut Table, filter: &mut Table) {
    for (chain, mark) in [(OWN_DROP, "0x8000/0x8000"), (OWN_REJECT, "0x10000/0x10000")] {
        nat.chain(chain);
        nat.rule(Family::Both, chain, &format!("-j MARK --set-xmark {mark}"));
        nat.rule(Family::Both, chain, "-j ACCEPT");
    }
    let refused = "-m mark --mark 0x10000/0x10000 -j REJECT --reject-with";
    filter.rule(Family::Both, OWN_FIREWALL, "-m mark --mark 0x8000/0x8000 -j DROP");
    filter.rule(Family::Both, OWN_FIREWALL, &format!("-p tcp {refused} tcp-reset"));
    filter.rule(Family::V4, OWN_FIREWALL, &format!("{refused} icmp-port-unreachable"));
    if filter.has_both() {
        filter.rule(Family::V6, OWN_FIREWALL, &format!("{refused} icmp6-port-unreachable"));
    }
}

/// None: a service without backends.
fn target<'w>(rule: &Rule, written: &'w Written<'_>) -> Option<&'w str> {
    match &rule.action {
        Action::Drop => Some(OWN_DROP),
        Action::Reject => Some(OWN_REJECT),
        Action::Pass => Some("ACCEPT"),
        Action::Service(name) => written.chain(name),
    }
}

fn family(rule: &Rule) -> Family {
    let network = rule.source.as_ref().or(rule.destination.as_ref());
    network.map_or(Family::Both, |network| Family::of(network.value.addr()))
}

fn has_ports(rule: &Rule) -> bool {
    rule.source_port.is_some() || rule.destination_port.is_some()
}

/// The conditions; iptables needs to know the protocol whose ports are meant.
fn bodies(rule: &Rule) -> Vec<String> {
    match &rule.protocol {
        Some(Condition { negated: false, value }) => vec![body(rule, Some(*value))],
        None if has_ports(rule) => WITH_PORTS.iter().map(|&protocol| body(rule, Some(protocol))).collect(),
        Some(Condition { negated: true, value }) if has_ports(rule) => {
            let others = WITH_PORTS.iter().filter(|protocol| *protocol != value);
            others.map(|&protocol| body(rule, Some(protocol))).collect()
        }
        Some(Condition { negated: true, .. }) | None => vec![body(rule, None)],
    }
}

fn body(rule: &Rule, protocol: Option<Protocol>) -> String {
    let not_protocol = rule.protocol.as_ref().filter(|_| protocol.is_none());
    let module = protocol.filter(|_| has_ports(rule));
    let parts = [
        rule.source.as_ref().map(|condition| network("-s", condition)),
        rule.destination.as_ref().map(|condition| network("-d", condition)),
        protocol.map(|protocol| format!("-p {protocol} ")),
        not_protocol.map(|condition| format!("! -p {} ", condition.value)),
        rule.name.as_ref().map(|name| format!("{} ", comment(name))),
        module.map(|protocol| format!("-m {protocol} ")),
        rule.source_port.as_ref().map(|condition| ports("--sport", condition)),
        rule.destination_port
            .as_ref()
            .map(|condition| ports("--dport", condition)),
        rule.probability.map(probability),
    ];
    parts.into_iter().flatten().collect()
}

fn network(option: &str, Condition { negated, value }: &Condition<IpNet>) -> String {
    format!("{}{option} {value} ", not(*negated))
}

fn ports(option: &str, Condition { negated, value }: &Condition<RangeInclusive<u16>>) -> String {
    let (first, last) = (value.start(), value.end());
    match first == last {
        true => format!("{}{option} {first} ", not(*negated)),
        false => format!("{}{option} {first}:{last} ", not(*negated)),
    }
}

/// Eleven digits tell 2^-32 apart, which is lbd's unit; the kernel rounds to twice that.
fn probability(Probability(units): Probability) -> String {
    let share = units as f64 / Probability::ONE.0 as f64;
    format!("-m statistic --mode random --probability {share:.11} ")
}

const fn not(negated: bool) -> &'static str {
    if negated { "! " } else { "" }
}
