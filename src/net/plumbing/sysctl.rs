//! The kernel settings without which packets do not pass the TUN device, and how they are put back.
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::device::Needs;
use super::error::Error;
use super::forwarding;
use super::journal::{Journal, Setting};
use super::object::Family;

impl Family {
    /// Whether this kernel has it at all.
    pub(super) fn is_supported(self) -> bool {
        file(self.configuration()).exists()
    }

    pub(super) const fn configuration(self) -> &'static str {
        match self {
            Self::V4 => "net/ipv4/conf",
            Self::V6 => "net/ipv6/conf",
        }
    }
}

/// Whether IPv6 has settings for this device: not where its MTU is too small, nor in a kernel without IPv6.
pub(super) fn has_ipv6(device: &str) -> bool {
    file(&format!("{}/{device}", Family::V6.configuration())).exists()
}

/// Settings of the device itself, which vanish with it; what each was where it was changed.
pub(super) fn prepare_device(device: &str, needs: Needs) -> Vec<Result<Option<String>, Error>> {
    let mut outcomes = vec![
        require_loose_filter(device),
        // A new device takes it from conf/default, which may differ from ip_forward.
        require(&format!("net/ipv4/conf/{device}/forwarding"), "1"),
    ];
    // Not vital: without the first, a local client of a port that nobody serves waits instead of being told; redirects
    // are never due, since no rule leads a packet from the device back into it.
    let accepted = accept_local(device);
    match needs.own_addresses {
        true => outcomes.push(accepted),
        false => outcomes.push(unimportant(accepted)),
    }
    let redirects = require(&format!("net/ipv4/conf/{device}/send_redirects"), "0");
    outcomes.push(unimportant(redirects));
    if needs.ipv6 {
        outcomes.extend(prepare_ipv6(device));
    }
    outcomes
}

/// What is refused of it is no trouble.
fn unimportant(outcome: Result<Option<String>, Error>) -> Result<Option<String>, Error> {
    outcome.or_else(|error| {
        tracing::debug!("{error}");
        Ok(None)
    })
}

/// Vital for node ports, whose replies come out of the device with an address of this host.
pub(super) fn accept_local(device: &str) -> Result<Option<String>, Error> {
    require(&format!("net/ipv4/conf/{device}/accept_local"), "1")
}

/// Clients do not live behind the device. The larger one of its value and that of conf/all counts (`IN_DEV_RPFILTER`):
/// 0 is off, 1 strict, 2 loose.
fn require_loose_filter(device: &str) -> Result<Option<String>, Error> {
    let own = format!("net/ipv4/conf/{device}/rp_filter");
    let values = [read(&own)?, read("net/ipv4/conf/all/rp_filter")?];
    match values.iter().max().map(String::as_str) {
        Some("1") => require(&own, "2"),
        Some(_) | None => Ok(None),
    }
}

/// Lets the host forward packets of `family`; what changes is in `journal` before it does. Returns how many settings did.
pub(super) fn prepare(family: Family, device: &str, journal: &mut Journal) -> Result<usize, Error> {
    // Not vital: only packets to what local sockets still remember are lost.
    let early = route_first(journal).unwrap_or_else(|error| {
        tracing::warn!("{error}");
        0
    });
    Ok(early + forwarding::switch_on(family, device, journal)?)
}

const EARLY_DEMUX: &str = "net/ipv4/ip_early_demux";

/// Whether lbd has done what [`route_first`] does.
pub(super) fn has_routed_first(journal: &Journal) -> bool {
    journal.settings().iter().any(|setting| setting.key == EARLY_DEMUX)
}

/// For both families: a packet with the addresses of a local socket, be it one in TIME_WAIT of a proxy that served before
/// lbd, is the socket's before it is routed (`tcp_v4_early_demux`, `tcp_v6_early_demux`), and lost where its route leads out
/// (`skb->sk` in `ip_forward` and `ip6_forward`). Documentation/networking/ip-sysctl.rst has routers switch it off.
pub(super) fn route_first(journal: &mut Journal) -> Result<usize, Error> {
    let (key, set) = (EARLY_DEMUX, "0");
    let before = read(key)?;
    if before == set {
        return Ok(0);
    }
    journal.add(vec![Setting {
        key: key.into(),
        before,
        set: set.into(),
        along: Vec::new(),
    }])?;
    require(key, set).map(|_| 1)
}

