//! What comes to addresses of the host itself, or to ports of service addresses that no service has.
use std::collections::HashSet;
use std::net::SocketAddr;

use lbd::flow::{Protocol, Tuple};
use lbd::host::Host;
use lbd::verdict::{Drop, Pass, Reject, Verdict};

use crate::packets::{self, ACK, FIN, RST, SYN};
use crate::world::{Case, World, packet};

/// A host whose socket talks to one peer.
#[derive(Debug)]
struct Talker(SocketAddr);

impl Host for Talker {
    fn owns(&mut self, datagram: &Tuple) -> bool {
        assert_eq!(datagram.protocol, Protocol::Udp, "nothing else is asked about");
        (datagram.source.address, datagram.source.port) == (self.0.ip(), self.0.port())
    }
}

fn node_port(case: Case, more: &str) -> World {
    let node = format!("[node]\naddresses = [\"{}\"]\n{more}", case.node(0).ip());
    case.setup().tables(&node).keys("node_port = 30080").world()
}

#[test]
fn a_packet_to_a_node_port_that_is_of_no_flow_and_opens_none_is_left_to_the_host() {
    for case in Case::all().filter(|case| case.protocol != Protocol::Udp) {
        for unknown in ["drop", "reset", "pass"] {
            let mut world = node_port(case, &format!("[conntrack]\nunknown_tcp = \"{unknown}\""));
            let passed = match case.protocol {
                Protocol::Tcp | Protocol::Udp => Pass::NotSyn,
                Protocol::Sctp => Pass::NotInit,
            };
            for flags in [SYN | ACK, ACK, FIN | ACK, RST] {
                let answer = packet(case.protocol, case.client(2, 7), case.node(30_080), flags);
                assert_eq!(world.send(&answer).verdict, Verdict::Pass(passed));
            }
            // At an address that only lbd answers for, it is as before.
            let stray = packet(case.protocol, case.client(2, 7), case.service(), FIN | ACK);
            assert!(!matches!(world.send(&stray).verdict, Verdict::Pass(Pass::NotInit)));
        }
    }
}

#[test]
fn so_it_is_where_the_service_has_no_backend() {
    for case in Case::tcp() {
        let node = format!("[node]\naddresses = [\"{}\"]", case.node(0).ip());
        let setup = case.setup().tables(&node).keys("node_port = 30080");
        let mut world = setup.weights(&[]).world();
        let answer = packet(case.protocol, case.client(2, 7), case.node(30_080), SYN | ACK);
        assert_eq!(world.send(&answer).verdict, Verdict::Pass(Pass::NotSyn));
        let opening = world.try_open(case.protocol, case.client(2, 7), case.node(30_080));
        assert_eq!(opening, Verdict::Reject(Reject::NoBackend));
    }
}

#[test]
fn a_datagram_to_a_node_port_that_a_socket_of_the_host_waits_for_opens_no_flow() {
    for case in Case::all().filter(|case| case.protocol == Protocol::Udp) {
        let mut world = node_port(case, "");
        world.host = Some(Box::new(Talker(case.client(2, 7))));
        let answer = packet(case.protocol, case.client(2, 7), case.node(30_080), 0);
        assert_eq!(world.send(&answer).verdict, Verdict::Pass(Pass::Host));
        assert!(world.engine.conntrack().is_empty());
        world.open(case.protocol, case.client(3, 7), case.node(30_080));
        // What goes to the service's own address is nobody else's.
        world.open(case.protocol, case.client(2, 7), case.service());
    }
}

#[test]
fn the_host_is_not_asked_about_packets_of_known_flows() {
    #[derive(Debug)]
    struct Silent;
    impl Host for Silent {
        fn owns(&mut self, datagram: &Tuple) -> bool {
            panic!("asked about {datagram:?}")
        }
    }
    for case in Case::all().filter(|case| case.protocol == Protocol::Udp) {
        let mut world = node_port(case, "");
        let flow = world.connect(case.protocol, case.client(2, 7), case.node(30_080));
        world.host = Some(Box::new(Silent));
        world.up(&flow, 0);
        world.down(&flow, 0);
    }
}

/// A port of the service's address that the service does not have.
fn other_port(case: Case) -> SocketAddr {
    SocketAddr::new(case.service().ip(), 81)
}

#[test]
fn a_port_of_a_service_address_that_no_service_has_is_refused_once_lbd_answers_for_the_address() {
    for case in Case::all() {
        let mut world = case.setup().world();
        let asked = packet(case.protocol, case.client(2, 7), other_port(case), SYN);
        assert_eq!(world.send(&asked).verdict, Verdict::Pass(Pass::NoMatch));
        world.engine.refuse_other_ports(HashSet::new());
        let outcome = world.send(&asked);
        assert_eq!(outcome.verdict, Verdict::Reject(Reject::NoService));
        if case.protocol == Protocol::Tcp {
            assert_eq!(
                packets::endpoints(&outcome.packet),
                (other_port(case), case.client(2, 7))
            );
            let reset = packet(case.protocol, case.client(2, 7), other_port(case), RST);
            assert_eq!(world.send(&reset).verdict, Verdict::Drop(Drop::Unanswerable));
        }
        // Neither an address that is no service's, nor one that another host has.
        let elsewhere = packet(case.protocol, case.client(2, 7), case.external(), SYN);
        assert_eq!(world.send(&elsewhere).verdict, Verdict::Pass(Pass::NoMatch));
        world.engine.refuse_other_ports([case.service().ip()].into());
        assert_eq!(world.send(&asked).verdict, Verdict::Pass(Pass::NoMatch));
    }
}

#[test]
fn other_ports_of_the_hosts_own_addresses_are_the_hosts() {
    for case in Case::all() {
        let mut world = node_port(case, "");
        world.engine.refuse_other_ports(HashSet::new());
        let verdict = world.try_open(case.protocol, case.client(2, 7), case.node(22));
        assert_eq!(verdict, Verdict::Pass(Pass::NoMatch));
    }
}
