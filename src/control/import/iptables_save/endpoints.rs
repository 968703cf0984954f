//! Chains of endpoints (KUBE-SVC, KUBE-SVL, KUBE-XLB) and what they lead to: backends, their shares, client affinity.
use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::dump::{Dump, Placed, Table};
use super::frontends::missing;
use super::ledger::{Ledger, Plumbing};
use super::marks::Marks;
use super::refusals::Refusals;
use super::rule::{Kind, Recent};
use super::weights::weights;
use crate::import::kube_proxy::{
    ENDPOINT, EXTERNAL, LOAD_BALANCER, LOCAL_ONLY, LOCAL_SERVICE, MARK_DROP, MARK_MASQUERADE, SERVICE,
};
use lbd_core::flow::{Endpoint, Protocol};
use lbd_core::policy::Persistence;

/// Where a service's packets go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Endpoints {
    /// With their weights, in the order of the chain.
    pub(super) backends: Vec<(Endpoint, u32)>,
    pub(super) persistence: Option<Persistence>,
    /// Where each backend is written, by its place in `backends`.
    pub(super) lines: Vec<usize>,
    /// Its packets are dropped; it has no backend.
    pub(super) drops: bool,
}

impl Endpoints {
    /// Whether the same packets go to the same backends.
    pub(super) fn same_as(&self, other: &Self) -> bool {
        self.backends == other.backends && self.persistence == other.persistence
    }
}

/// What is needed to follow chains.
pub(super) struct Context<'a> {
    pub(super) dump: &'a Dump,
    pub(super) refusals: &'a Refusals,
    pub(super) ledger: &'a mut Ledger,
    pub(super) marks: &'a mut Marks,
}

/// One way out of a chain of endpoints.
struct Exit {
    endpoint: Endpoint,
    /// Its KUBE-SEP chain.
    chain: String,
    /// Of the packets that come to its rule; 1 without a condition.
    share: f64,
    line: usize,
}

impl Context<'_> {
    /// Follows a chain to its endpoints; `port` is the service's, for those that keep it.
    pub(super) fn endpoints(&mut self, chain: &str, v4: bool, protocol: Protocol, port: u16) -> Endpoints {
        let dump = self.dump;
        let mut exits: Vec<Exit> = Vec::new();
        let (mut persistence, mut drops) = (None, None);
        let mut returning: Vec<&Placed> = Vec::new();
        for placed in dump.chain(Table::Nat, chain, v4) {
            let (line, rule) = (placed.line, &placed.rule);
            let target = rule.target();
            if target == MARK_MASQUERADE {
                if !self.ledger.knows(line) {
                    self.marks.add(placed, v4, self.ledger);
                }
            } else if target == MARK_DROP && rule.kinds().is_empty() {
                self.ledger.used(line);
                drops = Some(line);
            } else if target.is_empty() && rule.kinds().is_empty() {
                self.ledger.needless(line, Plumbing::Notes);
            } else if !target.starts_with(ENDPOINT) {
                if !is_chain_of_service(target) {
                    self.ledger
                        .lost(line, format!("a service's packets cannot go to {}", shown(target)));
                }
            } else if let Some(recent) = rule.recent.as_ref().filter(|recent| recent.checks) {
                persistence = self.affinity(placed, recent, persistence, v4);
                returning.push(placed);
            } else {
                exits.extend(self.exit(placed, &exits, v4, protocol, port));
            }
        }
        if let Some(last) = exits.last().filter(|last| last.share < 1.0) {
            let why = "its probability: the last backend of a list gets all that the others leave";
            self.ledger.lost(last.line, why);
        }
        self.check_returning(&returning, &exits);
        let mut endpoints = assemble(&exits, persistence);
        match drops {
            Some(line) if !endpoints.backends.is_empty() => {
                self.ledger
                    .lost(line, "no packet comes here: the endpoints before it take all");
            }
            Some(_) => endpoints.drops = true,
            None => {}
        }
        endpoints
    }

    /// A client returns only to what new clients get, too: kube-proxy writes both rules of an endpoint, or the dump was cut.
    fn check_returning(&mut self, returning: &[&Placed], exits: &[Exit]) {
        let chosen: HashSet<&str> = exits.iter().map(|exit| exit.chain.as_str()).collect();
        for placed in returning.iter().filter(|placed| !chosen.contains(placed.rule.target())) {
            let why = format!("no rule of this dump sends new clients to {}", placed.rule.target());
            self.ledger.lost(placed.line, why);
        }
    }

    fn affinity(
        &mut self,
        placed: &Placed,
        recent: &Recent,
        known: Option<Persistence>,
        v4: bool,
    ) -> Option<Persistence> {
        let read = persistence(recent, v4);
        match (known, read) {
            (None, Some(_)) => self.ledger.used(placed.line),
            (Some(known), Some(read)) if known == read => self.ledger.used(placed.line),
            (Some(_), Some(_)) => self
                .ledger
                .lost(placed.line, "a service has one timeout of client affinity"),
            (_, None) => self.ledger.lost(
                placed.line,
                "client affinity needs --seconds and a netmask without holes",
            ),
        }
        known.or(read)
    }

    fn exit(&mut self, placed: &Placed, before: &[Exit], v4: bool, protocol: Protocol, port: u16) -> Option<Exit> {
        let (line, rule) = (placed.line, &placed.rule);
        if !rule.has_only(&[Kind::Probability]) {
            self.ledger
                .lost(line, "a choice of endpoint can have no condition but a probability");
            return None;
        }
        if before.last().is_some_and(|last| last.share >= 1.0) {
            self.ledger
                .lost(line, "no packet comes here: the rule before it takes all");
            return None;
        }
        let endpoint = self.endpoint(rule.target(), v4, protocol, port);
        let Some(endpoint) = endpoint else {
            let target = rule.target();
            let why = match self.dump.lacks(Table::Nat, target, v4) {
                true => missing(target),
                false => format!("{target} has no DNAT to one {} address", protocol.name()),
            };
            self.ledger.lost(line, why);
            return None;
        };
        self.ledger.used(line);
        let share = rule.probability.unwrap_or(1.0);
        Some(Exit {
            endpoint,
            chain: rule.target().to_owned(),
            share,
            line,
        })
    }

    /// The one address of a KUBE-SEP chain.
    fn endpoint(&mut self, chain: &str, v4: bool, protocol: Protocol, port: u16) -> Option<Endpoint> {
        let dump = self.dump;
        let mut found = None;
        for placed in dump.chain(Table::Nat, chain, v4) {
            let (line, rule) = (placed.line, &placed.rule);
            let own = |p: &str| p == protocol.name();
            match rule.target() {
                MARK_MASQUERADE if rule.has_only(&[Kind::Source]) => {
                    self.marks.hairpins = true;
                    self.ledger.needless(line, Plumbing::Hairpin);
                }
                "DNAT" if rule.has_only(&[Kind::Protocol, Kind::Recent]) => {
                    let fits = rule.protocol.as_ref().is_none_or(|p| !p.negated && own(&p.value));
                    let read = rule.to.as_deref().and_then(|to| destination(to, port));
                    let read = read.filter(|read| fits && read.address.is_ipv4() == v4 && found.is_none());
                    match read {
                        Some(_) => self.ledger.used(line),
                        None => self
                            .ledger
                            .lost(line, "an endpoint is one address and port, for the service's protocol"),
                    }
                    found = found.or(read);
                }
                "" if rule.kinds().is_empty() => self.ledger.needless(line, Plumbing::Notes),
                _ => self
                    .ledger
                    .lost(line, "an endpoint's packets can only go to its address"),
            }
        }
        self.marks.backends |= found.is_some();
        found
    }
}

