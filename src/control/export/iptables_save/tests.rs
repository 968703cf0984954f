use std::sync::Arc;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use ipnet::IpNet;
use proptest::collection::vec;
use proptest::option::of;
use proptest::prelude::*;
use proptest::sample::select;

use super::*;
use crate::import::iptables_save::import;
use lbd_core::flow::{Endpoint, Protocol};
use lbd_core::matcher::rules::{Action, Condition, Probability, Rule};
use lbd_core::policy::{BackendSpec, Persistence, ServiceSpec};
use lbd_core::scheduler::{Flags, Kind};
use lbd_state::config::{parse, to_toml};

fn host(v4: bool, net: u8, host: u16) -> IpAddr {
    let [high, low] = host.to_be_bytes();
    match v4 {
        true => IpAddr::V4(Ipv4Addr::new(10, net, high, low)),
        false => IpAddr::V6(Ipv6Addr::new(0xfd00, u16::from(net), 0, 0, 0, 0, 0, host)),
    }
}

/// With all that needs quoting, and all that looks like kube-proxy's own words.
fn name() -> impl Strategy<Value = String> {
    let ending = select(vec![
        "",
        ":",
        " cluster IP",
        " -> 10.0.0.1:80",
        " has no endpoints",
        " external IP",
        "\\",
        "'\"",
    ]);
    ("[ -~é-ü]{1,20}", ending).prop_map(|(name, ending)| format!("x{}{ending}", name.trim()))
}

fn weights() -> impl Strategy<Value = Vec<u32>> {
    prop_oneof![
        vec(Just(1), 0..6),
        vec(1..=60_u32, 2..6).prop_map(|mut weights| {
            // So that the smallest weights in this ratio are these.
            weights[0] = 1;
            weights
        }),
    ]
}

prop_compose! {
    fn service()(v4 in any::<bool>(), all_ports in prop::bool::weighted(0.1))(
        v4 in Just(v4),
        all_ports in Just(all_ports),
        protocol in select(vec![Protocol::Tcp, Protocol::Udp, Protocol::Sctp]),
        port in 1..=u16::MAX,
        name in name(),
        externals in 0..3_u16,
        node_port in any::<bool>(),
        affinity in of((1..2_678_400_u64, 0..=if v4 { 32 } else { 128_u8 })),
        weights in weights(),
        backend_port in 1..=u16::MAX,
    ) -> ServiceSpec {
        let port = if all_ports { 0 } else { port };
        let backend = |(n, &weight): (u16, &u32)| BackendSpec {
            address: Endpoint::new(host(v4, 2, n), if all_ports { 0 } else { backend_port }),
            weight,
            upper_threshold: 0,
            lower_threshold: 0,
        };
        let even = weights.windows(2).all(|pair| pair[0] == pair[1]);
        let affinity = affinity.filter(|_| !weights.is_empty()).or_else(|| all_ports.then_some((60, 24)));
        ServiceSpec {
            name,
            protocol,
            address: Endpoint::new(host(v4, 96, 0), port),
            external_addresses: (0..externals).map(|n| host(v4, 97, n)).collect(),
            node_port: node_port.then_some(1),
            scheduler: (!even).then_some(Kind::Wrr),
            flags: Flags::default(),
            persistence: affinity.map(|(seconds, prefix_length)| Persistence {
                timeout: Duration::from_secs(seconds),
                prefix_length,
            }),
            one_packet: false,
            on_backend_removed: None,
            backends: (0..).zip(&weights).map(backend).collect(),
        }
    }
}

fn condition<T: std::fmt::Debug>(value: impl Strategy<Value = T>) -> impl Strategy<Value = Condition<T>> {
    (any::<bool>(), value).prop_map(|(negated, value)| Condition { negated, value })
}

fn network(v4: bool) -> impl Strategy<Value = IpNet> {
    (1..=32_u8, any::<u16>()).prop_map(move |(length, n)| IpNet::new(host(v4, 9, n), length).unwrap().trunc())
}

