//! The example configurations load, and full.toml shows every key that exists.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test fails by panicking and says on stdout why it was skipped"
)]

use std::collections::BTreeSet;
use std::path::PathBuf;

use lbd::config::{Config, load, raw, to_toml};
use lbd::policy::{Mode, OnBackendRemoved};

fn example(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("configs").join(name)
}

fn loaded(name: &str) -> Config {
    match load(&example(name)) {
        Ok(loaded) => {
            assert_eq!(loaded.warnings, [], "{name}");
            loaded.config
        }
        Err(errors) => panic!("{errors:#?}"),
    }
}

/// The names of all keys in a table and in the tables below it.
fn keys(value: &toml::Value, found: &mut BTreeSet<String>) {
    if let Some(table) = value.as_table() {
        for (key, value) in table {
            found.insert(key.clone());
            keys(value, found);
        }
    }
    let items = value.as_array().into_iter().flatten();
    items.for_each(|item| keys(item, found));
}

/// The keys that full.toml writes in the table called `place`; of a list of tables, in all of them.
fn keys_at(place: &str, file: &toml::Table) -> BTreeSet<String> {
    let services = &file["services"][0];
    let table = match place {
        "the top level" => toml::Value::Table(file.clone()),
        "[[rules]]" => file["rules"].clone(),
        "[[services]]" => file["services"].clone(),
        "persistence" => services["persistence"].clone(),
        "backends" => services["backends"].clone(),
        section => file[section.trim_matches(['[', ']'])].clone(),
    };
    let items = table.as_array().into_iter().flatten();
    let tables = items.filter_map(toml::Value::as_table).chain(table.as_table());
    tables.flat_map(|table| table.keys().cloned()).collect()
}

#[test]
fn every_example_loads_without_a_warning_and_is_listed_here() {
    let listed = ["full.toml", "iptables.toml", "minimal.toml", "svc.toml", "xdp.toml"];
    for name in listed {
        loaded(name);
    }
    let directory = std::fs::read_dir(example("")).unwrap();
    let mut there: Vec<String> = directory
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.ends_with(".toml"))
        .collect();
    there.sort();
    assert_eq!(there, listed);
}

#[test]
fn every_example_is_saved_as_it_was_loaded() {
    for name in ["full.toml", "iptables.toml", "minimal.toml", "svc.toml", "xdp.toml"] {
        let config = loaded(name);
        let again = lbd::config::parse("saved.toml", &to_toml(&config)).unwrap();
        assert_eq!(again.config, config, "{name}");
    }
}

#[test]
fn full_toml_shows_every_key_of_every_table() {
    let text = std::fs::read_to_string(example("full.toml")).unwrap();
    let file: toml::Table = text.parse().unwrap();
    for (place, known) in raw::TABLES {
        let known: BTreeSet<String> = known.iter().map(|&key| key.to_owned()).collect();
        assert_eq!(keys_at(place, &file), known, "{place}");
    }
}

#[test]
fn the_tables_of_the_code_are_all_that_full_toml_has() {
    let text = std::fs::read_to_string(example("full.toml")).unwrap();
    let mut written = BTreeSet::new();
    keys(&toml::Value::Table(text.parse().unwrap()), &mut written);
    let known = raw::TABLES.iter().flat_map(|(_, keys)| keys.iter().copied());
    let known: BTreeSet<String> = known.map(str::to_owned).collect();
    assert_eq!(written, known);
}

#[test]
fn the_defaults_that_full_toml_shows_are_the_real_ones() {
    let (full, default) = (loaded("full.toml"), loaded("minimal.toml"));
    let mut conntrack = full.policy.conntrack;
    // What is not written depends on the protocol.
    assert_eq!(conntrack.on_backend_removed.take(), Some(OnBackendRemoved::Preserve));
    assert_eq!(conntrack, default.policy.conntrack);
    assert_eq!(full.policy.icmp, default.policy.icmp);
    assert_eq!(full.policy.nat, default.policy.nat);
    assert_eq!(full.tun, default.tun);
    assert_eq!(full.control_socket, default.control_socket);
    assert_eq!(full.datapath.workers, default.datapath.workers);
}

