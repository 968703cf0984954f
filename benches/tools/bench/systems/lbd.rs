//! lbd itself, with the settings it comes with.
use std::time::Duration;

use rustix::process::Signal;

use super::{Change, built, write};
use crate::Outcome;
use crate::rig::{DIR, Program};
use crate::world::{self, World};

/// How packets reach it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Device {
    Tun,
    AfXdp,
}

/// How it finds a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Mode {
    Iptables,
    Ipvs,
}

/// XDP programs are loaded by the host's own root only.
pub(super) fn xdp_missing() -> Option<String> {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let is_host = map.split_whitespace().eq(["0", "0", "4294967295"]);
    (!is_host).then(|| "AF_XDP needs root, and not that of a user namespace".to_owned())
}

pub(super) fn start(device: Device, mode: Mode, world: World) -> Outcome<Program> {
    let path = write("lbd.toml", &config(device, mode, world))?;
    let mut program = Program::start("lbd", &[&built("lbd")?, "--config", &path])?;
    let ready = |log: &str| Ok(log.contains("lbd ready:"));
    program.until("`lbd ready:`", Duration::from_secs(30), ready)?;
    Ok(program)
}

/// A new file, and SIGHUP.
pub(super) fn reload(device: Device, mode: Mode, after: World, program: &Program) -> Outcome<Change> {
    let new = write("lbd.new", &config(device, mode, after))?;
    let hangup = Signal::HUP.as_raw();
    Ok(Change::of(format!(
        "cat {new} >{DIR}/lbd.toml && kill -{hangup} {}",
        program.id()
    )))
}

/// The new backend comes, then the old one goes.
pub(super) fn edit(before: World, after: World, service: u32) -> Outcome<Change> {
    let (lbctl, name) = (built("lbctl")?, world::name(service));
    let (old, new) = (before.backends(service)[0], after.backends(service)[0]);
    let backend = format!("{lbctl} backend");
    let to = format!("--socket {DIR}/lbd.sock");
    Ok(Change::of(format!(
        "{backend} add {to} {name} {new} && {backend} delete {to} {name} {old}"
    )))
}

fn config(device: Device, mode: Mode, world: World) -> String {
    let mode = match mode {
        Mode::Iptables => "iptables",
        Mode::Ipvs => "ipvs",
    };
    let datapath = match device {
        Device::Tun => "backend = \"tun\"",
        Device::AfXdp => "backend = \"af_xdp\"\n[af_xdp]\ninterfaces = [\"client\", \"s1\", \"s2\"]",
    };
    format!(
        "mode = \"{mode}\"\n[datapath]\n{datapath}\n[control]\nsocket = \"{DIR}/lbd.sock\"\n{}",
        world.toml()
    )
}
