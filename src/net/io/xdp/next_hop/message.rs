//! The kernel's links, addresses, neighbours, routes and rules, out of netlink messages.
#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "the attributes of the kernel's messages are open sets"
)]
use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use netlink_packet_route::link::{
    InfoData, InfoVlan, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage, VlanProtocol,
};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteMetric, RouteNextHop, RouteNextHopFlags, RouteType,
    RouteVia,
};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::links::{Kind, Link};
use super::neighbours::{Key, Neighbour};
use super::routes::{Action, Path, Route};
use super::rules::{self, Rule, Selector};
use super::sources::{Address, Scope};
use super::{Family, VlanTag};
use crate::plumbing;

pub(super) const fn family_number(family: Family) -> AddressFamily {
    match family {
        Family::V4 => AddressFamily::Inet,
        Family::V6 => AddressFamily::Inet6,
    }
}

/// A device; None for messages of bridges about their ports, and for parts of a device's state.
pub(super) fn link(message: &LinkMessage) -> Option<(u32, Link)> {
    if !is_of_device(message) {
        return None;
    }
    let flags = message.header.flags;
    let ethernet = message.header.link_layer_type == LinkLayerType::Ether;
    let (mut name, mut mac, mut mtu) = (None, None, None);
    let (mut parent, mut tag, mut abroad) = (None, None, false);
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(text) => name = Some(text.clone()),
            LinkAttribute::Address(bytes) => mac = bytes.as_slice().try_into().ok(),
            LinkAttribute::Mtu(bytes) => mtu = Some(*bytes),
            LinkAttribute::Link(index) => parent = Some(*index),
            LinkAttribute::LinkNetNsId(_) => abroad = true,
            LinkAttribute::LinkInfo(infos) => tag = vlan(infos),
            _ => {}
        }
    }
    let kind = match (ethernet && mac.is_some(), tag, parent) {
        (false, _, _) | (true, Some(_), None) => Kind::Other,
        (true, Some(_), Some(_)) if abroad => Kind::Other,
        (true, Some(tag), Some(parent)) => Kind::Vlan { parent, tag },
        (true, None, _) => Kind::Ethernet,
    };
    let link = Link {
        name: name?,
        mac: mac.unwrap_or_default(),
        mtu: mtu?,
        running: flags.contains(LinkFlags::Up | LinkFlags::LowerUp),
        kind,
    };
    Some((message.header.index, link))
}

/// Whether the message is about a device itself, and not about its part as a port of a bridge (`br_ifinfo_notify`).
pub(super) fn is_of_device(message: &LinkMessage) -> bool {
    message.header.interface_family == AddressFamily::Unspec
}

fn vlan(infos: &[LinkInfo]) -> Option<VlanTag> {
    let data = infos.iter().find_map(|info| {
        if let LinkInfo::Data(InfoData::Vlan(data)) = info {
            Some(data)
        } else {
            None
        }
    })?;
    let (mut id, mut protocol) = (None, VlanProtocol::Ieee8021Q);
    for item in data {
        match item {
            InfoVlan::Id(number) => id = Some(*number),
            InfoVlan::Protocol(given) => protocol = *given,
            _ => {}
        }
    }
    let protocol = u16::from(protocol);
    id.map(|id| VlanTag { protocol, id })
}

/// An address, and the device that has it.
pub(super) fn address(message: &AddressMessage) -> Option<(u32, Address)> {
    let (mut local, mut peer) = (None, None);
    let mut flags = AddressFlags::from_bits_retain(u32::from(message.header.flags.bits()));
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(address) => local = Some(*address),
            AddressAttribute::Address(address) => peer = Some(*address),
            AddressAttribute::Flags(all) => flags = *all,
            _ => {}
        }
    }
    let address = local.or(peer)?;
    let net = IpNet::new(peer.unwrap_or(address), message.header.prefix_len).ok()?;
    let scope = match u8::from(message.header.scope) {
        libc::RT_SCOPE_LINK => Scope::Link,
        libc::RT_SCOPE_HOST | libc::RT_SCOPE_NOWHERE => Scope::Host,
        _ => Scope::Global,
    };
    let avoided = flags.contains(AddressFlags::Deprecated) || address.is_ipv4() && is_secondary(flags);
    let unusable = flags.intersects(AddressFlags::Tentative | AddressFlags::Dadfailed)
        && !flags.contains(AddressFlags::Optimistic);
    let address = Address {
        address,
        net,
        scope,
        avoided,
        unusable,
    };
    Some((message.header.index, address))
}

