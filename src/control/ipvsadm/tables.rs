//! What ipvsadm prints (`print_title`, `print_service_entry`, `list_conn` of ipvsadm.c).
use std::fmt::Write;
use std::net::IpAddr;

use super::options::{Format, Place};
use crate::names::{Names, cut};
use crate::protocol::{BackendView, ConnectionView, ServiceView, TimeoutsView};
use crate::render;
use crate::render::list::{VERSION, flag_text, mask_text, rates, stats, title};
use crate::render::{Columns, protocol_word};
use lbd_core::flow::{Endpoint, Protocol};

/// The service at this place, with that address of it.
pub(super) fn find(services: &[ServiceView], (protocol, address): Place) -> Option<(Endpoint, &ServiceView)> {
    let mut matching = services.iter().filter(|service| service.protocol == protocol);
    let service = matching.find(|service| service.addresses.contains(&address))?;
    Some((address, service))
}

/// `-L`
pub(super) fn all(services: &[ServiceView], names: &Names, format: Format) -> String {
    let mut text = VERSION.to_owned() + &head(format);
    for (address, service) in blocks(services, format) {
        block(&mut text, address, service, names, format);
    }
    text
}

/// `-L -t ADDRESS`
pub(super) fn one(address: Endpoint, service: &ServiceView, names: &Names, format: Format) -> String {
    let mut text = head(format);
    block(&mut text, address, service, names, format);
    text
}

/// `-S`
pub(super) fn rules(services: &[ServiceView], names: &Names) -> String {
    let mut text = String::new();
    for (address, service) in blocks(services, Format::default()) {
        let option = match service.protocol {
            Protocol::Tcp => "-t",
            Protocol::Udp => "-u",
            Protocol::Sctp => "--sctp-service",
        };
        let place = format!("{option} {}", names.show(service.protocol, address));
        line(
            &mut text,
            format_args!("-A {place} -s {}{}", service.scheduler, keys(address, service)),
        );
        for backend in servers(service, Format::default()) {
            let server = names.show(service.protocol, backend.address);
            line(
                &mut text,
                format_args!("-a {place} -r {server} -m -w {}", backend.weight),
            );
        }
    }
    text
}

/// `-L --timeout`
pub(super) fn timeouts(timeouts: &TimeoutsView) -> String {
    let TimeoutsView {
        tcp_established_seconds,
        tcp_fin_seconds,
        udp_seconds,
    } = timeouts;
    format!("Timeout (tcp tcpfin udp): {tcp_established_seconds} {tcp_fin_seconds} {udp_seconds}\n")
}

/// `-Lc`; no connection of lbd has data of a persistence engine to show.
pub(super) fn connections(flows: &[ConnectionView], names: &Names, format: Format) -> String {
    let text = render::connections(flows, names);
    if !format.persistent {
        return text;
    }
    let title = format!(
        "IPVS connection entries\npro expire {:<11} {:<18} {:<18} {:<18} {:<16} pe_data",
        "state", "source", "virtual", "destination", "pe name"
    );
    let rows = text.lines().skip(2);
    std::iter::once(title.as_str())
        .chain(rows)
        .map(|line| format!("{line}\n"))
        .collect()
}

fn line(text: &mut String, line: std::fmt::Arguments<'_>) {
    let written = writeln!(text, "{line}");
    debug_assert!(written.is_ok(), "a String takes everything");
}

/// One entry for each address of each service.
fn blocks(services: &[ServiceView], format: Format) -> Vec<(Endpoint, &ServiceView)> {
    let of = |service: &'_ ServiceView| service.addresses.clone();
    let all = services
        .iter()
        .flat_map(|service| of(service).into_iter().map(move |address| (address, service)));
    let all: Vec<_> = all.collect();
    match format.unsorted {
        true => all,
        false => sort(all, &|(left, one), (right, other)| {
            compare_services((one.protocol, *left), (other.protocol, *right))
        }),
    }
}

