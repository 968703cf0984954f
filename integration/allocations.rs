//! Memory on the way of a packet: none is asked for once a flow is known. `allocation-counter` counts what a thread asks for.
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use lbd_testkit::packets;
#[path = "support/world.rs"]
mod world;

use std::net::SocketAddr;

use lbd::flow::Protocol;
use lbd::packet::frame::{Checksum, Frame};
use lbd::verdict::Verdict;
use packets::ACK;
use world::{Flow, World, packet};

const FLOWS: u16 = 3_000;
const BATCH: usize = 64;

fn toml(mode: &str) -> String {
    let service = |name: &str, protocol: &str, address: &str, backend: &str| {
        format!(
            "[[services]]\nname = \"{name}\"\nprotocol = \"{protocol}\"\naddress = \"{address}\"\n\
             persistence = {{ timeout = \"60s\" }}\nbackends = [{{ address = \"{backend}\" }}]\n"
        )
    };
    [
        format!("mode = \"{mode}\"\n"),
        service("tcp4", "tcp", "10.96.0.10:80", "10.2.0.1:8080"),
        service("udp4", "udp", "10.96.0.10:80", "10.2.0.1:8080"),
        service("sctp4", "sctp", "10.96.0.10:80", "10.2.0.1:8080"),
        service("tcp6", "tcp", "[fd00:96::10]:80", "[fd00:2::1]:8080"),
        service("udp6", "udp", "[fd00:96::10]:80", "[fd00:2::1]:8080"),
    ]
    .concat()
}

/// Packets of known flows, from clients and from backends in turn.
fn packets_of(world: &mut World, protocol: Protocol, client: &str, service: &str) -> Vec<Vec<u8>> {
    let service: SocketAddr = service.parse().unwrap();
    let mut open = |port| {
        let client = SocketAddr::new(client.parse().unwrap(), port);
        world.open(protocol, client, service)
    };
    let flows: Vec<Flow> = (10_000..10_000 + FLOWS).map(&mut open).collect();
    let both = |flow: &Flow| {
        [
            packet(protocol, flow.client, flow.service, ACK),
            packet(protocol, flow.backend, flow.source, ACK),
        ]
    };
    flows.iter().flat_map(both).collect()
}

fn forward(world: &mut World, packets: &mut [Vec<u8>]) -> u64 {
    let now = world.now;
    let (engine, lane) = (&world.engine, &mut world.lanes[0]);
    let mut asked = 0;
    for batch in packets.chunks_mut(BATCH) {
        let frames = batch.iter_mut().map(|packet| {
            let end = packet.len();
            Frame::new(packet, 0, end, Checksum::Complete)
        });
        let mut frames: Vec<Frame<'_>> = frames.collect();
        let counted = allocation_counter::measure(|| {
            let mut processor = engine.enter(lane, now);
            processor.process_batch(&mut frames, now, |_, verdict| assert_eq!(verdict, Verdict::Forward));
        });
        asked += counted.count_total;
    }
    asked
}

#[test]
fn packets_of_known_flows_ask_for_no_memory() {
    for mode in ["iptables", "ipvs"] {
        for (protocol, v6) in [
            (Protocol::Tcp, false),
            (Protocol::Udp, false),
            (Protocol::Sctp, false),
            (Protocol::Tcp, true),
            (Protocol::Udp, true),
        ] {
            let (client, service) = match v6 {
                false => ("10.1.0.2", "10.96.0.10:80"),
                true => ("fd00:1::2", "[fd00:96::10]:80"),
            };
            let mut world = World::new(&toml(mode));
            let mut packets = packets_of(&mut world, protocol, client, service);
            let mut first: Vec<Vec<u8>> = packets.drain(..BATCH).collect();
            assert!(
                forward(&mut world, &mut first) > 0,
                "the first batch makes room for the others"
            );
            assert_eq!(forward(&mut world, &mut packets), 0, "{mode}, {protocol}, {client}");
        }
    }
}
