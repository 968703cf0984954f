//! Which bytes of a datagram have come, told as the kernel tells it (`inet_frag_queue_insert`, net/ipv4/inet_fragment.c).
use crate::packet::fragment::Fragment;
use crate::verdict::Drop;

/// The longest datagram: what 16 bits of length say (RFC 791 section 3.1, RFC 8200 section 4.5).
const LONGEST: u32 = 65_535;

/// A datagram comes in at most so many fragments: enough for the longest one over links of 300 bytes, where IPv4 needs 576
/// (RFC 791 section 3.1) and IPv6 1,280 (RFC 8200 section 5).
pub const MOST: usize = 256;

/// The bytes of one fragment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    start: u32,
    end: u32,
    last: bool,
}

impl From<&Fragment> for Piece {
    fn from(fragment: &Fragment) -> Self {
        let start = u32::from(fragment.offset);
        Self {
            start,
            end: start + u32::from(fragment.length),
            last: !fragment.more,
        }
    }
}

impl Piece {
    /// Whether it begins the datagram.
    pub(super) const fn is_first(&self) -> bool {
        self.start == 0
    }
}

/// What is wrong with a piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Misfit {
    /// All of it has come before: the same packet once more.
    Duplicate,
    /// The datagram will never be whole, or is an attack (RFC 5722).
    Spoils(Drop),
}

/// The bytes that have come.
#[derive(Clone, Debug, Default)]
pub(super) struct Pieces {
    /// Start and end of runs without a gap, in order, with gaps between them.
    runs: Vec<(u32, u32)>,
    count: usize,
    /// The end of the datagram, once its last fragment has come.
    end: Option<u32>,
}

impl Pieces {
    /// Takes note of a piece.
    pub(super) fn add(&mut self, piece: Piece) -> Result<(), Misfit> {
        if piece.end > LONGEST {
            return Err(Misfit::Spoils(Drop::FragmentTooLong));
        }
        let place = self.runs.partition_point(|&(_, end)| end <= piece.start);
        if let Some(&(start, end)) = self.runs.get(place)
            && start < piece.end
        {
            return Err(match start <= piece.start && piece.end <= end {
                true => Misfit::Duplicate,
                false => Misfit::Spoils(Drop::FragmentOverlap),
            });
        }
        self.bound(piece)?;
        if self.count == MOST {
            return Err(Misfit::Spoils(Drop::FragmentTooMany));
        }
        self.count += 1;
        self.join(place, piece);
        Ok(())
    }

    /// Whether nothing is missing.
    pub(super) fn is_whole(&self) -> bool {
        match (self.runs.as_slice(), self.end) {
            (&[(0, end)], Some(whole)) => end == whole,
            (_, _) => false,
        }
    }

    /// Nothing comes behind the last one, and there is one last one (`ip_frag_queue`, net/ipv4/ip_fragment.c).
    fn bound(&mut self, piece: Piece) -> Result<(), Misfit> {
        let farthest = self.runs.last().map_or(0, |&(_, end)| end);
        let is_beyond = match (self.end, piece.last) {
            (Some(end), _) => piece.end > end || piece.last,
            (None, true) => piece.end < farthest,
            (None, false) => false,
        };
        if is_beyond {
            return Err(Misfit::Spoils(Drop::FragmentTooLong));
        }
        if piece.last {
            self.end = Some(piece.end);
        }
        Ok(())
    }

    /// Puts a piece before the run at `place`, joined with its neighbours where no gap is between them.
    fn join(&mut self, place: usize, piece: Piece) {
        let before = place
            .checked_sub(1)
            .filter(|&before| self.runs[before].1 == piece.start);
        let behind = self.runs.get(place).copied().filter(|&(start, _)| start == piece.end);
        match (before, behind) {
            (Some(before), Some((_, end))) => {
                self.runs[before].1 = end;
                self.runs.remove(place);
            }
            (Some(before), None) => self.runs[before].1 = piece.end,
            (None, Some(_)) => self.runs[place].0 = piece.start,
            (None, None) => self.runs.insert(place, (piece.start, piece.end)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(start: u32, end: u32) -> Piece {
        Piece {
            start,
            end,
            last: false,
        }
    }

    fn last(start: u32, end: u32) -> Piece {
        Piece {
            last: true,
            ..piece(start, end)
        }
    }

    fn after(before: &[Piece], then: Piece) -> Result<(), Misfit> {
        let mut pieces = Pieces::default();
        before.iter().for_each(|&piece| pieces.add(piece).unwrap());
        pieces.add(then)
    }

    #[test]
    fn a_datagram_is_whole_when_the_last_gap_is_closed_in_whatever_order() {
        let all = [piece(0, 16), piece(16, 24), piece(24, 48), last(48, 50)];
        for order in [[0, 1, 2, 3], [3, 2, 1, 0], [0, 2, 1, 3], [3, 0, 2, 1], [1, 3, 0, 2]] {
            let mut pieces = Pieces::default();
            for (done, number) in order.into_iter().enumerate() {
                assert!(!pieces.is_whole(), "{done} of {order:?}");
                pieces.add(all[number]).unwrap();
            }
            assert!(pieces.is_whole(), "{order:?}");
            assert_eq!(pieces.runs, [(0, 50)]);
        }
    }

    #[test]
    fn what_has_come_before_is_a_duplicate_and_what_has_come_in_part_an_overlap() {
        let before = [piece(0, 16), piece(32, 48)];
        for same in [piece(0, 16), piece(8, 16), piece(32, 48)] {
            assert_eq!(after(&before, same), Err(Misfit::Duplicate));
        }
        for overlapping in [piece(8, 24), piece(24, 40), piece(0, 48), piece(40, 56), last(24, 33)] {
            let overlap = Err(Misfit::Spoils(Drop::FragmentOverlap));
            assert_eq!(after(&before, overlapping), overlap, "{overlapping:?}");
        }
    }

    #[test]
    fn nothing_comes_behind_the_last_one_or_beyond_what_a_datagram_may_have() {
        let too_long = Err(Misfit::Spoils(Drop::FragmentTooLong));
        assert_eq!(after(&[last(8, 16)], piece(16, 24)), too_long);
        assert_eq!(after(&[piece(16, 24)], last(0, 8)), too_long);
        assert_eq!(after(&[last(8, 16)], last(24, 32)), too_long);
        assert_eq!(after(&[], last(65_528, 65_536)), too_long);
        assert_eq!(after(&[], last(65_528, 65_535)), Ok(()));
    }

    #[test]
    fn a_datagram_in_too_many_fragments_is_no_honest_one() {
        let all: Vec<Piece> = (0..256).map(|n| piece(16 * n, 16 * n + 8)).collect();
        let one_more = after(&all, piece(60_000, 60_008));
        assert_eq!(one_more, Err(Misfit::Spoils(Drop::FragmentTooMany)));
    }
}
