//! Who the backend sees: the client, or an address and port of the pool.
use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;

use lbd::conntrack::connection::{Connection, Dialogue, State};
use lbd::conntrack::window::Window;
use lbd::flow::{Direction, Endpoint, Protocol, Tuple};
use lbd::policy::{Mode, OwnSources};
use lbd::verdict::{Drop, Pass, Verdict};

use crate::packets::{ACK, FIN, RST, SYN};
use crate::world::{Case, World, packet};

const POOL: &str = "pool = [\"198.18.0.0/28\", \"2001:2::/124\"]";

fn nat(masquerade: &str) -> String {
    format!("[nat]\nmasquerade = \"{masquerade}\"\n{POOL}")
}

#[track_caller]
fn assert_of_pool(source: SocketAddr) {
    let networks = ["198.18.0.0/28", "2001:2::/124"].map(|network| network.parse::<ipnet::IpNet>().unwrap());
    assert!(
        networks.iter().any(|network| network.contains(&source.ip())),
        "{source}"
    );
    assert!(source.port() >= 1_024, "{source}");
}

fn node(case: Case) -> String {
    format!("[node]\naddresses = [\"{}\"]", case.node(0).ip())
}

#[test]
fn auto_keeps_the_address_of_a_client_elsewhere() {
    for case in Case::all() {
        let mut world = case.setup().tables(&nat("auto")).world();
        let flow = world.connect(case.protocol, case.client(2, 40_000), case.service());
        assert_eq!(flow.source, flow.client);
    }
}

#[test]
fn auto_masquerades_a_client_on_this_node() {
    for case in Case::all() {
        let setup = case.setup().tables(&nat("auto")).tables(&node(case));
        let mut world = setup.world();
        let flow = world.connect(case.protocol, case.node(40_000), case.service());
        assert_of_pool(flow.source);
        world.up(&flow, ACK);
        world.down(&flow, ACK);
    }
}

#[test]
fn auto_masquerades_a_backend_that_reaches_itself() {
    for case in Case::all() {
        let mut world = case.setup().tables(&nat("auto")).world();
        let mut client = case.backend(2);
        client.set_port(40_000);
        let other = world.connect(case.protocol, client, case.service());
        assert_eq!(
            (other.backend, other.source),
            (case.backend(1), client),
            "another backend sees it"
        );
        client.set_port(40_001);
        let own = world.connect(case.protocol, client, case.service());
        assert_eq!(own.backend, case.backend(2));
        assert_of_pool(own.source);
    }
}

#[test]
fn always_masquerades_everyone() {
    for case in Case::all() {
        let mut world = case.setup().tables(&nat("always")).world();
        let mut seen = HashSet::new();
        for port in 40_000..40_200 {
            let flow = world.connect(case.protocol, case.client(2, port), case.service());
            assert_of_pool(flow.source);
            assert!(
                seen.insert((flow.source, flow.backend)),
                "no two flows to a backend come from {}",
                flow.source
            );
        }
    }
}

#[test]
fn never_masquerades_no_one() {
    for case in Case::all() {
        let setup = case.setup().tables(&nat("never")).tables(&node(case)).weights(&[1]);
        let mut world = setup.world();
        for client in [case.node(40_000), case.backend(1), case.client(2, 40_000)] {
            let flow = world.open(case.protocol, client, case.service());
            assert_eq!(flow.source, client);
        }
    }
}

#[test]
fn the_same_client_port_through_two_addresses_of_a_service_reaches_one_backend_twice() {
    for case in Case::all() {
        let external = format!("external_addresses = [\"{}\"]", case.external().ip());
        let setup = case.setup().weights(&[1]).keys(&external);
        let mut world = setup.tables(&nat("auto")).world();
        let client = case.client(2, 40_000);
        let first = world.connect(case.protocol, client, case.service());
        let second = world.connect(case.protocol, client, case.external());
        assert_eq!((first.source, first.backend), (client, second.backend));
        assert_of_pool(second.source);
        for flow in [first, second] {
            world.up(&flow, ACK);
            world.down(&flow, ACK);
        }
    }
}

