//! Clients that keep to one port.
use std::collections::HashSet;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};

use super::load::inside;

const PATIENCE: Duration = Duration::from_secs(5);

/// Asks an HTTP server so many times, each time on a new connection from the same port, which ends by turns as the server
/// closes it and as the client aborts it. Returns how long the slowest took.
#[track_caller]
pub(crate) fn reuse_port(namespace: &str, server: &str, port: u16, times: u32) -> Duration {
    let server: SocketAddr = server.parse().expect("an address with a port");
    let client = inside(namespace, move || {
        let one = |number| {
            let start = Instant::now();
            let asked = ask(server, port, number % 2 == 1);
            asked.unwrap_or_else(|error| panic!("connection {number} after {:?}: {error}", start.elapsed()));
            start.elapsed()
        };
        (0..times).map(one).max().unwrap_or_default()
    });
    client.join().expect("the client panicked")
}

fn ask(server: SocketAddr, port: u16, aborts: bool) -> io::Result<()> {
    let mut stream = connect(server, port)?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.set_read_timeout(Some(PATIENCE))?;
    match aborts {
        // Closed with data unread: the kernel sends a RST.
        true => stream.read_exact(&mut [0; 1])?,
        false => drop(stream.read_to_end(&mut answer)?),
    }
    Ok(())
}

/// The kernel has the old connection until its last ACK is acknowledged: not a matter of lbd.
pub(super) fn connect(server: SocketAddr, port: u16) -> io::Result<TcpStream> {
    loop {
        let socket = Socket::new(Domain::for_address(server), Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        socket.bind(&any(server, port).into())?;
        match socket.connect_timeout(&server.into(), PATIENCE) {
            Err(error) if error.kind() == ErrorKind::AddrNotAvailable => thread::yield_now(),
            Err(error) => return Err(error),
            Ok(()) => return Ok(socket.into()),
        }
    }
}

fn any(like: SocketAddr, port: u16) -> SocketAddr {
    match like {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, port).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, port).into(),
    }
}

/// Sends a numbered datagram each few milliseconds from one port to an echo server, until stopped.
pub(crate) struct Sender {
    stop: Arc<AtomicBool>,
    client: JoinHandle<io::Result<Echoes>>,
}

/// What became of the datagrams.
#[derive(Debug, Default)]
pub(crate) struct Echoes {
    /// Sent.
    pub(crate) sent: u64,
    /// Numbers that did not come back.
    pub(crate) missing: HashSet<u64>,
    /// ICMP errors that came in their place.
    pub(crate) errors: usize,
}

impl Sender {
    pub(crate) fn start(namespace: &str, server: &str, port: u16) -> Self {
        let server: SocketAddr = server.parse().expect("an address with a port");
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let client = inside(namespace, move || send_until(&stopped, server, port));
        Self { stop, client }
    }

    #[track_caller]
    pub(crate) fn stop(self) -> Echoes {
        self.stop.store(true, Ordering::Relaxed);
        let sent = self.client.join().expect("the sender panicked");
        sent.expect("the sender has a socket")
    }
}

fn send_until(stop: &AtomicBool, server: SocketAddr, port: u16) -> io::Result<Echoes> {
    let socket = UdpSocket::bind(any(server, port))?;
    socket.connect(server)?;
    let mut echoes = Echoes::default();
    while !stop.load(Ordering::Relaxed) {
        echoes.missing.insert(echoes.sent);
        if socket.send(&echoes.sent.to_be_bytes()).is_err() {
            echoes.errors += 1;
        }
        echoes.sent += 1;
        receive(&socket, &mut echoes, Duration::from_millis(1))?;
    }
    receive(&socket, &mut echoes, Duration::from_millis(500))?;
    Ok(echoes)
}

/// What comes within this time.
fn receive(socket: &UdpSocket, echoes: &mut Echoes, time: Duration) -> io::Result<()> {
    let end = Instant::now() + time;
    let mut number = [0; 8];
    loop {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        socket.set_read_timeout(Some(left))?;
        match socket.recv(&mut number) {
            Ok(8) => drop(echoes.missing.remove(&u64::from_be_bytes(number))),
            Ok(_) => {}
            Err(error) if [ErrorKind::WouldBlock, ErrorKind::TimedOut].contains(&error.kind()) => {}
            Err(_) => echoes.errors += 1,
        }
    }
}
