//! Routes, rules and sysctls in a network namespace of the test's own, seen through `ip`.
//!
//! Each test starts itself anew under `unshare`. Where neither root nor a user namespace is to be had, it says so.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test fails by panicking and says on stdout why it was skipped"
)]

mod addresses;
mod local_rule;
mod repair;
mod router;
#[path = "../support/unshared.rs"]
mod unshared;

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::IpAddr;
use std::path::Path;
use std::process::{Command, Stdio};

use lbd::flow::{Endpoint, Protocol};
use lbd::plumbing::{Device, Error, Plan, Plumbing, clear_leftovers};
use unshared::{inside, inside_with, ip};

const VICTIM: &str = "LBD_PLUMBING_TEST_VICTIM";

/// What `ip` says, be it an error.
fn try_ip(command: &str) -> String {
    let output = Command::new("ip").args(command.split(' ')).output().unwrap();
    String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
}

fn write_sysctl(key: &str, value: &str) {
    fs::write(Path::new("/proc/sys/net").join(key), value).unwrap();
}

fn sysctl(key: &str) -> String {
    fs::read_to_string(Path::new("/proc/sys/net").join(key))
        .unwrap()
        .trim()
        .into()
}

/// A host with two families and somebody else's rules; one interface forwards though the host does not.
fn host() {
    // A link-local address and its route would come a second or two later, amid what is compared; lbd0 comes as any host makes it.
    ip("link set lo up");
    write_sysctl("ipv6/conf/default/addr_gen_mode", "1");
    ip("link add eth0 type veth peer name peer0");
    write_sysctl("ipv6/conf/default/addr_gen_mode", "0");
    for command in [
        "link set peer0 up",
        "link set eth0 up",
        "address add 192.168.0.2/24 dev eth0",
        "-6 address add fd00:1::2/64 dev eth0 nodad",
        "route add default via 192.168.0.1",
        "-6 route add default via fd00:1::1",
        "rule add pref 31 from 10.9.0.0/16 lookup main protocol static",
        "-6 rule add pref 5000 from fd00:9::/64 lookup main",
    ] {
        ip(command);
    }
    write_sysctl("ipv4/conf/eth0/forwarding", "1");
    write_sysctl("ipv4/conf/all/accept_redirects", "1");
    write_sysctl("ipv6/conf/eth0/accept_ra", "1");
}

fn add_device() -> Device {
    ip("tuntap add lbd0 mode tun");
    Device {
        name: "lbd0".into(),
        mtu: 1400,
    }
}

fn delete_device() {
    ip("link delete lbd0");
}

/// Everything that lbd could have changed.
#[derive(Debug, PartialEq)]
struct State {
    rules: Vec<String>,
    routes: Vec<String>,
    sysctls: BTreeMap<String, String>,
}

fn state() -> State {
    let mut sysctls = BTreeMap::new();
    for directory in ["/proc/sys/net/ipv4/conf", "/proc/sys/net/ipv6/conf"] {
        for interface in fs::read_dir(directory).unwrap() {
            for file in fs::read_dir(interface.unwrap().path()).unwrap() {
                let path = file.unwrap().path();
                if let Ok(value) = fs::read_to_string(&path) {
                    sysctls.insert(path.display().to_string(), value);
                }
            }
        }
    }
    sysctls.insert("ip_forward".into(), sysctl("ipv4/ip_forward"));
    let lines = |commands: [&str; 2]| {
        let mut lines: Vec<String> = commands
            .iter()
            .flat_map(|command| ip(command).lines().map(str::to_owned).collect::<Vec<_>>())
            .collect();
        lines.sort();
        lines
    };
    State {
        rules: lines(["-d rule", "-6 -d rule"]),
        routes: lines(["route show table all", "-6 route show table all"]),
        sysctls,
    }
}

fn assert_same(before: &State, after: &State) {
    assert_eq!(before.rules, after.rules);
    assert_eq!(before.routes, after.routes);
    for (key, value) in &before.sysctls {
        assert_eq!(Some(value), after.sysctls.get(key), "{key}");
    }
}

fn rules_and_tables() -> String {
    let tables = ["7762", "7763", "7764"].map(|table| try_ip(&format!("route show table {table}")));
    ip("rule") + &tables.concat()
}

