//! One worker's share of the interfaces: a batch of packets comes in, is decided upon, and goes on.
use std::io;
use std::net::IpAddr;
use std::ops::Range;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use crossbeam_channel::Receiver;

use super::announce::{self, Question};
use super::announced::Announced;
use super::arrival::Arrival;
use super::bundle::{Bundle, HEADROOM, Unfinished};
use super::forwarding::{Forwarding, write_header};
use super::kernel::{Kernel, count};
use super::meter::Meter;
use super::next_hop::{Hop, Way};
use crate::io::{Decide, Exchanged, PacketIo};
use lbd_core::packet::frame::{Checksum, Fate, Frame};
use lbd_core::packet::{Version, ethernet, ip};

/// Packets a batch: as many as the kernel sends at one call, twice.
const BATCH: usize = 64;
/// Announcements a batch, so that thousands of them do not hold up traffic.
const ANNOUNCEMENTS: usize = 16;

/// One worker's sockets on all interfaces.
#[derive(Debug)]
pub struct Queue {
    pub(super) bundle: Bundle,
    /// The number (`ifindex`) of each port's interface.
    pub(super) interfaces: Arc<[u32]>,
    pub(super) forwarding: Forwarding,
    pub(super) kernel: Kernel,
    pub(super) meter: Arc<Meter>,
    pub(super) announced: Arc<Announced>,
    /// Addresses that neighbours are to hear of, unasked; only one of the queues has it.
    pub(super) announcements: Option<Receiver<IpAddr>>,
    pub(super) arrivals: Vec<Arrival>,
}

/// An IP packet that came in.
#[derive(Debug)]
struct Packet {
    arrival: Arrival,
    /// Where it begins behind its Ethernet header, in the storage or in `whole`.
    start: usize,
    to_group: bool,
    /// The whole frame in one piece, where it came in several.
    whole: Option<Vec<u8>>,
}

/// What became of it. The range is that of its IP packet, where it began.
#[derive(Clone, Debug)]
struct Decision {
    fate: Fate,
    range: Range<usize>,
    checksum: Checksum,
    is_answer: bool,
    opens_flow: bool,
}

impl PacketIo for Queue {
    fn exchange(&mut self, decide: &mut Decide<'_>) -> io::Result<Exchanged> {
        let received = self.bundle.receive(BATCH, &mut self.arrivals);
        if received > 0 {
            self.serve(decide);
        }
        self.announce();
        let flushed = self.bundle.flush()?;
        self.meter.publish(&self.bundle);
        Ok(Exchanged {
            received,
            unsent: flushed.unsent + self.kernel.take_unsent(),
            waiting: flushed.waiting > 0 || self.has_news(),
        })
    }

    /// By the kernel, which also counts it where it cannot be sent: such packets are few.
    fn send(&mut self, packet: &mut [u8], fate: Fate) -> io::Result<()> {
        match fate {
            Fate::Send => self.kernel.route(packet, Checksum::Complete),
            Fate::Pass | Fate::Return => self.kernel.give_back(packet),
            Fate::Discard => {}
        }
        Ok(())
    }

    fn readiness(&self) -> Vec<RawFd> {
        self.bundle
            .descriptors()
            .map(|descriptor| descriptor.as_raw_fd())
            .collect()
    }
}