#[test]
fn a_client_port_that_has_a_connection_directly_to_the_backend_reaches_it_through_the_service_from_the_pool() {
    for case in Case::all() {
        // Whether lbd sees both directions of it, or, as with a TUN device, only what the backend answers.
        for sees_both in [true, false] {
            let mut world = case.setup().weights(&[1]).tables(&nat("auto")).world();
            let (client, backend) = (case.client(2, 40_000), case.backend(1));
            let direct = |from, to, flags| packet(case.protocol, from, to, flags);
            let passed = Verdict::Pass(Pass::NoMatch);
            if sees_both {
                assert_eq!(world.send(&direct(client, backend, SYN)).verdict, passed);
            }
            assert_eq!(world.send(&direct(backend, client, SYN | ACK)).verdict, passed);
            let flow = world.connect(case.protocol, client, case.service());
            assert_of_pool(flow.source);
            let outcome = world.send(&direct(backend, client, ACK));
            assert_eq!(outcome.verdict, passed, "the direct connection goes on");
            world.up(&flow, ACK);
            world.down(&flow, ACK);
            let other = world.connect(case.protocol, case.client(2, 40_001), case.service());
            assert_eq!(other.source, other.client, "any other port stays as it is");
        }
    }
}

#[test]
fn a_direct_connection_that_is_over_or_was_not_seen_for_long_is_in_nobodys_way() {
    for case in Case::all() {
        let over = [(RST, 0), (FIN | ACK, 125), (ACK, 86_401)];
        for (flags, seconds) in over {
            let mut world = case.setup().weights(&[1]).tables(&nat("auto")).world();
            let (client, backend) = (case.client(2, 40_000), case.backend(1));
            for flags in [SYN | ACK, flags] {
                drop(world.send(&packet(case.protocol, backend, client, flags)));
            }
            let seconds = if case.protocol == Protocol::Udp { 301 } else { seconds };
            world.seconds(seconds);
            assert_eq!(
                world.open(case.protocol, client, case.service()).source,
                client,
                "{case:?}"
            );
        }
    }
}

#[test]
fn the_beginning_of_a_direct_connection_that_never_went_on_is_soon_in_nobodys_way() {
    for case in Case::tcp() {
        let mut world = case.setup().weights(&[1]).tables(&nat("never")).world();
        let (client, backend) = (case.client(2, 40_000), case.backend(1));
        drop(world.send(&packet(case.protocol, backend, client, SYN | ACK)));
        world.seconds(61);
        assert_eq!(world.open(case.protocol, client, case.service()).source, client);
    }
}

#[test]
fn without_masquerading_no_sender_is_stuck_on_a_datagram_that_its_backend_still_sends() {
    for case in Case::all().filter(|case| case.protocol == Protocol::Udp) {
        let mut world = case.setup().weights(&[1]).tables(&nat("never")).world();
        let (client, backend) = (case.client(2, 40_000), case.backend(1));
        let late = world.send(&packet(case.protocol, backend, client, 0));
        assert_eq!(late.verdict, Verdict::Pass(Pass::NoMatch));
        let flow = world.open(case.protocol, client, case.service());
        assert_eq!(flow.source, client);
        world.down(&flow, 0);
    }
}

#[test]
fn one_forged_answer_of_a_backend_blocks_no_client_where_masquerading_is_forbidden() {
    for case in Case::all() {
        let mut world = case.setup().weights(&[1]).tables(&nat("never")).world();
        let (client, backend) = (case.client(2, 40_000), case.backend(1));
        // As often as the forger likes: a server whose client does not answer says nothing else.
        for _ in 0..3 {
            drop(world.send(&packet(case.protocol, backend, client, SYN | ACK)));
        }
        let flow = world.connect(case.protocol, client, case.service());
        assert_eq!(flow.source, client, "{case:?}");
    }
}

