//! Who gets a new flow: the schedulers of IPVS with the kernel's exact algorithms, and iptables' `random`.
//!
//! A scheduler sees the service's backends in configuration order, and returns an index into them. It is told of
//! every change of the list, as the kernel's `add_dest`, `del_dest` and `upd_dest` hooks are.
//!
//! One scheduler a file; what they share: `load` (who is free, who is least loaded), `hash` and `table` (the hashing
//! ones), `place` (a backend remembered), `cache` (backends remembered for a while), `shared` (what goes on in the scheduler
//! of the next configuration).
//!
//! What follows from the configuration alone (tables, levels) is worked out when a scheduler is made or told of a change, while
//! packets are still judged by the one before. What it remembers of its choices is shared with that one.
//!
//! What one decision costs, in nanoseconds, by the number of backends (`benches/scheduler`, one core of an AMD EPYC, other
//! builds beside it):
//!
//! | scheduler | 3 | 100 | 10,000 |
//! | --- | ---: | ---: | ---: |
//! | `random`, `rr`, `wrr` | 6 to 8 | 7 | 12 to 15 |
//! | `dh`, `sh` | 6 | 6 to 7 | 6 to 8 |
//! | `mh` | 14 | 16 | 32 |
//! | `lblc`, `lblcr`, the destination known | 16, 19 | 16, 19 | 16, 21 |
//! | `fo`, `ovf` | 8 | 50, 70 | 9,700, 10,700 |
//! | `lc` | 7 | 130 | 31,000 |
//! | `wlc`, `sed`, `nq` | 10 | 240 to 280 | 38,000 to 51,000 |
//! | `twos` | 31 | 280 | 55,000 |
//!
//! Those of the last four rows look at every backend, as the kernel's do: the load that they compare (`fo`: whether one
//! is overloaded) changes with each packet that opens or ends a connection.
mod cache;
mod dh;
mod fo;
mod hash;
mod lblc;
mod lblcr;
mod lc;
mod load;
mod mh;
mod nq;
mod ovf;
mod place;
#[cfg(test)]
mod properties;
mod random;
mod rr;
mod sed;
mod sh;
mod shared;
mod table;
#[cfg(test)]
mod testing;
mod twos;
mod wlc;
mod wrr;

use std::fmt;
use std::str::FromStr;

use crate::flow::Tuple;
use crate::service::Member;
use crate::time::Instant;
use lbd_prefetch as prefetch;

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
    /// Without effect.
    pub idle: IdleFlags,
}

/// Flags of schedulers that the service does not have. They do nothing, but are saved as they were configured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IdleFlags(u8);

impl IdleFlags {
    /// None of them.
    pub const NONE: Self = Self(0);
    /// `sh-port`
    pub const SH_PORT: Self = Self(1);
    /// `sh-fallback`
    pub const SH_FALLBACK: Self = Self(1 << 1);
    /// `mh-port`
    pub const MH_PORT: Self = Self(1 << 2);
    /// `mh-fallback`
    pub const MH_FALLBACK: Self = Self(1 << 3);

    /// These and those.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether all of `other` are among these.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

/// Randomness as a value: seeded by the caller, the same for the same seed.
pub type Rng = fastrand::Rng;

/// A scheduler. A clone goes on where it is, and both take turns: [`Scheduler::copy`] is apart.
#[derive(Clone, Debug)]
pub enum Scheduler {
    /// See [`Kind::Random`].
    Random,
    /// See [`Kind::Rr`].
    Rr(rr::Rr),
    /// See [`Kind::Wrr`].
    Wrr(wrr::Wrr),
    /// See [`Kind::Lc`].
    Lc,
    /// See [`Kind::Wlc`].
    Wlc,
    /// See [`Kind::Sh`].
    Sh(sh::Sh),
    /// See [`Kind::Dh`].
    Dh(dh::Dh),
    /// See [`Kind::Mh`].
    Mh(mh::Mh),
    /// See [`Kind::Sed`].
    Sed,
    /// See [`Kind::Nq`].
    Nq,
    /// See [`Kind::Fo`].
    Fo,
    /// See [`Kind::Ovf`].
    Ovf,
    /// See [`Kind::Lblc`].
    Lblc(lblc::Lblc),
    /// See [`Kind::Lblcr`].
    Lblcr(lblcr::Lblcr),
    /// See [`Kind::Twos`].
    Twos,
}

impl Scheduler {
    /// A scheduler that has not picked yet, over these backends (the kernel's `init_service`).
    #[must_use]
    pub fn new(kind: Kind, flags: Flags, backends: &[Member]) -> Self {
        match kind {
            Kind::Random => Self::Random,
            Kind::Rr => Self::Rr(rr::Rr::new()),
            Kind::Wrr => Self::Wrr(wrr::Wrr::new(backends)),
            Kind::Lc => Self::Lc,
            Kind::Wlc => Self::Wlc,
            Kind::Sh => Self::Sh(sh::Sh::new(flags, backends)),
            Kind::Dh => Self::Dh(dh::Dh::new(backends)),
            Kind::Mh => Self::Mh(mh::Mh::new(flags, backends)),
            Kind::Sed => Self::Sed,
            Kind::Nq => Self::Nq,
            Kind::Fo => Self::Fo,
            Kind::Ovf => Self::Ovf,
            Kind::Lblc => Self::Lblc(lblc::Lblc::new()),
            Kind::Lblcr => Self::Lblcr(lblcr::Lblcr::new()),
            Kind::Twos => Self::Twos,
        }
    }

