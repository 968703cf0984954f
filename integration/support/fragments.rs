//! Packets cut into fragments here, and put together again by etherparse.
#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test that includes this module uses some of it"
)]
#![allow(
    clippy::unwrap_used,
    reason = "a test ends at the first surprise, in its helpers too"
)]
use etherparse::SlicedPacket;
use etherparse::defrag::IpDefragPool;

use super::packets;

/// The IPv6 Fragment header.
const FRAGMENT: u8 = 44;

/// Where the IP payload of a packet without options or extension headers begins.
pub fn header(packet: &[u8]) -> usize {
    if packet[0] >> 4 == 4 { 20 } else { 40 }
}

/// The bytes of datagram `identification` from `offset` on as a fragment of the packet that they belong to.
pub fn fragment(packet: &[u8], identification: u32, offset: usize, bytes: &[u8], more: bool) -> Vec<u8> {
    let word = u16::try_from(offset / 8).unwrap();
    let mut fragment = packet[..header(packet)].to_vec();
    if packet[0] >> 4 == 4 {
        fragment[4..6].copy_from_slice(&(identification as u16).to_be_bytes());
        fragment[6..8].copy_from_slice(&(word | u16::from(more) << 13).to_be_bytes());
    } else {
        let next = std::mem::replace(&mut fragment[6], FRAGMENT);
        fragment.extend([next, 0]);
        fragment.extend((word << 3 | u16::from(more)).to_be_bytes());
        fragment.extend(identification.to_be_bytes());
    }
    fragment.extend(bytes);
    seal(&mut fragment);
    fragment
}

/// The packet in fragments of these many bytes (multiples of 8) and one of the rest.
pub fn cut(packet: &[u8], identification: u32, lengths: &[usize]) -> Vec<Vec<u8>> {
    let datagram = &packet[header(packet)..];
    let (mut fragments, mut offset) = (Vec::new(), 0);
    for &length in lengths {
        if offset + length >= datagram.len() {
            break;
        }
        let bytes = &datagram[offset..offset + length];
        fragments.push(fragment(packet, identification, offset, bytes, true));
        offset += length;
    }
    fragments.push(fragment(packet, identification, offset, &datagram[offset..], false));
    fragments
}

/// The packet as a link with this MTU gets it.
pub fn over(packet: &[u8], identification: u32, mtu: usize) -> Vec<Vec<u8>> {
    let room = mtu - header(packet) - if packet[0] >> 4 == 4 { 0 } else { 8 };
    let length = room / 8 * 8;
    cut(packet, identification, &vec![length; packet.len() / length + 1])
}

/// The whole packet that etherparse makes of the fragments, in the order in which they came; its checksums are right.
#[track_caller]
pub fn whole(fragments: &[Vec<u8>]) -> Vec<u8> {
    let mut pool: IpDefragPool<(), ()> = IpDefragPool::new();
    let mut payload = None;
    for fragment in fragments {
        let sliced = SlicedPacket::from_ip(fragment).expect("a fragment that etherparse understands");
        let made = pool
            .process_sliced_packet(&sliced, (), ())
            .expect("fragments that belong together");
        assert!(payload.is_none(), "a fragment too many");
        payload = made;
    }
    let payload = payload.expect("all fragments of a datagram");
    let mut packet = fragments[0][..header(&fragments[0])].to_vec();
    if packet[0] >> 4 == 4 {
        // As `packets` makes them: without an identification, and not to be fragmented.
        packet[4..8].copy_from_slice(&[0, 0, 0x40, 0]);
    } else {
        packet[6] = payload.ip_number.0;
    }
    packet.extend(&payload.payload);
    seal(&mut packet);
    packets::assert_valid(&packet);
    packet
}

/// Sets the lengths in the IP header, and its checksum where it has one.
fn seal(packet: &mut [u8]) {
    let length = u16::try_from(packet.len()).unwrap();
    if packet[0] >> 4 == 6 {
        packet[4..6].copy_from_slice(&(length - 40).to_be_bytes());
        return;
    }
    packet[2..4].copy_from_slice(&length.to_be_bytes());
    packet[10..12].fill(0);
    let words = packet[..20]
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1]));
    let sum: u32 = words.sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    packet[10..12].copy_from_slice(&(!(sum as u16)).to_be_bytes());
}
