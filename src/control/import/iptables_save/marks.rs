//! Which packets kube-proxy masquerades, and how much of that is a matter of `nat.masquerade`.
use std::collections::{HashMap, HashSet};

use super::dump::Placed;
use super::frontends::{Frontend, Place};
use super::ledger::{Ledger, Plumbing};
use super::rule::{Kind, Rule};
use lbd_core::flow::{Endpoint, Protocol};
use lbd_core::policy::Masquerade;

/// What rules with KUBE-MARK-MASQ say.
#[derive(Debug, Default)]
pub(super) struct Marks {
    /// Of whole chains, and of a destination, the lines that mark every packet.
    chains: HashMap<(bool, String), Vec<usize>>,
    places: HashMap<(bool, Protocol, Place), Vec<usize>>,
    /// Whether a backend that reaches itself is masqueraded anywhere.
    pub(super) hairpins: bool,
    /// Whether there is a backend anywhere.
    pub(super) backends: bool,
}

impl Marks {
    /// Takes note of a rule whose target is KUBE-MARK-MASQ.
    pub(super) fn add(&mut self, Placed { line, rule, .. }: &Placed, v4: bool, ledger: &mut Ledger) {
        let line = *line;
        let loopback = |rule: &Rule| {
            let source = rule.source.as_ref().filter(|source| !source.negated);
            source.is_some_and(|source| source.value.addr().is_loopback())
        };
        let spares_the_cluster = rule.source.as_ref().is_some_and(|source| source.negated)
            || rule.in_interface.as_ref().is_some_and(|interface| interface.negated)
            || rule.source_type.as_ref().is_some_and(|kind| kind.negated);
        if rule.is_from_here() || loopback(rule) {
            ledger.needless(line, Plumbing::LocalClients);
        } else if spares_the_cluster {
            ledger.needless(line, Plumbing::OffCluster);
        } else if !self.marks_all(line, rule, v4) {
            ledger.lost(line, "lbd cannot masquerade by these conditions");
        }
    }

    fn marks_all(&mut self, line: usize, rule: &Rule, v4: bool) -> bool {
        let conditions = [
            Kind::Destination,
            Kind::Protocol,
            Kind::DestinationPort,
            Kind::PhysicalDevice,
        ];
        if !rule.has_only(&conditions) {
            return false;
        }
        if rule.kinds().is_empty() {
            self.chains.entry((v4, rule.chain.clone())).or_default().push(line);
            return true;
        }
        let protocol = rule.protocol.as_ref().filter(|protocol| !protocol.negated);
        let protocol = protocol.and_then(|protocol| protocol.value.parse::<Protocol>().ok());
        let place = match (rule.host(), rule.port()) {
            (Some(host), Some(port)) => Place::At(Endpoint::new(host, port)),
            (None, Some(port)) if port != 0 && rule.destination.is_none() => Place::NodePort(port),
            (None, _) | (Some(_), None) => return false,
        };
        protocol.is_some_and(|protocol| {
            self.places.entry((v4, protocol, place)).or_default().push(line);
            true
        })
    }

    /// Settles `nat.masquerade`: only where all is masqueraded, or nothing, can one word say it.
    pub(super) fn settle(self, frontends: &[Frontend], ledger: &mut Ledger) -> Masquerade {
        let all = |frontend: &Frontend| {
            let place = (frontend.v4, frontend.protocol, frontend.place);
            let mut chains = frontend.way.via.iter().chain(&frontend.way.list);
            self.places.contains_key(&place)
                || chains.any(|chain| self.chains.contains_key(&(frontend.v4, chain.clone())))
        };
        let is_external = |frontend: &&Frontend| frontend.external;
        let clusters: Vec<&Frontend> = frontends.iter().filter(|frontend| !is_external(frontend)).collect();
        let always = self.backends && !frontends.is_empty() && frontends.iter().all(all);
        let external: HashSet<(bool, Protocol, Place)> = frontends
            .iter()
            .filter(is_external)
            .map(|f| (f.v4, f.protocol, f.place))
            .collect();
        for (key, line) in each(&self.places) {
            if always {
                ledger.used(line);
            } else if external.contains(key) || matches!(key.2, Place::NodePort(_)) {
                ledger.needless(line, Plumbing::External);
            } else {
                ledger.lost(line, PARTLY);
            }
        }
        for (&(v4, ref chain), line) in each(&self.chains) {
            let of_cluster = clusters
                .iter()
                .any(|f| f.v4 == v4 && f.way.list.as_ref() == Some(chain));
            match (always, of_cluster) {
                (true, _) => ledger.used(line),
                (false, true) => ledger.lost(line, PARTLY),
                (false, false) => ledger.needless(line, Plumbing::External),
            }
        }
        match (always, self.backends && !self.hairpins) {
            (true, _) => Masquerade::Always,
            (false, true) => Masquerade::Never,
            (false, false) => Masquerade::Auto,
        }
    }
}

/// Each key with each of its lines.
fn each<K>(lines: &HashMap<K, Vec<usize>>) -> impl Iterator<Item = (&K, usize)> {
    lines
        .iter()
        .flat_map(|(key, lines)| lines.iter().map(move |&line| (key, line)))
}

const PARTLY: &str = "only a part of the dump is masqueraded, and lbd knows no masquerading of single services: \
                      set nat.masquerade = \"always\" to have it for all";
