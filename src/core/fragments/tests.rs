//! The table alone, with words in place of decisions and numbers in place of packets.
use proptest::prelude::*;

use super::*;

const NOW: Instant = Instant::from_nanos(1_000_000_000);

type Words = Table<&'static str>;

fn table() -> Words {
    with_limits(Limits::default())
}

fn with_limits(limits: Limits) -> Words {
    Table::new(RandomState::with_seeds(1, 2, 3, 4), limits)
}

fn host(text: &str) -> Address {
    text.parse::<std::net::IpAddr>().unwrap().into()
}

fn key(number: u32) -> Key {
    Key {
        source: host("10.1.0.2"),
        destination: host("10.96.0.10"),
        protocol: 17,
        identification: number,
    }
}

fn piece(offset: u16, length: u16, more: bool) -> Piece {
    Piece::from(&Fragment {
        identification: 0,
        protocol: 17,
        offset,
        length,
        more,
        opening: None,
    })
}

fn arrive(table: &mut Words, number: u32, piece: Piece, packet: &[u8]) -> Arrival<&'static str> {
    table.arrive(key(number), piece, packet, NOW)
}

fn packets(held: &[Held]) -> Vec<&[u8]> {
    held.iter().map(|held| held.packet.as_slice()).collect()
}

const FIRST: (u16, u16, bool) = (0, 8, true);
const MIDDLE: (u16, u16, bool) = (8, 8, true);
const LAST: (u16, u16, bool) = (16, 5, false);

fn of((offset, length, more): (u16, u16, bool)) -> Piece {
    piece(offset, length, more)
}

#[test]
fn later_fragments_follow_the_first_one() {
    let mut table = table();
    assert_eq!(arrive(&mut table, 7, of(FIRST), b"1"), Arrival::First);
    assert!(table.settle(&key(7), "there").is_empty());
    assert_eq!(arrive(&mut table, 7, of(MIDDLE), b"2"), Arrival::Follows("there"));
    assert_eq!(table.holding().datagrams, 1);
    assert_eq!(arrive(&mut table, 7, of(LAST), b"3"), Arrival::Follows("there"));
    assert_eq!(table.holding(), Holding::default(), "all of it has come");
}

#[test]
fn later_fragments_that_come_first_are_given_out_in_their_order_once_the_first_one_is_decided_about() {
    let mut table = table();
    assert_eq!(arrive(&mut table, 7, of(LAST), b"last"), Arrival::Held);
    assert_eq!(arrive(&mut table, 7, of(MIDDLE), b"middle"), Arrival::Held);
    let holding = Holding {
        datagrams: 1,
        packets: 2,
        bytes: 10,
    };
    assert_eq!(table.holding(), holding);
    assert_eq!(arrive(&mut table, 7, of(FIRST), b"first"), Arrival::First);
    let held = table.settle(&key(7), "there");
    assert_eq!(packets(&held), [&b"last"[..], b"middle"]);
    assert_eq!(table.holding(), Holding::default());
}

#[test]
fn the_identification_may_be_used_again_once_all_of_a_datagram_has_come() {
    let mut table = table();
    for word in ["one", "two", "three"] {
        assert_eq!(arrive(&mut table, 7, of(FIRST), b"1"), Arrival::First);
        table.settle(&key(7), word);
        assert_eq!(arrive(&mut table, 7, of(MIDDLE), b"2"), Arrival::Follows(word));
        assert_eq!(arrive(&mut table, 7, of(LAST), b"3"), Arrival::Follows(word));
    }
}

#[test]
fn the_identification_may_be_used_again_where_a_fragment_was_lost() {
    let mut table = table();
    for word in ["one", "two"] {
        assert_eq!(arrive(&mut table, 7, of(FIRST), word.as_bytes()), Arrival::First);
        assert!(table.settle(&key(7), word).is_empty());
        assert_eq!(arrive(&mut table, 7, of(LAST), b"3"), Arrival::Follows(word));
    }
    assert_eq!(arrive(&mut table, 7, of(MIDDLE), b"2"), Arrival::Follows("two"));
    assert_eq!(table.holding(), Holding::default());
    assert!(table.ages.is_empty());
}