/// IFA_F_SECONDARY; in IPv6 the same bit says that an address is temporary.
fn is_secondary(flags: AddressFlags) -> bool {
    flags.contains(AddressFlags::Secondary)
}

/// A neighbour; None for those of bridges, for groups, and for what is answered for others (NTF_PROXY).
pub(super) fn neighbour(message: &NeighbourMessage) -> Option<(Key, Neighbour)> {
    if message.header.flags.contains(NeighbourFlags::Proxy) {
        return None;
    }
    let (mut address, mut mac) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => address = Some(IpAddr::V4(*v4)),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => address = Some(IpAddr::V6(*v6)),
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = bytes.as_slice().try_into().ok(),
            _ => {}
        }
    }
    let state = u16::from(message.header.state);
    let is = |states: u16| state & states != 0;
    let neighbour = Neighbour {
        mac: mac.filter(|_| is(VALID)),
        confirmed: is(CONNECTED),
    };
    let address = address.filter(|address| !address.is_multicast())?;
    Some(((message.header.ifindex, address), neighbour))
}

/// NUD_CONNECTED of include/net/neighbour.h
const CONNECTED: u16 = libc::NUD_PERMANENT | libc::NUD_NOARP | libc::NUD_REACHABLE;
/// NUD_VALID of include/net/neighbour.h
const VALID: u16 = CONNECTED | libc::NUD_PROBE | libc::NUD_STALE | libc::NUD_DELAY;

/// Asks the kernel to use a neighbour: to resolve it, or to see whether it is still there.
///
/// Never to be sent for a permanent one: since Linux 5.16 that makes an ordinary one of it (`__neigh_update`).
pub(super) fn use_neighbour(neighbour: Key) -> RouteNetlinkMessage {
    let mut message = name_neighbour(neighbour);
    message.header.flags = NeighbourFlags::Use;
    message.header.state = NeighbourState::None;
    RouteNetlinkMessage::NewNeighbour(message)
}

/// Only says which neighbour is meant.
pub(super) fn name_neighbour((device, address): Key) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = family_number(Family::of(address));
    message.header.ifindex = device;
    let destination = NeighbourAttribute::Destination(address.into());
    message.attributes.push(destination);
    message
}

/// A route, its table and its prefix.
pub(super) fn route(message: &RouteMessage) -> Option<(Family, u32, IpNet, Route)> {
    let header = &message.header;
    let family = Family::BOTH
        .into_iter()
        .find(|family| family_number(*family) == header.address_family)?;
    if header.flags.contains(RouteFlags::Cloned) {
        return None;
    }
    let flags = RouteNextHopFlags::from_bits_retain((header.flags.bits() & 0xff) as u8);
    let mut parts = Parts::read(&message.attributes);
    if let Some(paths) = parts.several.take() {
        parts.paths = paths;
    } else if let Some(device) = parts.device {
        let path = path_of(device, parts.gateway, 0, flags);
        parts.paths.push(path);
    }
    // For packets of one source or type of service only: nothing that a destination alone could tell.
    let narrow = header.source_prefix_length > 0 || header.tos != 0;
    let forwards = !parts.odd && !narrow && !parts.paths.is_empty();
    let action = action(header.kind, forwards);
    let any = match family {
        Family::V4 => IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED),
        Family::V6 => IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED),
    };
    let net = IpNet::new(parts.destination.unwrap_or(any), header.destination_prefix_length).ok()?;
    let route = Route {
        // It comes before those for all packets, so that the kernel is asked.
        priority: if narrow { 0 } else { parts.priority },
        action,
        paths: parts.paths,
        source: parts.source,
        mtu: parts.mtu,
    };
    Some((family, parts.table.unwrap_or_else(|| header.table.into()), net, route))
}

