//! `[[services]]`
use std::collections::{HashMap, HashSet};
use std::time::Duration;

use ipnet::IpNet;
use toml::Spanned;

use super::claims::{Claimant, Claims};
use super::policy::{check_outside_pool, on_backend_removed};
use super::values::{address, duration, endpoint, known_word, name, number, offset, prefix_length};
use crate::config::defaults;
use crate::config::diagnostic::Report;
use crate::config::raw::{self, Key, Scalar, Text};
use crate::config::words::{IDLE_FLAGS, PROTOCOLS, Words, meaning_of};
use lbd_core::flow::{Endpoint, Protocol};
use lbd_core::policy::{BackendSpec, Persistence, ServiceSpec};
use lbd_core::scheduler::{Flags, IdleFlags, Kind};

/// `ipvsadm` shows and takes whole seconds.
const SHORTEST_AFFINITY: Duration = Duration::from_secs(1);
/// `ipvsadm -w`.
const WEIGHTS: std::ops::RangeInclusive<i128> = 0..=65535;

/// Words of `scheduler`.
const SCHEDULERS: [(&str, Kind); Kind::ALL.len()] = {
    let mut words = [("", Kind::Random); Kind::ALL.len()];
    let mut at = 0;
    while at < words.len() {
        words[at] = (Kind::ALL[at].name(), Kind::ALL[at]);
        at += 1;
    }
    words
};

/// Words of `scheduler_flags`: the scheduler that knows each, and what it sets; None for [`ONE_PACKET`].
const FLAGS: &Words<Option<(Kind, Flags)>> = &[
    ("sh-port", Some((Kind::Sh, PORT))),
    ("sh-fallback", Some((Kind::Sh, FALLBACK))),
    ("mh-port", Some((Kind::Mh, PORT))),
    ("mh-fallback", Some((Kind::Mh, FALLBACK))),
    (ONE_PACKET, None),
];
/// The word of `scheduler_flags` that is for every scheduler: `ipvsadm -o`.
pub(in crate::config) const ONE_PACKET: &str = "ops";
const PORT: Flags = Flags {
    port: true,
    fallback: false,
    idle: IdleFlags::NONE,
};
const FALLBACK: Flags = Flags {
    port: false,
    fallback: true,
    idle: IdleFlags::NONE,
};

/// What a service must get along with.
#[derive(Debug)]
pub(super) struct Around<'a, 't> {
    /// The scheduler of services that name none.
    pub(super) scheduler: Kind,
    /// Addresses that are lbd's own.
    pub(super) pool: &'a [IpNet],
    /// What other services have.
    pub(super) claims: Claims<'t>,
    /// The services' names.
    pub(super) names: HashMap<&'t str, Option<Known>>,
}

/// What rules have to know of a service.
#[derive(Clone, Copy, Debug)]
pub(super) struct Known {
    /// Its protocol.
    pub(super) protocol: Protocol,
    /// Whether its address is an IPv4 one.
    pub(super) v4: bool,
}

/// A scheduler's name.
pub(super) fn scheduler(written: &Key<Text<'_>>, report: &mut Report) -> Option<Kind> {
    let text = written.given()?;
    known_word("scheduler", text, &SCHEDULERS, report)
}

/// Every service that could be read; what is wrong goes into the report.
pub(super) fn services<'t>(
    list: &[Spanned<raw::Service<'t>>],
    around: &mut Around<'_, 't>,
    report: &mut Report,
) -> Vec<ServiceSpec> {
    let specs = list.iter().filter_map(|raw| service(raw, around, report)).collect();
    // Only now is it known who answers where.
    for raw in list {
        check_no_loop(raw.get_ref(), &around.claims, report);
    }
    specs
}

fn service<'t>(
    at: &Spanned<raw::Service<'t>>,
    around: &mut Around<'_, 't>,
    report: &mut Report,
) -> Option<ServiceSpec> {
    let raw = at.get_ref();
    let (name, protocol, cluster) = identity(at, around, report);
    let external_addresses = external_addresses(raw, cluster, around.pool, report);
    let node_port = raw
        .node_port
        .given()
        .and_then(|value| number("node_port", value, 1..=65535, ", e.g. 30080", report));
    let scheduler = scheduler(&raw.scheduler, report);
    let (flags, one_packet) = flags(raw, scheduler.unwrap_or(around.scheduler), protocol, report);
    let persistence = raw
        .persistence
        .given()
        .and_then(|table| persistence(table.get_ref(), cluster, report));
    let on_backend_removed = on_backend_removed(&raw.on_backend_removed, report);
    let backends = backends(raw, cluster, around.pool, report);
    // Only now, when all else is checked, may a missing value end it.
    let spec = ServiceSpec {
        name: name?,
        protocol: protocol?,
        address: cluster?,
        external_addresses,
        node_port,
        scheduler,
        flags,
        persistence,
        one_packet,
        on_backend_removed,
        backends,
    };
    check_all_ports(raw, &spec, report);
    claim(raw, &spec, &mut around.claims, report);
    Some(spec)
}

