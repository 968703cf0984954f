//! Whether a packet is what its sender has sent, by its transport checksum.
use super::{holds_pseudo_header, sctp};
use crate::packet::frame::{Checksum, Frame};
use crate::packet::{Headers, Payload, checksum, crc32c};

/// What the transport checksum says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Integrity {
    /// It is right; or not finished, which is the device's business, or the sender made none.
    Right,
    /// Whoever gets the packet will throw it away.
    Wrong,
    /// Only all fragments together could tell.
    Unknown,
}

/// Reads the whole packet.
#[must_use]
pub fn integrity(frame: &Frame<'_>, headers: &Headers) -> Integrity {
    let is_right = match headers.payload {
        Payload::Fragment(_) => return Integrity::Unknown,
        Payload::Udp(_) | Payload::IcmpError | Payload::Other => true,
        Payload::Tcp(..) => is_unfinished(frame, headers) || sums_up(frame.bytes(), headers),
        Payload::Sctp(..) => is_unfinished(frame, headers) || has_its_crc(frame.bytes(), headers),
    };
    match is_right {
        true => Integrity::Right,
        false => Integrity::Wrong,
    }
}

/// Whether the sender has left its checksum to a device; a capture made on the sender's host, like some devices, does not tell.
fn is_unfinished(frame: &Frame<'_>, headers: &Headers) -> bool {
    let looks_like_it = || match headers.payload {
        Payload::Sctp(..) => sctp::looks_unfinished(&frame.bytes()[headers.transport..headers.length]),
        Payload::Tcp(..) | Payload::Udp(_) | Payload::Fragment(_) | Payload::IcmpError | Payload::Other => {
            holds_pseudo_header(frame.bytes(), headers)
        }
    };
    match frame.checksum {
        Checksum::Partial { start, .. } if start == headers.transport => true,
        Checksum::Partial { .. } | Checksum::Complete | Checksum::Unsure => looks_like_it(),
    }
}

/// RFC 9293 section 3.1: with the field the sum is all ones.
fn sums_up(bytes: &[u8], headers: &Headers) -> bool {
    let segment = &bytes[headers.transport..headers.length];
    let pseudo = checksum::pseudo_header(headers.source, headers.destination, headers.protocol, segment.len());
    checksum::fold(checksum::add(pseudo, segment)) == 0xffff
}

fn has_its_crc(bytes: &[u8], headers: &Headers) -> bool {
    let packet = &bytes[headers.transport..headers.length];
    packet.get(crc32c::FIELD..crc32c::FIELD + 4) == Some(&crc32c::of(packet))
}
