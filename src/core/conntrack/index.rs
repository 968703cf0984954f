//! Where flows are, by the hash of either tuple: open addressing with linear probing, one word a cell.
//!
//! A cell holds half of the hash beside the entry, so that a lookup reads one cache line here and the flow itself, and
//! nothing of other flows; and so that growing needs no flow. With hashbrown, which reads a line of control bytes and a line
//! of entries, a TCP packet of a known flow took 131 ns with a thousand flows and 825 with a million; with this 130 and
//! 684, in the next run (`benches/engine.rs`, one thread, other builds beside both runs).
use std::fmt;
use std::mem;

use crate::flow::Direction;
use lbd_prefetch as prefetch;

/// The fewest cells.
const LEAST: usize = 16;

/// A slot and a direction in one word, so that one probe says whose packet it is and which way it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry(u32);

impl Entry {
    pub(super) const fn new(slot: u32, direction: Direction) -> Self {
        Self(slot << 1 | matches!(direction, Direction::Reply) as u32)
    }

    pub(super) const fn slot(self) -> u32 {
        self.0 >> 1
    }

    pub(super) const fn direction(self) -> Direction {
        match self.0 & 1 {
            0 => Direction::Original,
            _ => Direction::Reply,
        }
    }
}

/// Half a hash above an entry plus one; zero is empty.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
struct Cell(u64);

impl Cell {
    const EMPTY: Self = Self(0);

    /// Whose entry has moved or was removed: neither empty nor an entry's.
    const MOVED: Self = Self(1 << 32);

    const fn new(hash: u64, entry: Entry) -> Self {
        // Slots are numbered below 2^30 (`max_flows`), so one more than an entry fits.
        Self(hash & TAG | (entry.0 + 1) as u64)
    }

    const fn entry(self) -> Entry {
        Entry((self.0 as u32).wrapping_sub(1))
    }

    const fn has_tag_of(self, hash: u64) -> bool {
        (self.0 ^ hash) & TAG == 0
    }
}

/// The half of a hash that is kept. Its top bits choose the cell that a search begins at.
const TAG: u64 = !(u32::MAX as u64);

/// See the module.
pub(super) struct Index {
    table: Table,
    /// What is still on its way to the present table, see [`Self::grow`].
    former: Option<Former>,
}

/// Cells.
struct Table {
    /// A power of two, at most 2^32.
    cells: Box<[u64]>,
    /// How far right a hash is shifted to number its cell.
    shift: u32,
    used: usize,
}

/// A table that has become too small. Cells before `next` have moved to the larger one.
struct Former {
    table: Table,
    next: usize,
}

/// Cells of the former table that are moved with each new entry. Two would do to be through before the next growth.
const STEP: usize = 16;

impl fmt::Debug for Index {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Index")
            .field("cells", &self.table.cells.len())
            .field("used", &self.used())
            .finish_non_exhaustive()
    }
}

impl Index {
    /// An empty index.
    pub(super) fn new() -> Self {
        Self {
            table: Table::with_cells(LEAST),
            former: None,
        }
    }

    /// Bytes that it takes.
    pub(super) fn memory(&self) -> usize {
        let former = self.former.as_ref().map_or(0, |former| former.table.cells.len());
        size_of::<u64>() * (self.table.cells.len() + former)
    }

    /// The entry with this hash that `matches`.
    #[inline]
    pub(super) fn find(&self, hash: u64, mut matches: impl FnMut(Entry) -> bool) -> Option<Entry> {
        let found = self.table.find(hash, &mut matches);
        match &self.former {
            Some(former) if found.is_none() => former.table.find(hash, matches),
            Some(_) | None => found,
        }
    }

    /// Where its cells are, and how far right a hash is shifted to number its cell.
    pub(super) const fn cells(&self) -> (*const u64, u32) {
        (self.table.cells.as_ptr(), self.table.shift)
    }

    /// Has the CPU fetch the cell where a search for `hash` begins.
    #[inline]
    pub(super) fn prefetch(&self, hash: u64) {
        prefetch::line(&raw const self.table.cells[self.table.home(hash)]);
    }

    /// Stores an entry, which is not there yet.
    pub(super) fn insert(&mut self, hash: u64, entry: Entry) {
        self.catch_up(STEP);
        // At three quarters a search for what is not there looks at 8.5 cells, one or two cache lines (Knuth, TAOCP 6.4).
        if (self.used() + 1) * 4 > self.table.cells.len() * 3 {
            self.grow();
        }
        self.table.put(Cell::new(hash, entry));
    }

    /// Removes an entry.
    pub(super) fn remove(&mut self, hash: u64, entry: Entry) {
        let wanted = Cell::new(hash, entry);
        if let Some(at) = self.table.position(wanted) {
            self.table.close(at);
        } else if let Some(former) = &mut self.former
            && let Some(at) = former.table.position(wanted)
        {
            former.table.mark(at);
        }
    }

    fn used(&self) -> usize {
        self.table.used + self.former.as_ref().map_or(0, |former| former.table.used)
    }

    /// Begins a table of twice the size. Entries move there bit by bit: all at once, a million take 0.1 s, in which no
    /// packet would be forwarded. A table that has room from the start would have few flows lie far apart.
    fn grow(&mut self) {
        self.catch_up(usize::MAX);
        let larger = Table::with_cells(self.table.cells.len() * 2);
        let table = mem::replace(&mut self.table, larger);
        self.former = Some(Former { table, next: 0 });
    }

