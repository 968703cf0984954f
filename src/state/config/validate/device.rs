//! `[datapath]`, `[tun]`, `[af_xdp]`, `[node]` and `[control]`.
use std::collections::HashSet;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;

use super::values::{address, device_name, number, offset, ports, word};
use crate::config::diagnostic::Report;
use crate::config::raw::{self, Key, Scalar, Switch};
use crate::config::words::{ATTACH, BACKEND, FIREWALL};
use crate::config::{AfXdp, Backend, Datapath, Tun, defaults};

/// Queues of one TUN device: `MAX_TAP_QUEUES`, drivers/net/tun.c.
const MOST_WORKERS: i128 = 256;
/// The least that IPv4 hosts must take (RFC 791), and the largest IP packet.
const MTU: RangeInclusive<i128> = 576..=65535;
/// The least link MTU of IPv6 (RFC 8200 section 5).
const IPV6_MTU: u16 = 1280;
/// Privileged ports are no client's (ip(7), `ip_unprivileged_port_start`), and servers of the host have them.
const FIRST_CLIENT_PORT: u16 = 1024;
/// Each connection to a backend's port takes one.
const LEAST_MASQUERADE_PORTS: usize = 1024;
/// `sun_path` (unix(7)) without its final zero byte.
const LONGEST_SOCKET: usize = 107;

/// `[datapath]`
pub(super) fn datapath(raw: &raw::Datapath<'_>, report: &mut Report) -> Datapath {
    let workers = raw.workers.given().and_then(|value| {
        let meaning = "; 0 means one a CPU (tun) or one a receive queue (af_xdp)";
        number("workers", value, 0..=MOST_WORKERS, meaning, report)
    });
    let seed = raw
        .seed
        .given()
        .and_then(|value| number("seed", value, 0..=i128::from(u64::MAX), "", report));
    Datapath {
        backend: word("backend", &raw.backend, BACKEND, report),
        workers: workers.filter(|&count| count > 0),
        seed,
    }
}

/// `[tun]`
pub(super) fn tun(raw: &raw::Tun<'_>, report: &mut Report) -> Tun {
    let name = raw.name.given().and_then(|text| device_name("name", text, report));
    let mtu = raw
        .mtu
        .given()
        .and_then(|value| number("mtu", value, MTU, ", e.g. 1500", report));
    let default = defaults::tun();
    Tun {
        name: name.unwrap_or(default.name),
        mtu: mtu.unwrap_or(default.mtu),
        offload: raw.offload.given().map_or(default.offload, |value| *value.get_ref()),
        firewall: word("firewall", &raw.firewall, FIREWALL, report),
    }
}

/// A link that carries IPv6 carries 1280 bytes.
pub(super) fn check_mtu(raw: &raw::Tun<'_>, tun: &Tun, has_ipv6: bool, report: &mut Report) {
    if let Some(mtu) = raw.mtu.given()
        && has_ipv6
        && tun.mtu < IPV6_MTU
    {
        let problem = "too small for IPv6 services: give at least 1280";
        report.bad(offset(mtu), "mtu", tun.mtu, problem);
    }
}

/// `[af_xdp]`
pub(super) fn af_xdp(raw: &raw::AfXdp<'_>, report: &mut Report) -> AfXdp {
    AfXdp {
        interfaces: interfaces(raw, report),
        attach: word("attach", &raw.attach, ATTACH, report),
        zero_copy: zero_copy(&raw.zero_copy, report),
        busy_poll: raw.busy_poll.given().is_some_and(|value| *value.get_ref()),
        announce: raw.announce.given().is_some_and(|value| *value.get_ref()),
        masquerade_ports: masquerade_ports(&raw.masquerade_ports, report),
    }
}

fn masquerade_ports(written: &Key<Scalar<'_>>, report: &mut Report) -> RangeInclusive<u16> {
    let key = "masquerade_ports";
    let Some(at) = written.given() else {
        return defaults::MASQUERADE_PORTS;
    };
    let read = match at.get_ref() {
        Scalar::Text(text) => ports(key, at, text, report),
        Scalar::Integer(port) => ports(key, at, &port.to_string(), report),
    };
    let range = read.unwrap_or(defaults::MASQUERADE_PORTS);
    if *range.start() < FIRST_CLIENT_PORT {
        let problem = "ports below 1024 are those of servers: write e.g. \"61000-65535\"";
        report.bad(offset(at), key, at.get_ref(), problem);
    } else if range.len() < LEAST_MASQUERADE_PORTS {
        let problem = format!("too few ports: give at least {LEAST_MASQUERADE_PORTS}, e.g. \"61000-65535\"");
        report.bad(offset(at), key, at.get_ref(), problem);
    }
    range
}

