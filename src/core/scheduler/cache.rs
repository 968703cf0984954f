//! What `lblc` and `lblcr` remember of each virtual address, and for how long (ip_vs_lblc.c, ip_vs_lblcr.c).
use std::net::IpAddr;
use std::time::Duration;

use super::hash::{fold, hash_32};
use crate::time::Instant;

/// `CONFIG_IP_VS_LBLC_TAB_BITS`, by default.
const BUCKET_BITS: u32 = 10;
const BUCKETS: usize = 1 << BUCKET_BITS;
/// `max_size`: with more entries than this, idle ones go early.
const MAX_ENTRIES: usize = BUCKETS * 16;
/// With so many, new ones are not remembered. The kernel has no such limit but its memory.
const HARD_LIMIT: usize = 2 * MAX_ENTRIES;
/// `CHECK_EXPIRE_INTERVAL`: how often to look for entries to drop.
const SWEEP_INTERVAL: Duration = Duration::from_secs(60);
/// `ENTRY_TIMEOUT`: idle for so long an entry goes early.
const EARLY_TIMEOUT: Duration = Duration::from_secs(6 * 60);
/// `COUNT_FOR_FULL_EXPIRATION`: every so many sweeps without early ones drop what has expired.
const FULL_SWEEP_EVERY: u32 = 30;
/// `DEFAULT_EXPIRATION`: the defaults of the sysctls `lblc_expiration` and `lblcr_expiration`.
pub(super) const EXPIRATION: Duration = Duration::from_secs(24 * 60 * 60);
/// After so long without a flow everything has expired, and a full sweep has been due since.
const ALL_EXPIRED: Duration = Duration::from_secs(EXPIRATION.as_secs() + SWEEP_INTERVAL.as_secs() * 32);

#[derive(Clone, Debug)]
struct Entry<T> {
    address: IpAddr,
    last_use: Instant,
    value: T,
}

/// A `T` for each virtual address.
#[derive(Clone, Debug)]
pub(super) struct Cache<T> {
    buckets: Box<[Vec<Entry<T>>]>,
    entries: usize,
    /// The bucket that the last sweep ended with.
    rover: usize,
    /// Sweeps since the last full one.
    sweeps: u32,
    /// None before the first flow.
    last_sweep: Option<Instant>,
}

impl<T> Cache<T> {
    pub(super) fn new() -> Self {
        Self {
            buckets: std::iter::repeat_with(Vec::new).take(BUCKETS).collect(),
            entries: 0,
            rover: 0,
            sweeps: 1,
            last_sweep: None,
        }
    }

    /// What is remembered of `address`, used now.
    pub(super) fn get(&mut self, address: IpAddr, now: Instant) -> Option<&mut T> {
        let entry = self.buckets[bucket(address)]
            .iter_mut()
            .find(|entry| entry.address == address)?;
        entry.last_use = now;
        Some(&mut entry.value)
    }

    /// Remembers `value` in place of what was remembered of `address`.
    pub(super) fn insert(&mut self, address: IpAddr, value: T, now: Instant) {
        if let Some(old) = self.get(address, now) {
            *old = value;
            return;
        }
        if self.entries >= HARD_LIMIT {
            return;
        }
        self.entries += 1;
        self.buckets[bucket(address)].push(Entry {
            address,
            last_use: now,
            value,
        });
    }

    /// Forgets the values that `keep` does not want.
    pub(super) fn retain(&mut self, mut keep: impl FnMut(&mut T) -> bool) {
        for bucket in &mut self.buckets {
            bucket.retain_mut(|entry| keep(&mut entry.value));
        }
        self.entries = self.buckets.iter().map(Vec::len).sum();
    }

