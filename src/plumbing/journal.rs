//! What sysctls were before lbd changed them, on disk before the change, so that the next lbd can undo a killed one's.
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::error::Error;

/// One changed sysctl.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Setting {
    /// Path below `/proc/sys`.
    pub(super) key: String,
    pub(super) before: String,
    /// What lbd set it to. It is put back only while it still has this value.
    pub(super) set: String,
    /// Sysctls that the kernel changes along with this one, and what they were.
    pub(super) along: Vec<(String, String)>,
}

/// Whose journal it is. Process ids and namespace numbers are used anew after a while, hence the start time and the boot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Owner {
    pub(super) process: u32,
    pub(super) process_namespace: u64,
    /// Clock ticks after boot, field 22 of `/proc/PID/stat`.
    pub(super) start_time: u64,
    pub(super) boot: String,
    pub(super) network_namespace: u64,
    pub(super) device: String,
}

/// The journal of one lbd in one network namespace.
#[derive(Debug)]
pub(super) struct Journal {
    path: PathBuf,
    contents: Contents,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Contents {
    owner: Owner,
    settings: Vec<Setting>,
}

impl Journal {
    /// An empty journal of this process in `directory`, which is created when missing. Written with the first setting.
    pub(super) fn claim(directory: &Path, device: &str) -> Result<Self, Error> {
        let mut builder = fs::DirBuilder::new();
        let created = builder.recursive(true).mode(0o700).create(directory);
        created.map_err(|source| Error::File {
            path: directory.into(),
            source,
        })?;
        let owner = Owner::this(device)?;
        let path = path(directory, &owner);
        if let Some(other) = load(&path)? {
            other.refuse_if_alive()?;
        }
        let journal = Self {
            path,
            contents: Contents {
                owner,
                settings: Vec::new(),
            },
        };
        journal.write()?;
        Ok(journal)
    }

    /// The journal that a process which is gone has left in `directory` for this network namespace.
    pub(super) fn left_behind(directory: &Path) -> Result<Option<Self>, Error> {
        let this = Owner::this("")?;
        let path = path(directory, &this);
        let Some(found) = load(&path)? else {
            return Ok(None);
        };
        found.refuse_if_alive()?;
        // Neither sysctls nor namespaces survive a reboot.
        let current = found.owner.boot == this.boot && found.owner.network_namespace == this.network_namespace;
        let settings = if current { found.settings } else { Vec::new() };
        Ok(Some(Self {
            path,
            contents: Contents {
                owner: found.owner,
                settings,
            },
        }))
    }

    /// The device of the lbd that wrote it.
    pub(super) fn device(&self) -> &str {
        &self.contents.owner.device
    }

    pub(super) fn settings(&self) -> &[Setting] {
        &self.contents.settings
    }

    /// Adds `settings`; when this returns, they are on disk.
    pub(super) fn add(&mut self, settings: Vec<Setting>) -> Result<(), Error> {
        if settings.is_empty() {
            return Ok(());
        }
        self.contents.settings.extend(settings);
        self.write()
    }

