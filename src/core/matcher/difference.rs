//! How one list of services became another.
use std::sync::Arc;

use crate::service::Service;

/// See the module. Services that it does not name are in both lists, in the same place of the order.
#[derive(Debug)]
pub struct Difference<'a> {
    /// Services that stay in their place and on their addresses, before and after.
    pub replaced: Vec<(Arc<Service>, Arc<Service>)>,
    /// From the first to the last one that went, moved, or has other addresses now.
    pub before: &'a [Arc<Service>],
    /// What stands there instead. Some services may be in both.
    pub after: &'a [Arc<Service>],
    /// All that follow in the former list.
    pub behind: &'a [Arc<Service>],
}

impl Difference<'_> {
    /// The services that are not the same any more, as they were.
    pub fn former(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.replaced.iter().map(|(old, _)| old).chain(self.before)
    }

    /// The services that are not the same any more, as they are now, and new ones.
    pub fn present(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.replaced.iter().map(|(_, new)| new).chain(self.after)
    }

    /// Whether a list of so many services is as well built anew.
    #[must_use]
    pub fn is_most_of(&self, services: usize) -> bool {
        self.replaced.len() + self.before.len() + self.after.len() > services
    }
}
