//! What becomes of lbd's packets in the host's filters.
//!
//! A rule counts only where it is certain that it applies. One that takes some packets and not others (by addresses,
//! ports, limits) is passed over: whether it lets lbd's packets through is not known, and what it drops is somebody's
//! intention. So a chain that drops in the end is told of unless it accepts all that lbd sends and gets.
use super::rules::{Chain, Condition, Family, Hook, Rule, Source, Table, Verdict};
use super::{Obstacle, TAG};

/// Where a packet comes from, or goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Interface {
    /// lbd's device.
    Own,
    /// Another one.
    Other,
    /// This host.
    None,
}

/// A packet that has to come through.
#[derive(Clone, Copy, Debug)]
pub(super) struct Probe {
    v4: bool,
    hook: Hook,
    input: Interface,
    output: Interface,
    state: &'static str,
}

/// What lbd's packets of one IP version meet. Over AF_XDP only this host's own clients go through the kernel, whose
/// connection tracking sees one direction of what is translated: some of it is INVALID for it.
pub(super) fn probes(v4: bool, af_xdp: bool) -> Vec<Probe> {
    use Interface::{None, Other, Own};
    let probe = |hook, input, output, state| Probe {
        v4,
        hook,
        input,
        output,
        state,
    };
    let mut all = vec![
        probe(Hook::Prerouting, Own, None, "new"),
        probe(Hook::Forward, Own, Other, "new"),
        probe(Hook::Output, None, Own, "new"),
        probe(Hook::Input, Own, None, "established"),
    ];
    match af_xdp {
        true => all.push(probe(Hook::Forward, Own, Other, "invalid")),
        false => all.push(probe(Hook::Forward, Other, Own, "new")),
    }
    all
}

/// How a packet leaves a chain.
enum End {
    Accepted,
    /// By the policy, or by a rule.
    Dropped(Option<String>),
    Returned,
}

/// So many chains lead into each other at most (`NFT_JUMP_STACK_SIZE`).
const DEPTH: usize = 16;

/// What in these tables stops any of the probes, a base chain each.
pub(super) fn obstacles(tables: &[Table], probes: &[Probe], device: &str) -> Vec<Found> {
    let mut found = Vec::new();
    for table in tables {
        for chain in table.chains.iter().filter(|chain| chain.hook.is_some()) {
            let meets = |probe: &&Probe| table.family.sees(probe.v4) && chain.hook == Some(probe.hook);
            let stopped = probes.iter().filter(meets).find_map(|probe| {
                match (walk(table, chain, *probe, device, DEPTH), chain.drops) {
                    (End::Dropped(rule), _) => Some(rule),
                    (End::Returned, true) => Some(None),
                    (End::Returned, false) | (End::Accepted, _) => None,
                }
            });
            found.extend(stopped.and_then(|rule| Some(Found::new(table, chain.name.clone(), chain.hook?, rule))));
        }
    }
    found
}

fn walk(table: &Table, chain: &Chain, probe: Probe, device: &str, depth: usize) -> End {
    let applies = |rule: &&Rule| {
        rule.conditions
            .iter()
            .all(|condition| meets(condition, probe, device) == Some(true))
    };
    for rule in chain.rules.iter().filter(applies) {
        let into = |name: &str| {
            let next = table
                .chains
                .iter()
                .find(|chain| chain.name == name)
                .filter(|_| depth > 0);
            next.map_or(End::Returned, |next| walk(table, next, probe, device, depth - 1))
        };
        match &rule.verdict {
            Verdict::Accept => return End::Accepted,
            Verdict::Drop | Verdict::Reject => return End::Dropped(Some(rule.to_string())),
            Verdict::Return => return End::Returned,
            Verdict::Continue => {}
            Verdict::Goto(name) => return into(name),
            Verdict::Jump(name) => match into(name) {
                End::Returned => {}
                end @ (End::Accepted | End::Dropped(_)) => return end,
            },
        }
    }
    End::Returned
}

/// Whether a packet meets a condition; None where some do.
fn meets(condition: &Condition, probe: Probe, device: &str) -> Option<bool> {
    let met = match condition {
        Condition::In(names, negated) => interface(names, probe.input, device)? != *negated,
        Condition::Out(names, negated) => interface(names, probe.output, device)? != *negated,
        Condition::State(states, negated) => states.iter().any(|state| state == probe.state) != *negated,
        Condition::ReversePath => match probe.input {
            Interface::Own => true,
            Interface::Other | Interface::None => return None,
        },
        Condition::Version4(v4) => *v4 == probe.v4,
        Condition::Never => false,
        Condition::Perhaps(_) => return None,
    };
    Some(met)
}

fn interface(names: &[String], interface: Interface, device: &str) -> Option<bool> {
    let fits = |name: &String| match name.strip_suffix('*') {
        Some(start) => device.starts_with(start),
        None => name == device,
    };
    match interface {
        Interface::Own => Some(names.iter().any(fits)),
        Interface::None => Some(false),
        // Which of the others is not known.
        Interface::Other if names.iter().all(|name| name == device) => Some(false),
        Interface::Other => None,
    }
}

