//! lbd on AF_XDP beside the kernel: it takes what is its own and leaves the rest of the host alone, however it ends.
use std::thread::sleep;
use std::time::Duration;

use crate::rig::{
    Config, Conversation, DIR, Family, Lbd, Mode, Rig, Service, Watch, echo_datagram, isolated_xdp, matrix, tcp_echo,
    udp_echo, udp_echo_integrity, wait_until,
};

#[test]
fn the_host_stays_reachable_on_ports_that_are_no_services() {
    isolated_xdp(|| {
        let rig = Rig::new();
        Family::BOTH
            .iter()
            .for_each(|family| tcp_echo("lb", &family.balancer(22)));
        for (mode, family) in matrix() {
            let shell = family.balancer(22);
            let mut session = Conversation::open("client", &shell);
            session.say("before lbd");
            let lbd = rig.lbd(&Config::xdp(mode, vec![Service::web(family)]));
            session.say("lbd runs");
            assert_eq!(rig.spread("client", &family.web(), 6), [2, 2, 2]);
            Conversation::open("client", &shell).say("a new session");
            rig.sh("client", &format!("ping -c 3 -i 0.2 -W 2 {}", Family::host(&shell)))
                .ok();
            session.say("lbd has served");
            lbd.terminate();
            session.say("after lbd");
        }
    });
}

/// A server's answer that lbd has not translated makes the client reset the connection.
#[test]
fn while_lbd_starts_no_client_sees_an_answer_of_a_server() {
    isolated_xdp(|| {
        let rig = Rig::new();
        let mut services = vec![Service::web(Family::V4)];
        services.extend((0..4_000).map(|number| Service {
            name: format!("test/many:{number}"),
            address: format!("[fd00:96::1:{number:x}]:80"),
            ..Service::web(Family::V6)
        }));
        let wire = Watch::start("client", "eth0", "tcp and src net 10.2.0.0/24");
        let visit = "curl -s -o /dev/null --max-time 1 http://10.96.0.10/ & sleep 0.01";
        let clients = rig.spawn("client", &format!("for i in $(seq 500); do {visit}; done; wait"));
        let lbd = rig.lbd(&Config::xdp(Mode::Ipvs, services));
        clients.wait().ok();
        assert_eq!(rig.spread("client", &Family::V4.web(), 3), [1, 1, 1]);
        assert_eq!(wire.text(), "");
        lbd.terminate();
    });
}

#[test]
fn a_client_that_goes_straight_to_a_backend_is_left_to_the_kernel() {
    isolated_xdp(|| {
        let rig = Rig::new();
        let expected = rig.sh("client", &format!("sha256sum < {DIR}/slow")).ok();
        for (mode, family) in matrix() {
            let lbd = rig.lbd(&Config::xdp(mode, vec![Service::tcp(family, 80, 8080, &[1])]));
            assert_eq!(rig.spread("client", &family.web(), 1), [1, 0, 0]);
            let url = format!("http://{}/slow", family.server(1, 8080));
            let before = passed(&lbd);
            let mut download = rig.spawn("client", &format!("curl -sS --max-time 20 {url} | sha256sum"));
            wait_until("the download", Duration::from_secs(10), || passed(&lbd) > before);
            // It takes 4 s, and once a second lbd looks again whose the connection is.
            wait_until("the kernel to have it", Duration::from_secs(10), || {
                assert!(download.runs(), "lbd had all of it in hand: {} packets", passed(&lbd));
                let before = passed(&lbd);
                sleep(Duration::from_millis(300));
                passed(&lbd) == before
            });
            assert_eq!(download.wait().ok(), expected);
            lbd.terminate();
        }
    });
}

/// Packets that lbd has seen and given back to the kernel.
fn passed(lbd: &Lbd<'_>) -> u64 {
    let status = lbd.status();
    status["packets"]["pass"]
        .as_u64()
        .unwrap_or_else(|| panic!("no count of what passed: {status}"))
}

#[test]
fn when_lbd_is_killed_the_kernel_has_every_link_back_at_once() {
    isolated_xdp(|| {
        let rig = Rig::new();
        Family::BOTH
            .iter()
            .for_each(|family| tcp_echo("lb", &family.balancer(22)));
        let mut sessions = Family::BOTH.map(|family| Conversation::open("client", &family.balancer(22)));
        let lbd = rig.lbd(&Config::xdp(Mode::Ipvs, Family::BOTH.map(Service::web).into()));
        for family in Family::BOTH {
            assert_eq!(rig.spread("client", &family.web(), 3), [1, 1, 1]);
        }
        assert_eq!(links_with_xdp(&rig).len(), 4, "this test sees the programs");
        let ping = rig.spawn("client", "ping -q -c 20 -i 0.1 -W 1 10.1.0.1");
        sleep(Duration::from_millis(500));
        lbd.kill9();
        let gone = || links_with_xdp(&rig).is_empty();
        wait_until("the end of the programs", Duration::from_secs(10), gone);
        sessions.iter_mut().for_each(|session| session.say("still there"));
        for family in Family::BOTH {
            assert_eq!(rig.get("client", &family.server(2, 8080)).ok(), "s2\n");
        }
        let ping = ping.wait().ok();
        // When XDP goes off a veth, the kernel frees what is in its ring (drivers/net/veth.c, veth_napi_del_range).
        assert!(
            [" 20 received", " 19 received"].iter().any(|most| ping.contains(most)),
            "{ping}"
        );
    });
}

