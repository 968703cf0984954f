//! What is told to systemd, over the socket that `$NOTIFY_SOCKET` names (sd_notify(3)). The crate sd-notify, whose words these are,
//! knows no sockets in the abstract namespace.
use std::ffi::OsStr;
use std::fmt::Write;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

use sd_notify::NotifyState;

/// Tells `state` to whoever wants to know.
pub(super) fn notify(state: &[NotifyState<'_>]) {
    let Some(socket) = std::env::var_os("NOTIFY_SOCKET") else {
        return;
    };
    if let Err(error) = send(&socket, state) {
        tracing::warn!("cannot notify systemd over $NOTIFY_SOCKET = {socket:?}: {error}");
    }
}

fn send(socket: &OsStr, state: &[NotifyState<'_>]) -> io::Result<()> {
    let mut message = String::new();
    for each in state {
        writeln!(message, "{each}").map_err(io::Error::other)?;
    }
    let sender = UnixDatagram::unbound()?;
    sender.connect_addr(&address(socket)?)?;
    sender.send(message.as_bytes()).map(|_whole| ())
}

/// A leading `@` stands for the zero byte of a name in the abstract namespace (sd_notify(3), unix(7)).
fn address(socket: &OsStr) -> io::Result<SocketAddr> {
    match socket.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name),
        None => SocketAddr::from_pathname(socket),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn received(by: &UnixDatagram) -> String {
        let mut buffer = [0; 64];
        by.set_nonblocking(true).unwrap();
        let length = by.recv(&mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    }

    #[test]
    fn a_socket_in_the_abstract_namespace_is_told_that_lbd_is_ready() {
        let name = format!("lbd-notify-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let socket = UnixDatagram::bind_addr(&address).unwrap();
        send(format!("@{name}").as_ref(), &[NotifyState::Ready]).unwrap();
        assert_eq!(received(&socket), "READY=1\n");
    }

    #[test]
    fn a_socket_in_the_file_system_is_told_each_state_on_a_line_of_its_own() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        send(path.as_os_str(), &[NotifyState::Reloading, NotifyState::Stopping]).unwrap();
        assert_eq!(received(&socket), "RELOADING=1\nSTOPPING=1\n");
    }
}
