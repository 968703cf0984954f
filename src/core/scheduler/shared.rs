//! The state of a scheduler, which goes on in the one that succeeds it.
//!
//! The successor, for another list of backends, is built while the old one is at work, so it cannot have a copy: both share the
//! state, and the first one that picks for another list than the last pick was for takes it over. That costs the same however
//! long the list is.
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};

/// See the module.
#[derive(Debug)]
pub(super) struct Shared<T> {
    /// The number of the list that this one is for.
    list: u64,
    cell: Arc<Mutex<Cell<T>>>,
}

#[derive(Clone, Debug)]
struct Cell<T> {
    /// The list that the state is of.
    list: u64,
    state: T,
}

/// Which list a state comes from that is taken over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum From {
    /// The one before.
    Predecessor,
    /// Another one: a worker that is at its last batch with the former ruleset has been in between.
    Other,
}

impl<T: Clone> Shared<T> {
    pub(super) fn new(state: T) -> Self {
        Self {
            list: 0,
            cell: Arc::new(Mutex::new(Cell { list: 0, state })),
        }
    }

    /// The state as one of this list; `take_over` makes it that of another one's.
    pub(super) fn lock(&self, take_over: impl FnOnce(&mut T, From)) -> parking_lot::MappedMutexGuard<'_, T> {
        let mut cell = self.cell.lock();
        if cell.list != self.list {
            let from = match cell.list + 1 == self.list {
                true => From::Predecessor,
                false => From::Other,
            };
            take_over(&mut cell.state, from);
            cell.list = self.list;
        }
        MutexGuard::map(cell, |cell| &mut cell.state)
    }

    /// The same state for the list that comes after this one. Nobody has picked for it yet.
    pub(super) fn successor(&self) -> Self {
        Self {
            list: self.list + 1,
            cell: Arc::clone(&self.cell),
        }
    }

    /// The same state, from now on apart.
    pub(super) fn copy(&self) -> Self {
        Self {
            list: self.list,
            cell: Arc::new(Mutex::new(self.cell.lock().clone())),
        }
    }

    /// Where the state lies.
    pub(super) fn as_ptr(&self) -> *const () {
        Arc::as_ptr(&self.cell).cast()
    }
}

/// Both have one state.
impl<T> Clone for Shared<T> {
    fn clone(&self) -> Self {
        Self {
            list: self.list,
            cell: Arc::clone(&self.cell),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_is_taken_over_by_whoever_asks_next_for_another_list_and_only_then() {
        let one = Shared::new(Vec::new());
        let two = one.successor();
        let ask = |shared: &Shared<Vec<From>>| shared.lock(|state, from| state.push(from)).clone();
        assert_eq!(ask(&one), []);
        assert_eq!(ask(&two), [From::Predecessor]);
        let clone = two.clone();
        assert_eq!((ask(&clone).len(), ask(&two).len()), (1, 1));
        assert_eq!(ask(&one), [From::Predecessor, From::Other], "a worker is late");
        assert_eq!(ask(&two)[2], From::Predecessor);
        let apart = two.copy();
        assert_eq!(ask(&apart.successor()).len(), 4);
        assert_eq!(ask(&two).len(), 3);
    }
}