#[test]
fn without_masquerading_a_direct_connection_is_believed_once_both_its_sides_were_heard() {
    for case in Case::all().filter(|case| case.protocol != Protocol::Udp) {
        let (client, backend) = (case.client(2, 40_000), case.backend(1));
        let ways = [
            // A TUN device brings what the server sends, and a server goes on only after its client has answered.
            vec![(backend, client, SYN | ACK), (backend, client, ACK)],
            vec![(client, backend, SYN), (backend, client, SYN | ACK)],
        ];
        for packets in ways {
            let mut world = case.setup().weights(&[1]).tables(&nat("never")).world();
            for (from, to, flags) in packets {
                drop(world.send(&packet(case.protocol, from, to, flags)));
            }
            let verdict = world.try_open(case.protocol, client, case.service());
            assert_eq!(verdict, Verdict::Drop(Drop::TupleInUse), "{case:?}");
        }
    }
}

#[test]
fn what_a_client_alone_sends_past_the_services_makes_no_connection() {
    for case in Case::all().filter(|case| case.protocol != Protocol::Udp) {
        let mut world = case.setup().weights(&[1]).tables(&nat("never")).world();
        let (client, backend) = (case.client(2, 40_000), case.backend(1));
        for flags in [SYN, ACK, ACK] {
            drop(world.send(&packet(case.protocol, client, backend, flags)));
        }
        assert_eq!(world.open(case.protocol, client, case.service()).source, client);
    }
}

#[test]
fn one_forged_answer_of_a_backend_blocks_no_client_where_there_is_no_pool_for_it() {
    for case in Case::all().filter(|case| case.v6) {
        let only_v4 = "[nat]\nmasquerade = \"auto\"\npool = [\"198.18.0.0/28\"]";
        let mut world = case.setup().weights(&[1]).tables(only_v4).world();
        let (client, backend) = (case.client(2, 40_000), case.backend(1));
        drop(world.send(&packet(case.protocol, backend, client, SYN | ACK)));
        assert_eq!(world.open(case.protocol, client, case.service()).source, client);
    }
}

#[test]
fn the_last_packets_of_a_forgotten_connection_make_no_direct_one() {
    for case in Case::all().filter(|case| case.protocol != Protocol::Udp) {
        let mut world = case.setup().weights(&[1]).tables(&nat("auto")).world();
        let (client, backend) = (case.client(2, 40_000), case.backend(1));
        for flags in [ACK, FIN | ACK, ACK] {
            let last = world.send(&packet(case.protocol, backend, client, flags));
            assert_eq!(last.verdict, Verdict::Pass(Pass::NoMatch));
        }
        assert_eq!(world.open(case.protocol, client, case.service()).source, client);
    }
}

#[test]
fn without_masquerading_the_second_of_them_is_dropped_and_the_first_lives_on() {
    for case in Case::all() {
        let external = format!("external_addresses = [\"{}\"]", case.external().ip());
        let setup = case.setup().weights(&[1]).keys(&external);
        let mut world = setup.tables(&nat("never")).world();
        let client = case.client(2, 40_000);
        let first = world.connect(case.protocol, client, case.service());
        let verdict = world.try_open(case.protocol, client, case.external());
        assert_eq!(verdict, Verdict::Drop(Drop::TupleInUse));
        assert_eq!(world.engine.conntrack().len(), 1);
        world.up(&first, ACK);
        world.down(&first, ACK);
    }
}

#[test]
fn the_source_of_a_flow_that_is_over_is_free_at_once() {
    let external = format!("external_addresses = [\"{}\"]", Case::TCP.external().ip());
    let setup = Case::TCP.setup().weights(&[1]).keys(&external).tables(&nat("never"));
    let mut world = setup.world();
    let client = Case::TCP.client(2, 40_000);
    world.open(Protocol::Tcp, client, Case::TCP.service());
    world.advance(Duration::from_millis(59_999));
    assert_eq!(
        world.try_open(Protocol::Tcp, client, Case::TCP.external()),
        Verdict::Drop(Drop::TupleInUse)
    );
    world.now = world.now + Duration::from_millis(1);
    let second = world.open(Protocol::Tcp, client, Case::TCP.external());
    assert_eq!(second.source, client);
    assert_eq!(world.load(second.backend), (1, 0));
}

