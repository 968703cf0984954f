//! What is lbd's and what is the kernel's.
use std::net::IpAddr;

use lbd::flow::Protocol::{Sctp, Tcp, Udp};
use lbd::flow::{Protocol, Tuple};

use crate::frames::{
    authentication, destination_options, fragment_v4, fragment_v6, hop_by_hop, sent_to, solicitation, who_has,
    with_extensions, with_options,
};
use crate::lab::{Lab, Wish, lab};
use crate::packets::{self, IcmpError, ethernet, icmp_error, ping, syn, tcp, udp};

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn ack(source: &str, destination: &str) -> Vec<u8> {
    tcp(source, destination, packets::ACK, 1, 1, b"data")
}

fn tuple(protocol: Protocol, source: &str, destination: &str) -> Tuple {
    Tuple {
        protocol,
        source: source.parse().unwrap(),
        destination: destination.parse().unwrap(),
    }
}

fn every_kind() -> Wish {
    Wish::default()
        .route("10.96.0.10/32")
        .route("198.18.0.0/28")
        .route("fd00:96::10/128")
        .local_port(Tcp, "192.0.2.1:30080")
        .backend(Tcp, "10.2.0.11:8080")
        .backend(Tcp, "[fd00:2::11]:8080")
        .rule(Udp, "10.3.0.0/16", (53, 54))
        .masquerade("192.0.2.1", 50_000..=50_999)
        .announce("10.96.0.10")
        .announce("fd00:96::10")
}

#[test]
fn ssh_to_the_host_is_left_to_the_kernel() {
    lab(
        "judgement::ssh_to_the_host_is_left_to_the_kernel",
        &every_kind(),
        |lab| {
            assert!(!lab.takes(&syn("10.1.0.2:40000", "192.0.2.1:22")));
            assert!(!lab.takes(&syn("[fd00:1::2]:40000", "[fd00:1::1]:22")));
            assert!(!lab.takes(&ping(address("10.1.0.2"), address("192.0.2.1"))));
            let counters = lab.filter.counters().unwrap();
            assert_eq!((counters.passed, counters.taken()), (3, 0));
        },
    );
}

#[test]
fn whatever_goes_to_a_service_address_is_taken() {
    lab(
        "judgement::whatever_goes_to_a_service_address_is_taken",
        &every_kind(),
        |lab| {
            assert!(lab.takes(&syn("10.1.0.2:40000", "10.96.0.10:80")));
            assert!(lab.takes(&udp("10.1.0.2:40000", "10.96.0.10:9", b"")));
            assert!(lab.takes(&ping(address("10.1.0.2"), address("10.96.0.10"))));
            assert!(lab.takes(&syn("[fd00:1::2]:40000", "[fd00:96::10]:80")));
            assert!(lab.takes(&ping(address("fd00:1::2"), address("fd00:96::10"))));
            let later = fragment_v4(&udp("10.1.0.2:40000", "10.96.0.10:9", b"12345678"), 7, 100, false);
            assert!(lab.takes(&later));
            assert!(!lab.takes(&syn("10.1.0.2:40000", "10.96.0.11:80")));
            assert_eq!(lab.filter.counters().unwrap().routes, 6);
        },
    );
}

#[test]
fn every_address_of_a_pool_is_taken() {
    lab("judgement::every_address_of_a_pool_is_taken", &every_kind(), |lab| {
        assert!(lab.takes(&ack("10.2.0.99:80", "198.18.0.15:1024")));
        assert!(!lab.takes(&ack("10.2.0.99:80", "198.18.0.16:1024")));
    });
}

#[test]
fn of_an_address_of_the_host_only_the_node_port_is_taken() {
    lab(
        "judgement::of_an_address_of_the_host_only_the_node_port_is_taken",
        &every_kind(),
        |lab| {
            assert!(lab.takes(&syn("10.1.0.2:40000", "192.0.2.1:30080")));
            assert!(!lab.takes(&udp("10.1.0.2:40000", "192.0.2.1:30080", b"")));
            assert!(!lab.takes(&syn("10.1.0.2:40000", "192.0.2.2:30080")));
            assert_eq!(lab.filter.counters().unwrap().local_ports, 1);
        },
    );
}

