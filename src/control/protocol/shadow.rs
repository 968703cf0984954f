//! What the other mode's matcher would have said otherwise (`shadow = true`).
use std::borrow::Cow;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use lbd_core::flow::{Endpoint, Protocol};
use lbd_core::policy::Mode;
use lbd_core::shadow::{Answer, Disagreement, Outcome, Party, Shadow};
use lbd_core::time::Instant;
use lbd_state::config::text;

/// Comparisons since the shadow was set, or the mode last changed. `looked_at` = agreed + by chance + disagreed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShadowView {
    /// The mode that is not live.
    #[serde(with = "text::mode")]
    pub mode: Mode,
    /// Packets without a flow, which both matchers were asked about.
    pub looked_at: u64,
    /// Both said the same.
    pub agreed: u64,
    /// Whether they differ is up to a rule with a probability.
    pub by_chance: u64,
    /// They said something else.
    pub disagreed: u64,
    /// Those that were seen last, the latest first.
    pub disagreements: Vec<DisagreementView>,
}

/// What both matchers said about packets of one protocol to one destination.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DisagreementView {
    /// `tcp`, or a number.
    pub protocol: Cow<'static, str>,
    /// Of the last such packet; with a port where the protocol has some.
    pub source: String,
    /// Of all such packets.
    pub destination: String,
    /// What became of them.
    pub live: AnswerView,
    /// What would have become of them.
    pub shadow: AnswerView,
    /// How many there were.
    pub packets: u64,
    /// Since the last one.
    pub seconds_ago: u64,
}

/// What a matcher says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AnswerView {
    /// `service`, `pass`, `reject` or `drop`.
    pub verdict: Cow<'static, str>,
    /// The service's name.
    pub service: Option<String>,
    /// The rule of `[[rules]]` that says it, by its number in `lbctl rules`.
    pub rule: Option<usize>,
}

impl ShadowView {
    /// The comparisons so far.
    #[must_use]
    pub fn new(shadow: &Shadow, now: Instant) -> Self {
        let counts = shadow.record().counts();
        let disagreements = shadow.record().disagreements();
        Self {
            mode: shadow.matcher().mode(),
            looked_at: counts.agreed + counts.by_chance + counts.disagreed,
            agreed: counts.agreed,
            by_chance: counts.by_chance,
            disagreed: counts.disagreed,
            disagreements: disagreements
                .iter()
                .map(|each| DisagreementView::new(each, now))
                .collect(),
        }
    }
}

impl DisagreementView {
    /// A disagreement.
    #[must_use]
    pub fn new(disagreement: &Disagreement, now: Instant) -> Self {
        let number = disagreement.protocol();
        let name = Protocol::from_number(number);
        Self {
            protocol: Cow::Owned(name.map_or_else(|| number.to_string(), |name| name.to_string())),
            source: party(disagreement.source),
            destination: party(disagreement.destination()),
            live: AnswerView::new(disagreement.live()),
            shadow: AnswerView::new(disagreement.shadow()),
            packets: disagreement.count,
            seconds_ago: (now - disagreement.last).as_secs(),
        }
    }
}

impl AnswerView {
    fn new(answer: &Answer) -> Self {
        let (verdict, service) = match &answer.outcome {
            Outcome::Service(_, name) => ("service", Some(name.clone())),
            Outcome::Pass => ("pass", None),
            Outcome::Reject => ("reject", None),
            Outcome::Drop => ("drop", None),
        };
        Self {
            verdict: Cow::Borrowed(verdict),
            service,
            rule: answer.rule,
        }
    }
}

fn party((address, port): Party) -> String {
    let endpoint = |port| Endpoint::new(address, port).to_string();
    port.map_or_else(|| IpAddr::to_string(&address), endpoint)
}
