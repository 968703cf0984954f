//! For tests: packets and captures, made and checked by crates that share no code with lbd.
#![allow(
    clippy::unwrap_used,
    reason = "a packet that cannot be made fails the test that wants it"
)]
#![forbid(unsafe_code)]

pub mod captures;
pub mod packets;
