//! The service addresses that lbd answers for on local networks, shared by its workers.
use std::collections::{BTreeSet, HashSet};
use std::io;
use std::net::{IpAddr, Ipv6Addr};

use ahash::RandomState;
use crossbeam_channel::{Receiver, Sender};
use parking_lot::RwLock;
use socket2::{Domain, Socket, Type};

/// See the module.
#[derive(Debug)]
pub struct Announced {
    addresses: RwLock<HashSet<IpAddr, RandomState>>,
    news: Sender<IpAddr>,
    groups: Groups,
}

impl Announced {
    /// None yet, on networks behind `interfaces` (`ifindex`); and where those that come are heard of, to be told to
    /// neighbours.
    #[must_use]
    pub fn new(interfaces: &[u32]) -> (Self, Receiver<IpAddr>) {
        let (news, heard) = crossbeam_channel::unbounded();
        let announced = Self {
            addresses: RwLock::default(),
            news,
            groups: Groups::new(interfaces),
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
            self.groups.join(address);
        }
        let asked_in: HashSet<IpAddr> = addresses.iter().map(|&address| group_of(address)).collect();
        for &address in before.iter().filter(|address| !addresses.contains(*address)) {
            if !asked_in.contains(&group_of(address)) {
                self.groups.leave(address);
            }
        }
    }
}

/// The multicast groups in which IPv6 neighbours ask for addresses: without a member here, the network card and the switch
/// keep the question away from this host (RFC 4861 section 7.2.1, RFC 4541).
#[derive(Debug)]
struct Groups {
    interfaces: Vec<u32>,
    /// None on a host without IPv6. Its memberships end with it.
    socket: Option<Socket>,
}

impl Groups {
    fn new(interfaces: &[u32]) -> Self {
        Self {
            interfaces: interfaces.to_vec(),
            socket: Socket::new(Domain::IPV6, Type::DGRAM, None).ok(),
        }
    }

    fn join(&self, address: IpAddr) {
        self.each(address, |socket, group, interface| {
            let joined = socket.join_multicast_v6(group, interface);
            match joined {
                // Another address that ends alike is in it.
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
                Err(error) => tracing::warn!(
                    "{address} is not announced well: cannot join {group}: {error}; for many addresses raise net.core.optmem_max"
                ),
                Ok(()) => {}
            }
        });
    }

    fn leave(&self, address: IpAddr) {
        self.each(address, |socket, group, interface| {
            if let Err(error) = socket.leave_multicast_v6(group, interface) {
                tracing::debug!("cannot leave {group}: {error}");
            }
        });
    }

    fn each(&self, address: IpAddr, act: impl Fn(&Socket, &Ipv6Addr, u32)) {
        if let (IpAddr::V6(address), Some(socket)) = (address, &self.socket) {
            let group = solicited_node(address);
            for &interface in &self.interfaces {
                act(socket, &group, interface);
            }
        }
    }
}

/// What stands for an address where its group matters; IPv4 has none.
fn group_of(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(v6) => solicited_node(v6).into(),
    }
}

/// RFC 4291 section 2.7.1.
fn solicited_node(address: Ipv6Addr) -> Ipv6Addr {
    let [.., seventh, eighth] = address.segments();
    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | seventh & 0xff, eighth)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_group_of_an_address_is_that_of_rfc_4291() {
        let group = solicited_node("4037::01:800:200e:8c6c".parse().unwrap());
        assert_eq!(group, "ff02::1:ff0e:8c6c".parse::<Ipv6Addr>().unwrap());
    }

    #[test]
    fn neighbours_hear_once_of_each_address_that_comes() {
        let (announced, heard) = Announced::new(&[]);
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
