//! The filter table: services without endpoints, and what is dropped.
use super::dump::{Dump, Placed, Table};
use super::frontends::Place;
use super::ledger::{Ledger, Plumbing};
use super::names::service_name;
use super::rule::Kind;
use crate::import::kube_proxy::{
    EXTERNAL_SERVICES, FIREWALL, FORWARD, NODE_PORTS, OWN_FIREWALL, PROXY_FIREWALL, SERVICES,
};
use lbd_core::flow::{Endpoint, Protocol};

/// A place that nobody is let in at.
#[derive(Clone, Debug)]
pub(super) struct Refusal {
    pub(super) place: Place,
    pub(super) protocol: Protocol,
    pub(super) v4: bool,
    /// Dropped, for want of endpoints on this node only.
    pub(super) drops: bool,
    pub(super) external: bool,
    pub(super) name: Option<String>,
    pub(super) line: usize,
}

/// A load-balancer address that lets in only some: where, and by which rule.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fence {
    pub(super) place: Place,
    pub(super) protocol: Protocol,
    pub(super) line: usize,
}

/// What the filter table says.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    pub(super) all: Vec<Refusal>,
    pub(super) fences: Vec<Fence>,
}

impl Refusals {
    /// Reads the chains for one family.
    pub(super) fn read(&mut self, v4: bool, dump: &Dump, ledger: &mut Ledger) {
        for (chain, external) in [(SERVICES, false), (EXTERNAL_SERVICES, true)] {
            for placed in dump.chain(Table::Filter, chain, v4) {
                self.refusal(placed, v4, external, dump.exact_names, ledger);
            }
        }
        for placed in dump.chain(Table::Filter, PROXY_FIREWALL, v4) {
            let fence = placed_at(placed).filter(|_| placed.rule.target() == "DROP");
            self.fences.extend(fence.map(|(protocol, place)| Fence {
                place,
                protocol,
                line: placed.line,
            }));
        }
        for placed in dump.chain(Table::Filter, NODE_PORTS, v4) {
            if placed.rule.target() == "ACCEPT" {
                ledger.lost(placed.line, "lbd answers no health checks of load balancers");
            }
        }
        for chain in [FIREWALL, FORWARD, OWN_FIREWALL] {
            for placed in dump.chain(Table::Filter, chain, v4) {
                forwarding(placed, ledger);
            }
        }
    }

    /// Whether anything that no endpoint takes is dropped there.
    pub(super) fn drop_at(&self, at: (bool, Protocol, Place)) -> bool {
        let dropped = |refusal: &Refusal| refusal.drops && (refusal.v4, refusal.protocol, refusal.place) == at;
        let fenced = |fence: &Fence| (fence.protocol, fence.place) == (at.1, at.2);
        self.all.iter().any(dropped) || self.fences.iter().any(fenced)
    }

    fn refusal(&mut self, placed: &Placed, v4: bool, external: bool, exact: bool, ledger: &mut Ledger) {
        let drops = match placed.rule.target() {
            "REJECT" => false,
            "DROP" => true,
            _ => return,
        };
        match placed_at(placed) {
            None => ledger.lost(
                placed.line,
                "a service is at one address and port, or at one port of the node",
            ),
            Some((protocol, place)) => self.all.push(Refusal {
                name: service_name(&placed.rule, exact),
                line: placed.line,
                external: external || matches!(place, Place::NodePort(_)),
                place,
                protocol,
                v4,
                drops,
            }),
        }
    }
}

/// Whom a rule of the filter table is for.
fn placed_at(Placed { rule, .. }: &Placed) -> Option<(Protocol, Place)> {
    let kinds = [
        Kind::Destination,
        Kind::Protocol,
        Kind::DestinationPort,
        Kind::DestinationType,
    ];
    let protocol = rule
        .protocol
        .as_ref()
        .filter(|protocol| !protocol.negated)?
        .value
        .parse()
        .ok()?;
    let port = rule.port().filter(|_| rule.has_only(&kinds))?;
    let place = match rule.host() {
        Some(host) => Place::At(Endpoint::new(host, port)),
        None if rule.is_to_here() && port != 0 => Place::NodePort(port),
        None => return None,
    };
    Some((protocol, place))
}

/// What kube-proxy and the kubelet do for every forwarded packet; until 1.20 with the cluster's addresses.
fn forwarding(placed: &Placed, ledger: &mut Ledger) {
    let rule = &placed.rule;
    let kinds = [
        Kind::Mark,
        Kind::State,
        Kind::Source,
        Kind::Destination,
        Kind::Protocol,
        Kind::Accounting,
    ];
    let marked_or_tracked = rule.kinds().iter().any(|kind| matches!(kind, Kind::Mark | Kind::State));
    if marked_or_tracked && rule.has_only(&kinds) && matches!(rule.target(), "DROP" | "ACCEPT" | "REJECT") {
        let accepts = rule.target() == "ACCEPT";
        let kind = if accepts {
            Plumbing::Forwarding
        } else {
            Plumbing::Guards
        };
        ledger.needless(placed.line, kind);
    }
}
