//! Reloads under traffic: whole, between batches, and nobody waits for the other.
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};

use lbd::engine::{Engine, Lane, Processor};
use lbd::flow::Protocol;
use lbd::packet::frame::{Checksum, Frame};
use lbd::policy::Policy;
use lbd::scheduler::Kind;
use lbd::time::Instant;
use lbd::verdict::{Drop, Verdict};

use crate::packets;
use crate::world::{Case, World, packet, policy};

/// Room in a frame for what a packet becomes.
const TAIL: usize = 1_500;

/// A UDP service for each scheduler, all with the same three backends in 10.`network`.0.0/24.
fn services(network: u8) -> String {
    let service = |number: usize, kind: Kind| {
        let backend = |n| format!("{{ address = \"10.{network}.0.{n}:53\", weight = {n} }}");
        format!(
            "[[services]]\nname = \"{kind}\"\nprotocol = \"udp\"\naddress = \"10.96.0.{number}:53\"\nscheduler = \"{kind}\"\n\
             on_backend_removed = \"drop\"\nbackends = [{}]\n",
            [1, 2, 3].map(backend).join(", ")
        )
    };
    let services = (1..).zip(Kind::ALL.into_iter().filter(|&kind| kind != Kind::Random));
    let services: String = services.map(|(number, kind)| service(number, kind)).collect();
    format!("mode = \"ipvs\"\n{services}")
}

fn address(text: String) -> SocketAddr {
    text.parse().unwrap()
}

/// What one batch makes of these packets, and where each of them goes.
fn batch(engine: &Engine, lane: &mut Lane, sent: &[Vec<u8>]) -> Vec<(Verdict, SocketAddr)> {
    let mut storage: Vec<Vec<u8>> = sent.iter().map(|packet| [&packet[..], &[0; TAIL]].concat()).collect();
    let lengths = sent.iter().map(Vec::len);
    let frames = storage.iter_mut().zip(lengths);
    let mut frames: Vec<_> = frames
        .map(|(bytes, length)| Frame::new(bytes, 0, length, Checksum::Complete))
        .collect();
    let mut made = Vec::new();
    engine
        .enter(lane, Instant::ZERO)
        .process_batch(&mut frames, Instant::ZERO, |frame, verdict| {
            made.push((verdict, packets::endpoints(frame.bytes()).1));
        });
    made
}

#[test]
fn a_policy_takes_effect_while_a_batch_is_under_way_which_ends_by_the_policy_before() {
    for case in Case::all() {
        let setup = || case.setup().scheduler("mh").keys("on_backend_removed = \"reset\"");
        let mut world = World::build(&setup().backends(&[(1, 1)]).toml(), 1, 7);
        let known = world.connect(case.protocol, case.client(2, 40_000), case.service());
        let after = policy(&setup().backends(&[(2, 1)]).toml());
        let World { engine, lanes, now, .. } = &mut world;
        let mut processor = engine.enter(&mut lanes[0], *now);
        engine.apply(after);
        let sent = |processor: &mut Processor<'_>, from: SocketAddr, flags| {
            let mut bytes = packet(case.protocol, from, case.service(), flags);
            let length = bytes.len();
            bytes.resize(length + TAIL, 0);
            let mut frame = Frame::new(&mut bytes, 0, length, Checksum::Complete);
            let verdict = processor.process(&mut frame, *now);
            (verdict, packets::endpoints(frame.bytes()).1)
        };
        let [to_the_former, to_the_new] = [1, 2].map(|n| (Verdict::Forward, case.backend(n)));
        let new = |n| case.client(n, 40_000);
        assert_eq!(sent(&mut processor, new(3), packets::SYN), to_the_former, "{case:?}");
        let follows = sent(&mut processor, known.client, packets::ACK);
        assert_eq!(follows, to_the_former, "its backend is not removed yet");
        drop(processor);
        let mut processor = engine.enter(&mut lanes[0], *now);
        assert_eq!(sent(&mut processor, new(4), packets::SYN), to_the_new);
        let follows = sent(&mut processor, known.client, packets::ACK);
        assert_ne!(follows.0, Verdict::Forward, "its backend is removed");
    }
}

#[test]
fn a_ruleset_that_is_looked_at_for_long_keeps_no_other_from_taking_effect() {
    let case = Case::UDP;
    let mut world = case.setup().backends(&[(1, 1)]).world();
    let looked_at = world.engine.ruleset();
    world.reload(&case.setup().backends(&[(2, 1)]).toml());
    assert_eq!(looked_at.services[0].backends[0].address, case.backend(1).into());
    let flow = world.open(case.protocol, case.client(2, 40_000), case.service());
    assert_eq!(flow.backend, case.backend(2));
    assert_eq!(world.engine.reclaim(), 1, "it is still looked at");
    drop(looked_at);
    assert_eq!(world.engine.reclaim(), 0);
}