/// Settings of the device itself. Where IPv6 is switched off for new devices (`conf/default`), lbd's own refuses routes. Its
/// own forwarding switch is left alone: that of `all` counts (`ip6_forward`), and writing it has the host forget routers.
pub(super) fn prepare_ipv6(device: &str) -> Vec<Result<Option<String>, Error>> {
    if !Family::V6.is_supported() {
        return vec![Err(Error::NoIpv6)];
    }
    // Not vital: no packet that lbd writes is a router advertisement.
    let routers = require(&format!("net/ipv6/conf/{device}/accept_ra"), "0");
    vec![
        require(&format!("net/ipv6/conf/{device}/disable_ipv6"), "0"),
        unimportant(routers),
    ]
}

/// Undoes `journal` and deletes it.
pub(super) fn restore(journal: &mut Journal) -> Result<(), Error> {
    forwarding::restore(journal.settings()).1?;
    journal.delete()
}

/// Which have settings of `family`, with `all` and `default`.
pub(super) fn interfaces(family: Family) -> Result<Vec<String>, Error> {
    let path = file(family.configuration());
    let list = || -> io::Result<Vec<String>> {
        let names = fs::read_dir(&path)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
        let mut names = names.collect::<io::Result<Vec<String>>>()?;
        names.sort();
        Ok(names)
    };
    list().map_err(|source| Error::File {
        path: path.clone(),
        source,
    })
}

fn file(key: &str) -> PathBuf {
    Path::new("/proc/sys").join(key)
}

/// None: there is no such setting, since the interface is gone.
pub(super) fn read_if_there(key: &str) -> Result<Option<String>, Error> {
    match read(key) {
        Ok(value) => Ok(Some(value)),
        Err(Error::File { source, .. }) if is_gone(&source) => Ok(None),
        Err(error) => Err(error),
    }
}

/// A directory of /proc/sys that goes while it is open has no such device (`sysctl_head_grab`, fs/proc/proc_sysctl.c).
fn is_gone(error: &io::Error) -> bool {
    [libc::ENOENT, libc::ENODEV].map(Some).contains(&error.raw_os_error())
}

pub(super) fn read(key: &str) -> Result<String, Error> {
    let path = file(key);
    let text = fs::read_to_string(&path).map_err(|source| Error::File { path, source })?;
    Ok(text.trim().to_owned())
}

/// Writes only where the value is another one: a read-only `/proc/sys` with the right values is good enough. Says what was
/// there before.
pub(super) fn require(key: &str, wanted: &str) -> Result<Option<String>, Error> {
    let before = read(key)?;
    if before == wanted {
        return Ok(None);
    }
    match fs::write(file(key), wanted) {
        Ok(()) => Ok(Some(format!("{} was {before}", dotted(key)))),
        Err(source) => Err(Error::Sysctl {
            key: dotted(key),
            before,
            wanted: wanted.into(),
            source,
        }),
    }
}

/// As `sysctl` writes it: dots for slashes, and a slash for the dot of `eth0.5`.
fn dotted(key: &str) -> String {
    let swap = |character| match character {
        '/' => '.',
        '.' => '/',
        other => other,
    };
    key.chars().map(swap).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vlan_interface_is_named_as_sysctl_wants_it() {
        assert_eq!(
            dotted("net/ipv4/conf/eth0.5/rp_filter"),
            "net.ipv4.conf.eth0/5.rp_filter"
        );
    }

    #[test]
    fn a_value_that_is_right_already_is_not_written() {
        let right = read("kernel/random/boot_id").unwrap();
        assert_eq!(require("kernel/random/boot_id", &right).unwrap(), None);
    }

    #[test]
    fn a_value_that_cannot_be_written_is_named_with_its_remedy() {
        let error = require("kernel/random/boot_id", "1").unwrap_err().to_string();
        assert!(error.contains("sysctl -w kernel.random.boot_id=1"), "{error}");
    }
}
