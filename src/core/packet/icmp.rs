//! ICMP errors and the packet that they quote (RFC 792, RFC 4443).
use super::{Headers, Payload, Version, fragment, ip};
use crate::flow::{Key, Protocol};

/// IANA protocol number of ICMP.
pub const ICMP: u8 = 1;
/// IANA protocol number of ICMPv6.
pub const ICMPV6: u8 = 58;
/// Type, code, checksum, and four bytes that depend on the type; the quoted packet follows.
pub const HEADER: usize = 8;

/// Whether a message of this type quotes the packet that it is about, to its sender: destination unreachable, source
/// quench, time exceeded and parameter problem (`icmp_is_err`, include/linux/icmp.h, without redirects, which only hosts
/// on the same link may send); in ICMPv6 those of RFC 4443 section 3.
pub(super) const fn is_error(version: Version, kind: u8) -> bool {
    match version {
        Version::V4 => matches!(kind, 3 | 4 | 11 | 12),
        Version::V6 => matches!(kind, 1..=4),
    }
}

/// The beginning of a packet within an ICMP error. Its offsets lie within the error's packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quoted {
    /// Its addresses and ports.
    pub key: Key,
    /// Offset of its IP header.
    pub start: usize,
    /// Offset of its transport header, of which at least the ports are there.
    pub transport: usize,
}

/// The packet that an ICMP error is about; None where it is cut before its ports, a later fragment, of a protocol
/// without ports, or not from whom the error goes to.
#[must_use]
pub fn quoted(packet: &[u8], headers: &Headers) -> Option<Quoted> {
    let (Payload::IcmpError, Some(start)) = (headers.payload, headers.transport.checked_add(HEADER)) else {
        return None;
    };
    let bytes = packet.get(start..headers.length)?;
    let inner = ip::parse(bytes, Ok).ok()?;
    if inner.version != headers.version || inner.source != headers.destination {
        return None;
    }
    if inner.fragment && !fragment::is_first(&inner, bytes) {
        return None;
    }
    let protocol = Protocol::from_number(inner.protocol)?;
    let ports = super::ports(bytes.get(inner.transport..inner.transport + 4)?);
    let key = Key::new(
        protocol,
        (inner.source, ports.source),
        (inner.destination, ports.destination),
    );
    Some(Quoted {
        key,
        start,
        transport: start + inner.transport,
    })
}
