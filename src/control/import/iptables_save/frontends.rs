//! Where packets come in: addresses and node ports, and the chains that each leads through.
use std::collections::HashMap;
use std::net::IpAddr;

use ipnet::IpNet;

use super::dump::{Dump, Placed, Table};
use super::endpoints::Context;
use super::ledger::Plumbing;
use super::names::service_name;
use super::refusals::Refusals;
use super::rule::{Kind, Rule};
use crate::import::kube_proxy::{
    ENDPOINT, EXTERNAL, LOAD_BALANCER, LOCAL_ONLY, LOCAL_SERVICE, MARK_DROP, MARK_MASQUERADE, NODE_PORTS, OWN_RULES,
    SERVICE, SERVICES,
};
use lbd_core::flow::{Endpoint, Protocol};

/// What a packet is addressed to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Place {
    /// An address; port 0 for all ports.
    At(Endpoint),
    /// Any address of the node.
    NodePort(u16),
}

/// How packets get from a place to endpoints.
#[derive(Clone, Debug, Default)]
pub(super) struct Way {
    /// The chain of endpoints; None: dropped.
    pub(super) list: Option<String>,
    /// The chains before that.
    pub(super) via: Vec<String>,
    /// Senders that are let in, where not all are, each with its line.
    pub(super) ranges: Option<Vec<(IpNet, usize)>>,
    /// Senders that are not held to the endpoints on the node, each with its line and chain.
    pub(super) pods: Vec<(IpNet, usize, String)>,
    /// The rule by which clients on the node are not held to them either, and its chain.
    pub(super) from_here: Option<(usize, String)>,
    /// A chain on the way of all packets that has no rule in this dump.
    missing: Option<String>,
    /// Packets that get to no endpoint are dropped on the way.
    drops: bool,
}

/// A place at which a service answers.
#[derive(Clone, Debug)]
pub(super) struct Frontend {
    pub(super) place: Place,
    pub(super) protocol: Protocol,
    pub(super) v4: bool,
    /// Not the cluster address.
    pub(super) external: bool,
    pub(super) way: Way,
    /// The service's, from the comment.
    pub(super) name: Option<String>,
    /// The end of the names of the service's chains.
    pub(super) service: String,
    pub(super) line: usize,
}

impl Frontend {
    /// Its address, where it is not a node port.
    pub(super) const fn address(&self) -> Option<Endpoint> {
        match self.place {
            Place::At(endpoint) => Some(endpoint),
            Place::NodePort(_) => None,
        }
    }
}

impl Place {
    /// The port that a packet to this place has.
    pub(super) const fn port(self) -> u16 {
        match self {
            Self::At(endpoint) => endpoint.port,
            Self::NodePort(port) => port,
        }
    }
}

/// Everything in KUBE-SERVICES and KUBE-NODEPORTS.
#[derive(Debug, Default)]
pub(super) struct Entrances {
    pub(super) frontends: Vec<Frontend>,
    /// The node's own addresses, where node ports answer on some only.
    pub(super) nodes: Vec<(IpAddr, usize)>,
    known: HashMap<(bool, Protocol, Place), usize>,
}

impl Entrances {
    /// Reads the chains for one family.
    pub(super) fn read(&mut self, v4: bool, context: &mut Context<'_>) {
        let dump = context.dump;
        for placed in dump.chain(Table::Nat, SERVICES, v4) {
            match placed.rule.target() {
                MARK_MASQUERADE => context.marks.add(placed, v4, context.ledger),
                NODE_PORTS => self.node_ports_on(placed, context),
                OWN_RULES => own_rules_of(placed, v4, context),
                target if has_service(target) => self.address(placed, v4, context),
                _ => {}
            }
        }
        for placed in dump.chain(Table::Nat, NODE_PORTS, v4) {
            match placed.rule.target() {
                MARK_MASQUERADE => context.marks.add(placed, v4, context.ledger),
                target if has_service(target) => self.node_port(placed, v4, context),
                _ => {}
            }
        }
    }

    fn node_ports_on(&mut self, placed: &Placed, context: &mut Context<'_>) {
        match placed.rule.host() {
            None => context.ledger.needless(placed.line, Plumbing::Jump),
            Some(node) if node.is_loopback() => context.ledger.lost(placed.line, "lbd answers at no loopback address"),
            Some(node) => {
                let known = self.nodes.iter().any(|(known, _)| *known == node);
                self.nodes.extend((!known).then_some((node, placed.line)));
                context.ledger.used(placed.line);
            }
        }
    }

