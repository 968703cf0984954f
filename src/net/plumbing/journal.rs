//! What sysctls were before lbd changed them, on disk before the change, so that the next lbd can undo a killed one's.
//!
//! Whoever writes a journal has the next lbd write sysctls, so only this user's own files are believed, and only what
//! they say of the network.
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::error::Error;
use super::{directory, identity};

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
    #[serde(default)]
    pub(super) network_cookie: u64,
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
        let directory = directory::or_here(directory);
        directory::create(directory).map_err(unwritable(directory))?;
        let owner = Owner::this(device)?;
        let path = path(directory, &owner);
        if let Some(other) = load(&path)? {
            other.refuse_if_alive()?;
        }
        let mut journal = Self {
            path,
            contents: Contents {
                owner,
                settings: Vec::new(),
            },
        };
        match journal.write() {
            Ok(()) => Ok(journal),
            Err(error) => {
                // Nothing has been changed yet, and the first error is the one to tell.
                journal.delete().unwrap_or_default();
                Err(error)
            }
        }
    }

    /// The journal that a process which is gone has left in `directory` for this network namespace.
    pub(super) fn left_behind(directory: &Path) -> Result<Option<Self>, Error> {
        let this = Owner::this("")?;
        let path = path(directory::or_here(directory), &this);
        let Some(found) = load(&path)? else {
            return Ok(None);
        };
        found.refuse_if_alive()?;
        // Neither sysctls nor namespaces survive a reboot.
        let current = found.owner.boot == this.boot
            && found.owner.network_namespace == this.network_namespace
            && found.owner.network_cookie == this.network_cookie;
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

    /// Adds `settings`; when this returns, they are on disk. What was before the first of several changes counts.
    pub(super) fn add(&mut self, settings: Vec<Setting>) -> Result<(), Error> {
        if settings.is_empty() {
            return Ok(());
        }
        for new in settings {
            let mut known = self.contents.settings.iter_mut();
            match known.find(|known| known.key == new.key) {
                Some(known) => known.change_again(new),
                None => self.contents.settings.push(new),
            }
        }
        self.write()
    }

    /// Forgets everything, once it has been undone.
    pub(super) fn delete(&mut self) -> Result<(), Error> {
        self.contents.settings.clear();
        remove(&self.path).map_err(unwritable(&self.path))
    }

    /// A crash leaves the old file or the new one, never half of one.
    fn write(&self) -> Result<(), Error> {
        let text = serde_json::to_vec_pretty(&self.contents);
        let text = text.map_err(|source| Error::Journal {
            path: self.path.clone(),
            source,
        })?;
        self.replace(&text).map_err(unwritable(&self.path))
    }

    fn replace(&self, text: &[u8]) -> io::Result<()> {
        let new = self.path.with_extension("new");
        remove(&new)?;
        let write = || {
            // Not through a link that somebody else has put there in the meantime.
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
            file.write_all(text)?;
            file.sync_all()?;
            fs::rename(&new, &self.path)
        };
        let written = write();
        if written.is_err() {
            remove(&new)?;
        }
        written?;
        self.path
            .parent()
            .map_or(Ok(()), |directory| File::open(directory)?.sync_all())
    }
}

impl Setting {
    fn change_again(&mut self, new: Self) {
        self.set = new.set;
        for (key, before) in new.along {
            if self.along.iter().all(|(known, _)| *known != key) {
                self.along.push((key, before));
            }
        }
    }
}

