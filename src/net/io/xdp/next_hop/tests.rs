//! What packets' ways are, in a small world: eth0 (2) and eth1 (3) are lbd's, with a VLAN 100 on eth1 (4); eth9 (9) is not.
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use super::links::{Kind, Link};
use super::neighbours::Neighbour;
use super::routes::{Action, Path, Route};
use super::rules::{self, Lookup, Rule, Selector};
use super::sources::{Address, Scope};
use super::tables::{Routing, Tables};
use super::{Cache, Family, Hop, NextHops, VlanTag, Way, upkeep};
use lbd_core::time::Instant;

const LOCAL: u32 = 255;
const MAIN: u32 = 254;
const DEFAULT: u32 = 253;

const ETH0: u32 = 2;
const ETH1: u32 = 3;
const VLAN: u32 = 4;
const FOREIGN: u32 = 9;

const TAG: VlanTag = VlanTag {
    protocol: 0x8100,
    id: 100,
};

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn mac(last: u8) -> [u8; 6] {
    [2, 0, 0, 0, 0, last]
}

fn link(name: &str, index: u32, kind: Kind) -> Link {
    Link {
        name: name.into(),
        mac: mac(index as u8),
        mtu: 1500,
        running: true,
        kind,
    }
}

fn to(device: u32, gateway: Option<&str>) -> Route {
    Route {
        priority: 0,
        action: Action::Forward,
        paths: vec![path(device, gateway, 1)],
        source: None,
        mtu: None,
    }
}

fn path(device: u32, gateway: Option<&str>, weight: u32) -> Path {
    Path {
        device,
        gateway: gateway.map(ip),
        weight,
        dead: false,
    }
}

fn without_paths(action: Action) -> Route {
    let paths = Vec::new();
    Route {
        action,
        paths,
        ..to(0, None)
    }
}

/// Tables that are still being put together.
struct World {
    tables: Tables,
    v4: Routing,
    v6: Routing,
}

impl World {
    fn new() -> Self {
        let routing = || Routing {
            order: [LOCAL, MAIN, DEFAULT].map(Lookup::from).to_vec(),
            ..Routing::default()
        };
        let mut tables = Tables::new(&[ETH0, ETH1]);
        let vlan = Kind::Vlan { parent: ETH1, tag: TAG };
        for (name, index, kind) in [
            ("eth0", ETH0, Kind::Ethernet),
            ("eth1", ETH1, Kind::Ethernet),
            ("eth1.100", VLAN, vlan),
            ("eth9", FOREIGN, Kind::Ethernet),
        ] {
            tables.set_link(index, link(name, index, kind));
        }
        let (v4, v6) = (routing(), routing());
        Self { tables, v4, v6 }
    }

    fn route_in(mut self, table: u32, net: &str, route: Route) -> Self {
        let net: ipnet::IpNet = net.parse().unwrap();
        let routing = if net.addr().is_ipv4() {
            &mut self.v4
        } else {
            &mut self.v6
        };
        routing.tables.entry(table).or_default().add(net, route);
        self
    }

    fn route(self, net: &str, route: Route) -> Self {
        self.route_in(MAIN, net, route)
    }

    fn neighbour(mut self, device: u32, address: &str, last: u8) -> Self {
        let neighbour = Neighbour {
            mac: Some(mac(last)),
            confirmed: true,
        };
        self.tables.set_neighbour((device, ip(address)), neighbour);
        self
    }

    fn address(mut self, device: u32, net: &str) -> Self {
        self.tables.set_address(device, address(net));
        self
    }

    fn build(mut self) -> Tables {
        self.tables.set_routing(Family::V4, self.v4);
        self.tables.set_routing(Family::V6, self.v6);
        self.tables
    }
}

fn address(net: &str) -> Address {
    let net: ipnet::IpNet = net.parse().unwrap();
    let scope = match net.addr() {
        IpAddr::V6(v6) if v6.is_unicast_link_local() => Scope::Link,
        IpAddr::V4(_) | IpAddr::V6(_) => Scope::Global,
    };
    Address {
        address: net.addr(),
        net,
        scope,
        avoided: false,
        unusable: false,
    }
}

