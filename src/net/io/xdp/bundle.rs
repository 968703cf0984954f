//! All sockets of one worker, over the queues that are its of every interface, with one memory of frames for them all: a
//! packet that came in by one interface leaves by another one in the frame that it came in.
use std::io;
use std::ops::Range;
use std::os::fd::BorrowedFd;

use super::arrival::{Arrival, Segment};
use super::channels::channels;
use super::error::{OpenError, Step};
use super::socket::{Counters, Mode, Options, RING, Socket, Spare, Unbound};
use super::umem::{Umem, fits, frame_size};

pub use super::socket::Unfinished;
pub use super::umem::HEADROOM;

/// Whether drivers write to frames themselves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ZeroCopy {
    /// If all of a worker's queues can, else none: the kernel knows one mode a memory.
    #[default]
    Auto,
    /// They must.
    Required,
    /// The kernel copies.
    Never,
}

/// How sockets are opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// Whether drivers write to frames themselves.
    pub zero_copy: ZeroCopy,
    /// Whether [`Bundle::receive`] fetches packets from the device, instead of interrupts.
    pub busy_poll: bool,
}

/// An interface, as one worker sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// Its name.
    pub name: String,
    /// Its number (`ifindex`).
    pub index: u32,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// Which of its receive queues are the worker's.
    pub queues: Vec<u32>,
}

/// A socket and the queue that its packets come from, for the map of the XDP program.
#[derive(Clone, Copy, Debug)]
pub struct Binding<'a> {
    /// The number of the port.
    pub port: usize,
    /// The interface's number (`ifindex`).
    pub interface: u32,
    /// The interface's receive queue.
    pub queue: u32,
    /// The socket.
    pub descriptor: BorrowedFd<'a>,
}

/// What one flush could not do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flushed {
    /// Packets since the last flush that were not queued, or that a device refused.
    pub unsent: usize,
    /// Frames that are queued and need another flush soon: the kernel is short of memory for them now.
    pub waiting: usize,
}

/// Where all frames are. The last four sum to the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frames {
    /// All.
    pub total: usize,
    /// Nobody's.
    pub free: usize,
    /// In an [`Arrival`] that was handed out.
    pub held: usize,
    /// The kernel's, for packets to come.
    pub filling: usize,
    /// The kernel's, with packets to be sent.
    pub sending: usize,
}

/// What happened at one socket since it was opened. The first group is lbd's count, the second the kernel's
/// (`XDP_STATISTICS`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketStatistics {
    /// The number of the port.
    pub port: usize,
    /// The interface's queue.
    pub queue: u32,
    /// Whether the driver writes to the frames itself.
    pub zero_copy: bool,
    /// Packets received.
    pub received: u64,
    /// Packets queued to be sent.
    pub sent: u64,
    /// Packets that found no place on the send ring.
    pub send_ring_full: u64,
    /// Packets that could not be sent as they were: too short, or of too many frames.
    pub malformed: u64,
    /// Packets that the device dropped when they were sent.
    pub refused: u64,

    /// Packets that were longer than a frame, or dropped for want of memory.
    pub dropped: u64,
    /// Packets that came while the receive ring was full.
    pub receive_ring_full: u64,
    /// Times that the kernel had no frame for a packet.
    pub no_frame: u64,
    /// Frames on the fill ring that the kernel did not take.
    pub invalid_received: u64,
    /// Packets on the send ring that the kernel did not take.
    pub invalid_sent: u64,
    /// Times that the kernel looked for packets to send and found none.
    pub nothing_to_send: u64,
}

/// What happened at one socket, by lbd's own count: packets received, queued to be sent, without a place on the send ring,
/// malformed, and dropped by the device when they were sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts(pub [u64; Self::NUMBER]);

impl Counts {
    /// How many counts there are.
    pub const NUMBER: usize = 5;

    const fn of(counters: &Counters) -> Self {
        let Counters {
            received,
            sent,
            ring_full,
            malformed,
            refused,
        } = *counters;
        Self([received, sent, ring_full, malformed, refused])
    }

    /// Packets received.
    #[must_use]
    pub const fn received(&self) -> u64 {
        self.0[0]
    }

    /// Packets queued to be sent.
    #[must_use]
    pub const fn sent(&self) -> u64 {
        self.0[1]
    }

