//! What can be put into the kernel, one by one: routes and policy rules, and the order in which a plan's go in.
//!
//! They go in in the order of [`objects`] and come out in the reverse order. At no moment is the host without its local
//! table, and at no moment do packets that lbd wrote meet lbd's own routes.
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::cover::{Cover, cover_backends, cover_local_ports};
use super::plan::Plan;
use lbd_core::flow::{Endpoint, Protocol};

/// Marks every rule (FRA_PROTOCOL) and route (rtm_protocol) of lbd. 108 is free in `/etc/iproute2/rt_protos`.
pub(super) const OWNER: u8 = 108;
/// Service, external and pool addresses, through the device.
pub(crate) const SERVICES_TABLE: u32 = 7762;
/// A default route through the device, for what a rule has selected.
pub(crate) const DIVERT_TABLE: u32 = 7763;
/// Service, external and pool addresses, unreachable: for packets that lbd has passed on.
pub(super) const REFUSE_TABLE: u32 = 7764;
/// `RT_TABLE_LOCAL`
pub(super) const LOCAL_TABLE: u32 = 255;

/// The last port that a policy rule may name (`fib_rule_port_range_valid`, include/net/fib_rules.h).
pub(super) const LAST_PORT: u16 = 65_534;

const SKIP_LOCAL_PORTS: u32 = 10;
const LOCAL_PORTS: u32 = 11;
const SKIP_LOCAL_FRAGMENTS: u32 = 12;
const LOCAL_FRAGMENTS: u32 = 13;
/// Where the local table's rule stands while there are local ports.
pub(super) const LOCAL: u32 = 20;
const SKIP_ROUTES: u32 = 30;
const REPLIES: u32 = 31;
const OWN_ERRORS: u32 = 32;
const SKIP_ICMP: u32 = 33;
const ICMP: u32 = 34;
const SKIP_FRAGMENTS: u32 = 35;
const FRAGMENTS: u32 = 36;
pub(super) const SERVICES: u32 = 37;
const REFUSE: u32 = 39;

/// An IP version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Family {
    V4,
    V6,
}

impl Family {
    pub(super) const BOTH: [Self; 2] = [Self::V4, Self::V6];

    pub(super) const fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }

    const fn of_net(net: IpNet) -> Self {
        match net {
            IpNet::V4(_) => Self::V4,
            IpNet::V6(_) => Self::V6,
        }
    }

    /// Everything, as a prefix.
    pub(super) fn default_net(self) -> IpNet {
        match self {
            Self::V4 => Ipv4Net::default().into(),
            Self::V6 => Ipv6Net::default().into(),
        }
    }

    /// Its ICMP, as `ip` calls it.
    const fn icmp(self) -> &'static str {
        match self {
            Self::V4 => "icmp",
            Self::V6 => "ipv6-icmp",
        }
    }

    /// Errors about packets on their way, first and last, as the kernel has them in place of a destination port when it looks for
    /// the way of its own ICMP: the type in the upper byte, the code in the lower one (`union flowi_uli`, include/net/flow.h;
    /// `icmp_route_lookup`, `icmp6_send`). What it forwards has 0 there.
    const fn errors(self, scope: Errors) -> &'static [(u16, u16)] {
        match (self, scope) {
            // Host unreachable, and fragmentation needed (RFC 792).
            (Self::V4, Errors::OfTracked) => &[(3 << 8 | 1, 3 << 8 | 1), (3 << 8 | 4, 3 << 8 | 4)],
            // Address unreachable, and packet too big (RFC 4443 sections 3.1 and 3.2).
            (Self::V6, Errors::OfTracked) => &[(1 << 8 | 3, 1 << 8 | 3), (2 << 8, 2 << 8)],
            // Destination unreachable, time exceeded, parameter problem.
            (Self::V4, Errors::All) => &[UNREACHABLE, (11 << 8, 11 << 8 | 1), (12 << 8, 12 << 8 | 2)],
            (Self::V6, Errors::All) => &[
                (1 << 8, 1 << 8 | 7),
                (2 << 8, 2 << 8),
                (3 << 8, 3 << 8 | 1),
                (4 << 8, 4 << 8 | 3),
            ],
        }
    }

    const fn option(self) -> &'static str {
        match self {
            Self::V4 => "-4",
            Self::V6 => "-6",
        }
    }
}

