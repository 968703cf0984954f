//! Has the host forward packets, at no cost to what it learned from routers.
//!
//! Each write of a 1 to any IPv6 forwarding switch, be it of a single interface, drops the default routes of router
//! advertisements in the whole network namespace, but for those of interfaces with `accept_ra` 2
//! (`addrconf_fixup_forwarding` of net/ipv6/addrconf.c, `rt6_purge_dflt_routers` of net/ipv6/route.c). And an interface
//! that forwards ignores later advertisements, unless its `accept_ra` is 2 (`ipv6_accept_ra`). Hence the order: `accept_ra`
//! before the switch at the start, after it at the end.
use std::collections::BTreeSet;
use std::fs;

use super::error::Error;
use super::journal::{Journal, Setting};
use super::object::Family;
use super::sysctl::{interfaces, read, read_if_there, require};

/// Hears routers even where it forwards.
const HEARS_ALWAYS: &str = "2";

impl Family {
    const fn forwarding(self) -> &'static str {
        match self {
            Self::V4 => "net/ipv4/ip_forward",
            Self::V6 => "net/ipv6/conf/all/forwarding",
        }
    }

    fn forwarding_of(self, interface: &str) -> String {
        format!("{}/{interface}/forwarding", self.configuration())
    }
}

/// Whether the host forwards packets of `family`. For IPv6, 2 is as good as 1 (Documentation/networking/ip-sysctl.rst).
pub(super) fn is_on(family: Family) -> Result<bool, Error> {
    Ok(read(family.forwarding())? != "0")
}

/// Switches it on, where it is off; what changes is in `journal` before it does. `device` is lbd's own. Returns how many
/// settings were changed.
pub(super) fn switch_on(family: Family, device: &str, journal: &mut Journal) -> Result<usize, Error> {
    if is_on(family)? {
        return Ok(0);
    }
    let mut settings = Vec::new();
    if family == Family::V6 {
        settings = hearing(device, journal.settings())?;
        // Before they are among those that were there when the switch was written.
        settings.extend(inherited(journal.settings())?);
    }
    let hearing = settings.len();
    settings.push(switch(family, device)?);
    journal.add(settings.clone())?;
    // First of all, so that those that hear on are none of those whose value comes back.
    write(&settings[..hearing])?;
    let frozen = match family {
        Family::V4 => Frozen::default(),
        Family::V6 => Frozen::freeze()?,
    };
    let written = write(&settings[hearing..]);
    frozen.thaw().and(written).map(|switched| hearing + switched)
}

fn write(settings: &[Setting]) -> Result<usize, Error> {
    for Setting { key, set, .. } in settings {
        require(key, set)?;
    }
    Ok(settings.len())
}

/// Has interfaces hear routers that do no longer since lbd made the host forward: new ones, and those whose `accept_ra`
/// another program wrote. Returns how many.
pub(super) fn keep_hearing(device: &str, journal: &mut Journal) -> Result<usize, Error> {
    if !journal.settings().iter().any(is_switch_of_ipv6) {
        return Ok(0);
    }
    let settings = hearing(device, journal.settings())?;
    journal.add(settings.clone())?;
    write(&settings)
}

/// Puts everything back that still has the value which lbd gave it, and as much of it as can be; returns how many settings
/// were, and what failed first.
pub(super) fn restore(settings: &[Setting]) -> (usize, Result<(), Error>) {
    let (hearing, others): (Vec<&Setting>, Vec<&Setting>) = settings.iter().partition(|setting| is_accept_ra(setting));
    // The switch of a single interface that forwarded before lbd is written here, too.
    let frozen = match others.iter().any(|setting| is_switch_of_ipv6(setting)) {
        true => Frozen::freeze(),
        false => Ok(Frozen::default()),
    };
    let mut outcomes: Vec<Result<usize, Error>> = others.into_iter().rev().map(restore_one).collect();
    outcomes.push(frozen.and_then(Frozen::thaw).map(|()| 0));
    outcomes.extend(hearing.into_iter().rev().map(restore_one));
    match inherited(settings) {
        Ok(inherited) => outcomes.extend(inherited.iter().map(restore_one)),
        Err(error) => outcomes.push(Err(error)),
    }
    let restored = outcomes.iter().flatten().sum();
    (
        restored,
        outcomes.into_iter().try_for_each(|outcome| outcome.map(|_| ())),
    )
}

