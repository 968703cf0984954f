//! Packets that somebody else sends in the name of a client or a backend: they are sent on, and change nothing.
use std::time::Duration;

use lbd::flow::Protocol;
use lbd::packet::frame::Checksum;
use lbd::verdict::Verdict;

use crate::fragments;
use crate::nat::partial;
use crate::packets::{self, ACK, FIN, PSH, RST, SYN};
use crate::world::{Case, Flow, World, packet, unfinished};

/// Numbers that fit nothing: both sides begin at 1,000.
const WILD: [u32; 6] = [0, 999, 1_002, 90_000, 0x8000_0000, u32::MAX - 5];

/// A segment of a flow, from either side.
fn segment(flow: &Flow, up: bool, flags: u8, sequence: u32, acknowledges: u32) -> Vec<u8> {
    let (from, to) = if up {
        (flow.client, flow.service)
    } else {
        (flow.backend, flow.source)
    };
    packets::tcp(from, to, flags, sequence, acknowledges, b"")
}

fn with_wrong_checksum(mut packet: Vec<u8>) -> Vec<u8> {
    let field = fragments::header(&packet) + 17;
    packet[field] ^= 0x55;
    packet
}

fn connected(case: Case) -> (World, Flow) {
    let mut world = case.setup().world();
    let flow = world.connect(Protocol::Tcp, case.client(2, 40_000), case.service());
    (world, flow)
}

/// The flow is as it was, and goes on; a SYN from its port stays with its backend.
#[track_caller]
fn assert_unharmed(world: &mut World, flow: &Flow, state: &str) {
    assert_eq!(world.state(flow), state);
    world.up(flow, SYN);
    world.up(flow, ACK | PSH);
    world.down(flow, ACK | PSH);
    assert_eq!(world.engine.conntrack().len(), 1);
}

#[test]
fn a_reset_with_a_number_that_does_not_fit_is_sent_on_and_the_flow_stays_established() {
    for case in Case::tcp() {
        for up in [true, false] {
            for flags in [RST, RST | ACK, RST | SYN, RST | FIN | PSH | ACK] {
                for number in WILD {
                    let (mut world, flow) = connected(case);
                    let forged = world.send(&segment(&flow, up, flags, number, number));
                    assert_eq!(forged.verdict, Verdict::Forward);
                    assert_eq!(world.load(flow.backend), (1, 0));
                    assert_unharmed(&mut world, &flow, "ESTABLISHED");
                }
            }
        }
    }
}

#[test]
fn a_forged_reset_and_a_syn_do_not_take_a_flow_to_another_backend() {
    for case in Case::tcp() {
        let (mut world, flow) = connected(case);
        for number in WILD {
            for flags in [RST, SYN, FIN | ACK, RST | ACK, SYN] {
                drop(world.send(&segment(&flow, true, flags, number, number)));
            }
        }
        world.up(&flow, PSH | ACK);
        world.down(&flow, PSH | ACK);
        assert_eq!((world.state(&flow), world.load(flow.backend)), ("ESTABLISHED", (1, 0)));
    }
}

#[test]
fn a_forged_segment_does_not_prepare_a_forged_reset() {
    for case in Case::tcp() {
        for up in [true, false] {
            for (flags, number) in [ACK, 0, SYN, SYN | ACK, FIN | ACK]
                .into_iter()
                .flat_map(|flags| WILD[4..].iter().map(move |&number| (flags, number)))
            {
                let (mut world, flow) = connected(case);
                drop(world.send(&segment(&flow, up, flags, number, number.wrapping_add(77))));
                for number in [number, number.wrapping_add(1), number.wrapping_add(77)] {
                    drop(world.send(&segment(&flow, up, RST | ACK, number, number)));
                }
                assert_unharmed(&mut world, &flow, "ESTABLISHED");
            }
        }
    }
}

#[test]
fn a_reset_counts_at_the_highest_acknowledgement_or_behind_the_last_segment() {
    for case in Case::tcp() {
        for (up, number) in [true, false]
            .into_iter()
            .flat_map(|up| [1_001, 1_101].map(|number| (up, number)))
        {
            let (mut world, flow) = connected(case);
            let (from, to) = if up {
                (flow.client, flow.service)
            } else {
                (flow.backend, flow.source)
            };
            // A hundred bytes that are not acknowledged yet.
            drop(world.send(&packets::tcp(from, to, ACK, 1_001, 1_001, &[0; 100])));
            drop(world.send(&segment(&flow, up, RST, number, 0)));
            assert_eq!((world.state(&flow), world.load(flow.backend)), ("CLOSE", (0, 1)));
        }
    }
}

