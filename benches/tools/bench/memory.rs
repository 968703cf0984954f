//! What flows take: of a process, of the kernel's flow table, of the whole machine.
use std::fs;

use crate::Outcome;
use crate::machine;

/// Bytes, at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Memory {
    /// Resident memory of the processes.
    pub(crate) processes: f64,
    /// What the kernel's slab of flows holds.
    pub(crate) slab: f64,
    /// What programs could still have.
    pub(crate) available: f64,
}

impl Memory {
    /// `process`: it and its children.
    pub(crate) fn now(process: Option<u32>) -> Outcome<Self> {
        let family = process.map(family).unwrap_or_default();
        Ok(Self {
            processes: family.into_iter().map(resident).sum(),
            slab: flow_slab(&fs::read_to_string("/proc/slabinfo").unwrap_or_default()),
            available: machine::available().ok_or("no MemAvailable in /proc/meminfo")?,
        })
    }
}

fn resident(process: u32) -> f64 {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kilobytes = line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok());
    kilobytes.unwrap_or(0.0) * 1024.0
}

/// The process and all that descend from it.
fn family(process: u32) -> Vec<u32> {
    let mut family = vec![process];
    let parents = parents();
    let mut next = 0;
    while let Some(&parent) = family.get(next) {
        family.extend(parents.iter().filter(|(_, of)| *of == parent).map(|(child, _)| child));
        next += 1;
    }
    family
}

/// Every process with its parent (`proc_pid_stat(5)`, field 4).
fn parents() -> Vec<(u32, u32)> {
    let parent = |entry: std::io::Result<fs::DirEntry>| {
        let process = entry.ok()?.file_name().to_str()?.parse().ok()?;
        let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
        let (_, fields) = stat.rsplit_once(')')?;
        Some((process, fields.split_whitespace().nth(1)?.parse().ok()?))
    };
    fs::read_dir("/proc").into_iter().flatten().filter_map(parent).collect()
}

/// slabinfo(5): active objects times their size.
fn flow_slab(slabinfo: &str) -> f64 {
    let caches = slabinfo
        .lines()
        .filter(|line| line.starts_with("nf_conntrack ") || line.starts_with("ip_vs_conn "));
    let bytes = |line: &str| {
        let mut words = line.split_whitespace().skip(1);
        let objects: f64 = words.next()?.parse().ok()?;
        let size: f64 = words.nth(1)?.parse().ok()?;
        Some(objects * size)
    };
    caches.filter_map(bytes).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_flows_are_counted_by_their_slab_and_nothing_else_is() {
        let text = "slabinfo - version: 2.1\n# name <active_objs> <num_objs> <objsize>\n\
                    nf_conntrack          80    144    256   16    1 : tunables\n\
                    nf_conntrack_expect   10     10    100   16    1 : tunables\n";
        assert_eq!(flow_slab(text), 80.0 * 256.0);
    }
}