    fn address(&mut self, placed: &Placed, v4: bool, context: &mut Context<'_>) {
        // In 1.10 to 1.23 an external address has a rule for packets from outside and one for the node's own.
        let allowed = [
            Kind::Destination,
            Kind::Protocol,
            Kind::DestinationPort,
            Kind::SourceType,
            Kind::DestinationType,
            Kind::PhysicalDevice,
        ];
        let rule = &placed.rule;
        match (rule.host(), rule.port()) {
            (Some(host), Some(port)) if rule.has_only(&allowed) && host.is_ipv4() == v4 => {
                self.frontend(placed, v4, Place::At(Endpoint::new(host, port)), context);
            }
            _ => {
                let why = "a service is at one address and port, and open to all senders";
                context.ledger.lost(placed.line, why);
            }
        }
    }

    fn node_port(&mut self, placed: &Placed, v4: bool, context: &mut Context<'_>) {
        let rule = &placed.rule;
        let loopback = rule
            .destination
            .as_ref()
            .is_some_and(|on| !on.negated && on.value.addr().is_loopback());
        let allowed = [Kind::Protocol, Kind::DestinationPort, Kind::Accounting];
        match rule.port() {
            _ if loopback => context.ledger.lost(placed.line, "lbd answers at no loopback address"),
            Some(port @ 1..) if rule.has_only(&allowed) => self.frontend(placed, v4, Place::NodePort(port), context),
            Some(_) | None => {
                let why = "a node port is one port, on all addresses of the node";
                context.ledger.lost(placed.line, why);
            }
        }
    }

    fn frontend(&mut self, placed: &Placed, v4: bool, place: Place, context: &mut Context<'_>) {
        let (line, rule) = (placed.line, &placed.rule);
        let protocol = rule.protocol.as_ref().filter(|protocol| !protocol.negated);
        let Some(protocol) = protocol.and_then(|protocol| protocol.value.parse().ok()) else {
            context
                .ledger
                .lost(line, "a service has one protocol: tcp, udp or sctp");
            return;
        };
        let way = Way::follow(rule.target(), v4, context);
        if let Some(why) = way.leads_nowhere(rule.target(), (v4, protocol, place), context.refusals) {
            context.ledger.lost(line, why);
            return;
        }
        let service = suffix(way.list.as_deref().unwrap_or_else(|| rule.target())).to_owned();
        if let Some(&known) = self.known.get(&(v4, protocol, place)) {
            let same = self.frontends.get(known).is_some_and(|known| known.service == service);
            match same {
                true => context.ledger.used(line),
                false => context
                    .ledger
                    .lost(line, "no packet comes here: a rule before it is for the same address"),
            }
            return;
        }
        context.ledger.used(line);
        self.known.insert((v4, protocol, place), self.frontends.len());
        self.frontends.push(Frontend {
            external: is_external(rule, place),
            name: service_name(rule, context.dump.exact_names),
            place,
            protocol,
            v4,
            way,
            service,
            line,
        });
    }
}

/// kube-proxy says so in the comment, and by the chain; without either it is the cluster address.
fn is_external(rule: &Rule, place: Place) -> bool {
    let target = rule.target();
    let comment = rule.comment.as_deref().unwrap_or("");
    matches!(place, Place::NodePort(_))
        || [EXTERNAL, LOAD_BALANCER, LOCAL_ONLY]
            .iter()
            .any(|prefix| target.starts_with(prefix))
        || comment.ends_with(" external IP")
        || comment.ends_with(" loadbalancer IP")
}

fn has_service(target: &str) -> bool {
    [SERVICE, LOCAL_SERVICE, EXTERNAL, LOAD_BALANCER, LOCAL_ONLY]
        .iter()
        .any(|prefix| target.starts_with(prefix))
}

/// What the chains of one service have in common.
fn suffix(chain: &str) -> &str {
    let prefixes = [SERVICE, LOCAL_SERVICE, EXTERNAL, LOAD_BALANCER, LOCAL_ONLY];
    prefixes
        .iter()
        .find_map(|prefix| chain.strip_prefix(prefix))
        .unwrap_or(chain)
}

/// Of a source range at an address that lbd sends to no backend.
const NOBODY_LET_IN: &str = "there is no backend for what it lets in";
/// Of pods that kube-proxy does not hold to the backends on this node.
pub(super) const PODS_HELD: &str = "kube-proxy sends what comes from pods to the backends on other nodes, too, and lbd has \
                                    no such rule for a node port: pods get from it what others get";
/// Of clients on this node, which kube-proxy does not hold to the backends on it.
pub(super) const LOCAL_CLIENTS_HELD: &str = "lbd has no rules for clients on this node: they are treated as others";

/// What is said of a jump to a chain that was cut out of the dump.
pub(super) fn missing(chain: &str) -> String {
    format!("{chain} has no rule in this dump")
}

