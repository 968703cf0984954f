//! What holds for every packet, whatever its bytes.
use std::net::{IpAddr, SocketAddr};

use etherparse::{IpHeaders, IpNumber, PacketBuilder, PacketBuilderStep};
use proptest::prelude::*;

use lbd::flow::{Key, Protocol};
use lbd::packet::Headers;
use lbd::packet::frame::{Checksum, Frame};
use lbd::policy::Mode;
use lbd::rewrite;
use lbd::verdict::Verdict;

use crate::packets::{self, ACK, FIN, IcmpError, PSH, RST, SYN};
use crate::world::{Case, World, chunk_type, packet, unfinished};

fn case() -> impl Strategy<Value = Case> {
    (0..Case::COUNT).prop_map(|index| Case::all().nth(index).unwrap())
}

/// IPv4 options: any list of no-operations and experimental options (RFC 4727), padded to words.
fn options() -> impl Strategy<Value = Vec<u8>> {
    (0..=10_usize, any::<[u8; 40]>()).prop_map(|(words, noise)| {
        let mut options = vec![1; words * 4];
        if words > 1 {
            let body = options.len();
            options[0] = 0x1e;
            options[1] = body as u8;
            options[2..].copy_from_slice(&noise[2..body]);
        }
        options
    })
}

/// IPv6 extension headers that do not concern NAT: number and body.
fn extensions() -> impl Strategy<Value = Vec<(u8, Vec<u8>)>> {
    let kind = prop_oneof![Just(60_u8), Just(43), Just(44)];
    let body = (kind, 0..3_usize, any::<[u8; 24]>()).prop_map(|(kind, extra, noise)| {
        let length = if kind == 44 { 8 } else { 8 + extra * 8 };
        let mut header = vec![0; length];
        header[2..].copy_from_slice(&noise[..length - 2]);
        header[1] = if kind == 44 { 0 } else { extra as u8 };
        match kind {
            // No segments left; an atomic fragment.
            43 => header[3] = 0,
            44 => header[2..4].copy_from_slice(&[0, 0x06]),
            _ => {}
        }
        (kind, header)
    });
    prop::collection::vec(body, 0..4)
}

/// The packet with options or extension headers between its IP header and its transport header.
fn extended(mut packet: Vec<u8>, options: &[u8], extensions: &[(u8, Vec<u8>)]) -> Vec<u8> {
    if packet[0] >> 4 == 4 {
        packet[0] += (options.len() / 4) as u8;
        let total = (packet.len() + options.len()) as u16;
        packet[2..4].copy_from_slice(&total.to_be_bytes());
        packet.splice(20..20, options.iter().copied());
        packet[10..12].fill(0);
        let header = usize::from(packet[0] & 15) * 4;
        let mut sum: u32 = packet[..header]
            .chunks(2)
            .map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1]))
            .sum();
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        packet[10..12].copy_from_slice(&(!(sum as u16)).to_be_bytes());
        return packet;
    }
    for (kind, header) in extensions.iter().rev() {
        let next = std::mem::replace(&mut packet[6], *kind);
        let mut header = header.clone();
        header[0] = next;
        packet.splice(40..40, header);
    }
    let length = (packet.len() - 40) as u16;
    packet[4..6].copy_from_slice(&length.to_be_bytes());
    packet
}

fn payload() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        3 => prop::collection::vec(any::<u8>(), 0..64),
        1 => prop::collection::vec(any::<u8>(), 0..3_000),
        1 => prop::collection::vec(prop_oneof![Just(0_u8), Just(0xff)], 0..64),
    ]
}

fn content(case: Case, from: SocketAddr, to: SocketAddr, flags: u8, payload: &[u8]) -> Vec<u8> {
    match case.protocol {
        Protocol::Tcp => packets::tcp(from, to, flags, 9, if flags & ACK == 0 { 0 } else { 8 }, payload),
        Protocol::Udp => packets::udp(from, to, payload),
        Protocol::Sctp => packets::sctp_of(from, to, &packets::chunk(chunk_type(flags), payload)),
    }
}