    /// Does the sweeps that the kernel's timer would have done until now.
    pub(super) fn sweep(&mut self, now: Instant) {
        let last = *self.last_sweep.get_or_insert(now);
        if now - last >= ALL_EXPIRED {
            self.retain(|_| false);
            (self.sweeps, self.last_sweep) = (1, Some(now));
            return;
        }
        let mut due = last + SWEEP_INTERVAL;
        while due <= now {
            self.sweep_once(due);
            self.last_sweep = Some(due);
            due = due + SWEEP_INTERVAL;
        }
    }

    /// `ip_vs_lblc_check_expire`.
    fn sweep_once(&mut self, now: Instant) {
        if self.sweeps.is_multiple_of(FULL_SWEEP_EVERY) {
            self.drop_idle(now, EXPIRATION, usize::MAX);
            self.sweeps = 1;
        } else if self.entries <= MAX_ENTRIES {
            self.sweeps += 1;
        } else {
            let goal = (self.entries - MAX_ENTRIES) * 4 / 3;
            self.drop_idle(now, EARLY_TIMEOUT, goal.min(MAX_ENTRIES / 2));
        }
    }

    /// Drops entries idle for `timeout`, bucket by bucket, until `goal` or more are gone.
    fn drop_idle(&mut self, now: Instant, timeout: Duration, mut goal: usize) {
        for _ in 0..BUCKETS {
            self.rover = (self.rover + 1) % BUCKETS;
            let bucket = &mut self.buckets[self.rover];
            let before = bucket.len();
            bucket.retain(|entry| now - entry.last_use < timeout);
            let gone = before - bucket.len();
            self.entries -= gone;
            goal = goal.saturating_sub(gone);
            if goal == 0 {
                return;
            }
        }
    }
}

fn bucket(address: IpAddr) -> usize {
    hash_32(fold(address), BUCKET_BITS)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(60 * 60);

    fn address(number: usize) -> IpAddr {
        IpAddr::from((number as u32).to_be_bytes())
    }

    fn after(hours: u32) -> Instant {
        Instant::ZERO + HOUR * hours
    }

    fn with_entries(count: usize) -> Cache<usize> {
        let mut cache = Cache::new();
        cache.sweep(Instant::ZERO);
        (0..count).for_each(|number| cache.insert(address(number), number, Instant::ZERO));
        cache
    }

    #[test]
    fn an_address_is_remembered_for_a_day_after_its_last_use() {
        let mut cache = with_entries(2);
        cache.sweep(after(23));
        assert_eq!(cache.get(address(0), after(23)), Some(&mut 0));
        cache.sweep(after(25));
        assert_eq!(cache.get(address(0), after(25)), Some(&mut 0));
        assert_eq!(cache.get(address(1), after(25)), None);
        assert_eq!(cache.entries, 1);
    }

    #[test]
    fn after_years_without_a_flow_everything_is_forgotten_at_once() {
        let mut cache = with_entries(2);
        cache.sweep(after(24 * 365 * 100));
        assert_eq!(cache.entries, 0);
    }

    #[test]
    fn above_its_size_addresses_idle_for_six_minutes_go_early() {
        let mut cache = with_entries(MAX_ENTRIES + 300);
        let minute = |minutes: u64| Instant::ZERO + Duration::from_secs(60 * minutes);
        cache.sweep(minute(5));
        assert_eq!(cache.entries, MAX_ENTRIES + 300);
        cache.sweep(minute(6));
        assert!(cache.entries <= MAX_ENTRIES, "{}", cache.entries);
        assert!(
            cache.entries > MAX_ENTRIES - 300,
            "only a third more than needed: {}",
            cache.entries
        );
    }

    #[test]
    fn its_size_is_bounded_whoever_comes() {
        let cache = with_entries(HARD_LIMIT + 1);
        assert_eq!(cache.entries, HARD_LIMIT);
    }

    #[test]
    fn a_new_value_replaces_the_old_one() {
        let mut cache = with_entries(1);
        cache.insert(address(0), 9, Instant::ZERO);
        assert_eq!(cache.get(address(0), Instant::ZERO), Some(&mut 9));
        assert_eq!(cache.entries, 1);
    }
}
