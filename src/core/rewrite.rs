//! NAT: a packet's addresses and ports replaced in place, every checksum kept right without reading the payload.
mod sctp;
pub mod verify;

use crate::flow::{Address, Key, Protocol};
use crate::packet::checksum::{self, Difference};
use crate::packet::frame::{Checksum, Frame};
use crate::packet::icmp::Quoted;
use crate::packet::{Headers, Payload, Version};

/// Gives the packet the addresses and ports of `key`, which is of its version and protocol.
#[inline]
pub fn apply(frame: &mut Frame<'_>, headers: &Headers, key: &Key) {
    if let Payload::Sctp(..) = headers.payload {
        return sctp::apply(frame, headers, key);
    }
    let partial = is_partial(frame, headers);
    let bytes = frame.bytes_mut();
    let addresses = set_addresses(bytes, key.source, key.destination);
    let ports = set_ports(&mut bytes[headers.transport..], key);
    if let Some(field) = checksum_field(headers, bytes, partial) {
        let old = u16::from_be_bytes([bytes[field], bytes[field + 1]]);
        let new = match partial {
            // The field holds the pseudo-header's sum alone; the ports are the device's to add.
            true => addresses.update_sum(old),
            false => never_zero(headers, addresses.and(ports).update(old)),
        };
        bytes[field..field + 2].copy_from_slice(&new.to_be_bytes());
    }
}

/// Gives a fragment that does not begin its datagram these addresses. The transport checksum is in the first one.
pub fn addresses(frame: &mut Frame<'_>, source: Address, destination: Address) {
    set_addresses(frame.bytes_mut(), source, destination);
}

/// Whether the transport checksum is unfinished; where the device does not tell, lbd finds out and takes note.
#[inline]
fn is_partial(frame: &mut Frame<'_>, headers: &Headers) -> bool {
    let start = headers.transport;
    match frame.checksum {
        Checksum::Complete => false,
        Checksum::Partial { start: unfinished, .. } => unfinished == start,
        Checksum::Unsure => {
            let found = headers
                .checksum_offset()
                .filter(|_| holds_pseudo_header(frame.bytes(), headers));
            frame.checksum = found.map_or(Checksum::Complete, |offset| Checksum::Partial { start, offset });
            found.is_some()
        }
    }
}

/// Whether the checksum field holds the pseudo-header's sum alone. One of 65,536 finished checksums looks like that too;
/// finished once more, it is the same again.
fn holds_pseudo_header(bytes: &[u8], headers: &Headers) -> bool {
    // What fragments a datagram finishes its checksum first (`ip_do_fragment`, `ip6_fragment`).
    if matches!(headers.payload, Payload::Fragment(_)) {
        return false;
    }
    let Headers {
        source,
        destination,
        protocol,
        transport,
        length,
        ..
    } = *headers;
    let sum = || {
        checksum::fold(checksum::pseudo_header(
            source,
            destination,
            protocol,
            length - transport,
        ))
    };
    checksum_field(headers, bytes, false).is_some_and(|field| bytes[field..field + 2] == sum().to_be_bytes())
}

/// Finishes the transport checksum of a packet where the sender's stack has left that to a device. Any other packet, or
/// what is no packet, is not touched.
pub fn finish_checksum(packet: &mut [u8]) {
    let Ok(headers) = Headers::parse(packet) else { return };
    if let Payload::Sctp(..) = headers.payload {
        let packet = &mut packet[headers.transport..headers.length];
        if sctp::looks_unfinished(packet) {
            sctp::finish(packet);
        }
        return;
    }
    if !holds_pseudo_header(packet, &headers) {
        return;
    }
    if let Some(field) = checksum_field(&headers, packet, true) {
        let sum = checksum::add(0, &packet[headers.transport..headers.length]);
        let finished = never_zero(&headers, checksum::finish(sum));
        packet[field..field + 2].copy_from_slice(&finished.to_be_bytes());
    }
}

/// Gives an ICMP error the addresses `source` and that of the one who sent the quoted packet, and the quoted packet the
/// addresses and ports of `inner`. All are of the packet's version.
pub fn error(frame: &mut Frame<'_>, headers: &Headers, quoted: &Quoted, source: Address, inner: &Key) {
    let packet = &mut frame.bytes_mut()[..headers.length];
    let outer = set_addresses(packet, source, inner.source);
    let within = set_quoted(packet, quoted, inner);
    let change = match headers.version {
        Version::V4 => within,
        // The pseudo-header counts as well (RFC 4443 section 2.3).
        Version::V6 => within.and(outer),
    };
    let field = &mut packet[headers.transport + 2..headers.transport + 4];
    let old = u16::from_be_bytes([field[0], field[1]]);
    field.copy_from_slice(&change.update(old).to_be_bytes());
}

