//! A world around the pure engine: clients and backends that send real packets, and a clock that is turned by hand.
//!
//! Every packet that is sent is watched: it gets exactly one verdict, which is counted once; what passes or drops is
//! not touched; what is forwarded keeps its length and has right checksums, by a decoder that shares no code with lbd;
//! an answer is a whole packet; and nothing is written before or behind the packet.
#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test that includes this module uses some of it"
)]
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use lbd::conntrack::connection::Connection;
use lbd::engine::{Engine, Lane, Released, Seeds};
use lbd::flow::{Direction, Protocol, Tuple};
use lbd::host::Host;
use lbd::packet::Headers;
use lbd::packet::frame::{Checksum, Frame};
use lbd::policy::{Mode, Policy};
use lbd::service::Backend;
use lbd::time::Instant;
use lbd::verdict::Verdict;

use super::packets::{self, ACK, FIN, RST, SYN, socket};

/// SCTP chunks (RFC 9260 table 1).
pub const COOKIE_ECHO: u8 = 10;
pub const COOKIE_ACK: u8 = 11;

/// Bytes before a packet in its buffer, which are a link header's.
const HEAD: usize = 18;
/// Bytes behind it, room for an answer.
const TAIL: usize = 1_500;
/// What the buffer holds elsewhere.
const CANARY: u8 = 0xa5;

/// The checksum of a packet that the device is to finish.
pub fn unfinished(packet: &[u8]) -> Checksum {
    let headers = Headers::parse(packet).ok();
    Checksum::Partial {
        start: headers.map_or(0, |headers| headers.transport),
        offset: headers.and_then(|headers| headers.checksum_offset()).unwrap_or(0),
    }
}

/// See the module.
pub struct World {
    pub engine: Arc<Engine>,
    pub lanes: Vec<Lane>,
    pub now: Instant,
    /// The worker that gets the next packets.
    pub lane: usize,
    /// Packets that were held until now, each told once.
    pub released: Vec<Released>,
    /// The host that the engine runs on, where a test has one.
    pub host: Option<Box<dyn Host>>,
    sent: u64,
}

/// What became of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    pub verdict: Verdict,
    /// What the buffer holds: the packet, or the answer to it.
    pub packet: Vec<u8>,
    /// How far its checksum is.
    pub checksum: Checksum,
}

/// A flow that was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    pub protocol: Protocol,
    pub client: SocketAddr,
    pub service: SocketAddr,
    pub backend: SocketAddr,
    /// The client as the backend sees it.
    pub source: SocketAddr,
}

/// The policy in the text of a configuration file.
#[track_caller]
pub fn policy(toml: &str) -> Arc<Policy> {
    let loaded = lbd::config::parse("test.toml", toml);
    let mut config = loaded.unwrap_or_else(|errors| panic!("{errors:#?}\n{toml}")).config;
    config.policy.node_addresses = config.node_addresses.unwrap_or_default();
    Arc::new(config.policy)
}

/// A packet of a protocol; UDP has no flags, and in SCTP a chunk stands for them.
pub fn packet(protocol: Protocol, from: SocketAddr, to: SocketAddr, flags: u8) -> Vec<u8> {
    match protocol {
        Protocol::Tcp => {
            // Both sides begin at 1,000, and say nothing but SYN and FIN.
            let sequence = if flags & SYN == 0 { 1_001 } else { 1_000 };
            packets::tcp(from, to, flags, sequence, if flags & ACK == 0 { 0 } else { 1_001 }, b"")
        }
        Protocol::Udp => packets::udp(from, to, b"hello"),
        Protocol::Sctp => packets::sctp(from, to, chunk_type(flags)),
    }
}

/// The SCTP chunk that says what these TCP flags say: ABORT, INIT ACK, INIT, SHUTDOWN, or DATA.
pub const fn chunk_type(flags: u8) -> u8 {
    match flags {
        _ if flags & RST != 0 => 6,
        _ if flags & SYN != 0 && flags & ACK != 0 => 2,
        _ if flags & SYN != 0 => 1,
        _ if flags & FIN != 0 => 7,
        _ => 0,
    }
}

impl World {
    /// One worker, at a time that is not zero.
    #[track_caller]
    pub fn new(toml: &str) -> Self {
        Self::build(toml, 1, 7)
    }

    #[track_caller]
    pub fn build(toml: &str, workers: usize, seed: u64) -> Self {
        let now = Instant::from_nanos(1_000_000_000_000);
        let seeds = Seeds {
            choices: seed,
            hashing: ahash::RandomState::with_seeds(seed, 2, 3, 4),
        };
        let (engine, lanes) = Engine::new(policy(toml), workers, seeds, now);
        Self {
            engine: Arc::new(engine),
            lanes,
            now,
            lane: 0,
            released: Vec::new(),
            host: None,
            sent: 0,
        }
    }