fn action(kind: RouteType, forwards: bool) -> Action {
    match u8::from(kind) {
        libc::RTN_UNICAST if forwards => Action::Forward,
        libc::RTN_LOCAL => Action::Local,
        libc::RTN_BROADCAST => Action::Broadcast,
        libc::RTN_THROW => Action::Throw,
        _ => Action::Kernel,
    }
}

/// What the attributes of a route say.
#[derive(Default)]
struct Parts {
    table: Option<u32>,
    destination: Option<IpAddr>,
    source: Option<IpAddr>,
    priority: u32,
    mtu: Option<u32>,
    device: Option<u32>,
    gateway: Option<IpAddr>,
    several: Option<Vec<Path>>,
    paths: Vec<Path>,
    /// Encapsulated, or with another destination.
    odd: bool,
}

impl Parts {
    fn read(attributes: &[RouteAttribute]) -> Self {
        let mut parts = Self::default();
        for attribute in attributes {
            match attribute {
                RouteAttribute::Table(number) => parts.table = Some(*number),
                RouteAttribute::Destination(address) => parts.destination = plain(address),
                RouteAttribute::PrefSource(address) => parts.source = plain(address),
                RouteAttribute::Priority(number) => parts.priority = *number,
                RouteAttribute::Metrics(metrics) => parts.mtu = mtu(metrics),
                RouteAttribute::Oif(index) => parts.device = Some(*index),
                RouteAttribute::Gateway(address) => parts.set_gateway(plain(address)),
                RouteAttribute::Via(via) => parts.set_gateway(gateway_of(via)),
                RouteAttribute::MultiPath(hops) => parts.set_several(hops),
                RouteAttribute::EncapType(_)
                | RouteAttribute::Encap(_)
                | RouteAttribute::NewDestination(_)
                | RouteAttribute::NewDestinationAddress(_) => parts.odd = true,
                _ => {}
            }
        }
        parts
    }

    const fn set_gateway(&mut self, gateway: Option<IpAddr>) {
        self.odd |= gateway.is_none();
        self.gateway = gateway;
    }

    fn set_several(&mut self, hops: &[RouteNextHop]) {
        let mut paths = Vec::with_capacity(hops.len());
        for hop in hops {
            let inner = Self::read(&hop.attributes);
            self.odd |= inner.odd;
            paths.push(path_of(hop.interface_index, inner.gateway, hop.hops, hop.flags));
        }
        self.several = Some(paths);
    }
}

/// `hops` is the weight less one (`struct rtnexthop`).
fn path_of(device: u32, gateway: Option<IpAddr>, hops: u8, flags: RouteNextHopFlags) -> Path {
    Path {
        device,
        gateway,
        weight: u32::from(hops) + 1,
        // RTNH_F_LINKDOWN alone does not keep the kernel from a path, unless the device ignores such routes; then it is
        // marked dead as well (`fib_nexthop_info`).
        dead: flags.contains(RouteNextHopFlags::Dead),
    }
}

const fn plain(address: &RouteAddress) -> Option<IpAddr> {
    if let RouteAddress::Inet(v4) = address {
        Some(IpAddr::V4(*v4))
    } else if let RouteAddress::Inet6(v6) = address {
        Some(IpAddr::V6(*v6))
    } else {
        None
    }
}

const fn gateway_of(via: &RouteVia) -> Option<IpAddr> {
    if let RouteVia::Inet(v4) = via {
        Some(IpAddr::V4(*v4))
    } else if let RouteVia::Inet6(v6) = via {
        Some(IpAddr::V6(*v6))
    } else {
        None
    }
}

fn mtu(metrics: &[RouteMetric]) -> Option<u32> {
    metrics.iter().find_map(|metric| {
        if let RouteMetric::Mtu(mtu) = metric {
            Some(*mtu)
        } else {
            None
        }
    })
}

