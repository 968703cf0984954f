//! The network layer: IPv4 (RFC 791) and IPv6 with its extension headers (RFC 8200).
use super::checksum::Difference;
use super::{ParseError, Version};
use crate::flow::Address;

/// An IPv4 header without options.
pub const IPV4_HEADER: usize = 20;
/// The fixed IPv6 header.
pub const IPV6_HEADER: usize = 40;

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const DESTINATION_OPTIONS: u8 = 60;

/// Longer chains are refused: RFC 8504 section 5.3 lets a node limit the number of extension headers.
const MAX_EXTENSION_HEADERS: usize = 8;

/// The length of the packet at the start of `bytes` by its own header, in bytes; None where there is no IP header, or one
/// that says less than its own length. What follows is padding of the link (RFC 894, RFC 2464 section 3).
#[must_use]
pub fn length(bytes: &[u8]) -> Option<usize> {
    let word = |at: usize| Some(usize::from(u16::from_be_bytes(*bytes.get(at..)?.first_chunk()?)));
    match bytes.first()? >> 4 {
        4 => word(2).filter(|&length| length >= IPV4_HEADER),
        6 => Some(IPV6_HEADER + word(4)?),
        _ => None,
    }
}

/// What the network layer says about a packet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ip {
    pub(super) version: Version,
    pub(super) source: Address,
    pub(super) destination: Address,
    pub(super) protocol: u8,
    pub(super) transport: usize,
    pub(super) length: usize,
    pub(super) fragment: bool,
}

/// What `then` makes of the headers of a packet. It may be cut behind them, as ICMP errors quote one: its length may lie
/// beyond it.
///
/// Not simply a return value, since that of either version would be put into memory to be used by the same code.
#[inline]
pub(super) fn parse<T>(bytes: &[u8], then: impl Fn(Ip) -> Result<T, ParseError>) -> Result<T, ParseError> {
    match bytes.first().map(|first| first >> 4) {
        Some(4) => then(parse_v4(bytes)?),
        Some(6) => then(parse_v6(bytes)?),
        Some(_) | None => Err(ParseError::NotIp),
    }
}

#[inline]
fn parse_v4(bytes: &[u8]) -> Result<Ip, ParseError> {
    let header: &[u8; IPV4_HEADER] = bytes.first_chunk().ok_or(ParseError::Malformed)?;
    let transport = usize::from(header[0] & 0x0f) * 4;
    let length = usize::from(u16::from_be_bytes([header[2], header[3]]));
    if transport < IPV4_HEADER || length < transport || transport > bytes.len() {
        return Err(ParseError::Malformed);
    }
    // More fragments to come, or this one does not begin the datagram.
    let fragment = u16::from_be_bytes([header[6], header[7]]) & 0x3fff != 0;
    let protocol = match has_way_to_go(&bytes[IPV4_HEADER..transport]) {
        false => header[9],
        true => ROUTING,
    };
    Ok(Ip {
        version: Version::V4,
        source: Address::v4(u32::from_be_bytes([header[12], header[13], header[14], header[15]])),
        destination: Address::v4(u32::from_be_bytes([header[16], header[17], header[18], header[19]])),
        protocol,
        transport,
        length,
        fragment,
    })
}

/// Whether options have a source route that does not end here (RFC 791 section 3.1): the checksum covers another destination than
/// the header shows, as with segments left of IPv6's routing header, and the packet is treated like one with that.
fn has_way_to_go(mut options: &[u8]) -> bool {
    const END: u8 = 0;
    const NO_OPERATION: u8 = 1;
    const LOOSE_SOURCE_ROUTE: u8 = 131;
    const STRICT_SOURCE_ROUTE: u8 = 137;
    loop {
        let length = match *options {
            [] | [END, ..] | [_] => return false,
            [NO_OPERATION, ..] => 1,
            [LOOSE_SOURCE_ROUTE | STRICT_SOURCE_ROUTE, length, pointer, ..] if pointer <= length => return true,
            [_, length, ..] => usize::from(length.max(2)),
        };
        options = options.get(length..).unwrap_or_default();
    }
}

#[inline]
fn parse_v6(bytes: &[u8]) -> Result<Ip, ParseError> {
    let header: &[u8; IPV6_HEADER] = bytes.first_chunk().ok_or(ParseError::Malformed)?;
    let length = IPV6_HEADER + usize::from(u16::from_be_bytes([header[4], header[5]]));
    let (words, _) = header[8..].as_chunks::<8>();
    let [a, b, c, d] = [words[0], words[1], words[2], words[3]].map(u64::from_be_bytes);
    let (source, destination) = (Address::v6(a, b), Address::v6(c, d));
    // Not to be taken for IPv4; Linux drops such packets as well (`ip6_rcv_core`, net/ipv6/ip6_input.c).
    if source.as_v4().is_some() || destination.as_v4().is_some() {
        return Err(ParseError::Malformed);
    }
    let upper = walk_extension_headers(header[6], IPV6_HEADER, &bytes[..length.min(bytes.len())])?;
    Ok(Ip {
        version: Version::V6,
        source,
        destination,
        protocol: upper.protocol,
        transport: upper.offset,
        length,
        fragment: upper.fragment,
    })
}

