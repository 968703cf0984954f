//! The XDP program: what is lbd's goes to its sockets, everything else to the kernel as if lbd were not there.
pub mod counters;
pub mod error;
pub mod interest;
pub mod kernel_path;
pub mod program;

mod tables;

#[cfg(test)]
mod fingerprint_test;

pub use interest::Interest;
pub use kernel_path::KernelPath;
