//! The answer to a packet that is refused: TCP RST (RFC 9293), or an ICMP error (RFC 792, RFC 4443).
use std::net::IpAddr;

use super::icmp::{HEADER as ICMP_HEADER, ICMP, ICMPV6};
use super::ip::{IPV4_HEADER, IPV6_HEADER};
use super::sctp::Chunk;
use super::{Headers, Payload, TcpFlags, Version, checksum};
use crate::flow::{Address, Key};
use crate::packet::frame::Frame;

/// The hop limit of what lbd itself sends (IANA's recommended default TTL, RFC 1700).
pub(super) const TTL: u8 = 64;
const TCP_HEADER: usize = 20;
/// "The ICMP datagram SHOULD contain as much of the original datagram as possible without the length of the ICMP
/// datagram exceeding 576 bytes" (RFC 1812 section 4.3.2.3).
const MAX_ICMPV4: usize = 576;
/// "As much of invoking packet as possible without the ICMPv6 packet exceeding the minimum IPv6 MTU" (RFC 4443 section 3.1).
const MAX_ICMPV6: usize = 1280;

/// The packet may not be answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unanswerable;

/// Replaces a refused packet by the answer to its sender.
///
/// # Errors
/// For a packet that may not be answered: a RST (RFC 9293 section 3.5.2), an ABORT, an ICMP error, a fragment other than the
/// first one of UDP, or one from or to an address that is no single host's (RFC 1122 section 3.2.2); and where the answer
/// has no room. The frame is unchanged then.
pub fn answer(frame: &mut Frame<'_>, headers: &Headers) -> Result<(), Unanswerable> {
    if !is_one_host(headers.source) || !is_one_host(headers.destination) {
        return Err(Unanswerable);
    }
    let mut buffer = [0; MAX_ICMPV6];
    let length = match headers.payload {
        Payload::Tcp(_, flags) if flags.has(TcpFlags::RST) => return Err(Unanswerable),
        Payload::Tcp(_, flags) => reset(&mut buffer, frame.bytes(), headers, flags),
        Payload::Other if is_icmp_error(frame.bytes(), headers) => return Err(Unanswerable),
        // As the kernel (`is_sctp_abort`, ip_vs_core.c).
        Payload::Sctp(_, Chunk::Abort) => return Err(Unanswerable),
        Payload::Fragment(fragment) if fragment.opening.is_none_or(|opening| opening.flags.is_some()) => {
            return Err(Unanswerable);
        }
        Payload::Udp(_) | Payload::Sctp(..) | Payload::Other | Payload::Fragment(_) => {
            let kind = match headers.version {
                // RFC 792: destination unreachable, port unreachable.
                Version::V4 => Kind(3, 3, 0),
                // RFC 4443 section 3.1: the same.
                Version::V6 => Kind(1, 4, 0),
            };
            message(&mut buffer, frame.bytes(), headers, kind)
        }
        Payload::IcmpError => return Err(Unanswerable),
    };
    if length > frame.capacity() {
        return Err(Unanswerable);
    }
    frame.replace(&buffer[..length]);
    Ok(())
}

/// Why a router cannot send a packet on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Complaint {
    /// It is longer than this many bytes, and may not be fragmented.
    TooBig {
        /// The longest packet that the way on carries.
        mtu: usize,
    },
    /// It has come too far.
    TimeExceeded,
}

/// Replaces a packet by the ICMP error about it, which comes from `own`, or for want of an address of lbd's own from where
/// the packet was going.
///
/// # Errors
/// For a packet that no ICMP error may be about, see [`answer`]. The frame is unchanged then.
pub fn complain(
    frame: &mut Frame<'_>,
    headers: &Headers,
    complaint: Complaint,
    own: Option<IpAddr>,
) -> Result<(), Unanswerable> {
    let is_silent = match headers.payload {
        Payload::IcmpError => true,
        // About a later fragment only in IPv6 (RFC 1122 section 3.2.2), whose senders alone may fragment (RFC 8200 section 5).
        Payload::Fragment(fragment) => headers.version == Version::V4 && !fragment.is_first(),
        Payload::Other => is_icmp_error(frame.bytes(), headers),
        Payload::Tcp(..) | Payload::Udp(_) | Payload::Sctp(..) => false,
    };
    if is_silent || !is_one_host(headers.source) || !is_one_host(headers.destination) {
        return Err(Unanswerable);
    }
    let answered = Headers {
        destination: own.map_or(headers.destination, Address::from),
        ..*headers
    };
    let mut buffer = [0; MAX_ICMPV6];
    let length = message(&mut buffer, frame.bytes(), &answered, complaint.kind(headers.version));
    if length > frame.capacity() {
        return Err(Unanswerable);
    }
    frame.replace(&buffer[..length]);
    Ok(())
}

