//! One thread a queue: receive, read the clock once, let the engine decide, send.
//!
//! Where the time goes with TCP in bulk over TUN (perf, 1 and 8 streams, two CPUs, client and server beside, shares of all of
//! the machine's time): workers 57 %, client and server 28 %, idle 13 %. Of the workers' share 17 is the TCP of the two peers,
//! which the kernel runs in lbd's `write`, 9 wakes them, 10 is `read` (8 of it the copy), 4 the copy in `write`, 4 looking up
//! routes, 5 making and freeing socket buffers; lbd's own code is less than 1. With one stream the idle share is larger:
//! sender, lbd and receiver wait for one another. Batches of 1, 4 and 32 packets made no difference; io_uring gained nothing
//! (crates-measured); for how long a worker looks before it sleeps see `worker/patience.rs`.
mod patience;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token, Waker};

use patience::Patience;

use crate::io::{Exchanged, PacketIo};
use lbd_core::engine::{Engine, Lane, Released};
use lbd_core::host::Host;
use lbd_core::packet::frame::{Fate, Frame};
use lbd_core::router::Router;
use lbd_core::time::Instant;
use lbd_core::verdict::Verdict;

const PACKETS: Token = Token(0);
const STOP: Token = Token(1);

/// How long a worker sleeps without packets before it looks for flows whose time is over.
const IDLE: Duration = Duration::from_secs(1);

/// The clock of a running lbd.
#[derive(Clone, Copy, Debug)]
pub struct Clock(std::time::Instant);

impl Clock {
    /// A clock that starts now.
    #[must_use]
    #[expect(
        clippy::disallowed_methods,
        reason = "this is the one place where lbd reads the time"
    )]
    pub fn start() -> Self {
        Self(std::time::Instant::now())
    }

    /// Time since the start.
    #[must_use]
    pub fn now(&self) -> Instant {
        Instant::from_duration(self.0.elapsed())
    }
}

/// Tells a worker to stop.
#[derive(Debug)]
pub struct Stopper {
    flag: Arc<AtomicBool>,
    waker: Waker,
}

impl Stopper {
    /// Has the worker return after the batch it is at.
    ///
    /// # Errors
    /// When it cannot be woken; it then stops within a second.
    pub fn stop(&self) -> io::Result<()> {
        self.flag.store(true, Relaxed);
        self.waker.wake()
    }
}

/// A worker that is ready to run.
pub struct Worker<I> {
    io: I,
    engine: Arc<Engine>,
    lane: Lane,
    clock: Clock,
    poll: Poll,
    stop: Arc<AtomicBool>,
    unsent: Arc<AtomicU64>,
    host: Option<Box<dyn Host>>,
}

impl<I: PacketIo> Worker<I> {
    /// A worker for one queue, and what stops it. Packets that the device did not take are counted in `unsent`.
    ///
    /// # Errors
    /// When the kernel gives no epoll descriptor.
    pub fn new(
        io: I,
        engine: Arc<Engine>,
        lane: Lane,
        clock: Clock,
        unsent: Arc<AtomicU64>,
    ) -> io::Result<(Self, Stopper)> {
        let poll = Poll::new()?;
        for descriptor in io.readiness() {
            let mut source = SourceFd(&descriptor);
            poll.registry().register(&mut source, PACKETS, Interest::READABLE)?;
        }
        let stop = Arc::new(AtomicBool::new(false));
        let stopper = Stopper {
            flag: Arc::clone(&stop),
            waker: Waker::new(poll.registry(), STOP)?,
        };
        let worker = Self {
            io,
            engine,
            lane,
            clock,
            poll,
            stop,
            unsent,
            host: None,
        };
        Ok((worker, stopper))
    }

    /// The same, which asks `host` what is its own.
    #[must_use]
    pub fn on_host(self, host: Option<Box<dyn Host>>) -> Self {
        Self { host, ..self }
    }

