//! Next hops in a network namespace of the test's own, with a neighbour in another: eth0 here, peer0 there.
//!
//! Each test starts itself anew under `unshare`. Where neither root nor a user namespace is to be had, it says so.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test fails by panicking and says on stdout why it was skipped"
)]

#[path = "support/unshared.rs"]
mod unshared;

use std::fs;
use std::net::IpAddr;
use std::process::{Child, Command};
use std::sync::Arc;
use std::time::Duration;

use lbd::io::xdp::next_hop::{Cache, Family, Follower, Hop, NextHops, VlanTag, Way};
use lbd::plumbing::{Device, Plan, Plumbing};
use lbd::worker::Clock;
use unshared::{inside, ip, run};

/// How soon a change must be seen, on a machine that does nothing else.
const SOON: Duration = Duration::from_millis(100);
const LONG: Duration = Duration::from_secs(10);
/// The time from one look to the next.
const LOOK: Duration = Duration::from_millis(5);

fn pause(duration: Duration) {
    let nothing = crossbeam_channel::never::<()>().recv_timeout(duration);
    assert!(nothing.is_err());
}

/// Waits until `holds`, for `limit` by the number of looks: on a busy machine the clock runs on while nobody else does.
fn within(limit: Duration, what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..limit.as_millis() / LOOK.as_millis() {
        if holds() {
            return;
        }
        pause(LOOK);
    }
    panic!("not within {limit:?}: {what}");
}

/// The neighbour's network namespace, kept alive by a process.
struct Peer(Child);

impl Peer {
    fn start() -> Self {
        let child = Command::new("unshare").args(["-n", "sleep", "120"]).spawn().unwrap();
        let namespace = |who: &str| fs::read_link(format!("/proc/{who}/ns/net")).ok();
        let id = child.id().to_string();
        within(LONG, "a namespace", || {
            namespace(&id).is_some_and(|its| Some(its) != namespace("self"))
        });
        Self(child)
    }