/// Returns 1 where it had to be changed.
fn restore_one(setting: &Setting) -> Result<usize, Error> {
    // Else the interface is gone.
    let Some(now) = read_if_there(&setting.key)? else {
        return Ok(0);
    };
    let is_ours = now == setting.set;
    if is_ours {
        require(&setting.key, &setting.before)?;
    }
    // Where the value is the old one already, another program wrote it, or whoever was about to put back the rest died.
    if is_ours || now == setting.before {
        for (key, before) in &setting.along {
            if read_if_there(key)?.is_some() {
                require(key, before)?;
            }
        }
    }
    Ok(usize::from(is_ours))
}

fn is_accept_ra(setting: &Setting) -> bool {
    setting.key.ends_with("/accept_ra")
}

fn is_switch_of_ipv6(setting: &Setting) -> bool {
    setting.key == Family::V6.forwarding()
}

/// What lets interfaces that hear routers go on with it once they forward. Those that forwarded before lbd, by `journal`,
/// heard none.
fn hearing(device: &str, journal: &[Setting]) -> Result<Vec<Setting>, Error> {
    let mut settings = Vec::new();
    for interface in interfaces(Family::V6)? {
        if ["all", "lo", device].contains(&interface.as_str()) {
            continue;
        }
        let key = accept_ra(&interface);
        let before = read_if_there(&key)?;
        let hears = |before: &String| !["0", HEARS_ALWAYS].contains(&before.as_str());
        if let Some(before) = before.filter(hears)
            && !forwarded(&interface, journal)?
        {
            settings.push(setting(key, before, HEARS_ALWAYS));
        }
    }
    Ok(settings)
}

/// Whether this interface forwards without lbd.
fn forwarded(interface: &str, journal: &[Setting]) -> Result<bool, Error> {
    let key = Family::V6.forwarding_of(interface);
    let Some(switch) = journal.iter().find(|setting| is_switch_of_ipv6(setting)) else {
        return Ok(read_if_there(&key)?.is_some_and(|now| now != "0"));
    };
    Ok(switch
        .along
        .iter()
        .any(|(along, before)| *along == key && before != "0"))
}

/// Interfaces that came while lbd ran have taken over what it gave `default`.
fn inherited(journal: &[Setting]) -> Result<Vec<Setting>, Error> {
    let template = journal.iter().find(|setting| setting.key == accept_ra("default"));
    let switch = journal.iter().find(|setting| is_switch_of_ipv6(setting));
    let (Some(template), Some(switch)) = (template, switch) else {
        return Ok(Vec::new());
    };
    let there: BTreeSet<&str> = switch.along.iter().map(|(key, _)| key.as_str()).collect();
    let mut settings = Vec::new();
    for interface in interfaces(Family::V6)? {
        let key = accept_ra(&interface);
        let is_known = interface == "all" || there.contains(Family::V6.forwarding_of(&interface).as_str());
        let is_journaled = journal.iter().any(|setting| setting.key == key);
        if !is_known && !is_journaled && read_if_there(&key)?.as_deref() == Some(HEARS_ALWAYS) {
            settings.push(setting(key, template.before.clone(), HEARS_ALWAYS));
        }
    }
    Ok(settings)
}

fn accept_ra(interface: &str) -> String {
    format!("net/ipv6/conf/{interface}/accept_ra")
}

fn setting(key: String, before: String, set: &str) -> Setting {
    Setting {
        key,
        before,
        set: set.into(),
        along: Vec::new(),
    }
}

