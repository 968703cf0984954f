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
/// So long after the end of the command there is no effect.
const LIMIT: Duration = Duration::from_secs(20);

pub(super) fn ask(_bench: &Bench, running: &mut Running) -> Vec<Finding> {
    let case = services_words(running.world.services());
    let mut findings: Vec<Finding> = Vec::new();
    for &way in running.system.ways() {
        // Each way starts from where the one before has led to, which nobody knows where that failed.
        let before = findings.last().filter(|finding| finding.outcome.is_err());
        let outcome = match before.and_then(|finding| finding.way) {
            Some(failed) => Err(format!("not tried, since `{failed}` before it failed").into()),
            None => measure(running, way),
        };
        running.world = running.world.changed();
        findings.push(Finding {
            way: Some(way.name()),
            ..Finding::new(&case, outcome)
        });
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
    let late = seen.probes.iter().filter(|probe| probe.is_late()).count();
    Ok(vec![
        ("ms to effect", effect.as_secs_f64() * 1e3),
        ("ms of the command", seen.command.as_secs_f64() * 1e3),
        ("new connections late", late as f64),
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
                settled.goes_on(probes.last(), has_ended.load(Ordering::Relaxed), Instant::now())
            })?)
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
    /// The start of the first of the last connections, all of which it has answered.
    since: Option<Instant>,
    /// When the command was first seen to have ended.
    command_end: Option<Instant>,
}

impl Settled {
    fn new(new: u8) -> Self {
        Self {
            new,
            since: None,
            command_end: None,
        }
    }

    /// Told of the last connection; whether to look on.
    fn goes_on(&mut self, last: Option<&Probe>, has_ended: bool, now: Instant) -> bool {
        if let Some(last) = last {
            let is_new = last.server == Some(self.new);
            self.since = is_new.then(|| self.since.unwrap_or(last.start));
        }
        if has_ended {
            self.command_end.get_or_insert(now);
        }
        let passed =
            |since: Option<Instant>| since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
        let is_settled = has_ended && passed(self.since) > CALM;
        !is_settled && passed(self.command_end) < LIMIT
    }
}

/// From the start of the change to the start of the first connection from which on all went to the new server, lost and
/// late ones aside; None: they never did.
fn effect(probes: &[Probe], new: u8, start: Instant) -> Option<Duration> {
    let is_telling = |probe: &&Probe| probe.server.is_some() && !probe.is_late();
    let answered: Vec<_> = probes.iter().filter(is_telling).collect();
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
    fn a_connection_whose_first_packet_was_lost_says_nothing_about_the_effect() {
        let start = Instant::now();
        let mut seen = probes(start, &[Some(1), Some(1), Some(2), Some(1), Some(2)]);
        seen[3].took = Duration::from_secs(1);
        assert_eq!(effect(&seen, 2, start), Some(Duration::from_millis(20)));
    }

    #[test]
    fn a_change_that_nobody_sees_has_no_effect() {
        let start = Instant::now();
        assert_eq!(effect(&probes(start, &[Some(1), Some(1), None]), 2, start), None);
    }

    #[test]
    fn one_slow_answer_of_the_old_server_does_not_settle_a_change() {
        let start = Instant::now();
        let old = probes(start, &[Some(1)]);
        let mut settled = Settled::new(2);
        assert!(settled.goes_on(old.last(), true, start + Duration::from_millis(900)));
    }

    #[test]
    fn a_change_has_settled_when_the_new_server_has_answered_for_a_while() {
        let start = Instant::now();
        let new = probes(start, &[Some(2)]);
        let mut settled = Settled::new(2);
        assert!(settled.goes_on(new.last(), true, start + Duration::from_millis(1)));
        assert!(
            settled.goes_on(new.last(), false, start + 2 * CALM),
            "the command still runs"
        );
        assert!(!settled.goes_on(new.last(), true, start + 2 * CALM));
    }

    #[test]
    fn a_change_without_effect_is_given_up() {
        let start = Instant::now();
        let old = probes(start, &[Some(1)]);
        let mut settled = Settled::new(2);
        assert!(settled.goes_on(old.last(), true, start));
        assert!(!settled.goes_on(old.last(), true, start + 2 * LIMIT));
    }
}
