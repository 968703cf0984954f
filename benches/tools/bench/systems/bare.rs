//! The bare AF_XDP forwarder: lbd's sockets, with nothing between receiving and sending but new addresses.
use std::time::Duration;

use super::built;
use crate::Outcome;
use crate::links::mac;
use crate::rig::{Place, Program};
use crate::world;

/// Longer than any turn; it is stopped before.
const SECONDS: &str = "600";

pub(super) fn start() -> Outcome<Program> {
    let (from, to) = (mac(Place::Balancer, "s1")?, mac(Place::Server(1), "eth0")?);
    let server = world::backend(1).ip().to_string();
    let forwarder = built("bare_forwarder")?;
    let arguments = [
        &forwarder,
        "--from",
        "client",
        "--to",
        "s1",
        "--source-mac",
        &from,
        "--destination-mac",
        &to,
        "--destination",
        &server,
        "--seconds",
        SECONDS,
    ];
    let mut program = Program::start("bare", &arguments)?;
    let ready = |log: &str| Ok(log.contains("ready:"));
    program.until("the bare forwarder", Duration::from_secs(10), ready)?;
    Ok(program)
}