/// The configuration that the contract shows, where the contract is to be had.
fn of_the_contract() -> Option<String> {
    let shared = std::env::var_os("LBD_SHARED").map(PathBuf::from);
    let shared = shared.unwrap_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../shared"));
    let text = std::fs::read_to_string(shared.join("CONTRACT.md")).ok()?;
    let (_, block) = text.split_once("```toml\n")?;
    Some(block.split_once("```")?.0.to_owned())
}

/// Tables of the contract that lbd does not know yet.
const TABLES_TO_COME: [&str; 5] = ["[state]", "[http]", "[log]", "[health.web]", "[kubernetes]"];

/// Keys of the contract that lbd does not know yet, with their tables; so are a backend's `local` and `draining`.
const KEYS_TO_COME: [(&str, &str); 12] = [
    ("[datapath]", "shortcut"),
    ("[datapath]", "shortcut_flows"),
    ("[node]", "pod_networks"),
    ("[[services]]", "load_balancer_addresses"),
    ("[[services]]", "masquerade"),
    ("[[services]]", "source_ranges"),
    ("[[services]]", "external_traffic_policy"),
    ("[[services]]", "internal_traffic_policy"),
    ("[[services]]", "on_empty"),
    ("[[services]]", "on_empty_local"),
    ("[[services]]", "sorry"),
    ("[[services]]", "health"),
];

/// Splits the contract's configuration into what lbd knows today and the lines that it does not know yet.
fn known_today(text: &str) -> (String, Vec<&str>) {
    let (mut known, mut to_come, mut table) = (String::new(), Vec::new(), "");
    for line in text.lines() {
        if line.starts_with('[') {
            table = line.split([' ', '#']).next().unwrap_or_default();
        }
        let is_key = |key: &str| {
            let rest = line.trim_start().strip_prefix(key);
            rest.is_some_and(|rest| rest.trim_start().starts_with('='))
        };
        let is_to_come = TABLES_TO_COME.contains(&table)
            || KEYS_TO_COME.iter().any(|(of, key)| *of == table && is_key(key))
            || line.contains("draining = true");
        match is_to_come {
            true => to_come.push(line),
            false => known.push_str(&format!("{line}\n")),
        }
    }
    (known, to_come)
}

#[test]
fn the_configuration_of_the_contract_loads_and_is_saved_as_it_was_loaded() {
    let Some(text) = of_the_contract() else {
        println!("skipped: no CONTRACT.md in $LBD_SHARED or ../shared");
        return;
    };
    let (text, to_come) = known_today(&text);
    for (_, key) in KEYS_TO_COME {
        assert!(
            to_come.iter().any(|line| line.contains(key)),
            "the contract has no {key}"
        );
    }
    let loaded = lbd::config::parse("CONTRACT.md", &text).unwrap_or_else(|errors| panic!("{errors:#?}"));
    let saved = to_toml(&loaded.config);
    assert!(saved.contains("scheduler_flags = [\"sh-port\"]"), "{saved}");
    let again = lbd::config::parse("saved.toml", &saved).unwrap();
    assert_eq!(again.config, loaded.config);
}

#[test]
fn the_first_example_has_web_and_dns_over_both_families() {
    let config = loaded("svc.toml");
    let addresses: Vec<String> = config
        .policy
        .services
        .iter()
        .map(|service| format!("{} {} {}", service.protocol, service.address, service.backends.len()))
        .collect();
    assert_eq!(config.policy.mode, Mode::Ipvs);
    assert_eq!(
        addresses,
        ["tcp 10.96.0.10:80 3", "udp 10.96.0.53:53 2", "tcp [fd00:96::10]:80 3"]
    );
}
