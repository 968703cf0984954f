//! AF_XDP: packets of real interfaces, without the kernel's stack in the way.
pub mod counters;
pub mod error;
pub mod interest;
pub mod kernel_path;
pub mod program;

mod bpf;
mod tables;

#[cfg(test)]
mod fingerprint_test;