    fn ip(&self, command: &str) -> String {
        run("nsenter", &format!("-t {} -n ip {command}", self.0.id()))
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

struct World {
    peer: Peer,
    hops: Arc<NextHops>,
    follower: Follower,
    clock: Clock,
}

const OURS: [u8; 6] = [2, 0, 0, 0, 0, 1];
const PEERS: [u8; 6] = [2, 0, 0, 0, 0, 2];

fn world() -> World {
    let peer = Peer::start();
    ip("link set lo up");
    ip("link add eth0 address 02:00:00:00:00:01 type veth peer name peer0 address 02:00:00:00:00:02");
    ip(&format!("link set peer0 netns {}", peer.0.id()));
    for command in [
        "link set eth0 up",
        "address add 10.0.0.1/24 dev eth0",
        "-6 address add fd00::1/64 dev eth0 nodad",
    ] {
        ip(command);
    }
    for command in [
        "link set peer0 up",
        "address add 10.0.0.2/24 dev peer0",
        "address add 10.0.0.3/24 dev peer0",
        "-6 address add fd00::2/64 dev peer0 nodad",
    ] {
        peer.ip(command);
    }
    let clock = Clock::start();
    let (hops, follower) = Follower::start(&[index("eth0")], "lbd0", clock).unwrap();
    World {
        peer,
        hops,
        follower,
        clock,
    }
}

/// /sys may show another namespace's devices.
fn index(device: &str) -> u32 {
    let shown = ip(&format!("-o link show {device}"));
    shown.split(':').next().unwrap().parse().unwrap()
}

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

impl World {
    fn find(&self, destination: &str) -> Way {
        self.hops.find(address(destination), 0)
    }

    /// Waits until packets go straight to the neighbour with this MAC address.
    fn reaches(&self, limit: Duration, destination: &str, mac: [u8; 6]) -> Hop {
        let mut hop = None;
        within(limit, &format!("{destination} by {mac:?}"), || {
            hop = match self.find(destination) {
                Way::Direct(found) => Some(found).filter(|found| found.destination_mac == mac),
                Way::Kernel => None,
            };
            hop.is_some()
        });
        hop.unwrap()
    }

    fn leaves_to_kernel(&self, destination: &str) {
        within(SOON, &format!("{destination} through the kernel"), || {
            self.find(destination) == Way::Kernel
        });
    }
}

#[test]
fn an_unresolved_neighbour_is_resolved_by_the_kernel_after_the_first_packet() {
    inside(
        "an_unresolved_neighbour_is_resolved_by_the_kernel_after_the_first_packet",
        || {
            let world = world();
            for destination in ["10.0.0.2", "fd00::2"] {
                assert_eq!(world.find(destination), Way::Kernel);
                let hop = world.reaches(LONG, destination, PEERS);
                let expected = Hop {
                    interface: index("eth0"),
                    source_mac: OURS,
                    destination_mac: PEERS,
                    vlan: None,
                    mtu: 1500,
                };
                assert_eq!(hop, expected);
            }
            assert!(world.follower.is_running());
        },
    );
}

#[test]
fn a_route_change_is_seen_within_100_ms() {
    inside("a_route_change_is_seen_within_100_ms", || {
        let world = world();
        assert_eq!(world.find("203.0.113.1"), Way::Kernel);
        world.find("10.0.0.2");
        world.reaches(LONG, "10.0.0.2", PEERS);
        ip("neighbour replace 10.0.0.9 lladdr 02:00:00:00:00:09 dev eth0 nud permanent");
        for (command, mac) in [
            ("route add 203.0.113.0/24 via 10.0.0.2", PEERS),
            ("route replace 203.0.113.0/24 via 10.0.0.9 mtu 1400", [2, 0, 0, 0, 0, 9]),
            ("route add 203.0.113.1/32 via 10.0.0.2", PEERS),
        ] {
            ip(command);
            world.reaches(SOON, "203.0.113.1", mac);
        }
        assert_eq!(world.reaches(SOON, "203.0.113.7", [2, 0, 0, 0, 0, 9]).mtu, 1400);
        ip("route add blackhole 203.0.113.7/32");
        world.leaves_to_kernel("203.0.113.7");
        // The kernel drops what went over this address without a word.
        ip("address delete 10.0.0.1/24 dev eth0");
        world.leaves_to_kernel("203.0.113.1");
        world.leaves_to_kernel("10.0.0.2");
    });
}

#[test]
fn a_neighbour_that_comes_back_with_another_mac_is_followed() {
    inside("a_neighbour_that_comes_back_with_another_mac_is_followed", || {
        let world = world();
        let mut cache = Cache::new(1);
        let mut cached = || cache.find(&world.hops, address("10.0.0.2"), 0, world.clock.now());
        assert_eq!(cached(), Way::Kernel);
        world.reaches(LONG, "10.0.0.2", PEERS);
        within(SOON, "a cached way", || cached() != Way::Kernel);
        world.peer.ip("link set peer0 down");
        world.peer.ip("link set peer0 address 02:00:00:00:00:22");
        world.leaves_to_kernel("10.0.0.2");
        world.peer.ip("link set peer0 up");
        ip("neighbour flush dev eth0");
        let back = [2, 0, 0, 0, 0, 0x22];
        world.reaches(LONG, "10.0.0.2", back);
        within(
            SOON,
            "the new way in the cache",
            || matches!(cached(), Way::Direct(hop) if hop.destination_mac == back),
        );
    });
}

fn lacks_vlans() -> Option<String> {
    ip("link add probe0 type veth peer name probe1");
    let add = "link add link probe0 name probe0.1 type vlan id 1";
    let output = Command::new("ip").args(add.split(' ')).output().unwrap();
    ip("link delete probe0");
    let error = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    (!output.status.success()).then_some(error)
}

#[test]
fn a_route_over_a_vlan_device_gives_its_tag_and_addresses() {
    inside("a_route_over_a_vlan_device_gives_its_tag_and_addresses", || {
        if let Some(why) = lacks_vlans() {
            return println!("skipped: this kernel has no VLAN devices (CONFIG_VLAN_8021Q): {why}");
        }
        let world = world();
        for (protocol, number, id) in [("802.1Q", 0x8100, 100), ("802.1ad", 0x88a8, 200)] {
            let network = format!("10.0.{id}");
            ip(&format!(
                "link add link eth0 name eth0.{id} type vlan proto {protocol} id {id}"
            ));
            ip(&format!("link set eth0.{id} address 02:00:00:00:00:11 mtu 1400 up"));
            ip(&format!("address add {network}.1/24 dev eth0.{id}"));
            let peer = &world.peer;
            peer.ip(&format!(
                "link add link peer0 name peer0.{id} type vlan proto {protocol} id {id}"
            ));
            peer.ip(&format!("link set peer0.{id} up"));
            peer.ip(&format!("address add {network}.2/24 dev peer0.{id}"));
            let hop = world.reaches(LONG, &format!("{network}.2"), PEERS);
            let expected = Hop {
                interface: index("eth0"),
                source_mac: [2, 0, 0, 0, 0, 0x11],
                destination_mac: PEERS,
                vlan: Some(VlanTag { protocol: number, id }),
                mtu: 1400,
            };
            assert_eq!(hop, expected);
        }
        ip("link delete eth0.100");
        world.leaves_to_kernel("10.0.100.2");
    });
}

#[test]
fn own_addresses_and_broadcasts_are_the_kernels() {
    inside("own_addresses_and_broadcasts_are_the_kernels", || {
        let world = world();
        world.reaches(LONG, "10.0.0.3", PEERS);
        for destination in ["10.0.0.1", "10.0.0.255", "fd00::1", "127.0.0.1", "224.0.0.1"] {
            assert_eq!(world.find(destination), Way::Kernel, "{destination}");
        }
        ip("address add 10.0.0.3/32 dev lo");
        world.leaves_to_kernel("10.0.0.3");
        ip("address delete 10.0.0.3/32 dev lo");
        world.reaches(LONG, "10.0.0.3", PEERS);
    });
}

#[test]
fn a_stale_neighbour_in_use_becomes_reachable_again_without_a_packet_through_the_kernel() {
    let name = "a_stale_neighbour_in_use_becomes_reachable_again_without_a_packet_through_the_kernel";
    inside(name, || {
        let world = world();
        fs::write("/proc/sys/net/ipv4/neigh/eth0/delay_first_probe_time", "1").unwrap();
        world.reaches(LONG, "10.0.0.2", PEERS);
        let state = || ip("neighbour show 10.0.0.2");
        within(LONG, "reachable", || state().contains("REACHABLE"));
        within(LONG, "an end of changes", || !ip("-6 address").contains("tentative"));
        pause(SOON);
        let generation = world.hops.generation();
        ip("neighbour change 10.0.0.2 lladdr 02:00:00:00:00:02 dev eth0 nud stale");
        assert!(state().contains("STALE"));
        within(LONG, "reachable again", || {
            assert_ne!(world.find("10.0.0.2"), Way::Kernel);
            state().contains("REACHABLE")
        });
        pause(SOON);
        assert_eq!(
            world.hops.generation(),
            generation,
            "the way has been the same all the time"
        );
    });
}

#[test]
fn a_foreign_policy_rule_hands_its_family_to_the_kernel_until_it_goes() {
    inside(
        "a_foreign_policy_rule_hands_its_family_to_the_kernel_until_it_goes",
        || {
            let world = world();
            world.reaches(LONG, "10.0.0.2", PEERS);
            world.reaches(LONG, "fd00::2", PEERS);
            for harmless in [
                "rule add pref 1 fwmark 1 lookup 100",
                "rule add pref 2 iif lo lookup 100",
                "rule add pref 3 oif eth0 lookup 100",
                "rule add pref 4 uidrange 1000-2000 lookup 100",
                "rule add pref 5 lookup 100",
            ] {
                ip(harmless);
            }
            pause(SOON);
            world.reaches(SOON, "10.0.0.2", PEERS);
            for foreign in [
                "from 10.9.0.0/16",
                "not fwmark 1",
                "iif eth0",
                "ipproto tcp dport 80-81",
            ] {
                let rule = format!("pref 7 {foreign} lookup 100");
                ip(&format!("rule add {rule}"));
                world.leaves_to_kernel("10.0.0.2");
                let why = world.hops.detour(Family::V4).unwrap();
                let value = foreign.rsplit(' ').next().unwrap();
                assert!(why.contains("7: ") && why.contains(value), "{why}");
                assert_ne!(world.find("fd00::2"), Way::Kernel);
                ip(&format!("rule delete {rule}"));
                world.reaches(SOON, "10.0.0.2", PEERS);
                assert_eq!(world.hops.detour(Family::V4), None);
            }
        },
    );
}

#[test]
fn lbds_own_rules_change_no_way_but_those_to_its_services() {
    inside("lbds_own_rules_change_no_way_but_those_to_its_services", || {
        let world = world();
        ip("route add default via 10.0.0.2");
        world.reaches(LONG, "203.0.113.10", PEERS);
        ip("tuntap add lbd0 mode tun");
        let plan = Plan {
            routes: ["203.0.113.10/32".parse().unwrap()].into_iter().collect(),
            local_ports: [(lbd::flow::Protocol::Tcp, "10.0.0.1:30080".parse().unwrap())]
                .into_iter()
                .collect(),
            replies: [(lbd::flow::Protocol::Tcp, "10.0.0.3:8080".parse().unwrap())]
                .into_iter()
                .collect(),
            ..Plan::default()
        };
        let device = Device {
            name: "lbd0".into(),
            mtu: 1500,
        };
        let journal = tempfile::tempdir().unwrap();
        let plumbing = Plumbing::install(device, plan, journal.path()).unwrap();
        world.leaves_to_kernel("203.0.113.10");
        assert_eq!(world.hops.detour(Family::V4), None);
        world.reaches(SOON, "203.0.113.11", PEERS);
        world.reaches(LONG, "10.0.0.3", PEERS);
        assert_eq!(world.find("10.0.0.1"), Way::Kernel);
        plumbing.remove().unwrap();
        world.reaches(SOON, "203.0.113.10", PEERS);
    });
}

#[test]
fn several_paths_and_nexthop_objects_are_followed() {
    inside("several_paths_and_nexthop_objects_are_followed", || {
        let world = world();
        ip("neighbour replace 10.0.0.9 lladdr 02:00:00:00:00:09 dev eth0 nud permanent");
        world.reaches(LONG, "10.0.0.2", PEERS);
        let ends = |destination: &str| {
            let macs = [0, u32::MAX].map(|hash| match world.hops.find(address(destination), hash) {
                Way::Direct(hop) => hop.destination_mac[5],
                Way::Kernel => 0,
            });
            (macs[0], macs[1])
        };
        ip("route add 203.0.113.0/24 nexthop via 10.0.0.2 nexthop via 10.0.0.9 weight 3");
        within(SOON, "both", || ends("203.0.113.1") == (2, 9));
        ip("nexthop add id 1 via 10.0.0.2 dev eth0");
        ip("route add 198.51.100.0/24 nhid 1");
        within(SOON, "an object", || ends("198.51.100.1") == (2, 2));
        ip("nexthop replace id 1 via 10.0.0.9 dev eth0");
        within(SOON, "another object", || ends("198.51.100.1") == (9, 9));
        ip("route add 192.0.2.0/24 via inet6 fd00::2 dev eth0");
        world.reaches(LONG, "192.0.2.1", PEERS);
        ip("-6 route add 2001:db8::/32 nexthop via fd00::2 nexthop via fd00::9");
        ip("-6 neighbour replace fd00::9 lladdr 02:00:00:00:00:09 dev eth0 nud permanent");
        within(LONG, "both in IPv6", || ends("2001:db8::1") == (2, 9));
    });
}

#[test]
fn the_source_is_the_one_that_the_kernel_chooses() {
    inside("the_source_is_the_one_that_the_kernel_chooses", || {
        let world = world();
        for command in [
            "address add 10.0.0.5/24 dev eth0",
            "address add 172.16.0.1/16 dev eth0",
            "route add 203.0.113.0/24 via 172.16.0.9",
            "route add 198.51.100.0/24 via 10.0.0.2 src 172.16.0.1",
            "-6 route add 2001:db8::/32 via fd00::2",
            "-6 address add fd00:1::1/64 dev lo",
        ] {
            ip(command);
        }
        pause(SOON);
        for destination in [
            "10.0.0.2",
            "203.0.113.1",
            "198.51.100.1",
            "2001:db8::1",
            "fd00::2",
            "10.0.0.1",
        ] {
            let source = world.hops.source_for(address(destination)).unwrap();
            let kernels = ip(&format!("route get {destination}"));
            assert!(
                kernels.contains(&format!("src {source} ")),
                "{destination}: {source}, {kernels}"
            );
        }
    });
}

#[test]
fn an_interface_that_goes_down_sends_nothing_and_comes_back() {
    inside("an_interface_that_goes_down_sends_nothing_and_comes_back", || {
        let world = world();
        world.reaches(LONG, "10.0.0.2", PEERS);
        ip("link set eth0 down");
        world.leaves_to_kernel("10.0.0.2");
        ip("link set eth0 up");
        world.reaches(LONG, "10.0.0.2", PEERS);
        ip("link set eth0 mtu 1300");
        within(
            SOON,
            "the new MTU",
            || matches!(world.find("10.0.0.2"), Way::Direct(hop) if hop.mtu == 1300),
        );
    });
}

#[test]
fn after_a_burst_of_changes_the_ways_are_the_kernels_again() {
    inside("after_a_burst_of_changes_the_ways_are_the_kernels_again", || {
        let world = world();
        world.reaches(LONG, "10.0.0.2", PEERS);
        let nets = || (0..20_000).map(|number| format!("10.{}.{}.0/24", 1 + number / 256, number % 256));
        let batch = tempfile::NamedTempFile::new().unwrap();
        let mut commands: Vec<String> = nets().map(|net| format!("route add {net} via 10.0.0.2\n")).collect();
        commands.extend((0..3000).map(|number| {
            let address = format!(
                "10.0.0.{} lladdr 02:00:00:00:00:{:02x}",
                10 + number % 200,
                number % 256
            );
            format!("neighbour replace {address} dev eth0 nud permanent\n")
        }));
        fs::write(batch.path(), commands.concat()).unwrap();
        ip(&format!("-batch {}", batch.path().display()));
        // lbd has not heard of all of them yet: asking the kernel to resolve them must not undo what the operator set.
        for number in 10..210 {
            let _way = world.find(&format!("10.0.0.{number}"));
        }
        world.reaches(LONG, "10.1.0.1", PEERS);
        world.reaches(LONG, "10.78.255.1", PEERS);
        world.reaches(LONG, "10.0.0.209", [2, 0, 0, 0, 0, (2999 % 256) as u8]);
        assert_eq!(ip("neighbour show nud permanent").lines().count(), 200);
        ip("route add blackhole 10.78.255.1/32");
        within(LONG, "one more change", || world.find("10.78.255.1") == Way::Kernel);
        assert!(world.follower.is_running());
    });
}
