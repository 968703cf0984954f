//! The running configuration as TOML, which reads back as the same configuration.
//!
//! What equals its default is left out, but for the mode.
use std::fmt::{Display, Write};
use std::ops::RangeInclusive;
use std::time::Duration;

use super::validate::ONE_PACKET;
use super::validate::rules::CERTAIN;
use super::words::{
    ATTACH, BACKEND, EVALUATION, FIREWALL, IDLE_FLAGS, MASQUERADE, MODE, ON_BACKEND_REMOVED, SCTP_TIMEOUTS,
    TCP_TIMEOUTS, UNKNOWN_REPLY, UNKNOWN_TCP, Words, word_of,
};
use super::{AfXdp, Attach, Backend, Config, Datapath, Tun, defaults};
use lbd_core::conntrack::timeout::Timeouts;
use lbd_core::matcher::rules::{Action, Condition, Probability, Rule};
use lbd_core::policy::{
    BackendSpec, Conntrack, Evaluation, Icmp, Masquerade, Mode, Nat, Persistence, ServiceSpec, UnknownReply, UnknownTcp,
};
use lbd_core::scheduler::{Flags, Kind};

/// TOML that [`super::parse`] reads as an equal configuration.
#[must_use]
pub fn to_toml(config: &Config) -> String {
    let policy = &config.policy;
    let mut out = Out::default();
    out.key("mode", quoted(word_of(policy.mode, MODE)));
    out.optional("scheduler", policy.scheduler.map(quoted));
    out.optional("shadow", policy.shadow.then_some(true));
    out.optional("allow_empty", config.allow_empty.then_some(true));
    datapath(&config.datapath, &mut out);
    tun(&config.tun, &mut out);
    af_xdp(&config.af_xdp, &mut out);
    out.section("[iptables]");
    out.word("evaluation", policy.evaluation, Evaluation::default(), EVALUATION);
    out.section("[node]");
    let nodes = config.node_addresses.as_ref();
    out.optional("addresses", nodes.map(|nodes| list(nodes.iter().map(quoted))));
    nat(&policy.nat, &mut out);
    conntrack(&policy.conntrack, policy.mode, &mut out);
    icmp(&policy.icmp, &mut out);
    out.section("[control]");
    if config.control_socket != defaults::control_socket() {
        out.key("socket", quoted(config.control_socket.display()));
    }
    for each in &policy.rules {
        rule(each, &mut out);
    }
    for each in &policy.services {
        service(each, policy.scheduler_of(each), &mut out);
    }
    out.text
}

/// TOML so far. A section's header waits until its first key, so that no empty one is written.
#[derive(Default)]
struct Out {
    text: String,
    header: Option<&'static str>,
}

impl Out {
    fn section(&mut self, header: &'static str) {
        self.header = Some(header);
    }

    fn key(&mut self, key: &str, value: impl Display) {
        if let Some(header) = self.header.take() {
            self.line(format_args!("\n{header}"));
        }
        self.line(format_args!("{key} = {value}"));
    }

    fn optional(&mut self, key: &str, value: Option<impl Display>) {
        if let Some(value) = value {
            self.key(key, value);
        }
    }

    /// A word, unless it is the default one.
    fn word<T: Copy + PartialEq>(&mut self, key: &str, value: T, default: T, words: &Words<T>) {
        if value != default {
            self.key(key, quoted(word_of(value, words)));
        }
    }

    fn line(&mut self, line: impl Display) {
        // Writing to a String cannot fail.
        writeln!(self.text, "{line}").unwrap_or_default();
    }
}

/// A TOML string, escaped where need be.
fn quoted(text: impl Display) -> String {
    toml::Value::String(text.to_string()).to_string()
}

fn list(items: impl Iterator<Item = String>) -> String {
    let items: Vec<String> = items.collect();
    format!("[{}]", items.join(", "))
}

fn time(duration: Duration) -> String {
    quoted(humantime::format_duration(duration))
}

fn datapath(datapath: &Datapath, out: &mut Out) {
    let Datapath { backend, workers, seed } = datapath;
    out.section("[datapath]");
    out.word("backend", *backend, Backend::default(), BACKEND);
    out.optional("workers", *workers);
    out.optional("seed", *seed);
}