impl Queue {
    /// The way of a batch.
    fn serve(&mut self, decide: &mut Decide<'_>) {
        touch(&self.arrivals);
        // 1. Questions for link addresses are answered, and what is no IP goes back to the kernel.
        let mut arrivals = std::mem::take(&mut self.arrivals);
        let packets = arrivals.drain(..).filter_map(|arrival| self.admit(arrival));
        let mut packets: Vec<Packet> = packets.collect();
        self.arrivals = arrivals;
        // 2. The engine decides about the IP packets where they lie.
        let mut frames: Vec<Frame<'_>> = packets.iter_mut().map(Packet::frame).collect();
        decide(&mut frames, Some(&mut self.forwarding));
        let decisions: Vec<Decision> = frames.iter().map(Decision::of).collect();
        // 3. Each goes its way.
        for (mut packet, decision) in packets.into_iter().zip(decisions) {
            match decision.fate {
                Fate::Discard => self.bundle.release(packet.arrival),
                // What the host itself sends comes by the TUN device only.
                Fate::Pass | Fate::Return => {
                    self.kernel.give_back(packet.bytes(&decision.range));
                    self.bundle.release(packet.arrival);
                }
                Fate::Send => self.forward(packet, &decision),
            }
        }
    }

    /// Keeps IP packets for the engine.
    fn admit(&mut self, mut arrival: Arrival) -> Option<Packet> {
        let found = ethernet::network(arrival.bytes());
        let asked = found.and_then(|(ethertype, at)| {
            let question = announce::question(arrival.bytes(), ethertype, at)?;
            self.announced.contains(question.target).then_some((question, at))
        });
        if let Some((question, at)) = asked {
            self.answer(&question, arrival, at);
            return None;
        }
        match found {
            Some((ethernet::IPV4 | ethernet::IPV6, at)) => {
                // Padding counts neither for the way's MTU nor for a checksum that is still to be finished.
                if let Some(length) = ip::length(&arrival.bytes()[at..]) {
                    self.bundle.cut(&mut arrival, at + length);
                }
                Some(Packet::new(arrival, at))
            }
            Some(_) | None => {
                self.kernel.reinject(self.interfaces[arrival.port()], arrival.bytes());
                self.bundle.release(arrival);
                None
            }
        }
    }

    fn answer(&mut self, question: &Question, mut arrival: Arrival, at: usize) {
        let port = arrival.port();
        let begin = arrival.range().start;
        let own = self.forwarding.hardware_address(self.interfaces[port]);
        let end = own.and_then(|own| announce::answer(question, &mut arrival.storage()[begin..], at, own));
        match end {
            Some(end) => {
                self.bundle.truncate(&mut arrival);
                self.bundle.send(port, arrival, begin..begin + end, None);
                count(&self.kernel.tally().answered);
            }
            None => self.bundle.release(arrival),
        }
    }

    /// Sends a packet out of the interface that it must leave by, or has the kernel find the way.
    fn forward(&mut self, mut packet: Packet, decision: &Decision) {
        let (bytes, checksum) = (packet.bytes(&decision.range), decision.checksum);
        if decision.opens_flow {
            self.kernel.take_answers(bytes);
        }
        let way = self.forwarding.way(bytes);
        if matches!(checksum, Checksum::Partial { .. }) {
            count(&self.kernel.tally().finished_checksums);
        }
        match way {
            Some((Way::Direct(hop), leaving))
                if leaving.length <= hop.mtu as usize
                    && let Some(port) = self.port(hop.interface) =>
            {
                self.send(packet, decision, &hop, port, leaving.version);
            }
            // A packet that is too long may be fragmented, or the engine would have refused it; the kernel does that.
            Some((Way::Direct(_) | Way::Kernel, _)) | None => {
                self.kernel.route(bytes, checksum);
                self.bundle.release(packet.arrival);
            }
        }
    }

    fn port(&self, interface: u32) -> Option<usize> {
        self.interfaces.iter().position(|&index| index == interface)
    }

    fn send(&mut self, packet: Packet, decision: &Decision, hop: &Hop, port: usize, version: Version) {
        let (mut arrival, range) = self.put_back(packet, decision);
        let storage = arrival.storage();
        if !decision.is_answer {
            ip::take_hop(&mut storage[range.clone()]);
        }
        let begin = write_header(storage, range.start, version, hop);
        let checksum = match decision.checksum {
            Checksum::Partial { start, offset } => Some(Unfinished {
                start: (start + range.start - begin) as u16,
                offset,
            }),
            Checksum::Complete | Checksum::Unsure => None,
        };
        self.bundle.send(port, arrival, begin..range.end, checksum);
    }