fn direct(device: u32, neighbour: u8) -> Way {
    Way::Direct(Hop {
        interface: device,
        source_mac: mac(device as u8),
        destination_mac: mac(neighbour),
        vlan: None,
        mtu: 1500,
    })
}

fn way(tables: &Tables, destination: &str) -> Way {
    tables.find(ip(destination), 0).way
}

#[test]
fn the_longest_prefix_wins_in_both_families() {
    let tables = World::new()
        .route("0.0.0.0/0", to(ETH0, Some("192.0.2.1")))
        .route("10.0.0.0/8", to(ETH1, Some("198.51.100.1")))
        .route("10.1.0.0/16", to(ETH0, Some("192.0.2.2")))
        .route("::/0", to(ETH0, Some("fe80::1")))
        .route("fd00::/64", to(ETH1, None))
        .neighbour(ETH0, "192.0.2.1", 1)
        .neighbour(ETH0, "192.0.2.2", 2)
        .neighbour(ETH1, "198.51.100.1", 3)
        .neighbour(ETH0, "fe80::1", 4)
        .neighbour(ETH1, "fd00::7", 5)
        .build();
    assert_eq!(way(&tables, "8.8.8.8"), direct(ETH0, 1));
    assert_eq!(way(&tables, "10.1.2.3"), direct(ETH0, 2));
    assert_eq!(way(&tables, "10.2.2.3"), direct(ETH1, 3));
    assert_eq!(way(&tables, "2001:db8::1"), direct(ETH0, 4));
    assert_eq!(way(&tables, "fd00::7"), direct(ETH1, 5));
}

#[test]
fn a_table_whose_default_route_a_rule_suppresses_has_all_others() {
    let mut world = World::new()
        .route("0.0.0.0/0", to(ETH0, Some("192.0.2.1")))
        .route("10.1.0.0/16", to(ETH0, Some("192.0.2.2")))
        .route_in(42, "10.0.0.0/8", to(ETH1, Some("198.51.100.1")))
        .neighbour(ETH0, "192.0.2.1", 1)
        .neighbour(ETH0, "192.0.2.2", 2)
        .neighbour(ETH1, "198.51.100.1", 3);
    world.v4.order = vec![BELOW_DEFAULT, 42.into(), MAIN.into()];
    let tables = world.build();
    assert_eq!(way(&tables, "10.1.2.3"), direct(ETH0, 2));
    assert_eq!(way(&tables, "10.2.2.3"), direct(ETH1, 3));
    assert_eq!(way(&tables, "8.8.8.8"), direct(ETH0, 1));
}

#[test]
fn of_equal_prefixes_the_least_metric_wins_unless_its_path_is_dead() {
    let metric = |priority, mut route: Route, dead| {
        route.priority = priority;
        route.paths[0].dead = dead;
        route
    };
    let world = |dead| {
        World::new()
            .route("0.0.0.0/0", metric(200, to(ETH0, Some("192.0.2.1")), false))
            .route("0.0.0.0/0", metric(100, to(ETH1, Some("198.51.100.1")), dead))
            .neighbour(ETH0, "192.0.2.1", 1)
            .neighbour(ETH1, "198.51.100.1", 3)
            .build()
    };
    assert_eq!(way(&world(false), "8.8.8.8"), direct(ETH1, 3));
    assert_eq!(way(&world(true), "8.8.8.8"), direct(ETH0, 1));
}

#[test]
fn the_local_table_comes_before_main_and_throw_leads_to_the_next_table() {
    let tables = World::new()
        .route_in(LOCAL, "10.0.0.1/32", without_paths(Action::Local))
        .route("10.0.0.0/24", to(ETH0, None))
        .route("10.9.0.0/16", without_paths(Action::Throw))
        .route_in(DEFAULT, "0.0.0.0/0", to(ETH0, Some("10.0.0.7")))
        .neighbour(ETH0, "10.0.0.1", 1)
        .neighbour(ETH0, "10.0.0.7", 7)
        .build();
    assert_eq!(way(&tables, "10.0.0.1"), Way::Kernel);
    assert_eq!(way(&tables, "10.0.0.7"), direct(ETH0, 7));
    assert_eq!(way(&tables, "10.9.1.1"), direct(ETH0, 7));
}