/// How the sum over the quoted packet changes.
fn set_quoted(packet: &mut [u8], quoted: &Quoted, inner: &Key) -> Difference {
    let addresses = set_addresses(&mut packet[quoted.start..], inner.source, inner.destination);
    let transport = &mut packet[quoted.transport..];
    let before = sctp::ports(transport);
    let ports = set_ports(transport, inner);
    let header = match inner.source.as_v4() {
        // An IPv4 header sums to the same as before, since its own checksum makes up for the addresses.
        Some(_) => ports,
        None => ports.and(addresses),
    };
    let at = match inner.protocol() {
        Protocol::Tcp => 16,
        Protocol::Udp => 6,
        Protocol::Sctp => return header.and(sctp::quoted_change(packet, quoted, before)),
    };
    // The quotation may end before the checksum.
    let Some(field) = transport.get_mut(at..at + 2) else {
        return header;
    };
    let old = u16::from_be_bytes([field[0], field[1]]);
    let new = addresses.and(ports).update(old);
    let new = match (inner.protocol(), old, new) {
        // No checksum stays none, and none comes to look like none (RFC 768).
        (Protocol::Udp, 0, _) => return header,
        (Protocol::Udp, _, 0) => 0xffff,
        (Protocol::Tcp | Protocol::Udp | Protocol::Sctp, ..) => new,
    };
    replace(header, field, &new.to_be_bytes())
}

#[inline]
fn set_addresses(bytes: &mut [u8], source: Address, destination: Address) -> Difference {
    match (source.as_v4(), destination.as_v4()) {
        (Some(source), Some(destination)) => {
            let header: &mut [u8] = &mut bytes[10..20];
            let change = set_word(Difference::NONE, &mut header[2..], source);
            let change = set_word(change, &mut header[6..], destination);
            let old = u16::from_be_bytes([header[0], header[1]]);
            header[..2].copy_from_slice(&change.update(old).to_be_bytes());
            change
        }
        (Some(_) | None, _) => {
            let header: &mut [u8] = &mut bytes[8..40];
            let change = set_v6(Difference::NONE, &mut header[..16], source);
            set_v6(change, &mut header[16..], destination)
        }
    }
}

#[inline]
fn set_v6(change: Difference, field: &mut [u8], new: Address) -> Difference {
    let [high, low] = new.halves();
    let words = [(high >> 32) as u32, high as u32, (low >> 32) as u32, low as u32];
    let fields = field.chunks_exact_mut(4).zip(words);
    fields.fold(change, |change, (field, word)| set_word(change, field, word))
}

/// Writes a word at the beginning of `field`.
#[inline]
fn set_word(change: Difference, field: &mut [u8], new: u32) -> Difference {
    let field = &mut field[..4];
    let old = u32::from_be_bytes([field[0], field[1], field[2], field[3]]);
    field.copy_from_slice(&new.to_be_bytes());
    change.replaced_word(old, new)
}

#[inline]
fn set_ports(transport: &mut [u8], key: &Key) -> Difference {
    set_word(Difference::NONE, transport, key.ports())
}

#[inline]
fn replace(change: Difference, field: &mut [u8], new: &[u8]) -> Difference {
    if field == new {
        return change;
    }
    let change = change.replaced(field, new);
    field.copy_from_slice(new);
    change
}

/// Where the transport checksum is; None for a UDP datagram that has none.
#[inline]
fn checksum_field(headers: &Headers, bytes: &[u8], partial: bool) -> Option<usize> {
    let field = headers.transport + usize::from(headers.checksum_offset()?);
    // A zero says that the sender made none (RFC 768; RFC 6935 for IPv6), unless the device is to make it.
    let is_missing = is_udp(headers) && bytes[field..field + 2] == [0, 0] && !partial;
    (!is_missing).then_some(field)
}

/// RFC 768: a computed zero is sent as all ones, since zero means none.
const fn never_zero(headers: &Headers, checksum: u16) -> u16 {
    match checksum {
        0 if is_udp(headers) => 0xffff,
        _ => checksum,
    }
}

/// Whether it is a UDP datagram or its first fragment.
const fn is_udp(headers: &Headers) -> bool {
    match headers.payload {
        Payload::Udp(_) => true,
        Payload::Fragment(fragment) => match fragment.opening {
            Some(opening) => opening.flags.is_none(),
            None => false,
        },
        Payload::Tcp(..) | Payload::Sctp(..) | Payload::IcmpError | Payload::Other => false,
    }
}