fn endpoint(text: &str) -> (Protocol, Endpoint) {
    (Protocol::Tcp, text.parse().unwrap())
}

fn plan(routes: &[&str], local_ports: &[&str], replies: &[&str]) -> Plan {
    Plan {
        routes: routes.iter().map(|text| text.parse().unwrap()).collect(),
        local_ports: local_ports.iter().map(|text| endpoint(text)).collect(),
        replies: replies.iter().map(|text| endpoint(text)).collect(),
        ..Plan::default()
    }
}

fn full_plan() -> Plan {
    plan(
        &["203.0.113.10/32", "198.18.0.0/28", "fd00:99::10/128"],
        &["192.168.0.2:30080", "[fd00:1::2]:30080"],
        &["10.2.0.11:8080", "[fd00:2::11]:8080"],
    )
}

fn install(plan: Plan, journal: &Path) -> Plumbing {
    Plumbing::install(add_device(), plan, journal).unwrap()
}

fn round_trip() {
    host();
    let before = state();
    let journal = tempfile::tempdir().unwrap();
    let plumbing = install(full_plan(), journal.path());
    assert_eq!(sysctl("ipv4/ip_forward"), "1");
    assert_eq!(sysctl("ipv6/conf/all/forwarding"), "1");
    assert_eq!(sysctl("ipv6/conf/eth0/accept_ra"), "2");
    assert!(ip("link show lbd0").contains("mtu 1400"));
    assert!(ip("link show lbd0").contains("qlen 10000"));
    assert!(!ip("address show lbd0").contains("fe80"));
    plumbing.remove().unwrap();
    delete_device();
    assert_same(&before, &state());
    assert_eq!(fs::read_dir(journal.path()).unwrap().count(), 0);
}

#[test]
fn after_removal_the_host_is_as_it_was() {
    inside("after_removal_the_host_is_as_it_was", round_trip);
}

#[test]
fn no_root_on_the_host_is_needed_in_a_user_namespace() {
    inside_with("-Urn", "no_root_on_the_host_is_needed_in_a_user_namespace", round_trip);
}

#[test]
fn the_rules_are_as_the_documentation_shows_them() {
    inside("the_rules_are_as_the_documentation_shows_them", || {
        host();
        let journal = tempfile::tempdir().unwrap();
        let plumbing = install(full_plan(), journal.path());
        let rules = ip("rule");
        let rules: Vec<&str> = rules.lines().collect();
        assert_eq!(
            rules,
            [
                "10:\tfrom all iif lbd0 goto 20 proto 108",
                "11:\tfrom all to 192.168.0.2 ipproto tcp dport 30080 lookup 7763 proto 108",
                "12:\tfrom all sport 1-65534 goto 20 proto 108",
                "12:\tfrom all dport 1-65534 goto 20 proto 108",
                "13:\tfrom all to 192.168.0.2 ipproto tcp lookup 7763 proto 108",
                "20:\tfrom all lookup local proto 108",
                "30:\tfrom all iif lbd0 goto 39 proto 108",
                "31:\tfrom 10.9.0.0/16 lookup main proto static",
                "31:\tfrom 10.2.0.11 ipproto tcp sport 8080 lookup 7763 proto 108",
                "32:\tfrom all iif lo ipproto icmp dport 769 lookup 7763 proto 108",
                "32:\tfrom all iif lo ipproto icmp dport 772 lookup 7763 proto 108",
                "33:\tfrom all iif lo ipproto icmp goto 37 proto 108",
                "34:\tfrom all ipproto icmp lookup 7763 proto 108",
                "35:\tfrom all sport 1-65534 goto 37 proto 108",
                "35:\tfrom all dport 1-65534 goto 37 proto 108",
                "36:\tfrom 10.2.0.11 ipproto tcp lookup 7763 proto 108",
                "36:\tfrom 10.2.0.11 iif lo lookup 7763 proto 108",
                "37:\tfrom all lookup 7762 proto 108",
                "39:\tfrom all iif lbd0 lookup 7764 proto 108",
                "32766:\tfrom all lookup main",
                "32767:\tfrom all lookup default",
            ]
        );
        plumbing.remove().unwrap();
    });
}

