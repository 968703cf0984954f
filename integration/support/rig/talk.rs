//! Peers written here because a test must hold them in its hand: a conversation that stays open while lbd comes and goes,
//! a datagram of which one wants to know what became of it, and a look at the wire.
use std::fs;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::{Child, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use rustix::process::{Signal, kill_process};

use super::load::inside;
use super::ports::connect;
use super::{DIR, process_id, wait_until, within};

const PATIENCE: Duration = Duration::from_secs(3);

/// A TCP server in a namespace that gives back what it gets, to the end of the test.
pub(crate) fn tcp_echo(namespace: &str, address: &str) {
    serve(namespace, address, TcpListener::bind, |listener| {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || io::copy(&mut &stream, &mut &stream));
        }
    });
}

/// A TCP server in a namespace that closes one connection as soon as it is open: its kernel remembers the two addresses
/// for a minute (TIME_WAIT).
pub(crate) fn tcp_close(namespace: &str, address: &str) {
    serve(namespace, address, TcpListener::bind, |listener| {
        listener.accept().map(drop).expect("a client comes");
    });
}

/// A TCP server in a namespace for one connection, whose client closes its side: it answers once it is told to, and keeps the
/// connection as long as there is somebody to tell it.
pub(crate) fn tcp_late(namespace: &str, address: &str) -> mpsc::Sender<()> {
    let (tell, told) = mpsc::channel();
    serve(namespace, address, TcpListener::bind, move |listener| {
        let (mut stream, _) = listener.accept().expect("a client comes");
        io::copy(&mut stream, &mut io::sink()).expect("the client closes its side");
        while told.recv().is_ok() {
            stream.write_all(b"late").expect("it is sent");
        }
    });
    tell
}

/// A UDP server in a namespace that gives back what it gets, datagrams of any size, to the end of the test.
pub(crate) fn udp_echo(namespace: &str, address: &str) {
    serve(namespace, address, UdpSocket::bind, |socket| {
        let mut buffer = vec![0; 65536];
        loop {
            // An error is an ICMP error about an echo: it does not end the server.
            if let Ok((length, client)) = socket.recv_from(&mut buffer) {
                drop(socket.send_to(&buffer[..length], client));
            }
        }
    });
}

/// Runs a server in a namespace on a thread of its own, and waits until it has its socket.
pub(super) fn serve<S>(
    namespace: &str,
    address: &str,
    bind: impl FnOnce(SocketAddr) -> io::Result<S> + Send + 'static,
    run: impl FnOnce(S) + Send + 'static,
) {
    let address = parse(address);
    let (ready, listens) = mpsc::channel();
    drop(inside(namespace, move || {
        let socket = bind(address).expect("cannot bind the server");
        ready.send(()).expect("the test waits");
        run(socket);
    }));
    listens.recv().expect("the server does not listen");
}

/// A TCP connection to an echo server.
pub(crate) struct Conversation(TcpStream);

impl Conversation {
    /// Connects from a namespace.
    #[track_caller]
    pub(crate) fn open(namespace: &str, address: &str) -> Self {
        Self::with(namespace, address, |server| {
            TcpStream::connect_timeout(&server, PATIENCE)
        })
    }

    /// What connecting ends with.
    pub(crate) fn try_open(namespace: &str, address: &str) -> io::Result<()> {
        let server = parse(address);
        let asked = inside(namespace, move || {
            TcpStream::connect_timeout(&server, PATIENCE).map(drop)
        });
        asked.join().map_err(|_panic| io::Error::other("the client panicked"))?
    }

    /// Connects from a port there, which other connections may have as well.
    #[track_caller]
    pub(crate) fn open_from(namespace: &str, port: u16, address: &str) -> Self {
        Self::with(namespace, address, move |server| connect(server, port))
    }

    #[track_caller]
    fn with(
        namespace: &str,
        address: &str,
        connect: impl FnOnce(SocketAddr) -> io::Result<TcpStream> + Send + 'static,
    ) -> Self {
        let server = parse(address);
        let stream = inside(namespace, move || connect(server));
        let stream = stream.join().expect("the client panicked");
        let stream = stream.unwrap_or_else(|error| panic!("no connection to {server}: {error}"));
        stream.set_read_timeout(Some(PATIENCE)).expect("cannot set a timeout");
        Self(stream)
    }

    /// Waits for the server to close.
    #[track_caller]
    pub(crate) fn wait_for_the_end(mut self) {
        let heard = self.0.read(&mut [0]);
        assert!(matches!(heard, Ok(0)), "{heard:?}");
    }

