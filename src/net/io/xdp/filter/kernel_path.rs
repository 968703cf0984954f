//! What a worker does with a packet that the filter took and that is not lbd's: gives it back, and has the filter leave
//! the flow alone for a while.
use std::collections::BTreeSet;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use ahash::RandomState;
use parking_lot::RwLock;

use super::tables;
use crate::io::bpf::{self, Map};
use lbd_core::flow::Tuple;

/// How long the filter passes a flow that turned out not to be lbd's.
pub(super) const REMEMBERED: Duration = Duration::from_secs(1);

/// The way back to the kernel; clones share it.
#[derive(Clone, Debug)]
pub struct KernelPath(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    passed: Map,
    latest_passed: Map,
    /// What `latest_passed` holds.
    latest: AtomicU64,
    opened: Opened,
    pass_on: OwnedFd,
    pass_on_marked: OwnedFd,
    /// Interfaces on which the kernel runs the filter on reinjected frames too.
    generic: RwLock<BTreeSet<u32>>,
}

impl KernelPath {
    pub(super) fn new(passed: Map, latest_passed: Map, pass_on: OwnedFd, pass_on_marked: OwnedFd) -> Self {
        Self(Arc::new(Shared {
            passed,
            latest_passed,
            latest: AtomicU64::new(0),
            opened: Opened::default(),
            pass_on,
            pass_on_marked,
            generic: RwLock::default(),
        }))
    }

    pub(super) fn set_generic(&self, interface: u32, generic: bool) {
        let mut set = self.0.generic.write();
        if generic {
            set.insert(interface);
        } else {
            set.remove(&interface);
        }
    }

    /// From now on, for a second or until the next [`set_interest`](super::program::Filter::set_interest), the filter
    /// leaves packets with this tuple to the kernel, where it would take them as a backend's or because of a rule. The
    /// other direction of the flow has a tuple of its own.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn remember_passed(&self, tuple: &Tuple) -> io::Result<()> {
        let shared = &*self.0;
        let until = bpf::clock()? + nanoseconds(REMEMBERED);
        let key = tables::flow(tuple);
        shared.latest.fetch_max(until, SeqCst);
        shared.passed.put(&key, &until.to_ne_bytes())?;
        // Another worker's may come before it; they differ by less than an eyeblink, and only a reload looks at it.
        shared.latest_passed.put(&0_u32.to_ne_bytes(), &until.to_ne_bytes())?;
        // Another worker may have opened a flow since this one found none: either it sees the entry, or this one sees the
        // flow.
        match shared.opened.contains(tuple) {
            true => shared.passed.remove(&key),
            false => Ok(()),
        }
    }

    /// The filter takes packets with this tuple at once, since a flow of lbd's was opened that has them.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn forget_passed(&self, tuple: &Tuple) -> io::Result<()> {
        let shared = &*self.0;
        shared.opened.insert(tuple);
        if shared.latest.load(SeqCst) < bpf::clock()? {
            return Ok(());
        }
        shared.passed.remove(&tables::flow(tuple))
    }

    /// Gives a whole Ethernet frame to the kernel as if it had just arrived on this interface, untouched. (In generic
    /// mode its source MAC address is replaced, so that the filter knows it when it meets it again.)
    ///
    /// # Errors
    /// The frame was not given to the kernel, and something else must be done with it: `EINVAL` before Linux 5.18, and
    /// for a frame too long for one page (about 3,400 bytes); `ENODEV` when the interface is gone.
    pub fn reinject(&self, interface: u32, frame: &[u8]) -> io::Result<()> {
        let program = if self.0.generic.read().contains(&interface) {
            &self.0.pass_on_marked
        } else {
            &self.0.pass_on
        };
        bpf::run_live(program, interface, frame)
    }
}

/// Tuples of flows that were opened of late, told by their hashes: a newer one takes the place of an older one. That another
/// tuple is taken for one of them costs its packets the way over lbd, nothing else.
#[derive(Debug)]
struct Opened {
    places: Box<[AtomicU64]>,
    hasher: RandomState,
}

impl Default for Opened {
    fn default() -> Self {
        const PLACES: usize = 4096;
        Self {
            places: (0..PLACES).map(|_| AtomicU64::new(0)).collect(),
            hasher: RandomState::new(),
        }
    }
}

impl Opened {
    fn place(&self, tuple: &Tuple) -> (&AtomicU64, u64) {
        let hash = self.hasher.hash_one(tuple);
        (&self.places[hash as usize % self.places.len()], hash)
    }

    fn insert(&self, tuple: &Tuple) {
        let (place, hash) = self.place(tuple);
        place.store(hash, SeqCst);
    }

    fn contains(&self, tuple: &Tuple) -> bool {
        let (place, hash) = self.place(tuple);
        place.load(SeqCst) == hash
    }
}

pub(super) const fn nanoseconds(duration: Duration) -> u64 {
    duration.as_nanos() as u64
}
