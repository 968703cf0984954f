//! A file that was read before, with few changes: what is the same service by service is not parsed again.
//!
//! A file of 10,000 services with 10 backends each takes a quarter of a second to parse, and nearly all of it is what it was.
//! So the text is cut at its `[[services]]`, and those that differ from the last time are read together with all other
//! tables. Only what is right is read this way, and only where it is plain that it means the same as the whole: at any
//! doubt, and at any mistake, the whole file is read, which knows the line of each mistake.
use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::sync::Arc;

use ahash::RandomState;

use super::neighbours::{Novelties, targets};
use super::validate::{Loaded, parse};
use super::{Config, Diagnostic};
use lbd_core::policy::{Policy, ServiceSpec, common};

/// The tables that there are beside `[[services]]`, as they are usually written.
const TABLES: [&str; 10] = [
    "[datapath]",
    "[tun]",
    "[af_xdp]",
    "[iptables]",
    "[node]",
    "[nat]",
    "[conntrack]",
    "[icmp]",
    "[control]",
    "[[rules]]",
];

/// Validates a text as [`parse`] does, with the same outcome. `before` is a text that was valid, and what it said.
///
/// # Errors
/// Everything that is wrong with it, in the order of the file.
pub fn parse_again(file_name: &str, text: &str, before: &Loaded) -> Result<Loaded, Vec<Diagnostic>> {
    match read_changes(file_name, text, before) {
        Some(loaded) => Ok(loaded),
        None => parse(file_name, text),
    }
}

/// A piece of a file: a table with its keys.
#[derive(Clone, Debug)]
struct Section<'t> {
    text: &'t str,
    is_service: bool,
    /// From 1.
    lines: Range<usize>,
}

/// None: better read all of it.
fn read_changes(file_name: &str, text: &str, before: &Loaded) -> Option<Loaded> {
    let (sections, former) = (sections(text)?, sections(&before.text)?);
    let (now, then) = (services(&sections), services(&former));
    let known = &before.config.policy.services;
    if then.len() != known.len() {
        return None;
    }
    let origins = origins(&then, &now);
    let special = special(before, &former);
    // One at least, which `services = []` in some other place would not go with.
    let is_read = |at: usize| at == 0 || origins[at].is_none_or(|former| special.contains(&former));

    let part = parse(file_name, &excerpt(&sections, is_read)).ok()?;
    let is_same_around = rest_of(&part.config) == rest_of(&before.config)
        && general(&part.warnings, &sections) == general(&before.warnings, &former);
    let read = (0..now.len()).filter(|&at| is_read(at)).count();
    if !is_same_around || part.config.policy.services.len() != read {
        return None;
    }
    let mut read = part.config.policy.services.iter();
    let mut services = Vec::with_capacity(now.len());
    for (at, origin) in origins.iter().enumerate() {
        let read = if is_read(at) { read.next() } else { None };
        services.push(Arc::clone(origin.map_or(read, |former| known.get(former))?));
    }
    if is_at_odds(&services, &origins, before) {
        return None;
    }
    Some(Loaded {
        config: with_services(&part.config, services),
        warnings: part.warnings,
        text: text.to_owned(),
    })
}

/// For each service now the place of the same text then, each of which is one's only.
fn origins(then: &[&str], now: &[&str]) -> Vec<Option<usize>> {
    let (head, tail) = common(then, now);
    let (old, new) = (head..then.len() - tail, head..now.len() - tail);
    let mut free: HashMap<&str, usize, RandomState> = old.clone().map(|at| (then[at], at)).collect();
    let between = new.map(|at| free.remove(now[at]));
    (0..head)
        .map(Some)
        .chain(between)
        .chain((old.end..then.len()).map(Some))
        .collect()
}