    /// Forgets everything, once it has been undone.
    pub(super) fn delete(&mut self) -> Result<(), Error> {
        self.contents.settings.clear();
        match fs::remove_file(&self.path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(self.error(source)),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// A crash leaves the old file or the new one, never half of one.
    fn write(&self) -> Result<(), Error> {
        let text = serde_json::to_vec_pretty(&self.contents);
        let text = text.map_err(|source| Error::Journal {
            path: self.path.clone(),
            source,
        })?;
        let new = self.path.with_extension("new");
        let write = || {
            let mut file = File::create(&new)?;
            file.write_all(&text)?;
            file.sync_all()?;
            fs::rename(&new, &self.path)?;
            self.path
                .parent()
                .map_or(Ok(()), |directory| File::open(directory)?.sync_all())
        };
        write().map_err(|source| self.error(source))
    }

    fn error(&self, source: io::Error) -> Error {
        Error::File {
            path: self.path.clone(),
            source,
        }
    }
}

impl Contents {
    fn refuse_if_alive(&self) -> Result<(), Error> {
        if self.owner.is_alive()? {
            let who = format!("process {}, device {}", self.owner.process, self.owner.device);
            return Err(Error::AlreadyRunning { who });
        }
        Ok(())
    }
}

impl Owner {
    fn this(device: &str) -> Result<Self, Error> {
        let process = std::process::id();
        Ok(Self {
            process,
            process_namespace: namespace("/proc/self/ns/pid")?,
            start_time: start_time(process).unwrap_or(0),
            boot: read("/proc/sys/kernel/random/boot_id")?.trim().into(),
            // A thread may have a network namespace of its own.
            network_namespace: namespace("/proc/thread-self/ns/net")?,
            device: device.into(),
        })
    }

    /// Whether another process that wrote this still runs. A process in another process namespace cannot be seen from
    /// here; its device can (see `leftovers`).
    fn is_alive(&self) -> Result<bool, Error> {
        let this = Self::this("")?;
        let comparable = self.boot == this.boot && self.process_namespace == this.process_namespace;
        let same = self.process == this.process;
        Ok(comparable && !same && start_time(self.process) == Some(self.start_time))
    }
}

fn path(directory: &Path, owner: &Owner) -> PathBuf {
    directory.join(format!("plumbing-{}.json", owner.network_namespace))
}

fn load(path: &Path) -> Result<Option<Contents>, Error> {
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => {
            return Err(Error::File {
                path: path.into(),
                source,
            });
        }
    };
    let contents = serde_json::from_slice(&text);
    contents.map(Some).map_err(|source| Error::Journal {
        path: path.into(),
        source,
    })
}

fn namespace(link: &str) -> Result<u64, Error> {
    let metadata = fs::metadata(link).map_err(|source| Error::File {
        path: link.into(),
        source,
    })?;
    Ok(metadata.ino())
}

fn read(path: &str) -> Result<String, Error> {
    fs::read_to_string(path).map_err(|source| Error::File {
        path: path.into(),
        source,
    })
}

/// None: there is no such process, or it is a zombie, which holds nothing anymore.
fn start_time(process: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // The second field, the name, may contain spaces and parentheses; the third is the state, the 22nd the time.
    let (_, rest) = stat.rsplit_once(") ")?;
    let mut fields = rest.split(' ');
    let state = fields.next()?;
    let time = fields.nth(18)?.parse().ok()?;
    (state != "Z").then_some(time)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn setting() -> Setting {
        Setting {
            key: "net/ipv4/ip_forward".into(),
            before: "0".into(),
            set: "1".into(),
            along: vec![("net/ipv4/conf/eth0/forwarding".into(), "1".into())],
        }
    }

    /// Rewrites the owner of the journal in `directory`.
    fn disown(journal: &Journal, change: impl Fn(&mut Owner)) {
        let mut contents = journal.contents.clone();
        change(&mut contents.owner);
        fs::write(&journal.path, serde_json::to_vec(&contents).unwrap()).unwrap();
    }

    fn journal(directory: &Path) -> Journal {
        let mut journal = Journal::claim(directory, "lbd0").unwrap();
        journal.add(vec![setting()]).unwrap();
        journal
    }

    #[test]
    fn what_a_killed_lbd_changed_is_found_by_the_next_one() {
        let directory = tempfile::tempdir().unwrap();
        let written = journal(directory.path());
        disown(&written, |owner| owner.start_time = 1);
        let found = Journal::left_behind(directory.path()).unwrap().unwrap();
        assert_eq!(found.settings(), [setting()]);
        assert_eq!(found.device(), "lbd0");
    }

    #[test]
    fn the_journal_of_a_running_lbd_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let written = journal(directory.path());
        disown(&written, |owner| {
            owner.process = std::os::unix::process::parent_id();
            owner.start_time = start_time(owner.process).unwrap();
        });
        let error = Journal::left_behind(directory.path()).unwrap_err();
        assert!(matches!(error, Error::AlreadyRunning { .. }), "{error}");
        assert!(Journal::claim(directory.path(), "lbd0").is_err());
        assert!(written.path.exists());
    }

    #[test]
    fn a_journal_of_an_earlier_boot_changes_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let written = journal(directory.path());
        disown(&written, |owner| owner.boot = "earlier".into());
        let found = Journal::left_behind(directory.path()).unwrap().unwrap();
        assert!(found.settings().is_empty());
    }

    #[test]
    fn a_journal_of_another_namespace_is_not_even_read() {
        let directory = tempfile::tempdir().unwrap();
        let written = journal(directory.path());
        fs::rename(&written.path, directory.path().join("plumbing-1.json")).unwrap();
        assert!(Journal::left_behind(directory.path()).unwrap().is_none());
    }

    #[test]
    fn a_damaged_journal_is_an_error_that_names_the_file() {
        let directory = tempfile::tempdir().unwrap();
        let written = journal(directory.path());
        fs::write(&written.path, "{").unwrap();
        let error = Journal::left_behind(directory.path()).unwrap_err().to_string();
        assert!(error.contains("plumbing-"), "{error}");
    }

    #[test]
    fn after_a_clean_exit_nothing_is_left() {
        let directory = tempfile::tempdir().unwrap();
        journal(directory.path()).delete().unwrap();
        assert!(Journal::left_behind(directory.path()).unwrap().is_none());
    }
}
