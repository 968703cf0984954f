//! What can go wrong between lbd and the kernel.
use std::io;
use std::path::PathBuf;

use crate::io::limits;

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
    #[error("netlink: cannot {what}: {source}{}", limits::remedy(source).map_or_else(String::new, |remedy| format!("; {remedy}")))]
    Netlink {
        /// What was being done.
        what: &'static str,
        /// The kernel's reason.
        source: io::Error,
    },
    /// See [`super::Halt`].
    #[error("lbd is being stopped")]
    Halted,
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
    /// The device was deleted, or moved.
    #[error(
        "{device} is not in this network namespace any more, so no packet reaches lbd: was the TUN device removed? was it moved (ip link set {device} netns)? start lbd again"
    )]
    Gone {
        /// Its name.
        device: String,
    },
    /// The device was renamed, and cannot get its name back.
    #[error(
        "{device} is called {now} by now, so lbd's rules do not know it, and it cannot get its name back: {source}; start lbd again, or choose another [tun] name"
    )]
    Renamed {
        /// Its name.
        device: String,
        /// What it is called.
        now: String,
        /// Why.
        source: Box<Self>,
    },
    /// The kernel was started without IPv6.
    #[error(
        "a service has an IPv6 address, and this kernel has no IPv6; start it without ipv6.disable=1, or remove the IPv6 services"
    )]
    NoIpv6,
    /// A file could not be read or written.
    #[error("{}: {source}", path.display())]
    File {
        /// Which one.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The journal of changed sysctls cannot be kept.
    #[error(
        "cannot write the journal of changed sysctls, {}: {source}; run lbd as root, or set socket in [control] to a path in a directory that lbd may write to", path.display()
    )]
    Unwritable {
        /// The journal, or its directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Somebody else may have written the journal.
    #[error("{}: not a journal of this lbd, {why}; look at who put it there, then delete it", path.display())]
    Untrusted {
        /// Which one.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
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
    if let Some(remedy) = limits::remedy(error) {
        return remedy;
    }
    match error.raw_os_error() {
        Some(libc::EPERM) => "lbd needs CAP_NET_ADMIN in this network namespace",
        // `ip6_route_info_create_nh` of net/ipv6/route.c; a missing capability is EPERM.
        Some(libc::EACCES) => {
            "IPv6 is switched off on the device; switch it on (sysctl net.ipv6.conf.DEVICE.disable_ipv6=0), or remove the IPv6 services"
        }
        Some(libc::EEXIST) => "something else has put in the same; remove that, or stop what put it there",
        Some(libc::ENODEV | libc::ENXIO) => "the TUN device is gone",
        Some(libc::EOPNOTSUPP | libc::EAFNOSUPPORT) => {
            "this kernel lacks it (IP_MULTIPLE_TABLES, IPV6_MULTIPLE_TABLES and IPv6 are needed)"
        }
        _ => "nothing was changed",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(code: i32) -> String {
        let source = io::Error::from_raw_os_error(code);
        let what = "ip route add fd00::10/128 table 7762".into();
        Error::Refused { what, source }.to_string()
    }

    #[test]
    fn ipv6_that_is_switched_off_is_not_taken_for_a_missing_capability() {
        let (off, missing) = (refused(libc::EACCES), refused(libc::EPERM));
        assert!(off.contains("disable_ipv6") && !off.contains("CAP_NET_ADMIN"), "{off}");
        assert!(missing.contains("CAP_NET_ADMIN"), "{missing}");
    }
}
