//! Who has which MAC address.
use std::collections::HashMap;
use std::net::IpAddr;

/// A neighbour: the device it is reached by, and its address.
pub(super) type Key = (u32, IpAddr);

/// What the kernel knows of a neighbour, as far as it concerns sending.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Neighbour {
    /// None: unresolved or failed.
    pub(super) mac: Option<[u8; 6]>,
    /// REACHABLE, PERMANENT or NOARP: the kernel need not look whether it is still there.
    pub(super) confirmed: bool,
}

/// The neighbours that have an entry.
#[derive(Debug, Default)]
pub(super) struct Neighbours {
    known: HashMap<Key, Neighbour, ahash::RandomState>,
}

impl Neighbours {
    pub(super) fn get(&self, key: Key) -> Option<Neighbour> {
        self.known.get(&key).copied()
    }

    /// Whether packets go elsewhere now.
    pub(super) fn set(&mut self, key: Key, neighbour: Neighbour) -> bool {
        let before = self.known.insert(key, neighbour);
        before.and_then(|before| before.mac) != neighbour.mac
    }

    /// Whether packets go elsewhere now.
    pub(super) fn remove(&mut self, key: Key) -> bool {
        self.known.remove(&key).is_some_and(|gone| gone.mac.is_some())
    }

    /// Forgets all neighbours behind a device.
    pub(super) fn forget(&mut self, device: u32) {
        self.known.retain(|key, _| key.0 != device);
    }
}
