//! Who this process is and where, as far as std does not tell.
#![expect(unsafe_code, reason = "geteuid(2) and SO_NETNS_COOKIE have no safe wrapper in std")]

use std::io;
use std::mem::size_of;
use std::os::fd::AsRawFd;

use netlink_sys::Socket;
use netlink_sys::protocols::NETLINK_ROUTE;

/// Whose files this process may trust.
pub(super) fn effective_user() -> u32 {
    // SAFETY: geteuid(2) takes nothing and cannot fail.
    unsafe { libc::geteuid() }
}

/// Tells network namespaces apart, past ones too: their inode numbers are used anew. 0 before Linux 5.14, which has none.
pub(super) fn network_cookie() -> io::Result<u64> {
    let socket = Socket::new(NETLINK_ROUTE)?;
    let mut cookie = 0_u64;
    let mut length = size_of::<u64>() as libc::socklen_t;
    // SAFETY: `cookie` and `length` live over the call, and `length` is the size of `cookie`.
    let status = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if status == 0 {
        return Ok(cookie);
    }
    match io::Error::last_os_error() {
        error if error.raw_os_error() == Some(libc::ENOPROTOOPT) => Ok(0),
        error => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_namespace_keeps_its_cookie() {
        assert_eq!(network_cookie().unwrap(), network_cookie().unwrap());
    }
}