/// Has a client's flow to backend 1 come from this place.
fn take(world: &World, client: SocketAddr, place: Endpoint) {
    take_as(world, client, place, Dialogue::Continued);
}

fn take_as(world: &World, client: SocketAddr, place: Endpoint, dialogue: Dialogue) {
    let connection = Connection {
        backend: world.backend(Case::UDP.backend(1)),
        ..flow_at(world, client, place, dialogue)
    };
    world.engine.conntrack().insert(connection, world.now).unwrap();
}

/// A flow over UDP, to any backend.
fn flow_at(world: &World, client: SocketAddr, place: Endpoint, dialogue: Dialogue) -> Connection {
    Connection {
        protocol: Protocol::Udp,
        client: client.into(),
        virtual_address: Endpoint {
            port: place.port,
            ..Case::UDP.service().into()
        },
        source: place,
        backend: Arc::clone(&world.engine.ruleset().services[0].backends[0].backend),
        template: None,
        state: State::Udp,
        dialogue,
        window: Window::default(),
        opened: world.now,
        expires: world.now + Duration::from_secs(300),
    }
}

/// Of the pool's only address.
fn place(port: u16) -> Endpoint {
    Endpoint::new([198, 18, 0, 1].into(), port)
}

/// Fills all places of the pool's only address but those of `free`, towards backend 1.
fn fill_pool(world: &World, free: &[u16]) {
    for port in (1_024..=65_535).filter(|port| !free.contains(port)) {
        take(world, Case::UDP.client(3, port), place(port));
    }
}

#[test]
fn the_last_places_of_a_pool_are_found_and_then_it_is_exhausted_towards_that_backend() {
    let pool = "[nat]\nmasquerade = \"always\"\npool = [\"198.18.0.1/32\"]";
    let case = Case::UDP;
    let mut world = case.setup().weights(&[1]).tables(pool).world();
    fill_pool(&world, &[1_024, 30_000, 65_535]);
    let flows = [1, 2, 3].map(|port| world.connect(Protocol::Udp, case.client(2, port), case.service()));
    let ports: HashSet<u16> = flows.iter().map(|flow| flow.source.port()).collect();
    assert_eq!(ports, HashSet::from([1_024, 30_000, 65_535]));
    let late = case.client(2, 4);
    let verdict = world.try_open(Protocol::Udp, late, case.service());
    assert_eq!(verdict, Verdict::Drop(Drop::PoolExhausted));
    // Another backend has as many places of its own.
    world.reload(&case.setup().weights(&[0, 1]).tables(pool).toml());
    world.open(Protocol::Udp, late, case.service());
    world.reload(&case.setup().weights(&[1]).tables(pool).toml());
    world.seconds(301);
    world.open(Protocol::Udp, late, case.service());
}

#[test]
fn in_a_full_pool_a_flow_that_may_be_forged_makes_room_and_one_in_use_does_not() {
    let pool = "[nat]\nmasquerade = \"always\"\npool = [\"198.18.0.1/32\"]";
    let case = Case::UDP;
    for dialogue in [Dialogue::Asked, Dialogue::Answered] {
        let mut world = case.setup().weights(&[1]).tables(pool).world();
        let forged = 40_000;
        fill_pool(&world, &[forged]);
        take_as(&world, case.client(3, forged), place(forged), dialogue);
        let verdict = world.try_open(Protocol::Udp, case.client(2, 1), case.service());
        assert_eq!(verdict, Verdict::Drop(Drop::PoolExhausted), "it may be heard of yet");
        world.seconds(if dialogue == Dialogue::Asked { 5 } else { 30 });
        let flow = world.open(Protocol::Udp, case.client(2, 1), case.service());
        assert_eq!(Endpoint::from(flow.source), place(forged));
        assert_eq!(world.engine.conntrack().len(), 65_536 - 1_024);
        world.down(&flow, 0);
        world.up(&flow, 0);
        let verdict = world.try_open(Protocol::Udp, case.client(2, 2), case.service());
        assert_eq!(verdict, Verdict::Drop(Drop::PoolExhausted), "all are in use now");
    }
}