    /// Packets that were not sent.
    #[must_use]
    pub const fn unsent(&self) -> u64 {
        self.0[2] + self.0[3] + self.0[4]
    }
}

/// All sockets of one worker.
#[derive(Debug)]
pub struct Bundle {
    sockets: Vec<Socket>,
    umem: Umem,
    ports: Vec<Port>,
    /// The sockets that each port sends by.
    senders: Vec<Vec<usize>>,
    /// Whether the kernel reads metadata before packets.
    metadata: bool,
    /// The socket that [`Self::receive`] begins at.
    turn: usize,
    unsent: usize,
    spare: Spare,
}

impl Bundle {
    /// Opens a socket on each queue of each port.
    ///
    /// # Errors
    /// When the kernel refuses one of them.
    pub fn open(settings: &Settings, ports: &[Port]) -> Result<Self, OpenError> {
        let open = |mode| Self::open_in(mode, settings.busy_poll, ports);
        match settings.zero_copy {
            ZeroCopy::Never => open(Mode::Copy),
            ZeroCopy::Required => open(Mode::ZeroCopy),
            ZeroCopy::Auto => match open(Mode::ZeroCopy) {
                Err(error) if error.is_lack_of_zero_copy() => open(Mode::Copy),
                other => other,
            },
        }
    }

    fn open_in(mode: Mode, busy_poll: bool, ports: &[Port]) -> Result<Self, OpenError> {
        let senders = senders(ports)?;
        let frame = frame_size(ports.iter().map(|port| port.mtu));
        let options = Options {
            mode,
            busy_poll,
            chains: ports.iter().any(|port| !fits(port.mtu, frame)),
        };
        let count: usize = ports.iter().map(|port| port.queues.len()).sum();
        // A full fill ring and a full send ring of each socket.
        let umem = Umem::new(count * 2 * RING as usize, frame).map_err(|error| memory_error(ports, error))?;
        let mut bundle = Self {
            sockets: Vec::with_capacity(count),
            umem,
            ports: ports.to_vec(),
            senders,
            metadata: false,
            turn: 0,
            unsent: 0,
            spare: Vec::new(),
        };
        for (number, port) in ports.iter().enumerate() {
            for (origin, &queue) in port.queues.iter().enumerate() {
                let named = |(step, error)| open_error(port, queue, step, error);
                bundle.add(number, origin, port, queue, options).map_err(named)?;
            }
        }
        Ok(bundle)
    }

    fn add(
        &mut self,
        number: usize,
        origin: usize,
        port: &Port,
        queue: u32,
        options: Options,
    ) -> Result<(), (Step, io::Error)> {
        let socket = Unbound::new()?;
        let shared = self.sockets.first().map(Socket::descriptor);
        if shared.is_none() {
            self.metadata = socket.register(&self.umem, options.mode)?;
        }
        let place = (number as u16, origin as u16);
        let bound = socket.bind(place, (port.index, queue), options, &mut self.umem, shared)?;
        self.sockets.push(bound);
        Ok(())
    }

