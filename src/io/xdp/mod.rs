//! AF_XDP: packets straight from and to network interfaces.
pub mod next_hop;
