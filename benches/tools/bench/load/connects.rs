//! As many new connections a second as can be, so many under way at a time: connect, ask the server for its number, read
//! it and the end.
use std::io::{self, ErrorKind, Read, Write};
use std::net::SocketAddrV4;
use std::time::{Duration, Instant};

use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};
use socket2::{Domain, Protocol, Socket, Type};

use super::{Wish, bind_late, source};
use crate::Outcome;

/// Connections under way.
pub(crate) const AT_ONCE: usize = 64;
/// A connection that is older is given up.
const PATIENCE: Duration = Duration::from_secs(1);

/// What became of the connections that ended in the window.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Count {
    pub(crate) answered: u64,
    pub(crate) lost: u64,
    pub(crate) seconds: f64,
}

struct Attempt {
    stream: TcpStream,
    start: Instant,
    has_asked: bool,
    is_answered: bool,
}

struct Client<'a> {
    targets: &'a [SocketAddrV4],
    poll: Poll,
    attempts: Vec<Option<Attempt>>,
    random: fastrand::Rng,
    opened: u32,
    count: Count,
}

/// Opens connections to targets chosen at random.
pub(crate) fn connects(targets: &[SocketAddrV4], [warm_up, window]: [Duration; 2]) -> Outcome<Count> {
    let mut client = Client {
        targets,
        poll: Poll::new()?,
        attempts: (0..AT_ONCE).map(|_slot| None).collect(),
        random: fastrand::Rng::with_seed(11),
        opened: 0,
        count: Count::default(),
    };
    client.run(warm_up)?;
    client.count = Count::default();
    let start = Instant::now();
    client.run(window)?;
    client.count.seconds = start.elapsed().as_secs_f64();
    Ok(client.count)
}

impl Client<'_> {
    fn run(&mut self, time: Duration) -> io::Result<()> {
        let end = Instant::now() + time;
        let mut events = Events::with_capacity(AT_ONCE);
        let mut next_look = Instant::now();
        while Instant::now() < end {
            if Instant::now() >= next_look {
                self.give_up_and_fill()?;
                next_look = Instant::now() + Duration::from_millis(100);
            }
            self.poll.poll(&mut events, Some(Duration::from_millis(20)))?;
            for event in &events {
                self.go_on(event.token().0)?;
            }
        }
        Ok(())
    }

    fn give_up_and_fill(&mut self) -> io::Result<()> {
        for slot in 0..AT_ONCE {
            let age = self.attempts[slot].as_ref().map(|attempt| attempt.start.elapsed());
            if age.is_some_and(|age| age > PATIENCE) {
                self.count.lost += 1;
            }
            if age.is_none_or(|age| age > PATIENCE) {
                self.start(slot)?;
            }
        }
        Ok(())
    }

    fn start(&mut self, slot: usize) -> io::Result<()> {
        let target = self.targets[self.random.usize(..self.targets.len())];
        let socket = Socket::new(Domain::IPV4, Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
        bind_late(&socket, source(self.opened))?;
        self.opened = self.opened.wrapping_add(1);
        match socket.connect(&target.into()) {
            Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => return Err(error),
            _under_way => {}
        }
        let mut stream = TcpStream::from_std(socket.into());
        let interest = Interest::READABLE | Interest::WRITABLE;
        self.poll.registry().register(&mut stream, Token(slot), interest)?;
        self.attempts[slot] = Some(Attempt {
            stream,
            start: Instant::now(),
            has_asked: false,
            is_answered: false,
        });
        Ok(())
    }

    fn go_on(&mut self, slot: usize) -> io::Result<()> {
        let Some(attempt) = &mut self.attempts[slot] else {
            return Ok(());
        };
        match attempt.go_on() {
            Ok(false) => return Ok(()),
            Ok(true) => self.count.answered += 1,
            Err(_lost) => self.count.lost += 1,
        }
        self.start(slot)
    }
}

impl Attempt {
    /// Whether it has come to its end: the server's number has been read, and that the server closed.
    fn go_on(&mut self) -> io::Result<bool> {
        if !self.has_asked {
            match self.stream.write(&[Wish::Name.letter()]) {
                Ok(_one) => self.has_asked = true,
                Err(error) if is_early(&error) => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        let mut name = [0];
        loop {
            match self.stream.read(&mut name) {
                Ok(0) if self.is_answered => return Ok(true),
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(_one) => self.is_answered = true,
                Err(error) if is_early(&error) => return Ok(false),
                Err(error) => return Err(error),
            }
        }
    }
}

fn is_early(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::NotConnected)
}
