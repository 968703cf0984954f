//! A live engine under packets, time and reloads. Two engines get the same, in buffers that hold other bytes beside the
//! packets, and must do the same: then nothing of another packet, and nothing that was in a buffer before, gets out.
//!
//! The rest are laws: one verdict a packet, counted once; what is passed or dropped is as it came; what is forwarded is as long
//! as it was, and a valid packet stays valid; the table is bounded; and once all flows have ended, no backend has any.
#[path = "engine/configs.rs"]
mod configs;
#[path = "../../support/fragments.rs"]
mod fragments;
use lbd_testkit::packets;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use arbitrary::{Arbitrary, Unstructured};
use lbd::engine::{Engine, Lane, Released, Seeds};
use lbd::packet::Headers;
use lbd::packet::frame::{Checksum, Frame};
use lbd::policy::Policy;
use lbd::router::Router;
use lbd::time::Instant;
use lbd::verdict::Verdict;

use configs::MAX_FLOWS;
use packets::IcmpError;

/// Room before a packet and behind it.
const HEAD: usize = 18;
const TAIL: usize = 1_300;
/// Steps of one run, so that a run stays short.
const MOST_STEPS: usize = 100;
/// Milliseconds that may go by: about as long as the flows' timeouts, and, as a leap is cheap for the timer wheel where it goes
/// over all of it, two days.
const STEPS: [u64; 8] = [1, 60, 900, 2_100, 4_500, 11_000, 62_000, 2 * 86_400_000];
/// Sequence numbers: few, so that segments fit those before them, and some that are far away.
const NUMBERS: [u32; 8] = [6, 7, 7, 8, 262, 70_000, 0x8000_0000, u32::MAX];
/// The last packets, to be quoted, answered and damaged.
const REMEMBERED: usize = 8;

/// A list of steps in bytes.
pub fn run(data: &[u8]) {
    let mut input = Unstructured::new(data);
    let _out_of_bytes = play(&mut input);
}

fn play(input: &mut Unstructured<'_>) -> arbitrary::Result<()> {
    let policies = configs::policies();
    let first = input.choose_index(policies.len())?;
    let mut world = World::new(&policies[first], input.arbitrary()?);
    for _ in 0..MOST_STEPS {
        if input.is_empty() {
            break;
        }
        match input.int_in_range(0..=15_u8)? {
            0 => world.apply(&policies[input.choose_index(policies.len())?]),
            1 => world.advance(Duration::from_millis(*input.choose(&STEPS)?)),
            2 => world.mtu = input.arbitrary::<Option<u16>>()?.map(usize::from),
            3 => {
                let bytes = Vec::arbitrary(input)?;
                world.send(&bytes, false, input)?;
            }
            4..=6 => {
                let (packet, _) = world.damaged(input)?;
                world.send(&packet, false, input)?;
            }
            7 => {
                let (packet, valid) = world.error(input)?;
                world.send(&packet, valid, input)?;
            }
            8 => world.fragments(input)?,
            9 | 10 => {
                let (packet, valid) = world.answer(input)?;
                world.send(&packet, valid, input)?;
            }
            _ => {
                let packet = structured(input)?;
                world.send(&packet, true, input)?;
            }
        }
    }
    world.end();
    Ok(())
}

/// A valid packet between endpoints that matter.
fn structured(input: &mut Unstructured<'_>) -> arbitrary::Result<Vec<u8>> {
    let v6 = input.arbitrary()?;
    let [from, to] = [
        configs::endpoint(v6, input.arbitrary()?),
        configs::endpoint(v6, input.arbitrary()?),
    ];
    between(from, to, input)
}

