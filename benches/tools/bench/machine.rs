//! What the whole machine did, by the kernel's own count, and what it is.
use std::fs;
use std::process::Command;
use std::time::{Duration, Instant, SystemTime};

use serde::Serialize;

use crate::{Outcome, rig};

/// `USER_HZ`: ticks a second in /proc/stat.
const TICKS: f64 = 100.0;

/// A reading of /proc/stat.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reading {
    at: Instant,
    ticks: u64,
}

impl Reading {
    pub(crate) fn now() -> Outcome<Self> {
        let stat = fs::read_to_string("/proc/stat")?;
        Ok(Self {
            at: Instant::now(),
            ticks: busy_ticks(&stat).ok_or("/proc/stat has no line `cpu`")?,
        })
    }

    /// CPU seconds of the whole machine since then, and the time that passed.
    pub(crate) fn since(self) -> Outcome<(f64, Duration)> {
        Ok(self.until(Self::now()?))
    }

    /// The same up to a later reading.
    pub(crate) fn until(self, then: Self) -> (f64, Duration) {
        ((then.ticks - self.ticks) as f64 / TICKS, then.at - self.at)
    }
}

/// All of the line `cpu` but idle and iowait, without the guests that user and nice hold already (proc_stat(5)); and
/// without what was stolen, which no system here has used.
fn busy_ticks(stat: &str) -> Option<u64> {
    let line = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
    let fields: Vec<u64> = line.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    Some([0, 1, 2, 5, 6].iter().filter_map(|&field| fields.get(field)).sum())
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
    /// The share of the machine that was busy while the harness did nothing: before the run, and the most between turns.
    pub(crate) busy_before: f64,
    pub(crate) busiest_pause: f64,
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
            busiest_pause: busy,
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
        "ipvsadm --version | head -n1",
    ];
    let ask = |script: &&str| {
        let output = Command::new("sh")
            .args(["-c", &format!("{{ {script}; }} 2>&1")])
            .output()
            .ok()?;
        let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        (!said.is_empty() && !said.contains("not found")).then_some(said)
    };
    ASK.iter().filter_map(ask).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_and_stolen_time_is_not_busy_time() {
        let stat = "cpu  10 1 5 1000 50 2 3 400 7 0\ncpu0 1 1 1 1 1 1 1 1 1 1\n";
        assert_eq!(busy_ticks(stat), Some(21));
    }
}
