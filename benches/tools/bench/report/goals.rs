//! The goals that lbd was built to, judged by the figures of this run.
use serde::Serialize;

use super::figures::{Figures, iptables_row};
use super::numbers::ratio;
use crate::questions::Question;

const TUN: [&str; 2] = ["lbd-tun-iptables", "lbd-tun-ipvs"];
const XDP: [&str; 2] = ["lbd-afxdp-iptables", "lbd-afxdp-ipvs"];

/// A goal for one system, at the case where it does worst.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Goal {
    pub(crate) goal: &'static str,
    pub(crate) system: String,
    /// The ratio wanted at least.
    pub(crate) wanted: f64,
    /// The ratio found, and where; None: it was not measured.
    pub(crate) found: Option<(f64, String)>,
    /// Measurements of the system in these cases that failed.
    pub(crate) failed: usize,
}

impl Goal {
    fn new(goal: &'static str, system: &str, wanted: f64) -> Self {
        Self {
            goal,
            system: system.to_owned(),
            wanted,
            found: None,
            failed: 0,
        }
    }

    pub(crate) fn verdict(&self) -> String {
        let verdict = match &self.found {
            None => "not measured",
            Some((found, _)) if *found >= self.wanted => "met",
            Some(_) => "missed",
        };
        match self.failed {
            0 => verdict.to_owned(),
            1 => format!("{verdict}; 1 measurement failed"),
            failed => format!("{verdict}; {failed} measurements failed"),
        }
    }
}

/// Every goal for every system that it is for.
pub(crate) fn all(figures: &Figures<'_>) -> Vec<Goal> {
    let mut goals = Vec::new();
    for lbd in TUN {
        goals.push(bulk(figures, lbd));
        goals.push(bulk_per_cpu(
            figures,
            lbd,
            "haproxy",
            "TCP bulk a CPU second, of HAProxy's",
        ));
        goals.push(bulk_per_cpu(figures, lbd, "nginx", "TCP bulk a CPU second, of nginx's"));
    }
    for lbd in XDP {
        goals.push(datagrams(figures, lbd));
        goals.push(datagrams_per_cpu(figures, lbd));
    }
    for lbd in TUN.into_iter().chain(XDP) {
        goals.push(connections(figures, lbd));
        goals.extend(["lbctl", "reload"].map(|way| change(figures, &format!("{lbd}: {way}"))));
    }
    goals.sort_by_key(|goal| goals_order(goal.goal));
    goals
}

const ORDER: [&str; 7] = [
    "TCP bulk, of iptables DNAT's",
    "TCP bulk a CPU second, of HAProxy's",
    "TCP bulk a CPU second, of nginx's",
    "64-byte UDP at overload, of the bare AF_XDP forwarder's",
    "64-byte UDP a CPU second at the fixed load, of iptables DNAT's",
    "New connections a second at 1,000 services, of iptables DNAT's",
    "Endpoint change at 10,000 services: how many times as fast as iptables-restore of all chains",
];

fn goals_order(goal: &str) -> usize {
    ORDER.iter().position(|each| *each == goal).unwrap_or(ORDER.len())
}

fn bulk(figures: &Figures<'_>, lbd: &str) -> Goal {
    let question = Question::Bulk;
    let found = |case: &str| figures.to_iptables(question, case, lbd, "Gbit/s");
    worst(
        figures,
        question,
        &figures.cases(question),
        Goal::new(ORDER[0], lbd, 1.0),
        found,
    )
}

/// Less CPU time for as much is more for as much CPU time: the other's over its own.
fn bulk_per_cpu(figures: &Figures<'_>, lbd: &str, other: &str, goal: &'static str) -> Goal {
    let question = Question::Bulk;
    let found = |case: &str| inverse(figures, question, case, [lbd, other], "CPU s/GB");
    worst(
        figures,
        question,
        &figures.cases(question),
        Goal::new(goal, lbd, 2.0),
        found,
    )
}

fn datagrams(figures: &Figures<'_>, lbd: &str) -> Goal {
    let question = Question::Datagrams;
    let of = |case: &str, label| figures.get(question, case, label, "delivered/s");
    let found = |case: &str| ratio(of(case, lbd)?.median, of(case, "bare-afxdp")?.median);
    worst(
        figures,
        question,
        &figures.cases(question),
        Goal::new(ORDER[3], lbd, 0.9),
        found,
    )
}

fn datagrams_per_cpu(figures: &Figures<'_>, lbd: &str) -> Goal {
    let question = Question::Datagrams;
    let metric = "CPU s/M at the fixed load";
    let found = |case: &str| inverse(figures, question, case, [lbd, "iptables"], metric);
    worst(
        figures,
        question,
        &figures.cases(question),
        Goal::new(ORDER[4], lbd, 1.0),
        found,
    )
}

fn connections(figures: &Figures<'_>, lbd: &str) -> Goal {
    let question = Question::Connections;
    let found = |case: &str| figures.to_iptables(question, case, lbd, "connections/s");
    let cases = ["1000 services".to_owned()];
    worst(figures, question, &cases, Goal::new(ORDER[5], lbd, 1.0), found)
}

