//! Where the journal is kept.
use std::ffi::OsString;
use std::fs::{self, DirBuilder, OpenOptions};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// As `RuntimeDirectory=lbd` of systemd would have it.
const SYSTEM: &str = "/run/lbd";

/// The directory for the journal, the same for every configuration where that is possible, so that the next lbd finds
/// what a killed one has left: the first of `runtime` (`$RUNTIME_DIRECTORY`, systemd.exec(5)), else `/run/lbd`, else,
/// where lbd may not write to that, the directory of `socket`.
#[must_use]
pub fn journal_directory(socket: &Path, runtime: Option<OsString>) -> PathBuf {
    choose(socket, runtime, Path::new(SYSTEM))
}

fn choose(socket: &Path, runtime: Option<OsString>, system: &Path) -> PathBuf {
    let first = runtime.and_then(|list| {
        let first = list.as_bytes().split(|&byte| byte == b':').next()?;
        (!first.is_empty()).then(|| PathBuf::from(OsString::from_vec(first.to_vec())))
    });
    match first {
        Some(first) => first,
        None if is_usable(system) => system.to_owned(),
        None => or_here(socket.parent().unwrap_or_else(|| Path::new(""))).to_owned(),
    }
}

/// The empty path, the parent of `lbd.sock`, means the current directory, but cannot be opened.
pub(super) fn or_here(directory: &Path) -> &Path {
    match directory.as_os_str().is_empty() {
        true => Path::new("."),
        false => directory,
    }
}

/// Creates `directory` where it is missing. Others may look into it: the control socket may be there too.
pub(super) fn create(directory: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o755).create(directory)
}

/// Tried, since a directory's mode does not tell of read-only file systems and of capabilities.
fn is_usable(directory: &Path) -> bool {
    let probe = directory.join(format!(".probe-{}", std::process::id()));
    let tried = create(directory)
        .and_then(|()| OpenOptions::new().write(true).create_new(true).mode(0o600).open(&probe))
        .and_then(|_file| fs::remove_file(&probe));
    tried.is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(socket: &str, runtime: Option<&str>, system: &Path) -> PathBuf {
        choose(Path::new(socket), runtime.map(OsString::from), system)
    }

    #[test]
    fn what_systemd_names_comes_first() {
        let system = Path::new("/proc/lbd");
        assert_eq!(
            chosen("/tmp/s", Some("/run/one:/run/two"), system),
            Path::new("/run/one")
        );
        assert_eq!(chosen("/tmp/s", Some(""), system), Path::new("/tmp"));
    }

    #[test]
    fn another_socket_path_does_not_move_the_journal() {
        let directory = tempfile::tempdir().unwrap();
        let system = directory.path().join("lbd");
        assert_eq!(chosen("/tmp/a/s", None, &system), system);
        assert_eq!(chosen("/tmp/b/s", None, &system), system);
        assert_eq!(fs::read_dir(&system).unwrap().count(), 0);
    }

    #[test]
    fn who_may_not_write_to_run_keeps_it_beside_the_socket() {
        let system = Path::new("/proc/lbd");
        assert_eq!(chosen("/tmp/a/s", None, system), Path::new("/tmp/a"));
        assert_eq!(chosen("lbd.sock", None, system), Path::new("."));
        assert_eq!(chosen("/", None, system), Path::new("."));
    }
}
