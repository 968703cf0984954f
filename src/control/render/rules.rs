//! The ordered rule list, as `iptables -L -v -n --line-numbers` shows a chain.
use crate::protocol::RuleView;

/// The table, in the order in which rules are checked. Targets are lbd's own words, and `any` is both families.
#[must_use]
pub fn rules(rules: &[RuleView]) -> String {
    let target = rules.iter().map(|rule| rule.action.len()).max();
    let target = target.unwrap_or(0).max("target".len());
    let mut text = format!(
        "num   pkts bytes {:<target$} prot {:<20} {:<20}\n",
        "target", "source", "destination"
    );
    for rule in rules {
        text.push_str(&row(rule, target));
    }
    text
}

fn row(rule: &RuleView, target: usize) -> String {
    let RuleView { number, action, .. } = rule;
    let head = format!(
        "{number:<4} {} {} {action:<target$} {:<4} {:<20} {:<20}",
        short(rule.packets),
        short(rule.bytes),
        rule.protocol.as_deref().unwrap_or("all"),
        rule.source.as_deref().unwrap_or("any"),
        rule.destination.as_deref().unwrap_or("any"),
    );
    let extras = extras(rule);
    format!("{head} {extras}\n")
}

/// What iptables writes behind the columns: ports, the share of packets, and the comment.
fn extras(rule: &RuleView) -> String {
    let parts = [
        rule.source_port.as_deref().map(|port| ports("sp", port)),
        rule.destination_port.as_deref().map(|port| ports("dp", port)),
        rule.probability
            .map(|share| format!("statistic mode random probability {share}")),
        rule.name.as_deref().map(|name| format!("/* {name} */")),
    ];
    parts.into_iter().flatten().collect::<Vec<_>>().join(" ")
}

/// `dpt:80`, `dpt:!80`, `spts:1024:65535`
fn ports(side: &str, condition: &str) -> String {
    match condition.split_once('-') {
        Some((first, last)) => format!("{side}ts:{first}:{last}"),
        None => format!("{side}t:{condition}"),
    }
}

/// `xtables_print_num`: five columns up to 99999, then thousands, rounded.
fn short(number: u64) -> String {
    if number <= 99_999 {
        return format!("{number:>5}");
    }
    let mut number = number;
    for suffix in ["K", "M", "G"] {
        number = number.saturating_add(500) / 1000;
        if number <= 9_999 {
            return format!("{number:>4}{suffix}");
        }
    }
    format!("{:>4}T", number.saturating_add(500) / 1000)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::RuleKind;

    fn rule(number: usize, action: &str) -> RuleView {
        RuleView {
            number,
            name: None,
            kind: RuleKind::User,
            protocol: None,
            source: None,
            destination: None,
            source_port: None,
            destination_port: None,
            probability: None,
            action: action.to_owned(),
            packets: 0,
            bytes: 0,
        }
    }

    #[test]
    fn rules_are_shown_as_iptables_does_with_their_counts() {
        let office = RuleView {
            name: Some("office only".to_owned()),
            protocol: Some("tcp".to_owned()),
            source: Some("!203.0.113.0/24".to_owned()),
            destination: Some("10.96.0.0/16".to_owned()),
            source_port: Some("1024-65535".to_owned()),
            destination_port: Some("!80".to_owned()),
            probability: Some(0.5),
            packets: 123_456,
            bytes: 9_999,
            ..rule(1, "drop")
        };
        let web = RuleView {
            kind: RuleKind::Service,
            protocol: Some("tcp".to_owned()),
            destination: Some("10.96.0.10/32".to_owned()),
            destination_port: Some("80".to_owned()),
            ..rule(2, "service:web")
        };
        let expected = "\
num   pkts bytes target      prot source               destination         \n\
1     123K  9999 drop        tcp  !203.0.113.0/24      10.96.0.0/16         spts:1024:65535 dpt:!80 statistic mode random probability 0.5 /* office only */
2        0     0 service:web tcp  any                  10.96.0.10/32        dpt:80
3        0     0 pass        all  any                  any                  \n";
        assert_eq!(rules(&[office, web, rule(3, "pass")]), expected);
    }

    #[test]
    fn counts_are_shortened_as_iptables_does() {
        let cases = [
            (99_999, "99999"),
            (100_000, " 100K"),
            (9_999_499, "9999K"),
            (9_999_500, "  10M"),
            (10_000_000_000, "  10G"),
            (u64::MAX, "18446744T"),
        ];
        for (number, expected) in cases {
            assert_eq!(short(number), expected, "{number}");
        }
    }
}
