use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::sync::Arc;

use ipnet::IpNet;
use proptest::collection::vec;
use proptest::option::of;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};

use super::*;
use crate::config::{Firewall, parse};
use lbd_core::flow::{Endpoint, Protocol};
use lbd_core::policy::{Evaluation, Mode, OnBackendRemoved, Policy, UnknownReply};
use lbd_core::scheduler::IdleFlags;

fn host(v4: bool, net: u8, host: u16) -> IpAddr {
    let [high, low] = host.to_be_bytes();
    match v4 {
        true => IpAddr::V4(Ipv4Addr::new(10, net, high, low)),
        false => IpAddr::V6(Ipv6Addr::new(0xfd00, u16::from(net), 0, 0, 0, 0, 0, host)),
    }
}

fn duration() -> impl Strategy<Value = Duration> {
    // Down to single nanoseconds, from one second to 31 days.
    (1..2_678_400_u64, 0..1_000_000_000_u32).prop_map(|(seconds, nanos)| Duration::new(seconds, nanos))
}

fn name() -> impl Strategy<Value = String> {
    // Quotes and backslashes included.
    "[ -~é-ü]{1,20}".prop_map(|name| format!("x{}", name.trim()))
}

fn backends(v4: bool) -> impl Strategy<Value = Vec<BackendSpec>> {
    let backend = (1..=u16::MAX, 0..=65535_u32, 0..2000_u32, 0..=100_u32);
    vec(backend, 0..4).prop_map(move |list| {
        let numbered = (1..).zip(list);
        let spec = |(n, (port, weight, upper, percent))| BackendSpec {
            address: Endpoint::new(host(v4, 2, n), port),
            weight,
            upper_threshold: upper,
            lower_threshold: upper * percent / 100,
        };
        numbered.map(spec).collect()
    })
}

fn persistence(v4: bool) -> impl Strategy<Value = Persistence> {
    let most = if v4 { 32 } else { 128_u8 };
    (duration(), 0..=most).prop_map(|(timeout, prefix_length)| Persistence { timeout, prefix_length })
}

