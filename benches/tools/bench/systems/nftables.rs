//! kube-proxy's nftables mode: one verdict map for all services, a chain for each service and each endpoint
//! (kubernetes/pkg/proxy/nftables/proxier.go).
use std::fmt::Write;
use std::net::SocketAddrV4;

use super::{Change, write};
use crate::Outcome;
use crate::rig::{Place, shell};
use crate::world::{self, UDP_PORT, World};

const FRAME: &str = "\
add table ip kube-proxy
add chain ip kube-proxy mark-for-masquerade
add rule ip kube-proxy mark-for-masquerade mark set mark or 0x4000
add chain ip kube-proxy masquerading
add rule ip kube-proxy masquerading mark and 0x4000 == 0 return
add rule ip kube-proxy masquerading mark set mark xor 0x4000
add rule ip kube-proxy masquerading masquerade fully-random
add map ip kube-proxy service-ips { type ipv4_addr . inet_proto . inet_service : verdict; }
add chain ip kube-proxy services
add rule ip kube-proxy services ip daddr . meta l4proto . th dport vmap @service-ips
add chain ip kube-proxy nat-prerouting { type nat hook prerouting priority dstnat; }
add rule ip kube-proxy nat-prerouting jump services
add chain ip kube-proxy nat-output { type nat hook output priority -100; }
add rule ip kube-proxy nat-output jump services
add chain ip kube-proxy nat-postrouting { type nat hook postrouting priority srcnat; }
add rule ip kube-proxy nat-postrouting jump masquerading
";

pub(super) fn start(world: World) -> Outcome<()> {
    let mut text = FRAME.to_owned();
    for service in 0..world.services() {
        let name = format!("s{service}");
        text += &service_chains(&name, "tcp", world::address(service), &world.backends(service));
    }
    if let Some(udp) = world.udp() {
        let backend = SocketAddrV4::new(*world::backend(1).ip(), UDP_PORT);
        text += &service_chains("udp", "udp", udp, &[backend]);
    }
    let path = write("kube-proxy.nft", &text)?;
    shell(Place::Balancer, &format!("nft -f {path}")).map(drop)
}

pub(super) fn stop() -> Outcome<()> {
    shell(Place::Balancer, "nft flush ruleset").map(drop)
}

/// The chain of the new endpoint, and the service's chain anew.
pub(super) fn change(after: World, service: u32) -> Outcome<Change> {
    let (name, backends) = (format!("s{service}"), after.backends(service));
    let mut text = endpoint_chains(&name, "tcp", &backends);
    push(&mut text, &format!("flush chain ip kube-proxy service-{name}"));
    push(&mut text, &choice(&name, &backends));
    Ok(Change::of(format!("nft -f {}", write("change.nft", &text)?)))
}

fn service_chains(name: &str, protocol: &str, address: SocketAddrV4, backends: &[SocketAddrV4]) -> String {
    let mut text = endpoint_chains(name, protocol, backends);
    push(&mut text, &format!("add chain ip kube-proxy service-{name}"));
    push(&mut text, &choice(name, backends));
    let key = format!("{} . {protocol} . {}", address.ip(), address.port());
    push(
        &mut text,
        &format!("add element ip kube-proxy service-ips {{ {key} : goto service-{name} }}"),
    );
    text
}

fn endpoint_chains(name: &str, protocol: &str, backends: &[SocketAddrV4]) -> String {
    let mut text = String::new();
    for backend in backends {
        let chain = endpoint(name, *backend);
        let add = format!("add rule ip kube-proxy {chain}");
        push(&mut text, &format!("add chain ip kube-proxy {chain}"));
        push(
            &mut text,
            &format!("{add} ip saddr {} jump mark-for-masquerade", backend.ip()),
        );
        push(&mut text, &format!("{add} meta l4proto {protocol} dnat to {backend}"));
    }
    text
}

fn choice(name: &str, backends: &[SocketAddrV4]) -> String {
    let entries = backends.iter().enumerate();
    let entries = entries.map(|(number, backend)| format!("{number} : goto {}", endpoint(name, *backend)));
    let (count, entries) = (backends.len(), entries.collect::<Vec<_>>().join(", "));
    format!("add rule ip kube-proxy service-{name} numgen random mod {count} vmap {{ {entries} }}")
}

fn endpoint(service: &str, backend: SocketAddrV4) -> String {
    format!(
        "endpoint-{service}-{}-{}",
        backend.ip().to_string().replace('.', "_"),
        backend.port()
    )
}

fn push(text: &mut String, line: &str) {
    writeln!(text, "{line}").unwrap_or_default();
}
