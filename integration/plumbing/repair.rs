//! What others change of lbd's in the kernel: it is put back, each thing whatever becomes of the others, or lbd hears why not.
use std::process::Command;

use lbd::plumbing::{Error, Look, Plumbing, Repaired};

use super::unshared::{inside, inside_with, ip};
use super::{
    assert_same, delete_device, full_plan, host, install, rules_and_tables, state, sysctl, try_ip, write_sysctl,
};

/// Everything of lbd's, but for counters and times.
fn installed() -> String {
    let tables = ["7762", "7763", "7764"].map(|table| try_ip(&format!("-6 route show table {table}")));
    let link = ip("link show lbd0");
    let sysctls = [
        "ipv4/ip_forward",
        "ipv6/conf/all/forwarding",
        "ipv6/conf/lbd0/disable_ipv6",
    ]
    .map(sysctl);
    [
        rules_and_tables(),
        ip("-6 rule"),
        tables.concat(),
        link,
        ip("address show lbd0"),
        sysctls.concat(),
    ]
    .concat()
}

fn tend(plumbing: &mut Plumbing) -> Repaired {
    let tended = plumbing.tend(Look::Quick).unwrap();
    assert!(tended.troubles.is_empty(), "{tended:?}");
    tended.repaired
}

/// Each way to harm what lbd needs is found by the next look and put right, and the look after that finds nothing.
#[test]
fn whatever_is_done_to_the_device_is_put_right() {
    inside("repair::whatever_is_done_to_the_device_is_put_right", || {
        host();
        let before = state();
        let journal = tempfile::tempdir().unwrap();
        let mut plumbing = install(full_plan(), journal.path());
        assert!(tend(&mut plumbing).is_nothing(), "at first nothing is wrong");
        let whole = installed();
        let harms = [
            ("ip link set lbd0 mtu 9000", "its MTU was 9000"),
            ("ip link set lbd0 mtu 576", "its MTU was 576"),
            ("ip link set lbd0 txqueuelen 5", "its queue length"),
            ("ip link set lbd0 down", "it was down"),
            ("ip link set lbd0 mtu 600 down", "it was down"),
            ("ip address flush dev lbd0", "no address 192.0.0.8"),
            ("sysctl -qw net.ipv6.conf.lbd0.disable_ipv6=1", "disable_ipv6 was 1"),
            ("sysctl -qw net.ipv4.conf.lbd0.forwarding=0", "lbd0.forwarding was 0"),
            ("sysctl -qw net.ipv4.conf.lbd0.rp_filter=1", "rp_filter was 1"),
            ("sysctl -qw net.ipv4.conf.lbd0.accept_local=0", "accept_local was 0"),
            (
                "ip link set lbd0 down; ip link set lbd0 name other",
                "its name was other",
            ),
            (
                "ip link set lbd0 mtu 576; ip link set lbd0 down; ip link set lbd0 name other",
                "its MTU was 576",
            ),
        ];
        for (harm, told) in harms {
            let harmed = Command::new("sh").args(["-ec", harm]).status().unwrap();
            assert!(harmed.success(), "{harm}");
            let repaired = tend(&mut plumbing).to_string();
            assert!(repaired.contains(told), "{harm}: {repaired}");
            assert_eq!(installed(), whole, "{harm}");
            assert!(tend(&mut plumbing).is_nothing(), "{harm}");
        }
        plumbing.remove().unwrap();
        delete_device();
        assert_same(&before, &state());
    });
}

#[test]
fn a_strict_filter_that_is_set_for_all_later_does_not_count_for_the_device() {
    inside(
        "repair::a_strict_filter_that_is_set_for_all_later_does_not_count_for_the_device",
        || {
            host();
            for interface in ["all", "default"] {
                write_sysctl(&format!("ipv4/conf/{interface}/rp_filter"), "0");
            }
            let journal = tempfile::tempdir().unwrap();
            let mut plumbing = install(full_plan(), journal.path());
            assert_eq!(sysctl("ipv4/conf/lbd0/rp_filter"), "0");
            write_sysctl("ipv4/conf/all/rp_filter", "1");
            tend(&mut plumbing);
            assert_eq!(sysctl("ipv4/conf/lbd0/rp_filter"), "2");
            plumbing.remove().unwrap();
        },
    );
}

