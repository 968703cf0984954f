//! What a fragment says of itself (RFC 791 section 3.2, RFC 8200 section 4.5).
use super::ip::{self, Ip};
use super::{Headers, ParseError, Payload, Ports, TcpFlags, Version, parse_tcp, ports};
use crate::flow::{Key, Protocol};

/// The Fragment header of IPv6.
const HEADER: usize = 8;
const UDP_HEADER: usize = 8;

/// Part of a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment {
    /// What the fragments of a datagram have in common; 16 bits in IPv4.
    pub identification: u32,
    /// What the datagram begins with, as all of its fragments say: a transport protocol, or in IPv6 an extension header
    /// (RFC 8200 section 4.5), behind which only the first fragment shows the protocol.
    pub protocol: u8,
    /// Where in the datagram its bytes belong: a multiple of 8.
    pub offset: u16,
    /// How many bytes of the datagram it has, at least 1.
    pub length: u16,
    /// Whether it is not the last one.
    pub more: bool,
    /// The datagram's transport header, in the first fragment. There it is None where not all of the header is there, which
    /// nobody needs (RFC 1858, RFC 7112), or where lbd does not know the protocol.
    pub opening: Option<Opening>,
}

/// What the transport header of a datagram says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opening {
    /// Its ports.
    pub ports: Ports,
    /// Of TCP; None for UDP.
    pub flags: Option<TcpFlags>,
}

impl Fragment {
    /// Whether it begins the datagram.
    #[must_use]
    pub const fn is_first(&self) -> bool {
        self.offset == 0
    }

    /// See [`Headers::checksum_offset`].
    pub(super) const fn checksum_offset(&self) -> Option<u16> {
        match self.opening {
            Some(Opening { flags: Some(_), .. }) => Some(16),
            Some(Opening { flags: None, .. }) => Some(6),
            None => None,
        }
    }
}

impl Headers {
    /// The 5-tuple of the datagram that begins with this fragment.
    #[must_use]
    pub fn begun_key(&self) -> Option<Key> {
        let Payload::Fragment(Fragment {
            opening: Some(Opening { ports, .. }),
            ..
        }) = self.payload
        else {
            return None;
        };
        Some(Key::new(
            Protocol::from_number(self.protocol)?,
            (self.source, ports.source),
            (self.destination, ports.destination),
        ))
    }
}

/// Reads what makes `ip`, which is all there, a fragment; behind a first fragment's IPv6 extension headers, moves `ip` on to the transport header.
pub(super) fn parse(ip: &mut Ip, bytes: &[u8]) -> Result<Fragment, ParseError> {
    let (identification, offset, more) = place(ip, bytes);
    let (length, protocol) = (ip.length - ip.transport, ip.protocol);
    // RFC 791 section 3.2, RFC 8200 section 4.5: only the last one may end anywhere; and none is empty (`ip_frag_queue`).
    if length == 0 || (more && !length.is_multiple_of(8)) {
        return Err(ParseError::Malformed);
    }
    let opening = (offset == 0).then(|| open(ip, &bytes[..ip.length])).flatten();
    Ok(Fragment {
        identification,
        protocol,
        offset,
        length: u16::try_from(length).map_err(|_too_long| ParseError::Malformed)?,
        more,
        opening,
    })
}

/// Whether the fragment `ip` begins its datagram.
pub(super) fn is_first(ip: &Ip, bytes: &[u8]) -> bool {
    let (_, offset, _) = place(ip, bytes);
    offset == 0
}

/// Identification, offset in bytes, and whether more fragments follow. An IPv6 packet's Fragment header is the last one
/// before `ip.transport`.
fn place(ip: &Ip, bytes: &[u8]) -> (u32, u16, bool) {
    match ip.version {
        Version::V4 => {
            let word = u16::from_be_bytes([bytes[6], bytes[7]]);
            let identification = u16::from_be_bytes([bytes[4], bytes[5]]);
            (identification.into(), (word & 0x1fff) << 3, word & 0x2000 != 0)
        }
        Version::V6 => {
            let header = &bytes[ip.transport - HEADER..ip.transport];
            let word = u16::from_be_bytes([header[2], header[3]]);
            let identification = u32::from_be_bytes([header[4], header[5], header[6], header[7]]);
            (identification, word & 0xfff8, word & 1 != 0)
        }
    }
}

/// The transport header at the beginning of a datagram, which `packet` ends in the midst of.
fn open(ip: &mut Ip, packet: &[u8]) -> Option<Opening> {
    if ip.version == Version::V6 {
        let upper = ip::walk_extension_headers(ip.protocol, ip.transport, packet).ok()?;
        if upper.fragment {
            return None;
        }
        (ip.protocol, ip.transport) = (upper.protocol, upper.offset);
    }
    let bytes = &packet[ip.transport..];
    match Protocol::from_number(ip.protocol)? {
        Protocol::Tcp => match parse_tcp(bytes).ok()? {
            Payload::Tcp(ports, flags) => Some(Opening {
                ports,
                flags: Some(flags),
            }),
            Payload::Udp(_) | Payload::Sctp(..) | Payload::Fragment(_) | Payload::IcmpError | Payload::Other => None,
        },
        Protocol::Udp => {
            let header: &[u8; UDP_HEADER] = bytes.first_chunk()?;
            // How long the datagram is, this fragment cannot tell.
            let ports = ports(header);
            Some(Opening { ports, flags: None })
        }
        // Its CRC32c cannot be kept right without the whole packet (RFC 9260 appendix A).
        Protocol::Sctp => None,
    }
}
