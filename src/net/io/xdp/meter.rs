//! What happened at each socket of a worker, to be read by others while it works.
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::bundle::{Bundle, Counts};
use super::sys;

/// One worker's sockets.
#[derive(Debug)]
pub struct Meter(Vec<Gauge>);

#[derive(Debug)]
struct Gauge {
    port: usize,
    queue: u32,
    descriptor: OwnedFd,
    counts: [AtomicU64; Counts::NUMBER],
}

/// What happened at one socket since it was opened.
#[derive(Clone, Copy, Debug)]
pub struct Reading {
    /// The number of the port.
    pub port: usize,
    /// The interface's queue.
    pub queue: u32,
    /// Whether the driver writes to the frames itself.
    pub zero_copy: bool,
    /// By lbd's count.
    pub counts: Counts,
    /// By the kernel's (`XDP_STATISTICS`).
    pub kernel: Kernel,
}

/// See [`Reading`].
#[derive(Clone, Copy, Debug, Default)]
pub struct Kernel {
    /// Packets that were longer than a frame, or dropped for want of memory.
    pub dropped: u64,
    /// Packets that came while the receive ring was full.
    pub receive_ring_full: u64,
    /// Times that there was no frame for a packet.
    pub no_frame: u64,
    /// Descriptors that the kernel did not take.
    pub invalid: u64,
}

impl Meter {
    /// For the sockets of `bundle`.
    ///
    /// # Errors
    /// When the process has no descriptor left.
    pub(super) fn new(bundle: &Bundle) -> io::Result<Self> {
        let gauge = |binding: super::bundle::Binding<'_>| {
            Ok(Gauge {
                port: binding.port,
                queue: binding.queue,
                descriptor: binding.descriptor.try_clone_to_owned()?,
                counts: Default::default(),
            })
        };
        bundle.bindings().map(gauge).collect::<io::Result<_>>().map(Self)
    }

    /// Shows the worker's counts to others.
    pub(super) fn publish(&self, bundle: &Bundle) {
        for (gauge, counts) in self.0.iter().zip(bundle.counts()) {
            for (shown, count) in gauge.counts.iter().zip(counts.0) {
                shown.store(count, Relaxed);
            }
        }
    }

    /// The state of each socket.
    #[must_use]
    pub fn read(&self) -> Vec<Reading> {
        self.0.iter().map(Gauge::read).collect()
    }
}

impl Gauge {
    fn read(&self) -> Reading {
        // These calls fail for a closed socket only.
        let kernel = sys::statistics(self.descriptor.as_fd()).map_or_else(
            |_closed| Kernel::default(),
            |statistics| Kernel {
                dropped: statistics.rx_dropped,
                receive_ring_full: statistics.rx_ring_full,
                no_frame: statistics.rx_fill_ring_empty_descs,
                invalid: statistics.rx_invalid_descs + statistics.tx_invalid_descs,
            },
        );
        Reading {
            port: self.port,
            queue: self.queue,
            zero_copy: sys::is_zero_copy(self.descriptor.as_fd()).unwrap_or(false),
            counts: Counts(self.counts.each_ref().map(|count| count.load(Relaxed))),
            kernel,
        }
    }
}
