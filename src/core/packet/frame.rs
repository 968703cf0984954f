//! The buffer that a packet lives in from reception to sending.
use std::fmt;

/// How far the transport checksum of a packet is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Checksum {
    /// As it will be on the wire.
    #[default]
    Complete,
    /// The field holds the folded sum of the pseudo-header, not complemented; the device completes it
    /// (`VIRTIO_NET_HDR_F_NEEDS_CSUM`, virtio 1.2 section 5.1.6.2). Super-packets are always like this.
    Partial {
        /// Offset of the unfinished transport header. In a tunnelled packet it is an inner one's, and the outer checksum
        /// is complete.
        start: usize,
        /// Offset of the checksum field in that header.
        offset: u16,
    },
    /// One of the two: the device does not tell. Packets of a local sender come through AF_XDP on a veth device with the
    /// field as in [`Self::Partial`], and nothing that says so.
    Unsure,
}

/// What is done with a frame once the engine has seen it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fate {
    /// Send what the buffer holds.
    #[default]
    Send,
    /// Give it back, as it came, to whom it would have gone without lbd.
    Pass,
    /// Give it back to the host, which has sent it, as something that it sends: it is about none of lbd's flows.
    Return,
    /// Forget it.
    Discard,
}

/// A received IP packet in a borrowed buffer, with room before it for a link header that the engine never sees
/// and room behind it for an answer longer than the packet.
pub struct Frame<'a> {
    storage: &'a mut [u8],
    start: usize,
    end: usize,
    is_answer: bool,
    /// Whether the packet has opened a flow: what was known of packets with its tuple, or that of the answer to it, no longer
    /// counts.
    pub opens_flow: bool,
    /// Whether it is an ICMP error that this host itself has made about a packet that is none of lbd's.
    pub is_own_error: bool,
    is_finished: bool,
    /// Whether the link carried it to many: its link-layer destination is a broadcast or multicast address.
    pub to_group: bool,
    /// State of the transport checksum; an answer made by the engine is always complete.
    pub checksum: Checksum,
    /// What becomes of the frame; set by whoever acts on the verdict.
    pub fate: Fate,
}

impl fmt::Debug for Frame<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Frame")
            .field("len", &self.len())
            .field("checksum", &self.checksum)
            .finish_non_exhaustive()
    }
}

impl<'a> Frame<'a> {
    /// The IP packet at `storage[start..end]`.
    ///
    /// # Panics
    /// If the range does not lie within `storage`.
    #[must_use]
    pub fn new(storage: &'a mut [u8], start: usize, end: usize, checksum: Checksum) -> Self {
        assert!(start <= end && end <= storage.len(), "a frame lies within its storage");
        Self {
            storage,
            start,
            end,
            is_answer: false,
            opens_flow: false,
            is_own_error: false,
            is_finished: false,
            to_group: false,
            checksum,
            fate: Fate::Send,
        }
    }

    /// The IP packet.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.storage[self.start..self.end]
    }

    /// The IP packet, to be rewritten.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.storage[self.start..self.end]
    }

    /// Length of the IP packet.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.end - self.start
    }

    /// Whether nothing was received.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.end == self.start
    }

    /// The longest packet that fits.
    #[must_use]
    pub const fn capacity(&self) -> usize {
        self.storage.len() - self.start
    }

    /// The packet with the `length` bytes before it; they are zero where they do not fit it any more: for an answer
    /// made by the engine, and after [`Self::finish`].
    ///
    /// # Panics
    /// If there are fewer bytes before the packet.
    pub fn with_header(&mut self, length: usize) -> &[u8] {
        if self.is_answer || self.is_finished {
            self.storage[self.start - length..self.start].fill(0);
        }
        &self.storage[self.start - length..self.end]
    }

    /// Whether the packet was made by the engine, see [`Self::replace`], and not received.
    #[must_use]
    pub const fn is_answer(&self) -> bool {
        self.is_answer
    }

    /// Where the IP packet is in its buffer.
    #[must_use]
    pub const fn range(&self) -> std::ops::Range<usize> {
        self.start..self.end
    }

    /// Takes note that lbd itself has finished the checksum: nobody else is to.
    pub const fn finish(&mut self) {
        self.is_finished = true;
        self.checksum = Checksum::Complete;
    }

    /// Replaces the packet by `answer`, whose checksums are complete; cut to what fits.
    pub fn replace(&mut self, answer: &[u8]) {
        let len = answer.len().min(self.capacity());
        self.end = self.start + len;
        self.is_answer = true;
        self.checksum = Checksum::Complete;
        self.bytes_mut().copy_from_slice(&answer[..len]);
    }

    /// The packet was turned into the answer to itself where it lies, and is `length` bytes long now; its checksums are
    /// complete.
    ///
    /// # Panics
    /// If it has no room.
    pub(super) fn turned(&mut self, length: usize) {
        assert!(length <= self.capacity(), "an answer lies within its storage");
        self.end = self.start + length;
        self.is_answer = true;
        self.checksum = Checksum::Complete;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_packet_came_with_goes_with_it_unless_lbd_has_finished_its_checksum() {
        let unfinished = Checksum::Partial { start: 0, offset: 1 };
        let mut storage = *b"headpacket";
        let mut frame = Frame::new(&mut storage, 4, 10, unfinished);
        assert_eq!(frame.with_header(4), b"headpacket");
        frame.finish();
        assert_eq!(frame.checksum, Checksum::Complete);
        assert_eq!(frame.with_header(4), b"\0\0\0\0packet");
        assert!(!frame.is_answer());
    }
}
