//! An engine in virtual time that is run by ipvsadm's commands alone, with clients and servers around it.
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ahash::RandomState;

use crate::estimator::INTERVAL;
use crate::ipvsadm::{Output, run};
use crate::protocol::{ConnectionView, Data, Reply, Request, ServiceView};
use crate::views::{Rates, count_persistent, templates};
use lbd_core::engine::{Engine, Lane, Seeds};
use lbd_core::flow::Endpoint;
use lbd_core::packet::frame::{Checksum, Frame};
use lbd_core::service::Totals;
use lbd_core::time::Instant;
use lbd_core::verdict::{Drop, Verdict};
use lbd_state::config::{Config, edit, parse};
use lbd_testkit::packets::{ACK, FIN, PSH, RST, SYN, endpoints, sctp, tcp, udp};

pub(super) struct Lab {
    config: Config,
    engine: Engine,
    lane: Lane,
    rates: Rates,
    pub(super) now: Instant,
    /// In bytes.
    pub(super) largest_request: usize,
}

/// What a client sees of its request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// Answered by this server.
    From(SocketAddr),
    /// ICMP port unreachable or RST.
    Refused,
    /// Nothing.
    Silence,
}

/// A TCP connection as its client knows it.
#[derive(Clone, Debug)]
pub(super) struct Tcp {
    client: String,
    service: String,
    pub(super) server: SocketAddr,
}

impl Lab {
    pub(super) fn new() -> Self {
        let config = parse("lab", "mode = \"ipvs\"\n").unwrap().config;
        let seeds = Seeds {
            choices: 1,
            hashing: RandomState::with_seeds(1, 2, 3, 4),
        };
        let now = Instant::from_duration(Duration::from_secs(1));
        let (engine, mut lanes) = Engine::new(Arc::new(config.policy.clone()), 1, seeds, now);
        Self {
            config,
            engine,
            lane: lanes.remove(0),
            rates: Rates::default(),
            now,
            largest_request: 0,
        }
    }

    /// Runs one command line, and checks that what it leaves is what a saved file would give.
    pub(super) fn ipvsadm(&mut self, arguments: &str) -> Output {
        self.restore(arguments, "")
    }

    pub(super) fn restore(&mut self, arguments: &str, input: &str) -> Output {
        let arguments: Vec<String> = arguments.split_whitespace().map(str::to_owned).collect();
        let output = run("ipvsadm", &arguments, || Ok(input.to_owned()), &mut |request| {
            let text = serde_json::to_string(request).unwrap();
            self.largest_request = self.largest_request.max(text.len());
            Ok(self.answer(&serde_json::from_str(&text).unwrap()))
        });
        let saved = parse("saved", &lbd_state::config::to_toml(&self.config)).unwrap();
        assert_eq!(saved.config, self.config);
        output
    }

    /// A command that must succeed; what it prints.
    pub(super) fn ok(&mut self, arguments: &str) -> String {
        let output = self.ipvsadm(arguments);
        assert_eq!((output.code, output.err.as_str()), (0, ""), "{arguments}: {output:?}");
        output.out
    }

    /// The table without its three lines of title.
    pub(super) fn table(&mut self) -> Vec<String> {
        self.ok("-Ln").lines().skip(3).map(str::to_owned).collect()
    }

    /// `-Lnc` without its title, each field once, sorted.
    pub(super) fn flows(&mut self) -> Vec<String> {
        let text = self.ok("-Lnc");
        let squeeze = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
        let mut lines: Vec<String> = text.lines().skip(2).map(squeeze).collect();
        lines.sort();
        lines
    }

    fn answer(&mut self, request: &Request) -> Reply {
        match request {
            Request::List { .. } => Reply::Ok(Data::Services(self.services())),
            Request::Connections { .. } => Reply::Ok(Data::Connections(self.connections())),
            Request::Timeouts => Reply::Ok(Data::Timeouts((&self.config.policy.conntrack.timeouts).into())),
            Request::Edit { edits } => match edit::apply(&self.config, &[], edits) {
                Ok(config) => {
                    self.put(config);
                    Reply::message("done")
                }
                Err(refusal) => refusal.into(),
            },
            Request::Zero { service } => self.zero(service.as_ref()),
            other => panic!("ipvsadm does not ask for this: {other:?}"),
        }
    }