/// Destination unreachable with any code (RFC 792, RFC 1812 section 5.2.7.1).
const UNREACHABLE: (u16, u16) = (3 << 8, 3 << 8 | 15);

/// Which errors that this host itself sends are led to lbd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Errors {
    /// All about packets that it was to forward.
    All,
    /// Only those about packets that the host has begun to send, so that its connection tracking knows what they are about. Others
    /// (no route, port unreachable, time exceeded), where they are none of lbd's business, would come out of the device as INVALID,
    /// which firewalls drop, kube-proxy's too.
    OfTracked,
}

/// `RTPROT_KERNEL` (include/uapi/linux/rtnetlink.h), by which the kernel's own rules are marked.
pub(super) const KERNEL: u8 = 2;

/// The rules for the local table at priority 0, where the kernel puts one: by whom each is marked (FRA_PROTOCOL). Who put it
/// back by hand has left the mark of `ip`, and there may be several.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct FirstLocalRules {
    pub(super) v4: Vec<u8>,
    pub(super) v6: Vec<u8>,
}

impl FirstLocalRules {
    pub(super) fn of(&self, family: Family) -> &[u8] {
        match family {
            Family::V4 => &self.v4,
            Family::V6 => &self.v6,
        }
    }
}

/// Which packets a rule is for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Selector {
    All,
    /// What lbd has written to its device.
    FromDevice,
    /// What came in by this interface.
    FromInterface(String),
    From(Cover),
    To(Cover),
    /// Whatever has a source port that the kernel sees: everything but fragments, other protocols, and port 65535.
    WithSourcePort,
    /// The same for the destination port. Before a local program has a source port, the kernel asks with this one alone
    /// (`ip_route_connect`, include/net/route.h).
    WithDestinationPort,
    /// Whatever the port.
    AllFrom(Protocol, IpNet),
    /// Whatever the port.
    AllTo(Protocol, IpNet),
    /// What this host itself says in ICMP, or ICMPv6, about packets on their way: one of a range of [`Family::errors`]. In IPv4 those
    /// from one address, where one is named: 0.0.0.0 as long as none is chosen, which is so for an error about a packet that was to be
    /// forwarded, else the address that the packet came to (`__icmp_send`, net/ipv4/icmp.c).
    OwnError(Option<Ipv4Addr>, (u16, u16)),
    /// Whatever this host sends from there.
    OwnFrom(IpNet),
    /// All that it says in ICMP.
    OwnIcmp,
    /// ICMP, or ICMPv6.
    Icmp,
}

/// What a rule does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Action {
    Lookup(u32),
    Goto(u32),
}

/// A policy rule.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Rule {
    pub(super) family: Family,
    pub(super) priority: u32,
    pub(super) selector: Selector,
    pub(super) action: Action,
}

/// Where a route leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Target {
    Device,
    Unreachable,
}

/// A route in one of lbd's tables.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Route {
    pub(super) net: IpNet,
    pub(super) table: u32,
    pub(super) target: Target,
}

/// Something that lbd has put into the kernel, or for the last one, taken out.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Object {
    Route(Route),
    Rule(Rule),
    /// The rule for the local table at priority 0 that is marked so is absent.
    NoFirstLocalRule(Family, u8),
}

impl Object {
    pub(super) const fn family(&self) -> Family {
        match self {
            Self::Route(route) => Family::of_net(route.net),
            Self::Rule(rule) => rule.family,
            Self::NoFirstLocalRule(family, _) => *family,
        }
    }

    /// The service, external or pool address that it leads to lbd, or refuses where lbd has passed a packet on.
    pub(super) const fn service_address(&self) -> Option<IpNet> {
        match self {
            Self::Route(Route {
                net,
                table: SERVICES_TABLE | REFUSE_TABLE,
                ..
            }) => Some(*net),
            Self::Route(_) | Self::Rule(_) | Self::NoFirstLocalRule(..) => None,
        }
    }
}

/// A change of one object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Install(Object),
    Undo(Object),
}

impl Step {
    /// What it changes.
    pub(super) const fn object(&self) -> &Object {
        match self {
            Self::Install(object) | Self::Undo(object) => object,
        }
    }

    pub(super) fn into_object(self) -> Object {
        match self {
            Self::Install(object) | Self::Undo(object) => object,
        }
    }

    pub(super) fn inverse(self) -> Self {
        match self {
            Self::Install(object) => Self::Undo(object),
            Self::Undo(object) => Self::Install(object),
        }
    }

