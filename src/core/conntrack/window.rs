//! Which segments of a TCP flow are believed: those that fit what both sides have said so far.
//!
//! Whoever knows the addresses and ports of a flow can send a RST or a SYN in its name. The receiver knows better (RFC 5961),
//! and so does netfilter (`nf_conntrack_tcp_packet`, net/netfilter/nf_conntrack_proto_tcp.c): a segment that does not fit is
//! forwarded, and changes nothing. Of each side are kept the end of what it has sent and the highest acknowledgement; options
//! are not read, so there is no window scaling here, and what is in reach is told by the acknowledgements of both sides.
//!
//! Against whom this helps: a forger who sees none of the flow's packets, and so has to guess. Of 32 bits for a RST, and about
//! 15 for anything else: a plain segment that is believed can at most lead to a RST that is not, or to one that its forger could
//! send only because of that guess. Who forges packets of *both* sides can have a SYN answered in the backend's name, as with
//! netfilter.
use super::tcp::State;
use crate::flow::Direction;
use crate::packet::{Numbers, TcpFlags};

/// How far beyond the highest acknowledgement a segment may end to be believed for that alone: a window without scaling (RFC 9293
/// section 3.1). If more is in flight, it is the acknowledgement in the segment that fits.
const REACH: u32 = u16::MAX as u32;
/// How far for its end and its acknowledgement together: what Linux lets be in flight (`tcp_rmem`, 6 MB) and more.
const FAR: u32 = 1 << 24;
/// The largest window (RFC 7323 section 2.3): nothing that is farther apart belongs together.
const LARGEST: u32 = 1 << 30;

/// What one side has said. Zeros: nothing yet, or nothing that came by here, as with a flow that was taken over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Side {
    /// Where its stream ends so far.
    end: u32,
    /// The highest acknowledgement that it has sent. Zero: its last segment was a SYN. (One that happens to be zero is as if it
    /// had not been sent; the next one is not.)
    acknowledged: u32,
}

impl Side {
    const UNKNOWN: Self = Self {
        end: 0,
        acknowledged: 0,
    };

    #[inline]
    fn is_known(self) -> bool {
        self != Self::UNKNOWN
    }

    /// Whether it waits for the answer to a SYN.
    #[inline]
    const fn asks(self) -> bool {
        self.end != 0 && self.acknowledged == 0
    }
}

/// See the module.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Window {
    client: Side,
    backend: Side,
}

impl From<[u64; 2]> for Window {
    #[inline]
    fn from(words: [u64; 2]) -> Self {
        let [client, backend] = words.map(|word| Side {
            end: (word >> 32) as u32,
            acknowledged: word as u32,
        });
        Self { client, backend }
    }
}

impl From<Window> for [u64; 2] {
    #[inline]
    fn from(window: Window) -> Self {
        [window.client, window.backend].map(|side| u64::from(side.end) << 32 | u64::from(side.acknowledged))
    }
}

impl Window {
    /// Of a flow that this SYN opens.
    #[must_use]
    pub const fn opened(numbers: &Numbers) -> Self {
        Self {
            client: Side {
                end: numbers.end,
                acknowledged: 0,
            },
            backend: Side::UNKNOWN,
        }
    }

    /// Whether a segment, whose checksum is another question, may change the flow's state.
    #[must_use]
    #[inline]
    pub fn believes(&self, state: State, direction: Direction, flags: TcpFlags, numbers: &Numbers) -> bool {
        let (own, other) = self.sides(direction);
        if flags.has(TcpFlags::RST) {
            resets(own, other, flags, numbers)
        } else if flags.has(TcpFlags::SYN) {
            opens(other, state, direction, flags, numbers)
        } else {
            fits(own, other, flags, numbers)
        }
    }

    /// Takes note of a segment that is believed.
    #[inline]
    pub fn note(&mut self, direction: Direction, flags: TcpFlags, numbers: &Numbers) {
        let (own, other) = self.sides(direction);
        let side = match flags.has(TcpFlags::SYN | TcpFlags::RST) {
            true => own.after_control(direction, flags, numbers),
            false => own.after(other, flags, numbers),
        };
        match direction {
            Direction::Original => self.client = side,
            Direction::Reply => self.backend = side,
        }
    }

    /// The sender, and the receiver.
    #[inline]
    const fn sides(&self, direction: Direction) -> (Side, Side) {
        match direction {
            Direction::Original => (self.client, self.backend),
            Direction::Reply => (self.backend, self.client),
        }
    }
}