#[test]
fn packets_go_where_they_should_in_both_families() {
    inside("packets_go_where_they_should_in_both_families", || {
        host();
        let journal = tempfile::tempdir().unwrap();
        let plumbing = install(full_plan(), journal.path());
        let routed = [
            // A service, from this host (with the address of another interface) and from elsewhere.
            ("route get 203.0.113.10", "dev lbd0 table 7762 src 192.168.0.2"),
            ("-6 route get fd00:99::10", "src fd00:1::2"),
            (
                "route get 203.0.113.10 from 192.168.0.9 iif eth0",
                "dev lbd0 table 7762",
            ),
            (
                "-6 route get fd00:99::10 from fd00:1::9 iif eth0",
                "dev lbd0 table 7762",
            ),
            // A node port, and another port of the same address.
            (
                "route get 192.168.0.2 from 192.168.0.9 iif eth0 ipproto tcp dport 30080",
                "dev lbd0 table 7763",
            ),
            (
                "-6 route get fd00:1::2 from fd00:1::9 iif eth0 ipproto tcp dport 30080",
                "dev lbd0 table 7763",
            ),
            (
                "route get 192.168.0.2 from 192.168.0.9 iif eth0 ipproto tcp dport 22",
                "local 192.168.0.2",
            ),
            // A backend's answer, and what else it sends.
            (
                "route get 192.0.2.1 from 10.2.0.11 iif eth0 ipproto tcp sport 8080",
                "dev lbd0 table 7763",
            ),
            (
                "-6 route get 2001:db8::1 from fd00:2::11 iif eth0 ipproto tcp sport 8080",
                "dev lbd0 table 7763",
            ),
            (
                "route get 192.0.2.1 from 10.2.0.11 iif eth0 ipproto tcp sport 22",
                "via 192.168.0.1 dev eth0",
            ),
            // Fragments, of which the kernel sees no ports: a backend's, of other protocols, and to a node port's address.
            (
                "route get 192.0.2.1 from 10.2.0.11 iif eth0 ipproto tcp",
                "dev lbd0 table 7763",
            ),
            (
                "-6 route get 2001:db8::1 from fd00:2::11 iif eth0 ipproto tcp",
                "dev lbd0 table 7763",
            ),
            (
                "route get 192.0.2.1 from 10.2.0.11 iif eth0 ipproto udp",
                "via 192.168.0.1 dev eth0",
            ),
            (
                "route get 192.168.0.2 from 192.168.0.9 iif eth0 ipproto tcp",
                "dev lbd0 table 7763",
            ),
            (
                "route get 192.168.0.2 from 192.168.0.9 iif eth0 ipproto udp",
                "local 192.168.0.2",
            ),
            // ICMP that this host forwards, to this host, and its own.
            (
                "route get 192.0.2.1 from 10.2.0.99 iif eth0 ipproto icmp",
                "dev lbd0 table 7763",
            ),
            (
                "-6 route get 2001:db8::1 from fd00:2::99 iif eth0 ipproto ipv6-icmp",
                "dev lbd0 table 7763",
            ),
            (
                "route get 192.168.0.2 from 192.168.0.9 iif eth0 ipproto icmp",
                "local 192.168.0.2",
            ),
            ("route get 192.0.2.1 ipproto icmp", "via 192.168.0.1 dev eth0"),
            ("-6 route get 2001:db8::1 ipproto ipv6-icmp", "via fd00:1::1 dev eth0"),
            (
                "route get 192.0.2.1 from 10.2.0.99 iif lbd0 ipproto icmp",
                "via 192.168.0.1 dev eth0",
            ),
            // What lbd has written: to a backend from a client anywhere, to a client, to a local client, to this host.
            (
                "route get 10.2.0.11 from 192.0.2.1 iif lbd0 ipproto tcp dport 8080",
                "via 192.168.0.1 dev eth0",
            ),
            (
                "route get 192.0.2.1 from 203.0.113.10 iif lbd0 ipproto tcp sport 80",
                "via 192.168.0.1 dev eth0",
            ),
            (
                "-6 route get 2001:db8::1 from fd00:99::10 iif lbd0 ipproto tcp sport 80",
                "via fd00:1::1 dev eth0",
            ),
            (
                "route get 192.0.2.1 from 192.168.0.2 iif lbd0 ipproto tcp sport 30080",
                "via 192.168.0.1 dev eth0",
            ),
            (
                "route get 192.168.0.2 from 192.168.0.2 iif lbd0 ipproto tcp dport 30080",
                "local 192.168.0.2",
            ),
            (
                "-6 route get fd00:1::2 from fd00:1::9 iif lbd0 ipproto tcp dport 30080",
                "local fd00:1::2",
            ),
            // A service's address on a port that nobody serves does not go round in circles.
            ("route get 203.0.113.10 from 192.0.2.1 iif lbd0", "No route to host"),
            ("route get 198.18.0.3 from 192.0.2.1 iif lbd0", "No route to host"),
            ("-6 route get fd00:99::10 from 2001:db8::1 iif lbd0", "No route to host"),
        ];
        for (command, expected) in routed {
            let answer = try_ip(command);
            assert!(answer.contains(expected), "{command}: {answer}, not {expected}");
        }
        plumbing.remove().unwrap();
    });
}