    /// Moves packets until it is told to stop.
    ///
    /// # Errors
    /// When the device fails.
    pub fn run(mut self) -> io::Result<()> {
        let mut events = Events::with_capacity(8);
        let mut patience = Patience::default();
        while !self.stop.load(Relaxed) {
            let exchanged = self.turn()?;
            if exchanged.received > 0 || exchanged.waiting {
                patience.found(|| self.clock.now());
                continue;
            }
            if self.lane.is_behind() {
                continue;
            }
            if patience.looks_on(self.clock.now()) {
                // Whoever has something to do on this CPU goes first.
                std::thread::yield_now();
                continue;
            }
            match self.poll.poll(&mut events, Some(IDLE)) {
                Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
                Err(_) | Ok(()) => {}
            }
        }
        Ok(())
    }

    /// One batch.
    fn turn(&mut self) -> io::Result<Exchanged> {
        let Self {
            engine,
            lane,
            clock,
            host,
            ..
        } = self;
        let mut released = Vec::new();
        let exchanged = self.io.exchange(&mut |frames, router| {
            let host = host.as_mut().map(|host| -> &mut dyn Host { &mut **host });
            released = decide(engine, lane, frames, (router, host), clock.now());
        })?;
        if exchanged.received == 0 {
            drop(engine.enter(lane, clock.now()));
        }
        let lost = exchanged.unsent + self.send(released);
        if lost > 0 {
            self.unsent.fetch_add(lost as u64, Relaxed);
        }
        Ok(exchanged)
    }

    /// Sends packets that were held, after the ones that they waited for; returns how many could not be sent.
    fn send(&mut self, released: Vec<Released>) -> usize {
        let sent = released
            .into_iter()
            .map(|mut held| self.io.send(&mut held.packet, fate(held.verdict)));
        sent.filter(Result::is_err).count()
    }
}

/// Decides about a batch; returns the packets that were held until now.
fn decide(
    engine: &Engine,
    lane: &mut Lane,
    frames: &mut [Frame<'_>],
    (router, host): (Option<&mut dyn Router>, Option<&mut dyn Host>),
    now: Instant,
) -> Vec<Released> {
    let router = router.map(|router| -> &mut dyn Router {
        router.begin(now);
        router
    });
    let host = host.map(|host| -> &mut dyn Host { host });
    // Where lbd is no router itself, the kernel forwards to it and from it.
    let restores_hop = router.is_none();
    let processor = engine.enter(lane, now).routed_by(router).on_host(host);
    let mut processor = processor.restoring_hop(restores_hop);
    processor.process_batch(frames, now, |frame, verdict| {
        let returns = frame.is_own_error && matches!(verdict, Verdict::Pass(_));
        frame.fate = if returns { Fate::Return } else { fate(verdict) };
    });
    processor.take_released()
}

const fn fate(verdict: Verdict) -> Fate {
    match verdict {
        Verdict::Forward | Verdict::Reject(_) => Fate::Send,
        Verdict::Pass(_) => Fate::Pass,
        // Of what is held there is a copy.
        Verdict::Drop(_) | Verdict::Hold => Fate::Discard,
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;
    use lbd_core::engine::Seeds;

    #[derive(Debug, Default)]
    struct Listener(Vec<Instant>);

    impl Router for Listener {
        fn begin(&mut self, now: Instant) {
            self.0.push(now);
        }

        fn mtu(&mut self, _: IpAddr) -> Option<usize> {
            None
        }

        fn is_martian(&mut self, _: IpAddr) -> bool {
            false
        }

        fn ends_here(&mut self, _: IpAddr) -> bool {
            false
        }

        fn own_address(&mut self, _: IpAddr) -> Option<IpAddr> {
            None
        }
    }

    #[test]
    fn a_router_learns_the_time_of_batches_that_are_only_answered_too_so_that_neighbours_are_looked_after() {
        let loaded = lbd_state::config::parse("test.toml", "").unwrap();
        let seeds = Seeds {
            choices: 1,
            hashing: ahash::RandomState::new(),
        };
        let (engine, mut lanes) = Engine::new(Arc::new(loaded.config.policy), 1, seeds, Instant::ZERO);
        let mut router = Listener::default();
        let times = [1, 2].map(|seconds| Instant::ZERO + Duration::from_secs(seconds));
        for now in times {
            drop(decide(&engine, &mut lanes[0], &mut [], (Some(&mut router), None), now));
        }
        assert_eq!(router.0, times);
    }
}
