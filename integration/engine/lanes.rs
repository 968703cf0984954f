//! Two workers that share one table: what happens at once must come out as if it happened in a row.
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use lbd::engine::{Engine, Lane};
use lbd::flow::Protocol;
use lbd::packet::frame::{Checksum, Frame};
use lbd::time::Instant;
use lbd::verdict::Verdict;

use crate::packets::{self, SYN};
use crate::world::{Case, World, packet, policy};

const ROUNDS: usize = 1_000;

/// What a worker makes of a packet once `ready` returns, and where it goes then.
fn process(
    engine: &Engine,
    lane: &mut Lane,
    now: Instant,
    sent: &[u8],
    ready: impl FnOnce(),
) -> (Verdict, SocketAddr, SocketAddr) {
    let mut storage = sent.to_vec();
    let length = storage.len();
    storage.resize(length + 1_500, 0);
    let mut frame = Frame::new(&mut storage, 0, length, Checksum::Complete);
    let mut processor = engine.enter(lane, now);
    ready();
    let verdict = processor.process(&mut frame, now);
    drop(processor);
    packets::assert_valid(frame.bytes());
    let (from, to) = packets::endpoints(frame.bytes());
    (verdict, from, to)
}

/// Each worker sends its packet of every round at the same moment as the other one; returns both results of each round.
fn at_once(
    world: &mut World,
    packet_of: impl Fn(usize, usize) -> Vec<u8> + Sync,
) -> Vec<[(Verdict, SocketAddr, SocketAddr); 2]> {
    let (engine, now, arrived) = (&world.engine, world.now, &AtomicUsize::new(0));
    let run = |worker: usize, lane: &mut Lane| -> Vec<_> {
        let mut one = |round: usize| {
            let wait = || {
                arrived.fetch_add(1, SeqCst);
                let others = || arrived.load(SeqCst) < 2 * (round + 1);
                // Both run on for sure when both spin; a worker without a CPU is waited for politely.
                let mut spins = 0;
                while others() {
                    spins += 1;
                    match spins % 3_000 {
                        0 => std::thread::yield_now(),
                        _ => std::hint::spin_loop(),
                    }
                }
            };
            process(engine, lane, now, &packet_of(worker, round), wait)
        };
        (0..ROUNDS).map(&mut one).collect()
    };
    let run = &run;
    let results: Vec<Vec<_>> = std::thread::scope(|scope| {
        let workers = world.lanes.iter_mut().enumerate();
        let threads: Vec<_> = workers
            .map(|(worker, lane)| scope.spawn(move || run(worker, lane)))
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    results[0]
        .iter()
        .zip(&results[1])
        .map(|(one, two)| [*one, *two])
        .collect()
}

fn client(case: Case, round: usize, port: u16) -> SocketAddr {
    case.client(1 + (round % 250) as u16, port + (round / 250) as u16)
}

#[test]
fn two_first_packets_of_one_flow_at_once_go_to_one_backend_and_none_is_lost() {
    for case in [Case::UDP, Case::TCP] {
        for (masquerade, weights) in [
            ("auto", &[1, 1, 1][..]),
            ("auto", &[1]),
            ("never", &[1]),
            ("always", &[1]),
        ] {
            let nat = format!("[nat]\nmasquerade = \"{masquerade}\"");
            let toml = case.setup().weights(weights).tables(&nat).toml();
            let mut world = World::build(&toml, 2, 7);
            let sent = |_, round| packet(case.protocol, client(case, round, 2_000), case.service(), SYN);
            let results = at_once(&mut world, sent);
            for [one, two] in results {
                assert_eq!(
                    (one.0, two.0),
                    (Verdict::Forward, Verdict::Forward),
                    "{masquerade} {weights:?}"
                );
                assert_eq!((one.1, one.2), (two.1, two.2), "one source and one backend");
            }
            assert_eq!(world.engine.conntrack().len(), ROUNDS);
            assert_eq!(world.total(), 2 * ROUNDS as u64);
        }
    }
}

#[test]
fn two_first_flows_of_a_persistent_client_at_once_go_to_one_backend() {
    let case = Case::UDP;
    let toml = case.setup().keys("persistence = { timeout = \"60s\" }").toml();
    let mut world = World::build(&toml, 2, 7);
    let place = |round: usize| format!("10.1.{}.{}", round / 250, 1 + round % 250);
    let sent = |worker: usize, round| {
        let client = packets::socket(format!("{}:{}", place(round), 1_000 + worker));
        packet(Protocol::Udp, client, case.service(), SYN)
    };
    for (round, [one, two]) in at_once(&mut world, sent).into_iter().enumerate() {
        assert_eq!(one.2, two.2, "round {round}");
    }
}

#[test]
fn masqueraded_flows_of_two_workers_never_share_a_source() {
    let case = Case::UDP;
    let toml = case
        .setup()
        .weights(&[1])
        .tables("[nat]\nmasquerade = \"always\"")
        .toml();
    let mut world = World::build(&toml, 2, 7);
    let sent = |worker: usize, round| {
        let client = client(case, round, 2_000 + 100 * worker as u16);
        packet(Protocol::Udp, client, case.service(), SYN)
    };
    let results = at_once(&mut world, sent);
    let mut sources: Vec<SocketAddr> = results.iter().flatten().map(|result| result.1).collect();
    sources.sort();
    sources.dedup();
    assert_eq!(sources.len(), 2 * ROUNDS);
}

#[test]
fn both_workers_find_a_flow_whoever_opened_it() {
    for case in Case::all() {
        let mut world = World::build(&case.setup().toml(), 2, 7);
        for port in 1..200 {
            let flow = world.connect(case.protocol, case.client(2, port), case.service());
            world.lane = 1;
            world.down(&flow, SYN);
            world.lane = 0;
        }
        let counted = world.backend(case.backend(1)).service.stats.totals();
        // An SCTP handshake has two packets of the backend.
        let answers = if case.protocol == Protocol::Sctp { 3 } else { 2 };
        assert_eq!((counted.connections, counted.out_packets), (199, answers * 199));
    }
}

#[test]
fn reloads_under_traffic_lose_no_packet() {
    let case = Case::UDP;
    let setup = || case.setup().keys("on_backend_removed = \"preserve\"");
    let mut world = World::build(&setup().toml(), 2, 7);
    let texts = [
        setup().toml(),
        setup()
            .mode(lbd::policy::Mode::Iptables)
            .backends(&[(3, 1), (2, 4)])
            .toml(),
        setup().scheduler("wrr").backends(&[(4, 2), (1, 0), (2, 1)]).toml(),
    ];
    let policies = texts.map(|text| policy(&text));
    let (engine, now) = (&world.engine, world.now);
    let run = |worker: usize, lane: &mut Lane| {
        for round in 0..ROUNDS {
            // Each flow sends twice, and stays where it is.
            let sent = packet(
                Protocol::Udp,
                client(case, round, 2_000 + 100 * worker as u16),
                case.service(),
                0,
            );
            let [one, two] = [0, 1].map(|_| process(engine, lane, now, &sent, || {}));
            assert_eq!((one.0, one), (Verdict::Forward, two));
        }
    };
    let (lanes, run) = (&mut world.lanes, &run);
    std::thread::scope(|scope| {
        for (worker, lane) in lanes.iter_mut().enumerate() {
            scope.spawn(move || run(worker, lane));
        }
        for policy in policies.iter().cycle().take(60) {
            engine.apply(std::sync::Arc::clone(policy));
            std::thread::yield_now();
        }
    });
    assert_eq!(world.engine.conntrack().len(), 2 * ROUNDS);
    assert_eq!(world.count(Verdict::Forward), 4 * ROUNDS as u64);
    world.seconds(301);
    assert!(world.engine.conntrack().is_empty());
    for n in 1..=4 {
        let ruleset = world.engine.ruleset();
        let mut all = ruleset.services.iter().flat_map(|service| &service.backends);
        if let Some(backend) = all.find(|backend| backend.address == case.backend(n).into()) {
            assert_eq!((backend.active(), backend.inactive()), (0, 0));
        }
    }
}