impl Contents {
    fn keys(&self) -> impl Iterator<Item = &str> {
        self.settings.iter().flat_map(|setting| {
            let along = setting.along.iter().map(|(key, _)| key.as_str());
            std::iter::once(setting.key.as_str()).chain(along)
        })
    }

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
            network_cookie: identity::network_cookie().map_err(|source| Error::Netlink {
                what: "ask for SO_NETNS_COOKIE",
                source,
            })?,
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

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

fn unwritable(path: &Path) -> impl FnOnce(io::Error) -> Error {
    |source| Error::Unwritable {
        path: path.into(),
        source,
    }
}

fn load(path: &Path) -> Result<Option<Contents>, Error> {
    let Some(text) = read_trusted(path)? else {
        return Ok(None);
    };
    let contents: Contents = serde_json::from_slice(&text).map_err(|source| Error::Journal {
        path: path.into(),
        source,
    })?;
    if let Some(key) = contents.keys().find(|key| !is_network_setting(key)) {
        return Err(untrusted(path, format!("it names {key:?}, which lbd never sets")));
    }
    Ok(Some(contents))
}

/// The file's bytes, if it is a file that only this user can have written.
fn read_trusted(path: &Path) -> Result<Option<Vec<u8>>, Error> {
    let unreadable = |source| Error::File {
        path: path.into(),
        source,
    };
    let mut options = OpenOptions::new();
    // Neither follow a link nor wait for the other end of a FIFO.
    options.read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
    let mut file = match options.open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) if error.raw_os_error() == Some(libc::ELOOP) => {
            return Err(untrusted(path, "it is a symbolic link".into()));
        }
        Err(error) => return Err(unreadable(error)),
    };
    let metadata = file.metadata().map_err(unreadable)?;
    if let Some(why) = mistrust(&metadata) {
        return Err(untrusted(path, why));
    }
    let mut text = Vec::new();
    file.read_to_end(&mut text).map_err(unreadable)?;
    Ok(Some(text))
}

fn mistrust(metadata: &fs::Metadata) -> Option<String> {
    let user = identity::effective_user();
    if !metadata.is_file() {
        return Some("it is no plain file".into());
    }
    if metadata.uid() != user {
        let owner = metadata.uid();
        return Some(format!("it belongs to user {owner}, and lbd runs as user {user}"));
    }
    (metadata.mode() & 0o022 != 0).then(|| "others may write to it".into())
}

fn untrusted(path: &Path, why: String) -> Error {
    Error::Untrusted { path: path.into(), why }
}

