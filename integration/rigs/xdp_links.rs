//! lbd on AF_XDP in networks of other shapes: in and out of one interface, and over VLANs.
use crate::rig::{
    Config, Conversation, Family, Load, ONE_ARMED, Rig, SERVERS, Service, VLAN, isolated_xdp, isolated_xdp_with_vlans,
    matrix, tcp_echo, wait_until,
};
use std::time::Duration;

/// Client and servers share a segment, so that a server's answer comes back by lbd only where lbd has put its own address
/// into the request.
#[test]
fn one_interface_is_enough_where_lbd_masquerades_with_its_address() {
    isolated_xdp(|| {
        let rig = Rig::changed(ONE_ARMED);
        // A server that remembers a closed connection of an earlier round refuses a new one from its port, if it is chosen
        // again: the client asks once more, and is sent to the next server.
        for server in SERVERS {
            rig.sh(server, "sysctl -qw net.ipv4.tcp_max_tw_buckets=0").ok();
        }
        Family::BOTH
            .iter()
            .for_each(|family| tcp_echo("s1", &family.server(1, 7)));
        for (mode, family) in matrix() {
            let echo = Service::tcp(family, 7, 7, &[1]);
            let mut config = Config::xdp(mode, vec![Service::web(family), Service::dns(family), echo]);
            config.interfaces = vec!["eth0"];
            config.more = "[nat]\nmasquerade = \"always\"\n";
            let lbd = rig.lbd(&config);
            assert_eq!(rig.spread("client", &family.web(), 30), [10, 10, 10]);
            assert!(SERVERS.contains(&rig.dig("client", family.dns()).ok().trim()));
            let mut talk = Conversation::open("client", &family.vip(7));
            talk.say("who am I to you?");
            assert_masqueraded(&rig, family);
            assert_load_is_served(&family.web());
            talk.say("and still the same?");
            lbd.terminate();
        }
    });
}

/// Answers go to lb's own address: left to the kernel, each would be met by a reset.
#[test]
fn a_masqueraded_connection_outlives_its_service() {
    isolated_xdp(|| {
        let rig = Rig::changed(ONE_ARMED);
        Family::BOTH
            .iter()
            .for_each(|family| tcp_echo("s1", &family.server(1, 7)));
        for (mode, family) in matrix() {
            let mut config = Config::xdp(mode, vec![Service::tcp(family, 7, 7, &[1])]);
            config.interfaces = vec!["eth0"];
            config.more = "[nat]\nmasquerade = \"always\"\n";
            let lbd = rig.lbd(&config);
            let mut talk = Conversation::open("client", &family.vip(7));
            talk.say("the service is there");
            config.services.clear();
            lbd.reload(&format!("allow_empty = true\n{config}")).ok();
            talk.say("the service is gone");
            // lbd looks every two seconds for what no flow needs any more.
            std::thread::sleep(Duration::from_secs(3));
            talk.say("and still I am served");
            lbd.terminate();
        }
    });
}

/// What s1 sees of its echo client: lb's address, and a port of those that are lbd's by default.
#[track_caller]
fn assert_masqueraded(rig: &Rig, family: Family) {
    let seen = rig
        .sh("s1", "ss -Htn state established sport = :7 | awk '{ print $4 }'")
        .ok();
    let own = match family {
        Family::V4 => "10.2.0.1:",
        Family::V6 => "[fd00:2::1]:",
    };
    let port = seen
        .lines()
        .find_map(|peer| peer.strip_prefix(own)?.parse::<u16>().ok());
    assert!(port.is_some_and(|port| port >= 61000), "s1's peers: {seen}");
}

#[test]
fn client_and_servers_in_two_vlans_of_one_trunk_are_served() {
    isolated_xdp_with_vlans(|| {
        let rig = Rig::changed(VLAN);
        Family::BOTH
            .iter()
            .for_each(|family| tcp_echo("lb", &family.balancer(22)));
        for (mode, family) in matrix() {
            let mut session = Conversation::open("client", &family.balancer(22));
            let mut config = Config::xdp(mode, vec![Service::web(family), Service::dns(family)]);
            config.interfaces = vec!["eth0"];
            let lbd = rig.lbd(&config);
            assert_eq!(rig.spread("client", &family.web(), 30), [10, 10, 10]);
            assert!(SERVERS.contains(&rig.dig("client", family.dns()).ok().trim()));
            assert_load_is_served(&family.web());
            session.say("the host is still there");
            assert_eq!(
                rig.get("client", &family.server(2, 8080)).ok(),
                "s2\n",
                "straight to it"
            );
            lbd.terminate();
        }
    });
}

/// What is plugged out and in again is another interface, which no XDP program is on.
#[test]
fn a_server_whose_interface_was_removed_and_came_back_is_served_through_the_kernel() {
    isolated_xdp(|| {
        let rig = Rig::new();
        for (mode, family) in matrix() {
            let lbd = rig.lbd(&Config::xdp(mode, vec![Service::web(family)]));
            assert_eq!(rig.spread("client", &family.web(), 6), [2, 2, 2]);
            rig.sh("lb", REPLUG).ok();
            let told = || lbd.log().contains("s3: the interface was removed");
            wait_until("lbd to tell", Duration::from_secs(5), told);
            assert_eq!(rig.spread("client", &family.web(), 6), [2, 2, 2]);
            assert!(lbd.lbctl("status").ok().contains("s3: gone"));
            lbd.terminate();
        }
    });
}

const REPLUG: &str = "ip link del s3
    ip link add s3 type veth peer name eth0 netns /run/netns/s3
    ip link set s3 up
    ip -n s3 link set eth0 up
    ip addr add 10.2.0.1/32 dev s3
    ip addr add fd00:2::1/128 dev s3 nodad
    ip route add 10.2.0.13 dev s3
    ip -6 route add fd00:2::13 dev s3
    ip -n s3 addr add 10.2.0.13/32 dev eth0
    ip -n s3 addr add fd00:2::13/128 dev eth0 nodad
    ip -n s3 route add 10.2.0.1 dev eth0
    ip -n s3 -6 route add fd00:2::1 dev eth0
    ip -n s3 route add default via 10.2.0.1
    ip -n s3 -6 route add default via fd00:2::1";

#[track_caller]
fn assert_load_is_served(address: &str) {
    let load = Load::start("client", address);
    std::thread::sleep(Duration::from_secs(1));
    load.go_on_until_answered(50);
    let (answered, failures) = load.stop();
    assert!(
        failures.is_empty() && answered > 50,
        "{answered} answered, {failures:#?}"
    );
}