/// The required keys: the service's name, protocol and cluster address.
fn identity<'t>(
    at: &Spanned<raw::Service<'t>>,
    around: &mut Around<'_, 't>,
    report: &mut Report,
) -> (Option<String>, Option<Protocol>, Option<Endpoint>) {
    let raw = at.get_ref();
    let required = [
        ("name", is_absent(&raw.name), "\"default/web:http\""),
        ("protocol", is_absent(&raw.protocol), "\"tcp\""),
        ("address", is_absent(&raw.address), "\"10.96.0.10:80\""),
    ];
    require("[[services]]", offset(at), required, report);
    let protocol = raw.protocol.given().and_then(|text| protocol(text, report));
    let cluster = raw.address.given().and_then(|text| {
        let cluster = endpoint("address", text, report)?;
        check_outside_pool("address", text, cluster.address, around.pool, report);
        Some(cluster)
    });
    let known = protocol.zip(cluster).map(|(protocol, cluster)| Known {
        protocol,
        v4: cluster.address.is_ipv4(),
    });
    let name = raw
        .name
        .given()
        .and_then(|text| unique_name(text, known, around, report));
    (name, protocol, cluster)
}

const fn is_absent<T>(key: &Key<T>) -> bool {
    matches!(key, Key::Absent)
}

/// Reports each (key, whether it is absent, example).
pub(super) fn require<const N: usize>(place: &str, offset: usize, keys: [(&str, bool, &str); N], report: &mut Report) {
    for (key, absent, example) in keys {
        if absent {
            report.error(
                offset,
                format!("{key:?} is missing in {place}: add e.g. {key} = {example}"),
            );
        }
    }
}

fn protocol(text: &Spanned<Text<'_>>, report: &mut Report) -> Option<Protocol> {
    known_word("protocol", text, PROTOCOLS, report)
}

fn unique_name<'t>(
    text: &Spanned<Text<'t>>,
    known: Option<Known>,
    around: &mut Around<'_, 't>,
    report: &mut Report,
) -> Option<String> {
    if around.names.insert(text.get_ref(), known).is_some() {
        let problem = "another service has this name: names must be unique";
        report.bad(offset(text), "name", format!("{:?}", text.get_ref()), problem);
    }
    name(text, report)
}

fn external_addresses(
    raw: &raw::Service<'_>,
    cluster: Option<Endpoint>,
    pool: &[IpNet],
    report: &mut Report,
) -> Vec<std::net::IpAddr> {
    let mut addresses = Vec::new();
    for text in raw.external_addresses.items() {
        let Some(external) = address("external_addresses", text, report) else {
            continue;
        };
        check_family("external_addresses", text, external, cluster, report);
        check_outside_pool("external_addresses", text, external, pool, report);
        addresses.push(external);
    }
    addresses
}

/// The other addresses of a service are of its own family: lbd does not translate between them.
fn check_family(
    key: &str,
    text: &Spanned<Text<'_>>,
    address: std::net::IpAddr,
    cluster: Option<Endpoint>,
    report: &mut Report,
) {
    let Some(cluster) = cluster.filter(|cluster| cluster.address.is_ipv4() != address.is_ipv4()) else {
        return;
    };
    let family = if cluster.address.is_ipv4() { "IPv4" } else { "IPv6" };
    let problem =
        format!("the service {cluster} is {family}: give an {family} address, or make a service for each family");
    report.bad(offset(text), key, format!("{:?}", text.get_ref()), problem);
}

