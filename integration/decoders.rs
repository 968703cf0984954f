//! What lbd sends, seen by a decoder that shares no code with lbd or its tests: tshark checks every checksum.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test fails by panicking and says on stdout why it was skipped"
)]

use lbd_testkit::captures;
use lbd_testkit::packets;
#[path = "support/world.rs"]
mod world;

use std::net::{IpAddr, SocketAddr};
use std::process::Command;

use lbd::flow::Protocol;
use lbd::verdict::Verdict;
use packets::{ACK, IcmpError, SYN};
use world::{Case, Flow, World, chunk_type, packet};

/// tshark marks a checksum that it could not check, or that is wrong, by another status than 1 ("Good").
const GOOD: &str = "1";

/// Where the checksums of packets of these kinds are told.
const STATUS: [&str; 6] = [
    "ip.checksum.status",
    "tcp.checksum.status",
    "udp.checksum.status",
    "sctp.checksum.status",
    "icmp.checksum.status",
    "icmpv6.checksum.status",
];

/// What tshark says about one packet.
struct Seen {
    /// The layers, outermost first: `raw:ip:tcp`.
    layers: String,
    /// Source and destination address of the outermost IP header.
    addresses: (IpAddr, IpAddr),
    /// All that [`STATUS`] says, the outer first.
    statuses: Vec<String>,
    /// "Malformed packet", "bad checksum" and the like.
    complaints: String,
}

fn tshark(packets: &[Vec<u8>]) -> Option<Vec<Seen>> {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("out.pcap");
    let timed: Vec<captures::Timed> = (1..).zip(packets.iter().cloned()).collect();
    std::fs::write(&file, captures::raw_pcap(&timed)).unwrap();
    let mut command = Command::new("tshark");
    command
        .arg("-r")
        .arg(&file)
        .args(["-n", "-T", "fields", "-E", "separator=|"]);
    for option in [
        "ip.check_checksum:TRUE",
        "tcp.check_checksum:TRUE",
        "udp.check_checksum:TRUE",
        "sctp.checksum:CRC 32C",
        "ip.defragment:FALSE",
    ] {
        command.args(["-o", option]);
    }
    for field in [
        "frame.protocols",
        "ip.src",
        "ip.dst",
        "ipv6.src",
        "ipv6.dst",
        "_ws.malformed",
    ] {
        command.args(["-e", field]);
    }
    for field in STATUS {
        command.args(["-e", field]);
    }
    let output = match command.output() {
        Ok(output) => output,
        Err(error) => {
            println!("skipped: {}: no tshark here: {error}", name());
            return None;
        }
    };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    Some(text.lines().map(seen).collect())
}

fn name() -> String {
    std::thread::current().name().unwrap_or("a test").to_owned()
}

fn seen(line: &str) -> Seen {
    let fields: Vec<&str> = line.split('|').collect();
    let [layers, from4, to4, from6, to6, complaints, statuses @ ..] = fields.as_slice() else {
        panic!("tshark says {line:?}");
    };
    // An error's quotation has addresses as well.
    let outer = |v4: &str, v6: &str| [v4, v6].concat().split(',').next().unwrap().parse().unwrap();
    Seen {
        layers: (*layers).to_owned(),
        addresses: (outer(from4, from6), outer(to4, to6)),
        statuses: statuses
            .iter()
            .flat_map(|all| all.split(','))
            .filter(|status| !status.is_empty())
            .map(str::to_owned)
            .collect(),
        complaints: (*complaints).to_owned(),
    }
}

/// A packet that lbd sent, where to, and how many checksums it has.
struct Sent {
    what: String,
    packet: Vec<u8>,
    addresses: (IpAddr, IpAddr),
    checksums: usize,
}

#[track_caller]
fn assert_good(all: &[Sent]) {
    let packets: Vec<Vec<u8>> = all.iter().map(|sent| sent.packet.clone()).collect();
    let Some(seen) = tshark(&packets) else { return };
    assert_eq!(seen.len(), all.len());
    for (sent, seen) in all.iter().zip(seen) {
        let Sent { what, checksums, .. } = sent;
        assert_eq!(seen.addresses, sent.addresses, "{what}: {}", seen.layers);
        assert_eq!(seen.complaints, "", "{what}: {}", seen.layers);
        assert_eq!(seen.statuses, vec![GOOD; *checksums], "{what}: {}", seen.layers);
    }
}

const MASQUERADE: [&str; 2] = ["[nat]\nmasquerade = \"never\"", "[nat]\nmasquerade = \"always\""];
const PAYLOADS: [&[u8]; 3] = [b"", b"odd", &[0xff; 1_000]];

fn content(protocol: Protocol, from: SocketAddr, to: SocketAddr, payload: &[u8]) -> Vec<u8> {
    match protocol {
        Protocol::Tcp => packets::tcp(from, to, ACK, 1_000, 7_000, payload),
        Protocol::Udp => packets::udp(from, to, payload),
        Protocol::Sctp => packets::sctp_of(from, to, &packets::chunk(chunk_type(ACK), payload)),
    }
}

/// The IPv4 header's checksum and the transport's; IPv6 has none of its own.
fn checksums(case: Case) -> usize {
    1 + usize::from(!case.v6)
}

