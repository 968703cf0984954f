//! `lbd replay`: the engine over a capture file.
