//! The TUN device: its index, and what makes it ready.
use std::io;
use std::net::{IpAddr, Ipv4Addr};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{AddressAttribute, AddressMessage, AddressScope};
use netlink_packet_route::link::{AfSpecInet6, AfSpecUnspec, In6AddrGenMode, LinkAttribute, LinkFlags, LinkMessage};

use super::error::Error;
use super::netlink::Handle;
use super::object::Family;
use super::sysctl;

/// "IPv4 dummy address", RFC 7600 section 4.8: never on the wire, so it is no one's.
pub(super) const DUMMY_ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 0, 0, 8);

/// Packets that may wait for lbd to read them; 500, the default, drops bursts (measured, DESIGN.md).
const QUEUE_LENGTH: u32 = 10_000;

/// A TUN device that its caller has opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// For example `lbd0`.
    pub name: String,
    /// Bytes of the largest packet.
    pub mtu: u16,
}

impl Device {
    /// Sets MTU and queue length, gives it [`DUMMY_ADDRESS`], brings it up; yields its index.
    pub(super) fn bring_up(&self, handle: &mut Handle) -> Result<u32, Error> {
        let link = handle.link(&self.name)?;
        let index = link.header.index;
        if Family::V6.is_supported() {
            let what = format!("ip link set {} addrgenmode none", self.name);
            handle.request(&no_link_local(index), 0, what)?;
        }
        let what = format!(
            "ip link set {} mtu {} txqueuelen {QUEUE_LENGTH} up",
            self.name, self.mtu
        );
        handle.request(&self.up(index), 0, what)?;
        let what = format!("ip address replace {DUMMY_ADDRESS}/32 dev {} scope host", self.name);
        let address = RouteNetlinkMessage::NewAddress(dummy_address(index));
        handle.request(&address, NLM_F_CREATE | NLM_F_REPLACE, what)?;
        sysctl::prepare_device(&self.name)?;
        Ok(index)
    }

    /// Takes [`DUMMY_ADDRESS`] from a device that stays when lbd ends.
    pub(super) fn tidy(&self, index: u32, handle: &mut Handle) -> Result<(), Error> {
        let address = RouteNetlinkMessage::DelAddress(dummy_address(index));
        let what = format!("ip address del {DUMMY_ADDRESS}/32 dev {}", self.name);
        match handle.request(&address, 0, what) {
            Err(Error::Refused { source, .. }) if is_gone(&source) => Ok(()),
            other => other,
        }
    }

    fn up(&self, index: u32) -> RouteNetlinkMessage {
        let mut link = LinkMessage::default();
        link.header.index = index;
        link.header.flags = LinkFlags::Up;
        link.header.change_mask = LinkFlags::Up;
        link.attributes.push(LinkAttribute::Mtu(self.mtu.into()));
        link.attributes.push(LinkAttribute::TxQueueLen(QUEUE_LENGTH));
        RouteNetlinkMessage::SetLink(link)
    }
}

/// Without a link-local address the kernel sends no router solicitations and no multicast reports into lbd.
fn no_link_local(index: u32) -> RouteNetlinkMessage {
    let mut link = LinkMessage::default();
    link.header.index = index;
    let mode = AfSpecInet6::AddrGenMode(In6AddrGenMode::None);
    let family = AfSpecUnspec::Inet6(vec![mode]);
    link.attributes.push(LinkAttribute::AfSpecUnspec(vec![family]));
    RouteNetlinkMessage::SetLink(link)
}

/// The device, or the address.
fn is_gone(refusal: &io::Error) -> bool {
    [libc::ENODEV, libc::EADDRNOTAVAIL]
        .map(Some)
        .contains(&refusal.raw_os_error())
}

fn dummy_address(index: u32) -> AddressMessage {
    let mut address = AddressMessage::default();
    address.header.family = AddressFamily::Inet;
    address.header.prefix_len = 32;
    address.header.scope = AddressScope::Host;
    address.header.index = index;
    let dummy = IpAddr::V4(DUMMY_ADDRESS);
    address.attributes.push(AddressAttribute::Local(dummy));
    address.attributes.push(AddressAttribute::Address(dummy));
    address
}
