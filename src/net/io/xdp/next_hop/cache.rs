//! A worker's own memory of ways: a hit takes no lock.
use std::time::Duration;

use super::{NextHops, Way};
use lbd_core::flow::Address;
use lbd_core::time::Instant;

/// A power of two.
const SLOTS: usize = 4096;

/// How long an answer is kept. Afterwards it is asked for again, which marks its neighbour as used.
const KEPT: Duration = Duration::from_secs(1);

/// Of the flow hash, the top bits choose among several paths: 64 shares.
const BUCKET_BITS: u32 = 6;

#[derive(Clone, Copy, Debug)]
enum Answer {
    /// The same for all flows.
    One(Way),
    /// The slots of this destination's buckets have the answers.
    Spread,
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    destination: Address,
    /// None: for all flows.
    bucket: Option<u8>,
    /// 0: empty. Those of [`NextHops`] start at 1.
    generation: u64,
    until: Instant,
    answer: Answer,
}

/// The latest answers of [`NextHops`], one place for each few destinations.
#[derive(Debug)]
pub struct Cache {
    slots: Box<[Slot]>,
    seed: u64,
}

impl Cache {
    /// An empty cache; `seed` should be random, so that strangers cannot choose addresses that share a place.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let empty = Slot {
            destination: Address::v4(0),
            bucket: None,
            generation: 0,
            until: Instant::ZERO,
            answer: Answer::Spread,
        };
        Self {
            slots: vec![empty; SLOTS].into_boxed_slice(),
            seed,
        }
    }

    /// Like [`NextHops::find`], at most a second old, never older than the last change.
    pub fn find(&mut self, hops: &NextHops, destination: impl Into<Address>, flow_hash: u32, now: Instant) -> Way {
        let destination = destination.into();
        let generation = hops.generation();
        match self.kept(destination, None, generation, now) {
            Some(Answer::One(way)) => way,
            Some(Answer::Spread) => self.find_of_several(hops, destination, flow_hash, now),
            None => self.ask(hops, destination, flow_hash, now),
        }
    }

    fn find_of_several(&mut self, hops: &NextHops, destination: Address, flow_hash: u32, now: Instant) -> Way {
        match self.kept(destination, Some(bucket(flow_hash)), hops.generation(), now) {
            Some(Answer::One(way)) => way,
            Some(Answer::Spread) | None => self.ask(hops, destination, flow_hash, now),
        }
    }

    fn ask(&mut self, hops: &NextHops, destination: Address, flow_hash: u32, now: Instant) -> Way {
        let generation = hops.generation();
        let bucket = bucket(flow_hash);
        // All flows of a bucket go the same way, whichever asked first.
        let found = hops.look(destination.into(), u32::from(bucket) << (32 - BUCKET_BITS));
        let slot = |bucket, answer| Slot {
            destination,
            bucket,
            generation,
            until: now + KEPT,
            answer,
        };
        if found.spread {
            self.keep(slot(None, Answer::Spread));
            self.keep(slot(Some(bucket), Answer::One(found.way)));
        } else {
            self.keep(slot(None, Answer::One(found.way)));
        }
        found.way
    }

    fn kept(&self, destination: Address, bucket: Option<u8>, generation: u64, now: Instant) -> Option<Answer> {
        let slot = &self.slots[self.place(destination, bucket)];
        let valid = slot.generation == generation
            && slot.destination == destination
            && slot.bucket == bucket
            && now < slot.until;
        valid.then_some(slot.answer)
    }

    fn keep(&mut self, slot: Slot) {
        let place = self.place(slot.destination, slot.bucket);
        self.slots[place] = slot;
    }

    fn place(&self, destination: Address, bucket: Option<u8>) -> usize {
        let bucket = bucket.map_or(0, |bucket| u64::from(bucket) + 1);
        let [high, low] = destination.halves();
        let mixed = mix(mix(low ^ self.seed, 0x9e37_79b9_7f4a_7c15) ^ high, self.seed | 1);
        (mix(mixed ^ bucket, 0xd6e8_feb8_6659_fd93) >> 32) as usize % SLOTS
    }
}

/// Folded multiplication, as ahash and wyhash mix.
const fn mix(left: u64, right: u64) -> u64 {
    let product = (left as u128).wrapping_mul(right as u128);
    (product as u64) ^ ((product >> 64) as u64)
}

const fn bucket(flow_hash: u32) -> u8 {
    (flow_hash >> (32 - BUCKET_BITS)) as u8
}
