//! Frames that the kernel would not forward: lbd on AF_XDP comes before it, and must not either.
use crate::rig::{Config, Family, Rig, Service, isolated_xdp, matrix};

/// A neighbour entry has the client's kernel send to everybody, or to a group, what is meant for one.
#[test]
fn a_frame_to_a_broadcast_or_multicast_address_is_dropped_by_name() {
    isolated_xdp(|| {
        let rig = Rig::new();
        for (mode, family) in matrix() {
            let lbd = rig.lbd(&Config::xdp(mode, vec![Service::web(family)]));
            assert_eq!(rig.spread("client", &family.web(), 3), [1, 1, 1]);
            let before = lbd.status();
            let gateway = family.balancer(0);
            for to in ["ff:ff:ff:ff:ff:ff", "01:00:5e:00:00:01", "33:33:00:00:00:01"] {
                let neighbour = format!("ip neigh replace {} lladdr {to} dev eth0", Family::host(&gateway));
                rig.sh("client", &neighbour).ok();
                let asked = rig.sh("client", &format!("curl -s --max-time 0.3 http://{}/", family.web()));
                assert_eq!(asked.out, "", "nobody answers what was sent to {to}");
            }
            rig.sh("client", "ip neigh flush all nud permanent").ok();
            let after = lbd.status();
            let flows = |status: &serde_json::Value| status["packets"]["forward"].as_u64();
            assert_eq!(flows(&before), flows(&after), "{}", lbd.lbctl("drops").out);
            assert!(dropped(&lbd.lbctl("drops --json").ok(), "unicast_in_l2_multicast") >= 3);
            assert_eq!(rig.spread("client", &family.web(), 3), [1, 1, 1]);
            lbd.terminate();
        }
    });
}

#[test]
fn a_packet_from_an_address_that_the_kernel_would_refuse_is_dropped_by_name() {
    isolated_xdp(|| {
        let rig = Rig::new();
        // An address of lb's, which no other traffic chooses, and with this switch one of 127.0.0.0/8, leave the client as any other would.
        rig.sh("client", "sysctl -qw net.ipv4.conf.eth0.route_localnet=1").ok();
        rig.sh(
            "client",
            "ip link set lo up && ip addr add 10.2.0.1/32 dev eth0 && ip addr add fd00:2::1/128 dev eth0 nodad preferred_lft 0",
        )
        .ok();
        for (mode, family) in matrix() {
            let lbd = rig.lbd(&Config::xdp(mode, vec![Service::web(family)]));
            // The client knows its router by now: lb's kernel answers no ARP of such a sender.
            assert_eq!(rig.spread("client", &family.web(), 3), [1, 1, 1]);
            let before = lbd.status();
            let senders: &[&str] = match family {
                Family::V4 => &["10.2.0.1", "127.0.0.1"],
                Family::V6 => &["fd00:2::1"],
            };
            for (number, sender) in senders.iter().enumerate() {
                let ask = format!("curl -s --interface {sender} --max-time 0.3 http://{}/", family.web());
                assert_eq!(rig.sh("client", &ask).out, "", "{sender} is answered");
                let drops = lbd.lbctl("drops --json").ok();
                assert!(dropped(&drops, "martian_source") > number as u64, "{sender}: {drops}");
            }
            assert_eq!(lbd.status()["packets"]["forward"], before["packets"]["forward"]);
            assert_eq!(rig.spread("client", &family.web(), 3), [1, 1, 1]);
            lbd.terminate();
        }
    });
}

fn dropped(drops: &str, reason: &str) -> u64 {
    let drops: serde_json::Value = serde_json::from_str(drops).expect("JSON");
    drops["drops"][reason].as_u64().expect("a count")
}
