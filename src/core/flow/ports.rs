//! Sets of ports, in the order in which they are given to flows.
//!
//! A port's *place* is its number times an odd constant, modulo 2^16: a permutation that spreads the ports of any client, also
//! those of one parity that Linux takes (`__inet_hash_connect` of net/ipv4/inet_hashtables.c), evenly over all places. The leading
//! bits of a place say which share of the ports it is in, so that all ports of a share lie side by side.
use std::fmt;
use std::ops::RangeInclusive;

/// 2^16 divided by the golden ratio, made odd (Knuth, TAOCP 6.4): ports that follow one another, or lie at equal distances, get
/// places that lie far apart.
const SPREAD: u16 = 0x9e37;
/// `SPREAD * GATHER` is 1 modulo 2^16.
const GATHER: u16 = inverse(SPREAD);
/// Ports of a word.
const WORD: usize = u64::BITS as usize;
const WORDS: usize = (1 << 16) / WORD;
/// The most shares that the ports can be divided into: one has a word at least.
pub const MOST_SHARES: usize = WORDS;

/// By Newton's method; each step doubles the bits that are right, of which the first three are (Hacker's Delight, 10-16).
const fn inverse(odd: u16) -> u16 {
    let mut inverse = odd;
    let mut step = 0;
    while step < 4 {
        inverse = inverse.wrapping_mul(2_u16.wrapping_sub(odd.wrapping_mul(inverse)));
        step += 1;
    }
    inverse
}

/// Where a port is in the order in which ports are given to flows.
#[must_use]
#[inline]
pub const fn place(port: u16) -> u16 {
    port.wrapping_mul(SPREAD)
}

/// The port in a place.
#[must_use]
#[inline]
pub const fn port(place: u16) -> u16 {
    place.wrapping_mul(GATHER)
}

/// Any ports.
#[derive(Clone, PartialEq, Eq)]
pub struct PortSet {
    /// A bit for each place.
    words: Box<[u64; WORDS]>,
    count: usize,
}

impl Default for PortSet {
    fn default() -> Self {
        Self {
            words: Box::new([0; WORDS]),
            count: 0,
        }
    }
}

impl From<RangeInclusive<u16>> for PortSet {
    fn from(ports: RangeInclusive<u16>) -> Self {
        ports.collect()
    }
}

impl FromIterator<u16> for PortSet {
    fn from_iter<T: IntoIterator<Item = u16>>(ports: T) -> Self {
        let mut set = Self::default();
        for port in ports {
            let place = usize::from(place(port));
            set.words[place / WORD] |= 1 << (place % WORD);
        }
        set.count = set.words.iter().map(|word| word.count_ones() as usize).sum();
        set
    }
}

impl PortSet {
    /// Whether a port is in the set.
    #[must_use]
    pub fn contains(&self, port: u16) -> bool {
        let place = usize::from(place(port));
        self.words[place / WORD] >> (place % WORD) & 1 == 1
    }

    /// How many ports there are.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.count
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The ports of a share out of `shares`, a power of two up to [`MOST_SHARES`]: a bit for each of its places.
    #[must_use]
    pub fn share(&self, share: usize, shares: usize) -> &[u64] {
        let length = WORDS / shares;
        &self.words[share * length..][..length]
    }

    /// The ports in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = u16> + '_ {
        (0..=u16::MAX).filter(|&port| self.contains(port))
    }

    /// The same as ranges.
    #[must_use]
    pub fn ranges(&self) -> Vec<RangeInclusive<u16>> {
        let mut ranges: Vec<RangeInclusive<u16>> = Vec::new();
        for port in self.iter() {
            match ranges.last_mut() {
                Some(last) if *last.end() == port - 1 => *last = *last.start()..=port,
                Some(_) | None => ranges.push(port..=port),
            }
        }
        ranges
    }
}

impl fmt::Display for PortSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, range) in self.ranges().iter().enumerate() {
            let comma = if number == 0 { "" } else { "," };
            match range.len() {
                1 => write!(f, "{comma}{}", range.start())?,
                _ => write!(f, "{comma}{}-{}", range.start(), range.end())?,
            }
        }
        Ok(())
    }
}

impl fmt::Debug for PortSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PortSet({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_port_has_a_place_of_its_own() {
        assert!((0..=u16::MAX).all(|number| port(place(number)) == number));
    }

    #[test]
    fn a_set_says_what_was_put_into_it() {
        let set: PortSet = [1_024, 1_025, 1_026, 8_080, 65_535].into_iter().collect();
        assert_eq!((set.len(), set.to_string().as_str()), (5, "1024-1026,8080,65535"));
        assert!(set.contains(8_080) && !set.contains(8_081));
        assert_eq!(PortSet::from(61_000..=65_535).to_string(), "61000-65535");
        assert!(PortSet::default().is_empty());
    }

    #[test]
    fn the_ports_of_all_shares_are_all_ports_whatever_clients_choose_theirs_by() {
        for shares in [1, 2, 64, MOST_SHARES] {
            let count =
                |set: &PortSet, share| -> u32 { set.share(share, shares).iter().map(|word| word.count_ones()).sum() };
            let all = PortSet::from(32_768..=60_999);
            let even: PortSet = all.iter().filter(|port| port % 2 == 0).collect();
            for set in [all, even] {
                let counts: Vec<u32> = (0..shares).map(|share| count(&set, share)).collect();
                let expected = (set.len() / shares) as u32;
                assert_eq!(counts.iter().sum::<u32>() as usize, set.len());
                assert!(
                    counts.iter().all(|count| count.abs_diff(expected) <= 8),
                    "{shares}: {counts:?}"
                );
            }
        }
    }
}