const RULES: [&str; 4] = [
    "[[rules]]\nsource_port = \"1000-9999\"\nprobability = 0.5\naction = \"drop\"\n",
    "[[rules]]\ndestination = \"10.0.0.0/8\"\nprotocol = \"udp\"\naction = \"reject\"\n",
    "[[rules]]\nsource = \"!fd00::/16\"\nprotocol = \"!udp\"\naction = \"pass\"\n",
    "[[rules]]\ndestination_port = \"!80\"\naction = \"service:web\"\n",
];

fn noisy_world(case: Case, weights: &[u32], rules: usize) -> World {
    let setup = case.setup().weights(weights).tables("[conntrack]\nmax_flows = 20");
    let mut world = setup.tables(&RULES[rules..].concat()).world();
    for port in 1..4 {
        let first = packet(case.protocol, case.client(1, port), case.service(), SYN);
        drop(world.send(&first));
    }
    world
}

/// Any two ends of the case's version.
fn ends(case: Case) -> impl Strategy<Value = (SocketAddr, SocketAddr)> {
    any::<([u8; 16], [u8; 16], u16, u16)>().prop_map(move |(from, to, source, destination)| {
        let address = |bytes: [u8; 16]| match case.v6 {
            // Not one that stands for an IPv4 address.
            true => IpAddr::from([bytes, [0xfd; 16]][usize::from(bytes[..10] == [0; 10])]),
            false => IpAddr::from([bytes[0], bytes[1], bytes[2], bytes[3]]),
        };
        (
            SocketAddr::new(address(from), source),
            SocketAddr::new(address(to), destination),
        )
    })
}

/// Rewrites a packet to these ends.
fn rewritten(packet: &[u8], protocol: Protocol, from: SocketAddr, to: SocketAddr) -> Vec<u8> {
    let (mut bytes, end) = (packet.to_vec(), packet.len());
    let headers = Headers::parse(packet).unwrap();
    let key = Key::new(protocol, (from.ip().into(), from.port()), (to.ip().into(), to.port()));
    rewrite::apply(&mut Frame::new(&mut bytes, 0, end, Checksum::Complete), &headers, &key);
    bytes
}

fn icmp_error() -> impl Strategy<Value = IcmpError> {
    prop_oneof![
        Just(IcmpError::HostUnreachable),
        Just(IcmpError::PortUnreachable),
        Just(IcmpError::TimeExceeded),
        (1_280..9_000_u16).prop_map(|mtu| IcmpError::TooBig { mtu }),
    ]
}

/// As much of the packet as an error may quote: its ports at least, and of its checksum all or nothing.
fn quotation(protocol: Protocol, packet: &[u8], cut: prop::sample::Index) -> &[u8] {
    let transport = Headers::parse(packet).unwrap().transport;
    let field = match protocol {
        Protocol::Tcp => 16..18,
        Protocol::Udp => 6..8,
        Protocol::Sctp => 8..12,
    };
    let least = transport + 4;
    let end = least + cut.index(packet.len() - least + 1);
    match field.start < end - transport && end - transport < field.end {
        true => &packet[..transport + field.end],
        false => &packet[..end],
    }
}

