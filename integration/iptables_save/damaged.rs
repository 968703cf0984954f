//! Dumps with lines cut out: what is left is used, counted or told, line by line.
use std::collections::HashSet;

use lbd::config::{Config, parse};
use lbd::import::Imported;
use lbd::import::iptables_save::import;

use super::{DUMPS, dump, imported, lost, rules, service};

/// The lines of rules, each with its place.
fn rules_of(text: &str) -> Vec<(usize, &str)> {
    text.lines()
        .enumerate()
        .filter(|(_, line)| line.starts_with("-A"))
        .collect()
}

fn without(text: &str, removed: impl Fn(usize) -> bool) -> String {
    let kept = text.lines().enumerate().filter(|(line, _)| !removed(*line));
    kept.map(|(_, line)| line).collect::<Vec<_>>().join("\n") + "\n"
}

/// What became of a dump; None where nothing of it could be read, which is told for each line.
struct Outcome {
    config: Option<Config>,
    remarks: Vec<String>,
}

impl Outcome {
    fn of(text: &str) -> Self {
        match import("dump", text) {
            Ok(Imported { toml, remarks }) => Self {
                config: Some(parse("imported", &toml).unwrap().config),
                remarks,
            },
            Err(error) => Self {
                config: None,
                remarks: error.lines().map(str::to_owned).collect(),
            },
        }
    }

    fn tells_of(&self, (number, line): (usize, &str)) -> bool {
        let told = format!("# dump:{}: not carried over: {}: ", number + 1, line.trim());
        self.remarks.iter().any(|remark| remark.starts_with(&told))
    }

    /// Everything but the lines' numbers.
    fn sayings(&self) -> Vec<&str> {
        let without_number = |remark: &'_ String| {
            remark
                .trim_start_matches("# dump:")
                .trim_start_matches(char::is_numeric)
                .len()
        };
        self.remarks
            .iter()
            .map(|remark| &remark[remark.len() - without_number(remark)..])
            .collect()
    }
}

/// Rules that say once more what others have said: one for each endpoint, or for each way to an address; or that drop
/// whom a source range does not let in, which the range says already.
fn is_repeated(line: &str) -> bool {
    let again = [
        "--rcheck",
        "-m recent --set",
        "! --physdev-is-in",
        "--dst-type LOCAL -j KUBE-SVC-",
        "-j LBD-RULES",
    ];
    let of_a_range = line.contains("traffic not accepted by")
        || line.starts_with("-A KUBE-FW-") && line.ends_with("-j KUBE-MARK-DROP");
    of_a_range || again.iter().any(|part| line.contains(part))
}

/// Of every rule that is not told something changes when it is taken out: the configuration, a count, or what is told.
fn each_rule_is_accounted_for(name: &str, text: &str) {
    let whole = Outcome::of(text);
    let lines: Vec<&str> = text.lines().collect();
    for rule in rules_of(text) {
        if whole.tells_of(rule) || is_repeated(rule.1) {
            continue;
        }
        let matters = |removed: &dyn Fn(usize) -> bool| {
            let other = Outcome::of(&without(text, removed));
            other.config != whole.config || other.sayings() != whole.sayings()
        };
        // The nat table leads to an address what the filter table drops there: each of the two is enough.
        let to = rule
            .1
            .split_once(" -d ")
            .map(|(_, rest)| rest.split(' ').next().unwrap_or(rest));
        let same_place = |line: usize| to.is_some_and(|to| lines[line].contains(&format!(" -d {to} ")));
        let accounted = matters(&|line| line == rule.0) || matters(&same_place);
        assert!(accounted, "{name}:{}: {}\n{text}", rule.0 + 1, rule.1);
    }
}

#[test]
fn every_line_of_every_dump_is_used_or_counted_or_told() {
    for name in DUMPS {
        each_rule_is_accounted_for(name, &dump(name));
    }
}

/// Which of so many lines go, differently for each seed: a run of them, every so many, or a mixture.
fn damage(lines: usize, seed: u64) -> HashSet<usize> {
    let mut random = fastrand::Rng::with_seed(seed);
    let first = random.usize(..lines);
    match seed % 3 {
        0 => (first..(first + random.usize(1..=lines / 3)).min(lines)).collect(),
        1 => (0..lines).filter(|_| random.usize(..10) == 0).collect(),
        _ => (0..lines)
            .filter(|line| *line >= first || random.usize(..40) == 0)
            .collect(),
    }
}

