//! The frames of a worker: one stretch of memory, cut into equal pieces, and who owns each of them.
//!
//! A frame is owned by exactly one of: the free list, a [`Buffer`] in somebody's hands, or the kernel, through a ring.
//! Buffers cannot be copied, so views into different ones never overlap, and the kernel touches only what is its.
#![expect(unsafe_code, reason = "frames are memory that is shared with the kernel")]

use std::io;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::sync::Arc;

use super::sys::{self, Mapping};

/// Bytes before a received packet: `XDP_PACKET_HEADROOM` of include/uapi/linux/bpf.h.
pub const HEADROOM: usize = 256;
/// Ethernet header and two VLAN tags.
const LINK_HEADER: usize = 14 + 2 * 4;
/// `XDP_UMEM_MIN_CHUNK_SIZE` of include/net/xdp_sock.h, and a page, which is the most.
const SMALL: u32 = 2048;
const LARGE: u32 = 4096;

/// How large frames are for interfaces of these MTUs.
pub(super) fn frame_size(mtus: impl Iterator<Item = u32>) -> u32 {
    let largest = mtus.max().unwrap_or(0);
    if fits(largest, SMALL) { SMALL } else { LARGE }
}

/// Whether a packet of this MTU fits into one frame.
pub(super) const fn fits(mtu: u32, frame_size: u32) -> bool {
    HEADROOM + LINK_HEADER + mtu as usize <= frame_size as usize
}

/// The right to one frame. Dropping it instead of handing it back loses the frame for good.
#[derive(Debug)]
#[must_use = "a frame that is not handed back is lost"]
pub(super) struct Buffer {
    start: NonNull<u8>,
    length: u32,
}

// SAFETY: a buffer is the only way to its memory, as a Box is.
unsafe impl Send for Buffer {}
// SAFETY: a shared reference only reads.
unsafe impl Sync for Buffer {}

impl Buffer {
    pub(super) const fn bytes(&self) -> &[u8] {
        // SAFETY: the frame is initialised memory, mapped for as long as a buffer of it is out (Umem::drop), and this
        // buffer is the only one of its frame, which the kernel does not have.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.length as usize) }
    }

    pub(super) const fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above; the exclusive reference to the only buffer makes the slice exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.length as usize) }
    }
}

/// All frames of a worker.
#[derive(Debug)]
pub(super) struct Umem {
    memory: Arc<Mapping>,
    frame_size: u32,
    /// The last one handed back is taken first: it may still be in the cache.
    free: Vec<Buffer>,
    /// Which frames the kernel has. A frame that comes back from it twice makes no second buffer.
    lent: Box<[bool]>,
    /// Buffers in somebody's hands.
    held: usize,
}

impl Umem {
    pub(super) fn new(frames: usize, frame_size: u32) -> io::Result<Self> {
        let memory = Mapping::anonymous(frames * frame_size as usize)?;
        let mut umem = Self {
            memory: Arc::new(memory),
            frame_size,
            free: Vec::with_capacity(frames),
            lent: vec![false; frames].into_boxed_slice(),
            held: 0,
        };
        let all = (0..frames).rev().map(|index| umem.buffer(index)).collect();
        umem.free = all;
        Ok(umem)
    }

    /// The buffer of a frame that has none; every call of it is by whoever made sure of that.
    fn buffer(&self, index: usize) -> Buffer {
        assert!(index < self.lent.len(), "a frame within the memory");
        Buffer {
            // SAFETY: the frame lies within the mapping.
            start: unsafe { self.memory.start().add(index * self.frame_size as usize) },
            length: self.frame_size,
        }
    }

    /// Lets the kernel have these frames, for this socket and those that share with it.
    pub(super) fn register(&self, socket: BorrowedFd<'_>, metadata: u32) -> io::Result<()> {
        sys::register(socket, &self.memory, self.frame_size, metadata)
    }

    pub(super) const fn total(&self) -> usize {
        self.lent.len()
    }

    pub(super) const fn free(&self) -> usize {
        self.free.len()
    }

    pub(super) const fn held(&self) -> usize {
        self.held
    }

    pub(super) fn take(&mut self) -> Option<Buffer> {
        let buffer = self.free.pop()?;
        self.held += 1;
        Some(buffer)
    }

    pub(super) fn give_back(&mut self, buffer: Buffer) {
        if self.index(&buffer).is_some() {
            self.held -= 1;
            self.free.push(buffer);
        }
    }

    /// The number of a buffer's frame; none if it is another memory's, which then never gets it back and stays mapped.
    fn index(&self, buffer: &Buffer) -> Option<usize> {
        let offset = buffer
            .start
            .addr()
            .get()
            .checked_sub(self.memory.start().addr().get())?;
        let index = offset / self.frame_size as usize;
        debug_assert!(
            index < self.total(),
            "a buffer is handed back to the bundle that it is of"
        );
        (index < self.total()).then_some(index)
    }

