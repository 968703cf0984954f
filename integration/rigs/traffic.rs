//! What clients see of a running lbd, in both modes and over both kinds of addresses.
use std::time::Duration;

use crate::rig::{Config, Family, Mode, Rig, SERVERS, Service, isolated, matrix, wait_until};

/// Before curl and dig give up, which they do after 5 s; starting them takes a busy machine a second or two.
const SOON: Duration = Duration::from_secs(4);

#[test]
fn round_robin_gives_every_server_the_same_number_of_requests() {
    isolated(|| {
        let rig = Rig::new();
        for (mode, family) in matrix() {
            let lbd = rig.lbd(&Config::new(mode, vec![Service::web(family)]));
            assert_eq!(rig.spread("client", &family.web(), 30), [10, 10, 10]);
            lbd.terminate();
        }
    });
}

#[test]
fn random_reaches_every_server() {
    isolated(|| {
        let rig = Rig::new();
        for (mode, family) in matrix() {
            let service = Service {
                scheduler: "random",
                ..Service::web(family)
            };
            let lbd = rig.lbd(&Config::new(mode, vec![service]));
            let spread = rig.spread("client", &family.web(), 120);
            assert!(spread.iter().all(|count| *count > 10), "{spread:?}");
            lbd.terminate();
        }
    });
}

#[test]
fn weights_are_kept_by_weighted_round_robin() {
    isolated(|| {
        let rig = Rig::new();
        for (mode, family) in matrix() {
            let mut service = Service {
                scheduler: "wrr",
                ..Service::web(family)
            };
            service.backends[0].1 = 3;
            service.backends[1].1 = 2;
            let lbd = rig.lbd(&Config::new(mode, vec![service]));
            assert_eq!(rig.spread("client", &family.web(), 30), [15, 10, 5]);
            lbd.terminate();
        }
    });
}

#[test]
fn dns_questions_over_udp_are_answered_by_every_server() {
    isolated(|| {
        let rig = Rig::new();
        for (mode, family) in matrix() {
            let lbd = rig.lbd(&Config::new(mode, vec![Service::dns(family)]));
            let mut answers: Vec<String> = (0..6).map(|_| rig.dig("client", family.dns()).ok()).collect();
            answers.sort();
            assert_eq!(answers, ["s1\n", "s1\n", "s2\n", "s2\n", "s3\n", "s3\n"]);
            lbd.terminate();
        }
    });
}

#[test]
fn both_kinds_of_addresses_and_protocols_are_served_at_once() {
    isolated(|| {
        let rig = Rig::new();
        for mode in [Mode::Ipvs, Mode::Iptables] {
            let families = [Family::V4, Family::V6];
            let services = families
                .into_iter()
                .flat_map(|family| [Service::web(family), Service::dns(family)]);
            let lbd = rig.lbd(&Config::new(mode, services.collect()));
            for family in families {
                assert_eq!(rig.spread("client", &family.web(), 9), [3, 3, 3]);
                assert!(SERVERS.contains(&rig.dig("client", family.dns()).ok().trim()));
            }
            lbd.terminate();
        }
    });
}

#[test]
fn a_client_on_the_balancer_itself_is_served() {
    isolated(|| {
        let rig = Rig::new();
        for (mode, family) in matrix() {
            let lbd = rig.lbd(&Config::new(mode, vec![Service::web(family), Service::dns(family)]));
            assert_eq!(rig.spread("lb", &family.web(), 9), [3, 3, 3]);
            assert!(SERVERS.contains(&rig.dig("lb", family.dns()).ok().trim()));
            lbd.terminate();
        }
    });
}

