//! Network devices, and which of them lbd can send frames by.
use std::collections::{HashMap, HashSet};

use super::VlanTag;

/// What a device puts before an IP packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Ethernet,
    Vlan { parent: u32, tag: VlanTag },
    Other,
}

/// A network device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) name: String,
    pub(super) mac: [u8; 6],
    pub(super) mtu: u32,
    /// Up, with a carrier.
    pub(super) running: bool,
    pub(super) kind: Kind,
}

/// How frames leave by a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Egress {
    pub(super) interface: u32,
    pub(super) mac: [u8; 6],
    pub(super) vlan: Option<VlanTag>,
    pub(super) mtu: u32,
}

/// All devices, by index.
#[derive(Debug, Default)]
pub(super) struct Links {
    interfaces: HashSet<u32>,
    by_index: HashMap<u32, Link>,
}

impl Links {
    /// No device yet; lbd's sockets are on `interfaces`.
    pub(super) fn new(interfaces: &[u32]) -> Self {
        Self {
            interfaces: interfaces.iter().copied().collect(),
            by_index: HashMap::new(),
        }
    }

    /// The device as it was before.
    pub(super) fn set(&mut self, index: u32, link: Link) -> Option<Link> {
        self.by_index.insert(index, link)
    }

    pub(super) fn remove(&mut self, index: u32) -> Option<Link> {
        self.by_index.remove(&index)
    }

    /// Whether packets out of the device leave by an interface of lbd's.
    pub(super) fn is_ours(&self, index: u32) -> bool {
        self.interfaces.contains(&index) || self.is_vlan_of_ours(index)
    }

    /// Whether the device `name` is one whose packets lbd receives.
    pub(super) fn is_name_of_ours(&self, name: &str) -> bool {
        self.by_index
            .iter()
            .any(|(&index, link)| link.name == name && self.is_ours(index))
    }

    pub(super) fn hardware_address(&self, index: u32) -> Option<[u8; 6]> {
        self.by_index.get(&index).map(|link| link.mac)
    }

    pub(super) fn mtu(&self, index: u32) -> Option<u32> {
        self.by_index.get(&index).map(|link| link.mtu)
    }

    /// How lbd itself sends out of the device, if it can now.
    pub(super) fn egress(&self, index: u32) -> Option<Egress> {
        let link = self.by_index.get(&index).filter(|link| link.running)?;
        let (interface, vlan) = match link.kind {
            Kind::Ethernet => (index, None),
            Kind::Vlan { parent, tag } => (parent, Some(tag)),
            Kind::Other => return None,
        };
        let carrier = self.by_index.get(&interface)?;
        let sends = self.interfaces.contains(&interface) && carrier.running && carrier.kind == Kind::Ethernet;
        sends.then_some(Egress {
            interface,
            mac: link.mac,
            vlan,
            mtu: link.mtu,
        })
    }

    fn is_vlan_of_ours(&self, index: u32) -> bool {
        let kind = self.by_index.get(&index).map(|link| link.kind);
        matches!(kind, Some(Kind::Vlan { parent, .. }) if self.interfaces.contains(&parent))
    }
}