fn tun(tun: &Tun, out: &mut Out) {
    let default = defaults::tun();
    let Tun {
        name,
        mtu,
        offload,
        firewall,
    } = tun;
    out.section("[tun]");
    out.optional("name", (*name != default.name).then(|| quoted(name)));
    out.optional("mtu", (*mtu != default.mtu).then_some(mtu));
    out.optional("offload", (*offload != default.offload).then_some(offload));
    out.word("firewall", *firewall, default.firewall, FIREWALL);
}

fn af_xdp(af_xdp: &AfXdp, out: &mut Out) {
    let AfXdp {
        interfaces,
        attach,
        zero_copy,
        busy_poll,
        announce,
        masquerade_ports,
    } = af_xdp;
    out.section("[af_xdp]");
    if !interfaces.is_empty() {
        out.key("interfaces", list(interfaces.iter().map(quoted)));
    }
    out.word("attach", *attach, Attach::default(), ATTACH);
    out.optional("zero_copy", *zero_copy);
    out.optional("busy_poll", busy_poll.then_some(true));
    out.optional("announce", announce.then_some(true));
    if *masquerade_ports != defaults::MASQUERADE_PORTS {
        let (first, last) = (masquerade_ports.start(), masquerade_ports.end());
        out.key("masquerade_ports", quoted(format_args!("{first}-{last}")));
    }
}

fn nat(nat: &Nat, out: &mut Out) {
    let Nat {
        masquerade,
        pool,
        own: _,
    } = nat;
    out.section("[nat]");
    out.word("masquerade", *masquerade, Masquerade::default(), MASQUERADE);
    if *pool != defaults::pool() {
        out.key("pool", list(pool.iter().map(quoted)));
    }
}

fn conntrack(conntrack: &Conntrack, mode: Mode, out: &mut Out) {
    let default = defaults::conntrack(mode);
    let Conntrack {
        max_flows,
        on_backend_removed,
        unknown_tcp,
        unknown_reply,
        expire_quiescent_template,
        conn_reuse,
        timeouts: Timeouts { tcp, udp, sctp },
    } = conntrack;
    out.section("[conntrack]");
    out.optional("max_flows", (*max_flows != default.max_flows).then_some(max_flows));
    let removed = on_backend_removed.map(|rule| quoted(word_of(rule, ON_BACKEND_REMOVED)));
    out.optional("on_backend_removed", removed);
    out.word("unknown_tcp", *unknown_tcp, UnknownTcp::default(), UNKNOWN_TCP);
    out.word("unknown_reply", *unknown_reply, UnknownReply::default(), UNKNOWN_REPLY);
    let expire = *expire_quiescent_template;
    out.optional(
        "expire_quiescent_template",
        (expire != default.expire_quiescent_template).then_some(expire),
    );
    let reuse = u8::from(*conn_reuse);
    out.optional("conn_reuse_mode", (*conn_reuse != default.conn_reuse).then_some(reuse));
    let states = TCP_TIMEOUTS.into_iter().zip(tcp).zip(default.timeouts.tcp);
    for ((key, timeout), default) in states {
        out.optional(key, (*timeout != default).then(|| time(*timeout)));
    }
    out.optional("udp", (*udp != default.timeouts.udp).then(|| time(*udp)));
    let states = SCTP_TIMEOUTS.into_iter().zip(sctp).zip(default.timeouts.sctp);
    for ((key, timeout), default) in states {
        out.optional(key, (*timeout != default).then(|| time(*timeout)));
    }
}

fn icmp(icmp: &Icmp, out: &mut Out) {
    let default = Icmp::default();
    let Icmp { echo, rate_limit } = icmp;
    out.section("[icmp]");
    out.optional("echo", (*echo != default.echo).then_some(echo));
    out.optional("rate_limit", (*rate_limit != default.rate_limit).then_some(rate_limit));
}

fn rule(rule: &Rule, out: &mut Out) {
    let Rule {
        name,
        source,
        destination,
        protocol,
        source_port,
        destination_port,
        probability,
        action,
    } = rule;
    out.section("[[rules]]");
    out.optional("name", name.as_ref().map(quoted));
    out.optional("source", source.as_ref().map(condition));
    out.optional("destination", destination.as_ref().map(condition));
    out.optional("protocol", protocol.as_ref().map(condition));
    out.optional("source_port", source_port.as_ref().map(ports));
    out.optional("destination_port", destination_port.as_ref().map(ports));
    // Exact: a float holds every multiple of 2^-32 up to 1, and is printed so that it reads back the same.
    let share = |Probability(units): Probability| format!("{:?}", units as f64 / CERTAIN);
    out.optional("probability", probability.map(share));
    out.key("action", quoted(action_word(action)));
}

