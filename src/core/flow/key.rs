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
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
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

impl From<Ipv4Addr> for Address {
    #[inline]
    fn from(address: Ipv4Addr) -> Self {
        Self::v4(address.to_bits())
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
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Key {
    /// Where the packet comes from.
    pub source: Address,
    /// Where it goes.
    pub destination: Address,
    /// The protocol's number, the port that it comes from, and the port that it goes to, 16 bits each.
    rest: u64,
}

impl Key {
    /// The key of a packet from one place to another one, each with its port.
    #[must_use]
    #[inline]
    pub const fn new(protocol: Protocol, source: (Address, u16), destination: (Address, u16)) -> Self {
        Self {
            source: source.0,
            destination: destination.0,
            rest: (protocol.number() as u64) << 32 | (source.1 as u64) << 16 | destination.1 as u64,
        }
    }

    /// Transport protocol.
    #[must_use]
    #[inline]
    pub const fn protocol(&self) -> Protocol {
        const TCP: u8 = Protocol::Tcp.number();
        const UDP: u8 = Protocol::Udp.number();
        match (self.rest >> 32) as u8 {
            TCP => Protocol::Tcp,
            UDP => Protocol::Udp,
            // There is no other one.
            _ => Protocol::Sctp,
        }
    }

    /// The port that the packet comes from.
    #[must_use]
    #[inline]
    pub const fn source_port(&self) -> u16 {
        (self.rest >> 16) as u16
    }

    /// The port that it goes to.
    #[must_use]
    #[inline]
    pub const fn destination_port(&self) -> u16 {
        self.rest as u16
    }

    /// The same with another port that the packet goes to.
    #[must_use]
    #[inline]
    pub const fn with_destination_port(self, port: u16) -> Self {
        Self {
            rest: self.rest & !0xffff | port as u64,
            ..self
        }
    }

    /// The same with port 0, which stands for all of them.
    #[must_use]
    #[inline]
    pub const fn without_destination_port(self) -> Self {
        self.with_destination_port(0)
    }

    /// Both ports as a transport header begins with them.
    #[must_use]
    #[inline]
    pub const fn ports(&self) -> u32 {
        self.rest as u32
    }

    /// The key of an answer to this packet.
    #[must_use]
    #[inline]
    pub const fn reply(self) -> Self {
        Self::new(
            self.protocol(),
            (self.destination, self.destination_port()),
            (self.source, self.source_port()),
        )
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&Tuple::from(*self), f)
    }
}

/// Two words for IPv4 and five for IPv6.
impl Hash for Key {
    #[inline]
    fn hash<H: Hasher>(&self, state: &mut H) {
        match (self.source.as_v4(), self.destination.as_v4()) {
            (Some(from), Some(to)) => state.write_u64(u64::from(from) << 32 | u64::from(to)),
            (Some(_) | None, _) => {
                let words = [self.source.halves(), self.destination.halves()];
                words.as_flattened().iter().for_each(|&word| state.write_u64(word));
            }
        }
        state.write_u64(self.rest);
    }
}

impl From<Tuple> for Key {
    #[inline]
    fn from(tuple: Tuple) -> Self {
        let [source, destination] = [tuple.source, tuple.destination].map(|end| (end.address.into(), end.port));
        Self::new(tuple.protocol, source, destination)
    }
}

impl From<Key> for Tuple {
    #[inline]
    fn from(key: Key) -> Self {
        Self {
            protocol: key.protocol(),
            source: Endpoint::new(key.source.into(), key.source_port()),
            destination: Endpoint::new(key.destination.into(), key.destination_port()),
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
