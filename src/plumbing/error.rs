//! What can go wrong between lbd and the kernel.
use std::io;
use std::path::PathBuf;

/// The kernel, or a file, refused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A route, a rule or a device setting was refused.
    #[error("the kernel refused `{what}`: {source}; {}", remedy(source))]
    Refused {
        /// As the `ip` command that would ask for the same.
        what: String,
        /// The kernel's reason.
        source: io::Error,
    },
    /// Netlink itself failed.
    #[error("netlink: cannot {what}: {source}")]
    Netlink {
        /// What was being done.
        what: &'static str,
        /// The kernel's reason.
        source: io::Error,
    },
    /// A sysctl has the wrong value and cannot be written.
    #[error(
        "cannot set sysctl {key} from {before} to {wanted}: {source}; set it beforehand (sysctl -w {key}={wanted}; for lbd's own device, below conf.default), or run lbd where /proc/sys is writable"
    )]
    Sysctl {
        /// As `sysctl` names it.
        key: String,
        /// Its value now.
        before: String,
        /// The value that lbd needs.
        wanted: String,
        /// The kernel's reason.
        source: io::Error,
    },
    /// A file could not be read or written.
    #[error("{}: {source}", path.display())]
    File {
        /// Which one.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The journal is no journal.
    #[error(
        "{}: not a journal of lbd: {source}; look at the sysctls that it names, then delete it", path.display()
    )]
    Journal {
        /// Which one.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
    /// There can be one lbd in TUN mode in a network namespace.
    #[error(
        "another lbd ({who}) already runs in this network namespace; stop it, or run this one in a namespace of its own"
    )]
    AlreadyRunning {
        /// Its process, or its device.
        who: String,
    },
}

fn remedy(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => "lbd needs CAP_NET_ADMIN in this network namespace",
        Some(libc::EEXIST) => "something else has put in the same; remove that, or stop what put it there",
        Some(libc::ENODEV | libc::ENXIO) => "the TUN device is gone",
        Some(libc::EOPNOTSUPP | libc::EAFNOSUPPORT) => {
            "this kernel lacks it (IP_MULTIPLE_TABLES, IPV6_MULTIPLE_TABLES and IPv6 are needed)"
        }
        _ => "nothing was changed",
    }
}
