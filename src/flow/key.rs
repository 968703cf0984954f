//! Addresses and tuples in whole words, for the packet path to hash, compare and copy.
//!
//! An [`IpAddr`] is 17 bytes that begin anywhere: its copies are written in pieces and read in others, for which a CPU waits
//! until the pieces are in the cache. These stalls were a third of what a packet of a known flow cost.
use std::fmt;
use std::hash::{Hash, Hasher};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{Endpoint, Protocol, Tuple};

/// An IPv6 address, or an IPv4 address as an IPv4-mapped one (RFC 4291 section 2.5.5.2), which no packet bears itself:
/// [`crate::packet::Headers::parse`] refuses those, as Linux does (`ip6_rcv_core`, net/ipv6/ip6_input.c).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Address {
    high: u64,
    low: u64,
}

/// What an IPv4 address is mapped by, in the lower half.
const MAPPED: u64 = 0xffff_0000_0000;

impl Address {
    /// The IPv4 address with these bits.
    #[must_use]
    #[inline]
    pub const fn v4(bits: u32) -> Self {
        Self {
            high: 0,
            low: MAPPED | bits as u64,
        }
    }

    /// The IPv6 address of these two halves.
    #[must_use]
    #[inline]
    pub const fn v6(high: u64, low: u64) -> Self {
        Self { high, low }
    }

    /// The bits of an IPv4 address; None for an IPv6 address.
    #[must_use]
    #[inline]
    pub const fn as_v4(self) -> Option<u32> {
        match (self.high, self.low & !0xffff_ffff) {
            (0, MAPPED) => Some(self.low as u32),
            _ => None,
        }
    }

    /// The two halves of an IPv6 address, or of an IPv4-mapped one.
    #[must_use]
    #[inline]
    pub const fn halves(self) -> [u64; 2] {
        [self.high, self.low]
    }
}

impl From<IpAddr> for Address {
    #[inline]
    fn from(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(v4) => Self::v4(v4.to_bits()),
            IpAddr::V6(v6) => Self::v6((v6.to_bits() >> 64) as u64, v6.to_bits() as u64),
        }
    }
}

impl From<Ipv6Addr> for Address {
    #[inline]
    fn from(address: Ipv6Addr) -> Self {
        IpAddr::V6(address).into()
    }
}

impl From<Address> for IpAddr {
    #[inline]
    fn from(address: Address) -> Self {
        match address.as_v4() {
            Some(bits) => Self::V4(Ipv4Addr::from_bits(bits)),
            None => Self::V6(Ipv6Addr::from_bits(
                u128::from(address.high) << 64 | u128::from(address.low),
            )),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        IpAddr::from(*self).fmt(f)
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A [`Tuple`] in words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    /// Where the packet comes from.
    pub source: Address,
    /// Where it goes.
    pub destination: Address,
    /// The port that it comes from.
    pub source_port: u16,
    /// The port that it goes to.
    pub destination_port: u16,
    /// Transport protocol.
    pub protocol: Protocol,
}

impl Key {
    /// The key of an answer to this packet.
    #[must_use]
    #[inline]
    pub const fn reply(self) -> Self {
        Self {
            source: self.destination,
            destination: self.source,
            source_port: self.destination_port,
            destination_port: self.source_port,
            protocol: self.protocol,
        }
    }
}

/// Two words for IPv4 and five for IPv6.
impl Hash for Key {
    #[inline]
    fn hash<H: Hasher>(&self, state: &mut H) {
        let ports = u64::from(self.source_port) << 16 | u64::from(self.destination_port);
        let rest = u64::from(self.protocol.number()) << 32 | ports;
        match (self.source.as_v4(), self.destination.as_v4()) {
            (Some(from), Some(to)) => state.write_u64(u64::from(from) << 32 | u64::from(to)),
            (Some(_) | None, _) => {
                let words = [self.source.halves(), self.destination.halves()];
                words.as_flattened().iter().for_each(|&word| state.write_u64(word));
            }
        }
        state.write_u64(rest);
    }
}

impl From<Tuple> for Key {
    #[inline]
    fn from(tuple: Tuple) -> Self {
        Self {
            source: tuple.source.address.into(),
            destination: tuple.destination.address.into(),
            source_port: tuple.source.port,
            destination_port: tuple.destination.port,
            protocol: tuple.protocol,
        }
    }
}

impl From<Key> for Tuple {
    #[inline]
    fn from(key: Key) -> Self {
        Self {
            protocol: key.protocol,
            source: Endpoint::new(key.source.into(), key.source_port),
            destination: Endpoint::new(key.destination.into(), key.destination_port),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_address_of_a_packet_comes_back_as_it_went_in(v4: u32, v6: u128) {
            let v4 = IpAddr::V4(Ipv4Addr::from_bits(v4));
            prop_assert_eq!(IpAddr::from(Address::from(v4)), v4);
            let v6 = Ipv6Addr::from_bits(v6);
            prop_assume!(v6.to_ipv4_mapped().is_none());
            prop_assert_eq!(IpAddr::from(Address::from(IpAddr::V6(v6))), IpAddr::V6(v6));
        }
    }
}
