//! A traffic generator: small UDP datagrams in many flows, as fast as one CPU can or at a rate. Made for
//! `scripts/bench-xdp`.
//!
//! Each flow is a socket with a source port of its own. One system call hands the kernel a burst of datagrams
//! (`UDP_SEGMENT`), which it cuts into frames before they leave; so it is not the system calls that are measured.
#![allow(
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "a tool that says what it did, in real time"
)]

use std::error::Error;
use std::io;
use std::mem::size_of_val;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::thread::sleep;
use std::time::{Duration, Instant};

use clap::Parser;

/// The payload of a UDP frame of 64 bytes over IPv4: 14 bytes Ethernet, 20 IP, 8 UDP, 4 frame check sequence.
const PAYLOAD: u16 = 18;

/// What to send.
#[derive(Debug, Parser)]
struct Arguments {
    /// Where to
    #[arg(long)]
    to: SocketAddr,
    /// Source ports, from the first one on
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u16).range(1..=40000))]
    flows: u16,
    /// The first source port
    #[arg(long, default_value_t = 20000, value_parser = clap::value_parser!(u16).range(1..=25000))]
    first_port: u16,
    /// How long, in seconds
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// Datagrams a second; 0: as many as can be
    #[arg(long, default_value_t = 0)]
    rate: u64,
    /// Bytes of payload in each datagram
    #[arg(long, default_value_t = PAYLOAD, value_parser = clap::value_parser!(u16).range(1..=1400))]
    size: u16,
    /// Datagrams of one flow in a row
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..=64))]
    burst: u16,
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments = Arguments::parse();
    let sockets = (0..arguments.flows)
        .map(|flow| socket(&arguments, arguments.first_port + flow))
        .collect::<io::Result<Vec<_>>>()?;
    let start = Instant::now();
    let sent = send(&arguments, &sockets, start);
    println!("sent {sent} in {:.3} s", start.elapsed().as_secs_f64());
    Ok(())
}

fn socket(arguments: &Arguments, port: u16) -> io::Result<UdpSocket> {
    let any = if arguments.to.is_ipv4() { "0.0.0.0" } else { "::" };
    let socket = UdpSocket::bind((any, port))?;
    socket.connect(arguments.to)?;
    segment(&socket, i32::from(arguments.size))?;
    Ok(socket)
}

/// What is sent in one piece leaves in datagrams of so many bytes (udp(7), `UDP_SEGMENT`).
#[allow(unsafe_code, reason = "neither std nor socket2 knows UDP_SEGMENT")]
fn segment(socket: &UdpSocket, size: libc::c_int) -> io::Result<()> {
    let length = libc::socklen_t::try_from(size_of_val(&size)).map_err(io::Error::other)?;
    // SAFETY: `size` is an int and lives through the call, and `length` is its length.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_UDP,
            libc::UDP_SEGMENT,
            (&raw const size).cast(),
            length,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Sends a burst of each flow in turn until the time is over; says how many datagrams the kernel took.
fn send(arguments: &Arguments, sockets: &[UdpSocket], start: Instant) -> u64 {
    let burst = vec![0; usize::from(arguments.size) * usize::from(arguments.burst)];
    let (mut sent, limit) = (0, Duration::from_secs_f64(arguments.seconds));
    for socket in sockets.iter().cycle() {
        if start.elapsed() >= limit {
            break;
        }
        // An error is a full queue or an ICMP error about what was sent before: neither ends the flow.
        if socket.send(&burst).is_ok() {
            sent += u64::from(arguments.burst);
        }
        pace(arguments.rate, sent, start);
    }
    sent
}

fn pace(rate: u64, sent: u64, start: Instant) {
    if let Some(nanoseconds) = sent.saturating_mul(1_000_000_000).checked_div(rate) {
        sleep(Duration::from_nanos(nanoseconds).saturating_sub(start.elapsed()));
    }
}
