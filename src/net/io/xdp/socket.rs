//! One socket: one queue of one interface, with its four rings.
#![expect(unsafe_code, reason = "the ends of rings are made here, once each")]

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use super::arrival::{Arrival, Segment};
use super::error::Step;
use super::ring::{Consumer, Descriptor, Entry, Layout, Producer};
use super::sys::{self, Mapping, Which};
use super::umem::Umem;

/// Entries of each ring.
pub(super) const RING: u32 = 2048;
/// `struct xsk_tx_metadata` (if_xdp.h): 8 bytes of flags, 16 of requests; before Linux 6.14 it ended 8 bytes earlier.
pub(super) const METADATA: u32 = 24;
/// The flags are at the start of the metadata, `csum_start` and `csum_offset` follow.
const METADATA_CSUM: usize = 8;
/// Frames of one packet sent: `MAX_SKB_FRAGS` of include/linux/skbuff.h, less than which no kernel is built with. One that
/// is too long for an skb is dropped without its frames coming back (`xsk_drop_skb`).
const LONGEST_CHAIN: usize = 17;
/// An Ethernet header; the kernel fails packets without one.
const SHORTEST: usize = 14;
/// Calls in a row that sent nothing before a socket is left alone until the next batch.
const STALLS: usize = 2;
/// Attempts to bind, and milliseconds in between: the kernel gives up a closed socket's queue a moment later
/// (`xp_release_deferred`), so one that was just closed, by lbd or its predecessor, may still be busy.
const ATTEMPTS: usize = 50;
const ATTEMPT_MS: libc::c_int = 20;
/// As the kernel's own example has it (samples/bpf/xdpsock_user.c until Linux 5.18).
const BUSY_POLL_US: libc::c_int = 20;
const BUSY_POLL_PACKETS: libc::c_int = 64;
/// Bytes of socket buffers under way in copy mode, which the kernel doubles: a ring full of 1,500-byte packets.
const SEND_BUFFER: libc::c_int = 4 * 1024 * 1024;

/// How packets get from the driver into frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    Copy,
    ZeroCopy,
}

/// What a socket is opened with.
#[derive(Clone, Copy, Debug)]
pub(super) struct Options {
    pub(super) mode: Mode,
    /// Packets may be longer than a frame.
    pub(super) chains: bool,
    pub(super) busy_poll: bool,
}

impl Options {
    fn flags(&self) -> u16 {
        let mode = match self.mode {
            Mode::Copy => libc::XDP_COPY,
            Mode::ZeroCopy => libc::XDP_ZEROCOPY,
        };
        let chains = if self.chains { libc::XDP_USE_SG } else { 0 };
        mode | chains | libc::XDP_USE_NEED_WAKEUP
    }
}

/// What happened at a socket since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counters {
    pub(super) received: u64,
    pub(super) sent: u64,
    pub(super) ring_full: u64,
    pub(super) malformed: u64,
    pub(super) refused: u64,
}

/// What a checksum needs to be finished; both offsets in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unfinished {
    /// Of the transport header, from the start of the packet as it is sent, its Ethernet header.
    pub start: u16,
    /// Of the checksum field, from `start`.
    pub offset: u16,
}

/// Empty chains, kept for the next long packet.
pub(super) type Spare = Vec<Vec<Segment>>;

#[derive(Debug)]
pub(super) struct Socket {
    pub(super) port: u16,
    /// Its place among the sockets of its port.
    pub(super) origin: u16,
    pub(super) queue: u32,
    pub(super) mode: Mode,
    busy_poll: bool,
    fill: Producer<u64>,
    completion: Consumer<u64>,
    receive: Consumer<Descriptor>,
    transmit: Producer<Descriptor>,
    /// Frames that the kernel has for packets to come.
    filling: u32,
    /// Frames that the kernel has for packets to be sent.
    sending: u32,
    /// A packet whose last frames the kernel has not shown yet.
    begun: Option<Arrival>,
    pub(super) counters: Counters,
    descriptor: OwnedFd,
}

/// A socket that is not bound yet.
pub(super) struct Unbound {
    descriptor: OwnedFd,
}

type Failure = (Step, io::Error);

impl Unbound {
    pub(super) fn new() -> Result<Self, Failure> {
        let descriptor = sys::socket().map_err(|error| (Step::Socket, error))?;
        Ok(Self { descriptor })
    }

