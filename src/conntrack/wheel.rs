//! When to look at a flow again: a timer wheel that is only told of deadlines that come nearer.
//!
//! A packet of a known flow moves the flow's deadline away, and touches nothing here. When the wheel reaches a flow
//! whose deadline has moved on, it is put where the deadline is now: one visit a timeout, not one a packet.
use super::ages::{Ages, Link, Links};
use crate::time::Instant;

/// 2^27 ns, 134 ms: how late a flow may be forgotten. (The kernel's timers are up to 12.5 % late, kernel/time/timer.c.)
pub(super) const TICK_BITS: u32 = 27;
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

/// A [`Tick`] in half the room, good for comparing with others less than nine years away.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ShortTick(u32);

impl ShortTick {
    /// Whether `tick` comes before this one.
    #[must_use]
    #[inline]
    pub const fn is_after(self, tick: Tick) -> bool {
        (self.0.wrapping_sub(tick.0 as u32) as i32) > 0
    }

    /// The beginning of the last such tick that is not after `time`.
    #[must_use]
    pub const fn before(self, time: Instant) -> Instant {
        let tick = Tick::at(time).0;
        let ago = (tick as u32).wrapping_sub(self.0);
        Instant::from_nanos(tick.saturating_sub(ago as u64) << TICK_BITS)
    }
}

impl From<Tick> for ShortTick {
    fn from(tick: Tick) -> Self {
        Self(tick.0 as u32)
    }
}

/// A slot's place in the wheel.
#[derive(Clone, Copy, Debug, Default)]
pub struct Timer {
    link: Link,
    bucket: Option<u16>,
}

/// Gives access to the timer of a slot.
pub trait Timers {
    /// The timer of an occupied slot.
    fn timer(&mut self, slot: u32) -> &mut Timer;
}

/// A bucket's list is linked through the timers.
struct TimerLinks<'a, T>(&'a mut T);

impl<T: Timers> Links for TimerLinks<'_, T> {
    fn link(&mut self, slot: u32) -> &mut Link {
        &mut self.0.timer(slot).link
    }
}

/// Slots by the tick at which they are due, each in one bucket at most: flows that end before their time, as under a
/// flood, leave nothing behind.
#[derive(Debug)]
pub struct Wheel {
    /// Every tick up to this one was handled.
    now: Tick,
    /// How many slots are in a bucket.
    armed: usize,
    /// First one bucket a tick; then one per [`BUCKETS`] ticks (69 s), and what is farther away than all of them (9.8 h)
    /// waits in the last one.
    buckets: Box<[Ages]>,
}

const fn near(tick: u64) -> u16 {
    (tick % BUCKETS) as u16
}

const fn far(turn: u64) -> u16 {
    (BUCKETS + turn % BUCKETS) as u16
}

