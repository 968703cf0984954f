//! Echo, by which a host is seen to be there (RFC 792, RFC 4443 section 4).
use std::net::IpAddr;

use super::checksum::Difference;
use super::frame::Frame;
use super::icmp::{HEADER, ICMP, ICMPV6};
use super::ip::{IPV4_HEADER, IPV6_HEADER};
use super::refusal::{TTL, Unanswerable, is_one_host};
use super::{Headers, Payload, Version, checksum};

/// Type of an echo request, and of the reply to it.
const fn types(version: Version) -> (u8, u8) {
    match version {
        Version::V4 => (8, 0),
        Version::V6 => (128, 129),
    }
}

/// Whether `packet` is a whole echo request.
#[must_use]
pub fn is_request(packet: &[u8], headers: &Headers) -> bool {
    let protocol = match headers.version {
        Version::V4 => ICMP,
        Version::V6 => ICMPV6,
    };
    let message = &packet[headers.transport..headers.length];
    headers.payload == Payload::Other
        && headers.protocol == protocol
        && message.len() >= HEADER
        && message[..2] == [types(headers.version).0, 0]
}

/// The longest packet that may get shorter: a longer one may lie in several pieces, of which only the first is rewritten.
const MAX_SHORTENED: usize = 1280;

/// Turns an echo request, see [`is_request`], into its reply. IP options and extension headers are not sent back; what is
/// asked with them is no balancer's to answer.
///
/// # Errors
/// For a request from or to an address that is no single host's (RFC 1122 section 3.2.2.6, RFC 4443 section 4.2), and a long
/// one with options. The frame is unchanged then.
pub fn answer(frame: &mut Frame<'_>, headers: &Headers) -> Result<(), Unanswerable> {
    if !is_one_host(headers.source) || !is_one_host(headers.destination) {
        return Err(Unanswerable);
    }
    let header = match headers.version {
        Version::V4 => IPV4_HEADER,
        Version::V6 => IPV6_HEADER,
    };
    if headers.transport != header && headers.length > MAX_SHORTENED {
        return Err(Unanswerable);
    }
    let packet = frame.bytes_mut();
    turn(&mut packet[headers.transport..], types(headers.version));
    packet.copy_within(headers.transport..headers.length, header);
    let length = header + headers.length - headers.transport;
    match (IpAddr::from(headers.source), IpAddr::from(headers.destination)) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            packet[0] = 0x45;
            // Not longer than before.
            packet[2..4].copy_from_slice(&(length as u16).to_be_bytes());
            packet[8] = TTL;
            packet[12..16].copy_from_slice(&destination.octets());
            packet[16..20].copy_from_slice(&source.octets());
            packet[10..12].fill(0);
            let check = checksum::finish(checksum::add(0, &packet[..IPV4_HEADER]));
            packet[10..12].copy_from_slice(&check.to_be_bytes());
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            packet[4..6].copy_from_slice(&((length - IPV6_HEADER) as u16).to_be_bytes());
            packet[6] = ICMPV6;
            packet[7] = TTL;
            packet[8..24].copy_from_slice(&destination.octets());
            packet[24..40].copy_from_slice(&source.octets());
        }
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => {
            unreachable!("a packet has one IP version")
        }
    }
    frame.turned(length);
    Ok(())
}

/// Another type and a checksum that is as right as it was: the pseudo-header of ICMPv6 sums to the same in both directions.
fn turn(message: &mut [u8], (request, reply): (u8, u8)) {
    let change = Difference::NONE.replaced(&[request, 0], &[reply, 0]);
    let old = u16::from_be_bytes([message[2], message[3]]);
    message[0] = reply;
    message[2..4].copy_from_slice(&change.update(old).to_be_bytes());
}
