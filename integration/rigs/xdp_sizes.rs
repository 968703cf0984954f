//! lbd on AF_XDP is a router: it lowers the TTL, and says so where a packet is too old or too big for the way on.
use rustix::io::Errno;

use crate::rig::{
    Config, Conversation, DIR, Family, Mode, Rig, Service, Watch, echo_datagram, isolated_xdp, matrix, tcp_echo,
    udp_echo,
};

/// The server says that it takes segments as big as the client's, so that only an ICMP error can tell the client.
const BIG_CLIENT: &str = "
    ip -n client link set eth0 mtu 9000
    ip -n lb link set client mtu 9000
    ip -n s1 route replace default via 10.2.0.1 advmss 8960
    ip -n s1 -6 route replace default via fd00:2::1 advmss 8940";

/// The other way round.
const BIG_SERVER: &str = "
    ip -n s1 link set eth0 mtu 9000
    ip -n lb link set s1 mtu 9000
    ip -n client route replace default via 10.1.0.1 advmss 8960
    ip -n client -6 route replace default via fd00:1::1 advmss 8940";

#[test]
fn a_client_with_big_frames_uploads_to_a_server_with_small_ones() {
    isolated_xdp(|| {
        let rig = Rig::changed(BIG_CLIENT);
        for (mode, family) in matrix() {
            let lbd = rig.lbd(&Config::xdp(mode, vec![Service::tcp(family, 80, 8080, &[1])]));
            assert_transfers(&rig, family);
            let way = format!("ip route get {}", Family::host(&family.web()));
            let way = rig.sh("client", &way).ok();
            assert!(way.contains("mtu 1500"), "the client has learnt it: {way}");
            rig.sh("client", "ip route flush cache; ip -6 route flush cache").ok();
            lbd.terminate();
        }
    });
}

#[test]
fn a_server_with_big_frames_answers_a_client_with_small_ones() {
    isolated_xdp(|| {
        let rig = Rig::changed(BIG_SERVER);
        for (mode, family) in matrix() {
            let lbd = rig.lbd(&Config::xdp(mode, vec![Service::tcp(family, 80, 8080, &[1])]));
            assert_transfers(&rig, family);
            let client = match family {
                Family::V4 => "10.1.0.2",
                Family::V6 => "fd00:1::2",
            };
            let way = rig.sh("s1", &format!("ip route get {client}")).ok();
            assert!(way.contains("mtu 1500"), "the server has learnt it: {way}");
            rig.sh("s1", "ip route flush cache; ip -6 route flush cache").ok();
            lbd.terminate();
        }
    });
}

/// 20 MB up and down, unchanged.
#[track_caller]
pub(crate) fn assert_transfers(rig: &Rig, family: Family) {
    let file = format!("{DIR}/big");
    let sum = format!("[ -e {file} ] || head -c 20000000 /dev/urandom > {file}; sha256sum < {file}");
    let expected = rig.sh("client", &sum).ok();
    let put = format!(
        "curl -sS --fail --max-time 20 -T {file} http://{}/put/file",
        family.web()
    );
    rig.sh("client", &put).ok();
    let stored = rig.sh("s1", &format!("sha256sum < {DIR}/s1/put/file && rm {DIR}/s1/put/file"));
    assert_eq!(stored.ok(), expected, "up");
    let get = format!("curl -sS --max-time 20 http://{}/big | sha256sum", family.web());
    assert_eq!(rig.sh("client", &get).ok(), expected, "down");
}

#[test]
fn a_datagram_too_big_for_the_servers_link_is_answered_by_an_icmp_error_from_lbd() {
    isolated_xdp(|| {
        let rig = Rig::changed(BIG_CLIENT);
        Family::BOTH
            .iter()
            .for_each(|family| udp_echo("s1", &family.server(1, 7)));
        for (mode, family) in matrix() {
            let lbd = rig.lbd(&echo(mode, family));
            echo_datagram("client", &family.vip(7), 100).expect("a small one passes");
            let wire = Watch::start("client", "eth0", "icmp or icmp6");
            let error = echo_datagram("client", &family.vip(7), 8000).expect_err("it is too big");
            assert_eq!(error.raw_os_error(), Some(Errno::MSGSIZE.raw_os_error()), "{error}");
            let told = match family {
                Family::V4 => "10.1.0.1 > 10.1.0.2: ICMP 10.96.0.10 unreachable - need to frag (mtu 1500)",
                Family::V6 => "fd00:1::1 > fd00:1::2: [icmp6 sum ok] ICMP6, packet too big, mtu 1500",
            };
            wire.sees(&[told]);
            rig.sh("client", "ip route flush cache; ip -6 route flush cache").ok();
            lbd.terminate();
        }
    });
}

#[test]
fn big_datagrams_pass_where_every_link_takes_them() {
    isolated_xdp(|| {
        let rig = Rig::changed(&format!("{BIG_CLIENT}\n{BIG_SERVER}"));
        Family::BOTH
            .iter()
            .for_each(|family| udp_echo("s1", &family.server(1, 7)));
        for (mode, family) in matrix() {
            let mut config = echo(mode, family);
            config.more = "";
            let lbd = rig.lbd(&config);
            for size in [100, 8000, 8900, 8000] {
                let passed = echo_datagram("client", &family.vip(7), size);
                passed.unwrap_or_else(|error| panic!("{size} bytes: {error}"));
            }
            lbd.terminate();
        }
    });
}

