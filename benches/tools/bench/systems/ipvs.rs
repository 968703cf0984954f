//! The kernel's IPVS by ipvsadm, NAT, round robin, with the settings that kube-proxy makes.
use std::fs;

use super::{Change, has_command, write};
use crate::Outcome;
use crate::rig::{Place, shell};
use crate::world::{self, SERVICE_RANGE, UDP_PORT, World};

/// kube-proxy binds the addresses to a dummy device; a route of kind local makes them as local without one.
const LOCAL: &str = "ip route replace local 10.96.0.0/16 dev lo";

pub(super) fn missing() -> Option<String> {
    if !has_command("ipvsadm") {
        return Some("there is no `ipvsadm` here".to_owned());
    }
    let has_kernel = fs::exists("/proc/net/ip_vs").unwrap_or(false);
    (!has_kernel).then(|| "this kernel has no IPVS (no /proc/net/ip_vs)".to_owned())
}

pub(super) fn start(world: World) -> Outcome<()> {
    let mut lines = Vec::new();
    for service in 0..world.services() {
        let address = world::address(service);
        lines.push(format!("-A -t {address} -s rr"));
        for backend in world.backends(service) {
            lines.push(format!("-a -t {address} -r {backend} -m"));
        }
    }
    if let Some(udp) = world.udp() {
        lines.push(format!("-A -u {udp} -s rr"));
        lines.push(format!("-a -u {udp} -r {}:{UDP_PORT} -m", world::backend(1).ip()));
    }
    let path = write("ipvs.rules", &(lines.join("\n") + "\n"))?;
    let settings = "sysctl -qw net.ipv4.vs.conntrack=1 net.ipv4.vs.expire_nodest_conn=1";
    shell(Place::Balancer, &format!("{LOCAL} && {settings} && ipvsadm -R <{path}")).map(drop)
}

pub(super) fn stop() -> Outcome<()> {
    let flush = format!("ipvsadm -C; ip route del local {SERVICE_RANGE} dev lo");
    shell(Place::Balancer, &flush).map(drop)
}

pub(super) fn change(before: World, after: World, service: u32) -> Outcome<Change> {
    let address = world::address(service);
    let add = after
        .backends(service)
        .into_iter()
        .map(|new| format!("-a -t {address} -r {new} -m"));
    // kube-proxy lets an endpoint drain by giving it no weight.
    let drain = before
        .backends(service)
        .into_iter()
        .map(|old| format!("-e -t {address} -r {old} -m -w 0"));
    let lines: Vec<_> = add.chain(drain).collect();
    let path = write("ipvs.change", &(lines.join("\n") + "\n"))?;
    Ok(Change::of(format!("ipvsadm -R <{path}")))
}
