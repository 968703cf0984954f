//! This host's addresses, and which of them a packet is sent from.
use std::collections::{BTreeMap, HashSet};
use std::net::{IpAddr, Ipv6Addr};

use ipnet::IpNet;

/// How far an address is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scope {
    /// Beyond the link.
    Global,
    Link,
    Host,
}

/// An address of a device of this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Address {
    pub(super) address: IpAddr,
    /// The network behind the device (on a point-to-point link the peer's).
    pub(super) net: IpNet,
    pub(super) scope: Scope,
    /// Sent from only when nothing else is left: deprecated (IPv6) or secondary (IPv4).
    pub(super) avoided: bool,
    /// Not to be used: tentative, or somebody else has it.
    pub(super) unusable: bool,
}

/// All addresses of this host.
#[derive(Debug, Default)]
pub(super) struct Addresses {
    by_device: BTreeMap<u32, Vec<Address>>,
    own: HashSet<IpAddr, ahash::RandomState>,
}

impl Addresses {
    pub(super) fn contains(&self, address: IpAddr) -> bool {
        self.own.contains(&address)
    }

    /// Whether this host did not own the address before.
    pub(super) fn set(&mut self, device: u32, address: Address) -> bool {
        let addresses = self.by_device.entry(device).or_default();
        let same = |known: &&mut Address| known.address == address.address && known.net == address.net;
        match addresses.iter_mut().find(same) {
            Some(known) => *known = address,
            None => addresses.push(address),
        }
        self.own.insert(address.address)
    }

    /// Whether it was there.
    pub(super) fn remove(&mut self, device: u32, gone: Address) -> bool {
        let Some(addresses) = self.by_device.get_mut(&device) else {
            return false;
        };
        let before = addresses.len();
        addresses.retain(|known| known.address != gone.address || known.net != gone.net);
        let changed = addresses.len() < before;
        self.recount();
        changed
    }

    /// Forgets all addresses of a device.
    pub(super) fn forget(&mut self, device: u32) {
        if self.by_device.remove(&device).is_some() {
            self.recount();
        }
    }

    /// The address that a packet to `destination` by `device` and `neighbour` is sent from.
    pub(super) fn source(&self, device: u32, neighbour: IpAddr, destination: IpAddr) -> Option<IpAddr> {
        match destination {
            IpAddr::V4(_) => self.source_v4(device, neighbour),
            IpAddr::V6(v6) => self.source_v6(device, v6),
        }
    }

    /// `inet_select_addr` of net/ipv4/devinet.c: the neighbour's network, the device's first, any other device's first.
    fn source_v4(&self, device: u32, neighbour: IpAddr) -> Option<IpAddr> {
        let here = self.by_device.get(&device).into_iter().flatten();
        let here = || here.clone().filter(|a| a.is_v4_source() && a.scope != Scope::Host);
        let elsewhere = self.by_device.values().flatten();
        let mut elsewhere = elsewhere.filter(|a| a.is_v4_source() && a.scope == Scope::Global);
        let found = here()
            .find(|a| a.net.contains(&neighbour))
            .or_else(|| here().next())
            .or_else(|| elsewhere.next());
        found.map(|a| a.address)
    }

    /// RFC 6724, section 5, rules 2, 3, 5 and 8.
    fn source_v6(&self, device: u32, destination: Ipv6Addr) -> Option<IpAddr> {
        let link_local = destination.is_unicast_link_local();
        let mut best: Option<((bool, bool, u32), IpAddr)> = None;
        for (&index, addresses) in &self.by_device {
            for a in addresses {
                let IpAddr::V6(v6) = a.address else { continue };
                let fits = match a.scope {
                    Scope::Global => true,
                    Scope::Link => link_local && index == device,
                    Scope::Host => false,
                };
                if !fits || a.unusable {
                    continue;
                }
                let common = (v6.to_bits() ^ destination.to_bits()).leading_zeros();
                let common = common.min(u32::from(a.net.prefix_len()));
                let rank = (!a.avoided, index == device, common);
                if best.is_none_or(|(before, _)| rank > before) {
                    best = Some((rank, a.address));
                }
            }
        }
        best.map(|(_, address)| address)
    }

    fn recount(&mut self) {
        self.own = self.by_device.values().flatten().map(|a| a.address).collect();
    }
}

impl Address {
    fn is_v4_source(&self) -> bool {
        self.address.is_ipv4() && !self.avoided && !self.unusable
    }
}
