//! `ovf`: the heaviest until it overflows, then the next (ip_vs_ovf.c).
use super::load::heaviest;
use crate::service::Member;

/// The heaviest backend with no more active flows than its weight; of equals the first.
pub(super) fn pick(backends: &[Member]) -> Option<usize> {
    heaviest(backends, |backend| backend.active() <= backend.weight())
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Ending, Pattern, World, backends};
    use super::super::{Flags, Kind};

    #[test]
    fn each_takes_one_flow_more_than_its_weight_and_then_flows_are_refused() {
        assert_eq!(
            World::kernel(Kind::Ovf, "").run(Pattern::Ports, Ending::Open),
            "333322211XXXXXXXXXXXXXXX"
        );
    }

    #[test]
    fn closed_flows_do_not_count() {
        assert_eq!(
            World::kernel(Kind::Ovf, "").run(Pattern::Ports, Ending::Closed),
            "333333333333333333333333"
        );
    }

    #[test]
    fn drained_and_overloaded_backends_get_nothing() {
        let mut world = World::with(Kind::Ovf, Flags::default(), backends(&[0, 9, 1]));
        world.overload(2);
        assert_eq!(world.picks(1), "3");
        world.set_weight(3, 0);
        assert_eq!(world.picks(1), "X");
    }
}
