//! What others do to lbd's device and rules while it runs: put right within seconds, each thing by itself, or lbd ends with
//! an error that says why it must.
use std::time::Duration;

use crate::rig::{Config, Family, Lbd, Mode, Rig, Service, isolated, wait_until};

fn both_families() -> Config {
    let services = Family::BOTH.map(|family| Service {
        node_port: Some(30_080),
        ..Service::web(family)
    });
    Config::new(Mode::Ipvs, services.into())
}

/// Clients elsewhere and on this host are served at every address of a family.
#[track_caller]
fn assert_served(rig: &Rig, family: Family, why: &str) {
    for address in [family.web(), family.balancer(30_080)] {
        assert_eq!(rig.spread("client", &address, 3), [1, 1, 1], "{why}");
    }
    assert_eq!(rig.spread("lb", &family.web(), 3), [1, 1, 1], "{why}");
}

/// Runs a command in `lb` and waits for lbd to tell that it has put something back.
#[track_caller]
fn harm(rig: &Rig, lbd: &Lbd<'_>, command: &str, told: &str) {
    let before = lbd.log().len();
    rig.sh("lb", command).ok();
    let what = format!("{told:?} after {command}");
    wait_until(&what, Duration::from_secs(10), || {
        let log = lbd.log();
        log[before..].contains("put back") && log[before..].contains(told)
    });
}

const FLUSH_IPV4: &str = "ip rule flush; ip rule add pref 0 lookup local; ip rule add pref 32766 lookup main; \
     ip rule add pref 32767 lookup default";

#[test]
fn whatever_is_done_to_the_device_is_put_right_within_seconds() {
    isolated(|| {
        let rig = Rig::new();
        // A TUN device has no operational state until its carrier is changed.
        let state = || rig.kernel_state().replace("state UNKNOWN", "state UP");
        for (command, told) in [
            ("ip link set lbd0 mtu 576", "its MTU was 576"),
            ("ip link set lbd0 mtu 9000", "its MTU was 9000"),
            (
                "ip link set lbd0 down; ip link set lbd0 name other; ip link set other up",
                "its name was other",
            ),
            ("ip link set lbd0 carrier off", "its carrier was off"),
            ("ip address flush dev lbd0", "it had no address"),
            ("sysctl -qw net.ipv6.conf.lbd0.disable_ipv6=1", "disable_ipv6 was 1"),
            ("sysctl -qw net.ipv4.conf.lbd0.forwarding=0", "lbd0.forwarding was 0"),
        ] {
            let lbd = rig.lbd(&both_families());
            let before = state();
            harm(&rig, &lbd, command, told);
            for family in Family::BOTH {
                assert_served(&rig, family, command);
            }
            assert_eq!(state(), before, "{command}");
            let log = lbd.log();
            assert!(!log.contains("ERROR"), "{log}");
            lbd.terminate();
        }
    });
}

#[test]
fn trouble_of_one_family_does_not_keep_the_other_from_being_put_back() {
    isolated(|| {
        let rig = Rig::new();
        let lbd = rig.lbd(&both_families());
        // As in a container: nobody may set it right.
        let file = "/proc/sys/net/ipv6/conf/all/forwarding";
        let lock = format!("echo 0 >{file}; mount -o bind {file} {file}; mount -o remount,bind,ro {file} {file}");
        rig.sh("lb", &format!("{lock}; {FLUSH_IPV4}")).ok();
        wait_until("IPv4 rules", Duration::from_secs(10), || {
            rig.sh("lb", "ip rule").ok().contains("lookup 7762")
        });
        assert_served(&rig, Family::V4, "IPv6 is in trouble");
        let status = lbd.lbctl("status").ok();
        let (_, trouble) = status.split_once("trouble ").expect(&status);
        assert!(trouble.contains("net.ipv6.conf.all.forwarding"), "{status}");
        rig.sh("lb", &format!("umount {file}")).ok();
        wait_until("IPv6", Duration::from_secs(10), || {
            lbd.status().get("troubles").is_none()
        });
        assert_served(&rig, Family::V6, "it may be set right");
        lbd.terminate();
    });
}

#[test]
fn a_device_that_was_moved_to_another_namespace_ends_lbd_with_an_error_that_says_so() {
    isolated(|| {
        let rig = Rig::new();
        let before = rig.kernel_state();
        let lbd = rig.lbd(&both_families());
        rig.sh("lb", "ip link set lbd0 netns s1").ok();
        let (code, log) = lbd.ended();
        assert_eq!(code, Some(1), "{log}");
        assert!(log.contains("lbd0 is not in this network namespace any more"), "{log}");
        assert_eq!(rig.kernel_state(), before);
        let left = rig.sh("s1", "ip -o link").ok();
        assert!(!left.contains("lbd0"), "{left}");
    });
}

#[test]
fn a_device_whose_name_another_took_ends_lbd_with_an_error_that_says_so() {
    isolated(|| {
        let rig = Rig::new();
        let lbd = rig.lbd(&both_families());
        let steal = "ip link set lbd0 down; ip link set lbd0 name other; ip link add lbd0 type veth peer name lbd1";
        rig.sh("lb", steal).ok();
        let (code, log) = lbd.ended();
        assert_eq!(code, Some(1), "{log}");
        assert!(log.contains("lbd0 is called other by now"), "{log}");
    });
}
