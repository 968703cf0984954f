//! What the XDP program takes and what it leaves: run by the kernel on frames made here; and what it gives back.
//!
//! Each test starts itself anew in a network namespace of its own. Where neither that nor bpf(2) is permitted, it says so.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test fails by panicking and says on stdout why it was skipped"
)]

mod frames;
mod interfaces;
mod judgement;
mod lab;
use lbd_testkit::packets;
#[path = "../support/unshared.rs"]
mod unshared;