/// A policy rule.
pub(super) fn rule(message: &RuleMessage) -> Option<Rule> {
    let header = &message.header;
    let family = Family::BOTH
        .into_iter()
        .find(|family| family_number(*family) == header.family)?;
    let mut rule = Rule {
        family,
        priority: 0,
        selector: Selector::All,
        input: None,
        inverted: header.flags.contains(RuleFlags::Invert),
        action: rules::Action::Other,
        ours: plumbing::is_own_rule(message),
        text: String::new(),
    };
    let mut table = u32::from(header.table);
    let (mut mark, mut mask) = (0, u32::MAX);
    let (mut some, mut others) = (header.tos != 0, false);
    let (mut shortest, mut suppresses) = (0, false);
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Priority(number) => rule.priority = *number,
            RuleAttribute::Table(number) => table = *number,
            RuleAttribute::Iifname(name) => rule.input = Some(name.clone()),
            RuleAttribute::FwMark(bits) => mark = *bits,
            RuleAttribute::FwMask(bits) => mask = *bits,
            RuleAttribute::Oifname(_) | RuleAttribute::L3MDev(true) => others = true,
            // What is forwarded counts as user 0's (`sock_net_uid` without a socket).
            RuleAttribute::UidRange(range) if range.start > 0 => others = true,
            RuleAttribute::SuppressPrefixLen(u32::MAX) | RuleAttribute::SuppressIfGroup(u32::MAX) => {}
            RuleAttribute::SuppressPrefixLen(length) => {
                shortest = u8::try_from(*length).map_or(u8::MAX, |it| it.saturating_add(1));
            }
            RuleAttribute::SuppressIfGroup(_) => suppresses = true,
            RuleAttribute::Protocol(_) | RuleAttribute::L3MDev(false) => {}
            // Where a jump leads to matters to nobody here, nor do realms.
            RuleAttribute::Goto(_) | RuleAttribute::Realm(_) => {}
            _ => some = true,
        }
    }
    // An unmarked packet bears the mark 0.
    others |= mark & mask != 0;
    rule.selector = match (others, some) {
        (true, _) => Selector::Others,
        (false, true) => Selector::Some,
        (false, false) => Selector::All,
    };
    rule.action = match header.action {
        RuleAction::ToTable if !suppresses => rules::Action::Lookup(rules::Lookup { table, shortest }),
        RuleAction::Nop => rules::Action::Nothing,
        RuleAction::Blackhole | RuleAction::Unreachable | RuleAction::Prohibit => rules::Action::Refuse,
        _ => rules::Action::Other,
    };
    rule.text = describe(message, &rule);
    Some(rule)
}

