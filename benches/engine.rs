//! What a packet of a known flow costs in the engine, all included: parse, lookup, state, counters, rewrite.
//!
//! Packets come in batches of 64 as from a device, flows at random. Writing each packet into its buffer is included; what that
//! takes alone is `packets alone`.
#![allow(missing_docs, reason = "criterion's macros make undocumented functions")]
#![allow(clippy::unwrap_used, reason = "a benchmark ends at the first surprise")]
use std::hint::black_box;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Barrier};
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use etherparse::PacketBuilder;

use lbd::engine::{Engine, Lane, Seeds};
use lbd::packet::frame::{Checksum, Frame};
use lbd::time::Instant;
use lbd::verdict::{Drop, Verdict};
use lbd::worker::Clock;

const BATCH: usize = 64;
const SERVICE: &str = "10.96.0.10:80";
/// Room for an Ethernet header, as in a device's buffer.
const START: usize = 64;

/// An engine with flows. Their packets differ in the client's address and port only (and in the checksums, which nobody
/// looks at), so that no memory but the engine's is touched for a flow.
struct Flows {
    engine: Engine,
    lanes: Vec<Lane>,
    count: u32,
    v6: bool,
    packet: Vec<u8>,
    now: Instant,
}

impl Flows {
    /// Every flow has been answered, so that it is established.
    fn new(count: u32, v6: bool, tcp: bool, workers: usize) -> Self {
        Self::limited(count, v6, tcp, workers, 2_000_000)
    }

    fn limited(count: u32, v6: bool, tcp: bool, workers: usize, max_flows: u32) -> Self {
        let protocol = if tcp { "tcp" } else { "udp" };
        let (service, backend) = match v6 {
            false => (SERVICE, "10.2.0.11:8080"),
            true => ("[fd00:96::10]:80", "[fd00:2::11]:8080"),
        };
        let toml = format!(
            "[conntrack]\nmax_flows = {max_flows}\n[[services]]\nname = \"web\"\nprotocol = \"{protocol}\"\n\
             address = \"{service}\"\nbackends = [{{ address = \"{backend}\" }}]\n"
        );
        let policy = lbd::config::parse("bench.toml", &toml).unwrap().config.policy;
        let seeds = Seeds {
            choices: 1,
            hashing: ahash::RandomState::with_seeds(1, 2, 3, 4),
        };
        let now = Instant::from_nanos(1_000_000_000_000);
        let (engine, lanes) = Engine::new(Arc::new(policy), workers, seeds, now);
        let mut flows = Self {
            engine,
            lanes,
            count,
            v6,
            packet: Vec::new(),
            now,
        };
        let [service, backend] = [service, backend].map(|text| text.parse().unwrap());
        for number in 0..count {
            flows.open(client(number, v6), service, backend, tcp);
        }
        flows
    }

    fn open(&mut self, client: SocketAddr, service: SocketAddr, backend: SocketAddr, tcp: bool) {
        if tcp {
            self.pass(&segment(client, service, Some((true, false))));
            self.pass(&segment(backend, client, Some((true, true))));
        } else {
            self.pass(&segment(client, service, None));
            self.pass(&segment(backend, client, None));
        }
        let packet = segment(client, service, tcp.then_some((false, true)));
        self.pass(&packet);
        self.packet = packet;
    }

    /// Writes a packet of a flow; returns where it ends.
    fn write(&self, number: u32, buffer: &mut [u8]) -> usize {
        let end = START + self.packet.len();
        let packet = &mut buffer[START..end];
        packet.copy_from_slice(&self.packet);
        let (address, ports) = if self.v6 { (8..24, 40) } else { (12..16, 20) };
        match client(number, self.v6) {
            SocketAddr::V4(from) => packet[address].copy_from_slice(&from.ip().octets()),
            SocketAddr::V6(from) => packet[address].copy_from_slice(&from.ip().octets()),
        }
        packet[ports..ports + 2].copy_from_slice(&client(number, self.v6).port().to_be_bytes());
        end
    }

    fn pass(&mut self, packet: &[u8]) {
        let mut storage = vec![0; START + packet.len()];
        storage[START..].copy_from_slice(packet);
        let end = storage.len();
        let mut frame = Frame::new(&mut storage, START, end, Checksum::Complete);
        let verdict = self
            .engine
            .enter(&mut self.lanes[0], self.now)
            .process(&mut frame, self.now);
        assert_eq!(verdict, Verdict::Forward);
    }
}

fn client(number: u32, v6: bool) -> SocketAddr {
    let address: IpAddr = match v6 {
        false => (0x0a10_0000 + number / 50_000).to_be_bytes().into(),
        true => (0xfd00_0001_u128 << 96 | u128::from(number / 50_000))
            .to_be_bytes()
            .into(),
    };
    SocketAddr::new(address, 10_000 + (number % 50_000) as u16)
}

/// A datagram, or a TCP segment with (SYN, ACK).
fn segment(from: SocketAddr, to: SocketAddr, flags: Option<(bool, bool)>) -> Vec<u8> {
    let builder = match (from.ip(), to.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => PacketBuilder::ipv4(from.octets(), to.octets(), 64),
        (IpAddr::V6(from), IpAddr::V6(to)) => PacketBuilder::ipv6(from.octets(), to.octets(), 64),
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => panic!("one IP version"),
    };
    let mut packet = Vec::new();
    match flags {
        None => builder
            .udp(from.port(), to.port())
            .write(&mut packet, &[0; 18])
            .unwrap(),
        Some((syn, ack)) => {
            // Both sides begin at 1.
            let mut builder = builder.tcp(from.port(), to.port(), if syn { 1 } else { 2 }, 1000);
            if syn {
                builder = builder.syn();
            }
            if ack {
                builder = builder.ack(2);
            }
            let payload: &[u8] = if syn { &[] } else { &[0; 6] };
            builder.write(&mut packet, payload).unwrap();
        }
    }
    packet
}