    /// Registers frames with the kernel, with room for metadata where it can; whether it can.
    pub(super) fn register(&self, umem: &Umem, mode: Mode) -> Result<bool, Failure> {
        let register = |metadata| umem.register(self.descriptor.as_fd(), metadata);
        let failed = |error| (Step::Register, error);
        // What a driver can do with metadata of its own is not asked for; copy mode is the kernel's and can.
        if mode == Mode::Copy {
            match register(METADATA) {
                Ok(()) => return Ok(true),
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
                Err(error) => return Err(failed(error)),
            }
        }
        register(0).map_err(failed)?;
        Ok(false)
    }

    /// Makes the rings, fills one with frames, and binds; `shared` is the socket that the frames were registered with, if
    /// that is not this one.
    pub(super) fn bind(
        self,
        (port, origin): (u16, u16),
        (interface, queue): (u32, u32),
        options: Options,
        umem: &mut Umem,
        shared: Option<BorrowedFd<'_>>,
    ) -> Result<Socket, Failure> {
        let mut socket = self.with_rings(port, origin, queue, options)?;
        socket.refill(umem);
        let descriptor = socket.descriptor.as_fd();
        // A socket that shares takes over the other one's mode (`xsk_bind`: "Cannot specify flags for shared sockets").
        let flags = if shared.is_some() {
            libc::XDP_SHARED_UMEM
        } else {
            options.flags()
        };
        let bind = || sys::bind(descriptor, interface, queue, flags, shared);
        patiently(bind).map_err(|error| match options.mode {
            Mode::Copy => (Step::Bind, error),
            Mode::ZeroCopy => (Step::BindZeroCopy, error),
        })?;
        Ok(socket)
    }

    fn with_rings(self, port: u16, origin: u16, queue: u32, options: Options) -> Result<Socket, Failure> {
        let descriptor = self.descriptor;
        let rings = |error| (Step::Rings, error);
        for which in [Which::Fill, Which::Completion, Which::Receive, Which::Transmit] {
            sys::size_ring(descriptor.as_fd(), which, RING).map_err(rings)?;
        }
        set_up(descriptor.as_fd(), options)?;
        Ok(Socket {
            port,
            origin,
            queue,
            mode: options.mode,
            busy_poll: options.busy_poll,
            fill: producer(descriptor.as_fd(), Which::Fill).map_err(rings)?,
            completion: consumer(descriptor.as_fd(), Which::Completion).map_err(rings)?,
            receive: consumer(descriptor.as_fd(), Which::Receive).map_err(rings)?,
            transmit: producer(descriptor.as_fd(), Which::Transmit).map_err(rings)?,
            filling: 0,
            sending: 0,
            begun: None,
            counters: Counters::default(),
            descriptor,
        })
    }
}

fn set_up(socket: BorrowedFd<'_>, options: Options) -> Result<(), Failure> {
    // One call a batch instead of one for each 32 packets, since Linux 6.17.
    let _budget = sys::send_budget(socket, RING);
    // A NIC holds on to socket buffers until it has sent them; the default is room for 92 of 1,500 bytes. It asks for
    // CAP_NET_ADMIN; without it, what does not fit waits for the next flush.
    let _buffer = sys::send_buffer(socket, SEND_BUFFER);
    if options.busy_poll {
        sys::busy_poll(socket, BUSY_POLL_US, BUSY_POLL_PACKETS).map_err(|error| (Step::BusyPoll, error))?;
    }
    Ok(())
}

fn memory<T>(socket: BorrowedFd<'_>, which: Which) -> io::Result<(Arc<Mapping>, Layout)> {
    let layout = Layout::new(&sys::offsets(socket, which)?, RING);
    let memory = Mapping::ring(socket, which, layout.length::<T>())?;
    Ok((Arc::new(memory), layout))
}

fn producer<T: Entry>(socket: BorrowedFd<'_>, which: Which) -> io::Result<Producer<T>> {
    let (memory, layout) = memory::<T>(socket, which)?;
    // SAFETY: called once for a ring of a new socket; the kernel is the other end.
    unsafe { Producer::new(memory, &layout) }
}

fn consumer<T: Entry>(socket: BorrowedFd<'_>, which: Which) -> io::Result<Consumer<T>> {
    let (memory, layout) = memory::<T>(socket, which)?;
    // SAFETY: as above.
    unsafe { Consumer::new(memory, &layout) }
}

/// Binds, and again for a second while the queue is busy.
fn patiently(bind: impl Fn() -> io::Result<()>) -> io::Result<()> {
    let is_busy = |result: &io::Result<()>| matches!(result, Err(error) if error.raw_os_error() == Some(libc::EBUSY));
    let mut result = bind();
    for _ in 1..ATTEMPTS {
        if !is_busy(&result) {
            break;
        }
        // SAFETY: no descriptors are passed; the call only waits. The kernel tells nobody when a queue is free.
        let _waited = unsafe { libc::poll(std::ptr::null_mut(), 0, ATTEMPT_MS) };
        result = bind();
    }
    result
}

