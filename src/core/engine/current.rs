//! The ruleset in effect. Workers look at it once a batch, and wait for nobody; who puts a new one into effect waits for no batch.
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::ruleset::Ruleset;

/// See the module.
#[derive(Debug)]
pub(super) struct Current {
    /// The generation of `ruleset`, so that workers need no lock while it stays.
    generation: AtomicU64,
    ruleset: Mutex<Arc<Ruleset>>,
    /// Those before, until nobody holds them: to give back the memory of thousands of services takes a while, and whoever holds
    /// one last must not be a worker.
    retired: Mutex<Vec<Arc<Ruleset>>>,
}

impl Current {
    pub(super) fn new(first: Arc<Ruleset>) -> Self {
        Self {
            generation: AtomicU64::new(first.generation.number()),
            ruleset: Mutex::new(first),
            retired: Mutex::default(),
        }
    }

    pub(super) fn get(&self) -> Arc<Ruleset> {
        Arc::clone(&self.ruleset.lock())
    }

    /// Has a worker follow, which is between two batches. It keeps the ruleset that it holds for one batch more where another
    /// one is put into effect at this very moment.
    #[inline]
    pub(super) fn follow(&self, held: &mut Arc<Ruleset>) {
        if self.generation.load(Ordering::Acquire) != held.generation.number()
            && let Some(ruleset) = self.ruleset.try_lock()
        {
            // Nothing is freed: the one held until now is among the retired ones, or was never put into effect here.
            *held = Arc::clone(&ruleset);
        }
    }

    /// Puts a ruleset into effect.
    pub(super) fn publish(&self, ruleset: Ruleset) {
        let (generation, ruleset) = (ruleset.generation.number(), Arc::new(ruleset));
        let mut current = self.ruleset.lock();
        let former = std::mem::replace(&mut *current, ruleset);
        self.generation.store(generation, Ordering::Release);
        drop(current);
        self.retired.lock().push(former);
    }

    /// How many rulesets were in effect before and are not free yet.
    pub(super) fn retired(&self) -> usize {
        self.retired.lock().len()
    }

    /// Frees what nobody holds any more; returns how many rulesets are held still that are not in effect.
    pub(super) fn reclaim(&self) -> usize {
        let mut retired = self.retired.lock();
        // Nobody can get one of these again.
        let free: Vec<_> = retired
            .extract_if(.., |ruleset| Arc::strong_count(ruleset) == 1)
            .collect();
        let held = retired.len();
        drop(retired);
        drop(free);
        held
    }
}