fn between(from: SocketAddr, to: SocketAddr, input: &mut Unstructured<'_>) -> arbitrary::Result<Vec<u8>> {
    let flags = u8::arbitrary(input)?;
    let payload = vec![flags; usize::from(u8::arbitrary(input)?) * usize::from(flags >> 6)];
    Ok(match input.int_in_range(0..=6_u8)? {
        0..=2 => {
            let [sequence, acknowledges] = [*input.choose(&NUMBERS)?, *input.choose(&NUMBERS)?];
            packets::tcp(from, to, flags & 0x1f, sequence, acknowledges, &payload)
        }
        3 | 4 => packets::udp(from, to, &payload),
        5 => packets::sctp_of(from, to, &packets::chunk(flags & 15, &payload)),
        _ => packets::ping(from.ip(), to.ip()),
    })
}

/// A router with one way on.
#[derive(Debug)]
struct Way(usize);

impl Router for Way {
    fn begin(&mut self, _: Instant) {}

    fn mtu(&mut self, _: IpAddr) -> Option<usize> {
        Some(self.0.max(68))
    }

    fn is_martian(&mut self, source: IpAddr) -> bool {
        source.is_loopback()
    }

    fn ends_here(&mut self, destination: IpAddr) -> bool {
        configs::endpoint(destination.is_ipv6(), 0).ip() == destination
    }

    fn own_address(&mut self, towards: IpAddr) -> Option<IpAddr> {
        Some(configs::endpoint(towards.is_ipv6(), 0).ip())
    }
}

/// One of the two engines.
struct Twin {
    engine: Engine,
    lanes: Vec<Lane>,
    filling: u8,
}

impl Twin {
    fn new(policy: &Arc<Policy>, seed: u64, filling: u8, now: Instant) -> Self {
        let hashing = ahash::RandomState::with_seeds(seed, 2, 3, 4);
        let seeds = Seeds { choices: seed, hashing };
        // Two have a table of many shards, which takes long to set up.
        let workers = if seed.is_multiple_of(16) { 2 } else { 1 };
        let (engine, lanes) = Engine::new(Arc::clone(policy), workers, seeds, now);
        Self { engine, lanes, filling }
    }

    fn send(&mut self, packet: &[u8], sending: &Sending) -> Outcome {
        let end = HEAD + packet.len();
        let mut storage = vec![self.filling; end + TAIL];
        storage[HEAD..end].copy_from_slice(packet);
        let mut frame = Frame::new(&mut storage, HEAD, end, sending.checksum);
        let mut way = sending.mtu.map(Way);
        let processor = self.engine.enter(&mut self.lanes[sending.lane], sending.now);
        let mut processor = processor.routed_by(way.as_mut().map(|way| way as &mut dyn Router));
        let verdict = processor.process(&mut frame, sending.now);
        let released = held(processor.take_released());
        drop(processor);
        let (range, after) = (frame.range(), frame.checksum);
        assert_eq!(range.start, HEAD);
        let beside = storage[..HEAD].iter().chain(&storage[range.end.max(end)..]);
        assert!(beside.copied().all(|byte| byte == self.filling), "outside the packet");
        Outcome {
            verdict,
            packet: storage[range].to_vec(),
            checksum: after,
            released,
        }
    }
}

impl Twin {
    /// Time goes by without a packet.
    fn pause(&mut self, now: Instant) -> Vec<Held> {
        let mut all = Vec::new();
        for lane in &mut self.lanes {
            all.extend(held(self.engine.enter(lane, now).take_released()));
        }
        all
    }
}

/// How a packet is sent.
struct Sending {
    checksum: Checksum,
    lane: usize,
    mtu: Option<usize>,
    now: Instant,
}

#[derive(Debug, PartialEq, Eq)]
struct Outcome {
    verdict: Verdict,
    packet: Vec<u8>,
    checksum: Checksum,
    released: Vec<Held>,
}

/// A packet that was held until now.
type Held = (u64, Verdict, Vec<u8>);

fn held(released: Vec<Released>) -> Vec<Held> {
    let all = released.into_iter();
    all.map(|one| (one.ticket, one.verdict, one.packet)).collect()
}

