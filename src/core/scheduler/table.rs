//! A hash table of backends, as `sh`, `dh` and `mh` have it.
use std::sync::Arc;

use super::load::takes_new_flows;
use crate::service::Member;

/// Buckets that each hold the index of a backend. Without backends there are no buckets. Copies share them.
#[derive(Clone, Debug, Default)]
pub(super) struct Table {
    buckets: Arc<[u32]>,
}

impl Table {
    pub(super) fn new(buckets: impl Iterator<Item = u32>) -> Self {
        Self {
            buckets: buckets.collect(),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.buckets.len()
    }

    /// The backend in this bucket, if it takes new flows.
    pub(super) fn pick(&self, bucket: usize, backends: &[Member]) -> Option<usize> {
        let index = *self.buckets.get(bucket)? as usize;
        let backend = backends.get(index)?;
        takes_new_flows(backend).then_some(index)
    }

    /// The first backend in these buckets that takes new flows; asks for no bucket in vain when there is none.
    pub(super) fn pick_first(&self, mut buckets: impl Iterator<Item = usize>, backends: &[Member]) -> Option<usize> {
        if !backends.iter().any(takes_new_flows) {
            return None;
        }
        buckets.find_map(|bucket| self.pick(bucket, backends))
    }
}
