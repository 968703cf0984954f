//! The kernel settings without which packets do not pass the TUN device, and how they are put back.
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::error::Error;
use super::journal::{Journal, Setting};
use super::object::Family;

impl Family {
    /// Whether this kernel has it at all.
    pub(super) fn is_supported(self) -> bool {
        file(self.configuration()).exists()
    }

    const fn configuration(self) -> &'static str {
        match self {
            Self::V4 => "net/ipv4/conf",
            Self::V6 => "net/ipv6/conf",
        }
    }

    const fn forwarding(self) -> &'static str {
        match self {
            Self::V4 => "net/ipv4/ip_forward",
            Self::V6 => "net/ipv6/conf/all/forwarding",
        }
    }
}

/// Settings of the device itself, which vanish with it.
pub(super) fn prepare_device(device: &str) -> Result<(), Error> {
    require_loose_filter(device)?;
    // A new device takes it from conf/default, which may differ from ip_forward.
    require(&format!("net/ipv4/conf/{device}/forwarding"), "1")?;
    // Not vital: without the first, a local client of a port that nobody serves waits instead of being told; redirects
    // are never due, since no rule leads a packet from the device back into it.
    let redirects = require(&format!("net/ipv4/conf/{device}/send_redirects"), "0");
    for error in [accept_local(device), redirects].into_iter().filter_map(Result::err) {
        tracing::debug!("{error}");
    }
    Ok(())
}

/// Vital for node ports, whose replies come out of the device with an address of this host.
pub(super) fn accept_local(device: &str) -> Result<(), Error> {
    require(&format!("net/ipv4/conf/{device}/accept_local"), "1")
}

/// Clients do not live behind the device. The larger one of its value and that of conf/all counts (`IN_DEV_RPFILTER`):
/// 0 is off, 1 strict, 2 loose.
fn require_loose_filter(device: &str) -> Result<(), Error> {
    let own = format!("net/ipv4/conf/{device}/rp_filter");
    let values = [read(&own)?, read("net/ipv4/conf/all/rp_filter")?];
    match values.iter().max().map(String::as_str) {
        Some("1") => require(&own, "2"),
        Some(_) | None => Ok(()),
    }
}

/// Lets the host forward packets of `family`; what changes is in `journal` before it does.
pub(super) fn prepare(family: Family, device: &str, journal: &mut Journal) -> Result<(), Error> {
    if family == Family::V6 {
        prepare_ipv6(device)?;
    }
    // Not vital: only packets to what local sockets still remember are lost.
    if let Err(error) = route_first(journal) {
        tracing::warn!("{error}");
    }
    if is_forwarding(family)? {
        return Ok(());
    }
    let mut settings = match family {
        Family::V4 => Vec::new(),
        Family::V6 => keep_router_advertisements(device)?,
    };
    settings.push(forwarding(family, device)?);
    journal.add(settings.clone())?;
    settings
        .iter()
        .try_for_each(|setting| require(&setting.key, &setting.set))
}

/// Whether the host forwards packets of `family`.
pub(super) fn is_forwarding(family: Family) -> Result<bool, Error> {
    Ok(read(family.forwarding())? == "1")
}

/// For both families: a packet with the addresses of a local socket, be it one in TIME_WAIT of a proxy that served before
/// lbd, is the socket's before it is routed (`tcp_v4_early_demux`, `tcp_v6_early_demux`), and lost where its route leads out
/// (`skb->sk` in `ip_forward` and `ip6_forward`). Documentation/networking/ip-sysctl.rst has routers switch it off.
fn route_first(journal: &mut Journal) -> Result<(), Error> {
    let key = "net/ipv4/ip_early_demux";
    let (before, set) = (read(key)?, "0");
    if before == set {
        return Ok(());
    }
    journal.add(vec![Setting {
        key: key.into(),
        before,
        set: set.into(),
        along: Vec::new(),
    }])?;
    require(key, set)
}

/// Settings of the device itself. Where IPv6 is switched off for new devices (`conf/default`), lbd's own refuses routes.
fn prepare_ipv6(device: &str) -> Result<(), Error> {
    if !Family::V6.is_supported() {
        return Err(Error::NoIpv6);
    }
    require(&format!("net/ipv6/conf/{device}/disable_ipv6"), "0")?;
    require(&format!("net/ipv6/conf/{device}/forwarding"), "1")
}