#[test]
fn a_reset_behind_a_super_packet_counts_at_the_end_of_all_its_segments() {
    for case in Case::tcp() {
        let (mut world, flow) = connected(case);
        let whole = packets::tcp(flow.client, flow.service, ACK, 1_001, 1_001, &[7; 60_000]);
        let sent = world.send_as(&partial(&whole, Protocol::Tcp), unfinished(&whole));
        assert_eq!(sent.verdict, Verdict::Forward);
        drop(world.send(&segment(&flow, true, RST, 2_461, 0)));
        assert_eq!(world.state(&flow), "ESTABLISHED", "within it");
        drop(world.send(&segment(&flow, true, RST, 61_001, 0)));
        assert_eq!(world.state(&flow), "CLOSE");
    }
}

#[test]
fn a_syn_is_refused_by_a_reset_that_acknowledges_it_and_by_no_other() {
    for case in Case::tcp() {
        let mut world = case.setup().world();
        let flow = world.open(Protocol::Tcp, case.client(2, 40_000), case.service());
        for (flags, acknowledges) in [(RST | ACK, 1_000), (RST | ACK, 7), (RST, 1_001)] {
            drop(world.send(&segment(&flow, false, flags, 0, acknowledges)));
            assert_eq!(world.state(&flow), "SYN_RECV");
        }
        drop(world.send(&segment(&flow, false, RST | ACK, 0, 1_001)));
        assert_eq!(world.state(&flow), "CLOSE");
    }
}

#[test]
fn what_opens_closes_or_aborts_with_a_wrong_checksum_changes_nothing() {
    for case in Case::tcp() {
        for up in [true, false] {
            for flags in [RST, RST | ACK, FIN | ACK] {
                let (mut world, flow) = connected(case);
                let broken = with_wrong_checksum(segment(&flow, up, flags, 1_001, 1_001));
                let outcome = world.send_as(&broken, Checksum::Complete);
                assert_eq!(outcome.verdict, Verdict::Forward);
                assert_unharmed(&mut world, &flow, "ESTABLISHED");
            }
        }
    }
}

#[test]
fn a_syn_with_a_wrong_checksum_does_not_reopen_a_port() {
    for case in Case::tcp() {
        let (mut world, flow) = connected(case);
        world.client_closes(&flow);
        let broken = with_wrong_checksum(packet(Protocol::Tcp, flow.client, flow.service, SYN));
        let outcome = world.send_as(&broken, Checksum::Complete);
        assert_eq!(packets::endpoints(&outcome.packet).1, flow.backend);
        assert_eq!(world.state(&flow), "TIME_WAIT");
        let real = world.open(Protocol::Tcp, flow.client, flow.service);
        assert_eq!(real.backend, case.backend(2), "a right one does");
    }
}

#[test]
fn a_checksum_that_the_sender_has_left_to_its_device_counts_as_right() {
    for case in Case::tcp() {
        for told in [true, false] {
            let (mut world, flow) = connected(case);
            let reset = segment(&flow, true, RST, 1_001, 0);
            let checksum = if told { unfinished(&reset) } else { Checksum::Unsure };
            drop(world.send_as(&partial(&reset, Protocol::Tcp), checksum));
            assert_eq!(world.state(&flow), "CLOSE");
            drop(world.send_as(
                &partial(&packet(Protocol::Tcp, flow.client, flow.service, SYN), Protocol::Tcp),
                checksum,
            ));
            assert_eq!(world.state(&flow), "SYN_RECV");
        }
    }
}

#[test]
fn a_reset_in_fragments_cannot_be_checked_and_changes_nothing() {
    for case in Case::tcp() {
        let (mut world, flow) = connected(case);
        let reset = packets::tcp(flow.client, flow.service, RST, 1_001, 0, &[0; 64]);
        for fragment in fragments::cut(&reset, 7, &[40]) {
            assert_eq!(world.send_as(&fragment, Checksum::Complete).verdict, Verdict::Forward);
        }
        assert_eq!(world.state(&flow), "ESTABLISHED");
    }
}

