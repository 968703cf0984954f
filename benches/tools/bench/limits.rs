//! How many files may be open: a proxy's connections take many, on both sides of it.
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// As many as are asked for.
const WANTED: u64 = 1 << 20;

/// Raises the limit, also for the programs that are started from here: as far as root may, else to the hard limit.
pub(crate) fn raise_files() {
    let both = |limit| Rlimit {
        current: Some(limit),
        maximum: Some(limit),
    };
    if setrlimit(Resource::Nofile, both(WANTED)).is_err() {
        let most = getrlimit(Resource::Nofile).maximum.unwrap_or(WANTED);
        // Lower than it is already it cannot become; what is allowed serves for most questions.
        setrlimit(Resource::Nofile, both(most)).unwrap_or_default();
    }
}

/// The limit.
pub(crate) fn files() -> u64 {
    getrlimit(Resource::Nofile).current.unwrap_or(WANTED)
}

/// Connections through a proxy that can be held: client and server are both of this process.
pub(crate) fn proxied_connections() -> u32 {
    u32::try_from(files().saturating_sub(2_000) / 2).unwrap_or(u32::MAX)
}