#[test]
fn a_local_client_is_served_whatever_address_of_the_node_it_has() {
    isolated(|| {
        let rig = Rig::new();
        let mut config = Config::new(Mode::Ipvs, vec![Service::web(Family::V4)]);
        // One address that is no node port's, and one on lo alone, as routing daemons like it.
        config.more = "[node]\naddresses = [\"10.1.0.1\"]\n";
        let lbd = rig.lbd(&config);
        rig.sh("lb", "ip address add 10.255.0.1/32 dev lo").ok();
        rig.sh("s1", "ip route add 10.255.0.1 via 10.2.0.1 2>/dev/null || true")
            .ok();
        for source in ["10.1.0.1", "10.2.0.1", "10.255.0.1"] {
            let ask = format!("curl -sf -m 3 --interface {source} http://10.96.0.10/");
            let asked = || rig.sh("lb", &ask).code == 0;
            wait_until(&format!("an answer for {source}"), Duration::from_secs(5), asked);
        }
        lbd.terminate();
    });
}

#[test]
fn a_node_port_answers_on_the_balancers_own_address() {
    isolated(|| {
        let rig = Rig::new();
        for (mode, family) in matrix() {
            let service = Service {
                node_port: Some(30080),
                ..Service::web(family)
            };
            let lbd = rig.lbd(&Config::new(mode, vec![service]));
            assert_eq!(rig.spread("client", &family.balancer(30080), 9), [3, 3, 3]);
            assert_eq!(
                rig.spread("lb", &family.balancer(30080), 9),
                [3, 3, 3],
                "from the balancer itself"
            );
            assert_eq!(
                rig.spread("client", &family.web(), 9),
                [3, 3, 3],
                "its own address still answers"
            );
            assert_ne!(
                rig.get("client", &family.balancer(30081)).code,
                0,
                "another port is not lbd's"
            );
            lbd.terminate();
        }
    });
}

#[test]
fn a_backend_reaches_itself_through_its_service() {
    isolated(|| {
        let rig = Rig::new();
        for (mode, family) in matrix() {
            let alone = Service::tcp(family, 81, 8080, &[1]);
            let lbd = rig.lbd(&Config::new(mode, vec![alone, Service::web(family)]));
            assert_eq!(rig.spread("s1", &family.vip(81), 3), [3, 0, 0]);
            assert_eq!(
                rig.spread("s1", &family.web(), 9),
                [3, 3, 3],
                "and the others as well as itself"
            );
            lbd.terminate();
        }
    });
}

#[test]
fn a_service_without_backends_refuses_at_once() {
    isolated(|| {
        let rig = Rig::new();
        for (mode, family) in matrix() {
            let web = Service {
                backends: Vec::new(),
                ..Service::web(family)
            };
            let dns = Service {
                backends: Vec::new(),
                ..Service::dns(family)
            };
            let lbd = rig.lbd(&Config::new(mode, vec![web, dns]));
            for from in ["client", "lb"] {
                let get = rig.get(from, &family.web());
                assert!(get.code == 7 && get.took < SOON, "refused (7) in {from}: {get:?}");
                assert_refused_udp(&rig, from, family.dns());
            }
            lbd.terminate();
        }
    });
}

/// A connected UDP socket is told of an ICMP port unreachable; dig says so and stops waiting.
#[track_caller]
fn assert_refused_udp(rig: &Rig, from: &str, server: &str) {
    let dig = rig.sh(from, &format!("dig @{server} +tries=1 +time=5 who.lbd.test"));
    let refused = dig.out.contains("refused") || dig.err.contains("refused");
    assert!(refused && dig.took < SOON, "refused in {from}: {dig:?}");
}

#[test]
fn a_backend_with_weight_zero_gets_no_new_connection() {
    isolated(|| {
        let rig = Rig::new();
        for (mode, family) in matrix() {
            for scheduler in ["rr", "wrr", "lc", "wlc", "sh", "random"] {
                let mut service = Service {
                    scheduler,
                    ..Service::web(family)
                };
                service.backends[1].1 = 0;
                let lbd = rig.lbd(&Config::new(mode, vec![service]));
                let spread = rig.spread("client", &family.web(), 10);
                assert_eq!(spread[1], 0, "{scheduler}: {spread:?}");
                lbd.terminate();
            }
        }
    });
}

