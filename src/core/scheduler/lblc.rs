//! `lblc`: a virtual address keeps its backend while that one can cope (ip_vs_lblc.c).
use std::sync::Arc;

use parking_lot::Mutex;

use super::cache::Cache;
use super::load::takes_new_flows;
use super::place::Place;
use super::wlc;
use crate::flow::Tuple;
use crate::service::Member;
use crate::time::Instant;

/// Locality-based least connections: remembers a backend for each virtual address.
#[derive(Clone, Debug)]
pub struct Lblc {
    cache: Arc<Mutex<Cache<Place>>>,
}

impl Lblc {
    pub(super) fn new() -> Self {
        Self {
            cache: Arc::new(Mutex::new(Cache::new())),
        }
    }

    /// The remembered backend, or else the one of `wlc`, which is then remembered.
    ///
    /// The kernel goes on with a remembered server above its upper threshold; here the threshold holds.
    ///
    /// One that was removed is not remembered any more, but it is again once it is back, as the kernel's is, which keeps removed
    /// servers while anyone refers to them.
    pub(super) fn pick(&self, tuple: &Tuple, backends: &[Member], now: Instant) -> Option<usize> {
        let mut cache = self.cache.lock();
        cache.sweep(now);
        let address = tuple.destination.address;
        let known = cache.get(address, now);
        if let Some(index) = known.and_then(|place| place.find(backends))
            && takes_new_flows(&backends[index])
            && !should_be_relieved(&backends[index], backends)
        {
            return Some(index);
        }
        let index = wlc::pick(backends)?;
        cache.insert(address, Place::of(backends, index), now);
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

/// `is_overloaded` of ip_vs_lblc.c: it has more active flows than its weight, and another is not even half full.
pub(super) fn should_be_relieved(backend: &Member, backends: &[Member]) -> bool {
    let has_room = |other: &Member| u64::from(other.active()) * 2 < u64::from(other.weight());
    backend.active() > backend.weight() && backends.iter().any(has_room)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::testing::{Ending, Pattern, World, assert_moves_on, assert_stays, backends};
    use super::super::{Flags, Kind};

    fn world(weights: &[u32]) -> World {
        World::with(Kind::Lblc, Flags::default(), backends(weights))
    }

    #[test]
    fn a_virtual_address_stays_until_its_backend_is_full_and_another_half_empty() {
        assert_eq!(
            World::kernel(Kind::Lblc, "").run(Pattern::Ports, Ending::Open),
            "333322211111111111111111"
        );
    }

    #[test]
    fn a_virtual_address_without_active_flows_stays_where_it_is() {
        assert_stays(Kind::Lblc);
    }

    #[test]
    fn it_moves_when_its_backend_is_drained_overloaded_or_removed() {
        assert_moves_on(Kind::Lblc);
    }

    #[test]
    fn it_stays_when_the_list_is_reordered() {
        let mut world = world(&[1, 1, 1]);
        assert_eq!(world.picks(1), "1");
        world.replace(|backends| backends.reverse());
        assert_eq!(world.picks(2), "11");
    }

    #[test]
    fn it_is_forgotten_after_a_day_without_a_flow() {
        let mut world = world(&[1, 1]);
        assert_eq!(world.picks(1), "1");
        world.load(1, 0, 3);
        world.wait(Duration::from_secs(23 * 60 * 60));
        assert_eq!(world.picks(1), "1");
        world.wait(Duration::from_secs(25 * 60 * 60));
        assert_eq!(world.picks(1), "2");
    }
}
