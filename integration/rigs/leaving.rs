//! lbd goes, and the kernel is as before.
use crate::rig::{Config, Family, Mode, Rig, Service, isolated};

#[test]
fn a_terminated_lbd_leaves_nothing_behind() {
    isolated(|| {
        let rig = Rig::new();
        let before = rig.kernel_state();
        for mode in [Mode::Ipvs, Mode::Iptables] {
            let lbd = rig.lbd(&everything(mode));
            use_it(&rig);
            assert_ne!(rig.kernel_state(), before, "this test sees what lbd does");
            lbd.terminate();
            assert_same(&before, &rig.kernel_state());
        }
    });
}

#[test]
fn control_c_is_as_good_as_sigterm() {
    isolated(|| {
        let rig = Rig::new();
        let before = rig.kernel_state();
        rig.lbd(&everything(Mode::Ipvs)).interrupt();
        assert_same(&before, &rig.kernel_state());
    });
}

#[test]
fn what_a_reload_takes_away_is_gone_from_the_kernel_where_no_flow_needs_it() {
    isolated(|| {
        let rig = Rig::new();
        // Both kinds of addresses: forwarding of a kind that was needed once is switched off again only at the end.
        let few = [Family::V4, Family::V6].map(Service::dns);
        let few = Config::new(Mode::Ipvs, few.into());
        let lbd = rig.lbd(&few);
        let before = rig.kernel_state();
        lbd.reload(&everything(Mode::Ipvs).to_string()).ok();
        assert_ne!(rig.kernel_state(), before, "this test sees what a reload does");
        lbd.reload(&few.to_string()).ok();
        assert_same(&before, &rig.kernel_state());
        lbd.terminate();
    });
}

#[test]
fn a_killed_lbd_is_tidied_up_by_the_next_run() {
    isolated(|| {
        let rig = Rig::new();
        let before = rig.kernel_state();
        for _ in 0..2 {
            let lbd = rig.lbd(&everything(Mode::Ipvs));
            use_it(&rig);
            lbd.kill9();
        }
        let lbd = rig.lbd(&everything(Mode::Iptables));
        use_it(&rig);
        lbd.terminate();
        assert_same(&before, &rig.kernel_state());
    });
}

#[test]
fn after_a_kill_another_configuration_finds_what_the_old_one_left() {
    isolated(|| {
        let rig = Rig::new();
        let before = rig.kernel_state();
        rig.lbd(&everything(Mode::Ipvs)).kill9();
        let lbd = rig.lbd(&Config::new(Mode::Ipvs, vec![Service::dns(Family::V4)]));
        assert_ne!(
            rig.get("client", &Family::V4.web()).code,
            0,
            "the dead one's service is gone"
        );
        lbd.terminate();
        assert_same(&before, &rig.kernel_state());
    });
}

#[test]
fn forwarding_that_was_on_before_stays_on() {
    isolated(|| {
        let rig = Rig::new();
        rig.sh("lb", "sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1")
            .ok();
        let before = rig.kernel_state();
        rig.lbd(&everything(Mode::Ipvs)).terminate();
        assert_same(&before, &rig.kernel_state());
    });
}

#[test]
fn while_it_runs_no_setting_of_the_host_is_another_but_those_that_forwarding_needs() {
    isolated(|| {
        let rig = Rig::new();
        let before = rig.settings();
        let lbd = rig.lbd(&everything(Mode::Ipvs));
        use_it(&rig);
        let now = rig.settings();
        let changed: Vec<&str> = now.difference(&before).map(String::as_str).collect();
        let links = ["all", "default", "lo", "client", "s1", "s2", "s3"];
        let mut expected = vec![
            "net.ipv4.ip_early_demux = 0".to_owned(),
            "net.ipv4.ip_forward = 1".to_owned(),
            "net.ipv4.conf.all.accept_redirects = 0".to_owned(),
        ];
        for link in links {
            for family in ["ipv4", "ipv6"] {
                expected.push(format!("net.{family}.conf.{link}.forwarding = 1"));
            }
            if !["all", "lo"].contains(&link) {
                expected.push(format!("net.ipv6.conf.{link}.accept_ra = 2"));
            }
        }
        expected.sort();
        assert_eq!(changed, expected);
        lbd.terminate();
        assert_eq!(rig.settings(), before);
    });
}

#[test]
fn a_default_route_by_router_advertisement_stays_from_start_to_end() {
    isolated(|| {
        let rig = Rig::new();
        rig.advertise_router("client");
        let ipv4 = Config::new(Mode::Ipvs, vec![Service::web(Family::V4)]);
        let lbd = rig.lbd(&ipv4);
        assert!(rig.has_advertised_router(), "IPv4 alone");
        lbd.reload(&everything(Mode::Ipvs).to_string()).ok();
        use_it(&rig);
        assert!(rig.has_advertised_router(), "IPv6 by a reload");
        rig.sh("lb", "ip -6 route del default proto ra").ok();
        rig.advertise_router("client");
        lbd.terminate();
        assert!(rig.has_advertised_router(), "after the end");
        rig.lbd(&everything(Mode::Ipvs)).kill9();
        assert!(rig.has_advertised_router(), "at a start");
        let lbd = rig.lbd(&ipv4);
        assert!(rig.has_advertised_router(), "after tidying up");
        lbd.terminate();
    });
}

#[test]
fn without_its_device_lbd_ends_with_an_error_and_leaves_nothing_behind() {
    isolated(|| {
        let rig = Rig::new();
        let before = rig.kernel_state();
        let lbd = rig.lbd(&everything(Mode::Ipvs));
        rig.sh("lb", "ip link del lbd0").ok();
        let (code, log) = lbd.ended();
        assert_eq!(code, Some(1), "{log}");
        assert!(log.contains("was the TUN device removed?"), "{log}");
        assert_same(&before, &rig.kernel_state());
    });
}

fn everything(mode: Mode) -> Config {
    let services = [Family::V4, Family::V6].into_iter().flat_map(|family| {
        let web = Service {
            node_port: Some(30080),
            ..Service::web(family)
        };
        [web, Service::dns(family)]
    });
    Config::new(mode, services.collect())
}

fn use_it(rig: &Rig) {
    for family in [Family::V4, Family::V6] {
        assert_eq!(rig.spread("client", &family.web(), 3), [1, 1, 1]);
        assert_eq!(rig.spread("client", &family.balancer(30080), 3), [1, 1, 1]);
        assert_eq!(rig.spread("lb", &family.web(), 3), [1, 1, 1]);
    }
}

/// Says which lines differ, not both whole states.
#[track_caller]
fn assert_same(before: &str, after: &str) {
    let left: Vec<&str> = after
        .lines()
        .filter(|line| !before.lines().any(|other| other == *line))
        .collect();
    let lost: Vec<&str> = before
        .lines()
        .filter(|line| !after.lines().any(|other| other == *line))
        .collect();
    assert!(
        left.is_empty() && lost.is_empty(),
        "left behind: {left:#?}\nlost: {lost:#?}"
    );
    assert_eq!(before, after, "the same lines, but not in the same order");
}