    pub(super) const fn is_removal(&self) -> bool {
        match self {
            Self::Install(_) => false,
            Self::Undo(_) => true,
        }
    }

    /// Whether the host depends on it before the next step: it must be known to have worked.
    pub(super) const fn is_barrier(&self) -> bool {
        matches!(
            self,
            Self::Install(Object::NoFirstLocalRule(..)) | Self::Undo(Object::NoFirstLocalRule(..))
        )
    }
}

/// What changes `old` into `new`: additions in their order, then removals in reverse order.
pub(super) fn difference(old: &[Object], new: &[Object]) -> Vec<Step> {
    let had: HashSet<&Object> = old.iter().collect();
    let wanted: HashSet<&Object> = new.iter().collect();
    let added = new.iter().filter(|object| !had.contains(object));
    let gone = old.iter().rev().filter(|object| !wanted.contains(object));
    added
        .map(|object| Step::Install(object.clone()))
        .chain(gone.map(|object| Step::Undo(object.clone())))
        .collect()
}

/// Everything that `plan` puts into the kernel; `first_local_rules`: those that are there without lbd.
/// `elsewhere` are addresses of `plan` that other hosts have.
pub(super) fn objects(plan: &Plan, elsewhere: &BTreeSet<IpNet>, first_local_rules: &FirstLocalRules) -> Vec<Object> {
    let mut objects = Vec::new();
    for family in Family::BOTH {
        if plan.uses(family) {
            let routes = routes(plan, elsewhere, family);
            objects.extend(routes.into_iter().map(Object::Route));
            let at = |priority, selector, action| rule(family, priority, selector, action);
            objects.push(at(REFUSE, Selector::FromDevice, Action::Lookup(REFUSE_TABLE)));
            objects.push(at(SKIP_ROUTES, Selector::FromDevice, Action::Goto(REFUSE)));
            let served = plan.served.iter().cloned().map(Selector::FromInterface);
            objects.extend(served.map(|selector| at(SKIP_ROUTES, selector, Action::Goto(SERVICES))));
            objects.extend(local_rules(plan, family, first_local_rules.of(family)));
            let replies = cover_backends(&of_family(&plan.replies, family));
            let diverted: Vec<Cover> = covers_of(&plan.diverted, family).collect();
            let resets = reset_sources(plan, family, &replies);
            let fragments = (hosts(&replies).map(|(protocol, net)| Selector::AllFrom(protocol, net)))
                .chain(hosts(&diverted).map(|(protocol, net)| Selector::AllTo(protocol, net)))
                .chain(resets.iter().copied().map(Selector::OwnFrom));
            let apart = own_sources(plan, &resets)
                .map(|own| at(SKIP_FRAGMENTS, Selector::OwnFrom(own), Action::Goto(SERVICES)));
            let fragments = fragment_rules(family, [SKIP_FRAGMENTS, FRAGMENTS, SERVICES], fragments);
            let fragments: Vec<Object> = apart.chain(fragments).collect();
            let replies = replies.into_iter().map(Selector::From);
            let diverted = diverted.into_iter().map(Selector::To);
            let select = |selector| at(REPLIES, selector, Action::Lookup(DIVERT_TABLE));
            objects.extend(replies.chain(diverted).map(select));
            if plan.has_replies(family) {
                let errors = own_errors(plan, family).into_iter();
                objects.extend(errors.map(|selector| at(OWN_ERRORS, selector, Action::Lookup(DIVERT_TABLE))));
                objects.push(at(SKIP_ICMP, Selector::OwnIcmp, Action::Goto(SERVICES)));
                objects.push(at(ICMP, Selector::Icmp, Action::Lookup(DIVERT_TABLE)));
            }
            objects.push(at(SERVICES, Selector::All, Action::Lookup(SERVICES_TABLE)));
            objects.extend(fragments);
        }
    }
    objects
}

/// Which of this host's own errors are led to lbd.
fn own_errors(plan: &Plan, family: Family) -> Vec<Selector> {
    let select = |source: Option<Ipv4Addr>, scope| {
        let errors = family.errors(scope).iter();
        errors
            .map(move |&range| Selector::OwnError(source, range))
            .collect::<Vec<_>>()
    };
    match (plan.returns_errors, family) {
        (false, Family::V4 | Family::V6) => select(None, Errors::OfTracked),
        (true, Family::V6) => select(None, Errors::All),
        (true, Family::V4) => {
            let own = plan
                .own_backends()
                .map(|own| Selector::OwnError(Some(own), UNREACHABLE));
            own.chain(select(Some(Ipv4Addr::UNSPECIFIED), Errors::All)).collect()
        }
    }
}