    /// Which scheduler this is.
    #[must_use]
    pub const fn kind(&self) -> Kind {
        match self {
            Self::Random => Kind::Random,
            Self::Rr(_) => Kind::Rr,
            Self::Wrr(_) => Kind::Wrr,
            Self::Lc => Kind::Lc,
            Self::Wlc => Kind::Wlc,
            Self::Sh(_) => Kind::Sh,
            Self::Dh(_) => Kind::Dh,
            Self::Mh(_) => Kind::Mh,
            Self::Sed => Kind::Sed,
            Self::Nq => Kind::Nq,
            Self::Fo => Kind::Fo,
            Self::Ovf => Kind::Ovf,
            Self::Lblc(_) => Kind::Lblc,
            Self::Lblcr(_) => Kind::Lblcr,
            Self::Twos => Kind::Twos,
        }
    }

    /// The index of the backend for a new flow that begins with a packet of `tuple`; None when no one may take it.
    ///
    /// `backends` is the list of [`Scheduler::new`] or of the last [`Scheduler::backends_changed`]. The caller counts
    /// the flow on the backend before it asks for the next one ([`crate::service::Backend::bind`]).
    pub fn pick(&self, tuple: &Tuple, backends: &[Member], now: Instant, rng: &mut Rng) -> Option<usize> {
        match self {
            Self::Random => random::pick(backends, rng),
            Self::Rr(rr) => rr.pick(backends),
            Self::Wrr(wrr) => wrr.pick(backends),
            Self::Lc => lc::pick(backends),
            Self::Wlc => wlc::pick(backends),
            Self::Sh(sh) => sh.pick(tuple, backends),
            Self::Dh(dh) => dh.pick(tuple, backends),
            Self::Mh(mh) => mh.pick(tuple, backends),
            Self::Sed => sed::pick(backends),
            Self::Nq => nq::pick(backends),
            Self::Fo => fo::pick(backends),
            Self::Ovf => ovf::pick(backends),
            Self::Lblc(lblc) => lblc.pick(tuple, backends, now),
            Self::Lblcr(lblcr) => lblcr.pick(tuple, backends, now),
            Self::Twos => twos::pick(backends, rng),
        }
    }

    /// The list changed from `before` to `after`, or weights in it did (the kernel's `add_dest`, `del_dest` and
    /// `upd_dest`). `wrr` begins at the head then, so this is not for lists that stay as they are. Clones made before still pick
    /// from `before`.
    pub fn backends_changed(&mut self, before: &[Member], after: &[Member]) {
        match self {
            Self::Rr(rr) => rr.backends_changed(before, after),
            Self::Wrr(wrr) => wrr.backends_changed(after),
            Self::Sh(sh) => sh.backends_changed(after),
            Self::Dh(dh) => *dh = dh::Dh::new(after),
            Self::Mh(mh) => mh.backends_changed(after),
            // What they remember of backends that are gone is of no use, and found out when it is looked at.
            Self::Lblc(_) | Self::Lblcr(_) => {}
            Self::Random | Self::Lc | Self::Wlc | Self::Sed | Self::Nq | Self::Fo | Self::Ovf | Self::Twos => {}
        }
    }

    /// One that would choose the same, and whose choices this one does not see.
    #[must_use]
    pub fn copy(&self) -> Self {
        match self {
            Self::Rr(rr) => Self::Rr(rr.copy()),
            Self::Wrr(wrr) => Self::Wrr(wrr.copy()),
            Self::Lblc(lblc) => Self::Lblc(lblc.copy()),
            Self::Lblcr(lblcr) => Self::Lblcr(lblcr.copy()),
            Self::Sh(_) | Self::Dh(_) | Self::Mh(_) => self.clone(),
            Self::Random | Self::Lc | Self::Wlc | Self::Sed | Self::Nq | Self::Fo | Self::Ovf | Self::Twos => {
                self.clone()
            }
        }
    }

    /// Prefetches what it remembers of its choices.
    #[inline]
    pub(crate) fn prefetch(&self) {
        match self {
            Self::Rr(rr) => prefetch::line(rr.as_ptr()),
            Self::Wrr(wrr) => prefetch::line(wrr.as_ptr()),
            Self::Lblc(lblc) => prefetch::line(lblc.as_ptr()),
            Self::Lblcr(lblcr) => prefetch::line(lblcr.as_ptr()),
            Self::Sh(_) | Self::Dh(_) | Self::Mh(_) => {}
            Self::Random | Self::Lc | Self::Wlc | Self::Sed | Self::Nq | Self::Fo | Self::Ovf | Self::Twos => {}
        }
    }
}