/// The flags of `sh` and `mh`, and whether the service is one of one-packet scheduling.
fn flags(raw: &raw::Service<'_>, kind: Kind, protocol: Option<Protocol>, report: &mut Report) -> (Flags, bool) {
    let mut flags = Flags::default();
    let mut one_packet = false;
    for text in raw.scheduler_flags.items() {
        let Some(meaning) = known_word("scheduler_flags", text, FLAGS, report) else {
            continue;
        };
        let Some((owner, flag)) = meaning else {
            one_packet = true;
            check_datagrams(text, protocol, report);
            continue;
        };
        if owner != kind {
            let word = text.get_ref();
            let (owner, known) = (owner.name(), flags_of(kind));
            let why = format!("only for scheduler {owner:?}, and this service's is \"{kind}\", {known}");
            report.warning(offset(text), format!("scheduler_flags = {word:?}: no effect: {why}"));
            let idle = meaning_of(word, IDLE_FLAGS).unwrap_or_default();
            flags.idle = flags.idle.with(idle);
            continue;
        }
        flags.port |= flag.port;
        flags.fallback |= flag.fallback;
    }
    (flags, one_packet)
}

fn check_datagrams(text: &Spanned<Text<'_>>, protocol: Option<Protocol>, report: &mut Report) {
    if protocol.is_some_and(|protocol| protocol != Protocol::Udp) {
        let problem = "one-packet scheduling is only for protocol \"udp\": remove it";
        report.bad(offset(text), "scheduler_flags", "\"ops\"", problem);
    }
}

fn flags_of(kind: Kind) -> String {
    let is_of_kind = |meaning: &Option<(Kind, Flags)>| meaning.is_some_and(|(owner, _)| owner == kind);
    let known = FLAGS.iter().filter(|(_, meaning)| is_of_kind(meaning));
    let known: Vec<&str> = known.map(|&(word, _)| word).collect();
    if known.is_empty() {
        return "which has no flags: remove it or change the scheduler".to_owned();
    }
    format!("whose flags are: {}", known.join(", "))
}

fn persistence(raw: &raw::Persistence<'_>, cluster: Option<Endpoint>, report: &mut Report) -> Option<Persistence> {
    let timeout = raw.timeout.given().map_or(Some(defaults::PERSISTENCE), |value| {
        duration("timeout", value, SHORTEST_AFFINITY, report)
    });
    let v4 = cluster.is_none_or(|cluster| cluster.address.is_ipv4());
    let whole = if v4 { 32 } else { 128 };
    let prefix_length = raw
        .netmask
        .given()
        .map_or(Some(whole), |mask| netmask(mask, v4, report));
    timeout
        .zip(prefix_length)
        .map(|(timeout, prefix_length)| Persistence { timeout, prefix_length })
}

fn netmask(mask: &Spanned<Scalar<'_>>, v4: bool, report: &mut Report) -> Option<u8> {
    prefix_length(mask.get_ref(), v4).or_else(|| {
        let problem = if v4 {
            "not an IPv4 netmask: write e.g. \"255.255.255.0\" or 24 (0 to 32)"
        } else {
            "not an IPv6 netmask: write a prefix length, e.g. 64 (0 to 128)"
        };
        report.bad(offset(mask), "netmask", mask.get_ref(), problem);
        None
    })
}

fn backends(
    raw: &raw::Service<'_>,
    cluster: Option<Endpoint>,
    pool: &[IpNet],
    report: &mut Report,
) -> Vec<BackendSpec> {
    let list = raw.backends.items();
    let mut seen = HashSet::with_capacity(list.len());
    let mut specs = Vec::with_capacity(list.len());
    for at in list {
        let Some(spec) = backend(at, cluster, pool, report) else {
            continue;
        };
        if !seen.insert(spec.address) {
            let place = at.get_ref().address.given().map_or_else(|| offset(at), offset);
            let problem = "given twice in this service: remove one, and set its weight instead";
            report.error(place, format!("address = \"{}\": {problem}", spec.address));
        }
        specs.push(spec);
    }
    specs
}

fn backend(
    at: &Spanned<raw::Backend<'_>>,
    cluster: Option<Endpoint>,
    pool: &[IpNet],
    report: &mut Report,
) -> Option<BackendSpec> {
    let raw = at.get_ref();
    let missing = is_absent(&raw.address);
    require(
        "backends",
        offset(at),
        [("address", missing, "\"10.2.0.11:8080\"")],
        report,
    );
    let weight = raw.weight.given().map_or(Some(defaults::WEIGHT), |value| {
        number("weight", value, WEIGHTS, "; 0 drains the backend", report)
    });
    let (upper_threshold, lower_threshold) = thresholds(raw, report);
    let text = raw.address.given()?;
    let address = endpoint("address", text, report)?;
    check_family("address", text, address.address, cluster, report);
    check_outside_pool("address", text, address.address, pool, report);
    Some(BackendSpec {
        address,
        weight: weight?,
        upper_threshold,
        lower_threshold,
    })
}