fn sent(world: &mut World, what: &str, case: Case, packet: &[u8], to: (IpAddr, IpAddr), checksums: usize) -> Sent {
    let outcome = world.send(packet);
    assert!(
        matches!(outcome.verdict, Verdict::Forward | Verdict::Reject(_)),
        "{what}"
    );
    Sent {
        what: format!("{what}, {case:?}"),
        packet: outcome.packet,
        addresses: to,
        checksums,
    }
}

fn each_flow(mut visit: impl FnMut(Case, &mut World, &Flow)) {
    for case in Case::all() {
        for masquerade in MASQUERADE {
            let mut world = case.setup().tables(masquerade).world();
            let flow = world.connect(case.protocol, case.client(1, 40_000), case.service());
            visit(case, &mut world, &flow);
        }
    }
}

#[test]
fn packets_of_every_protocol_go_to_the_backend_and_back_to_the_client_with_right_checksums() {
    let mut all = Vec::new();
    each_flow(|case, world, flow| {
        for payload in PAYLOADS {
            let up = content(case.protocol, flow.client, flow.service, payload);
            let to = (flow.source.ip(), flow.backend.ip());
            all.push(sent(world, "to the backend", case, &up, to, checksums(case)));
            let down = content(case.protocol, flow.backend, flow.source, payload);
            let to = (flow.service.ip(), flow.client.ip());
            all.push(sent(world, "to the client", case, &down, to, checksums(case)));
        }
    });
    assert_good(&all);
}

#[test]
fn a_packet_with_ipv4_options_or_ipv6_extension_headers_is_rewritten_behind_them_with_right_checksums() {
    let mut all = Vec::new();
    each_flow(|case, world, flow| {
        let plain = content(case.protocol, flow.client, flow.service, b"behind");
        let to = (flow.source.ip(), flow.backend.ip());
        all.push(sent(world, "extended", case, &extended(plain), to, checksums(case)));
    });
    assert_good(&all);
}

/// With a router alert (RFC 2113) and a no-operation, or with destination options of nothing but padding (RFC 8200).
fn extended(mut packet: Vec<u8>) -> Vec<u8> {
    if packet[0] >> 4 == 6 {
        let next = std::mem::replace(&mut packet[6], 60);
        packet.splice(40..40, [next, 0, 1, 4, 0, 0, 0, 0]);
        let length = u16::try_from(packet.len() - 40).unwrap();
        packet[4..6].copy_from_slice(&length.to_be_bytes());
        return packet;
    }
    packet[0] += 2;
    packet.splice(20..20, [0x94, 4, 0, 0, 1, 1, 1, 1]);
    let length = u16::try_from(packet.len()).unwrap();
    packet[2..4].copy_from_slice(&length.to_be_bytes());
    packet[10..12].fill(0);
    let words = packet[..28]
        .chunks(2)
        .map(|word| u32::from(word[0]) << 8 | u32::from(word[1]));
    let sum: u32 = words.sum();
    let check = !(((sum & 0xffff) + (sum >> 16)) as u16);
    packet[10..12].copy_from_slice(&check.to_be_bytes());
    packet
}

#[test]
fn an_icmp_error_about_a_flow_has_right_checksums_outside_and_in_what_it_quotes() {
    let mut all = Vec::new();
    each_flow(|case, world, flow| {
        let router: IpAddr = if case.v6 { "2001:db8::1" } else { "192.0.2.1" }.parse().unwrap();
        let reached = world
            .send(&packet(case.protocol, flow.client, flow.service, ACK))
            .packet;
        let answered = world
            .send(&packet(case.protocol, flow.backend, flow.source, ACK))
            .packet;
        let hidden = flow.source.ip() != flow.client.ip();
        for error in [IcmpError::PortUnreachable, IcmpError::TooBig { mtu: 1_280 }] {
            let about = packets::icmp_error(router, error, &reached);
            let to = (flow.service.ip(), flow.client.ip());
            // IPv4: of the IP header, the message, the quoted header and what that carries; IPv6 has no header checksums.
            let count = 2 * checksums(case);
            all.push(sent(world, "to the client", case, &about, to, count));
            let about = packets::icmp_error(router, error, &answered);
            let from = if hidden { flow.source.ip() } else { router };
            all.push(sent(
                world,
                "to the backend",
                case,
                &about,
                (from, flow.backend.ip()),
                count,
            ));
        }
    });
    assert_good(&all);
}

#[test]
fn lbds_own_answers_have_right_checksums() {
    let mut all = Vec::new();
    for case in Case::all() {
        let mut world = case.setup().backends(&[]).world();
        let (client, service) = (case.client(1, 40_000), case.service());
        let first = packet(case.protocol, client, service, SYN);
        let count = match case.protocol {
            Protocol::Tcp => checksums(case),
            // An ICMP error, which quotes the packet.
            Protocol::Udp | Protocol::Sctp => 2 * checksums(case),
        };
        all.push(sent(
            &mut world,
            "refused",
            case,
            &first,
            (service.ip(), client.ip()),
            count,
        ));
    }
    assert_good(&all);
}

#[test]
fn a_wrong_checksum_would_be_seen() {
    let mut wrong = packets::udp("10.1.0.1:1", "10.2.0.1:2", b"hello");
    let last = wrong.len() - 1;
    wrong[last] ^= 1;
    if let Some(seen) = tshark(&[wrong]) {
        assert_eq!(seen[0].statuses, [GOOD, "0"]);
    }
}
