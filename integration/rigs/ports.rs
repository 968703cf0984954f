//! Clients that keep to one port: new connections are not taken for the old one, and datagrams find living servers.
use std::thread::sleep;
use std::time::Duration;

use crate::rig::{
    Config, Conversation, Family, Rig, Sender, Service, isolated, matrix, reuse_port, tcp_close, tcp_echo, tcp_late,
    udp_echo, wait_until,
};
use std::io::ErrorKind;

#[test]
fn a_thousand_connections_from_one_port_go_without_a_stall() {
    isolated(|| {
        let rig = Rig::new();
        for (mode, family) in matrix() {
            let lbd = rig.lbd(&Config::new(mode, vec![Service::web(family)]));
            assert_no_stall(&rig, &family.web(), 12_345, 1_000);
            lbd.terminate();
        }
    });
}

/// A SYN that is lost or misled is sent again after a second (RFC 6298 section 2.1). On a busy machine a connection may take
/// as long though none was.
#[track_caller]
fn assert_no_stall(rig: &Rig, address: &str, port: u16, times: u32) {
    let before = repeated_syns(rig);
    let slowest = reuse_port("client", address, port, times);
    let repeated = repeated_syns(rig) - before;
    println!("slowest: {slowest:?}, SYNs sent again: {repeated}");
    let is_slow = slowest >= Duration::from_millis(900);
    assert!(
        !is_slow || repeated == 0,
        "{slowest:?}, and {repeated} SYNs were sent again"
    );
}

/// SYNs that the client has sent more than once, by its kernel's count.
#[track_caller]
fn repeated_syns(rig: &Rig) -> u64 {
    let count = rig.sh(
        "client",
        "nstat -asz TcpExtTCPSynRetrans | awk '/SynRetrans/ { print $2 }'",
    );
    count.ok().trim().parse().expect("a count")
}

#[test]
fn a_client_whose_connection_lbd_does_not_know_is_told_at_once_where_that_is_set() {
    isolated(|| {
        let rig = Rig::new();
        for family in Family::BOTH {
            tcp_echo("s1", &family.server(1, 7));
        }
        for (mode, family) in matrix() {
            let mut config = Config::new(mode, vec![Service::tcp(family, 7, 7, &[1])]);
            config.more = "[conntrack]\nunknown_tcp = \"reset\"\n";
            let lbd = rig.lbd(&config);
            let mut old = Conversation::open("client", &family.vip(7));
            old.say("hello");
            lbd.kill9();
            let lbd = rig.lbd(&config);
            assert_eq!(lbd.status()["unknown_tcp"], "reset");
            assert_eq!(old.say_in_vain("still there?").kind(), ErrorKind::ConnectionReset);
            Conversation::open("client", &family.vip(7)).say("hello again");
            lbd.terminate();
        }
    });
}

#[test]
fn a_connection_directly_to_a_server_and_one_through_the_service_from_the_same_port_leave_each_other_alone() {
    isolated(|| {
        let rig = Rig::new();
        for family in Family::BOTH {
            tcp_echo("s1", &family.server(1, 7));
        }
        for (port, (mode, family)) in (12_000..).zip(matrix()) {
            let lbd = rig.lbd(&Config::new(mode, vec![Service::tcp(family, 7, 7, &[1])]));
            let mut direct = Conversation::open_from("client", port, &family.server(1, 7));
            direct.say("hello");
            let mut balanced = Conversation::open_from("client", port, &family.vip(7));
            for words in ["one", "two", "three"] {
                balanced.say(words);
                direct.say(words);
            }
            lbd.terminate();
        }
    });
}

#[test]
fn a_port_that_a_proxy_on_this_host_has_just_answered_is_served_by_lbd_at_once() {
    isolated(|| {
        let rig = Rig::new();
        for (port, (mode, family)) in (13_000..).zip(matrix()) {
            let vip = family.vip(80);
            let address = Family::host(&vip);
            rig.sh("lb", &format!("ip address add {address} dev lo nodad")).ok();
            tcp_close("lb", &vip);
            Conversation::open_from("client", port, &vip).wait_for_the_end();
            rig.sh("lb", &format!("ip address del {address} dev lo")).ok();
            let lbd = rig.lbd(&Config::new(mode, vec![Service::web(family)]));
            assert_no_stall(&rig, &family.web(), port, 1);
            lbd.terminate();
        }
    });
}

