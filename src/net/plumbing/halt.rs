//! Work that is to end early because all of it is about to be undone.
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// Says that lbd is being stopped. Clones say the same.
#[derive(Clone, Debug, Default)]
pub struct Halt(Arc<AtomicBool>);

impl Halt {
    /// From now on changes that take long end with [`super::Error::Halted`].
    pub fn set(&self) {
        self.0.store(true, Relaxed);
    }

    /// Whether lbd is being stopped.
    #[must_use]
    pub fn is_set(&self) -> bool {
        self.0.load(Relaxed)
    }
}
