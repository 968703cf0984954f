//! Files that appear whole or not at all.
use std::ffi::OsString;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{MetadataExt, fchown};
use std::path::{Path, PathBuf};

/// How many leftovers of killed runs may be in the way.
const MAX_ATTEMPTS: u32 = 100;
/// As the kernel (`MAXSYMLINKS`, include/linux/namei.h).
const MAX_LINKS: usize = 40;

/// A file that is written beside its place and takes it at the end, with the mode and the owner of the one that was there.
/// What is no regular file is written directly, for renaming over `/dev/null` would replace it; and so are standard output
/// and standard error under whatever name, for others have written there before.
#[derive(Debug)]
pub struct WholeFile {
    file: File,
    /// The name that becomes visible, links followed.
    target: PathBuf,
    /// The file to be renamed; removed when that does not happen.
    temporary: Option<PathBuf>,
}

impl WholeFile {
    /// Begins the file `name`.
    ///
    /// # Errors
    /// When it cannot be created, or what is there cannot be opened.
    pub fn create(name: &Path) -> io::Result<Self> {
        let present = match fs::metadata(name) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            found => Some(found?),
        };
        let direct = |file| Self {
            file,
            target: name.to_owned(),
            temporary: None,
        };
        if let Some(stream) = present.as_ref().and_then(standard_stream) {
            return stream.map(direct);
        }
        match target_of(name, present.as_ref()) {
            Some(target) => Self::beside(target, present.as_ref()),
            None => OpenOptions::new().write(true).truncate(true).open(name).map(direct),
        }
    }

    fn beside(target: PathBuf, present: Option<&Metadata>) -> io::Result<Self> {
        let (file, temporary) = create_beside(&target)?;
        let created = Self {
            file,
            target,
            temporary: Some(temporary),
        };
        if let Some(present) = present {
            resemble(&created.file, present)?;
        }
        Ok(created)
    }

    /// Puts the file into its place.
    ///
    /// # Errors
    /// When the directory refuses it. Nothing is left beside the place then.
    pub fn publish(mut self) -> io::Result<()> {
        if let Some(temporary) = &self.temporary {
            fs::rename(temporary, &self.target)?;
            self.temporary = None;
        }
        Ok(())
    }

    /// The same, so that also after a crash of the machine one finds the old text or the new one.
    ///
    /// # Errors
    /// See [`Self::publish`]; also when the disk refuses it.
    pub fn publish_synced(self) -> io::Result<()> {
        // A pipe or device has nothing to be synced (EINVAL, fsync(2)).
        if self.temporary.is_some() {
            self.file.sync_all()?;
        }
        self.publish()
    }
}

impl Write for WholeFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Drop for WholeFile {
    fn drop(&mut self) {
        if let Some(temporary) = &self.temporary {
            // Nothing is left to be done about a file that cannot be removed.
            drop(fs::remove_file(temporary));
        }
    }
}

/// Standard output or standard error, where `present` is one of them. To open these anew by a name would begin a file from its
/// start, and fails for a socket (ENXIO, open(2)).
fn standard_stream(present: &Metadata) -> Option<io::Result<File>> {
    let (output, error) = (io::stdout(), io::stderr());
    let leads_there = |stream: &BorrowedFd<'_>| {
        let stream = stream.try_clone_to_owned().map(File::from);
        stream
            .and_then(|file| file.metadata())
            .is_ok_and(|is| is_same(&is, present))
    };
    let stream = [output.as_fd(), error.as_fd()].into_iter().find(leads_there)?;
    Some(stream.try_clone_to_owned().map(File::from))
}

/// Whether both are of one file.
pub fn is_same(one: &Metadata, other: &Metadata) -> bool {
    (one.dev(), one.ino()) == (other.dev(), other.ino())
}

/// The regular file that `name` leads to, there or not yet; None for what is to be opened and written to. That is also a
/// file without a name, which `/proc` calls by none that leads to it (proc_pid_fd(5)).
fn target_of(name: &Path, present: Option<&Metadata>) -> Option<PathBuf> {
    match present {
        Some(present) if present.is_file() => fs::canonicalize(name).ok(),
        Some(_) => None,
        None => Some(through_links(name)),
    }
}

/// Where a link leads that leads to nothing yet.
fn through_links(name: &Path) -> PathBuf {
    let mut path = name.to_owned();
    for _ in 0..MAX_LINKS {
        let Ok(next) = fs::read_link(&path) else { break };
        path = path.parent().unwrap_or_else(|| Path::new("")).join(next);
    }
    path
}

/// The owner goes first, since to change it may take bits of the mode away (chown(2)). Who may not give files away, as most
/// may not, keeps what is possible of it.
fn resemble(file: &File, present: &Metadata) -> io::Result<()> {
    let (owner, group) = (Some(present.uid()), Some(present.gid()));
    if fchown(file, owner, group).is_err() {
        fchown(file, None, group).ok();
    }
    file.set_permissions(present.permissions())
}

/// Creates a hidden file in the directory of `target`, so that a rename is atomic.
fn create_beside(target: &Path) -> io::Result<(File, PathBuf)> {
    let name = target
        .file_name()
        .ok_or_else(|| io::Error::other("expected the name of a file"))?;
    let mut attempt = 0;
    loop {
        let mut hidden = OsString::from(".");
        hidden.push(name);
        hidden.push(format!(".{}-{attempt}", std::process::id()));
        let path = target.with_file_name(hidden);
        match OpenOptions::new().write(true).create_new(true).open(&path) {
            Ok(file) => return Ok((file, path)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && attempt < MAX_ATTEMPTS => {
                attempt += 1;
            }
            Err(error) => return Err(error),
        }
    }
}
