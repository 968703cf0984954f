//! SCTP: what opens a flow, its states, its checksum.
use std::net::SocketAddr;

use lbd::flow::Protocol;
use lbd::packet::frame::Checksum;
use lbd::policy::Mode;
use lbd::verdict::{Drop, Reject, Verdict};

use crate::packets::{self, ACK, RST, SYN, chunk};
use crate::world::{COOKIE_ACK, COOKIE_ECHO, Case, Flow, World, packet, unfinished};

/// RFC 9260 table 1.
const DATA: u8 = 0;
const INIT: u8 = 1;
const INIT_ACK: u8 = 2;
const SACK: u8 = 3;
const HEARTBEAT: u8 = 4;
const HEARTBEAT_ACK: u8 = 5;
const ABORT: u8 = 6;
const SHUTDOWN: u8 = 7;
const SHUTDOWN_ACK: u8 = 8;
const ERROR: u8 = 9;
const SHUTDOWN_COMPLETE: u8 = 14;

/// Made and checked by scapy 2.6: an INIT and a DATA chunk from 10.1.0.2:40000 to 10.96.0.10:80, and what 10.2.0.1:8080 is to
/// get; a DATA chunk back, and what the client is to get.
const FIXTURES: [(&str, &str); 3] = [
    (
        "4500004000074000408425c70a0100020a60000a9c40005000000000612f1fbe01000020112233440001a000000affff55667788000900080000000080000004",
        "45000040000740004084262e0a0100020a0200019c401f900000000018abadfa01000020112233440001a000000affff55667788000900080000000080000004",
    ),
    (
        "4500003c00074000408425cb0a0100020a60000a9c4000500000cafea06d2c500003001a55667788000100000000000068656c6c6f20736374700000",
        "4500003c00074000408426320a0100020a0200019c401f900000cafea63d95b20003001a55667788000100000000000068656c6c6f20736374700000",
    ),
    (
        "4500003c00074000408426320a0200010a0100021f909c400000beef9801ad440003001a55667788000100000000000068656c6c6f20736374700000",
        "4500003c00074000408425cb0a60000a0a01000200509c400000beefc068477c0003001a55667788000100000000000068656c6c6f20736374700000",
    ),
];

fn bytes(hex: &str) -> Vec<u8> {
    let digits = hex.as_bytes().chunks(2);
    let byte = |pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    digits.map(byte).collect()
}

/// A flow after its handshake.
fn open(case: Case, tables: &str) -> (World, Flow) {
    let mut world = case.setup().tables(tables).world();
    let flow = world.connect(Protocol::Sctp, case.client(2, 40_000), case.service());
    assert_eq!(world.state(&flow), "ESTABLISHED");
    (world, flow)
}

fn crc_field(packet: &[u8]) -> std::ops::Range<usize> {
    let transport = if packet[0] >> 4 == 4 { 20 } else { 40 };
    transport + 8..transport + 12
}

fn with_crc(packet: &[u8], change: impl Fn(&mut [u8])) -> Vec<u8> {
    let mut packet = packet.to_vec();
    let field = crc_field(&packet);
    change(&mut packet[field]);
    packet
}

#[test]
fn packets_of_another_maker_go_there_and_back_as_it_would_have_made_them() {
    let mut world = Case::SCTP.setup().world();
    for (sent, expected) in FIXTURES {
        let outcome = world.send(&bytes(sent));
        assert_eq!((outcome.verdict, outcome.packet), (Verdict::Forward, bytes(expected)));
    }
}