#[test]
fn an_update_changes_only_what_differs() {
    inside("an_update_changes_only_what_differs", || {
        host();
        let before = state();
        let journal = tempfile::tempdir().unwrap();
        let first = plan(&["203.0.113.10/32"], &[], &["10.2.0.11:8080"]);
        let mut plumbing = install(first.clone(), journal.path());
        assert_eq!(sysctl("ipv6/conf/all/forwarding"), "0", "IPv6 is not in use yet");
        assert!(ip("rule").contains("0:\tfrom all lookup local\n"));
        assert!(try_ip("route get 203.0.113.10 from 192.168.0.2 iif lbd0").contains("No route to host"));
        let installed = rules_and_tables();
        plumbing.update(full_plan()).unwrap();
        assert_eq!(sysctl("ipv6/conf/all/forwarding"), "1");
        assert!(ip("rule").contains("20:\tfrom all lookup local"));
        assert!(!ip("rule").contains("\n0:") && !ip("rule").starts_with("0:"));
        plumbing.update(first).unwrap();
        assert_eq!(installed, rules_and_tables());
        plumbing.remove().unwrap();
        delete_device();
        assert_same(&before, &state());
    });
}

#[test]
fn an_update_that_the_kernel_refuses_changes_nothing() {
    inside("an_update_that_the_kernel_refuses_changes_nothing", || {
        host();
        let journal = tempfile::tempdir().unwrap();
        let first = plan(&["203.0.113.10/32"], &[], &["10.2.0.11:8080"]);
        let mut plumbing = install(first.clone(), journal.path());
        ip("rule add pref 31 from 10.2.0.12 ipproto tcp sport 8081 lookup 7763 protocol 108");
        let installed = rules_and_tables();
        let refused = plan(
            &["203.0.113.11/32"],
            &["192.168.0.2:30080"],
            &["10.2.0.12:8081", "10.2.0.13:9000"],
        );
        let error = plumbing.update(refused).unwrap_err().to_string();
        assert!(error.contains("from 10.2.0.12/32 ipproto tcp sport 8081"), "{error}");
        assert_eq!(installed, rules_and_tables());
        assert_eq!(*plumbing.plan(), first);
        plumbing.remove().unwrap();
    });
}

#[test]
fn an_installation_that_the_kernel_refuses_leaves_nothing() {
    inside("an_installation_that_the_kernel_refuses_leaves_nothing", || {
        host();
        ip("route add 203.0.113.10 dev eth0 table 7762");
        let before = state();
        let journal = tempfile::tempdir().unwrap();
        let refused = Plumbing::install(add_device(), full_plan(), journal.path());
        assert!(matches!(refused, Err(Error::Refused { .. })), "{refused:?}");
        delete_device();
        assert_same(&before, &state());
    });
}

