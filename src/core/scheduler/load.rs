//! Who is free, and who is the least loaded.
use crate::service::Member;

/// A weight of 0 drains a backend, and its upper threshold closes it for a while (`IP_VS_DEST_F_OVERLOAD`).
#[inline]
pub(super) fn takes_new_flows(backend: &Member) -> bool {
    backend.weight() != 0 && !backend.is_overloaded()
}

/// One side of a comparison of `load / weight` without division.
#[derive(Clone, Copy)]
pub(super) struct Load {
    load: u64,
    weight: u32,
}

impl Load {
    pub(super) const fn new(load: u64, weight: u32) -> Self {
        Self { load, weight }
    }

    /// Active and inactive flows, as `wlc` counts them.
    pub(super) fn of_all_flows(backend: &Member) -> Self {
        Self::new(backend.overhead(), backend.weight())
    }

    /// Active flows and the one to come, as `sed` counts them (`ip_vs_sed_dest_overhead`).
    pub(super) fn with_one_more(backend: &Member) -> Self {
        Self::new(u64::from(backend.active()) + 1, backend.weight())
    }

    /// Whether `load / weight` is strictly smaller: a/b < c/d where ad < cb. Never overflows: a load has 41 bits, a
    /// weight 32.
    pub(super) fn is_below(self, other: Self) -> bool {
        u128::from(self.load) * u128::from(other.weight) < u128::from(other.load) * u128::from(self.weight)
    }
}

/// The index of the least loaded backend that takes new flows; of equals the first.
pub(super) fn least_loaded(backends: &[Member], load: impl Fn(&Member) -> Load) -> Option<usize> {
    least_loaded_of(backends.iter().enumerate(), load)
}

/// As [`least_loaded`], of some backends with their indices.
pub(super) fn least_loaded_of<'a>(
    candidates: impl Iterator<Item = (usize, &'a Member)>,
    load: impl Fn(&Member) -> Load,
) -> Option<usize> {
    let mut least: Option<(usize, Load)> = None;
    for (index, backend) in candidates {
        if !takes_new_flows(backend) {
            continue;
        }
        let load = load(backend);
        if least.is_none_or(|(_, so_far)| load.is_below(so_far)) {
            least = Some((index, load));
        }
    }
    least.map(|(index, _)| index)
}

/// The heaviest backend among those that `qualify`; of equals the first.
pub(super) fn heaviest(backends: &[Member], qualifies: impl Fn(&Member) -> bool) -> Option<usize> {
    let mut heaviest: Option<(usize, u32)> = None;
    for (index, backend) in backends.iter().enumerate() {
        let weight = backend.weight();
        let is_heavier = heaviest.is_none_or(|(_, so_far)| weight > so_far);
        if is_heavier && takes_new_flows(backend) && qualifies(backend) {
            heaviest = Some((index, weight));
        }
    }
    heaviest.map(|(index, _)| index)
}

/// The greatest common divisor of all weights that are not 0; 0 where there is none.
pub(super) fn common_divisor(weights: impl Iterator<Item = u32>) -> u32 {
    weights.fold(0, |mut divisor, mut weight| {
        while weight != 0 {
            (divisor, weight) = (weight, divisor % weight);
        }
        divisor
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loads_are_compared_without_overflow_at_the_greatest_counts_and_weights() {
        let full = (u64::from(u32::MAX) << 8) + u64::from(u32::MAX);
        let heavy = Load::new(full, u32::MAX - 1);
        let heavier = Load::new(full, u32::MAX);
        assert!(heavier.is_below(heavy));
        assert!(!heavy.is_below(heavier));
        assert!(!heavy.is_below(heavy));
    }

    #[test]
    fn the_common_divisor_ignores_drained_backends() {
        assert_eq!(common_divisor([6, 0, 9].into_iter()), 3);
        assert_eq!(common_divisor([0, 0].into_iter()), 0);
        assert_eq!(common_divisor([u32::MAX].into_iter()), u32::MAX);
    }
}