struct World {
    twins: [Twin; 2],
    now: Instant,
    mtu: Option<usize>,
    sent: u64,
    max_flows: usize,
    /// The last packets, sent and forwarded, and whether they are valid.
    seen: Vec<(Vec<u8>, bool)>,
}

impl World {
    fn new(policy: &Arc<Policy>, seed: u8) -> Self {
        let now = Instant::from_nanos(1_000_000_000_000);
        Self {
            twins: [0xa5, 0x5a].map(|filling| Twin::new(policy, seed.into(), filling, now)),
            now,
            mtu: None,
            sent: 0,
            max_flows: MAX_FLOWS,
            seen: Vec::new(),
        }
    }

    fn apply(&mut self, policy: &Arc<Policy>) {
        for twin in &mut self.twins {
            twin.engine.apply(Arc::clone(policy));
        }
    }

    fn advance(&mut self, by: Duration) {
        self.now = self.now + by;
        let [one, other] = self.twins.each_mut().map(|twin| twin.pause(self.now));
        assert_eq!(one, other, "what was held leaves as it came, and nothing else");
    }

    fn send(&mut self, packet: &[u8], valid: bool, input: &mut Unstructured<'_>) -> arbitrary::Result<()> {
        let how = u8::arbitrary(input)?;
        let sending = Sending {
            checksum: checksum(how, valid, packet),
            lane: usize::from(how >> 7) % self.twins[0].lanes.len(),
            mtu: self.mtu,
            now: self.now,
        };
        let [one, other] = self.twins.each_mut().map(|twin| twin.send(packet, &sending));
        assert_eq!(one, other, "what is beside a packet in its buffer does not matter");
        self.sent += 1;
        self.check(packet, valid, &sending, &one);
        self.remember(packet, valid);
        if one.verdict == Verdict::Forward {
            self.remember(&one.packet, valid && one.checksum == Checksum::Complete);
        }
        Ok(())
    }

    fn check(&self, packet: &[u8], valid: bool, sending: &Sending, outcome: &Outcome) {
        let engine = &self.twins[0].engine;
        let total: u64 = Verdict::all().map(|verdict| engine.count(verdict)).sum();
        assert_eq!(total, self.sent, "every packet is counted once");
        assert!(engine.conntrack().len() <= self.max_flows, "the table is bounded");
        let finished = outcome.checksum == Checksum::Complete;
        match outcome.verdict {
            Verdict::Forward => {
                assert_eq!(outcome.packet.len(), packet.len());
                if valid && sending.checksum == Checksum::Complete {
                    packets::assert_valid(&outcome.packet);
                }
            }
            Verdict::Pass(_) | Verdict::Drop(_) | Verdict::Hold => {
                assert_eq!(outcome.packet, packet, "{:?}", outcome.verdict);
            }
            Verdict::Reject(_) if valid => packets::assert_valid(&outcome.packet),
            Verdict::Reject(_) => assert!(finished && Headers::parse(&outcome.packet).is_ok()),
        }
    }

    fn remember(&mut self, packet: &[u8], valid: bool) {
        if self.seen.len() >= REMEMBERED {
            self.seen.remove(0);
        }
        self.seen.push((packet.to_vec(), valid));
    }

    /// One of the last packets, or one that nobody has sent yet.
    fn recall(&self, input: &mut Unstructured<'_>) -> arbitrary::Result<(Vec<u8>, bool)> {
        match self.seen.is_empty() {
            true => Ok((structured(input)?, true)),
            false => Ok(input.choose(&self.seen)?.clone()),
        }
    }

    /// One of the last packets with some bytes changed, added or cut off.
    fn damaged(&self, input: &mut Unstructured<'_>) -> arbitrary::Result<(Vec<u8>, bool)> {
        let (mut packet, _) = self.recall(input)?;
        for _ in 0..input.int_in_range(1..=4_u8)? {
            if packet.is_empty() {
                break;
            }
            let at = usize::from(u8::arbitrary(input)?) % packet.len();
            match input.int_in_range(0..=3_u8)? {
                0 => packet.truncate(at),
                1 => packet.insert(at, input.arbitrary()?),
                _ => packet[at] = input.arbitrary()?,
            }
        }
        Ok((packet, false))
    }

