//! A configuration as `iptables-save` would print it on a node where kube-proxy had written it.
//!
//! Chains, their names and the order of rules are those of kube-proxy 1.30. It knows no rules of a user's own, so these
//! get chains of lbd's: LBD-RULES is checked first, and what it drops or refuses is marked and stopped in the filter
//! table. One text holds both families: beside `-6` rules the others have `-4`, which `iptables-restore` and
//! `ip6tables-restore` understand, each leaving out what is for the other. What iptables cannot say is a comment.
//! [`crate::import::iptables_save`] reads it back.
mod rules;
mod services;
mod text;
mod unsaid;

use std::net::IpAddr;

use self::rules::own_rules;
use self::services::Written;
use self::text::{Family, Table};
use crate::import::kube_proxy::{
    EXTERNAL_SERVICES, FORWARD, HEADER, MARK_MASQUERADE, NODE_PORTS, OWN_FIREWALL, POSTROUTING, SERVICES,
};
use lbd_core::policy::{Masquerade, Mode, Policy};
use lbd_state::config::Config;

/// What is printed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exported {
    /// Two tables, as `iptables-save` writes them, with the remarks as comments.
    pub text: String,
    /// What of the configuration is not in it, or not as it is.
    pub remarks: Vec<String>,
}

/// Writes the rules.
#[must_use]
pub fn export(config: &Config) -> Exported {
    let policy = &config.policy;
    let mut remarks = of_settings(policy);
    let nodes = config.node_addresses.as_deref();
    let both = has_ipv6(policy, nodes);
    let mut nat = Table::new("nat", both, &["PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"]);
    let mut filter = Table::new("filter", both, &["INPUT", "FORWARD", "OUTPUT"]);
    frame(&mut nat, &mut filter, policy);
    let written = Written::of(policy, &mut remarks);
    own_rules(&policy.rules, &written, &mut nat, &mut filter, &mut remarks);
    written.print(policy.nat.masquerade, nodes, &mut nat, &mut filter);
    Exported {
        text: page(&remarks, &filter, &nat),
        remarks,
    }
}

fn has_ipv6(policy: &Policy, nodes: Option<&[IpAddr]>) -> bool {
    let services = policy.services.iter().map(|service| service.address.address);
    let mut all = services.chain(nodes.into_iter().flatten().copied());
    all.any(|address| address.is_ipv6()) || rules::have_ipv6(&policy.rules)
}

fn page(remarks: &[String], filter: &Table, nat: &Table) -> String {
    let mut text = format!("{HEADER}\n");
    for remark in remarks {
        text += &format!("# not shown: {remark}\n");
    }
    text += &filter.to_string();
    text += &nat.to_string();
    text
}

/// kube-proxy has one mode here, and lbd's defaults are its.
fn of_settings(policy: &Policy) -> Vec<String> {
    let mut remarks = Vec::new();
    match policy.mode {
        Mode::Iptables => {}
        Mode::Ipvs => remarks.push("mode = \"ipvs\": these are the rules that iptables mode would have".to_owned()),
    }
    let backends = policy
        .services
        .iter()
        .any(|service| service.backends.iter().any(|backend| backend.weight > 0));
    match policy.nat.masquerade {
        Masquerade::Auto => {}
        Masquerade::Always | Masquerade::Never if backends => {}
        Masquerade::Always => remarks.push("nat.masquerade = \"always\": no service has a backend".to_owned()),
        Masquerade::Never => remarks.push("nat.masquerade = \"never\": no service has a backend".to_owned()),
    }
    remarks
}

/// What kube-proxy writes whatever the services.
fn frame(nat: &mut Table, filter: &mut Table, policy: &Policy) {
    let portals = "-m comment --comment \"kubernetes service portals\"";
    let external = "-m comment --comment \"kubernetes externally-visible service portals\"";
    let new = "-m conntrack --ctstate NEW";
    for chain in [EXTERNAL_SERVICES, FORWARD, SERVICES] {
        filter.chain(chain);
    }
    if !policy.rules.is_empty() {
        // Before what accepts packets of known flows.
        filter.chain(OWN_FIREWALL);
        for chain in ["INPUT", "FORWARD", "OUTPUT"] {
            filter.rule(Family::Both, chain, &format!("-j {OWN_FIREWALL}"));
        }
    }
    filter.rule(
        Family::Both,
        "INPUT",
        &format!("{new} {external} -j {EXTERNAL_SERVICES}"),
    );
    filter.rule(Family::Both, "FORWARD", &format!("-j {FORWARD}"));
    filter.rule(Family::Both, "FORWARD", &format!("{new} {portals} -j {SERVICES}"));
    filter.rule(
        Family::Both,
        "FORWARD",
        &format!("{new} {external} -j {EXTERNAL_SERVICES}"),
    );
    filter.rule(Family::Both, "OUTPUT", &format!("{new} {portals} -j {SERVICES}"));
    filter.rule(Family::Both, FORWARD, "-m mark --mark 0x4000/0x4000 -j ACCEPT");
    filter.rule(
        Family::Both,
        FORWARD,
        "-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
    );
    for chain in [MARK_MASQUERADE, NODE_PORTS, POSTROUTING, SERVICES] {
        nat.chain(chain);
    }
    nat.rule(Family::Both, "PREROUTING", &format!("{portals} -j {SERVICES}"));
    nat.rule(Family::Both, "OUTPUT", &format!("{portals} -j {SERVICES}"));
    if policy.nat.masquerade != Masquerade::Never {
        masquerading(nat);
    }
}

fn masquerading(nat: &mut Table) {
    let requiring = "-m comment --comment \"kubernetes service traffic requiring SNAT\"";
    let postrouting = "-m comment --comment \"kubernetes postrouting rules\"";
    nat.rule(Family::Both, "POSTROUTING", &format!("{postrouting} -j {POSTROUTING}"));
    nat.rule(Family::Both, MARK_MASQUERADE, "-j MARK --set-xmark 0x4000/0x4000");
    nat.rule(Family::Both, POSTROUTING, "-m mark ! --mark 0x4000/0x4000 -j RETURN");
    nat.rule(Family::Both, POSTROUTING, "-j MARK --set-xmark 0x4000/0x0");
    nat.rule(
        Family::Both,
        POSTROUTING,
        &format!("{requiring} -j MASQUERADE --random-fully"),
    );
}

#[cfg(test)]
mod tests;
