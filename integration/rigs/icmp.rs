//! A service can be pinged, and packets find out how long they may be, wherever the narrow place is.
use std::io::ErrorKind;
use std::time::Duration;

use crate::rig::{
    BEFORE, BEHIND, Backend, Config, Conversation, Family, Rig, Service, echo_datagram, isolated, matrix, wait_until,
};
use crate::xdp_sizes::assert_transfers;

/// Whether an address answers three pings.
fn answers(rig: &Rig, from: &str, address: &str, options: &str) -> bool {
    rig.sh(from, &format!("ping -n -c 3 -i 0.1 -W 1 {options} {address}"))
        .code
        == 0
}

#[test]
fn a_service_address_can_be_pinged_from_near_and_far() {
    isolated(|| {
        let rig = Rig::new();
        for (mode, family) in matrix() {
            let lbd = rig.lbd(&Config::new(mode, vec![Service::web(family)]));
            let address = family.web();
            for from in ["client", "lb", "s1"] {
                assert!(answers(&rig, from, Family::host(&address), ""), "from {from}");
                assert!(answers(&rig, from, Family::host(&address), "-s 1400"), "from {from}");
            }
            lbd.terminate();
        }
    });
}

#[test]
fn where_echo_is_off_a_service_address_does_not_answer_until_a_reload_says_so() {
    isolated(|| {
        let rig = Rig::new();
        for (mode, family) in matrix() {
            let mut config = Config::new(mode, vec![Service::web(family)]);
            config.more = "[icmp]\necho = false\n";
            let lbd = rig.lbd(&config);
            let address = family.web();
            assert!(!answers(&rig, "client", Family::host(&address), ""));
            assert_eq!(lbd.status()["echo"], false);
            config.more = "";
            lbd.reload(&config.to_string()).ok();
            assert!(answers(&rig, "client", Family::host(&address), ""));
            assert_eq!(lbd.status()["echo"], true);
            lbd.terminate();
        }
    });
}

#[test]
fn pings_that_are_none_of_lbds_go_through() {
    isolated(|| {
        let rig = Rig::new();
        for (mode, family) in matrix() {
            let lbd = rig.lbd(&Config::new(mode, vec![Service::web(family)]));
            let (server, own) = (family.server(1, 0), family.balancer(0));
            for options in ["", "-s 4000"] {
                for (from, to) in [("client", &server), ("lb", &server), ("client", &own), ("s1", &own)] {
                    let to = Family::host(to);
                    assert!(answers(&rig, from, to, options), "{from} to {to} {options}");
                }
            }
            lbd.terminate();
        }
    });
}

const ALWAYS: &str = "[nat]\nmasquerade = \"always\"\n";

#[test]
fn a_client_learns_of_a_narrow_link_behind_lbd() {
    isolated(|| {
        let rig = Rig::changed(BEHIND);
        for (mode, family) in matrix() {
            for more in ["", ALWAYS] {
                let mut config = Config::new(mode, vec![Service::tcp(family, 80, 8080, &[1])]);
                config.more = more;
                let lbd = rig.lbd(&config);
                assert_transfers(&rig, family);
                assert_narrow(&rig, "client", Family::host(&family.web()));
                rig.sh("client", "ip route flush cache; ip -6 route flush cache").ok();
                lbd.terminate();
            }
        }
    });
}

/// The link from the balancer to s1 itself; s1 says that it takes more.
const NARROW: &str = "
    ip -n lb link set s1 mtu 1300
    ip -n s1 link set eth0 mtu 1300
    ip -n s1 route replace default via 10.2.0.1 advmss 1460
    ip -n s1 -6 route replace default via fd00:2::1 advmss 1440";

#[test]
fn a_client_learns_of_a_narrow_link_of_the_balancer_itself() {
    isolated(|| {
        let rig = Rig::changed(NARROW);
        for (mode, family) in matrix() {
            let config = Config::new(mode, vec![Service::tcp(family, 80, 8080, &[1])]);
            let lbd = rig.lbd(&config);
            assert_transfers(&rig, family);
            assert_narrow(&rig, "client", Family::host(&family.web()));
            rig.sh("client", "ip route flush cache; ip -6 route flush cache").ok();
            // Past lbd the kernel's word reaches the client, too.
            let past = family.server(1, 8080);
            let sent =
                format!("head -c 1000000 /dev/zero | curl -sS --fail --max-time 10 -T - http://{past}/put/zeros");
            rig.sh("client", &sent).ok();
            assert_narrow(&rig, "client", Family::host(&past));
            rig.sh("client", "ip route flush cache; ip -6 route flush cache").ok();
            lbd.terminate();
        }
    });
}