prop_compose! {
    fn rule()(v4 in any::<bool>())(
        name in of(name()),
        source in of(condition(network(v4))),
        destination in of(condition(network(v4))),
        protocol in of(condition(select(vec![Protocol::Tcp, Protocol::Udp, Protocol::Sctp]))),
        source_port in of(condition((1..=999_u16, 1000..=u16::MAX).prop_map(|(first, last)| first..=last))),
        destination_port in of(condition((1..=u16::MAX).prop_map(|port| port..=port))),
        probability in of((1..=1_u64 << 32).prop_map(Probability)),
        action in select(vec![Action::Drop, Action::Reject, Action::Pass]),
    ) -> Rule {
        Rule { name, source, destination, protocol, source_port, destination_port, probability, action }
    }
}

prop_compose! {
    fn configuration()(
        mut services in vec(service(), 0..6),
        mut rules in vec(rule(), 0..4),
        masquerade in select(vec![Masquerade::Auto, Masquerade::Always, Masquerade::Never]),
        nodes in vec(any::<bool>(), 0..3),
        to_service in any::<bool>(),
    ) -> Config {
        for (n, service) in (1_u16..).zip(&mut services) {
            let v4 = service.address.address.is_ipv4();
            service.name += &n.to_string();
            service.address.address = host(v4, 96, n);
            service.node_port = service.node_port.filter(|_| service.address.port > 0).map(|_| 30_000 + n);
            for (e, external) in (0..).zip(&mut service.external_addresses) {
                *external = host(v4, 97, n * 10 + e);
            }
        }
        if let (true, Some(first)) = (to_service, services.first()) {
            let mut rule = Rule {
                name: None, source: None, destination: None, protocol: None, source_port: None,
                destination_port: None, probability: None, action: Action::Service(first.name.clone()),
            };
            rule.probability = Some(Probability(1 << 31));
            rules.push(rule);
        }
        let mut config = parse("", "mode = \"iptables\"\nscheduler = \"random\"\n").unwrap().config;
        let nodes: Vec<IpAddr> = (1..).zip(nodes).map(|(n, v4)| host(v4, 98, n)).collect();
        config.node_addresses = (!nodes.is_empty()).then_some(nodes);
        config.policy.services = services.into_iter().map(Arc::new).collect();
        config.policy.rules = rules;
        config.policy.nat.masquerade = masquerade;
        config
    }
}

/// The order of services is of no consequence: no two have an address in common.
fn comparable(mut config: Config) -> Config {
    config.policy.services.sort_by(|a, b| a.name.cmp(&b.name));
    config.node_addresses.iter_mut().for_each(|nodes| nodes.sort());
    config
}

proptest! {
    #[test]
    fn what_is_printed_is_imported_as_the_same_configuration_unless_a_remark_says_otherwise(config in configuration()) {
        // As lbctl has it: from TOML.
        let config = parse("", &to_toml(&config)).unwrap().config;
        let exported = export(&config);
        let imported = import("rules", &exported.text);
        let imported = imported.map_err(|error| TestCaseError::fail(format!("{error}\n{}", exported.text)))?;
        let lost: Vec<&String> = imported.remarks.iter().filter(|line| line.contains("not carried over")).collect();
        prop_assert_eq!(lost, Vec::<&String>::new(), "{}", exported.text);
        let read = parse("", &imported.toml).unwrap().config;
        if exported.remarks.is_empty() {
            let mut read = comparable(read);
            read.policy.node_addresses.sort();
            let mut config = comparable(config);
            config.policy.node_addresses.sort();
            prop_assert_eq!(read, config, "{}\n{}", exported.text, imported.toml);
        }
    }
}

fn exported(toml: &str) -> Exported {
    export(&parse("lbd.toml", toml).unwrap().config)
}

const WEB: &str = r#"
mode = "iptables"
[[rules]]
name = "office only"
source = "!203.0.113.0/24"
destination_port = 80
protocol = "tcp"
action = "drop"
[[services]]
name = "default/web:http"
protocol = "tcp"
address = "10.96.0.10:80"
external_addresses = ["203.0.113.10"]
node_port = 30080
persistence = { timeout = "3h" }
backends = [{ address = "10.2.0.11:8080" }, { address = "10.2.0.12:8080" }, { address = "10.2.0.13:8080" }]
[[services]]
name = "default/none:http"
protocol = "tcp"
address = "10.96.0.11:80"
"#;

