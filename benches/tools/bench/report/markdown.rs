//! The page: circumstances, goals, a table for each question.
use std::fmt::Write;

use super::figures::{Figures, iptables_row};
use super::numbers::short;
use super::{Report, goals};
use crate::load::attempt::{LATE, PATIENCE};
use crate::load::{blast, connects};
use crate::questions::{self, Question};
use crate::rig;
use crate::systems;

/// More of the machine than this must not be used by others, but in so few pauses.
const QUIET: f64 = 0.1;
const SELDOM: f64 = 0.1;

/// `pictures` are those that lie beside the page, by their file names.
pub(super) fn page(report: &Report, figures: &Figures<'_>, pictures: &[(&str, String)]) -> String {
    let mut page = circumstances(report);
    page += &goal_table(figures);
    for question in questions::ALL {
        if !figures.cases(question).is_empty() {
            page += &section(question, figures, report.effort.rate, pictures);
        }
    }
    page
}

fn circumstances(report: &Report) -> String {
    let (machine, loud) = (&report.machine, loud(&report.pauses));
    let (rounds, window) = (report.effort.rounds, report.effort.window.as_secs_f64());
    let mut text = format!(
        "# lbd and others, side by side\n\n\
         `{}`, {}, lbd at commit {}.\n\n\
         {}, {} CPUs, {:.0} GB, Linux {}; {}.\n\n",
        machine.command,
        machine.date,
        machine.commit,
        machine.cpu,
        machine.cpus,
        machine.memory_gb,
        machine.kernel,
        machine.versions.join("; "),
    );
    text += &format!(
        "{rounds} round{}, each with every system in turn, in the opposite order every other round, on the same veth pairs \
         (client, balancer, two servers in namespaces of one machine); {window} s a measurement. The client runs on CPU {}, \
         the servers on CPU {}; the balancer runs where the kernel puts it, and a kernel's balancer runs on the CPU of \
         whoever sends. CPU time is that of the whole machine: client, balancer, servers, interrupts; it is what was not idle. Figures are medians \
         over the rounds, (least..most), and × how many times that of iptables DNAT.\n\n",
        if rounds == 1 { "" } else { "s" },
        rig::CLIENT_CPU,
        rig::server_cpu(),
    );
    text += &format!(
        "Others used {:.0} % of the machine before the run, and more than {:.0} % in {:.0} % of the pauses between turns.{}\n\n",
        machine.busy_before * 100.0,
        QUIET * 100.0,
        loud * 100.0,
        if loud > SELDOM {
            " **That is too much to trust these figures.**"
        } else {
            ""
        },
    );
    text += &spent(report);
    for (system, why) in &report.skipped {
        writeln!(text, "- skipped: {}: {why}", system.name()).unwrap_or_default();
    }
    text
}

/// What the run took, for the next one.
fn spent(report: &Report) -> String {
    let questions = report
        .spent
        .iter()
        .map(|(question, seconds)| format!("question {} {seconds:.0} s", question.number()));
    let setting_up = std::iter::once(format!("setting up and taking down {:.0} s", report.setting_up));
    let all: Vec<_> = questions.chain(setting_up).collect();
    format!("Took: {}.\n\n", all.join(", "))
}

/// The share of pauses in which others used more than they may.
fn loud(pauses: &[f64]) -> f64 {
    let loud = pauses.iter().filter(|&&busy| busy > QUIET).count();
    loud as f64 / pauses.len().max(1) as f64
}

fn goal_table(figures: &Figures<'_>) -> String {
    let mut text =
        "\n## Goals\n\n| goal (a ratio) | system | wanted at least | worst found | |\n| --- | --- | --: | --: | --- |\n".to_owned();
    for goal in goals::all(figures) {
        let found = match &goal.found {
            Some((found, case)) => format!("{} ({case})", short(*found)),
            None => String::new(),
        };
        let (wanted, verdict) = (short(goal.wanted), goal.verdict());
        writeln!(
            text,
            "| {} | {} | {wanted} | {found} | {verdict} |",
            goal.goal, goal.system
        )
        .unwrap_or_default();
    }
    text
}

fn section(question: Question, figures: &Figures<'_>, rate: f64, pictures: &[(&str, String)]) -> String {
    let columns = columns(question);
    let mut text = format!(
        "\n## {}. {}\n\n{}\n\n",
        question.number(),
        question.title(),
        explanation(question, rate)
    );
    let number = format!("{}-", question.number());
    let files = pictures.iter().map(|(file, _)| file);
    for file in files.filter(|file| file.starts_with(&number)) {
        write!(text, "![{file}]({file})\n\n").unwrap_or_default();
    }
    writeln!(text, "| case | system | {} |", columns.join(" | ")).unwrap_or_default();
    writeln!(text, "| --- | --- |{}", " --: |".repeat(columns.len())).unwrap_or_default();
    for case in figures.cases(question) {
        for label in figures.labels(question) {
            if let Some(cells) = cells(question, figures, &case, &label, &columns) {
                writeln!(text, "| {case} | {label} | {} |", cells.join(" | ")).unwrap_or_default();
            }
        }
    }
    let not_asked = systems::ALL
        .into_iter()
        .filter_map(|system| Some((system, question.is_not_for(system)?)));
    for (system, why) in not_asked {
        write!(text, "\nNot asked of {}: {why}.\n", system.name()).unwrap_or_default();
    }
    text
}

