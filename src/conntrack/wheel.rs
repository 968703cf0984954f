//! When to look at a flow again: a timer wheel that is only told of deadlines that come nearer.
//!
//! A packet of a known flow moves the flow's deadline away, and touches nothing here. When the wheel reaches a flow
//! whose deadline has moved on, it is put where the deadline is now: one visit a timeout, not one a packet.
use crate::time::Instant;

/// 2^27 ns, 134 ms: how late a flow may be forgotten. (The kernel's timers are up to 12.5 % late, kernel/time/timer.c.)
const TICK_BITS: u32 = 27;
const BUCKETS: u64 = 512;

/// A point in time as the wheel counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Tick(u64);

impl Tick {
    /// The first tick at which `deadline` is surely over.
    #[must_use]
    pub const fn after(deadline: Instant) -> Self {
        Self((deadline.as_nanos() >> TICK_BITS) + 1)
    }

    /// The tick that `now` is in.
    #[must_use]
    pub const fn at(now: Instant) -> Self {
        Self(now.as_nanos() >> TICK_BITS)
    }
}

/// Slot numbers by the tick at which they are due.
#[derive(Debug)]
pub struct Wheel {
    /// Every tick up to this one was handled.
    now: Tick,
    /// One bucket a tick.
    near: Box<[Vec<u32>]>,
    /// One bucket per [`BUCKETS`] ticks (69 s); what is farther away than all of them (9.8 h) waits in the last one.
    far: Box<[Vec<u32>]>,
}

fn buckets() -> Box<[Vec<u32>]> {
    (0..BUCKETS).map(|_| Vec::new()).collect()
}

impl Wheel {
    /// An empty wheel at `now`.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self {
            now: Tick::at(now),
            near: buckets(),
            far: buckets(),
        }
    }

    /// Has `slot` visited at `due`, or soon where that is over.
    pub fn arm(&mut self, slot: u32, due: Tick) {
        let due = due.0.max(self.now.0 + 1);
        let turn = due / BUCKETS;
        let turns_away = turn - self.now.0 / BUCKETS;
        if turns_away == 0 {
            self.near[(due % BUCKETS) as usize].push(slot);
        } else {
            let turn = turn.min(self.now.0 / BUCKETS + BUCKETS - 1);
            self.far[(turn % BUCKETS) as usize].push(slot);
        }
    }

    /// The slots of the next tick that is over by `now`, with that tick; None when there is no such tick.
    ///
    /// Call until None. A slot may come early or twice: its own deadline decides.
    pub fn advance(&mut self, now: Instant) -> Option<(Tick, Vec<u32>)> {
        if self.now >= Tick::at(now) {
            return None;
        }
        if Tick::at(now).0 - self.now.0 > BUCKETS * BUCKETS {
            return Some(self.jump(now));
        }
        self.now.0 += 1;
        if self.now.0.is_multiple_of(BUCKETS) {
            let turn = (self.now.0 / BUCKETS) % BUCKETS;
            let mut slots = std::mem::take(&mut self.far[turn as usize]);
            slots.append(&mut self.near[0]);
            return Some((self.now, slots));
        }
        let bucket = &mut self.near[(self.now.0 % BUCKETS) as usize];
        Some((self.now, std::mem::take(bucket)))
    }

    /// After a leap over the whole wheel, as between two packets of a capture, every slot is due for a look.
    fn jump(&mut self, now: Instant) -> (Tick, Vec<u32>) {
        self.now = Tick::at(now);
        let all = self.near.iter_mut().chain(&mut self.far);
        (self.now, all.flat_map(std::mem::take).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::Duration;

    proptest! {
        #[test]
        fn every_slot_is_visited_by_its_deadline_and_a_tick(deadlines in prop::collection::vec(0u64..200_000, 1..40), step in 1u64..5_000_000) {
            let start = Instant::from_nanos(123_456_789_000);
            let mut wheel = Wheel::new(start);
            let deadlines: Vec<Instant> = deadlines.iter().map(|&ms| start + Duration::from_millis(ms)).collect();
            for (slot, &deadline) in deadlines.iter().enumerate() {
                wheel.arm(slot as u32, Tick::after(deadline));
            }
            let mut left = deadlines.len();
            let mut now = start;
            while left > 0 {
                now = now + Duration::from_millis(step.min(60_000));
                while let Some((tick, slots)) = wheel.advance(now) {
                    for slot in slots {
                        let due = Tick::after(deadlines[slot as usize]);
                        if due > tick {
                            wheel.arm(slot, due);
                        } else {
                            prop_assert_eq!(due.max(Tick::at(start)), due);
                            prop_assert_eq!(tick, due);
                            left -= 1;
                        }
                    }
                }
                prop_assert!(now.saturating_since(start) < Duration::from_secs(4000));
            }
        }
    }
}
