//! Devices and the kernel: TUN, AF_XDP, captures, the loop over them, and the routes, rules and sysctls that lead packets here.
//!
//! All of lbd's `unsafe` is in this crate and in `lbd-prefetch`, each block with the reason why it is sound.
pub mod io;
pub mod plumbing;
pub mod whole_file;
pub mod worker;
