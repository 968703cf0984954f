//! lbd between real programs in network namespaces: what a client sees. See `support/rig/mod.rs` for the network.
#![allow(clippy::disallowed_methods, reason = "real programs take real time")]
#![allow(clippy::print_stdout, reason = "cargo test shows it where a test fails")]

#[path = "../support/fragments.rs"]
mod fragments;
use lbd_testkit::packets;
#[path = "../support/rig/mod.rs"]
mod rig;
#[path = "../support/router.rs"]
mod router;

mod bulk;
mod churn;
mod firewall;
mod icmp;
mod in_fragments;
mod kernel;
mod leaving;
mod operator;
mod own;
mod ports;
mod preflight;
mod reload;
mod repair;
mod sctp;
mod traffic;
mod xdp;
mod xdp_announce;
mod xdp_links;
mod xdp_martians;
mod xdp_next_hops;
mod xdp_sizes;
