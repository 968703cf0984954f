//! Medians over rounds, found by question, case, row and metric.
use std::fmt;

use serde::Serialize;

use super::numbers::{Figure, ratio};
use super::{Measured, Record};
use crate::questions::Question;
use crate::systems::System;

/// Everything that was measured.
#[derive(Debug)]
pub(crate) struct Figures<'a> {
    records: &'a [Record],
}

/// In how many of its rounds something failed, and why at the last time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Failures<'a> {
    pub(crate) failed: usize,
    pub(crate) rounds: usize,
    pub(crate) last: &'a str,
}

impl Failures<'_> {
    /// Whether there is no figure.
    pub(crate) fn is_all(&self) -> bool {
        self.failed == self.rounds
    }
}

impl fmt::Display for Failures<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A cell of a Markdown table is one line without bars.
        let why = self.last.replace('|', "/").replace('\n', " ");
        if self.is_all() {
            write!(f, "failed: {why}")
        } else {
            write!(f, "{} of {} rounds failed: {why}", self.failed, self.rounds)
        }
    }
}

/// One row of the summary in JSON.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    question: Question,
    case: String,
    system: String,
    metric: &'static str,
    #[serde(flatten)]
    figure: Figure,
    /// How many times that of iptables DNAT.
    to_iptables: Option<f64>,
}

impl<'a> Figures<'a> {
    pub(crate) fn of(records: &'a [Record]) -> Self {
        Self { records }
    }

    /// The median of a metric over the rounds; None where none succeeded.
    pub(crate) fn get(&self, question: Question, case: &str, label: &str, metric: &str) -> Option<Figure> {
        let values: Vec<f64> = self
            .values(question, case, label, metric)
            .map(|(_round, value)| value)
            .collect();
        Figure::of(&values)
    }

    /// How much more than another row's it is, round by round.
    pub(crate) fn beyond(
        &self,
        question: Question,
        case: &str,
        [label, other]: [&str; 2],
        metric: &str,
    ) -> Option<Figure> {
        let base: Vec<_> = self.values(question, case, other, metric).collect();
        let beyond = |(round, value)| {
            let (_, base) = base.iter().find(|(of, _)| *of == round)?;
            Some(value - base)
        };
        let values: Vec<f64> = self.values(question, case, label, metric).filter_map(beyond).collect();
        Figure::of(&values)
    }

    fn values(&self, question: Question, case: &str, label: &str, metric: &str) -> impl Iterator<Item = (u32, f64)> {
        let records = self.of_row(question, case, label);
        records.filter_map(move |record| match &record.outcome {
            Measured::Metrics(metrics) => Some((record.round, *metrics.get(metric)?)),
            Measured::Failed(_) => None,
        })
    }

    /// The rounds in which it failed; None where it never did.
    pub(crate) fn failures(&self, question: Question, case: &str, label: &str) -> Option<Failures<'a>> {
        let (mut failed, mut rounds, mut last) = (0, 0, "");
        for record in self.of_row(question, case, label) {
            rounds += 1;
            if let Measured::Failed(why) = &record.outcome {
                failed += 1;
                last = why;
            }
        }
        (failed > 0).then_some(Failures { failed, rounds, last })
    }

    fn of_row(&self, question: Question, case: &str, label: &str) -> impl Iterator<Item = &'a Record> {
        let of_case = self.records.iter();
        of_case.filter(move |record| record.question == question && record.case == case && record.label() == label)
    }

    /// The cases of a question, as they came.
    pub(crate) fn cases(&self, question: Question) -> Vec<String> {
        let mut cases: Vec<String> = Vec::new();
        for record in self.records.iter().filter(|record| record.question == question) {
            if !cases.contains(&record.case) {
                cases.push(record.case.clone());
            }
        }
        cases
    }

    /// The rows of a question, in the order of the systems.
    pub(crate) fn labels(&self, question: Question) -> Vec<String> {
        let mut rows: Vec<(System, String)> = Vec::new();
        for record in self.records.iter().filter(|record| record.question == question) {
            let row = (record.system, record.label());
            if !rows.contains(&row) {
                rows.push(row);
            }
        }
        rows.sort_by_key(|(system, _)| *system);
        rows.into_iter().map(|(_, label)| label).collect()
    }

    /// Compares with iptables DNAT, at the same case.
    pub(crate) fn to_iptables(&self, question: Question, case: &str, label: &str, metric: &str) -> Option<f64> {
        let base = iptables_row(question);
        let (own, other) = (
            self.get(question, case, label, metric)?,
            self.get(question, case, base, metric)?,
        );
        ratio(own.median, other.median)
    }

    /// Every median.
    pub(crate) fn summary(&self) -> Vec<Row> {
        let mut rows: Vec<Row> = Vec::new();
        for record in self.records {
            let Measured::Metrics(metrics) = &record.outcome else {
                continue;
            };
            let (question, case, label) = (record.question, &record.case, record.label());
            for &metric in metrics.keys() {
                let is_there = |row: &Row| {
                    row.question == question && row.case == *case && row.system == label && row.metric == metric
                };
                if let Some(figure) = self
                    .get(question, case, &label, metric)
                    .filter(|_| !rows.iter().any(is_there))
                {
                    rows.push(Row {
                        question,
                        case: case.clone(),
                        to_iptables: self.to_iptables(question, case, &label, metric),
                        system: label.clone(),
                        metric,
                        figure,
                    });
                }
            }
        }
        rows
    }
}

