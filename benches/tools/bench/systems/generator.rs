//! The generator alone: its datagrams are counted and dropped where they reach the balancer.
use crate::Outcome;
use crate::rig::{Place, shell};
use crate::world::UDP_PORT;

pub(super) fn start() -> Outcome<()> {
    let rules = format!(
        "add table netdev sink
        add counter netdev sink delivered
        add chain netdev sink in {{ type filter hook ingress device client priority 0; }}
        add rule netdev sink in udp dport {UDP_PORT} counter name delivered drop"
    );
    shell(Place::Balancer, &format!("nft '{rules}'")).map(drop)
}
