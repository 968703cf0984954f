//! A packet of a known flow: what the connection table says about it, and what the flow takes note of.
use super::Processor;
use crate::conntrack::Trace;
use crate::conntrack::connection::{Class, State};
use crate::conntrack::shard::Shard;
use crate::conntrack::signal::Signal;
use crate::conntrack::tcp;
use crate::conntrack::timeout::Timeouts;
use crate::conntrack::window::Window;
use crate::flow::{Direction, Key};
use crate::packet::sctp::Chunk;
use crate::packet::{Headers, Numbers, TcpFlags};
use crate::policy::OnBackendRemoved;
use crate::rewrite::verify::Integrity;
use crate::service::{Backend, Generation};
use crate::time::Instant;

/// A packet that belongs, or could belong, to a flow.
#[derive(Clone, Copy, Debug)]
pub struct Segment {
    /// Protocol, addresses and ports.
    pub key: Key,
    /// What it says to its flow.
    pub signal: Signal,
    /// Of a TCP segment; else zeros.
    pub numbers: Numbers,
    /// Of the IP packet, in bytes.
    pub(super) length: usize,
}

impl Segment {
    /// Whether it may open a flow.
    pub const fn opens(&self) -> bool {
        self.signal.opens()
    }
}

/// What the connection table says about a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    /// It follows its flow.
    Flow,
    /// It belongs to no flow, or opens a new one in the place of an old one.
    No,
    /// Its flow has lost its backend, and ends: the sender is told.
    Ended,
    /// The same, but the receiver of this TCP segment is told first.
    Aborted,
    /// Its flow has lost its backend, and waits for it.
    Waits,
}

/// What becomes of a flow whose backend was removed, at its next packet.
pub enum Orphan {
    /// The packet follows its flow.
    GoesOn,
    /// Both sides are told, one after the other, while the flow stays.
    Ends,
    /// The packet is dropped, and the flow grows old.
    Waits,
    /// The flow is removed, and the packet is treated like this.
    IsForgotten(Known),
}

/// Returns what `rule` makes of a packet in `direction` of a flow whose backend was removed.
pub fn orphaned(rule: OnBackendRemoved, segment: &Segment, is_believed: bool, direction: Direction) -> Orphan {
    let opens = is_believed && segment.opens() && direction == Direction::Original;
    match (rule, segment.signal, opens) {
        // A SYN or INIT, sent again or for a new connection from an old port, has nothing to preserve: never to a removed
        // backend.
        (_, Signal::Tcp(_) | Signal::Sctp(_), true) | (OnBackendRemoved::Reschedule, Signal::Udp, true) => {
            Orphan::IsForgotten(Known::No)
        }
        // An answer under way still arrives.
        (OnBackendRemoved::Preserve, _, _) | (OnBackendRemoved::Reschedule, Signal::Udp, false) => Orphan::GoesOn,
        (OnBackendRemoved::Drop, _, _) => match direction {
            Direction::Original => Orphan::Waits,
            Direction::Reply => Orphan::GoesOn,
        },
        (OnBackendRemoved::Reset, Signal::Udp, true) => Orphan::IsForgotten(Known::Ended),
        (OnBackendRemoved::Reset, _, false)
        | (OnBackendRemoved::Reschedule, Signal::Tcp(_) | Signal::Sctp(_), false) => Orphan::Ends,
    }
}

/// Returns what the connection table needs to know of a packet; None without ports, or of another protocol.
#[inline]
pub fn segment(headers: &Headers, packet: &[u8]) -> Option<Segment> {
    Some(Segment {
        key: headers.key()?,
        signal: Signal::of(headers.payload)?,
        numbers: headers.numbers(packet).unwrap_or_default(),
        length: headers.length,
    })
}

