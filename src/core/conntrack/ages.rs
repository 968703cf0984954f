//! Slots in the order in which they came, with constant-time removal from anywhere: whom to evict first.

/// "No slot" in a link.
const NONE: u32 = u32::MAX;

/// A slot's neighbours.
#[derive(Clone, Copy, Debug)]
pub struct Link {
    older: u32,
    younger: u32,
}

impl Default for Link {
    fn default() -> Self {
        Self {
            older: NONE,
            younger: NONE,
        }
    }
}

/// The ends of a list whose links live in the slots themselves.
#[derive(Clone, Copy, Debug)]
pub struct Ages {
    oldest: u32,
    youngest: u32,
}

impl Default for Ages {
    fn default() -> Self {
        Self {
            oldest: NONE,
            youngest: NONE,
        }
    }
}

/// Gives access to the link of a slot.
pub trait Links {
    /// The link of an occupied slot.
    fn link(&mut self, slot: u32) -> &mut Link;
}

impl Ages {
    /// The slot that came first.
    #[must_use]
    pub const fn oldest(&self) -> Option<u32> {
        match self.oldest {
            NONE => None,
            slot => Some(slot),
        }
    }

    /// The slot that came last.
    #[must_use]
    pub const fn youngest(&self) -> Option<u32> {
        match self.youngest {
            NONE => None,
            slot => Some(slot),
        }
    }

    /// Adds a slot that is in no list.
    pub fn push(&mut self, links: &mut impl Links, slot: u32) {
        *links.link(slot) = Link {
            older: self.youngest,
            younger: NONE,
        };
        match self.youngest {
            NONE => self.oldest = slot,
            before => links.link(before).younger = slot,
        }
        self.youngest = slot;
    }

    /// Takes out a slot that is in this list.
    pub fn remove(&mut self, links: &mut impl Links, slot: u32) {
        let Link { older, younger } = std::mem::take(links.link(slot));
        match older {
            NONE => self.oldest = younger,
            before => links.link(before).younger = younger,
        }
        match younger {
            NONE => self.youngest = older,
            after => links.link(after).older = older,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    struct Slots(Vec<Link>);

    impl Links for Slots {
        fn link(&mut self, slot: u32) -> &mut Link {
            &mut self.0[slot as usize]
        }
    }

    proptest! {
        #[test]
        fn the_oldest_is_always_the_one_that_came_first(steps in prop::collection::vec((any::<bool>(), 0u32..16), 1..200)) {
            let mut slots = Slots(vec![Link::default(); 16]);
            let (mut ages, mut model) = (Ages::default(), Vec::new());
            for (add, slot) in steps {
                match (add, model.iter().position(|&other| other == slot)) {
                    (true, None) => {
                        ages.push(&mut slots, slot);
                        model.push(slot);
                    }
                    (false, Some(at)) => {
                        ages.remove(&mut slots, slot);
                        model.remove(at);
                    }
                    (true, Some(_)) | (false, None) => {}
                }
                prop_assert_eq!(ages.oldest(), model.first().copied());
            }
        }
    }
}
