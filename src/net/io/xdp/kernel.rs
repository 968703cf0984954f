//! The kernel's part: packets that lbd cannot send itself, and packets that were not its own after all.
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::filter::KernelPath;
use crate::io::tun::Sender;
use lbd_core::packet::Headers;
use lbd_core::packet::frame::Checksum;
use lbd_core::rewrite;

/// How many packets went through the kernel, and why; written by one worker, read by anyone.
#[derive(Debug, Default)]
pub struct Tally {
    /// Translated by lbd and routed by the kernel.
    pub routed: AtomicU64,
    /// Given back as they came.
    pub returned: AtomicU64,
    /// Checksums that a local sender had left unfinished.
    pub finished_checksums: AtomicU64,
    /// Questions for the link address of a service that were answered.
    pub answered: AtomicU64,
}

/// Counts one more.
pub(super) fn count(counter: &AtomicU64) {
    counter.store(counter.load(Relaxed).wrapping_add(1), Relaxed);
}

/// The ways into the kernel.
#[derive(Debug)]
pub(super) struct Kernel {
    tun: Sender,
    path: KernelPath,
    tally: Arc<Tally>,
    unsent: usize,
}

impl Kernel {
    pub(super) const fn new(tun: Sender, path: KernelPath, tally: Arc<Tally>) -> Self {
        Self {
            tun,
            path,
            tally,
            unsent: 0,
        }
    }

    pub(super) fn tally(&self) -> &Tally {
        &self.tally
    }

    /// Has the kernel route a packet that lbd has translated: it comes out of lbd's TUN device. Nothing is lost while a
    /// neighbour is unresolved.
    pub(super) fn route(&mut self, packet: &[u8], checksum: Checksum) {
        count(&self.tally.routed);
        if self.tun.send(packet, checksum).is_err() {
            self.unsent += 1;
        }
    }

    /// Gives back an IP packet that is not lbd's: as in TUN mode, it goes on out of lbd's device, past what leads packets to
    /// lbd. The filter leaves its flow alone for a while.
    pub(super) fn give_back(&mut self, packet: &mut [u8]) {
        count(&self.tally.returned);
        rewrite::finish_checksum(packet);
        if self.tun.send(packet, Checksum::Complete).is_err() {
            self.unsent += 1;
        }
        let tuple = Headers::parse(packet).ok().and_then(|headers| headers.tuple());
        let remembered = tuple.map_or(Ok(()), |tuple| self.path.remember_passed(&tuple));
        if let Err(error) = remembered {
            tracing::debug!("the filter goes on taking a flow that is not lbd's: {error}");
        }
    }

    /// Has the filter take the answers to a packet that opens a flow, whatever it did with packets of their tuple before: a
    /// straggler of the client's last connection may have been none of lbd's.
    pub(super) fn take_answers(&self, packet: &[u8]) {
        let tuple = Headers::parse(packet).ok().and_then(|headers| headers.flow(packet));
        let taken = tuple.map_or(Ok(()), |tuple| self.path.forget_passed(&tuple.reply()));
        if let Err(error) = taken {
            tracing::debug!("the filter may pass answers of a new flow for a second: {error}");
        }
    }

    /// Gives back a frame that carries no IP packet: it goes on as if it had just come in by the interface.
    pub(super) fn reinject(&mut self, interface: u32, frame: &[u8]) {
        count(&self.tally.returned);
        if let Err(error) = self.path.reinject(interface, frame) {
            tracing::debug!("a frame that is not lbd's is lost: {error}");
            self.unsent += 1;
        }
    }

    /// Packets that were lost since the last call.
    pub(super) const fn take_unsent(&mut self) -> usize {
        std::mem::replace(&mut self.unsent, 0)
    }
}
