//! `dh`: the virtual address decides (ip_vs_dh.c).
use super::hash::{fold, hash_32};
use super::table::Table;
use crate::flow::Tuple;
use crate::service::Member;

/// `CONFIG_IP_VS_DH_TAB_BITS`, by default.
const TABLE_BITS: u32 = 8;

/// Destination hashing: buckets handed out in turn, weights ignored.
#[derive(Clone, Debug)]
pub struct Dh {
    table: Table,
}

impl Dh {
    /// `ip_vs_dh_reassign`.
    pub(super) fn new(backends: &[Member]) -> Self {
        let in_turn = (0..).take(backends.len()).cycle();
        Self {
            table: Table::new(in_turn.take(1 << TABLE_BITS)),
        }
    }

    /// The backend of the virtual address, if it takes new flows.
    pub(super) fn pick(&self, tuple: &Tuple, backends: &[Member]) -> Option<usize> {
        let bucket = hash_32(fold(tuple.destination.address), TABLE_BITS);
        self.table.pick(bucket, backends)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Ending, Pattern, World, backends};
    use super::super::{Flags, Kind};

    fn choices(pattern: Pattern) -> String {
        World::kernel(Kind::Dh, "").run(pattern, Ending::Closed)
    }

    #[test]
    fn the_virtual_address_alone_decides() {
        assert_eq!(choices(Pattern::Ports), "111111111111111111111111");
        assert_eq!(choices(Pattern::Sources), "111111111111111111111111");
        assert_eq!(choices(Pattern::Vips), "331313231321233131223131");
    }

    #[test]
    fn its_clients_are_refused_while_a_backend_is_drained_and_move_when_it_is_removed() {
        let mut world = World::with(Kind::Dh, Flags::default(), backends(&[1, 1]));
        let first = world.picks(1).parse().unwrap();
        world.set_weight(first, 0);
        assert_eq!(world.picks(2), "XX");
        world.remove(first);
        assert_eq!(world.picks(1), (3 - first).to_string());
    }
}
