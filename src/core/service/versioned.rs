//! Small values that change together with the ruleset, for those who have no ruleset's list at hand: a flow knows its backend only.
//!
//! They are set while a ruleset is built, long before it takes effect, and name the first generation that they are for. So a
//! packet sees the values of the ruleset that it is judged by, and to put a ruleset into effect takes no walk over the backends.
use std::marker::PhantomData;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::policy::OnBackendRemoved;

/// The number of a ruleset: each has the next one after that of the ruleset before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Generation(u64);

impl Generation {
    /// The one of the ruleset that follows.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }

    /// It as a number.
    #[must_use]
    pub const fn number(self) -> u64 {
        self.0
    }
}

/// A value that fits in a byte.
pub(super) trait Packed: Copy {
    fn pack(self) -> u8;
    fn unpack(byte: u8) -> Self;
}

const BITS: u32 = u8::BITS;

/// A value before a generation, and from it on. One word: the generation, the value from it on, the value before.
///
/// Whoever reads belongs to the latest generation that is in effect or to the next one; those of older ones, which a worker in
/// a batch may still have, may be told a newer value.
#[derive(Debug)]
pub(super) struct Versioned<T> {
    word: AtomicU64,
    kind: PhantomData<T>,
}

impl<T: Packed> Versioned<T> {
    /// The same for all generations.
    pub(super) fn new(value: T) -> Self {
        Self {
            word: AtomicU64::new(word(0, value.pack(), value.pack())),
            kind: PhantomData,
        }
    }

    /// The value in a generation.
    #[inline]
    pub(super) fn get(&self, generation: Generation) -> T {
        // No order is needed: a generation is entered after all that was set for it (`Engine::enter`).
        let (since, after, before) = parts(self.word.load(Relaxed));
        T::unpack(if generation.0 >= since { after } else { before })
    }

    /// Changes the value from a generation on, which is not in effect yet.
    pub(super) fn set_from(&self, generation: Generation, change: impl Fn(T) -> T) {
        self.update(|(since, after, before)| {
            let new = change(T::unpack(after)).pack();
            match since == generation.0 {
                _ if new == after => (since, after, before),
                // It was changed for that generation already.
                true => (since, new, before),
                false => (generation.0, new, after),
            }
        });
    }

    /// Changes the value at once, whatever the generation.
    pub(super) fn set_now(&self, change: impl Fn(T) -> T) {
        let changed = |byte| change(T::unpack(byte)).pack();
        self.update(|(since, after, before)| (since, changed(after), changed(before)));
    }

    /// A copy of its own.
    pub(super) fn copy(&self) -> Self {
        Self {
            word: AtomicU64::new(self.word.load(Relaxed)),
            kind: PhantomData,
        }
    }

    fn update(&self, change: impl Fn((u64, u8, u8)) -> (u64, u8, u8)) {
        let mut known = self.word.load(Relaxed);
        loop {
            let (since, after, before) = change(parts(known));
            let new = word(since, after, before);
            match self.word.compare_exchange_weak(known, new, Relaxed, Relaxed) {
                Ok(_) => return,
                Err(other) => known = other,
            }
        }
    }
}

const fn word(since: u64, after: u8, before: u8) -> u64 {
    since << (2 * BITS) | (after as u64) << BITS | before as u64
}

const fn parts(word: u64) -> (u64, u8, u8) {
    (word >> (2 * BITS), (word >> BITS) as u8, word as u8)
}

/// What a backend is to its flows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Standing {
    /// It has left the configuration.
    pub(super) removed: bool,
    /// Its time to drain is over.
    pub(super) cut: bool,
    /// Each datagram is scheduled anew.
    pub(super) one_packet: bool,
}

impl Packed for Standing {
    #[inline]
    fn pack(self) -> u8 {
        u8::from(self.removed) | u8::from(self.cut) << 1 | u8::from(self.one_packet) << 2
    }

    #[inline]
    fn unpack(byte: u8) -> Self {
        Self {
            removed: byte & 1 != 0,
            cut: byte & 1 << 1 != 0,
            one_packet: byte & 1 << 2 != 0,
        }
    }
}

/// None: the service says nothing about it.
impl Packed for Option<OnBackendRemoved> {
    fn pack(self) -> u8 {
        match self {
            None => 0,
            Some(OnBackendRemoved::Preserve) => 1,
            Some(OnBackendRemoved::Reset) => 2,
            Some(OnBackendRemoved::Reschedule) => 3,
            Some(OnBackendRemoved::Drop) => 4,
        }
    }

    fn unpack(byte: u8) -> Self {
        match byte {
            1 => Some(OnBackendRemoved::Preserve),
            2 => Some(OnBackendRemoved::Reset),
            3 => Some(OnBackendRemoved::Reschedule),
            4 => Some(OnBackendRemoved::Drop),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REMOVED: fn(Standing) -> Standing = |standing| Standing {
        removed: true,
        ..standing
    };
    const BACK: fn(Standing) -> Standing = |standing| Standing {
        removed: false,
        ..standing
    };

    #[test]
    fn packets_of_the_ruleset_before_see_what_was_before_until_the_next_one_is_in_effect() {
        let standing = Versioned::new(Standing::default());
        let [now, next, then] = [7, 8, 9].map(Generation);
        standing.set_from(next, REMOVED);
        assert_eq!(
            [now, next, then].map(|at| standing.get(at).removed),
            [false, true, true]
        );
        standing.set_from(then, BACK);
        assert_eq!([next, then].map(|at| standing.get(at).removed), [true, false]);
    }

    #[test]
    fn two_changes_for_one_generation_are_one_and_no_change_is_none() {
        let standing = Versioned::new(Standing::default());
        let [now, next] = [7, 8].map(Generation);
        standing.set_from(next, REMOVED);
        standing.set_from(next, |standing| Standing {
            one_packet: true,
            ..standing
        });
        standing.set_from(next, REMOVED);
        let (before, after) = (standing.get(now), standing.get(next));
        assert_eq!((before.removed, before.one_packet), (false, false));
        assert_eq!((after.removed, after.one_packet), (true, true));
    }

    #[test]
    fn what_is_set_at_once_holds_for_packets_of_both_rulesets() {
        let standing = Versioned::new(Standing::default());
        let [now, next] = [7, 8].map(Generation);
        standing.set_from(next, REMOVED);
        standing.set_now(|standing| Standing { cut: true, ..standing });
        assert_eq!([now, next].map(|at| standing.get(at).cut), [true, true]);
        assert_eq!([now, next].map(|at| standing.get(at).removed), [false, true]);
    }

    #[test]
    fn every_rule_fits_in_its_byte() {
        let rules = [
            None,
            Some(OnBackendRemoved::Preserve),
            Some(OnBackendRemoved::Reset),
            Some(OnBackendRemoved::Reschedule),
            Some(OnBackendRemoved::Drop),
        ];
        for rule in rules {
            assert_eq!(Option::<OnBackendRemoved>::unpack(rule.pack()), rule);
        }
    }
}
