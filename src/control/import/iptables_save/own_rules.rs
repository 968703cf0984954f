//! The rules of a configuration as lbctl prints them, in a chain of lbd's own.
use super::dump::{Dump, Placed};
use super::ledger::Ledger;
use super::rule::Kind;
use crate::import::kube_proxy::{OWN_DROP, OWN_REJECT, OWN_RULES, SERVICE};
use lbd_core::matcher::rules::{Action, Condition, Probability, Rule};

/// A rule, and the chain of the service that it leads to, which has no name yet.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct OwnRule {
    pub(super) rule: Rule,
    /// The end of the name of the service's chain.
    pub(super) service: Option<String>,
    pub(super) line: usize,
}

/// Every rule of the chain, in order; one that is for both families is once in the dump of each.
pub(super) fn own_rules(dump: &Dump, ledger: &mut Ledger) -> Vec<OwnRule> {
    let mut all: Vec<OwnRule> = Vec::new();
    for placed in dump.rules.iter().filter(|placed| placed.rule.chain == OWN_RULES) {
        let Some(own) = own_rule(placed) else {
            ledger.lost(placed.line, "a rule of lbd has no such condition or target");
            continue;
        };
        ledger.used(placed.line);
        let known = |other: &OwnRule| (&other.rule, &other.service) == (&own.rule, &own.service);
        let elsewhere = |other: &OwnRule| dump.family_of(other.line) != dump.family_of(own.line);
        let of_one_family = dump.family_of(own.line).is_some();
        if !of_one_family || !all.iter().any(|other| known(other) && elsewhere(other)) {
            all.push(own);
        }
    }
    all
}

fn own_rule(Placed { line, rule, .. }: &Placed) -> Option<OwnRule> {
    let kinds = [
        Kind::Source,
        Kind::Destination,
        Kind::Protocol,
        Kind::SourcePort,
        Kind::DestinationPort,
        Kind::Probability,
    ];
    if !rule.has_only(&kinds) {
        return None;
    }
    let (action, service) = match rule.target() {
        OWN_DROP => (Action::Drop, None),
        OWN_REJECT => (Action::Reject, None),
        "ACCEPT" => (Action::Pass, None),
        target => {
            let service = target.strip_prefix(SERVICE)?.to_owned();
            (Action::Service(String::new()), Some(service))
        }
    };
    let protocol = match &rule.protocol {
        None => None,
        Some(Condition { negated, value }) => Some(Condition {
            negated: *negated,
            value: value.parse().ok()?,
        }),
    };
    let rule = Rule {
        name: rule.comment.clone(),
        source: rule.source.clone(),
        destination: rule.destination.clone(),
        protocol,
        source_port: rule.source_port.clone(),
        destination_port: rule.destination_port.clone(),
        probability: rule.probability.map(probability),
        action,
    };
    Some(OwnRule {
        rule,
        service,
        line: *line,
    })
}

/// Eleven digits are enough for units of 2^-32.
fn probability(share: f64) -> Probability {
    Probability(((share * Probability::ONE.0 as f64).round() as u64).max(1))
}
