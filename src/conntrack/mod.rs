//! Flows and their memory.
pub mod tcp;
pub mod timeout;
