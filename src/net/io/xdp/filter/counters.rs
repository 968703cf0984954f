//! What the filter did with the frames that came.
use std::io;

use crate::io::bpf::Map;

/// Frames since the program was loaded, of all interfaces and CPUs. Each one is counted once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Left to the kernel: nothing of lbd's.
    pub passed: u64,
    /// Taken: to a service, external or pool address.
    pub routes: u64,
    /// Taken: to a port on an address that the host has too.
    pub local_ports: u64,
    /// Taken: to the destination of a rule, or a port that lbd masquerades with.
    pub covers: u64,
    /// Taken: from a backend.
    pub replies: u64,
    /// Taken: ICMP errors about packets of lbd's.
    pub errors: u64,
    /// Taken: fragments that may be lbd's, other than to a service, external or pool address.
    pub fragments: u64,
    /// Taken: ARP requests and neighbour solicitations for an announced address.
    pub neighbours: u64,
    /// Left to the kernel: of a flow that turned out not to be lbd's.
    pub passed_flows: u64,
    /// Left to the kernel: reinjected by lbd on an interface in generic mode.
    pub reinjected: u64,
    /// Left to the kernel: lbd's by its addresses, but sent to another host's MAC address.
    pub foreign: u64,
    /// Left to the kernel: lbd's, but it came by a queue that has no socket.
    pub no_socket: u64,
}

impl Counters {
    /// Frames handed to lbd.
    #[must_use]
    pub const fn taken(&self) -> u64 {
        self.routes + self.local_ports + self.covers + self.replies + self.errors + self.fragments + self.neighbours
    }

    pub(super) fn read(map: &Map) -> io::Result<Self> {
        let sum = |kind: u32| -> io::Result<u64> {
            let values = map.get(&kind.to_ne_bytes())?;
            let (values, _) = values.as_chunks::<8>();
            Ok(values.iter().map(|&value| u64::from_ne_bytes(value)).sum())
        };
        // The order of `enum kind` in filter_maps.h.
        Ok(Self {
            passed: sum(0)?,
            routes: sum(1)?,
            local_ports: sum(2)?,
            covers: sum(3)?,
            replies: sum(4)?,
            errors: sum(5)?,
            fragments: sum(6)?,
            neighbours: sum(7)?,
            passed_flows: sum(8)?,
            reinjected: sum(9)?,
            foreign: sum(10)?,
            no_socket: sum(11)?,
        })
    }
}