    /// Closes its own side, and listens on.
    #[track_caller]
    pub(crate) fn close_one_side(&self) {
        self.0.shutdown(Shutdown::Write).expect("it is open");
    }

    /// Says something: the error that comes instead of its echo.
    pub(crate) fn say_in_vain(&mut self, words: &str) -> io::Error {
        let result = self.0.write_all(words.as_bytes());
        let result = result.and_then(|()| self.0.read_exact(&mut vec![0; words.len()]));
        result.expect_err("nobody answers")
    }

    /// Says something and wants to hear it back.
    #[track_caller]
    pub(crate) fn say(&mut self, words: &str) {
        let mut heard = vec![0; words.len()];
        let result = self.0.write_all(words.as_bytes());
        let result = result.and_then(|()| self.0.read_exact(&mut heard));
        result.unwrap_or_else(|error| panic!("{words:?} did not come back: {error}"));
        assert_eq!(heard, words.as_bytes());
    }
}

/// Sends one datagram of this many bytes to an echo server; it came back whole, or the error that came in its place
/// (`EMSGSIZE`: too big for the way; a timeout: nothing came).
pub(crate) fn echo_datagram(namespace: &str, address: &str, size: usize) -> io::Result<()> {
    echo_datagram_from(namespace, 0, address, size, true)
}

/// The same from a port there, by a socket that is connected or not.
pub(crate) fn echo_datagram_from(
    namespace: &str,
    port: u16,
    address: &str,
    size: usize,
    is_connected: bool,
) -> io::Result<()> {
    let server = parse(address);
    let asked = inside(namespace, move || {
        let any = if server.is_ipv4() { "0.0.0.0" } else { "::" };
        let socket = UdpSocket::bind((any, port))?;
        if is_connected {
            socket.connect(server)?;
        }
        socket.set_read_timeout(Some(PATIENCE))?;
        let (sent, mut heard) = (vec![0x5a; size], vec![0; 65536]);
        match is_connected {
            true => socket.send(&sent)?,
            false => socket.send_to(&sent, server)?,
        };
        let length = socket.recv(&mut heard)?;
        if heard[..length] == sent {
            Ok(())
        } else {
            Err(io::Error::new(ErrorKind::InvalidData, "it came back changed"))
        }
    });
    asked.join().map_err(|_panic| io::Error::other("the client panicked"))?
}

/// tcpdump on a link, from when it is made.
pub(crate) struct Watch {
    child: Child,
    seen: String,
}

impl Watch {
    /// Starts it in a namespace on a link and waits until it listens.
    #[track_caller]
    pub(crate) fn start(namespace: &str, link: &str, filter: &str) -> Self {
        let seen = format!("{DIR}/{namespace}-{link}.dump");
        let said = format!("{seen}.err");
        let file = |path: &str| {
            drop(fs::remove_file(path)); // of the watch before, if there was one
            fs::File::create(path).expect("cannot write a file")
        };
        let mut command = within(namespace, 60);
        command.args(["tcpdump", "-Z", "root", "--immediate-mode", "-nn", "-v", "-e", "-l"]);
        command.args(["-i", link, filter]);
        command.stdin(Stdio::null()).stdout(file(&seen)).stderr(file(&said));
        let child = command.spawn().expect("cannot run tcpdump");
        let listens = || fs::read_to_string(&said).is_ok_and(|text| text.contains("listening on"));
        wait_until("tcpdump", Duration::from_secs(30), listens);
        Self { child, seen }
    }

    /// Waits until it has seen each of these.
    #[track_caller]
    pub(crate) fn sees(&self, parts: &[&str]) {
        let mut text = String::new();
        let limit = Duration::from_secs(30);
        wait_until(&format!("{parts:?} on the wire"), limit, || {
            text = fs::read_to_string(&self.seen).unwrap_or_default();
            parts.iter().all(|part| text.contains(part))
        });
    }

    /// What it has seen so far.
    pub(crate) fn text(&self) -> String {
        fs::read_to_string(&self.seen).unwrap_or_default()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if thread::panicking() {
            println!("--- on the wire:\n{}", self.text());
        }
        // `timeout` hands it on to tcpdump, which SIGKILL would leave behind.
        let _unless_it_has_ended = kill_process(process_id(&self.child), Signal::TERM);
        drop(self.child.wait());
    }
}

pub(super) fn parse(address: &str) -> SocketAddr {
    address.parse().expect("an address with a port")
}