/// The row that others are compared with.
pub(crate) fn iptables_row(question: Question) -> &'static str {
    match question {
        Question::Change => "iptables: all chains",
        Question::Bulk | Question::Datagrams | Question::Connections | Question::Requests | Question::Memory => {
            "iptables"
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A record of question 1.
    pub(crate) fn record(
        question: Question,
        round: u32,
        system: &str,
        case: &str,
        metrics: &[(&'static str, f64)],
    ) -> Record {
        Record {
            round,
            question,
            system: System::named(system).unwrap(),
            way: None,
            case: case.to_owned(),
            outcome: Measured::Metrics(metrics.iter().copied().collect()),
        }
    }

    fn failed(system: &str) -> Record {
        Record {
            outcome: Measured::Failed("no answer".to_owned()),
            ..record(Question::Bulk, 0, system, "1 stream up", &[])
        }
    }

    #[test]
    fn a_ratio_is_of_medians_of_the_same_case() {
        let of = |round, system, speed| record(Question::Bulk, round, system, "1 stream up", &[("Gbit/s", speed)]);
        let records = [
            of(0, "iptables", 10.0),
            of(1, "iptables", 20.0),
            of(2, "iptables", 90.0),
            of(0, "lbd-tun-ipvs", 30.0),
            record(Question::Bulk, 0, "iptables", "8 streams up", &[("Gbit/s", 1.0)]),
        ];
        let figures = Figures::of(&records);
        let ratio = figures.to_iptables(Question::Bulk, "1 stream up", "lbd-tun-ipvs", "Gbit/s");
        assert_eq!(ratio, Some(1.5));
    }

    #[test]
    fn added_latency_is_the_difference_within_a_round() {
        let of = |round, system, time| record(Question::Requests, round, system, "64 bytes", &[("p50 µs", time)]);
        let records = [
            of(0, "routing", 10.0),
            of(1, "routing", 100.0),
            of(0, "haproxy", 30.0),
            of(1, "haproxy", 120.0),
        ];
        let beyond = Figures::of(&records).beyond(Question::Requests, "64 bytes", ["haproxy", "routing"], "p50 µs");
        assert_eq!(beyond.map(|figure| (figure.min, figure.max)), Some((20.0, 20.0)));
    }

    fn told(records: &[Record]) -> Option<String> {
        let failures = Figures::of(records).failures(Question::Bulk, "1 stream up", "nginx");
        failures.map(|failures| failures.to_string())
    }

    #[test]
    fn a_system_that_failed_in_every_round_is_told_with_the_reason() {
        let records = [failed("nginx"), failed("nginx")];
        assert_eq!(told(&records).as_deref(), Some("failed: no answer"));
        assert_eq!(
            Figures::of(&records).get(Question::Bulk, "1 stream up", "nginx", "Gbit/s"),
            None
        );
    }

    #[test]
    fn a_system_that_failed_once_has_figures_and_the_failure_is_told_beside_them() {
        let succeeded = |round| record(Question::Bulk, round, "nginx", "1 stream up", &[("Gbit/s", 2.0)]);
        let records = [failed("nginx"), succeeded(1), succeeded(2)];
        assert_eq!(told(&records).as_deref(), Some("1 of 3 rounds failed: no answer"));
        assert!(
            Figures::of(&records)
                .get(Question::Bulk, "1 stream up", "nginx", "Gbit/s")
                .is_some()
        );
        assert_eq!(told(&records[1..]), None);
    }

    #[test]
    fn rows_are_in_the_order_of_the_systems_whoever_came_first() {
        let of = |system| record(Question::Bulk, 0, system, "1 stream up", &[]);
        let records = [of("lbd-tun-ipvs"), of("routing"), of("iptables")];
        assert_eq!(
            Figures::of(&records).labels(Question::Bulk),
            ["routing", "iptables", "lbd-tun-ipvs"]
        );
    }
}
