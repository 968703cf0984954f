//! Has the CPU fetch the flows of a batch of packets before they are looked up, so that they wait for the memory side by side.
//!
//! With many flows a lookup waits for a cell of the index, and then for the flow. Reads of several packets overlap only where no
//! locked instruction comes between them, which waits for those before it (Intel SDM volume 3, "Memory Ordering"). Where workers
//! share the table each shard has a lock, so the cells are prefetched without it, by [`Signpost`]s, and the flows under it. Plain
//! reads under the locks of both shards that a flow may be in had two workers with a million flows handle fewer packets together
//! than one alone.
use std::sync::atomic::{AtomicPtr, AtomicU32, Ordering::Relaxed};

use parking_lot::MutexGuard;

use super::shard::Shard;
use super::{Conntrack, Trace};
use lbd_prefetch as prefetch;

/// Where the index of a shard is, for those who do not hold its lock. It may be out of date; then nothing is gained by it.
#[derive(Debug)]
pub(super) struct Signpost {
    cells: AtomicPtr<u64>,
    /// How far right a hash is shifted to number its cell.
    shift: AtomicU32,
}

impl Signpost {
    pub(super) fn to(shard: &Shard) -> Self {
        let (cells, shift) = shard.cells();
        Self {
            cells: AtomicPtr::new(cells.cast_mut()),
            shift: AtomicU32::new(shift),
        }
    }

    /// Points to where the index is now. Every worker reads this, so it is written to only when the index has moved.
    #[inline]
    pub(super) fn follow(&self, shard: &Shard) {
        let (cells, shift) = shard.cells();
        if self.cells.load(Relaxed).cast_const() != cells {
            self.cells.store(cells.cast_mut(), Relaxed);
            self.shift.store(shift, Relaxed);
        }
    }

    /// Has the CPU fetch the cell where a search for `hash` begins.
    #[inline]
    pub(super) fn prefetch(&self, hash: u64) {
        let cell = hash >> self.shift.load(Relaxed);
        prefetch::line(self.cells.load(Relaxed).wrapping_add(cell as usize));
    }
}

/// Looks ahead for one batch; it holds the lock of the shard that it looked into last.
#[derive(Debug)]
pub struct Scout<'a> {
    conntrack: &'a Conntrack,
    held: Option<(u32, MutexGuard<'a, Shard>)>,
}

impl<'a> Scout<'a> {
    pub(super) const fn new(conntrack: &'a Conntrack) -> Self {
        Self { conntrack, held: None }
    }

    /// Has the CPU fetch the flow that a packet most likely belongs to. False: there is none. Tags are compared, no keys, so
    /// true may be wrong.
    #[inline]
    pub fn prefetch(&mut self, trace: Trace) -> bool {
        let Trace { hash, homes } = trace;
        self.shard(homes[0]).prefetch(hash) || homes[0] != homes[1] && self.shard(homes[1]).prefetch(hash)
    }

    /// Never two at once: another worker may hold the other one.
    #[inline]
    fn shard(&mut self, home: u32) -> &Shard {
        let held = match self.held.take() {
            Some((at, shard)) if at == home => shard,
            other => {
                drop(other);
                self.conntrack.lock(home)
            }
        };
        &self.held.insert((home, held)).1
    }
}
