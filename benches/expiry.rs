//! The longest that packets wait because flows are forgotten: a worker enters the engine every millisecond, without packets,
//! while all the flows of a full table come to their end.
//!
//! `cargo bench --bench expiry` prints a table. Each run is made three times, and of what one entry took the least counts: what
//! others do on the machine meanwhile is not what is measured. A wheel that moved a whole turn of 69 s at once took 50 ms for that
//! at 1,000,000 flows, and one that emptied a bucket at once some 150 ns for each flow that was opened at that time.
#![allow(clippy::unwrap_used, reason = "a benchmark ends at the first surprise")]
#![allow(clippy::print_stdout, reason = "a benchmark prints")]
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use ahash::RandomState;
use etherparse::PacketBuilder;
use lbd::engine::{Engine, Lane, Seeds};
use lbd::packet::frame::{Checksum, Frame};
use lbd::time::Instant;
use lbd::verdict::Verdict;
use lbd::worker::Clock;

const BATCH: u32 = 64;
/// Room for an Ethernet header.
const START: usize = 64;
const LIFE: Duration = Duration::from_secs(300);
const STEP: Duration = Duration::from_millis(1);
const RUNS: usize = 3;

struct Bench {
    engine: Engine,
    lane: Lane,
    clock: Clock,
    now: Instant,
    took: Vec<Duration>,
}

impl Bench {
    fn new(flows: u32) -> Self {
        let toml = format!(
            "[conntrack]\nmax_flows = {flows}\nudp = \"{}s\"\n[[services]]\nname = \"dns\"\nprotocol = \"udp\"\n\
             address = \"10.96.0.10:53\"\nbackends = [{{ address = \"10.2.0.11:53\" }}]\n",
            LIFE.as_secs()
        );
        let policy = lbd::config::parse("bench.toml", &toml).unwrap().config.policy;
        let seeds = Seeds {
            choices: 1,
            hashing: RandomState::with_seeds(1, 2, 3, 4),
        };
        let now = Instant::from_nanos(1_000_000_000_000);
        let (engine, mut lanes) = Engine::new(Arc::new(policy), 1, seeds, now);
        Self {
            engine,
            lane: lanes.remove(0),
            clock: Clock::start(),
            now,
            took: Vec::new(),
        }
    }

    /// Opens a batch of flows, the first of this number.
    fn open(&mut self, first: u32, packet: &[u8]) {
        let mut buffers = vec![[0; 256]; BATCH as usize];
        for (buffer, flow) in buffers.iter_mut().zip(first..) {
            let to = &mut buffer[START..START + packet.len()];
            to.copy_from_slice(packet);
            let client = Ipv4Addr::new(100, 64, 0, 0).to_bits() + flow / 50_000;
            to[12..16].copy_from_slice(&client.to_be_bytes());
            to[20..22].copy_from_slice(&(10_000 + (flow % 50_000) as u16).to_be_bytes());
        }
        let end = START + packet.len();
        let frames = buffers
            .iter_mut()
            .map(|buffer| Frame::new(buffer, START, end, Checksum::Complete));
        let mut frames: Vec<Frame<'_>> = frames.collect();
        let begun = self.clock.now();
        let mut processor = self.engine.enter(&mut self.lane, self.now);
        self.took.push(self.clock.now() - begun);
        processor.process_batch(&mut frames, self.now, |_, verdict| {
            assert_eq!(verdict, Verdict::Forward);
        });
    }

    /// Opens all flows, `apart` from one another, and lets time pass until they are forgotten; returns how long the last one
    /// took beyond its time.
    fn run(&mut self, flows: u32, apart: Duration) -> Duration {
        let mut packet = Vec::new();
        let builder = PacketBuilder::ipv4([100, 64, 0, 0], [10, 96, 0, 10], 64);
        builder.udp(1, 53).write(&mut packet, &[]).unwrap();
        for batch in 0..flows / BATCH {
            self.now = self.now + apart * BATCH;
            self.open(batch * BATCH, &packet);
        }
        let over = self.now + LIFE;
        while !self.engine.conntrack().is_empty() {
            self.now = self.now + STEP;
            let begun = self.clock.now();
            drop(self.engine.enter(&mut self.lane, self.now));
            self.took.push(self.clock.now() - begun);
        }
        self.now - over
    }
}

fn main() {
    // Run as a test it only shows that it runs.
    let sizes: &[u32] = match std::env::args().any(|argument| argument == "--bench") {
        true => &[1_000_000, 4_000_000],
        false => &[6_400],
    };
    println!("| flows | opened | longest, us | 99.9 %, us | the last one is forgotten after, s |");
    println!("| ---: | --- | ---: | ---: | ---: |");
    for &flows in sizes {
        for (name, apart) in [("evenly", LIFE / flows), ("at once", Duration::ZERO)] {
            let (late, mut took) = least(flows, apart);
            took.sort_unstable();
            let micros = |place: usize| took[place].as_nanos() as f64 / 1e3;
            let (last, most) = (took.len() - 1, (took.len() - 1) * 999 / 1_000);
            println!(
                "| {flows} | {name} | {:.0} | {:.0} | {:.2} |",
                micros(last),
                micros(most),
                late.as_secs_f64()
            );
        }
    }
}

/// The least time of each entry over some runs, which are all the same.
fn least(flows: u32, apart: Duration) -> (Duration, Vec<Duration>) {
    let (mut late, mut least) = (Duration::ZERO, Vec::new());
    for _ in 0..RUNS {
        let mut bench = Bench::new(flows);
        late = bench.run(flows, apart);
        least.resize(bench.took.len(), Duration::MAX);
        least
            .iter_mut()
            .zip(bench.took)
            .for_each(|(least, took)| *least = took.min(*least));
    }
    (late, least)
}
