//! Where packets come from and go to: the only room with packet file descriptors and `unsafe`.
//!
//! A device owns its buffers and lends them for one batch: it receives, has the batch decided, and sends what is left
//! of it. So nothing is copied between a receive and a send buffer, on TUN as on AF_XDP, where both are one frame.
pub mod capture;
pub mod limits;
pub mod owners;
pub mod steering;
pub mod tun;
pub mod xdp;

mod bpf;
mod own_sender;

use std::io;
use std::os::fd::RawFd;

use lbd_core::packet::frame::{Fate, Frame};
use lbd_core::router::Router;

/// Decides on a batch of packets: sets each frame's [`Fate`]. A device that routes packets
/// itself lends its router.
pub type Decide<'a> = dyn FnMut(&mut [Frame<'_>], Option<&mut dyn Router>) + 'a;

/// What one exchange moved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Exchanged {
    /// Packets received.
    pub received: usize,
    /// Packets that could not be sent: the kernel had no buffer, or refused them.
    pub unsent: usize,
    /// Whether packets wait to be sent at the next exchange, which should come soon.
    pub waiting: bool,
}

impl<I: PacketIo + ?Sized> PacketIo for Box<I> {
    fn exchange(&mut self, decide: &mut Decide<'_>) -> io::Result<Exchanged> {
        (**self).exchange(decide)
    }

    fn send(&mut self, packet: &mut [u8], fate: Fate) -> io::Result<()> {
        (**self).send(packet, fate)
    }

    fn readiness(&self) -> Vec<RawFd> {
        (**self).readiness()
    }
}

/// A source and sink of packets.
pub trait PacketIo: Send {
    /// Receives what is there, at most one batch, has each frame's fate decided by `decide`, and sends what is kept.
    ///
    /// Never waits: without packets it returns zero.
    ///
    /// # Errors
    /// When the device itself fails, not for a packet that cannot be sent.
    fn exchange(&mut self, decide: &mut Decide<'_>) -> io::Result<Exchanged>;

    /// Sends an IP packet that came in an earlier exchange, by the way of those with its `fate`. Its checksums are complete.
    ///
    /// # Errors
    /// When it could not be sent.
    fn send(&mut self, packet: &mut [u8], fate: Fate) -> io::Result<()>;

    /// The descriptors that become readable when packets arrive.
    fn readiness(&self) -> Vec<RawFd>;
}
