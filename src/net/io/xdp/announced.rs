//! The service addresses that lbd answers for on local networks, shared by its workers.
use std::collections::{BTreeSet, HashSet};
use std::net::IpAddr;

use ahash::RandomState;
use crossbeam_channel::{Receiver, Sender};
use parking_lot::RwLock;

/// See the module.
#[derive(Debug)]
pub struct Announced {
    addresses: RwLock<HashSet<IpAddr, RandomState>>,
    news: Sender<IpAddr>,
}

impl Announced {
    /// None yet; and where those that come are heard of, to be told to neighbours.
    #[must_use]
    pub fn new() -> (Self, Receiver<IpAddr>) {
        let (news, heard) = crossbeam_channel::unbounded();
        let announced = Self {
            addresses: RwLock::default(),
            news,
        };
        (announced, heard)
    }

    /// Whether lbd answers for it.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        self.addresses.read().contains(&address)
    }

    /// From now on lbd answers for these.
    pub fn set(&self, addresses: &BTreeSet<IpAddr>) {
        let before = std::mem::replace(&mut *self.addresses.write(), addresses.iter().copied().collect());
        for &address in addresses.iter().filter(|address| !before.contains(*address)) {
            if self.news.send(address).is_err() {
                tracing::debug!("nobody is left to tell neighbours of {address}");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_hear_once_of_each_address_that_comes() {
        let (announced, heard) = Announced::new();
        let [a, b, c] = ["10.1.0.1", "10.1.0.2", "fd00::3"].map(|text| text.parse().unwrap());
        announced.set(&[a, b].into());
        announced.set(&[b, c].into());
        announced.set(&[b, c].into());
        assert_eq!(heard.try_iter().collect::<Vec<IpAddr>>(), [a, b, c]);
        assert_eq!(
            [a, b, c].map(|address| announced.contains(address)),
            [false, true, true]
        );
    }
}