/// Type, code and the second word of an ICMP error.
struct Kind(u8, u8, u32);

impl Complaint {
    const fn kind(self, version: Version) -> Kind {
        match (self, version) {
            // RFC 1191 section 4: the MTU is in the lower half of the second word.
            (Self::TooBig { mtu }, Version::V4) => Kind(3, 4, mtu as u16 as u32),
            // RFC 4443 section 3.2.
            (Self::TooBig { mtu }, Version::V6) => Kind(2, 0, mtu as u32),
            // RFC 792 and RFC 4443 section 3.3: in transit.
            (Self::TimeExceeded, Version::V4) => Kind(11, 0, 0),
            (Self::TimeExceeded, Version::V6) => Kind(3, 0, 0),
        }
    }
}

/// Turns a TCP segment of a flow that ends into a RST for its receiver, in its place in the sequence, so that the receiver
/// believes it (RFC 5961 section 3.2). It leaves with `leaving`.
///
/// # Errors
/// For anything but a TCP segment, or a segment that is a RST already. The frame is unchanged then.
pub fn abort(frame: &mut Frame<'_>, headers: &Headers, leaving: &Key) -> Result<(), Unanswerable> {
    let Payload::Tcp(_, flags) = headers.payload else {
        return Err(Unanswerable);
    };
    if flags.has(TcpFlags::RST) {
        return Err(Unanswerable);
    }
    // Headers of the packet that the RST would be the answer to.
    let answered = Headers {
        source: leaving.destination,
        destination: leaving.source,
        ..*headers
    };
    let mut buffer = [0; MAX_ICMPV6];
    let start = ip_header(&mut buffer, &answered, 6, TCP_HEADER);
    let tcp = &mut buffer[start..start + TCP_HEADER];
    tcp[..12].copy_from_slice(&frame.bytes()[headers.transport..headers.transport + 12]);
    tcp[0..2].copy_from_slice(&leaving.source_port().to_be_bytes());
    tcp[2..4].copy_from_slice(&leaving.destination_port().to_be_bytes());
    tcp[13] = TcpFlags::RST | (flags.0 & TcpFlags::ACK);
    seal(tcp, &answered);
    frame.replace(&buffer[..start + TCP_HEADER]);
    Ok(())
}

/// Completes a TCP header without options or data.
fn seal(tcp: &mut [u8], headers: &Headers) {
    tcp[12] = 5 << 4;
    let sum = checksum::pseudo_header(headers.source, headers.destination, 6, TCP_HEADER);
    let check = checksum::finish(checksum::add(sum, tcp));
    tcp[16..18].copy_from_slice(&check.to_be_bytes());
}

/// Whether it is an ICMP message that must not be answered by another one: all but queries (RFC 1122 section 3.2.2, RFC 4443
/// section 2.4(e)). One that is cut short counts as such.
fn is_icmp_error(packet: &[u8], headers: &Headers) -> bool {
    let kind = packet[headers.transport..headers.length].first();
    match (headers.version, headers.protocol) {
        // Destination unreachable, source quench, redirect, time exceeded, parameter problem.
        (Version::V4, ICMP) => kind.is_none_or(|kind| [3, 4, 5, 11, 12].contains(kind)),
        // Errors have the high bit clear; redirects are 137.
        (Version::V6, ICMPV6) => kind.is_none_or(|&kind| kind < 128 || kind == 137),
        (Version::V4 | Version::V6, _) => false,
    }
}

/// Whether the address is neither of a group nor of everybody or nobody. 0.0.0.0/8 is "this network" (RFC 1122 section 3.2.1.3), and
/// Linux lets all of it through but 0.0.0.0 (`ipv4_is_zeronet`).
pub(crate) fn is_one_host(address: Address) -> bool {
    let address = IpAddr::from(address);
    let special = matches!(address, IpAddr::V4(v4) if v4.is_broadcast() || v4.octets()[0] == 0);
    !(special || address.is_multicast() || address.is_unspecified())
}

