//! When to look at a flow again: a hashed timing wheel (scheme 6 of Varghese and Lauck, Hashed and Hierarchical Timing Wheels,
//! SOSP 1987) that is only told of deadlines that come nearer.
//!
//! A packet of a known flow moves the flow's deadline away, and touches nothing here. When the wheel reaches a flow
//! whose deadline has moved on or lies beyond a turn, it is put where the deadline is, or a turn further: one visit a turn,
//! not one a packet.
//!
//! There is no second wheel of coarser ticks, whose buckets would have to be moved whole: at a million flows that took 50 ms
//! every 69 seconds. And a bucket is emptied as little at a time as the caller wants, however many flows were opened at once.
use super::ages::{Ages, Link, Links};
use crate::time::Instant;

/// 2^27 ns, 134 ms: how late a flow may be forgotten. (The kernel's timers are up to 12.5 % late, kernel/time/timer.c.)
pub(super) const TICK_BITS: u32 = 27;
/// One a tick: a turn takes 137 s. 8 bytes each, in every shard.
const BUCKETS: u64 = 1024;

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
    /// Every tick before this one was handled, and of its own bucket a part.
    now: Tick,
    /// How many slots are in a bucket.
    armed: usize,
    /// One a tick. What is due beyond a turn waits in the last one.
    buckets: Box<[Ages]>,
}

const fn bucket(tick: u64) -> u16 {
    (tick % BUCKETS) as u16
}

impl Wheel {
    /// An empty wheel at `now`.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self {
            now: Tick::at(now),
            armed: 0,
            buckets: (0..BUCKETS).map(|_| Ages::default()).collect(),
        }
    }

    /// Has `slot` visited at `due`, or soon where that is over, and no more at the time before. Returns when it will be
    /// visited, which is earlier where `due` lies beyond a turn.
    pub fn arm(&mut self, timers: &mut impl Timers, slot: u32, due: Tick) -> Tick {
        self.disarm(timers, slot);
        // Never the bucket that is being emptied.
        let at = due.0.clamp(self.now.0 + 1, self.now.0 + BUCKETS - 1);
        timers.timer(slot).bucket = Some(bucket(at));
        self.buckets[usize::from(bucket(at))].push(&mut TimerLinks(timers), slot);
        self.armed += 1;
        Tick(at)
    }

    /// Has `slot` not visited.
    pub fn disarm(&mut self, timers: &mut impl Timers, slot: u32) {
        if let Some(bucket) = timers.timer(slot).bucket.take() {
            self.buckets[usize::from(bucket)].remove(&mut TimerLinks(timers), slot);
            self.armed -= 1;
        }
    }

    /// Takes out slots that are to be visited by `now`, at most as many as `slots` has room for, and returns how many; 0: there
    /// are no more.
    ///
    /// Arm each again that is to be visited again. A slot may come early: its own deadline decides.
    pub fn take(&mut self, timers: &mut impl Timers, now: Instant, slots: &mut [u32]) -> usize {
        let target = Tick::at(now);
        if self.armed == 0 {
            // As in a pause between packets of a capture: nobody is to be visited on the way.
            self.now = self.now.max(target);
            return 0;
        }
        // A turn visits every bucket, however long the pause was.
        self.now.0 = self.now.0.max((target.0 + 1).saturating_sub(BUCKETS));
        loop {
            let taken = self.empty(timers, bucket(self.now.0), slots);
            if taken > 0 || self.now >= target {
                return taken;
            }
            self.now.0 += 1;
        }
    }

    /// How many visits are to come.
    #[cfg(test)]
    pub(super) const fn waiting(&self) -> usize {
        self.armed
    }

    fn empty(&mut self, timers: &mut impl Timers, bucket: u16, slots: &mut [u32]) -> usize {
        let mut taken = 0;
        for place in slots {
            let Some(slot) = self.buckets[usize::from(bucket)].oldest() else {
                break;
            };
            self.disarm(timers, slot);
            *place = slot;
            taken += 1;
        }
        taken
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
        let (hour, mut slots) = (start + Duration::from_secs(3_600), [0; 4]);
        assert_eq!(wheel.take(&mut timers, hour, &mut slots), 0);
        assert_eq!(wheel.now, Tick::at(hour));
        wheel.arm(&mut timers, 7, Tick::after(hour + Duration::from_secs(1)));
        let later = hour + Duration::from_secs(3_600);
        assert_eq!((wheel.take(&mut timers, later, &mut slots), slots[0]), (1, 7));
        assert_eq!(wheel.take(&mut timers, later, &mut slots), 0);
        assert_eq!(wheel.now, Tick::at(later), "none is left behind the last slot");
    }

    #[test]
    fn of_many_slots_that_are_due_at_once_no_more_are_given_out_than_are_wanted() {
        let start = Instant::from_nanos(123_456_789_000);
        let mut wheel = Wheel::new(start);
        let mut timers = Array([Timer::default(); 40]);
        let due = Tick::after(start + Duration::from_secs(1));
        for slot in 0..40 {
            assert_eq!(wheel.arm(&mut timers, slot, due), due);
        }
        let (now, mut slots, mut all) = (start + Duration::from_secs(2), [0; 16], Vec::new());
        for count in [16, 16, 8, 0] {
            let taken = wheel.take(&mut timers, now, &mut slots);
            assert_eq!(taken, count);
            all.extend_from_slice(&slots[..taken]);
        }
        assert_eq!(all, (0..40).collect::<Vec<u32>>(), "the oldest first");
    }

    /// A coarser wheel had all of them moved at the end of its turn.
    #[test]
    fn slots_that_are_due_far_from_now_are_visited_as_evenly_as_they_were_armed() {
        let mut now = Instant::from_nanos(123_456_789_000);
        let mut wheel = Wheel::new(now);
        let mut timers = Array([Timer::default(); 40]);
        let (tick, mut slots) = (Duration::from_nanos(1 << TICK_BITS), [0; 40]);
        let due = Tick::after(now + Duration::from_secs(86_400));
        for slot in 0..40 {
            now = now + tick * 20;
            assert_eq!(wheel.take(&mut timers, now, &mut slots), 0);
            wheel.arm(&mut timers, slot, due);
        }
        for _ in 0..20 * BUCKETS {
            now = now + tick;
            let taken = wheel.take(&mut timers, now, &mut slots);
            assert!(taken <= 1, "{taken} at once");
            for &slot in &slots[..taken] {
                assert!(wheel.arm(&mut timers, slot, due) <= due);
            }
        }
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
            let mut done = vec![None; deadlines.len()];
            let mut now = start;
            while done.iter().any(Option::is_none) {
                now = now + Duration::from_millis(step.min(60_000));
                let mut slots = [0; 7];
                loop {
                    let taken = wheel.take(&mut timers, now, &mut slots);
                    for &slot in &slots[..taken] {
                        let due = Tick::after(deadlines[slot as usize]);
                        if due > Tick::at(now) {
                            wheel.arm(&mut timers, slot, due);
                        } else {
                            done[slot as usize] = Some(now);
                        }
                    }
                    if taken == 0 {
                        break;
                    }
                }
                for (deadline, done) in deadlines.iter().zip(&done) {
                    let is_due = Tick::after(*deadline) <= Tick::at(now);
                    prop_assert_eq!(done.is_some(), is_due);
                }
                prop_assert!(now.saturating_since(start) < Duration::from_secs(4000));
            }
        }
    }
}
