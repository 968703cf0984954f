//! `[iptables]`, `[nat]`, `[conntrack]` and `[icmp]`.
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;

use super::values::{duration, known_word, network, number, offset, word};
use crate::config::defaults;
use crate::config::diagnostic::Report;
use crate::config::raw::{self, Key, Text};
use crate::config::words::{
    EVALUATION, MASQUERADE, ON_BACKEND_REMOVED, SCTP_TIMEOUTS, TCP_TIMEOUTS, UNKNOWN_REPLY, UNKNOWN_TCP,
};
use lbd_core::policy::{Conntrack, Evaluation, Icmp, Masquerade, Mode, Nat, OnBackendRemoved, ServiceSpec};
use toml::Spanned;

/// Enough for any memory, and far from overflows of a table's size.
const MOST_FLOWS: i128 = 1 << 30;
/// More than a worker can make.
const MOST_ERRORS: i128 = 10_000_000;
/// Zero would end a flow before its second packet.
const SHORTEST_TIMEOUT: Duration = Duration::from_millis(1);

/// `[iptables]`
pub(super) fn evaluation(raw: &raw::Iptables<'_>, report: &mut Report) -> Evaluation {
    word("evaluation", &raw.evaluation, EVALUATION, report)
}

/// `[nat]`
pub(super) fn nat(raw: &raw::Nat<'_>, report: &mut Report) -> Nat {
    Nat {
        masquerade: word("masquerade", &raw.masquerade, MASQUERADE, report),
        pool: pool(raw, report),
        own: None,
    }
}

fn pool(raw: &raw::Nat<'_>, report: &mut Report) -> Vec<IpNet> {
    let Some(list) = raw.pool.given() else {
        return defaults::pool();
    };
    if list.get_ref().is_empty() {
        let problem = "at least one address is needed: give e.g. [\"198.18.0.0/28\"], or leave the key out";
        report.bad(offset(list), "pool", "[]", problem);
    }
    let mut pool = Vec::new();
    for text in list.get_ref() {
        let read = network("pool", text, text.get_ref(), report);
        pool.extend(read.filter(|net| may_join(*net, &pool, text, report)));
    }
    pool
}

fn may_join(net: IpNet, pool: &[IpNet], text: &Spanned<Text<'_>>, report: &mut Report) -> bool {
    let address = net.network();
    let problem = if address.is_unspecified() || address.is_multicast() || address.is_loopback() {
        "no host can have these addresses: give unused unicast ones, e.g. \"198.18.0.0/28\"".to_owned()
    } else if let Some(other) = pool.iter().find(|other| overlap(**other, net)) {
        format!("overlaps with {other}: remove one of them")
    } else {
        return true;
    };
    report.bad(offset(text), "pool", format!("{:?}", text.get_ref()), problem);
    false
}

pub(super) fn overlap(a: IpNet, b: IpNet) -> bool {
    a.contains(&b) || b.contains(&a)
}

/// An address that lbd needs as a source may be nobody else's.
pub(super) fn check_outside_pool(
    key: &str,
    text: &Spanned<Text<'_>>,
    address: IpAddr,
    pool: &[IpNet],
    report: &mut Report,
) {
    if let Some(net) = pool.iter().find(|net| net.contains(&address)) {
        let problem = format!("lies in nat.pool {net}: take another address, or set another pool in [nat]");
        report.bad(offset(text), key, format!("{:?}", text.get_ref()), problem);
    }
}

/// Services whose flows could not be masqueraded where they have to be.
pub(super) fn check_pool_families(raw: &raw::Nat<'_>, nat: &Nat, services: &[ServiceSpec], report: &mut Report) {
    let (Masquerade::Auto | Masquerade::Always, Some(written)) = (nat.masquerade, raw.pool.given()) else {
        return;
    };
    for (family, v4, example) in [("IPv4", true, "198.18.0.0/28"), ("IPv6", false, "2001:2::/124")] {
        let needed = services.iter().any(|service| service.address.address.is_ipv4() == v4);
        let there = nat.pool.iter().any(|net| net.addr().is_ipv4() == v4);
        if needed && !there {
            let remedy = format!("add e.g. \"{example}\", or set masquerade = \"never\"");
            let message =
                format!("pool has no {family} address: flows of {family} services cannot be masqueraded; {remedy}");
            report.warning(offset(written), message);
        }
    }
}

/// `[conntrack]`
pub(super) fn conntrack(raw: &raw::Conntrack<'_>, mode: Mode, report: &mut Report) -> Conntrack {
    let mut read = defaults::conntrack(mode);
    if let Some(value) = raw.max_flows.given() {
        let flows = number("max_flows", value, 1..=MOST_FLOWS, " flows, e.g. 1048576", report);
        read.max_flows = flows.unwrap_or(read.max_flows);
    }
    read.on_backend_removed = on_backend_removed(&raw.on_backend_removed, report);
    read.unknown_tcp = word("unknown_tcp", &raw.unknown_tcp, UNKNOWN_TCP, report);
    read.unknown_reply = word("unknown_reply", &raw.unknown_reply, UNKNOWN_REPLY, report);
    let expire = raw.expire_quiescent_template.given();
    read.expire_quiescent_template = expire.map_or(read.expire_quiescent_template, |expire| *expire.get_ref());
    if let Some(value) = raw.conn_reuse_mode.given() {
        let mode: Option<u8> = number("conn_reuse_mode", value, 0..=1, CONN_REUSE, report);
        read.conn_reuse = mode.map_or(read.conn_reuse, |mode| mode == 1);
    }
    let tcp = TCP_TIMEOUTS.into_iter().zip(raw.tcp());
    for ((key, written), slot) in tcp.zip(&mut read.timeouts.tcp) {
        set_timeout(key, written, slot, report);
    }
    set_timeout("udp", &raw.udp, &mut read.timeouts.udp, report);
    let sctp = SCTP_TIMEOUTS.into_iter().zip(raw.sctp());
    for ((key, written), slot) in sctp.zip(&mut read.timeouts.sctp) {
        set_timeout(key, written, slot, report);
    }
    read
}

/// Bit 2 of the kernel's setting is for flows whose replies are not seen (doc/networking/ipvs-sysctl.rst).
const CONN_REUSE: &str = ": 1 schedules a client port that is used again anew, 0 leaves it to the backend it had; \
                          2 is for direct routing, which lbd does not do";

/// Of all services, or of one.
pub(super) fn on_backend_removed(written: &Key<Text<'_>>, report: &mut Report) -> Option<OnBackendRemoved> {
    known_word("on_backend_removed", written.given()?, ON_BACKEND_REMOVED, report)
}

/// `[icmp]`
pub(super) fn icmp(raw: &raw::Icmp<'_>, report: &mut Report) -> Icmp {
    let default = Icmp::default();
    let limit = raw.rate_limit.given().and_then(|value| {
        let meaning = " errors a second, 0 for no limit, e.g. 1000";
        number("rate_limit", value, 0..=MOST_ERRORS, meaning, report)
    });
    Icmp {
        echo: raw.echo.given().map_or(default.echo, |echo| *echo.get_ref()),
        rate_limit: limit.unwrap_or(default.rate_limit),
    }
}

fn set_timeout(key: &str, written: &Key<raw::Scalar<'_>>, slot: &mut Duration, report: &mut Report) {
    let read = written
        .given()
        .and_then(|value| duration(key, value, SHORTEST_TIMEOUT, report));
    *slot = read.unwrap_or(*slot);
}
