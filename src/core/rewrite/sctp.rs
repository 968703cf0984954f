//! NAT of SCTP: its checksum covers the ports, not the addresses.
use std::ops::Range;

use super::{replace, set_addresses, set_ports};
use crate::flow::Key;
use crate::packet::checksum::Difference;
use crate::packet::frame::{Checksum, Frame};
use crate::packet::icmp::Quoted;
use crate::packet::{Headers, crc32c, ip};

/// The field, within the SCTP packet.
const FIELD: Range<usize> = crc32c::FIELD..crc32c::FIELD + 4;

/// Gives the packet the addresses and ports of `key`.
///
/// An unfinished checksum is finished here: to a device behind lbd, "finish it" means the Internet checksum (virtio 1.2
/// section 5.1.6.2, XDP_TXMD_FLAGS_CHECKSUM).
pub(super) fn apply(frame: &mut Frame<'_>, headers: &Headers, key: &Key) {
    let unfinished = is_unfinished(frame, headers);
    let bytes = &mut frame.bytes_mut()[..headers.length];
    let _not_covered = set_addresses(bytes, key.source, key.destination);
    let packet = &mut bytes[headers.transport..];
    let old = ports(packet);
    let _counted_below = set_ports(packet, key);
    let new = ports(packet);
    if unfinished {
        finish(packet);
        frame.finish();
    } else if old != new {
        let field = crc32c::update(field(packet), old, new, packet.len());
        packet[FIELD].copy_from_slice(&field);
    }
}

/// Keeps the checksum right of a quoted packet that had the ports `before`, as far as it is there: how long the whole
/// packet was, its IP header says. Returns how the sum over the quotation changes.
pub(super) fn quoted_change(packet: &mut [u8], quoted: &Quoted, before: [u8; 4]) -> Difference {
    let whole = ip::length(&packet[quoted.start..]).unwrap_or(0);
    let length = whole.saturating_sub(quoted.transport - quoted.start);
    let transport = &mut packet[quoted.transport..];
    let after = ports(transport);
    match transport.get_mut(FIELD) {
        Some(field) => {
            let old = [field[0], field[1], field[2], field[3]];
            replace(Difference::NONE, field, &crc32c::update(old, before, after, length))
        }
        None => Difference::NONE,
    }
}

/// Whether the sender's stack has left the checksum to a device; where it is not told, lbd finds out and takes note.
fn is_unfinished(frame: &mut Frame<'_>, headers: &Headers) -> bool {
    match frame.checksum {
        Checksum::Complete => false,
        Checksum::Partial { start, .. } => start == headers.transport,
        Checksum::Unsure => {
            frame.checksum = Checksum::Complete;
            looks_unfinished(&frame.bytes()[headers.transport..headers.length])
        }
    }
}

/// A stack that leaves the checksum to a device leaves zero there (`sctp_packet_pack`, net/sctp/output.c). One of 2^32
/// finished checksums looks like that too; finished once more, it is the same again.
pub(super) fn looks_unfinished(packet: &[u8]) -> bool {
    field(packet) == [0; 4]
}

/// Computes the checksum of a whole SCTP packet.
pub(super) fn finish(packet: &mut [u8]) {
    let field = crc32c::of(packet);
    packet[FIELD].copy_from_slice(&field);
}

pub(super) fn ports(packet: &[u8]) -> [u8; 4] {
    [packet[0], packet[1], packet[2], packet[3]]
}

fn field(packet: &[u8]) -> [u8; 4] {
    [packet[8], packet[9], packet[10], packet[11]]
}

#[cfg(test)]
mod tests {
    use crate::rewrite::finish_checksum;
    use lbd_testkit::packets;

    #[test]
    fn a_local_senders_packet_that_is_not_lbds_is_finished_before_the_kernel_gets_it_back() {
        for (client, service) in [
            ("10.1.0.2:40000", "10.96.0.10:80"),
            ("[fd00:1::2]:40000", "[fd00:96::10]:80"),
        ] {
            let finished = packets::sctp_of(client, service, &packets::chunk(0, b"payload"));
            let field = finished.len() - 12 - 12 + 8;
            let mut packet = finished.clone();
            packet[field..field + 4].fill(0);
            finish_checksum(&mut packet);
            assert_eq!(packet, finished);
            packet[field] ^= 1;
            let wrong = packet.clone();
            finish_checksum(&mut packet);
            assert_eq!(packet, wrong, "one that is there is left alone, right or wrong");
        }
    }
}
