//! Which service a new flow is for.
pub mod rules;
