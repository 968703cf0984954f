//! This host's own packet filters and lbd.
use std::time::Duration;

use crate::rig::{Backend, Config, Family, Lbd, Mode, Rig, Service, isolated, wait_until};

/// Every Docker host has the first, every router of old the second.
const POLICY: &str = "iptables -P FORWARD DROP; ip6tables -P FORWARD DROP";
const INVALID: &str = "for program in iptables ip6tables; do \
                           $program -A FORWARD -m conntrack --ctstate INVALID -j DROP; done";
const WITHOUT: &str = "nft list ruleset | sed 's/packets [0-9]* bytes [0-9]*//'";

fn web(tun: &'static str) -> Config {
    Config {
        tun,
        ..Config::new(Mode::Iptables, Family::BOTH.map(Service::web).to_vec())
    }
}

fn obstacles(lbd: &Lbd<'_>) -> Vec<String> {
    let status = lbd.status();
    let lines = status["firewall"].as_array().expect("a list").iter();
    lines.map(|line| line.as_str().expect("text").to_owned()).collect()
}

#[track_caller]
fn wait_for_obstacles(lbd: &Lbd<'_>, count: usize) -> Vec<String> {
    let limit = Duration::from_secs(60);
    wait_until("lbd sees the host's filters", limit, || obstacles(lbd).len() == count);
    obstacles(lbd)
}

fn answers(rig: &Rig, namespace: &str) -> bool {
    Family::BOTH
        .iter()
        .all(|family| rig.get(namespace, &family.web()).code == 0)
}

/// Who is stopped by a filter in FORWARD: others' packets over TUN, this host's own over both.
fn namespace() -> &'static str {
    match Backend::of_this_run() {
        Backend::Tun => "client",
        Backend::AfXdp => "lb",
    }
}

#[test]
fn a_filter_that_drops_what_lbd_forwards_is_told_with_a_remedy_that_helps() {
    isolated(|| {
        let rig = Rig::new();
        let lbd = rig.lbd(&web(""));
        assert_eq!(obstacles(&lbd), Vec::<String>::new());
        assert!(answers(&rig, namespace()));
        // At run time, as a restarted Docker does it.
        rig.sh("lb", POLICY).ok();
        let told = wait_for_obstacles(&lbd, 2);
        assert!(!answers(&rig, namespace()), "this test sees what the filter does");
        assert!(
            told[0].contains("table ip filter, chain FORWARD has policy drop"),
            "{told:?}"
        );
        assert!(
            lbd.lbctl("status")
                .ok()
                .contains("firewall     table ip filter, chain FORWARD")
        );
        let explained = lbd.lbctl("explain tcp 10.1.0.2:40000 10.96.0.10:80").ok();
        assert!(
            explained.contains("this host: table ip filter, chain FORWARD"),
            "{explained}"
        );
        assert_eq!(
            lbd.log()
                .matches("table ip filter, chain FORWARD has policy drop")
                .count(),
            1,
            "{}",
            lbd.log()
        );
        for line in told {
            let (_, remedy) = line.split_once(": ").expect("what: remedy");
            let (remedy, _) = remedy.split_once(", or set").expect("and the setting");
            rig.sh("lb", remedy).ok();
        }
        assert!(answers(&rig, namespace()));
        wait_for_obstacles(&lbd, 0);
        lbd.terminate();
    });
}

#[test]
fn an_open_firewall_lets_lbds_packets_through_and_is_as_before_when_lbd_has_gone() {
    isolated(|| {
        for filter in [POLICY, INVALID] {
            let rig = Rig::new();
            rig.sh("lb", filter).ok();
            let before = rig.sh("lb", WITHOUT).ok();
            let lbd = rig.lbd(&web("firewall = \"open\""));
            for namespace in ["client", "lb"] {
                for _ in 0..5 {
                    assert!(answers(&rig, namespace), "{namespace}: {}", lbd.log());
                }
            }
            assert_eq!(obstacles(&lbd), Vec::<String>::new());
            lbd.terminate();
            assert_eq!(rig.sh("lb", WITHOUT).ok(), before);
        }
    });
}

#[test]
fn rules_that_others_flush_come_back_and_those_of_a_killed_lbd_go() {
    isolated(|| {
        let rig = Rig::new();
        rig.sh("lb", POLICY).ok();
        let before = rig.sh("lb", WITHOUT).ok();
        let lbd = rig.lbd(&web("firewall = \"open\""));
        rig.sh("lb", "iptables -F FORWARD; ip6tables -F FORWARD").ok();
        let limit = Duration::from_secs(60);
        wait_until("lbd's rules are back", limit, || answers(&rig, namespace()));
        lbd.kill9();
        assert_ne!(rig.sh("lb", WITHOUT).ok(), before);
        let lbd = rig.lbd(&web(""));
        wait_for_obstacles(&lbd, 2);
        assert_eq!(rig.sh("lb", WITHOUT).ok(), before);
        lbd.terminate();
    });
}
