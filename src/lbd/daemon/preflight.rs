//! What a configuration needs of the process and the host, looked at before anything is changed, and all that is missing of
//! it told at once, with lines to copy.
mod host;
mod report;

pub use report::Report;

use lbd_net::io::xdp::channels::channels;
use lbd_state::config::{Backend, Config};

/// A capability, as capabilities(7) numbers it (include/uapi/linux/capability.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Capability {
    /// Routes, rules, devices, sysctls below net, XDP programs.
    NetAdmin,
    /// `AF_XDP` sockets.
    NetRaw,
    /// To lock memory beyond the limit.
    IpcLock,
    /// Programs that compare pointers, as the XDP program does (`allow_ptr_leaks`, include/linux/bpf.h).
    Perfmon,
    /// Programs and maps.
    Bpf,
}

impl Capability {
    const fn number(self) -> u32 {
        match self {
            Self::NetAdmin => 12,
            Self::NetRaw => 13,
            Self::IpcLock => 14,
            Self::Perfmon => 38,
            Self::Bpf => 39,
        }
    }

    /// Without `CAP_`.
    const fn name(self) -> &'static str {
        match self {
            Self::NetAdmin => "NET_ADMIN",
            Self::NetRaw => "NET_RAW",
            Self::IpcLock => "IPC_LOCK",
            Self::Perfmon => "PERFMON",
            Self::Bpf => "BPF",
        }
    }

    /// Whether these effective capabilities hold it. `CAP_SYS_ADMIN` stands for the two that were parts of it.
    const fn is_in(self, effective: u64) -> bool {
        const SYS_ADMIN: u32 = 21;
        let own = effective >> self.number() & 1 == 1;
        let as_before = effective >> SYS_ADMIN & 1 == 1;
        match self {
            Self::Perfmon | Self::Bpf => own || as_before,
            Self::NetAdmin | Self::NetRaw | Self::IpcLock => own,
        }
    }
}

/// A sysctl that must have a value before lbd can lead packets here.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Setting {
    /// As `sysctl` names it.
    key: String,
    value: &'static str,
}

/// What a configuration needs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Needs {
    capabilities: Vec<Capability>,
    settings: Vec<Setting>,
    descriptors: u64,
    /// Bytes that are locked in memory.
    locked: u64,
    /// Whether the capabilities must be those of the host itself.
    of_the_host: bool,
}

/// What there is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Host {
    /// Effective capabilities, a bit each.
    effective: u64,
    is_first_user_namespace: bool,
    /// Settings that are not as they are needed and cannot be set, with what they are.
    fixed: Vec<(Setting, String)>,
    /// Why the TUN driver cannot be opened, and what to do about it.
    tun: Option<String>,
    /// Limits; None: there is none.
    descriptors: Option<u64>,
    locked: Option<u64>,
}

/// Something that is missing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Missing {
    /// Capabilities: those that are missing, and all that are needed.
    Capabilities {
        /// Those that are missing.
        lacking: Vec<Capability>,
        /// With those that are there.
        needed: Vec<Capability>,
    },
    /// Capabilities of the host itself: those of a user namespace do not count.
    Host,
    /// The TUN driver, and why.
    Tun(String),
    /// A setting that has another value, and cannot be set.
    Setting {
        /// As `sysctl` names it.
        key: String,
        /// What it must be.
        value: &'static str,
        /// What it is.
        is: String,
    },
    /// Open files.
    Descriptors {
        /// As many as may be.
        limit: u64,
        /// As many are needed.
        needed: u64,
    },
    /// Memory that is locked.
    Locked {
        /// Bytes that may be.
        limit: u64,
        /// Bytes that are needed.
        needed: u64,
    },
}

