//! `wlc`: the least flows for the weight (ip_vs_wlc.c).
use super::load::{Load, least_loaded};
use crate::service::Member;

/// The backend with the fewest flows for its weight, an active one counting as 256; of equals the first.
pub(super) fn pick(backends: &[Member]) -> Option<usize> {
    least_loaded(backends, Load::of_all_flows)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Ending, Pattern, World, backends};
    use super::super::{Flags, Kind};

    #[test]
    fn flows_are_shared_by_weight_after_everyone_has_one() {
        for ending in [Ending::Open, Ending::Closed] {
            assert_eq!(
                World::kernel(Kind::Wlc, "").run(Pattern::Ports, ending),
                "321323321323321323321323"
            );
        }
    }

    #[test]
    fn drained_and_overloaded_backends_get_nothing() {
        let mut world = World::with(Kind::Wlc, Flags::default(), backends(&[0, 1, 1]));
        world.load(3, 5, 5);
        world.overload(2);
        assert_eq!(world.picks(2), "33");
        world.set_weight(3, 0);
        assert_eq!(world.picks(1), "X");
    }
}