#[test]
fn a_packet_ends_here_at_an_address_of_this_host_or_one_that_is_routed_to_it() {
    let tables = World::new()
        .route("0.0.0.0/0", to(ETH0, None))
        .route_in(LOCAL, "192.0.2.0/24", without_paths(Action::Local))
        .address(ETH0, "10.0.0.1/24")
        .build();
    let ends_here = |text: &str| tables.ends_here(text.parse().unwrap());
    assert!(ends_here("10.0.0.1") && ends_here("192.0.2.9"));
    assert!(!ends_here("10.0.0.2") && !ends_here("203.0.113.1") && !ends_here("fd00::1"));
}

#[test]
fn no_packet_may_come_from_what_is_this_hosts_own_or_everybodys_of_a_network_or_no_single_hosts() {
    let tables = World::new()
        .route("0.0.0.0/0", to(ETH0, None))
        .route("::/0", to(ETH0, None))
        .route("203.0.113.0/24", without_paths(Action::Kernel))
        .route_in(LOCAL, "10.0.0.255/32", without_paths(Action::Broadcast))
        .route_in(LOCAL, "192.0.2.0/24", without_paths(Action::Local))
        .address(ETH0, "10.0.0.1/24")
        .address(ETH1, "fd00::1/64")
        .build();
    let (_poll, hops, _requested) = shared(tables);
    let is_martian = |text: &&str| hops.is_martian(ip(text));
    let martian = [
        "10.0.0.1",
        "10.0.0.255",
        "192.0.2.9",
        "127.0.0.1",
        "127.9.9.9",
        "0.0.0.0",
        "0.1.2.3",
        "224.0.0.1",
        "239.1.2.3",
        "255.255.255.255",
        "fd00::1",
        "::",
        "::1",
        "fe80::7",
        "ff02::1",
        "::ffff:10.0.0.2",
    ];
    let welcome = [
        "10.0.0.2",
        "10.0.0.254",
        "203.0.113.9",
        "8.8.8.8",
        "240.0.0.1",
        "fd00::2",
        "2001:db8::1",
    ];
    assert_eq!(martian.iter().find(|address| !is_martian(address)), None);
    assert_eq!(welcome.iter().find(|address| is_martian(address)), None);
}

#[test]
fn what_is_not_plain_is_left_to_the_kernel() {
    let tables = World::new()
        .route("0.0.0.0/0", to(ETH0, None))
        .route("::/0", to(ETH0, None))
        .route("203.0.113.0/24", without_paths(Action::Kernel))
        .route("198.18.0.0/15", to(FOREIGN, None))
        .neighbour(FOREIGN, "198.18.0.1", 1)
        .neighbour(ETH0, "10.0.0.1", 1)
        .address(ETH0, "10.0.0.1/24")
        .build();
    for destination in [
        "203.0.113.1",
        "198.18.0.1",
        "10.0.0.1",
        "127.0.0.1",
        "224.0.0.5",
        "255.255.255.255",
        "0.0.0.0",
        "ff02::1",
        "fe80::1",
        "::1",
        "::ffff:8.8.8.8",
    ] {
        let found = tables.find(ip(destination), 0);
        assert_eq!((found.way, found.attend), (Way::Kernel, None), "{destination}");
    }
    assert_eq!(way(&World::new().build(), "8.8.8.8"), Way::Kernel);
}

#[test]
fn a_route_over_a_vlan_device_leaves_tagged_by_the_interface_below() {
    let tables = World::new()
        .route("10.0.0.0/24", to(VLAN, None))
        .neighbour(VLAN, "10.0.0.7", 7)
        .build();
    let hop = Hop {
        interface: ETH1,
        source_mac: mac(VLAN as u8),
        destination_mac: mac(7),
        vlan: Some(TAG),
        mtu: 1500,
    };
    assert_eq!(way(&tables, "10.0.0.7"), Way::Direct(hop));
}

#[test]
fn a_vlan_device_does_not_send_while_the_interface_below_is_down() {
    let mut tables = World::new()
        .route("10.0.0.0/24", to(VLAN, None))
        .neighbour(VLAN, "10.0.0.7", 7)
        .build();
    let down = Link {
        running: false,
        ..link("eth1", ETH1, Kind::Ethernet)
    };
    let change = tables.set_link(ETH1, down);
    assert!(change.answers && change.routes);
    assert_eq!(way(&tables, "10.0.0.7"), Way::Kernel);
}