#[test]
fn forged_packets_do_not_keep_a_flow_alive_nor_take_time_from_it() {
    for case in Case::tcp() {
        let mut world = case.setup().tables("[conntrack]\ntcp_established = \"15m\"").world();
        let flow = world.connect(Protocol::Tcp, case.client(2, 40_000), case.service());
        world.seconds(800);
        for flags in [RST, FIN | ACK, SYN | ACK] {
            for up in [true, false] {
                drop(world.send(&segment(&flow, up, flags, 0x7000_0000, 0x7000_0000)));
            }
        }
        world.advance(Duration::from_secs(100) - Duration::from_nanos(1));
        assert!(world.is_alive(&flow));
        world.advance(Duration::from_nanos(1));
        assert!(!world.is_alive(&flow));
    }
}

#[test]
fn a_forged_syn_takes_no_time_from_a_connection_that_one_side_has_closed() {
    for case in Case::tcp() {
        let setup = case.setup().tables("[conntrack]\ntcp_close_wait = \"1h\"");
        let mut world = setup.world();
        let flow = world.connect(Protocol::Tcp, case.client(2, 40_000), case.service());
        world.up(&flow, FIN | ACK);
        drop(world.send(&segment(&flow, true, SYN, 0x7000_0000, 0)));
        world.seconds(3_599);
        assert!(world.is_alive(&flow));
        world.down(&flow, PSH | ACK);
    }
}

#[test]
fn real_ends_are_believed_when_the_numbers_of_both_sides_begin_anew_in_between() {
    for case in Case::tcp() {
        let mut world = case.setup().world();
        let (client, service) = (case.client(2, 40_000), case.service());
        let start = u32::MAX - 50;
        let (_, backend) = world.forward(&packets::tcp(client, service, SYN, start, 0, b""));
        let next = start + 1;
        drop(world.send(&packets::tcp(backend, client, SYN | ACK, start, next, b"")));
        drop(world.send(&packets::tcp(client, service, ACK, next, next, &[1; 100])));
        let end = next.wrapping_add(100);
        drop(world.send(&packets::tcp(backend, client, ACK, next, end, &[1; 100])));
        drop(world.send(&packets::tcp(client, service, FIN | ACK, end, end, b"")));
        let flow = Flow {
            protocol: Protocol::Tcp,
            client,
            service,
            backend,
            source: client,
        };
        assert_eq!(world.state(&flow), "CLOSE_WAIT");
        drop(world.send(&packets::tcp(backend, client, RST, end, 0, b"")));
        assert_eq!(world.state(&flow), "CLOSE");
    }
}

#[test]
fn an_acknowledgement_that_guesses_the_answer_to_a_syn_establishes_nothing() {
    for case in Case::tcp() {
        let mut world = case.setup().world();
        let flow = world.open(Protocol::Tcp, case.client(2, 40_000), case.service());
        world.down(&flow, SYN | ACK);
        drop(world.send(&segment(&flow, true, ACK, 0x5000_0000, 0x6000_0000)));
        assert_eq!(world.state(&flow), "SYN_RECV");
        world.up(&flow, ACK);
        assert_eq!(world.state(&flow), "ESTABLISHED");
    }
}

#[test]
fn an_abort_of_sctp_with_a_wrong_checksum_ends_no_association() {
    for case in Case::sctp() {
        let mut world = case.setup().world();
        let flow = world.connect(Protocol::Sctp, case.client(2, 40_000), case.service());
        let mut abort = packet(Protocol::Sctp, flow.client, flow.service, RST);
        let field = fragments::header(&abort) + 9;
        abort[field] ^= 0x55;
        assert_eq!(world.send_as(&abort, Checksum::Complete).verdict, Verdict::Forward);
        assert_eq!(world.state(&flow), "ESTABLISHED");
    }
}

#[test]
fn a_client_that_was_reset_and_goes_to_the_backend_itself_from_the_same_port_gets_its_answer_untranslated() {
    for case in Case::tcp() {
        let (mut world, flow) = connected(case);
        world.client_resets(&flow);
        let answer = world.send(&packet(Protocol::Tcp, flow.backend, flow.client, SYN | ACK));
        assert!(matches!(answer.verdict, Verdict::Pass(_)), "{:?}", answer.verdict);
        assert!(world.engine.conntrack().is_empty());
    }
}
