//! Filters as Docker, ufw, firewalld and people write them, recorded from `nft -j -t list table` and `iptables-nft-save`.
use std::collections::BTreeSet;

use super::judge::{obstacles, own_rules, probes};
use super::rules::{Family, Source, Table};
use super::{Needs, TAG, nft, of_sysctls, saved};

const DOCKER: &str = include_str!("samples/docker.json");
const DOCKER_SAVED: &str = include_str!("samples/docker.txt");
const UFW_SAVED: &str = include_str!("samples/ufw.txt");
const FIREWALLD: &str = include_str!("samples/firewalld.json");
const NATIVE: &str = include_str!("samples/native.json");

fn told(tables: &[Table], v4: bool, af_xdp: bool) -> Vec<String> {
    let found = obstacles(tables, &probes(v4, af_xdp), "lbd0");
    found.iter().map(|found| found.obstacle("lbd0").to_string()).collect()
}

fn saved_by(text: &str, source: Source) -> Vec<Table> {
    saved::tables(text, source, Family::Ip)
}

#[test]
fn dockers_policy_is_told_with_the_commands_that_let_lbds_packets_through() {
    let expected = "table ip filter, chain FORWARD has policy drop, and no rule of it accepts all packets from and to lbd0: \
                    nft 'insert rule ip filter FORWARD iifname \"lbd0\" accept'; \
                    nft 'insert rule ip filter FORWARD oifname \"lbd0\" accept', or set firewall = \"open\" in [tun]";
    assert_eq!(told(&nft::tables(DOCKER).unwrap(), true, false), [expected]);
    assert_eq!(told(&saved_by(DOCKER_SAVED, Source::Nft), true, false), [expected]);
    assert_eq!(
        told(&nft::tables(DOCKER).unwrap(), false, false),
        Vec::<String>::new(),
        "another family's"
    );
}

#[test]
fn legacy_tables_are_told_with_their_own_commands() {
    let told = told(&saved_by(DOCKER_SAVED, Source::Legacy), true, false);
    assert!(
        told[0].contains("table ip filter (legacy), chain FORWARD has policy drop"),
        "{told:?}"
    );
    assert!(
        told[0].contains(": iptables-legacy -t filter -I FORWARD -i lbd0 -j ACCEPT; iptables-legacy"),
        "{told:?}"
    );
}

#[test]
fn ufw_lets_answers_to_this_host_in_and_forwards_nothing_new() {
    let told = told(&saved_by(UFW_SAVED, Source::Nft), true, false);
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0].contains("chain FORWARD has policy drop"), "{told:?}");
}

#[test]
fn firewalld_rejects_in_the_end_and_filters_reverse_paths_of_ipv6() {
    let tables = nft::tables(FIREWALLD).unwrap();
    let [v4] = &told(&tables, true, false)[..] else {
        panic!("{:?}", told(&tables, true, false))
    };
    assert!(
        v4.starts_with("table inet firewalld, chain filter_FORWARD has `reject`, and no rule before it"),
        "{v4}"
    );
    let v6 = told(&tables, false, false);
    assert!(
        v6[0].contains("chain filter_PREROUTING has `nfproto ipv6 reverse path filter drop`"),
        "{v6:?}"
    );
    assert!(v6[1].contains("chain filter_FORWARD"), "{v6:?}");
}

#[test]
fn rules_for_lbds_device_and_verdict_maps_are_understood() {
    assert_eq!(told(&nft::tables(NATIVE).unwrap(), true, false), Vec::<String>::new());
    let without = NATIVE.replace("lbd*", "wg*");
    assert_eq!(told(&nft::tables(&without).unwrap(), true, false).len(), 1);
}

#[test]
fn a_drop_of_invalid_packets_is_in_the_way_of_local_clients_over_af_xdp_only() {
    let text = "*filter\n:FORWARD ACCEPT [0:0]\n-A FORWARD -m conntrack --ctstate INVALID -j DROP\nCOMMIT\n";
    let tables = saved_by(text, Source::Nft);
    assert_eq!(told(&tables, true, false), Vec::<String>::new());
    let [told] = &told(&tables, true, true)[..] else {
        panic!()
    };
    assert!(told.contains("chain FORWARD has `ct state invalid drop`"), "{told}");
}

