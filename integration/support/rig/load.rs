//! Clients written here because no program does just this: many short connections with every failure told, and
//! numbered datagrams checked on both ways.
use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::SERVERS;

/// Runs `work` in a thread of its own within a network namespace; sockets made there belong to it.
pub(super) fn inside<T: Send + 'static>(namespace: &str, work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    let namespace = File::open(format!("/run/netns/{namespace}")).expect("no such namespace");
    thread::spawn(move || {
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
            .expect("cannot enter the namespace");
        work()
    })
}

/// Short HTTP requests, one connection each, as fast as some clients go, until stopped.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicUsize>,
    clients: Vec<JoinHandle<Vec<String>>>,
}

impl Load {
    /// Starts the clients.
    pub(crate) fn start(namespace: &str, address: &str) -> Self {
        let address = address.to_owned();
        Self::scattered(namespace, 2, move |_| address.clone())
    }

    /// Starts clients that each ask the address that `choose` says for each request.
    pub(crate) fn scattered(
        namespace: &str,
        clients: u64,
        choose: impl Fn(&mut fastrand::Rng) -> String + Clone + Send + 'static,
    ) -> Self {
        let (stop, answered) = (Arc::default(), Arc::default());
        let client = |seed| {
            let (stop, answered, choose) = (Arc::clone(&stop), Arc::clone(&answered), choose.clone());
            let mut rng = fastrand::Rng::with_seed(seed);
            let server = move || choose(&mut rng).parse().expect("an address with a port");
            inside(namespace, move || ask_until(&stop, &answered, server))
        };
        let clients = (0..clients).map(client).collect();
        Self {
            stop,
            answered,
            clients,
        }
    }

    /// Goes on until more than so many requests are answered, or for 10 s; [`Self::stop`] tells which.
    pub(crate) fn go_on_until_answered(&self, requests: usize) {
        let start = Instant::now();
        while self.answered.load(Ordering::Relaxed) <= requests && start.elapsed() < Duration::from_secs(10) {
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Ends the clients: how many requests were answered, and what became of the others.
    pub(crate) fn stop(self) -> (usize, Vec<String>) {
        self.stop.store(true, Ordering::Relaxed);
        let failures = self
            .clients
            .into_iter()
            .flat_map(|client| client.join().expect("a client panicked"))
            .collect();
        (self.answered.load(Ordering::Relaxed), failures)
    }
}

/// At most 400 a second each: the ephemeral ports must last for half a minute.
fn ask_until(stop: &AtomicBool, answered: &AtomicUsize, mut server: impl FnMut() -> SocketAddr) -> Vec<String> {
    let mut failures = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let (start, server) = (Instant::now(), server());
        match ask(server) {
            Ok(()) => {
                answered.fetch_add(1, Ordering::Relaxed);
            }
            Err(error) => failures.push(format!("{server} after {:?}: {error}", start.elapsed())),
        }
        thread::sleep(Duration::from_micros(2500));
    }
    failures
}

fn ask(server: SocketAddr) -> io::Result<()> {
    const LIMIT: Duration = Duration::from_secs(3);
    let mut stream = TcpStream::connect_timeout(&server, LIMIT)?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let known = SERVERS
        .iter()
        .any(|name| answer.ends_with(&format!("\r\n\r\n{name}\n")));
    if known {
        Ok(())
    } else {
        Err(io::Error::new(ErrorKind::InvalidData, answer))
    }
}

const DATAGRAM: usize = 1400;
const WINDOW: u64 = 32;

/// Echoes `total` bytes in numbered datagrams from `client` off a server in `s1`, comparing every byte of every echo;
/// what is lost on the way is sent again. Returns how many were sent again.
pub(crate) fn udp_echo_integrity(server: &str, service: &str, total: usize) -> u64 {
    let server = server.parse::<SocketAddr>().expect("an address with a port");
    let service = service.parse::<SocketAddr>().expect("an address with a port");
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let echo = inside("s1", move || echo_until(&stopped, server));
    let count = total.div_ceil(DATAGRAM) as u64;
    let again = inside("client", move || echo_all(service, count))
        .join()
        .expect("the client panicked");
    stop.store(true, Ordering::Relaxed);
    echo.join().expect("the echo server panicked");
    again
}

fn echo_until(stop: &AtomicBool, server: SocketAddr) {
    let socket = UdpSocket::bind(server).expect("cannot bind the echo server");
    socket
        .set_read_timeout(Some(Duration::from_millis(100)))
        .expect("cannot set a timeout");
    let mut buffer = [0; 2048];
    while !stop.load(Ordering::Relaxed) {
        if let Ok((length, client)) = socket.recv_from(&mut buffer) {
            // A full socket buffer is a lost datagram, which the client sends again.
            drop(socket.send_to(&buffer[..length], client));
        }
    }
}

/// A window of datagrams at a time, until all of the window is back.
fn echo_all(service: SocketAddr, count: u64) -> u64 {
    let any: SocketAddr = if service.is_ipv4() {
        ([0; 4], 0).into()
    } else {
        ([0_u16; 8], 0).into()
    };
    let socket = UdpSocket::bind(any).expect("cannot bind");
    socket.connect(service).expect("cannot connect");
    socket
        .set_read_timeout(Some(Duration::from_millis(100)))
        .expect("cannot set a timeout");
    let mut again = 0;
    for first in (0..count).step_by(WINDOW as usize) {
        let mut missing: Vec<u64> = (first..count.min(first + WINDOW)).collect();
        for attempt in 0.. {
            assert!(
                attempt < 20,
                "{} of {count} datagrams never came back: {missing:?}",
                missing.len()
            );
            again += if attempt > 0 { missing.len() as u64 } else { 0 };
            missing.iter().for_each(|number| drop(socket.send(&datagram(*number))));
            receive(&socket, &mut missing);
            if missing.is_empty() {
                break;
            }
        }
    }
    again
}

fn receive(socket: &UdpSocket, missing: &mut Vec<u64>) {
    let mut buffer = [0; 2048];
    while !missing.is_empty() {
        let Ok(length) = socket.recv(&mut buffer) else {
            return;
        };
        let number = u64::from_le_bytes(buffer[..8].try_into().expect("eight bytes"));
        assert!(
            buffer[..length] == datagram(number)[..],
            "datagram {number} came back changed"
        );
        missing.retain(|other| *other != number);
    }
}

fn datagram(number: u64) -> [u8; DATAGRAM] {
    let mut bytes = [0; DATAGRAM];
    for (index, word) in bytes.chunks_exact_mut(8).enumerate() {
        let value = if index == 0 {
            number
        } else {
            (number + index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)
        };
        word.copy_from_slice(&value.to_le_bytes());
    }
    bytes
}