/// Puts everything back that still has the value which lbd gave it; yields how many settings were.
pub(super) fn restore_settings(settings: &[Setting]) -> Result<usize, Error> {
    let mut restored = 0;
    for setting in settings.iter().rev() {
        // The interface may be gone.
        if !file(&setting.key).exists() || read(&setting.key)? != setting.set {
            continue;
        }
        require(&setting.key, &setting.before)?;
        for (key, before) in setting.along.iter().filter(|(key, _)| file(key).exists()) {
            require(key, before)?;
        }
        restored += 1;
    }
    Ok(restored)
}

/// Undoes `journal` and deletes it.
pub(super) fn restore(journal: &mut Journal) -> Result<(), Error> {
    restore_settings(journal.settings())?;
    journal.delete()
}

/// A forwarding host ignores router advertisements, and forgets the default routers it learned from them, on
/// interfaces with `accept_ra` 1, but not with 2 (`rt6_purge_dflt_routers` of net/ipv6/route.c).
fn keep_router_advertisements(device: &str) -> Result<Vec<Setting>, Error> {
    let mut settings = Vec::new();
    for interface in interfaces(Family::V6)? {
        let key = format!("net/ipv6/conf/{interface}/accept_ra");
        let hears = !["all", "lo", device].contains(&interface.as_str());
        if hears && read(&key)? == "1" {
            let (before, set) = ("1".into(), "2".into());
            settings.push(Setting {
                key,
                before,
                set,
                along: Vec::new(),
            });
        }
    }
    Ok(settings)
}

/// Writing the global switch also writes the one of every interface, of `default`, and for IPv4 the inverse into
/// `conf/all/accept_redirects` (`inet_forward_change` of net/ipv4/devinet.c, `addrconf_forward_change` of
/// net/ipv6/addrconf.c). It also turns off large receive offload of every interface, which nothing turns on again.
fn forwarding(family: Family, device: &str) -> Result<Setting, Error> {
    let key = family.forwarding().to_owned();
    let mut along = Vec::new();
    for interface in interfaces(family)? {
        if interface != "all" && interface != device {
            along.push(format!("{}/{interface}/forwarding", family.configuration()));
        }
    }
    if family == Family::V4 {
        along.push("net/ipv4/conf/all/accept_redirects".into());
    }
    let along = along.into_iter().map(|key| Ok((key.clone(), read(&key)?)));
    Ok(Setting {
        before: read(&key)?,
        key,
        set: "1".into(),
        along: along.collect::<Result<_, Error>>()?,
    })
}

fn interfaces(family: Family) -> Result<Vec<String>, Error> {
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

fn read(key: &str) -> Result<String, Error> {
    let path = file(key);
    let text = fs::read_to_string(&path).map_err(|source| Error::File { path, source })?;
    Ok(text.trim().to_owned())
}

/// Writes only where the value is another one: a read-only `/proc/sys` with the right values is good enough.
fn require(key: &str, wanted: &str) -> Result<(), Error> {
    let before = read(key)?;
    if before == wanted {
        return Ok(());
    }
    fs::write(file(key), wanted).map_err(|source| Error::Sysctl {
        key: dotted(key),
        before,
        wanted: wanted.into(),
        source,
    })
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
        require("kernel/random/boot_id", &right).unwrap();
    }

    #[test]
    fn a_value_that_cannot_be_written_is_named_with_its_remedy() {
        let error = require("kernel/random/boot_id", "1").unwrap_err().to_string();
        assert!(error.contains("sysctl -w kernel.random.boot_id=1"), "{error}");
    }

    #[test]
    fn the_setting_of_an_interface_that_is_gone_is_skipped() {
        let setting = Setting {
            key: "net/ipv4/conf/gone0/rp_filter".into(),
            before: "0".into(),
            set: "1".into(),
            along: Vec::new(),
        };
        assert_eq!(restore_settings(&[setting]).unwrap(), 0);
    }
}