/// A base chain that stops what lbd sends or gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Found {
    source: Source,
    family: Family,
    table: String,
    chain: String,
    hook: Hook,
    /// None: by its policy.
    rule: Option<String>,
}

impl Found {
    fn new(table: &Table, chain: String, hook: Hook, rule: Option<String>) -> Self {
        Self {
            source: table.source,
            family: table.family,
            table: table.name.clone(),
            chain,
            hook,
            rule,
        }
    }

    /// The conditions of the accept rules that let lbd's packets through, as nft writes them and as iptables does.
    fn ways(&self, device: &str) -> Vec<(String, String)> {
        let from = (format!("iifname \"{device}\""), format!("-i {device}"));
        let to = (format!("oifname \"{device}\""), format!("-o {device}"));
        match self.hook {
            Hook::Prerouting => vec![from],
            Hook::Forward => vec![from, to],
            Hook::Output => vec![to],
            // Only answers to this host's own clients: what else is for this host is for its firewall to judge.
            Hook::Input => vec![(
                format!("{} ct state established,related", from.0),
                format!("{} -m conntrack --ctstate ESTABLISHED,RELATED", from.1),
            )],
        }
    }

    /// Lines for `nft -f`; none for legacy tables.
    pub(super) fn nft(&self, device: &str) -> Vec<String> {
        let Self {
            source: Source::Nft,
            family,
            table,
            chain,
            ..
        } = self
        else {
            return Vec::new();
        };
        let rule = |(way, _)| format!("insert rule {} {table} {chain} {way} accept", family.name());
        self.ways(device).into_iter().map(rule).collect()
    }

    /// The program and its arguments; none for tables of nft.
    pub(super) fn legacy(&self, device: &str) -> Vec<(&'static str, String)> {
        let program = match self.source {
            Source::Nft => return Vec::new(),
            Source::Legacy => legacy_program(self.family),
        };
        let rule = |(_, way)| (program, format!("-t {} -I {} {way} -j ACCEPT", self.table, self.chain));
        self.ways(device).into_iter().map(rule).collect()
    }

    /// For people.
    pub(super) fn obstacle(&self, device: &str) -> Obstacle {
        let Self {
            source,
            family,
            table,
            chain,
            hook,
            rule,
        } = self;
        let legacy = match source {
            Source::Nft => "",
            Source::Legacy => " (legacy)",
        };
        let whose = match hook {
            Hook::Prerouting => format!("packets from {device}"),
            Hook::Forward => format!("packets from and to {device}"),
            Hook::Output => format!("packets to {device}"),
            Hook::Input => format!("answers from {device} to this host"),
        };
        let at = format!("table {} {table}{legacy}, chain {chain}", family.name());
        let what = match rule {
            None => format!("{at} has policy drop, and no rule of it accepts all {whose}"),
            Some(rule) => format!("{at} has `{rule}`, and no rule before it accepts all {whose}"),
        };
        let nft = self.nft(device).into_iter().map(|line| format!("nft '{line}'"));
        let legacy = self
            .legacy(device)
            .into_iter()
            .map(|(program, line)| format!("{program} {line}"));
        Obstacle {
            what,
            remedy: nft.chain(legacy).collect::<Vec<_>>().join("; "),
            opens: true,
        }
    }
}

/// The rules that lbd has put in, as lines that take them out: for `nft -f`, and for the legacy programs.
pub(super) fn own_rules(tables: &[Table]) -> (Vec<String>, Vec<(&'static str, String)>) {
    let (mut nft, mut legacy) = (Vec::new(), Vec::new());
    for table in tables {
        for chain in &table.chains {
            for rule in chain.rules.iter().filter(|rule| rule.comment.as_deref() == Some(TAG)) {
                let place = format!("{} {} {}", table.family.name(), table.name, chain.name);
                match (table.source, rule.handle) {
                    (Source::Nft, Some(handle)) => nft.push(format!("delete rule {place} handle {handle}")),
                    (Source::Nft, None) => {}
                    (Source::Legacy, _) => {
                        let way = rule
                            .conditions
                            .iter()
                            .filter_map(as_iptables)
                            .collect::<Vec<_>>()
                            .join(" ");
                        let line = format!("-t {} -D {} {way} -j ACCEPT", table.name, chain.name);
                        legacy.push((legacy_program(table.family), line));
                    }
                }
            }
        }
    }
    (nft, legacy)
}

const fn legacy_program(family: Family) -> &'static str {
    match family {
        Family::Ip6 => "ip6tables-legacy",
        Family::Ip | Family::Inet => "iptables-legacy",
    }
}

/// A condition of lbd's own rules.
fn as_iptables(condition: &Condition) -> Option<String> {
    match condition {
        Condition::In(names, _) => Some(format!("-i {}", names.join(","))),
        Condition::Out(names, _) => Some(format!("-o {}", names.join(","))),
        Condition::State(states, _) => Some(format!("-m conntrack --ctstate {}", states.join(",").to_uppercase())),
        Condition::ReversePath | Condition::Version4(_) | Condition::Never | Condition::Perhaps(_) => None,
    }
}
