//! New flows through the whole engine: parsed, matched, scheduled, stored in both directions, rewritten; and those of a
//! second ago forgotten, so that the table stays as it is.
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use ahash::RandomState;
use etherparse::PacketBuilder;
use lbd::engine::{Engine, Lane, Seeds};
use lbd::packet::frame::{Checksum, Frame};
use lbd::policy::Policy;
use lbd::time::Instant;
use lbd::verdict::Verdict;

/// Packets come in batches, as from a device.
pub(crate) const BATCH: usize = 64;
/// Room for an Ethernet header.
const START: usize = 64;
/// Twenty thousand flows a second.
const APART: Duration = Duration::from_micros(50);

/// See the module.
pub(crate) struct Openings {
    engine: Engine,
    lane: Lane,
    now: Instant,
    flow: u32,
    packet: Vec<u8>,
    buffers: Vec<Vec<u8>>,
}

impl Openings {
    /// An engine without flows.
    pub(crate) fn new(mut policy: Policy) -> Self {
        policy.conntrack.max_flows = 1 << 20;
        policy.conntrack.timeouts.tcp = [Duration::from_secs(1); 11];
        let seeds = Seeds {
            choices: 1,
            hashing: RandomState::with_seed(1),
        };
        let now = Instant::from_nanos(1_000_000_000_000);
        let (engine, mut lanes) = Engine::new(Arc::new(policy), 1, seeds, now);
        let builder = PacketBuilder::ipv4([100, 64, 0, 0], [10, 96, 0, 0], 64);
        let mut packet = Vec::new();
        let syn = builder.tcp(1024, 80, 1, 1000).syn();
        syn.write(&mut packet, &[]).expect("a Vec takes all");
        Self {
            engine,
            lane: lanes.remove(0),
            now,
            flow: 0,
            packet,
            buffers: vec![vec![0; 2048]; BATCH],
        }
    }

    /// Opens a batch of flows, each to the service that `choose` says.
    pub(crate) fn batch(&mut self, choose: impl Fn(u32) -> u32) {
        let end = START + self.packet.len();
        for buffer in &mut self.buffers {
            self.flow = self.flow.wrapping_add(1);
            let packet = &mut buffer[START..end];
            packet.copy_from_slice(&self.packet);
            let client = Ipv4Addr::new(100, 64, 0, 0).to_bits() + self.flow / 50_000;
            let service = Ipv4Addr::new(10, 96, 0, 0).to_bits() + choose(self.flow);
            packet[12..16].copy_from_slice(&client.to_be_bytes());
            packet[16..20].copy_from_slice(&service.to_be_bytes());
            packet[20..22].copy_from_slice(&(10_000 + (self.flow % 50_000) as u16).to_be_bytes());
        }
        self.now = self.now + APART * BATCH as u32;
        let buffers = self.buffers.iter_mut();
        let frames = buffers.map(|buffer| Frame::new(buffer, START, end, Checksum::Complete));
        let mut frames: Vec<Frame<'_>> = frames.collect();
        let mut processor = self.engine.enter(&mut self.lane, self.now);
        processor.process_batch(&mut frames, self.now, |_, verdict| {
            assert_eq!(verdict, Verdict::Forward);
        });
    }
}
