//! What a forwarder that knows nothing but addresses does to a packet.
use std::net::Ipv4Addr;

use lbd::io::xdp::bundle::Unfinished;
use lbd::packet::checksum::{self, Difference};

const ETHERNET: usize = 14;
const TCP: u8 = 6;
const UDP: u8 = 17;

/// An Ethernet address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mac(pub(crate) [u8; 6]);

impl std::str::FromStr for Mac {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bytes = text.split(':').map(|byte| u8::from_str_radix(byte, 16));
        let bytes: Result<Vec<u8>, _> = bytes.collect();
        let bytes = bytes.ok().and_then(|bytes| bytes.try_into().ok());
        bytes
            .map(Self)
            .ok_or_else(|| format!("`{text}` is no Ethernet address; one is 02:00:00:00:00:01"))
    }
}

/// Where the packet goes from here, on the wire.
pub(crate) fn address(packet: &mut [u8], destination: Mac, source: Mac) {
    packet[..6].copy_from_slice(&destination.0);
    packet[6..12].copy_from_slice(&source.0);
}

/// The transport checksum of a packet, if a veth sender has left it for the device to finish: the field then holds the
/// folded sum of the pseudo-header.
pub(crate) fn unfinished(packet: &[u8], length: usize) -> Option<Unfinished> {
    let (start, offset, addresses) = transport(packet)?;
    let field = packet.get(start + offset..start + offset + 2)?;
    let protocol = if offset == 6 { UDP } else { TCP };
    let pseudo = checksum::add(u64::from(protocol) + (length - start) as u64, addresses);
    (field == checksum::fold(pseudo).to_be_bytes()).then_some(Unfinished {
        start: start as u16,
        offset: offset as u16,
    })
}

/// Where the transport header and in it the checksum is, and the IP addresses; of a packet of TCP or UDP, no fragment.
fn transport(packet: &[u8]) -> Option<(usize, usize, &[u8])> {
    let (start, protocol, addresses) = match packet.get(12..14)? {
        [0x08, 0x00] => {
            let is_fragment = u16::from_be_bytes([*packet.get(20)?, packet[21]]) & 0x3fff != 0;
            let words = usize::from(packet[ETHERNET] & 0x0f);
            let protocol = if is_fragment { 0 } else { *packet.get(23)? };
            (ETHERNET + 4 * words, protocol, packet.get(26..34)?)
        }
        [0x86, 0xdd] => (ETHERNET + 40, *packet.get(20)?, packet.get(22..54)?),
        _ => return None,
    };
    match protocol {
        TCP => Some((start, 16, addresses)),
        UDP => Some((start, 6, addresses)),
        _ => None,
    }
}

/// Sends an IPv4 packet to another address; all of its checksums stay as true as they were.
pub(crate) fn redirect(packet: &mut [u8], destination: Ipv4Addr, is_unfinished: bool) {
    if packet.get(12..14) != Some(&[0x08, 0x00]) || packet.len() < 34 {
        return;
    }
    let change = Difference::NONE.replaced(&packet[30..34], &destination.octets());
    let update = |packet: &mut [u8], at: usize, is_sum: bool| {
        if let Some(field) = packet.get_mut(at..at + 2) {
            let old = u16::from_be_bytes([field[0], field[1]]);
            let new = if is_sum {
                change.update_sum(old)
            } else {
                change.update(old)
            };
            field.copy_from_slice(&new.to_be_bytes());
        }
    };
    if let Some((start, offset, _)) = transport(packet) {
        update(packet, start + offset, is_unfinished);
    }
    update(packet, 24, false);
    packet[30..34].copy_from_slice(&destination.octets());
}
