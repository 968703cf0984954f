//! Every key of a configuration outside of its lists of rules and services, with its value as text.
use std::fmt::Display;
use std::ops::RangeInclusive;

use super::words::{
    ATTACH, BACKEND, EVALUATION, FIREWALL, MASQUERADE, MODE, ON_BACKEND_REMOVED, SCTP_TIMEOUTS, TCP_TIMEOUTS,
    UNKNOWN_REPLY, UNKNOWN_TCP, word_of,
};
use super::{AfXdp, Config, Datapath, Tun};
use lbd_core::conntrack::timeout::Timeouts;
use lbd_core::policy::{Conntrack, Icmp, Mode, Nat, Policy};

/// A key's full name and its value.
pub(super) type Setting = (&'static str, String);

/// Every setting; the same keys in the same order for every configuration.
pub(super) fn settings(config: &Config, mode: Mode) -> Vec<Setting> {
    let Config {
        policy,
        allow_empty,
        node_addresses,
        datapath,
        tun,
        af_xdp,
        control_socket,
    } = config;
    let mut all = of_policy(policy, mode);
    all.push(("allow_empty", allow_empty.to_string()));
    all.extend(of_devices(datapath, tun, af_xdp));
    let nodes = node_addresses.as_ref();
    let nodes = nodes.map_or_else(|| "from the kernel".to_owned(), |nodes| list(nodes));
    all.push(("node.addresses", nodes));
    all.push(("control.socket", control_socket.display().to_string()));
    all
}

fn list<T: Display>(items: &[T]) -> String {
    let items: Vec<String> = items.iter().map(T::to_string).collect();
    format!("[{}]", items.join(", "))
}

fn range(ports: &RangeInclusive<u16>) -> String {
    format!("{}-{}", ports.start(), ports.end())
}

fn or<T: Display>(value: Option<T>, absent: &str) -> String {
    value.map_or_else(|| absent.to_owned(), |value| value.to_string())
}

fn of_devices(datapath: &Datapath, tun: &Tun, af_xdp: &AfXdp) -> Vec<Setting> {
    let Datapath { backend, workers, seed } = datapath;
    let Tun {
        name,
        mtu,
        offload,
        firewall,
    } = tun;
    let AfXdp {
        interfaces,
        attach,
        zero_copy,
        busy_poll,
        announce,
        masquerade_ports,
    } = af_xdp;
    vec![
        ("datapath.backend", word_of(*backend, BACKEND).to_owned()),
        ("datapath.workers", or(*workers, "0")),
        ("datapath.seed", or(*seed, "none")),
        ("tun.name", name.clone()),
        ("tun.mtu", mtu.to_string()),
        ("tun.offload", offload.to_string()),
        ("tun.firewall", word_of(*firewall, FIREWALL).to_owned()),
        ("af_xdp.interfaces", list(interfaces)),
        ("af_xdp.attach", word_of(*attach, ATTACH).to_owned()),
        ("af_xdp.zero_copy", or(*zero_copy, "auto")),
        ("af_xdp.busy_poll", busy_poll.to_string()),
        ("af_xdp.announce", announce.to_string()),
        ("af_xdp.masquerade_ports", range(masquerade_ports)),
    ]
}

fn of_policy(policy: &Policy, timeouts_of: Mode) -> Vec<Setting> {
    let Policy {
        mode,
        shadow,
        evaluation,
        scheduler,
        node_addresses: _,
        local_addresses: _,
        nat: Nat {
            masquerade,
            pool,
            own: _,
        },
        conntrack,
        icmp: Icmp { echo, rate_limit },
        rules: _,
        services: _,
    } = policy;
    let mut all = vec![
        ("mode", word_of(*mode, MODE).to_owned()),
        ("shadow", shadow.to_string()),
        ("iptables.evaluation", word_of(*evaluation, EVALUATION).to_owned()),
        ("scheduler", or(*scheduler, "default")),
        ("nat.masquerade", word_of(*masquerade, MASQUERADE).to_owned()),
        ("nat.pool", list(pool)),
        ("icmp.echo", echo.to_string()),
        ("icmp.rate_limit", rate_limit.to_string()),
    ];
    all.extend(of_conntrack(conntrack, &policy.timeouts_in(timeouts_of)));
    all
}

fn of_conntrack(conntrack: &Conntrack, timeouts: &Timeouts) -> Vec<Setting> {
    let Conntrack {
        max_flows,
        on_backend_removed,
        unknown_tcp,
        unknown_reply,
        expire_quiescent_template,
        conn_reuse,
        timeouts: _,
    } = conntrack;
    let removed = on_backend_removed.map(|rule| word_of(rule, ON_BACKEND_REMOVED));
    let mut all = vec![
        ("conntrack.max_flows", max_flows.to_string()),
        ("conntrack.on_backend_removed", or(removed, "default")),
        ("conntrack.unknown_tcp", word_of(*unknown_tcp, UNKNOWN_TCP).to_owned()),
        (
            "conntrack.unknown_reply",
            word_of(*unknown_reply, UNKNOWN_REPLY).to_owned(),
        ),
        (
            "conntrack.expire_quiescent_template",
            expire_quiescent_template.to_string(),
        ),
        ("conntrack.conn_reuse_mode", u8::from(*conn_reuse).to_string()),
        ("conntrack.udp", humantime::format_duration(timeouts.udp).to_string()),
    ];
    let tcp = TCP_TIMEOUTS.into_iter().zip(timeouts.tcp);
    let states = tcp.chain(SCTP_TIMEOUTS.into_iter().zip(timeouts.sctp));
    all.extend(states.map(|(key, timeout)| (key, humantime::format_duration(timeout).to_string())));
    all
}
