//! Keys and values of the filter's maps, as filter_maps.h lays them out.
use std::net::IpAddr;

use ipnet::IpNet;

use lbd_core::flow::{Endpoint, Protocol, Tuple};

/// A map that says what is lbd's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Table {
    /// Routed addresses.
    Hosts,
    /// Routed prefixes.
    Networks,
    /// Destinations on addresses that the host has too.
    LocalPorts,
    /// Backends.
    Replies,
    /// Destinations as prefixes with port ranges.
    Covers,
    /// Addresses that lbd answers ARP and neighbour solicitations for.
    Announced,
    /// Hosts of backends.
    FragmentSources,
    /// Hosts of local ports.
    FragmentDestinations,
}

/// One thing that is lbd's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Entry {
    Host(IpAddr),
    Network(IpNet),
    LocalPort(Protocol, Endpoint),
    Reply(Protocol, Endpoint),
    Cover(Protocol, IpNet, (u16, u16)),
    Announced(IpAddr),
    FragmentSource(Protocol, IpAddr),
    FragmentDestination(Protocol, IpAddr),
}

impl Entry {
    pub(super) const fn table(&self) -> Table {
        match self {
            Self::Host(_) => Table::Hosts,
            Self::Network(_) => Table::Networks,
            Self::LocalPort(..) => Table::LocalPorts,
            Self::Reply(..) => Table::Replies,
            Self::Cover(..) => Table::Covers,
            Self::Announced(_) => Table::Announced,
            Self::FragmentSource(..) => Table::FragmentSources,
            Self::FragmentDestination(..) => Table::FragmentDestinations,
        }
    }

    pub(super) fn key(&self) -> Key {
        match *self {
            Self::Host(address) | Self::Announced(address) => Key::new(&[&mapped(address)]),
            Self::Network(net) => prefix(0, net),
            Self::LocalPort(protocol, endpoint) | Self::Reply(protocol, endpoint) => {
                Key::new(&[&endpoint_bytes(protocol, endpoint)])
            }
            Self::FragmentSource(protocol, address) | Self::FragmentDestination(protocol, address) => {
                Key::new(&[&endpoint_bytes(protocol, Endpoint::new(address, 0))])
            }
            Self::Cover(protocol, net, _) => prefix(protocol.number(), net),
        }
    }

    pub(super) fn value(&self) -> [u8; 4] {
        match *self {
            Self::Cover(_, _, (first, last)) => {
                let ([a, b], [c, d]) = (first.to_ne_bytes(), last.to_ne_bytes());
                [a, b, c, d]
            }
            Self::Host(_)
            | Self::Network(_)
            | Self::LocalPort(..)
            | Self::Reply(..)
            | Self::Announced(_)
            | Self::FragmentSource(..)
            | Self::FragmentDestination(..) => 1_u32.to_ne_bytes(),
        }
    }
}

/// The longest key: `struct prefix`.
const KEY: usize = 24;

/// The bytes of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Key {
    bytes: [u8; KEY],
    length: usize,
}

impl Key {
    fn new(parts: &[&[u8]]) -> Self {
        let (mut bytes, mut length) = ([0; KEY], 0);
        for part in parts {
            bytes[length..length + part.len()].copy_from_slice(part);
            length += part.len();
        }
        Self { bytes, length }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

/// `struct address`
fn mapped(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

/// `struct endpoint`
fn endpoint_bytes(protocol: Protocol, endpoint: Endpoint) -> [u8; 20] {
    let mut bytes = [0; 20];
    bytes[..16].copy_from_slice(&mapped(endpoint.address));
    bytes[16..18].copy_from_slice(&endpoint.port.to_be_bytes());
    bytes[18] = protocol.number();
    bytes
}

/// `struct prefix`; protocol, family and padding always match whole.
fn prefix(protocol: u8, net: IpNet) -> Key {
    let (family, unused) = match net {
        IpNet::V4(_) => (4, 96),
        IpNet::V6(_) => (6, 0),
    };
    let length = 32 + unused + u32::from(net.prefix_len());
    Key::new(&[
        &length.to_ne_bytes(),
        &[protocol, family, 0, 0],
        &mapped(net.trunc().addr()),
    ])
}

/// `struct flow`
pub(super) fn flow(tuple: &Tuple) -> [u8; 40] {
    let mut bytes = [0; 40];
    bytes[..20].copy_from_slice(&endpoint_bytes(tuple.protocol, tuple.source));
    bytes[20..].copy_from_slice(&endpoint_bytes(tuple.protocol, tuple.destination));
    bytes
}

/// `struct interface`
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Place {
    /// Of the interface; 0 is none.
    pub(super) index: u32,
    /// The first of its places in the XSKMAP.
    pub(super) base: u32,
    /// How many it has.
    pub(super) queues: u32,
    /// Its MAC address.
    pub(super) address: [u8; 6],
}

impl Place {
    pub(super) fn value(self) -> [u8; 20] {
        let mut bytes = [0; 20];
        for (field, number) in bytes.chunks_mut(4).zip([self.index, self.base, self.queues]) {
            field.copy_from_slice(&number.to_ne_bytes());
        }
        bytes[12..18].copy_from_slice(&self.address);
        bytes
    }
}

/// `struct settings`
pub(super) fn settings(forgotten: u64, tables: u32) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&forgotten.to_ne_bytes());
    bytes[8..12].copy_from_slice(&tables.to_ne_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ipv4_prefix_counts_the_bits_before_it() {
        let entry = Entry::Cover(Protocol::Udp, "10.1.0.0/16".parse().unwrap(), (53, 54));
        let mut expected = 144_u32.to_ne_bytes().to_vec();
        expected.extend([17, 4, 0, 0]);
        expected.extend([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 1, 0, 0]);
        assert_eq!(entry.key().bytes(), expected);
        assert_eq!(entry.value(), [53_u16.to_ne_bytes(), 54_u16.to_ne_bytes()].concat()[..]);
    }

    #[test]
    fn an_endpoint_has_its_port_as_on_the_wire() {
        let key = Entry::Reply(Protocol::Tcp, "[fd00::1]:8080".parse().unwrap()).key();
        assert_eq!(key.bytes()[..3], [0xfd, 0, 0]);
        assert_eq!(key.bytes()[15..], [1, 0x1f, 0x90, 6, 0]);
    }
}