/// Writing the global switch also writes the one of every interface, of `default`, and for IPv4 the inverse into
/// `conf/all/accept_redirects` (`inet_forward_change` of net/ipv4/devinet.c, `addrconf_forward_change` of
/// net/ipv6/addrconf.c). It also turns off large receive offload of every interface, which nothing turns on again.
fn switch(family: Family, device: &str) -> Result<Setting, Error> {
    let key = family.forwarding().to_owned();
    let mut along = Vec::new();
    for interface in interfaces(family)? {
        if interface != "all" && interface != device {
            along.push(family.forwarding_of(&interface));
        }
    }
    if family == Family::V4 {
        along.push("net/ipv4/conf/all/accept_redirects".into());
    }
    let along = along
        .into_iter()
        .map(|key| Ok(read_if_there(&key)?.map(|before| (key, before))));
    let along: Vec<Option<(String, String)>> = along.collect::<Result<_, Error>>()?;
    Ok(Setting {
        before: read(&key)?,
        key,
        set: "1".into(),
        along: along.into_iter().flatten().collect(),
    })
}

/// Interfaces that have a default router and hear no others (whose `accept_ra` somebody switched off later, say) keep theirs
/// while forwarding switches are written.
#[derive(Debug, Default)]
struct Frozen(Vec<(String, String)>);

impl Frozen {
    fn freeze() -> Result<Self, Error> {
        let mut frozen = Self::default();
        for interface in with_default_routers()? {
            let key = accept_ra(&interface);
            match read_if_there(&key)? {
                Some(before) if before != HEARS_ALWAYS => {
                    require(&key, HEARS_ALWAYS)?;
                    frozen.0.push((key, before));
                }
                Some(_) | None => {}
            }
        }
        Ok(frozen)
    }

    fn thaw(self) -> Result<(), Error> {
        let back = |(key, before): &(String, String)| require(key, before).map(|_| ());
        self.0.iter().try_for_each(back)
    }
}

/// Interfaces with a default route that the kernel itself learned from a router advertisement.
fn with_default_routers() -> Result<BTreeSet<String>, Error> {
    // Of this thread, which may have a network namespace of its own.
    let path = "/proc/thread-self/net/ipv6_route";
    let text = fs::read_to_string(path).map_err(|source| Error::File {
        path: path.into(),
        source,
    })?;
    Ok(text.lines().filter_map(default_router).map(str::to_owned).collect())
}

/// The interface of a line of ipv6_route (`rt6_info_seq_show`, net/ipv6/ip6_fib.c): destination, length, source, length,
/// next hop, metric, reference count, use, flags, interface.
fn default_router(line: &str) -> Option<&str> {
    /// `RTF_DEFAULT` and `RTF_ADDRCONF` of include/uapi/linux/ipv6_route.h.
    const LEARNED: u32 = 0x0001_0000 | 0x0004_0000;
    let fields: Vec<&str> = line.split_whitespace().collect();
    let [_, "00", _, _, _, _, _, _, flags, interface] = fields.as_slice() else {
        return None;
    };
    let flags = u32::from_str_radix(flags, 16).ok()?;
    (flags & LEARNED == LEARNED).then_some(interface)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_setting_of_an_interface_that_is_gone_is_skipped() {
        let (restored, result) = restore(&[setting("net/ipv4/conf/gone0/rp_filter".into(), "0".into(), "1")]);
        result.unwrap();
        assert_eq!(restored, 0);
    }

    #[test]
    fn a_default_route_by_router_advertisement_is_told_from_one_that_somebody_put_in() {
        let line = |flags| {
            format!(
                "00000000000000000000000000000000 00 00000000000000000000000000000000 00 \
                 fe8000000000000000000000000000aa 00000400 00000001 00000000 {flags}     eth0"
            )
        };
        assert_eq!(default_router(&line("00450003")), Some("eth0"));
        assert_eq!(default_router(&line("00000003")), None);
        assert_eq!(default_router(&line("00450003").replacen(" 00 ", " 40 ", 1)), None);
        assert_eq!(default_router(""), None);
    }

    #[test]
    fn interfaces_that_forwarded_before_are_known_from_the_journal() {
        let switch = Setting {
            along: vec![
                (Family::V6.forwarding_of("eth0"), "0".into()),
                (Family::V6.forwarding_of("eth1"), "1".into()),
            ],
            ..setting(Family::V6.forwarding().into(), "0".into(), "1")
        };
        let is = |interface| forwarded(interface, std::slice::from_ref(&switch)).unwrap();
        assert!(!is("eth0") && is("eth1"));
        assert!(!is("new0"), "it came since");
    }
}
