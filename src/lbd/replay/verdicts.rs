//! The lines of `--verdicts`.
use std::time::Duration;

use super::Description;
use lbd_core::verdict::Verdict;

/// One JSON object and a line break; `packet` counts from 1, `time` from the first packet.
pub(super) fn line(packet: u64, time: Duration, verdict: Verdict, description: Option<&Description>) -> String {
    let mut line = format!(
        r#"{{"packet":{packet},"time":{},"verdict":"{}""#,
        seconds(time),
        verdict.name()
    );
    if let Some(reason) = verdict.reason() {
        line += &format!(r#","reason":"{reason}""#);
    }
    if let Some(flow) = description {
        line += &format!(
            r#","direction":"{}","service":{},"backend":"{}","source":"{}""#,
            flow.direction.name(),
            // A value of its own knows how to be a JSON string.
            serde_json::Value::from(flow.service.as_str()),
            flow.backend,
            flow.source
        );
    }
    line += "}\n";
    line
}

/// Seconds with every nanosecond; an f64 would lose some after 104 days.
fn seconds(time: Duration) -> String {
    let fraction = format!("{:09}", time.subsec_nanos());
    let fraction = match fraction.trim_end_matches('0') {
        "" => "0",
        digits => digits,
    };
    format!("{}.{fraction}", time.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;
    use lbd_core::flow::Direction;
    use lbd_core::verdict::{Drop, Pass};

    #[test]
    fn a_forwarded_packet_is_told_as_in_the_contract() {
        let description = Description {
            direction: Direction::Original,
            service: "default/web:http".into(),
            backend: "10.2.0.11:8080".parse().unwrap(),
            source: "10.1.0.2:40000".parse().unwrap(),
        };
        let line = line(1, Duration::ZERO, Verdict::Forward, Some(&description));
        assert_eq!(
            line,
            concat!(
                r#"{"packet":1,"time":0.0,"verdict":"forward","direction":"original","service":"default/web:http","#,
                r#""backend":"10.2.0.11:8080","source":"10.1.0.2:40000"}"#,
                "\n"
            )
        );
    }

    #[test]
    fn every_other_packet_is_told_with_its_reason() {
        let passed = line(2, Duration::from_millis(1500), Verdict::Pass(Pass::NotIp), None);
        let dropped = line(3, Duration::from_secs(2), Verdict::Drop(Drop::NotSyn), None);
        assert_eq!(
            passed,
            "{\"packet\":2,\"time\":1.5,\"verdict\":\"pass\",\"reason\":\"not_ip\"}\n"
        );
        assert_eq!(
            dropped,
            "{\"packet\":3,\"time\":2.0,\"verdict\":\"drop\",\"reason\":\"not_syn\"}\n"
        );
    }

    #[test]
    fn the_time_of_a_packet_has_every_nanosecond() {
        assert_eq!(seconds(Duration::from_nanos(1)), "0.000000001");
        let a_year = Duration::new(31_557_600, 123_456_789);
        assert_eq!(seconds(a_year), "31557600.123456789");
    }

    #[test]
    fn a_service_named_with_quotes_is_still_json() {
        let description = Description {
            direction: Direction::Reply,
            service: "a\"b\\c".into(),
            backend: "[fd00::1]:80".parse().unwrap(),
            source: "[fd00::2]:4000".parse().unwrap(),
        };
        let line = line(1, Duration::ZERO, Verdict::Forward, Some(&description));
        let json: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(json["service"], "a\"b\\c");
        assert_eq!(json["backend"], "[fd00::1]:80");
    }
}
