//! What would happen to a packet: a line a step, its name first.
use std::fmt::Write;

use crate::protocol::explanation::{
    AffinityStep, Candidate, Explanation, FlowStep, PacketStep, RewriteStep, RulesStep, SchedulerStep, SourceStep, Step,
};

/// The steps, the verdict, and what was not looked at.
#[must_use]
pub fn explain(explanation: &Explanation) -> String {
    let mut text = String::new();
    for step in &explanation.steps {
        let (name, lines) = shown(step);
        for (number, line) in lines.iter().enumerate() {
            push(&mut text, if number == 0 { name } else { "" }, line);
        }
    }
    push(&mut text, "verdict", &verdict(explanation));
    for note in &explanation.notes {
        push(&mut text, "note", note);
    }
    text
}

fn push(text: &mut String, name: &str, line: &str) {
    let written = writeln!(text, "{name:<14} {line}");
    debug_assert!(written.is_ok(), "a String takes everything");
}

fn shown(step: &Step) -> (&'static str, Vec<String>) {
    match step {
        Step::Packet(packet) => ("packet", vec![packet_line(packet)]),
        Step::Unreadable { problem } => ("packet", vec![format!("cannot be read: {problem}")]),
        Step::Flow(flow) => ("flow", flow_lines(flow)),
        Step::NoFlow => ("flow", vec!["none".to_owned()]),
        Step::Rules(rules) => ("rules", rule_lines(rules)),
        Step::VirtualServer {
            destination,
            service,
            all_ports,
        } => {
            let found = match (service, all_ports) {
                (None, _) => "none".to_owned(),
                (Some(service), false) => service.clone(),
                (Some(service), true) => format!("{service}, on all ports"),
            };
            ("virtual server", vec![format!("{destination}: {found}")])
        }
        Step::NotSyn => ("not a SYN", vec!["it belongs to no flow and opens none".to_owned()]),
        Step::NotInit => ("not an INIT", vec!["it belongs to no flow and opens none".to_owned()]),
        Step::Affinity(affinity) => ("affinity", vec![affinity_line(affinity)]),
        Step::Scheduler(scheduler) => ("scheduler", scheduler_lines(scheduler)),
        Step::Source(source) => ("source", vec![source_line(source)]),
        Step::Table {
            flows,
            max_flows,
            outcome,
        } => {
            let outcome = match outcome.as_ref() {
                "stored" => "the flow is stored",
                "evicts" => "the flow takes the place of another one",
                _ => "full, and no flow may be evicted",
            };
            ("table", vec![format!("{flows} of {max_flows} flows: {outcome}")])
        }
        Step::Rewrite(rewrite) => ("rewritten", vec![rewrite_line(rewrite)]),
        Step::Answer { answer } => ("answer", vec![answer_line(answer).to_owned()]),
    }
}

fn packet_line(packet: &PacketStep) -> String {
    let PacketStep {
        version,
        protocol,
        source,
        destination,
        tcp_flags,
        sctp_chunk,
        length,
        kind,
        about,
    } = packet;
    let mut line = format!("{protocol} {source} -> {destination}, IPv{version}, {length} bytes");
    match (tcp_flags, sctp_chunk) {
        (Some(flags), _) if flags.is_empty() => line.push_str(", no flags"),
        (Some(flags), _) => line.push_str(&format!(", {}", flags.join(" ").to_uppercase())),
        (None, Some(chunk)) => line.push_str(&format!(", {}", chunk.replace('_', " ").to_uppercase())),
        (None, None) if kind == "datagram" || kind == "other" => {}
        (None, None) => line.push_str(&format!(", {}", kind.replace('_', " "))),
    }
    if let Some(about) = about {
        line.push_str(&format!(" about {about}"));
    }
    line
}

