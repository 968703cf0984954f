//! The checksum of SCTP: CRC32c over the whole SCTP packet, and over nothing of the IP header (RFC 9260 section 6.8).
//!
//! The crate crc32c takes the processor's own instruction where there is one, and brings no other crate into the program;
//! crc-fast, for all kinds of CRC, brings six.

/// Offset of the field in the common header (RFC 9260 section 3.1).
pub const FIELD: usize = 8;
/// No IP packet is longer, so an SCTP packet is not either.
const MOST: usize = 1 << 16;
static ZEROS: [u8; MOST] = [0; MOST];

/// The field of an SCTP packet, as on the wire; what the field holds does not count (RFC 9260 appendix A). Of a
/// packet that has no room for the field, that of no bytes.
#[must_use]
pub fn of(packet: &[u8]) -> [u8; 4] {
    let Some((header, [_, _, _, _, chunks @ ..])) = packet.split_at_checked(FIELD) else {
        return [0; 4];
    };
    let crc = crc32c::crc32c(header);
    let crc = crc32c::crc32c_append(crc, &[0; 4]);
    crc32c::crc32c_append(crc, chunks).to_le_bytes()
}

/// The field of a packet of `length` bytes whose first four, the ports, were `old` and become `new`.
///
/// A CRC is linear: the change depends on the bytes that change and on how many follow, not on what these are. So the
/// payload is not read, and a checksum that was wrong stays wrong.
#[must_use]
pub fn update(field: [u8; 4], old: [u8; 4], new: [u8; 4], length: usize) -> [u8; 4] {
    let difference = u32::from_le_bytes(old) ^ u32::from_le_bytes(new);
    // The inversions before and after, which are part of CRC32c, are undone: they cancel out in a difference.
    let change = !crc32c::crc32c_append(!difference, &ZEROS[..length.min(MOST)]);
    (u32::from_le_bytes(field) ^ change).to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_examples_of_rfc_3720_have_its_checksums() {
        // Appendix B.4, with room made for the field that SCTP has in the middle of the data.
        let crc = |data: &[u8]| crc32c::crc32c(data).to_le_bytes();
        assert_eq!(crc(&[0; 32]), [0xaa, 0x36, 0x91, 0x8a]);
        assert_eq!(of(&[0; 32]), [0xaa, 0x36, 0x91, 0x8a]);
        let mut packet = [0; 32];
        packet[FIELD..FIELD + 4].fill(0x77);
        assert_eq!(of(&packet), [0xaa, 0x36, 0x91, 0x8a], "the field does not count");
    }

    proptest! {
        #[test]
        fn new_ports_change_the_checksum_as_if_it_was_computed_anew(
            mut packet in prop::collection::vec(any::<u8>(), 12..2_000),
            ports in any::<[u8; 4]>(),
            error in any::<u32>(),
        ) {
            let old = [packet[0], packet[1], packet[2], packet[3]];
            let before = u32::from_le_bytes(of(&packet)) ^ error;
            let updated = update(before.to_le_bytes(), old, ports, packet.len());
            packet[..4].copy_from_slice(&ports);
            prop_assert_eq!(u32::from_le_bytes(updated), u32::from_le_bytes(of(&packet)) ^ error);
        }
    }
}