/// The chain has no rule where all of them are for the other family.
fn own_rules_of(placed: &Placed, v4: bool, context: &mut Context<'_>) {
    match context.dump.lacks(Table::Nat, OWN_RULES, v4) && !context.dump.declares(Table::Nat, OWN_RULES) {
        true => context.ledger.lost(placed.line, missing(OWN_RULES)),
        false => context.ledger.used(placed.line),
    }
}

impl Way {
    /// Why packets on this way get to no endpoint and are not dropped either, so that it is no service's.
    fn leads_nowhere(&self, target: &str, at: (bool, Protocol, Place), refusals: &Refusals) -> Option<String> {
        if let Some(chain) = self.missing.as_deref().filter(|_| self.list.is_none()) {
            return Some(match chain == target {
                true => missing(chain),
                false => format!("{target} leads to {chain}, which has no rule in this dump"),
            });
        }
        let drops = self.list.is_some() || self.drops || refusals.drop_at(at);
        (!drops).then(|| format!("{target} leads to no endpoint, and nothing in this dump drops what comes there"))
    }

    fn follow(target: &str, v4: bool, context: &mut Context<'_>) -> Self {
        let mut way = Self::default();
        way.walk(target, v4, context);
        way
    }

    /// KUBE-FW leads to KUBE-EXT leads to KUBE-SVC: no chain is walked twice.
    fn walk(&mut self, chain: &str, v4: bool, context: &mut Context<'_>) {
        if context.dump.lacks(Table::Nat, chain, v4) {
            self.missing = Some(chain.to_owned());
            return;
        }
        if chain.starts_with(SERVICE) || chain.starts_with(LOCAL_SERVICE) {
            self.list = Some(chain.to_owned());
            return;
        }
        if self.via.iter().any(|before| before == chain) {
            return;
        }
        self.via.push(chain.to_owned());
        let dump: &Dump = context.dump;
        let mut open = false;
        for placed in dump.chain(Table::Nat, chain, v4) {
            if open {
                // Until 1.25 a KUBE-FW chain ends with a drop of what its ranges did not let in.
                let why = "no packet comes here: the rule before it takes all";
                match placed.rule.target() {
                    MARK_DROP => context.ledger.needless(placed.line, Plumbing::Marks),
                    target if target.starts_with(ENDPOINT) => {}
                    _ => context.ledger.lost(placed.line, why),
                }
                continue;
            }
            open = self.step(placed, v4, context);
        }
    }

    /// One rule; whether it takes all packets.
    fn step(&mut self, placed: &Placed, v4: bool, context: &mut Context<'_>) -> bool {
        let (line, rule) = (placed.line, &placed.rule);
        match rule.target() {
            MARK_MASQUERADE => context.marks.add(placed, v4, context.ledger),
            "" if rule.kinds().is_empty() => context.ledger.needless(line, Plumbing::Notes),
            MARK_DROP if rule.kinds().is_empty() => {
                self.drops = true;
                context.ledger.used(line);
            }
            target if target.starts_with(ENDPOINT) => self.list = Some(rule.chain.clone()),
            target if has_service(target) => return self.jump(placed, v4, context),
            _ => context.ledger.lost(line, "kube-proxy has no such rule in this chain"),
        }
        false
    }

    fn jump(&mut self, placed: &Placed, v4: bool, context: &mut Context<'_>) -> bool {
        let (line, rule) = (placed.line, &placed.rule);
        let source = rule.source.as_ref().filter(|source| !source.negated);
        let is_missing = context.dump.lacks(Table::Nat, rule.target(), v4);
        if is_missing {
            context.ledger.lost(line, missing(rule.target()));
        }
        if rule.kinds().is_empty() {
            self.ranges = self.ranges.take().filter(|_| !rule.chain.starts_with(LOAD_BALANCER));
            self.walk(rule.target(), v4, context);
            context.ledger.used(line);
            return true;
        }
        match source.filter(|_| rule.has_only(&[Kind::Source])) {
            // Whom the others let in is known only where none is left out.
            Some(_) if rule.chain.starts_with(LOAD_BALANCER) && is_missing => drop(self.ranges.get_or_insert_default()),
            Some(source) if rule.chain.starts_with(LOAD_BALANCER) => {
                self.ranges.get_or_insert_default().push((source.value, line));
                if self.list.is_none() {
                    self.walk(rule.target(), v4, context);
                }
                context.ledger.idle(line, NOBODY_LET_IN);
            }
            Some(_) if is_missing => {}
            Some(source) => {
                self.pods.push((source.value, line, rule.target().to_owned()));
                context.ledger.idle(line, PODS_HELD);
            }
            None if rule.is_from_here() && rule.has_only(&[Kind::SourceType]) => {
                self.from_here = Some((line, rule.target().to_owned()));
                context.ledger.idle(line, LOCAL_CLIENTS_HELD);
            }
            None => context
                .ledger
                .lost(line, "lbd cannot let senders in by these conditions"),
        }
        false
    }
}