fn change(figures: &Figures<'_>, label: &str) -> Goal {
    let question = Question::Change;
    let other = iptables_row(question);
    let found = |case: &str| inverse(figures, question, case, [label, other], "ms to effect");
    let cases = ["10000 services".to_owned()];
    worst(figures, question, &cases, Goal::new(ORDER[6], label, 100.0), found)
}

fn inverse(
    figures: &Figures<'_>,
    question: Question,
    case: &str,
    [own, other]: [&str; 2],
    metric: &str,
) -> Option<f64> {
    let of = |label| figures.get(question, case, label, metric);
    ratio(of(other)?.median, of(own)?.median)
}

/// The goal at the case where least is reached. A case that was not measured on both sides does not count.
fn worst(
    figures: &Figures<'_>,
    question: Question,
    cases: &[String],
    goal: Goal,
    found: impl Fn(&str) -> Option<f64>,
) -> Goal {
    let failures = |case: &String| Some(figures.failures(question, case, &goal.system)?.failed);
    let all = cases.iter().filter_map(|case| Some((found(case)?, case.clone())));
    Goal {
        found: all.min_by(|one, other| one.0.total_cmp(&other.0)),
        failed: cases.iter().filter_map(failures).sum(),
        ..goal
    }
}

#[cfg(test)]
mod tests {
    use super::super::figures::tests::record;
    use super::super::{Measured, Record};
    use super::*;

    fn goal_of(records: &[Record], number: usize, system: &str) -> Goal {
        let goals = all(&Figures::of(records));
        let found = goals
            .into_iter()
            .find(|goal| goal.goal == ORDER[number] && goal.system == system);
        found.unwrap()
    }

    fn bulk(system: &str, case: &str, speed: f64, cpu: f64) -> Record {
        record(Question::Bulk, 0, system, case, &[("Gbit/s", speed), ("CPU s/GB", cpu)])
    }

    #[test]
    fn a_goal_is_judged_by_the_case_where_lbd_does_worst() {
        let records = [
            bulk("iptables", "1 stream up", 10.0, 1.0),
            bulk("iptables", "8 streams up", 10.0, 1.0),
            bulk("lbd-tun-ipvs", "1 stream up", 20.0, 1.0),
            bulk("lbd-tun-ipvs", "8 streams up", 7.0, 1.0),
        ];
        let goal = goal_of(&records, 0, "lbd-tun-ipvs");
        assert_eq!(goal.found, Some((0.7, "8 streams up".to_owned())));
        assert_eq!(goal.verdict(), "missed");
    }

    #[test]
    fn half_the_cpu_time_of_a_proxy_is_twice_as_much_a_cpu_second() {
        let records = [
            bulk("haproxy", "1 stream up", 10.0, 1.0),
            bulk("lbd-tun-ipvs", "1 stream up", 5.0, 0.5),
        ];
        let goal = goal_of(&records, 1, "lbd-tun-ipvs");
        assert_eq!((goal.found.clone().unwrap().0, goal.verdict().as_str()), (2.0, "met"));
    }

    #[test]
    fn a_change_is_as_many_times_faster_as_iptables_restore_takes_longer() {
        let change = |system, way, time| Record {
            way: Some(way),
            ..record(Question::Change, 0, system, "10000 services", &[("ms to effect", time)])
        };
        let records = [
            change("iptables", "all chains", 12_000.0),
            change("lbd-tun-ipvs", "lbctl", 60.0),
            change("lbd-tun-ipvs", "reload", 600.0),
        ];
        let goal = goal_of(&records, 6, "lbd-tun-ipvs: lbctl");
        assert_eq!((goal.found.clone().unwrap().0, goal.verdict().as_str()), (200.0, "met"));
    }

    #[test]
    fn a_goal_without_figures_is_neither_met_nor_missed() {
        let failed = Record {
            outcome: Measured::Failed("no answer".to_owned()),
            ..bulk("lbd-tun-ipvs", "1 stream up", 1.0, 1.0)
        };
        let records = [bulk("iptables", "1 stream up", 10.0, 1.0), failed];
        assert_eq!(
            goal_of(&records, 0, "lbd-tun-ipvs").verdict(),
            "not measured; 1 measurement failed"
        );
    }

    #[test]
    fn a_goal_that_was_met_where_a_measurement_failed_says_so() {
        let failed = Record {
            outcome: Measured::Failed("no answer".to_owned()),
            ..bulk("lbd-tun-ipvs", "1 stream up", 1.0, 1.0)
        };
        let records = [
            bulk("iptables", "1 stream up", 10.0, 1.0),
            bulk("lbd-tun-ipvs", "1 stream up", 20.0, 1.0),
            failed,
        ];
        assert_eq!(
            goal_of(&records, 0, "lbd-tun-ipvs").verdict(),
            "met; 1 measurement failed"
        );
    }
}
