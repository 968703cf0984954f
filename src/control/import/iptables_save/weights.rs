//! From the probabilities of a chain of `statistic` rules to weights.
//!
//! Each rule takes its share of what the rules before it have left. kube-proxy gives equal shares: 1/n, 1/(n-1), ... 1.

/// The largest weight: `ipvsadm -w`.
const MOST: f64 = 65_535.0;
/// The kernel keeps 31 bits of a probability (`xt_statistic.h`), kube-proxy writes 10 digits, and iptables-save 11.
const PRECISION: f64 = 4e-10;
/// kube-proxy wrote 5 digits until 1.16.
const COARSE: f64 = 1e5;

/// The weights in the ratio of the shares, as small as can be; the last one takes all that is left.
pub(super) fn weights(shares: &[f64]) -> Vec<u32> {
    let count = shares.len();
    if is_even(shares, PRECISION) || (is_coarse(shares) && is_even(shares, 0.5 / COARSE + PRECISION)) {
        return vec![1; count];
    }
    let ratios = ratios(shares);
    let exact = (1..=MOST as u32).find_map(|last| {
        let scaled = scaled(&ratios, f64::from(last))?;
        fits(&scaled, shares).then_some(scaled)
    });
    exact.unwrap_or_else(|| rounded(&ratios))
}

/// Whether [`weights`] finds all of them equal.
pub(super) fn are_equal(weights: &[(lbd_core::flow::Endpoint, u32)]) -> bool {
    weights.windows(2).all(|pair| pair[0].1 == pair[1].1)
}

fn is_even(shares: &[f64], tolerance: f64) -> bool {
    let left = (1..=shares.len()).rev();
    let mut pairs = shares.iter().zip(left).take(shares.len().saturating_sub(1));
    pairs.all(|(share, left)| (share - 1.0 / left as f64).abs() <= tolerance)
}

fn is_coarse(shares: &[f64]) -> bool {
    shares.iter().all(|share| {
        let digits = share * COARSE;
        (digits - digits.round()).abs() <= PRECISION * COARSE
    })
}

/// Each share in units of the last one's.
fn ratios(shares: &[f64]) -> Vec<f64> {
    let mut left = 1.0;
    let mut ratios = vec![1.0; shares.len()];
    for (share, ratio) in shares.iter().zip(&mut ratios).rev().skip(1) {
        // A share of 1 would leave nothing; it is the last one, or nothing comes after it.
        *ratio = left * share / (1.0 - share).max(PRECISION);
        left += *ratio;
    }
    ratios
}

/// Whole weights, if each comes out between 1 and the most.
fn scaled(ratios: &[f64], last: f64) -> Option<Vec<u32>> {
    let weight = |ratio: &f64| {
        let weight = (ratio * last).round();
        (1.0..=MOST).contains(&weight).then_some(weight as u32)
    };
    ratios.iter().map(weight).collect()
}

/// Whether these weights give these shares.
fn fits(weights: &[u32], shares: &[f64]) -> bool {
    let mut left: f64 = weights.iter().copied().map(f64::from).sum();
    let inner = weights.len().saturating_sub(1);
    weights.iter().zip(shares).take(inner).all(|(&weight, share)| {
        let own = f64::from(weight) / left;
        left -= f64::from(weight);
        (own - share).abs() <= PRECISION
    })
}

/// As near as weights can come; a share of nothing is a weight of nothing.
fn rounded(ratios: &[f64]) -> Vec<u32> {
    let most = ratios.iter().copied().fold(1.0, f64::max);
    let scale = MOST.min(1000.0 * ratios.len() as f64) / most;
    ratios
        .iter()
        .map(|ratio| (ratio * scale).round().min(MOST) as u32)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As iptables-save prints them.
    fn printed(weights: &[u32]) -> Vec<f64> {
        let mut left: f64 = weights.iter().map(|&weight| f64::from(weight)).sum();
        let mut shares = Vec::new();
        for &weight in weights {
            let kept = (f64::from(weight) / left * 2_147_483_648.0).round() / 2_147_483_648.0;
            shares.push(format!("{kept:.11}").parse().unwrap());
            left -= f64::from(weight);
        }
        shares
    }

    #[test]
    fn equal_shares_are_weights_of_one_in_every_precision_that_kube_proxy_has_written() {
        assert_eq!(weights(&[0.33333333349, 0.5, 1.0]), [1, 1, 1]);
        assert_eq!(weights(&[0.33332999982, 0.50000000000, 1.0]), [1, 1, 1]);
        assert_eq!(weights(&printed(&[1; 250])), [1; 250]);
        assert_eq!((weights(&[1.0]), weights(&[])), (vec![1], vec![]));
    }

    #[test]
    fn unequal_shares_are_the_smallest_weights_that_give_them() {
        for expected in [&[2, 1][..], &[1, 3], &[100, 7, 7, 3], &[1000, 999], &[1, 1, 2]] {
            assert_eq!(weights(&printed(expected)), expected);
        }
        assert_eq!(weights(&[0.2, 1.0]), [1, 4]);
    }

    #[test]
    fn shares_that_no_weights_give_are_rounded() {
        assert_eq!(weights(&[0.0, 0.5, 1.0])[0], 0);
        assert_eq!(weights(&[0.123456789, 0.7654321, 1.0]).len(), 3);
    }
}
