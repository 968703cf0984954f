//! A file that was read before, with few changes: what is the same service by service is not parsed again.
//!
//! A file of 10,000 services with 10 backends each takes a quarter of a second to parse, and nearly all of it is what it was.
//! So the text is cut at its `[[services]]`, and those that differ from the last time are read together with all other
//! tables. Only what is right is read this way, and only where it is plain that it means the same as the whole: at any
//! doubt, and at any mistake, the whole file is read, which knows the line of each mistake.
use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;

use super::neighbours::{Novelties, targets};
use super::validate::{Loaded, parse};
use super::{Config, Diagnostic};
use crate::policy::{Policy, ServiceSpec, common};

/// The tables that there are beside `[[services]]`, as they are usually written.
const TABLES: [&str; 9] = [
    "[datapath]",
    "[tun]",
    "[af_xdp]",
    "[iptables]",
    "[node]",
    "[nat]",
    "[conntrack]",
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
    let (head, tail) = common(&then, &now);
    let (gone, kept) = (&known[head..known.len() - tail], &known[known.len() - tail..]);
    let is_changed = |at: usize| (head..now.len() - tail).contains(&at);
    let special = special(before, &former);
    let is_special = |at: usize| special.contains(&if at < head { at } else { at + then.len() - now.len() });
    // One at least, which `services = []` in some other place would not go with.
    let is_read = |at: usize| at == 0 || is_changed(at) || is_special(at);

    let places: Vec<usize> = (0..now.len()).filter(|&at| is_read(at)).collect();
    let part = parse(file_name, &excerpt(&sections, is_read)).ok()?;
    let read = &part.config.policy.services;
    let is_same_around = rest_of(&part.config) == rest_of(&before.config)
        && general(&part.warnings, &sections) == general(&before.warnings, &former);
    if !is_same_around || read.len() != places.len() {
        return None;
    }
    let changed = places.iter().zip(read).filter(|(at, _)| is_changed(**at));
    let changed: Vec<Arc<ServiceSpec>> = changed.map(|(_, service)| Arc::clone(service)).collect();
    let nodes = before.config.node_addresses.as_deref().unwrap_or(&[]);
    let novelties = Novelties::new(gone.iter(), changed.iter(), nodes);
    let mut others = known[..head].iter().chain(kept);
    if others.any(|other| novelties.concern(other, nodes)) {
        return None;
    }
    let services = [&known[..head], &changed, kept].concat();
    Some(Loaded {
        config: with_services(&part.config, services),
        warnings: part.warnings,
        text: text.to_owned(),
    })
}

/// The places of services that are read whether they changed or not: those that rules lead to, and those with a warning.
fn special(before: &Loaded, sections: &[Section<'_>]) -> HashSet<usize> {
    let services = &before.config.policy.services;
    let named = targets(&before.config.policy.rules);
    let is_named = |at: usize| named.contains(services[at].name.as_str());
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
