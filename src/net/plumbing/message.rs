//! Routes and rules as netlink messages, and back.
use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::IpProtocol;
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage, RulePortRange};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::object::{Action, Family, LAST_PORT, LOCAL_TABLE, OWNER, Object, Route, Rule, Selector, Step, Target};
use lbd_core::flow::Protocol;
use lbd_core::packet::icmp;

/// What messages need to know beside the object.
#[derive(Clone, Debug)]
pub(super) struct Context {
    pub(super) device: String,
    pub(super) index: u32,
}

impl Context {
    /// For objects that have nothing to do with the device.
    pub(super) const fn nowhere() -> Self {
        Self {
            device: String::new(),
            index: 0,
        }
    }
}

/// The message that carries out `step`, with its flags.
pub(super) fn of_step(step: &Step, context: &Context) -> (RouteNetlinkMessage, u16) {
    const CREATE: u16 = NLM_F_CREATE | NLM_F_EXCL;
    match step {
        Step::Install(Object::Route(new)) => (RouteNetlinkMessage::NewRoute(route(new, context)), CREATE),
        Step::Undo(Object::Route(old)) => (RouteNetlinkMessage::DelRoute(route(old, context)), 0),
        Step::Install(Object::Rule(new)) => (RouteNetlinkMessage::NewRule(rule(new, context)), CREATE),
        Step::Undo(Object::Rule(old)) => (RouteNetlinkMessage::DelRule(rule(old, context)), 0),
        Step::Install(Object::NoFirstLocalRule(family, mark)) => {
            (RouteNetlinkMessage::DelRule(first_local_rule(*family, *mark)), 0)
        }
        Step::Undo(Object::NoFirstLocalRule(family, mark)) => {
            (RouteNetlinkMessage::NewRule(first_local_rule(*family, *mark)), CREATE)
        }
    }
}

/// As in `fib_default_rules_init` of net/ipv4/fib_rules.c and `fib6_rules_net_init` of net/ipv6/fib6_rules.c, but for the mark,
/// with which alone the kernel finds a rule that is to be deleted (`rule_find`, net/core/fib_rules.c).
fn first_local_rule(family: Family, mark: u8) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = address_family(family);
    message.header.action = RuleAction::ToTable;
    message.attributes = vec![
        RuleAttribute::Priority(0),
        RuleAttribute::Table(LOCAL_TABLE),
        RuleAttribute::Protocol(RouteProtocol::from(mark)),
    ];
    message
}

pub(super) const fn address_family(family: Family) -> AddressFamily {
    match family {
        Family::V4 => AddressFamily::Inet,
        Family::V6 => AddressFamily::Inet6,
    }
}

fn route(route: &Route, context: &Context) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = address_family(Family::of(route.net.addr()));
    message.header.destination_prefix_length = route.net.prefix_len();
    message.header.protocol = RouteProtocol::from(OWNER);
    message.header.table = RouteHeader::RT_TABLE_UNSPEC;
    message.attributes.push(RouteAttribute::Table(route.table));
    if route.net.prefix_len() > 0 {
        let destination = RouteAddress::from(route.net.addr());
        message.attributes.push(RouteAttribute::Destination(destination));
    }
    match route.target {
        Target::Device => {
            message.header.kind = RouteType::Unicast;
            message.header.scope = RouteScope::Link;
            message.attributes.push(RouteAttribute::Oif(context.index));
        }
        Target::Unreachable => message.header.kind = RouteType::Unreachable,
    }
    message
}

fn rule(rule: &Rule, context: &Context) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = address_family(rule.family);
    message.attributes.push(RuleAttribute::Priority(rule.priority));
    message
        .attributes
        .push(RuleAttribute::Protocol(RouteProtocol::from(OWNER)));
    select(&mut message, rule, context);
    match rule.action {
        Action::Lookup(table) => {
            message.header.action = RuleAction::ToTable;
            message.attributes.push(RuleAttribute::Table(table));
        }
        Action::Goto(priority) => {
            message.header.action = RuleAction::Goto;
            message.attributes.push(RuleAttribute::Goto(priority));
        }
    }
    message
}