#[test]
fn port_0_stands_for_all_ports_of_the_protocol() {
    let wish = Wish::default()
        .local_port(Sctp, "192.0.2.1:0")
        .backend(Udp, "10.2.0.11:0");
    lab("judgement::port_0_stands_for_all_ports_of_the_protocol", &wish, |lab| {
        assert!(lab.takes(&packets::sctp("10.1.0.2:40000", "192.0.2.1:5000", 1)));
        assert!(!lab.takes(&syn("10.1.0.2:40000", "192.0.2.1:5000")));
        assert!(lab.takes(&udp("10.2.0.11:9999", "10.1.0.2:40000", b"")));
        assert!(!lab.takes(&ack("10.2.0.11:9999", "10.1.0.2:40000")));
    });
}

#[test]
fn what_a_backend_answers_is_taken() {
    lab("judgement::what_a_backend_answers_is_taken", &every_kind(), |lab| {
        assert!(lab.takes(&ack("10.2.0.11:8080", "10.1.0.2:40000")));
        assert!(lab.takes(&ack("[fd00:2::11]:8080", "[fd00:1::2]:40000")));
        assert!(!lab.takes(&ack("10.2.0.11:22", "10.1.0.2:40000")));
        assert!(!lab.takes(&udp("10.2.0.11:8080", "10.1.0.2:40000", b"")));
        assert_eq!(lab.filter.counters().unwrap().replies, 2);
    });
}

#[test]
fn a_direct_flow_of_a_backend_is_left_to_the_kernel_once_it_is_passed() {
    let name = "judgement::a_direct_flow_of_a_backend_is_left_to_the_kernel_once_it_is_passed";
    lab(name, &every_kind(), |lab| {
        let direct = ack("10.2.0.11:8080", "10.1.0.2:40000");
        assert!(lab.takes(&direct));
        let passed = tuple(Tcp, "10.2.0.11:8080", "10.1.0.2:40000");
        lab.filter.kernel_path().remember_passed(&passed).unwrap();
        assert!(!lab.takes(&direct));
        assert!(lab.takes(&ack("10.2.0.11:8080", "10.1.0.2:40001")), "another flow");
        assert_eq!(lab.filter.counters().unwrap().passed_flows, 1);
    });
}

#[test]
fn a_passed_flow_is_looked_at_again_after_a_second() {
    let name = "judgement::a_passed_flow_is_looked_at_again_after_a_second";
    lab(name, &every_kind(), |lab| {
        let passed = tuple(Udp, "10.1.0.2:40000", "10.3.0.1:53");
        lab.filter.kernel_path().remember_passed(&passed).unwrap();
        let query = udp("10.1.0.2:40000", "10.3.0.1:53", b"");
        assert!(!lab.takes(&query));
        while !lab.takes(&query) {
            std::thread::yield_now();
        }
    });
}

#[test]
fn answers_of_a_new_flow_are_taken_although_a_straggler_of_the_one_before_was_passed() {
    let name = "judgement::answers_of_a_new_flow_are_taken_although_a_straggler_of_the_one_before_was_passed";
    lab(name, &every_kind(), |lab| {
        let answer = ack("10.2.0.11:8080", "10.1.0.2:40000");
        let answers = tuple(Tcp, "10.2.0.11:8080", "10.1.0.2:40000");
        let path = lab.filter.kernel_path();
        path.remember_passed(&answers).unwrap();
        assert!(!lab.takes(&answer));
        path.forget_passed(&answers).unwrap();
        assert!(lab.takes(&answer));
        // Another worker, which found no flow before it was opened, says so only now.
        path.remember_passed(&answers).unwrap();
        assert!(lab.takes(&answer));
    });
}