    /// Which queue's packets each socket takes.
    pub fn bindings(&self) -> impl Iterator<Item = Binding<'_>> {
        self.sockets.iter().map(|socket| Binding {
            port: socket.port.into(),
            interface: self.ports[usize::from(socket.port)].index,
            queue: socket.queue,
            descriptor: socket.descriptor(),
        })
    }

    /// What becomes readable when packets arrive.
    pub fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.sockets.iter().map(Socket::descriptor)
    }

    /// Appends packets that have arrived, `most` at the most, and says how many. Each socket gets its share while others
    /// have packets as well. Never waits.
    pub fn receive(&mut self, most: usize, arrivals: &mut Vec<Arrival>) -> usize {
        let count = self.sockets.len();
        let mut left = most;
        let share = most.div_ceil(count.max(1));
        self.sockets.iter_mut().for_each(Socket::poll);
        for limit in [share, most] {
            for turn in 0..count {
                let number = (self.turn + turn) % count;
                left -= self.receive_from(number, limit.min(left), arrivals);
            }
        }
        self.turn = (self.turn + 1) % count.max(1);
        most - left
    }

    fn receive_from(&mut self, number: usize, most: usize, arrivals: &mut Vec<Arrival>) -> usize {
        let Self {
            sockets, umem, spare, ..
        } = self;
        let socket = &mut sockets[number];
        if most == 0 {
            return 0;
        }
        let before = arrivals.len();
        arrivals.extend(std::iter::from_fn(|| socket.take(umem, spare)).take(most));
        socket.taken();
        arrivals.len() - before
    }

    /// An empty packet for one of lbd's own, with [`HEADROOM`] before it; none when all frames are under way.
    pub fn allocate(&mut self, port: usize) -> Option<Arrival> {
        let head = Segment {
            buffer: self.umem.take()?,
            start: HEADROOM as u32,
            length: 0,
        };
        Some(Arrival {
            port: port as u16,
            origin: 0,
            head,
            rest: Vec::new(),
        })
    }

    /// Queues a packet to leave by a port at the next flush: the bytes of this range of its storage, and the frames that
    /// follow the first one. An unfinished checksum is finished, by the kernel or here.
    ///
    /// Says whether it is queued; else it is counted and released.
    ///
    /// # Panics
    /// If the range does not lie within the storage, or there is no such port.
    pub fn send(
        &mut self,
        port: usize,
        mut arrival: Arrival,
        range: Range<usize>,
        checksum: Option<Unfinished>,
    ) -> bool {
        assert!(
            range.start <= range.end && range.end <= arrival.storage().len(),
            "a packet lies within its storage"
        );
        arrival.head.start = range.start as u32;
        arrival.head.length = range.len() as u32;
        let checksum = checksum.and_then(|unfinished| self.finish(&mut arrival, unfinished));
        let senders = &self.senders[port];
        let socket = senders[usize::from(arrival.origin) % senders.len()];
        match self.sockets[socket].queue(arrival, checksum, &mut self.umem, &mut self.spare) {
            Ok(()) => true,
            Err(arrival) => {
                self.unsent += 1;
                self.release(arrival);
                false
            }
        }
    }

    /// Finishes a checksum here if the kernel does not.
    fn finish(&self, arrival: &mut Arrival, unfinished: Unfinished) -> Option<Unfinished> {
        let (start, offset) = (usize::from(unfinished.start), usize::from(unfinished.offset));
        let is_inside = start + offset + 2 <= arrival.bytes().len();
        if self.metadata || !is_inside {
            return Some(unfinished);
        }
        arrival.finish_checksum(start, offset);
        None
    }

    /// Takes the frames of a packet back.
    pub fn release(&mut self, mut arrival: Arrival) {
        if arrival.rest.capacity() > 0 {
            self.truncate(&mut arrival);
            self.spare.push(arrival.rest);
        }
        self.umem.give_back(arrival.head.buffer);
    }

    /// Takes all frames of a packet back but its first: something shorter has taken its place.
    pub fn truncate(&mut self, arrival: &mut Arrival) {
        for segment in arrival.rest.drain(..) {
            self.umem.give_back(segment.buffer);
        }
    }

    /// Takes away what of a packet is longer than `length`, in bytes from its Ethernet header on.
    pub fn cut(&mut self, arrival: &mut Arrival, length: usize) {
        arrival.cut(length, &mut self.umem);
    }

    /// Has what was queued sent, takes back the frames of what was sent, and lends the kernel frames for packets to come.
    /// To be called once a batch, and also when nothing was queued.
    ///
    /// # Errors
    /// When a socket fails; not for an interface that is down or gone, which only sends nothing.
    pub fn flush(&mut self) -> io::Result<Flushed> {
        let mut flushed = Flushed {
            unsent: std::mem::take(&mut self.unsent),
            waiting: 0,
        };
        for socket in &mut self.sockets {
            let refused = socket.counters.refused;
            let waiting = socket.flush(&mut self.umem);
            flushed.waiting += waiting.map_err(|error| named(&self.ports, socket, &error))?;
            flushed.unsent += (socket.counters.refused - refused) as usize;
        }
        debug_assert!(self.frames().is_complete(), "a frame is lost: {:?}", self.frames());
        Ok(flushed)
    }

    /// What happened at each socket.
    #[must_use]
    pub fn statistics(&self) -> Vec<SocketStatistics> {
        self.sockets.iter().map(statistics).collect()
    }

    /// Whether drivers write to frames themselves.
    #[must_use]
    pub fn is_zero_copy(&self) -> bool {
        self.sockets.iter().any(|socket| socket.mode == Mode::ZeroCopy)
    }

    /// Whether the kernel finishes checksums, or [`Self::send`] does.
    #[must_use]
    pub const fn finishes_checksums(&self) -> bool {
        self.metadata
    }

    /// What happened at each socket by lbd's own count, in the order of [`Self::bindings`].
    pub fn counts(&self) -> impl Iterator<Item = Counts> + '_ {
        self.sockets.iter().map(|socket| Counts::of(&socket.counters))
    }

    /// Where all frames are.
    #[must_use]
    pub fn frames(&self) -> Frames {
        let lent = self.sockets.iter().map(Socket::lent);
        let (filling, sending) = lent.fold((0, 0), |sum, lent| (sum.0 + lent.0, sum.1 + lent.1));
        Frames {
            total: self.umem.total(),
            free: self.umem.free(),
            held: self.umem.held(),
            filling,
            sending,
        }
    }
}

