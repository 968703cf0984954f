//! One connection after the other, at most so many a second: each asks the server for its number.
use std::io;
use std::net::SocketAddrV4;
use std::thread;
use std::time::{Duration, Instant};

use mio::{Events, Poll, Token};

use super::attempt::{Attempt, LATE, PATIENCE, Stage};

/// The next connection waits so long for the answer of the one before: one that lost a packet must not keep others from
/// seeing what goes on meanwhile.
const TURN: Duration = Duration::from_millis(20);

/// What one connection saw.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Probe {
    pub(crate) start: Instant,
    /// From connecting to the first byte of the server.
    pub(crate) took: Duration,
    /// Which server answered; None: the connection was refused, broken or not answered.
    pub(crate) server: Option<u8>,
}

impl Probe {
    /// Whether it was answered, but a packet had to be sent again.
    pub(crate) fn is_late(&self) -> bool {
        self.server.is_some() && self.took > LATE
    }
}

struct Prober {
    poll: Poll,
    events: Events,
    probes: Vec<Probe>,
    /// Connections that were not answered when their turn was over, and the one whose turn it is.
    under_way: Vec<(usize, Attempt)>,
}

/// Probes the targets in a random order until it is told to stop.
pub(crate) fn probe(
    targets: &[SocketAddrV4],
    pause: Duration,
    mut goes_on: impl FnMut(&[Probe]) -> bool,
) -> io::Result<Vec<Probe>> {
    fine_timers();
    let mut random = fastrand::Rng::with_seed(7);
    let mut prober = Prober {
        poll: Poll::new()?,
        events: Events::with_capacity(64),
        probes: Vec::new(),
        under_way: Vec::new(),
    };
    while goes_on(&prober.probes) {
        let start = Instant::now();
        prober.open(targets[random.usize(..targets.len())])?;
        let number = prober.probes.len() - 1;
        prober.wait(start + TURN, |under_way| {
            under_way.iter().all(|(other, _)| *other != number)
        })?;
        thread::sleep(pause.saturating_sub(start.elapsed()));
    }
    prober.wait(Instant::now() + PATIENCE, <[_]>::is_empty)?;
    Ok(prober.probes)
}

impl Prober {
    fn open(&mut self, target: SocketAddrV4) -> io::Result<()> {
        let number = self.probes.len();
        let attempt = Attempt::start(target, number as u32, self.poll.registry(), Token(number))?;
        self.probes.push(Probe {
            start: attempt.start,
            took: Duration::ZERO,
            server: None,
        });
        self.under_way.push((number, attempt));
        Ok(())
    }

    /// Takes answers until the time, or until no more are waited for.
    fn wait(&mut self, end: Instant, has_all: impl Fn(&[(usize, Attempt)]) -> bool) -> io::Result<()> {
        while !has_all(&self.under_way) {
            let Some(left) = end.checked_duration_since(Instant::now()) else {
                break;
            };
            self.poll.poll(&mut self.events, Some(left))?;
            let (probes, events) = (&mut self.probes, &self.events);
            self.under_way.retain_mut(|(number, attempt)| {
                let is_told = events.iter().any(|event| event.token() == Token(*number));
                !is_told || note(&mut probes[*number], attempt)
            });
        }
        self.under_way.retain(|(_, attempt)| attempt.start.elapsed() < PATIENCE);
        Ok(())
    }
}

/// Notes the first byte; whether there is more to come.
fn note(probe: &mut Probe, attempt: &mut Attempt) -> bool {
    let stage = attempt.go_on();
    if probe.server.is_none() && attempt.server().is_some() {
        (probe.server, probe.took) = (attempt.server(), probe.start.elapsed());
    }
    matches!(stage, Ok(Stage::Open)) && attempt.server().is_none()
}

/// Sleeps of this thread end within a microsecond of their time, not 50 (`PR_SET_TIMERSLACK`).
pub(crate) fn fine_timers() {
    let slack = std::num::NonZeroU64::new(1_000);
    // Where the kernel refuses, pauses are a little longer.
    rustix::thread::set_current_timer_slack(slack).unwrap_or_default();
}
