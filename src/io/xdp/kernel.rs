//! The kernel's part: packets that lbd cannot send itself, and packets that were not its own after all.
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::filter::KernelPath;
use crate::io::tun::Sender;
use crate::packet::Headers;
use crate::packet::frame::Checksum;
use crate::rewrite;

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

    /// Gives back a frame that is not lbd's: it goes on as if it had just come in by the interface. The IP packet in it, if
    /// it is one, begins at `start`.
    pub(super) fn give_back(&mut self, interface: u32, frame: &mut [u8], start: Option<usize>) {
        count(&self.tally.returned);
        let packet = start.and_then(|start| frame.get_mut(start..));
        let tuple = packet.and_then(|packet| {
            // The kernel takes it for a packet off the wire.
            rewrite::finish_checksum(packet);
            Headers::parse(packet).ok()?.tuple()
        });
        if let Err(error) = self.path.reinject(interface, frame) {
            self.give_back_by_tun(frame, start, &error);
        }
        let remembered = tuple.map_or(Ok(()), |tuple| self.path.remember_passed(&tuple));
        if let Err(error) = remembered {
            tracing::debug!("the filter goes on taking a flow that is not lbd's: {error}");
        }
    }

    /// For kernels before 5.18, and for frames longer than a page.
    fn give_back_by_tun(&mut self, frame: &[u8], start: Option<usize>, error: &io::Error) {
        let sent = match start.and_then(|start| frame.get(start..)) {
            Some(packet) => self.tun.send(packet, Checksum::Complete),
            None => Err(io::ErrorKind::Unsupported.into()),
        };
        if sent.is_err() {
            tracing::debug!("a packet that is not lbd's is lost: {error}");
            self.unsent += 1;
        }
    }

    /// Packets that were lost since the last call.
    pub(super) const fn take_unsent(&mut self) -> usize {
        std::mem::replace(&mut self.unsent, 0)
    }
}
