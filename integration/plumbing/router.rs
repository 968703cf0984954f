//! What the host learned from a router on its link, while lbd comes, runs and goes.
use std::time::{Duration, Instant};

use lbd::plumbing::{Look, Plan, Plumbing};

use super::unshared::{inside, ip};
use super::{assert_same, delete_device, full_plan, host, install, plan, state, sysctl, try_ip, write_sysctl};

#[path = "../support/router.rs"]
mod advertisement;

/// Of the kernel's own making.
fn learned() -> bool {
    try_ip("-6 route show default proto ra").contains("via fe80::aa dev eth0")
}

/// The router is heard, and has been for long enough that nothing of it changes by itself.
#[allow(clippy::disallowed_methods, reason = "the kernel takes a moment")]
fn hear() {
    let start = Instant::now();
    while !learned() {
        assert!(start.elapsed() < Duration::from_secs(10), "{}", ip("-6 route"));
        advertisement::advertise("peer0");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A host whose default route is what a router said on its link.
fn host_with_router() {
    host();
    ip("-6 route del default");
    ip("-6 address add fe80::aa/64 dev peer0 nodad");
    hear();
}

fn only_ipv4() -> Plan {
    plan(&["203.0.113.10/32"], &[], &["10.2.0.11:8080"])
}

/// lbd comes and goes, and the route stays.
fn come_and_go() {
    let before = sysctls();
    let journal = tempfile::tempdir().unwrap();
    let mut plumbing = install(only_ipv4(), journal.path());
    assert!(learned(), "IPv4 alone");
    plumbing.update(full_plan()).unwrap();
    assert!(learned(), "IPv6 by a reload");
    plumbing.remove().unwrap();
    assert!(learned(), "after the end");
    delete_device();
    assert_eq!(sysctls(), before);
    let plumbing = install(full_plan(), journal.path());
    assert!(learned(), "at a start");
    assert_eq!(sysctl("ipv6/conf/all/forwarding"), "1");
    plumbing.remove().unwrap();
    assert!(learned(), "after another end");
    delete_device();
    assert_eq!(sysctls(), before);
}

/// All below `/proc/sys/net`.
fn sysctls() -> Vec<String> {
    let all = super::unshared::run("sysctl", "-a --pattern ^net");
    let mut lines: Vec<String> = all.lines().map(str::to_owned).collect();
    lines.sort();
    lines
}

#[test]
fn a_default_route_by_router_advertisement_stays_while_lbd_comes_and_goes() {
    inside(
        "router::a_default_route_by_router_advertisement_stays_while_lbd_comes_and_goes",
        || {
            host_with_router();
            come_and_go();
        },
    );
}

#[test]
fn so_does_one_of_an_interface_that_hears_no_more_routers() {
    inside("router::so_does_one_of_an_interface_that_hears_no_more_routers", || {
        host_with_router();
        write_sysctl("ipv6/conf/eth0/accept_ra", "0");
        come_and_go();
        assert_eq!(sysctl("ipv6/conf/eth0/accept_ra"), "0");
    });
}

#[test]
fn so_does_one_of_the_interface_of_a_router_that_does_not_forward_there() {
    inside(
        "router::so_does_one_of_the_interface_of_a_router_that_does_not_forward_there",
        || {
            host_with_router();
            write_sysctl("ipv6/conf/all/forwarding", "1");
            for interface in ["eth0", "default"] {
                write_sysctl(&format!("ipv6/conf/{interface}/forwarding"), "0");
            }
            hear();
            come_and_go();
        },
    );
}

#[test]
fn an_interface_that_forwarded_before_does_not_begin_to_hear_routers() {
    inside(
        "router::an_interface_that_forwarded_before_does_not_begin_to_hear_routers",
        || {
            host_with_router();
            ip("link add eth1 type veth peer name peer1");
            write_sysctl("ipv6/conf/eth1/accept_ra", "2");
            write_sysctl("ipv6/conf/eth1/forwarding", "1");
            write_sysctl("ipv6/conf/eth1/accept_ra", "1");
            hear();
            let before = state();
            let journal = tempfile::tempdir().unwrap();
            let mut plumbing = install(full_plan(), journal.path());
            plumbing.tend(Look::Close).unwrap();
            assert_eq!(sysctl("ipv6/conf/eth1/accept_ra"), "1");
            plumbing.remove().unwrap();
            delete_device();
            assert!(learned(), "eth1 forwards again, at no cost to eth0");
            assert_same(&before, &state());
        },
    );
}

#[test]
fn another_programs_hands_on_the_switches_cost_nothing_for_long() {
    inside(
        "router::another_programs_hands_on_the_switches_cost_nothing_for_long",
        || {
            host_with_router();
            let before = state();
            let journal = tempfile::tempdir().unwrap();
            let mut plumbing = install(full_plan(), journal.path());
            for harm in [
                "ipv6/conf/all/forwarding=0",
                "ipv6/conf/eth0/accept_ra=1",
                "ipv4/ip_forward=0",
            ] {
                let (key, value) = harm.split_once('=').unwrap();
                write_sysctl(key, value);
                let tended = plumbing.tend(Look::Close).unwrap();
                assert!(
                    tended.troubles.is_empty() && tended.repaired.sysctls > 0,
                    "{harm}: {tended:?}"
                );
                assert_ne!(sysctl(key), value);
                assert!(learned(), "{harm}");
            }
            assert_quiet(&mut plumbing);
            plumbing.remove().unwrap();
            delete_device();
            assert_same(&before, &state());
        },
    );
}

/// Nothing is found, and nothing done.
fn assert_quiet(plumbing: &mut Plumbing) {
    let tended = plumbing.tend(Look::Close).unwrap();
    assert!(tended.troubles.is_empty() && tended.repaired.is_nothing(), "{tended:?}");
}

#[test]
fn an_interface_that_came_while_lbd_ran_is_left_as_if_lbd_had_not_been() {
    inside(
        "router::an_interface_that_came_while_lbd_ran_is_left_as_if_lbd_had_not_been",
        || {
            host_with_router();
            let journal = tempfile::tempdir().unwrap();
            let mut plumbing = install(full_plan(), journal.path());
            assert_eq!(sysctl("ipv6/conf/eth0/accept_ra"), "2", "it goes on hearing routers");
            assert_quiet(&mut plumbing);
            ip("link add eth1 type veth peer name peer1");
            assert_eq!(sysctl("ipv6/conf/eth1/accept_ra"), "2", "it hears routers");
            ip("link add eth2 type veth peer name peer2");
            write_sysctl("ipv6/conf/eth2/accept_ra", "1");
            write_sysctl("ipv6/conf/all/forwarding", "0");
            plumbing.tend(Look::Close).unwrap();
            assert_eq!(sysctl("ipv6/conf/eth2/accept_ra"), "2");
            assert!(learned());
            plumbing.remove().unwrap();
            for interface in ["default", "eth0", "eth1", "eth2"] {
                assert_eq!(sysctl(&format!("ipv6/conf/{interface}/accept_ra")), "1", "{interface}");
                assert_eq!(sysctl(&format!("ipv6/conf/{interface}/forwarding")), "0", "{interface}");
            }
            assert!(learned());
        },
    );
}
