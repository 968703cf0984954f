//! A dump as rules in chains, each of them known by its line.
use std::collections::{HashMap, HashSet};

use super::ledger::{Ledger, Plumbing};
use super::rule::Rule;
use crate::import::kube_proxy::HEADER;

/// The tables that kube-proxy writes rules to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Table {
    Nat,
    Filter,
    /// mangle, raw, security
    Other,
}

/// A rule in its place.
#[derive(Debug)]
pub(super) struct Placed {
    /// From 0.
    pub(super) line: usize,
    pub(super) table: Table,
    pub(super) rule: Rule,
}

/// All of a file.
#[derive(Debug, Default)]
pub(super) struct Dump {
    pub(super) rules: Vec<Placed>,
    chains: HashMap<(Table, String), Vec<usize>>,
    declared: HashSet<(Table, String)>,
    /// Names in comments are to be taken as they are: lbctl wrote them.
    pub(super) exact_names: bool,
}

impl Dump {
    /// Reads every line. What is wrong with one, and what needs no rule of lbd's, goes into the ledger.
    pub(super) fn read(lines: &[&str], ledger: &mut Ledger) -> Self {
        let mut dump = Self {
            exact_names: lines.first().is_some_and(|line| line.starts_with(HEADER)),
            ..Self::default()
        };
        let mut section = Section::default();
        for (line, text) in lines.iter().enumerate() {
            dump.line(line, text.trim(), &mut section, ledger);
        }
        dump.end_section(&section);
        for (index, Placed { table, rule, .. }) in dump.rules.iter().enumerate() {
            let chain = dump.chains.entry((*table, rule.chain.clone())).or_default();
            chain.push(index);
        }
        dump
    }

    /// The rules of a chain for packets of one family, in order.
    pub(super) fn chain<'d>(&'d self, table: Table, name: &str, v4: bool) -> impl Iterator<Item = &'d Placed> {
        let indices = self.chains.get(&(table, name.to_owned()));
        let rules = indices.into_iter().flatten().filter_map(|&index| self.rules.get(index));
        rules.filter(move |placed| placed.rule.v4.is_none_or(|own| own == v4))
    }

    /// Whether a chain has no rule, which says that the dump was cut: an empty chain would let packets go on.
    pub(super) fn lacks(&self, table: Table, name: &str, v4: bool) -> bool {
        self.chain(table, name, v4).next().is_none()
    }

    /// Whether the dump names a chain, with rules or without.
    pub(super) fn declares(&self, table: Table, name: &str) -> bool {
        self.declared.contains(&(table, name.to_owned()))
    }

    /// Of the rule at this line, where it has one.
    pub(super) fn family_of(&self, line: usize) -> Option<bool> {
        let at = self.rules.binary_search_by_key(&line, |placed| placed.line).ok()?;
        self.rules.get(at)?.rule.v4
    }

    fn line(&mut self, line: usize, text: &str, section: &mut Section, ledger: &mut Ledger) {
        if let Some(family) = generated_by(text) {
            section.family = Some(family);
        }
        if text.is_empty() || text.starts_with('#') {
            ledger.blank(line);
        } else if let Some(name) = text.strip_prefix('*') {
            self.end_section(section);
            section.begin(name, self.rules.len());
            ledger.needless(line, Plumbing::Frame);
        } else if text == "COMMIT" {
            ledger.needless(line, Plumbing::Frame);
        } else if let Some(declared) = declaration(text) {
            if let Some(table) = section.table {
                self.declared.insert((table, declared.0.to_owned()));
            }
            declare(line, declared, ledger);
        } else {
            match Rule::parse(text) {
                Ok(rule) => self.rules.push(Placed {
                    line,
                    table: section.table.unwrap_or_else(|| likely_table(&rule)),
                    rule,
                }),
                Err(why) => ledger.lost(line, why),
            }
        }
    }

    /// Rules without an address are of the family of the rules around them, where that is one.
    fn end_section(&mut self, section: &Section) {
        let rules = self.rules.get_mut(section.start..).unwrap_or_default();
        let has = |v4| rules.iter().any(|placed| placed.rule.v4 == Some(v4));
        let marked = rules.iter().any(|placed| placed.rule.marked);
        let family = match (has(true), has(false)) {
            (true, true) => None,
            // Where `-4` and `-6` tell the families apart, rules without are for both.
            _ if marked => None,
            (true, false) => Some(true),
            (false, true) => Some(false),
            (false, false) => section.family,
        };
        for placed in rules.iter_mut().filter(|placed| placed.rule.v4.is_none()) {
            placed.rule.v4 = family;
        }
    }
}

/// From one `*table` to the next.
#[derive(Debug, Default)]
struct Section {
    /// None before the first, as in a part of a dump that was cut out.
    table: Option<Table>,
    /// Of the program that wrote it.
    family: Option<bool>,
    /// Index of its first rule.
    start: usize,
}

impl Section {
    fn begin(&mut self, name: &str, start: usize) {
        self.start = start;
        self.table = Some(match name {
            "nat" => Table::Nat,
            "filter" => Table::Filter,
            _ => Table::Other,
        });
    }
}

fn generated_by(comment: &str) -> Option<bool> {
    let program = comment.strip_prefix("# Generated by ")?;
    match program.split_whitespace().next()? {
        "iptables-save" | "iptables-nft-save" | "iptables-legacy-save" => Some(true),
        "ip6tables-save" | "ip6tables-nft-save" | "ip6tables-legacy-save" => Some(false),
        _ => None,
    }
}

/// Only the filter table refuses and accepts; chains of the same names are in nat.
fn likely_table(rule: &Rule) -> Table {
    match rule.target() {
        "REJECT" | "DROP" | "ACCEPT" => Table::Filter,
        _ => Table::Nat,
    }
}

/// `:CHAIN POLICY [0:0]`, or `-N CHAIN` and `-P CHAIN POLICY` as `iptables -S` prints them.
fn declaration(text: &str) -> Option<(&str, &str)> {
    let mut words = text.split_whitespace();
    let first = words.next()?;
    let name = match first.strip_prefix(':') {
        Some(name) if !name.is_empty() => name,
        Some(_) => return None,
        None if matches!(first, "-N" | "-P") => words.next()?,
        None => return None,
    };
    Some((name, words.next().unwrap_or("-")))
}

fn declare(line: usize, (name, policy): (&str, &str), ledger: &mut Ledger) {
    match policy {
        "DROP" if name == "FORWARD" => {
            let why =
                "lbd leaves it to the kernel, which drops lbd's own packets by it: set firewall = \"open\" in [tun]";
            ledger.lost(line, why);
        }
        "DROP" => {
            let why = format!("lbd has no policy for packets that are not for a service: leave {name}'s to the kernel");
            ledger.lost(line, why);
        }
        "ACCEPT" => ledger.needless(line, Plumbing::Frame),
        _ if name.starts_with("KUBE-") || name.starts_with("LBD-") => ledger.needless(line, Plumbing::Frame),
        _ => ledger.needless(line, Plumbing::Empty),
    }
}