fn flow_lines(flow: &FlowStep) -> Vec<String> {
    let FlowStep {
        service,
        backend,
        client,
        virtual_address,
        source,
        direction,
        state,
        next_state,
        expires_seconds,
        backend_removed,
        outcome,
    } = flow;
    let by = if source == client {
        String::new()
    } else {
        format!(" as {source}")
    };
    let removed = if *backend_removed { " (removed)" } else { "" };
    let what = match outcome.as_ref() {
        "reopened" => "is over: forgotten, and this packet opens another one",
        "over" => "is over, and this answer is to a connection past the services: forgotten",
        "rescheduled" => "has lost its backend: forgotten, and this packet opens another one",
        "ends" => "has lost its backend: it ends",
        "waits" => "has lost its backend: until that is back, its client's packets are dropped",
        _ => "the packet follows it",
    };
    let states = if state == next_state {
        state.to_string()
    } else {
        format!("{state} -> {next_state}")
    };
    vec![
        format!("{client} -> {virtual_address} of {service}, to {backend}{removed}{by}"),
        format!("{direction} direction, {states}, {expires_seconds} s left"),
        what.to_owned(),
    ]
}

fn rule_lines(rules: &RulesStep) -> Vec<String> {
    let RulesStep {
        looked_at,
        not_shown,
        matched,
    } = rules;
    let line = |(at, look): (usize, &crate::protocol::explanation::RuleLook)| {
        let name = look
            .name
            .as_deref()
            .map(|name| format!(" /* {name} */"))
            .unwrap_or_default();
        let is_last = at + 1 == looked_at.len() && matched.is_some();
        let line = format!(
            "{:<5} {:<7} {}: {}{name}",
            look.number, look.matches, look.action, look.why
        );
        match is_last && *not_shown > 0 {
            true => format!("{}\n{line}", skipped(*not_shown)),
            false => line,
        }
    };
    let shown = looked_at.iter().enumerate().map(line);
    let mut lines: Vec<String> = shown
        .flat_map(|line| line.lines().map(str::to_owned).collect::<Vec<_>>())
        .collect();
    if matched.is_none() {
        if *not_shown > 0 {
            lines.push(skipped(*not_shown));
        }
        lines.push("no rule matches".to_owned());
    }
    lines
}

fn skipped(count: usize) -> String {
    format!("...   no      {count} more, not shown")
}

fn affinity_line(affinity: &AffinityStep) -> String {
    let AffinityStep {
        client,
        backend,
        expires_seconds,
        outcome,
    } = affinity;
    match (backend, expires_seconds) {
        (Some(backend), Some(left)) if outcome == "used" => format!("{client} goes to {backend}, {left} s left"),
        (Some(backend), _) => format!("{client} went to {backend}, which takes no new flow by it: chosen anew"),
        (None, _) => format!("{client} is not known yet"),
    }
}

fn scheduler_lines(step: &SchedulerStep) -> Vec<String> {
    let SchedulerStep {
        scheduler,
        candidates,
        pick,
        by_chance,
    } = step;
    let picked = match (pick, by_chance) {
        (None, _) => "nobody may take a new flow".to_owned(),
        (Some(pick), false) => format!("picks {pick}"),
        (Some(pick), true) => format!("picks by chance, for example {pick}"),
    };
    let mut lines = vec![format!("{scheduler} {picked}")];
    lines.extend(candidates.iter().map(candidate));
    lines
}

fn candidate(candidate: &Candidate) -> String {
    let Candidate {
        backend,
        weight,
        active_connections,
        inactive_connections,
        drained,
        overloaded,
    } = candidate;
    let drained = if *drained { ", drained" } else { "" };
    let overloaded = if *overloaded { ", overloaded" } else { "" };
    format!(
        "{backend} weight {weight}, {active_connections} active, {inactive_connections} inactive{drained}{overloaded}"
    )
}

fn source_line(step: &SourceStep) -> String {
    let why = match step.why.as_ref() {
        "always" => "every flow is masqueraded",
        "local_client" => "the client is on this node",
        "backend_itself" => "the backend reaches itself",
        "in_use" => "another flow to the backend has the client's address and port",
        _ => "",
    };
    let places = format!(
        "{} port {}",
        step.addresses.join(" "),
        step.ports.as_deref().unwrap_or("any")
    );
    match (step.masqueraded, step.found) {
        (false, true) => "the client keeps its address and port".to_owned(),
        (false, false) => format!("none: {why}"),
        (true, true) => format!("masqueraded, a free one of {places}, by chance: {why}"),
        (true, false) => format!("none is free of {places}: {why}"),
    }
}

