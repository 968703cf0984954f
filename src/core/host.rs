//! What the packet path asks of the host that it runs on: what of the packets to its own addresses is its own.
use std::fmt::Debug;

use crate::flow::Tuple;

/// Knows the host's sockets and its connection tracking.
pub trait Host: Debug + Send {
    /// Whether a datagram to a service at an address of this host, of no flow of lbd's, is of a flow of the host's: a socket is
    /// connected with its sender, or connection tracking has it as an answer. A segment that opens a connection is never asked
    /// about, as the kernel's NAT would translate it, and others go to the host unasked.
    fn owns(&mut self, datagram: &Tuple) -> bool;
}
