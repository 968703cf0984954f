//! The real engine as what a capture is replayed over.
use std::sync::Arc;

use super::{Description, Engine as Replayed, Released};
use lbd_core::engine::{Engine, Lane, Processor, Seeds};
use lbd_core::flow::Tuple;
use lbd_core::packet::Headers;
use lbd_core::packet::frame::Frame;
use lbd_core::policy::Policy;
use lbd_core::time::Instant;
use lbd_core::verdict::Verdict;

/// One engine with one lane, for one thread.
#[derive(Debug)]
pub struct Simulation {
    engine: Engine,
    lane: Lane,
    /// With the time when that was.
    released: Vec<(lbd_core::engine::Released, Instant)>,
    /// The flow of the last packet, where that was a fragment.
    flow_of_fragment: Option<Tuple>,
}

impl Simulation {
    /// An engine for `policy`. Node addresses are those of the policy: a capture knows no kernel to ask.
    #[must_use]
    pub fn new(policy: Policy, seeds: Seeds) -> Self {
        let (engine, mut lanes) = Engine::new(Arc::new(policy), 1, seeds, Instant::ZERO);
        let lane = lanes.remove(0);
        Self {
            engine,
            lane,
            released: Vec::new(),
            flow_of_fragment: None,
        }
    }

    /// The engine, to look at and to reload.
    #[must_use]
    pub const fn engine(&self) -> &Engine {
        &self.engine
    }
}

impl Replayed for Simulation {
    fn advance(&mut self, now: Instant) {
        loop {
            let released = self.engine.enter(&mut self.lane, now).take_released();
            let released = released.into_iter().map(|released| (released, now));
            self.released.extend(released);
            if !self.lane.is_behind() {
                return;
            }
        }
    }

    fn process(&mut self, frame: &mut Frame<'_>, now: Instant) -> Verdict {
        let mut processor: Processor<'_> = self.engine.enter(&mut self.lane, now);
        let verdict = processor.process(frame, now);
        self.flow_of_fragment = processor.flow_of_fragment();
        let released = processor.take_released();
        self.released
            .extend(released.into_iter().map(|released| (released, now)));
        verdict
    }

    fn released(&mut self) -> Vec<Released> {
        let released = std::mem::take(&mut self.released);
        let described = released.into_iter().map(|(released, now)| Released {
            ticket: released.ticket,
            verdict: released.verdict,
            description: released.flow.and_then(|tuple| self.tell(&tuple, now)),
            packet: released.packet,
        });
        described.collect()
    }

    fn describe(&mut self, before: &[u8], now: Instant) -> Option<Description> {
        let own = Headers::parse(before).ok().and_then(|headers| headers.flow(before));
        self.tell(&own.or(self.flow_of_fragment)?, now)
    }
}

impl Simulation {
    fn tell(&self, tuple: &Tuple, now: Instant) -> Option<Description> {
        let (flow, direction) = self.engine.conntrack().get(tuple, now)?;
        Some(Description {
            direction,
            service: flow.backend.service.name.clone(),
            backend: flow.server(),
            source: flow.source,
        })
    }
}