    /// One of the last packets in fragments, in any order, and perhaps not all of them.
    fn fragments(&mut self, input: &mut Unstructured<'_>) -> arbitrary::Result<()> {
        let (packet, valid) = self.recall(input)?;
        if !valid {
            return Ok(());
        }
        let lengths = [1, 1, 1, 4].map(|least| least * 8 * usize::from(input.int_in_range(1..=3_u8).unwrap_or(1)));
        let identification = input.int_in_range(0..=3)?;
        let mut all = fragments::cut(&packet, identification, &lengths);
        for _ in 0..input.int_in_range(0..=all.len() + 1)? {
            let at = input.choose_index(all.len())?;
            let fragment = if input.ratio(1, 8)? {
                all[at].clone()
            } else {
                all.swap_remove(at)
            };
            self.send(&fragment, false, input)?;
            if all.is_empty() {
                break;
            }
        }
        Ok(())
    }

    /// What the receiver of one of the last packets answers.
    fn answer(&self, input: &mut Unstructured<'_>) -> arbitrary::Result<(Vec<u8>, bool)> {
        let (packet, valid) = self.recall(input)?;
        match Headers::parse(&packet).ok().and_then(|headers| headers.tuple()) {
            Some(tuple) if valid => {
                let (from, to) = (socket(tuple.destination), socket(tuple.source));
                Ok((between(from, to, input)?, true))
            }
            Some(_) | None => Ok((structured(input)?, true)),
        }
    }

    /// An ICMP error about one of the last packets.
    fn error(&self, input: &mut Unstructured<'_>) -> arbitrary::Result<(Vec<u8>, bool)> {
        let (mut about, valid) = self.recall(input)?;
        if !valid {
            return Ok((structured(input)?, true));
        }
        let v6 = about[0] >> 4 == 6;
        let header = if v6 { 40 } else { 20 };
        about.truncate(header + 8 + usize::from(u8::arbitrary(input)?) * 8);
        let router = configs::endpoint(v6, input.arbitrary()?).ip();
        let kinds = [
            IcmpError::HostUnreachable,
            IcmpError::PortUnreachable,
            IcmpError::TimeExceeded,
            IcmpError::TooBig { mtu: 1_280 },
        ];
        Ok((packets::icmp_error(router, *input.choose(&kinds)?, &about), true))
    }

    /// All flows end in time, and then nothing is counted to a backend any more.
    fn end(mut self) {
        self.advance(Duration::from_secs(40 * 86_400));
        for twin in &self.twins {
            assert_eq!(twin.engine.conntrack().len(), 0, "every flow ends");
            assert_eq!(twin.engine.count(Verdict::Hold), 0, "nothing is held for ever");
            let ruleset = twin.engine.ruleset();
            for backend in ruleset.services.iter().flat_map(|service| &service.backends) {
                assert_eq!((backend.active(), backend.inactive()), (0, 0), "{}", backend.address);
            }
        }
    }
}

fn socket(endpoint: lbd::flow::Endpoint) -> SocketAddr {
    SocketAddr::new(endpoint.address, endpoint.port)
}

/// A device knows unfinished checksums only of what it has sent itself.
fn checksum(how: u8, valid: bool, packet: &[u8]) -> Checksum {
    let headers = Headers::parse(packet).ok();
    match how % 8 {
        5 => Checksum::Unsure,
        6 if !valid => headers.map_or(Checksum::Complete, |headers| Checksum::Partial {
            start: headers.transport,
            offset: headers.checksum_offset().unwrap_or(8),
        }),
        7 if !valid => Checksum::Partial {
            start: how.into(),
            offset: how.into(),
        },
        _ => Checksum::Complete,
    }
}