    /// The kernel's from now on: the address of the byte at `offset` of the frame, as rings have it.
    pub(super) fn lend(&mut self, buffer: Buffer, offset: usize) -> Option<u64> {
        let index = self.index(&buffer)?;
        self.held -= 1;
        Some(self.lend_frame(index) + offset as u64)
    }

    /// A free frame becomes the kernel's.
    pub(super) fn lend_free(&mut self) -> Option<u64> {
        let buffer = self.free.pop()?;
        let index = self.index(&buffer)?;
        Some(self.lend_frame(index))
    }

    fn lend_frame(&mut self, index: usize) -> u64 {
        self.lent[index] = true;
        index as u64 * u64::from(self.frame_size)
    }

    /// The frame that the kernel gives back by this address, and how far into it the address points.
    pub(super) fn reclaim(&mut self, address: u64) -> Option<(Buffer, usize)> {
        let buffer = self.regain(address)?;
        self.held += 1;
        Some((buffer, (address % u64::from(self.frame_size)) as usize))
    }

    /// The kernel is done with the frame: it is free. False if the kernel did not have it.
    pub(super) fn free_again(&mut self, address: u64) -> bool {
        let buffer = self.regain(address);
        let is_ours = buffer.is_some();
        self.free.extend(buffer);
        is_ours
    }

    fn regain(&mut self, address: u64) -> Option<Buffer> {
        let index = usize::try_from(address / u64::from(self.frame_size)).ok()?;
        let lent = self.lent.get_mut(index).is_some_and(std::mem::take);
        debug_assert!(lent, "the kernel gives back what it has: {address:#x}");
        lent.then(|| self.buffer(index))
    }
}

impl Drop for Umem {
    fn drop(&mut self) {
        if self.held > 0 {
            // Somebody still has buffers: what they lead to must stay.
            std::mem::forget(Arc::clone(&self.memory));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_small_as_long_as_every_interface_fits() {
        assert_eq!(frame_size([1500, 1400].into_iter()), 2048);
        assert_eq!(frame_size([1500, 9000].into_iter()), 4096);
        assert!(fits(1500, 2048) && !fits(1800, 2048));
        assert!(fits(1800, 4096) && !fits(9000, 4096));
    }

    #[test]
    fn each_frame_is_handed_out_once() {
        let mut umem = Umem::new(4, 2048).unwrap();
        let mut buffers: Vec<Buffer> = std::iter::from_fn(|| umem.take()).collect();
        assert_eq!((buffers.len(), umem.free(), umem.held()), (4, 0, 4));
        for (number, buffer) in buffers.iter_mut().enumerate() {
            buffer.bytes_mut().fill(number as u8);
        }
        for (number, buffer) in buffers.into_iter().enumerate() {
            assert!(buffer.bytes().iter().all(|&byte| byte == number as u8));
            umem.give_back(buffer);
        }
        assert_eq!((umem.free(), umem.held()), (4, 0));
    }

    #[test]
    fn the_frame_that_came_back_last_is_taken_first() {
        let mut umem = Umem::new(4, 2048).unwrap();
        let mut buffer = umem.take().unwrap();
        buffer.bytes_mut()[0] = 42;
        umem.give_back(buffer);
        let again = umem.take().unwrap();
        assert_eq!(again.bytes()[0], 42);
        umem.give_back(again);
    }

    #[test]
    fn a_packet_keeps_its_place_on_the_way_through_the_kernel() {
        let mut umem = Umem::new(4, 2048).unwrap();
        let mut buffer = umem.take().unwrap();
        buffer.bytes_mut()[300] = 42;
        let address = umem.lend(buffer, 300).unwrap();
        assert_eq!((umem.free(), umem.held()), (3, 0));
        let (buffer, offset) = umem.reclaim(address).unwrap();
        assert_eq!((offset, buffer.bytes()[offset]), (300, 42));
        umem.give_back(buffer);
    }

    #[test]
    #[cfg_attr(debug_assertions, should_panic(expected = "what it has"))]
    fn a_frame_that_the_kernel_gives_back_twice_stays_one() {
        let mut umem = Umem::new(4, 2048).unwrap();
        let address = umem.lend_free().unwrap();
        assert!(umem.free_again(address));
        assert!(!umem.free_again(address));
        assert_eq!(umem.free(), 4);
    }

    #[test]
    fn a_buffer_outlives_the_bundle_that_it_is_of() {
        let mut umem = Umem::new(2, 2048).unwrap();
        let mut buffer = umem.take().unwrap();
        drop(umem);
        buffer.bytes_mut()[7] = 1;
        assert_eq!(buffer.bytes()[7], 1);
    }
}
