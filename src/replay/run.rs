//! The real engine as what a capture is replayed over.
use std::sync::Arc;

use super::{Description, Engine as Replayed};
use crate::engine::{Engine, Lane, Seeds};
use crate::packet::Headers;
use crate::packet::frame::Frame;
use crate::policy::Policy;
use crate::time::Instant;
use crate::verdict::Verdict;

/// One engine with one lane, for one thread.
#[derive(Debug)]
pub struct Simulation {
    engine: Engine,
    lane: Lane,
}

impl Simulation {
    /// An engine for `policy`. Node addresses are those of the policy: a capture knows no kernel to ask.
    #[must_use]
    pub fn new(policy: Policy, seeds: Seeds) -> Self {
        let (engine, mut lanes) = Engine::new(Arc::new(policy), 1, seeds, Instant::ZERO);
        let lane = lanes.remove(0);
        Self { engine, lane }
    }

    /// The engine, to look at and to reload.
    #[must_use]
    pub const fn engine(&self) -> &Engine {
        &self.engine
    }
}

impl Replayed for Simulation {
    fn advance(&mut self, now: Instant) {
        drop(self.engine.enter(&mut self.lane, now));
    }

    fn process(&mut self, frame: &mut Frame<'_>, now: Instant) -> Verdict {
        self.engine.enter(&mut self.lane, now).process(frame, now)
    }

    fn describe(&mut self, before: &[u8], now: Instant) -> Option<Description> {
        let tuple = Headers::parse(before).ok()?.flow(before)?;
        let (flow, direction) = self.engine.conntrack().get(&tuple, now)?;
        Some(Description {
            direction,
            service: flow.backend.service.name.clone(),
            backend: flow.server(),
            source: flow.source,
        })
    }
}
