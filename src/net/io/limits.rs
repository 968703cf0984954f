//! Limits of the process (getrlimit(2)): raised as far as they may be, and named where one is reached.
#![expect(unsafe_code, reason = "getrlimit(2) and setrlimit(2) have no safe wrapper in std")]

use std::io;

/// Raises the limit of open files as far as it may be, as whoever has many descriptors and never calls select(2) may
/// (getrlimit(2)). Returns what it is then; None: unlimited, or unknown.
#[must_use]
pub fn raise_descriptors() -> Option<u64> {
    raise(libc::RLIMIT_NOFILE)
}

/// The same for bytes that are locked in memory.
#[must_use]
pub fn raise_locked_memory() -> Option<u64> {
    raise(libc::RLIMIT_MEMLOCK)
}

fn raise(resource: libc::__rlimit_resource_t) -> Option<u64> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the call writes one rlimit, which `limit` is.
    if unsafe { libc::getrlimit(resource, &raw mut limit) } != 0 {
        return None;
    }
    let before = limit.rlim_cur;
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: the call reads one rlimit, which `limit` is.
    let raised = unsafe { libc::setrlimit(resource, &raw const limit) } == 0;
    let now = if raised { limit.rlim_max } else { before };
    (now != libc::RLIM_INFINITY).then_some(now)
}

/// What to do about a limit that was reached; None: this error tells of none.
#[must_use]
pub fn remedy(error: &io::Error) -> Option<&'static str> {
    match error.raw_os_error() {
        Some(libc::EMFILE) => {
            Some("lbd has as many open files as it may: raise `ulimit -n`, or set LimitNOFILE=65536 in its unit")
        }
        Some(libc::ENFILE) => Some("the host has as many open files as it may: raise it, sysctl -w fs.file-max=N"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_descriptor_table_is_told_from_other_refusals() {
        let said = |code| remedy(&io::Error::from_raw_os_error(code));
        assert!(said(libc::EMFILE).unwrap().contains("LimitNOFILE"));
        assert!(said(libc::ENFILE).unwrap().contains("fs.file-max"));
        assert_eq!(said(libc::EPERM), None);
    }

    #[test]
    fn a_raised_limit_is_at_its_most() {
        assert_eq!(raise_descriptors(), raise_descriptors());
    }
}
