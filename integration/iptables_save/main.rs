//! Dumps of nodes, of every era of kube-proxy's chains, imported and printed again.
//!
//! The dumps under `integration/dumps` are written by hand in the form of each version, but for `kind-1.23.5.txt`, which is
//! a real node's (its first line says whose).
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test fails by panicking and says on stdout why it was skipped"
)]
mod damaged;
mod hostile;
mod kernel;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use lbd::config::{Config, parse};
use lbd::export::iptables_save::export;
use lbd::flow::Protocol;
use lbd::import::Imported;
use lbd::import::iptables_save::import;
use lbd::matcher::rules::Action;
use lbd::policy::{Masquerade, Mode, ServiceSpec};
use lbd::scheduler::Kind;

fn dump(name: &str) -> String {
    let file = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("integration/dumps")
        .join(name);
    std::fs::read_to_string(file).unwrap()
}

const DUMPS: [&str; 6] = [
    "kind-1.23.5.txt",
    "kube-1.10.txt",
    "kube-1.24.txt",
    "kube-1.30.txt",
    "kube-1.30-ip6.txt",
    "masquerade-all-without-comments.txt",
];

fn imported(text: &str) -> (Config, Vec<String>) {
    let Imported { toml, remarks } = import("dump", text).unwrap();
    (parse("imported", &toml).unwrap().config, remarks)
}

fn service<'c>(config: &'c Config, name: &str) -> &'c ServiceSpec {
    let found = config.policy.services.iter().find(|service| service.name == name);
    found.unwrap_or_else(|| panic!("no {name} in {:#?}", config.policy.services))
}

fn backends(service: &ServiceSpec) -> Vec<String> {
    let shown = service
        .backends
        .iter()
        .map(|backend| format!("{}*{}", backend.address, backend.weight));
    shown.collect()
}

/// `source destination -> action`
fn rules(config: &Config) -> Vec<String> {
    let shown = config.policy.rules.iter().map(|rule| {
        let source = rule
            .source
            .as_ref()
            .map_or_else(|| "any".to_owned(), |source| source.value.to_string());
        let destination = rule.destination.as_ref().unwrap().value.addr();
        let port = rule.destination_port.as_ref().unwrap().value.start();
        let action = match &rule.action {
            Action::Drop => "drop",
            Action::Reject => "reject",
            Action::Pass => "pass",
            Action::Service(name) => name,
        };
        format!("{source} {destination}:{port} -> {action}")
    });
    shown.collect()
}

fn lost(remarks: &[String]) -> Vec<&String> {
    remarks
        .iter()
        .filter(|remark| remark.contains(": not carried over: "))
        .collect()
}

#[test]
fn a_real_node_of_kind_keeps_its_services_and_only_dockers_rules_are_left_out() {
    let (config, remarks) = imported(&dump("kind-1.23.5.txt"));
    assert_eq!(config.policy.mode, Mode::Iptables);
    assert_eq!(config.policy.services.len(), 6);
    let dns = service(&config, "kube-system/kube-dns:dns");
    assert_eq!(backends(dns), ["10.244.0.3:53*1", "10.244.0.4:53*1"]);
    assert_eq!(config.policy.scheduler_of(dns), Kind::Random);
    assert_eq!(config.policy.nat.masquerade, Masquerade::Auto);
    let lost = lost(&remarks);
    assert_eq!(lost.len(), 10, "{lost:#?}");
    let foreign = |line: &&&String| line.contains("DOCKER") || line.contains("KIND-MASQ-AGENT");
    assert_eq!(lost.iter().filter(foreign).count(), 10, "{lost:#?}");
    assert!(lost[0].starts_with("# dump:74: not carried over: -A PREROUTING -d 192.168.31.191/32 -j DOCKER_OUTPUT: "));
}