#[test]
fn the_same_fragment_once_more_is_dropped_and_spoils_nothing() {
    let mut table = table();
    let duplicate = Arrival::Dropped(Drop::FragmentDuplicate, Vec::new());
    assert_eq!(arrive(&mut table, 7, of(LAST), b"3"), Arrival::Held);
    assert_eq!(arrive(&mut table, 7, of(LAST), b"3"), duplicate);
    assert_eq!(arrive(&mut table, 7, of(FIRST), b"1"), Arrival::First);
    assert_eq!(arrive(&mut table, 7, of(FIRST), b"1"), duplicate);
    assert_eq!(table.settle(&key(7), "there").len(), 1);
    assert_eq!(arrive(&mut table, 7, of(MIDDLE), b"2"), Arrival::Follows("there"));
}

#[test]
fn an_overlap_spoils_the_whole_datagram_and_what_still_comes_of_it() {
    let mut table = table();
    assert_eq!(arrive(&mut table, 7, of(LAST), b"3"), Arrival::Held);
    let overlap = arrive(&mut table, 7, piece(8, 16, true), b"x");
    let Arrival::Dropped(Drop::FragmentOverlap, held) = overlap else {
        panic!("{overlap:?}")
    };
    assert_eq!(packets(&held), [b"3"]);
    for rest in [FIRST, MIDDLE] {
        let dropped = Arrival::Dropped(Drop::FragmentOverlap, Vec::new());
        assert_eq!(arrive(&mut table, 7, of(rest), b"r"), dropped);
    }
    assert_eq!(table.course(&key(7)), Some(Err(Drop::FragmentOverlap)));
    assert_eq!(arrive(&mut table, 8, of(FIRST), b"1"), Arrival::First, "another one");
}

#[test]
fn a_datagram_without_its_first_fragment_is_given_up_after_the_kernels_time() {
    let v6 = Key {
        source: host("fd00::1"),
        destination: host("fd00::2"),
        protocol: 0,
        identification: 1,
    };
    for (key, seconds) in [(key(7), 30), (v6, 60)] {
        let mut table = table();
        assert_eq!(table.arrive(key, of(LAST), b"3", NOW), Arrival::Held);
        let end = NOW + Duration::from_secs(seconds);
        assert!(table.expire(Instant::from_nanos(end.as_nanos() - 1)).is_empty());
        assert_eq!(packets(&table.expire(end)), [b"3"]);
        assert_eq!(table.holding(), Holding::default());
        assert_eq!(table.arrive(key, of(LAST), b"3", end), Arrival::Held, "anew");
    }
}

#[test]
fn in_a_full_table_the_oldest_datagram_makes_room_and_the_others_go_on() {
    let limits = Limits {
        datagrams: 2,
        ..Limits::default()
    };
    let mut table = with_limits(limits);
    assert_eq!(arrive(&mut table, 1, of(LAST), b"3"), Arrival::Held);
    assert_eq!(arrive(&mut table, 2, of(LAST), b"4"), Arrival::Held);
    assert_eq!(arrive(&mut table, 3, of(FIRST), b"1"), Arrival::First);
    assert_eq!(packets(&table.take_evicted()), [b"3"], "told once");
    assert_eq!(table.take_evicted(), []);
    assert_eq!(arrive(&mut table, 2, of(MIDDLE), b"2"), Arrival::Held);
    assert_eq!(table.holding().datagrams, 2);
}

fn sent_by(source: &str, number: u32) -> Key {
    Key {
        source: host(source),
        ..key(number)
    }
}

