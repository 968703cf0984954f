//! `announce = true`: service addresses in the clients' own network, which no interface has.
use crate::rig::{Config, Conversation, Family, Mode, Rig, Service, Watch, isolated_xdp, tcp_echo};

#[test]
fn a_service_address_in_the_clients_network_is_found_where_lbd_announces_it() {
    isolated_xdp(|| {
        let rig = Rig::new();
        for mode in [Mode::Ipvs, Mode::Iptables] {
            rig.sh("client", "ip neigh flush all; ip -6 neigh flush all").ok();
            let mut config = Config::xdp(mode, Family::BOTH.map(in_the_clients_network).into());
            let silent = rig.lbd(&config);
            for family in Family::BOTH {
                let get = rig.get("client", &address(family));
                assert_ne!(get.code, 0, "nobody says that it has the address: {get:?}");
            }
            silent.terminate();
            rig.sh("client", "ip neigh flush all; ip -6 neigh flush all").ok();
            config.af_xdp = "announce = true\n";
            let lbd = rig.lbd(&config);
            for family in Family::BOTH {
                assert_eq!(rig.spread("client", &address(family), 9), [3, 3, 3]);
            }
            lbd.terminate();
        }
    });
}

#[test]
fn announced_addresses_are_told_to_the_network_at_start() {
    isolated_xdp(|| {
        let rig = Rig::new();
        let mut config = Config::xdp(Mode::Ipvs, Family::BOTH.map(in_the_clients_network).into());
        config.af_xdp = "announce = true\n";
        let wire = Watch::start("client", "eth0", "arp or icmp6");
        let lbd = rig.lbd(&config);
        let mac = rig.sh("lb", "ip -j link show client | jq -r '.[].address'").ok();
        wire.sees(&[mac.trim(), "10.1.0.100", "neighbor advertisement", "tgt is fd00:1::100"]);
        lbd.terminate();
    });
}

/// Cards and switches pass on only those multicast frames that somebody has asked for.
#[test]
fn questions_for_an_announced_ipv6_address_are_asked_for_as_long_as_it_is_announced() {
    isolated_xdp(|| {
        let rig = Rig::new();
        let groups = |link: &str| rig.sh("lb", &format!("ip -6 maddr show dev {link}")).ok();
        let before = groups("client");
        let mut config = Config::xdp(Mode::Ipvs, vec![in_the_clients_network(Family::V6)]);
        config.af_xdp = "announce = true\n";
        let lbd = rig.lbd(&config);
        for link in ["client", "s1"] {
            assert!(groups(link).contains("ff02::1:ff00:100"), "{}", groups(link));
        }
        config.services = vec![Service::web(Family::V6)];
        lbd.reload(&config.to_string()).ok();
        assert!(!groups("client").contains("ff02::1:ff00:100"), "{}", groups("client"));
        lbd.terminate();
        assert_eq!(groups("client"), before);
    });
}

#[test]
fn an_address_is_announced_as_long_as_a_connection_to_it_lives() {
    isolated_xdp(|| {
        let rig = Rig::new();
        for family in Family::BOTH {
            tcp_echo("s1", &family.server(1, 7));
            let echo = Service {
                address: address(family),
                ..Service::tcp(family, 7, 7, &[1])
            };
            let mut config = Config::xdp(Mode::Ipvs, vec![echo]);
            config.af_xdp = "announce = true\n";
            let lbd = rig.lbd(&config);
            let mut talk = Conversation::open("client", &address(family));
            talk.say("the service is there");
            config.services.clear();
            lbd.reload(&format!("allow_empty = true\n{config}")).ok();
            rig.sh("client", "ip neigh flush all; ip -6 neigh flush all").ok();
            talk.say("the service is gone");
            lbd.terminate();
        }
    });
}

/// A machine that had the address before is forgotten: clients that know it learn the new one from the announcement.
#[test]
fn a_client_with_an_old_entry_for_the_address_learns_the_new_one_at_start() {
    isolated_xdp(|| {
        let rig = Rig::new();
        for family in Family::BOTH {
            let host = address(family);
            let host = Family::host(&host);
            let old = format!("ip neigh replace {host} lladdr 02:00:00:00:0f:0f dev eth0 nud stale");
            rig.sh("client", &old).ok();
            let mut config = Config::xdp(Mode::Ipvs, vec![in_the_clients_network(family)]);
            config.af_xdp = "announce = true\n";
            let lbd = rig.lbd(&config);
            assert_eq!(rig.spread("client", &address(family), 3), [1, 1, 1]);
            lbd.terminate();
        }
    });
}

/// The web service at an address of the client's own network.
fn in_the_clients_network(family: Family) -> Service {
    Service {
        address: address(family),
        ..Service::web(family)
    }
}

fn address(family: Family) -> String {
    match family {
        Family::V4 => "10.1.0.100:80".to_owned(),
        Family::V6 => "[fd00:1::100]:80".to_owned(),
    }
}
