//! Packets: parsed once, offsets kept.
pub mod frame;