fn damaged() -> impl Iterator<Item = (String, String)> {
    let each = |(seed, name): (u64, &'static str)| {
        let text = dump(name);
        let gone = damage(text.lines().count(), seed);
        (
            format!("{name} with seed {seed}"),
            without(&text, |line| gone.contains(&line)),
        )
    };
    (0..9).flat_map(|seed| DUMPS.map(|name| (seed, name))).map(each)
}

#[test]
fn what_is_left_of_a_damaged_dump_is_used_or_counted_or_told() {
    for (name, text) in damaged() {
        each_rule_is_accounted_for(&name, &text);
    }
}

#[test]
fn a_jump_to_a_chain_that_was_cut_out_is_told() {
    let target = |line: &str| {
        line.split_once(" -j ")
            .map(|(_, rest)| rest.split(' ').next().unwrap_or(rest).to_owned())
    };
    let of_a_service = [
        "KUBE-SVC-",
        "KUBE-SVL-",
        "KUBE-SEP-",
        "KUBE-EXT-",
        "KUBE-FW-",
        "KUBE-XLB-",
    ];
    for (name, text) in damaged() {
        let outcome = Outcome::of(&text);
        for rule in rules_of(&text) {
            let Some(target) = target(rule.1).filter(|target| of_a_service.iter().any(|p| target.starts_with(p)))
            else {
                continue;
            };
            let is_there = rules_of(&text)
                .iter()
                .any(|(_, line)| line.starts_with(&format!("-A {target} ")));
            assert!(
                is_there || outcome.tells_of(rule),
                "{name}:{}: {}\n{text}",
                rule.0 + 1,
                rule.1
            );
        }
    }
}

#[test]
fn a_dump_may_end_anywhere() {
    for name in DUMPS {
        let text = dump(name);
        for end in (0..text.len()).step_by(97).filter(|&end| text.is_char_boundary(end)) {
            Outcome::of(&text[..end]);
        }
    }
}

#[test]
fn a_service_whose_chain_was_cut_out_is_told_and_no_service_without_backends() {
    let text = dump("kube-1.30.txt");
    let chain = "-A KUBE-SVC-DNSDNSDNSDNSDNSD ";
    let lines: Vec<&str> = text.lines().collect();
    let (config, remarks) = imported(&without(&text, |line| lines[line].starts_with(chain)));
    assert!(
        config
            .policy
            .services
            .iter()
            .all(|service| service.name != "kube-system/kube-dns:dns")
    );
    let told = |part: &str| lost(&remarks).iter().any(|line| line.contains(part));
    assert!(
        told("-j KUBE-SVC-DNSDNSDNSDNSDNSD: KUBE-SVC-DNSDNSDNSDNSDNSD has no rule in this dump"),
        "{remarks:#?}"
    );
    assert!(
        told("--to-destination 10.180.0.4:53: no rule of KUBE-SERVICES"),
        "{remarks:#?}"
    );
}

#[test]
fn a_node_port_without_a_backend_on_the_node_tells_what_pods_and_local_clients_get() {
    let text = dump("kube-1.30.txt");
    let lines: Vec<&str> = text.lines().collect();
    let (config, remarks) = imported(&without(&text, |line| lines[line].contains("192.168.99.22/32")));
    assert_eq!(service(&config, "ns2/svc2:p80").node_port, None);
    assert!(rules(&config).iter().all(|rule| !rule.contains("ns2/svc2")));
    let reason = |part: &str| {
        let line = lost(&remarks).into_iter().find(|line| line.contains(part));
        line.unwrap_or_else(|| panic!("{part}: {remarks:#?}"))
    };
    assert!(reason("pod traffic for ns2/svc2:p80").contains("pods get from it what others get"));
    assert!(reason("route LOCAL traffic for ns2/svc2:p80").contains("clients on this node"));
    assert!(reason("--dport 3001 -j KUBE-EXT").contains("from outside are dropped"));
}