#[test]
fn a_forwarded_packet_has_its_ttl_lowered_by_one() {
    isolated_xdp(|| {
        let rig = Rig::new();
        Family::BOTH
            .iter()
            .for_each(|family| udp_echo("s1", &family.server(1, 7)));
        for (mode, family) in matrix() {
            let lbd = rig.lbd(&echo(mode, family));
            let talk = || echo_datagram("client", &family.vip(7), 100).expect("an echo");
            talk(); // the first one may go by the kernel, which resolves the neighbour
            let request = Watch::start("s1", "eth0", "udp dst port 7");
            let reply = Watch::start("client", "eth0", "udp src port 7");
            talk();
            let lowered = match family {
                Family::V4 => "ttl 63,",
                Family::V6 => "hlim 63,",
            };
            request.sees(&[lowered]);
            reply.sees(&[lowered]);
            lbd.terminate();
        }
    });
}

#[test]
fn a_traceroute_to_a_service_shows_lbd_on_the_way() {
    isolated_xdp(|| {
        let rig = Rig::new();
        for (mode, family) in matrix() {
            let lbd = rig.lbd(&Config::xdp(mode, vec![Service::tcp(family, 80, 8080, &[1])]));
            assert_eq!(rig.spread("client", &family.web(), 1), [1, 0, 0]);
            let (vip, own) = (family.web(), family.balancer(1));
            let (vip, own) = (Family::host(&vip), Family::host(&own));
            let trace = rig
                .sh("client", &format!("traceroute -n -T -p 80 -q 1 -N 1 -w 2 -m 4 {vip}"))
                .ok();
            let hops: Vec<&str> = trace
                .lines()
                .skip(1)
                .filter_map(|line| line.split_whitespace().nth(1))
                .collect();
            assert_eq!(hops, [own, vip], "{trace}");
            lbd.terminate();
        }
    });
}

#[test]
fn a_ping_in_a_big_frame_is_answered_whole() {
    isolated_xdp(|| {
        let rig = Rig::changed(BIG_CLIENT);
        for (mode, family) in matrix() {
            let mut config = Config::xdp(mode, vec![Service::web(family)]);
            config.more = "[conntrack]\nmax_flows = 1000\n";
            let lbd = rig.lbd(&config);
            for size in [100, 2_000, 4_000, 8_000] {
                let ping = format!("ping -n -c 2 -i 0.1 -W 1 -s {size} {}", Family::host(&family.web()));
                rig.sh("client", &ping).ok();
            }
            lbd.terminate();
        }
    });
}

/// What the client sends to the service has one hop to go.
const ONE_HOP: &str = "
    ip -n client route add 10.96.0.10 via 10.1.0.1 hoplimit 1
    ip -n client -6 route add fd00:96::10 via fd00:1::1 hoplimit 1";

#[test]
fn a_server_on_the_balancer_itself_is_no_hop_away() {
    isolated_xdp(|| {
        let rig = Rig::changed(ONE_HOP);
        for family in Family::BOTH {
            tcp_echo("lb", &family.balancer(7));
        }
        for (mode, family) in matrix() {
            let near = Service {
                backends: vec![(family.balancer(7), 1)],
                ..Service::tcp(family, 7, 7, &[])
            };
            let far = Service::tcp(family, 80, 8080, &[1]);
            let lbd = rig.lbd(&Config::xdp(mode, vec![near, far]));
            let mut near = Conversation::open("client", &family.vip(7));
            near.say("hello");
            assert_ne!(rig.get("client", &family.web()).code, 0, "a server elsewhere is one");
            lbd.terminate();
        }
    });
}

/// An echo service over s1.
fn echo(mode: Mode, family: Family) -> Config {
    let service = Service {
        protocol: "udp",
        ..Service::tcp(family, 7, 7, &[1])
    };
    Config::xdp(mode, vec![service])
}

/// Routers may cut IPv4 fragments into smaller ones (RFC 791 section 3.2); in IPv6 only their sender may.
#[test]
fn fragments_too_big_for_the_servers_link_are_cut_again_or_their_sender_learns_what_fits() {
    isolated_xdp(|| {
        let rig = Rig::changed(BIG_CLIENT);
        Family::BOTH
            .iter()
            .for_each(|family| udp_echo("s1", &family.server(1, 7)));
        for (mode, family) in matrix() {
            let mut config = echo(mode, family);
            config.more = "";
            let lbd = rig.lbd(&config);
            echo_datagram("client", &family.vip(7), 100).expect("a small one passes");
            let wire = Watch::start("client", "eth0", "icmp or icmp6");
            let first = echo_datagram("client", &family.vip(7), 60_000);
            match family {
                Family::V4 => first.expect("in smaller fragments"),
                Family::V6 => {
                    first.expect_err("they are too big");
                    wire.sees(&["ICMP6, packet too big, mtu 1500"]);
                    echo_datagram("client", &family.vip(7), 60_000).expect("the client knows what fits");
                }
            }
            rig.sh("client", "ip route flush cache; ip -6 route flush cache").ok();
            lbd.terminate();
        }
    });
}
