//! The server: one thread that does for each connection what its client wishes.
use std::io::{self, ErrorKind, Read, Write};
use std::net::SocketAddrV4;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};
use socket2::{Domain, Protocol, Socket, Type};

use super::{REQUEST, Wish};
use crate::Outcome;
use crate::rig::{self, Place};
use crate::world;

const LISTENER: Token = Token(usize::MAX);
const CHUNK: usize = 256 * 1024;

/// Bytes that a server has taken from clients who wish for a sink.
pub(crate) type Taken = Arc<AtomicU64>;

/// Starts a server for as long as the program runs.
pub(crate) fn start(number: u8) -> Outcome<Taken> {
    let taken = Taken::default();
    let counter = Arc::clone(&taken);
    let (ready, is_ready) = crossbeam_channel::bounded(1);
    thread::spawn(move || {
        let server =
            rig::enter(Place::Server(number), Some(rig::server_cpu())).and_then(|()| Server::new(number, counter));
        match server {
            Ok(mut server) => {
                ready.send(Ok(())).unwrap_or_default();
                server
                    .run()
                    .unwrap_or_else(|error| crate::tell(&format!("server {number} has ended: {error}")));
            }
            Err(error) => ready.send(Err(error)).unwrap_or_default(),
        }
    });
    is_ready.recv()??;
    Ok(taken)
}

struct Server {
    number: u8,
    taken: Taken,
    poll: Poll,
    listener: TcpListener,
    connections: Vec<Option<Connection>>,
    free: Vec<usize>,
    buffer: Vec<u8>,
}

struct Connection {
    stream: TcpStream,
    wish: Option<Wish>,
    /// Bytes of a request that has not come whole.
    part: usize,
}

/// What becomes of a connection.
#[derive(PartialEq, Eq)]
enum Fate {
    Stays,
    Ends,
}

impl Server {
    fn new(number: u8, taken: Taken) -> Outcome<Self> {
        let poll = Poll::new()?;
        let mut listener = listener(world::backend(number))?;
        poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
        Ok(Self {
            number,
            taken,
            poll,
            listener,
            connections: Vec::new(),
            free: Vec::new(),
            buffer: vec![0; CHUNK],
        })
    }

    fn run(&mut self) -> io::Result<()> {
        let mut events = Events::with_capacity(256);
        loop {
            match self.poll.poll(&mut events, None) {
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                result => result?,
            }
            for event in &events {
                match event.token() {
                    LISTENER => self.accept()?,
                    Token(slot) => self.serve(slot),
                }
            }
        }
    }

    fn accept(&mut self) -> io::Result<()> {
        loop {
            match self.listener.accept() {
                Ok((stream, _client)) => self.add(stream)?,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                // The client has gone meanwhile.
                Err(error) if error.kind() == ErrorKind::ConnectionAborted => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn add(&mut self, mut stream: TcpStream) -> io::Result<()> {
        stream.set_nodelay(true).unwrap_or_default();
        let slot = self.free.pop().unwrap_or(self.connections.len());
        let interest = Interest::READABLE | Interest::WRITABLE;
        self.poll.registry().register(&mut stream, Token(slot), interest)?;
        if slot == self.connections.len() {
            self.connections.push(None);
        }
        let connection = Connection {
            stream,
            wish: None,
            part: 0,
        };
        self.connections[slot] = Some(connection);
        // What came with the handshake is there already.
        self.serve(slot);
        Ok(())
    }

    fn serve(&mut self, slot: usize) {
        let Some(connection) = &mut self.connections[slot] else {
            return;
        };
        // An error is the client's end.
        let fate = connection
            .go_on(self.number, &self.taken, &mut self.buffer)
            .unwrap_or(Fate::Ends);
        if fate == Fate::Ends {
            self.connections[slot] = None;
            self.free.push(slot);
        }
    }
}

impl Connection {
    /// Does all that can be done now.
    fn go_on(&mut self, number: u8, taken: &AtomicU64, buffer: &mut [u8]) -> io::Result<Fate> {
        loop {
            let step = match self.wish {
                None => self.greet(number),
                Some(Wish::Name) => return Ok(Fate::Ends),
                Some(Wish::Echo) => self.echo(buffer),
                Some(Wish::Sink) => self.stream.read(buffer).map(|length| {
                    taken.fetch_add(length as u64, Ordering::Relaxed);
                    length > 0
                }),
                Some(Wish::Source) => self.stream.write(buffer).map(|_length| true),
            };
            match step {
                Ok(true) => {}
                Ok(false) => return Ok(Fate::Ends),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(Fate::Stays),
                Err(error) => return Err(error),
            }
        }
    }

    fn greet(&mut self, number: u8) -> io::Result<bool> {
        let mut letter = [0];
        if self.stream.read(&mut letter)? == 0 {
            return Ok(false);
        }
        self.wish = Wish::of(letter[0]);
        self.stream.write_all(&[number])?;
        Ok(self.wish.is_some())
    }

    fn echo(&mut self, buffer: &mut [u8]) -> io::Result<bool> {
        let length = self.stream.read(&mut buffer[..REQUEST - self.part])?;
        self.part += length;
        if self.part == REQUEST {
            self.part = 0;
            self.stream.write_all(&buffer[..REQUEST])?;
        }
        Ok(length > 0)
    }
}

fn listener(address: SocketAddrV4) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(4096)?;
    socket.set_nonblocking(true)?;
    Ok(TcpListener::from_std(socket.into()))
}
