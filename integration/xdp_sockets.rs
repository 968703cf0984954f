//! AF_XDP sockets between real veth pairs and real UDP sockets.
//!
//! ```text
//! client 10.1.0.2 a1 ---- a0 [this process] b0 ---- b1 10.2.0.2 server
//! ```
//! Each test starts itself anew in a network and a mount namespace of its own. Where XDP is not permitted, it says so.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "a test fails by panicking, says on stdout why it was skipped, and takes real time"
)]

#[path = "../benches/tools/interface.rs"]
mod interface;
#[path = "../benches/tools/l2.rs"]
mod l2;
#[path = "../benches/tools/redirect.rs"]
mod redirect;
#[path = "support/unshared.rs"]
mod unshared;

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::net::UdpSocket;
use std::os::fd::{AsFd, AsRawFd};
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use l2::Mac;
use lbd::io::xdp::bundle::{Bundle, Flushed, Port, Settings, Unfinished, ZeroCopy};
use lbd::io::xdp::channels::{Channels, channels};
use lbd::io::xdp::{Arrival, OpenError};
use mio::unix::SourceFd;
use redirect::Redirect;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use unshared::inside_with;

const B0: Mac = Mac([2, 0, 0, 0, 0x0b, 0]);
const B1: Mac = Mac([2, 0, 0, 0, 0x0b, 1]);
/// How long a packet may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Runs `body` in fresh namespaces.
fn isolated(name: &str, body: impl FnOnce()) {
    inside_with("-nm", name, || match probe() {
        Ok(()) => body(),
        Err(why) => println!("skipped: AF_XDP is not permitted here: {why}"),
    });
}

/// Whether sockets and programs can be had, on the loopback interface that every namespace has.
fn probe() -> Result<(), String> {
    let bundle = open(&[interface::port("lo", vec![0])?], ZeroCopy::Never).map_err(|error| error.to_string())?;
    let sockets = bundle.bindings().map(|binding| (binding.queue, binding.descriptor));
    let program = Redirect::attach(1, sockets).map_err(|error| error.to_string())?;
    assert!(!program.is_native, "the loopback interface has no native XDP");
    Ok(())
}

fn sh(script: &str) {
    let output = Command::new("sh").args(["-eu", "-c", script]).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{script}: {error}");
}

/// Client and server, each pair of interfaces with this many queues and this MTU.
fn lay(receive: u32, transmit: u32, mtu: u32) {
    sh("mount -t tmpfs tmpfs /run; mkdir /run/netns");
    for (name, side, net) in [("client", "a", "10.1.0"), ("server", "b", "10.2.0")] {
        sh(&format!(
            "ip netns add {name}; ip -n {name} link set lo up
             ip link add {side}0 address 02:00:00:00:0{side}:00 mtu {mtu} numrxqueues {receive} numtxqueues {transmit} \
                type veth peer name {side}1 address 02:00:00:00:0{side}:01 mtu {mtu} \
                numrxqueues {transmit} numtxqueues {receive} netns {name}
             ip link set {side}0 up; ip -n {name} link set {side}1 up
             ip -n {name} address add {net}.2/24 dev {side}1
             ip -n {name} neighbour add {net}.1 lladdr 02:00:00:00:0{side}:00 dev {side}1 nud permanent
             ip -n {name} route add default via {net}.1"
        ));
    }
}

/// Does something in the client's or the server's namespace, in a thread of its own.
fn within<T: Send>(name: &str, action: impl FnOnce() -> T + Send) -> T {
    let namespace = File::open(format!("/run/netns/{name}")).unwrap();
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
            action()
        });
        thread.join().unwrap()
    })
}

fn client() -> UdpSocket {
    let socket = within("client", || UdpSocket::bind("10.1.0.2:4000").unwrap());
    socket.connect("10.2.0.2:5000").unwrap();
    socket
}

