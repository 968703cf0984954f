//! As many new connections a second as can be, so many under way at a time: connect, ask the server for its number, read
//! it and the end.
use std::io;
use std::net::SocketAddrV4;
use std::time::{Duration, Instant};

use mio::{Events, Poll, Token};

use super::attempt::{Attempt, LATE, PATIENCE, Stage};
use crate::Outcome;

/// Connections under way.
pub(crate) const AT_ONCE: usize = 64;

/// What became of the connections that ended in the window.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Count {
    pub(crate) answered: u64,
    /// Answered, but a packet had to be sent again.
    pub(crate) late: u64,
    /// Not answered in time.
    pub(crate) lost: u64,
    /// Refused or reset.
    pub(crate) refused: u64,
    pub(crate) seconds: f64,
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
    client.count.late += client.overdue();
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
        self.attempts[slot] = Some(Attempt::start(target, self.opened, self.poll.registry(), Token(slot))?);
        self.opened = self.opened.wrapping_add(1);
        Ok(())
    }

    fn go_on(&mut self, slot: usize) -> io::Result<()> {
        let Some(attempt) = &mut self.attempts[slot] else {
            return Ok(());
        };
        match attempt.go_on() {
            Ok(Stage::Open) => return Ok(()),
            Ok(Stage::Ended) if attempt.start.elapsed() > LATE => self.count.late += 1,
            Ok(Stage::Ended) => self.count.answered += 1,
            Err(_refused) => self.count.refused += 1,
        }
        self.start(slot)
    }

    /// Those that still wait at the end, and have waited for too long to be answered without a packet sent again.
    fn overdue(&self) -> u64 {
        let under_way = self.attempts.iter().flatten();
        under_way.filter(|attempt| attempt.start.elapsed() > LATE).count() as u64
    }
}