    /// Moves the entries of so many cells of the former table.
    fn catch_up(&mut self, cells: usize) {
        let Some(former) = &mut self.former else { return };
        let end = former.next.saturating_add(cells).min(former.table.cells.len());
        for at in former.next..end {
            let cell = Cell(former.table.cells[at]);
            if cell != Cell::EMPTY && cell != Cell::MOVED {
                self.table.put(cell);
                former.table.mark(at);
            }
        }
        former.next = end;
        if end == former.table.cells.len() {
            self.former = None;
        }
    }
}

impl Table {
    fn with_cells(count: usize) -> Self {
        Self {
            // Of plain zeros: the kernel gives memory for those when they are first written to.
            cells: vec![0; count].into_boxed_slice(),
            shift: u64::BITS - count.trailing_zeros(),
            used: 0,
        }
    }

    #[inline]
    fn find(&self, hash: u64, mut matches: impl FnMut(Entry) -> bool) -> Option<Entry> {
        let mut at = self.home(hash);
        loop {
            let cell = Cell(self.cells[at]);
            if cell == Cell::EMPTY {
                return None;
            }
            if cell.has_tag_of(hash) && matches(cell.entry()) {
                return Some(cell.entry());
            }
            at = self.after(at);
        }
    }

    fn position(&self, wanted: Cell) -> Option<usize> {
        let mut at = self.home(wanted.0);
        while self.cells[at] != wanted.0 {
            if self.cells[at] == Cell::EMPTY.0 {
                return None;
            }
            at = self.after(at);
        }
        Some(at)
    }

    fn put(&mut self, cell: Cell) {
        let mut at = self.home(cell.0);
        while self.cells[at] != Cell::EMPTY.0 {
            at = self.after(at);
        }
        self.cells[at] = cell.0;
        self.used += 1;
    }

    /// Takes out a cell of a table that is moved: nothing is put into it any more, so that the place may stay taken.
    fn mark(&mut self, at: usize) {
        self.cells[at] = Cell::MOVED.0;
        self.used -= 1;
    }

    /// Takes out a cell, and fills the hole with one behind it whose search would otherwise end at the hole, and so on.
    fn close(&mut self, mut hole: usize) {
        let mut at = self.after(hole);
        while self.cells[at] != Cell::EMPTY.0 {
            if self.distance(self.home(self.cells[at]), at) >= self.distance(hole, at) {
                self.cells[hole] = self.cells[at];
                hole = at;
            }
            at = self.after(at);
        }
        self.cells[hole] = Cell::EMPTY.0;
        self.used -= 1;
    }

    /// Where a search begins.
    #[inline]
    const fn home(&self, hash: u64) -> usize {
        (hash >> self.shift) as usize
    }

    #[inline]
    const fn after(&self, at: usize) -> usize {
        (at + 1) & (self.cells.len() - 1)
    }

    /// Steps from one cell to another.
    const fn distance(&self, from: usize, to: usize) -> usize {
        to.wrapping_sub(from) & (self.cells.len() - 1)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    fn entry(number: u32) -> Entry {
        Entry::new(number, Direction::Original)
    }

    proptest! {
        /// Hashes that begin alike make long runs of cells, also over the end of the table.
        #[test]
        fn it_holds_what_a_map_holds(steps in prop::collection::vec((0..40_u64, 0..4_u64, any::<bool>()), 0..400)) {
            let mut index = Index::new();
            let mut map = HashMap::new();
            for (number, run, adds) in steps {
                let hash = (u64::MAX << 60).wrapping_add(run << 58) | number << 32 | number;
                let entry = entry((number * 4 + run) as u32);
                match (adds, map.contains_key(&hash)) {
                    (true, false) => {
                        index.insert(hash, entry);
                        map.insert(hash, entry);
                    }
                    (false, true) => {
                        index.remove(hash, entry);
                        map.remove(&hash);
                    }
                    (true, true) | (false, false) => {}
                }
                for (&hash, &entry) in &map {
                    prop_assert_eq!(index.find(hash, |found| found == entry), Some(entry));
                }
                prop_assert_eq!(index.used(), map.len());
                let former = index.former.iter().flat_map(|former| &former.table.cells);
                let cells = index.table.cells.iter().chain(former).map(|&cell| Cell(cell));
                let filled = cells.filter(|&cell| cell != Cell::EMPTY && cell != Cell::MOVED).count();
                prop_assert_eq!(filled, map.len());
            }
        }
    }

    #[test]
    fn entries_are_found_and_removed_all_the_while_a_table_grows() {
        let mut index = Index::new();
        let hash = |number: u32| u64::from(number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        for number in 0..20_000 {
            index.insert(hash(number), entry(number));
            let old = number / 2;
            let found = index.find(hash(old), |found| found == entry(old));
            assert_eq!(found, (old % 7 != 0 || number % 2 == 0).then(|| entry(old)), "{number}");
            if number % 2 == 0 && old % 7 == 0 {
                index.remove(hash(old), entry(old));
            }
        }
        assert_eq!(index.used(), 20_000 - 10_000_usize.div_ceil(7));
    }

    #[test]
    fn what_was_removed_is_not_found_and_removing_it_again_changes_nothing() {
        let mut index = Index::new();
        index.insert(7 << 40, entry(1));
        index.remove(7 << 40, entry(2));
        assert_eq!(index.find(7 << 40, |_| true), Some(entry(1)));
        index.remove(7 << 40, entry(1));
        index.remove(7 << 40, entry(1));
        assert_eq!((index.find(7 << 40, |_| true), index.used()), (None, 0));
    }
}
