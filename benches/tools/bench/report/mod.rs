//! What came out: every measurement as JSON, medians as Markdown, pictures.
#[path = "../../../support/bars.rs"]
mod bars;
mod figures;
mod goals;
mod markdown;
mod numbers;
mod pictures;
#[path = "../../../support/plot.rs"]
mod plot;

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::Path;
use std::time::Duration;

use serde::{Serialize, Serializer};

use self::figures::Figures;
use self::numbers::short;
use crate::Outcome;
use crate::effort::Effort;
use crate::machine::Machine;
use crate::questions::{Finding, Question};
use crate::systems::System;

/// One measurement.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Record {
    pub(crate) round: u32,
    pub(crate) question: Question,
    #[serde(serialize_with = "name")]
    pub(crate) system: System,
    /// Which way of doing it, where the system has several.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) way: Option<&'static str>,
    pub(crate) case: String,
    #[serde(flatten)]
    pub(crate) outcome: Measured,
}

/// What a measurement came to.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Measured {
    Metrics(BTreeMap<&'static str, f64>),
    Failed(String),
}

fn name<S: Serializer>(system: &System, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(system.name())
}

impl Record {
    pub(crate) fn new(round: u32, question: Question, system: System, finding: Finding) -> Self {
        let outcome = match finding.outcome {
            Ok(metrics) => Measured::Metrics(metrics.into_iter().collect()),
            Err(error) => Measured::Failed(error.to_string()),
        };
        Self {
            round,
            question,
            system,
            way: finding.way,
            case: finding.case,
            outcome,
        }
    }

    /// The row it belongs to.
    pub(crate) fn label(&self) -> String {
        match self.way {
            None => self.system.name().to_owned(),
            Some(way) => format!("{}: {way}", self.system.name()),
        }
    }
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:<40} {:<16}", self.question.number(), self.label(), self.case)?;
        match &self.outcome {
            Measured::Failed(why) => write!(f, " failed: {why}"),
            Measured::Metrics(metrics) => metrics
                .iter()
                .try_for_each(|(name, value)| write!(f, " {} {name};", short(*value))),
        }
    }
}

/// A run.
#[derive(Debug)]
pub(crate) struct Report {
    machine: Machine,
    effort: Effort,
    skipped: Vec<(System, String)>,
    /// Seconds of each question, and of what is around them.
    spent: BTreeMap<Question, f64>,
    setting_up: f64,
    /// The share of the machine that others used between turns.
    pauses: Vec<f64>,
    records: Vec<Record>,
}

impl Report {
    pub(crate) fn new(machine: Machine, effort: Effort) -> Self {
        Self {
            machine,
            effort,
            skipped: Vec::new(),
            spent: BTreeMap::new(),
            setting_up: 0.0,
            pauses: Vec::new(),
            records: Vec::new(),
        }
    }

    pub(crate) fn skip(&mut self, system: System, why: String) {
        self.skipped.push((system, why));
    }

    pub(crate) fn add(&mut self, record: Record) {
        self.records.push(record);
    }

    /// Notes how long a question took of one system.
    pub(crate) fn spend(&mut self, question: Question, time: Duration) {
        *self.spent.entry(question).or_default() += time.as_secs_f64();
    }

    pub(crate) fn spend_around(&mut self, time: Duration) {
        self.setting_up += time.as_secs_f64();
    }

    /// The share of the machine that others used between two turns.
    pub(crate) fn note_pause(&mut self, busy: f64) {
        self.pauses.push(busy);
    }

    pub(crate) fn markdown(&self) -> String {
        let figures = Figures::of(&self.records);
        markdown::page(self, &figures, &pictures::all(&figures))
    }

    /// Writes all there is so far.
    pub(crate) fn write(&self, directory: &Path) -> Outcome<()> {
        let figures = Figures::of(&self.records);
        fs::create_dir_all(directory)?;
        let pictures = pictures::all(&figures);
        fs::write(directory.join("results.md"), markdown::page(self, &figures, &pictures))?;
        fs::write(directory.join("results.json"), self.json(&figures)?)?;
        for (name, picture) in pictures {
            fs::write(directory.join(name), picture)?;
        }
        Ok(())
    }

    fn json(&self, figures: &Figures<'_>) -> Outcome<String> {
        let skipped: Vec<_> = self.skipped.iter().map(|(system, why)| (system.name(), why)).collect();
        let value = serde_json::json!({
            "machine": self.machine,
            "rounds": self.effort.rounds,
            "window_seconds": self.effort.window.as_secs_f64(),
            "warm_up_seconds": self.effort.warm_up.as_secs_f64(),
            "fixed_rate": self.effort.rate,
            "pauses_busy": self.pauses,
            "goals": goals::all(figures),
            "skipped": skipped,
            "summary": figures.summary(),
            "measurements": self.records,
        });
        Ok(serde_json::to_string_pretty(&value)? + "\n")
    }
}
