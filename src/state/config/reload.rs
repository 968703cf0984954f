//! What a new configuration changes: one line for the log, and what only a restart can change.
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::Arc;

use super::Config;
use super::settings::settings;
use super::words::{IDLE_FLAGS, ON_BACKEND_REMOVED, word_of};
use lbd_core::policy::{BackendSpec, Policy, ServiceSpec, differing};

/// How many services the line names.
const MOST_NAMED: usize = 4;

/// How a list changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Members that are new.
    pub added: usize,
    /// Members that stay, changed.
    pub changed: usize,
    /// Members that are gone.
    pub removed: usize,
    /// Whether the members that stay come in another order.
    pub reordered: bool,
}

/// What a new configuration changes. Its text is one line, e.g.
/// `mode ipvs -> iptables; services +1 ~1 -0 (default/web:http: backends +1 -2 ~1; +default/dns)`, or `nothing changed`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// `key old -> new`, for every key outside of lists.
    pub settings: Vec<String>,
    /// Rules before and after, if they are not the same.
    pub rules: Option<(usize, usize)>,
    /// Services.
    pub services: Counts,
    /// What happened to which service, in the order of the new configuration, those that are gone last.
    pub details: Vec<String>,
}

/// Compares two configurations.
#[must_use]
pub fn describe(old: &Config, new: &Config) -> Changes {
    let mut changes = Changes::default();
    for (key, before, after) in changed_settings(old, new) {
        changes.settings.push(format!("{key} {before} -> {after}"));
    }
    if old.policy.rules != new.policy.rules {
        changes.rules = Some((old.policy.rules.len(), new.policy.rules.len()));
    }
    services(&old.policy, &new.policy, &mut changes);
    changes
}

/// The changes that lbd cannot make while it runs, each with its remedy. Empty: the reload may go on.
#[must_use]
pub fn refuse_restart_only(old: &Config, new: &Config) -> Vec<String> {
    changed_settings(old, new)
        .filter(|(key, ..)| needs_restart(key))
        .map(|(key, before, after)| format!("{key} = {after}: cannot change from {before} while lbd runs: restart lbd"))
        .collect()
}

fn needs_restart(key: &str) -> bool {
    ["datapath.", "tun.", "af_xdp.", "control."]
        .iter()
        .any(|section| key.starts_with(section))
}

/// (key, old value, new value) of each setting that differs.
fn changed_settings(old: &Config, new: &Config) -> impl Iterator<Item = (&'static str, String, String)> {
    // What changes by itself with the mode is not told.
    let mode = new.policy.mode;
    let pairs = settings(old, mode).into_iter().zip(settings(new, mode));
    let pairs = pairs.map(|((key, before), (_, after))| (key, before, after));
    pairs.filter(|(_, before, after)| before != after)
}

fn services(old: &Policy, new: &Policy, changes: &mut Changes) {
    // Of thousands of services few differ.
    let (old, new) = differing(&old.services, &new.services);
    let named = |service: &Arc<ServiceSpec>| service.name.clone();
    changes.services = counts(old, new, named);
    let before = by_name(old);
    for service in new {
        let detail = match before.get(service.name.as_str()) {
            None => format!("+{}", service.name),
            Some(&was) if was == service => continue,
            Some(was) => format!("{}: {}", service.name, service_change(was, service)),
        };
        changes.details.push(detail);
    }
    let after = by_name(new);
    let gone = old.iter().filter(|was| !after.contains_key(was.name.as_str()));
    changes.details.extend(gone.map(|was| format!("-{}", was.name)));
}

fn by_name(services: &[Arc<ServiceSpec>]) -> HashMap<&str, &Arc<ServiceSpec>> {
    services
        .iter()
        .map(|service| (service.name.as_str(), service))
        .collect()
}