#[test]
fn a_port_of_a_service_address_without_a_service_fails_fast_and_does_not_loop() {
    isolated(|| {
        let rig = Rig::new();
        for (mode, family) in matrix() {
            let lbd = rig.lbd(&Config::new(mode, vec![Service::web(family)]));
            for from in ["client", "lb"] {
                let get = rig.get(from, &family.vip(99));
                assert!(get.code != 0 && get.took < SOON, "an error, soon, in {from}: {get:?}");
            }
            let packets = lbd.packets_on_tun();
            assert!(
                packets < 60,
                "{packets} packets on the TUN device for two connections that failed"
            );
            lbd.terminate();
        }
    });
}

#[test]
fn the_balancers_own_services_and_plain_routing_are_left_alone() {
    isolated(|| {
        let rig = Rig::new();
        for (mode, family) in matrix() {
            let service = Service {
                node_port: Some(30080),
                ..Service::web(family)
            };
            let lbd = rig.lbd(&Config::new(mode, vec![service]));
            assert_eq!(
                rig.get("client", &family.server(2, 8080)).ok(),
                "s2\n",
                "past lbd, straight to a server"
            );
            assert_eq!(
                rig.get("lb", &family.server(3, 8080)).ok(),
                "s3\n",
                "from the balancer to a server"
            );
            lbd.terminate();
        }
    });
}

#[test]
fn rules_of_the_operator_come_before_the_services() {
    isolated(|| {
        const RULES: &str = "
            [[rules]]
            name = \"not from s2\"
            source = \"10.2.0.12\"
            protocol = \"tcp\"
            destination_port = \"80\"
            action = \"reject\"
            [[rules]]
            name = \"only the client and the balancer's net\"
            source = \"!10.0.0.0/8\"
            destination = \"10.96.0.0/16\"
            action = \"drop\"
            [[rules]]
            name = \"another way to the same service\"
            destination = \"10.96.0.10\"
            protocol = \"tcp\"
            destination_port = \"8000-8999\"
            action = \"service:test/web:V4-80\"
        ";
        let rig = Rig::new();
        let mut config = Config::new(Mode::Iptables, vec![Service::web(Family::V4)]);
        config.more = RULES;
        let lbd = rig.lbd(&config);
        assert_eq!(rig.spread("client", "10.96.0.10:80", 3), [1, 1, 1]);
        assert_eq!(rig.spread("client", "10.96.0.10:8500", 3), [1, 1, 1]);
        let refused = rig.get("s2", "10.96.0.10:80");
        assert!(refused.code == 7 && refused.took < SOON, "{refused:?}");
        lbd.terminate();
    });
}

#[test]
fn the_other_ports_of_a_service_address_that_is_another_hosts_are_that_hosts() {
    isolated(|| {
        let rig = Rig::new();
        for (mode, family) in matrix() {
            let mut service = Service::tcp(family, 80, 8080, &[1]);
            service.address = family.server(3, 80);
            let lbd = rig.lbd(&Config::new(mode, vec![service]));
            for from in ["client", "lb", "s1"] {
                assert_eq!(rig.get(from, &family.server(3, 80)).ok(), "s1\n", "from {from}");
                assert_eq!(rig.get(from, &family.server(3, 8080)).ok(), "s3\n", "from {from}");
            }
            lbd.terminate();
        }
    });
}

#[test]
fn a_port_that_nobody_serves_is_refused_also_where_another_router_would_send_it_back() {
    const BACK: &str = "
        ip -n lb route add 10.0.0.0/8 via 10.1.0.2
        ip -n lb -6 route add fd00::/16 via fd00:1::2
        in_ns client sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
    ";
    isolated(|| {
        let rig = Rig::changed(BACK);
        for (mode, family) in matrix() {
            let lbd = rig.lbd(&Config::new(mode, vec![Service::web(family)]));
            let get = rig.get("client", &family.vip(81));
            assert_eq!(get.code, 7, "{get:?}");
            assert!(lbd.status()["packets"]["pass"].as_u64() < Some(10), "{}", lbd.status());
            lbd.terminate();
        }
    });
}
