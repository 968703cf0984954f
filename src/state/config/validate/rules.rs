//! `[[rules]]`
use std::collections::HashMap;
use std::ops::RangeInclusive;

use ipnet::IpNet;
use toml::Spanned;

use super::policy::overlap;
use super::services::{Known, require};
use super::values::{name, network, offset, ports};
use crate::config::diagnostic::Report;
use crate::config::raw::{self, Key, Scalar, Text};
use crate::config::suggest::did_you_mean;
use crate::config::words::{PROTOCOLS, meaning_of};
use lbd_core::flow::Protocol;
use lbd_core::matcher::rules::{Action, Condition, Probability, Rule};
use lbd_core::policy::ServiceSpec;

/// The units of [`Probability`]: 2^32 of them are certain.
pub(in crate::config) const CERTAIN: f64 = 4_294_967_296.0;

/// The services that a rule may send packets to.
pub(super) type Names<'t> = HashMap<&'t str, Option<Known>>;

/// Every rule that could be read; what is wrong goes into the report.
pub(super) fn rules(list: &[Spanned<raw::Rule<'_>>], names: &Names<'_>, report: &mut Report) -> Vec<Rule> {
    list.iter().filter_map(|raw| rule(raw, names, report)).collect()
}

/// Warns of rules that refuse what never comes to lbd, wholly or in part. A rule about nodes may be about a node port.
pub(super) fn warn_of_rules_without_services(
    list: &[Spanned<raw::Rule<'_>>],
    rules: &[Rule],
    services: &[ServiceSpec],
    report: &mut Report,
) {
    let Some(seen) = Seen::of(rules, services).filter(|_| list.len() == rules.len()) else {
        return;
    };
    for (raw, rule) in list.iter().zip(rules) {
        let refuses = matches!(rule.action, Action::Drop | Action::Reject);
        let destination = rule.destination.as_ref().filter(|net| refuses && !net.negated);
        if let Some(problem) = destination.and_then(|destination| seen.problem(destination.value)) {
            report.warning(offset(raw), problem);
        }
    }
}

/// The destinations whose packets come to lbd.
struct Seen {
    /// Services' addresses, and networks that a rule leads to a service.
    nets: Vec<IpNet>,
    node_ports: bool,
}

impl Seen {
    /// None where a rule leads packets to a service whatever their destination.
    fn of(rules: &[Rule], services: &[ServiceSpec]) -> Option<Self> {
        let mut nets: Vec<IpNet> = Vec::new();
        for rule in rules.iter().filter(|rule| matches!(rule.action, Action::Service(_))) {
            nets.push(rule.destination.as_ref().filter(|led| !led.negated)?.value);
        }
        let addresses = services.iter().flat_map(|service| service.endpoints(&[]));
        nets.extend(addresses.map(|endpoint| IpNet::from(endpoint.address)));
        Some(Self {
            nets,
            node_ports: services.iter().any(|service| service.node_port.is_some()),
        })
    }

    /// What a rule for `net` does not do.
    fn problem(&self, net: IpNet) -> Option<String> {
        let remedy = "lbd does not see packets to other addresses; refuse them by the host's own firewall";
        let within = self.nets.iter().filter(|seen| overlap(**seen, net));
        let seen = IpNet::aggregate(&within.copied().collect());
        if seen.is_empty() {
            let none =
                format!("the rule has no effect: no service has an address in destination = \"{net}\": {remedy}");
            return (!self.node_ports).then_some(none);
        }
        if seen.iter().any(|seen| seen.contains(&net)) {
            return None;
        }
        let node_ports = if self.node_ports { ", beside node ports" } else { "" };
        Some(format!(
            "of destination = \"{net}\" the rule refuses only packets to {}, where services are{node_ports}: {remedy}",
            few(&seen)
        ))
    }
}

/// The first of them, and how many there are beside these.
fn few(nets: &[IpNet]) -> String {
    const SHOWN: usize = 3;
    let shown = nets
        .iter()
        .take(SHOWN)
        .map(|net| match net.prefix_len() == net.max_prefix_len() {
            true => net.addr().to_string(),
            false => net.to_string(),
        });
    let shown = shown.collect::<Vec<_>>().join(", ");
    match nets.len().saturating_sub(SHOWN) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

fn rule(at: &Spanned<raw::Rule<'_>>, names: &Names<'_>, report: &mut Report) -> Option<Rule> {
    let raw = at.get_ref();
    let missing = matches!(raw.action, Key::Absent);
    require("[[rules]]", offset(at), [("action", missing, "\"drop\"")], report);
    let source = net("source", &raw.source, report);
    let destination = net("destination", &raw.destination, report);
    let protocol = raw.protocol.given().and_then(|text| protocol(text, report));
    check_families(raw, source.as_ref(), destination.as_ref(), report);
    let source_port = port("source_port", &raw.source_port, report);
    let destination_port = port("destination_port", &raw.destination_port, report);
    let probability = raw.probability.given().and_then(|value| probability(value, report));
    let name = raw.name.given().and_then(|text| name(text, report));
    let action = raw.action.given().and_then(|text| action(text, names, report))?;
    if let Some(known) = target(&action, names) {
        check_protocol(raw, protocol.as_ref(), known, report);
        check_target_family("source", &raw.source, source.as_ref(), known, report);
        check_target_family("destination", &raw.destination, destination.as_ref(), known, report);
    }
    Some(Rule {
        name,
        source,
        destination,
        protocol,
        source_port,
        destination_port,
        probability,
        action,
    })
}

/// Whether a `!` stands before the value, and the value.
fn split_negation(text: &str) -> (bool, &str) {
    let text = text.trim();
    match text.strip_prefix('!') {
        Some(rest) => (true, rest.trim_start()),
        None => (false, text),
    }
}

fn net(key: &str, written: &Key<Text<'_>>, report: &mut Report) -> Option<Condition<IpNet>> {
    let text = written.given()?;
    let (negated, rest) = split_negation(text.get_ref());
    let value = network(key, text, rest, report)?;
    Some(Condition { negated, value })
}

fn protocol(text: &Spanned<Text<'_>>, report: &mut Report) -> Option<Condition<Protocol>> {
    let (negated, rest) = split_negation(text.get_ref());
    let Some(value) = meaning_of(rest, PROTOCOLS) else {
        let hint = did_you_mean(rest, PROTOCOLS.iter().map(|&(word, _)| word));
        let problem = format!("unknown word:{hint} known: tcp, udp, sctp, each with \"!\" before it or not");
        report.bad(offset(text), "protocol", format!("{:?}", text.get_ref()), problem);
        return None;
    };
    Some(Condition { negated, value })
}

fn port(key: &str, written: &Key<Scalar<'_>>, report: &mut Report) -> Option<Condition<RangeInclusive<u16>>> {
    let at = written.given()?;
    let number;
    let text = match at.get_ref() {
        Scalar::Text(text) => *text,
        Scalar::Integer(port) => {
            number = port.to_string();
            number.as_str()
        }
    };
    let (negated, rest) = split_negation(text);
    let value = ports(key, at, rest, report)?;
    Some(Condition { negated, value })
}

fn probability(value: &Spanned<f64>, report: &mut Report) -> Option<Probability> {
    let share = *value.get_ref();
    if share > 0.0 && share <= 1.0 {
        // The saturating cast is exact: 2^32 and every whole number below it fit.
        return Some(Probability(((share * CERTAIN).round() as u64).max(1)));
    }
    let problem = "must be above 0 and at most 1, e.g. 0.5 for half of the packets";
    report.bad(offset(value), "probability", share, problem);
    None
}

fn action(text: &Spanned<Text<'_>>, names: &Names<'_>, report: &mut Report) -> Option<Action> {
    let problem = match (*text.get_ref(), text.get_ref().strip_prefix("service:")) {
        ("drop", _) => return Some(Action::Drop),
        ("reject", _) => return Some(Action::Reject),
        ("pass", _) => return Some(Action::Pass),
        (_, Some(name)) if names.contains_key(name) => {
            return Some(Action::Service(name.to_owned()));
        }
        (_, Some(name)) => {
            let mut known: Vec<&str> = names.keys().copied().collect();
            known.sort_unstable();
            let hint = did_you_mean(name, known);
            format!("there is no service {name:?}:{hint} give the name of one of [[services]]")
        }
        (word, None) => {
            let hint = did_you_mean(word, ["drop", "reject", "pass"]);
            format!("unknown word:{hint} known: drop, reject, pass, service:NAME")
        }
    };
    report.bad(offset(text), "action", format!("{:?}", text.get_ref()), problem);
    None
}

fn target(action: &Action, names: &Names<'_>) -> Option<Known> {
    match action {
        Action::Service(name) => names.get(name.as_str()).copied().flatten(),
        Action::Drop | Action::Reject | Action::Pass => None,
    }
}

fn check_families(
    raw: &raw::Rule<'_>,
    source: Option<&Condition<IpNet>>,
    destination: Option<&Condition<IpNet>>,
    report: &mut Report,
) {
    if let (Some(source), Some(destination), Some(text)) = (source, destination, raw.destination.given())
        && source.value.addr().is_ipv4() != destination.value.addr().is_ipv4()
    {
        let problem = "source and destination are of different families, so no packet matches: make a rule for each";
        report.bad(offset(text), "destination", format!("{:?}", text.get_ref()), problem);
    }
}

fn check_protocol(raw: &raw::Rule<'_>, protocol: Option<&Condition<Protocol>>, service: Known, report: &mut Report) {
    if let (Some(condition), Some(text)) = (protocol, raw.protocol.given())
        && (condition.value == service.protocol) == condition.negated
    {
        let own = service.protocol;
        let problem = format!("the service of this rule's action is {own}: write \"{own}\", or leave the key out");
        report.bad(offset(text), "protocol", format!("{:?}", text.get_ref()), problem);
    }
}

fn check_target_family(
    key: &str,
    written: &Key<Text<'_>>,
    condition: Option<&Condition<IpNet>>,
    service: Known,
    report: &mut Report,
) {
    if let (Some(condition), Some(text)) = (condition, written.given())
        && condition.value.addr().is_ipv4() != service.v4
    {
        let family = if service.v4 { "IPv4" } else { "IPv6" };
        let problem = format!("the service of this rule's action is {family}: give an {family} network");
        report.bad(offset(text), key, format!("{:?}", text.get_ref()), problem);
    }
}
