//! Which service a packet is for, and which rules were looked at.
use std::borrow::Cow;
use std::sync::Arc;

use super::Way;
use crate::protocol::RuleView;
use crate::protocol::explanation::{RuleLook, RulesStep, Step};
use lbd_core::flow::Tuple;
use lbd_core::matcher::rules::{Action, Condition, Entry, Origin, Probability, Rule, RuleList};
use lbd_core::matcher::{Match, Matcher};
use lbd_core::packet::Headers;
use lbd_core::service::Service;

/// So many rules that do not match are shown.
const SHOWN: usize = 20;

/// Whether a rule matches.
enum Look {
    Yes,
    No,
    /// This share of packets, in percent.
    Perhaps(f64),
}

impl<'a> Way<'a> {
    /// `Matcher::find`
    pub(super) fn find(&mut self, headers: &Headers, tuple: Option<&Tuple>) -> Match<'a> {
        match (&self.ruleset.matcher, tuple) {
            (Matcher::Rules(list), _) => self.walk(list, headers, tuple),
            (Matcher::VirtualServers(servers), Some(tuple)) => {
                let found = servers.find(tuple);
                self.push(virtual_server(found, tuple));
                found
            }
            (Matcher::VirtualServers(_), None) => Match::None,
        }
    }

    fn walk(&mut self, list: &RuleList, headers: &Headers, tuple: Option<&Tuple>) -> Match<'a> {
        let mut step = RulesStep {
            looked_at: Vec::new(),
            not_shown: 0,
            matched: None,
        };
        let mut missed = 0;
        let mut found = Match::None;
        for (number, entry) in (1..).zip(list.entries()) {
            let rule = rule(&entry);
            let look = self.look(&entry, &rule, headers, tuple);
            if matches!(look, Look::No) {
                missed += 1;
            }
            if missed > SHOWN && matches!(look, Look::No) {
                step.not_shown += 1;
                continue;
            }
            self.told.by_chance |= matches!(look, Look::Perhaps(_));
            step.looked_at.push(self.shown(number, &rule, &look, headers, tuple));
            if matches!(look, Look::Yes) {
                step.matched = Some(number);
                found = self.decision(&rule.action);
                break;
            }
        }
        if self.told.by_chance {
            let note = "a rule with a probability may match: what follows is for a packet that it does not match";
            self.told.notes.push(Cow::Borrowed(note));
        }
        self.push(Step::Rules(step));
        found
    }

    fn look(&self, entry: &Entry, rule: &Rule, headers: &Headers, tuple: Option<&Tuple>) -> Look {
        let is_for_it = match &entry.origin {
            Origin::User(_) => true,
            Origin::Service { .. } => tuple.is_some(),
        };
        if !is_for_it || !rule.matches(headers, tuple) || !self.is_taken(&rule.action, tuple) {
            return Look::No;
        }
        match rule.probability {
            None => Look::Yes,
            Some(share) if share.0 >= Probability::ONE.0 => Look::Yes,
            Some(Probability(0)) => Look::No,
            #[expect(clippy::cast_precision_loss, reason = "below 2^32, which an f64 holds exactly")]
            Some(Probability(share)) => Look::Perhaps(share as f64 * 100.0 / Probability::ONE.0 as f64),
        }
    }

    /// Whether the service that a rule names, if any, takes the packet.
    fn is_taken(&self, action: &Action, tuple: Option<&Tuple>) -> bool {
        match action {
            Action::Drop | Action::Reject | Action::Pass => true,
            Action::Service(name) => {
                let service = self.service(name);
                service.is_some_and(|service| tuple.is_some_and(|tuple| service.takes(tuple)))
            }
        }
    }

    fn service(&self, name: &str) -> Option<&'a Arc<Service>> {
        let mut services = self.ruleset.services.iter();
        services.find(|service| service.identity.name == name)
    }

    fn decision(&self, action: &Action) -> Match<'a> {
        match action {
            Action::Drop => Match::Drop,
            Action::Reject => Match::Reject,
            Action::Pass => Match::Pass,
            Action::Service(name) => self.service(name).map_or(Match::None, Match::Service),
        }
    }

    fn shown(&self, number: usize, rule: &Rule, look: &Look, headers: &Headers, tuple: Option<&Tuple>) -> RuleLook {
        let view = RuleView::of_rule(number, rule);
        let (matches, why) = match look {
            Look::Yes => ("yes", "it meets every condition".to_owned()),
            Look::Perhaps(percent) => ("perhaps", format!("by chance, {percent:.4} % of such packets")),
            Look::No => ("no", unmet(rule, &view, headers, tuple)),
        };
        RuleLook {
            number,
            name: view.name,
            action: view.action,
            matches: Cow::Borrowed(matches),
            why,
        }
    }
}

