//! A ring between this process and the kernel, in memory that both see: one side produces, the other consumes.
//!
//! Both indices only ever grow, modulo 2^32; an entry's place is its index modulo the size. The producer writes entries
//! and then the index (release), the consumer reads the index (acquire) and then entries, and hands places back the same
//! way (Documentation/networking/af_xdp.rst "Rings"; net/xdp/xsk_queue.h has the table of barriers). Each side keeps
//! what it last saw of the other one's index, and looks again only when that does not suffice.
#![expect(unsafe_code, reason = "the memory of a ring is shared with the kernel")]

use std::io;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering, fence};

use super::sys::{self, Mapping};

/// An entry of the receive and send rings.
pub(super) type Descriptor = libc::xdp_desc;

/// What rings hold.
///
/// # Safety
/// Every pattern of bits must be a valid value, as the kernel wrote it.
pub(super) unsafe trait Entry: Copy {}

// SAFETY: an integer.
unsafe impl Entry for u64 {}
// SAFETY: three integers, without padding.
unsafe impl Entry for Descriptor {}

/// Where in a mapping the parts of a ring are, in bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layout {
    pub(super) producer: usize,
    pub(super) consumer: usize,
    pub(super) flags: usize,
    pub(super) entries: usize,
    /// How many, a power of two.
    pub(super) size: u32,
}

impl Layout {
    pub(super) const fn new(offsets: &libc::xdp_ring_offset, size: u32) -> Self {
        Self {
            producer: offsets.producer as usize,
            consumer: offsets.consumer as usize,
            flags: offsets.flags as usize,
            entries: offsets.desc as usize,
            size,
        }
    }

    /// Bytes from the start of the mapping to the end of the last entry.
    pub(super) const fn length<T>(&self) -> usize {
        self.entries + self.size as usize * size_of::<T>()
    }
}

/// What both ends have. The pointers stay valid as long as the memory is kept.
#[derive(Debug)]
struct Shared<T> {
    producer: NonNull<AtomicU32>,
    consumer: NonNull<AtomicU32>,
    flags: NonNull<AtomicU32>,
    entries: NonNull<T>,
    size: u32,
    _memory: Arc<Mapping>,
}

// SAFETY: the pointers lead to memory that is kept, and a ring's end is used by one thread at a time.
unsafe impl<T: Send> Send for Shared<T> {}

impl<T: Entry> Shared<T> {
    fn new(memory: Arc<Mapping>, layout: &Layout) -> io::Result<Self> {
        let fits = |offset: usize, length: usize, align: usize| {
            offset.is_multiple_of(align) && offset.checked_add(length).is_some_and(|end| end <= memory.length())
        };
        let indices = [layout.producer, layout.consumer, layout.flags];
        let entries = layout.size as usize * size_of::<T>();
        let valid = layout.size.is_power_of_two()
            && indices.iter().all(|&index| fits(index, 4, 4))
            && fits(layout.entries, entries, align_of::<T>());
        if !valid {
            return Err(io::ErrorKind::InvalidData.into());
        }
        // SAFETY: checked above: each offset lies within the mapping, whose start is aligned to a page.
        let [producer, consumer, flags] = indices.map(|index| unsafe { memory.start().add(index).cast() });
        // SAFETY: the same.
        let entries = unsafe { memory.start().add(layout.entries).cast() };
        Ok(Self {
            producer,
            consumer,
            flags,
            entries,
            size: layout.size,
            _memory: memory,
        })
    }

    fn producer(&self) -> &AtomicU32 {
        // SAFETY: aligned, within the mapping that is kept, and only accessed as an atomic.
        unsafe { self.producer.as_ref() }
    }

    fn consumer(&self) -> &AtomicU32 {
        // SAFETY: as above.
        unsafe { self.consumer.as_ref() }
    }

    fn flags(&self) -> &AtomicU32 {
        // SAFETY: as above.
        unsafe { self.flags.as_ref() }
    }

    fn place(&self, index: u32) -> NonNull<T> {
        // SAFETY: the index modulo the size is within the entries.
        unsafe { self.entries.add((index & (self.size - 1)) as usize) }
    }
}

/// The end that writes: of the fill and the send ring.
#[derive(Debug)]
pub(super) struct Producer<T> {
    shared: Shared<T>,
    /// The next entry to write.
    next: u32,
    /// Up to where the consumer may read.
    published: u32,
    /// Up to where the consumer is known to have read.
    consumed: u32,
}

