//! How much is measured: sizes, times and rounds.
use std::time::Duration;

/// What is measured, and how long.
#[derive(Clone, Debug)]
pub(crate) struct Effort {
    pub(crate) rounds: u32,
    /// Runs before each measurement, not counted.
    pub(crate) warm_up: Duration,
    /// One measurement.
    pub(crate) window: Duration,
    /// Frames a second, where CPU time is compared.
    pub(crate) rate: f64,
    /// Flows of the UDP question.
    pub(crate) flows: Vec<u32>,
    /// Services of the questions about new connections and changes.
    pub(crate) services: Vec<u32>,
    pub(crate) changing_services: Vec<u32>,
    /// Flows of the question about memory.
    pub(crate) memory_flows: Vec<u32>,
    /// Connections through a proxy there.
    pub(crate) proxied: u32,
}

impl Effort {
    pub(crate) fn full() -> Self {
        Self {
            rounds: 3,
            warm_up: Duration::from_millis(300),
            window: Duration::from_millis(1200),
            rate: 100_000.0,
            flows: vec![1, 1_000, 100_000],
            services: vec![1, 100, 1_000, 10_000],
            changing_services: vec![100, 1_000, 10_000],
            memory_flows: vec![100_000, 1_000_000],
            proxied: 20_000,
        }
    }

    pub(crate) fn quick() -> Self {
        Self {
            rounds: 1,
            warm_up: Duration::from_millis(150),
            window: Duration::from_millis(350),
            services: vec![1, 100, 1_000],
            changing_services: vec![100, 1_000],
            memory_flows: vec![100_000],
            proxied: 5_000,
            ..Self::full()
        }
    }

    /// Shows that the harness works, and measures nothing of worth.
    pub(crate) fn smoke() -> Self {
        Self {
            warm_up: Duration::from_millis(50),
            window: Duration::from_millis(150),
            flows: vec![1, 1_000],
            services: vec![1, 100],
            changing_services: vec![100],
            memory_flows: vec![10_000],
            proxied: 1_000,
            ..Self::quick()
        }
    }

    pub(crate) fn time(&self) -> [Duration; 2] {
        [self.warm_up, self.window]
    }
}