fn rewrite_line(rewrite: &RewriteStep) -> String {
    let RewriteStep {
        protocol,
        source,
        destination,
        of_quoted,
    } = rewrite;
    let source = source.map_or_else(|| "(by chance)".to_owned(), |source| source.to_string());
    let quoted = if *of_quoted {
        ", as an answer to the packet that it is about"
    } else {
        ""
    };
    format!("{protocol} {source} -> {destination}{quoted}")
}

fn answer_line(answer: &str) -> &str {
    match answer {
        "tcp_reset" => "TCP RST to its sender",
        "icmp_port_unreachable" => "ICMP port unreachable to its sender",
        "icmp_echo_reply" => "ICMP echo reply to its sender",
        "tcp_reset_to_receiver" => "TCP RST to its receiver",
        _ => "none: such a packet may not be answered",
    }
}

fn verdict(explanation: &Explanation) -> String {
    let mut line = explanation.verdict.to_string();
    if let Some(reason) = &explanation.reason {
        line.push_str(&format!(": {reason}"));
    }
    if let Some(service) = &explanation.service {
        line.push_str(&format!(", {service}"));
    }
    if explanation.by_chance {
        line.push_str(" (by chance, see above)");
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::explanation::RuleLook;
    use lbd_core::flow::Protocol;
    use lbd_core::policy::Mode;

    fn look(number: usize, matches: &'static str, action: &str, why: &str) -> RuleLook {
        RuleLook {
            number,
            name: Some(format!("rule {number}")),
            action: action.to_owned(),
            matches: matches.into(),
            why: why.to_owned(),
        }
    }

    #[test]
    fn a_new_flow_is_told_step_by_step() {
        let candidate = |backend: &str, weight| Candidate {
            backend: backend.parse().unwrap(),
            weight,
            active_connections: 1,
            inactive_connections: 2,
            drained: weight == 0,
            overloaded: false,
        };
        let explanation = Explanation {
            mode: Mode::Iptables,
            steps: vec![
                Step::Packet(PacketStep {
                    version: 4,
                    protocol: "tcp".to_owned(),
                    source: "10.1.0.2:40000".to_owned(),
                    destination: "10.96.0.10:80".to_owned(),
                    tcp_flags: Some(vec!["syn".into()]),
                    sctp_chunk: None,
                    length: 40,
                    kind: "segment".into(),
                    about: None,
                }),
                Step::NoFlow,
                Step::Rules(RulesStep {
                    looked_at: vec![
                        look(1, "no", "drop", "source is 10.1.0.2, not 203.0.113.0/24"),
                        look(30, "yes", "service:web", "it meets every condition"),
                    ],
                    not_shown: 28,
                    matched: Some(30),
                }),
                Step::Scheduler(SchedulerStep {
                    scheduler: "rr".to_owned(),
                    candidates: vec![candidate("10.2.0.1:8080", 0), candidate("10.2.0.2:8080", 1)],
                    pick: Some("10.2.0.2:8080".parse().unwrap()),
                    by_chance: false,
                }),
                Step::Rewrite(RewriteStep {
                    protocol: Protocol::Tcp,
                    source: Some("10.1.0.2:40000".parse().unwrap()),
                    destination: "10.2.0.2:8080".parse().unwrap(),
                    of_quoted: false,
                }),
            ],
            verdict: "forward".into(),
            reason: None,
            service: Some("web".to_owned()),
            backend: Some("10.2.0.2:8080".parse().unwrap()),
            by_chance: false,
            notes: vec!["nothing".into()],
        };
        let expected = "\
packet         tcp 10.1.0.2:40000 -> 10.96.0.10:80, IPv4, 40 bytes, SYN
flow           none
rules          1     no      drop: source is 10.1.0.2, not 203.0.113.0/24 /* rule 1 */
               ...   no      28 more, not shown
               30    yes     service:web: it meets every condition /* rule 30 */
scheduler      rr picks 10.2.0.2:8080
               10.2.0.1:8080 weight 0, 1 active, 2 inactive, drained
               10.2.0.2:8080 weight 1, 1 active, 2 inactive
rewritten      tcp 10.1.0.2:40000 -> 10.2.0.2:8080
verdict        forward, web
note           nothing
";
        assert_eq!(explain(&explanation), expected);
    }
}