fn servers(service: &ServiceView, format: Format) -> Vec<&BackendView> {
    let all: Vec<_> = service.backends.iter().collect();
    match format.unsorted {
        true => all,
        false => sort(all, &|one, other| compare_addresses(one.address, other.address)),
    }
}

/// `ipvs_cmp_services`
fn compare_services((one, left): Place, (other, right): Place) -> i32 {
    let family = i32::from(left.address.is_ipv6()) - i32::from(right.address.is_ipv6());
    let protocol = i32::from(one.number()) - i32::from(other.number());
    let different = [family, protocol].into_iter().find(|&difference| difference != 0);
    different.unwrap_or_else(|| compare_addresses(left, right))
}

/// `ipvs_cmp_dests`. Words are subtracted, so that addresses more than half of the whole space apart come in the
/// reverse order: 203.0.113.1 before 10.0.0.1.
fn compare_addresses(left: Endpoint, right: Endpoint) -> i32 {
    let words = |endpoint: Endpoint| match endpoint.address {
        IpAddr::V4(address) => vec![address.to_bits()],
        IpAddr::V6(address) => (0..4).rev().map(|at| (address.to_bits() >> (32 * at)) as u32).collect(),
    };
    let pairs = words(left).into_iter().zip(words(right));
    let differences = pairs.map(|(left, right)| left.wrapping_sub(right) as i32);
    let different = differences.into_iter().find(|&difference| difference != 0);
    different.unwrap_or_else(|| i32::from(left.port) - i32::from(right.port))
}

/// `qsort` of glibc 2.36, a merge sort (`msort_with_tmp`): the order above is none that `sort_by` could be given.
fn sort<T: Copy>(items: Vec<T>, compare: &impl Fn(&T, &T) -> i32) -> Vec<T> {
    if items.len() <= 1 {
        return items;
    }
    let (low, high) = items.split_at(items.len() / 2);
    let (low, high) = (sort(low.to_vec(), compare), sort(high.to_vec(), compare));
    let (mut low, mut high) = (low.into_iter().peekable(), high.into_iter().peekable());
    let mut merged = Vec::with_capacity(items.len());
    while let (Some(left), Some(right)) = (low.peek(), high.peek()) {
        let from = if compare(left, right) <= 0 { &mut low } else { &mut high };
        merged.extend(from.next());
    }
    merged.extend(low.chain(high));
    merged
}

fn head(format: Format) -> String {
    let wide = |words: &str| format!("{:<33} {words}\n  -> RemoteAddress:Port\n", "Prot LocalAddress:Port");
    match format {
        Format { stats: true, .. } => title(Columns::Stats),
        Format { rate: true, .. } => title(Columns::Rate),
        Format { thresholds: true, .. } => wide("Uthreshold Lthreshold ActiveConn InActConn "),
        Format { persistent: true, .. } => wide("Weight    PersistConn ActiveConn InActConn "),
        Format { tunnels: true, .. } => "Prot LocalAddress:Port Scheduler Flags\n  \
             -> RemoteAddress:Port           Forward TunnelInfo    Weight ActiveConn InActConn\n"
            .to_owned(),
        _ => title(Columns::Load),
    }
}

fn block(text: &mut String, address: Endpoint, service: &ServiceView, names: &Names, format: Format) {
    let name = names.show(service.protocol, address);
    let mut head = format!("{:<4} {name}", protocol_word(service.protocol));
    if address.address.is_ipv4() {
        cut(&mut head, 33);
    }
    match format {
        Format { stats: true, .. } => {
            let numbers = large(&stats(&service.stats), format);
            line(text, format_args!("{head:<33}{numbers}"));
        }
        Format { rate: true, .. } => {
            let numbers = large(&rates(&service.rates), format);
            line(text, format_args!("{head:<33}{numbers}"));
        }
        _ => {
            let flags = flag_text(address, service);
            line(text, format_args!("{head} {}{flags}", service.scheduler));
        }
    }
    for backend in servers(service, format) {
        let mut name = names.show(service.protocol, backend.address);
        if address.address.is_ipv4() {
            cut(&mut name, 28);
        }
        line(text, format_args!("  -> {name:<28}{}", columns(backend, format)));
    }
}