#[test]
fn with_another_configuration_passed_flows_are_looked_at_again() {
    let name = "judgement::with_another_configuration_passed_flows_are_looked_at_again";
    lab(name, &every_kind(), |mut lab| {
        let direct = ack("10.2.0.11:8080", "10.1.0.2:40000");
        let passed = tuple(Tcp, "10.2.0.11:8080", "10.1.0.2:40000");
        lab.filter.kernel_path().remember_passed(&passed).unwrap();
        assert!(!lab.takes(&direct));
        lab.filter.set_interest(every_kind().interest()).unwrap();
        assert!(lab.takes(&direct));
        lab.filter.kernel_path().remember_passed(&passed).unwrap();
        assert!(!lab.takes(&direct));
    });
}

#[test]
fn the_destination_of_a_rule_is_taken_with_its_ports() {
    let wish = every_kind().rule(Udp, "10.3.1.0/24", (5353, 5353));
    let name = "judgement::the_destination_of_a_rule_is_taken_with_its_ports";
    lab(name, &wish, |lab| {
        let query = |to: &str| lab.takes(&udp("10.1.0.2:40000", to, b""));
        assert!(query("10.3.0.1:53") && query("10.3.0.1:54"));
        assert!(!query("10.3.0.1:55") && !query("10.4.0.1:53"));
        assert!(
            query("10.3.1.1:53") && query("10.3.1.1:5353"),
            "the wider rule holds too"
        );
        assert!(!lab.takes(&syn("10.1.0.2:40000", "10.3.0.1:53")));
    });
}

#[test]
fn a_rule_for_all_of_ipv6_takes_nothing_of_ipv4() {
    let wish = Wish::default().rule(Tcp, "::/0", (1, 65_535));
    lab(
        "judgement::a_rule_for_all_of_ipv6_takes_nothing_of_ipv4",
        &wish,
        |lab| {
            assert!(lab.takes(&syn("[fd00:1::2]:40000", "[fd00:1::1]:22")));
            assert!(!lab.takes(&syn("10.1.0.2:40000", "192.0.2.1:22")));
        },
    );
}

#[test]
fn answers_to_a_masqueraded_port_of_the_host_are_taken() {
    let name = "judgement::answers_to_a_masqueraded_port_of_the_host_are_taken";
    lab(name, &every_kind(), |lab| {
        assert!(lab.takes(&ack("10.2.0.99:80", "192.0.2.1:50999")));
        assert!(lab.takes(&packets::sctp("10.2.0.99:80", "192.0.2.1:50000", 2)));
        assert!(!lab.takes(&ack("10.2.0.99:80", "192.0.2.1:51000")));
        assert_eq!(lab.filter.counters().unwrap().covers, 2);
    });
}

fn unreachable(router: &str, about: &[u8]) -> Vec<u8> {
    icmp_error(address(router), IcmpError::PortUnreachable, about)
}

#[test]
fn an_icmp_error_goes_where_the_packet_that_it_is_about_came_from() {
    let name = "judgement::an_icmp_error_goes_where_the_packet_that_it_is_about_came_from";
    lab(name, &every_kind(), |lab| {
        let to_backend = syn("10.1.0.2:40000", "10.2.0.11:8080");
        assert!(lab.takes(&unreachable("10.2.0.11", &to_backend)));
        let masqueraded = syn("192.0.2.1:50000", "10.2.0.99:80");
        assert!(lab.takes(&unreachable("10.2.0.254", &masqueraded)));
        let from_node_port = ack("192.0.2.1:30080", "10.1.0.2:40000");
        let expired = icmp_error(address("10.1.0.254"), IcmpError::TimeExceeded, &from_node_port);
        assert!(lab.takes(&expired));
        let to_backend = ack("[fd00:1::2]:40000", "[fd00:2::11]:8080");
        let too_big = icmp_error(address("fd00:2::1"), IcmpError::TooBig { mtu: 1_280 }, &to_backend);
        assert!(lab.takes(&too_big));
        assert_eq!(lab.filter.counters().unwrap().errors, 4);
    });
}