fn server() -> UdpSocket {
    let socket = within("server", || UdpSocket::bind("10.2.0.2:5000").unwrap());
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

fn ports(queues: &[u32]) -> [Port; 2] {
    ["a0", "b0"].map(|name| interface::port(name, queues.to_vec()).unwrap())
}

/// This process between the two.
struct Lab {
    bundle: Bundle,
    programs: Vec<Redirect>,
}

impl Lab {
    fn new(ports: &[Port]) -> Self {
        Self::with(&Settings::default(), ports)
    }

    fn with(settings: &Settings, ports: &[Port]) -> Self {
        let bundle = Bundle::open(settings, ports).unwrap();
        let attach = |(number, port): (usize, &Port)| {
            let bindings = bundle.bindings().filter(move |binding| binding.port == number);
            Redirect::attach(port.index, bindings.map(|binding| (binding.queue, binding.descriptor))).unwrap()
        };
        let programs = ports.iter().enumerate().map(attach).collect();
        Self { bundle, programs }
    }

    /// Waits until a packet is there, or for a moment; which sockets have one, in the order of [`Bundle::bindings`].
    fn wait(&self) -> BTreeSet<usize> {
        let mut poll = mio::Poll::new().unwrap();
        for (number, descriptor) in self.bundle.descriptors().enumerate() {
            let source = descriptor.as_raw_fd();
            poll.registry()
                .register(&mut SourceFd(&source), mio::Token(number), mio::Interest::READABLE)
                .unwrap();
        }
        let mut events = mio::Events::with_capacity(4);
        poll.poll(&mut events, Some(Duration::from_millis(100))).unwrap();
        events.iter().map(|event| event.token().0).collect()
    }

    fn wait_for_all_of(&self, sockets: &[usize]) {
        let (all, end) = (sockets.iter().copied().collect(), Instant::now() + PATIENCE);
        while !self.wait().is_superset(&all) {
            assert!(Instant::now() < end, "{:?}", self.bundle.statistics());
            sleep(Duration::from_millis(5));
        }
    }

    /// Receives this many packets of IPv4, from the client, and hands each to `act`.
    fn each(&mut self, count: usize, mut act: impl FnMut(&mut Bundle, Arrival)) {
        let end = Instant::now() + PATIENCE;
        let mut arrivals = Vec::new();
        let mut seen = 0;
        while seen < count {
            assert!(
                Instant::now() < end,
                "{seen} of {count}: {:?}",
                self.bundle.statistics()
            );
            if self.bundle.receive(64, &mut arrivals) == 0 {
                self.wait();
            }
            for arrival in arrivals.drain(..) {
                if arrival.port() == 0 && is_ipv4_udp(&arrival) {
                    seen += 1;
                    act(&mut self.bundle, arrival);
                } else {
                    self.bundle.release(arrival);
                }
            }
            self.bundle.flush().unwrap();
        }
    }

    /// Forwards this many packets from the client to the server.
    fn forward(&mut self, count: usize) {
        self.each(count, |bundle, arrival| {
            assert!(forward(bundle, arrival));
        });
    }

    /// Every frame is free again or waits for a packet, once the kernel has sent all.
    fn assert_nothing_leaked(&mut self) {
        let end = Instant::now() + PATIENCE;
        while self.bundle.frames().sending > 0 && Instant::now() < end {
            self.wait();
            self.bundle.flush().unwrap();
        }
        let frames = self.bundle.frames();
        assert!(
            frames.is_complete() && frames.held == 0 && frames.sending == 0,
            "{frames:?}"
        );
    }
}

fn is_ipv4_udp(arrival: &Arrival) -> bool {
    let bytes = arrival.bytes();
    bytes[12..14] == [8, 0] && bytes[23] == 17
}

fn forward(bundle: &mut Bundle, mut arrival: Arrival) -> bool {
    let unfinished = l2::unfinished(arrival.bytes(), arrival.length());
    let range = arrival.range();
    l2::address(&mut arrival.storage()[range.clone()], B1, B0);
    bundle.send(1, arrival, range, unfinished)
}

fn receive(socket: &UdpSocket) -> Vec<u8> {
    let mut bytes = vec![0; 65_536];
    let length = socket.recv(&mut bytes).unwrap();
    bytes.truncate(length);
    bytes
}

/// A datagram of 18 bytes or so, from lbd itself to the server.
fn own_packet(text: &[u8]) -> Vec<u8> {
    let builder = etherparse::PacketBuilder::ethernet2(B0.0, B1.0)
        .ipv4([10, 2, 0, 1], [10, 2, 0, 2], 64)
        .udp(6000, 5000);
    let mut packet = Vec::new();
    builder.write(&mut packet, text).unwrap();
    packet
}

fn send_own(bundle: &mut Bundle, packet: &[u8]) -> Option<bool> {
    let mut arrival = bundle.allocate(1)?;
    let start = arrival.range().start;
    let range = start..start + packet.len();
    arrival.storage()[range.clone()].copy_from_slice(packet);
    Some(bundle.send(1, arrival, range, None))
}

#[test]
fn datagrams_of_a_local_stack_arrive_with_finished_checksums() {
    isolated("datagrams_of_a_local_stack_arrive_with_finished_checksums", || {
        lay(1, 1, 1500);
        let (client, server) = (client(), server());
        let mut lab = Lab::new(&ports(&[0]));
        println!("the kernel finishes checksums: {}", lab.bundle.finishes_checksums());
        for number in 0..1_000_u32 {
            client.send(&number.to_be_bytes()).unwrap();
            lab.each(1, |bundle, arrival| {
                assert!(l2::unfinished(arrival.bytes(), arrival.length()).is_some());
                assert!(forward(bundle, arrival));
            });
            assert_eq!(receive(&server), number.to_be_bytes());
        }
        lab.assert_nothing_leaked();
        let [from, to]: [_; 2] = lab.bundle.statistics().try_into().unwrap();
        assert!(from.received >= 1_000 && to.sent == 1_000, "{from:?} {to:?}");
        assert_eq!((to.invalid_sent, to.malformed, to.refused, from.dropped), (0, 0, 0, 0));
        assert!(!from.zero_copy && !lab.bundle.is_zero_copy());
    });
}

#[test]
fn the_bare_forwarder_can_change_the_destination() {
    isolated("the_bare_forwarder_can_change_the_destination", || {
        lay(1, 1, 1500);
        let (client, server) = (client(), server());
        let mut lab = Lab::new(&ports(&[0]));
        assert!(lab.programs.iter().all(|program| program.is_native));
        client.connect("192.0.2.1:5000").unwrap();
        client.send(b"elsewhere").unwrap();
        lab.each(1, |bundle, mut arrival| {
            let is_unfinished = l2::unfinished(arrival.bytes(), arrival.length()).is_some();
            let range = arrival.range();
            l2::redirect(&mut arrival.storage()[range], [10, 2, 0, 2].into(), is_unfinished);
            assert!(forward(bundle, arrival));
        });
        assert_eq!(receive(&server), b"elsewhere");
        lab.assert_nothing_leaked();
    });
}

#[test]
fn a_datagram_of_many_frames_passes_whole() {
    isolated("a_datagram_of_many_frames_passes_whole", || {
        lay(1, 1, 9000);
        let (client, server) = (client(), server());
        let mut lab = Lab::new(&ports(&[0]));
        for length in [10, 3_700, 3_900, 8_000, 8_900] {
            let sent: Vec<u8> = (0..length).map(|number| number as u8).collect();
            client.send(&sent).unwrap();
            lab.each(1, |bundle, mut arrival| {
                assert_eq!(arrival.length(), length + 42);
                assert_eq!(arrival.is_chain(), length > 3_800);
                // Rewritten as a packet in one piece.
                let mut whole = Vec::new();
                arrival.gather(&mut whole);
                assert!(whole[42..] == sent);
                l2::address(&mut whole, B1, B0);
                let unfinished = l2::unfinished(&whole, whole.len());
                arrival.put_head_back(&whole);
                let range = arrival.range();
                assert!(bundle.send(1, arrival, range, unfinished));
            });
            assert!(receive(&server) == sent, "{length}");
        }
        lab.assert_nothing_leaked();
    });
}

#[test]
fn an_answer_in_the_place_of_a_long_packet_is_sent_alone() {
    isolated("an_answer_in_the_place_of_a_long_packet_is_sent_alone", || {
        lay(1, 1, 9000);
        let (client, server) = (client(), server());
        let mut lab = Lab::new(&ports(&[0]));
        client.send(&[1; 8_000]).unwrap();
        lab.each(1, |bundle, mut arrival| {
            bundle.truncate(&mut arrival);
            let answer = own_packet(b"an answer");
            // Longer headers before it are no trouble either.
            let range = 200..200 + answer.len();
            arrival.storage()[range.clone()].copy_from_slice(&answer);
            assert!(bundle.send(1, arrival, range, None));
        });
        assert_eq!(receive(&server), b"an answer");
        client.send(&[1; 8_000]).unwrap();
        lab.each(1, |bundle, arrival| bundle.release(arrival));
        lab.assert_nothing_leaked();
    });
}

#[test]
fn packets_that_find_no_place_are_counted_and_their_frames_come_back() {
    isolated(
        "packets_that_find_no_place_are_counted_and_their_frames_come_back",
        || {
            lay(1, 1, 1500);
            let mut lab = Lab::new(&ports(&[0]));
            let packet = own_packet(b"one of many");
            let free = lab.bundle.frames().free;
            let results: Vec<bool> = std::iter::from_fn(|| send_own(&mut lab.bundle, &packet))
                .take(free)
                .collect();
            let unsent = results.iter().filter(|&&queued| !queued).count();
            assert!(
                unsent > 0 && results[..2_000].iter().all(|&queued| queued),
                "{unsent} of {free}"
            );
            assert_eq!(lab.bundle.flush().unwrap().unsent, unsent);
            assert_eq!(lab.bundle.flush().unwrap().unsent, 0);
            lab.assert_nothing_leaked();
            let statistics = lab.bundle.statistics();
            assert_eq!(statistics[1].send_ring_full, unsent as u64);
            assert_eq!(statistics[1].sent + unsent as u64, results.len() as u64);
        },
    );
}

#[test]
fn a_packet_that_the_kernel_would_choke_on_never_reaches_it() {
    isolated("a_packet_that_the_kernel_would_choke_on_never_reaches_it", || {
        lay(1, 1, 1500);
        let server = server();
        let mut lab = Lab::new(&ports(&[0]));
        let beyond = Unfinished { start: 60, offset: 16 };
        for (range, checksum) in [
            (8..100, None),
            (256..256, None),
            (256..269, None),
            (256..320, Some(beyond)),
        ] {
            let arrival = lab.bundle.allocate(1).unwrap();
            assert!(!lab.bundle.send(1, arrival, range, checksum));
        }
        assert_eq!(lab.bundle.statistics()[1].malformed, 4);
        assert_eq!(send_own(&mut lab.bundle, &own_packet(b"well formed")), Some(true));
        assert_eq!(lab.bundle.flush().unwrap().unsent, 4);
        assert_eq!(receive(&server), b"well formed");
        lab.assert_nothing_leaked();
    });
}

#[test]
fn an_interface_that_goes_down_and_up_again_forwards_again() {
    isolated("an_interface_that_goes_down_and_up_again_forwards_again", || {
        lay(1, 1, 1500);
        let (client, server) = (client(), server());
        let mut lab = Lab::new(&ports(&[0]));
        sh("ip link set b0 down");
        client.send(b"lost").unwrap();
        lab.forward(1);
        assert!(lab.bundle.frames().is_complete());
        sh("ip link set b0 up");
        client.send(b"found").unwrap();
        lab.forward(1);
        server.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        // What waited meanwhile comes first.
        assert_eq!(
            [receive(&server), receive(&server)],
            [b"lost".to_vec(), b"found".to_vec()]
        );
        lab.assert_nothing_leaked();
        sh("ip link delete b0");
        client.send(b"gone").unwrap();
        lab.forward(1);
        assert!(lab.bundle.frames().is_complete());
    });
}

#[test]
fn packets_of_all_queues_are_received_in_turn() {
    isolated("packets_of_all_queues_are_received_in_turn", || {
        lay(2, 2, 1500);
        let two = Channels {
            receive: 2,
            transmit: 2,
        };
        assert_eq!(channels("a0"), two);
        let server = server();
        let mut lab = Lab::new(&ports(&[0, 1]));
        // The sender's address chooses the queue; forty of them hit both.
        let clients: Vec<UdpSocket> = within("client", || {
            (0..40)
                .map(|number| UdpSocket::bind(("10.1.0.2", 4_000 + number)).unwrap())
                .collect()
        });
        for client in &clients {
            for _ in 0..10 {
                client.send_to(b"hello", "10.2.0.2:5000").unwrap();
            }
        }
        // On a busy machine the kernel may deliver one queue's packets long before the other's.
        lab.wait_for_all_of(&[0, 1]);
        let mut arrivals = Vec::new();
        let of_queue = |lab: &Lab, queue: usize| lab.bundle.statistics()[queue].received;
        let end = Instant::now() + PATIENCE;
        while of_queue(&lab, 0) == 0 || of_queue(&lab, 1) == 0 {
            assert!(Instant::now() < end, "{:?}", lab.bundle.statistics());
            lab.bundle.receive(4, &mut arrivals);
        }
        let early = arrivals.iter().filter(|arrival| is_ipv4_udp(arrival)).count();
        assert!(early <= 12, "a queue had to wait for {early} packets");
        for arrival in arrivals.drain(..) {
            if is_ipv4_udp(&arrival) {
                assert!(forward(&mut lab.bundle, arrival));
            } else {
                lab.bundle.release(arrival);
            }
        }
        lab.bundle.flush().unwrap();
        receive(&server);
        lab.assert_nothing_leaked();
        assert_eq!(lab.bundle.statistics().len(), 4);
    });
}

fn open(ports: &[Port], zero_copy: ZeroCopy) -> Result<Bundle, OpenError> {
    let settings = Settings {
        zero_copy,
        ..Settings::default()
    };
    Bundle::open(&settings, ports)
}

#[test]
fn a_worker_sends_by_the_queues_that_can() {
    isolated("a_worker_sends_by_the_queues_that_can", || {
        lay(2, 1, 1500);
        let error = open(&ports(&[1]), ZeroCopy::Never).unwrap_err().to_string();
        assert!(
            error.starts_with("a0, queue 1: ") && error.contains("[datapath] workers"),
            "{error}"
        );
        let server = server();
        let mut lab = Lab::new(&ports(&[0, 1]));
        assert_eq!(send_own(&mut lab.bundle, &own_packet(b"by queue 0")), Some(true));
        assert_eq!(lab.bundle.flush().unwrap(), Flushed::default());
        assert_eq!(receive(&server), b"by queue 0");
    });
}

#[test]
fn what_cannot_be_opened_is_named_with_its_remedy() {
    isolated("what_cannot_be_opened_is_named_with_its_remedy", || {
        lay(1, 1, 1500);
        let ports = ports(&[0]);
        let error = open(&ports, ZeroCopy::Required).unwrap_err().to_string();
        assert!(
            error.starts_with("a0, queue 0: ") && error.contains("zero_copy = \"auto\""),
            "{error}"
        );
        let bundle = open(&ports, ZeroCopy::Auto).unwrap();
        let error = open(&ports[1..], ZeroCopy::Never).unwrap_err().to_string();
        assert!(
            error.starts_with("b0, queue 0: ") && error.contains("another AF_XDP program"),
            "{error}"
        );
        drop(bundle);
        open(&ports, ZeroCopy::Never).unwrap();
        let gone = Port {
            index: 9_999,
            ..ports[0].clone()
        };
        let error = open(&[gone], ZeroCopy::Never).unwrap_err();
        assert_eq!(error.error.kind(), io::Error::from_raw_os_error(libc::ENODEV).kind());
    });
}

#[test]
fn packets_are_fetched_with_busy_polling_too() {
    isolated("packets_are_fetched_with_busy_polling_too", || {
        lay(1, 1, 1500);
        let (client, server) = (client(), server());
        let settings = Settings {
            busy_poll: true,
            ..Settings::default()
        };
        let mut lab = Lab::with(&settings, &ports(&[0]));
        for number in 0..100_u32 {
            client.send(&number.to_be_bytes()).unwrap();
            lab.forward(1);
            assert_eq!(receive(&server), number.to_be_bytes());
        }
        lab.assert_nothing_leaked();
    });
}
