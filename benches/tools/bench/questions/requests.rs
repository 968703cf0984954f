//! Question 4: how long a request and its answer take on an open connection.
use super::{Bench, Finding, Metric, microseconds, percentile};
use crate::Outcome;
use crate::load::requests::requests;
use crate::rig::{self, CLIENT_CPU, Place};
use crate::systems::Running;

pub(super) fn ask(bench: &Bench, running: &Running) -> Vec<Finding> {
    vec![Finding::new("64 bytes", measure(bench, running))]
}

fn measure(bench: &Bench, running: &Running) -> Outcome<Vec<Metric>> {
    let times = rig::within(Place::Client, CLIENT_CPU, || {
        requests(running.target(), bench.effort.time())
    })?;
    let latency = microseconds(times.into_iter());
    if latency.is_empty() {
        return Err("no request was answered".into());
    }
    Ok(vec![
        ("p50 µs", percentile(&latency, 0.5)),
        ("p99 µs", percentile(&latency, 0.99)),
    ])
}
