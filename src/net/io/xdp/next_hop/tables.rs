//! Everything that decides about a packet's way, and the decision. Knows nothing of netlink.
use std::collections::HashMap;
use std::mem;
use std::net::{IpAddr, Ipv4Addr};
use std::ops::BitOr;

use super::links::{Link, Links};
use super::neighbours::{Key, Neighbour, Neighbours};
use super::routes::{Action, Match, Table};
use super::rules::Lookup;
use super::sources::{Address, Addresses};
use super::{Family, Hop, Way};

/// The routing table of this host's own and its networks' broadcast addresses.
const LOCAL: u32 = libc::RT_TABLE_LOCAL as u32;

/// What a change calls for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Change {
    /// Answers that were kept are void.
    pub(super) answers: bool,
    /// The host may send from another address, or by another interface.
    pub(super) sources: bool,
    /// Routes are to be dumped anew.
    pub(super) routes: bool,
}

impl Change {
    pub(super) const NOTHING: Self = Self::new(false, false);
    pub(super) const ANSWERS: Self = Self::new(true, false);
    /// The same, but only neighbours have.
    pub(super) const NEIGHBOURS: Self = Self {
        answers: true,
        sources: false,
        routes: false,
    };
    /// Routes have changed, which the tables do not show yet.
    pub(super) const UNTOLD: Self = Self::new(false, true);
    /// Routes may have changed with the tables, without the kernel saying so (`fib_sync_down_dev`, `fib_table_flush`).
    pub(super) const ALL: Self = Self::new(true, true);

    const fn new(answers: bool, routes: bool) -> Self {
        Self {
            answers,
            sources: answers,
            routes,
        }
    }
}

impl BitOr for Change {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self {
            answers: self.answers || other.answers,
            sources: self.sources || other.sources,
            routes: self.routes || other.routes,
        }
    }
}

/// An answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) way: Way,
    /// Whether it depends on the flow.
    pub(super) spread: bool,
    /// The neighbour that the kernel must resolve, or look after.
    pub(super) attend: Option<Key>,
}

impl Found {
    const KERNEL: Self = Self {
        way: Way::Kernel,
        spread: false,
        attend: None,
    };
}

/// How one family is routed.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Routing {
    /// The tables to look up in.
    pub(super) order: Vec<Lookup>,
    /// Why these do not tell the way of all packets.
    pub(super) detour: Option<String>,
    pub(super) tables: HashMap<u32, Table>,
}

impl Routing {
    fn find(&self, destination: IpAddr, flow_hash: u32) -> Option<Match<'_>> {
        self.order
            .iter()
            .filter_map(|lookup| {
                self.tables
                    .get(&lookup.table)?
                    .find(destination, flow_hash, lookup.shortest)
            })
            .find(|found| found.route.action != Action::Throw)
    }
}

/// Everything that decides about a packet's way.
#[derive(Debug)]
pub(super) struct Tables {
    pub(super) links: Links,
    addresses: Addresses,
    neighbours: Neighbours,
    v4: Routing,
    v6: Routing,
}

impl Tables {
    /// Nothing is known yet; lbd's sockets are on `interfaces`.
    pub(super) fn new(interfaces: &[u32]) -> Self {
        Self {
            links: Links::new(interfaces),
            addresses: Addresses::default(),
            neighbours: Neighbours::default(),
            v4: Routing::default(),
            v6: Routing::default(),
        }
    }

    /// The way of a packet that lbd forwards.
    pub(super) fn find(&self, destination: IpAddr, flow_hash: u32) -> Found {
        let routing = self.routing(Family::of(destination));
        if routing.detour.is_some() || is_special(destination) || self.addresses.contains(destination) {
            return Found::KERNEL;
        }
        let Some(found) = routing.find(destination, flow_hash) else {
            return Found::KERNEL;
        };
        match (found.route.action, found.path) {
            (Action::Forward, Some(path)) => Found {
                spread: found.spread,
                ..self.reach(path.device, path.gateway.unwrap_or(destination), found.route.mtu)
            },
            (Action::Forward | Action::Local | Action::Broadcast | Action::Throw | Action::Kernel, _) => Found::KERNEL,
        }
    }

    /// Whether `source` is this host's own address, or everybody's of a network.
    pub(super) fn is_martian(&self, source: IpAddr) -> bool {
        let local = self.routing(Family::of(source)).tables.get(&LOCAL);
        let found = local.and_then(|table| table.find(source, 0, 0));
        self.addresses.contains(source)
            || found.is_some_and(|found| matches!(found.route.action, Action::Local | Action::Broadcast))
    }

    /// Whether a packet to `destination` is delivered here.
    pub(super) fn ends_here(&self, destination: IpAddr) -> bool {
        let routing = self.routing(Family::of(destination));
        let is_routed_here = || {
            routing
                .find(destination, 0)
                .is_some_and(|found| found.route.action == Action::Local)
        };
        self.addresses.contains(destination) || is_routed_here()
    }

