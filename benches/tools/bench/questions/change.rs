//! Question 5: the endpoint of one service among many moves from server 1 to server 2. How long does it take until new
//! connections go there, and what is lost meanwhile?
use std::io::{Read, Write};
use std::net::SocketAddrV4;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::{Bench, Finding, Metric, services_words};
use crate::Outcome;
use crate::load::probe::{Probe, probe};
use crate::load::{REQUEST, Wish, open};
use crate::rig::{self, CLIENT_CPU, Place};
use crate::systems::{Change, Running, Way};
use crate::world;

/// Between two connections of the prober.
const PAUSE: Duration = Duration::from_micros(500);
/// Connections that are open all the while.
const HELD: u32 = 10;
/// Probes before the change, and after its effect.
const CALM: Duration = Duration::from_millis(200);
/// After so long there is no effect.
const LIMIT: Duration = Duration::from_secs(60);

pub(super) fn ask(_bench: &Bench, running: &mut Running) -> Vec<Finding> {
    let case = services_words(running.world.services());
    let mut findings = Vec::new();
    for &way in running.system.ways() {
        let outcome = measure(running, way);
        // The next way starts from where this one has led to.
        if outcome.is_ok() {
            running.world = running.world.changed();
        }
        let mut finding = Finding::new(&case, outcome);
        finding.way = Some(way.name());
        findings.push(finding);
    }
    findings
}

fn measure(running: &Running, way: Way) -> Outcome<Vec<Metric>> {
    let service = running.world.changing().ok_or("no service changes in this world")?;
    let target = world::address(service);
    let new = running.world.changed().servers(service)[0];
    let change = running.prepare_change(way)?;
    let seen = watch(target, new, &change)?;
    let effect = effect(&seen.probes, new, seen.start).ok_or("there was no effect")?;
    let lost = seen.probes.iter().filter(|probe| probe.server.is_none()).count();
    Ok(vec![
        ("ms to effect", effect.as_secs_f64() * 1e3),
        ("ms of the command", seen.command.as_secs_f64() * 1e3),
        ("new connections lost", lost as f64),
        ("open connections lost", f64::from(seen.broken)),
    ])
}

/// What was seen of a change.
struct Seen {
    probes: Vec<Probe>,
    /// When the command was started, and how long it ran.
    start: Instant,
    command: Duration,
    /// Connections that were open before and did not stay.
    broken: u32,
}

fn watch(target: SocketAddrV4, new: u8, change: &Change) -> Outcome<Seen> {
    let (has_ended, stop) = (AtomicBool::new(false), AtomicBool::new(false));
    thread::scope(|scope| {
        let held = scope.spawn(|| {
            rig::enter(Place::Client, Some(CLIENT_CPU))?;
            hold(target, &stop)
        });
        let prober = scope.spawn(|| -> Outcome<Vec<Probe>> {
            rig::enter(Place::Client, Some(CLIENT_CPU))?;
            let mut settled = Settled::new(new);
            Ok(probe(&[target], PAUSE, |probes| {
                settled.see(probes);
                !(has_ended.load(Ordering::Relaxed) && settled.for_long())
            }))
        });
        thread::sleep(CALM);
        let start = Instant::now();
        let result = change.run();
        let command = start.elapsed();
        has_ended.store(true, Ordering::Relaxed);
        let probes = prober.join().unwrap_or_else(|_panic| Err("the prober panicked".into()));
        stop.store(true, Ordering::Relaxed);
        let broken = held.join().unwrap_or_else(|_panic| Err("a client panicked".into()));
        result?;
        Ok(Seen {
            probes: probes?,
            start,
            command,
            broken: broken?,
        })
    })
}

/// Whether the change has come to stay: for a while every new connection has been answered by the new server.
struct Settled {
    new: u8,
    begin: Instant,
    /// The start of the last probe that it did not answer.
    last_other: Instant,
}

impl Settled {
    fn new(new: u8) -> Self {
        let now = Instant::now();
        Self {
            new,
            begin: now,
            last_other: now,
        }
    }

    fn see(&mut self, probes: &[Probe]) {
        if let Some(last) = probes.last().filter(|last| last.server != Some(self.new)) {
            self.last_other = last.start;
        }
    }

    fn for_long(&self) -> bool {
        self.last_other.elapsed() > CALM || self.begin.elapsed() > LIMIT
    }
}

/// From the start of the change to the start of the first connection from which on all went to the new server, lost ones
/// aside; None: they never did.
fn effect(probes: &[Probe], new: u8, start: Instant) -> Option<Duration> {
    let answered: Vec<_> = probes.iter().filter(|probe| probe.server.is_some()).collect();
    let last_old = answered.iter().rposition(|probe| probe.server != Some(new));
    let first_new = answered.get(last_old.map_or(0, |index| index + 1))?;
    Some(first_new.start.saturating_duration_since(start))
}

/// Connections with a request every now and then; how many broke.
fn hold(target: SocketAddrV4, stop: &AtomicBool) -> Outcome<u32> {
    let opened = (0..HELD).map(|number| open(target, number, Wish::Echo, Duration::from_secs(2)));
    let mut streams = opened
        .map(|opened| opened.map(|(stream, _server)| stream))
        .collect::<Result<Vec<_>, _>>()?;
    let mut buffer = [0; REQUEST];
    while !stop.load(Ordering::Relaxed) {
        streams.retain_mut(|stream| {
            stream
                .write_all(&buffer)
                .and_then(|()| stream.read_exact(&mut buffer))
                .is_ok()
        });
        thread::sleep(Duration::from_millis(20));
    }
    Ok(HELD - streams.len() as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn probes(start: Instant, servers: &[Option<u8>]) -> Vec<Probe> {
        let each = servers.iter().enumerate();
        each.map(|(number, &server)| Probe {
            start: start + Duration::from_millis(10 * number as u64),
            took: Duration::from_millis(1),
            server,
        })
        .collect()
    }

    #[test]
    fn the_effect_is_there_when_no_connection_goes_to_the_old_server_any_more() {
        let start = Instant::now();
        let seen = probes(start, &[Some(1), Some(2), Some(1), Some(2), Some(2)]);
        assert_eq!(effect(&seen, 2, start), Some(Duration::from_millis(30)));
    }

    #[test]
    fn lost_connections_say_nothing_about_the_effect() {
        let start = Instant::now();
        let seen = probes(start, &[Some(1), None, Some(2), None]);
        assert_eq!(effect(&seen, 2, start), Some(Duration::from_millis(20)));
    }

    #[test]
    fn a_change_that_nobody_sees_has_no_effect() {
        let start = Instant::now();
        assert_eq!(effect(&probes(start, &[Some(1), Some(1), None]), 2, start), None);
    }
}
