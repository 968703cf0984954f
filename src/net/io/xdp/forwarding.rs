//! lbd as the router: what a packet's way on is, and the Ethernet header that it leaves with.
use std::net::IpAddr;
use std::sync::Arc;

use super::next_hop::{Cache, Hop, NextHops, Way};
use lbd_core::flow::Address;
use lbd_core::packet::{Version, ethernet};
use lbd_core::router::Router;
use lbd_core::time::Instant;

/// A worker's view of the ways that packets go.
#[derive(Debug)]
pub(super) struct Forwarding {
    hops: Arc<NextHops>,
    cache: Cache,
    /// When the batch under way began.
    now: Instant,
}

impl Forwarding {
    pub(super) fn new(hops: Arc<NextHops>, seed: u64) -> Self {
        Self {
            hops,
            cache: Cache::new(seed),
            now: Instant::ZERO,
        }
    }

    /// The way of an IP packet that is ready to leave; None for one that ends before its addresses.
    pub(super) fn way(&mut self, packet: &[u8]) -> Option<(Way, Leaving)> {
        let leaving = Leaving::read(packet)?;
        // As Linux does by default (`fib_multipath_hash_policy` 0): all flows of two hosts go one way.
        let way = self
            .cache
            .find(&self.hops, leaving.destination, leaving.spread, self.now);
        Some((way, leaving))
    }

    /// The Ethernet address of an interface.
    pub(super) fn hardware_address(&self, interface: u32) -> Option<[u8; 6]> {
        self.hops.hardware_address(interface)
    }
}

impl Router for Forwarding {
    fn begin(&mut self, now: Instant) {
        self.now = now;
    }

    fn mtu(&mut self, destination: IpAddr) -> Option<usize> {
        match self.cache.find(&self.hops, destination, 0, self.now) {
            Way::Direct(hop) => Some(hop.mtu as usize),
            Way::Kernel => None,
        }
    }

    fn is_martian(&mut self, source: IpAddr) -> bool {
        self.hops.is_martian(source)
    }

    fn ends_here(&mut self, destination: IpAddr) -> bool {
        self.hops.ends_here(destination)
    }

    fn own_address(&mut self, destination: IpAddr) -> Option<IpAddr> {
        self.hops.source_for(destination)
    }
}

/// What matters for a packet's way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Leaving {
    pub(super) version: Version,
    destination: Address,
    /// By its IP header.
    pub(super) length: usize,
    /// The same for all packets between two hosts.
    spread: u32,
}

/// 2^64 divided by the golden ratio (Knuth, TAOCP 6.4): its product spreads any difference over the top bits.
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

impl Leaving {
    fn read(packet: &[u8]) -> Option<Self> {
        if packet.first()? >> 4 == 4 {
            let header: &[u8; 20] = packet.first_chunk()?;
            let [.., a, b, c, d] = *header;
            let addresses = u64::from_ne_bytes(*header[12..].first_chunk()?);
            return Some(Self {
                version: Version::V4,
                destination: Address::v4(u32::from_be_bytes([a, b, c, d])),
                length: usize::from(u16::from_be_bytes([header[2], header[3]])),
                spread: (addresses.wrapping_mul(GOLDEN) >> 32) as u32,
            });
        }
        let header: &[u8; 40] = packet.first_chunk()?;
        let (words, _) = header[8..].as_chunks::<8>();
        let mix = |sum: u64, word: &[u8; 8]| (sum ^ u64::from_ne_bytes(*word)).wrapping_mul(GOLDEN).rotate_left(29);
        Some(Self {
            version: Version::V6,
            destination: Address::v6(u64::from_be_bytes(words[2]), u64::from_be_bytes(words[3])),
            length: header.len() + usize::from(u16::from_be_bytes([header[4], header[5]])),
            spread: (words.iter().fold(0, mix) >> 32) as u32,
        })
    }
}

/// Writes the Ethernet header for `hop` before the packet, which begins at `start`; returns where the frame begins.
pub(super) fn write_header(storage: &mut [u8], start: usize, version: Version, hop: &Hop) -> usize {
    let begin = start - ethernet::HEADER - hop.vlan.map_or(0, |_| ethernet::TAG);
    storage[begin..begin + 6].copy_from_slice(&hop.destination_mac);
    storage[begin + 6..begin + 12].copy_from_slice(&hop.source_mac);
    if let Some(tag) = hop.vlan {
        storage[begin + 12..begin + 14].copy_from_slice(&tag.protocol.to_be_bytes());
        storage[begin + 14..begin + 16].copy_from_slice(&tag.id.to_be_bytes());
    }
    let ethertype = match version {
        Version::V4 => ethernet::IPV4,
        Version::V6 => ethernet::IPV6,
    };
    storage[start - 2..start].copy_from_slice(&ethertype.to_be_bytes());
    begin
}
