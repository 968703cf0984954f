//! The questions: what is measured of each system.
mod bulk;
mod change;
mod connections;
mod datagrams;
mod memory;
mod requests;

use serde::Serialize;

use crate::Outcome;
use crate::effort::Effort;
use crate::load::serve::Taken;
use crate::systems::{Running, System};
use crate::world::World;

pub(crate) use self::datagrams::Sink;

/// A question of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Question {
    Bulk,
    Datagrams,
    Connections,
    Requests,
    Change,
    Memory,
}

pub(crate) const ALL: [Question; 6] = [
    Question::Bulk,
    Question::Datagrams,
    Question::Connections,
    Question::Requests,
    Question::Change,
    Question::Memory,
];

impl Question {
    pub(crate) fn number(self) -> usize {
        self as usize + 1
    }

    pub(crate) fn numbered(number: &str) -> Result<Self, String> {
        let found = ALL.into_iter().find(|question| question.number().to_string() == number);
        found.ok_or_else(|| format!("there is no question {number}; there are 1 to 6"))
    }

    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Bulk => "TCP bulk throughput",
            Self::Datagrams => "UDP frames of 64 bytes",
            Self::Connections => "New TCP connections",
            Self::Requests => "A request of 64 bytes on an open connection",
            Self::Change => "From an endpoint change to its effect",
            Self::Memory => "Memory for flows",
        }
    }

    /// Why it is not asked of a system.
    pub(crate) fn is_not_for(self, system: System) -> Option<&'static str> {
        match self {
            Self::Bulk | Self::Connections | Self::Requests => system.without_tcp(),
            Self::Datagrams => system.without_udp(),
            Self::Change if system.ways().is_empty() => Some("it has no endpoints to change"),
            Self::Memory if matches!(system, System::Generator | System::Routing | System::Bare) => {
                Some("it keeps no flows")
            }
            Self::Change | Self::Memory => None,
        }
    }
}

/// One figure.
pub(crate) type Metric = (&'static str, f64);

/// What one measurement found.
#[derive(Debug)]
pub(crate) struct Finding {
    /// What of the question: `8 streams up`.
    pub(crate) case: String,
    /// Which way of doing it, where a system has several.
    pub(crate) way: Option<&'static str>,
    pub(crate) outcome: Outcome<Vec<Metric>>,
}

impl Finding {
    fn new(case: impl Into<String>, outcome: Outcome<Vec<Metric>>) -> Self {
        Self {
            case: case.into(),
            way: None,
            outcome,
        }
    }

    /// The system did not get as far as the question.
    pub(crate) fn failed(world: World, why: String) -> Self {
        let case = match world {
            World::Single => "all".to_owned(),
            World::Many { services, .. } => services_words(services),
        };
        Self::new(case, Err(why.into()))
    }
}

/// `1 service`, `100 services`: the case of a question about a world of so many.
fn services_words(services: u32) -> String {
    let plural = if services == 1 { "service" } else { "services" };
    format!("{services} {plural}")
}

/// What measurements need besides the system.
pub(crate) struct Bench {
    pub(crate) effort: Effort,
    /// What the servers count.
    pub(crate) taken: Vec<Taken>,
    pub(crate) sink: Sink,
}

/// Asks the question of a running system whose world is made for it.
pub(crate) fn ask(question: Question, bench: &Bench, running: &mut Running) -> Vec<Finding> {
    match question {
        Question::Bulk => bulk::ask(bench, running),
        Question::Datagrams => datagrams::ask(bench, running),
        Question::Connections => connections::ask(bench, running),
        Question::Requests => requests::ask(bench, running),
        Question::Change => change::ask(bench, running),
        Question::Memory => memory::ask(bench, running),
    }
}

/// The value below which this share of the sorted values is, by nearest rank.
pub(crate) fn percentile(sorted: &[f64], share: f64) -> f64 {
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or(f64::NAN)
}

/// Microseconds, ascending.
fn microseconds(times: impl Iterator<Item = std::time::Duration>) -> Vec<f64> {
    let mut all: Vec<f64> = times.map(|time| time.as_secs_f64() * 1e6).collect();
    all.sort_by(f64::total_cmp);
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_a_hundred_is_the_fiftieth_and_p99_the_ninety_ninth() {
        let values: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!(
            [0.5, 0.99, 1.0].map(|share| percentile(&values, share)),
            [50.0, 99.0, 100.0]
        );
    }

    #[test]
    fn a_single_value_is_every_percentile() {
        assert_eq!([0.01, 0.5, 0.99].map(|share| percentile(&[7.0], share)), [7.0; 3]);
    }
}