/// Whether a jump there is followed elsewhere.
fn is_chain_of_service(target: &str) -> bool {
    let prefixes = [SERVICE, LOCAL_SERVICE, EXTERNAL, LOAD_BALANCER, LOCAL_ONLY];
    prefixes.iter().any(|prefix| target.starts_with(prefix))
}

fn shown(target: &str) -> &str {
    if target.is_empty() { "no target" } else { target }
}

fn assemble(exits: &[Exit], persistence: Option<Persistence>) -> Endpoints {
    let shares: Vec<f64> = exits.iter().map(|exit| exit.share).collect();
    let mut all = Endpoints {
        persistence,
        ..Endpoints::default()
    };
    let mut known: HashMap<Endpoint, usize> = HashMap::new();
    for (exit, weight) in exits.iter().zip(weights(&shares)) {
        let index = *known.entry(exit.endpoint).or_insert(all.backends.len());
        match all.backends.get_mut(index) {
            Some((_, known)) => *known = known.saturating_add(weight).min(65_535),
            None => {
                all.backends.push((exit.endpoint, weight));
                all.lines.push(exit.line);
            }
        }
    }
    all
}

fn persistence(recent: &Recent, v4: bool) -> Option<Persistence> {
    let whole = if v4 { 32 } else { 128 };
    let prefix_length = match recent.mask {
        None => whole,
        Some(mask) if mask.is_ipv4() == v4 => ipnet::ip_mask_to_prefix(mask).ok()?,
        Some(_) => return None,
    };
    let timeout = Duration::from_secs(recent.seconds?);
    Some(Persistence { timeout, prefix_length })
}

/// `10.2.0.11:8080`, `[fd00::1]:8080`, or an address alone, which keeps the port.
fn destination(text: &str, port: u16) -> Option<Endpoint> {
    if let Ok(socket) = text.parse::<SocketAddr>() {
        return Some(socket.into());
    }
    let bare = text
        .strip_prefix('[')
        .and_then(|text| text.strip_suffix(']'))
        .unwrap_or(text);
    bare.parse::<IpAddr>().ok().map(|address| Endpoint::new(address, port))
}
