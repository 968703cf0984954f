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
//! # The rooms
//!
//! | room | what it knows |
//! | --- | --- |
//! | [`time`], [`flow`], [`verdict`], [`policy`] | the words that all rooms share: plain data |
//! | [`packet`], [`rewrite`] | bytes |
//! | [`conntrack`], [`affinity`] | who talks to whom, and for how long |
//! | [`fragments`] | datagrams that come in pieces, and the pieces that came too early |
//! | [`matcher`], [`scheduler`], [`service`], [`nat`], [`ruleset`] | who should |
//! | [`engine`] | the order of it all |
//! | [`shadow`] | whether the other mode's matcher would have said the same |
//! | [`explain`] | the same order, told for one packet without a trace (`lbctl explain`) |
//! | [`router`], [`host`] | what the engine asks of whoever sends packets on, and of the host that it runs on |
//! | [`io`], [`worker`] | devices, captures, the loop over them; [`io::xdp`] has a map of its own |
//! | [`plumbing`] | routes, policy rules and sysctls, and how to undo them |
//! | [`config`] | the TOML file: as written, validated, compared, saved |
//! | [`control`] | the socket, its protocol, ipvsadm's tables |
//! | [`whole_file`] | files that appear whole or not at all |
//! | [`import`], [`export`] | kube-proxy's chains in `iptables-save`, read and written |
//! | [`daemon`] | all of it put together and kept running; [`replay`]: the same engine over a capture |
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
//! - `unsafe` only under `io`, each block with the reason why it is sound.
//! - A closed set is an enum, matched without a wildcard; a trait only where the set is open ([`io::PacketIo`]).
//!
//! # More than one worker
//!
//! NAT changes the tuple, so the two directions of a flow may come to different workers. They share one connection table
//! in shards: a flow lives in the shard of the one endpoint that both its directions have in common ([`conntrack`]).
//! Everything else that a packet writes to is its worker's own (a lane of each counter).
pub mod affinity;
pub mod config;
pub mod conntrack;
pub mod control;
pub mod daemon;
pub mod engine;
pub mod explain;
pub mod export;
pub mod flow;
pub mod fragments;
pub mod host;
pub mod import;
pub mod io;
pub mod matcher;
pub mod nat;
pub mod packet;
pub mod plumbing;
pub mod policy;
mod prefetch;
pub mod replay;
pub mod rewrite;
pub mod router;
pub mod ruleset;
pub mod scheduler;
pub mod service;
pub mod shadow;
pub mod time;
pub mod verdict;
pub mod whole_file;
pub mod worker;