/// Where the RST comes from that this host sends in the name of a backend, when a firewall rule of its rejects a segment. The kernel
/// looks for its way without a protocol and ports (`nf_send_reset` and `ip_route_me_harder`; in IPv6 with them).
fn reset_sources(plan: &Plan, family: Family, replies: &[Cover]) -> Vec<IpNet> {
    let is_own = |net: IpNet| net.prefix_len() == net.max_prefix_len() && plan.own.contains(&net.addr());
    let is_reset =
        |&(protocol, net): &(Protocol, IpNet)| family == Family::V4 && protocol == Protocol::Tcp && !is_own(net);
    hosts(replies).filter(is_reset).map(|(_, net)| net).collect()
}

/// This host's own addresses among these, from which it sends other things, too.
fn own_sources<'a>(plan: &'a Plan, nets: &'a [IpNet]) -> impl Iterator<Item = IpNet> + 'a {
    let is_among = |own: &&IpAddr| nets.iter().any(|net| net.contains(*own));
    plan.own.iter().filter(is_among).map(|&own| own.into())
}

/// The rule that leads the RSTs to lbd that this host sends in the name of backends in `net`.
pub(super) const fn resets_rule(net: IpNet) -> Rule {
    Rule {
        family: Family::V4,
        priority: FRAGMENTS,
        selector: Selector::OwnFrom(net),
        action: Action::Lookup(DIVERT_TABLE),
    }
}

/// The rule that leads what `cover` answers to lbd.
pub(super) const fn reply_rule(family: Family, cover: Cover) -> Rule {
    Rule {
        family,
        priority: REPLIES,
        selector: Selector::From(cover),
        action: Action::Lookup(DIVERT_TABLE),
    }
}

/// The rule that leads the fragments from `net` to lbd.
pub(super) const fn fragments_rule(family: Family, protocol: Protocol, net: IpNet) -> Rule {
    Rule {
        family,
        priority: FRAGMENTS,
        selector: Selector::AllFrom(protocol, net),
        action: Action::Lookup(DIVERT_TABLE),
    }
}

/// Whether it is the rule before which those of [`reply_rule`] come.
pub(super) fn is_services_rule(object: &Object, family: Family) -> bool {
    match object {
        Object::Rule(rule) => rule.family == family && rule.priority == SERVICES,
        Object::Route(_) | Object::NoFirstLocalRule(..) => false,
    }
}

/// Rules for fragments only. A rule with a port never matches one, and a rule without a port matches whole packets of every
/// port; so whole packets go past the latter: from `skip` to `end`.
fn fragment_rules(
    family: Family,
    [skip, at, end]: [u32; 3],
    fragments: impl Iterator<Item = Selector>,
) -> impl Iterator<Item = Object> {
    let mut fragments = fragments
        .map(move |selector| rule(family, at, selector, Action::Lookup(DIVERT_TABLE)))
        .peekable();
    let has_fragments = fragments.peek().is_some();
    let whole = [Selector::WithSourcePort, Selector::WithDestinationPort]
        .into_iter()
        .filter(move |_| has_fragments)
        .map(move |selector| rule(family, skip, selector, Action::Goto(end)));
    whole.chain(fragments)
}

/// Where the fragments come from, or go to, that may be of these endpoints.
fn hosts(covers: &[Cover]) -> impl Iterator<Item = (Protocol, IpNet)> + use<> {
    let mut nets: BTreeMap<Protocol, Vec<IpNet>> = BTreeMap::new();
    for cover in covers.iter().filter(|cover| cover.protocol.has_fragments()) {
        nets.entry(cover.protocol).or_default().push(cover.net);
    }
    nets.into_iter()
        .flat_map(|(protocol, nets)| IpNet::aggregate(&nets).into_iter().map(move |net| (protocol, net)))
}

