//! What a key means that is not written.
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;

use super::{Firewall, Tun};
use lbd_core::policy::{Conntrack, Mode, UnknownReply, UnknownTcp};

/// `persistence.timeout`: `ipvsadm -p` without a value (`IP_VS_PERSISTENT_TIMEOUT`, libipvs.h).
pub(super) const PERSISTENCE: Duration = Duration::from_secs(6 * 60);
/// A backend's share.
pub(super) const WEIGHT: u32 = 1;

/// `[tun]`
pub(super) fn tun() -> Tun {
    Tun {
        name: "lbd0".to_owned(),
        mtu: 1500,
        offload: true,
        firewall: Firewall::default(),
    }
}

/// `[af_xdp] masquerade_ports`: above those that Linux gives to its own sockets (`ip_local_port_range`, by default 32768 to
/// 60999, inet_init_net in net/ipv4/af_inet.c).
pub(super) const MASQUERADE_PORTS: std::ops::RangeInclusive<u16> = 61_000..=65_535;

/// `[nat] pool`: addresses that are set aside for benchmarks, RFC 2544 (198.18.0.0/15) and RFC 5180 (2001:2::/48).
pub(super) fn pool() -> Vec<IpNet> {
    let v4 = IpAddr::V4(Ipv4Addr::new(198, 18, 0, 0));
    let v6 = IpAddr::V6(Ipv6Addr::new(0x2001, 2, 0, 0, 0, 0, 0, 0));
    [(v4, 28), (v6, 124)]
        .into_iter()
        .filter_map(|(address, length)| IpNet::new(address, length).ok())
        .collect()
}

/// `[conntrack]`, by the mode.
pub(super) fn conntrack(mode: Mode) -> Conntrack {
    Conntrack {
        max_flows: 1 << 20,
        on_backend_removed: None,
        unknown_tcp: UnknownTcp::default(),
        unknown_reply: UnknownReply::default(),
        expire_quiescent_template: true,
        conn_reuse: true,
        timeouts: mode.default_timeouts(),
    }
}

/// `[control] socket`
pub(super) fn control_socket() -> PathBuf {
    PathBuf::from("/run/lbd/lbd.sock")
}