/// What a call to send has done.
enum Kicked {
    /// All that it could.
    Done,
    /// Not all: call again.
    Again,
    /// A packet was dropped by the device; call again for the others.
    Refused,
    /// The interface is down or gone.
    Down,
}

fn kick(socket: BorrowedFd<'_>) -> io::Result<Kicked> {
    let Err(error) = sys::wake_send(socket) else {
        return Ok(Kicked::Done);
    };
    match error.raw_os_error().unwrap_or(0) {
        libc::EAGAIN | libc::ENOBUFS | libc::ENOMEM | libc::EINTR => Ok(Kicked::Again),
        // NET_XMIT_DROP, see __xsk_generic_xmit
        libc::EBUSY => Ok(Kicked::Refused),
        libc::ENETDOWN | libc::ENXIO | libc::ENODEV => Ok(Kicked::Down),
        _ => Err(error),
    }
}

impl Socket {
    pub(super) fn descriptor(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }

    /// Frames that the kernel has: for packets to come, and to be sent.
    pub(super) const fn lent(&self) -> (usize, usize) {
        (self.filling as usize, self.sending as usize)
    }

    /// With busy polling, has the device looked at now if nothing waits.
    pub(super) fn poll(&mut self) {
        if self.busy_poll && self.receive.is_empty() {
            // An interface that is down has no packets; flush tells of real failures.
            let _down = sys::wake_receive(self.descriptor.as_fd());
        }
    }

    /// The next packet that was received.
    pub(super) fn take(&mut self, umem: &mut Umem, spare: &mut Spare) -> Option<Arrival> {
        loop {
            let descriptor = self.receive.pop()?;
            self.filling = self.filling.saturating_sub(1);
            let Some((buffer, start)) = umem.reclaim(descriptor.addr) else {
                continue;
            };
            let segment = Segment {
                buffer,
                start: start as u32,
                length: descriptor.len,
            };
            let arrival = self.append(segment, spare);
            if descriptor.options & libc::XDP_PKT_CONTD == 0 {
                self.counters.received += 1;
                return Some(arrival);
            }
            self.begun = Some(arrival);
        }
    }

    fn append(&mut self, segment: Segment, spare: &mut Spare) -> Arrival {
        match self.begun.take() {
            None => Arrival {
                port: self.port,
                origin: self.origin,
                head: segment,
                rest: Vec::new(),
            },
            Some(mut arrival) => {
                if arrival.rest.capacity() == 0 {
                    arrival.rest = spare.pop().unwrap_or_default();
                }
                arrival.rest.push(segment);
                arrival
            }
        }
    }

    /// The places of what was taken are the kernel's again.
    pub(super) fn taken(&mut self) {
        self.receive.release();
    }

    /// Puts a packet on the send ring, or gives it back. With `metadata` the kernel finishes this checksum.
    pub(super) fn queue(
        &mut self,
        mut arrival: Arrival,
        metadata: Option<Unfinished>,
        umem: &mut Umem,
        spare: &mut Spare,
    ) -> Result<(), Arrival> {
        if !is_well_formed(&arrival, metadata) {
            self.counters.malformed += 1;
            return Err(arrival);
        }
        if (self.transmit.room(LONGEST_CHAIN as u32 + 1) as usize) <= arrival.rest.len() {
            self.counters.ring_full += 1;
            return Err(arrival);
        }
        if let Some(unfinished) = metadata {
            write_metadata(&mut arrival, unfinished);
        }
        let option = if metadata.is_some() { libc::XDP_TX_METADATA } else { 0 };
        self.push(arrival.head, option | more(!arrival.rest.is_empty()), umem);
        let mut rest = arrival.rest;
        let mut left = rest.len();
        for segment in rest.drain(..) {
            left -= 1;
            self.push(segment, more(left > 0), umem);
        }
        if rest.capacity() > 0 {
            spare.push(rest);
        }
        self.counters.sent += 1;
        Ok(())
    }

    fn push(&mut self, segment: Segment, options: u32, umem: &mut Umem) {
        let Some(addr) = umem.lend(segment.buffer, segment.start as usize) else {
            return;
        };
        let queued = self.transmit.push(Descriptor {
            addr,
            len: segment.length,
            options,
        });
        debug_assert!(queued, "there was room");
        self.sending += 1;
    }

