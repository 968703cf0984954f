//! lbd: a layer-4 load balancer in user space. **This page is the map.**
//!
//! # The life of a packet
//!
//! 1. The kernel routes a packet for a service address, or a backend's reply to one, into the TUN device
//!    ([`plumbing`] has asked it to), which picks a queue by the packet's addresses and ports; or, with
//!    `backend = "af_xdp"`, an XDP program takes it from its interface before the kernel has made anything of it ([`io`]).
//! 2. A worker has it in a [`packet::frame::Frame`], on TUN up to 64 KB at once, and looks at the clock once a batch
//!    ([`worker`]).
//! 3. [`engine::Processor::process`] decides. It is the one place where the order of the steps is written:
//!    - [`packet`] checks it once and keeps where its parts are;
//!    - [`conntrack`] finds its flow and takes note: the TCP or SCTP state, the timeout, the counters;
//!    - a packet without a flow needs a service ([`matcher`]: ordered rules or hashed virtual servers), a backend
//!      ([`affinity`], else [`scheduler`]), a sender that the backend can answer ([`nat`]), and a place in the table;
//!    - a fragment goes after the first one of its datagram, which alone has ports ([`fragments`]);
//!    - an ICMP error about a flow follows it; where lbd itself sends packets on, [`router`] knows what fits the way;
//!    - [`rewrite`] translates addresses and ports in place, checksums included; or
//!      [`packet::refusal`] turns the packet into the answer to its sender.
//! 4. The [`verdict`] is counted. The worker forgets the frame or sends it on: on TUN it writes it back, and the kernel
//!    routes it; on AF_XDP it leaves by the interface that the kernel would have chosen, with the next hop's Ethernet
//!    header, in the very memory that it came in ([`io::xdp`]).
//!
//! # Layers and modules
//!
//! Each layer is a crate below `src`, so the compiler keeps them apart; arrows go down only (`scripts/layers` prints and checks
//! them). This crate puts them together and shows all modules under one name.
//!
//! | crate | module | what it knows |
//! | --- | --- | --- |
//! | `lbd` | [`daemon`] | all of it put together and kept running |
//! | | [`replay`] | the same engine over a capture |
//! | `lbd-control` | [`control`] | the socket, its protocol, ipvsadm's tables |
//! | | [`explain`] | the order of the steps, told for one packet (`lbctl explain`) |
//! | | [`import`], [`export`] | kube-proxy's chains in `iptables-save`, read and written |
//! | `lbd-state` | [`config`] | the TOML file: as written, validated, compared, saved |
//! | `lbd-net` | [`io`], [`worker`] | devices, captures, the loop over them; [`io::xdp`] has a map of its own |
//! | | [`plumbing`] | routes, policy rules and sysctls, and how to undo them |
//! | | [`whole_file`] | files that appear whole or not at all |
//! | `lbd-core` | [`engine`] | the order of the steps |
//! | | [`matcher`], [`scheduler`], [`service`], [`nat`], [`ruleset`] | which service, backend and source port a new flow gets |
//! | | [`conntrack`], [`affinity`] | who talks to whom, and for how long |
//! | | [`fragments`] | datagrams that come in pieces, and the pieces that came too early |
//! | | [`packet`], [`rewrite`] | bytes |
//! | | [`shadow`] | whether the other mode's matcher would have said the same |
//! | | [`router`], [`host`] | what the engine asks of whoever sends packets on, and of the host that it runs on |
//! | | [`time`], [`flow`], [`verdict`], [`policy`] | plain data that all modules share |
//! | `lbd-prefetch` | | one instruction |
//!
//! `lbd-testkit` has packets and captures for tests, made by crates that share no code with lbd.
//!
//! # Invariants
//!
//! - Nothing in the packet path (`time` to `engine` above) knows of devices, the kernel, the configuration file,
//!   threads, a clock or a random number generator of its own. Time and randomness are handed in.
//! - A packet of a known flow costs no allocation and no system call in the engine.
//! - A connection holds its backend's address, not an index: no reload can move it.
//! - A flow is stored in both directions or not at all, under one lock.
//! - Every packet in leaves as exactly one verdict and is counted once: the counters sum to the packets in. A fragment that
//!   is held is counted as that until it leaves.
//! - A ruleset changes between batches and whole, and no worker waits for it: it is built beside the one in effect, and each
//!   worker takes it up with its next batch.
//! - What the host's own sockets and connection tracking own is the host's ([`host`]).
//! - `unsafe` only in `lbd-net` and `lbd-prefetch`, each block with the reason why it is sound.
//! - A closed set is an enum, matched without a wildcard; a trait only where the set is open ([`io::PacketIo`]).
//!
//! # More than one worker
//!
//! NAT changes the tuple, so the two directions of a flow may come to different workers. They share one connection table
//! in shards: a flow lives in the shard of the one endpoint that both its directions have in common ([`conntrack`]).
//! Everything else that a packet writes to is its worker's own (a lane of each counter).
#![forbid(unsafe_code)]

pub mod daemon;
pub mod replay;

pub use lbd_control as control;
pub use lbd_control::{explain, export, import};
pub use lbd_core::{
    affinity, conntrack, engine, flow, fragments, host, matcher, nat, packet, policy, rewrite, router, ruleset,
    scheduler, service, shadow, time, verdict,
};
pub use lbd_net::{io, plumbing, whole_file, worker};
pub use lbd_state::config;
