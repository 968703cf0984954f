//! `lblcr`: a virtual address keeps a set of backends that grows with its load (ip_vs_lblcr.c).
use std::sync::Arc;

use parking_lot::Mutex;

use super::cache::{Cache, EXPIRATION};
use super::lblc::should_be_relieved;
use super::load::{Load, least_loaded_of};
use super::place::Place;
use super::wlc;
use crate::flow::Tuple;
use crate::service::Member;
use crate::time::Instant;

/// Locality-based least connections with replication: remembers a set of backends for each virtual address.
#[derive(Clone, Debug)]
pub struct Lblcr {
    cache: Arc<Mutex<Cache<Set>>>,
}

impl Lblcr {
    pub(super) fn new() -> Self {
        Self {
            cache: Arc::new(Mutex::new(Cache::new())),
        }
    }

    /// The least loaded of the set; where that one should be relieved, the one of `wlc`, which joins the set.
    pub(super) fn pick(&self, tuple: &Tuple, backends: &[Member], now: Instant) -> Option<usize> {
        let mut cache = self.cache.lock();
        cache.sweep(now);
        let address = tuple.destination.address;
        let Some(set) = cache.get(address, now) else {
            let index = wlc::pick(backends)?;
            let set = Set::of(Place::of(backends, index), now);
            cache.insert(address, set, now);
            return Some(index);
        };
        let least = set.least_loaded(backends);
        set.shrink_when_old(backends, now);
        if let Some(index) = least
            && !should_be_relieved(&backends[index], backends)
        {
            return Some(index);
        }
        let index = wlc::pick(backends)?;
        set.add(Place::of(backends, index), backends, now);
        Some(index)
    }

    pub(super) fn copy(&self) -> Self {
        let cache = self.cache.lock().clone();
        Self {
            cache: Arc::new(Mutex::new(cache)),
        }
    }

    pub(super) fn as_ptr(&self) -> *const () {
        Arc::as_ptr(&self.cache).cast()
    }
}

#[derive(Clone, Debug)]
struct Set {
    /// The newest last.
    members: Vec<Place>,
    last_change: Instant,
}

impl Set {
    fn of(first: Place, now: Instant) -> Self {
        Self {
            members: vec![first],
            last_change: now,
        }
    }

    /// Forgets backends that are gone with that, so that the set grows no further than the list.
    fn add(&mut self, new: Place, backends: &[Member], now: Instant) {
        if !self.members.iter().any(|member| member.is(new)) {
            self.members.retain(|member| member.find(backends).is_some());
            self.members.push(new);
            self.last_change = now;
        }
    }

    /// Members from the newest on, as the kernel's list has them, with their indices.
    fn newest_first<'a>(&'a self, backends: &'a [Member]) -> impl Iterator<Item = (usize, &'a Member)> {
        let indices = self.members.iter().rev().filter_map(|it| it.find(backends));
        indices.map(|index| (index, &backends[index]))
    }

    /// `ip_vs_dest_set_min`.
    fn least_loaded(&self, backends: &[Member]) -> Option<usize> {
        least_loaded_of(self.newest_first(backends), Load::of_all_flows)
    }

    /// A set of several that did not change for a day loses its most loaded member.
    fn shrink_when_old(&mut self, backends: &[Member], now: Instant) {
        if self.members.len() < 2 || now - self.last_change <= EXPIRATION {
            return;
        }
        if let Some(index) = self.most_loaded(backends) {
            let most = Place::of(backends, index);
            self.members.retain(|member| !member.is(most));
            self.last_change = now;
        }
    }

    /// `ip_vs_dest_set_max`: thresholds do not matter, weights do.
    fn most_loaded(&self, backends: &[Member]) -> Option<usize> {
        let mut most: Option<(usize, Load)> = None;
        for (index, backend) in self.newest_first(backends) {
            let load = Load::of_all_flows(backend);
            let is_more = most.is_none_or(|(_, so_far)| so_far.is_below(load));
            if backend.weight() != 0 && is_more {
                most = Some((index, load));
            }
        }
        most.map(|(index, _)| index)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::testing::{Ending, Pattern, World, assert_moves_on, assert_stays, backends};
    use super::super::{Flags, Kind};

    #[test]
    fn a_virtual_address_spreads_over_more_backends_as_they_fill_up() {
        assert_eq!(
            World::kernel(Kind::Lblcr, "").run(Pattern::Ports, Ending::Open),
            "333322211323123323123323"
        );
    }

    #[test]
    fn a_virtual_address_without_active_flows_stays_where_it_is() {
        assert_stays(Kind::Lblcr);
    }

    #[test]
    fn it_moves_when_its_backend_is_drained_overloaded_or_removed() {
        assert_moves_on(Kind::Lblcr);
    }

    #[test]
    fn a_set_unchanged_for_a_day_loses_its_most_loaded_member() {
        let mut world = World::with(Kind::Lblcr, Flags::default(), backends(&[1, 4]));
        assert_eq!(world.picks(1), "1");
        world.load(1, 2, 0);
        assert_eq!(world.picks(1), "2", "the first one is full: the set grows");
        world.load(2, 5, 0);
        let half_a_day = Duration::from_secs(12 * 60 * 60);
        for expected in ["2", "2", "2"] {
            world.wait(half_a_day + Duration::from_secs(1));
            assert_eq!(world.picks(1), expected);
        }
        world.load(2, 50, 0);
        assert_eq!(world.picks(1), "2", "the first one has left the set");
    }
}
