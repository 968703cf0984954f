//! Question 2: UDP frames of 64 bytes in few and many flows: how many arrive when all that the generator can make are
//! offered, and what a million of them costs when a fixed number is offered.
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use super::{Bench, Finding, Metric};
use crate::Outcome;
use crate::links;
use crate::load::blast::Blast;
use crate::machine::Reading;
use crate::rig::{self, CLIENT_CPU, Place, shell};
use crate::systems::{Running, System};
use crate::world::{UDP_PORT, backend};

/// What the generator makes at least where nothing holds it back.
const LIKELY_RATE: f64 = 300_000.0;

/// Where server 1 counts the datagrams that are addressed to it, and drops them as early as can be.
#[derive(Debug)]
pub(crate) struct Sink {
    macs: [[u8; 6]; 2],
    device: i32,
}

impl Sink {
    pub(crate) fn lay() -> Outcome<Self> {
        let server = *backend(1).ip();
        let rules = format!(
            "add table netdev sink
            add counter netdev sink delivered
            add chain netdev sink in {{ type filter hook ingress device eth0 priority 0; }}
            add rule netdev sink in meta pkttype host ip daddr {server} udp dport {UDP_PORT} counter name delivered drop"
        );
        shell(Place::Server(1), &format!("nft '{rules}'"))?;
        Ok(Self {
            macs: [
                links::mac_bytes(Place::Client, "eth0")?,
                links::mac_bytes(Place::Balancer, "client")?,
            ],
            device: links::number(Place::Client, "eth0")?,
        })
    }

    /// Datagrams that have come to the end of their way so far.
    pub(crate) fn delivered(system: System) -> Outcome<u64> {
        let end = match system {
            System::Generator => Place::Balancer,
            System::Routing | System::Iptables | System::Nftables | System::Ipvs => Place::Server(1),
            System::Haproxy | System::Nginx | System::Lbd(..) | System::Bare => Place::Server(1),
        };
        let listed = shell(end, "nft -j list counters")?;
        let listed: serde_json::Value = serde_json::from_str(&listed)?;
        let objects = listed["nftables"].as_array().ok_or("nft lists nothing")?;
        let packets = objects
            .iter()
            .filter_map(|object| object["counter"]["packets"].as_u64());
        Ok(packets.sum())
    }

    /// What to send to a system.
    pub(crate) fn blast(&self, running: &Running, flows: u32, rate: Option<f64>) -> Outcome<Blast> {
        Ok(Blast {
            target: running.udp_target()?,
            flows,
            rate,
            macs: self.macs,
            device: self.device,
        })
    }
}

pub(super) fn ask(bench: &Bench, running: &Running) -> Vec<Finding> {
    let of = |&flows: &u32| {
        let plural = if flows == 1 { "flow" } else { "flows" };
        Finding::new(format!("{flows} {plural}"), measure(bench, running, flows))
    };
    bench.effort.flows.iter().map(of).collect()
}

fn measure(bench: &Bench, running: &Running, flows: u32) -> Outcome<Vec<Metric>> {
    let fixed = rate(
        bench,
        running.system,
        &bench.sink.blast(running, flows, Some(bench.effort.rate))?,
    )?;
    let overload = rate(bench, running.system, &bench.sink.blast(running, flows, None)?)?;
    if overload.delivered == 0.0 || fixed.delivered == 0.0 {
        return Err("nothing arrived".into());
    }
    Ok(vec![
        ("delivered/s", overload.delivered),
        ("offered/s", overload.sent),
        ("CPU s/M at overload", overload.cpus / overload.delivered * 1e6),
        ("delivered/s at the fixed load", fixed.delivered),
        ("CPU s/M at the fixed load", fixed.cpus / fixed.delivered * 1e6),
    ])
}

/// A second of it.
struct Rate {
    sent: f64,
    delivered: f64,
    cpus: f64,
}

fn rate(bench: &Bench, system: System, blast: &Blast) -> Outcome<Rate> {
    let [warm_up, window] = bench.effort.time();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let generator = scope.spawn(|| {
            rig::enter(Place::Client, Some(CLIENT_CPU))?;
            blast.send(|_sent| !stop.load(Ordering::Relaxed))
        });
        // New flows are not what is asked: each has been seen before the clock runs, where the time allows it.
        let rate = blast.rate.unwrap_or(LIKELY_RATE);
        thread::sleep(warm_up + Duration::from_secs_f64(f64::from(blast.flows) / rate));
        let counted = count(system, window);
        stop.store(true, Ordering::Relaxed);
        let sent = generator
            .join()
            .unwrap_or_else(|_panic| Err("the generator panicked".into()));
        sent?;
        counted
    })
}

fn count(system: System, window: Duration) -> Outcome<Rate> {
    let before = Counters::now(system)?;
    thread::sleep(window);
    let after = Counters::now(system)?;
    let (cpu, time) = before.clock.until(after.clock);
    let seconds = time.as_secs_f64();
    Ok(Rate {
        sent: (after.sent - before.sent) as f64 / seconds,
        delivered: (after.delivered - before.delivered) as f64 / seconds,
        cpus: cpu / seconds,
    })
}

/// Always read in this order, so that the same time passes between two readings of each.
struct Counters {
    delivered: u64,
    sent: u64,
    clock: Reading,
}

impl Counters {
    fn now(system: System) -> Outcome<Self> {
        Ok(Self {
            delivered: Sink::delivered(system)?,
            sent: sent_by_client()?,
            clock: Reading::now()?,
        })
    }
}

/// Frames that the client's device has sent.
fn sent_by_client() -> Outcome<u64> {
    let shown = shell(Place::Client, "ip -j -s link show dev eth0")?;
    let shown: serde_json::Value = serde_json::from_str(&shown)?;
    shown[0]["stats64"]["tx"]["packets"]
        .as_u64()
        .ok_or_else(|| "ip counts no frames".into())
}
