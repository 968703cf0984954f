//! Timeouts of idle flows.
use std::time::Duration;

use crate::protocol::TimeoutsView;

/// One a line, in the words of the configuration.
#[must_use]
pub fn timeouts(timeouts: &TimeoutsView) -> String {
    let all = [
        ("tcp_established", timeouts.tcp_established_seconds),
        ("tcp_fin", timeouts.tcp_fin_seconds),
        ("udp", timeouts.udp_seconds),
    ];
    let line = |(key, seconds)| {
        format!(
            "{key:<15} {}\n",
            humantime::format_duration(Duration::from_secs(seconds))
        )
    };
    all.map(line).concat()
}