/// What extension headers lead to.
pub(super) struct UpperLayer {
    pub(super) protocol: u8,
    pub(super) offset: usize,
    /// The walk ended behind a Fragment header of a fragment.
    pub(super) fragment: bool,
}

/// Walks the extension headers of which the first one, of this kind, is at `offset`.
pub(super) fn walk_extension_headers(first: u8, offset: usize, packet: &[u8]) -> Result<UpperLayer, ParseError> {
    let mut upper = UpperLayer {
        protocol: first,
        offset,
        fragment: false,
    };
    for _ in 0..MAX_EXTENSION_HEADERS {
        let Some(length) = extension_length(upper.protocol, &packet[upper.offset..])? else {
            return Ok(upper);
        };
        let header = &packet[upper.offset..upper.offset + length];
        if upper.protocol == ROUTING && header[3] != 0 {
            // Segments left: the checksum covers another destination than the header shows (RFC 8200 section 8.1),
            // so it is forwarded as it is, as something that lbd does not balance.
            return Ok(upper);
        }
        if upper.protocol == FRAGMENT {
            // Offset 0 without more fragments is a whole packet, an atomic fragment (RFC 6946).
            upper.fragment = u16::from_be_bytes([header[2], header[3]]) & 0xfff9 != 0;
        }
        upper.protocol = header[0];
        upper.offset += length;
        if upper.fragment {
            return Ok(upper);
        }
    }
    Err(ParseError::Malformed)
}

/// Whether this is an extension header behind which the transport header is looked for.
#[must_use]
pub const fn is_seen_through(protocol: u8) -> bool {
    matches!(protocol, HOP_BY_HOP | ROUTING | FRAGMENT | DESTINATION_OPTIONS)
}

/// The length of the extension header at the start of `bytes`; None when `protocol` is no extension header.
fn extension_length(protocol: u8, bytes: &[u8]) -> Result<Option<usize>, ParseError> {
    let unit = match protocol {
        HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS => 8,
        FRAGMENT => 0,
        // An authentication header (RFC 4302) ends the walk as well: it covers the addresses, so NAT would break it.
        _ => return Ok(None),
    };
    let start: &[u8; 8] = bytes.first_chunk().ok_or(ParseError::Malformed)?;
    let length = 8 + usize::from(start[1]) * unit;
    match length <= bytes.len() {
        true => Ok(Some(length)),
        false => Err(ParseError::Malformed),
    }
}
/// Takes one from the time to live or hop limit of a packet, unless none is left. In IPv4 the header's checksum follows (RFC 1141).
#[inline]
pub fn take_hop(packet: &mut [u8]) {
    change_hops(packet, |hops| hops.saturating_sub(1));
}

/// Adds one to the time to live or hop limit of a packet, unless it is the largest already. In IPv4 the header's checksum follows
/// (RFC 1141).
#[inline]
pub fn restore_hop(packet: &mut [u8]) {
    change_hops(packet, |hops| hops.saturating_add(1));
}

#[inline]
fn change_hops(packet: &mut [u8], change: impl Fn(u8) -> u8) {
    match packet {
        [first, _, _, _, _, _, _, hops, ..] if *first >> 4 == 6 => *hops = change(*hops),
        [_, _, _, _, _, _, _, _, hops, protocol, high, low, ..] => {
            let before = [*hops, *protocol];
            *hops = change(*hops);
            let change = Difference::NONE.replaced(&before, &[*hops, *protocol]);
            [*high, *low] = change.update(u16::from_be_bytes([*high, *low])).to_be_bytes();
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::checksum;

    #[test]
    fn a_hop_that_is_given_back_leaves_the_header_as_it_was_before_it_was_taken() {
        let mut v4 = [0x45, 0, 0, 20, 0, 0, 0, 0, 64, 17, 0, 0, 10, 1, 0, 2, 10, 96, 0, 10];
        let sum = checksum::finish(checksum::add(0, &v4));
        v4[10..12].copy_from_slice(&sum.to_be_bytes());
        let mut v6 = [0; 40];
        (v6[0], v6[7]) = (0x60, 64);
        for packet in [&mut v4[..], &mut v6[..]] {
            let before = packet.to_vec();
            take_hop(packet);
            assert_ne!(packet, before);
            if packet[0] >> 4 == 4 {
                assert_eq!(checksum::finish(checksum::add(0, packet)), 0, "its checksum is right");
            }
            restore_hop(packet);
            assert_eq!(packet, before);
        }
        for (place, packet) in [(8, &mut v4[..]), (7, &mut v6[..])] {
            packet[place] = 255;
            restore_hop(packet);
            assert_eq!(packet[place], 255);
        }
    }
}
