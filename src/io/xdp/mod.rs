//! AF_XDP: packets of network interfaces, past the kernel's stack.
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