#[test]
fn a_node_of_1_10_keeps_affinity_ranges_external_addresses_and_local_policy() {
    let (config, remarks) = imported(&dump("kube-1.10.txt"));
    let nginx = service(&config, "default/nginx");
    assert_eq!(
        backends(nginx),
        ["10.244.1.2:80*1", "10.244.2.4:80*1", "10.244.3.4:80*1"]
    );
    let external: Vec<String> = nginx.external_addresses.iter().map(ToString::to_string).collect();
    assert_eq!(external, ["192.0.2.80", "12.12.12.12"]);
    assert_eq!(nginx.node_port, Some(30938));
    let echo = service(&config, "default/echo:http");
    assert_eq!(backends(echo), ["10.244.1.5:8080*1", "10.244.2.5:8080*1"]);
    assert_eq!(echo.persistence.unwrap().timeout, Duration::from_secs(10_800));
    let local = service(&config, "default/echo:http local");
    assert_eq!(
        (local.address.to_string().as_str(), local.node_port),
        ("12.12.12.13:8080", Some(31080))
    );
    assert_eq!(backends(local), ["10.244.1.5:8080*1"]);
    assert_eq!(
        rules(&config),
        [
            "203.0.113.0/24 12.12.12.12:80 -> default/nginx",
            "198.51.100.7/32 12.12.12.12:80 -> default/nginx",
            "any 12.12.12.12:80 -> drop",
            "10.244.0.0/16 12.12.12.13:8080 -> default/echo:http",
        ]
    );
    assert_eq!(lost(&remarks).len(), 1, "only the policy of FORWARD: {remarks:#?}");
}

#[test]
fn a_service_without_endpoints_is_one_without_backends() {
    let (config, _) = imported(&dump("kube-1.10.txt"));
    let logs = service(&config, "default/logs:syslog");
    assert_eq!(
        (logs.address.to_string().as_str(), logs.node_port),
        ("10.98.0.9:514", Some(30514))
    );
    assert_eq!(backends(logs), Vec::<String>::new());
}

#[test]
fn unequal_shares_are_weights_and_a_scheduler_that_looks_at_them() {
    let (config, remarks) = imported(&dump("kube-1.24.txt"));
    let canary = service(&config, "ns/canary:http");
    assert_eq!(backends(canary), ["10.180.0.2:80*9", "10.180.1.2:80*1"]);
    assert_eq!(canary.scheduler, Some(Kind::Wrr));
    assert!(
        remarks
            .iter()
            .any(|remark| remark.contains("ns/canary:http") && remark.contains("wrr"))
    );
}

#[test]
fn a_node_of_1_24_sends_packets_from_outside_to_its_own_backends_only() {
    let (config, _) = imported(&dump("kube-1.24.txt"));
    let local = service(&config, "ns2/svc2:p80 local");
    assert_eq!(backends(local), ["10.180.0.2:80*1"]);
    assert_eq!(local.node_port, Some(3001));
    assert_eq!(
        rules(&config),
        [
            "10.0.0.0/8 192.168.99.22:80 -> ns2/svc2:p80",
            "203.0.113.0/25 1.2.3.4:80 -> ns2/svc2:p80 local",
            "any 1.2.3.4:80 -> drop",
        ]
    );
}

#[test]
fn a_node_of_1_30_without_a_local_backend_drops_what_comes_from_outside() {
    let (config, remarks) = imported(&dump("kube-1.30.txt"));
    assert_eq!(
        rules(&config),
        [
            "10.0.0.0/8 192.168.99.22:80 -> ns2/svc2:p80",
            "any 192.168.99.22:80 -> drop",
            "203.0.113.0/25 5.6.7.8:80 -> ns5/svc5:p80",
            "any 5.6.7.8:80 -> drop",
            "any 172.30.0.47:9000 -> drop",
        ]
    );
    assert_eq!(service(&config, "ns3/svc3:p80").node_port, Some(3003));
    assert_eq!(service(&config, "ns2/svc2:p80").node_port, None);
    assert_eq!(backends(service(&config, "ns6/svc6:p80")), Vec::<String>::new());
    let lost = lost(&remarks);
    for part in [
        "health check node port",
        "route LOCAL traffic",
        "--dport 3001 -j KUBE-EXT",
        "--dport 3001 -j DROP",
        "127.0.0.0/8",
    ] {
        assert_eq!(
            lost.iter().filter(|line| line.contains(part)).count(),
            1,
            "{part}: {lost:#?}"
        );
    }
    assert_eq!(lost.len(), 5, "{lost:#?}");
}