fn union(flags: impl IntoIterator<Item = (&'static str, IdleFlags)>) -> IdleFlags {
    flags.into_iter().fold(IdleFlags::NONE, |all, (_, flag)| all.with(flag))
}

prop_compose! {
    fn service()(v4 in any::<bool>())(
        v4 in Just(v4),
        protocol in select(vec![Protocol::Tcp, Protocol::Udp, Protocol::Sctp]),
        port in 1..=u16::MAX,
        name in name(),
        externals in 0..3_u16,
        node_port in any::<bool>(),
        scheduler in of(select(Kind::ALL.to_vec())),
        (fallback, port_flag, one_packet) in any::<(bool, bool, bool)>(),
        idle in subsequence(IDLE_FLAGS.to_vec(), 0..=4),
        persistence in of(persistence(v4)),
        on_backend_removed in on_backend_removed(),
        backends in backends(v4),
    ) -> ServiceSpec {
        ServiceSpec {
            name,
            protocol,
            address: Endpoint::new(host(v4, 96, 0), port),
            external_addresses: (0..externals).map(|n| host(v4, 97, n)).collect(),
            node_port: node_port.then_some(port),
            scheduler,
            flags: Flags { fallback, port: port_flag, idle: union(idle) },
            persistence,
            one_packet: one_packet && protocol == Protocol::Udp,
            on_backend_removed,
            backends,
        }
    }
}

/// Makes names, addresses and node ports unique, and lets only the flags have an effect that the scheduler knows.
fn apart(policy: &mut Policy) {
    let kinds: Vec<Kind> = policy
        .services
        .iter()
        .map(|service| policy.scheduler_of(service))
        .collect();
    for ((n, service), kind) in (1..).zip(&mut policy.services).zip(kinds) {
        let service = Arc::make_mut(service);
        let v4 = service.address.address.is_ipv4();
        service.name += &n.to_string();
        service.address.address = host(v4, 96, n);
        for (e, external) in (0..).zip(&mut service.external_addresses) {
            *external = host(v4, 97, n * 10 + e);
        }
        service.node_port = service.node_port.map(|_| 30_000 + n);
        if !matches!(kind, Kind::Sh | Kind::Mh) {
            (service.flags.fallback, service.flags.port) = (false, false);
        }
        let idle = service.flags.idle;
        let others = IDLE_FLAGS
            .iter()
            .copied()
            .filter(|(word, _)| !word.starts_with(kind.name()));
        service.flags.idle = union(others.filter(|(_, flag)| idle.contains(*flag)));
    }
}

fn condition<T: std::fmt::Debug>(value: impl Strategy<Value = T>) -> impl Strategy<Value = Option<Condition<T>>> {
    of((any::<bool>(), value).prop_map(|(negated, value)| Condition { negated, value }))
}

fn on_backend_removed() -> impl Strategy<Value = Option<OnBackendRemoved>> {
    let rules = [
        OnBackendRemoved::Preserve,
        OnBackendRemoved::Reset,
        OnBackendRemoved::Reschedule,
    ];
    of(select(rules.to_vec()))
}

fn net() -> impl Strategy<Value = IpNet> {
    (any::<u32>(), 0..=32_u8).prop_map(|(bits, length)| IpNet::new(IpAddr::V4(bits.into()), length).unwrap().trunc())
}

fn port_range() -> impl Strategy<Value = RangeInclusive<u16>> {
    any::<(u16, u16)>().prop_map(|(a, b)| a.min(b)..=a.max(b))
}

fn masquerade_ports() -> impl Strategy<Value = RangeInclusive<u16>> {
    (1024..=u16::MAX - 1023).prop_flat_map(|first| (first + 1023..=u16::MAX).prop_map(move |last| first..=last))
}

prop_compose! {
    fn rule()(
        name in of(name()),
        source in condition(net()),
        destination in condition(net()),
        protocol in condition(select(vec![Protocol::Tcp, Protocol::Udp, Protocol::Sctp])),
        source_port in condition(port_range()),
        destination_port in condition(port_range()),
        probability in of((1..=1_u64 << 32).prop_map(Probability)),
        action in select(vec![Action::Drop, Action::Reject, Action::Pass]),
    ) -> Rule {
        Rule { name, source, destination, protocol, source_port, destination_port, probability, action }
    }
}

prop_compose! {
    fn policy()(
        mode in select(vec![Mode::Ipvs, Mode::Iptables]),
        evaluation in select(vec![Evaluation::Compiled, Evaluation::Linear]),
        scheduler in of(select(Kind::ALL.to_vec())),
        node_addresses in vec(any::<bool>(), 0..2),
        masquerade in select(vec![Masquerade::Auto, Masquerade::Always, Masquerade::Never]),
        own_pool in any::<bool>(),
        shadow in any::<bool>(),
        max_flows in 1..=1_usize << 30,
        on_backend_removed in on_backend_removed(),
        unknown_tcp in select(vec![UnknownTcp::Drop, UnknownTcp::Pass, UnknownTcp::Reset]),
        unknown_reply in select(vec![UnknownReply::Drop, UnknownReply::Reset]),
        (expire_quiescent_template, conn_reuse) in any::<(bool, bool)>(),
        (echo, rate_limit) in (any::<bool>(), 0..10_000_u32),
        tcp in proptest::array::uniform11(duration()),
        udp in duration(),
        sctp in proptest::array::uniform14(duration()),
        mut rules in vec(rule(), 0..4),
        services in vec(service(), 0..5),
        to_service in any::<bool>(),
    ) -> Policy {
        let pool = if own_pool { vec!["203.0.113.0/24".parse().unwrap()] } else { defaults::pool() };
        let node_addresses = (1..).zip(node_addresses).map(|(n, v4)| host(v4, 98, n)).collect();
        let timeouts = Timeouts { tcp, udp, sctp };
        let conntrack = Conntrack { max_flows, on_backend_removed, unknown_tcp, unknown_reply, expire_quiescent_template, conn_reuse, timeouts };
        let icmp = Icmp { echo, rate_limit };
        rules.truncate(if to_service { 3 } else { 4 });
        let nat = Nat { masquerade, pool, own: None };
        let mut policy = Policy { mode, evaluation, scheduler, shadow, node_addresses, local_addresses: Vec::new(), nat, conntrack, icmp, rules, services: services.into_iter().map(Arc::new).collect() };
        apart(&mut policy);
        if let (true, Some(service)) = (to_service, policy.services.first()) {
            policy.rules.push(Rule {
                name: None, source: None, destination: None, protocol: None, source_port: None,
                destination_port: None, probability: None, action: Action::Service(service.name.clone()),
            });
        }
        policy
    }
}

prop_compose! {
    fn config()(
        policy in policy(),
        backend in select(vec![Backend::Tun, Backend::AfXdp]),
        workers in of(1..=256_usize),
        seed in of(any::<u64>()),
        name in "[a-z0-9_.-]{1,14}",
        mtu in 1280..=u16::MAX,
        firewall in select(vec![Firewall::Warn, Firewall::Open]),
        (offload, busy_poll, announce, allow_empty) in any::<(bool, bool, bool, bool)>(),
        masquerade_ports in masquerade_ports(),
        attach in select(vec![Attach::Auto, Attach::Native, Attach::Generic]),
        zero_copy in any::<Option<bool>>(),
        socket in "/[ -~]{1,100}",
    ) -> Config {
        let node_addresses = (!policy.node_addresses.is_empty()).then(|| policy.node_addresses.clone());
        Config {
            policy,
            allow_empty,
            node_addresses,
            datapath: Datapath { backend, workers, seed },
            tun: Tun { name: format!("x{name}"), mtu, offload, firewall },
            af_xdp: AfXdp {
                interfaces: vec!["eth0".into(), "eth1".into()], attach, zero_copy, busy_poll, announce, masquerade_ports,
            },
            control_socket: PathBuf::from(socket),
        }
    }
}

proptest! {
    #[test]
    fn what_was_saved_loads_as_the_same_configuration(config in config()) {
        let text = to_toml(&config);
        let loaded = parse("saved.toml", &text);
        let loaded = loaded.map_err(|errors| TestCaseError::fail(format!("{errors:#?}\n{text}")))?;
        prop_assert_eq!(loaded.config, config, "{}", text);
    }
}

#[test]
fn a_saved_configuration_of_defaults_is_one_line() {
    let config = parse("lbd.toml", "").unwrap().config;
    assert_eq!(to_toml(&config), "mode = \"ipvs\"\n");
}

#[test]
fn a_saved_service_reads_like_one_written_by_hand() {
    let text = r#"mode = "iptables"

[conntrack]
tcp_established = "1h"

[[rules]]
source = "!203.0.113.0/24"
destination_port = "1024-65535"
probability = 0.5
action = "service:web"

[[services]]
name = "web"
protocol = "tcp"
address = "10.96.0.10:80"
node_port = 30080
scheduler = "sh"
scheduler_flags = ["sh-port", "sh-fallback"]
persistence = { timeout = "3h", netmask = 24 }
backends = [
  { address = "10.2.0.11:8080" },
  { address = "10.2.0.12:8080", weight = 0, upper_threshold = 1000, lower_threshold = 800 },
]
"#;
    let config = parse("lbd.toml", text).unwrap().config;
    assert_eq!(to_toml(&config), text);
}