/// As `ip` commands, in a family.
fn flush_rules(family: &str) {
    ip(&format!("{family} rule flush"));
    ip(&format!("{family} rule add pref 0 lookup local"));
    ip(&format!("{family} rule add pref 32766 lookup main"));
}

#[test]
fn trouble_of_one_family_does_not_keep_the_other_from_being_put_back() {
    const NAME: &str = "repair::trouble_of_one_family_does_not_keep_the_other_from_being_put_back";
    inside_with("-nm", NAME, || {
        host();
        let journal = tempfile::tempdir().unwrap();
        let mut plumbing = install(full_plan(), journal.path());
        let whole = installed();
        for (broken, healthy) in [("ipv6/conf/lbd0/disable_ipv6", "-4"), ("ipv4/ip_forward", "-6")] {
            let harm = if broken.starts_with("ipv6") { "1" } else { "0" };
            write_sysctl(broken, harm);
            // As in a container: nobody may set it right.
            let file = format!("/proc/sys/net/{broken}");
            for options in ["bind", "remount,bind,ro"] {
                let mut mount = Command::new("mount");
                assert!(mount.args(["-o", options, &file, &file]).status().unwrap().success());
            }
            flush_rules(healthy);
            let tended = plumbing.tend(Look::Quick).unwrap();
            assert!(tended.repaired.rules > 10, "{tended:?}");
            let told = tended.troubles;
            let dotted = broken.replace('/', ".");
            assert!(told.iter().any(|told| told.contains(&dotted)), "{told:?}");
            assert!(Command::new("umount").arg(&file).status().unwrap().success());
            // By a close look, since what was refused is not tried at each quick one.
            plumbing.tend(Look::Close).unwrap();
            let whole = whole.clone() + "32767:\tfrom all lookup default\n";
            assert!(installed().lines().all(|line| whole.contains(line)), "{broken}");
        }
        plumbing.remove().unwrap();
    });
}

#[test]
fn what_the_kernel_refuses_of_a_family_does_not_keep_the_rest_of_it_away() {
    inside(
        "repair::what_the_kernel_refuses_of_a_family_does_not_keep_the_rest_of_it_away",
        || {
            host();
            let journal = tempfile::tempdir().unwrap();
            let mut plumbing = install(full_plan(), journal.path());
            write_sysctl("ipv6/conf/lbd0/disable_ipv6", "1");
            ip("link set lbd0 down");
            flush_rules("-4");
            flush_rules("-6");
            let repaired = tend(&mut plumbing);
            assert!(repaired.rules >= 34, "{repaired:?}");
            assert!(ip("-6 rule").contains("20:\tfrom all lookup local") && !ip("-6 rule").starts_with("0:"));
            plumbing.remove().unwrap();
        },
    );
}

#[test]
fn a_device_that_was_moved_or_cannot_have_its_name_back_is_an_error_that_says_so() {
    const NAME: &str = "repair::a_device_that_was_moved_or_cannot_have_its_name_back_is_an_error_that_says_so";
    inside(NAME, || {
        host();
        let before = state();
        let journal = tempfile::tempdir().unwrap();
        let mut plumbing = install(full_plan(), journal.path());
        ip("link set lbd0 down");
        ip("link set lbd0 name other");
        ip("link add lbd0 type veth peer name lbd1");
        let error = plumbing.tend(Look::Quick).unwrap_err();
        assert!(matches!(error, Error::Renamed { .. }), "{error}");
        let told = error.to_string();
        assert!(
            told.contains("lbd0 is called other") && told.contains("[tun] name"),
            "{told}"
        );
        delete_device();
        tend(&mut plumbing);

        let mut child = Command::new("unshare").args(["-n", "sleep", "60"]).spawn().unwrap();
        let elsewhere = child.id();
        while std::fs::read_link(format!("/proc/{elsewhere}/ns/net")).ok()
            == std::fs::read_link("/proc/self/ns/net").ok()
        {
            std::thread::yield_now();
        }
        ip(&format!("link set lbd0 netns {elsewhere}"));
        let error = plumbing.tend(Look::Quick).unwrap_err();
        assert!(matches!(error, Error::Gone { .. }), "{error}");
        assert!(error.to_string().contains("netns"), "{error}");
        plumbing.remove().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        assert_same(&before, &state());
    });
}