impl Processor<'_> {
    /// Looks up the packet's flow and takes note of the packet there. `leaving` becomes the key that it leaves with; as a part
    /// of the answer it would be copied in pieces, and the CPU would wait for each (see [`crate::flow::Key`]). What `integrity`
    /// says is only asked of packets that may change what becomes of the flow.
    #[inline]
    pub(super) fn follow(
        &self,
        segment: &Segment,
        trace: Trace,
        now: Instant,
        leaving: &mut Key,
        integrity: impl Fn() -> Integrity,
    ) -> Known {
        let (policy, generation) = (&self.ruleset.policy.conntrack, self.ruleset.generation);
        let lane = self.lane.index;
        let found = self
            .conntrack
            .with_flow(&segment.key, trace, now, |shard, slot, direction| {
                let mut window = shard.window(slot);
                let (Some(key), Some(flow)) = (shard.leaving(slot, direction), shard.get_mut(slot)) else {
                    return Known::No;
                };
                *leaving = key;
                let is_believed = is_believed(flow.state, &window, segment, direction, &integrity);
                let reuse = policy.conn_reuse && is_believed;
                if is_reopened(flow.state, &flow.backend, generation, reuse, segment, direction)
                    || is_direct(flow.state, flow.is_masqueraded(), segment, direction, &integrity)
                {
                    shard.remove(slot);
                    return Known::No;
                }
                if let Some(rule) = flow
                    .backend
                    .orphans(policy.on_backend_removed, segment.key.protocol(), generation)
                {
                    match orphaned(rule, segment, is_believed, direction) {
                        Orphan::GoesOn => {}
                        Orphan::Waits => return Known::Waits,
                        Orphan::Ends => return end(shard, slot, direction, now, &policy.timeouts),
                        Orphan::IsForgotten(then) => {
                            shard.remove(slot);
                            return then;
                        }
                    }
                }
                count(&flow.backend, direction, lane, segment.length);
                match (is_believed, segment.signal) {
                    (true, signal) => {
                        if let Signal::Tcp(flags) = signal {
                            window.note(direction, flags, &segment.numbers);
                            shard.set_window(slot, window);
                        }
                        advance(shard, slot, direction, Some(signal), now, &policy.timeouts);
                    }
                    // What goes on, if strangely, is alive; anything else may be forged.
                    (false, signal) if signal.goes_on() => {
                        advance(shard, slot, direction, None, now, &policy.timeouts);
                    }
                    (false, _) => {}
                }
                Known::Flow
            });
        found.unwrap_or(Known::No)
    }
}

/// Whether a packet of a flow may change its state: whatever opens, closes or aborts must be whole, by its checksum, and a TCP
/// segment must fit what both sides have said. Of a segment in fragments the checksum cannot be told; what is in them may at most
/// close.
#[inline]
pub fn is_believed(
    state: State,
    window: &Window,
    segment: &Segment,
    direction: Direction,
    integrity: impl Fn() -> Integrity,
) -> bool {
    match (state, segment.signal) {
        (State::Tcp(state), Signal::Tcp(flags)) => {
            window.believes(state, direction, flags, &segment.numbers)
                && (segment.signal.goes_on()
                    || match integrity() {
                        Integrity::Right => true,
                        Integrity::Wrong => false,
                        Integrity::Unknown => !flags.has(TcpFlags::SYN | TcpFlags::RST),
                    })
        }
        (State::Sctp(_), Signal::Sctp(_)) => segment.signal.goes_on() || integrity() == Integrity::Right,
        // A packet is of its flow's protocol, and a datagram says nothing.
        (State::Tcp(_) | State::Udp | State::Sctp(_), Signal::Tcp(_) | Signal::Udp | Signal::Sctp(_)) => true,
    }
}

/// Whether a client opens a new connection from a port whose last one is over (`is_new_conn_expected`, ip_vs_core.c):
/// it gets a fresh choice at once, with `reuse`.
#[inline]
pub fn is_reopened(
    state: State,
    backend: &Backend,
    generation: Generation,
    reuse: bool,
    segment: &Segment,
    direction: Direction,
) -> bool {
    let over = match state {
        State::Tcp(state) => reuse && state.is_reusable(),
        State::Sctp(state) => reuse && state.is_reusable(),
        // One-packet scheduling: the flow remains for the replies only, until the next datagram.
        State::Udp => backend.is_one_packet(generation),
    };
    over && direction == Direction::Original && segment.opens()
}

