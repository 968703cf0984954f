//! `twos`: the better of two random choices (ip_vs_twos.c).
use super::Rng;
use super::load::{Load, takes_new_flows};
use crate::service::Member;

/// Draws two backends by weight (both may be the same), and takes the one with fewer flows for its weight.
pub(super) fn pick(backends: &[Member], rng: &mut Rng) -> Option<usize> {
    let total: u64 = free(backends).map(|(_, weight)| weight).sum();
    if total == 0 {
        return None;
    }
    // Both ends count, as the kernel draws them: 0 falls to the first backend like 1 does.
    let first = at(backends, rng.u64(..=total))?;
    let second = at(backends, rng.u64(..=total))?;
    let load = |index: usize| Load::of_all_flows(&backends[index]);
    let best = if load(second).is_below(load(first)) {
        second
    } else {
        first
    };
    Some(best)
}

fn free(backends: &[Member]) -> impl Iterator<Item = (usize, u64)> {
    backends
        .iter()
        .enumerate()
        .filter(|(_, backend)| takes_new_flows(backend))
        .map(|(index, backend)| (index, u64::from(backend.weight())))
}

/// The first backend with which the weights add up to `mark`; the last one where weights shrink meanwhile.
fn at(backends: &[Member], mark: u64) -> Option<usize> {
    let mut sum = 0;
    let mut last = None;
    for (index, weight) in free(backends) {
        sum += weight;
        last = Some(index);
        if sum >= mark {
            break;
        }
    }
    last
}

#[cfg(test)]
mod tests {
    use super::super::testing::{World, backends, bind};
    use super::super::{Flags, Kind};
    use super::*;

    #[test]
    fn a_loaded_backend_wins_only_when_it_is_drawn_twice() {
        let backends = backends(&[1, 1]);
        bind(&backends[0], 10, 0);
        let mut rng = Rng::with_seed(7);
        let loaded = (0..9_000).filter(|_| pick(&backends, &mut rng) == Some(0)).count();
        // Marks 0 and 1 of 0, 1, 2 are the first backend's: 4 of 9 pairs.
        assert!((3_850..4_150).contains(&loaded), "{loaded} of 9000");
    }

    #[test]
    fn draws_follow_the_weights() {
        let backends = backends(&[1, 9]);
        let mut rng = Rng::with_seed(7);
        let light = (0..10_000).filter(|_| pick(&backends, &mut rng) == Some(0)).count();
        // Nobody has flows, so the first draw stands: marks 0 and 1 of 0..=10.
        assert!((1_700..1_940).contains(&light), "{light} of 10000");
    }

    #[test]
    fn drained_and_overloaded_backends_get_nothing() {
        let mut world = World::with(Kind::Twos, Flags::default(), backends(&[0, 9, 1]));
        world.overload(2);
        assert_eq!(world.picks(5), "33333");
        world.set_weight(3, 0);
        assert_eq!(world.picks(1), "X");
    }

    #[test]
    fn the_greatest_weights_do_not_overflow() {
        let backends = backends(&[u32::MAX; 5]);
        let mut rng = Rng::with_seed(7);
        let mut seen = [false; 5];
        (0..100).for_each(|_| seen[pick(&backends, &mut rng).unwrap()] = true);
        assert_eq!(seen, [true; 5]);
    }
}
