//! Result files that appear whole or not at all.
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::ReplayError;

/// How many leftovers of killed runs may be in the way.
const MAX_ATTEMPTS: u32 = 100;

/// A file that is written beside its place and takes it at the end. A pipe or device is written directly, for
/// renaming over `/dev/null` would replace it.
pub(super) struct Output {
    writer: BufWriter<File>,
    place: Place,
}

/// A file that is written and not yet in its place.
pub(super) struct Finished(Place);

struct Place {
    /// As the user called it.
    name: PathBuf,
    /// The name that becomes visible, links followed.
    target: PathBuf,
    /// The file to be renamed; removed when that does not happen.
    temporary: Option<PathBuf>,
}

impl Output {
    /// Begins the file `name`.
    pub(super) fn create(name: &Path) -> Result<Self, ReplayError> {
        Self::open(name).map_err(|error| failure(name, error))
    }

    fn open(name: &Path) -> io::Result<Self> {
        let special = fs::metadata(name).is_ok_and(|present| !present.is_file());
        let target = fs::canonicalize(name).unwrap_or_else(|_| name.to_owned());
        let (file, temporary) = if special {
            (OpenOptions::new().write(true).open(name)?, None)
        } else {
            let (file, path) = create_beside(&target)?;
            (file, Some(path))
        };
        Ok(Self {
            writer: BufWriter::new(file),
            place: Place {
                name: name.to_owned(),
                target,
                temporary,
            },
        })
    }

    /// Lets `action` write to the file.
    pub(super) fn write(
        &mut self,
        action: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>,
    ) -> Result<(), ReplayError> {
        action(&mut self.writer).map_err(|error| failure(&self.place.name, error))
    }

    /// Writes what is still buffered.
    pub(super) fn finish(mut self) -> Result<Finished, ReplayError> {
        self.write(Write::flush)?;
        Ok(Finished(self.place))
    }
}

impl Finished {
    /// Puts the file into its place.
    pub(super) fn publish(mut self) -> Result<(), ReplayError> {
        let Some(temporary) = &self.0.temporary else {
            return Ok(());
        };
        fs::rename(temporary, &self.0.target).map_err(|error| failure(&self.0.name, error))?;
        self.0.temporary = None;
        Ok(())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(temporary) = &self.temporary {
            // Nothing is left to be done about a file that cannot be removed.
            drop(fs::remove_file(temporary));
        }
    }
}

fn failure(file: &Path, error: io::Error) -> ReplayError {
    ReplayError::Write {
        file: file.to_owned(),
        error,
    }
}

/// Creates a hidden file in the directory of `target`, so that a rename is atomic.
fn create_beside(target: &Path) -> io::Result<(File, PathBuf)> {
    let name = target
        .file_name()
        .ok_or_else(|| io::Error::other("expected the name of a file"))?;
    let mut attempt = 0;
    loop {
        let mut hidden = std::ffi::OsString::from(".");
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

/// Whether two paths name one regular file, be it there already or not; a pipe or device may serve twice.
pub(super) fn same_file(one: &Path, other: &Path) -> bool {
    match (fs::metadata(one), fs::metadata(other)) {
        (Ok(one), Ok(other)) => one.is_file() && (one.dev(), one.ino()) == (other.dev(), other.ino()),
        (Ok(_), Err(_)) | (Err(_), Ok(_)) => false,
        (Err(_), Err(_)) => absolute(one) == absolute(other),
    }
}

/// The path that a file not yet there will have.
fn absolute(path: &Path) -> Option<PathBuf> {
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        Some(_) | None => Path::new("."),
    };
    Some(fs::canonicalize(parent).ok()?.join(path.file_name()?))
}