/// Where the kernel says that a packet of its own comes from (`LOOPBACK_IFINDEX`, `ip_route_output_key_hash`).
const OWN: &str = "lo";

fn select(message: &mut RuleMessage, rule: &Rule, context: &Context) {
    let own = || RuleAttribute::Iifname(OWN.to_owned());
    let icmp = || RuleAttribute::IpProtocol(IpProtocol::from(icmp_number(rule.family)));
    match &rule.selector {
        Selector::All => {}
        Selector::FromDevice => {
            let device = context.device.clone();
            message.attributes.push(RuleAttribute::Iifname(device));
        }
        Selector::FromInterface(name) => message.attributes.push(RuleAttribute::Iifname(name.clone())),
        Selector::OwnError(source, range) => {
            if let Some(source) = *source {
                message.header.src_len = 32;
                message.attributes.push(RuleAttribute::Source(source.into()));
            }
            let range = RuleAttribute::DestinationPortRange(port_range(*range));
            message.attributes.extend([own(), icmp(), range]);
        }
        Selector::OwnFrom(net) => {
            message.header.src_len = net.prefix_len();
            let source = RuleAttribute::Source(net.addr());
            message.attributes.extend([own(), source]);
        }
        Selector::OwnIcmp => message.attributes.extend([own(), icmp()]),
        Selector::Icmp => message.attributes.push(icmp()),
        Selector::From(cover) => {
            message.header.src_len = cover.net.prefix_len();
            let source = RuleAttribute::Source(cover.net.addr());
            message.attributes.extend([source, protocol(cover.protocol)]);
            // No rule may name port 65535: then all ports of the backend come to lbd, which gives back what is not its own.
            if cover.ports.1 <= LAST_PORT {
                let ports = RuleAttribute::SourcePortRange(port_range(cover.ports));
                message.attributes.push(ports);
            }
        }
        Selector::To(cover) => {
            message.header.dst_len = cover.net.prefix_len();
            let destination = RuleAttribute::Destination(cover.net.addr());
            let ports = RuleAttribute::DestinationPortRange(port_range(cover.ports));
            message
                .attributes
                .extend([destination, protocol(cover.protocol), ports]);
        }
        Selector::WithSourcePort => {
            let ports = port_range((1, LAST_PORT));
            message.attributes.push(RuleAttribute::SourcePortRange(ports));
        }
        Selector::WithDestinationPort => {
            let ports = port_range((1, LAST_PORT));
            message.attributes.push(RuleAttribute::DestinationPortRange(ports));
        }
        Selector::AllFrom(of, net) => {
            message.header.src_len = net.prefix_len();
            let source = RuleAttribute::Source(net.addr());
            message.attributes.extend([source, protocol(*of)]);
        }
        Selector::AllTo(of, net) => {
            message.header.dst_len = net.prefix_len();
            let destination = RuleAttribute::Destination(net.addr());
            message.attributes.extend([destination, protocol(*of)]);
        }
    }
}

const fn icmp_number(family: Family) -> u8 {
    match family {
        Family::V4 => icmp::ICMP,
        Family::V6 => icmp::ICMPV6,
    }
}

fn protocol(protocol: Protocol) -> RuleAttribute {
    RuleAttribute::IpProtocol(IpProtocol::from(protocol.number()))
}

fn port_range((start, end): (u16, u16)) -> RulePortRange {
    RulePortRange {
        start: start.min(LAST_PORT),
        end: end.min(LAST_PORT),
    }
}

