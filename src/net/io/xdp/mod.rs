//! AF_XDP: packets of network interfaces, past the kernel's stack, beside everything that lbd does in TUN mode.
//!
//! # The way of a packet
//!
//! 1. [`filter`]: the XDP program on each interface takes what is lbd's, and leaves everything else to the kernel.
//! 2. [`bundle`]: a worker's sockets, one a receive queue of each interface, put it into memory that they share.
//! 3. [`queue`]: the worker finds the IP packet behind the Ethernet header and has the engine decide; questions for the
//!    link address of a service are answered ([`announce`]).
//! 4. [`next_hop`]: the kernel's own routes and neighbours, followed live, say where it goes on. It leaves in the same
//!    memory with another Ethernet header.
//! 5. [`kernel`]: what has no such way (this host itself, another device, a neighbour that is not resolved yet) goes out of
//!    the TUN device, translated, and the kernel routes it: no packet is lost, and the neighbour is resolved. What was not
//!    lbd's after all goes back the same way, and the filter leaves its flow alone for a second.
//!
//! So clients on this very host, and interfaces that are not served, use the TUN device, and everything that works there
//! works here. [`interfaces`] opens all of it, and takes it away again. Nothing is pinned: with the process, the programs
//! vanish from their interfaces.
//!
//! Own sockets over libc: of the crates only `xdp` has TX metadata, and none has that together with a shared UMEM,
//! packets of several frames and the need-wakeup flag. The loader is aya.
pub mod announce;
pub mod announced;
pub mod bundle;
pub mod channels;
pub mod filter;
pub mod interfaces;
pub mod kernel;
pub mod meter;
pub mod next_hop;
pub mod queue;

mod arrival;
mod error;
mod forwarding;
mod groups;
mod ring;
mod socket;
mod sys;
mod umem;

pub use arrival::Arrival;
pub use error::OpenError;
