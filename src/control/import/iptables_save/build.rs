//! What was made as a configuration that lbd takes; what a file could not say is taken out again and told.
use std::sync::Arc;

use super::ledger::Ledger;
use super::own_rules::OwnRule;
use super::services::{Made, MadeRule, Making};
use lbd_core::matcher::rules::Action;
use lbd_core::policy::Masquerade;
use lbd_core::scheduler::Kind;
use lbd_state::config::{Config, Diagnostic, parse, to_toml};

/// The configuration's text.
///
/// # Errors
/// What lbd does not take, where it is not part of a service or rule.
pub(super) fn build(
    mut making: Making,
    own: Vec<OwnRule>,
    masquerade: Masquerade,
    ledger: &mut Ledger,
) -> Result<String, String> {
    let mut rules = name_services(own, &making.services, ledger);
    rules.append(&mut making.rules);
    making.rules = rules;
    let empty = parse("", "mode = \"iptables\"\n")
        .map_err(|errors| told(&errors))?
        .config;
    loop {
        let config = config(&empty, &making, masquerade);
        let text = to_toml(&config);
        let Err(errors) = parse("", &text) else {
            return Ok(text);
        };
        if !take_out(&mut making, &errors, &text, ledger) {
            return Err(told(&errors));
        }
    }
}

fn told(errors: &[Diagnostic]) -> String {
    let lines: Vec<&str> = errors.iter().map(|error| error.message.as_str()).collect();
    lines.join("\n")
}

fn config(empty: &Config, making: &Making, masquerade: Masquerade) -> Config {
    let mut config = empty.clone();
    config.policy.scheduler = Some(Kind::Random);
    config.policy.nat.masquerade = masquerade;
    config.policy.rules = making.rules.iter().map(|made| made.rule.clone()).collect();
    config.policy.services = making.services.iter().map(|made| Arc::new(made.spec.clone())).collect();
    config.node_addresses = (!making.nodes.is_empty()).then(|| making.nodes.iter().map(|&(node, _)| node).collect());
    config
}

/// lbd's own rules lead to chains; now the services have names.
fn name_services(own: Vec<OwnRule>, services: &[Made], ledger: &mut Ledger) -> Vec<MadeRule> {
    let mut rules = Vec::new();
    for OwnRule {
        mut rule,
        service,
        line,
    } in own
    {
        if let Some(chain) = service {
            let Some(made) = services.iter().find(|made| made.chain == chain) else {
                ledger.lost(line, "its service was not carried over");
                continue;
            };
            rule.action = Action::Service(made.spec.name.clone());
        }
        rules.push(MadeRule {
            rule,
            line,
            service: None,
        });
    }
    rules
}

/// Whether anything could be taken out for these errors.
fn take_out(making: &mut Making, errors: &[Diagnostic], text: &str, ledger: &mut Ledger) -> bool {
    let (blocks, lines): (Vec<Block>, Vec<&str>) = (blocks(text), text.lines().collect());
    let mut services: Vec<(usize, &Diagnostic, &str)> = Vec::new();
    let mut rules: Vec<(usize, &Diagnostic)> = Vec::new();
    for error in errors {
        let line = lines.get(error.line.saturating_sub(1)).copied().unwrap_or("");
        match blocks.get(error.line.saturating_sub(1)) {
            Some(Block::Service(index)) => services.push((*index, error, line)),
            Some(Block::Rule(index)) => rules.push((*index, error)),
            Some(Block::Other) | None => {}
        }
    }
    // From the last to the first, so that what is left keeps its place.
    services.sort_by_key(|&(index, error, _)| std::cmp::Reverse((index, error.line)));
    rules.sort_by_key(|&(index, _)| std::cmp::Reverse(index));
    rules.dedup_by_key(|(index, _)| *index);
    for &(index, error) in &rules {
        if index < making.rules.len() {
            let made = making.rules.remove(index);
            ledger.lost(made.line, &error.message);
        }
    }
    let mut last = None;
    for &(index, error, line) in &services {
        // After the whole service is gone there is nothing more to say of it.
        if last != Some(index) && mend(making, index, error, line, ledger) {
            last = Some(index);
        }
    }
    let nodes = take_out_nodes(making, errors, ledger);
    nodes || !(services.is_empty() && rules.is_empty())
}

/// A node address that cannot be one.
fn take_out_nodes(making: &mut Making, errors: &[Diagnostic], ledger: &mut Ledger) -> bool {
    let before = making.nodes.len();
    making.nodes.retain(|(node, line)| {
        let written = format!("addresses = \"{node}\": ");
        let error = errors.iter().find(|error| error.message.starts_with(&written));
        if let Some(error) = error {
            ledger.lost(*line, &error.message);
        }
        error.is_none()
    });
    making.nodes.len() < before
}

/// Takes the wrong part of a service out, or all of it; whether all.
fn mend(making: &mut Making, index: usize, error: &Diagnostic, line: &str, ledger: &mut Ledger) -> bool {
    let Some(made) = making.services.get_mut(index) else {
        return true;
    };
    let spec = &mut made.spec;
    if line.starts_with("  { address") {
        let position = spec
            .backends
            .iter()
            .position(|backend| line.contains(&format!("\"{}\"", backend.address)));
        if let Some(position) = position {
            spec.backends.remove(position);
            let at = made.backends.remove(position);
            ledger.lost(at, &error.message);
            return false;
        }
    }
    if line.starts_with("external_addresses") {
        let named = |address: &std::net::IpAddr| error.message.contains(&format!("\"{address}\""));
        if let Some(position) = spec.external_addresses.iter().position(named) {
            spec.external_addresses.remove(position);
            lose(made, position + 1, &error.message, ledger);
            return false;
        }
    }
    if line.starts_with("node_port") {
        spec.node_port = None;
        let last = made.places.len().saturating_sub(1);
        lose(made, last, &error.message, ledger);
        return false;
    }
    let made = making.services.remove(index);
    for (_, line) in made.places {
        ledger.lost(line, &error.message);
    }
    for line in made.backends {
        ledger.lost(line, "its service was not carried over");
    }
    let leads_there = Action::Service(made.spec.name.clone());
    let is_its = |rule: &MadeRule| rule.rule.action == leads_there || rule.service.as_ref() == Some(&made.spec.name);
    lose_rules(&mut making.rules, is_its, ledger);
    true
}

/// Takes rules out whose service, or whose address of it, is left out.
fn lose_rules(rules: &mut Vec<MadeRule>, is_its: impl Fn(&MadeRule) -> bool, ledger: &mut Ledger) {
    rules.retain(|rule| {
        let goes = is_its(rule);
        if goes {
            ledger.lost(rule.line, "its service was not carried over");
        }
        !goes
    });
}

fn lose(made: &mut Made, place: usize, why: &str, ledger: &mut Ledger) {
    if place < made.places.len() {
        let (_, line) = made.places.remove(place);
        ledger.lost(line, why);
    }
}

/// What a line of the text belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Block {
    Other,
    Rule(usize),
    Service(usize),
}

fn blocks(text: &str) -> Vec<Block> {
    let (mut rules, mut services, mut now) = (0, 0, Block::Other);
    let mut block = |line: &str| {
        match line {
            "[[rules]]" => {
                now = Block::Rule(rules);
                rules += 1;
            }
            "[[services]]" => {
                now = Block::Service(services);
                services += 1;
            }
            _ => {}
        }
        now
    };
    text.lines().map(&mut block).collect()
}
