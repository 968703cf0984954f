//! From the TOML as written to a valid configuration, or to everything that is wrong with it.
mod claims;
mod device;
mod policy;
pub(super) mod rules;
mod services;
mod values;

use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;
use std::string::FromUtf8Error;
use std::sync::Arc;

use toml::de::DeTable;

use self::claims::Claims;
use self::services::Around;
pub(super) use self::services::ONE_PACKET;
use self::values::{offset, word};
use super::again::parse_again;
use super::diagnostic::{Diagnostic, Report};
use super::words::MODE;
use super::{Config, raw};
use lbd_core::policy::{Mode, Policy};

/// A valid configuration, and what in it is probably not meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    /// For the log.
    pub warnings: Vec<Diagnostic>,
    /// The file as written.
    pub text: String,
}

/// Reads and validates a file.
///
/// # Errors
/// Everything that is wrong with it, in the order of the file.
pub fn load(path: &Path) -> Result<Loaded, Vec<Diagnostic>> {
    let (file, text) = read(path)?;
    parse(&file, &text)
}

/// Reads and validates a file that was valid `before`, at the cost of what is different. The outcome is that of [`load`].
///
/// # Errors
/// Everything that is wrong with it, in the order of the file.
pub fn load_again(path: &Path, before: &Loaded) -> Result<Loaded, Vec<Diagnostic>> {
    let (file, text) = read(path)?;
    parse_again(&file, &text, before)
}

/// The file's name for messages, and its text.
fn read(path: &Path) -> Result<(String, String), Vec<Diagnostic>> {
    let file = path.display().to_string();
    let unreadable = |why: String| vec![Diagnostic::of_file(&file, format!("cannot read: {why}"))];
    let bytes = std::fs::read(path).map_err(|error| unreadable(error.to_string()))?;
    match String::from_utf8(bytes) {
        Ok(text) => Ok((file, text)),
        Err(error) => Err(not_utf8(&file, &error)),
    }
}

fn not_utf8(file: &str, error: &FromUtf8Error) -> Vec<Diagnostic> {
    let at = error.utf8_error().valid_up_to();
    let (before, after) = error.as_bytes().split_at(at);
    let byte = after
        .first()
        .map_or_else(String::new, |byte| format!("byte {byte:#04x} is "));
    let mut report = Report::default();
    report.error(at, format!("{byte}not UTF-8: save the file as UTF-8"));
    let (errors, _) = report.finish(file, &String::from_utf8_lossy(before));
    errors
}

/// Validates the text of a file; `file_name` is for messages.
///
/// # Errors
/// Everything that is wrong with it, in the order of the file.
pub fn parse(file_name: &str, text: &str) -> Result<Loaded, Vec<Diagnostic>> {
    let mut report = Report::default();
    let (table, syntax_errors) = DeTable::parse_recoverable(text);
    for error in &syntax_errors {
        let span = error.span().unwrap_or_default();
        report.error(span.start, syntax_message(text, span, error.message()));
    }
    let config = if syntax_errors.is_empty() {
        let file = raw::File::of(table.get_ref(), &mut report);
        Some(config(&file, &mut report))
    } else {
        None
    };
    let (errors, warnings) = report.finish(file_name, text);
    match config {
        Some(config) if errors.is_empty() => Ok(Loaded {
            config,
            warnings,
            text: text.to_owned(),
        }),
        Some(_) | None => Err(errors),
    }
}

/// The parser's words, with the text that they are about.
fn syntax_message(text: &str, span: Range<usize>, message: &str) -> String {
    let written = text.get(span.clone()).unwrap_or("");
    if message == "duplicate key" {
        return format!("{written} is given twice: remove one, or write [[ ]] for a list of tables");
    }
    let start = text.floor_char_boundary(span.start);
    let before = text[..start].rfind('\n').map_or(0, |newline| newline + 1);
    let line = text[before..].lines().next().unwrap_or("").trim();
    if line.ends_with('=') {
        return format!("not valid TOML: {line:?}: a value is missing after =, e.g. \"text\", 80 or true");
    }
    let line: String = line.chars().take(60).collect();
    let message: Vec<&str> = message.lines().map(str::trim).collect();
    format!("not valid TOML: {line:?}: {}", message.join("; "))
}

