//! A packet in the frames that it came in.
use std::ops::Range;

use super::umem::{Buffer, Umem};
use lbd_core::packet::checksum;

/// A part of a packet: all of it, or, where it is longer than a frame, what one frame holds.
#[derive(Debug)]
pub(super) struct Segment {
    pub(super) buffer: Buffer,
    pub(super) start: u32,
    pub(super) length: u32,
}

impl Segment {
    fn range(&self) -> Range<usize> {
        let start = self.start as usize;
        start..start + self.length as usize
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.buffer.bytes()[self.range()]
    }
}

/// A packet that was received, or one of lbd's own, from its Ethernet header on. It owns its frames, and must go back to
/// its [`Bundle`](super::bundle::Bundle): to be sent or to be released.
#[derive(Debug)]
#[must_use = "a packet that is neither sent nor released takes its frames with it"]
pub struct Arrival {
    pub(super) port: u16,
    /// Which of the port's sockets it came by.
    pub(super) origin: u16,
    pub(super) head: Segment,
    pub(super) rest: Vec<Segment>,
}

impl Arrival {
    /// The number of the port that it came in by.
    #[must_use]
    pub const fn port(&self) -> usize {
        self.port as usize
    }

    /// Where the packet, or what of it is in the first frame, is in the storage.
    #[must_use]
    pub fn range(&self) -> Range<usize> {
        self.head.range()
    }

    /// The whole first frame: room for headers before the packet, and behind it for an answer that is longer.
    pub const fn storage(&mut self) -> &mut [u8] {
        self.head.buffer.bytes_mut()
    }

    /// The packet, or what of it is in the first frame.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        self.head.bytes()
    }

    /// Bytes in all frames.
    #[must_use]
    pub fn length(&self) -> usize {
        let rest = self.rest.iter().map(|segment| segment.length as usize);
        self.head.length as usize + rest.sum::<usize>()
    }

    /// Whether the packet is longer than a frame.
    #[must_use]
    pub const fn is_chain(&self) -> bool {
        !self.rest.is_empty()
    }

    /// The whole packet in one piece.
    pub fn gather(&self, packet: &mut Vec<u8>) {
        packet.clear();
        packet.extend_from_slice(self.bytes());
        for segment in &self.rest {
            packet.extend_from_slice(segment.bytes());
        }
    }

    /// What of a packet, gathered and rewritten, belongs into the first frame. Its length must not have changed.
    ///
    /// # Panics
    /// If the packet is shorter than what was in the first frame.
    pub fn put_head_back(&mut self, packet: &[u8]) {
        let range = self.head.range();
        let length = range.len();
        self.head.buffer.bytes_mut()[range].copy_from_slice(&packet[..length]);
    }

    /// Takes away what is longer than `length`; frames that are empty then are free again.
    pub(super) fn cut(&mut self, length: usize, umem: &mut Umem) {
        let mut excess = self.length().saturating_sub(length) as u32;
        while let Some(last) = self.rest.pop_if(|last| last.length <= excess) {
            excess -= last.length;
            umem.give_back(last.buffer);
        }
        let last = self.rest.last_mut().unwrap_or(&mut self.head);
        last.length = last.length.saturating_sub(excess);
    }

    /// Finishes a checksum whose field, at `start + offset` from the start of the packet, holds the pseudo-header's sum.
    pub(super) fn finish_checksum(&mut self, start: usize, offset: usize) {
        let mut sum = checksum::add(0, &self.bytes()[start..]);
        let mut is_odd = (self.bytes().len() - start) % 2 == 1;
        for bytes in self.rest.iter().map(Segment::bytes) {
            let part = checksum::fold(checksum::add(0, bytes));
            // At an odd offset the bytes of each word change places (RFC 1071 section 2, "byte order independence").
            sum += u64::from(if is_odd { part.swap_bytes() } else { part });
            is_odd ^= bytes.len() % 2 == 1;
        }
        let field = match checksum::finish(sum) {
            // Zero says "no checksum" in UDP and is the same as this otherwise: CSUM_MANGLED_0 of skb_checksum_help.
            0 => 0xffff,
            other => other,
        };
        let place = self.head.start as usize + start + offset;
        self.storage()[place..place + 2].copy_from_slice(&field.to_be_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(umem: &mut Umem, bytes: &[u8]) -> Segment {
        let mut buffer = umem.take().unwrap();
        buffer.bytes_mut()[256..256 + bytes.len()].copy_from_slice(bytes);
        Segment {
            buffer,
            start: 256,
            length: bytes.len() as u32,
        }
    }

    fn arrival(umem: &mut Umem, parts: &[&[u8]]) -> Arrival {
        Arrival {
            port: 0,
            origin: 0,
            head: segment(umem, parts[0]),
            rest: parts[1..].iter().map(|part| segment(umem, part)).collect(),
        }
    }

    #[test]
    fn a_long_packet_is_gathered_and_its_rewritten_head_put_back() {
        let mut umem = Umem::new(4, 2048).unwrap();
        let mut packet = arrival(&mut umem, &[b"head ", b"middle ", b"tail"]);
        assert!(packet.is_chain());
        let mut whole = Vec::new();
        packet.gather(&mut whole);
        assert_eq!(whole, b"head middle tail");
        assert_eq!(packet.length(), whole.len());
        whole[..4].copy_from_slice(b"HEAD");
        packet.put_head_back(&whole);
        assert_eq!(packet.bytes(), b"HEAD ");
    }

    #[test]
    fn padding_is_taken_off_a_packet_wherever_it_is_cut_into_frames_and_no_frame_is_lost() {
        for length in 1..=15 {
            let mut umem = Umem::new(4, 2048).unwrap();
            let mut packet = arrival(&mut umem, &[b"head ", b"middle ", b"pad"]);
            packet.cut(length, &mut umem);
            let mut whole = Vec::new();
            packet.gather(&mut whole);
            assert_eq!(whole, b"head middle pad"[..length]);
            let frames = 1 + packet.rest.len();
            assert_eq!((umem.held(), umem.free()), (frames, 4 - frames), "{length}");
            assert!(packet.rest.iter().all(|segment| segment.length > 0));
        }
    }

    #[test]
    fn a_checksum_is_finished_over_all_frames_of_a_packet_wherever_it_is_cut() {
        let mut umem = Umem::new(64, 2048).unwrap();
        let whole: Vec<u8> = (0..101).map(|number: u8| number.wrapping_mul(37)).collect();
        let expected = checksum::finish(checksum::add(0, &whole[14..])).to_be_bytes();
        for (first, second) in [(101, 101), (31, 60), (40, 61), (33, 66), (50, 51)] {
            let parts = [&whole[..first], &whole[first..second], &whole[second..]];
            let used = if first == 101 { &parts[..1] } else { &parts[..] };
            let mut packet = arrival(&mut umem, used);
            packet.finish_checksum(14, 6);
            assert_eq!(packet.bytes()[20..22], expected, "cut at {first} and {second}");
        }
    }
}