#[test]
fn a_sender_with_its_share_makes_room_for_itself_and_keeps_nobody_out() {
    for (honest, hostile) in [
        ("10.1.0.2", &["10.1.0.3"][..]),
        ("fd00:1::2", &["fd00:2::1", "fd00:2::2"]),
    ] {
        let mut table = table();
        let slow = sent_by(honest, 1);
        assert_eq!(table.arrive(slow, of(LAST), b"3", NOW), Arrival::Held);
        for number in 0..100_000 {
            let lone = sent_by(hostile[number as usize % hostile.len()], number);
            assert_eq!(table.arrive(lone, of(LAST), b"x", NOW), Arrival::Held);
        }
        assert_eq!(table.take_evicted().len(), 100_000 - 1_024);
        assert_eq!(table.holding().datagrams, 1 + 1_024);
        assert_eq!(table.arrive(slow, of(FIRST), b"1", NOW), Arrival::First);
        assert_eq!(packets(&table.settle(&slow, "there")), [b"3"]);
    }
}

#[test]
fn lone_fragments_of_any_senders_keep_no_datagram_out_that_comes_at_once() {
    let mut table = table();
    for number in 0..40_000 {
        let [_, _, high, low] = u32::to_be_bytes(number);
        let lone = sent_by(&format!("10.9.{high}.{low}"), number);
        assert_eq!(table.arrive(lone, of(LAST), b"x", NOW), Arrival::Held);
        if number % 1_000 == 0 {
            assert_eq!(arrive(&mut table, number, of(LAST), b"3"), Arrival::Held);
            assert_eq!(arrive(&mut table, number, of(FIRST), b"1"), Arrival::First);
            assert_eq!(table.settle(&key(number), "there").len(), 1);
        }
    }
    assert!(table.holding().datagrams <= 16_384);
}

#[test]
fn the_oldest_of_what_is_held_makes_room_for_more_bytes() {
    let limits = Limits {
        bytes: 10,
        ..Limits::default()
    };
    let mut table = with_limits(limits);
    assert_eq!(arrive(&mut table, 1, of(LAST), b"123456"), Arrival::Held);
    assert_eq!(arrive(&mut table, 2, of(LAST), b"1234"), Arrival::Held);
    assert_eq!(arrive(&mut table, 3, of(LAST), b"12345"), Arrival::Held);
    assert_eq!(packets(&table.take_evicted()), [b"123456"]);
    assert_eq!(table.holding().bytes, 9);
    let Arrival::Dropped(Drop::FragmentTableFull, held) = arrive(&mut table, 3, of(MIDDLE), b"1234567") else {
        panic!("held beyond what is allowed")
    };
    assert_eq!(
        (packets(&held), packets(&table.take_evicted())),
        (vec![&b"12345"[..]], vec![&b"1234"[..]])
    );
    let full = Arrival::Dropped(Drop::FragmentTableFull, Vec::new());
    assert_eq!(arrive(&mut table, 3, of(FIRST), b"1"), full, "never whole");
    assert_eq!(table.holding().bytes, 0);
}

#[test]
fn the_bytes_that_a_sender_has_held_are_its_own_share() {
    let limits = Limits {
        bytes_of_sender: 10,
        ..Limits::default()
    };
    let mut table = with_limits(limits);
    let other = sent_by("10.1.0.9", 1);
    assert_eq!(table.arrive(other, of(LAST), b"12345", NOW), Arrival::Held);
    for number in 0..5 {
        assert_eq!(arrive(&mut table, number, of(LAST), b"1234567"), Arrival::Held);
    }
    assert_eq!(table.take_evicted().len(), 4);
    assert_eq!(table.arrive(other, of(FIRST), b"1", NOW), Arrival::First);
    assert_eq!(packets(&table.settle(&other, "there")), [b"12345"]);
}

#[test]
fn of_many_datagrams_whose_time_is_over_a_few_are_given_up_at_a_time() {
    let mut table = table();
    for number in 0..1_000 {
        assert_eq!(arrive(&mut table, number, of(LAST), b"3"), Arrival::Held);
    }
    let (end, mut given) = (NOW + LIFE_V4, Vec::new());
    while table.is_behind(end) {
        let some = table.expire(end);
        assert!(some.len() <= AT_ONCE);
        given.extend(some);
    }
    assert_eq!((given.len(), table.holding()), (1_000, Holding::default()));
}