    pub(super) fn put(&mut self, config: Config) {
        self.engine.apply(Arc::new(config.policy.clone()));
        self.rates
            .follow(self.engine.ruleset().services.iter().map(|service| &**service));
        self.config = config;
    }

    pub(super) fn config(&self) -> &Config {
        &self.config
    }

    fn zero(&mut self, which: Option<&edit::Which>) -> Reply {
        let only = match which
            .map(|which| edit::find(&self.config.policy, &[], which))
            .transpose()
        {
            Ok(only) => only,
            Err(refusal) => return refusal.into(),
        };
        for (at, service) in self.engine.ruleset().services.iter().enumerate() {
            if only.is_none_or(|only| only == at) {
                self.rates.reset(service);
            }
        }
        Reply::message("done")
    }

    fn services(&self) -> Vec<ServiceView> {
        let ruleset = self.engine.ruleset();
        let mut views: Vec<_> = ruleset
            .services
            .iter()
            .map(|service| ServiceView::new(service, &self.rates))
            .collect();
        count_persistent(&mut views, self.engine.affinity(), &ruleset, self.now);
        views
    }

    fn connections(&self) -> Vec<ConnectionView> {
        let templates = templates(self.engine.affinity(), &self.engine.ruleset(), self.now);
        let mut views: Vec<ConnectionView> = templates.collect();
        self.engine
            .conntrack()
            .each(self.now, |flow| views.push(ConnectionView::new(flow, self.now)));
        views
    }

    /// Lets time pass; the estimator ticks every two seconds of it.
    pub(super) fn pass(&mut self, time: Duration) {
        let until = self.now + time;
        let tick = |at: Instant| at.as_nanos() / INTERVAL.as_nanos() as u64;
        for _ in tick(self.now)..tick(until) {
            self.rates
                .tick(self.engine.ruleset().services.iter().map(|service| &**service));
        }
        self.now = until;
        drop(self.engine.enter(&mut self.lane, until));
    }

    /// Has a packet judged; it comes back as it leaves.
    pub(super) fn send(&mut self, packet: &[u8]) -> (Verdict, Vec<u8>) {
        let mut buffer = vec![0; 2048];
        buffer[64..64 + packet.len()].copy_from_slice(packet);
        let mut frame = Frame::new(&mut buffer, 64, 64 + packet.len(), Checksum::Complete);
        let verdict = self
            .engine
            .enter(&mut self.lane, self.now)
            .process(&mut frame, self.now);
        let bytes = frame.bytes().to_vec();
        (verdict, bytes)
    }

    /// Whom a packet of a client reaches.
    fn reach(&mut self, packet: &[u8]) -> Result<(SocketAddr, SocketAddr), Answer> {
        let (verdict, packet) = self.send(packet);
        match verdict {
            Verdict::Forward => Ok(endpoints(&packet)),
            Verdict::Reject(_) => Err(Answer::Refused),
            Verdict::Drop(Drop::NotSyn | Drop::NotInit) | Verdict::Pass(_) => Err(Answer::Refused),
            Verdict::Drop(_) | Verdict::Hold => Err(Answer::Silence),
        }
    }

    /// A first SYN; which server it reaches.
    pub(super) fn open(&mut self, client: &str, service: &str) -> SocketAddr {
        self.reach(&tcp(client, service, SYN, 1, 0, &[])).unwrap().1
    }

    /// A handshake.
    pub(super) fn connect(&mut self, client: &str, service: &str) -> Result<Tcp, Answer> {
        let (source, server) = self.reach(&tcp(client, service, SYN, 1, 0, &[]))?;
        let (verdict, answer) = self.send(&tcp(server, source, SYN | ACK, 1, 2, &[]));
        assert_eq!(verdict, Verdict::Forward);
        assert_eq!(endpoints(&answer), (service.parse().unwrap(), client.parse().unwrap()));
        self.reach(&tcp(client, service, ACK, 2, 2, &[]))?;
        Ok(Tcp {
            client: client.to_owned(),
            service: service.to_owned(),
            server,
        })
    }