impl Wheel {
    /// An empty wheel at `now`.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self {
            now: Tick::at(now),
            armed: 0,
            buckets: (0..2 * BUCKETS).map(|_| Ages::default()).collect(),
        }
    }

    /// Has `slot` visited at `due`, or soon where that is over, and no more at the time before.
    pub fn arm(&mut self, timers: &mut impl Timers, slot: u32, due: Tick) {
        self.disarm(timers, slot);
        let at = due.0.max(self.now.0 + 1);
        let (this_turn, turn) = (self.now.0 / BUCKETS, at / BUCKETS);
        let bucket = match turn == this_turn {
            true => near(at),
            false => far(turn.min(this_turn + BUCKETS - 1)),
        };
        timers.timer(slot).bucket = Some(bucket);
        self.buckets[usize::from(bucket)].push(&mut TimerLinks(timers), slot);
        self.armed += 1;
    }

    /// Has `slot` not visited.
    pub fn disarm(&mut self, timers: &mut impl Timers, slot: u32) {
        if let Some(bucket) = timers.timer(slot).bucket.take() {
            self.buckets[usize::from(bucket)].remove(&mut TimerLinks(timers), slot);
            self.armed -= 1;
        }
    }

    /// The slots of the next tick that is over by `now`, with that tick; None when there is no such tick.
    ///
    /// Call until None, and arm each slot again that is to be visited again. A slot may come early: its own deadline
    /// decides.
    pub fn advance(&mut self, timers: &mut impl Timers, now: Instant) -> Option<(Tick, Vec<u32>)> {
        if self.now >= Tick::at(now) {
            return None;
        }
        if self.armed == 0 {
            // As in a pause between packets of a capture: nobody is to be visited on the way.
            self.now = Tick::at(now);
            return None;
        }
        let mut slots = Vec::new();
        if Tick::at(now).0 - self.now.0 > BUCKETS * BUCKETS {
            // After a leap over the whole wheel, as between two packets of a capture, every slot is due for a look.
            self.now = Tick::at(now);
            (0..2 * BUCKETS as u16).for_each(|bucket| self.empty(timers, bucket, &mut slots));
            return Some((self.now, slots));
        }
        self.now.0 += 1;
        if self.now.0.is_multiple_of(BUCKETS) {
            self.empty(timers, far(self.now.0 / BUCKETS), &mut slots);
        }
        self.empty(timers, near(self.now.0), &mut slots);
        Some((self.now, slots))
    }

    /// How many visits are to come; they will not come then.
    #[cfg(test)]
    pub(super) fn waiting(&mut self, timers: &mut impl Timers) -> usize {
        let mut slots = Vec::new();
        (0..2 * BUCKETS as u16).for_each(|bucket| self.empty(timers, bucket, &mut slots));
        slots.len()
    }

    fn empty(&mut self, timers: &mut impl Timers, bucket: u16, slots: &mut Vec<u32>) {
        while let Some(slot) = self.buckets[usize::from(bucket)].oldest() {
            self.disarm(timers, slot);
            slots.push(slot);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::Duration;

    struct Array([Timer; 40]);

    impl Timers for Array {
        fn timer(&mut self, slot: u32) -> &mut Timer {
            &mut self.0[slot as usize]
        }
    }

    #[test]
    fn time_in_which_nobody_is_to_be_visited_takes_no_steps() {
        let start = Instant::from_nanos(123_456_789_000);
        let mut wheel = Wheel::new(start);
        let mut timers = Array([Timer::default(); 40]);
        let hour = start + Duration::from_secs(3_600);
        assert_eq!(wheel.advance(&mut timers, hour), None);
        let due = Tick::after(hour + Duration::from_secs(1));
        wheel.arm(&mut timers, 7, due);
        let mut steps = 0;
        let later = hour + Duration::from_secs(3_600);
        while let Some((tick, slots)) = wheel.advance(&mut timers, later) {
            steps += 1;
            slots.iter().for_each(|slot| assert_eq!((*slot, tick), (7, due)));
        }
        assert_eq!(steps, due.0 - Tick::at(hour).0, "none is left behind the last slot");
        assert_eq!(wheel.now, Tick::at(later));
    }

    proptest! {
        #[test]
        fn a_time_is_remembered_in_half_the_room_to_within_a_tick(time in 0..u64::MAX / 4, years in 0..18_u64) {
            let time = Instant::from_nanos(time);
            let later = time + Duration::from_secs(years * 365 * 86_400);
            let remembered = ShortTick::from(Tick::at(time)).before(later);
            prop_assert!(remembered <= time && time.saturating_since(remembered) < Duration::from_nanos(1 << TICK_BITS));
        }

        #[test]
        fn every_slot_is_visited_by_its_deadline_and_a_tick(deadlines in prop::collection::vec(0u64..200_000, 1..40), step in 1u64..5_000_000) {
            let start = Instant::from_nanos(123_456_789_000);
            let mut wheel = Wheel::new(start);
            let mut timers = Array([Timer::default(); 40]);
            let deadlines: Vec<Instant> = deadlines.iter().map(|&ms| start + Duration::from_millis(ms)).collect();
            for (slot, &deadline) in deadlines.iter().enumerate() {
                wheel.arm(&mut timers, slot as u32, Tick::after(deadline));
            }
            let mut left = deadlines.len();
            let mut now = start;
            while left > 0 {
                now = now + Duration::from_millis(step.min(60_000));
                while let Some((tick, slots)) = wheel.advance(&mut timers, now) {
                    for slot in slots {
                        let due = Tick::after(deadlines[slot as usize]);
                        if due > tick {
                            wheel.arm(&mut timers, slot, due);
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