#[test]
fn an_icmp_error_about_a_flow_of_the_host_is_left_to_the_kernel() {
    let name = "judgement::an_icmp_error_about_a_flow_of_the_host_is_left_to_the_kernel";
    lab(name, &every_kind(), |lab| {
        let own = syn("192.0.2.1:33333", "10.9.0.1:443");
        assert!(!lab.takes(&unreachable("10.9.0.254", &own)));
        let own = syn("[fd00:1::1]:33333", "[fd00:9::1]:443");
        assert!(!lab.takes(&unreachable("fd00:9::fe", &own)));
        let answer = ack("10.2.0.11:8080", "10.9.0.1:443");
        assert!(!lab.takes(&unreachable("10.9.0.254", &answer)), "the backend's own");
    });
}

/// Only the first one of a datagram has ports, and it may come last.
#[test]
fn every_fragment_to_where_lbd_listens_is_taken_in_whatever_order_and_whatever_its_ports() {
    let name = "judgement::every_fragment_to_where_lbd_listens_is_taken_in_whatever_order_and_whatever_its_ports";
    lab(name, &every_kind(), |lab| {
        for port in [30080, 22] {
            let whole = tcp(
                "10.1.0.2:40000",
                format!("192.0.2.1:{port}"),
                packets::ACK,
                1,
                1,
                &[0; 64],
            );
            assert!(lab.takes(&fragment_v4(&whole, 7, 100, false)));
            assert!(lab.takes(&fragment_v4(&whole, 7, 0, true)));
        }
        let by_rule = udp("10.1.0.2:40000", "10.3.0.1:9", &[0; 64]);
        assert!(lab.takes(&fragment_v4(&by_rule, 7, 100, false)));
        assert!(lab.takes(&fragment_v4(&by_rule, 7, 0, true)));
        assert_eq!(lab.filter.counters().unwrap().fragments, 6);
    });
}

#[test]
fn fragments_of_other_hosts_and_protocols_are_left_to_the_kernel() {
    let name = "judgement::fragments_of_other_hosts_and_protocols_are_left_to_the_kernel";
    lab(name, &every_kind(), |lab| {
        let elsewhere = udp("10.1.0.2:40000", "192.0.2.2:53", &[0; 64]);
        let another_protocol = udp("10.2.0.11:8080", "10.1.0.2:40000", &[0; 64]);
        let ping = ping(address("10.2.0.11"), address("10.1.0.2"));
        for whole in [elsewhere, another_protocol, ping] {
            assert!(!lab.takes(&fragment_v4(&whole, 7, 0, true)));
            assert!(!lab.takes(&fragment_v4(&whole, 7, 100, false)));
        }
    });
}

/// As over TUN: lbd gives back what is of no flow of its.
#[test]
fn every_fragment_of_a_host_of_backends_is_taken_even_of_a_flow_that_was_passed() {
    let name = "judgement::every_fragment_of_a_host_of_backends_is_taken_even_of_a_flow_that_was_passed";
    lab(name, &every_kind(), |lab| {
        let answer = ("10.2.0.11:8080", "10.1.0.2:40000");
        let passed = tuple(Tcp, answer.0, answer.1);
        lab.filter.kernel_path().remember_passed(&passed).unwrap();
        assert!(!lab.takes(&ack(answer.0, answer.1)));
        for port in [8080, 2049] {
            let whole = tcp(format!("10.2.0.11:{port}"), answer.1, packets::ACK, 1, 1, &[0; 64]);
            assert!(lab.takes(&fragment_v4(&whole, 7, 0, true)));
            assert!(lab.takes(&fragment_v4(&whole, 7, 100, false)));
        }
    });
}

