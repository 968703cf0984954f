//! AF_XDP: packets of network interfaces, past the kernel's stack.
pub mod announce;
pub mod bundle;
pub mod channels;
pub mod next_hop;

mod arrival;
mod error;
mod ring;
mod socket;
mod sys;
mod umem;

pub use arrival::Arrival;
pub use error::OpenError;
