//! How far a worker is in forgetting what is over: bit by bit, since a million flows may be over at once.

/// A worker's way through its share of the shards, again and again.
#[derive(Clone, Copy, Debug)]
pub struct Sweep {
    worker: usize,
    workers: usize,
    /// The shard that is next.
    at: usize,
    /// How many shards are to be looked at before all were since the last tick.
    left: usize,
}

impl Sweep {
    /// That of one of `workers`, before the first tick.
    #[must_use]
    pub const fn new(worker: usize, workers: usize) -> Self {
        Self {
            worker,
            workers,
            at: worker,
            left: 0,
        }
    }

    /// A tick is over: every shard is to be looked at from now on. One that is under way goes on where it is.
    pub(super) fn begin(&mut self, shards: usize) {
        self.left = shards.saturating_sub(self.worker).div_ceil(self.workers);
    }

    /// Whether there is more to forget at once.
    #[must_use]
    pub const fn is_under_way(&self) -> bool {
        self.left > 0
    }

    /// The shard to look at; None: all were.
    pub(super) fn shard(&self) -> Option<usize> {
        self.is_under_way().then_some(self.at)
    }

    /// This shard has no more.
    pub(super) const fn next(&mut self, shards: usize) {
        self.left -= 1;
        self.at += self.workers;
        if self.at >= shards {
            self.at = self.worker;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_worker_looks_at_its_own_shards_and_at_all_of_them_from_each_tick_on() {
        let mut sweep = Sweep::new(1, 3);
        assert!(!sweep.is_under_way(), "nothing to do before a tick");
        let step = |sweep: &mut Sweep| {
            let shard = sweep.shard();
            sweep.next(8);
            shard
        };
        sweep.begin(8);
        assert_eq!([step(&mut sweep), step(&mut sweep)], [Some(1), Some(4)]);
        sweep.begin(8);
        let rest: Vec<_> = std::iter::from_fn(|| sweep.is_under_way().then(|| step(&mut sweep))).collect();
        assert_eq!(rest, [Some(7), Some(1), Some(4)]);
    }

    #[test]
    fn a_worker_without_a_shard_of_its_own_has_nothing_to_do() {
        let mut sweep = Sweep::new(5, 8);
        sweep.begin(4);
        assert_eq!(sweep.shard(), None);
    }
}
