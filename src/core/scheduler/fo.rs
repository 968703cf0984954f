//! `fo`: weighted failover, everything to the heaviest (ip_vs_fo.c).
use super::load::heaviest;
use crate::service::Member;

/// The heaviest backend that takes new flows; of equals the first.
pub(super) fn pick(backends: &[Member]) -> Option<usize> {
    heaviest(backends, |_| true)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Ending, Pattern, World, backends};
    use super::super::{Flags, Kind};

    #[test]
    fn the_heaviest_backend_gets_everything() {
        for ending in [Ending::Open, Ending::Closed] {
            assert_eq!(
                World::kernel(Kind::Fo, "").run(Pattern::Ports, ending),
                "333333333333333333333333"
            );
        }
    }

    #[test]
    fn the_next_heaviest_takes_over_when_it_is_drained_overloaded_or_removed() {
        let mut world = World::with(Kind::Fo, Flags::default(), backends(&[1, 4, 3, 4]));
        assert_eq!(world.picks(2), "22");
        world.set_weight(2, 0);
        assert_eq!(world.picks(1), "4");
        world.overload(4);
        assert_eq!(world.picks(1), "3");
        world.remove(3);
        assert_eq!(world.picks(1), "1");
        world.set_weight(1, 0);
        assert_eq!(world.picks(1), "X");
    }
}
