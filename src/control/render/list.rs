//! Services and backends as `ipvsadm -L` shows them (ipvsadm.c `print_title`, `print_service_entry`, `print_largenum`).
use std::net::IpAddr;

use super::protocol_word;
use crate::names::{Names, cut};
use crate::protocol::{BackendView, PersistenceView, RatesView, ServiceView, StatsView};
use crate::selector::Selector;
use lbd_core::flow::Endpoint;

/// The version of IPVS that lbd follows, and the kernel's default size of its connection table.
pub(crate) const VERSION: &str = "IP Virtual Server version 1.2.1 (size=4096)\n";

/// What is shown of each service and backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Columns {
    /// Weight and flows.
    #[default]
    Load,
    /// `--stats`
    Stats,
    /// `--rate`
    Rate,
}

/// The table of all services; or of what `only` picks, then without the line of the version, as ipvsadm does it.
///
/// A service has one block for each of its addresses, as kube-proxy's virtual servers do.
#[must_use]
pub fn list(services: &[ServiceView], only: Option<&Selector<'_>>, columns: Columns, names: &Names) -> String {
    let mut text = String::new();
    if only.is_none() {
        text.push_str(VERSION);
    }
    text.push_str(&title(columns));
    for (address, service) in sorted_blocks(services, only) {
        text.push_str(&block(address, service, columns, names));
    }
    text
}

/// By family, protocol, address, port (libipvs.c `ipvs_cmp_services`).
fn sorted_blocks<'a>(services: &'a [ServiceView], only: Option<&Selector<'_>>) -> Vec<(Endpoint, &'a ServiceView)> {
    let mut blocks: Vec<_> = services
        .iter()
        .flat_map(|service| service.addresses.iter().map(move |&address| (address, service)))
        .filter(|(address, service)| only.is_none_or(|only| only.picks_address(&service.name, *address)))
        .collect();
    blocks.sort_by_key(|(address, service)| (address.address.is_ipv6(), service.protocol, *address));
    blocks
}

pub(crate) fn title(columns: Columns) -> String {
    let words = match columns {
        Columns::Load => {
            return "Prot LocalAddress:Port Scheduler Flags\n  \
                    -> RemoteAddress:Port           Forward Weight ActiveConn InActConn\n"
                .to_owned();
        }
        Columns::Stats => ["Conns", "InPkts", "OutPkts", "InBytes", "OutBytes"],
        Columns::Rate => ["CPS", "InPPS", "OutPPS", "InBPS", "OutBPS"],
    };
    let words = words.map(|word| format!(" {word:>8}")).concat();
    format!("{:<33}{words}\n  -> RemoteAddress:Port\n", "Prot LocalAddress:Port")
}

fn block(address: Endpoint, service: &ServiceView, columns: Columns, names: &Names) -> String {
    let mut head = format!(
        "{:<4} {}",
        protocol_word(service.protocol),
        names.show(service.protocol, address)
    );
    if address.address.is_ipv4() {
        cut(&mut head, 33);
    }
    let mut text = match columns {
        Columns::Load => format!("{head} {}{}\n", service.scheduler, flag_text(address, service)),
        Columns::Stats => format!("{head:<33}{}\n", large_numbers(stats(&service.stats))),
        Columns::Rate => format!("{head:<33}{}\n", large_numbers(rates(&service.rates))),
    };
    let mut backends: Vec<&BackendView> = service.backends.iter().collect();
    backends.sort_by_key(|backend| backend.address);
    for backend in backends {
        let mut name = names.show(service.protocol, backend.address);
        if address.address.is_ipv4() {
            cut(&mut name, 28);
        }
        text.push_str(&format!("  -> {name:<28}{}\n", backend_columns(backend, columns)));
    }
    text
}

/// ` (sh-fallback,sh-port)`, ` persistent 300`, ` mask 255.255.255.0`, ` ops`
pub(crate) fn flag_text(address: Endpoint, service: &ServiceView) -> String {
    let mut text = String::new();
    if !service.scheduler_flags.is_empty() {
        text.push_str(&format!(" ({})", sorted_flags(service).join(",")));
    }
    if let Some(persistence) = &service.persistence {
        text.push_str(&format!(" persistent {}", persistence.timeout_seconds));
        if let Some(mask) = mask_text(address.address, persistence) {
            text.push_str(&format!(" mask {mask}"));
        }
    }
    if service.one_packet {
        text.push_str(" ops");
    }
    text
}

/// In the order of the kernel's bits: `IP_VS_SVC_F_SCHED1` is fallback, `IP_VS_SVC_F_SCHED2` is port.
pub(crate) fn sorted_flags(service: &ServiceView) -> Vec<&str> {
    let mut flags: Vec<&str> = service.scheduler_flags.iter().map(String::as_str).collect();
    flags.sort_by_key(|flag| !flag.ends_with("-fallback"));
    flags
}

/// A mask that covers the whole address is not worth a word.
pub(crate) fn mask_text(address: IpAddr, persistence: &PersistenceView) -> Option<String> {
    let length = u32::from(persistence.prefix_length);
    match address {
        IpAddr::V4(_) if length < 32 => {
            let bits = u32::MAX.checked_shl(32 - length).unwrap_or(0);
            Some(std::net::Ipv4Addr::from_bits(bits).to_string())
        }
        IpAddr::V6(_) if length < 128 => Some(length.to_string()),
        IpAddr::V4(_) | IpAddr::V6(_) => None,
    }
}

fn backend_columns(backend: &BackendView, columns: Columns) -> String {
    match columns {
        Columns::Load => format!(
            " {:<7} {:<6} {:<10} {:<10}",
            "Masq", backend.weight, backend.active_connections, backend.inactive_connections
        ),
        Columns::Stats => large_numbers(stats(&backend.stats)),
        Columns::Rate => {
            // ipvsadm shortens the last two numbers of a server only.
            let [connections, in_packets, out_packets, in_bytes, out_bytes] = rates(&backend.rates);
            let bytes = large_numbers([in_bytes, out_bytes]);
            format!(" {connections:>8} {in_packets:>8} {out_packets:>8}{bytes}")
        }
    }
}

pub(crate) const fn stats(stats: &StatsView) -> [u64; 5] {
    [
        stats.connections,
        stats.in_packets,
        stats.out_packets,
        stats.in_bytes,
        stats.out_bytes,
    ]
}

pub(crate) const fn rates(rates: &RatesView) -> [u64; 5] {
    [
        rates.connections_per_second,
        rates.in_packets_per_second,
        rates.out_packets_per_second,
        rates.in_bytes_per_second,
        rates.out_bytes_per_second,
    ]
}

fn large_numbers<const N: usize>(numbers: [u64; N]) -> String {
    numbers.map(large_number).concat()
}

/// `print_largenum`: nine columns, however large.
pub(crate) fn large_number(number: u64) -> String {
    match number {
        0..100_000_000 => format!("{number:>9}"),
        100_000_000..1_000_000_000 => format!("{:>8}K", number / 1_000),
        1_000_000_000..100_000_000_000 => format!("{:>8}M", number / 1_000_000),
        100_000_000_000..100_000_000_000_000 => format!("{:>8}G", number / 1_000_000_000),
        100_000_000_000_000.. => format!("{:>8}T", number / 1_000_000_000_000),
    }
}

#[cfg(test)]
mod tests;