/// `net/ipv4/…` or `net/ipv6/…`, and nothing that leads out of there.
fn is_network_setting(key: &str) -> bool {
    let plain = Path::new(key)
        .components()
        .all(|component| matches!(component, Component::Normal(_)));
    let below = ["net/ipv4/", "net/ipv6/"].iter().any(|start| key.starts_with(start));
    below && plain && key.split('/').all(|part| !part.is_empty())
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
    use std::os::unix::fs::PermissionsExt;

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
    fn a_setting_that_is_changed_again_keeps_what_it_was_at_first() {
        let directory = tempfile::tempdir().unwrap();
        let mut written = journal(directory.path());
        let mut again = setting();
        again.before = "7".into();
        again.along = vec![
            ("net/ipv4/conf/eth0/forwarding".into(), "0".into()),
            ("net/ipv4/conf/eth1/forwarding".into(), "0".into()),
        ];
        written.add(vec![again]).unwrap();
        let mut expected = setting();
        expected
            .along
            .push(("net/ipv4/conf/eth1/forwarding".into(), "0".into()));
        assert_eq!(written.settings(), [expected]);
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

    /// A journal of a process that is gone, which would set `key` of the host's.
    fn planted(directory: &Path) -> PathBuf {
        let written = journal(directory);
        disown(&written, |owner| owner.start_time = 1);
        written.path
    }

    #[test]
    fn a_journal_that_others_may_write_is_refused_with_its_remedy() {
        let directory = tempfile::tempdir().unwrap();
        let path = planted(directory.path());
        fs::set_permissions(&path, fs::Permissions::from_mode(0o622)).unwrap();
        let error = Journal::left_behind(directory.path()).unwrap_err().to_string();
        assert!(error.contains("plumbing-") && error.contains("delete it"), "{error}");
        assert!(Journal::claim(directory.path(), "lbd0").is_err());
    }

    #[test]
    fn a_journal_of_another_user_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = planted(directory.path());
        if std::os::unix::fs::chown(&path, Some(12_345), None).is_err() {
            // Only root can give a file away; then nobody else's can be had here.
            return;
        }
        let error = Journal::left_behind(directory.path()).unwrap_err().to_string();
        assert!(error.contains("12345") && error.contains("delete it"), "{error}");
    }

    #[test]
    fn a_planted_symlink_is_neither_read_nor_written_through() {
        let directory = tempfile::tempdir().unwrap();
        let path = planted(directory.path());
        let elsewhere = directory.path().join("elsewhere");
        fs::rename(&path, &elsewhere).unwrap();
        std::os::unix::fs::symlink(&elsewhere, &path).unwrap();
        assert!(Journal::left_behind(directory.path()).is_err());

        fs::remove_file(&path).unwrap();
        fs::write(&elsewhere, "precious").unwrap();
        std::os::unix::fs::symlink(&elsewhere, path.with_extension("new")).unwrap();
        let written = journal(directory.path());
        assert_eq!(fs::read_to_string(&elsewhere).unwrap(), "precious");
        assert_eq!(fs::metadata(&written.path).unwrap().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_fifo_in_the_place_of_the_journal_does_not_hang_the_start() {
        let directory = tempfile::tempdir().unwrap();
        let path = planted(directory.path());
        fs::remove_file(&path).unwrap();
        let made = std::process::Command::new("mkfifo").arg(&path).status().unwrap();
        assert!(made.success());
        assert!(Journal::left_behind(directory.path()).is_err());
    }

    #[test]
    fn the_journal_of_another_namespace_that_had_the_same_number_changes_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let written = journal(directory.path());
        disown(&written, |owner| {
            owner.start_time = 1;
            owner.network_cookie += 1;
        });
        let found = Journal::left_behind(directory.path()).unwrap().unwrap();
        assert!(found.settings().is_empty());
    }

    #[test]
    fn a_journal_that_names_anything_but_network_settings_is_refused() {
        for key in [
            "/etc/passwd",
            "net/ipv4/../../../etc/passwd",
            "kernel/core_pattern",
            "net/ipv4/",
            "net/ipv6/a//b",
        ] {
            for along in [false, true] {
                let directory = tempfile::tempdir().unwrap();
                let written = journal(directory.path());
                let mut contents = written.contents.clone();
                contents.owner.start_time = 1;
                match along {
                    false => contents.settings[0].key = key.into(),
                    true => contents.settings[0].along[0].0 = key.into(),
                }
                fs::write(&written.path, serde_json::to_vec(&contents).unwrap()).unwrap();
                let error = Journal::left_behind(directory.path()).unwrap_err().to_string();
                assert!(error.contains(key), "{error}");
            }
        }
    }

    #[test]
    fn a_journal_that_cannot_be_written_leaves_no_stray_file() {
        let directory = tempfile::tempdir().unwrap();
        let mut written = journal(directory.path());
        fs::remove_file(&written.path).unwrap();
        fs::create_dir_all(written.path.join("in the way")).unwrap();
        assert!(written.add(vec![setting()]).is_err());
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_missing_directory_is_created_for_everybody_to_look_into() {
        let directory = tempfile::tempdir().unwrap();
        let below = directory.path().join("run/lbd");
        journal(&below);
        assert_eq!(fs::metadata(below).unwrap().mode() & 0o777, 0o755);
    }

    #[test]
    fn a_directory_that_cannot_be_had_is_an_error_that_names_key_and_remedy() {
        let error = Journal::claim(Path::new("/proc/lbd"), "lbd0").unwrap_err().to_string();
        assert!(
            error.contains("/proc/lbd") && error.contains("run lbd as root") && error.contains("socket in [control]"),
            "{error}"
        );
    }
}