#[test]
fn accept_rules_for_what_is_forwarded_are_said_to_be_a_setting_of_lbds_and_not_needless() {
    let text = dump("kube-1.30.txt").replace(":FORWARD ACCEPT", ":FORWARD DROP");
    let (_, remarks) = imported(&text);
    let about = |part: &str| {
        remarks
            .iter()
            .filter(|remark| remark.contains(part))
            .collect::<Vec<_>>()
    };
    let [told] = about("accepting of forwarded packets")[..] else {
        panic!("{remarks:#?}")
    };
    // The jump to KUBE-FORWARD, and two rules of it.
    assert!(
        told.contains("3 lines left to lbd's own settings") && told.contains("firewall = \"open\""),
        "{told}"
    );
    let [policy] = about(":FORWARD DROP")[..] else {
        panic!("{remarks:#?}")
    };
    assert!(policy.ends_with("set firewall = \"open\" in [tun]"), "{policy}");
}

#[test]
fn both_families_may_be_in_one_file_and_no_name_is_given_twice() {
    let both = dump("kube-1.30.txt") + &dump("kube-1.30-ip6.txt");
    let (config, _) = imported(&both);
    assert_eq!(backends(service(&config, "ns3/svc3:p80")), ["10.180.0.3:80*1"]);
    let six = service(&config, "ns3/svc3:p80 ipv6");
    assert_eq!(six.address.to_string(), "[fd00:172:30::43]:80");
    assert_eq!(backends(six), ["[fd00:10:180::3]:80*1"]);
    assert_eq!(six.external_addresses[0].to_string(), "2001:db8::80");
}

#[test]
fn masquerading_of_all_is_carried_over_and_services_without_comments_have_names() {
    let (config, remarks) = imported(&dump("masquerade-all-without-comments.txt"));
    assert_eq!(config.policy.nat.masquerade, Masquerade::Always);
    assert_eq!(service(&config, "tcp 10.96.0.1:80").node_port, Some(30080));
    assert_eq!(backends(service(&config, "udp 10.96.0.2:53")), ["10.244.0.1:53*1"]);
    let nodes: Vec<String> = config.node_addresses.unwrap().iter().map(ToString::to_string).collect();
    assert_eq!(nodes, ["192.168.0.2", "192.168.0.3"]);
    assert_eq!(lost(&remarks), Vec::<&String>::new());
}

#[test]
fn masquerading_of_one_service_among_others_is_told() {
    let mark = "-A KUBE-SVC-BIGCLUSTERBIGCL2 -d 10.96.0.2/32 -p udp -m udp --dport 53 -j KUBE-MARK-MASQ\n";
    let partly = dump("masquerade-all-without-comments.txt").replace(mark, "");
    let (config, remarks) = imported(&partly);
    assert_eq!(config.policy.nat.masquerade, Masquerade::Auto);
    let [told] = lost(&remarks)[..] else {
        panic!("{remarks:#?}")
    };
    assert!(
        told.contains("-d 10.96.0.1/32 ") && told.contains("nat.masquerade = \"always\""),
        "{told}"
    );
}

#[test]
fn dumps_are_printed_again_as_rules_that_are_imported_as_the_same_configuration() {
    for name in DUMPS {
        let (config, _) = imported(&dump(name));
        let printed = export(&config);
        let (again, remarks) = imported(&printed.text);
        assert_eq!(lost(&remarks), Vec::<&String>::new(), "{name}");
        if printed.remarks.is_empty() {
            let sorted = |mut config: Config| {
                config.policy.services.sort_by(|a, b| a.name.cmp(&b.name));
                config
            };
            assert_eq!(sorted(again), sorted(config), "{name}");
        }
    }
}

#[test]
fn what_lbd_cannot_serve_is_told_with_the_reason_and_the_rest_is_carried_over() {
    let text = dump("kube-1.30.txt")
        .replace("--to-destination 10.180.0.4:53", "--to-destination 127.0.0.1:53")
        .replace("172.30.0.45/32", "198.18.0.1/32");
    let (config, remarks) = imported(&text);
    assert_eq!(
        backends(service(&config, "kube-system/kube-dns:dns")),
        Vec::<String>::new()
    );
    assert!(
        config
            .policy
            .services
            .iter()
            .all(|service| service.name != "ns5/svc5:p80")
    );
    let lost = lost(&remarks);
    assert!(
        lost.iter()
            .any(|line| line.contains("KUBE-SVC-DNS") && line.contains("loopback")),
        "{lost:#?}"
    );
    assert!(
        lost.iter()
            .any(|line| line.contains("-d 198.18.0.1/32") && line.contains("nat.pool")),
        "{lost:#?}"
    );
}