/// RFC 5961 section 3.2: a RST is believed only at exactly the number that its receiver waits for, the highest that it has
/// acknowledged; or right behind the sender's last segment, which the receiver may not have acknowledged yet. Before its receiver
/// has heard anything, it must acknowledge the SYN (RFC 9293 section 3.10.7.3). Where nothing is known of the receiver, any will do
/// (`IP_CT_TCP_FLAG_MAXACK_SET`).
fn resets(own: Side, other: Side, flags: TcpFlags, numbers: &Numbers) -> bool {
    let goes_on = own.is_known() && !own.asks() && numbers.first == own.end;
    let is_expected = match other.asks() {
        true => flags.has(TcpFlags::ACK) && numbers.acknowledged == other.end,
        false => !other.is_known() || numbers.first == other.acknowledged,
    };
    goes_on || is_expected
}

/// A client's SYN is believed as it comes; what is made of it depends on the answer, which must acknowledge it. A backend in the
/// midst of a connection opens none.
fn opens(other: Side, state: State, direction: Direction, flags: TcpFlags, numbers: &Numbers) -> bool {
    match (direction, flags.has(TcpFlags::ACK)) {
        (Direction::Original, false) => true,
        (Direction::Original, true) => false,
        (Direction::Reply, true) => !other.is_known() || other.asks() && numbers.acknowledged == other.end,
        (Direction::Reply, false) => !matches!(state, State::FinWait | State::CloseWait | State::LastAck),
    }
}

/// Whether a segment ends not before what its receiver has acknowledged and not far beyond, or acknowledges what its sender has
/// acknowledged last or not much more; where much is in flight both ways, both.
#[inline]
fn fits(own: Side, other: Side, flags: TcpFlags, numbers: &Numbers) -> bool {
    let beyond = match other.asks() {
        true => u32::MAX,
        false => numbers.end.wrapping_sub(other.acknowledged),
    };
    let further = match own.acknowledged != 0 && flags.has(TcpFlags::ACK) {
        true => numbers.acknowledged.wrapping_sub(own.acknowledged),
        false => u32::MAX,
    };
    beyond <= REACH || further <= REACH || beyond.max(further) <= FAR || !other.is_known()
}

impl Side {
    /// After a SYN of its, which begins anew, or a RST.
    const fn after_control(self, direction: Direction, flags: TcpFlags, numbers: &Numbers) -> Self {
        match (direction, flags.has(TcpFlags::RST), flags.has(TcpFlags::ACK)) {
            (_, true, _) | (Direction::Reply, false, false) => self,
            (Direction::Original, false, _) => Self {
                end: numbers.end,
                acknowledged: 0,
            },
            (Direction::Reply, false, true) => Self {
                end: numbers.end,
                acknowledged: numbers.acknowledged,
            },
        }
    }

