//! What the fuzz targets do with their bytes; integration/fuzz_regressions.rs does the same without a fuzzer.
pub mod capture;
pub mod config;
pub mod control;
pub mod engine;
pub mod packet;
