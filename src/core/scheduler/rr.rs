//! `rr`: round robin, weights ignored as long as they are not 0 (ip_vs_rr.c).
use std::collections::HashMap;
use std::sync::Arc;

use ahash::RandomState;

use super::load::takes_new_flows;
use super::place::Place;
use super::shared::{From, Shared};
use crate::service::Member;

/// Round robin: remembers who was last.
#[derive(Clone, Debug)]
pub struct Rr {
    /// None: the head of the list, before the first backend.
    last: Shared<Option<Place>>,
    /// By the places of the list before: where the round goes on after it. None: each is where it was.
    heirs: Option<Arc<[Option<usize>]>>,
}

impl Rr {
    pub(super) fn new() -> Self {
        Self {
            last: Shared::new(None),
            heirs: None,
        }
    }

    /// The next after the last one, once around the list.
    pub(super) fn pick(&self, backends: &[Member]) -> Option<usize> {
        let mut last = self.last.lock(|last, from| self.take_over(last, from, backends));
        let start = last.and_then(|last| last.find(backends)).map_or(0, |last| last + 1);
        let index = (start..backends.len())
            .chain(0..start)
            .find(|&index| takes_new_flows(&backends[index]))?;
        *last = Some(Place::of(backends, index));
        Some(index)
    }

    /// Keeps its place; where the last one is gone, steps back to the one before it (`ip_vs_rr_del_dest`).
    pub(super) fn backends_changed(&mut self, before: &[Member], after: &[Member]) {
        // The state is of the list before from here on, if it was not yet.
        drop(self.last.lock(|last, from| self.take_over(last, from, before)));
        self.last = self.last.successor();
        self.heirs = heirs(before, after);
    }

    fn take_over(&self, last: &mut Option<Place>, from: From, backends: &[Member]) {
        let index = match (from, &self.heirs) {
            (From::Predecessor, Some(heirs)) => last.and_then(|last| heirs.get(last.index()).copied().flatten()),
            (From::Predecessor, None) | (From::Other, _) => last.and_then(|last| last.find(backends)),
        };
        *last = index.map(|index| Place::of(backends, index));
    }

    pub(super) fn copy(&self) -> Self {
        Self {
            last: self.last.copy(),
            heirs: self.heirs.clone(),
        }
    }

    pub(super) fn as_ptr(&self) -> *const () {
        self.last.as_ptr()
    }
}

/// Of each place in the list before, the place of that backend in the list after; of one that is gone, that of the last one ahead
/// of it that is still there.
fn heirs(before: &[Member], after: &[Member]) -> Option<Arc<[Option<usize>]>> {
    let stays = |(old, new): (&Member, &Member)| old.id == new.id;
    if before.len() <= after.len() && before.iter().zip(after).all(stays) {
        return None;
    }
    let places: HashMap<u64, usize, RandomState> = (0..).zip(after).map(|(place, member)| (member.id, place)).collect();
    let heirs = before.iter().scan(None, |heir, member| {
        *heir = places.get(&member.id).copied().or(*heir);
        Some(*heir)
    });
    Some(heirs.collect())
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Ending, Pattern, World, backends};
    use super::super::{Flags, Kind};

    fn world(weights: &[u32]) -> World {
        World::with(Kind::Rr, Flags::default(), backends(weights))
    }

    #[test]
    fn backends_take_turns_in_list_order() {
        for ending in [Ending::Open, Ending::Closed] {
            assert_eq!(
                World::kernel(Kind::Rr, "").run(Pattern::Ports, ending),
                "321321321321321321321321"
            );
        }
    }

    #[test]
    fn drained_and_overloaded_backends_are_passed_over() {
        let mut world = world(&[1, 0, 1, 1]);
        world.overload(4);
        assert_eq!(world.picks(5), "13131");
        world.set_weight(1, 0);
        assert_eq!(world.picks(2), "33");
        world.set_weight(3, 0);
        assert_eq!(world.picks(2), "XX");
    }

    #[test]
    fn the_turn_passes_to_the_next_one_when_the_last_one_is_removed() {
        let mut world = world(&[1, 1, 1, 1]);
        assert_eq!(world.picks(3), "123");
        world.remove(3);
        assert_eq!(world.picks(4), "4124");
    }

    #[test]
    fn the_turn_passes_to_the_next_one_when_several_are_removed_at_once() {
        let mut world = world(&[1, 1, 1, 1, 1]);
        assert_eq!(world.picks(3), "123");
        world.replace(|backends| backends.retain(|backend| ![2, 3].contains(&backend.id)));
        assert_eq!(world.picks(4), "4514");
    }

    #[test]
    fn the_round_begins_anew_when_all_up_to_the_last_one_are_removed() {
        let mut world = world(&[1, 1, 1]);
        assert_eq!(world.picks(2), "12");
        world.replace(|backends| backends.retain(|backend| backend.id == 3));
        assert_eq!(world.picks(2), "33");
    }

    #[test]
    fn a_new_backend_at_the_head_waits_for_its_turn() {
        let mut world = world(&[1, 1, 1]);
        assert_eq!(world.picks(1), "1");
        world.add_at_head(4, 1);
        assert_eq!(world.picks(5), "23412");
    }

    #[test]
    fn a_reordered_list_is_continued_after_the_last_one() {
        let mut world = world(&[1, 1, 1]);
        assert_eq!(world.picks(1), "1");
        world.replace(|backends| backends.reverse());
        assert_eq!(world.picks(3), "321");
    }
}
