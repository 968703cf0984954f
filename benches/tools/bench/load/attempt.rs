//! One connection that is opened and asks the server for its number, without anybody waiting for it.
use std::io::{self, ErrorKind, Read, Write};
use std::net::SocketAddrV4;
use std::time::{Duration, Instant};

use mio::net::TcpStream;
use mio::{Interest, Registry, Token};
use socket2::{Domain, Protocol, Socket, Type};

use super::{Wish, bind_late, source};

/// A connection that took longer than this lost a packet and had to send it again: the first SYN is sent again after a
/// second (RFC 6298 section 2.1, Linux' `TCP_TIMEOUT_INIT`), what follows after 200 ms or more.
pub(crate) const LATE: Duration = Duration::from_millis(900);
/// A connection that is not answered within this is lost: its SYN has been sent three times.
pub(crate) const PATIENCE: Duration = Duration::from_secs(3);

/// A connection on its way.
#[derive(Debug)]
pub(crate) struct Attempt {
    stream: TcpStream,
    pub(crate) start: Instant,
    has_asked: bool,
    server: Option<u8>,
}

/// How far a connection has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    Open,
    /// The server has said its number, and closed.
    Ended,
}

impl Attempt {
    /// Starts to connect from the `number`th of the client's addresses; the poll of `registry` tells of what comes.
    pub(crate) fn start(target: SocketAddrV4, number: u32, registry: &Registry, token: Token) -> io::Result<Self> {
        let start = Instant::now();
        let socket = Socket::new(Domain::IPV4, Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
        bind_late(&socket, source(number))?;
        match socket.connect(&target.into()) {
            Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => return Err(error),
            _under_way => {}
        }
        let mut stream = TcpStream::from_std(socket.into());
        registry.register(&mut stream, token, Interest::READABLE | Interest::WRITABLE)?;
        Ok(Self {
            stream,
            start,
            has_asked: false,
            server: None,
        })
    }

    /// Does what can be done now. An error is the end: refused, reset, or closed without an answer.
    pub(crate) fn go_on(&mut self) -> io::Result<Stage> {
        if !self.has_asked {
            match self.stream.write(&[Wish::Name.letter()]) {
                Ok(_one) => self.has_asked = true,
                Err(error) if is_early(&error) => return Ok(Stage::Open),
                Err(error) => return Err(error),
            }
        }
        let mut name = [0];
        loop {
            match (self.stream.read(&mut name), self.server) {
                (Ok(0), Some(_server)) => return Ok(Stage::Ended),
                (Ok(0), None) => return Err(ErrorKind::UnexpectedEof.into()),
                (Ok(_one), _) => self.server = Some(name[0]),
                (Err(error), _) if is_early(&error) => return Ok(Stage::Open),
                (Err(error), _) => return Err(error),
            }
        }
    }

    /// The number of the server, as soon as it has come.
    pub(crate) fn server(&self) -> Option<u8> {
        self.server
    }
}

fn is_early(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::NotConnected)
}
