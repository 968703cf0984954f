//! `wrr`: weighted round robin (ip_vs_wrr.c).
//!
//! The list is walked in passes. A pass has a level, and picks every backend whose weight reaches it; levels go from the
//! highest down to 1 in steps of the weights' common divisor, so that within all passes a backend of weight w is picked
//! w / divisor times.
use super::load::{common_divisor, takes_new_flows};
use super::shared::Shared;
use crate::service::Member;

/// Weighted round robin: remembers who was last, and the level of the pass.
#[derive(Clone, Debug)]
pub struct Wrr {
    round: Shared<Round>,
    levels: Levels,
}

/// How far it is.
#[derive(Clone, Copy, Debug)]
struct Round {
    /// None: the head of the list, before the first backend (`cl`).
    last: Option<usize>,
    /// What weight this pass asks for (`cw`); 1 plus a multiple of the step, or 0 without weights.
    level: u32,
}

/// What the weights make of it.
#[derive(Clone, Copy, Debug)]
struct Levels {
    /// The level of the first pass (`mw`); 0 without weights.
    highest: u32,
    /// How much lower the next pass is (`di`), at least 1.
    step: u32,
}

impl Wrr {
    /// `ip_vs_wrr_init_svc`: begins with the highest level.
    pub(super) fn new(backends: &[Member]) -> Self {
        let levels = levels(backends);
        let round = Round {
            last: None,
            level: levels.highest,
        };
        Self {
            round: Shared::new(round),
            levels,
        }
    }

    /// The next backend that reaches the level of the pass, or of the next pass where someone does.
    pub(super) fn pick(&self, backends: &[Member]) -> Option<usize> {
        self.round
            .lock(|round, _| round.begin_anew(self.levels))
            .pick(self.levels, backends)
    }

    /// `ip_vs_wrr_dest_changed`.
    pub(super) fn backends_changed(&mut self, after: &[Member]) {
        // The state is of the list before from here on, if it was not yet.
        drop(self.round.lock(|round, _| round.begin_anew(self.levels)));
        self.round = self.round.successor();
        self.levels = levels(after);
    }

    pub(super) fn copy(&self) -> Self {
        Self {
            round: self.round.copy(),
            levels: self.levels,
        }
    }

    pub(super) fn as_ptr(&self) -> *const () {
        self.round.as_ptr()
    }
}

impl Round {
    /// Begins at the head, on a level that exists.
    ///
    /// Without weights before, that is the lowest one: the kernel hears of one server at a time, and alone the first one
    /// with a weight has no other level than 1. So several that come at once (`ipvsadm -R`) begin as one by one.
    const fn begin_anew(&mut self, Levels { highest, step }: Levels) {
        self.last = None;
        if self.level == 0 {
            self.level = if highest == 0 { 0 } else { 1 };
        } else if self.level > highest {
            self.level = highest;
        } else if step > 1 {
            self.level = self.level / step * step + 1;
        }
    }

    fn pick(&mut self, levels: Levels, backends: &[Member]) -> Option<usize> {
        if levels.highest == 0 {
            return None;
        }
        let start = self.last.map_or(0, |last| last + 1);
        if let Some(index) = self.find(backends, start) {
            return Some(index);
        }
        let Some(reach) = reach(backends) else {
            self.refuse(levels);
            return None;
        };
        self.level = self.next_level(levels, reach);
        self.find(backends, 0)
    }

    fn find(&mut self, backends: &[Member], start: usize) -> Option<usize> {
        let index = (start..backends.len()).find(|&index| {
            let backend = &backends[index];
            backend.weight() >= self.level && !backend.is_overloaded()
        })?;
        self.last = Some(index);
        Some(index)
    }

    /// The next level that is not above `reach` (at least 1). The kernel comes to it too, by walking every pass between.
    const fn next_level(&self, Levels { highest, step }: Levels, reach: u32) -> u32 {
        let next = if self.level > step { self.level - step } else { highest };
        if next <= reach {
            return next;
        }
        next - (next - reach).div_ceil(step) * step
    }

    /// Leaves place and level as the kernel's walk in vain does: on the lowest pass it wraps around and stops where it
    /// began, on all others it ends at the head.
    const fn refuse(&mut self, Levels { highest, step }: Levels) {
        if self.last.is_some() && self.level <= step {
            self.level = 1;
        } else {
            self.last = None;
            self.level = highest;
        }
    }
}

/// The highest level and the step between levels. The lowest level is always 1, so that it catches everyone
/// (ip_vs_wrr.c, comment at the top: mw is reduced by di - 1).
fn levels(backends: &[Member]) -> Levels {
    let weights = || backends.iter().map(|backend| backend.weight());
    let step = common_divisor(weights()).max(1);
    let highest = weights().max().unwrap_or(0).saturating_sub(step - 1);
    Levels { highest, step }
}

/// The greatest weight among those that take new flows.
fn reach(backends: &[Member]) -> Option<u32> {
    backends
        .iter()
        .filter(|backend| takes_new_flows(backend))
        .map(|backend| backend.weight())
        .max()
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Ending, Pattern, World, backends};
    use super::super::{Flags, Kind};

    fn world(weights: &[u32]) -> World {
        World::with(Kind::Wrr, Flags::default(), backends(weights))
    }

    #[test]
    fn servers_added_one_by_one_begin_with_a_flat_round() {
        for ending in [Ending::Open, Ending::Closed] {
            assert_eq!(
                World::kernel(Kind::Wrr, "").run(Pattern::Ports, ending),
                "321332321332321332321332"
            );
        }
    }

    #[test]
    fn a_list_that_was_complete_begins_with_the_heaviest() {
        assert_eq!(world(&[3, 2, 1]).picks(12), "112123112123");
    }

    #[test]
    fn weights_with_a_common_divisor_act_as_if_divided() {
        assert_eq!(world(&[30, 20, 10]).picks(12), "112123112123");
    }

    #[test]
    fn a_drained_backend_gets_nothing_and_the_others_keep_their_shares() {
        let mut world = world(&[3, 2, 1]);
        world.set_weight(1, 0);
        assert_eq!(world.picks(6), "223223");
    }

    #[test]
    fn an_overloaded_backend_is_passed_over_until_it_recovers() {
        let mut world = world(&[2, 1]);
        world.overload(1);
        assert_eq!(world.picks(3), "222");
        world.recover(1);
        assert_eq!(world.picks(3), "112");
    }

    #[test]
    fn without_anyone_to_take_it_a_flow_is_refused() {
        assert_eq!(world(&[]).picks(1), "X");
        assert_eq!(world(&[0, 0]).picks(2), "XX");
        let mut world = world(&[2, 1]);
        world.overload(1);
        world.overload(2);
        assert_eq!(world.picks(2), "XX");
        world.recover(2);
        assert_eq!(world.picks(2), "22");
    }

    #[test]
    fn after_a_time_without_anyone_the_round_goes_on_where_it_was() {
        let mut world = world(&[2, 1]);
        assert_eq!(world.picks(2), "11");
        world.overload(1);
        world.overload(2);
        assert_eq!(world.picks(1), "X");
        world.recover(1);
        world.recover(2);
        assert_eq!(world.picks(4), "2112");
    }

    #[test]
    fn a_huge_weight_that_is_overloaded_costs_no_walk_through_every_level() {
        let mut world = world(&[u32::MAX, 1]);
        world.overload(1);
        assert_eq!(world.picks(4), "2222");
    }
}