/// RFC 9293 section 3.5.2: `<SEQ=SEG.ACK><CTL=RST>`, or without an ACK `<SEQ=0><ACK=SEG.SEQ+SEG.LEN><CTL=RST,ACK>`.
fn reset(buffer: &mut [u8], packet: &[u8], headers: &Headers, flags: TcpFlags) -> usize {
    let segment = &packet[headers.transport..headers.length];
    let header_length = usize::from(segment[12] >> 4) * 4;
    let sequence = u32::from_be_bytes([segment[4], segment[5], segment[6], segment[7]]);
    // SYN and FIN each occupy a sequence number; the length is below 2^16, so the cast is exact.
    let controls = u32::from(flags.has(TcpFlags::SYN)) + u32::from(flags.has(TcpFlags::FIN));
    let after = sequence
        .wrapping_add((segment.len() - header_length) as u32)
        .wrapping_add(controls);

    let start = ip_header(buffer, headers, 6, TCP_HEADER);
    let tcp = &mut buffer[start..start + TCP_HEADER];
    tcp[0..2].copy_from_slice(&segment[2..4]);
    tcp[2..4].copy_from_slice(&segment[0..2]);
    if flags.has(TcpFlags::ACK) {
        tcp[4..8].copy_from_slice(&segment[8..12]);
        tcp[13] = TcpFlags::RST;
    } else {
        tcp[8..12].copy_from_slice(&after.to_be_bytes());
        tcp[13] = TcpFlags::RST | TcpFlags::ACK;
    }
    seal(tcp, headers);
    start + TCP_HEADER
}

/// Writes an ICMP error about `packet`; returns its length.
fn message(buffer: &mut [u8], packet: &[u8], headers: &Headers, Kind(kind, code, word): Kind) -> usize {
    let (protocol, ip, max) = match headers.version {
        Version::V4 => (ICMP, IPV4_HEADER, MAX_ICMPV4),
        Version::V6 => (ICMPV6, IPV6_HEADER, MAX_ICMPV6),
    };
    let quoted = headers.length.min(max - ip - ICMP_HEADER);
    let start = ip_header(buffer, headers, protocol, ICMP_HEADER + quoted);
    let message = &mut buffer[start..start + ICMP_HEADER + quoted];
    message[0] = kind;
    message[1] = code;
    message[4..8].copy_from_slice(&word.to_be_bytes());
    message[ICMP_HEADER..].copy_from_slice(&packet[..quoted]);
    let sum = match headers.version {
        Version::V4 => 0,
        Version::V6 => checksum::pseudo_header(headers.source, headers.destination, protocol, message.len()),
    };
    let check = checksum::finish(checksum::add(sum, message));
    message[2..4].copy_from_slice(&check.to_be_bytes());
    start + ICMP_HEADER + quoted
}

/// Writes the IP header of an answer, from the refused packet's destination to its source; returns its length.
fn ip_header(buffer: &mut [u8], headers: &Headers, protocol: u8, payload: usize) -> usize {
    match (IpAddr::from(headers.source), IpAddr::from(headers.destination)) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let header = &mut buffer[..IPV4_HEADER];
            header[0] = 0x45;
            // At most 576 bytes.
            header[2..4].copy_from_slice(&((IPV4_HEADER + payload) as u16).to_be_bytes());
            header[8] = TTL;
            header[9] = protocol;
            header[12..16].copy_from_slice(&destination.octets());
            header[16..20].copy_from_slice(&source.octets());
            let check = checksum::finish(checksum::add(0, header));
            header[10..12].copy_from_slice(&check.to_be_bytes());
            IPV4_HEADER
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let header = &mut buffer[..IPV6_HEADER];
            header[0] = 0x60;
            // At most 1240 bytes.
            header[4..6].copy_from_slice(&(payload as u16).to_be_bytes());
            header[6] = protocol;
            header[7] = TTL;
            header[8..24].copy_from_slice(&destination.octets());
            header[24..40].copy_from_slice(&source.octets());
            IPV6_HEADER
        }
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => {
            unreachable!("a packet has one IP version")
        }
    }
}
