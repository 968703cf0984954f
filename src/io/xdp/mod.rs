//! AF_XDP.
pub mod announce;
