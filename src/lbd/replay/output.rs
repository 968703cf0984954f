//! Result files that appear whole or not at all.
use std::fs;
use std::io::{self, BufWriter};
use std::path::{Path, PathBuf};

use super::ReplayError;
use lbd_net::whole_file::{WholeFile, is_same};

/// A file that is being written, and takes its place at the end.
pub(super) struct Output {
    writer: BufWriter<WholeFile>,
    /// As the user called it.
    name: PathBuf,
}

/// A file that is written and not yet in its place.
pub(super) struct Finished {
    file: WholeFile,
    name: PathBuf,
}

impl Output {
    /// Begins the file `name`.
    pub(super) fn create(name: &Path) -> Result<Self, ReplayError> {
        let file = WholeFile::create(name).map_err(|error| failure(name, error))?;
        Ok(Self {
            writer: BufWriter::new(file),
            name: name.to_owned(),
        })
    }

    /// Lets `action` write to the file.
    pub(super) fn write(
        &mut self,
        action: impl FnOnce(&mut BufWriter<WholeFile>) -> io::Result<()>,
    ) -> Result<(), ReplayError> {
        action(&mut self.writer).map_err(|error| failure(&self.name, error))
    }

    /// Writes what is still buffered.
    pub(super) fn finish(self) -> Result<Finished, ReplayError> {
        let Self { writer, name } = self;
        match writer.into_inner() {
            Ok(file) => Ok(Finished { file, name }),
            Err(error) => Err(failure(&name, error.into_error())),
        }
    }
}

impl Finished {
    /// Puts the file into its place.
    pub(super) fn publish(self) -> Result<(), ReplayError> {
        let Self { file, name } = self;
        file.publish().map_err(|error| failure(&name, error))
    }
}

fn failure(file: &Path, error: io::Error) -> ReplayError {
    ReplayError::Write {
        file: file.to_owned(),
        error,
    }
}

/// Whether two paths name one regular file, be it there already or not; a pipe or device may serve twice.
pub(super) fn same_file(one: &Path, other: &Path) -> bool {
    match (fs::metadata(one), fs::metadata(other)) {
        (Ok(one), Ok(other)) => one.is_file() && is_same(&one, &other),
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