/// What `config` needs, where AF_XDP has so many receive queues and lbd so many workers.
pub(super) fn needs(config: &Config, queues: u64, workers: u64) -> Needs {
    /// For standard streams, signals, netlink, the control socket with some clients, programs and maps.
    const OTHERS: u64 = 96;
    /// Frames of a queue: a full fill ring and a full send ring of 2,048 (`io::xdp::bundle`), 2,048 bytes each.
    const FRAMES: u64 = 2 * 2048 * 2048;
    let mut needs = Needs {
        capabilities: vec![Capability::NetAdmin],
        settings: settings(config),
        // A device and what wakes the worker each, what sends, and what asks for the owners of flows.
        descriptors: OTHERS + 7 * workers,
        ..Needs::default()
    };
    if config.datapath.backend == Backend::AfXdp {
        needs
            .capabilities
            .extend([Capability::NetRaw, Capability::Bpf, Capability::Perfmon]);
        needs.of_the_host = true;
        needs.locked = queues * FRAMES;
        needs.descriptors += 2 * queues;
    }
    needs
}

/// lbd's own device takes what is there for new devices, and what counts for all.
fn settings(config: &Config) -> Vec<Setting> {
    let services = &config.policy.services;
    let has = |is_v6: bool| {
        services
            .iter()
            .any(|service| service.address.address.is_ipv6() == is_v6)
    };
    let has_own_addresses =
        config.datapath.backend == Backend::AfXdp || services.iter().any(|service| service.node_port.is_some());
    let device = &config.tun.name;
    let mut settings = Vec::new();
    let mut add = |key: String, value| settings.push(Setting { key, value });
    if has(false) {
        add("net.ipv4.ip_forward".into(), "1");
        add(format!("net.ipv4.conf.{device}.rp_filter"), "2");
    }
    if has(false) && has_own_addresses {
        add(format!("net.ipv4.conf.{device}.accept_local"), "1");
    }
    if has(true) {
        add("net.ipv6.conf.all.forwarding".into(), "1");
        add(format!("net.ipv6.conf.{device}.disable_ipv6"), "0");
    }
    settings
}

/// All of `needs` that `host` does not have.
pub(super) fn missing(needs: &Needs, host: &Host) -> Vec<Missing> {
    let mut missing = Vec::new();
    let mut lacking: Vec<Capability> = needs.capabilities.clone();
    lacking.retain(|capability| !capability.is_in(host.effective));
    if !lacking.is_empty() {
        let needed = needs.capabilities.clone();
        missing.push(Missing::Capabilities { lacking, needed });
    }
    if needs.of_the_host && !host.is_first_user_namespace {
        missing.push(Missing::Host);
    }
    missing.extend(host.tun.clone().map(Missing::Tun));
    missing.extend(host.fixed.iter().map(|(setting, is)| Missing::Setting {
        key: setting.key.clone(),
        value: setting.value,
        is: is.clone(),
    }));
    if let Some(limit) = host.descriptors.filter(|&limit| limit < needs.descriptors) {
        let needed = needs.descriptors;
        missing.push(Missing::Descriptors { limit, needed });
    }
    let may_lock_all = Capability::IpcLock.is_in(host.effective) && host.is_first_user_namespace;
    if let Some(limit) = host.locked.filter(|&limit| limit < needs.locked && !may_lock_all) {
        let needed = needs.locked;
        missing.push(Missing::Locked { limit, needed });
    }
    missing
}

