//! Routing tables: the longest prefix first, as net/ipv4/fib_trie.c and net/ipv6/ip6_fib.c look it up.
use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use ipnet::IpNet;

/// What a route does with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// Sends it to one of its paths.
    Forward,
    /// Delivers it on this host.
    Local,
    /// Has the next table decide.
    Throw,
    /// Delivers it here and to all neighbours.
    Broadcast,
    /// What lbd leaves to the kernel: refusals, encapsulation, routes for some packets only.
    Kernel,
}

/// One of a route's ways.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Path {
    pub(super) device: u32,
    /// None: the destination itself is the neighbour.
    pub(super) gateway: Option<IpAddr>,
    /// Its share of the flows among all paths; 1 or more.
    pub(super) weight: u32,
    /// RTNH_F_DEAD: the kernel does not use it.
    pub(super) dead: bool,
}

/// What a prefix leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Route {
    pub(super) priority: u32,
    pub(super) action: Action,
    /// Empty for routes without a device.
    pub(super) paths: Vec<Path>,
    /// RTA_PREFSRC
    pub(super) source: Option<IpAddr>,
    /// RTAX_MTU
    pub(super) mtu: Option<u32>,
}

/// A route that was looked up.
#[derive(Clone, Copy, Debug)]
pub(super) struct Match<'a> {
    pub(super) route: &'a Route,
    /// The chosen path, where the route has any.
    pub(super) path: Option<Path>,
    /// Whether the flow hash had a say.
    pub(super) spread: bool,
}

type Prefixes = HashMap<u128, Vec<Route>, ahash::RandomState>;

/// One table of one family.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Table {
    by_length: BTreeMap<Reverse<u8>, Prefixes>,
}

impl Table {
    /// Routes of equal prefix and priority stay in the order in which they are added.
    pub(super) fn add(&mut self, net: IpNet, route: Route) {
        let prefixes = self.by_length.entry(Reverse(net.prefix_len())).or_default();
        let routes = prefixes.entry(bits(net.network())).or_default();
        let position = routes.partition_point(|before| before.priority <= route.priority);
        routes.insert(position, route);
    }

    /// The route of the longest prefix, of at least `shortest` bits, that is not dead.
    pub(super) fn find(&self, destination: IpAddr, flow_hash: u32, shortest: u8) -> Option<Match<'_>> {
        let address = bits(destination);
        self.by_length
            .range(..=Reverse(shortest))
            .filter_map(|(Reverse(length), prefixes)| prefixes.get(&(address & mask(*length))))
            .flatten()
            .find_map(|route| route.choose(flow_hash))
    }
}

impl Route {
    fn choose(&self, flow_hash: u32) -> Option<Match<'_>> {
        let alive = || self.paths.iter().filter(|path| !path.dead);
        let total: u64 = alive().map(|path| u64::from(path.weight)).sum();
        if total == 0 && !self.paths.is_empty() {
            return None;
        }
        let point = (u64::from(flow_hash) * total) >> 32;
        let mut upper = 0;
        let path = alive().find(|path| {
            upper += u64::from(path.weight);
            point < upper
        });
        Some(Match {
            route: self,
            path: path.copied(),
            spread: alive().count() > 1,
        })
    }
}

/// An address as a number whose first bit is the address's first bit, in both families.
fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(v4.to_bits()) << 96,
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

const fn mask(length: u8) -> u128 {
    match u128::MAX.checked_shl(128 - length as u32) {
        Some(mask) => mask,
        None => 0,
    }
}