fn routes(plan: &Plan, elsewhere: &BTreeSet<IpNet>, family: Family) -> Vec<Route> {
    let to_device = |net, table| Route {
        net,
        table,
        target: Target::Device,
    };
    let refused = |net| Route {
        net,
        table: REFUSE_TABLE,
        target: Target::Unreachable,
    };
    let nets = || {
        plan.routes
            .iter()
            .copied()
            .filter(|net| Family::of(net.addr()) == family)
    };
    let divert = to_device(family.default_net(), DIVERT_TABLE);
    std::iter::once(divert)
        .chain(nets().filter(|net| !elsewhere.contains(net)).map(refused))
        .chain(nets().map(|net| to_device(net, SERVICES_TABLE)))
        .collect()
}

/// Local ports must be asked for before the local table, so that table's rule moves back behind them. Where somebody
/// else has moved it already, lbd's own rule at [`LOCAL`] keeps lbd's later rules behind the local table.
fn local_rules(plan: &Plan, family: Family, at_first: &[u8]) -> Vec<Object> {
    let mut ports = cover_local_ports(&of_family(&plan.local_ports, family));
    ports.extend(
        covers_of(&plan.diverted_locally, family)
            .filter(|cover| !ports.contains(cover))
            .collect::<Vec<_>>(),
    );
    if ports.is_empty() && !at_first.is_empty() {
        return Vec::new();
    }
    let at = |priority, selector, action| rule(family, priority, selector, action);
    let mut objects = vec![
        at(LOCAL, Selector::All, Action::Lookup(LOCAL_TABLE)),
        at(SKIP_LOCAL_PORTS, Selector::FromDevice, Action::Goto(LOCAL)),
    ];
    let fragments = hosts(&ports).map(|(protocol, net)| Selector::AllTo(protocol, net));
    let fragments = fragment_rules(family, [SKIP_LOCAL_FRAGMENTS, LOCAL_FRAGMENTS, LOCAL], fragments);
    let ports = ports.into_iter().map(Selector::To);
    objects.extend(ports.map(|to| at(LOCAL_PORTS, to, Action::Lookup(DIVERT_TABLE))));
    objects.extend(fragments);
    objects.extend(at_first.iter().map(|&mark| Object::NoFirstLocalRule(family, mark)));
    objects
}

fn covers_of(covers: &BTreeSet<Cover>, family: Family) -> impl Iterator<Item = Cover> {
    covers
        .iter()
        .copied()
        .filter(move |cover| Family::of(cover.net.addr()) == family)
}

fn of_family(endpoints: &BTreeSet<(Protocol, Endpoint)>, family: Family) -> BTreeSet<(Protocol, Endpoint)> {
    let same = endpoints
        .iter()
        .filter(|(_, endpoint)| Family::of(endpoint.address) == family);
    same.copied().collect()
}

const fn rule(family: Family, priority: u32, selector: Selector, action: Action) -> Object {
    Object::Rule(Rule {
        family,
        priority,
        selector,
        action,
    })
}