/// Who sends which chunk, and what `ipvsadm -Lc` says then.
enum Step {
    Up(u8, &'static str),
    Down(u8, &'static str),
}

use Step::{Down, Up};

#[track_caller]
fn play(world: &mut World, flow: &Flow, steps: &[Step]) {
    for (number, step) in steps.iter().enumerate() {
        let state = match *step {
            Up(chunk, state) => {
                world.chunk_up(flow, chunk);
                state
            }
            Down(chunk, state) => {
                world.chunk_down(flow, chunk);
                state
            }
        };
        assert_eq!(world.state(flow), state, "after step {number}");
        let expected = if state == "ESTABLISHED" { (1, 0) } else { (0, 1) };
        assert_eq!(world.load(flow.backend), expected, "after step {number}");
    }
}

/// Exchanges after an INIT, and the seconds for which the flow is remembered after each.
fn exchanges() -> Vec<(Vec<Step>, u64)> {
    let handshake = || {
        vec![
            Down(INIT_ACK, "C-SENT"),
            Up(COOKIE_ECHO, "C-REPLIED"),
            Down(COOKIE_ACK, "ESTABLISHED"),
        ]
    };
    let after = |steps| handshake().into_iter().chain(steps).collect::<Vec<_>>();
    vec![
        (vec![], 4),
        (vec![Up(INIT, "INIT")], 61),
        (vec![Down(INIT_ACK, "C-SENT")], 61),
        (vec![Down(ABORT, "REJECTED")], 4),
        (handshake(), 900),
        (
            after(vec![
                Up(DATA, "ESTABLISHED"),
                Down(SACK, "ESTABLISHED"),
                Down(HEARTBEAT, "ESTABLISHED"),
                Up(HEARTBEAT_ACK, "ESTABLISHED"),
                Up(ERROR, "ESTABLISHED"),
            ]),
            900,
        ),
        (
            after(vec![
                Up(SHUTDOWN, "S-RECEIVED"),
                Down(SHUTDOWN_ACK, "S-ACK-SENT"),
                Up(SHUTDOWN_COMPLETE, "CLOSED"),
            ]),
            61,
        ),
        (
            after(vec![
                Down(SHUTDOWN, "S-SENT"),
                Up(SHUTDOWN_ACK, "CLOSED"),
                Down(SHUTDOWN_COMPLETE, "CLOSED"),
            ]),
            61,
        ),
        (after(vec![Up(ABORT, "CLOSED")]), 61),
        (after(vec![Down(ABORT, "CLOSED")]), 61),
    ]
}

#[test]
fn an_init_opens_a_flow_which_has_the_states_loads_and_deadlines_of_ipvs() {
    for case in Case::sctp() {
        for (steps, seconds) in exchanges() {
            let mut world = case.setup().weights(&[1]).world();
            let flow = world.open(Protocol::Sctp, case.client(2, 40_000), case.service());
            assert_eq!((world.state(&flow), world.load(flow.backend)), ("INIT1", (0, 1)));
            play(&mut world, &flow, &steps);
            world.seconds(seconds - 1);
            assert!(world.is_alive(&flow), "{seconds} s");
            world.seconds(1);
            assert!(!world.is_alive(&flow), "{seconds} s");
            world.seconds(1);
            assert_eq!(world.load(flow.backend), (0, 0));
        }
    }
}

#[test]
fn timeouts_of_the_configuration_are_used() {
    let (mut world, flow) = open(
        Case::SCTP,
        "[conntrack]\nsctp_established = 50\nsctp_shutdown_received = 7",
    );
    world.seconds(49);
    world.chunk_up(&flow, SHUTDOWN);
    world.seconds(6);
    assert_eq!(world.state(&flow), "S-RECEIVED");
    world.seconds(1);
    assert!(!world.is_alive(&flow));
}

#[test]
fn only_an_init_opens_a_flow_and_anything_else_to_a_service_is_dropped_by_name() {
    for case in Case::sctp() {
        let mut world = case.setup().world();
        for chunk_type in (0..=15).chain([0xc0, 0xff]).filter(|&chunk_type| chunk_type != INIT) {
            let stray = packets::sctp(case.client(2, 40_000), case.service(), chunk_type);
            assert_eq!(world.send(&stray).verdict, Verdict::Drop(Drop::NotInit), "{chunk_type}");
        }
        assert!(world.engine.conntrack().is_empty());
        world.connect(Protocol::Sctp, case.client(2, 40_000), case.service());
    }
}

#[test]
fn a_wrong_checksum_stays_wrong_so_that_the_receiver_finds_out() {
    for case in Case::sctp() {
        let (mut world, flow) = open(case, "");
        let sent = packets::sctp_of(flow.client, flow.service, &chunk(DATA, b"payload"));
        let right = world.send(&sent).packet;
        for bit in 0..32 {
            let flip = |field: &mut [u8]| field[bit / 8] ^= 1 << (bit % 8);
            let outcome = world.send_as(&with_crc(&sent, flip), Checksum::Complete);
            assert_eq!(outcome.verdict, Verdict::Forward);
            assert_eq!(outcome.packet, with_crc(&right, flip), "wrong by the same bits");
        }
    }
}

#[test]
fn a_checksum_that_was_left_to_a_device_is_finished_by_lbd_since_devices_know_another_one() {
    for case in Case::sctp() {
        let (mut world, flow) = open(case, "");
        for (from, to) in [(flow.client, flow.service), (flow.backend, flow.source)] {
            let sent = packets::sctp_of(from, to, &chunk(DATA, b"payload"));
            let expected = world.send(&sent).packet;
            let zero = with_crc(&sent, |field| field.fill(0));
            for checksum in [unfinished(&sent), Checksum::Unsure] {
                let outcome = world.send_as(&zero, checksum);
                assert_eq!(
                    (outcome.packet, outcome.checksum),
                    (expected.clone(), Checksum::Complete)
                );
            }
            let told = world.send_as(&zero, Checksum::Complete);
            assert_ne!(
                told.packet, expected,
                "where the device tells that it is finished, it is wrong"
            );
        }
    }
}

#[test]
fn a_port_that_is_opened_again_gets_a_fresh_choice_at_once() {
    type Ending = fn(&mut World, &Flow);
    let endings: [Ending; 4] = [
        |world, flow| {
            world.chunk_up(flow, SHUTDOWN);
            world.chunk_down(flow, SHUTDOWN_ACK);
            world.chunk_up(flow, SHUTDOWN_COMPLETE);
        },
        |world, flow| {
            world.chunk_down(flow, SHUTDOWN);
            world.chunk_up(flow, SHUTDOWN_ACK);
            world.chunk_down(flow, SHUTDOWN_COMPLETE);
        },
        |world, flow| world.chunk_up(flow, ABORT),
        |world, flow| world.chunk_down(flow, ABORT),
    ];
    for case in Case::sctp() {
        for end in endings {
            let (mut world, first) = open(case, "");
            end(&mut world, &first);
            let second = world.connect(Protocol::Sctp, first.client, first.service);
            assert_eq!((first.backend, second.backend), (case.backend(1), case.backend(2)));
            assert_eq!(
                (world.load(first.backend), world.load(second.backend)),
                ((0, 0), (1, 0))
            );
            assert_eq!(world.engine.conntrack().len(), 1);
        }
    }
}

#[test]
fn an_init_of_a_flow_that_is_not_over_goes_to_the_same_backend() {
    for case in Case::sctp() {
        let (mut world, flow) = open(case, "");
        world.chunk_up(&flow, INIT);
        assert_eq!(
            world.state(&flow),
            "ESTABLISHED",
            "it may be a restart (RFC 9260 section 5.2)"
        );
        world.chunk_up(&flow, SHUTDOWN);
        world.chunk_up(&flow, INIT);
        assert_eq!(world.state(&flow), "S-RECEIVED");
    }
}

#[test]
fn an_abort_behind_a_cookie_ends_the_flow() {
    let mut world = Case::SCTP.setup().world();
    let flow = world.open(Protocol::Sctp, Case::SCTP.client(2, 40_000), Case::SCTP.service());
    world.chunk_down(&flow, INIT_ACK);
    let both = [chunk(COOKIE_ECHO, b"baked"), chunk(ABORT, b"")].concat();
    world.forward(&packets::sctp_of(flow.client, flow.service, &both));
    assert_eq!(world.state(&flow), "CLOSED");
}

#[test]
fn an_abort_is_never_answered() {
    for case in Case::sctp() {
        let setup = case.in_mode(Mode::Iptables).setup();
        let mut world = setup.tables("[[rules]]\naction = \"reject\"").world();
        let abort = packet(Protocol::Sctp, case.client(2, 40_000), case.service(), RST);
        assert_eq!(world.send(&abort).verdict, Verdict::Drop(Drop::Unanswerable));
    }
}

#[test]
fn both_sides_of_a_flow_that_lost_its_backend_are_told_and_an_init_goes_elsewhere() {
    for case in Case::sctp() {
        for action in ["reset", "reschedule"] {
            let tables = format!("[conntrack]\non_backend_removed = \"{action}\"");
            let (mut world, flow) = open(case, &tables);
            world.reload(&case.setup().tables(&tables).backends(&[(2, 1)]).toml());
            let told = |outcome: crate::world::Outcome| {
                assert_eq!(outcome.verdict, Verdict::Reject(Reject::BackendRemoved));
                packets::addresses(&outcome.packet)
            };
            assert_eq!(told(world.try_down(&flow, ACK)), (flow.source.ip(), flow.backend.ip()));
            assert_eq!(told(world.try_up(&flow, ACK)), (flow.service.ip(), flow.client.ip()));
            assert_eq!(world.state(&flow), "CLOSED");
            let again = world.connect(Protocol::Sctp, flow.client, flow.service);
            assert_eq!(again.backend, case.backend(2));
        }
    }
}

#[test]
fn a_flow_that_lost_its_backend_goes_on_by_default() {
    let (mut world, flow) = open(Case::SCTP, "");
    world.reload(&Case::SCTP.setup().backends(&[(2, 1)]).toml());
    world.chunk_up(&flow, DATA);
    world.chunk_down(&flow, SACK);
}

#[test]
fn what_is_no_whole_sctp_packet_is_dropped() {
    let ends: (SocketAddr, SocketAddr) = (Case::SCTP.client(2, 40_000), Case::SCTP.service());
    let mut world = Case::SCTP.setup().world();
    for chunks in [
        &[][..],
        &[INIT, 0, 0],
        &[INIT, 0, 0, 3],
        &[INIT, 0, 0, 8],
        &[DATA, 0, 0xff, 0xff, 1],
    ] {
        let sent = packets::sctp_of(ends.0, ends.1, chunks);
        assert_eq!(world.send(&sent).verdict, Verdict::Drop(Drop::Malformed), "{chunks:?}");
    }
    let mut sent = packet(Protocol::Sctp, ends.0, ends.1, SYN);
    sent.truncate(20 + 11);
    sent[3] = 20 + 11;
    let verdict = world.send_as(&sent, Checksum::Complete).verdict;
    assert_eq!(verdict, Verdict::Drop(Drop::Malformed));
}

#[test]
fn a_flood_of_inits_evicts_no_established_flow() {
    let case = Case::SCTP;
    let (mut world, flow) = open(case, "[conntrack]\nmax_flows = 10");
    for port in 1..1_000 {
        world.open(Protocol::Sctp, case.client(3, port), case.service());
    }
    assert_eq!(world.engine.conntrack().len(), 10);
    world.chunk_up(&flow, DATA);
}
