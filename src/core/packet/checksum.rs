//! The Internet checksum (RFC 1071) and its incremental update (RFC 1624).
use crate::flow::Address;

/// The one's complement sum of `bytes` as big-endian 16-bit words, added to `sum`, not folded.
///
/// An odd last byte is padded with a zero behind it (RFC 1071 section 4.1).
#[must_use]
#[inline]
pub fn add(sum: u64, bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<4>();
    // 32-bit words sum to the same 16-bit one's complement sum (RFC 1071 section 2, "parallel summation"), and 2^32 of
    // them fit into 64 bits.
    let sum = words
        .iter()
        .fold(sum, |sum, &word| sum + u64::from(u32::from_be_bytes(word)));
    let mut tail = [0; 4];
    tail[..rest.len()].copy_from_slice(rest);
    sum + u64::from(u32::from_be_bytes(tail))
}

/// The sum of the pseudo-header; it is the same in both directions (RFC 9293 section 3.1, RFC 8200 section 8.1).
#[must_use]
#[inline]
pub fn pseudo_header(source: Address, destination: Address, protocol: u8, length: usize) -> u64 {
    u64::from(protocol) + length as u64 + address(source) + address(destination)
}

/// The sum of an address.
#[inline]
const fn address(address: Address) -> u64 {
    match address.as_v4() {
        Some(bits) => bits as u64,
        None => {
            let [high, low] = address.halves();
            let mask = u32::MAX as u64;
            (high >> 32) + (high & mask) + (low >> 32) + (low & mask)
        }
    }
}

/// Folds a sum to 16 bits with end-around carry.
#[must_use]
#[inline]
pub const fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// The checksum field for data that sums to `sum`.
#[must_use]
#[inline]
pub const fn finish(sum: u64) -> u16 {
    !fold(sum)
}

/// The difference between old and new bytes, for an incremental update.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Difference(u64);

impl Difference {
    /// No difference.
    pub const NONE: Self = Self(0);

    /// Also counts the replacement of `old` by `new`; both lie at an even offset and are equally long, of even length.
    #[must_use]
    #[inline]
    pub fn replaced(self, old: &[u8], new: &[u8]) -> Self {
        debug_assert_eq!(old.len(), new.len());
        // -x is ~x in one's complement: RFC 1624 equation 3, HC' = ~(~HC + ~m + m').
        Self(self.0 + u64::from(!fold(add(0, old))) + u64::from(fold(add(0, new))))
    }

    /// Also counts the replacement of a 32-bit word at an even offset; the sums of such words fold to those of their halves.
    #[must_use]
    #[inline]
    pub const fn replaced_word(self, old: u32, new: u32) -> Self {
        Self(self.0 + !old as u64 + new as u64)
    }

    /// Both replacements.
    #[must_use]
    #[inline]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 + other.0)
    }

    /// A checksum field after the replacement.
    #[must_use]
    #[inline]
    pub const fn update(self, checksum: u16) -> u16 {
        !fold(self.0 + (!checksum) as u64)
    }

    /// A field that holds a plain sum, as the one of a partial checksum does, after the replacement.
    #[must_use]
    #[inline]
    pub const fn update_sum(self, sum: u16) -> u16 {
        fold(self.0 + sum as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_example_of_rfc_1071_sums_to_ddf2() {
        let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(fold(add(0, &bytes)), 0xddf2);
    }

    #[test]
    fn the_example_of_rfc_1624_updates_to_zero() {
        // Section 4: HC = 0xDD2F, m = 0x5555, m' = 0x3285 gives 0x0000 with equation 3.
        let change = Difference::NONE.replaced(&[0x55, 0x55], &[0x32, 0x85]);
        assert_eq!(change.update(0xdd2f), 0x0000);
    }

    proptest! {
        #[test]
        fn an_incremental_update_equals_a_full_sum(
            mut data in prop::collection::vec(any::<u8>(), 2..200),
            at in any::<prop::sample::Index>(),
            new in any::<[u8; 2]>(),
        ) {
            // Data that is all zero has two representations of its sum; a packet never is.
            data[0] |= 1;
            let before = finish(add(0, &data));
            let at = at.index(data.len() / 2) * 2;
            let change = Difference::NONE.replaced(&data[at..at + 2], &new);
            data[at..at + 2].copy_from_slice(&new);
            prop_assume!(data.iter().any(|&byte| byte != 0));
            prop_assert_eq!(change.update(before), finish(add(0, &data)));
        }
    }
}
