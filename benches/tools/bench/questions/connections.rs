//! Question 3: new TCP connections a second to services chosen at random, and how long one takes at a modest rate.
use std::time::{Duration, Instant};

use super::{Bench, Finding, Metric, microseconds, percentile, services_words};
use crate::Outcome;
use crate::load::{connects, probe};
use crate::rig::{self, CLIENT_CPU, Place};
use crate::systems::Running;

/// Between two connections, where their latency is measured.
pub(crate) const PAUSE: Duration = Duration::from_millis(1);

pub(super) fn ask(bench: &Bench, running: &Running) -> Vec<Finding> {
    let case = services_words(running.world.services());
    vec![Finding::new(case, measure(bench, running))]
}

fn measure(bench: &Bench, running: &Running) -> Outcome<Vec<Metric>> {
    let targets = running.targets();
    let window = bench.effort.window;
    let (count, probes) = rig::within(Place::Client, CLIENT_CPU, || {
        let count = connects::connects(&targets, bench.effort.time())?;
        let start = Instant::now();
        let probes = probe::probe(&targets, PAUSE, |_probes| start.elapsed() < window)?;
        Ok((count, probes))
    })?;
    let answered = probes.iter().filter(|probe| probe.server.is_some());
    let latency = microseconds(answered.map(|probe| probe.took));
    if count.answered == 0 || latency.is_empty() {
        return Err("no connection was answered".into());
    }
    let late = probes.iter().filter(|probe| probe.is_late()).count();
    let lost = probes.len() - latency.len();
    Ok(vec![
        ("connections/s", count.answered as f64 / count.seconds),
        ("p50 µs", percentile(&latency, 0.5)),
        ("p99 µs", percentile(&latency, 0.99)),
        ("late", count.late as f64 + late as f64),
        ("lost", (count.lost + count.refused) as f64 + lost as f64),
        ("refused", count.refused as f64),
    ])
}