#[test]
fn what_takes_only_some_packets_is_nobodys_obstacle_but_no_way_through_either() {
    let text = |policy: &str, rule: &str| format!("*filter\n:FORWARD {policy} [0:0]\n-A FORWARD {rule}\nCOMMIT\n");
    for rule in [
        "-s 203.0.113.0/24 -j DROP",
        "-p tcp -m tcp --dport 25 -j REJECT",
        "-i eth1 -j DROP",
        "-m mark --mark 0x8000/0x8000 -j DROP",
    ] {
        let tables = saved_by(&text("ACCEPT", rule), Source::Nft);
        assert_eq!(told(&tables, true, false), Vec::<String>::new(), "{rule}");
    }
    for rule in [
        "-s 203.0.113.0/24 -j ACCEPT",
        "-m mark --mark 0x4000/0x4000 -j ACCEPT",
        "-m conntrack --ctstate ESTABLISHED -j ACCEPT",
    ] {
        let tables = saved_by(&text("DROP", rule), Source::Nft);
        assert_eq!(told(&tables, true, false).len(), 1, "{rule}");
    }
}

#[test]
fn lbds_own_rules_are_known_by_their_comment() {
    let rule = format!(
        r#"{{"rule": {{"family": "ip", "table": "filter", "chain": "FORWARD", "handle": 77, "comment": "{TAG}", "expr": [{{"accept": null}}]}}}}"#
    );
    let text = DOCKER.trim_end().strip_suffix("]}").unwrap().to_owned() + ", " + &rule + "]}";
    let (nft, legacy) = own_rules(&nft::tables(&text).unwrap());
    assert_eq!(
        (nft, legacy),
        (vec!["delete rule ip filter FORWARD handle 77".to_owned()], vec![])
    );
    let text =
        format!("*filter\n:FORWARD DROP [0:0]\n-A FORWARD -i lbd0 -m comment --comment \"{TAG}\" -j ACCEPT\nCOMMIT\n");
    let (nft, legacy) = own_rules(&saved_by(&text, Source::Legacy));
    assert_eq!(
        (nft, legacy),
        (
            vec![],
            vec![("iptables-legacy", "-t filter -D FORWARD -i lbd0 -j ACCEPT".to_owned())]
        )
    );
}

#[test]
fn a_strict_reverse_path_filter_and_node_ports_that_the_kernel_gives_away_are_told() {
    let needs = Needs {
        device: "lbd0".to_owned(),
        families: (true, false),
        node_ports: BTreeSet::from([30080, 40000, 40001]),
        ..Needs::default()
    };
    let told = |own: &str, all: &str, reserved: &str| -> Vec<String> {
        let read = |key: &str| {
            let value = match key {
                "net/ipv4/conf/lbd0/rp_filter" => own,
                "net/ipv4/conf/all/rp_filter" => all,
                "net/ipv4/ip_local_port_range" => "32768\t60999",
                "net/ipv4/ip_local_reserved_ports" => reserved,
                _ => return None,
            };
            Some(format!("{value}\n"))
        };
        of_sysctls(&needs, read).iter().map(ToString::to_string).collect()
    };
    let ports = "net.ipv4.ip_local_port_range is 32768 to 60999, so the kernel may give node port 40000,40001 to a connection of \
                 this host's own: sysctl -w net.ipv4.ip_local_reserved_ports=40000,40001";
    assert_eq!(told("2", "1", ""), [ports]);
    assert_eq!(told("0", "0", "39999-40001"), Vec::<String>::new());
    let strict = told("1", "0", "40000-40001");
    assert_eq!(
        strict,
        [
            "net.ipv4.conf.lbd0.rp_filter is strict: the kernel drops what lbd writes in clients' names: \
          sysctl -w net.ipv4.conf.lbd0.rp_filter=2"
        ]
    );
    assert!(told("0", "1", "40000")[1].ends_with("ip_local_reserved_ports=40000,40001"));
}
