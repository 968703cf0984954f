//! The TUN device: its index, and what makes it ready.
use std::io;
use std::net::{IpAddr, Ipv4Addr};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{AddressAttribute, AddressMessage, AddressScope};
use netlink_packet_route::link::{AfSpecInet6, AfSpecUnspec, In6AddrGenMode, LinkAttribute, LinkFlags, LinkMessage};

use super::error::Error;
use super::netlink::Handle;
use super::sysctl;

/// "IPv4 dummy address", RFC 7600 section 4.8: never on the wire, so it is no one's.
pub(super) const DUMMY_ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 0, 0, 8);

/// Packets that may wait for lbd to read them; 500, the default, drops bursts (measured, DESIGN.md).
const QUEUE_LENGTH: u32 = 10_000;

/// IPv6 ends on a link whose MTU is less (RFC 8200 section 5; `addrconf_notify`, net/ipv6/addrconf.c), and its settings go.
const IPV6_MTU: u32 = 1280;

/// A TUN device that its caller has opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// For example `lbd0`.
    pub name: String,
    /// Bytes of the largest packet.
    pub mtu: u16,
}

/// What is to be had of a device beyond what each needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Needs {
    /// That IPv6 works on it.
    pub(super) ipv6: bool,
    /// That packets from this host's own addresses may come out of it.
    pub(super) own_addresses: bool,
}

/// What became of the parts of a device: each is seen to whatever became of the others.
#[derive(Debug, Default)]
pub(super) struct Tended {
    /// What was not as it should be and is now: as it was.
    pub(super) changed: Vec<String>,
    /// What is not as it should be still.
    pub(super) refused: Vec<Error>,
}

impl Tended {
    fn record(&mut self, outcome: Result<Option<String>, Error>) {
        match outcome {
            Ok(changed) => self.changed.extend(changed),
            Err(error) => self.refused.push(error),
        }
    }
}

impl Device {
    /// Sets MTU and queue length, gives it [`DUMMY_ADDRESS`], brings it up; yields its index.
    pub(super) fn bring_up(&self, handle: &mut Handle) -> Result<u32, Error> {
        let link = handle.link(&self.name)?;
        let index = link.header.index;
        let needs = Needs {
            ipv6: false,
            own_addresses: false,
        };
        let Tended { refused, .. } = self.tend_link(&link, needs, handle);
        refused.into_iter().next().map_or(Ok(index), Err)
    }

    /// The same for one that others may have changed since.
    ///
    /// # Errors
    /// When it is out of reach, so that lbd has no use any more.
    pub(super) fn tend(&self, index: u32, needs: Needs, handle: &mut Handle) -> Result<Tended, Error> {
        let link = match handle.link_of(index) {
            Ok(Some(link)) => link,
            Ok(None) => {
                return Err(Error::Gone {
                    device: self.name.clone(),
                });
            }
            Err(error) => {
                let refused = vec![error];
                return Ok(Tended {
                    refused,
                    ..Tended::default()
                });
            }
        };
        let renamed = match name(&link) {
            Some(now) if now != self.name => Some(self.take_back_name(index, now, handle)?),
            Some(_) | None => None,
        };
        let mut tended = self.tend_link(&link, needs, handle);
        tended.changed.extend(renamed);
        Ok(tended)
    }

    fn tend_link(&self, link: &LinkMessage, needs: Needs, handle: &mut Handle) -> Tended {
        let index = link.header.index;
        let mut tended = Tended::default();
        let was_up = link.header.flags.contains(LinkFlags::Up);
        tended.record(self.tend_size(link, handle));
        tended.record(self.tend_state(index, was_up, handle));
        tended.record(self.tend_address(index, handle));
        for outcome in sysctl::prepare_device(&self.name, needs) {
            tended.record(outcome);
        }
        tended
    }

    /// MTU and queue length. Where IPv6 begins anew, that is while the device is down, so that it gets no link-local address.
    fn tend_size(&self, link: &LinkMessage, handle: &mut Handle) -> Result<Option<String>, Error> {
        let (mtu, queue) = (self.mtu.into(), QUEUE_LENGTH);
        let has = |attribute| link.attributes.contains(&attribute);
        if has(LinkAttribute::Mtu(mtu)) && has(LinkAttribute::TxQueueLen(queue)) {
            return Ok(None);
        }
        let before = mtu_of(link);
        let index = link.header.index;
        if before.is_some_and(|before| before < IPV6_MTU) && mtu >= IPV6_MTU {
            let what = format!("ip link set {} down", self.name);
            handle.request(&set(index, Some(false), Vec::new()), 0, what)?;
        }
        let size = vec![LinkAttribute::Mtu(mtu), LinkAttribute::TxQueueLen(queue)];
        let what = format!("ip link set {} mtu {mtu} txqueuelen {queue}", self.name);
        handle.request(&set(index, None, size), 0, what)?;
        Ok(match before {
            Some(before) if before != mtu => Some(format!("its MTU was {before}")),
            Some(_) | None => Some("its queue length was another".into()),
        })
    }