fn thresholds(raw: &raw::Backend<'_>, report: &mut Report) -> (u32, u32) {
    let mut read = |key: &str, written: &Key<i128>| {
        let value = written.given()?;
        number::<u32>(key, value, 0..=i128::from(u32::MAX), "; 0 is none", report)
    };
    let upper = read("upper_threshold", &raw.upper_threshold).unwrap_or(0);
    let lower = read("lower_threshold", &raw.lower_threshold).unwrap_or(0);
    // `ip_vs_add_dest`: "lower threshold is higher than upper threshold".
    if let Some(value) = raw.lower_threshold.given()
        && lower > upper
        && !matches!(raw.upper_threshold, Key::Bad)
    {
        let problem = format!("above upper_threshold = {upper}: give at most that, or raise upper_threshold");
        report.bad(offset(value), "lower_threshold", lower, problem);
    }
    (upper, lower)
}

/// Port 0 is for every port of an address that no other service has. As in IPVS its clients stay with one backend, so
/// that the ports of one of them lead to the same place; and backends get their packets at the port that was asked.
fn check_all_ports(raw: &raw::Service<'_>, spec: &ServiceSpec, report: &mut Report) {
    let Some(text) = raw.address.given() else { return };
    let refuse = |place, written: &str, problem: &str, report: &mut Report| {
        report.bad(place, "address", format!("{written:?}"), problem);
    };
    if spec.address.port == 0 && spec.persistence.is_none() && matches!(raw.persistence, Key::Absent) {
        let problem = "port 0 (all ports) is for services with persistence only: give a port, or add persistence = {}";
        refuse(offset(text), text.get_ref(), problem, report);
    }
    for at in raw.backends.items() {
        let Some(text) = at.get_ref().address.given() else {
            continue;
        };
        let Ok(Endpoint { port, .. }) = text.get_ref().parse() else {
            continue;
        };
        let problem = match (spec.address.port, port) {
            (0, 1..) => {
                "the service has port 0 (all ports), and its backends get packets at the port asked: give port 0"
            }
            (1.., 0) => "port 0 is for backends of services with port 0 (all ports): give a port",
            (0, 0) | (1.., 1..) => continue,
        };
        refuse(offset(text), text.get_ref(), problem, report);
    }
}

/// Claims every address and port of a service, and keeps its own backends off them.
fn claim<'t>(raw: &raw::Service<'t>, spec: &ServiceSpec, claims: &mut Claims<'t>, report: &mut Report) {
    let service = raw.name.given().map_or("", |text| *text.get_ref());
    let by = |key, written, offset| Claimant {
        service,
        protocol: spec.protocol,
        key,
        written,
        offset,
    };
    if let Some(text) = raw.address.given() {
        let by = by("address", Scalar::Text(text.get_ref()), offset(text));
        claims.endpoint(spec.address, by, report);
    }
    for text in raw.external_addresses.items() {
        if let Ok(address) = text.get_ref().parse() {
            let by = by("external_addresses", Scalar::Text(text.get_ref()), offset(text));
            claims.endpoint(Endpoint::new(address, spec.address.port), by, report);
        }
    }
    if let (Some(value), Some(port)) = (raw.node_port.given(), spec.node_port) {
        let by = by("node_port", Scalar::Integer(*value.get_ref()), offset(value));
        claims.node_port(port, spec.address.address.is_ipv4(), by, report);
    }
}

/// A backend that is a service would get packets for ever, or none: what lbd has sent is not taken in again.
fn check_no_loop(raw: &raw::Service<'_>, claims: &Claims<'_>, report: &mut Report) {
    let protocol = raw
        .protocol
        .given()
        .and_then(|text| meaning_of(text.get_ref(), PROTOCOLS));
    let Some(protocol) = protocol else { return };
    let name = raw.name.given().map_or("", |text| *text.get_ref());
    for at in raw.backends.items() {
        let Some(text) = at.get_ref().address.given() else {
            continue;
        };
        let address = text.get_ref().parse::<Endpoint>().ok();
        let problem = match address.and_then(|address| claims.owner(protocol, address)) {
            None => continue,
            Some(owner) if owner == name => "this is the service itself".to_owned(),
            Some(owner) => format!("this is service {owner:?}, and lbd does not send its own packets on"),
        };
        let problem = format!("{problem}: give the address of a real server");
        report.bad(offset(text), "address", format!("{:?}", text.get_ref()), problem);
    }
}
