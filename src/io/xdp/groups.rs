//! The multicast groups in which neighbours ask for announced IPv6 addresses. A card, or a switch that listens to MLD,
//! leaves away the groups that nobody has joined, so who answers must be a member (RFC 4861 section 7.2.1).
use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv6Addr};

use socket2::{Domain, Socket, Type};

/// Memberships, which end with it.
#[derive(Debug, Default)]
pub(super) struct Groups {
    /// None as long as there is no IPv6 address to announce; it never receives anything.
    socket: Option<Socket>,
    joined: BTreeSet<(u32, Ipv6Addr)>,
}

impl Groups {
    /// From now on it is a member, on these interfaces, of the groups of these addresses. What cannot be joined is said:
    /// the addresses are answered for nevertheless, where the questions come.
    pub(super) fn set(&mut self, interfaces: &[u32], addresses: &BTreeSet<IpAddr>) {
        let groups: BTreeSet<Ipv6Addr> = addresses.iter().filter_map(group).collect();
        let on = |&index| groups.iter().map(move |&group| (index, group));
        let wanted: BTreeSet<(u32, Ipv6Addr)> = interfaces.iter().flat_map(on).collect();
        if let Err(error) = self.follow(wanted) {
            tracing::warn!(
                "cannot join the multicast group of an announced IPv6 address ({error}), so questions for it may not come \
                 here; many addresses need more room: sysctl -w net.core.optmem_max=1048576"
            );
        }
    }

    fn follow(&mut self, wanted: BTreeSet<(u32, Ipv6Addr)>) -> io::Result<()> {
        if wanted == self.joined {
            return Ok(());
        }
        let socket = match self.socket.take() {
            Some(socket) => socket,
            None => Socket::new(Domain::IPV6, Type::DGRAM, None)?,
        };
        let socket = self.socket.insert(socket);
        for &(index, group) in self.joined.difference(&wanted) {
            // It may have ended with its interface.
            let _left = socket.leave_multicast_v6(&group, index);
        }
        self.joined.retain(|member| wanted.contains(member));
        for (index, group) in wanted {
            if !self.joined.contains(&(index, group)) {
                socket.join_multicast_v6(&group, index)?;
                self.joined.insert((index, group));
            }
        }
        Ok(())
    }
}

/// The solicited-node address: `ff02::1:ff00:0/104` with the last 24 bits of the address (RFC 4291 section 2.7.1).
fn group(address: &IpAddr) -> Option<Ipv6Addr> {
    match address {
        IpAddr::V4(_) => None,
        IpAddr::V6(v6) => {
            let [.., a, b, c, d] = v6.octets();
            let (high, low) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
            Some(Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | high & 0xff, low))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_group_has_the_last_24_bits_of_the_address() {
        let group = |text: &str| group(&text.parse().unwrap()).map(|group| group.to_string());
        assert_eq!(group("4037::1:800:200e:8c6c").as_deref(), Some("ff02::1:ff0e:8c6c"));
        assert_eq!(group("10.1.0.1"), None);
    }
}
