//! How long a worker without packets looks for more before it sleeps.
//!
//! Being woken costs more than some looks, above all where the CPU that is to wake up is idle and virtual. So a worker looks
//! for as long as pays off by what it saw last, as the kernel's own guests do before they halt
//! (drivers/cpuidle/governors/haltpoll.c). Against 20 looks each time, in turn, five times each on a machine that did nothing
//! else (`scripts/bench --only 1,4`, medians): a request and its answer over TUN took 48 instead of 63 us and over AF_XDP 42
//! instead of 55, one TCP stream over TUN got 15 to 17 instead of 12 to 14 Gbit/s, eight streams as much as before. No look at
//! all left one stream at 11. Waiting for longer (100 us, 2,000 looks) gained nothing more; looking on while others wanted the
//! CPU cost eight streams a twentieth; and to look on after a single short wait cost a seventh more CPU time for 64-byte UDP
//! in bursts of 32, 320 us apart, of which this rule costs none.
use std::time::Duration;

use lbd_core::time::Instant;

/// Looks in any case, about 10 us on an idle CPU. On a busy one each look lets others run first, so that a worker waits its
/// turn without being woken.
const LOOKS: u32 = 20;
/// So long a worker looks where the last packets came within it; where they come less often, sleep is cheaper.
const SOON: Duration = Duration::from_micros(50);
/// So many times in a row something must have come soon. Within a burst a worker may be faster than who sends, and the pauses
/// between bursts follow all the same.
const PROOF: u32 = 16;
/// A look that takes longer let others run, who want the CPU more than a worker that only looks.
const SHARED: Duration = Duration::from_micros(20);

/// A worker's.
#[derive(Debug, Default)]
pub(super) struct Patience {
    /// How often in a row something came soon.
    soon: u32,
    idle: Option<Idle>,
}

/// A time without packets.
#[derive(Clone, Copy, Debug)]
struct Idle {
    since: Instant,
    looks: u32,
    /// When it last looked.
    last: Instant,
}

impl Patience {
    /// There was nothing; whether to look again at once.
    pub(super) fn looks_on(&mut self, now: Instant) -> bool {
        let before = self.idle.unwrap_or(Idle {
            since: now,
            looks: 0,
            last: now,
        });
        self.idle = Some(Idle {
            looks: before.looks + 1,
            last: now,
            ..before
        });
        if now - before.last > SHARED {
            self.soon = 0;
        }
        before.looks < LOOKS || self.soon >= PROOF && now - before.since < SOON
    }

    /// There was something: learns from how long it took to come. Without a time without packets nobody asks the clock.
    pub(super) fn found(&mut self, now: impl FnOnce() -> Instant) {
        if let Some(idle) = self.idle.take() {
            let is_soon = now() - idle.since <= SOON;
            self.soon = if is_soon { self.soon.saturating_add(1) } else { 0 };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Something comes each time so many microseconds after nothing was there, and a look takes half of one. For how long the
    /// worker looked at the last time.
    fn looked(gaps: &[u64]) -> Duration {
        let mut patience = Patience::default();
        let mut start = Instant::ZERO;
        let mut looked = Duration::ZERO;
        for &gap in gaps {
            let end = start + Duration::from_micros(gap);
            let mut now = start;
            while now < end && patience.looks_on(now) {
                now = now + Duration::from_nanos(500);
            }
            looked = now - start;
            patience.found(|| end);
            start = end;
        }
        looked
    }

    const SHORT: Duration = Duration::from_micros(10);

    #[test]
    fn what_kept_coming_soon_is_waited_for_the_next_time() {
        assert_eq!(looked(&[40]), SHORT);
        assert_eq!(
            looked(&[40; 1 + PROOF as usize]),
            Duration::from_micros(40),
            "it came while it looked"
        );
    }

    #[test]
    fn nothing_is_waited_for_longer_than_pays_off() {
        let mut gaps = vec![40; PROOF as usize];
        gaps.push(5_000);
        assert_eq!(looked(&gaps), SOON);
        gaps.push(5_000);
        assert_eq!(looked(&gaps), SHORT);
    }

    #[test]
    fn where_packets_trickle_a_worker_sleeps_soon() {
        assert_eq!(looked(&[100; 100]), SHORT);
    }

    #[test]
    fn a_burst_with_small_gaps_does_not_have_the_worker_wait_for_the_next_one() {
        assert_eq!(looked(&[320, 2, 3, 2, 320, 2, 3, 2, 320]), SHORT);
    }

    #[test]
    fn a_worker_whose_cpu_others_use_leaves_it_to_them_but_is_not_put_to_sleep_by_the_time_that_they_take() {
        let mut patience = Patience {
            soon: PROOF,
            idle: None,
        };
        let slices = (0..2 * LOOKS).map(|slice| Instant::ZERO + 2 * SHARED * slice);
        assert_eq!(slices.filter(|&now| patience.looks_on(now)).count(), LOOKS as usize);
    }
}