#[test]
fn a_routes_mtu_counts_where_it_is_less_than_the_devices() {
    let route = |mtu| Route {
        mtu: Some(mtu),
        ..to(ETH0, None)
    };
    let tables = World::new()
        .route("10.0.0.0/24", route(1400))
        .route("10.0.1.0/24", route(9000))
        .neighbour(ETH0, "10.0.0.7", 7)
        .neighbour(ETH0, "10.0.1.7", 7)
        .build();
    let mtu = |destination| match way(&tables, destination) {
        Way::Direct(hop) => hop.mtu,
        Way::Kernel => 0,
    };
    assert_eq!((mtu("10.0.0.7"), mtu("10.0.1.7")), (1400, 1500));
}

#[test]
fn an_ipv4_route_may_have_an_ipv6_gateway() {
    let tables = World::new()
        .route("0.0.0.0/0", to(ETH0, Some("fe80::1")))
        .neighbour(ETH0, "fe80::1", 1)
        .build();
    assert_eq!(way(&tables, "8.8.8.8"), direct(ETH0, 1));
}

fn two_paths() -> World {
    let mut route = to(ETH0, Some("192.0.2.1"));
    route.paths = vec![path(ETH0, Some("192.0.2.1"), 3), path(ETH1, Some("198.51.100.1"), 1)];
    World::new()
        .route("0.0.0.0/0", route)
        .neighbour(ETH0, "192.0.2.1", 1)
        .neighbour(ETH1, "198.51.100.1", 3)
}

fn shares(mut find: impl FnMut(u32) -> Way) -> BTreeMap<u32, u32> {
    let mut shares = BTreeMap::new();
    for hash in (0..64).map(|bucket| bucket << 26) {
        if let Way::Direct(hop) = find(hash) {
            *shares.entry(hop.interface).or_default() += 1;
        }
    }
    shares
}

#[test]
fn several_paths_share_the_flows_by_weight() {
    let tables = two_paths().build();
    let found = shares(|hash| tables.find(ip("8.8.8.8"), hash).way);
    assert_eq!(found, BTreeMap::from([(ETH0, 48), (ETH1, 16)]));
}

#[test]
fn an_unresolved_neighbour_is_the_kernels_and_is_to_be_attended_to() {
    let mut tables = World::new().route("10.0.0.0/24", to(ETH0, None)).build();
    let key = (ETH0, ip("10.0.0.7"));
    let found = tables.find(key.1, 0);
    assert_eq!((found.way, found.attend), (Way::Kernel, Some(key)));
    let stale = Neighbour {
        mac: Some(mac(7)),
        confirmed: false,
    };
    assert!(tables.set_neighbour(key, stale).answers);
    let found = tables.find(key.1, 0);
    assert_eq!((found.way, found.attend), (direct(ETH0, 7), Some(key)));
    let reachable = Neighbour {
        confirmed: true,
        ..stale
    };
    assert!(!tables.set_neighbour(key, reachable).answers, "the same way");
    assert_eq!(tables.find(key.1, 0).attend, None);
    assert!(tables.remove_neighbour(key).answers);
    assert_eq!(way(&tables, "10.0.0.7"), Way::Kernel);
}

#[test]
fn neighbours_behind_other_devices_void_no_answers() {
    let mut tables = World::new().build();
    let neighbour = Neighbour {
        mac: Some(mac(7)),
        confirmed: true,
    };
    assert!(!tables.set_neighbour((FOREIGN, ip("10.0.0.7")), neighbour).answers);
    assert!(tables.set_neighbour((VLAN, ip("10.0.0.7")), neighbour).answers);
}