#[test]
fn a_server_learns_of_a_narrow_link_before_lbd() {
    isolated(|| {
        let rig = Rig::changed(BEFORE);
        for (mode, family) in matrix() {
            let client = match family {
                Family::V4 => "10.5.0.2",
                Family::V6 => "fd00:5::2",
            };
            let config = Config::new(mode, vec![Service::tcp(family, 80, 8080, &[1])]);
            let lbd = rig.lbd(&config);
            assert_transfers(&rig, family);
            assert_narrow(&rig, "s1", client);
            rig.sh("s1", "ip route flush cache; ip -6 route flush cache").ok();
            lbd.terminate();
        }
    });
}

#[track_caller]
fn assert_narrow(rig: &Rig, from: &str, to: &str) {
    let way = rig.sh(from, &format!("ip route get {to}")).ok();
    assert!(way.contains("mtu 1300"), "{from} has learnt it: {way}");
}

#[test]
fn a_flood_of_datagrams_that_nobody_takes_is_not_answered_by_a_flood() {
    isolated(|| {
        let rig = Rig::new();
        for (mode, family) in matrix() {
            let service = Service {
                backends: Vec::new(),
                ..Service::dns(family)
            };
            let lbd = rig.lbd(&Config::new(mode, vec![service]));
            // As fast as bash can.
            let flood = format!(
                "for i in $(seq 3000); do echo > /dev/udp/{}/53; done 2>/dev/null; true",
                family.dns()
            );
            rig.sh("client", &flood).ok();
            let limited = || lbd.lbctl("drops").ok().contains("rate_limited");
            wait_until("the reason", Duration::from_secs(10), limited);
            lbd.terminate();
        }
    });
}

/// A server that is not there.
const NOBODY: &str = "
ip -n lb route add 10.2.0.98 dev s1
ip -n lb -6 route add fd00:2::98 dev s1
";

#[test]
fn a_client_learns_from_lbds_host_that_a_server_does_not_answer_on_its_link() {
    isolated(|| {
        let rig = Rig::changed(NOBODY);
        for (mode, family) in matrix() {
            let mut service = Service::web(family);
            let server = match family {
                Family::V4 => "10.2.0.98:8080",
                Family::V6 => "[fd00:2::98]:8080",
            };
            service.backends = vec![(server.to_owned(), 1)];
            let lbd = rig.lbd(&Config::new(mode, vec![service]));
            let get = rig.sh("client", &format!("curl -sS --max-time 20 http://{}/", family.web()));
            // 7: it was told so; 28: it has waited in vain.
            assert_eq!(get.code, 7, "{get:?}");
            lbd.terminate();
        }
    });
}

/// A firewall as kube-proxy's, and a service of the host that its firewall refuses.
const FIREWALL: &str = "
in_ns lb iptables -A FORWARD -m conntrack --ctstate INVALID -j DROP
in_ns lb ip6tables -A FORWARD -m conntrack --ctstate INVALID -j DROP
in_ns lb iptables -A INPUT -p tcp --dport 22 -j REJECT
in_ns lb ip6tables -A INPUT -p tcp --dport 22 -j REJECT
";

#[test]
fn what_this_host_says_in_icmp_about_other_things_arrives_through_a_strict_firewall() {
    isolated(|| {
        let rig = Rig::changed(FIREWALL);
        for (mode, family) in matrix() {
            let lbd = rig.lbd(&Config::new(mode, vec![Service::web(family)]));
            let ssh = rig.sh(
                "client",
                &format!("curl -sS --max-time 5 http://{}/", family.balancer(22)),
            );
            assert_eq!(ssh.code, 7, "{ssh:?}");
            let (server, own) = (family.server(1, 0), family.balancer(0));
            let traced = rig
                .sh(
                    "client",
                    &format!("traceroute -n -q 1 -N 1 -m 2 {}", Family::host(&server)),
                )
                .ok();
            assert!(traced.contains(Family::host(&own)), "{traced}");
            lbd.terminate();
        }
    });
}

/// Each refusal is told, however many there are. And where connection tracking sees all packets, which it does not on AF_XDP, a
/// firewall drops what it does not know.
fn strict() -> String {
    let firewall = match Backend::of_this_run() {
        Backend::Tun => DROPS_INVALID,
        Backend::AfXdp => "",
    };
    format!("{firewall}\nin_ns lb sysctl -qw net.ipv4.icmp_ratelimit=0 net.ipv6.icmp.ratelimit=0")
}

const DROPS_INVALID: &str = "
for tables in iptables ip6tables; do
    for chain in INPUT FORWARD; do in_ns lb $tables -A $chain -m conntrack --ctstate INVALID -j DROP; done
