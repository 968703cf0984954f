//! A look at the process and the host. Nothing is changed but the process's own limits, which are raised as far as they may
//! be.
use std::fs::{self, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use super::{Capability, Host, Setting};
use lbd_net::io::limits;

/// The settings of `needed` are looked at as well.
pub(super) fn look(needed: &[Setting]) -> Host {
    // Before anything is opened.
    let descriptors = limits::raise_descriptors();
    let locked = limits::raise_locked_memory();
    let status = fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    let user_namespace = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let effective = effective_capabilities(&status);
    Host {
        effective,
        is_first_user_namespace: user_namespace.split_whitespace().eq(["0", "0", "4294967295"]),
        fixed: needed.iter().filter_map(|setting| fixed(setting, effective)).collect(),
        tun: open_for_writing("/dev/net/tun".as_ref()).err().map(|error| {
            let remedy = limits::remedy(&error).unwrap_or("on the host: modprobe tun");
            format!("{error} ({remedy})")
        }),
        descriptors,
        locked,
    }
}

fn open_for_writing(file: &Path) -> io::Result<()> {
    OpenOptions::new().write(true).open(file).map(drop)
}

/// Where /proc is not mounted, nothing is known to be missing.
fn effective_capabilities(status: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    line.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .unwrap_or(u64::MAX)
}

/// A setting that has another value and cannot be set, not with the capability for it either. lbd's own device may not be
/// there yet: then what new devices get counts.
fn fixed(setting: &Setting, effective: u64) -> Option<(Setting, String)> {
    let (key, file) = candidates(&setting.key).into_iter().find(|(_, file)| file.exists())?;
    let is = fs::read_to_string(&file).ok()?.trim().to_owned();
    // The larger one of a device's own and that of all counts (`IN_DEV_RPFILTER`): only 1, strict, is in the way.
    let is = match key.ends_with(".rp_filter") {
        true => strictest(is),
        false => is,
    };
    let is_right = is == setting.value || (key.ends_with(".rp_filter") && is != "1");
    let can_be_set = || match open_for_writing(&file) {
        Ok(()) => true,
        Err(error) => error.raw_os_error() != Some(libc::EROFS) && !Capability::NetAdmin.is_in(effective),
    };
    let value = setting.value;
    (!is_right && !can_be_set()).then_some((Setting { key, value }, is))
}

fn strictest(own: String) -> String {
    let all = fs::read_to_string("/proc/sys/net/ipv4/conf/all/rp_filter").unwrap_or_default();
    own.max(all.trim().to_owned())
}

/// A setting's name and file: the device's own, else that of new devices.
fn candidates(key: &str) -> Vec<(String, PathBuf)> {
    let parts: Vec<&str> = key.split('.').collect();
    let file = |parts: &[&str]| ["/proc/sys"].iter().chain(parts).collect::<PathBuf>();
    let mut candidates = vec![(key.to_owned(), file(&parts))];
    if let [net, family, "conf", first, .., last] = parts.as_slice()
        && *first != "all"
    {
        // The device's name may have dots.
        let device = parts[3..parts.len() - 1].join(".");
        candidates[0].1 = file(&[net, family, "conf", &device, last]);
        let of_new = [*net, *family, "conf", "default", *last];
        candidates.push((of_new.join("."), file(&of_new)));
    }
    candidates
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_that_is_not_there_yet_gets_what_new_devices_get() {
        let names = |key| candidates(key).into_iter().map(|(_, file)| file.display().to_string());
        let own: Vec<String> = names("net.ipv4.conf.lb.5.rp_filter").collect();
        assert_eq!(
            own,
            [
                "/proc/sys/net/ipv4/conf/lb.5/rp_filter",
                "/proc/sys/net/ipv4/conf/default/rp_filter"
            ]
        );
        assert_eq!(names("net.ipv6.conf.all.forwarding").count(), 1);
    }

    #[test]
    fn capabilities_are_read_from_the_status_of_the_thread() {
        assert_eq!(
            effective_capabilities("CapPrm:\t0\nCapEff:\t0000000000001000\n"),
            1 << 12
        );
        assert_eq!(effective_capabilities(""), u64::MAX);
    }
}