#[test]
fn a_service_is_printed_as_kube_proxy_would_have_written_it() {
    let Exported { text, remarks } = exported(WEB);
    assert_eq!(remarks, Vec::<String>::new());
    let lines: Vec<&str> = text.lines().collect();
    for line in [
        "-A KUBE-SERVICES -d 10.96.0.10/32 -p tcp -m comment --comment \"default/web:http cluster IP\" -m tcp --dport 80 -j KUBE-SVC-CDGGSHYLG3RE2FKL",
        "-A KUBE-SERVICES -d 203.0.113.10/32 -p tcp -m comment --comment \"default/web:http external IP\" -m tcp --dport 80 -j KUBE-EXT-CDGGSHYLG3RE2FKL",
        "-A KUBE-NODEPORTS -p tcp -m comment --comment \"default/web:http\" -m tcp --dport 30080 -j KUBE-EXT-CDGGSHYLG3RE2FKL",
        "-A KUBE-EXT-CDGGSHYLG3RE2FKL -j KUBE-SVC-CDGGSHYLG3RE2FKL",
        "-A LBD-RULES ! -s 203.0.113.0/24 -p tcp -m comment --comment \"office only\" -m tcp --dport 80 -j LBD-DROP",
        "-A KUBE-SERVICES -d 10.96.0.11/32 -p tcp -m comment --comment \"default/none:http has no endpoints\" -m tcp --dport 80 -j REJECT --reject-with icmp-port-unreachable",
    ] {
        assert!(lines.contains(&line), "{line} is missing in\n{text}");
    }
    for part in [
        "default/web:http -> 10.2.0.11:8080\" -m statistic --mode random --probability 0.33333333349 -j KUBE-SEP-",
        "default/web:http -> 10.2.0.12:8080\" -m statistic --mode random --probability 0.50000000000 -j KUBE-SEP-",
        "-m recent --rcheck --seconds 10800 --reap --name KUBE-SEP-",
        "-m recent --set --name KUBE-SEP-",
        "-j DNAT --to-destination 10.2.0.13:8080",
    ] {
        assert!(text.contains(part), "{part} is missing in\n{text}");
    }
}

#[test]
fn ipv6_rules_are_marked_so_that_both_programs_take_the_same_file() {
    let both = "[[services]]\nname = \"six\"\nprotocol = \"udp\"\naddress = \"[fd00:96::1]:53\"\n\
                backends = [{ address = \"[fd00:2::1]:53\" }]\n";
    let text = exported(&format!("{WEB}{both}")).text;
    assert!(
        text.contains("\n-6 -A KUBE-SERVICES -d fd00:96::1/128 -p udp "),
        "{text}"
    );
    assert!(
        text.contains("\n-4 -A KUBE-SERVICES -d 10.96.0.10/32 -p tcp "),
        "{text}"
    );
    assert!(text.contains("-j DNAT --to-destination [fd00:2::1]:53"), "{text}");
}

#[test]
fn what_iptables_cannot_say_is_a_comment() {
    let toml = "mode = \"ipvs\"\n[[services]]\nname = \"a\"\nprotocol = \"udp\"\naddress = \"10.96.0.1:53\"\n\
                scheduler = \"wlc\"\nscheduler_flags = [\"ops\"]\n\
                backends = [{ address = \"10.2.0.1:53\", weight = 0 }, { address = \"10.2.0.2:53\", upper_threshold = 9 }]\n";
    let Exported { text, remarks } = exported(toml);
    let about = ["mode", "weight 0", "thresholds", "one-packet", "wlc"];
    assert_eq!(remarks.len(), about.len(), "{remarks:?}");
    for (remark, word) in remarks.iter().zip(about) {
        assert!(remark.contains(word), "{remark} does not say {word}");
        assert!(text.contains(&format!("\n# not shown: {remark}\n")), "{text}");
    }
    assert!(!text.contains("10.2.0.1:53"), "{text}");
}

#[test]
fn weights_of_wrr_are_shares_of_what_is_left() {
    let toml = "mode = \"iptables\"\n[[services]]\nname = \"a\"\nprotocol = \"tcp\"\naddress = \"10.96.0.1:80\"\n\
                scheduler = \"wrr\"\n\
                backends = [{ address = \"10.2.0.1:80\", weight = 3 }, { address = \"10.2.0.2:80\", weight = 2 }, { address = \"10.2.0.3:80\" }]\n";
    let text = exported(toml).text;
    assert!(text.contains("--probability 0.50000000000 "), "{text}");
    assert!(text.contains("--probability 0.66666666651 "), "{text}");
}
