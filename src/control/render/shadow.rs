//! What the other mode would have done otherwise.
use std::fmt::Write;
use std::time::Duration;

use crate::protocol::shadow::{AnswerView, DisagreementView, ShadowView};

/// The counts in a line, and a line for each disagreement.
#[must_use]
pub(super) fn shadow(view: &ShadowView) -> String {
    let ShadowView {
        mode,
        looked_at,
        agreed,
        by_chance,
        disagreed,
        disagreements,
    } = view;
    let mode = mode.name();
    let chance = match by_chance {
        0 => String::new(),
        packets => format!(" + up to a rule's probability {packets}"),
    };
    let mut text = format!("{mode}: new flows {looked_at} = agreed {agreed} + disagreed {disagreed}{chance}\n");
    for each in disagreements {
        let ago = humantime::format_duration(Duration::from_secs(each.seconds_ago));
        // Writing to a String cannot fail.
        writeln!(
            text,
            "  {}, {} times, {ago} ago",
            disagreement(each, mode),
            each.packets
        )
        .unwrap_or_default();
    }
    text
}

/// Who went where, what became of it, and what would have with `mode`.
#[must_use]
pub fn disagreement(view: &DisagreementView, mode: &str) -> String {
    let DisagreementView {
        protocol,
        source,
        destination,
        live,
        shadow,
        packets: _,
        seconds_ago: _,
    } = view;
    format!(
        "{protocol} {source} -> {destination}: {}, in {mode} mode {}",
        answer(live),
        answer(shadow)
    )
}

fn answer(view: &AnswerView) -> String {
    let AnswerView { verdict, service, rule } = view;
    let service = service.as_ref().map_or_else(String::new, |name| format!(" {name}"));
    let rule = rule.map_or_else(String::new, |number| format!(" (rule {number})"));
    format!("{verdict}{service}{rule}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use lbd_core::policy::Mode;

    #[test]
    fn the_counts_have_a_line_and_each_disagreement_says_who_went_where() {
        let service = |name: &str| AnswerView {
            verdict: "service".into(),
            service: Some(name.to_owned()),
            rule: None,
        };
        let view = ShadowView {
            mode: Mode::Iptables,
            looked_at: 1204,
            agreed: 1200,
            by_chance: 1,
            disagreed: 3,
            disagreements: vec![DisagreementView {
                protocol: "tcp".into(),
                source: "198.51.100.7:40000".to_owned(),
                destination: "10.96.0.20:5432".to_owned(),
                live: service("default/db:postgres"),
                shadow: AnswerView {
                    verdict: "drop".into(),
                    service: None,
                    rule: Some(1),
                },
                packets: 3,
                seconds_ago: 5,
            }],
        };
        let expected = "\
iptables: new flows 1204 = agreed 1200 + disagreed 3 + up to a rule's probability 1
  tcp 198.51.100.7:40000 -> 10.96.0.20:5432: service default/db:postgres, in iptables mode drop (rule 1), 3 times, 5s ago
";
        assert_eq!(shadow(&view), expected);
        let quiet = ShadowView {
            by_chance: 0,
            disagreements: Vec::new(),
            ..view
        };
        assert_eq!(shadow(&quiet), "iptables: new flows 1204 = agreed 1200 + disagreed 3\n");
    }
}