    /// Up, with a carrier, and under no other device.
    fn tend_state(&self, index: u32, was_up: bool, handle: &mut Handle) -> Result<Option<String>, Error> {
        // By now: another name or another MTU may have needed it down.
        let Some(link) = handle.link_of(index)? else {
            return Ok(None);
        };
        if sysctl::has_ipv6(&self.name) && !has_no_link_local(&link) {
            let what = format!("ip link set {} addrgenmode none", self.name);
            handle.request(&no_link_local(index), 0, what)?;
        }
        let is_up = link.header.flags.contains(LinkFlags::Up);
        let is_under = |attribute: &LinkAttribute| matches!(attribute, LinkAttribute::Controller(other) if *other != 0);
        let mut was = (!was_up).then(|| "it was down".to_owned());
        if link.attributes.iter().any(is_under) {
            let what = format!("ip link set {} nomaster", self.name);
            handle.request(&set(index, None, vec![LinkAttribute::Controller(0)]), 0, what)?;
            was = Some("it was under another device".into());
        }
        if !is_up {
            let what = format!("ip link set {} up", self.name);
            handle.request(&set(index, Some(true), Vec::new()), 0, what)?;
            return Ok(was);
        }
        match link.attributes.contains(&LinkAttribute::Carrier(0)) {
            true => self.carry(index, handle),
            false => Ok(was),
        }
    }

    fn carry(&self, index: u32, handle: &mut Handle) -> Result<Option<String>, Error> {
        let what = format!("ip link set {} carrier on", self.name);
        match handle.request(&set(index, None, vec![LinkAttribute::Carrier(1)]), 0, what) {
            Ok(()) => Ok(Some("its carrier was off".into())),
            // No process holds it (`tun_net_change_carrier`, drivers/net/tun.c): its holder's worker tells of that.
            Err(Error::Refused { source, .. }) if source.raw_os_error() == Some(libc::EPERM) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn tend_address(&self, index: u32, handle: &mut Handle) -> Result<Option<String>, Error> {
        let what = format!("ip address add {DUMMY_ADDRESS}/32 dev {} scope host", self.name);
        let address = RouteNetlinkMessage::NewAddress(dummy_address(index));
        match handle.request(&address, NLM_F_CREATE | NLM_F_EXCL, what) {
            Ok(()) => Ok(Some(format!("it had no address {DUMMY_ADDRESS}"))),
            Err(Error::Refused { source, .. }) if source.raw_os_error() == Some(libc::EEXIST) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// lbd's rules and settings go by its name.
    fn take_back_name(&self, index: u32, now: &str, handle: &mut Handle) -> Result<String, Error> {
        let what = || format!("ip link set {now} name {}", self.name);
        let message = set(index, None, vec![LinkAttribute::IfName(self.name.clone())]);
        let renamed = match handle.request(&message, 0, what()) {
            // Before Linux 6.2 only a device that is down can get another name (`dev_change_name`, net/core/dev.c).
            Err(Error::Refused { source, .. }) if source.raw_os_error() == Some(libc::EBUSY) => {
                let down = handle.request(
                    &set(index, Some(false), Vec::new()),
                    0,
                    format!("ip link set {now} down"),
                );
                down.and_then(|()| handle.request(&message, 0, what()))
            }
            other => other,
        };
        renamed
            .map(|()| format!("its name was {now}"))
            .map_err(|source| Error::Renamed {
                device: self.name.clone(),
                now: now.to_owned(),
                source: Box::new(source),
            })
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
}

/// Changes these of a link, and whether it is up.
fn set(index: u32, up: Option<bool>, attributes: Vec<LinkAttribute>) -> RouteNetlinkMessage {
    let mut link = LinkMessage::default();
    link.header.index = index;
    if let Some(up) = up {
        link.header.change_mask = LinkFlags::Up;
        link.header.flags = if up { LinkFlags::Up } else { LinkFlags::empty() };
    }
    link.attributes = attributes;
    RouteNetlinkMessage::SetLink(link)
}

fn name(link: &LinkMessage) -> Option<&str> {
    link.attributes.iter().find_map(|attribute| {
        if let LinkAttribute::IfName(name) = attribute {
            Some(name.as_str())
        } else {
            None
        }
    })
}

fn mtu_of(link: &LinkMessage) -> Option<u32> {
    link.attributes.iter().find_map(|attribute| {
        if let LinkAttribute::Mtu(mtu) = attribute {
            Some(*mtu)
        } else {
            None
        }
    })
}

fn has_no_link_local(link: &LinkMessage) -> bool {
    let none = AfSpecInet6::AddrGenMode(In6AddrGenMode::None);
    link.attributes.iter().any(|attribute| {
        if let LinkAttribute::AfSpecUnspec(families) = attribute {
            let mut families = families.iter();
            families.any(|family| matches!(family, AfSpecUnspec::Inet6(settings) if settings.contains(&none)))
        } else {
            false
        }
    })
}

/// Without a link-local address the kernel sends no router solicitations and no multicast reports into lbd.
fn no_link_local(index: u32) -> RouteNetlinkMessage {
    let mode = AfSpecInet6::AddrGenMode(In6AddrGenMode::None);
    let family = AfSpecUnspec::Inet6(vec![mode]);
    set(index, None, vec![LinkAttribute::AfSpecUnspec(vec![family])])
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
