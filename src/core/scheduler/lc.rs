//! `lc`: the least flows, weights ignored as long as they are not 0 (ip_vs_lc.c).
use super::load::{Load, least_loaded};
use crate::service::Member;

/// The backend with the fewest flows, an active one counting as 256; of equals the first.
pub(super) fn pick(backends: &[Member]) -> Option<usize> {
    least_loaded(backends, |backend| Load::new(backend.overhead(), 1))
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Ending, Pattern, World, backends};
    use super::super::{Flags, Kind};

    #[test]
    fn equal_backends_take_turns_whatever_their_weights() {
        for ending in [Ending::Open, Ending::Closed] {
            assert_eq!(
                World::kernel(Kind::Lc, "").run(Pattern::Ports, ending),
                "321321321321321321321321"
            );
        }
    }

    #[test]
    fn one_active_flow_outweighs_a_hundred_closed_ones() {
        let mut world = World::with(Kind::Lc, Flags::default(), backends(&[1, 1]));
        world.load(1, 1, 0);
        world.load(2, 0, 100);
        assert_eq!(world.picks(1), "2");
    }

    #[test]
    fn drained_and_overloaded_backends_get_nothing() {
        let mut world = World::with(Kind::Lc, Flags::default(), backends(&[0, 1, 1]));
        world.load(3, 5, 5);
        world.overload(2);
        assert_eq!(world.picks(2), "33");
        world.set_weight(3, 0);
        assert_eq!(world.picks(1), "X");
    }
}
