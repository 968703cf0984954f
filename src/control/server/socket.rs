//! The socket as a file: where it may be made, who may open it, and that it goes again.
use std::fs::{self, Permissions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use socket2::{Domain, SockAddr, Socket, Type};

use crate::client;
use crate::protocol::{Data, Reply, Request};

/// Connections that wait to be accepted.
const BACKLOG: i32 = 64;
/// For the lbd that listens there to say its pid.
const INTRODUCTION: Duration = Duration::from_secs(1);

/// The socket's directory entry; removed when dropped, if it is still this very socket.
#[derive(Debug)]
pub(super) struct SocketFile {
    path: PathBuf,
    identity: (u64, u64),
}

impl SocketFile {
    fn at(path: &Path) -> io::Result<Self> {
        Ok(Self {
            path: path.to_owned(),
            identity: identity(path)?,
        })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let still_ours = identity(&self.path).is_ok_and(|identity| identity == self.identity);
        if still_ours && let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!("cannot remove {}: {error}", self.path.display());
        }
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = fs::symlink_metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}

/// A socket at `path` that nobody but its owner can open at any time, whatever the umask.
pub(super) fn listen(path: &Path) -> io::Result<(UnixListener, SocketFile)> {
    create_directory(path)?;
    refuse_if_taken(path)?;
    let draft = draft_of(path);
    let made = make(&draft).and_then(|listener| {
        fs::rename(&draft, path)?;
        Ok(listener)
    });
    let listener = made.map_err(|error| {
        // There may be nothing to remove.
        fs::remove_file(&draft).ok();
        explain(path, "cannot listen at", &error)
    })?;
    Ok((listener, SocketFile::at(path)?))
}

/// Not before `listen` can anyone connect, and by then the mode is right.
fn make(draft: &Path) -> io::Result<UnixListener> {
    match fs::remove_file(draft) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.bind(&SockAddr::unix(draft)?)?;
    fs::set_permissions(draft, Permissions::from_mode(0o600))?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// No longer than the socket's own name where that can be helped: a socket address has 107 bytes.
fn draft_of(path: &Path) -> PathBuf {
    path.with_file_name(format!(".{}", std::process::id()))
}

fn create_directory(path: &Path) -> io::Result<()> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => return Ok(()),
    };
    if directory.exists() {
        return Ok(());
    }
    fs::create_dir_all(directory)
        .and_then(|()| fs::set_permissions(directory, Permissions::from_mode(0o755)))
        .map_err(|error| explain(directory, "cannot create the control socket's directory", &error))
}

fn refuse_if_taken(path: &Path) -> io::Result<()> {
    let metadata = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        found => found.map_err(|error| explain(path, "cannot look at", &error))?,
    };
    if !metadata.file_type().is_socket() {
        let message = format!(
            "{} is there and is no socket: remove it, or set another [control] socket",
            path.display()
        );
        return Err(io::Error::new(ErrorKind::AlreadyExists, message));
    }
    match UnixStream::connect(path) {
        // A full backlog is a sign of life too.
        Err(error) if error.kind() != ErrorKind::WouldBlock => Ok(()),
        Err(_) => Err(taken(path, None)),
        Ok(stream) => Err(taken(path, pid_behind(&stream))),
    }
}

fn pid_behind(stream: &UnixStream) -> Option<u32> {
    match client::exchange(stream, &Request::Status, INTRODUCTION).ok()? {
        Reply::Ok(Data::Status(status)) => Some(status.pid),
        Reply::Ok(_) | Reply::Err { .. } => None,
    }
}

fn taken(path: &Path, pid: Option<u32>) -> io::Error {
    let pid = pid.map_or_else(|| "pid unknown".to_owned(), |pid| format!("pid {pid}"));
    let message = format!(
        "another lbd is listening on {} ({pid}): stop it, or set another [control] socket",
        path.display()
    );
    io::Error::new(ErrorKind::AddrInUse, message)
}

fn explain(path: &Path, what: &str, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{what} {}: {error}", path.display()))
}