/// Lengths of the fragments of a datagram.
fn cut() -> impl Strategy<Value = Vec<u16>> {
    prop::collection::vec(1..40_u16, 1..12).prop_map(|eighths| eighths.into_iter().map(|eighth| eighth * 8).collect())
}

/// The datagram's number and the place of each of its fragments in it, with what there is in it.
fn fragments(number: u32, lengths: &[u16]) -> Vec<(u32, Piece, Vec<u8>)> {
    let ends = lengths.iter().scan(0, |end, length| {
        *end += length;
        Some(*end)
    });
    let mut all = Vec::new();
    for (place, (end, length)) in ends.zip(lengths).enumerate() {
        let more = place + 1 < lengths.len();
        let piece = piece(end - length, *length, more);
        all.push((number, piece, vec![number as u8, place as u8]));
    }
    all
}

proptest! {
    /// In whatever order the fragments of many datagrams come: each leaves once, by the way of its own datagram.
    #[test]
    fn every_fragment_leaves_as_its_first_one_does(
        mut order in prop::collection::vec(cut(), 1..8).prop_map(|cuts| {
            (0..).zip(&cuts).flat_map(|(number, lengths)| fragments(number, lengths)).collect::<Vec<_>>()
        }).prop_shuffle()
    ) {
        let mut table: Table<u32> = Table::new(RandomState::with_seeds(1, 2, 3, 4), Limits::default());
        let mut left = Vec::new();
        for (number, piece, packet) in &order {
            match table.arrive(key(*number), *piece, packet, NOW) {
                Arrival::First => {
                    left.push((*number, packet.clone()));
                    let held = table.settle(&key(*number), *number);
                    left.extend(held.into_iter().map(|held| (*number, held.packet)));
                }
                Arrival::Follows(course) => left.push((course, packet.clone())),
                Arrival::Held => {}
                Arrival::Dropped(reason, _) => prop_assert!(false, "{:?}", reason),
            }
        }
        prop_assert_eq!(table.holding(), Holding::default());
        left.sort();
        order.sort_by(|one, other| one.2.cmp(&other.2));
        let expected: Vec<_> = order.into_iter().map(|(number, _, packet)| (number, packet)).collect();
        prop_assert_eq!(left, expected);
    }

    /// Whatever comes, what is held is counted right and stays within its bounds.
    #[test]
    fn the_bounds_hold_whatever_comes(
        arrivals in prop::collection::vec((0..12_u32, 0..40_u16, 1..20_u16, any::<bool>(), 0..20_u64), 1..200)
    ) {
        let limits = Limits { datagrams: 4, bytes: 40, datagrams_of_sender: 3, bytes_of_sender: 30 };
        let mut table: Table<u32> = Table::new(RandomState::with_seeds(1, 2, 3, 4), limits);
        let (mut now, mut held, mut given) = (NOW, 0, 0);
        for (number, offset, length, more, seconds) in arrivals {
            now = now + Duration::from_secs(seconds);
            given += table.expire(now).len();
            let key = sent_by(["10.1.0.2", "10.1.0.3", "fd00::1"][number as usize % 3], number);
            match table.arrive(key, piece(offset * 8, length * 8, more), &[0; 7], now) {
                Arrival::First => given += table.settle(&key, number).len(),
                Arrival::Follows(course) => prop_assert_eq!(course, number),
                Arrival::Held => held += 1,
                Arrival::Dropped(_, released) => given += released.len(),
            }
            given += table.take_evicted().len();
            let holding = table.holding();
            prop_assert!(holding.datagrams <= 4 && holding.bytes <= 40);
            prop_assert_eq!(holding.packets, held - given);
            prop_assert_eq!(holding.bytes, 7 * holding.packets);
            prop_assert_eq!(table.ages.len(), holding.datagrams);
            prop_assert!(table.waiting.len() <= holding.packets && table.senders.len() <= holding.datagrams);
        }
    }
}
