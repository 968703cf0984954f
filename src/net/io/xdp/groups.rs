//! Who asks for the link address of an IPv6 address asks its solicited-node group (RFC 4291 section 2.7.1), whose frames an
//! interface ignores, and a switch keeps away (MLD snooping), unless the host has joined it. The kernel joins those of its
//! own addresses; lbd joins those of the addresses that it answers for.
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv6Addr, UdpSocket};

/// An interface's number, and a group there.
type Place = (u32, Ipv6Addr);

/// The groups that lbd has joined; dropped, it leaves them.
#[derive(Debug, Default)]
pub(super) struct Groups {
    /// Nothing is sent or received by them. One has room for some hundred groups (`optmem_max`).
    sockets: Vec<UdpSocket>,
    /// By which socket.
    joined: BTreeMap<Place, usize>,
}

impl Groups {
    /// Joins the groups of these addresses on these interfaces, and leaves all others. What fails is logged: the other
    /// addresses can still be asked for.
    pub(super) fn follow(&mut self, interfaces: &[u32], addresses: &BTreeSet<IpAddr>) {
        let wanted = places(interfaces, addresses);
        let left: Vec<Place> = self
            .joined
            .keys()
            .filter(|place| !wanted.contains(place))
            .copied()
            .collect();
        for place in left {
            self.leave(place);
        }
        let missing: Vec<Place> = wanted
            .into_iter()
            .filter(|place| !self.joined.contains_key(place))
            .collect();
        let failures = missing
            .into_iter()
            .filter_map(|place| Some((place, self.join(place).err()?)));
        let failures: Vec<(Place, io::Error)> = failures.collect();
        if let Some(((interface, group), error)) = failures.first() {
            tracing::warn!(
                "cannot join {group} on interface {interface}, and {} more groups, so neighbours may not find addresses there: \
                 {error}; is IPv6 on there (`sysctl net.ipv6.conf`)?",
                failures.len() - 1
            );
        }
    }

    fn join(&mut self, place: Place) -> io::Result<()> {
        let (interface, group) = place;
        let full = match self
            .sockets
            .last()
            .map(|socket| socket.join_multicast_v6(&group, interface))
        {
            Some(Err(error)) if is_full(&error) => true,
            Some(result) => {
                result?;
                false
            }
            None => true,
        };
        if full {
            let socket = UdpSocket::bind((Ipv6Addr::LOCALHOST, 0))?;
            socket.join_multicast_v6(&group, interface)?;
            self.sockets.push(socket);
        }
        self.joined.insert(place, self.sockets.len() - 1);
        Ok(())
    }

    fn leave(&mut self, place: Place) {
        let (interface, group) = place;
        let socket = self.joined.remove(&place).and_then(|number| self.sockets.get(number));
        if let Some(Err(error)) = socket.map(|socket| socket.leave_multicast_v6(&group, interface)) {
            tracing::debug!("cannot leave {group} on interface {interface}: {error}");
        }
    }
}

/// `sock_kmalloc` of net/core/sock.c
fn is_full(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOBUFS | libc::ENOMEM))
}

fn places(interfaces: &[u32], addresses: &BTreeSet<IpAddr>) -> BTreeSet<Place> {
    let groups = addresses.iter().filter_map(|address| match address {
        IpAddr::V6(address) => Some(group(*address)),
        IpAddr::V4(_) => None,
    });
    groups
        .flat_map(|group| interfaces.iter().map(move |&interface| (interface, group)))
        .collect()
}

/// `ff02::1:ff` and the last 24 bits of the address.
const fn group(address: Ipv6Addr) -> Ipv6Addr {
    const SOLICITED_NODE: u128 = 0xff02_0000_0000_0000_0000_0001_ff00_0000;
    Ipv6Addr::from_bits(SOLICITED_NODE | address.to_bits() & 0xff_ffff)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The loopback interface.
    const LO: [u32; 1] = [1];

    fn groups() -> String {
        std::fs::read_to_string("/proc/net/igmp6").unwrap_or_default()
    }

    #[test]
    fn the_group_of_an_address_is_that_of_rfc_4291() {
        let address: Ipv6Addr = "4037::01:800:200e:8c6c".parse().unwrap();
        assert_eq!(group(address).to_string(), "ff02::1:ff0e:8c6c");
    }

    #[test]
    fn a_host_is_in_the_groups_of_announced_addresses_as_long_as_they_are() {
        if groups().is_empty() {
            return println!("skipped: there is no IPv6 here");
        }
        let addresses: BTreeSet<IpAddr> = (0..2_000)
            .map(|number| Ipv6Addr::from_bits(0xfd00 << 112 | 0xab_0000 | number).into())
            .collect();
        let count = || groups().matches("ff0200000000000000000001ffab").count();
        let mut joined = Groups::default();
        joined.follow(&LO, &addresses);
        joined.follow(&LO, &addresses);
        assert_eq!(count(), 2_000);
        let kept = addresses.iter().copied().take(7).collect();
        joined.follow(&LO, &kept);
        assert_eq!(count(), 7);
        drop(joined);
        assert_eq!(count(), 0);
    }
}
