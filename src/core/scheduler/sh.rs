//! `sh`: the client's address decides (ip_vs_sh.c).
use super::Flags;
use super::hash::{fold, hash_32};
use super::table::Table;
use crate::flow::Tuple;
use crate::service::Member;

/// `CONFIG_IP_VS_SH_TAB_BITS`, by default.
const TABLE_BITS: u32 = 8;
const TABLE_SIZE: usize = 1 << TABLE_BITS;

/// Source hashing: buckets handed out by weight.
#[derive(Clone, Debug)]
pub struct Sh {
    flags: Flags,
    table: Table,
}

impl Sh {
    /// `ip_vs_sh_reassign`: in each round a backend gets as many buckets as its weight; one of weight 0 gets one too,
    /// and its clients are refused.
    pub(super) fn new(flags: Flags, backends: &[Member]) -> Self {
        let shares = || {
            (0..).zip(backends).flat_map(|(index, backend)| {
                let buckets = (backend.weight() as usize).clamp(1, TABLE_SIZE);
                std::iter::repeat_n(index, buckets)
            })
        };
        let rounds = std::iter::repeat_with(shares).take(TABLE_SIZE).flatten();
        Self {
            flags,
            table: Table::new(rounds.take(TABLE_SIZE)),
        }
    }

    /// The backend of the client, if it takes new flows; with `sh-fallback`, otherwise another one.
    pub(super) fn pick(&self, tuple: &Tuple, backends: &[Member]) -> Option<usize> {
        let port = if self.flags.port {
            u32::from(tuple.source.port)
        } else {
            0
        };
        let hash = hash_32(fold(tuple.source.address).wrapping_add(port), TABLE_BITS);
        let hashed = self.table.pick(hash, backends);
        if hashed.is_some() || !self.flags.fallback {
            return hashed;
        }
        // `ip_vs_sh_get_fallback` begins at the hash, and adds the hash once more.
        let others = (0..TABLE_SIZE).map(|offset| (offset + 2 * hash) % TABLE_SIZE);
        self.table.pick_first(others, backends)
    }

    /// `ip_vs_sh_dest_changed`.
    pub(super) fn backends_changed(&mut self, after: &[Member]) {
        *self = Self::new(self.flags, after);
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Ending, Pattern, World, assert_refuses_then_moves, backends, flags, while_drained};
    use super::super::{Flags, Kind};

    fn choices(flags: &str, pattern: Pattern) -> String {
        World::kernel(Kind::Sh, flags).run(pattern, Ending::Closed)
    }

    #[test]
    fn a_client_meets_the_same_backend_whatever_its_port_and_the_virtual_address() {
        for flags in ["", "sh-fallback"] {
            assert_eq!(choices(flags, Pattern::Ports), "222222222222222222222222");
        }
        assert_eq!(choices("", Pattern::Vips), "222222222222222222222222");
    }

    #[test]
    fn clients_are_spread_by_their_addresses() {
        for flags in ["", "sh-fallback"] {
            assert_eq!(choices(flags, Pattern::Sources), "213133333323233232121213");
        }
    }

    #[test]
    fn with_sh_port_each_port_is_a_client_of_its_own() {
        assert_eq!(choices("sh-port", Pattern::Ports), "121323333132333323212122");
        assert_eq!(choices("sh-port", Pattern::Sources), "121323333132333323212122");
    }

    #[test]
    fn its_clients_are_refused_while_a_backend_is_drained_and_move_when_it_is_removed() {
        assert_refuses_then_moves(Kind::Sh);
    }

    #[test]
    fn with_sh_fallback_another_backend_takes_the_clients_of_a_drained_or_overloaded_one() {
        let mut world = World::with(Kind::Sh, flags("sh-fallback"), backends(&[1, 1]));
        let first: u64 = world.picks(1).parse().unwrap();
        world.set_weight(first, 0);
        assert_eq!(world.picks(1), (3 - first).to_string());
        world.overload(3 - first);
        assert_eq!(world.picks(1), "X");
        world.set_weight(first, 1);
        assert_eq!(world.picks(1), first.to_string());
    }

    #[test]
    fn with_sh_fallback_the_clients_of_a_drained_backend_are_spread_over_the_others() {
        // Computed apart from this code, by the formula of `ip_vs_sh_get_fallback`.
        let (before, drained) = while_drained(Kind::Sh, "sh-fallback");
        assert_eq!(before, "132313131212123232313131");
        assert_eq!(drained, "232333232232323232323233");
    }

    #[test]
    fn a_service_without_backends_refuses() {
        for flags in [Flags::default(), flags("sh-fallback")] {
            assert_eq!(World::with(Kind::Sh, flags, Vec::new()).picks(1), "X");
        }
    }
}