fn with_lanes(mut flows: Flows) -> (Flows, Vec<Lane>) {
    let lanes = std::mem::take(&mut flows.lanes);
    (flows, lanes)
}

fn known_flows(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("known flow");
    group.throughput(Throughput::Elements(BATCH as u64));
    for count in [1, 1_000, 1_000_000] {
        for (name, v6, tcp) in [("udp4", false, false), ("tcp4", false, true), ("tcp6", true, true)] {
            // Made once, by the first of the samples, if there is one.
            let mut made = None;
            group.bench_function(BenchmarkId::new(name, count), |bencher| {
                let (flows, lanes) = made.get_or_insert_with(|| with_lanes(Flows::new(count, v6, tcp, 1)));
                let mut rng = fastrand::Rng::with_seed(7);
                let mut buffers = vec![vec![0; 2048]; BATCH];
                bencher.iter(|| batch(flows, &mut lanes[0], &mut buffers, &mut rng));
            });
        }
    }
    group.finish();
}

fn packets_alone(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("packets alone");
    group.throughput(Throughput::Elements(BATCH as u64));
    for (name, v6, tcp) in [("udp4", false, false), ("tcp4", false, true), ("tcp6", true, true)] {
        group.bench_function(name, |bencher| {
            let flows = Flows::new(1_000, v6, tcp, 1);
            let mut rng = fastrand::Rng::with_seed(7);
            let mut buffers = vec![vec![0; 2048]; BATCH];
            bencher.iter(|| {
                black_box(frames(&flows, &mut buffers, &mut rng));
            });
        });
    }
    group.finish();
}

/// Workers that share a table, each with packets of any flow.
fn threads(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("threads");
    for workers in [1, 2] {
        group.throughput(Throughput::Elements((BATCH * workers) as u64));
        for count in [1_000, 1_000_000] {
            let id = BenchmarkId::new(format!("{workers}, tcp4"), count);
            let mut made = None;
            group.bench_function(id, |bencher| {
                let (flows, lanes) = made.get_or_insert_with(|| with_lanes(Flows::new(count, false, true, workers)));
                bencher.iter_custom(|batches| together(flows, lanes, batches));
            });
        }
    }
    group.finish();
}

/// How long it takes until each worker is through with this many batches.
fn together(flows: &Flows, lanes: &mut [Lane], batches: u64) -> Duration {
    let start = Barrier::new(lanes.len());
    std::thread::scope(|scope| {
        let workers = lanes.iter_mut().zip(0..).map(|(lane, seed)| {
            let start = &start;
            scope.spawn(move || {
                let mut rng = fastrand::Rng::with_seed(seed);
                let mut buffers = vec![vec![0; 2048]; BATCH];
                start.wait();
                let begun = Clock::start();
                (0..batches).for_each(|_| batch(flows, lane, &mut buffers, &mut rng));
                Duration::from_nanos(begun.now().as_nanos())
            })
        });
        let workers: Vec<_> = workers.collect();
        let took = workers.into_iter().map(|worker| worker.join().unwrap());
        took.max().unwrap_or_default()
    })
}

/// SYNs of flows that a full table has no place for, by the number of workers that the table is made for: one of them works.
fn refused(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("refused by a full table");
    group.throughput(Throughput::Elements(BATCH as u64));
    for workers in [1, 16] {
        group.bench_function(BenchmarkId::new("tcp4", workers), |bencher| {
            let (mut flows, mut lanes) = with_lanes(Flows::limited(1, false, true, workers, 1));
            flows.packet = segment(client(0, false), SERVICE.parse().unwrap(), Some((true, false)));
            let mut rng = fastrand::Rng::with_seed(7);
            let mut buffers = vec![vec![0; 2048]; BATCH];
            bencher.iter(|| {
                let mut frames = strangers(&flows, &mut buffers, &mut rng);
                let mut processor = flows.engine.enter(&mut lanes[0], flows.now);
                processor.process_batch(&mut frames, flows.now, |_, verdict| {
                    assert_eq!(black_box(verdict), Verdict::Drop(Drop::TableFull));
                });
            });
        });
    }
    group.finish();
}

fn batch(flows: &Flows, lane: &mut Lane, buffers: &mut [Vec<u8>], rng: &mut fastrand::Rng) {
    let mut frames = frames(flows, buffers, rng);
    let mut processor = flows.engine.enter(lane, flows.now);
    processor.process_batch(&mut frames, flows.now, |_, verdict| {
        assert_eq!(black_box(verdict), Verdict::Forward);
    });
}

/// Packets of clients that have no flow: all but the first one.
fn strangers<'a>(flows: &Flows, buffers: &'a mut [Vec<u8>], rng: &mut fastrand::Rng) -> Vec<Frame<'a>> {
    let frames = buffers.iter_mut().map(|buffer| {
        let end = flows.write(rng.u32(1..1_000_000), buffer);
        Frame::new(buffer, START, end, Checksum::Complete)
    });
    frames.collect()
}

fn frames<'a>(flows: &Flows, buffers: &'a mut [Vec<u8>], rng: &mut fastrand::Rng) -> Vec<Frame<'a>> {
    let frames = buffers.iter_mut().map(|buffer| {
        let end = flows.write(rng.u32(..flows.count), buffer);
        Frame::new(buffer, START, end, Checksum::Complete)
    });
    frames.collect()
}

fn settings() -> Criterion {
    Criterion::default()
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2))
}

criterion_group! {
    name = benches;
    config = settings();
    targets = known_flows, packets_alone, threads, refused
}
criterion_main!(benches);