fn columns(backend: &BackendView, format: Format) -> String {
    let BackendView {
        weight,
        upper_threshold,
        lower_threshold,
        active_connections: active,
        inactive_connections: inactive,
        persistent_connections: persistent,
        ..
    } = backend;
    match format {
        Format { stats: true, .. } => large(&stats(&backend.stats), format),
        Format { rate: true, .. } => {
            // ipvsadm shortens the last two numbers of a server only.
            let [connections, in_packets, out_packets, bytes @ ..] = rates(&backend.rates);
            format!(
                " {connections:>8} {in_packets:>8} {out_packets:>8}{}",
                large(&bytes, format)
            )
        }
        Format { thresholds: true, .. } => {
            format!(" {upper_threshold:<10} {lower_threshold:<10} {active:<10} {inactive:<10}")
        }
        Format { persistent: true, .. } => format!(" {weight:<9} {persistent:<11} {active:<10} {inactive:<10}"),
        Format { tunnels: true, .. } => {
            format!(" {:<7} {:<13} {weight:<6} {active:<10} {inactive:<10}", "Masq", "n/a")
        }
        _ => format!(" {:<7} {weight:<6} {active:<10} {inactive:<10}", "Masq"),
    }
}

/// `print_largenum`
fn large(numbers: &[u64], format: Format) -> String {
    let exact = |number: &u64| match number {
        0..=99_999_999 => format!("{number:>9}"),
        _ => format!(" {number}"),
    };
    let short = |number: &u64| render::list::large_number(*number);
    match format.exact {
        true => numbers.iter().map(exact).collect(),
        false => numbers.iter().map(short).collect(),
    }
}

/// What follows the scheduler in a saved rule.
fn keys(address: Endpoint, service: &ServiceView) -> String {
    let mut text = String::new();
    if let Some(persistence) = &service.persistence {
        text += &format!(" -p {}", persistence.timeout_seconds);
        if let Some(mask) = mask_text(address.address, persistence) {
            text += &format!(" -M {mask}");
        }
    }
    if service.one_packet {
        text += " -o";
    }
    if !service.scheduler_flags.is_empty() {
        text += &format!(" -b {}", render::list::sorted_flags(service).join(","));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(addresses: &[&str]) -> Vec<String> {
        let all: Vec<Endpoint> = addresses.iter().map(|text| text.parse().unwrap()).collect();
        let sorted = sort(all, &|one, other| compare_addresses(*one, *other));
        sorted.iter().map(Endpoint::to_string).collect()
    }

    #[test]
    fn servers_come_by_address_then_port() {
        let addresses = ["10.2.0.2:80", "10.2.0.1:81", "10.2.0.1:80"];
        assert_eq!(order(&addresses), ["10.2.0.1:80", "10.2.0.1:81", "10.2.0.2:80"]);
        let addresses = ["[fd00::2]:80", "[fd00::1]:80", "[fc00::3]:80"];
        assert_eq!(order(&addresses), ["[fc00::3]:80", "[fd00::1]:80", "[fd00::2]:80"]);
    }

    #[test]
    fn addresses_far_apart_come_in_the_order_that_the_subtraction_makes() {
        assert_eq!(
            order(&["10.0.0.1:80", "203.0.113.1:80"]),
            ["203.0.113.1:80", "10.0.0.1:80"]
        );
    }

    #[test]
    fn exact_numbers_are_whole_and_never_touch_each_other() {
        let exact = Format {
            exact: true,
            ..Format::default()
        };
        assert_eq!(large(&[7, 123_456_789_012], exact), "        7 123456789012");
        assert_eq!(large(&[7, 123_456_789_012], Format::default()), "        7     123G");
    }
}
