//! What can go wrong between lbd and its XDP program.
use std::io;

use super::super::error::CAPABILITIES;
use super::program::Attach;
use crate::io::limits;

/// The kernel, or the loader, refused.
#[derive(Debug, thiserror::Error)]
pub enum FilterError {
    /// The program or its maps cannot be loaded.
    #[error("cannot load the XDP program: {what}; {remedy}")]
    Load {
        /// What refused, and why.
        what: String,
        /// What would help.
        remedy: &'static str,
    },
    /// The program cannot be attached.
    #[error("cannot attach the XDP program to {interface} (attach = \"{wanted}\"): {source}; {}", attach_remedy(interface, *wanted, source))]
    Attach {
        /// The interface's name.
        interface: String,
        /// How it was to be attached.
        wanted: Attach,
        /// The kernel's reason.
        source: io::Error,
    },
    /// The XSKMAP is full.
    #[error(
        "interface {interface} has {queues} receive queues, more than the XDP program has places left for (of {limit} in all); reduce them: ethtool -L {interface} combined N"
    )]
    TooManyQueues {
        /// The interface's name.
        interface: String,
        /// How many it has.
        queues: u32,
        /// How many all interfaces may have.
        limit: u32,
    },
    /// The program is not attached there.
    #[error("the XDP program is not attached to the interface with index {index}; attach it first")]
    NotAttached {
        /// The interface's index.
        index: u32,
    },
    /// A map cannot hold more.
    #[error(
        "the XDP program's map `{map}` is full: it holds {limit} entries; configure fewer services, backends or rules, or use backend = \"tun\""
    )]
    Full {
        /// The map's name, as in filter_maps.h.
        map: &'static str,
        /// How many entries it holds.
        limit: u32,
    },
    /// A map cannot be changed.
    #[error("cannot change the XDP program's map `{map}`: {source}; {}", load_remedy(source))]
    Map {
        /// The map's name, as in filter_maps.h.
        map: &'static str,
        /// The kernel's reason.
        source: io::Error,
    },
}

impl FilterError {
    /// The loader's error, whose cause says what it is about.
    pub(super) fn load(error: &(dyn std::error::Error + 'static)) -> Self {
        let cause = chain(error).find_map(|error| error.downcast_ref::<io::Error>());
        let texts: Vec<String> = chain(error).map(ToString::to_string).collect();
        let mut short: Vec<&str> = texts.iter().map(|text| without_dump(text)).collect();
        // A cause is part of what it caused, once the dump after it is gone.
        short.dedup_by(|later, former| former.ends_with(*later));
        if short.join(": ") != texts.join(": ") {
            tracing::debug!("{}", texts.join(": "));
        }
        Self::Load {
            what: short.join(": "),
            remedy: cause.map_or("this is a fault of lbd, please report it", load_remedy),
        }
    }

    pub(super) fn missing(name: &str) -> Self {
        Self::Load {
            what: format!("it has no {name}"),
            remedy: "the object is not of this version; build lbd anew",
        }
    }
}

/// What the verifier wrote, hundreds of lines, is for those who ask for it.
fn without_dump(text: &str) -> &str {
    let (said, _dump) = text.split_once("Verifier output:").unwrap_or((text, ""));
    said.trim_end_matches(['.', ' '])
}

fn chain<'a>(
    error: &'a (dyn std::error::Error + 'static),
) -> impl Iterator<Item = &'a (dyn std::error::Error + 'static)> {
    std::iter::successors(Some(error), |error| error.source())
}

pub(super) fn load_remedy(error: &io::Error) -> &'static str {
    if let Some(remedy) = limits::remedy(error) {
        return remedy;
    }
    match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => CAPABILITIES,
        Some(libc::ENOMEM) => "free memory, or raise the memory limit of lbd's cgroup",
        Some(libc::ENOSYS) => "the kernel has no bpf(2); use backend = \"tun\"",
        _ => "XDP with AF_XDP needs Linux 5.15; use backend = \"tun\" on an older one",
    }
}

fn attach_remedy(interface: &str, wanted: Attach, error: &io::Error) -> String {
    match (error.raw_os_error(), wanted) {
        (Some(libc::EPERM | libc::EACCES), _) => CAPABILITIES.into(),
        (Some(libc::EBUSY | libc::EEXIST), _) => format!(
            "another XDP program is on {interface} (`ip link show dev {interface}` shows it): stop what has put it there, or `ip link set dev {interface} xdp off` (`xdpgeneric off` for one shown as xdpgeneric)"
        ),
        (Some(libc::ENODEV), _) => "the interface is gone; `ip link show` lists those that there are".into(),
        (_, Attach::Native) => "its driver cannot run XDP programs natively, or not with its present settings (MTU, queues, LRO; see `dmesg`): set attach = \"auto\" or \"generic\"".into(),
        (_, Attach::Auto | Attach::Generic) => {
            "see `dmesg`; without this interface, set backend = \"tun\"".into()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attach(wanted: Attach, number: i32) -> String {
        let source = io::Error::from_raw_os_error(number);
        let interface = "eth0".into();
        FilterError::Attach {
            interface,
            wanted,
            source,
        }
        .to_string()
    }

    #[test]
    fn the_remedy_fits_the_refusal() {
        assert!(attach(Attach::Auto, libc::EPERM).contains("CAP_BPF"));
        assert!(attach(Attach::Auto, libc::EBUSY).contains("ip link show dev eth0"));
        let native = attach(Attach::Native, libc::EOPNOTSUPP);
        assert!(
            native.contains("attach = \"native\"") && native.contains("attach = \"auto\""),
            "{native}"
        );
    }
}