#[test]
fn a_node_of_1_24_without_a_local_backend_drops_what_comes_from_outside() {
    let local = "-A KUBE-SVL-GNZBNJ2PO5MGZ6GT -m comment --comment \"ns2/svc2:p80 -> 10.180.0.2:80\" -j KUBE-SEP-RS4RBKLTHTF2IUXJ";
    let none =
        "-A KUBE-SVL-GNZBNJ2PO5MGZ6GT -m comment --comment \"ns2/svc2:p80 has no local endpoints\" -j KUBE-MARK-DROP";
    let (config, remarks) = imported(&dump("kube-1.24.txt").replace(local, none));
    assert_eq!(
        rules(&config),
        [
            "10.0.0.0/8 192.168.99.22:80 -> ns2/svc2:p80",
            "any 192.168.99.22:80 -> drop",
            "any 1.2.3.4:80 -> drop",
        ]
    );
    assert!(
        lost(&remarks).iter().any(|line| line.contains("--dport 3001")),
        "{remarks:#?}"
    );
}

#[test]
fn node_ports_on_loopback_are_told_and_other_node_addresses_kept() {
    let text = dump("masquerade-all-without-comments.txt").replace("192.168.0.2/32", "127.0.0.1/32");
    let (config, remarks) = imported(&text);
    assert_eq!(config.node_addresses.unwrap().len(), 1);
    let [told] = lost(&remarks)[..] else {
        panic!("{remarks:#?}")
    };
    assert!(
        told.contains("-d 127.0.0.1/32 -j KUBE-NODEPORTS: lbd answers at no loopback address"),
        "{told}"
    );
}

#[test]
fn sctp_is_carried_over() {
    let text = dump("masquerade-all-without-comments.txt").replace("-p udp -m udp", "-p sctp -m sctp");
    let (config, remarks) = imported(&text);
    let mut services = config.policy.services.iter();
    let sctp = services.find(|service| service.name == "sctp 10.96.0.2:53").unwrap();
    assert_eq!(sctp.protocol, Protocol::Sctp);
    assert!(
        !lost(&remarks).iter().any(|line| line.contains("-p sctp")),
        "{remarks:#?}"
    );
    let (again, _) = imported(&export(&config).text);
    assert_eq!(again.policy.services, config.policy.services);
}

#[test]
fn a_part_of_a_dump_that_was_cut_out_is_imported() {
    let text = dump("kube-1.24.txt");
    let only: Vec<&str> = text
        .lines()
        .filter(|line| line.contains("svc2") && line.starts_with("-A"))
        .collect();
    let (config, _) = imported(&only.join("\n"));
    assert_eq!(
        backends(service(&config, "ns2/svc2:p80")),
        ["10.180.0.2:80*1", "10.180.1.2:80*1"]
    );
    let counted: Vec<String> = only.iter().map(|line| format!("[3:180] {line}")).collect();
    assert_eq!(imported(&counted.join("\n")).0, config);
}

#[test]
fn a_file_of_something_else_is_refused() {
    let error = import("saved", "-A -t 10.9.9.9:80 -s rr\nhello\n").unwrap_err();
    assert!(
        error.starts_with("saved: no line of it is a rule of kube-proxy"),
        "{error}"
    );
    assert!(error.contains("# saved:2: not carried over: hello: "), "{error}");
    let ipvs = "*nat\n-A KUBE-SERVICES -m set --match-set KUBE-CLUSTER-IP dst,dst -j ACCEPT\nCOMMIT\n";
    assert!(import("saved", ipvs).unwrap_err().contains("ipvsadm -Sn"));
}

#[test]
#[expect(clippy::disallowed_methods, reason = "a time that a user would wait")]
fn ten_thousand_services_are_imported_and_printed_in_seconds() {
    let mut text = "mode = \"iptables\"\n".to_owned();
    for n in 0..10_000 {
        let (high, low) = (n / 250, n % 250 + 1);
        text += &format!(
            "[[services]]\nname = \"ns/svc{n}:http\"\nprotocol = \"tcp\"\naddress = \"10.96.{high}.{low}:80\"\nbackends = ["
        );
        for backend in 1..4 {
            text += &format!("{{ address = \"10.{backend}.{high}.{low}:8080\" }},");
        }
        text += "]\n";
    }
    let config = parse("", &text).unwrap().config;
    let started = Instant::now();
    let (again, _) = imported(&export(&config).text);
    assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
    assert_eq!(again.policy.services, config.policy.services);
}