#[test]
fn ipv6_fragments_are_known_by_their_fragment_header() {
    let name = "judgement::ipv6_fragments_are_known_by_their_fragment_header";
    lab(name, &every_kind().local_port(Tcp, "[fd00::1]:30080"), |lab| {
        let part = |whole: &[u8], offset, more| with_extensions(whole, &[hop_by_hop(), fragment_v6(7, offset, more)]);
        let request = ack("[fd00:1::2]:40000", "[fd00::1]:30080");
        let answer = ack("[fd00:2::11]:8080", "[fd00:1::2]:40000");
        for whole in [request, answer] {
            assert!(lab.takes(&part(&whole, 100, false)));
            assert!(lab.takes(&part(&whole, 0, true)));
            assert!(lab.takes(&part(&whole, 0, false)), "an atomic fragment (RFC 6946)");
        }
        let other = ack("[fd00:1::2]:40000", "[fd00::2]:30080");
        assert!(!lab.takes(&part(&other, 100, false)));
        assert_eq!(lab.filter.counters().unwrap().fragments, 4);
    });
}

#[test]
fn vlan_tags_are_looked_behind() {
    lab("judgement::vlan_tags_are_looked_behind", &every_kind(), |lab| {
        let to_service = syn("10.1.0.2:40000", "10.96.0.10:80");
        assert!(lab.takes_frame(&ethernet(&to_service, &[5])));
        assert!(lab.takes_frame(&ethernet(&to_service, &[5, 6])));
        assert!(!lab.takes_frame(&ethernet(&to_service, &[5, 6, 7])));
        let to_host = syn("10.1.0.2:40000", "192.0.2.1:22");
        assert!(!lab.takes_frame(&ethernet(&to_host, &[5, 6])));
    });
}

#[test]
fn ipv4_options_are_skipped() {
    lab("judgement::ipv4_options_are_skipped", &every_kind(), |lab| {
        for words in 1..=10 {
            let reply = ack("10.2.0.11:8080", "10.1.0.2:40000");
            assert!(lab.takes(&with_options(&reply, words)));
            let other = ack("10.2.0.11:22", "10.1.0.2:40000");
            assert!(!lab.takes(&with_options(&other, words)));
        }
    });
}

#[test]
fn up_to_six_ipv6_extension_headers_are_skipped() {
    let name = "judgement::up_to_six_ipv6_extension_headers_are_skipped";
    lab(name, &every_kind(), |lab| {
        let reply = ack("[fd00:2::11]:8080", "[fd00:1::2]:40000");
        let chain = [
            hop_by_hop(),
            destination_options(),
            (43, vec![0, 0, 0, 0, 0, 0, 0]),
            authentication(),
            destination_options(),
            hop_by_hop(),
            hop_by_hop(),
        ];
        for length in 1..=6 {
            assert!(lab.takes(&with_extensions(&reply, &chain[..length])), "{length}");
        }
        assert!(!lab.takes(&with_extensions(&reply, &chain)));
    });
}

#[test]
fn an_arp_request_for_an_announced_address_is_taken() {
    let name = "judgement::an_arp_request_for_an_announced_address_is_taken";
    lab(name, &every_kind(), |lab| {
        let request = who_has("10.96.0.10".parse().unwrap());
        assert!(lab.takes_frame(&request));
        let mut reply = request;
        reply[21] = 2;
        assert!(!lab.takes_frame(&reply));
        assert!(!lab.takes_frame(&who_has("192.0.2.1".parse().unwrap())));
        assert_eq!(lab.filter.counters().unwrap().neighbours, 1);
    });
}

#[test]
fn a_neighbour_solicitation_for_an_announced_address_is_taken() {
    let name = "judgement::a_neighbour_solicitation_for_an_announced_address_is_taken";
    lab(name, &every_kind(), |lab| {
        assert!(lab.takes_frame(&solicitation("fd00:96::10".parse().unwrap())));
        assert!(!lab.takes_frame(&solicitation("fd00:96::11".parse().unwrap())));
        assert_eq!(lab.filter.counters().unwrap().neighbours, 1);
    });
}

