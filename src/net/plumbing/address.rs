//! This host's own addresses, and word of their changes.
use std::collections::HashSet;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, RawFd};

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{AddressAttribute, AddressMessage, AddressScope};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};

use super::error::Error;
use super::netlink::Handle;

/// The addresses that node ports answer on where the configuration names none: of global scope, on interfaces that are
/// up, without loopback and lbd's own `device`.
///
/// # Errors
/// When the kernel does not tell.
pub fn local_addresses(device: &str) -> Result<Vec<IpAddr>, Error> {
    let mut handle = Handle::open()?;
    let links = handle.links()?;
    let serves = |link: &LinkMessage| {
        let flags = link.header.flags;
        flags.contains(LinkFlags::Up) && !flags.contains(LinkFlags::Loopback) && !is_named(link, device)
    };
    let indices = links
        .iter()
        .filter(|link| serves(link))
        .map(|link| link.header.index)
        .collect();
    let global = |address: &AddressMessage| address.header.scope == AddressScope::Universe;
    addresses(&mut handle, &indices, global)
}

/// Every address that this host owns, loopback's too, without those of lbd's own `device`.
///
/// # Errors
/// When the kernel does not tell.
pub fn owned_addresses(device: &str) -> Result<Vec<IpAddr>, Error> {
    let mut handle = Handle::open()?;
    let links = handle.links()?;
    let indices = links
        .iter()
        .filter(|link| !is_named(link, device))
        .map(|link| link.header.index)
        .collect();
    addresses(&mut handle, &indices, |_| true)
}

fn is_named(link: &LinkMessage, name: &str) -> bool {
    link.attributes.contains(&LinkAttribute::IfName(name.into()))
}

fn addresses(
    handle: &mut Handle,
    links: &HashSet<u32>,
    wanted: impl Fn(&AddressMessage) -> bool,
) -> Result<Vec<IpAddr>, Error> {
    let dumped = handle.dump(RouteNetlinkMessage::GetAddress(AddressMessage::default()))?;
    let mut found: Vec<IpAddr> = dumped
        .iter()
        .filter_map(|message| {
            if let RouteNetlinkMessage::NewAddress(address) = message {
                Some(address)
            } else {
                None
            }
        })
        .filter(|address| links.contains(&address.header.index) && wanted(address))
        .filter_map(own_address)
        .collect();
    found.sort_unstable();
    found.dedup();
    Ok(found)
}

/// On a point-to-point link IFA_ADDRESS is the peer's and IFA_LOCAL our own; IPv6 mostly has IFA_ADDRESS alone.
fn own_address(message: &AddressMessage) -> Option<IpAddr> {
    let local = message.attributes.iter().find_map(|attribute| {
        if let AddressAttribute::Local(address) = attribute {
            Some(*address)
        } else {
            None
        }
    });
    local.or_else(|| {
        message.attributes.iter().find_map(|attribute| {
            if let AddressAttribute::Address(address) = attribute {
                Some(*address)
            } else {
                None
            }
        })
    })
}

/// Tells when addresses of this host change. Its file descriptor becomes readable then.
#[derive(Debug)]
pub struct Monitor {
    socket: Socket,
}

impl Monitor {
    /// Starts listening.
    ///
    /// # Errors
    /// When the kernel refuses a netlink socket.
    pub fn open() -> Result<Self, Error> {
        let open = || {
            let mut socket = Socket::new(NETLINK_ROUTE)?;
            socket.bind(&SocketAddr::new(0, 0))?;
            // An interface that goes down keeps its IPv4 addresses.
            for group in [libc::RTNLGRP_LINK, libc::RTNLGRP_IPV4_IFADDR, libc::RTNLGRP_IPV6_IFADDR] {
                socket.add_membership(group)?;
            }
            socket.set_non_blocking(true)?;
            Ok(Self { socket })
        };
        open().map_err(|source| Error::Netlink {
            what: "listen for changes of addresses",
            source,
        })
    }

    /// Takes in what has come; true: addresses may have changed since the last call.
    pub fn drain(&mut self) -> bool {
        let mut changed = false;
        let mut buffer = Vec::with_capacity(8192);
        loop {
            buffer.clear();
            match self.socket.recv(&mut buffer, 0) {
                Ok(_) => changed = true,
                // So much came that some was lost.
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => changed = true,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return changed,
            }
        }
    }
}

impl AsRawFd for Monitor {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_owned_but_serves_no_node_port() {
        let loopback: IpAddr = "127.0.0.1".parse().unwrap();
        assert!(!local_addresses("lbd0").unwrap().contains(&loopback));
        assert!(owned_addresses("nothing").unwrap().contains(&loopback));
        assert!(!owned_addresses("lo").unwrap().contains(&loopback));
    }

    #[test]
    fn a_monitor_is_silent_while_nothing_changes() {
        let mut monitor = Monitor::open().unwrap();
        monitor.drain();
        assert!(monitor.as_raw_fd() >= 0);
    }
}
