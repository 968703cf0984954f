//! The packet that is asked about.
use std::borrow::Cow;
use std::net::IpAddr;

use crate::protocol::explanation::{Hex, PacketStep, Question};
use lbd_core::flow::{Endpoint, Protocol, Tuple};
use lbd_core::packet::ip::{IPV4_HEADER, IPV6_HEADER};
use lbd_core::packet::{Headers, Payload, TcpFlags, Version, checksum, icmp};

/// An SCTP chunk that asks for an association (RFC 9260 section 3.3.2).
const INIT: u8 = 1;

/// The IP packet that is asked about. A first packet that is made here has its checksum left to a device: nobody will
/// get it.
///
/// # Errors
/// When its sender and receiver are not of one IP version.
pub fn packet(question: &Question) -> Result<Cow<'_, [u8]>, String> {
    match question {
        Question::Hex(Hex(bytes)) => Ok(Cow::Borrowed(bytes)),
        &Question::First {
            protocol,
            source,
            destination,
        } => {
            let transport = transport(protocol, source.port, destination.port);
            let mut packet = ip(source, destination, protocol, &transport)?;
            packet.extend(transport);
            leave_checksum(&mut packet);
            Ok(Cow::Owned(packet))
        }
    }
}

/// Leaves the transport checksum to a device: the field holds the sum of the pseudo-header, in SCTP zero.
fn leave_checksum(packet: &mut [u8]) {
    let Ok(headers) = Headers::parse(packet) else { return };
    let Some(offset) = headers.checksum_offset() else {
        return;
    };
    let (field, length) = (
        headers.transport + usize::from(offset),
        headers.length - headers.transport,
    );
    let sum = checksum::pseudo_header(headers.source, headers.destination, headers.protocol, length);
    packet[field..field + 2].copy_from_slice(&checksum::fold(sum).to_be_bytes());
}

/// RFC 9293 section 3.1, RFC 768, RFC 9260 sections 3.1 and 3.3.2.
fn transport(protocol: Protocol, source: u16, destination: u16) -> Vec<u8> {
    let length = match protocol {
        Protocol::Tcp => 20,
        Protocol::Udp => 8,
        Protocol::Sctp => 32,
    };
    let mut bytes = vec![0; length];
    bytes[..2].copy_from_slice(&source.to_be_bytes());
    bytes[2..4].copy_from_slice(&destination.to_be_bytes());
    match protocol {
        Protocol::Tcp => bytes[12..14].copy_from_slice(&[5 << 4, TcpFlags::SYN]),
        Protocol::Udp => bytes[5] = 8,
        Protocol::Sctp => (bytes[12], bytes[15]) = (INIT, 20),
    }
    bytes
}

/// RFC 791, RFC 8200.
fn ip(source: Endpoint, destination: Endpoint, protocol: Protocol, transport: &[u8]) -> Result<Vec<u8>, String> {
    const TTL: u8 = 64;
    // 32 bytes at most.
    let length = transport.len() as u8;
    match (source.address, destination.address) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let mut header = vec![0; IPV4_HEADER];
            (header[0], header[3]) = (0x45, IPV4_HEADER as u8 + length);
            (header[8], header[9]) = (TTL, protocol.number());
            header[12..16].copy_from_slice(&from.octets());
            header[16..].copy_from_slice(&to.octets());
            Ok(header)
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let mut header = vec![0; IPV6_HEADER];
            (header[0], header[5]) = (0x60, length);
            (header[6], header[7]) = (protocol.number(), TTL);
            header[8..24].copy_from_slice(&from.octets());
            header[24..].copy_from_slice(&to.octets());
            Ok(header)
        }
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => Err(format!(
            "no packet goes from {source} to {destination}: expected two IPv4 addresses, or two IPv6 addresses"
        )),
    }
}

/// The packet as it is read.
pub(super) fn step(headers: &Headers, packet: &[u8]) -> PacketStep {
    let (kind, flags, chunk) = match headers.payload {
        Payload::Tcp(_, flags) => ("segment", Some(flag_words(flags)), None),
        Payload::Udp(_) => ("datagram", None, None),
        Payload::Sctp(_, chunk) => ("chunks", None, Some(chunk.name())),
        Payload::Fragment(fragment) => {
            let opening = fragment.opening;
            (
                "fragment",
                opening.and_then(|opening| opening.flags).map(flag_words),
                None,
            )
        }
        Payload::IcmpError => ("icmp_error", None, None),
        Payload::Other => ("other", None, None),
    };
    let (source, destination) = match headers.key().or_else(|| headers.begun_key()).map(Tuple::from) {
        Some(tuple) => (tuple.source.to_string(), tuple.destination.to_string()),
        None => (headers.source.to_string(), headers.destination.to_string()),
    };
    let protocol = Protocol::from_number(headers.protocol);
    PacketStep {
        version: match headers.version {
            Version::V4 => 4,
            Version::V6 => 6,
        },
        protocol: protocol.map_or_else(|| headers.protocol.to_string(), |protocol| protocol.to_string()),
        source,
        destination,
        tcp_flags: flags,
        sctp_chunk: chunk.map(Cow::Borrowed),
        length: headers.length,
        kind: Cow::Borrowed(kind),
        about: icmp::quoted(packet, headers).map(|quoted| Tuple::from(quoted.key).to_string()),
    }
}

/// RFC 9293 section 3.1, from the highest bit on.
fn flag_words(TcpFlags(bits): TcpFlags) -> Vec<Cow<'static, str>> {
    let words = ["cwr", "ece", "urg", "ack", "psh", "rst", "syn", "fin"];
    let set = words
        .into_iter()
        .enumerate()
        .filter(|(place, _)| bits & (0x80 >> place) != 0);
    set.map(|(_, word)| Cow::Borrowed(word)).collect()
}
