//! What a worker does with a packet that the filter took and that is not lbd's: gives it back, and has the filter leave
//! the flow alone for a while.
use std::collections::BTreeSet;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::RwLock;

use super::tables;
use crate::flow::Tuple;
use crate::io::bpf::{self, Map};

/// How long the filter passes a flow that turned out not to be lbd's.
pub(super) const REMEMBERED: Duration = Duration::from_secs(1);

/// The way back to the kernel; clones share it.
#[derive(Clone, Debug)]
pub struct KernelPath(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    passed: Map,
    latest_passed: Map,
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
        let until = bpf::clock()? + nanoseconds(REMEMBERED);
        self.0.passed.put(&tables::flow(tuple), &until.to_ne_bytes())?;
        // Another worker's may come before it; they differ by less than an eyeblink, and only a reload looks at it.
        self.0.latest_passed.put(&0_u32.to_ne_bytes(), &until.to_ne_bytes())
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

pub(super) const fn nanoseconds(duration: Duration) -> u64 {
    duration.as_nanos() as u64
}
