//! kube-proxy's iptables mode. The chains are those that lbd's own export writes, which follows kube-proxy 1.30.
use std::collections::HashSet;

use lbd::config;
use lbd::export::iptables_save;

use super::{Change, has_command, write};
use crate::Outcome;
use crate::rig::{Place, shell};
use crate::world::{self, World};

/// Chains of single services and endpoints.
const SMALL_CHAINS: [&str; 4] = ["KUBE-SVC-", "KUBE-SVL-", "KUBE-EXT-", "KUBE-SEP-"];

/// The program that kube-proxy runs on a kernel of today, else the one that there is.
pub(super) fn restore() -> &'static str {
    if has_command("iptables-nft-restore") {
        "iptables-nft-restore"
    } else {
        "iptables-restore"
    }
}

pub(super) fn start(world: World) -> Outcome<()> {
    let path = write("chains", &chains(world)?)?;
    shell(Place::Balancer, &format!("{} --counters <{path}", restore())).map(drop)
}

pub(super) fn stop() -> Outcome<()> {
    // What is left of iptables over nf_tables must not even be hooked in; of the older tables the rules go.
    let empty = "*nat\\nCOMMIT\\n*filter\\nCOMMIT\\n";
    let flush = if restore() == "iptables-nft-restore" && has_command("nft") {
        "nft flush ruleset".to_owned()
    } else {
        format!("printf '{empty}' | {}", restore())
    };
    shell(Place::Balancer, &flush).map(drop)
}

/// All chains once more.
pub(super) fn all(world: World) -> Outcome<Change> {
    let text = without_hooks(&chains(world)?);
    command(&text)
}

/// The list of services and the chains of one service only.
pub(super) fn changed(world: World, service: u32) -> Outcome<Change> {
    let text = without_hooks(&chains(world)?);
    command(&only_chains_of(&text, &world::name(service)))
}

fn command(text: &str) -> Outcome<Change> {
    let path = write("changed-chains", text)?;
    let restore = restore();
    Ok(Change::of(format!("{restore} --noflush --counters <{path}")))
}

fn chains(world: World) -> Outcome<String> {
    let toml = format!("mode = \"iptables\"\n{}", world.toml());
    let loaded = config::parse("bench.toml", &toml).map_err(|errors| format!("{errors:?}"))?;
    Ok(iptables_save::export(&loaded.config).text)
}

/// The rules of the built-in chains are there already and are not flushed: kube-proxy does not write them again.
fn without_hooks(text: &str) -> String {
    let is_hook = |line: &str| {
        let built_in = ["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"];
        let word = line.split_whitespace().nth(1).unwrap_or_default();
        line.starts_with("-A ") && built_in.contains(&word)
    };
    lines(text.lines().filter(|line| !is_hook(line)))
}

/// Leaves out the chains of other services, whose rules name other services in their comments.
fn only_chains_of(text: &str, service: &str) -> String {
    let (plain, with_port) = (format!("\"{service}\""), format!("\"{service} "));
    let rules = text.lines().filter(|line| line.starts_with("-A ") && is_small(line));
    let ours = rules.filter(|line| line.contains(&plain) || line.contains(&with_port));
    let ours: HashSet<&str> = ours.filter_map(chain_of).collect();
    let stays = |line: &&str| chain_of(line).is_none_or(|chain| !is_small(line) || ours.contains(chain));
    lines(text.lines().filter(stays))
}

fn is_small(line: &str) -> bool {
    chain_of(line).is_some_and(|chain| SMALL_CHAINS.iter().any(|prefix| chain.starts_with(prefix)))
}

/// The chain that a line declares or adds to.
fn chain_of(line: &str) -> Option<&str> {
    let name = line.strip_prefix(':').or_else(|| line.strip_prefix("-A "))?;
    name.split_whitespace().next()
}

fn lines<'a>(lines: impl Iterator<Item = &'a str>) -> String {
    lines.fold(String::new(), |text, line| text + line + "\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_endpoint_takes_all_of_the_list_but_only_the_chains_of_its_service() {
        let world = World::many(100);
        let text = only_chains_of(&without_hooks(&chains(world).unwrap()), "bench/s50");
        let rules = |start: &str| text.lines().filter(|line| line.starts_with(start)).count();
        assert!(rules("-A KUBE-SERVICES") >= 100);
        // One endpoint: a chain for the service, one for the endpoint.
        assert_eq!((rules(":KUBE-SVC-"), rules(":KUBE-SEP-")), (1, 1), "{text}");
        assert_eq!(rules("-A PREROUTING"), 0);
        assert!(rules("-A KUBE-SEP-") >= 1 && rules("-A KUBE-SVC-") >= 1, "{text}");
    }
}