impl Frames {
    /// Whether no frame is lost.
    #[must_use]
    pub const fn is_complete(&self) -> bool {
        self.free + self.held + self.filling + self.sending == self.total
    }
}

/// The sockets of each port that can send, by their number in the bundle. The kernel sends nothing by a queue that is no
/// send queue, and does not say so (`__xsk_generic_xmit`).
fn senders(ports: &[Port]) -> Result<Vec<Vec<usize>>, OpenError> {
    let mut first = 0;
    let senders_of = |port: &Port| {
        let queues = channels(&port.name).transmit;
        let numbered = port.queues.iter().zip(first..);
        let senders = numbered.filter(|&(&queue, _)| queue < queues).map(|(_, number)| number);
        let senders: Vec<usize> = senders.collect();
        first += port.queues.len();
        if senders.is_empty() {
            let queue = port.queues.first().copied().unwrap_or(0);
            let error = io::Error::other(format!("there are {queues} send queues"));
            return Err(open_error(port, queue, Step::SendQueue, error));
        }
        Ok(senders)
    };
    ports.iter().map(senders_of).collect()
}

fn named(ports: &[Port], socket: &Socket, error: &io::Error) -> io::Error {
    let name = &ports[usize::from(socket.port)].name;
    io::Error::new(
        error.kind(),
        format!("{name}, queue {}: sending by AF_XDP: {error}", socket.queue),
    )
}

fn open_error(port: &Port, queue: u32, step: Step, error: io::Error) -> OpenError {
    OpenError {
        interface: port.name.clone(),
        queue,
        step,
        error,
    }
}

fn memory_error(ports: &[Port], error: io::Error) -> OpenError {
    let names: Vec<&str> = ports.iter().map(|port| port.name.as_str()).collect();
    OpenError {
        interface: names.join(", "),
        queue: 0,
        step: Step::Memory,
        error,
    }
}

fn statistics(socket: &Socket) -> SocketStatistics {
    let Counters {
        received,
        sent,
        ring_full,
        malformed,
        refused,
    } = socket.counters;
    // The call fails for a closed socket only.
    let kernel = socket.kernel_statistics().ok();
    let count = |of: fn(&libc::xdp_statistics) -> u64| kernel.as_ref().map_or(0, of);
    SocketStatistics {
        port: socket.port.into(),
        queue: socket.queue,
        zero_copy: socket.is_zero_copy().unwrap_or(socket.mode == Mode::ZeroCopy),
        received,
        sent,
        send_ring_full: ring_full,
        malformed,
        refused,
        dropped: count(|kernel| kernel.rx_dropped),
        receive_ring_full: count(|kernel| kernel.rx_ring_full),
        no_frame: count(|kernel| kernel.rx_fill_ring_empty_descs),
        invalid_received: count(|kernel| kernel.rx_invalid_descs),
        invalid_sent: count(|kernel| kernel.tx_invalid_descs),
        nothing_to_send: count(|kernel| kernel.tx_ring_empty_descs),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bundle_can_be_opened_in_one_thread_and_run_in_another() {
        const fn is_send<T: Send>() {}
        is_send::<Bundle>();
        is_send::<Arrival>();
    }
}
