//! See bodies/engine.rs.
#![no_main]
#[path = "../bodies/engine.rs"]
mod engine;

libfuzzer_sys::fuzz_target!(|data: &[u8]| engine::run(data));
