//! The Ethernet header (IEEE 802.3) with its VLAN tags (802.1Q, 802.1ad).

/// EtherType of IPv4.
pub const IPV4: u16 = 0x0800;
/// EtherType of ARP.
pub const ARP: u16 = 0x0806;
/// EtherType of IPv6.
pub const IPV6: u16 = 0x86dd;
const VLAN: u16 = 0x8100;
const SERVICE_VLAN: u16 = 0x88a8;

/// Destination, source, EtherType.
pub const HEADER: usize = 14;
/// A VLAN tag.
pub const TAG: usize = 4;
/// A service tag and a customer tag.
const MAX_TAGS: usize = 2;

/// Whether a frame was sent to many: the first bit on the wire of its destination (IEEE 802-2014 section 8.2.2).
#[must_use]
pub fn is_to_group(frame: &[u8]) -> bool {
    frame.first().is_some_and(|first| first & 1 == 1)
}

/// The EtherType of what a frame carries, behind two tags at the most, and where it begins; None for a frame that is cut
/// before it.
#[must_use]
pub fn network(frame: &[u8]) -> Option<(u16, usize)> {
    let ethertype = |at: usize| Some(u16::from_be_bytes(*frame.get(at..)?.first_chunk()?));
    let mut end = HEADER;
    for _ in 0..MAX_TAGS {
        match ethertype(end - 2)? {
            VLAN | SERVICE_VLAN => end += TAG,
            other => return Some((other, end)),
        }
    }
    Some((ethertype(end - 2)?, end))
}
