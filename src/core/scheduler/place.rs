//! A backend remembered between flows.
use crate::service::Member;

/// A backend by its identity: found at once while it stands where it stood, searched for otherwise.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    id: u64,
    index: usize,
}

impl Place {
    /// The place of `backends[index]`.
    pub(super) fn of(backends: &[Member], index: usize) -> Self {
        Self {
            id: backends[index].id,
            index,
        }
    }

    /// Where it is in `backends`; None when it has left.
    pub(super) fn find(self, backends: &[Member]) -> Option<usize> {
        let is_it = |backend: &Member| backend.id == self.id;
        if backends.get(self.index).is_some_and(is_it) {
            return Some(self.index);
        }
        backends.iter().position(is_it)
    }

    /// Where it stood in the list that it was remembered from.
    pub(super) const fn index(self) -> usize {
        self.index
    }

    /// Whether both are the same backend.
    pub(super) const fn is(self, other: Self) -> bool {
        self.id == other.id
    }
}
