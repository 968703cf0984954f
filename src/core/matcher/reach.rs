//! Addresses that a list of rules leads somewhere: a packet without ports asks once, whatever the number of the rules.
use std::net::IpAddr;

use ipnet::IpNet;

use super::rules::Condition;

/// The first and the last address of a range, as numbers.
type Range = (u128, u128);

/// A set of addresses: ranges of each IP version, in order and with gaps between them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Reach {
    v4: Box<[Range]>,
    v6: Box<[Range]>,
}

const LAST_V4: u128 = u32::MAX as u128;
const LAST_V6: u128 = u128::MAX;

impl Reach {
    /// The addresses that one of these conditions allows; none is a condition that allows all.
    pub(super) fn of<'a>(conditions: impl Iterator<Item = Option<&'a Condition<IpNet>>>) -> Self {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for condition in conditions {
            match condition {
                None => {
                    v4.push((0, LAST_V4));
                    v6.push((0, LAST_V6));
                }
                Some(Condition { negated, value }) => {
                    let (own, last, others, last_of_others) = match value {
                        IpNet::V4(_) => (&mut v4, LAST_V4, &mut v6, LAST_V6),
                        IpNet::V6(_) => (&mut v6, LAST_V6, &mut v4, LAST_V4),
                    };
                    let network = (bits(value.network()), bits(value.broadcast()));
                    match negated {
                        false => own.push(network),
                        true => {
                            own.extend(outside(network, last));
                            others.push((0, last_of_others));
                        }
                    }
                }
            }
        }
        Self {
            v4: merged(v4),
            v6: merged(v6),
        }
    }

    /// Whether an address is one of them.
    pub(super) fn contains(&self, address: IpAddr) -> bool {
        let ranges = match address {
            IpAddr::V4(_) => &self.v4,
            IpAddr::V6(_) => &self.v6,
        };
        let address = bits(address);
        let behind = ranges.partition_point(|&(first, _)| first <= address);
        behind > 0 && address <= ranges[behind - 1].1
    }
}

fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => address.to_bits().into(),
        IpAddr::V6(address) => address.to_bits(),
    }
}

fn outside((first, last): Range, end: u128) -> impl Iterator<Item = Range> {
    let before = first.checked_sub(1).map(|before| (0, before));
    let behind = (last < end).then(|| (last + 1, end));
    before.into_iter().chain(behind)
}

fn merged(mut ranges: Vec<Range>) -> Box<[Range]> {
    ranges.sort_unstable();
    let mut merged: Vec<Range> = Vec::with_capacity(ranges.len());
    for (first, last) in ranges {
        match merged.last_mut() {
            Some((_, end)) if first <= end.saturating_add(1) => *end = last.max(*end),
            Some(_) | None => merged.push((first, last)),
        }
    }
    merged.into()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn address() -> impl Strategy<Value = IpAddr> {
        let v4 = prop_oneof![0..16_u32, any::<u32>(), Just(u32::MAX)];
        let v6 = prop_oneof![0..16_u128, any::<u128>(), Just(u128::MAX)];
        prop_oneof![
            v4.prop_map(|bits| IpAddr::V4(bits.into())),
            v6.prop_map(|bits| IpAddr::V6(bits.into()))
        ]
    }

    fn condition() -> impl Strategy<Value = Option<Condition<IpNet>>> {
        let network = (address(), any::<prop::sample::Index>()).prop_map(|(address, length)| {
            let most = if address.is_ipv4() { 33 } else { 129 };
            IpNet::new(address, length.index(most) as u8).unwrap()
        });
        let some = (prop::bool::weighted(0.2), network).prop_map(|(negated, value)| Some(Condition { negated, value }));
        prop_oneof![1 => Just(None), 20 => some]
    }

    proptest! {
        #[test]
        fn it_holds_the_addresses_that_the_conditions_allow_one_by_one(
            conditions in prop::collection::vec(condition(), 0..12),
            addresses in prop::collection::vec(address(), 1..20),
        ) {
            let reach = Reach::of(conditions.iter().map(Option::as_ref));
            let ends = conditions.iter().flatten().flat_map(|one| [one.value.network(), one.value.broadcast()]);
            for address in addresses.into_iter().chain(ends) {
                let allows = |one: &Condition<IpNet>| one.negated != one.value.contains(&address);
                let expected = conditions.iter().any(|one| one.as_ref().is_none_or(allows));
                prop_assert_eq!(reach.contains(address), expected, "{}", address);
            }
        }
    }
}