    /// A request of so many bytes on a connection, its answer, and the acknowledgement.
    pub(super) fn exchange(&mut self, flow: &Tcp, request: usize, response: usize) -> Answer {
        let Tcp { client, service, .. } = flow;
        let (source, server) = match self.reach(&tcp(client, service, PSH | ACK, 2, 2, &vec![b'q'; request])) {
            Ok(reached) => reached,
            Err(answer) => return answer,
        };
        let (verdict, _) = self.send(&tcp(server, source, PSH | ACK, 2, 3, &vec![b'a'; response]));
        assert_eq!(verdict, Verdict::Forward);
        match self.reach(&tcp(client, service, ACK, 3, 3, &[])) {
            Ok(_) => Answer::From(server),
            Err(answer) => answer,
        }
    }

    /// Sends on a flow what its server lacks of these totals: all packets but the last are as small as can be.
    pub(super) fn fill(&mut self, flow: &Tcp, server: &str, wanted: Totals) {
        let server: Endpoint = server.parse().unwrap();
        assert_eq!(flow.server.to_string(), server.to_string());
        let find = |lab: &Self| {
            let ruleset = lab.engine.ruleset();
            let mut backends = ruleset.services[0].backends.iter();
            backends
                .find(|backend| backend.address == server)
                .unwrap()
                .stats
                .totals()
        };
        let Tcp { client, service, .. } = flow;
        let has = find(self);
        for payload in payloads(wanted.in_packets - has.in_packets, wanted.in_bytes - has.in_bytes) {
            self.reach(&tcp(client, service, ACK, 4, 4, &payload)).unwrap();
        }
        for payload in payloads(wanted.out_packets - has.out_packets, wanted.out_bytes - has.out_bytes) {
            let (verdict, _) = self.send(&tcp(server, client, ACK, 4, 4, &payload));
            assert_eq!(verdict, Verdict::Forward);
        }
        let now = find(self);
        assert_eq!(
            (now.in_packets, now.out_packets),
            (wanted.in_packets, wanted.out_packets)
        );
    }

    /// The client closes, then the server.
    pub(super) fn close(&mut self, flow: &Tcp) {
        let Tcp {
            client,
            service,
            server,
        } = flow;
        let (source, _) = self.reach(&tcp(client, service, FIN | ACK, 3, 3, &[])).unwrap();
        let (verdict, _) = self.send(&tcp(server, source, FIN | ACK, 3, 4, &[]));
        assert_eq!(verdict, Verdict::Forward);
        self.reach(&tcp(client, service, ACK, 4, 4, &[])).unwrap();
    }

    pub(super) fn reset(&mut self, flow: &Tcp) {
        // Of a connection on which nothing was said.
        self.reach(&tcp(&flow.client, &flow.service, RST, 2, 2, &[])).unwrap();
    }

    /// A new connection with one request, closed again; as the recorded "new connections" are.
    pub(super) fn visit(&mut self, client: &str, service: &str) -> Answer {
        match self.connect(client, service) {
            Err(answer) => answer,
            Ok(flow) => {
                let answer = self.exchange(&flow, 1, 1);
                self.close(&flow);
                answer
            }
        }
    }

    /// The handshake of an SCTP association, by the numbers of its chunks (RFC 9260 table 1).
    pub(super) fn associate(&mut self, client: &str, service: &str) {
        let (source, server) = self.reach(&sctp(client, service, 1)).unwrap();
        for answer in [2, 11] {
            let (verdict, _) = self.send(&sctp(server, source, answer));
            assert_eq!(verdict, Verdict::Forward);
            self.reach(&sctp(client, service, if answer == 2 { 10 } else { 0 }))
                .unwrap();
        }
    }

    /// A datagram and its answer.
    pub(super) fn ask(&mut self, client: &str, service: &str) -> Answer {
        let (source, server) = match self.reach(&udp(client, service, b"q")) {
            Ok(reached) => reached,
            Err(answer) => return answer,
        };
        let (verdict, answer) = self.send(&udp(server, source, b"a"));
        assert_eq!(verdict, Verdict::Forward);
        assert_eq!(endpoints(&answer), (service.parse().unwrap(), client.parse().unwrap()));
        Answer::From(server)
    }
}

/// Payloads of segments of 40 bytes of headers that add up to so many packets and bytes.
fn payloads(packets: u64, bytes: u64) -> Vec<Vec<u8>> {
    let last = (bytes - 40 * packets) as usize;
    let mut all = vec![Vec::new(); packets as usize];
    *all.last_mut().unwrap() = vec![b'x'; last];
    all
}