#[test]
fn in_a_full_pool_nobody_gets_the_answers_to_another_who_listens() {
    let pool = "[nat]\nmasquerade = \"always\"\npool = [\"198.18.0.1/32\"]";
    let case = Case::UDP;
    let mut world = case.setup().weights(&[1]).tables(pool).world();
    fill_pool(&world, &[40_000]);
    let listener = world.open(Protocol::Udp, case.client(2, 1), case.service());
    for _ in 0..12 {
        world.down(&listener, 0);
        world.seconds(10);
        let verdict = world.try_open(Protocol::Udp, case.client(4, 9), case.service());
        assert_eq!(verdict, Verdict::Drop(Drop::PoolExhausted));
    }
}

#[test]
fn a_pool_that_is_exhausted_towards_one_port_of_a_backend_is_not_so_towards_another() {
    let tables = "[nat]\nmasquerade = \"always\"\npool = [\"198.18.0.1/32\"]\n[[services]]\nname = \"all\"\nprotocol = \"udp\"\n\
                  address = \"10.96.0.77:0\"\npersistence = {}\nbackends = [{ address = \"10.2.0.77:0\" }]\n";
    let mut world = World::new(tables);
    let [first, second] = ["10.96.0.77:53", "10.96.0.77:123"].map(|text| text.parse::<SocketAddr>().unwrap());
    let backend = Arc::clone(&world.engine.ruleset().services[0].backends[0].backend);
    for port in 1_024..=65_535 {
        let connection = Connection {
            virtual_address: first.into(),
            backend: Arc::clone(&backend),
            ..flow_at(&world, Case::UDP.client(3, port), place(port), Dialogue::Continued)
        };
        world.engine.conntrack().insert(connection, world.now).unwrap();
    }
    let client = Case::UDP.client(2, 1);
    let exhausted = Verdict::Drop(Drop::PoolExhausted);
    assert_eq!(world.send(&packet(Protocol::Udp, client, first, 0)).verdict, exhausted);
    assert_eq!(
        world.send(&packet(Protocol::Udp, client, second, 0)).verdict,
        Verdict::Forward
    );
}

#[test]
fn in_a_full_pool_a_closed_connection_makes_room() {
    let table = "[node]\naddresses = [\"10.9.9.9\"]\n[nat]\nmasquerade = \"always\"\npool = [\"198.18.0.1/32\"]";
    let case = Case::TCP;
    let mut world = case.setup().weights(&[1]).tables(table).world();
    for port in 1_024..=65_535 {
        let flow = world.connect(Protocol::Tcp, case.client(3, port), case.service());
        world.client_closes(&flow);
    }
    let flow = world.connect(Protocol::Tcp, case.client(2, 1), case.service());
    world.up(&flow, ACK);
    world.down(&flow, ACK);
}

#[test]
fn an_exhausted_pool_costs_nothing_to_clients_that_keep_their_own_address() {
    let local = Case::UDP.client(7, 1);
    let tables = format!(
        "[node]\naddresses = [\"{}\"]\n[nat]\npool = [\"198.18.0.1/32\"]",
        local.ip()
    );
    let case = Case::UDP;
    let mut world = case.setup().weights(&[1]).tables(&tables).world();
    fill_pool(&world, &[]);
    let verdict = world.try_open(Protocol::Udp, local, case.service());
    assert_eq!(verdict, Verdict::Drop(Drop::PoolExhausted));
    let remote = world.open(Protocol::Udp, case.client(2, 1), case.service());
    assert_eq!(remote.source, remote.client);
}

#[test]
fn a_masqueraded_flow_follows_the_whole_life_of_a_connection() {
    for case in Case::tcp() {
        let mut world: World = case.setup().tables(&nat("always")).world();
        let flow = world.connect(Protocol::Tcp, case.client(2, 40_000), case.service());
        world.up(&flow, FIN | ACK);
        world.down(&flow, FIN | ACK);
        world.up(&flow, ACK);
        world.seconds(121);
        assert!(!world.is_alive(&flow));
    }
}

