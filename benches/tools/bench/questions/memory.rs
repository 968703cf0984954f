//! Question 6: what flows take of memory. A balancer of packets gets UDP flows of one datagram each; a proxy gets TCP
//! connections that stay open, fewer of them, since each takes two sockets and a local port.
use std::fs;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use super::{Bench, Finding, Metric};
use crate::Outcome;
use crate::conntrack;
use crate::load::{Wish, open};
use crate::memory::Memory;
use crate::rig::{self, CLIENT_CPU, DIR, Place, Program, shell};
use crate::systems::{Running, System};

/// Frames a second that open flows.
const RATE: f64 = 100_000.0;
/// How often all flows are gone through: a datagram that was lost has opened none.
const TURNS: u32 = 3;

pub(super) fn ask(bench: &Bench, running: &Running) -> Vec<Finding> {
    if running.system.is_proxy() {
        return vec![Finding::new(
            format!("{} connections", bench.effort.proxied),
            proxied(bench, running),
        )];
    }
    let process = running.program.as_ref().map(Program::id);
    let measure = |before, flows| measure(bench, running, flows, before);
    match Memory::now(process) {
        Err(error) => vec![Finding::new("0 flows", Err(error))],
        Ok(before) => {
            let sizes = bench.effort.memory_flows.iter();
            sizes
                .map(|&flows| Finding::new(format!("{flows} flows"), measure(before, flows)))
                .collect()
        }
    }
}

/// `before`: without a flow. Flows of a smaller measurement are among those of a greater one.
fn measure(bench: &Bench, running: &Running, flows: u32, before: Memory) -> Outcome<Vec<Metric>> {
    if running.program.is_none() && conntrack::limit()? < u64::from(flows) {
        let limit = conntrack::limit()?;
        return Err(format!("nf_conntrack_max is {limit}, and only the host's root may raise it").into());
    }
    open_flows(bench, running, flows)?;
    let found = count(running)?;
    if found < u64::from(flows) * 99 / 100 {
        return Err(format!("only {found} of {flows} flows were there").into());
    }
    let after = Memory::now(running.program.as_ref().map(Program::id))?;
    Ok(metrics(before, after, found as f64))
}

fn metrics(before: Memory, after: Memory, flows: f64) -> Vec<Metric> {
    let (processes, slab) = (after.processes - before.processes, after.slab - before.slab);
    vec![
        ("RSS before MB", before.processes / 1e6),
        ("RSS MB", after.processes / 1e6),
        ("flow slab MB", after.slab / 1e6),
        ("machine MB", (before.available - after.available) / 1e6),
        ("bytes/flow", (processes + slab) / flows),
    ]
}

fn open_flows(bench: &Bench, running: &Running, flows: u32) -> Outcome<()> {
    let blast = bench.sink.blast(running, flows, Some(RATE))?;
    for _turn in 0..TURNS {
        rig::within(Place::Client, CLIENT_CPU, || {
            blast.send(|sent| sent < u64::from(flows)).map(drop)
        })?;
        if count(running)? >= u64::from(flows) {
            break;
        }
    }
    Ok(())
}

/// How many flows the system has.
fn count(running: &Running) -> Outcome<u64> {
    match running.system {
        System::Lbd(..) => {
            let status = shell(
                Place::Balancer,
                &format!(
                    "{} status --json --socket {DIR}/lbd.sock",
                    crate::systems::built("lbctl")?
                ),
            )?;
            let status: serde_json::Value = serde_json::from_str(&status)?;
            status["flows"]
                .as_u64()
                .ok_or_else(|| format!("no flows in {status}").into())
        }
        System::Ipvs => {
            let table = fs::read_to_string("/proc/net/ip_vs_conn").unwrap_or_default();
            Ok(table.lines().count() as u64)
        }
        System::Generator
        | System::Routing
        | System::Iptables
        | System::Nftables
        | System::Haproxy
        | System::Nginx
        | System::Bare => conntrack::count(),
    }
}

fn proxied(bench: &Bench, running: &Running) -> Outcome<Vec<Metric>> {
    let process = running.program.as_ref().map(Program::id);
    let (target, wanted) = (running.target(), bench.effort.proxied);
    let before = Memory::now(process)?;
    rig::within(Place::Client, CLIENT_CPU, || {
        let end = Instant::now() + Duration::from_secs(30);
        let mut held: Vec<TcpStream> = Vec::new();
        for number in 0..wanted {
            let (stream, _server) = open(target, number, Wish::Echo, Duration::from_secs(2))
                .map_err(|error| format!("connection {number}: {error}"))?;
            held.push(stream);
            if Instant::now() > end {
                return Err(format!("only {number} connections in 30 s").into());
            }
        }
        Ok(metrics(before, Memory::now(process)?, f64::from(wanted)))
    })
}
