//! What the packet path asks of whoever sends its packets on, where that is lbd itself: on a TUN device the kernel does.
use std::fmt::Debug;
use std::net::IpAddr;

use crate::time::Instant;

/// Knows the way to the next hop.
pub trait Router: Debug {
    /// A batch begins: what follows is asked at `now`.
    fn begin(&mut self, now: Instant);

    /// The longest packet that can go on to `destination`, in bytes from its IP header on; None where the kernel takes it.
    fn mtu(&mut self, destination: IpAddr) -> Option<usize>;

    /// Whether no packet that comes in by a link may be from `source`: its address is no single host's, or this host's own.
    fn is_martian(&mut self, source: IpAddr) -> bool;

    /// Whether `destination` is this host itself: then a packet needs no hop left, for it goes no further (RFC 1812 section
    /// 5.3.1).
    fn ends_here(&mut self, destination: IpAddr) -> bool;

    /// This router's own address towards `destination`, which its ICMP errors come from.
    fn own_address(&mut self, destination: IpAddr) -> Option<IpAddr>;
}
