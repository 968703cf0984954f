//! Flows whose time is over: forgotten in time, and never so many at once that packets wait.
use lbd::flow::Protocol;
use lbd::verdict::{Drop, Verdict};

use crate::packets::ACK;
use crate::world::{Case, World, packet};

/// Flows that may be forgotten before the packets of one batch.
const FEW: usize = 1_000;

/// One batch without packets.
fn batch(world: &mut World) {
    let lane = world.lane;
    drop(world.engine.enter(&mut world.lanes[lane], world.now));
}

fn opened_at_once(case: Case, workers: usize, flows: u16) -> World {
    let mut world = World::build(&case.setup().toml(), workers, 7);
    for port in 1..=flows {
        world.open(
            case.protocol,
            case.client(2 + port / 10_000, 1_000 + port % 10_000),
            case.service(),
        );
    }
    world
}

#[test]
fn of_flows_that_are_over_at_once_each_batch_forgets_a_few() {
    for workers in [1, 2] {
        let mut world = opened_at_once(Case::UDP, workers, 20_000);
        world.now = world.now + std::time::Duration::from_secs(400);
        let mut left = world.engine.conntrack().len();
        for turn in 0..1_000 {
            world.lane = turn % workers;
            batch(&mut world);
            let before = std::mem::replace(&mut left, world.engine.conntrack().len());
            assert!(before - left <= FEW, "{} at once", before - left);
        }
        assert_eq!(left, 0, "and all of them in time");
    }
}

#[test]
fn a_flow_that_is_over_is_not_followed_even_before_it_is_forgotten() {
    let case = Case::TCP;
    let mut world = opened_at_once(case, 1, 5_000);
    world.now = world.now + std::time::Duration::from_secs(61);
    let late = packet(Protocol::Tcp, case.client(2, 1_000 + 5_000), case.service(), ACK);
    assert_eq!(world.send(&late).verdict, Verdict::Drop(Drop::NotSyn));
    assert!(!world.engine.conntrack().is_empty());
    world.open(Protocol::Tcp, case.client(2, 1_000 + 5_000), case.service());
}

#[test]
fn new_flows_find_room_in_a_table_that_is_full_of_flows_that_are_over() {
    let case = Case::UDP;
    let limit = "[conntrack]\nmax_flows = 5000";
    let mut world = World::build(&case.setup().tables(limit).toml(), 1, 7);
    for port in 1..=5_000 {
        world.connect(Protocol::Udp, case.client(2, port), case.service());
    }
    world.now = world.now + std::time::Duration::from_secs(400);
    for port in 1..=5_000 {
        world.open(Protocol::Udp, case.client(3, port), case.service());
    }
}
