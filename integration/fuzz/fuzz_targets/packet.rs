//! See bodies/packet.rs.
#![no_main]
#[path = "../bodies/packet.rs"]
mod packet;

libfuzzer_sys::fuzz_target!(|data: &[u8]| packet::run(data));