    /// After another segment of its.
    #[inline]
    const fn after(self, other: Self, flags: TcpFlags, numbers: &Numbers) -> Self {
        // What is too far from where the other side is was never said, or very long ago.
        let is_lost = self.end.wrapping_sub(other.acknowledged) > LARGEST;
        let is_further = numbers.end.wrapping_sub(self.end) <= LARGEST;
        let end = if self.acknowledged == 0 || is_lost || is_further {
            numbers.end
        } else {
            self.end
        };
        let is_lost = other.end.wrapping_sub(self.acknowledged) > LARGEST;
        let is_further = numbers.acknowledged.wrapping_sub(self.acknowledged) <= LARGEST;
        let acknowledged = if flags.has(TcpFlags::ACK) && (self.acknowledged == 0 || is_lost || is_further) {
            numbers.acknowledged
        } else {
            self.acknowledged
        };
        Self { end, acknowledged }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Direction::{Original, Reply};
    use proptest::prelude::*;

    const ACK: u8 = TcpFlags::ACK;
    const FIN: u8 = TcpFlags::FIN;
    const RST: u8 = TcpFlags::RST;
    const SYN: u8 = TcpFlags::SYN;

    const fn numbers(first: u32, length: u32, acknowledged: u32) -> Numbers {
        Numbers {
            first,
            end: first.wrapping_add(length),
            acknowledged,
        }
    }

    /// A flow whose client begins at `client` and whose backend at `backend`.
    struct Talk {
        window: Window,
        state: State,
    }

    impl Talk {
        fn new(client: u32, backend: u32) -> Self {
            let mut talk = Self {
                window: Window::opened(&numbers(client, 1, 0)),
                state: State::SynRecv,
            };
            let (client, next) = (client.wrapping_add(1), backend.wrapping_add(1));
            assert!(talk.says(Reply, SYN | ACK, numbers(backend, 1, client)));
            assert!(talk.says(Original, ACK, numbers(client, 0, next)));
            talk.state = State::Established;
            talk
        }

        fn says(&mut self, direction: Direction, flags: u8, numbers: Numbers) -> bool {
            let is_believed = self.believes(direction, flags, numbers);
            if is_believed {
                self.window.note(direction, TcpFlags(flags), &numbers);
            }
            is_believed
        }

        fn believes(&self, direction: Direction, flags: u8, numbers: Numbers) -> bool {
            self.window.believes(self.state, direction, TcpFlags(flags), &numbers)
        }
    }

    /// Where streams begin: also right before their numbers begin anew.
    const STARTS: [(u32, u32); 4] = [
        (1_000, 9_000),
        (u32::MAX - 3, 77),
        (77, u32::MAX - 3),
        (0x7fff_fff0, 0x8000_0000),
    ];

    #[test]
    fn a_reset_counts_at_what_its_receiver_has_acknowledged_or_right_behind_the_last_segment_and_nowhere_else() {
        for (client, backend) in STARTS {
            let mut talk = Talk::new(client, backend);
            let (client, backend) = (client.wrapping_add(1), backend.wrapping_add(1));
            // A question that is acknowledged, and more that is not yet.
            assert!(talk.says(Original, ACK, numbers(client, 100, backend)));
            assert!(talk.says(Reply, ACK, numbers(backend, 500, client.wrapping_add(100))));
            assert!(talk.says(Original, ACK, numbers(client.wrapping_add(100), 50, backend)));
            for flags in [RST, RST | ACK] {
                for offset in 0..1_000_u32 {
                    let first = client.wrapping_sub(500).wrapping_add(offset);
                    let expected = [600, 650].contains(&offset);
                    assert_eq!(
                        talk.believes(Original, flags, numbers(first, 0, 0)),
                        expected,
                        "{offset}"
                    );
                    let first = backend.wrapping_sub(500).wrapping_add(offset);
                    // Its 500 bytes are not acknowledged.
                    let expected = [500, 1_000].contains(&offset);
                    assert_eq!(talk.believes(Reply, flags, numbers(first, 0, 0)), expected, "{offset}");
                }
            }
            assert!(talk.believes(Reply, RST, numbers(backend.wrapping_add(500), 0, 0)));
        }
    }

    #[test]
    fn a_port_that_refuses_acknowledges_the_syn() {
        for (client, _) in STARTS {
            let talk = Talk {
                window: Window::opened(&numbers(client, 1, 0)),
                state: State::SynRecv,
            };
            assert!(talk.believes(Reply, RST | ACK, numbers(0, 0, client.wrapping_add(1))));
            for wrong in [client, client.wrapping_add(2), 0x1234_5678] {
                assert!(!talk.believes(Reply, RST | ACK, numbers(0, 0, wrong)));
            }
            assert!(
                !talk.believes(Reply, RST, numbers(0, 0, client.wrapping_add(1))),
                "it acknowledges nothing"
            );
        }
    }

    #[test]
    fn a_backend_that_gives_up_a_handshake_is_believed_at_its_place() {
        let mut talk = Talk {
            window: Window::opened(&numbers(1_000, 1, 0)),
            state: State::SynRecv,
        };
        assert!(talk.says(Reply, SYN | ACK, numbers(9_000, 1, 1_001)));
        assert!(talk.believes(Reply, RST, numbers(9_001, 0, 0)));
        assert!(!talk.believes(Reply, RST, numbers(9_000, 0, 0)));
        // The client knows nothing of it.
        assert!(talk.believes(Original, RST, numbers(1_001, 0, 0)));
        assert!(!talk.believes(Original, RST, numbers(5, 0, 0)));
    }

    #[test]
    fn the_answer_to_another_syn_than_the_clients_is_not_believed() {
        let talk = Talk {
            window: Window::opened(&numbers(1_000, 1, 0)),
            state: State::SynRecv,
        };
        assert!(talk.believes(Reply, SYN | ACK, numbers(9_000, 1, 1_001)));
        assert!(!talk.believes(Reply, SYN | ACK, numbers(9_000, 1, 1_002)));
        let talk = Talk::new(1_000, 9_000);
        assert!(
            !talk.believes(Reply, SYN | ACK, numbers(9_000, 1, 1_001)),
            "nobody asks any more"
        );
    }

    #[test]
    fn no_two_packets_that_are_forged_blindly_from_one_side_end_a_flow() {
        // Some numbers far from all that was said; a reset repeats what the other one has brought.
        let guesses = [1 << 26, 1 << 30, 1 << 31, 3 << 30, 0xfff0_0000_u32];
        for (direction, number) in [Original, Reply]
            .into_iter()
            .flat_map(|way| guesses.map(|guess| (way, guess)))
        {
            for flags in [0, ACK, SYN, SYN | ACK, FIN | ACK, ACK | FIN | SYN, RST] {
                for length in [0, 1, 1_400] {
                    let mut talk = Talk::new(1_000, 9_000);
                    talk.says(direction, flags, numbers(number, length, number));
                    for reset in [number, number.wrapping_add(length), number.wrapping_add(1), 0] {
                        for acknowledged in [0, number, number.wrapping_add(1)] {
                            let reset = numbers(reset, 0, acknowledged);
                            assert!(!talk.believes(direction, RST | ACK, reset), "{flags:#x} {number:#x}");
                        }
                    }
                    // And those who talk are believed as before.
                    assert!(talk.says(Original, ACK, numbers(1_001, 10, 9_001)));
                    assert!(talk.says(Reply, ACK, numbers(9_001, 10, 1_011)));
                    assert!(talk.believes(Original, FIN | ACK, numbers(1_011, 1, 9_011)));
                    assert!(talk.believes(Original, RST, numbers(1_011, 0, 0)));
                    assert!(talk.believes(Reply, RST, numbers(9_011, 0, 0)));
                }
            }
        }
    }

    #[test]
    fn a_connection_that_begins_anew_within_an_old_one_is_followed() {
        let mut talk = Talk::new(1_000, 9_000);
        let (client, backend) = (0x7000_0000, 0xc000_0000);
        assert!(talk.says(Original, SYN, numbers(client, 1, 0)));
        assert!(
            talk.believes(Reply, RST | ACK, numbers(0, 0, client + 1)),
            "its port is closed"
        );
        assert!(talk.says(Reply, SYN | ACK, numbers(backend, 1, client + 1)));
        assert!(talk.says(Original, ACK, numbers(client + 1, 5, backend + 1)));
        assert!(talk.says(Reply, ACK, numbers(backend + 1, 5, client + 6)));
        assert!(talk.believes(Original, FIN | ACK, numbers(client + 6, 1, backend + 6)));
        assert!(talk.believes(Reply, RST, numbers(backend + 6, 0, 0)));
        assert!(!talk.believes(Original, RST, numbers(1_001, 0, 0)));
    }

    #[test]
    fn of_a_flow_that_was_taken_over_any_reset_counts_until_its_receiver_was_heard() {
        let mut talk = Talk {
            window: Window::default(),
            state: State::Established,
        };
        assert!(talk.believes(Original, RST, numbers(5, 0, 0)));
        assert!(talk.says(Original, ACK, numbers(1_001, 100, 9_001)));
        assert!(talk.believes(Original, RST, numbers(5, 0, 0)));
        assert!(!talk.believes(Reply, RST, numbers(5, 0, 0)));
        assert!(talk.believes(Reply, RST, numbers(9_001, 0, 0)));
        assert!(talk.says(Reply, ACK, numbers(9_001, 0, 1_101)));
        assert!(!talk.believes(Original, RST, numbers(5, 0, 0)));
    }

    proptest! {
        /// Both sides send and acknowledge, in any order and with as much in flight as a window holds; some segments are lost
        /// before lbd, and some come out of order.
        #[test]
        fn whatever_two_sides_say_their_last_words_are_believed(
            start in any::<[u32; 2]>(),
            steps in prop::collection::vec((any::<bool>(), 0..70_000_u32, any::<bool>(), any::<bool>()), 0..200),
        ) {
            let mut talk = Talk::new(start[0], start[1]);
            // Sent, and received, of each side.
            let mut sent = start.map(|start| start.wrapping_add(1));
            let mut received = [sent[1], sent[0]];
            for (by_backend, length, is_lost, is_acknowledged) in steps {
                let (own, other) = (usize::from(by_backend), usize::from(!by_backend));
                let direction = if by_backend { Reply } else { Original };
                let segment = numbers(sent[own], length, received[own]);
                sent[own] = segment.end;
                if !is_lost {
                    prop_assert!(talk.says(direction, ACK, segment), "{segment:?} {talk:?}", talk = talk.window);
                }
                if is_acknowledged {
                    received[other] = sent[own];
                    let back = if by_backend { Original } else { Reply };
                    prop_assert!(talk.says(back, ACK, numbers(sent[other], 0, received[other])));
                }
            }
            for (own, direction) in [(0, Original), (1, Reply)] {
                let last = numbers(sent[own], 0, received[own]);
                talk.says(direction, ACK, last);
                prop_assert!(talk.believes(direction, FIN | ACK, numbers(sent[own], 1, received[own])));
                prop_assert!(talk.believes(direction, RST, numbers(sent[own], 0, 0)));
            }
        }
    }
}