    /// The address that a packet from this host to `destination` bears; a guess where policy rules have a say.
    pub(super) fn source_for(&self, destination: IpAddr) -> Option<IpAddr> {
        let found = self.routing(Family::of(destination)).find(destination, 0)?;
        if found.route.action == Action::Local {
            return Some(destination);
        }
        let path = found.path;
        let of_device = || {
            let path = path?;
            let neighbour = path.gateway.unwrap_or(destination);
            self.addresses.source(path.device, neighbour, destination)
        };
        found.route.source.or_else(of_device)
    }

    /// Whether the route to `destination` is an interface of lbd's, if its neighbour is known or not.
    pub(super) fn leaves_by_ours(&self, destination: IpAddr) -> bool {
        let found = self.routing(Family::of(destination)).find(destination, 0);
        found
            .filter(|found| found.route.action == Action::Forward)
            .and_then(|found| found.path)
            .is_some_and(|path| self.links.is_ours(path.device))
    }

    pub(super) fn detour(&self, family: Family) -> Option<&str> {
        self.routing(family).detour.as_deref()
    }

    /// Puts new routes in; yields the old ones.
    pub(super) const fn set_routing(&mut self, family: Family, routing: Routing) -> Routing {
        let place = match family {
            Family::V4 => &mut self.v4,
            Family::V6 => &mut self.v6,
        };
        mem::replace(place, routing)
    }

    /// All of `family` goes through the kernel from now on, because of `reason`.
    pub(super) fn detour_all(&mut self, family: Family, reason: &str) -> Change {
        let routing = match family {
            Family::V4 => &mut self.v4,
            Family::V6 => &mut self.v6,
        };
        let before = routing.detour.replace(reason.to_owned());
        if before.is_none() {
            Change::ANSWERS
        } else {
            Change::NOTHING
        }
    }

    pub(super) fn set_link(&mut self, index: u32, link: Link) -> Change {
        let new = link.clone();
        match self.links.set(index, link) {
            Some(old) if old == new => Change::NOTHING,
            Some(old) if old.running == new.running && old.name == new.name => Change::ANSWERS,
            Some(_) | None => Change::ALL,
        }
    }

    pub(super) fn remove_link(&mut self, index: u32) -> Change {
        self.neighbours.forget(index);
        self.addresses.forget(index);
        match self.links.remove(index) {
            Some(_) => Change::ALL,
            None => Change::NOTHING,
        }
    }

    pub(super) fn set_address(&mut self, device: u32, address: Address) -> Change {
        // Else a flag has changed, which comes with a change of routes at most.
        if self.addresses.set(device, address) {
            Change::ALL
        } else {
            Change::UNTOLD
        }
    }

    pub(super) fn remove_address(&mut self, device: u32, address: Address) -> Change {
        if self.addresses.remove(device, address) {
            Change::ALL
        } else {
            Change::NOTHING
        }
    }

    pub(super) fn set_neighbour(&mut self, key: Key, neighbour: Neighbour) -> Change {
        let moved = self.neighbours.set(key, neighbour);
        self.if_ours(key, moved)
    }

    pub(super) fn remove_neighbour(&mut self, key: Key) -> Change {
        let moved = self.neighbours.remove(key);
        self.if_ours(key, moved)
    }

    /// Takes over links, addresses and neighbours from `fresh`, which was filled by a dump; yields the old ones.
    pub(super) fn replace_objects(&mut self, fresh: &mut Self) -> Change {
        mem::swap(&mut self.links, &mut fresh.links);
        mem::swap(&mut self.addresses, &mut fresh.addresses);
        mem::swap(&mut self.neighbours, &mut fresh.neighbours);
        Change::ANSWERS
    }

    fn if_ours(&self, key: Key, moved: bool) -> Change {
        if moved && self.links.is_ours(key.0) {
            Change::NEIGHBOURS
        } else {
            Change::NOTHING
        }
    }

    /// To a neighbour by one of lbd's interfaces; without one the kernel resolves what it needs by itself.
    fn reach(&self, device: u32, neighbour: IpAddr, mtu: Option<u32>) -> Found {
        let Some(egress) = self.links.egress(device) else {
            return Found::KERNEL;
        };
        let key = (device, neighbour);
        let known = self.neighbours.get(key);
        let way = match known.and_then(|known| known.mac) {
            Some(mac) => Way::Direct(Hop {
                interface: egress.interface,
                source_mac: egress.mac,
                destination_mac: mac,
                vlan: egress.vlan,
                mtu: mtu.map_or(egress.mtu, |mtu| mtu.min(egress.mtu)),
            }),
            None => Way::Kernel,
        };
        let rests = known.is_some_and(|known| known.confirmed);
        Found {
            way,
            spread: false,
            attend: (!rests).then_some(key),
        }
    }

    pub(super) const fn routing(&self, family: Family) -> &Routing {
        match family {
            Family::V4 => &self.v4,
            Family::V6 => &self.v6,
        }
    }
}

/// Not for one host, or not for this network alone: the same link-local address may be on every link.
fn is_special(destination: IpAddr) -> bool {
    match destination {
        IpAddr::V4(v4) => v4.is_multicast() || v4.is_loopback() || v4.is_unspecified() || v4 == Ipv4Addr::BROADCAST,
        IpAddr::V6(v6) => {
            let local = v6.is_unicast_link_local() || v6.is_loopback() || v6.is_unspecified();
            local || v6.is_multicast() || v6.to_ipv4_mapped().is_some()
        }
    }
}
