//! `nq`: never queue, an idle backend before all others (ip_vs_nq.c).
use super::load::takes_new_flows;
use super::sed;
use crate::service::Member;

/// The first backend without an active flow, or else the one of `sed`.
pub(super) fn pick(backends: &[Member]) -> Option<usize> {
    let is_idle = |backend: &Member| backend.active() == 0 && takes_new_flows(backend);
    backends.iter().position(is_idle).or_else(|| sed::pick(backends))
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Ending, Pattern, World, backends};
    use super::super::{Flags, Kind};

    #[test]
    fn everyone_gets_one_flow_before_anyone_gets_two() {
        assert_eq!(
            World::kernel(Kind::Nq, "").run(Pattern::Ports, Ending::Open),
            "321332323321323321323321"
        );
    }

    #[test]
    fn closed_flows_do_not_count() {
        assert_eq!(
            World::kernel(Kind::Nq, "").run(Pattern::Ports, Ending::Closed),
            "333333333333333333333333"
        );
    }

    #[test]
    fn drained_and_overloaded_backends_get_nothing_even_when_idle() {
        let mut world = World::with(Kind::Nq, Flags::default(), backends(&[0, 1, 1]));
        world.load(3, 5, 5);
        world.overload_with_inactive(2);
        assert_eq!(world.picks(2), "33");
        world.set_weight(3, 0);
        assert_eq!(world.picks(1), "X");
    }
}
