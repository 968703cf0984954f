//! The host's filters, read and changed by the programs that are there for it.
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use super::judge::{Found, Probe, obstacles, own_rules};
use super::rules::{Family, Source, Table};
use super::{Obstacle, TAG, nft, saved};

/// What was read, and what could not be.
#[derive(Debug, Default)]
pub(super) struct Filters {
    tables: Vec<Table>,
    /// Why nothing is known of nftables.
    pub(super) unknown: Option<String>,
    /// Bytes that the programs printed: what a look costs.
    pub(super) size: usize,
}

impl Filters {
    /// Reads every table with a chain that may drop; those that only translate addresses are not looked into.
    pub(super) fn read() -> Self {
        let mut filters = Self::default();
        match run("nft", "-j list chains", None) {
            Ok(text) => filters.read_nft(&text),
            Err(why) => filters.unknown = Some(why),
        }
        for (names, program, family) in [
            ("/proc/net/ip_tables_names", "iptables-legacy-save", Family::Ip),
            ("/proc/net/ip6_tables_names", "ip6tables-legacy-save", Family::Ip6),
        ] {
            filters.read_legacy(Path::new(names), program, family);
        }
        filters
    }

    fn read_nft(&mut self, chains: &str) {
        let listed = nft::tables(chains).unwrap_or_default();
        for Table { family, name, .. } in listed
            .iter()
            .filter(|table| table.chains.iter().any(|chain| chain.hook.is_some()))
        {
            // Tersely: sets may be large, and which addresses they have matters not.
            let Ok(text) = run("nft", &format!("-j -t list table {} {name}", family.name()), None) else {
                continue;
            };
            self.size += text.len();
            for mut table in nft::tables(&text).unwrap_or_default() {
                if text.contains("\"xt\"") {
                    self.read_again(&mut table);
                }
                self.tables.push(table);
            }
        }
    }

    /// nft cannot show what iptables has written with modules of its own; iptables can. The handles are nft's.
    fn read_again(&mut self, table: &mut Table) {
        let program = match table.family {
            Family::Ip => "iptables-nft-save",
            Family::Ip6 => "ip6tables-nft-save",
            Family::Inet => return,
        };
        let Ok(text) = run(program, &format!("-t {}", table.name), None) else {
            return;
        };
        self.size += text.len();
        let written = saved::tables(&text, Source::Nft, table.family);
        for chain in written.into_iter().flat_map(|table| table.chains) {
            if let Some(known) = table.chains.iter_mut().find(|known| known.name == chain.name)
                && known.rules.len() == chain.rules.len()
            {
                for (known, written) in known.rules.iter_mut().zip(chain.rules) {
                    (known.conditions, known.verdict) = (written.conditions, written.verdict);
                }
            }
        }
    }

    fn read_legacy(&mut self, names: &Path, program: &str, family: Family) {
        let tables = std::fs::read_to_string(names).unwrap_or_default();
        for name in tables.lines().filter(|name| *name != "nat") {
            if let Ok(text) = run(program, &format!("-t {name}"), None) {
                self.size += text.len();
                self.tables.extend(saved::tables(&text, Source::Legacy, family));
            }
        }
    }

    /// The chains that drop what has to come through.
    pub(super) fn judge(&self, probes: &[Probe], device: &str) -> Vec<Found> {
        obstacles(&self.tables, probes, device)
    }

    /// Takes lbd's own rules out again; how many there were.
    pub(super) fn close(&self) -> Result<usize, String> {
        let (nft, legacy) = own_rules(&self.tables);
        change(&nft, &legacy)?;
        Ok(nft.len() + legacy.len())
    }
}

/// Puts accept rules at the front of these chains; how many.
pub(super) fn open(found: &[Found], device: &str) -> Result<usize, String> {
    let comment = |line: String| format!("{line} comment \"{TAG}\"");
    let nft: Vec<String> = found.iter().flat_map(|found| found.nft(device)).map(comment).collect();
    let legacy: Vec<(&str, String)> = found.iter().flat_map(|found| found.legacy(device)).collect();
    change(&nft, &legacy)?;
    Ok(nft.len() + legacy.len())
}

/// What lbd's own rules would do: for messages.
pub(super) fn told(found: &[Found], device: &str) -> Vec<Obstacle> {
    found.iter().map(|found| found.obstacle(device)).collect()
}

fn change(nft: &[String], legacy: &[(&str, String)]) -> Result<(), String> {
    if !nft.is_empty() {
        run("nft", "-f -", Some(&format!("{}\n", nft.join("\n"))))?;
    }
    for (program, line) in legacy {
        // Waits for whoever else changes them (the xtables lock).
        let words = format!("-w 5 {line}");
        let mut words: Vec<&str> = words.split_whitespace().collect();
        let target = words.len() - 2;
        words.splice(target..target, ["-m", "comment", "--comment", TAG]);
        run_words(program, &words, None)?;
    }
    Ok(())
}

fn run(program: &str, words: &str, input: Option<&str>) -> Result<String, String> {
    run_words(program, &words.split_whitespace().collect::<Vec<_>>(), input)
}

/// What a program printed.
///
/// # Errors
/// That it is not there, or what it said.
fn run_words(program: &str, words: &[&str], input: Option<&str>) -> Result<String, String> {
    let mut command = Command::new(program);
    // Daemons are often started without the directories of root.
    let path = std::env::var("PATH").unwrap_or_default();
    command
        .env("PATH", format!("{path}:/usr/sbin:/sbin:/usr/bin:/bin"))
        .env("LC_ALL", "C");
    let stdin = if input.is_some() { Stdio::piped() } else { Stdio::null() };
    let spawned = command
        .args(words)
        .stdin(stdin)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = spawned.map_err(|error| match error.kind() == std::io::ErrorKind::NotFound {
        true => format!("{program} is not installed"),
        false => format!("{program} cannot be run: {error}"),
    })?;
    if let Some(input) = input
        && let Some(mut pipe) = child.stdin.take()
    {
        pipe.write_all(input.as_bytes())
            .map_err(|error| format!("{program}: {error}"))?;
    }
    let output = child
        .wait_with_output()
        .map_err(|error| format!("{program}: {error}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(format!(
            "{program} {}: {}",
            words.join(" "),
            said.trim().replace('\n', " ")
        ));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