#[test]
fn the_source_is_the_routes_else_the_one_in_the_neighbours_network() {
    let preferred = Route {
        source: Some(ip("203.0.113.5")),
        ..to(ETH0, Some("192.0.2.1"))
    };
    let tables = World::new()
        .route("0.0.0.0/0", to(ETH0, Some("192.0.2.1")))
        .route("10.0.0.0/8", preferred)
        .route("172.16.0.0/12", to(ETH1, None))
        .route_in(LOCAL, "192.0.2.9/32", without_paths(Action::Local))
        .route("198.18.0.0/15", without_paths(Action::Kernel))
        .address(ETH0, "203.0.113.5/24")
        .address(ETH0, "192.0.2.9/24")
        .build();
    let source = |destination| tables.source_for(ip(destination));
    assert_eq!(source("8.8.8.8"), Some(ip("192.0.2.9")));
    assert_eq!(source("10.0.0.1"), Some(ip("203.0.113.5")));
    assert_eq!(source("172.16.0.1"), Some(ip("203.0.113.5")), "of another device");
    assert_eq!(source("192.0.2.9"), Some(ip("192.0.2.9")), "itself");
    assert_eq!(source("198.18.0.1"), None);
    assert_eq!(source("fd00::1"), None);
}

#[test]
fn an_ipv6_source_is_of_the_device_global_not_deprecated_and_close() {
    let mut deprecated = address("2001:db8:1::5/64");
    deprecated.avoided = true;
    let mut world = World::new()
        .route("::/0", to(ETH0, Some("fe80::1")))
        .address(ETH0, "fe80::2/64")
        .address(ETH0, "fd00::2/64")
        .address(ETH0, "2001:db8::2/64")
        .address(ETH1, "2001:db8:1::2/64");
    world.tables.set_address(ETH0, deprecated);
    let tables = world.build();
    assert_eq!(tables.source_for(ip("2001:db8:1::9")), Some(ip("2001:db8::2")));
    assert_eq!(tables.source_for(ip("fd00:9::9")), Some(ip("fd00::2")));
}

fn rule(priority: u32, action: rules::Action) -> Rule {
    Rule {
        family: Family::V4,
        priority,
        selector: Selector::All,
        input: None,
        inverted: false,
        action,
        ours: false,
        text: format!("{priority}: rule"),
    }
}

fn lookup(priority: u32, table: u32) -> Rule {
    rule(priority, rules::Action::Lookup(table.into()))
}

/// `lookup main suppress_prefixlength 0`
const BELOW_DEFAULT: Lookup = Lookup {
    table: MAIN,
    shortest: 1,
};

fn order(more: &[Rule]) -> Result<Vec<u32>, String> {
    let mut rules = vec![lookup(0, LOCAL), lookup(32766, MAIN), lookup(32767, DEFAULT)];
    rules.extend_from_slice(more);
    let order = rules::order(&rules, Family::V4, "lbd0", |name| name == "eth0")?;
    Ok(order.iter().map(|lookup| lookup.table).collect())
}

#[test]
fn the_kernels_rules_lead_to_local_main_and_default() {
    assert_eq!(order(&[]), Ok(vec![LOCAL, MAIN, DEFAULT]));
    let mut other = lookup(5, 100);
    other.family = Family::V6;
    assert_eq!(order(&[other]), Ok(vec![LOCAL, MAIN, DEFAULT]));
}

#[test]
fn lbds_own_rules_count_as_for_what_lbd_writes_to_its_device() {
    let ours = |rule: Rule| Rule { ours: true, ..rule };
    let from_device = |rule: Rule| Rule {
        input: Some("lbd0".into()),
        ..ours(rule)
    };
    let reply = Rule {
        selector: Selector::Some,
        ..lookup(31, 7763)
    };
    let own = [
        from_device(rule(10, rules::Action::Other)),
        ours(lookup(20, LOCAL)),
        from_device(rule(30, rules::Action::Other)),
        ours(reply),
        ours(lookup(32, 7762)),
        from_device(lookup(39, 7764)),
    ];
    let found = rules::order(&own, Family::V4, "lbd0", |_| false);
    assert_eq!(found, Ok(vec![LOCAL.into(), 7764.into()]));
}

#[test]
fn rules_for_other_packets_are_ignored() {
    let others = Rule {
        selector: Selector::Others,
        ..lookup(5, 100)
    };
    let elsewhere = Rule {
        input: Some("docker0".into()),
        ..lookup(6, 100)
    };
    assert_eq!(order(&[others, elsewhere]), Ok(vec![LOCAL, MAIN, DEFAULT]));
}

