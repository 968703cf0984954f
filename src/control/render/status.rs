//! How lbd is doing, one fact a line.
use std::time::Duration;

use crate::control::protocol::Status;

/// The facts, for people.
#[must_use]
pub fn status(status: &Status) -> String {
    let facts = [
        ("version", status.version.clone()),
        ("pid", status.pid.to_string()),
        ("uptime", duration(status.uptime_seconds)),
        ("config", status.config.display().to_string()),
        ("mode", status.mode.name().to_owned()),
        ("backend", status.backend.clone()),
        ("workers", status.workers.to_string()),
        ("services", status.services.to_string()),
        ("backends", status.backends.to_string()),
        ("flows", format!("{} of {}", status.flows, status.max_flows)),
        ("packets", packets(status)),
        ("last reload", last_reload(status)),
    ];
    let mut text = String::new();
    let drains = status
        .draining
        .iter()
        .map(|drain| ("draining", super::drains::line(drain)));
    for (key, value) in facts.into_iter().chain(drains) {
        text.push_str(&format!("{key:<12} {value}\n"));
        if key == "flows" {
            text.push_str(&flows_by_state(status));
        }
    }
    text
}

fn flows_by_state(status: &Status) -> String {
    let line = |count: &crate::control::protocol::StateCount| {
        format!("  {:<4} {:<11} {}\n", count.protocol, count.state, count.flows)
    };
    status.flows_by_state.iter().map(line).collect()
}

fn packets(status: &Status) -> String {
    let packets = &status.packets;
    format!(
        "in {} = forward {} + pass {} + reject {} + drop {}; {} not taken by the device",
        packets.received, packets.forward, packets.pass, packets.reject, packets.drop, status.unsent
    )
}

fn last_reload(status: &Status) -> String {
    let Some(reload) = &status.last_reload else {
        return "none".to_owned();
    };
    let outcome = if reload.succeeded { "done" } else { "refused" };
    let ago = duration(reload.seconds_ago);
    // Errors have a line each; they go on below, under the value.
    let result = reload.result.trim_end().replace('\n', "\n             ");
    format!("{ago} ago, {outcome}: {result}")
}

fn duration(seconds: u64) -> String {
    humantime::format_duration(Duration::from_secs(seconds)).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::protocol::{LastReload, PacketCounts, StateCount};
    use crate::flow::Protocol;
    use crate::policy::Mode;

    #[test]
    fn each_fact_has_a_line_and_errors_of_a_reload_stay_readable() {
        let facts = Status {
            version: "0.1.0".to_owned(),
            mode: Mode::Ipvs,
            backend: "tun".to_owned(),
            config: "/etc/lbd.toml".into(),
            pid: 42,
            uptime_seconds: 3720,
            workers: 2,
            services: 3,
            backends: 9,
            flows: 5,
            max_flows: 1_048_576,
            flows_by_state: vec![StateCount {
                protocol: Protocol::Tcp,
                state: "ESTABLISHED".into(),
                flows: 5,
            }],
            packets: PacketCounts {
                received: 10,
                forward: 4,
                pass: 3,
                reject: 2,
                drop: 1,
            },
            unsent: 2,
            last_reload: Some(LastReload {
                seconds_ago: 61,
                succeeded: false,
                result: "a:1:1: x\na:2:1: y\n".to_owned(),
            }),
            draining: Vec::new(),
        };
        let expected = "\
version      0.1.0
pid          42
uptime       1h 2m
config       /etc/lbd.toml
mode         ipvs
backend      tun
workers      2
services     3
backends     9
flows        5 of 1048576
  tcp  ESTABLISHED 5
packets      in 10 = forward 4 + pass 3 + reject 2 + drop 1; 2 not taken by the device
last reload  1m 1s ago, refused: a:1:1: x
             a:2:1: y
";
        assert_eq!(status(&facts), expected);
    }
}
