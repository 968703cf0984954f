//! Datagrams that are longer than the links between carry: lbd translates their fragments, in whatever order they come.
use crate::rig::{
    Backend, Config, Family, Lbd, Mode, Rig, Service, echo_datagram, echo_shuffled, isolated, matrix,
    shuffled_udp_echo, udp_echo,
};

/// Nearly the longest that there is.
const SIZE: usize = 60_000;

/// An echo service over s1, on a node port too.
fn echo(mode: Mode, family: Family) -> Config {
    let service = Service {
        protocol: "udp",
        node_port: Some(30007),
        ..Service::tcp(family, 7, 7, &[1])
    };
    Config::new(mode, vec![service])
}

fn client(family: Family) -> &'static str {
    match family {
        Family::V4 => "10.1.0.2:40000",
        Family::V6 => "[fd00:1::2]:40000",
    }
}

#[track_caller]
fn assert_nothing_was_dropped(lbd: &Lbd<'_>) {
    let status = lbd.status();
    assert_eq!(status["packets"]["drop"], 0, "{}", lbd.lbctl("drops").out);
    let fragments = &status["fragments"];
    assert_eq!(
        (&fragments["datagrams"], &fragments["held"]),
        (&0.into(), &0.into()),
        "{status}"
    );
}

#[test]
fn datagrams_of_sixty_kilobytes_go_there_and_back() {
    isolated(|| {
        let rig = Rig::new();
        Family::BOTH
            .iter()
            .for_each(|family| udp_echo("s1", &family.server(1, 7)));
        for (mode, family) in matrix() {
            let lbd = rig.lbd(&echo(mode, family));
            for (from, to) in [
                ("client", family.vip(7)),
                ("client", family.balancer(30007)),
                ("lb", family.vip(7)),
            ] {
                for size in [SIZE, 100, 1_473, SIZE] {
                    let echoed = echo_datagram(from, &to, size);
                    echoed.unwrap_or_else(|error| panic!("{size} bytes from {from} to {to}: {error}"));
                }
            }
            assert_nothing_was_dropped(&lbd);
            lbd.terminate();
        }
    });
}

#[test]
fn later_fragments_may_come_before_the_first_one_both_ways() {
    isolated(|| {
        let rig = Rig::new();
        Family::BOTH
            .iter()
            .for_each(|family| shuffled_udp_echo("s1", &family.server(1, 7)));
        for (mode, family) in matrix() {
            let lbd = rig.lbd(&echo(mode, family));
            for to in [family.vip(7), family.balancer(30007)] {
                let echoed = echo_shuffled("client", client(family), &to, SIZE, 10);
                echoed.unwrap_or_else(|error| panic!("to {to}: {error}; {}", lbd.lbctl("status").out));
            }
            assert_nothing_was_dropped(&lbd);
            lbd.terminate();
        }
    });
}

#[test]
fn masqueraded_datagrams_in_fragments_go_there_and_back() {
    isolated(|| {
        let rig = Rig::new();
        Family::BOTH
            .iter()
            .for_each(|family| shuffled_udp_echo("s1", &family.server(1, 7)));
        for (mode, family) in matrix() {
            for nat in [
                "[nat]\nmasquerade = \"always\"\npool = [\"198.18.0.0/28\", \"2001:2::/124\"]\n",
                "[nat]\nmasquerade = \"always\"\n",
            ] {
                if !nat.contains("pool") && Backend::of_this_run() == Backend::Tun {
                    continue; // over TUN it takes a pool
                }
                let config = Config {
                    more: nat,
                    ..echo(mode, family)
                };
                let lbd = rig.lbd(&config);
                echo_datagram("client", &family.vip(7), SIZE).expect("in order");
                echo_shuffled("client", client(family), &family.vip(7), SIZE, 3).expect("shuffled");
                assert_nothing_was_dropped(&lbd);
                lbd.terminate();
            }
        }
    });
}

#[test]
fn what_a_backend_sends_straight_to_others_comes_whole() {
    isolated(|| {
        let rig = Rig::new();
        for family in Family::BOTH {
            udp_echo("s1", &family.server(1, 7));
            shuffled_udp_echo("s1", &family.server(1, 8));
        }
        for (mode, family) in matrix() {
            let lbd = rig.lbd(&echo(mode, family));
            for port in [7, 8] {
                let server = family.server(1, port);
                let echoed = echo_datagram("client", &server, SIZE);
                echoed.unwrap_or_else(|error| panic!("past the service, port {port}: {error}"));
            }
            assert_nothing_was_dropped(&lbd);
            lbd.terminate();
        }
    });
}