pub(super) fn action_word(action: &Action) -> String {
    match action {
        Action::Drop => "drop".to_owned(),
        Action::Reject => "reject".to_owned(),
        Action::Pass => "pass".to_owned(),
        Action::Service(name) => format!("service:{name}"),
    }
}

fn condition<T: Display>(condition: &Condition<T>) -> String {
    let Condition { negated, value } = condition;
    quoted(format_args!("{}{value}", if *negated { "!" } else { "" }))
}

fn ports(ports: &Condition<RangeInclusive<u16>>) -> String {
    let (first, last) = (ports.value.start(), ports.value.end());
    let value = match first == last {
        true => first.to_string(),
        false => format!("{first}-{last}"),
    };
    condition(&Condition {
        negated: ports.negated,
        value,
    })
}

fn service(service: &ServiceSpec, kind: Kind, out: &mut Out) {
    let ServiceSpec {
        name,
        protocol,
        address,
        external_addresses,
        node_port,
        scheduler,
        flags,
        persistence,
        one_packet,
        on_backend_removed,
        backends,
    } = service;
    out.section("[[services]]");
    out.key("name", quoted(name));
    out.key("protocol", quoted(protocol));
    out.key("address", quoted(address));
    if !external_addresses.is_empty() {
        let addresses = list(external_addresses.iter().map(quoted));
        out.key("external_addresses", addresses);
    }
    out.optional("node_port", *node_port);
    out.optional("scheduler", scheduler.map(quoted));
    let mut flags = flag_words(kind, *flags);
    flags.extend(one_packet.then(|| ONE_PACKET.to_owned()));
    let flags = list(flags.iter().map(quoted));
    out.optional("scheduler_flags", (flags != "[]").then_some(flags));
    let v4 = address.address.is_ipv4();
    out.optional("persistence", persistence.map(|affinity| affinity_table(affinity, v4)));
    let removed = on_backend_removed.map(|rule| quoted(word_of(rule, ON_BACKEND_REMOVED)));
    out.optional("on_backend_removed", removed);
    if !backends.is_empty() {
        out.key("backends", backend_list(backends));
    }
}

/// The flags that are set, in the words of the scheduler that knows them, and those that have no effect.
pub(super) fn flag_words(kind: Kind, flags: Flags) -> Vec<String> {
    let Flags { fallback, port, idle } = flags;
    let known = matches!(kind, Kind::Sh | Kind::Mh);
    let words = [(port, "port"), (fallback, "fallback")];
    let set = words.into_iter().filter(|&(set, _)| known && set);
    let set = set.map(|(_, word)| format!("{kind}-{word}"));
    let idle = IDLE_FLAGS.iter().filter(|(_, flag)| idle.contains(*flag));
    set.chain(idle.map(|&(word, _)| word.to_owned())).collect()
}

fn affinity_table(affinity: Persistence, v4: bool) -> String {
    let Persistence { timeout, prefix_length } = affinity;
    let timeout = time(timeout);
    match (v4, prefix_length) {
        (true, 32) | (false, 128) => format!("{{ timeout = {timeout} }}"),
        _ => format!("{{ timeout = {timeout}, netmask = {prefix_length} }}"),
    }
}

fn backend_list(backends: &[BackendSpec]) -> String {
    let mut text = String::from("[\n");
    for backend in backends {
        let BackendSpec {
            address,
            weight,
            upper_threshold,
            lower_threshold,
        } = backend;
        let shares = [
            ("weight", *weight, defaults::WEIGHT),
            ("upper_threshold", *upper_threshold, 0),
            ("lower_threshold", *lower_threshold, 0),
        ];
        let given = shares.into_iter().filter(|(_, value, default)| value != default);
        let given: String = given.map(|(key, value, _)| format!(", {key} = {value}")).collect();
        let address = quoted(address);
        text += &format!("  {{ address = {address}{given} }},\n");
    }
    text + "]"
}

#[cfg(test)]
mod tests;
