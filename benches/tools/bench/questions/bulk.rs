//! Question 1: TCP bulk, 1 and 8 streams, both directions, and the CPU time it takes.
use super::{Bench, Finding, Metric};
use crate::Outcome;
use crate::load::bulk::{Direction, carry};
use crate::systems::Running;

pub(super) fn ask(bench: &Bench, running: &Running) -> Vec<Finding> {
    let mut findings = Vec::new();
    for streams in [1, 8] {
        for (direction, name) in [(Direction::Up, "up"), (Direction::Down, "down")] {
            let plural = if streams == 1 { "stream" } else { "streams" };
            let outcome = measure(bench, running, streams, direction);
            findings.push(Finding::new(format!("{streams} {plural} {name}"), outcome));
        }
    }
    findings
}

fn measure(bench: &Bench, running: &Running, streams: u32, direction: Direction) -> Outcome<Vec<Metric>> {
    let carried = carry(running.target(), streams, direction, &bench.taken, bench.effort.time())?;
    let bits = carried.bytes as f64 * 8.0;
    Ok(vec![
        ("Gbit/s", bits / carried.time.as_secs_f64() / 1e9),
        ("CPU s/GB", carried.cpu_seconds / (carried.bytes as f64 / 1e9)),
    ])
}