    #[track_caller]
    pub fn reload(&self, toml: &str) {
        self.engine.apply(policy(toml));
    }

    pub fn advance(&mut self, by: Duration) {
        self.now = self.now + by;
        for lane in &mut self.lanes {
            self.released.extend(self.engine.enter(lane, self.now).take_released());
            // As a worker before it sleeps.
            while lane.is_behind() {
                self.released.extend(self.engine.enter(lane, self.now).take_released());
            }
        }
    }

    pub fn seconds(&mut self, seconds: u64) {
        self.advance(Duration::from_secs(seconds));
    }

    /// Sends a packet whose checksums are right.
    #[track_caller]
    pub fn send(&mut self, packet: &[u8]) -> Outcome {
        packets::assert_valid(packet);
        let outcome = self.send_as(packet, Checksum::Complete);
        match outcome.verdict {
            Verdict::Forward | Verdict::Reject(_) => packets::assert_valid(&outcome.packet),
            Verdict::Pass(_) | Verdict::Drop(_) | Verdict::Hold => {}
        }
        outcome
    }

    /// Sends any bytes.
    #[track_caller]
    pub fn send_as(&mut self, packet: &[u8], checksum: Checksum) -> Outcome {
        let mut storage = vec![CANARY; HEAD + packet.len() + TAIL];
        storage[HEAD..HEAD + packet.len()].copy_from_slice(packet);
        let mut frame = Frame::new(&mut storage, HEAD, HEAD + packet.len(), checksum);
        let host = self.host.as_deref_mut().map(|host| -> &mut dyn Host { host });
        let mut processor = self.engine.enter(&mut self.lanes[self.lane], self.now).on_host(host);
        let verdict = processor.process(&mut frame, self.now);
        self.released.extend(processor.take_released());
        drop(processor);
        let (range, after) = (frame.range(), frame.checksum);
        self.sent += 1;
        assert_eq!(self.total(), self.sent, "every packet is counted once");
        let out = storage[range.clone()].to_vec();
        assert_eq!(range.start, HEAD);
        assert!(storage[..HEAD].iter().all(|&byte| byte == CANARY), "before the packet");
        let end = range.end.max(HEAD + packet.len());
        assert!(storage[end..].iter().all(|&byte| byte == CANARY), "behind the packet");
        match verdict {
            Verdict::Forward => {
                assert_eq!(out.len(), packet.len());
                // A device would finish SCTP's with the Internet checksum.
                let finished = after == Checksum::Complete && Headers::parse(packet).unwrap().protocol == 132;
                assert!(after == checksum || checksum == Checksum::Unsure || finished);
            }
            Verdict::Pass(_) | Verdict::Drop(_) | Verdict::Hold => {
                assert_eq!(out, packet, "{verdict:?} changes nothing");
            }
            Verdict::Reject(_) => assert_eq!(after, Checksum::Complete),
        }
        Outcome {
            verdict,
            packet: out,
            checksum: after,
        }
    }

    /// All verdicts so far.
    pub fn total(&self) -> u64 {
        Verdict::all().map(|verdict| self.engine.count(verdict)).sum()
    }

    /// How often this verdict was given.
    pub fn count(&self, verdict: Verdict) -> u64 {
        self.engine.count(verdict)
    }

    /// Sends what must be forwarded; returns who it is from and who it goes to then.
    #[track_caller]
    pub fn forward(&mut self, packet: &[u8]) -> (SocketAddr, SocketAddr) {
        let outcome = self.send(packet);
        assert_eq!(outcome.verdict, Verdict::Forward);
        packets::endpoints(&outcome.packet)
    }

    /// The verdict on a first packet.
    #[track_caller]
    pub fn try_open(&mut self, protocol: Protocol, client: impl ToString, service: impl ToString) -> Verdict {
        let (client, service) = (socket(client.to_string()), socket(service.to_string()));
        self.send(&packet(protocol, client, service, SYN)).verdict
    }

    /// Sends a first packet: SYN, or a datagram.
    #[track_caller]
    pub fn open(&mut self, protocol: Protocol, client: impl ToString, service: impl ToString) -> Flow {
        let (client, service) = (socket(client.to_string()), socket(service.to_string()));
        let (source, backend) = self.forward(&packet(protocol, client, service, SYN));
        Flow {
            protocol,
            client,
            service,
            backend,
            source,
        }
    }