fn virtual_server(found: Match<'_>, tuple: &Tuple) -> Step {
    let service = match found {
        Match::Service(service) => Some(service),
        Match::Drop | Match::Reject | Match::Pass | Match::None => None,
    };
    Step::VirtualServer {
        destination: tuple.destination,
        all_ports: service.is_some_and(|service| !service.endpoints.contains(&tuple.destination)),
        service: service.map(|service| service.identity.name.clone()),
    }
}

/// The rule of an entry; that of a service's address has the conditions that its place in the list stands for.
fn rule(entry: &Entry) -> Cow<'_, Rule> {
    match &entry.origin {
        Origin::User(rule) => Cow::Borrowed(rule),
        Origin::Service {
            name,
            protocol,
            endpoint,
        } => Cow::Owned(Rule {
            name: Some(name.clone()),
            protocol: Some(exactly(*protocol)),
            destination: Some(exactly(endpoint.address.into())),
            // Port 0 stands for all.
            destination_port: (endpoint.port != 0).then(|| exactly(endpoint.port..=endpoint.port)),
            ..anything(Action::Service(name.clone()))
        }),
    }
}

const fn exactly<T>(value: T) -> Condition<T> {
    Condition { negated: false, value }
}

const fn anything(action: Action) -> Rule {
    Rule {
        name: None,
        source: None,
        destination: None,
        protocol: None,
        source_port: None,
        destination_port: None,
        probability: None,
        action,
    }
}

/// The first condition that the packet does not meet.
fn unmet(rule: &Rule, view: &RuleView, headers: &Headers, tuple: Option<&Tuple>) -> String {
    let blank = || anything(Action::Pass);
    let port = |port: Option<u16>| port.map_or_else(|| "none".to_owned(), |port| port.to_string());
    let protocol = lbd_core::flow::Protocol::from_number(headers.protocol);
    let protocol = protocol.map_or_else(|| headers.protocol.to_string(), |protocol| protocol.to_string());
    let conditions = [
        (
            "protocol",
            &view.protocol,
            protocol,
            Rule {
                protocol: rule.protocol.clone(),
                ..blank()
            },
        ),
        (
            "source",
            &view.source,
            headers.source.to_string(),
            Rule {
                source: rule.source.clone(),
                ..blank()
            },
        ),
        (
            "destination",
            &view.destination,
            headers.destination.to_string(),
            Rule {
                destination: rule.destination.clone(),
                ..blank()
            },
        ),
        (
            "source port",
            &view.source_port,
            port(tuple.map(|tuple| tuple.source.port)),
            Rule {
                source_port: rule.source_port.clone(),
                ..blank()
            },
        ),
        (
            "destination port",
            &view.destination_port,
            port(tuple.map(|tuple| tuple.destination.port)),
            Rule {
                destination_port: rule.destination_port.clone(),
                ..blank()
            },
        ),
    ];
    for (what, wanted, is, alone) in conditions {
        if !alone.matches(headers, tuple) {
            return format!("{what} is {is}, not {}", wanted.as_deref().unwrap_or("any"));
        }
    }
    match (&rule.action, rule.probability) {
        (_, Some(Probability(0))) => "its probability is 0".to_owned(),
        (Action::Service(name), _) => format!("service {name} takes no such packet: another protocol or IP version"),
        (Action::Drop | Action::Reject | Action::Pass, _) => "it has no ports".to_owned(),
    }
}
