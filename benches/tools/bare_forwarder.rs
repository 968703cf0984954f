//! What lbd on AF_XDP is measured against: the same sockets, with nothing between receiving and sending but new Ethernet
//! addresses and, where asked for, another destination.
//!
//! ```text
//! bare_forwarder --from eth0 --to eth1 --source-mac 02:00:00:00:0b:00 --destination-mac 02:00:00:00:0b:01 --seconds 10
//! ```
#![allow(clippy::print_stdout, reason = "its result is what it prints")]
#![allow(clippy::disallowed_methods, reason = "it stops by itself after a while")]

mod interface;
mod l2;
mod redirect;

use std::error::Error;
use std::fs;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd};
use std::time::{Duration, Instant};

use clap::Parser;
use l2::Mac;
use lbd::io::xdp::Arrival;
use lbd::io::xdp::bundle::{Bundle, Port, Settings, ZeroCopy};
use lbd::io::xdp::channels::channels;
use mio::unix::SourceFd;
use redirect::Redirect;

/// Packets at once, as lbd has them.
const BATCH: usize = 64;
/// Empty looks at the rings before sleeping.
const IDLE: u32 = 20;

/// Sends what comes in by one interface out by another one.
#[derive(Debug, Parser)]
struct Arguments {
    /// The interface that packets come in by
    #[arg(long)]
    from: String,
    /// The interface that they leave by
    #[arg(long)]
    to: String,
    /// Ethernet address to send from
    #[arg(long)]
    source_mac: Mac,
    /// Ethernet address to send to
    #[arg(long)]
    destination_mac: Mac,
    /// IPv4 address to send to instead of the packet's own
    #[arg(long)]
    destination: Option<Ipv4Addr>,
    /// What comes in by --to leaves by --from, from this Ethernet address; without it, it is dropped
    #[arg(long, requires = "return_destination_mac")]
    return_source_mac: Option<Mac>,
    /// Ethernet address that such packets are sent to
    #[arg(long, requires = "return_source_mac")]
    return_destination_mac: Option<Mac>,
    /// How long to run
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Fetch packets instead of being told of them
    #[arg(long)]
    busy_poll: bool,
}

/// What is done with packets of one port.
struct Way {
    source: Mac,
    destination: Mac,
    address: Option<Ipv4Addr>,
}

struct Forwarder {
    bundle: Bundle,
    /// By the port that packets come in by; they leave by the other one.
    ways: [Option<Way>; 2],
    arrivals: Vec<Arrival>,
    received: u64,
    sent: u64,
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments = Arguments::parse();
    let ports = [port(&arguments.from)?, port(&arguments.to)?];
    let settings = Settings {
        zero_copy: ZeroCopy::Auto,
        busy_poll: arguments.busy_poll,
    };
    let bundle = Bundle::open(&settings, &ports)?;
    let programs = attach(&bundle, &ports)?;
    let natively = programs.iter().all(|program| program.is_native);
    let mode = if bundle.is_zero_copy() { "zero-copy" } else { "copy" };
    println!(
        "ready: {mode} mode, XDP {}",
        if natively { "native" } else { "generic" }
    );
    let mut forwarder = Forwarder {
        bundle,
        ways: ways(&arguments),
        arrivals: Vec::with_capacity(BATCH),
        received: 0,
        sent: 0,
    };
    let before = cpu_seconds()?;
    forwarder.run(Duration::from_secs(arguments.seconds), arguments.busy_poll)?;
    report(&forwarder, cpu_seconds()? - before);
    Ok(())
}

fn port(name: &str) -> Result<Port, String> {
    interface::port(name, (0..channels(name).receive).collect())
}

fn attach(bundle: &Bundle, ports: &[Port; 2]) -> Result<Vec<Redirect>, Box<dyn Error>> {
    let attach = |number: usize| {
        let bindings = bundle.bindings().filter(|binding| binding.port == number);
        let sockets = bindings.map(|binding| (binding.queue, binding.descriptor));
        let Port { name, index, .. } = &ports[number];
        let attached = Redirect::attach(*index, sockets);
        attached.map_err(|error| format!("{name}: cannot attach the XDP program: {error}").into())
    };
    [0, 1].into_iter().map(attach).collect()
}

fn ways(arguments: &Arguments) -> [Option<Way>; 2] {
    let back = arguments.return_source_mac.zip(arguments.return_destination_mac);
    [
        Some(Way {
            source: arguments.source_mac,
            destination: arguments.destination_mac,
            address: arguments.destination,
        }),
        back.map(|(source, destination)| Way {
            source,
            destination,
            address: None,
        }),
    ]
}

impl Forwarder {
    fn run(&mut self, time: Duration, busy_poll: bool) -> Result<(), Box<dyn Error>> {
        let mut poll = mio::Poll::new()?;
        for (number, descriptor) in self.bundle.descriptors().enumerate() {
            let source = descriptor.as_fd().as_raw_fd();
            let token = mio::Token(number);
            poll.registry()
                .register(&mut SourceFd(&source), token, mio::Interest::READABLE)?;
        }
        let mut events = mio::Events::with_capacity(8);
        let end = Instant::now() + time;
        let mut idle = 0;
        while let Some(left) = end.checked_duration_since(Instant::now()) {
            let moved = self.batch()?;
            idle = if moved { 0 } else { idle + 1 };
            if idle > IDLE && !busy_poll {
                poll.poll(&mut events, Some(left.min(Duration::from_millis(100))))?;
                idle = 0;
            }
        }
        Ok(())
    }

    /// Whether there was something to do.
    fn batch(&mut self) -> Result<bool, Box<dyn Error>> {
        let mut arrivals = std::mem::take(&mut self.arrivals);
        let received = self.bundle.receive(BATCH, &mut arrivals);
        self.received += received as u64;
        for arrival in arrivals.drain(..) {
            self.forward(arrival);
        }
        self.arrivals = arrivals;
        let flushed = self.bundle.flush()?;
        Ok(received > 0 || flushed.waiting > 0)
    }

    fn forward(&mut self, mut arrival: Arrival) {
        let port = arrival.port();
        let Some(way) = &self.ways[port] else {
            return self.bundle.release(arrival);
        };
        let unfinished = l2::unfinished(arrival.bytes(), arrival.length());
        let range = arrival.range();
        let packet = &mut arrival.storage()[range.clone()];
        l2::address(packet, way.destination, way.source);
        if let Some(address) = way.address {
            l2::redirect(packet, address, unfinished.is_some());
        }
        self.sent += u64::from(self.bundle.send(1 - port, arrival, range, unfinished));
    }
}

/// User and system time of this process, from proc_pid_stat(5), fields 14 and 15, in ticks of 10 ms (`USER_HZ`).
fn cpu_seconds() -> Result<f64, Box<dyn Error>> {
    let stat = fs::read_to_string("/proc/self/stat")?;
    let (_, fields) = stat.rsplit_once(')').ok_or("no process name in /proc/self/stat")?;
    let ticks = fields.split_whitespace().skip(11).take(2).map(str::parse::<f64>);
    Ok(ticks.sum::<Result<f64, _>>()? / 100.0)
}

fn report(forwarder: &Forwarder, cpu: f64) {
    println!("received {} sent {} cpu {cpu:.2}", forwarder.received, forwarder.sent);
    for socket in forwarder.bundle.statistics() {
        println!("{socket:?}");
    }
    println!("{:?}", forwarder.bundle.frames());
}
