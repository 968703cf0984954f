//! Segments to a service that belong to no connection and open none.
use lbd::verdict::{Drop, Pass, Reject, Verdict};

use crate::packets::{self, ACK, FIN, RST, SYN};
use crate::world::{Case, Setup, World, packet};

fn unknown(case: Case, word: &str) -> Setup {
    case.setup().tables(&format!("[conntrack]\nunknown_tcp = \"{word}\""))
}

const FLAGS: [u8; 5] = [ACK, FIN | ACK, SYN | ACK, 0, SYN | RST];

#[test]
fn they_are_dropped_by_name_where_nobody_says_anything() {
    for case in Case::tcp() {
        for setup in [case.setup(), unknown(case, "drop")] {
            let mut world = setup.world();
            for flags in FLAGS {
                let stray = packet(case.protocol, case.client(2, 1), case.service(), flags);
                assert_eq!(world.send(&stray).verdict, Verdict::Drop(Drop::NotSyn));
            }
        }
    }
}

#[test]
fn they_pass_where_that_is_set() {
    for case in Case::tcp() {
        let mut world = unknown(case, "pass").world();
        for flags in FLAGS {
            let stray = packet(case.protocol, case.client(2, 1), case.service(), flags);
            assert_eq!(world.send(&stray).verdict, Verdict::Pass(Pass::NotSyn));
        }
        assert!(world.engine.conntrack().is_empty());
    }
}

#[test]
fn they_are_answered_by_a_reset_where_that_is_set_but_a_reset_never_is() {
    for case in Case::tcp() {
        let mut world = unknown(case, "reset").world();
        for flags in FLAGS {
            let stray = packet(case.protocol, case.client(2, 1), case.service(), flags);
            let outcome = world.send(&stray);
            if flags & RST != 0 {
                assert_eq!(outcome.verdict, Verdict::Drop(Drop::Unanswerable));
                continue;
            }
            assert_eq!(outcome.verdict, Verdict::Reject(Reject::NotSyn));
            let expected = (case.service(), case.client(2, 1));
            assert_eq!(packets::endpoints(&outcome.packet), expected);
            let transport = if case.v6 { 40 } else { 20 };
            assert_ne!(outcome.packet[transport + 13] & RST, 0);
        }
    }
}

#[test]
fn a_service_without_a_backend_refuses_them_as_it_refuses_new_connections() {
    for case in Case::tcp() {
        for word in ["drop", "pass", "reset"] {
            for weights in [&[][..], &[0, 0]] {
                let mut world = unknown(case, word).weights(weights).world();
                for flags in FLAGS {
                    let stray = packet(case.protocol, case.client(2, 1), case.service(), flags);
                    let expected = match flags & RST {
                        0 => Verdict::Reject(Reject::NoBackend),
                        _ => Verdict::Drop(Drop::Unanswerable),
                    };
                    assert_eq!(world.send(&stray).verdict, expected, "{word}");
                }
            }
        }
    }
}

#[test]
fn a_reload_changes_what_becomes_of_them_and_nothing_of_known_connections() {
    for case in Case::tcp() {
        let mut world: World = case.setup().world();
        let flow = world.connect(case.protocol, case.client(2, 1), case.service());
        let stray = packet(case.protocol, case.client(3, 1), case.service(), ACK);
        for (word, verdict) in [
            ("reset", Verdict::Reject(Reject::NotSyn)),
            ("pass", Verdict::Pass(Pass::NotSyn)),
            ("drop", Verdict::Drop(Drop::NotSyn)),
        ] {
            world.reload(&unknown(case, word).toml());
            assert_eq!(world.send(&stray).verdict, verdict);
            world.up(&flow, ACK);
            world.down(&flow, ACK);
        }
    }
}

#[test]
fn a_segment_to_no_service_passes_whatever_is_set() {
    for case in Case::tcp() {
        let mut world = unknown(case, "reset").world();
        let stray = packet(case.protocol, case.client(2, 1), case.external(), ACK);
        assert_eq!(world.send(&stray).verdict, Verdict::Pass(Pass::NoMatch));
    }
}
