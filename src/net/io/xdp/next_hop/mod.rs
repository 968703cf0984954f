//! Where the kernel would send a packet, so that lbd can send it there itself.
//!
//! `follow` keeps the kernel's links, addresses, neighbours, routes and rules in `tables`, which answer
//! [`NextHops::find`]: straight out of one of lbd's interfaces, or [`Way::Kernel`] wherever the answer is anything but
//! plain. A worker asks through its own [`Cache`]. What it asks for keeps neighbours alive in the kernel (`upkeep`),
//! which sees none of the packets.
mod cache;
mod follow;
mod links;
mod message;
mod neighbours;
mod routes;
mod rules;
mod sources;
mod tables;
#[cfg(test)]
mod tests;
mod upkeep;

use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::RwLock;

pub use cache::Cache;
pub use follow::Follower;
use tables::{Change, Found, Routing, Tables};
use upkeep::Requests;

/// An IP version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4
    V4,
    /// IPv6
    V6,
}

impl Family {
    const BOTH: [Self; 2] = [Self::V4, Self::V6];

    const fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }
}

/// A VLAN tag to be written behind the MAC addresses; its priority is 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VlanTag {
    /// The EtherType: 0x8100 (802.1Q) or 0x88a8 (802.1ad).
    pub protocol: u16,
    /// 0 to 4094.
    pub id: u16,
}

/// All that the Ethernet header of a packet says, and how long the packet may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hop {
    /// Index of the interface that the frame leaves by; always one of those given to [`Follower::start`].
    pub interface: u32,
    /// The sender's address.
    pub source_mac: [u8; 6],
    /// The neighbour's address.
    pub destination_mac: [u8; 6],
    /// The tag where the route goes over a VLAN device.
    pub vlan: Option<VlanTag>,
    /// The longest IP packet, in bytes.
    pub mtu: u32,
}

/// How a packet goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// lbd sends it itself.
    Direct(Hop),
    /// The kernel is to route it.
    Kernel,
}

/// What the kernel knows about ways, shared by all workers.
#[derive(Debug)]
pub struct NextHops {
    tables: RwLock<Tables>,
    generation: AtomicU64,
    source_generation: AtomicU64,
    requests: Requests,
}

impl NextHops {
    const fn new(tables: Tables, requests: Requests) -> Self {
        Self {
            tables: RwLock::new(tables),
            generation: AtomicU64::new(1),
            source_generation: AtomicU64::new(1),
            requests,
        }
    }

    /// The way to `destination` for an unmarked packet that lbd forwards. Of several paths, the top bits of `flow_hash`
    /// choose one; they should be the same for all packets of a flow, and evenly spread.
    ///
    /// Has the kernel resolve or confirm the neighbour where that is due, without waiting for it.
    #[must_use]
    pub fn find(&self, destination: IpAddr, flow_hash: u32) -> Way {
        self.look(destination, flow_hash).way
    }

    /// Whether the kernel would drop a packet from `source` that comes in by a link, because of that address alone
    /// (`ip_route_input_slow` and `fib_validate_source` of net/ipv4, `ip6_rcv_core` and `ip6_forward` of net/ipv6). It does not
    /// say whether packets from there may come by this link: reverse path filtering is not repeated here.
    #[must_use]
    pub fn is_martian(&self, source: IpAddr) -> bool {
        is_never_a_source(source) || self.tables.read().is_martian(source)
    }

    /// Whether the kernel would take a packet to `destination` for this host itself.
    #[must_use]
    pub fn ends_here(&self, destination: IpAddr) -> bool {
        self.tables.read().ends_here(destination)
    }

    /// The address that the kernel would send from: the route's, else the most fitting one of its device.
    #[must_use]
    pub fn source_for(&self, destination: IpAddr) -> Option<IpAddr> {
        self.tables.read().source_for(destination)
    }

    /// The address to masquerade with towards `destination`: that of [`Self::source_for`], where the route is one of lbd's
    /// interfaces, so that answers come in there.
    #[must_use]
    pub fn masquerade_source(&self, destination: IpAddr) -> Option<IpAddr> {
        let tables = self.tables.read();
        tables
            .leaves_by_ours(destination)
            .then(|| tables.source_for(destination))
            .flatten()
    }

    /// The Ethernet address of an interface.
    #[must_use]
    pub fn hardware_address(&self, interface: u32) -> Option<[u8; 6]> {
        self.tables.read().links.hardware_address(interface)
    }

    /// The MTU of an interface, in bytes.
    #[must_use]
    pub fn mtu(&self, interface: u32) -> Option<u32> {
        self.tables.read().links.mtu(interface)
    }

    /// Grows when answers may have changed.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Grows when answers of [`Self::source_for`] and [`Self::masquerade_source`] may have changed, and those about links;
    /// neighbours come and go without.
    #[must_use]
    pub fn source_generation(&self) -> u64 {
        self.source_generation.load(Ordering::Acquire)
    }

    /// Why all packets of `family` go through the kernel, if they do.
    #[must_use]
    pub fn detour(&self, family: Family) -> Option<String> {
        self.tables.read().detour(family).map(ToOwned::to_owned)
    }

    fn look(&self, destination: IpAddr, flow_hash: u32) -> Found {
        let found = self.tables.read().find(destination, flow_hash);
        if let Some(neighbour) = found.attend {
            self.requests.ask(neighbour);
        }
        found
    }

    /// Puts new routes in, of which there may be a million: workers wait only while they are swapped. Called by one thread.
    fn set_routing(&self, family: Family, routing: Routing) {
        if *self.tables.read().routing(family) == routing {
            return;
        }
        let mut old = None;
        self.change(|tables| {
            old = Some(tables.set_routing(family, routing));
            Change::ANSWERS
        });
        drop(old);
    }

    /// Changes the tables. The generation grows afterwards, so who has read the new one finds the new tables.
    fn change(&self, change: impl FnOnce(&mut Tables) -> Change) -> Change {
        let mut tables = self.tables.write();
        let changed = change(&mut tables);
        if changed.sources {
            self.source_generation.fetch_add(1, Ordering::Release);
        }
        if changed.answers {
            self.generation.fetch_add(1, Ordering::Release);
        }
        changed
    }
}

/// Addresses that nobody on a link sends from, whatever its networks are. 240.0.0.0/4 is not among them: Linux routes it.
fn is_never_a_source(source: IpAddr) -> bool {
    match source {
        IpAddr::V4(v4) => {
            let zero_network = v4.octets()[0] == 0;
            zero_network || v4.is_loopback() || v4.is_multicast() || v4.is_broadcast()
        }
        // A link-local sender is a neighbour of this host, and of no backend (RFC 4291 section 2.5.6).
        IpAddr::V6(v6) => {
            let local = v6.is_unspecified() || v6.is_loopback() || v6.is_unicast_link_local();
            local || v6.is_multicast() || v6.to_ipv4_mapped().is_some()
        }
    }
}
