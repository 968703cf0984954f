//! What is the host's own, and what nobody's: traffic of lbd's host beside that of services.
use std::io::ErrorKind;

use crate::rig::{
    Config, Conversation, Family, Mode, Rig, Service, echo_datagram, echo_datagram_from, isolated, matrix, tcp_echo,
    udp_echo,
};

/// In the range that Linux chooses the ports of outgoing connections from.
const NODE_PORT: u16 = 40_080;

fn over(protocol: &'static str, family: Family) -> Service {
    let service = Service::tcp(family, 7, 7, &[1]);
    Service {
        name: format!("{} {protocol}", service.name),
        protocol,
        node_port: Some(NODE_PORT),
        ..service
    }
}

/// Echo servers on s1, which has the services, and on s3, which has nothing to do with lbd.
fn serve_echo() {
    for family in Family::BOTH {
        for (server, name) in [(1, "s1"), (2, "s2"), (3, "s3")] {
            tcp_echo(name, &family.server(server, 7));
            udp_echo(name, &family.server(server, 7));
        }
    }
}

#[track_caller]
fn assert_node_port_works(family: Family) {
    let node_port = family.balancer(NODE_PORT);
    Conversation::open("client", &node_port).say("hello");
    echo_datagram("client", &node_port, 100).unwrap_or_else(|error| panic!("a datagram to the node port: {error}"));
}

#[test]
fn what_the_host_sends_from_a_port_that_is_a_node_port_is_answered_to_the_host() {
    isolated(|| {
        let rig = Rig::new();
        serve_echo();
        for (mode, family) in matrix() {
            let lbd = rig.lbd(&Config::new(mode, vec![over("tcp", family), over("udp", family)]));
            let stranger = family.server(3, 7);
            for words in ["one", "two"] {
                Conversation::open_from("lb", NODE_PORT, &stranger).say(words);
                let echoed = echo_datagram_from("lb", NODE_PORT, &stranger, 100, true);
                echoed.unwrap_or_else(|error| panic!("{mode:?} {family:?}, a datagram: {error}"));
                assert_node_port_works(family);
            }
            lbd.terminate();
        }
    });
}

/// Connection tracking is on where a rule needs it.
const TRACKING: &str = "
in_ns lb iptables -A INPUT -m conntrack --ctstate INVALID -j DROP
in_ns lb ip6tables -A INPUT -m conntrack --ctstate INVALID -j DROP
";

#[test]
fn where_connections_are_tracked_a_socket_that_is_not_connected_gets_its_answers_too() {
    isolated(|| {
        let rig = Rig::changed(TRACKING);
        serve_echo();
        for (mode, family) in matrix() {
            let lbd = rig.lbd(&Config::new(mode, vec![over("tcp", family), over("udp", family)]));
            let echoed = echo_datagram_from("lb", NODE_PORT, &family.server(3, 7), 100, false);
            echoed.unwrap_or_else(|error| panic!("{mode:?} {family:?}: {error}"));
            assert_node_port_works(family);
            lbd.terminate();
        }
    });
}

/// The host masquerades what the client sends to s3, as it does for containers, with a port that is a node port.
const MASQUERADING: &str = "
in_ns lb sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
for protocol in tcp udp; do
    for server in 12 13; do
        in_ns lb iptables -t nat -A POSTROUTING -d 10.2.0.$server -p $protocol --dport 7 -j SNAT --to 10.2.0.1:40080
        in_ns lb ip6tables -t nat -A POSTROUTING -d fd00:2::$server -p $protocol --dport 7 -j SNAT --to [fd00:2::1]:40080
    done
done
";

#[test]
fn what_the_host_masquerades_with_a_port_that_is_a_node_port_is_answered_to_whom_it_masquerades() {
    isolated(|| {
        let rig = Rig::changed(MASQUERADING);
        serve_echo();
        for (mode, family) in matrix() {
            let lbd = rig.lbd(&Config::new(mode, vec![over("tcp", family), over("udp", family)]));
            // Another one in each mode: two connections cannot be masqueraded with one port as long as both are tracked.
            let stranger = family.server(if mode == Mode::Ipvs { 2 } else { 3 }, 7);
            Conversation::open("client", &stranger).say("hello");
            let echoed = echo_datagram_from("client", 5_007, &stranger, 100, true);
            echoed.unwrap_or_else(|error| panic!("{mode:?} {family:?}: {error}"));
            assert_node_port_works(family);
            lbd.terminate();
        }
    });
}

#[test]
fn a_port_of_a_service_address_that_no_service_has_is_refused_as_by_a_host() {
    isolated(|| {
        let rig = Rig::new();
        for (mode, family) in matrix() {
            let lbd = rig.lbd(&Config::new(mode, vec![Service::web(family)]));
            let nobody = family.vip(81);
            for from in ["client", "lb", "s1"] {
                let told = |error: std::io::Error| error.kind();
                let connected = Conversation::try_open(from, &nobody).map_err(told);
                assert_eq!(connected, Err(ErrorKind::ConnectionRefused), "TCP from {from}");
                let echoed = echo_datagram(from, &nobody, 100).map_err(told);
                assert_eq!(echoed, Err(ErrorKind::ConnectionRefused), "UDP from {from}");
            }
            let drops = lbd.lbctl("drops").ok();
            assert!(drops.contains("no_service"), "{drops}");
            lbd.terminate();
        }
    });
}
