//! The services of the ruleset before, and which of them are where they were.
use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use super::Ruleset;
use crate::policy::{Policy, ServiceSpec};
use crate::service::Service;

/// See the module.
pub(super) struct Former<'a> {
    services: &'a [Arc<Service>],
    specs: &'a [Arc<ServiceSpec>],
    /// The number of services now.
    now: usize,
    /// How many at the head of the list have the name and the addresses that they had.
    head: usize,
    /// How many at its end.
    tail: usize,
    /// The others, by name.
    moved: HashMap<&'a str, usize>,
    same_surroundings: bool,
}

impl<'a> Former<'a> {
    pub(super) fn of(previous: Option<&'a Ruleset>, policy: &Policy) -> Self {
        let Some(Ruleset {
            policy: old, services, ..
        }) = previous
        else {
            return Self {
                services: &[],
                specs: &[],
                now: policy.services.len(),
                head: 0,
                tail: 0,
                moved: HashMap::new(),
                same_surroundings: false,
            };
        };
        let same_nodes = old.node_addresses == policy.node_addresses;
        let stayed = |(old, new): &(&Arc<ServiceSpec>, &Arc<ServiceSpec>)| same_nodes && has_same_addresses(old, new);
        let pairs = old.services.iter().zip(&policy.services);
        let head = pairs.take_while(stayed).count();
        let pairs = old.services[head..]
            .iter()
            .rev()
            .zip(policy.services[head..].iter().rev());
        let tail = pairs.take_while(stayed).count();
        let moved = head..old.services.len() - tail;
        Self {
            services,
            specs: &old.services,
            now: policy.services.len(),
            head,
            tail,
            moved: moved.map(|place| (old.services[place].name.as_str(), place)).collect(),
            same_surroundings: same_nodes && old.mode == policy.mode && old.scheduler == policy.scheduler,
        }
    }

    /// The service that is now in this place of the list, as it was.
    pub(super) fn find(&self, place: usize, spec: &ServiceSpec) -> Option<(&'a Arc<Service>, &'a ServiceSpec)> {
        let moved = self.moved();
        let former = if place < moved.start {
            place
        } else if place >= moved.end {
            place + self.specs.len() - self.now
        } else {
            *self.moved.get(spec.name.as_str())?
        };
        Some((&self.services[former], &self.specs[former]))
    }

    pub(super) fn is_unchanged(&self, spec: &ServiceSpec, old: &ServiceSpec) -> bool {
        self.same_surroundings && (std::ptr::eq(old, spec) || old == spec)
    }

    /// From the first to the last place of the new list that had another service, or other addresses.
    pub(super) const fn moved(&self) -> Range<usize> {
        self.head..self.now - self.tail
    }

    /// The former services of these places, and those behind them.
    pub(super) fn moved_and_behind(&self) -> (&'a [Arc<Service>], &'a [Arc<Service>]) {
        self.services[self.head..].split_at(self.services.len() - self.tail - self.head)
    }
}

fn has_same_addresses(old: &ServiceSpec, new: &ServiceSpec) -> bool {
    old.name == new.name
        && old.protocol == new.protocol
        && old.address == new.address
        && old.external_addresses == new.external_addresses
        && old.node_port == new.node_port
}