#[test]
fn the_generic_hook_serves_too_where_it_is_asked_for() {
    isolated_xdp(|| {
        let rig = Rig::new();
        let before = rig.kernel_state();
        for (mode, family) in matrix() {
            let mut config = Config::xdp(mode, vec![Service::web(family), Service::dns(family)]);
            config.af_xdp = "attach = \"generic\"\n";
            let lbd = rig.lbd(&config);
            let links = links_with_xdp(&rig);
            assert!(
                links.len() == 4 && links.iter().all(|link| link.contains(" xdpgeneric ")),
                "{links:#?}"
            );
            assert!(lbd.log().contains("generic"), "said at start: {}", lbd.log());
            assert_eq!(rig.spread("client", &family.web(), 9), [3, 3, 3]);
            rig.dig("client", family.dns()).ok();
            lbd.terminate();
        }
        assert_eq!(rig.kernel_state(), before);
    });
}

#[test]
fn veth_gets_the_native_hook_and_lbd_says_so() {
    isolated_xdp(|| {
        let rig = Rig::new();
        let lbd = rig.lbd(&Config::xdp(Mode::Ipvs, vec![Service::web(Family::V4)]));
        let links = links_with_xdp(&rig);
        assert!(
            links.len() == 4 && links.iter().all(|link| link.contains(" xdp ")),
            "{links:#?}"
        );
        let log = lbd.log();
        for link in ["client", "s1", "s2", "s3"] {
            let said = log.lines().any(|line| line.contains(link) && line.contains("native"));
            assert!(said, "nothing about {link}: {log}");
        }
        lbd.terminate();
    });
}

/// A veth's sender leaves the checksum to hardware that there is not; whoever takes the packet over XDP must do it.
#[test]
fn senders_on_veth_with_checksum_offload_just_work() {
    isolated_xdp(|| {
        let rig = Rig::new();
        for namespace in ["client", "s1"] {
            let features = rig.sh(namespace, "ethtool -k eth0").ok();
            assert!(features.contains("tx-checksumming: on"), "the default: {features}");
        }
        for (mode, family) in matrix() {
            let echo = Service {
                protocol: "udp",
                ..Service::tcp(family, 7, 7, &[1])
            };
            let lbd = rig.lbd(&Config::xdp(mode, vec![Service::web(family), echo]));
            assert_eq!(rig.spread("client", &family.web(), 9), [3, 3, 3]);
            let again = udp_echo_integrity(&family.server(1, 7), &family.vip(7), 1_000_000);
            assert!(again < 100, "{again} datagrams were sent twice");
            let bad = rig.sh(
                "s1",
                "nstat -asz | grep -E 'InCsumErrors|InErrs' | awk '{ n += $2 } END { print n }'",
            );
            assert_eq!(bad.ok().trim(), "0", "checksums that s1 found wrong");
            let status = lbd.status();
            assert!(
                finished_checksums(&status) > 500,
                "some are counted as finished: {status}"
            );
            assert!(lbd.lbctl("status").ok().contains("checksum"), "and told to people");
            lbd.terminate();
        }
    });
}

/// The sum of what is counted under any key that speaks of checksums, wherever it stands.
fn finished_checksums(value: &serde_json::Value) -> u64 {
    let of_object = value.as_object().into_iter().flatten().map(|(key, value)| {
        let own = if key.contains("checksum") { value.as_u64() } else { None };
        own.unwrap_or_else(|| finished_checksums(value))
    });
    let of_list = value.as_array().into_iter().flatten().map(finished_checksums);
    of_object.chain(of_list).sum()
}

#[test]
fn every_receive_queue_has_a_worker() {
    isolated_xdp(|| {
        const TWO_QUEUES: &str = "
            for link in client s1 s2 s3; do
                in_ns lb ethtool -L $link rx 2 tx 2
                in_ns $link ethtool -L eth0 rx 2 tx 2
            done";
        let rig = Rig::changed(TWO_QUEUES);
        for (mode, family) in matrix() {
            let lbd = rig.lbd(&Config::xdp(mode, vec![Service::web(family)]));
            assert_eq!(lbd.status()["workers"], 2, "{}", lbd.status());
            assert_eq!(rig.spread("client", &family.web(), 60), [20, 20, 20]);
            let queues = rig
                .sh("lb", "ethtool -S client | grep -E 'rx_queue_[01]_xdp_packets: *[1-9]'")
                .ok();
            assert_eq!(queues.lines().count(), 2, "packets came on both queues: {queues}");
            lbd.terminate();
        }
    });
}

#[test]
fn a_receive_queue_that_comes_later_is_warned_of() {
    isolated_xdp(|| {
        let rig = Rig::new();
        let lbd = rig.lbd(&Config::xdp(Mode::Ipvs, vec![Service::web(Family::V4)]));
        rig.sh("lb", "ethtool -L client rx 2 tx 2").ok();
        wait_until("a warning", Duration::from_secs(5), || {
            lbd.log()
                .contains("client has 2 receive queues by now, and lbd serves the 1")
        });
        lbd.terminate();
    });
}

/// The links of lb that have an XDP program, as `ip` shows them.
fn links_with_xdp(rig: &Rig) -> Vec<String> {
    let links = rig.sh("lb", "ip -o link").ok();
    let with = links.lines().filter(|link| link.contains("prog/xdp"));
    with.map(str::to_owned).collect()
}

/// Its fragments come to lbd, which alone can tell that they are of no flow, and go on.
#[test]
fn a_big_datagram_straight_from_a_backend_reaches_who_asked_for_it() {
    isolated_xdp(|| {
        let rig = Rig::new();
        for family in Family::BOTH {
            udp_echo("s1", &family.server(1, 7));
            let echo = Service {
                protocol: "udp",
                ..Service::tcp(family, 7, 7, &[1])
            };
            let lbd = rig.lbd(&Config::xdp(Mode::Ipvs, vec![echo]));
            echo_datagram("client", &family.server(1, 7), 4_000).expect("in fragments, and not by the service");
            lbd.terminate();
        }
    });
}