/// How a list changed whose members are told apart by `key`.
fn counts<T: PartialEq, K: Eq + std::hash::Hash>(old: &[T], new: &[T], key: impl Fn(&T) -> K) -> Counts {
    let before: HashMap<K, &T> = old.iter().map(|each| (key(each), each)).collect();
    let after: HashSet<K> = new.iter().map(&key).collect();
    let stayed: Vec<(&T, &T)> = new
        .iter()
        .filter_map(|each| Some((*before.get(&key(each))?, each)))
        .collect();
    let order = old.iter().map(&key).filter(|key| after.contains(key));
    Counts {
        added: new.len() - stayed.len(),
        changed: stayed.iter().filter(|(was, is)| was != is).count(),
        removed: old.len() - stayed.len(),
        reordered: !order.eq(stayed.iter().map(|(_, is)| key(is))),
    }
}

fn service_change(old: &ServiceSpec, new: &ServiceSpec) -> String {
    let mut parts: Vec<String> = facts(old)
        .into_iter()
        .zip(facts(new))
        .filter(|(before, after)| before != after)
        .map(|((key, before), (_, after))| format!("{key} {before} -> {after}"))
        .collect();
    if old.backends != new.backends {
        let counts = counts(&old.backends, &new.backends, |backend: &BackendSpec| backend.address);
        parts.push(backends_change(counts));
    }
    parts.join(", ")
}