impl<T: Entry> Producer<T> {
    /// # Safety
    /// There is no other producer of this ring, and whoever consumes keeps to the protocol.
    pub(super) unsafe fn new(memory: Arc<Mapping>, layout: &Layout) -> io::Result<Self> {
        let shared = Shared::new(memory, layout)?;
        let next = shared.producer().load(Ordering::Relaxed);
        let consumed = shared.consumer().load(Ordering::Acquire);
        Ok(Self {
            shared,
            next,
            published: next,
            consumed,
        })
    }

    /// Places free, exactly if fewer than `wanted`.
    pub(super) fn room(&mut self, wanted: u32) -> u32 {
        if self.known_room() < wanted {
            self.consumed = self.shared.consumer().load(Ordering::Acquire);
        }
        self.known_room()
    }

    const fn known_room(&self) -> u32 {
        self.shared.size.saturating_sub(self.next.wrapping_sub(self.consumed))
    }

    /// Writes an entry, which the consumer does not see before [`Self::publish`]; false when the ring is full.
    pub(super) fn push(&mut self, entry: T) -> bool {
        if self.room(1) == 0 {
            return false;
        }
        // SAFETY: the place is free: the consumer has read it, and reads it again only once it is published.
        unsafe { self.shared.place(self.next).write(entry) };
        self.next = self.next.wrapping_add(1);
        true
    }

    /// Shows the consumer all that was written.
    pub(super) fn publish(&mut self) {
        if self.published != self.next {
            self.shared.producer().store(self.next, Ordering::Release);
            self.published = self.next;
        }
    }

    /// Published entries that the consumer has not read yet.
    pub(super) fn unread(&mut self) -> u32 {
        self.consumed = self.shared.consumer().load(Ordering::Acquire);
        self.published.wrapping_sub(self.consumed)
    }

    /// Whether the consumer sleeps and wants to be told of what is published.
    pub(super) fn needs_wakeup(&self) -> bool {
        // The index must be visible before the flag is read: a consumer sets the flag, then looks once more.
        fence(Ordering::SeqCst);
        self.shared.flags().load(Ordering::Relaxed) & sys::NEED_WAKEUP != 0
    }
}

/// The end that reads: of the receive and the completion ring.
#[derive(Debug)]
pub(super) struct Consumer<T> {
    shared: Shared<T>,
    /// The next entry to read.
    next: u32,
    /// Up to where places were handed back.
    released: u32,
    /// Up to where the producer is known to have written.
    produced: u32,
}

impl<T: Entry> Consumer<T> {
    /// # Safety
    /// There is no other consumer of this ring, and whoever produces keeps to the protocol.
    pub(super) unsafe fn new(memory: Arc<Mapping>, layout: &Layout) -> io::Result<Self> {
        let shared = Shared::new(memory, layout)?;
        let next = shared.consumer().load(Ordering::Relaxed);
        let produced = shared.producer().load(Ordering::Acquire);
        Ok(Self {
            shared,
            next,
            released: next,
            produced,
        })
    }

    /// The next entry, if there is one. Its place is the producer's again after [`Self::release`].
    pub(super) fn pop(&mut self) -> Option<T> {
        if self.is_empty() {
            return None;
        }
        // SAFETY: the producer has written this place, and writes it again only once it is released.
        let entry = unsafe { self.shared.place(self.next).read() };
        self.next = self.next.wrapping_add(1);
        Some(entry)
    }

    /// Whether there is nothing to read.
    pub(super) fn is_empty(&mut self) -> bool {
        if self.next == self.produced {
            self.produced = self.shared.producer().load(Ordering::Acquire);
        }
        self.next == self.produced
    }