/// None where this row has no such case.
fn cells(question: Question, figures: &Figures<'_>, case: &str, label: &str, columns: &[&str]) -> Option<Vec<String>> {
    let mut cells: Vec<String> = columns
        .iter()
        .map(|column| cell(question, figures, case, label, column))
        .collect();
    if let Some(failures) = figures.failures(question, case, label) {
        let first = &mut cells[0];
        let gap = if first.is_empty() { "" } else { "; " };
        write!(first, "{gap}{failures}").unwrap_or_default();
    }
    cells.iter().any(|cell| !cell.is_empty()).then_some(cells)
}

fn cell(question: Question, figures: &Figures<'_>, case: &str, label: &str, column: &str) -> String {
    if let Some(metric) = column.strip_prefix("added ") {
        let beyond = figures.beyond(question, case, [label, "routing"], metric);
        return beyond.map_or_else(String::new, |figure| figure.words());
    }
    let Some(figure) = figures.get(question, case, label, column) else {
        return String::new();
    };
    let ratio = figures.to_iptables(question, case, label, column);
    match ratio.filter(|_| is_compared(column) && label != iptables_row(question)) {
        Some(ratio) => format!("{} ×{}", figure.words(), short(ratio)),
        None => figure.words(),
    }
}

fn columns(question: Question) -> Vec<&'static str> {
    match question {
        Question::Bulk => vec!["Gbit/s", "CPU s/GB"],
        Question::Datagrams => vec![
            "delivered/s",
            "offered/s",
            "CPU s/M at overload",
            "delivered/s at the fixed load",
            "CPU s/M at the fixed load",
        ],
        Question::Connections => vec!["connections/s", "p50 µs", "p99 µs", "late", "lost"],
        Question::Requests => vec!["p50 µs", "added p50 µs", "p99 µs", "added p99 µs"],
        Question::Change => vec![
            "ms to effect",
            "ms of the command",
            "new connections late",
            "new connections lost",
            "open connections lost",
        ],
        Question::Memory => vec!["RSS before MB", "RSS MB", "flow slab MB", "machine MB", "bytes/flow"],
    }
}

fn is_compared(column: &str) -> bool {
    !(column.contains("lost")
        || column.contains("late")
        || column.contains("MB")
        || column.starts_with("offered")
        || column.ends_with("the command"))
}

fn explanation(question: Question, rate: f64) -> String {
    match question {
        Question::Bulk => "As much as the streams carry, counted where it arrives; up is from client to server. `CPU s/GB`: \
                           CPU seconds of the whole machine for 10⁹ bytes."
            .to_owned(),
        Question::Datagrams => format!(
            "Frames of 64 bytes with the check sequence, in bursts of {} from a packet socket (checksums done, flows in turn), \
             counted and dropped where they reach the server's device. First as many as the generator can make on its CPU; \
             then {rate} a second. `CPU s/M`: CPU seconds of the whole machine, generator included, for a million \
             that arrive.",
            blast::BURST
        ),
        Question::Connections => format!(
            "Connect, send a byte, read the server's byte and the end. {} connections are under way at a time, to services \
             chosen at random over all of them; then one after the other, at most 1,000 a second, for the time from \
             connecting to the first byte. {}",
            connects::AT_ONCE,
            unlucky()
        ),
        Question::Requests => "One request after the other, 64 bytes each way, on one connection. `added`: more than through \
                               plain routing in the same round."
            .to_owned(),
        Question::Change => format!(
            "The only endpoint of one service moves from one server to the other, while 10 connections to it are open and \
             in use and a prober opens new ones, 2,000 a second at most. From the start of the command to the first \
             connection from which on all reach the new server. What a control plane would first compute (chains, files) \
             is ready. iptables-restore gets all chains, as from kube-proxy before 1.27 and in its full synchronization, \
             or the list of services and the changed chains, as since then. {}",
            unlucky()
        ),
        Question::Memory => "UDP flows of one datagram each; through a proxy, TCP connections that stay open, fewer of them. \
                             RSS: of the balancer's processes. Flow slab: the kernel's `nf_conntrack` objects. Machine: by \
                             how much MemAvailable fell, which for proxies holds the sockets of client and server too. \
                             `bytes/flow`: growth of RSS and flow slab."
            .to_owned(),
    }
}

fn unlucky() -> String {
    format!(
        "Late: answered after more than {:.1} s, so that a packet was lost and sent again. Lost: refused, reset, or not answered \
         within {:.0} s.",
        LATE.as_secs_f64(),
        PATIENCE.as_secs_f64()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_is_loud_by_the_share_of_its_pauses_that_others_used() {
        assert_eq!(loud(&[0.01, 0.02, 0.5, 0.03]), 0.25);
        assert_eq!(loud(&[]), 0.0);
    }
}
