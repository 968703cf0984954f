//! `random`: what kube-proxy's chain of `statistic` rules does, equal shares whatever the weights.
use super::Rng;
use super::load::takes_new_flows;
use crate::service::Member;

/// One of the backends that take new flows, each with the same probability.
pub(super) fn pick(backends: &[Member], rng: &mut Rng) -> Option<usize> {
    if backends.is_empty() {
        return None;
    }
    // Mostly all are free, and one draw will do; drawing again among the free ones keeps the shares equal.
    let first = rng.usize(..backends.len());
    if takes_new_flows(&backends[first]) {
        return Some(first);
    }
    pick_by_counting(backends, rng)
}

fn pick_by_counting(backends: &[Member], rng: &mut Rng) -> Option<usize> {
    let free = || (0..backends.len()).filter(|&index| takes_new_flows(&backends[index]));
    let count = free().count();
    if count == 0 {
        return None;
    }
    free().nth(rng.usize(..count))
}

#[cfg(test)]
mod tests {
    use super::super::testing::{backends, overload};
    use super::*;

    fn shares(backends: &[Member]) -> Vec<u32> {
        let mut rng = Rng::with_seed(7);
        let mut shares = vec![0; backends.len()];
        for _ in 0..30_000 {
            shares[pick(backends, &mut rng).unwrap()] += 1;
        }
        shares
    }

    #[test]
    fn every_backend_gets_the_same_share_whatever_its_weight() {
        for share in shares(&backends(&[1, 200, 3])) {
            assert!((9_700..10_300).contains(&share), "{share} of 30000");
        }
    }

    #[test]
    fn the_share_of_drained_and_overloaded_backends_goes_to_the_others_equally() {
        let backends = backends(&[1, 0, 1, 1]);
        overload(&backends[2]);
        let shares = shares(&backends);
        assert_eq!((shares[1], shares[2]), (0, 0));
        assert!((14_600..15_400).contains(&shares[0]), "{shares:?}");
    }

    #[test]
    fn a_service_whose_backends_are_all_drained_gets_no_flow() {
        assert_eq!(pick(&backends(&[0, 0]), &mut Rng::with_seed(7)), None);
        assert_eq!(pick(&[], &mut Rng::with_seed(7)), None);
    }
}
