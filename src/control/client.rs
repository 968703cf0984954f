//! The operator's end of the control socket.
mod flows;

use std::io::{self, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use serde::de::DeserializeSeed;
use thiserror::Error;

use self::flows::Flows;

use super::protocol::{ConnectionView, Reply, Request};

/// How long lbd may be silent; a reload of a large configuration takes a while.
const PATIENCE: Duration = Duration::from_secs(30);

/// Why there is no reply.
#[derive(Debug, Error)]
pub enum ClientError {
    /// Nothing listens there.
    #[error("cannot reach lbd at {socket}: {cause}: is it running? start `lbd --config FILE` or give --socket PATH")]
    Unreachable {
        /// Where.
        socket: PathBuf,
        /// The system's reason.
        cause: io::Error,
    },
    /// The socket is there, but not for this user.
    #[error("cannot open {socket}: {cause}: run lbctl as the user that runs lbd, usually root")]
    Forbidden {
        /// Where.
        socket: PathBuf,
        /// The system's reason.
        cause: io::Error,
    },
    /// The connection broke, or lbd said nothing for too long.
    #[error("no reply from lbd at {socket}: {cause}: see the log of lbd, then try again")]
    Interrupted {
        /// Where.
        socket: PathBuf,
        /// The system's reason.
        cause: io::Error,
    },
    /// What came back is not in lbd's words.
    #[error("the reply from {socket} makes no sense: {cause}: use the lbctl that came with the running lbd")]
    Garbled {
        /// Where.
        socket: PathBuf,
        /// What is wrong with it.
        cause: serde_json::Error,
    },
}

/// Asks the lbd that listens at `socket`.
///
/// # Errors
/// No reply came; a refusal is a reply.
pub fn ask(socket: &Path, request: &Request) -> Result<Reply, ClientError> {
    let stream = UnixStream::connect(socket).map_err(|cause| unreachable(socket, cause))?;
    exchange(&stream, request, PATIENCE).map_err(|cause| broken(socket, cause))
}

/// Asks for flows, of one service or of all, and shows each to `see` as it comes, until that says that it has seen enough.
///
/// # Errors
/// No reply came, or not all of it, or `see` had enough. The refusal of an lbd that refuses is the inner one.
pub fn connections(
    socket: &Path,
    service: Option<&str>,
    see: impl FnMut(ConnectionView) -> bool,
) -> Result<Result<(), String>, ClientError> {
    let stream = UnixStream::connect(socket).map_err(|cause| unreachable(socket, cause))?;
    let service = service.map(str::to_owned);
    let told = send(&stream, &Request::Connections { service }, PATIENCE).and_then(|()| {
        let mut reader = reader(&stream);
        Flows(see).deserialize(&mut reader)
    });
    let told = told.map_err(|cause| broken(socket, cause))?;
    Ok(told.map_err(|refusal| refusal.message))
}

/// One request and its reply, each step of which may take as long as `patience`.
pub(super) fn exchange(stream: &UnixStream, request: &Request, patience: Duration) -> Result<Reply, serde_json::Error> {
    send(stream, request, patience)?;
    Reply::deserialize(&mut reader(stream))
}

type Reader<'s> = serde_json::Deserializer<serde_json::de::IoRead<BufReader<&'s UnixStream>>>;

fn reader(stream: &UnixStream) -> Reader<'_> {
    serde_json::Deserializer::from_reader(BufReader::with_capacity(1 << 16, stream))
}

fn send(mut stream: &UnixStream, request: &Request, patience: Duration) -> Result<(), serde_json::Error> {
    stream
        .set_read_timeout(Some(patience))
        .and_then(|()| stream.set_write_timeout(Some(patience)))
        .map_err(serde_json::Error::io)?;
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    match stream.write_all(&line) {
        // A server that turns clients away does not wait for what they say, but has left a word.
        Err(error) if matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) => {}
        written => written.map_err(serde_json::Error::io)?,
    }
    Ok(())
}

fn unreachable(socket: &Path, cause: io::Error) -> ClientError {
    let socket = socket.to_owned();
    if cause.kind() == io::ErrorKind::PermissionDenied {
        ClientError::Forbidden { socket, cause }
    } else {
        ClientError::Unreachable { socket, cause }
    }
}

fn broken(socket: &Path, cause: serde_json::Error) -> ClientError {
    let socket = socket.to_owned();
    if cause.is_io() || cause.is_eof() {
        let cause = io::Error::from(cause);
        let cause = if cause.kind() == io::ErrorKind::WouldBlock {
            io::Error::new(io::ErrorKind::TimedOut, format!("it was silent for {PATIENCE:?}"))
        } else {
            cause
        };
        ClientError::Interrupted { socket, cause }
    } else {
        ClientError::Garbled { socket, cause }
    }
}