#[test]
fn a_rule_for_some_packets_hands_the_family_to_the_kernel() {
    let some = Rule {
        selector: Selector::Some,
        ..lookup(5, 100)
    };
    let ours = Rule {
        input: Some("eth0".into()),
        ..lookup(5, 100)
    };
    let all_but_marked = Rule {
        selector: Selector::Others,
        inverted: true,
        ..lookup(5, 100)
    };
    for foreign in [some, ours, all_but_marked, rule(5, rules::Action::Other)] {
        assert_eq!(
            order(std::slice::from_ref(&foreign)),
            Err("5: rule".into()),
            "{foreign:?}"
        );
    }
}

#[test]
fn a_rule_for_all_packets_is_one_more_table_and_a_refusal_is_the_end() {
    let more = [
        lookup(100, 42),
        rule(200, rules::Action::Nothing),
        rule(32766, rules::Action::Refuse),
    ];
    assert_eq!(order(&more), Ok(vec![LOCAL, 42, MAIN]));
}

fn shared(tables: Tables) -> (mio::Poll, NextHops, upkeep::Requested) {
    let poll = mio::Poll::new().unwrap();
    let waker = mio::Waker::new(poll.registry(), mio::Token(0)).unwrap();
    let (requests, requested) = upkeep::channel(Arc::new(waker));
    (poll, NextHops::new(tables, requests), requested)
}

#[test]
fn a_kept_answer_is_void_after_a_change() {
    let world = World::new()
        .route("10.0.0.0/24", to(ETH0, None))
        .neighbour(ETH0, "10.0.0.7", 7);
    let (_poll, hops, _requested) = shared(world.build());
    let mut cache = Cache::new(1);
    let mut find = || cache.find(&hops, ip("10.0.0.7"), 0, Instant::ZERO);
    assert_eq!(find(), direct(ETH0, 7));
    let moved = Neighbour {
        mac: Some(mac(8)),
        confirmed: true,
    };
    let before = hops.generation();
    hops.change(|tables| tables.set_neighbour((ETH0, ip("10.0.0.7")), moved));
    assert!(hops.generation() > before);
    assert_eq!(find(), direct(ETH0, 8));
    let stale = Neighbour {
        confirmed: false,
        ..moved
    };
    let before = hops.generation();
    hops.change(|tables| tables.set_neighbour((ETH0, ip("10.0.0.7")), stale));
    assert_eq!(hops.generation(), before, "the way is the same");
}

#[test]
fn a_neighbour_in_use_is_asked_for_once_a_second_and_not_with_every_packet() {
    let (_poll, hops, mut requested) = shared(World::new().route("10.0.0.0/24", to(ETH0, None)).build());
    let mut cache = Cache::new(1);
    let mut asked = Vec::new();
    for tenth in 0..21 {
        let now = Instant::ZERO + Duration::from_millis(100) * tenth;
        assert_eq!(cache.find(&hops, ip("10.0.0.7"), 0, now), Way::Kernel);
        asked.extend(requested.take(now).iter().map(|_| tenth));
    }
    assert_eq!(asked, [0, 10, 20]);
}

#[test]
fn kept_answers_spread_flows_as_fresh_ones_do() {
    let (_poll, hops, _requested) = shared(two_paths().build());
    let mut cache = Cache::new(1);
    for _ in 0..2 {
        let found = shares(|hash| cache.find(&hops, ip("8.8.8.8"), hash, Instant::ZERO));
        assert_eq!(found, BTreeMap::from([(ETH0, 48), (ETH1, 16)]));
    }
}

#[test]
fn more_destinations_than_places_are_still_told_apart() {
    let (_poll, hops, _requested) = shared(
        World::new()
            .route("10.0.0.0/9", to(ETH0, Some("192.0.2.1")))
            .route("10.128.0.0/9", to(ETH1, Some("198.51.100.1")))
            .neighbour(ETH0, "192.0.2.1", 1)
            .neighbour(ETH1, "198.51.100.1", 3)
            .build(),
    );
    let mut cache = Cache::new(7);
    for number in 0..20_000_u32 {
        let far = number % 2 == 1;
        let address = std::net::Ipv4Addr::from_bits(0x0a00_0000 | u32::from(far) << 23 | number);
        let expected = if far { direct(ETH1, 3) } else { direct(ETH0, 1) };
        assert_eq!(cache.find(&hops, address, number, Instant::ZERO), expected);
    }
}