/// About as `ip rule` shows it.
fn describe(message: &RuleMessage, rule: &Rule) -> String {
    let not = if rule.inverted { "not " } else { "" };
    let header = &message.header;
    let mut text = format!("{}: {not}", rule.priority);
    let mut add = |word: &str, value: &dyn std::fmt::Display| text += &format!("{word} {value} ");
    if header.src_len == 0 {
        add("from", &"all");
    }
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Source(address) => add("from", &format!("{address}/{}", header.src_len)),
            RuleAttribute::Destination(address) => add("to", &format!("{address}/{}", header.dst_len)),
            RuleAttribute::Iifname(name) => add("iif", name),
            RuleAttribute::Oifname(name) => add("oif", name),
            RuleAttribute::FwMark(mark) => add("fwmark", &format!("{mark:#x}")),
            RuleAttribute::IpProtocol(protocol) => add("ipproto", &u8::from(*protocol)),
            RuleAttribute::SourcePortRange(ports) => add("sport", &format!("{}-{}", ports.start, ports.end)),
            RuleAttribute::DestinationPortRange(ports) => add("dport", &format!("{}-{}", ports.start, ports.end)),
            RuleAttribute::SuppressPrefixLen(length) if *length != u32::MAX => add("suppress_prefixlength", length),
            RuleAttribute::Goto(priority) => add("goto", priority),
            _ => {}
        }
    }
    match rule.action {
        rules::Action::Lookup(lookup) => add("lookup", &lookup.table),
        rules::Action::Refuse => add("action", &"unreachable"),
        rules::Action::Nothing => add("action", &"nop"),
        rules::Action::Other => {}
    }
    text.trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::{Emitable, Parseable};
    use netlink_packet_route::link::InfoKind;
    use netlink_packet_route::rule::RuleUidRange;

    use super::*;

    /// As the kernel would send it.
    fn vlan_device() -> LinkMessage {
        let data = vec![InfoVlan::Id(100), InfoVlan::Protocol(VlanProtocol::Ieee8021Ad)];
        let mut message = LinkMessage::default();
        message.header.index = 7;
        message.header.link_layer_type = LinkLayerType::Ether;
        message.header.flags = LinkFlags::Up | LinkFlags::LowerUp;
        message.attributes = vec![
            LinkAttribute::IfName("eth0.100".into()),
            LinkAttribute::Mtu(1400),
            LinkAttribute::Link(2),
            LinkAttribute::Address(vec![2, 0, 0, 0, 0, 7]),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::Vlan),
                LinkInfo::Data(InfoData::Vlan(data)),
            ]),
        ];
        let mut bytes = vec![0; message.buffer_len()];
        message.emit(&mut bytes);
        LinkMessage::parse(&bytes).unwrap()
    }

    #[test]
    fn a_vlan_device_is_known_by_its_parent_and_its_tag() {
        let tag = VlanTag {
            protocol: 0x88a8,
            id: 100,
        };
        let expected = Link {
            name: "eth0.100".into(),
            mac: [2, 0, 0, 0, 0, 7],
            mtu: 1400,
            running: true,
            kind: Kind::Vlan { parent: 2, tag },
        };
        assert_eq!(link(&vlan_device()), Some((7, expected)));
    }

    #[test]
    fn a_vlan_device_over_a_device_of_another_namespace_is_none_of_ours() {
        let mut message = vlan_device();
        message.attributes.push(LinkAttribute::LinkNetNsId(0));
        assert_eq!(link(&message).unwrap().1.kind, Kind::Other);
    }

    #[test]
    fn a_message_about_a_bridges_port_is_no_message_about_the_device() {
        let mut message = vlan_device();
        message.header.interface_family = AddressFamily::Bridge;
        assert_eq!(link(&message), None);
    }

    fn unicast(attributes: Vec<RouteAttribute>) -> RouteMessage {
        let mut message = RouteMessage::default();
        message.header.address_family = AddressFamily::Inet;
        message.header.kind = RouteType::Unicast;
        message.header.table = 254;
        message.attributes = attributes;
        message
    }

    #[test]
    fn a_route_that_lbd_cannot_follow_is_the_kernels() {
        let gateway = RouteAttribute::Gateway(RouteAddress::Inet([10, 0, 0, 1].into()));
        let plain = vec![RouteAttribute::Oif(2), gateway];
        let encapsulated = RouteAttribute::EncapType(netlink_packet_route::route::RouteLwEnCapType::Mpls);
        let mut narrow = unicast(plain.clone());
        narrow.header.tos = 8;
        let action = |message: &RouteMessage| route(message).unwrap().3.action;
        assert_eq!(action(&unicast(plain.clone())), Action::Forward);
        assert_eq!(action(&unicast([plain, vec![encapsulated]].concat())), Action::Kernel);
        assert_eq!(action(&unicast(vec![RouteAttribute::NhId(5)])), Action::Kernel);
        assert_eq!(action(&narrow), Action::Kernel);
    }

    #[test]
    fn a_rule_for_user_0_is_for_forwarded_packets_too() {
        let selector = |start| {
            let mut message = RuleMessage::default();
            message.header.family = AddressFamily::Inet;
            message.header.action = RuleAction::ToTable;
            let range = RuleUidRange { start, end: 2000 };
            message.attributes = vec![RuleAttribute::UidRange(range)];
            rule(&message).unwrap().selector
        };
        assert_eq!(selector(1000), Selector::Others);
        assert_eq!(selector(0), Selector::Some);
    }
}
