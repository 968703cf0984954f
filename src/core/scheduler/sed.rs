//! `sed`: the shortest expected delay, counting the flow to come (ip_vs_sed.c).
use super::load::{Load, least_loaded};
use crate::service::Member;

/// The backend with the fewest active flows for its weight once it has this one; of equals the first.
pub(super) fn pick(backends: &[Member]) -> Option<usize> {
    least_loaded(backends, Load::with_one_more)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Ending, Pattern, World, backends};
    use super::super::{Flags, Kind};

    #[test]
    fn the_heaviest_is_filled_up_before_the_lightest_is_begun() {
        assert_eq!(
            World::kernel(Kind::Sed, "").run(Pattern::Ports, Ending::Open),
            "323321323321323321323321"
        );
    }

    #[test]
    fn closed_flows_do_not_count() {
        assert_eq!(
            World::kernel(Kind::Sed, "").run(Pattern::Ports, Ending::Closed),
            "333333333333333333333333"
        );
    }

    #[test]
    fn drained_and_overloaded_backends_get_nothing() {
        let mut world = World::with(Kind::Sed, Flags::default(), backends(&[0, 1, 1]));
        world.load(3, 5, 5);
        world.overload(2);
        assert_eq!(world.picks(2), "33");
        world.set_weight(3, 0);
        assert_eq!(world.picks(1), "X");
    }
}
