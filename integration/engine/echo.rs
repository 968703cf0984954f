//! A service's address can be pinged.
use std::net::IpAddr;

use etherparse::{Icmpv4Type, Icmpv6Type, SlicedPacket, TransportSlice};

use lbd::policy::Mode;
use lbd::verdict::{Drop, Pass, Reject, Verdict};

use crate::packets::{self, IcmpError, addresses, icmp_error, ping};
use crate::world::{Case, World};

const PASSED: Verdict = Verdict::Pass(Pass::UntrackedProtocol);

/// Identifier, sequence number and data of an echo reply.
#[track_caller]
fn reply(packet: &[u8]) -> (u16, u16, Vec<u8>) {
    let sliced = SlicedPacket::from_ip(packet).unwrap();
    let (header, data) = if let Some(TransportSlice::Icmpv4(icmp)) = &sliced.transport
        && let Icmpv4Type::EchoReply(header) = icmp.icmp_type()
    {
        (header, icmp.payload().to_vec())
    } else if let Some(TransportSlice::Icmpv6(icmp)) = &sliced.transport
        && let Icmpv6Type::EchoReply(header) = icmp.icmp_type()
    {
        (header, icmp.payload().to_vec())
    } else {
        panic!("no echo reply: {sliced:?}");
    };
    (header.id, header.seq, data)
}

#[track_caller]
fn assert_answers(world: &mut World, client: IpAddr, address: IpAddr) {
    let outcome = world.send(&ping(client, address));
    assert_eq!(outcome.verdict, Verdict::Reject(Reject::Echo));
    assert_eq!(addresses(&outcome.packet), (address, client));
    assert_eq!(reply(&outcome.packet), (7, 1, b"ping".to_vec()));
    let hop_limit = if client.is_ipv4() { 8 } else { 7 };
    assert_eq!(outcome.packet[hop_limit], 64);
}

#[test]
fn every_address_of_a_service_answers_a_ping() {
    for case in Case::all() {
        let external = format!("external_addresses = [\"{}\"]", case.external().ip());
        let mut world = case.setup().keys(&external).world();
        for address in [case.service(), case.external()] {
            assert_answers(&mut world, case.client(2, 0).ip(), address.ip());
        }
        assert!(world.engine.conntrack().is_empty());
    }
}

#[test]
fn a_service_without_backends_is_there_too() {
    for case in Case::all() {
        let mut world = case.setup().weights(&[]).world();
        assert_answers(&mut world, case.client(2, 0).ip(), case.service().ip());
    }
}

#[test]
fn where_echo_is_off_a_ping_passes_and_a_reload_switches_it() {
    for case in Case::all() {
        let off = case.setup().tables("[icmp]\necho = false").toml();
        let mut world = World::new(&off);
        let (client, address) = (case.client(2, 0).ip(), case.service().ip());
        assert_eq!(world.send(&ping(client, address)).verdict, PASSED);
        world.reload(&case.setup().toml());
        assert_answers(&mut world, client, address);
        world.reload(&off);
        assert_eq!(world.send(&ping(client, address)).verdict, PASSED);
    }
}

#[test]
fn a_ping_to_a_backend_or_a_stranger_or_the_pool_passes() {
    for case in Case::all() {
        let mut world = case.setup().world();
        let pool = if case.v6 { "2001:2::1" } else { "198.18.0.1" }.parse().unwrap();
        for address in [case.backend(1).ip(), case.external().ip(), pool] {
            assert_eq!(world.send(&ping(case.client(2, 0).ip(), address)).verdict, PASSED);
        }
    }
}

#[test]
fn a_ping_to_this_hosts_own_address_is_the_kernels_whatever_service_is_there() {
    for case in Case::all() {
        let node = format!("[node]\naddresses = [\"{}\"]", case.node(0).ip());
        let mut world = case.setup().tables(&node).keys("node_port = 30080").world();
        let own = ping(case.client(2, 0).ip(), case.node(0).ip());
        assert_eq!(world.send(&own).verdict, PASSED);
    }
}