/// What comes by lbd's own device comes to lbd already.
pub(super) fn check_own_device(raw: &raw::AfXdp<'_>, tun: &Tun, report: &mut Report) {
    let own = raw.interfaces.items().iter().filter(|text| *text.get_ref() == tun.name);
    for text in own {
        let value = format!("{:?}", text.get_ref());
        let problem = "lbd's own device (tun.name): name the interfaces that clients and backends are reached by";
        report.bad(offset(text), "interfaces", value, problem);
    }
}

/// AF_XDP has no device of its own: it must be told which. TUN has one, and serves no other.
pub(super) fn check_interfaces(file: &raw::File<'_>, backend: Backend, report: &mut Report) {
    let given = file.af_xdp.given().map(|table| &table.get_ref().interfaces);
    let (missing, named) = match given {
        None | Some(Key::Absent) => (true, None),
        Some(Key::Bad) => (false, None),
        Some(Key::Given(list)) => (list.get_ref().is_empty(), list.get_ref().first()),
    };
    let written = file.datapath.given().and_then(|table| table.get_ref().backend.given());
    match (backend, named, written) {
        (Backend::AfXdp, _, Some(written)) if missing => {
            let remedy = "interfaces = [\"eth0\"] to [af_xdp]";
            let problem = format!("no interface is named: add {remedy}");
            report.bad(offset(written), "backend", "\"af_xdp\"", problem);
        }
        // Who has written "tun" knows.
        (Backend::Tun, Some(named), None) => {
            let remedy = "set backend = \"af_xdp\" in [datapath] to have them served, or \"tun\" to have it so";
            let message = format!("interfaces are ignored with backend = \"tun\", the default: {remedy}");
            report.warning(offset(named), message);
        }
        (Backend::AfXdp | Backend::Tun, _, _) => {}
    }
}

fn interfaces(raw: &raw::AfXdp<'_>, report: &mut Report) -> Vec<String> {
    let mut seen = HashSet::new();
    let mut names = Vec::new();
    for text in raw.interfaces.items() {
        if !seen.insert(*text.get_ref()) {
            let value = format!("{:?}", text.get_ref());
            report.bad(offset(text), "interfaces", value, "given twice: remove one");
        }
        names.extend(device_name("interfaces", text, report));
    }
    names
}

fn zero_copy(written: &Key<Switch<'_>>, report: &mut Report) -> Option<bool> {
    let value = written.given()?;
    match *value.get_ref() {
        Switch::Boolean(boolean) => Some(boolean),
        Switch::Text("auto") => None,
        Switch::Text(text) => {
            let problem = "expected \"auto\", true or false";
            report.bad(offset(value), "zero_copy", format!("{text:?}"), problem);
            None
        }
    }
}

/// `[node] addresses`
pub(super) fn node(raw: &raw::Node<'_>, report: &mut Report) -> Option<Vec<IpAddr>> {
    let list = raw.addresses.given()?;
    let mut seen = HashSet::new();
    let mut addresses = Vec::new();
    for text in list.get_ref() {
        let Some(read) = address("addresses", text, report) else {
            continue;
        };
        if !seen.insert(read) {
            let value = format!("{:?}", text.get_ref());
            report.bad(offset(text), "addresses", value, "given twice: remove one");
        }
        addresses.push(read);
    }
    Some(addresses)
}

/// `[control] socket`
pub(super) fn control_socket(raw: &raw::Control<'_>, report: &mut Report) -> PathBuf {
    let Some(text) = raw.socket.given() else {
        return defaults::control_socket();
    };
    let path = *text.get_ref();
    if !(1..=LONGEST_SOCKET).contains(&path.len()) || path.contains('\0') {
        let problem = "not a path for a socket: 1 to 107 bytes, e.g. \"/run/lbd/lbd.sock\"";
        report.bad(offset(text), "socket", format!("{path:?}"), problem);
    }
    PathBuf::from(path)
}