/// Bytes that are nearly a packet: a valid one with some bytes changed and some cut off.
fn nearly() -> impl Strategy<Value = (Case, Vec<u8>)> {
    let changes = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6);
    let ends = (1..5_u16, any::<bool>(), 0..64_u8);
    (case(), ends, options(), extensions(), payload(), changes, 0..4_usize).prop_map(
        |(case, (port, down, flags), options, extensions, payload, changes, cut)| {
            let (client, service) = (case.client(1, port), case.service());
            let (from, to) = if down {
                (case.backend(1), client)
            } else {
                (client, service)
            };
            let mut bytes = extended(content(case, from, to, flags, &payload), &options, &extensions);
            for (at, value) in changes {
                // Mostly in the headers.
                let at = at.index(bytes.len().min(100));
                bytes[at] = value;
            }
            bytes.truncate(bytes.len() - cut * cut * 7 % bytes.len());
            (case, bytes)
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_packet_that_goes_there_and_back_is_what_it_was(
        case in case(),
        options in options(),
        extensions in extensions(),
        payload in payload(),
        flags in 0..64_u8,
        masqueraded in any::<bool>(),
    ) {
        let masquerade = if masqueraded { "always" } else { "auto" };
        let mut world = case.setup().tables(&format!("[nat]\nmasquerade = \"{masquerade}\"")).world();
        let flow = world.connect(case.protocol, case.client(2, 40_000), case.service());
        let flags = flags & (FIN | PSH | ACK) | ACK;
        // The backend sends back what it gets, ends exchanged; so does the client's own view of it.
        let sent = extended(content(case, flow.client, flow.service, flags, &payload), &options, &extensions);
        let there = world.send(&sent);
        prop_assert_eq!(there.verdict, Verdict::Forward);
        let expected = content(case, flow.source, flow.backend, flags, &payload);
        prop_assert_eq!(&there.packet, &extended(expected, &options, &extensions), "incremental is full");
        let echo = extended(content(case, flow.backend, flow.source, flags, &payload), &options, &extensions);
        let back = world.send(&echo);
        let expected = content(case, flow.service, flow.client, flags, &payload);
        prop_assert_eq!(back.packet, extended(expected, &options, &extensions));
    }

    #[test]
    fn any_rewritten_packet_is_as_its_sender_would_have_made_it_and_back_again_what_it_was(
        (case, (from, to)) in case().prop_flat_map(|case| (Just(case), ends(case))),
        options in options(),
        extensions in extensions(),
        payload in payload(),
        flags in 0..64_u8,
    ) {
        let made = |from, to| extended(content(case, from, to, flags, &payload), &options, &extensions);
        let (client, service) = (case.client(2, 40_000), case.service());
        let before = made(client, service);
        let after = rewritten(&before, case.protocol, from, to);
        prop_assert_eq!(&after, &made(from, to), "incremental is full");
        prop_assert_eq!(rewritten(&after, case.protocol, client, service), before, "undo after do");
    }

    #[test]
    fn an_icmp_error_about_any_packet_of_a_flow_quotes_it_as_its_sender_sent_it(
        case in case(),
        options in options(),
        extensions in extensions(),
        payload in payload(),
        (masqueraded, up, by_a_router) in any::<(bool, bool, bool)>(),
        error in icmp_error(),
        cut in any::<prop::sample::Index>(),
    ) {
        let masquerade = if masqueraded { "always" } else { "auto" };
        let mut world = case.setup().tables(&format!("[nat]\nmasquerade = \"{masquerade}\"")).world();
        let flow = world.connect(case.protocol, case.client(2, 40_000), case.service());
        // What the sender sent, what arrived, and who seems to be the receiver.
        let (sent, arrived, receiver) = match up {
            true => ((flow.client, flow.service), (flow.source, flow.backend), flow.service),
            false => ((flow.backend, flow.source), (flow.service, flow.client), flow.source),
        };
        let made = |(from, to)| extended(content(case, from, to, ACK, &payload), &options, &extensions);
        let (sent, arrived) = (made(sent), made(arrived));
        let router = if by_a_router { case.node(1) } else { packets::endpoints(&arrived).1 };
        let about = |packet| quotation(case.protocol, packet, cut);
        let outcome = world.send(&packets::icmp_error(router.ip(), error, about(&arrived)));
        prop_assert_eq!(outcome.verdict, Verdict::Forward);
        // Where the packet's receiver is hidden behind the service or the pool, so is a router before it.
        let is_hidden = up || masqueraded;
        let sender = if is_hidden { receiver } else { router };
        prop_assert_eq!(outcome.packet, packets::icmp_error(sender.ip(), error, about(&sent)));
    }

    #[test]
    fn any_bytes_get_one_verdict(
        case in case(),
        bytes in prop::collection::vec(any::<u8>(), 0..200),
        version in prop_oneof![Just(0x45_u8), Just(0x60), Just(0x4f), any::<u8>()],
        partial in any::<bool>(),
    ) {
        let mut bytes = bytes;
        if let Some(first) = bytes.first_mut() {
            *first = version;
        }
        let checksum = if partial { unfinished(&bytes) } else { Checksum::Complete };
        // World checks the rest: one verdict, counted once, nothing beyond the packet read or written.
        let outcome = noisy_world(case, &[1, 0], 0).send_as(&bytes, checksum);
        prop_assert!(Verdict::all().any(|verdict| verdict == outcome.verdict));
    }

    #[test]
    fn what_is_nearly_a_packet_gets_one_verdict_too((case, bytes) in nearly(), rules in 0..5_usize, partial in any::<bool>()) {
        let checksum = if partial { unfinished(&bytes) } else { Checksum::Complete };
        let outcome = noisy_world(case, &[1, 1], rules).send_as(&bytes, checksum);
        if outcome.verdict == Verdict::Forward {
            prop_assert_eq!(outcome.packet.len(), bytes.len());
        }
    }

    #[test]
    fn an_answer_holds_nothing_but_the_packet_that_it_answers((case, bytes) in nearly(), secret in any::<u8>()) {
        // The buffer held other packets before: an answer must not depend on what they were.
        let answer = |filling: u8| {
            let setup = case.in_mode(Mode::Iptables).setup();
            let world = setup.tables("[[rules]]\naction = \"reject\"").world();
            let mut lanes = world.lanes;
            let mut storage = vec![filling; 20 + bytes.len() + 2_000];
            storage[20..20 + bytes.len()].copy_from_slice(&bytes);
            let mut frame = Frame::new(&mut storage, 20, 20 + bytes.len(), Checksum::Complete);
            let verdict = world.engine.enter(&mut lanes[0], world.now).process(&mut frame, world.now);
            (verdict, frame.bytes().to_vec())
        };
        prop_assert_eq!(answer(secret), answer(!secret));
    }

    #[test]
    fn every_refusal_of_a_valid_packet_is_a_valid_packet_to_its_sender(
        case in case(),
        options in options(),
        extensions in extensions(),
        payload in payload(),
        flags in 0..64_u8,
    ) {
        let (client, service) = (case.client(2, 40_000), case.service());
        let sent = extended(content(case, client, service, flags, &payload), &options, &extensions);
        let setup = case.in_mode(Mode::Iptables).setup();
        let outcome = setup.tables("[[rules]]\naction = \"reject\"").world().send(&sent);
        match outcome.verdict {
            Verdict::Reject(_) => {
                let ends = packets::addresses(&outcome.packet);
                prop_assert_eq!(ends, (service.ip(), client.ip()));
            }
            Verdict::Drop(_) => prop_assert!(flags & RST != 0),
            Verdict::Forward | Verdict::Pass(_) | Verdict::Hold => prop_assert!(false, "{:?}", outcome.verdict),
        }
    }
}

/// A chain of headers that etherparse's builder makes itself, as a check of the builder above.
#[test]
fn the_builder_of_these_tests_agrees_with_etherparse() {
    let case = Case { v6: true, ..Case::UDP };
    let plain = packets::udp(case.client(2, 40_000), case.service(), b"x");
    let extended = extended(plain, &[], &[(60, vec![0, 0, 1, 4, 0, 0, 0, 0])]);
    packets::assert_valid(&extended);
    let builder: PacketBuilderStep<IpHeaders> = PacketBuilder::ipv6([1; 16], [2; 16], 64);
    let mut other = Vec::new();
    builder.write(&mut other, IpNumber::UDP, &extended[48..]).unwrap();
    assert_eq!(other.len() + 8, extended.len());
    assert_eq!(case.setup().world().send(&extended).verdict, Verdict::Forward);
}