    /// An established flow: a whole TCP or SCTP handshake, or a question, an answer and another question.
    #[track_caller]
    pub fn connect(&mut self, protocol: Protocol, client: impl ToString, service: impl ToString) -> Flow {
        let flow = self.open(protocol, client, service);
        self.down(&flow, SYN | ACK);
        match protocol {
            Protocol::Tcp | Protocol::Udp => self.up(&flow, ACK),
            Protocol::Sctp => {
                self.chunk_up(&flow, COOKIE_ECHO);
                self.chunk_down(&flow, COOKIE_ACK);
            }
        }
        flow
    }

    /// A packet from the client, which must reach the flow's backend.
    #[track_caller]
    pub fn up(&mut self, flow: &Flow, flags: u8) {
        let now = self.forward(&packet(flow.protocol, flow.client, flow.service, flags));
        assert_eq!(now, (flow.source, flow.backend), "to the backend");
    }

    /// A packet from the backend, which must reach the flow's client.
    #[track_caller]
    pub fn down(&mut self, flow: &Flow, flags: u8) {
        let now = self.forward(&packet(flow.protocol, flow.backend, flow.source, flags));
        assert_eq!(now, (flow.service, flow.client), "to the client");
    }

    /// An SCTP chunk from the client, which must reach the flow's backend.
    #[track_caller]
    pub fn chunk_up(&mut self, flow: &Flow, chunk_type: u8) {
        let now = self.forward(&packets::sctp(flow.client, flow.service, chunk_type));
        assert_eq!(now, (flow.source, flow.backend), "to the backend");
    }

    /// An SCTP chunk from the backend, which must reach the flow's client.
    #[track_caller]
    pub fn chunk_down(&mut self, flow: &Flow, chunk_type: u8) {
        let now = self.forward(&packets::sctp(flow.backend, flow.source, chunk_type));
        assert_eq!(now, (flow.service, flow.client), "to the client");
    }

    /// What becomes of a packet from the client.
    #[track_caller]
    pub fn try_up(&mut self, flow: &Flow, flags: u8) -> Outcome {
        self.send(&packet(flow.protocol, flow.client, flow.service, flags))
    }

    /// What becomes of a packet from the backend.
    #[track_caller]
    pub fn try_down(&mut self, flow: &Flow, flags: u8) -> Outcome {
        self.send(&packet(flow.protocol, flow.backend, flow.source, flags))
    }

    /// The client closes, as the other side sees it too.
    #[track_caller]
    pub fn client_closes(&mut self, flow: &Flow) {
        self.up(flow, FIN | ACK);
        self.down(flow, FIN | ACK);
        self.up(flow, ACK);
    }

    #[track_caller]
    pub fn backend_closes(&mut self, flow: &Flow) {
        self.down(flow, FIN | ACK);
        self.up(flow, FIN | ACK);
        self.down(flow, ACK);
    }

    #[track_caller]
    pub fn client_resets(&mut self, flow: &Flow) {
        self.up(flow, RST);
    }

    /// What the table says about a flow.
    pub fn entry(&self, flow: &Flow) -> Option<Connection> {
        let tuple = Tuple {
            protocol: flow.protocol,
            source: flow.client.into(),
            destination: flow.service.into(),
        };
        let (connection, direction) = self.engine.conntrack().get(&tuple, self.now)?;
        assert_eq!(direction, Direction::Original);
        Some(connection)
    }

    pub fn is_alive(&self, flow: &Flow) -> bool {
        self.entry(flow).is_some()
    }

    /// The flow's state in the words of `ipvsadm -Lc`.
    #[track_caller]
    pub fn state(&self, flow: &Flow) -> &'static str {
        self.entry(flow).expect("a living flow").state.name()
    }

    /// A configured backend of any service.
    #[track_caller]
    pub fn backend(&self, address: SocketAddr) -> Arc<Backend> {
        let ruleset = self.engine.ruleset();
        let mut all = ruleset.services.iter().flat_map(|service| &service.backends);
        let member = all.find(|member| member.address == address.into());
        Arc::clone(&member.expect("a configured backend").backend)
    }

    /// ActiveConn and InActConn of a backend.
    #[track_caller]
    pub fn load(&self, address: SocketAddr) -> (u32, u32) {
        let backend = self.backend(address);
        (backend.active(), backend.inactive())
    }
}

/// One square of the matrix: mode, protocol, IP version.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    pub mode: Mode,
    pub protocol: Protocol,
    pub v6: bool,
}

impl Case {
    pub const TCP: Self = Self {
        mode: Mode::Ipvs,
        protocol: Protocol::Tcp,
        v6: false,
    };
    pub const UDP: Self = Self {
        protocol: Protocol::Udp,
        ..Self::TCP
    };
    pub const SCTP: Self = Self {
        protocol: Protocol::Sctp,
        ..Self::TCP
    };

