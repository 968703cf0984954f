//! `max_flows`: who goes when the table is full.
use lbd::flow::Protocol;
use lbd::verdict::{Drop, Verdict};

use lbd::packet::frame::{Checksum, Frame};

use crate::packets::{ACK, FIN, SYN};
use crate::world::{Case, Flow, World, packet};

fn limited(case: Case, max_flows: usize) -> World {
    case.setup().tables(&limit(max_flows)).world()
}

fn limit(max_flows: usize) -> String {
    format!("[conntrack]\nmax_flows = {max_flows}")
}

fn alive(world: &World, flows: &[Flow]) -> Vec<bool> {
    flows.iter().map(|flow| world.is_alive(flow)).collect()
}

#[test]
fn a_full_table_forgets_the_oldest_embryonic_flow_first() {
    for case in Case::all() {
        let mut world = limited(case, 4);
        let flows: Vec<Flow> = (1..=4)
            .map(|port| match port {
                2 | 3 => world.open(case.protocol, case.client(2, port), case.service()),
                _ => world.connect(case.protocol, case.client(2, port), case.service()),
            })
            .collect();
        let fifth = world.open(case.protocol, case.client(2, 5), case.service());
        assert_eq!(alive(&world, &flows), [true, false, true, true], "{case:?}");
        let sixth = world.open(case.protocol, case.client(2, 6), case.service());
        assert_eq!(alive(&world, &flows), [true, false, false, true]);
        let seventh = world.open(case.protocol, case.client(2, 7), case.service());
        assert_eq!(
            alive(&world, &[fifth, sixth, seventh]),
            [false, true, true],
            "the oldest of those"
        );
        assert_eq!(world.engine.conntrack().len(), 4);
    }
}

#[test]
fn then_the_oldest_closing_one() {
    for case in Case::tcp() {
        let mut world = limited(case, 3);
        let flows: Vec<Flow> = (1..=3)
            .map(|port| world.connect(Protocol::Tcp, case.client(2, port), case.service()))
            .collect();
        // Older by its place among the closing ones, not by its birth.
        world.backend_closes(&flows[2]);
        world.client_closes(&flows[0]);
        world.open(Protocol::Tcp, case.client(2, 4), case.service());
        assert_eq!(alive(&world, &flows), [true, true, false]);
        world.open(Protocol::Tcp, case.client(2, 5), case.service());
        assert_eq!(
            alive(&world, &flows),
            [true, true, false],
            "an embryonic one goes before a closing one"
        );
    }
}

#[test]
fn an_established_flow_is_never_evicted() {
    for case in Case::all() {
        let mut world = limited(case, 2);
        let flows = [1, 2].map(|port| world.connect(case.protocol, case.client(2, port), case.service()));
        for port in 3..20 {
            let verdict = world.try_open(case.protocol, case.client(2, port), case.service());
            assert_eq!(verdict, Verdict::Drop(Drop::TableFull));
        }
        for flow in &flows {
            world.up(flow, ACK);
            world.down(flow, ACK);
        }
        world.seconds(86_401);
        world.open(case.protocol, case.client(2, 3), case.service());
    }
}

#[test]
fn a_flow_that_becomes_established_leaves_the_embryonic_ones_and_comes_back_when_it_closes() {
    let case = Case::TCP;
    let mut world = limited(case, 2);
    let first = world.open(Protocol::Tcp, case.client(2, 1), case.service());
    let second = world.open(Protocol::Tcp, case.client(2, 2), case.service());
    world.down(&first, SYN | ACK);
    world.up(&first, ACK);
    let third = world.connect(Protocol::Tcp, case.client(2, 3), case.service());
    assert_eq!(alive(&world, &[first, second, third]), [true, false, true]);
    world.up(&first, FIN | ACK);
    world.open(Protocol::Tcp, case.client(2, 4), case.service());
    assert_eq!(alive(&world, &[first, third]), [false, true]);
}

#[test]
fn an_evicted_flow_no_longer_counts_for_its_backend() {
    let case = Case::TCP;
    let mut world = case.setup().weights(&[1]).tables(&limit(5)).world();
    for port in 1..=500 {
        world.open(Protocol::Tcp, case.client(2, port), case.service());
    }
    assert_eq!(world.load(case.backend(1)), (5, 0));
    assert_eq!(world.engine.conntrack().len(), 5);
    world.seconds(61);
    assert_eq!(world.load(case.backend(1)), (0, 0));
}

#[test]
fn a_refused_flow_evicts_no_other() {
    let case = Case::TCP;
    let external = format!("external_addresses = [\"{}\"]", case.external().ip());
    let tables = format!("[nat]\nmasquerade = \"never\"\n{}", limit(2));
    let mut world = case.setup().weights(&[1]).keys(&external).tables(&tables).world();
    let one = world.open(Protocol::Tcp, case.client(2, 1), case.service());
    let two = world.open(Protocol::Tcp, case.client(2, 2), case.service());
    let verdict = world.try_open(Protocol::Tcp, case.client(2, 1), case.external());
    assert_eq!(verdict, Verdict::Drop(Drop::TupleInUse));
    assert_eq!(alive(&world, &[one, two]), [true, true]);
}

