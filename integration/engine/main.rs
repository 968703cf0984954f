//! What happens to a packet: the pure engine from the outside, in sentences. No root, no device, no waiting.
#![allow(
    clippy::unwrap_used,
    reason = "a test ends at the first surprise, in its helpers too"
)]

#[path = "../support/fragments.rs"]
mod fragments;
use lbd_testkit::packets;
#[path = "../support/world.rs"]
mod world;

mod affinity;
mod backends;
mod echo;
mod errors;
mod eviction;
mod expiry;
mod explain;
mod flows;
mod forgery;
#[path = "fragments.rs"]
mod in_fragments;
mod lanes;
mod late;
mod limits;
mod nat;
mod own;
mod properties;
mod refusals;
mod reloads;
mod rules;
mod sctp;
mod shadow;
mod sources;
mod super_packets;
mod unknown;
