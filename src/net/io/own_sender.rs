//! Sends ICMP errors in the host's name: its own, which its routing has led to lbd, and which are about none of lbd's flows.
//!
//! Out of the TUN device they would come as somebody's: connection tracking does not know packets that the host has refused to
//! forward, so that errors about them would be INVALID in the chain FORWARD, where firewalls drop such. Raw sockets send past that
//! chain, and past lbd's policy rules for ICMP, for the kernel looks for their way as that of protocol 255 (`raw_sendmsg`,
//! `rawv6_sendmsg`).
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use lbd_core::packet::icmp;
use lbd_core::packet::{Headers, ip};

/// `IPPROTO_RAW` (include/uapi/linux/in.h): the packet comes with its IP header.
const RAW: i32 = 255;
/// Offsets in the IPv4 header (RFC 791 section 3.1).
const SOURCE: std::ops::Range<usize> = 12..16;
const QUOTED_DESTINATION: std::ops::Range<usize> = 16..20;

/// See the module.
#[derive(Debug)]
pub(super) struct OwnSender {
    v4: Socket,
    /// None where the kernel has no IPv6.
    v6: Option<Socket>,
}

impl OwnSender {
    /// Opens raw sockets.
    ///
    /// # Errors
    /// Without CAP_NET_RAW.
    pub(super) fn open() -> io::Result<Self> {
        let open = |domain| -> io::Result<Socket> {
            let socket = Socket::new(domain, Type::RAW, Some(Protocol::from(RAW)))?;
            socket.set_nonblocking(true)?;
            Ok(socket)
        };
        let v6 = match open(Domain::IPV6) {
            Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => None,
            opened => Some(opened?),
        };
        Ok(Self {
            v4: open(Domain::IPV4)?,
            v6,
        })
    }

    /// Sends an ICMP error of this host. It has one hop less, so that it cannot go round for ever; one without a hop left is lost.
    ///
    /// # Errors
    /// When the kernel does not take it.
    pub(super) fn send(&self, packet: &mut [u8]) -> io::Result<()> {
        let headers =
            Headers::parse(packet).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, format!("{error:?}")))?;
        if headers.hop_limit(packet) <= 1 {
            return Err(io::ErrorKind::HostUnreachable.into());
        }
        ip::take_hop(packet);
        let destination = IpAddr::from(headers.destination);
        let socket = match destination {
            IpAddr::V4(_) => {
                choose_source(packet, &headers);
                &self.v4
            }
            IpAddr::V6(_) => self.v6.as_ref().ok_or(io::ErrorKind::Unsupported)?,
        };
        let to = SockAddr::from(SocketAddr::new(destination, 0));
        socket.send_to(&packet[..headers.length], &to).map(drop)
    }
}

/// Has the kernel choose the source by the way that the error really goes (`raw_send_hdrinc`), as it would have without lbd, unless
/// it is the address that the quoted packet went to. In IPv6 the kernel chose it before it looked for a way (`icmp6_send`).
fn choose_source(packet: &mut [u8], headers: &Headers) {
    let quoted = headers.transport + icmp::HEADER;
    let quoted = quoted + QUOTED_DESTINATION.start..quoted + QUOTED_DESTINATION.end;
    let is_its_receiver = packet.get(quoted).is_none_or(|receiver| *receiver == packet[SOURCE]);
    if !is_its_receiver {
        packet[SOURCE].copy_from_slice(&Ipv4Addr::UNSPECIFIED.octets());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lbd_core::packet::icmp;

    /// An error from 192.0.2.1 to 10.1.0.2 about a packet to `quoted`.
    fn error(quoted: [u8; 4]) -> Vec<u8> {
        let mut packet = vec![0; 20 + icmp::HEADER + 28];
        packet[..10].copy_from_slice(&[0x45, 0, 0, 56, 0, 0, 0, 0, 64, 1]);
        packet[12..20].copy_from_slice(&[192, 0, 2, 1, 10, 1, 0, 2]);
        packet[20] = 3;
        let inner = &mut packet[28..];
        inner[..10].copy_from_slice(&[0x45, 0, 0, 28, 0, 0, 0, 0, 1, 17]);
        inner[12..16].copy_from_slice(&[10, 1, 0, 2]);
        inner[16..20].copy_from_slice(&quoted);
        packet
    }

    #[test]
    fn the_kernel_chooses_the_source_anew_unless_the_packet_went_to_that_very_address() {
        for (quoted, source) in [([10, 2, 0, 11], [0; 4]), ([192, 0, 2, 1], [192, 0, 2, 1])] {
            let mut packet = error(quoted);
            let headers = Headers::parse(&packet).unwrap();
            choose_source(&mut packet, &headers);
            assert_eq!(packet[12..16], source);
        }
    }
}