#[test]
fn ports_that_came_to_another_address_of_the_service_before_lbd_was_started_anew_open_one_connection_each() {
    isolated(|| {
        const PORTS: std::ops::Range<u16> = 14_000..14_010;
        let rig = Rig::new();
        for (mode, family) in matrix() {
            let service = Service {
                node_port: Some(30080),
                ..Service::tcp(family, 80, 8080, &[1])
            };
            for address in [family.vip(80), family.balancer(30080), family.vip(80)] {
                let lbd = rig.lbd(&Config::new(mode, vec![service.clone()]));
                for port in PORTS {
                    reuse_port("client", &address, port, 1);
                }
                // A connection whose last packets lbd took along with it would be in the way of the next one.
                wait_until("the server's connections to end", Duration::from_secs(5), || {
                    let sockets = rig.sh("s1", "ss -Htn state connected exclude time-wait");
                    sockets.ok().is_empty()
                });
                let list: serde_json::Value = serde_json::from_str(&lbd.lbctl("list --json").ok()).expect("JSON");
                assert_eq!(list["services"][0]["stats"]["connections"], PORTS.len(), "{list:#}");
                lbd.terminate();
            }
        }
    });
}

/// An echo service over some servers.
fn echo(family: Family, servers: &[usize]) -> Service {
    Service {
        protocol: "udp",
        ..Service::tcp(family, 7, 7, servers)
    }
}

#[test]
fn a_sender_that_keeps_to_one_port_loses_nothing_but_what_is_on_its_way_to_a_server_that_goes() {
    isolated(|| {
        let rig = Rig::new();
        for family in Family::BOTH {
            for (server, name) in [(1, "s1"), (2, "s2")] {
                udp_echo(name, &family.server(server, 7));
            }
        }
        for (mode, family) in matrix() {
            let config = |servers: &[usize]| Config::new(mode, vec![echo(family, servers)]);
            let lbd = rig.lbd(&config(&[1, 2]));
            let sender = Sender::start("client", &family.vip(7), 40_000);
            for (left, gone) in [([1], "s2"), ([2], "s1"), ([1], "s2"), ([2], "s1")] {
                sleep(Duration::from_millis(300));
                lbd.reload(&config(&left).to_string()).ok();
                // It is dead from now on, and nobody says so.
                rig.sh("lb", &format!("ip link set {gone} down")).ok();
                sleep(Duration::from_millis(300));
                rig.sh("lb", &revive(gone)).ok();
            }
            let echoes = sender.stop();
            println!("{} sent, missing {:?}", echoes.sent, echoes.missing);
            assert!(echoes.sent > 200, "{echoes:?}");
            assert!(echoes.missing.len() <= 8, "two for each server that went: {echoes:?}");
            assert_eq!(echoes.errors, 0);
            lbd.terminate();
        }
    });
}

/// The routes went with the link, see lay.sh.
fn revive(server: &str) -> String {
    let number = &server[1..];
    format!(
        "ip link set {server} up
        ip address add fd00:2::1/128 dev {server} nodad 2>/dev/null || true
        ip route replace 10.2.0.1{number} dev {server}
        ip -6 route replace fd00:2::1{number} dev {server}"
    )
}

#[test]
fn a_late_answer_on_a_forgotten_connection_never_comes_from_the_servers_own_address() {
    isolated(|| {
        let rig = Rig::new();
        for (port, (mode, family)) in (7_000..).zip(matrix()) {
            let server = family.server(1, port);
            let answer = tcp_late("s1", &server);
            let mut config = Config::new(mode, vec![Service::tcp(family, 7, port, &[1])]);
            config.more = "[conntrack]\ntcp_close_wait = \"1s\"\n";
            let lbd = rig.lbd(&config);
            let client = Conversation::open("client", &family.vip(7));
            client.close_one_side();
            let limit = Duration::from_secs(30);
            wait_until("the flow is forgotten", limit, || {
                !lbd.lbctl("ipvsadm -Lnc").ok().contains("TCP")
            });
            answer.send(()).expect("the server runs");
            wait_until("the answer is dropped by name", limit, || {
                let drops = lbd.lbctl("drops --json").ok();
                let drops: serde_json::Value = serde_json::from_str(&drops).expect("JSON");
                drops["drops"]["unknown_reply"].as_u64() > Some(0)
            });
            lbd.terminate();
        }
    });
}