/// Whether a service that is new or not as it was has something to do with one of the others.
fn is_at_odds(services: &[Arc<ServiceSpec>], origins: &[Option<usize>], before: &Loaded) -> bool {
    let nodes = before.config.node_addresses.as_deref().unwrap_or(&[]);
    let stay: HashSet<usize, RandomState> = origins.iter().copied().flatten().collect();
    let known = before.config.policy.services.iter().enumerate();
    let gone = known.filter(|(at, _)| !stay.contains(at)).map(|(_, service)| service);
    let (same, changed): (Vec<_>, Vec<_>) = services.iter().zip(origins).partition(|(_, origin)| origin.is_some());
    let novelties = Novelties::new(gone, changed.iter().map(|(service, _)| *service), nodes);
    same.iter().any(|(service, _)| novelties.concern(service, nodes))
}

/// The places of services that are read whether they changed or not: those that rules lead to, and those with a warning.
fn special(before: &Loaded, sections: &[Section<'_>]) -> HashSet<usize> {
    let services = &before.config.policy.services;
    let named = targets(&before.config.policy.rules);
    let is_named = |at: usize| !named.is_empty() && named.contains(services[at].name.as_str());
    let tables = sections.iter().filter(|section| section.is_service).enumerate();
    let warned = tables.filter(|(_, section)| {
        before
            .warnings
            .iter()
            .any(|warning| section.lines.contains(&warning.line))
    });
    let warned = warned.map(|(at, _)| at);
    (0..services.len()).filter(|&at| is_named(at)).chain(warned).collect()
}

/// Warnings that are not about one service: they may be about what all have or lack.
fn general<'w>(warnings: &'w [Diagnostic], sections: &[Section<'_>]) -> Vec<&'w str> {
    let is_general = |warning: &&Diagnostic| {
        let mut services = sections.iter().filter(|section| section.is_service);
        !services.any(|section| section.lines.contains(&warning.line))
    };
    warnings
        .iter()
        .filter(is_general)
        .map(|warning| warning.message.as_str())
        .collect()
}

fn with_services(config: &Config, services: Vec<Arc<ServiceSpec>>) -> Config {
    let policy = Policy {
        services,
        ..config.policy.clone()
    };
    Config {
        policy,
        ..config.clone()
    }
}

/// All but the services.
fn rest_of(config: &Config) -> Config {
    with_services(config, Vec::new())
}

fn services<'t>(sections: &[Section<'t>]) -> Vec<&'t str> {
    let services = sections.iter().filter(|section| section.is_service);
    services.map(|section| section.text).collect()
}

/// The text with some services only, by their places, and with empty lines for the others, so that each line has its number.
fn excerpt(sections: &[Section<'_>], is_read: impl Fn(usize) -> bool) -> String {
    let (mut place, mut excerpt) = (0, String::new());
    for section in sections {
        let is_here = !section.is_service || is_read(place);
        place += usize::from(section.is_service);
        match is_here {
            true => excerpt.push_str(section.text),
            false => excerpt.extend(section.lines.clone().map(|_| '\n')),
        }
    }
    excerpt
}

/// Cuts a text before each table. None: it has something in it that could be no table, or another one than it looks like.
fn sections(text: &str) -> Option<Vec<Section<'_>>> {
    // Text of several lines can hold what looks like a table.
    if text.contains("\"\"\"") || text.contains("'''") {
        return None;
    }
    let mut sections = Vec::new();
    let (mut start, mut first, mut is_service) = (0, 1, false);
    let (mut offset, mut number) = (0, 1);
    for line in text.split_inclusive('\n') {
        if line.trim_ascii_start().starts_with('[') {
            let header = line.split('#').next()?.trim_ascii_end();
            let begins_service = header == "[[services]]";
            if begins_service || TABLES.contains(&header) {
                let (text, lines) = (&text[start..offset], first..number);
                sections.push(Section {
                    text,
                    is_service,
                    lines,
                });
                (start, first, is_service) = (offset, number, begins_service);
            } else if !is_service || !is_part_of_service(header) {
                return None;
            }
        }
        (offset, number) = (offset + line.len(), number + 1);
    }
    let (text, lines) = (&text[start..], first..number);
    sections.push(Section {
        text,
        is_service,
        lines,
    });
    Some(sections)
}

/// `[services.persistence]`, `[[services.backends]]`
fn is_part_of_service(header: &str) -> bool {
    header.trim_start_matches('[').starts_with("services.")
}

#[cfg(test)]
mod tests;