#[test]
fn frames_to_another_host_are_left_alone() {
    lab(
        "judgement::frames_to_another_host_are_left_alone",
        &every_kind(),
        |lab| {
            let flooded = ethernet(&syn("10.1.0.2:40000", "10.96.0.10:80"), &[]);
            assert!(!lab.takes_frame(&sent_to(&flooded, [2, 0, 0, 0, 0, 9])));
            assert_eq!(lab.filter.counters().unwrap().foreign, 1);
            lab.filter
                .set_hardware_address(crate::lab::LO, [2, 0, 0, 0, 0, 9])
                .unwrap();
            assert!(lab.takes_frame(&sent_to(&flooded, [2, 0, 0, 0, 0, 9])));
        },
    );
}

#[test]
fn of_broadcast_frames_only_those_to_a_service_are_taken() {
    let wish = every_kind().rule(Udp, "0.0.0.0/0", (1, 65_535));
    let name = "judgement::of_broadcast_frames_only_those_to_a_service_are_taken";
    lab(name, &wish, |lab| {
        let dhcp = ethernet(&udp("0.0.0.0:68", "255.255.255.255:67", b""), &[]);
        assert!(!lab.takes_frame(&sent_to(&dhcp, [0xff; 6])));
        let to_service = ethernet(&udp("10.1.0.2:40000", "10.96.0.10:53", b""), &[]);
        assert!(lab.takes_frame(&sent_to(&to_service, [1, 0, 0x5e, 0, 0, 1])));
    });
}

#[test]
fn a_removed_service_is_left_to_the_kernel() {
    lab(
        "judgement::a_removed_service_is_left_to_the_kernel",
        &every_kind(),
        |mut lab| {
            let packets = [
                syn("10.1.0.2:40000", "10.96.0.10:80"),
                syn("10.1.0.2:40000", "192.0.2.1:30080"),
                ack("10.2.0.11:8080", "10.1.0.2:40000"),
                udp("10.1.0.2:40000", "10.3.0.1:53", b""),
                ack("10.2.0.99:80", "198.18.0.15:1024"),
            ];
            assert!(packets.iter().all(|packet| lab.takes(packet)));
            // Something of each kind stays, so that no map is just not looked at.
            let other = Wish::default()
                .route("10.96.0.11/32")
                .route("198.19.0.0/28")
                .local_port(Tcp, "192.0.2.1:30081")
                .backend(Tcp, "10.2.0.12:8080")
                .rule(Udp, "10.4.0.0/16", (53, 53));
            lab.filter.set_interest(other.interest()).unwrap();
            assert!(!packets.iter().any(|packet| lab.takes(packet)));
            assert!(lab.takes(&syn("10.1.0.2:40000", "10.96.0.11:80")));
        },
    );
}

#[test]
fn every_frame_is_counted_once_however_short_it_is() {
    let name = "judgement::every_frame_is_counted_once_however_short_it_is";
    lab(name, &every_kind(), |lab| {
        let about = ack("[fd00:1::2]:40000", "[fd00:2::11]:8080");
        let reply = ack("[fd00:2::11]:8080", "[fd00:1::2]:40000");
        let frames = [
            ethernet(
                &icmp_error(
                    address("10.2.0.1"),
                    IcmpError::TimeExceeded,
                    &syn("10.1.0.2:4", "10.2.0.11:8080"),
                ),
                &[5, 6],
            ),
            ethernet(
                &icmp_error(address("fd00:2::1"), IcmpError::HostUnreachable, &about),
                &[5],
            ),
            ethernet(
                &with_extensions(&reply, &[hop_by_hop(), authentication(), destination_options()]),
                &[],
            ),
            who_has("10.96.0.10".parse().unwrap()),
            solicitation("fd00:96::10".parse().unwrap()),
        ];
        let judged: u64 = frames.iter().map(|frame| judge_every_length(&lab, frame)).sum();
        let counters = lab.filter.counters().unwrap();
        assert_eq!(counters.taken() + counters.passed, judged);
    });
}

/// Cut after each of its bytes; the kernel takes none below an Ethernet header.
fn judge_every_length(lab: &Lab, frame: &[u8]) -> u64 {
    assert!(lab.takes_frame(frame));
    let short = (14..frame.len()).map(|length| lab.takes_frame(&frame[..length]));
    1 + short.count() as u64
}
