//! Backends that are being drained.
use std::time::Duration;

use crate::protocol::DrainView;

/// A line for each: what is left, how old the oldest of it is, when it ends.
#[must_use]
pub fn drains(drains: &[DrainView]) -> String {
    if drains.is_empty() {
        return "no backend is being drained\n".to_owned();
    }
    drains.iter().map(|drain| line(drain) + "\n").collect()
}

/// Without the end of the line.
pub(super) fn line(drain: &DrainView) -> String {
    let DrainView {
        service,
        backend,
        draining_seconds,
        deadline_seconds,
        remaining_flows,
        oldest_flow_seconds,
    } = drain;
    let since = time(*draining_seconds);
    let oldest = match oldest_flow_seconds {
        Some(age) => format!(", the oldest {} old", time(*age)),
        None => String::new(),
    };
    let until = match deadline_seconds {
        None => "they end by themselves".to_owned(),
        Some(0) => "what is left is being reset".to_owned(),
        Some(left) => format!("reset in {}", time(*left)),
    };
    format!("{backend} of {service}: draining for {since}, flows left: {remaining_flows}{oldest}; {until}")
}

fn time(seconds: u64) -> String {
    humantime::format_duration(Duration::from_secs(seconds)).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drain_tells_what_is_left_how_old_it_is_and_when_it_ends() {
        let mut drain = DrainView {
            service: "web".to_owned(),
            backend: "10.2.0.11:80".parse().unwrap(),
            draining_seconds: 61,
            deadline_seconds: Some(539),
            remaining_flows: 2,
            oldest_flow_seconds: Some(3600),
        };
        let text = "10.2.0.11:80 of web: draining for 1m 1s, flows left: 2, the oldest 1h old; reset in 8m 59s\n";
        assert_eq!(drains(&[drain.clone()]), text);
        drain.deadline_seconds = None;
        (drain.remaining_flows, drain.oldest_flow_seconds) = (0, None);
        assert!(drains(&[drain]).ends_with("flows left: 0; they end by themselves\n"));
    }
}