done
";

/// A TCP and a UDP service with one server, of which both take this port.
fn both(family: Family, server: &str) -> Vec<Service> {
    let over = |protocol| Service {
        name: format!("{protocol} {server}"),
        protocol,
        backends: vec![(server.to_owned(), 1)],
        ..Service::web(family)
    };
    vec![over("tcp"), over("udp")]
}

/// What a client of the web service's address is told at once, over TCP and UDP.
fn told(family: Family) -> [Result<(), ErrorKind>; 2] {
    let connected = Conversation::try_open("client", &family.web());
    let echoed = echo_datagram("client", &family.web(), 100);
    [connected, echoed].map(|result| result.map_err(|error| error.kind()))
}

#[test]
fn a_client_is_told_at_once_whatever_the_hosts_firewall_rejects_its_packets_with() {
    isolated(|| {
        let rig = Rig::changed(&strict());
        for (mode, family) in matrix() {
            let mut config = Config::new(mode, both(family, &family.server(1, 8080)));
            // Packets that AF_XDP sends meet no firewall.
            config.backend = Backend::Tun;
            let lbd = rig.lbd(&config);
            let (tables, kinds) = match family {
                Family::V4 => (
                    "iptables",
                    ["icmp-port-unreachable", "icmp-admin-prohibited", "icmp-net-unreachable"],
                ),
                Family::V6 => (
                    "ip6tables",
                    ["icmp6-port-unreachable", "icmp6-adm-prohibited", "icmp6-no-route"],
                ),
            };
            for kind in kinds.into_iter().chain(["tcp-reset"]) {
                let protocols = if kind == "tcp-reset" { "-p tcp" } else { "" };
                let rule = format!("FORWARD -i lbd0 -o s1 {protocols} -j REJECT --reject-with {kind}");
                rig.sh("lb", &format!("{tables} -A {rule}")).ok();
                let [connected, echoed] = told(family);
                let is_told = |result: Result<(), ErrorKind>| {
                    result.is_err_and(|kind| ![ErrorKind::TimedOut, ErrorKind::WouldBlock].contains(&kind))
                };
                assert!(is_told(connected), "{kind}, TCP: {connected:?}");
                // Sockets that did not ask for them hear of no other errors of ICMP (`icmp_err_convert`, net/ipv4/icmp.c).
                if kind.contains("port") || kind.contains("adm") {
                    assert!(is_told(echoed), "{kind}, UDP: {echoed:?}");
                }
                rig.sh("lb", &format!("{tables} -D {rule}")).ok();
            }
            lbd.terminate();
        }
    });
}

#[test]
fn a_client_is_told_that_its_server_on_lbds_own_host_is_not_there() {
    isolated(|| {
        let rig = Rig::changed(&strict());
        for (mode, family) in matrix() {
            let lbd = rig.lbd(&Config::new(mode, both(family, &family.balancer(9_999))));
            let refused = Err(ErrorKind::ConnectionRefused);
            assert_eq!(told(family), [refused, refused]);
            lbd.terminate();
        }
    });
}

#[test]
fn a_client_is_told_that_there_is_no_way_to_its_server() {
    isolated(|| {
        let rig = Rig::changed(&strict());
        for (mode, family) in matrix() {
            let server = match family {
                Family::V4 => "10.99.0.1:8080",
                Family::V6 => "[fd00:99::1]:8080",
            };
            let lbd = rig.lbd(&Config::new(mode, both(family, server)));
            let [connected, _] = told(family);
            let unreachable = [Err(ErrorKind::NetworkUnreachable), Err(ErrorKind::HostUnreachable)];
            assert!(unreachable.contains(&connected), "{connected:?}");
            lbd.terminate();
        }
    });
}

#[test]
fn a_service_is_one_hop_behind_lbds_host() {
    isolated(|| {
        let rig = Rig::changed(&strict());
        for (mode, family) in matrix() {
            let lbd = rig.lbd(&Config::new(mode, vec![Service::web(family)]));
            let web = family.web();
            let traced = rig.sh(
                "client",
                &format!("traceroute -n -q 1 -N 1 -m 4 -T -p 80 {}", Family::host(&web)),
            );
            let traced = traced.ok();
            let hops: Vec<&str> = traced
                .lines()
                .skip(1)
                .filter_map(|line| line.split_whitespace().nth(1))
                .collect();
            assert_eq!(
                hops,
                [Family::host(&family.balancer(0)), Family::host(&web)],
                "{traced}"
            );
            lbd.terminate();
        }
    });
}
