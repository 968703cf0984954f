//! A router on a link.
use std::net::{Ipv6Addr, SocketAddrV6};

use socket2::{Domain, Protocol, Socket, Type};

/// Says out of this interface, whose link-local address is the router's, that it is a default router for half an hour (RFC 4861
/// section 4.2). The kernel fills in the checksum.
#[allow(clippy::expect_used, reason = "a test ends at the first surprise")]
pub(crate) fn advertise(interface: &str) {
    const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    const HOP_LIMIT: u32 = 255;
    let [high, low] = 1800_u16.to_be_bytes();
    let advertisement = [134, 0, 0, 0, 64, 0, high, low, 0, 0, 0, 0, 0, 0, 0, 0];
    let socket = Socket::new(Domain::IPV6, Type::RAW, Some(Protocol::ICMPV6)).expect("a raw socket");
    socket.bind_device(Some(interface.as_bytes())).expect("the interface");
    socket.set_multicast_hops_v6(HOP_LIMIT).expect("a hop limit");
    let nodes = SocketAddrV6::new(ALL_NODES, 0, 0, 0);
    socket
        .send_to(&advertisement, &nodes.into())
        .expect("a link-local address");
}