#[test]
fn the_mode_does_not_matter_to_masquerading() {
    let toml = |mode| Case::TCP.in_mode(mode).setup().tables(&nat("always")).toml();
    let mut world = World::new(&toml(Mode::Ipvs));
    let flow = world.connect(Protocol::Tcp, Case::TCP.client(2, 40_000), Case::TCP.service());
    world.reload(&toml(Mode::Iptables));
    world.up(&flow, ACK);
    world.down(&flow, ACK);
}

/// Linux clients take ports of one parity before all others.
#[test]
fn one_client_opens_as_many_connections_as_there_are_ports_though_workers_share_the_table() {
    for workers in [1, 2, 8] {
        for case in [Case::TCP, Case::UDP] {
            let toml = case
                .setup()
                .tables("[nat]\nmasquerade = \"always\"")
                .weights(&[1])
                .toml();
            let mut world = World::build(&toml, workers, 1);
            let mut policy = (*world.engine.ruleset().policy).clone();
            policy.nat.own = Some(OwnSources {
                ports: Arc::new((61_000..=65_535).into()),
                towards: Arc::new([(case.backend(1).ip(), case.node(0).ip())].into()),
            });
            world.engine.apply(Arc::new(policy));
            let open = |n: u16| case.client(2, 32_768 + 2 * n);
            let flows: Vec<_> = (0..4_536)
                .map(|n| world.connect(case.protocol, open(n), case.service()))
                .collect();
            let sources: HashSet<SocketAddr> = flows.iter().map(|flow| flow.source).collect();
            assert_eq!(sources.len(), 4_536, "each from a port of its own");
            let late = world.try_open(case.protocol, open(4_536), case.service());
            assert_eq!(late, Verdict::Drop(Drop::PoolExhausted));
            for flow in flows.iter().step_by(100).chain(flows.last()) {
                world.up(flow, ACK);
                world.down(flow, ACK);
            }
            assert_no_tuple_is_shared(&world);
        }
    }
}

#[test]
fn a_flow_in_another_share_of_the_table_ends_and_begins_again_as_any_other() {
    let case = Case::TCP;
    let pool = "[nat]\nmasquerade = \"always\"\npool = [\"198.18.0.1/32\"]";
    let mut world = World::build(&case.setup().weights(&[1]).tables(pool).toml(), 2, 1);
    let mut policy = (*world.engine.ruleset().policy).clone();
    policy.nat.own = Some(OwnSources {
        ports: Arc::new((61_000..=61_255).into()),
        towards: Arc::new([(case.backend(1).ip(), case.node(0).ip())].into()),
    });
    world.engine.apply(Arc::new(policy));
    let flows: Vec<_> = (0..256)
        .map(|n| world.connect(case.protocol, case.client(2, 20_000 + n), case.service()))
        .collect();
    for flow in &flows {
        world.up(flow, RST);
        let again = world.connect(case.protocol, flow.client, case.service());
        world.up(&again, ACK);
        world.down(&again, ACK);
    }
    assert_eq!(world.engine.conntrack().len(), 256);
}

#[test]
fn the_ports_of_masqueraded_flows_are_chosen_at_random() {
    for case in Case::all() {
        let sources = |seed| {
            let mut world = World::build(&case.setup().weights(&[1]).tables(&nat("always")).toml(), 1, seed);
            let open = |n| world.open(case.protocol, case.client(2, n), case.service()).source;
            (1..=200).map(open).collect::<Vec<_>>()
        };
        let (one, other) = (sources(1), sources(2));
        assert_eq!(one, sources(1), "the same seed chooses the same");
        let same = one.iter().zip(&other).filter(|(one, other)| one == other).count();
        assert!(same < 3, "another seed chooses others");
        let steps: HashSet<i32> = one
            .windows(2)
            .map(|pair| i32::from(pair[1].port()) - i32::from(pair[0].port()))
            .collect();
        assert!(steps.len() > 150, "nobody can tell the next one from the last ones");
        let low = one.iter().filter(|source| source.port() < 33_280).count();
        assert!((60..140).contains(&low), "{low} of 200 in the lower half");
    }
}