#[test]
fn a_host_without_ipv6_serves_ipv4_and_keeps_its_settings() {
    inside("a_host_without_ipv6_serves_ipv4_and_keeps_its_settings", || {
        host();
        write_sysctl("ipv6/conf/all/disable_ipv6", "1");
        write_sysctl("ipv6/conf/default/disable_ipv6", "1");
        let journal = tempfile::tempdir().unwrap();
        let plumbing = install(plan(&["203.0.113.10/32"], &[], &["10.2.0.11:8080"]), journal.path());
        assert_eq!(sysctl("ipv6/conf/all/forwarding"), "0");
        assert_eq!(sysctl("ipv6/conf/lbd0/disable_ipv6"), "1");
        plumbing.remove().unwrap();
    });
}

#[test]
fn ipv4_alone_may_have_an_mtu_that_ipv6_cannot_have() {
    inside("ipv4_alone_may_have_an_mtu_that_ipv6_cannot_have", || {
        host();
        let journal = tempfile::tempdir().unwrap();
        let device = Device {
            mtu: 576,
            ..add_device()
        };
        let plan = plan(&["203.0.113.10/32"], &[], &["10.2.0.11:8080"]);
        let plumbing = Plumbing::install(device, plan, journal.path()).unwrap();
        plumbing.remove().unwrap();
    });
}

#[test]
fn where_ipv6_is_switched_off_it_is_switched_on_for_lbds_own_device_only() {
    inside(
        "where_ipv6_is_switched_off_it_is_switched_on_for_lbds_own_device_only",
        || {
            host();
            write_sysctl("ipv6/conf/all/disable_ipv6", "1");
            write_sysctl("ipv6/conf/default/disable_ipv6", "1");
            let before = state();
            let journal = tempfile::tempdir().unwrap();
            let plumbing = install(full_plan(), journal.path());
            assert_eq!(sysctl("ipv6/conf/lbd0/disable_ipv6"), "0");
            assert_eq!(sysctl("ipv6/conf/eth0/disable_ipv6"), "1");
            assert!(ip("-6 route show table 7762").contains("fd00:99::10 dev lbd0"));
            plumbing.remove().unwrap();
            delete_device();
            assert_same(&before, &state());
        },
    );
}

#[test]
fn a_device_that_outlives_lbd_does_not_keep_its_address() {
    inside("a_device_that_outlives_lbd_does_not_keep_its_address", || {
        host();
        let journal = tempfile::tempdir().unwrap();
        let plumbing = install(full_plan(), journal.path());
        assert!(ip("address show lbd0").contains("192.0.0.8/32"));
        plumbing.remove().unwrap();
        assert!(!ip("address show lbd0").contains("192.0.0.8"));

        let plumbing = Plumbing::install(
            Device {
                name: "lbd0".into(),
                mtu: 1400,
            },
            full_plan(),
            journal.path(),
        )
        .unwrap();
        delete_device();
        plumbing.remove().unwrap();
    });
}

#[test]
fn ten_thousand_services_are_updated_quickly() {
    inside("ten_thousand_services_are_updated_quickly", || {
        host();
        let journal = tempfile::tempdir().unwrap();
        let mut big = Plan::default();
        for number in 0..10_000u32 {
            let address = IpAddr::from((0x0a60_0000 + number).to_be_bytes());
            let backend = IpAddr::from((0x0a02_0000 + number * 3).to_be_bytes());
            big.routes.insert(address.into());
            big.replies.insert((Protocol::Tcp, Endpoint::new(backend, 8080)));
        }
        let mut plumbing = install(plan(&["203.0.113.10/32"], &[], &[]), journal.path());
        plumbing.update(big.clone()).unwrap();
        assert_eq!(ip("route show table 7762").lines().count(), 10_000);
        assert!(ip("rule").lines().count() < 150);
        plumbing.update(Plan::default()).unwrap();
        assert_eq!(
            try_ip("route show table 7762")
                .lines()
                .filter(|line| line.contains("lbd0"))
                .count(),
            0
        );
        plumbing.remove().unwrap();
    });
}