    /// Has what was queued sent, takes back frames of what was, and lends the kernel frames for what will come. How many
    /// frames still wait for another call.
    pub(super) fn flush(&mut self, umem: &mut Umem) -> io::Result<usize> {
        self.transmit.publish();
        let waiting = if self.sending > 0 { self.send(umem)? } else { 0 };
        self.refill(umem);
        if self.mode == Mode::ZeroCopy && self.fill.needs_wakeup() {
            // Copy mode never asks. An interface that is down needs no frames.
            let _down = sys::wake_receive(self.descriptor.as_fd());
        }
        Ok(waiting)
    }

    fn send(&mut self, umem: &mut Umem) -> io::Result<usize> {
        let waiting = match self.mode {
            Mode::Copy => self.send_by_copy(umem)?,
            Mode::ZeroCopy => self.send_by_driver()?,
        };
        self.reap(umem);
        Ok(waiting)
    }

    /// In copy mode the call itself sends, up to its budget, and needs places on the completion ring.
    fn send_by_copy(&mut self, umem: &mut Umem) -> io::Result<usize> {
        let mut waiting = self.transmit.unread();
        let mut stalled = 0;
        while waiting > 0 {
            match kick(self.descriptor.as_fd())? {
                Kicked::Done | Kicked::Down => return Ok(0),
                Kicked::Again => {}
                Kicked::Refused => self.counters.refused += 1,
            }
            self.reap(umem);
            let left = self.transmit.unread();
            stalled = if left == waiting { stalled + 1 } else { 0 };
            waiting = left;
            if stalled == STALLS {
                break;
            }
        }
        Ok(waiting as usize)
    }

    fn send_by_driver(&mut self) -> io::Result<usize> {
        if self.transmit.unread() == 0 || !self.transmit.needs_wakeup() {
            return Ok(0);
        }
        Ok(match kick(self.descriptor.as_fd())? {
            Kicked::Done | Kicked::Down => 0,
            Kicked::Again | Kicked::Refused => self.transmit.unread() as usize,
        })
    }

    fn reap(&mut self, umem: &mut Umem) {
        while let Some(address) = self.completion.pop() {
            if umem.free_again(address) {
                self.sending -= 1;
            }
        }
        self.completion.release();
    }

    fn refill(&mut self, umem: &mut Umem) {
        while self.filling < RING {
            let Some(address) = umem.lend_free() else { break };
            if !self.fill.push(address) {
                // The kernel has more frames under way than the ring is long.
                umem.free_again(address);
                break;
            }
            self.filling += 1;
        }
        self.fill.publish();
    }

    pub(super) fn kernel_statistics(&self) -> io::Result<libc::xdp_statistics> {
        sys::statistics(self.descriptor.as_fd())
    }

    pub(super) fn is_zero_copy(&self) -> io::Result<bool> {
        sys::is_zero_copy(self.descriptor.as_fd())
    }
}

const fn more(follow: bool) -> u32 {
    if follow { libc::XDP_PKT_CONTD } else { 0 }
}

/// The kernel loses the frames of a packet that it finds malformed, or is stuck at it, so it must never see one
/// (`xp_aligned_validate_desc`, `xsk_skb_metadata`).
fn is_well_formed(arrival: &Arrival, metadata: Option<Unfinished>) -> bool {
    let length = arrival.head.length as usize;
    let checksum = metadata.is_none_or(|Unfinished { start, offset }| start as usize + offset as usize + 2 <= length);
    let parts = arrival
        .rest
        .iter()
        .all(|segment| segment.length > 0 && segment.start >= METADATA);
    checksum && parts && arrival.head.start >= METADATA && length >= SHORTEST && arrival.rest.len() < LONGEST_CHAIN
}

/// `struct xsk_tx_metadata` right before the packet.
fn write_metadata(arrival: &mut Arrival, unfinished: Unfinished) {
    let end = arrival.head.start as usize;
    let metadata = &mut arrival.storage()[end - METADATA as usize..end];
    metadata.fill(0);
    let flags = u64::from(libc::XDP_TXMD_FLAGS_CHECKSUM);
    metadata[..METADATA_CSUM].copy_from_slice(&flags.to_ne_bytes());
    metadata[METADATA_CSUM..METADATA_CSUM + 2].copy_from_slice(&unfinished.start.to_ne_bytes());
    metadata[METADATA_CSUM + 2..METADATA_CSUM + 4].copy_from_slice(&unfinished.offset.to_ne_bytes());
}