    /// The packet in its frames, and where in the first one.
    fn put_back(&mut self, packet: Packet, decision: &Decision) -> (Arrival, Range<usize>) {
        let Packet {
            mut arrival,
            start,
            whole,
            to_group: _,
        } = packet;
        let Some(whole) = whole else {
            return (arrival, decision.range.clone());
        };
        let start = arrival.range().start + start;
        // A longer answer is the question, turned where it lies.
        let is_short = start + decision.range.len() <= arrival.storage().len();
        let end = if decision.is_answer && is_short {
            self.bundle.truncate(&mut arrival);
            let end = start + decision.range.len();
            arrival.storage()[start..end].copy_from_slice(&whole[decision.range.clone()]);
            end
        } else {
            arrival.put_head_back(&whole);
            arrival.range().end
        };
        (arrival, start..end)
    }

    /// Tells neighbours of addresses that lbd has begun to serve.
    fn announce(&mut self) {
        for _ in 0..ANNOUNCEMENTS {
            let Some(address) = self.announcements.as_ref().and_then(|queue| queue.try_recv().ok()) else {
                return;
            };
            for port in 0..self.interfaces.len() {
                self.announce_at(port, address);
            }
        }
    }

    fn has_news(&self) -> bool {
        self.announcements.as_ref().is_some_and(|queue| !queue.is_empty())
    }

    fn announce_at(&mut self, port: usize, address: IpAddr) {
        let Some(own) = self.forwarding.hardware_address(self.interfaces[port]) else {
            return;
        };
        let Some(mut arrival) = self.bundle.allocate(port) else {
            return;
        };
        let frame = arrival.storage()[HEADROOM..].first_chunk_mut();
        let Some(length) = frame.map(|frame| announce::announcement(address, own, frame)) else {
            return self.bundle.release(arrival);
        };
        self.bundle.send(port, arrival, HEADROOM..HEADROOM + length, None);
    }
}

impl Packet {
    fn new(arrival: Arrival, at: usize) -> Self {
        let to_group = ethernet::is_to_group(arrival.bytes());
        if arrival.is_chain() {
            let mut whole = Vec::new();
            arrival.gather(&mut whole);
            return Self {
                arrival,
                start: at,
                to_group,
                whole: Some(whole),
            };
        }
        Self {
            start: arrival.range().start + at,
            arrival,
            to_group,
            whole: None,
        }
    }

    fn frame(&mut self) -> Frame<'_> {
        let end = self.arrival.range().end;
        let mut frame = match &mut self.whole {
            Some(whole) => {
                let end = whole.len();
                Frame::new(whole, self.start, end, Checksum::Unsure)
            }
            None => Frame::new(self.arrival.storage(), self.start, end, Checksum::Unsure),
        };
        frame.to_group = self.to_group;
        frame
    }

    fn bytes(&mut self, range: &Range<usize>) -> &mut [u8] {
        match &mut self.whole {
            Some(whole) => &mut whole[range.clone()],
            None => &mut self.arrival.storage()[range.clone()],
        }
    }
}

impl Decision {
    fn of(frame: &Frame<'_>) -> Self {
        Self {
            fate: frame.fate,
            range: frame.range(),
            checksum: frame.checksum,
            is_answer: frame.is_answer(),
            opens_flow: frame.opens_flow,
        }
    }
}

/// Reads a byte of each packet. They were written by another CPU, and these loads do not wait for each other, as those of
/// packets that are decided one by one do.
fn touch(arrivals: &[Arrival]) {
    let first = arrivals
        .iter()
        .map(|arrival| arrival.bytes().first().copied().unwrap_or(0));
    std::hint::black_box(first.fold(0, |all, byte| all ^ byte));
}