    /// Hands the places of all that was read back to the producer.
    pub(super) fn release(&mut self) {
        if self.released != self.next {
            self.shared.consumer().store(self.next, Ordering::Release);
            self.released = self.next;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAYOUT: Layout = Layout {
        producer: 0,
        consumer: 64,
        flags: 128,
        entries: 192,
        size: 8,
    };

    /// Both ends of a ring in plain memory, whose indices start at `index`.
    fn ring(index: u32) -> (Producer<u64>, Consumer<u64>) {
        let memory = Arc::new(Mapping::anonymous(4096).unwrap());
        let shared: Shared<u64> = Shared::new(Arc::clone(&memory), &LAYOUT).unwrap();
        shared.producer().store(index, Ordering::Relaxed);
        shared.consumer().store(index, Ordering::Relaxed);
        // SAFETY: one end each, both of this module.
        unsafe {
            (
                Producer::new(Arc::clone(&memory), &LAYOUT).unwrap(),
                Consumer::new(memory, &LAYOUT).unwrap(),
            )
        }
    }

    #[test]
    fn what_is_written_is_read_in_order_once_it_is_published() {
        let (mut producer, mut consumer) = ring(0);
        assert!(producer.push(7) && producer.push(8));
        assert_eq!(consumer.pop(), None, "not published");
        producer.publish();
        assert_eq!(producer.unread(), 2);
        assert_eq!(
            [consumer.pop(), consumer.pop(), consumer.pop()],
            [Some(7), Some(8), None]
        );
        assert_eq!(producer.unread(), 2, "not released");
        consumer.release();
        assert_eq!(producer.unread(), 0);
    }

    #[test]
    fn a_full_ring_takes_nothing_more_until_places_are_released() {
        let (mut producer, mut consumer) = ring(0);
        assert_eq!(producer.room(1), 8);
        assert!((0..8).all(|entry| producer.push(entry)));
        assert!(!producer.push(8));
        producer.publish();
        assert_eq!(consumer.pop(), Some(0));
        assert!(!producer.push(8), "read, but not released");
        consumer.release();
        assert_eq!(producer.room(8), 1);
        assert!(producer.push(8));
        assert!(!producer.push(9));
        producer.publish();
        let rest: Vec<u64> = std::iter::from_fn(|| consumer.pop()).collect();
        assert_eq!(rest, (1..=8).collect::<Vec<_>>());
    }

    #[test]
    fn indices_wrap_around_at_the_end_of_their_32_bits() {
        let (mut producer, mut consumer) = ring(u32::MAX - 10);
        let mut expected = 0_u64;
        for round in 0..10 {
            let first = round * 5;
            assert!(producer.room(5) >= 5);
            assert!((first..first + 5).all(|entry| producer.push(entry)));
            producer.publish();
            while let Some(entry) = consumer.pop() {
                assert_eq!(entry, expected);
                expected += 1;
            }
            consumer.release();
            assert_eq!(producer.unread(), 0);
        }
        assert_eq!(expected, 50);
    }

    #[test]
    fn no_more_is_ever_given_out_than_fits_whatever_the_rhythm() {
        let mut random = fastrand::Rng::with_seed(3);
        let (mut producer, mut consumer) = ring(u32::MAX - 500);
        let (mut written, mut read) = (0_u64, 0_u64);
        for _ in 0..2_000 {
            for _ in 0..random.u32(0..12) {
                written += u64::from(producer.push(written));
            }
            assert!(written - read <= 8 + 8);
            if random.bool() {
                producer.publish();
            }
            for _ in 0..random.u32(0..12) {
                let Some(entry) = consumer.pop() else { break };
                assert_eq!(entry, read);
                read += 1;
            }
            if random.bool() {
                consumer.release();
            }
            assert!(written - read <= 8);
        }
        assert!(read > 1_000, "{read}");
    }

    #[test]
    fn both_ends_work_at_the_same_time() {
        let (mut producer, mut consumer) = ring(u32::MAX - 1_000);
        let writer = std::thread::spawn(move || {
            let mut next = 0;
            while next < 20_000 {
                next += u64::from(producer.push(next));
                producer.publish();
                std::thread::yield_now();
            }
        });
        let mut expected = 0;
        while expected < 20_000 {
            match consumer.pop() {
                Some(entry) => {
                    assert_eq!(entry, expected);
                    expected += 1;
                }
                None => std::thread::yield_now(),
            }
            consumer.release();
        }
        writer.join().unwrap();
    }

    #[test]
    fn the_flag_tells_whether_the_consumer_sleeps() {
        let (producer, _consumer) = ring(0);
        assert!(!producer.needs_wakeup());
        producer.shared.flags().store(sys::NEED_WAKEUP, Ordering::Relaxed);
        assert!(producer.needs_wakeup());
    }

    #[test]
    fn a_ring_that_does_not_lie_within_its_memory_is_refused() {
        let refused = |layout: Layout| {
            let memory = Arc::new(Mapping::anonymous(4096).unwrap());
            // SAFETY: there is no other end.
            unsafe { Producer::<u64>::new(memory, &layout) }.is_err()
        };
        assert!(!refused(LAYOUT));
        assert!(refused(Layout { size: 1024, ..LAYOUT }));
        assert!(refused(Layout { size: 6, ..LAYOUT }));
        assert!(refused(Layout {
            producer: 4095,
            ..LAYOUT
        }));
        assert!(refused(Layout { entries: 4, ..LAYOUT }));
        assert!(refused(Layout { flags: 4096, ..LAYOUT }));
    }
}