impl fmt::Display for Step {
    /// The `ip` command that would do the same.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (verb, opposite, object) = match self {
            Self::Install(object) => ("add", "del", object),
            Self::Undo(object) => ("del", "add", object),
        };
        match object {
            Object::Route(route) => write!(f, "ip route {verb} {route}"),
            Object::Rule(rule) => write!(f, "ip {} rule {verb} {rule}", rule.family.option()),
            Object::NoFirstLocalRule(family, KERNEL) => {
                write!(f, "ip {} rule {opposite} pref 0 lookup local", family.option())
            }
            Object::NoFirstLocalRule(family, mark) => {
                let family = family.option();
                write!(f, "ip {family} rule {opposite} pref 0 lookup local protocol {mark}")
            }
        }
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.target {
            Target::Device => write!(f, "{} table {}", self.net, self.table),
            Target::Unreachable => write!(f, "unreachable {} table {}", self.net, self.table),
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pref {}", self.priority)?;
        match &self.selector {
            Selector::All => {}
            Selector::FromDevice => write!(f, " iif DEVICE")?,
            Selector::FromInterface(name) => write!(f, " iif {name}")?,
            Selector::OwnError(source, (first, last)) => {
                if let Some(source) = source {
                    write!(f, " from {source}")?;
                }
                write!(f, " iif lo ipproto {} dport {first}-{last}", self.family.icmp())?;
            }
            Selector::OwnFrom(net) => write!(f, " from {net} iif lo")?,
            Selector::OwnIcmp => write!(f, " iif lo ipproto {}", self.family.icmp())?,
            Selector::Icmp => write!(f, " ipproto {}", self.family.icmp())?,
            Selector::From(cover) => {
                let (first, last) = cover.ports;
                write!(f, " from {} ipproto {} sport {first}-{last}", cover.net, cover.protocol)?;
            }
            Selector::To(cover) => {
                let (first, last) = cover.ports;
                write!(f, " to {} ipproto {} dport {first}-{last}", cover.net, cover.protocol)?;
            }
            Selector::WithSourcePort => write!(f, " sport 1-{LAST_PORT}")?,
            Selector::WithDestinationPort => write!(f, " dport 1-{LAST_PORT}")?,
            Selector::AllFrom(protocol, net) => write!(f, " from {net} ipproto {protocol}")?,
            Selector::AllTo(protocol, net) => write!(f, " to {net} ipproto {protocol}")?,
        }
        match self.action {
            Action::Lookup(table) => write!(f, " lookup {table}"),
            Action::Goto(priority) => write!(f, " goto {priority}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn first() -> FirstLocalRules {
        FirstLocalRules {
            v4: vec![KERNEL],
            v6: vec![KERNEL],
        }
    }

    fn endpoint(text: &str) -> (Protocol, Endpoint) {
        (Protocol::Tcp, text.parse().unwrap())
    }

    fn plan(routes: &[&str], local_ports: &[&str], replies: &[&str]) -> Plan {
        Plan {
            routes: routes.iter().map(|text| text.parse().unwrap()).collect(),
            local_ports: local_ports.iter().map(|text| endpoint(text)).collect(),
            replies: replies.iter().map(|text| endpoint(text)).collect(),
            ..Plan::default()
        }
    }

    fn commands(old: &Plan, new: &Plan) -> Vec<String> {
        let steps = difference(
            &objects(old, &BTreeSet::new(), &first()),
            &objects(new, &BTreeSet::new(), &first()),
        );
        steps.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_service_needs_routes_first_and_the_rule_that_uses_them_last() {
        let plan = plan(&["10.96.0.10/32"], &[], &["10.2.0.11:8080"]);
        assert_eq!(
            commands(&Plan::default(), &plan),
            [
                "ip route add 0.0.0.0/0 table 7763",
                "ip route add unreachable 10.96.0.10/32 table 7764",
                "ip route add 10.96.0.10/32 table 7762",
                "ip -4 rule add pref 39 iif DEVICE lookup 7764",
                "ip -4 rule add pref 30 iif DEVICE goto 39",
                "ip -4 rule add pref 31 from 10.2.0.11/32 ipproto tcp sport 8080-8080 lookup 7763",
                "ip -4 rule add pref 32 iif lo ipproto icmp dport 769-769 lookup 7763",
                "ip -4 rule add pref 32 iif lo ipproto icmp dport 772-772 lookup 7763",
                "ip -4 rule add pref 33 iif lo ipproto icmp goto 37",
                "ip -4 rule add pref 34 ipproto icmp lookup 7763",
                "ip -4 rule add pref 37 lookup 7762",
                "ip -4 rule add pref 35 sport 1-65534 goto 37",
                "ip -4 rule add pref 35 dport 1-65534 goto 37",
                "ip -4 rule add pref 36 from 10.2.0.11/32 ipproto tcp lookup 7763",
                "ip -4 rule add pref 36 from 10.2.0.11/32 iif lo lookup 7763",
            ]
        );
    }

    #[test]
    fn where_errors_can_be_returned_all_about_forwarded_packets_and_own_backends_are_led_and_nothing_else_of_own_addresses()
     {
        let mut plan = plan(
            &["10.96.0.10/32", "fd00::10/128"],
            &[],
            &["10.2.0.0:80", "10.2.0.1:80", "[fd00::11]:80"],
        );
        plan.returns_errors = true;
        plan.own = ["10.2.0.1", "10.1.0.1"].map(|text| text.parse().unwrap()).into();
        let commands = commands(&Plan::default(), &plan);
        let told = |part: &str| -> Vec<&str> {
            let told = commands.iter().filter(|command| command.contains(part));
            told.filter_map(|command| command.split_once("pref ").map(|(_, rest)| rest))
                .collect()
        };
        assert_eq!(
            told("pref 32"),
            [
                "32 from 10.2.0.1 iif lo ipproto icmp dport 768-783 lookup 7763",
                "32 from 0.0.0.0 iif lo ipproto icmp dport 768-783 lookup 7763",
                "32 from 0.0.0.0 iif lo ipproto icmp dport 2816-2817 lookup 7763",
                "32 from 0.0.0.0 iif lo ipproto icmp dport 3072-3074 lookup 7763",
                "32 iif lo ipproto ipv6-icmp dport 256-263 lookup 7763",
                "32 iif lo ipproto ipv6-icmp dport 512-512 lookup 7763",
                "32 iif lo ipproto ipv6-icmp dport 768-769 lookup 7763",
                "32 iif lo ipproto ipv6-icmp dport 1024-1027 lookup 7763",
            ]
        );
        assert_eq!(
            told("iif lo goto 37"),
            ["35 from 10.2.0.1/32 iif lo goto 37"],
            "before the rules of backends around it"
        );
        assert_eq!(told("iif lo lookup"), ["36 from 10.2.0.0/31 iif lo lookup 7763"]);
    }

    #[test]
    fn what_goes_out_goes_in_the_reverse_order() {
        let plan = plan(&["10.96.0.10/32"], &["192.0.2.1:30080"], &["10.2.0.11:8080"]);
        let there = difference(&[], &objects(&plan, &BTreeSet::new(), &first()));
        let back = difference(&objects(&plan, &BTreeSet::new(), &first()), &[]);
        let undone: Vec<Step> = there.into_iter().rev().map(Step::inverse).collect();
        assert_eq!(back, undone);
    }

    #[test]
    fn a_node_port_moves_the_local_rule_and_never_leaves_the_host_without_it() {
        let without = plan(&["10.96.0.10/32"], &[], &[]);
        let with = plan(&["10.96.0.10/32"], &["192.0.2.1:30080"], &[]);
        assert_eq!(
            commands(&without, &with),
            [
                "ip -4 rule add pref 20 lookup 255",
                "ip -4 rule add pref 10 iif DEVICE goto 20",
                "ip -4 rule add pref 11 to 192.0.2.1/32 ipproto tcp dport 30080-30080 lookup 7763",
                "ip -4 rule add pref 12 sport 1-65534 goto 20",
                "ip -4 rule add pref 12 dport 1-65534 goto 20",
                "ip -4 rule add pref 13 to 192.0.2.1/32 ipproto tcp lookup 7763",
                "ip -4 rule del pref 0 lookup local",
            ]
        );
        assert_eq!(commands(&with, &without)[0], "ip -4 rule add pref 0 lookup local");
    }

    #[test]
    fn a_local_rule_that_somebody_else_moved_is_not_put_back() {
        let plan = plan(&["10.96.0.10/32"], &["192.0.2.1:30080"], &[]);
        let objects = objects(&plan, &BTreeSet::new(), &FirstLocalRules::default());
        assert!(!objects.contains(&Object::NoFirstLocalRule(Family::V4, KERNEL)));
    }

    #[test]
    fn a_new_backend_is_added_before_an_old_one_is_taken_out() {
        let old = plan(&["10.96.0.10/32"], &[], &["10.2.0.11:80"]);
        let new = plan(&["10.96.0.10/32"], &[], &["10.2.0.12:80"]);
        assert_eq!(
            commands(&old, &new),
            [
                "ip -4 rule add pref 31 from 10.2.0.12/32 ipproto tcp sport 80-80 lookup 7763",
                "ip -4 rule add pref 36 from 10.2.0.12/32 ipproto tcp lookup 7763",
                "ip -4 rule add pref 36 from 10.2.0.12/32 iif lo lookup 7763",
                "ip -4 rule del pref 36 from 10.2.0.11/32 iif lo lookup 7763",
                "ip -4 rule del pref 36 from 10.2.0.11/32 ipproto tcp lookup 7763",
                "ip -4 rule del pref 31 from 10.2.0.11/32 ipproto tcp sport 80-80 lookup 7763",
            ]
        );
    }

    #[test]
    fn an_unchanged_plan_changes_nothing() {
        let plan = plan(
            &["10.96.0.10/32", "fd00::10/128"],
            &["192.0.2.1:30080"],
            &["[fd00::11]:80"],
        );
        assert!(commands(&plan, &plan).is_empty());
    }

    #[test]
    fn a_family_that_is_not_used_is_left_alone() {
        let plan = plan(&["fd00::10/128"], &[], &[]);
        assert!(
            commands(&Plan::default(), &plan)
                .iter()
                .all(|command| !command.contains("-4"))
        );
    }
}