#[test]
fn an_address_answers_as_long_as_it_is_a_services() {
    for case in Case::all() {
        let (client, address) = (case.client(2, 0).ip(), case.service().ip());
        let mut world = case.setup().world();
        assert_answers(&mut world, client, address);
        world.reload(&format!("mode = \"{}\"", case.mode.name()));
        assert_eq!(world.send(&ping(client, address)).verdict, PASSED);
        world.reload(&case.setup().toml());
        assert_answers(&mut world, client, address);
    }
}

#[test]
fn rules_of_the_operator_come_first() {
    for (action, verdict) in [
        ("drop", Verdict::Drop(Drop::Rule)),
        ("pass", Verdict::Pass(Pass::Rule)),
        ("reject", Verdict::Reject(Reject::Rule)),
    ] {
        let case = Case::TCP.in_mode(Mode::Iptables);
        let rule = format!("[[rules]]\nsource = \"10.1.0.3\"\naction = \"{action}\"");
        let mut world = case.setup().tables(&rule).world();
        let address = case.service().ip();
        assert_eq!(world.send(&ping(case.client(3, 0).ip(), address)).verdict, verdict);
        assert_answers(&mut world, case.client(2, 0).ip(), address);
    }
}

#[test]
fn a_reply_or_an_error_or_half_a_request_is_never_answered() {
    for case in Case::all() {
        let mut world = case.setup().world();
        let (client, address) = (case.client(2, 0).ip(), case.service().ip());
        let request = ping(client, address);
        let answer = world.send(&request).packet;
        assert_eq!(world.send(&answer).verdict, PASSED, "a reply");
        let error = icmp_error(client, IcmpError::PortUnreachable, &answer);
        assert_eq!(world.send(&error).verdict, PASSED, "an error");
        let header = if case.v6 { 40 } else { 20 };
        for length in [header, header + 1, header + 7] {
            let mut short = request[..length].to_vec();
            match case.v6 {
                true => short[5] = (length - header) as u8,
                false => short[3] = length as u8,
            }
            let verdict = world.send_as(&short, lbd::packet::frame::Checksum::Complete).verdict;
            assert_eq!(verdict, PASSED, "{length} bytes");
        }
    }
}

#[test]
fn a_fragment_of_a_request_is_not_answered() {
    let case = Case::TCP;
    let mut world = case.setup().world();
    let mut fragment = ping(case.client(2, 0).ip(), case.service().ip());
    fragment[6..8].copy_from_slice(&0x2000_u16.to_be_bytes());
    let outcome = world.send_as(&fragment, lbd::packet::frame::Checksum::Complete);
    assert!(!matches!(outcome.verdict, Verdict::Reject(_)), "{:?}", outcome.verdict);
}

#[test]
fn nobody_answers_a_request_from_an_address_that_is_no_single_hosts() {
    let mut world = Case::TCP.setup().world();
    for from in ["255.255.255.255", "0.0.0.0", "224.0.0.1"] {
        let request = ping(from.parse().unwrap(), Case::TCP.service().ip());
        assert_eq!(world.send(&request).verdict, Verdict::Drop(Drop::Unanswerable));
    }
}

#[test]
fn options_and_extension_headers_of_a_request_are_not_sent_back() {
    for case in [Case::TCP, Case { v6: true, ..Case::TCP }] {
        let mut world = case.setup().world();
        let (client, address) = (case.client(2, 0).ip(), case.service().ip());
        let mut request = ping(client, address);
        if case.v6 {
            // Destination options of padding.
            request.splice(40..40, [58, 0, 1, 4, 0, 0, 0, 0]);
            request[6] = 60;
            request[5] += 8;
        } else {
            request.splice(20..20, [1, 1, 1, 0]);
            request[0] = 0x46;
            request[3] += 4;
            let sum: u32 = [0x0100 + 1, 0x0004, 0x0100].iter().sum();
            let old = u32::from(!u16::from_be_bytes([request[10], request[11]]));
            let mut new = old + sum + 0x0101 - 1;
            while new > 0xffff {
                new = (new & 0xffff) + (new >> 16);
            }
            request[10..12].copy_from_slice(&(!(new as u16)).to_be_bytes());
        }
        let outcome = world.send_as(&request, lbd::packet::frame::Checksum::Complete);
        assert_eq!(outcome.verdict, Verdict::Reject(Reject::Echo));
        packets::assert_valid(&outcome.packet);
        assert_eq!(reply(&outcome.packet), (7, 1, b"ping".to_vec()));
    }
}