/// A worker during reloads from one set of services to another one and back.
struct Worker<'a> {
    engine: &'a Engine,
    lane: &'a mut Lane,
    /// Of its clients.
    number: usize,
    opened: usize,
}

impl Worker<'_> {
    fn client(&self, n: usize) -> SocketAddr {
        let (host, port) = (n / 50_000, 1_024 + n % 50_000);
        address(format!("10.1.{}.{}:{port}", self.number, 1 + host))
    }

    /// A batch of packets of two known flows, one to each set's backends, and of one new flow for each service.
    fn batch(&mut self) {
        let services = Kind::ALL.len() - 1;
        let datagram = |from, service| packet(Protocol::Udp, from, address(format!("10.96.0.{service}:53")), 0);
        let known = [0, 1].map(|n| datagram(self.client(n), 1));
        let new = (1..=services).map(|service| datagram(self.client(2 + self.opened + service), service));
        let sent: Vec<Vec<u8>> = known.into_iter().chain(new).collect();
        self.opened += services;
        let made = batch(self.engine, self.lane, &sent);
        let network = match made[2].1 {
            SocketAddr::V4(backend) => backend.ip().octets()[1],
            SocketAddr::V6(_) => unreachable!("services are of IPv4"),
        };
        for (service, (verdict, backend)) in (1..).zip(&made[2..]) {
            assert_eq!(*verdict, Verdict::Forward, "service {service}");
            let is_of_one_set = backend.to_string().starts_with(&format!("10.{network}.0."));
            assert!(is_of_one_set, "{backend} among those of 10.{network}.0.0/24");
        }
        let removed = Verdict::Drop(Drop::BackendRemoved);
        let expected = match network {
            2 => [Verdict::Forward, removed],
            _ => [removed, Verdict::Forward],
        };
        assert_eq!(
            [made[0].0, made[1].0],
            expected,
            "flows, where 10.{network}.0.0/24 has the backends"
        );
    }
}

/// Nobody waits for a worker that failed.
struct Leaves<'a>(&'a AtomicUsize);

impl std::ops::Drop for Leaves<'_> {
    fn drop(&mut self) {
        self.0.store(usize::MAX, SeqCst);
    }
}

/// A reload is over for a worker once it began a batch after it; then it goes on for a few more.
const BATCHES: usize = 10;

#[test]
fn during_two_hundred_reloads_each_batch_sees_one_ruleset_and_the_whole_of_it() {
    let mut world = World::build(&services(2), 2, 7);
    let policies: [Arc<Policy>; 2] = [2, 3].map(|network| policy(&services(network)));
    for (n, policy) in policies.iter().enumerate() {
        world.engine.apply(Arc::clone(policy));
        for (number, lane) in world.lanes.iter_mut().enumerate() {
            let mut worker = Worker {
                engine: &world.engine,
                lane,
                number,
                opened: 0,
            };
            let sent = packet(Protocol::Udp, worker.client(n), address("10.96.0.1:53".to_owned()), 0);
            worker.opened = 2;
            assert_eq!(batch(worker.engine, worker.lane, &[sent])[0].0, Verdict::Forward);
        }
    }
    let (engine, reloads, over) = (&*world.engine, &AtomicUsize::new(0), &AtomicBool::new(false));
    let seen = [const { AtomicUsize::new(0) }; 2];
    std::thread::scope(|scope| {
        for (number, (lane, seen)) in world.lanes.iter_mut().zip(&seen).enumerate() {
            scope.spawn(move || {
                let _leaves = Leaves(seen);
                let mut worker = Worker {
                    engine,
                    lane,
                    number,
                    opened: 2,
                };
                let (mut reload, mut batches) = (0, 0);
                while !over.load(SeqCst) {
                    let now = reloads.load(SeqCst);
                    batches = if now == reload { batches + 1 } else { 0 };
                    reload = now;
                    if batches < BATCHES {
                        worker.batch();
                    }
                    seen.store(now, SeqCst);
                    std::thread::yield_now();
                }
            });
        }
        for (reload, policy) in (1..=200).zip(policies.iter().cycle()) {
            engine.apply(Arc::clone(policy));
            reloads.store(reload, SeqCst);
            let are_there = || seen.iter().all(|seen| seen.load(SeqCst) >= reload);
            while !are_there() {
                std::thread::yield_now();
            }
        }
        over.store(true, SeqCst);
    });
    for lane in &mut world.lanes {
        drop(world.engine.enter(lane, Instant::ZERO));
    }
    assert_eq!(world.engine.reclaim(), 0, "all workers use the last one");
}