/// The table if it is written, else an empty one.
macro_rules! table {
    ($key:expr) => {
        $key.given().map_or(&Default::default(), |table| table.get_ref())
    };
}

fn config(file: &raw::File<'_>, report: &mut Report) -> Config {
    let datapath = device::datapath(table!(file.datapath), report);
    let tun = device::tun(table!(file.tun), report);
    let af_xdp = device::af_xdp(table!(file.af_xdp), report);
    device::check_interfaces(file, datapath.backend, report);
    device::check_own_device(table!(file.af_xdp), &tun, report);
    let node_addresses = device::node(table!(file.node), report);
    let policy = policy(file, node_addresses.as_deref().unwrap_or(&[]), report);
    let has_ipv6 = policy.services.iter().any(|service| service.address.address.is_ipv6());
    device::check_mtu(table!(file.tun), &tun, has_ipv6, report);
    Config {
        policy,
        allow_empty: file.allow_empty.given().is_some_and(|value| *value.get_ref()),
        node_addresses,
        datapath,
        tun,
        af_xdp,
        control_socket: device::control_socket(table!(file.control), report),
    }
}

fn policy(file: &raw::File<'_>, nodes: &[std::net::IpAddr], report: &mut Report) -> Policy {
    let mode = word("mode", &file.mode, MODE, report);
    let scheduler = services::scheduler(&file.scheduler, report);
    let evaluation = policy::evaluation(table!(file.iptables), report);
    let nat = policy::nat(table!(file.nat), report);
    let mut around = Around {
        scheduler: scheduler.unwrap_or_else(|| mode.default_scheduler()),
        pool: &nat.pool,
        claims: Claims::new(nodes),
        names: HashMap::new(),
    };
    check_nodes(file, &nat.pool, report);
    let services = services::services(file.services.items(), &mut around, report);
    let rules = rules::rules(file.rules.items(), &around.names, report);
    warn_of_idle_rules(file, mode, report);
    if mode == Mode::Iptables {
        rules::warn_of_rules_without_services(file.rules.items(), &rules, &services, report);
    }
    policy::check_pool_families(table!(file.nat), &nat, &services, report);
    Policy {
        mode,
        shadow: file.shadow.given().is_some_and(|value| *value.get_ref()),
        evaluation,
        scheduler,
        node_addresses: nodes.to_vec(),
        local_addresses: Vec::new(),
        conntrack: policy::conntrack(table!(file.conntrack), mode, report),
        icmp: policy::icmp(table!(file.icmp), report),
        nat,
        rules,
        services: services.into_iter().map(Arc::new).collect(),
    }
}

fn check_nodes(file: &raw::File<'_>, pool: &[ipnet::IpNet], report: &mut Report) {
    let addresses = file.node.given().map(|node| &node.get_ref().addresses);
    for text in addresses.map_or(&[][..], raw::Key::items) {
        if let Ok(address) = text.get_ref().parse() {
            policy::check_outside_pool("addresses", text, address, pool, report);
        }
    }
}

fn warn_of_idle_rules(file: &raw::File<'_>, mode: Mode, report: &mut Report) {
    match (mode, file.rules.items()) {
        (Mode::Iptables, _) | (Mode::Ipvs, []) => {}
        (Mode::Ipvs, [first, ..]) => {
            let remedy = "set mode = \"iptables\" to have them checked, or remove them";
            report.warning(offset(first), format!("[[rules]] are ignored in ipvs mode: {remedy}"));
        }
    }
}

#[cfg(test)]
mod tests;