#[test]
fn in_a_container_with_read_only_sysctls_right_values_do_and_wrong_ones_are_named() {
    const NAME: &str = "in_a_container_with_read_only_sysctls_right_values_do_and_wrong_ones_are_named";
    inside_with("-Urnm", NAME, || {
        host();
        let device = add_device();
        let journal = tempfile::tempdir().unwrap();
        write_sysctl("ipv4/ip_forward", "1");
        write_sysctl("ipv6/conf/lbd0/forwarding", "1");
        for options in ["bind", "remount,bind,ro"] {
            let mut mount = Command::new("mount");
            mount.args(["-o", options, "/proc/sys", "/proc/sys"]);
            assert!(mount.status().unwrap().success());
        }
        let right = plan(&["203.0.113.10/32"], &[], &["10.2.0.11:8080"]);
        let plumbing = Plumbing::install(device.clone(), right, journal.path()).unwrap();
        plumbing.remove().unwrap();
        let wrong = plan(&["fd00:99::10/128"], &[], &[]);
        let error = Plumbing::install(device, wrong, journal.path())
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("net.ipv6.conf") && error.contains("sysctl -w"),
            "{error}"
        );
        assert!(!ip("rule").contains("108") && !ip("-6 rule").contains("108"));
    });
}

/// Installs, says so, and waits to be killed.
fn victim(journal: &Path) {
    let device = Device {
        name: "lbd0".into(),
        mtu: 1400,
    };
    let plumbing = Plumbing::install(device, full_plan(), journal).unwrap();
    println!("installed");
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
    drop(plumbing);
}

#[test]
fn what_a_killed_lbd_left_is_cleared_by_the_next_one() {
    const NAME: &str = "what_a_killed_lbd_left_is_cleared_by_the_next_one";
    if let Some(journal) = std::env::var_os(VICTIM) {
        return victim(journal.as_ref());
    }
    inside(NAME, || {
        host();
        let before = state();
        let journal = tempfile::tempdir().unwrap();
        add_device();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", NAME, "--nocapture"])
            .env(VICTIM, journal.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert!(lines.map(Result::unwrap).any(|line| line.contains("installed")));

        let error = clear_leftovers(journal.path()).unwrap_err();
        assert!(matches!(error, Error::AlreadyRunning { .. }), "{error}");
        assert!(ip("rule").contains("proto 108"), "a running lbd was disturbed");

        child.kill().unwrap();
        child.wait().unwrap();
        delete_device();
        assert!(ip("rule").contains("proto 108"));
        let summary = clear_leftovers(journal.path()).unwrap().unwrap();
        // Both ip_forward, IPv6 forwarding and accept_ra of some interfaces.
        assert!(summary.rules == 35 && summary.sysctls >= 3, "{summary}");
        assert_same(&before, &state());
        assert_eq!(clear_leftovers(journal.path()).unwrap(), None);
    });
}

#[test]
fn leftovers_without_a_journal_are_cleared_too() {
    inside("leftovers_without_a_journal_are_cleared_too", || {
        host();
        let journal = tempfile::tempdir().unwrap();
        for command in [
            "rule add pref 20 lookup local protocol 108",
            "rule delete pref 0",
            "-6 rule add pref 35 lookup 7762 protocol 108",
            "route add unreachable 203.0.113.10 table 7764 proto 108",
        ] {
            ip(command);
        }
        let summary = clear_leftovers(journal.path()).unwrap().unwrap();
        assert_eq!((summary.rules, summary.routes, summary.sysctls), (2, 1, 0));
        assert!(ip("-d rule").starts_with("0:\tfrom all lookup local proto kernel"));
        assert!(!ip("rule").contains("proto 108"));
    });
}

#[test]
fn two_at_once_in_one_namespace_are_refused_though_their_journals_differ() {
    inside(
        "two_at_once_in_one_namespace_are_refused_though_their_journals_differ",
        || {
            host();
            let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
            // A device with a carrier, as one that a process holds.
            ip("link add lbd0 type veth peer name lbd1");
            ip("link set lbd1 up");
            let device = Device {
                name: "lbd0".into(),
                mtu: 1400,
            };
            let plumbing = Plumbing::install(device, full_plan(), one.path()).unwrap();
            let error = clear_leftovers(two.path()).unwrap_err().to_string();
            assert!(error.contains("device lbd0"), "{error}");
            plumbing.remove().unwrap();
        },
    );
}