    /// Both modes, TCP, UDP and SCTP, IPv4 and IPv6.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..Self::COUNT).map(|number| Self {
            mode: if number & 1 == 0 { Mode::Ipvs } else { Mode::Iptables },
            protocol: [Protocol::Tcp, Protocol::Udp, Protocol::Sctp][number / 4],
            v6: number & 2 != 0,
        })
    }

    /// How many there are.
    pub const COUNT: usize = 12;

    /// Those whose checksum a device can finish.
    pub fn tcp_and_udp() -> impl Iterator<Item = Self> {
        Self::all().filter(|case| case.protocol != Protocol::Sctp)
    }

    pub fn sctp() -> impl Iterator<Item = Self> {
        Self::all().filter(|case| case.protocol == Protocol::Sctp)
    }

    pub fn tcp() -> impl Iterator<Item = Self> {
        Self::all().filter(|case| case.protocol == Protocol::Tcp)
    }

    pub fn in_mode(self, mode: Mode) -> Self {
        Self { mode, ..self }
    }

    fn pick(self, v4: String, v6: String) -> SocketAddr {
        socket(if self.v6 { v6 } else { v4 })
    }

    /// Client number `n` at a port; 254 of them.
    pub fn client(self, n: u16, port: u16) -> SocketAddr {
        self.pick(format!("10.1.0.{n}:{port}"), format!("[fd00:1::{n:x}]:{port}"))
    }

    pub fn service(self) -> SocketAddr {
        self.pick("10.96.0.10:80".into(), "[fd00:96::10]:80".into())
    }

    pub fn external(self) -> SocketAddr {
        self.pick("203.0.113.10:80".into(), "[2001:db8::10]:80".into())
    }

    /// The node's address at a port.
    pub fn node(self, port: u16) -> SocketAddr {
        self.pick(format!("192.168.0.2:{port}"), format!("[fd00:168::2]:{port}"))
    }

    /// Backend number `n`, from 1, which listens on another port than the service.
    pub fn backend(self, n: u16) -> SocketAddr {
        self.pick(format!("10.2.0.{n}:8080"), format!("[fd00:2::{n:x}]:8080"))
    }

    /// A configuration of one service `web` with round robin.
    pub fn setup(self) -> Setup {
        Setup {
            case: self,
            scheduler: "rr",
            tables: String::new(),
            keys: String::new(),
            backends: String::new(),
        }
        .weights(&[1, 1, 1])
    }
}

/// The text of a configuration in the making.
#[derive(Clone, Debug)]
pub struct Setup {
    case: Case,
    scheduler: &'static str,
    tables: String,
    keys: String,
    backends: String,
}

impl Setup {
    pub fn scheduler(self, scheduler: &'static str) -> Self {
        Self { scheduler, ..self }
    }

    pub fn mode(mut self, mode: Mode) -> Self {
        self.case.mode = mode;
        self
    }

    /// Adds tables before the service: `[nat]`, `[[rules]]`.
    pub fn tables(mut self, text: &str) -> Self {
        self.tables = format!("{}\n{text}\n", self.tables);
        self
    }

    /// Adds keys of the service.
    pub fn keys(mut self, text: &str) -> Self {
        self.keys = format!("{}\n{text}\n", self.keys);
        self
    }

    /// Backends 1, 2, ... with these weights.
    pub fn weights(self, weights: &[u32]) -> Self {
        let numbered: Vec<(u16, u32)> = (1..).zip(weights.iter().copied()).collect();
        self.backends(&numbered)
    }

    /// These backends with their weights.
    pub fn backends(mut self, backends: &[(u16, u32)]) -> Self {
        let lines = backends.iter().map(|&(n, weight)| {
            let address = self.case.backend(n);
            format!("{{ address = \"{address}\", weight = {weight} }}")
        });
        self.backends = lines.collect::<Vec<_>>().join(",\n");
        self
    }

    pub fn toml(&self) -> String {
        let Self {
            case,
            scheduler,
            tables,
            keys,
            backends,
        } = self;
        let (mode, protocol, address) = (case.mode.name(), case.protocol, case.service());
        format!(
            "mode = \"{mode}\"\nscheduler = \"{scheduler}\"\n{tables}\n[[services]]\nname = \"web\"\n\
             protocol = \"{protocol}\"\naddress = \"{address}\"\n{keys}\nbackends = [{backends}]\n"
        )
    }

    #[track_caller]
    pub fn world(&self) -> World {
        World::new(&self.toml())
    }
}