/// Whether a server answers a SYN that did not come to lbd: its client, which is not masqueraded, has connected to it directly
/// from the port of a flow that is over. A SYN of the flow's own would have put an end to that state; only a client that closes
/// with the third packet of a handshake, which is then lost, is taken for such a one.
#[inline]
pub fn is_direct(
    state: State,
    is_masqueraded: bool,
    segment: &Segment,
    direction: Direction,
    integrity: impl Fn() -> Integrity,
) -> bool {
    const SYN_ACK: u8 = TcpFlags::SYN | TcpFlags::ACK;
    match segment.signal {
        Signal::Tcp(flags) => {
            flags.0 & (SYN_ACK | TcpFlags::RST) == SYN_ACK
                && direction == Direction::Reply
                && matches!(state, State::Tcp(state) if state.is_reusable())
                && !is_masqueraded
                && integrity() == Integrity::Right
        }
        Signal::Udp | Signal::Sctp(_) => false,
    }
}

/// Ends a flow whose backend was removed. A client that only listens, as in a download, sends nothing that could be
/// answered, so the first segment of the backend is turned into the client's RST; the backend is told by its next one.
fn end(shard: &mut Shard, slot: u32, direction: Direction, now: Instant, timeouts: &Timeouts) -> Known {
    let Some((state, class)) = shard.get_mut(slot).map(|flow| (flow.state, flow.class())) else {
        return Known::Ended;
    };
    let last = match state {
        State::Tcp(_) => Some(Signal::Tcp(TcpFlags(TcpFlags::RST))),
        State::Sctp(_) => Some(Signal::Sctp(Chunk::Abort)),
        State::Udp => None,
    };
    match last {
        Some(_) => advance(shard, slot, direction, last, now, timeouts),
        None => shard.changed(slot, class),
    }
    told_by(state, direction)
}

/// Who is told that a flow ends, by its next packet.
pub const fn told_by(state: State, direction: Direction) -> Known {
    match (state, direction) {
        (State::Udp | State::Sctp(_), _)
        | (State::Tcp(_), Direction::Original)
        // What the backend's RST leaves as it is (`OUTPUT` of tcp.rs): it would never be the backend's turn.
        | (
            State::Tcp(tcp::State::Close | tcp::State::TimeWait | tcp::State::SynSent),
            Direction::Reply,
        ) => Known::Ended,
        (State::Tcp(_), Direction::Reply) => Known::Aborted,
    }
}

/// Takes note of a packet of a flow. None: it says nothing that is believed, but the flow is in use.
#[inline]
fn advance(
    shard: &mut Shard,
    slot: u32,
    direction: Direction,
    signal: Option<Signal>,
    now: Instant,
    timeouts: &Timeouts,
) {
    let Some(flow) = shard.get_mut(slot) else { return };
    let (before, former) = (flow.class(), flow.state);
    flow.state = signal.map_or(former, |signal| former.next(direction, signal));
    flow.dialogue = flow.dialogue.next(direction);
    let deadline = now + flow.state.timeout(timeouts);
    flow.expires = match signal.is_some_and(|signal| is_half_closed(former) && signal.opens()) {
        // Nobody knows yet whether the other side takes the SYN for one.
        true => deadline.max(flow.expires),
        false => deadline,
    };
    let (state, is_active) = (flow.state, flow.state.is_active());
    if former.is_active() != is_active {
        flow.backend.set_active(is_active);
    }
    let is_established = flow.class() == Class::Established;
    if flow.is_assured()
        && let Some(template) = shard.template(slot)
    {
        template.assure();
        if is_established {
            template.prove();
        }
    }
    shard.recount(former, state);
    shard.changed(slot, before);
}

/// Whether one side has closed, and the other one may send for long.
#[inline]
const fn is_half_closed(state: State) -> bool {
    match state {
        State::Tcp(state) => matches!(state, tcp::State::FinWait | tcp::State::CloseWait | tcp::State::LastAck),
        State::Udp | State::Sctp(_) => false,
    }
}

pub(super) fn count(backend: &Backend, direction: Direction, lane: usize, bytes: usize) {
    match direction {
        Direction::Original => backend.stats.count_in(lane, bytes),
        Direction::Reply => backend.stats.count_out(lane, bytes),
    }
}