/// Every key of a service but its name and backends.
fn facts(service: &ServiceSpec) -> [(&'static str, String); 9] {
    let ServiceSpec {
        name: _,
        protocol,
        address,
        external_addresses,
        node_port,
        scheduler,
        flags,
        persistence,
        one_packet,
        on_backend_removed,
        backends: _,
    } = service;
    let or_none = |value: Option<String>| value.unwrap_or_else(|| "none".to_owned());
    let affinity = persistence.map(|affinity| {
        let timeout = humantime::format_duration(affinity.timeout);
        format!("{timeout}/{}", affinity.prefix_length)
    });
    let kind = scheduler.map_or_else(|| "default".to_owned(), |kind| kind.to_string());
    let effective = [("port", flags.port), ("fallback", flags.fallback)].into_iter();
    let idle = IDLE_FLAGS.iter().map(|&(word, flag)| (word, flags.idle.contains(flag)));
    let set = effective.chain(idle).filter(|(_, set)| *set);
    let words: Vec<&str> = set.map(|(word, _)| word).collect();
    let flags = (!words.is_empty()).then(|| words.join(" and "));
    let removed = on_backend_removed.map(|rule| word_of(rule, ON_BACKEND_REMOVED));
    [
        ("protocol", protocol.to_string()),
        ("address", address.to_string()),
        ("external_addresses", format!("{external_addresses:?}")),
        ("node_port", or_none(node_port.map(|port| port.to_string()))),
        ("scheduler", kind),
        ("scheduler_flags", or_none(flags)),
        ("persistence", or_none(affinity)),
        ("ops", one_packet.to_string()),
        ("on_backend_removed", removed.unwrap_or("default").to_owned()),
    ]
}

/// `backends +1 -2 ~1`, without the zeros.
fn backends_change(counts: Counts) -> String {
    let Counts {
        added,
        changed,
        removed,
        reordered,
    } = counts;
    let mut text = "backends".to_owned();
    for (sign, count) in [('+', added), ('-', removed), ('~', changed)] {
        if count > 0 {
            text += &format!(" {sign}{count}");
        }
    }
    if reordered { text + " reordered" } else { text }
}

impl Changes {
    /// Whether both configurations are the same.
    #[must_use]
    pub fn is_nothing(&self) -> bool {
        *self == Self::default()
    }

    /// `services +1 ~2 -0 (...)`, if any changed.
    fn services_text(&self) -> Option<String> {
        let Counts {
            added,
            changed,
            removed,
            reordered,
        } = self.services;
        if self.services == Counts::default() {
            return None;
        }
        let order = if reordered { " reordered" } else { "" };
        let mut named: Vec<String> = self.details.iter().take(MOST_NAMED).cloned().collect();
        let more = self.details.len() - named.len();
        if more > 0 {
            named.push(format!("{more} more"));
        }
        let named = match named.is_empty() {
            true => String::new(),
            false => format!(" ({})", named.join("; ")),
        };
        Some(format!("services +{added} ~{changed} -{removed}{order}{named}"))
    }
}

impl fmt::Display for Changes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_nothing() {
            return f.write_str("nothing changed");
        }
        let rules = self.rules.map(|(before, after)| match before == after {
            true => format!("rules changed ({after})"),
            false => format!("rules {before} -> {after}"),
        });
        let parts = self.settings.iter().cloned().chain(rules);
        let parts: Vec<String> = parts.chain(self.services_text()).collect();
        f.write_str(&parts.join("; "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::parse;

    fn config(text: &str) -> Config {
        parse("lbd.toml", text).unwrap().config
    }

    fn service(name: &str, address: &str, rest: &str) -> String {
        format!("[[services]]\nname = \"{name}\"\nprotocol = \"tcp\"\naddress = \"{address}\"\n{rest}\n")
    }

    fn line(old: &str, new: &str) -> String {
        describe(&config(old), &config(new)).to_string()
    }

    #[test]
    fn the_same_file_again_changes_nothing() {
        let text = service("web", "10.96.0.10:80", "");
        assert_eq!(line(&text, &text), "nothing changed");
    }

    #[test]
    fn the_log_says_which_services_came_changed_and_went() {
        let old = service(
            "web",
            "10.96.0.10:80",
            r#"backends = [{ address = "10.2.0.1:80" }, { address = "10.2.0.2:80" }, { address = "10.2.0.3:80" }]"#,
        ) + &service("old", "10.96.0.11:80", "")
            + &service("same", "10.96.0.12:80", "");
        let new = "mode = \"iptables\"\n".to_owned()
            + &service(
                "web",
                "10.96.0.10:80",
                r#"scheduler = "wrr"
                backends = [{ address = "10.2.0.1:80", weight = 3 }, { address = "10.2.0.4:80" }]"#,
            )
            + &service("same", "10.96.0.12:80", "")
            + &service("new", "10.96.0.13:80", "");
        assert_eq!(
            line(&old, &new),
            "mode ipvs -> iptables; services +1 ~1 -1 \
             (web: scheduler default -> wrr, backends +1 -2 ~1; +new; -old)"
        );
    }

    #[test]
    fn many_changed_services_are_counted_and_only_a_few_are_named() {
        let many: String = (1..=10)
            .map(|n| service(&format!("s{n}"), &format!("10.96.0.{n}:80"), ""))
            .collect();
        assert_eq!(line("", &many), "services +10 ~0 -0 (+s1; +s2; +s3; +s4; 6 more)");
    }

    #[test]
    fn an_order_alone_is_a_change_because_schedulers_follow_it() {
        let web = |backends: &str| service("web", "10.96.0.10:80", backends);
        let old = web(r#"backends = [{ address = "10.2.0.1:80" }, { address = "10.2.0.2:80" }]"#);
        let new = web(r#"backends = [{ address = "10.2.0.2:80" }, { address = "10.2.0.1:80" }]"#);
        assert_eq!(line(&old, &new), "services +0 ~1 -0 (web: backends reordered)");
    }

    #[test]
    fn settings_and_rules_are_named() {
        let new = "mode = \"iptables\"\n[conntrack]\nudp = \"1m\"\n[[rules]]\naction = \"drop\"\n";
        assert_eq!(
            line("", new),
            "mode ipvs -> iptables; conntrack.udp 5m -> 1m; rules 0 -> 1"
        );
    }

    #[test]
    fn how_rules_are_evaluated_can_be_changed_while_lbd_runs() {
        let (old, new) = (config(""), config("[iptables]\nevaluation = \"linear\"\n"));
        assert_eq!(
            describe(&old, &new).to_string(),
            "iptables.evaluation compiled -> linear"
        );
        assert!(refuse_restart_only(&old, &new).is_empty());
    }

    #[test]
    fn what_only_a_restart_can_change_is_refused_by_name() {
        let old = config("");
        let new = config("mode = \"iptables\"\n[tun]\nmtu = 9000\n[control]\nsocket = \"/tmp/s\"\n");
        assert_eq!(
            refuse_restart_only(&old, &new),
            [
                "tun.mtu = 9000: cannot change from 1500 while lbd runs: restart lbd",
                "control.socket = /tmp/s: cannot change from /run/lbd/lbd.sock while lbd runs: restart lbd"
            ]
        );
        assert!(refuse_restart_only(&old, &config("mode = \"iptables\"\n")).is_empty());
    }
}