/// The question for the way to an address, and for the route by which it goes (`RTM_F_FIB_MATCH`).
pub(super) fn way_to(address: IpAddr) -> RouteMessage {
    let mut query = RouteMessage::default();
    query.header.address_family = address_family(Family::of(address));
    query.header.destination_prefix_length = if address.is_ipv4() { 32 } else { 128 };
    query.header.flags = RouteFlags::FibMatch;
    query.attributes.push(RouteAttribute::Destination(address.into()));
    query
}

/// Whether the answer is a route to a link, or to one address.
pub(super) fn leads_to_one_host(answer: &RouteNetlinkMessage) -> bool {
    let RouteNetlinkMessage::NewRoute(route) = answer else {
        return false;
    };
    let header = &route.header;
    let is_far = |attribute: &RouteAttribute| {
        matches!(
            attribute,
            RouteAttribute::Gateway(_) | RouteAttribute::Via(_) | RouteAttribute::MultiPath(_)
        )
    };
    let all = if header.address_family == AddressFamily::Inet {
        32
    } else {
        128
    };
    let length = header.destination_prefix_length;
    header.kind == RouteType::Unicast && length > 0 && (length == all || !route.attributes.iter().any(is_far))
}

/// Whether lbd put this rule in.
pub(crate) fn is_ours(rule: &RuleMessage) -> bool {
    let owner = RuleAttribute::Protocol(RouteProtocol::from(OWNER));
    rule.attributes.contains(&owner)
}

/// By whom a rule is marked; 0 (`RTPROT_UNSPEC`) where nobody is named.
pub(super) fn mark(rule: &RuleMessage) -> u8 {
    let mark = rule.attributes.iter().find_map(|attribute| {
        if let RuleAttribute::Protocol(protocol) = attribute {
            Some(u8::from(*protocol))
        } else {
            None
        }
    });
    mark.unwrap_or(0)
}

/// The priority of a rule; the kernel leaves 0 out.
pub(super) fn priority(rule: &RuleMessage) -> u32 {
    let priority = rule.attributes.iter().find_map(|attribute| {
        if let RuleAttribute::Priority(priority) = attribute {
            Some(*priority)
        } else {
            None
        }
    });
    priority.unwrap_or(0)
}

/// Whether this rule sends every packet to the local table.
pub(super) fn is_local_rule(rule: &RuleMessage) -> bool {
    let selects = rule.attributes.iter().any(|attribute| {
        matches!(
            attribute,
            RuleAttribute::Source(_)
                | RuleAttribute::Destination(_)
                | RuleAttribute::Iifname(_)
                | RuleAttribute::Oifname(_)
                | RuleAttribute::FwMark(_)
                | RuleAttribute::IpProtocol(_)
        )
    });
    !selects && rule.attributes.contains(&RuleAttribute::Table(LOCAL_TABLE))
}

/// A dumped route, where it is one of lbd's, and the index of its device.
pub(super) fn our_route(message: &RouteMessage) -> Option<(Route, Option<u32>)> {
    if message.header.protocol != RouteProtocol::from(OWNER) {
        return None;
    }
    let family = Family::BOTH
        .into_iter()
        .find(|&f| address_family(f) == message.header.address_family)?;
    let (mut table, mut device) = (u32::from(message.header.table), None);
    let mut address = family.default_net().addr();
    for attribute in &message.attributes {
        if let RouteAttribute::Table(number) = attribute {
            table = *number;
        } else if let RouteAttribute::Oif(index) = attribute {
            device = Some(*index);
        } else if let RouteAttribute::Destination(RouteAddress::Inet(v4)) = attribute {
            address = IpAddr::V4(*v4);
        } else if let RouteAttribute::Destination(RouteAddress::Inet6(v6)) = attribute {
            address = IpAddr::V6(*v6);
        }
    }
    let net = IpNet::new(address, message.header.destination_prefix_length).ok()?;
    let unreachable = message.header.kind == RouteType::Unreachable;
    let target = if unreachable {
        Target::Unreachable
    } else {
        Target::Device
    };
    Some((Route { net, table, target }, device.filter(|_| !unreachable)))
}