#[test]
fn a_lower_limit_lets_flows_end_and_a_higher_one_lets_more_in() {
    let case = Case::UDP;
    let mut world = limited(case, 4);
    let flows: Vec<Flow> = (1..=4)
        .map(|port| world.connect(Protocol::Udp, case.client(2, port), case.service()))
        .collect();
    world.reload(&case.setup().tables(&limit(2)).toml());
    assert_eq!(alive(&world, &flows), [true; 4]);
    let full = Verdict::Drop(Drop::TableFull);
    assert_eq!(world.try_open(Protocol::Udp, case.client(2, 9), case.service()), full);
    world.reload(&case.setup().tables(&limit(5)).toml());
    world.connect(Protocol::Udp, case.client(2, 9), case.service());
    assert_eq!(world.try_open(Protocol::Udp, case.client(2, 10), case.service()), full);
    world.seconds(301);
    assert!(world.engine.conntrack().is_empty());
}

#[test]
fn two_workers_keep_the_limit_too() {
    let case = Case::UDP;
    let mut world = World::build(&case.setup().tables(&limit(50)).toml(), 2, 7);
    for port in 1..=5_000 {
        world.open(Protocol::Udp, case.client(2, port), case.service());
        assert!(world.engine.conntrack().len() <= 50);
    }
    let mut seen = 0;
    world.engine.conntrack().each(world.now, |_| seen += 1);
    assert_eq!(seen, 50);
    world.seconds(301);
    assert!(world.engine.conntrack().is_empty());
}

/// Sources and ports at random; a checksum is the receiver's business.
#[test]
fn a_million_syns_of_forged_senders_evict_no_established_flow_and_take_no_more_than_max_flows_do() {
    const FLOWS: usize = 20_000;
    const LIMIT: usize = 100_000;
    let case = Case::TCP;
    let mut world = limited(case, LIMIT);
    let connect = |world: &mut World, n: usize| {
        let client = case.client(2 + (n / 10_000) as u16, 1_000 + (n % 10_000) as u16);
        world.connect(Protocol::Tcp, client, case.service())
    };
    let flows: Vec<Flow> = (0..FLOWS).map(|n| connect(&mut world, n)).collect();
    let syn = packet(Protocol::Tcp, case.client(1, 1), case.service(), SYN);
    let mut rng = fastrand::Rng::with_seed(3);
    for _ in 0..1_000_000 / 64 {
        let mut processor = world.engine.enter(&mut world.lanes[0], world.now);
        for _ in 0..64 {
            let mut forged = syn.clone();
            // Of 11.0.0.0/8, where no client is.
            forged[12..16].copy_from_slice(&(11 << 24 | rng.u32(..1 << 24)).to_be_bytes());
            forged[20..22].copy_from_slice(&rng.u16(1..).to_be_bytes());
            let end = forged.len();
            let verdict = processor.process(&mut Frame::new(&mut forged, 0, end, Checksum::Complete), world.now);
            assert_eq!(verdict, Verdict::Forward);
        }
    }
    let table = world.engine.conntrack();
    assert_eq!(table.len(), LIMIT);
    assert!(flows.iter().all(|flow| world.is_alive(flow)));
    let each = table.memory() / LIMIT;
    println!("a flow takes {each} bytes, both directions together");
    assert!(each <= 144, "{each} bytes a flow");
}

#[test]
fn a_flow_whose_backend_never_answered_is_embryonic_whatever_the_client_sends() {
    // A forged client can send SYN and ACK without ever seeing an answer.
    for case in Case::all() {
        let mut world = limited(case, 3);
        let real = world.connect(case.protocol, case.client(2, 1), case.service());
        for port in 2..100 {
            let forged = world.open(case.protocol, case.client(3, port), case.service());
            world.up(&forged, ACK);
        }
        let late = world.connect(case.protocol, case.client(2, 3), case.service());
        assert_eq!(alive(&world, &[real, late]), [true, true], "{case:?}");
    }
}

#[test]
fn a_question_and_its_answer_make_room_for_others_until_the_client_says_more() {
    // A forged question is answered as well as a real one.
    let case = Case::UDP;
    let mut world = limited(case, 3);
    let real = world.open(case.protocol, case.client(2, 1), case.service());
    world.down(&real, 0);
    world.up(&real, 0);
    for port in 2..100 {
        let forged = world.open(case.protocol, case.client(3, port), case.service());
        world.down(&forged, 0);
    }
    let late = world.open(case.protocol, case.client(2, 3), case.service());
    assert_eq!(alive(&world, &[real, late]), [true, true]);
}

#[test]
fn a_client_that_only_listens_makes_room_after_those_that_heard_one_answer() {
    let case = Case::UDP;
    let mut world = limited(case, 2);
    let listener = world.open(case.protocol, case.client(2, 1), case.service());
    world.down(&listener, 0);
    let other = world.open(case.protocol, case.client(2, 2), case.service());
    world.down(&other, 0);
    world.down(&listener, 0);
    world.open(case.protocol, case.client(2, 3), case.service());
    assert_eq!(alive(&world, &[listener, other]), [true, false]);
}
