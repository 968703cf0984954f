//! Packets and bytes of rules, close together: with counters in allocations of their own ([`crate::service::Stats`]) a lookup
//! of any among 10,000 rules took 180 ns instead of 55, among 100,000 770 instead of 200 to 320, all in cache misses.
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::service::Totals;
use lbd_prefetch as prefetch;

/// Tallies of a block, at most.
const BLOCK: usize = 1024;

/// Tallies in 128 bytes, which is what processors fetch at once: between the tallies of two workers.
const APART: usize = 8;

/// What one worker counted for one rule.
#[derive(Debug, Default)]
struct Cell {
    packets: AtomicU64,
    bytes: AtomicU64,
}

/// Some rules' cells: those of the first worker, then those of the next.
#[derive(Debug)]
struct Block {
    cells: Box<[Cell]>,
    /// From one worker's cells to the next one's.
    stride: usize,
}

/// New flows that a rule decided on, and their first packets' bytes. Copies count together.
#[derive(Clone, Debug)]
pub struct Tally {
    block: Arc<Block>,
    index: u32,
}

impl Tally {
    #[inline]
    fn cell(&self, lane: usize) -> &Cell {
        &self.block.cells[lane * self.block.stride + self.index as usize]
    }

    /// Has the CPU fetch what [`Self::count`] will write to.
    #[inline]
    pub(super) fn prefetch(&self, lane: usize) {
        prefetch::line(&raw const *self.cell(lane));
    }

    /// Counts a packet; only the worker of `lane` may.
    pub(super) fn count(&self, lane: usize, bytes: usize) {
        let cell = self.cell(lane);
        // No other thread writes it, so adding needs no locked instruction.
        let packets = cell.packets.load(Relaxed).wrapping_add(1);
        cell.packets.store(packets, Relaxed);
        let bytes = cell.bytes.load(Relaxed).wrapping_add(bytes as u64);
        cell.bytes.store(bytes, Relaxed);
    }

    /// The sum over all workers, as packets from clients.
    #[must_use]
    pub fn totals(&self) -> Totals {
        let lanes = self.block.cells.iter().skip(self.index as usize);
        let mut totals = Totals::default();
        for cell in lanes.step_by(self.block.stride) {
            totals.in_packets = totals.in_packets.wrapping_add(cell.packets.load(Relaxed));
            totals.in_bytes = totals.in_bytes.wrapping_add(cell.bytes.load(Relaxed));
        }
        totals
    }
}

/// Gives out tallies.
#[derive(Debug)]
pub(super) struct Tallies {
    lanes: usize,
    /// How many will be needed yet, at most.
    expected: usize,
    block: Option<Arc<Block>>,
    /// How many of the block are given out, and how many it has.
    used: (usize, usize),
}

impl Tallies {
    /// Tallies for `lanes` workers and for `expected` rules at most.
    pub(super) const fn new(lanes: usize, expected: usize) -> Self {
        Self {
            lanes,
            expected,
            block: None,
            used: (0, 0),
        }
    }

    /// One that has counted nothing.
    pub(super) fn next(&mut self) -> Tally {
        let (used, size) = self.used;
        let block = match self.block.take() {
            Some(block) if used < size => block,
            Some(_) | None => self.next_block(),
        };
        let index = self.used.0 as u32;
        self.used.0 += 1;
        self.expected = self.expected.saturating_sub(1);
        self.block = Some(Arc::clone(&block));
        Tally { block, index }
    }

    fn next_block(&mut self) -> Arc<Block> {
        let size = self.expected.clamp(1, BLOCK);
        let stride = size.next_multiple_of(APART) + APART;
        self.used = (0, size);
        Arc::new(Block {
            cells: (0..stride * self.lanes).map(|_| Cell::default()).collect(),
            stride,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_tally_counts_its_own_packets_and_bytes_over_all_workers() {
        let mut tallies = Tallies::new(3, 2_000);
        // More than were expected.
        let all: Vec<Tally> = (0..2_500).map(|_| tallies.next()).collect();
        for (number, tally) in all.iter().enumerate() {
            (0..3).for_each(|lane| tally.count(lane, number * 10 + lane));
        }
        for (number, tally) in all.iter().enumerate() {
            let Totals {
                in_packets, in_bytes, ..
            } = tally.totals();
            assert_eq!((in_packets, in_bytes), (3, number as u64 * 30 + 3));
        }
    }
}
