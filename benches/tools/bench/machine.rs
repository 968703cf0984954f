//! What the whole machine did, by the kernel's own count, and what it is.
use std::fs;
use std::process::Command;
use std::time::{Duration, Instant, SystemTime};

use serde::Serialize;

use crate::{Outcome, rig};

/// `USER_HZ`: ticks a second in /proc/stat.
const TICKS: f64 = 100.0;

/// A reading of /proc/stat: what was not used. The kernel measures idle time (`get_cpu_idle_time_us`), whereas busy time is
/// guessed from what runs when the clock ticks, which misses work that a timer starts between two ticks: a generator at a
/// fixed rate, and all that its frames cause, would be nearly free.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reading {
    at: Instant,
    unused: Unused,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Unused {
    ticks: u64,
    cpus: u32,
}

impl Reading {
    pub(crate) fn now() -> Outcome<Self> {
        let stat = fs::read_to_string("/proc/stat")?;
        Ok(Self {
            at: Instant::now(),
            unused: unused(&stat).ok_or("/proc/stat has no line `cpu`")?,
        })
    }

    /// CPU seconds of the whole machine since then, and the time that passed.
    pub(crate) fn since(self) -> Outcome<(f64, Duration)> {
        Ok(self.until(Self::now()?))
    }

    /// The same up to a later reading.
    pub(crate) fn until(self, then: Self) -> (f64, Duration) {
        let time = then.at - self.at;
        (busy_seconds(self.unused, then.unused, time), time)
    }
}

fn busy_seconds(before: Unused, after: Unused, time: Duration) -> f64 {
    let unused = after.ticks.saturating_sub(before.ticks) as f64 / TICKS;
    // Both are rounded down to a tick: an idle machine must not be busy for less than no time.
    (f64::from(after.cpus) * time.as_secs_f64() - unused).max(0.0)
}

/// Of the line `cpu` idle, iowait and what the hypervisor has stolen, which no system here has used (proc_stat(5)); and how
/// many CPUs have lines of their own.
fn unused(stat: &str) -> Option<Unused> {
    let line = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
    let fields: Vec<u64> = line.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    let cpus = stat.lines().filter(|line| line.starts_with("cpu")).count() - 1;
    Some(Unused {
        ticks: [3, 4, 7].iter().filter_map(|&field| fields.get(field)).sum(),
        cpus: u32::try_from(cpus).ok()?,
    })
}

/// The machine and the circumstances of a run.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Machine {
    pub(crate) date: String,
    pub(crate) command: String,
    pub(crate) commit: String,
    pub(crate) cpu: String,
    pub(crate) cpus: usize,
    pub(crate) memory_gb: f64,
    pub(crate) kernel: String,
    pub(crate) versions: Vec<String>,
    /// The share of the machine that was busy before the run.
    pub(crate) busy_before: f64,
}

impl Machine {
    pub(crate) fn look(command: String) -> Outcome<Self> {
        let commit = std::env::var("LBD_BENCH_COMMIT").unwrap_or_else(|_unset| "unknown".to_owned());
        let busy = strangers(Duration::from_secs(1))?;
        Ok(Self {
            date: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
            command,
            commit,
            cpu: value_of("/proc/cpuinfo", "model name").unwrap_or_default(),
            cpus: rig::cpus(),
            memory_gb: available().map_or(0.0, |_bytes| memory("MemTotal")) / 1e9,
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease")?.trim().to_owned(),
            versions: versions(),
            busy_before: busy,
        })
    }
}

/// The share of the machine that others use: what is busy while this waits.
pub(crate) fn strangers(pause: Duration) -> Outcome<f64> {
    let before = Reading::now()?;
    std::thread::sleep(pause);
    let (busy, time) = before.since()?;
    Ok(busy / time.as_secs_f64() / rig::cpus() as f64)
}

/// Bytes that programs could still have (`MemAvailable`).
pub(crate) fn available() -> Option<f64> {
    Some(memory("MemAvailable")).filter(|&bytes| bytes > 0.0)
}

fn memory(key: &str) -> f64 {
    let kilobytes = value_of("/proc/meminfo", key).unwrap_or_default();
    let number = kilobytes
        .split_whitespace()
        .next()
        .and_then(|word| word.parse::<f64>().ok());
    number.unwrap_or(0.0) * 1024.0
}

fn value_of(file: &str, key: &str) -> Option<String> {
    let text = fs::read_to_string(file).ok()?;
    let line = text.lines().find(|line| line.starts_with(key))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

fn versions() -> Vec<String> {
    const ASK: [&str; 5] = [
        "iptables-nft --version || iptables --version",
        "nft --version",
        "haproxy -v | head -n1",
        "nginx -v 2>&1",
        "ipvsadm --version",
    ];
    let ask = |script: &&str| {
        let output = Command::new("sh")
            .args(["-c", &format!("{{ {script}; }} 2>&1")])
            .output()
            .ok()?;
        let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        // Without IPVS in the kernel ipvsadm fails, after a complaint.
        let is_version = output.status.success() && !said.is_empty() && !said.contains("not found");
        is_version.then_some(said)
    };
    ASK.iter().filter_map(ask).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_neither_idle_nor_waiting_nor_stolen_is_used() {
        let stat = "cpu  10 1 5 1000 50 2 3 400 7 0\ncpu0 1 1 1 1 1 1 1 1 1 1\ncpu1 1 1 1 1 1 1 1 1 1 1\nintr 1\n";
        let before = unused(stat).unwrap();
        assert_eq!(before, Unused { ticks: 1450, cpus: 2 });
        let after = Unused { ticks: 1550, cpus: 2 };
        assert_eq!(busy_seconds(before, after, Duration::from_secs(2)), 3.0);
    }
}