/// Looks whether `config` can be served here by so many workers over TUN.
///
/// # Errors
/// All that is missing.
pub(super) fn check(config: &Config, workers: usize) -> Result<(), Report> {
    let interfaces = match config.datapath.backend {
        Backend::Tun => [].as_slice(),
        Backend::AfXdp => config.af_xdp.interfaces.as_slice(),
    };
    let queues = interfaces.iter().map(|name| u64::from(channels(name).receive)).sum();
    let needs = needs(config, queues, (workers as u64).max(queues));
    match missing(&needs, &host::look(&needs.settings)) {
        missing if missing.is_empty() => Ok(()),
        missing => Err(Report(missing)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SERVICES: &str = "[[services]]\nname = \"a\"\nprotocol = \"tcp\"\naddress = \"10.96.0.10:80\"\nnode_port = 30080\n\
        [[services]]\nname = \"b\"\nprotocol = \"tcp\"\naddress = \"[fd00::10]:80\"\n";

    fn config(more: &str) -> Config {
        let text = format!("mode = \"ipvs\"\n{more}{SERVICES}");
        lbd_state::config::parse("test", &text).unwrap().config
    }

    fn af_xdp() -> Config {
        config("[datapath]\nbackend = \"af_xdp\"\n[af_xdp]\ninterfaces = [\"eth0\"]\n")
    }

    fn root() -> Host {
        Host {
            effective: (1 << 41) - 1,
            is_first_user_namespace: true,
            ..Host::default()
        }
    }

    #[test]
    fn root_on_a_host_misses_nothing() {
        assert_eq!(missing(&needs(&config(""), 0, 2), &root()), []);
        let limits = Host {
            descriptors: Some(1024),
            locked: Some(65_536),
            ..root()
        };
        assert_eq!(missing(&needs(&af_xdp(), 8, 8), &limits), [], "CAP_IPC_LOCK");
    }

    #[test]
    fn all_that_is_missing_is_told_at_once_and_by_lines_to_copy() {
        let wanted = needs(&af_xdp(), 2, 2);
        let host = Host {
            effective: 0,
            fixed: vec![(wanted.settings[0].clone(), "0".into())],
            tun: Some("No such file or directory (on the host: modprobe tun)".into()),
            descriptors: Some(64),
            locked: Some(65_536),
            is_first_user_namespace: true,
        };
        let text = Report(missing(&wanted, &host)).to_string();
        for part in [
            "CAP_NET_ADMIN, CAP_NET_RAW, CAP_BPF, CAP_PERFMON",
            "/dev/net/tun: No such file or directory",
            "net.ipv4.ip_forward is 0, must be 1",
            "64 open files, and needs 114",
            "65536 bytes",
            "\n  docker run --cap-add NET_ADMIN --cap-add NET_RAW --cap-add BPF --cap-add PERFMON --device /dev/net/tun \
             --sysctl net.ipv4.ip_forward=1 --ulimit nofile=65536 --ulimit memlock=-1 …",
            "\n  sudo setcap cap_net_admin,cap_net_raw,cap_bpf,cap_perfmon,cap_ipc_lock+ep ",
            "\n  AmbientCapabilities=CAP_NET_ADMIN CAP_NET_RAW CAP_BPF CAP_PERFMON",
            "\n  LimitNOFILE=65536",
            "\n  LimitMEMLOCK=infinity",
        ] {
            assert!(text.contains(part), "{part:?} is not in:\n{text}");
        }
    }

    #[test]
    fn tun_needs_no_capability_but_one() {
        let host = Host {
            effective: 1 << Capability::NetAdmin.number(),
            locked: Some(0),
            ..Host::default()
        };
        assert_eq!(missing(&needs(&config(""), 0, 2), &host), []);
        assert!(missing(&needs(&af_xdp(), 1, 1), &host).contains(&Missing::Host));
    }

    #[test]
    fn what_was_cap_sys_admin_alone_is_held_by_it_still() {
        let host = Host {
            effective: 1 << 21 | 1 << 12 | 1 << 13,
            ..root()
        };
        assert_eq!(missing(&needs(&af_xdp(), 1, 1), &host), []);
    }

    #[test]
    fn a_family_without_services_needs_no_setting() {
        let needed = |text: &str| -> Vec<String> {
            let loaded = lbd_state::config::parse("test", text).unwrap();
            settings(&loaded.config)
                .into_iter()
                .map(|setting| setting.key)
                .collect()
        };
        assert!(needed("mode = \"ipvs\"\n").is_empty());
        let v4 = needed("[[services]]\nname = \"a\"\nprotocol = \"tcp\"\naddress = \"10.96.0.10:80\"\n");
        assert_eq!(v4, ["net.ipv4.ip_forward", "net.ipv4.conf.lbd0.rp_filter"]);
    }
}