#[test]
fn where_a_pool_is_exhausted_no_flow_gets_a_source_that_another_one_has() {
    let pool = "[nat]\nmasquerade = \"always\"\npool = [\"198.18.0.1/32\"]";
    let case = Case::UDP;
    let mut world = case.setup().weights(&[1]).tables(pool).world();
    fill_pool(&world, &[2_000, 3_000]);
    let before = world.engine.conntrack().len();
    for port in 1..=2 {
        world.connect(Protocol::Udp, case.client(2, port), case.service());
    }
    let verdicts: Vec<Verdict> = (3..=100)
        .map(|port| world.try_open(Protocol::Udp, case.client(2, port), case.service()))
        .collect();
    let exhausted = Verdict::Drop(Drop::PoolExhausted);
    assert_eq!(verdicts, [exhausted; 98]);
    assert_eq!(world.count(exhausted), 98);
    assert_eq!(world.engine.conntrack().len(), before + 2);
    assert_no_tuple_is_shared(&world);
}

/// Of all living flows, packets of both directions, as they arrive.
#[track_caller]
fn assert_no_tuple_is_shared(world: &World) {
    let mut seen: HashSet<Tuple> = HashSet::new();
    world.engine.conntrack().each(world.now, |flow| {
        for direction in [Direction::Original, Direction::Reply] {
            let tuple = flow.arriving(direction);
            assert!(seen.insert(tuple), "two flows have {tuple}");
        }
    });
}

/// What happens to a world of few ports.
#[derive(Clone, Debug)]
enum Event {
    /// Of this client and port, to the service, its other address, or as if directly to a backend.
    Packet(u16, u16, u8, u8),
    /// The backend of the flow that was opened last answers.
    Answer(u8),
    Wait(u64),
    Masquerade(&'static str),
    Backends(Vec<u16>),
}

fn event() -> impl Strategy<Value = Event> {
    let flags = prop::sample::select(vec![SYN, ACK, FIN | ACK, RST]);
    let words = prop::sample::select(vec!["auto", "always", "never"]);
    let backends = prop::sample::subsequence(vec![1_u16, 2, 3], 1..=3);
    prop_oneof![
        12 => (2..5_u16, 1..4_u16, 0..2_u8, flags.clone()).prop_map(|(n, port, to, flags)| Event::Packet(n, port, to, flags)),
        4 => flags.prop_map(Event::Answer),
        2 => (0..130_u64).prop_map(Event::Wait),
        1 => words.prop_map(Event::Masquerade),
        1 => backends.prop_map(Event::Backends),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn no_two_living_flows_ever_share_a_tuple_whatever_happens(udp: bool, events in prop::collection::vec(event(), 1..150)) {
        let case = if udp { Case::UDP } else { Case::TCP };
        let external = format!("external_addresses = [\"{}\"]", case.external().ip());
        let (mut word, mut backends) = ("auto", vec![1]);
        let toml = |word: &str, backends: &[u16]| {
            let nat = format!("[nat]\nmasquerade = \"{word}\"\npool = [\"198.18.0.1/32\"]");
            let backends: Vec<(u16, u32)> = backends.iter().map(|&n| (n, 1)).collect();
            case.setup().tables(&nat).keys(&external).backends(&backends).toml()
        };
        let mut world = World::new(&toml(word, &backends));
        let mut last = None;
        for event in events {
            match event {
                Event::Packet(n, port, to, flags) => {
                    let to = if to == 0 { case.service() } else { case.external() };
                    let outcome = world.send(&packet(case.protocol, case.client(n, port), to, flags));
                    if outcome.verdict == Verdict::Forward {
                        last = Some(crate::packets::endpoints(&outcome.packet));
                    }
                }
                Event::Answer(flags) => {
                    if let Some((source, backend)) = last {
                        let answer = packet(case.protocol, backend, source, flags);
                        drop(world.send(&answer));
                    }
                }
                Event::Wait(seconds) => world.seconds(seconds),
                Event::Masquerade(other) => word = other,
                Event::Backends(others) => backends = others,
            }
            world.reload(&toml(word, &backends));
            assert_no_tuple_is_shared(&world);
        }
    }
}
