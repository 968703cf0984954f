//! One connection after the other, at most so many a second: each asks the server for its number.
use std::net::SocketAddrV4;
use std::thread;
use std::time::{Duration, Instant};

use super::{Wish, open};

/// How long a probe waits for an answer; then the connection is lost.
const PATIENCE: Duration = Duration::from_secs(1);

/// What one connection saw.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Probe {
    pub(crate) start: Instant,
    /// From connecting to the first byte of the server.
    pub(crate) took: Duration,
    /// Which server answered; None: the connection was refused, broken or not answered.
    pub(crate) server: Option<u8>,
}

/// Probes the targets in a random order until it is told to stop.
pub(crate) fn probe(
    targets: &[SocketAddrV4],
    pause: Duration,
    mut goes_on: impl FnMut(&[Probe]) -> bool,
) -> Vec<Probe> {
    fine_timers();
    let mut random = fastrand::Rng::with_seed(7);
    let mut probes = Vec::new();
    while goes_on(&probes) {
        let start = Instant::now();
        let target = targets[random.usize(..targets.len())];
        let opened = open(target, probes.len() as u32, Wish::Name, PATIENCE);
        let took = start.elapsed();
        probes.push(Probe {
            start,
            took,
            server: opened.ok().map(|(_stream, server)| server),
        });
        thread::sleep(pause.saturating_sub(start.elapsed()));
    }
    probes
}

/// Sleeps of this thread end within a microsecond of their time, not 50 (`PR_SET_TIMERSLACK`).
pub(crate) fn fine_timers() {
    let slack = std::num::NonZeroU64::new(1_000);
    // Where the kernel refuses, pauses are a little longer.
    rustix::thread::set_current_timer_slack(slack).unwrap_or_default();
}
