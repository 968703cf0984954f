//! The number of an interface, and how many queues it really has.
#![expect(unsafe_code, reason = "ioctl and if_nametoindex have no safe wrapper in std")]

use std::ffi::{CStr, CString};
use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixDatagram;

/// `SIOCETHTOOL` of include/uapi/linux/sockios.h.
const SIOCETHTOOL: u64 = 0x8946;
/// `ETHTOOL_GCHANNELS` of include/uapi/linux/ethtool.h.
const GET_CHANNELS: u32 = 0x3c;

/// The queues of an interface, at least one of each kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Channels {
    /// Queues that packets come in by.
    pub receive: u32,
    /// Queues that packets leave by. A socket on a queue beyond them cannot send.
    pub transmit: u32,
}

/// `struct ethtool_channels`
#[repr(C)]
#[derive(Default)]
struct Request {
    command: u32,
    most_receive: u32,
    most_transmit: u32,
    most_other: u32,
    most_combined: u32,
    receive: u32,
    transmit: u32,
    other: u32,
    combined: u32,
}

/// The queues of an interface of this network namespace, as its driver says, else as sysfs does, else one.
#[must_use]
pub fn channels(interface: &str) -> Channels {
    let counted = ask_driver(interface).unwrap_or_else(|_no_driver| count(interface));
    Channels {
        receive: counted.receive.max(1),
        transmit: counted.transmit.max(1),
    }
}

/// The number (`ifindex`) of an interface of this network namespace.
///
/// # Errors
/// When there is none of this name.
pub fn interface_index(interface: &str) -> io::Result<u32> {
    let name = CString::new(interface)?;
    // SAFETY: the name is a string that ends with a zero byte.
    match unsafe { libc::if_nametoindex(name.as_ptr()) } {
        0 => Err(io::Error::last_os_error()),
        index => Ok(index),
    }
}

/// The name that the interface with this number has now; None: there is no such interface in this network namespace.
#[must_use]
pub fn interface_name(index: u32) -> Option<String> {
    let mut name = [0; libc::IF_NAMESIZE];
    // SAFETY: the buffer is as long as if_indextoname wants it, and outlives the call.
    let found = unsafe { libc::if_indextoname(index, name.as_mut_ptr()) };
    if found.is_null() {
        return None;
    }
    // SAFETY: if_indextoname has written a string that ends with a zero byte within the buffer.
    let name = unsafe { CStr::from_ptr(name.as_ptr()) };
    Some(name.to_string_lossy().into_owned())
}

/// Whether frames of the interface begin with an Ethernet header.
///
/// # Errors
/// When there is no interface of this name.
pub fn is_ethernet(interface: &str) -> io::Result<bool> {
    let mut request = request_about(interface)?;
    let socket = UnixDatagram::unbound()?;
    // SAFETY: the request is a valid ifreq, which the command writes to; it outlives the call.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFHWADDR, &raw mut request) };
    match result {
        // SAFETY: after SIOCGIFHWADDR this is what the union holds.
        0 => Ok(unsafe { request.ifr_ifru.ifru_hwaddr.sa_family } == libc::ARPHRD_ETHER),
        _ => Err(io::Error::last_os_error()),
    }
}

fn ask_driver(interface: &str) -> io::Result<Channels> {
    let mut answer = Request {
        command: GET_CHANNELS,
        ..Request::default()
    };
    let mut request = request_about(interface)?;
    request.ifr_ifru.ifru_data = (&raw mut answer).cast();
    // Any socket will do: it stands for its network namespace.
    let socket = UnixDatagram::unbound()?;
    // SAFETY: the request is a valid ifreq, whose data is what the command writes to; both outlive the call.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL, &raw mut request) };
    match result {
        0 => Ok(Channels {
            receive: answer.receive + answer.combined,
            transmit: answer.transmit + answer.combined,
        }),
        _ => Err(io::Error::last_os_error()),
    }
}

fn request_about(interface: &str) -> io::Result<libc::ifreq> {
    // SAFETY: all zero is a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if interface.len() >= request.ifr_name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(interface.bytes()) {
        *to = from as libc::c_char;
    }
    Ok(request)
}

/// What sysfs shows; it may show another network namespace's interfaces.
fn count(interface: &str) -> Channels {
    let directory = format!("/sys/class/net/{interface}/queues");
    let names = fs::read_dir(directory)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.file_name());
    let names: Vec<_> = names.collect();
    let with = |prefix: &[u8]| {
        names
            .iter()
            .filter(|name| name.as_encoded_bytes().starts_with(prefix))
            .count()
    };
    Channels {
        receive: with(b"rx-") as u32,
        transmit: with(b"tx-") as u32,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interface_without_queues_of_its_own_has_one() {
        let one = Channels {
            receive: 1,
            transmit: 1,
        };
        assert_eq!(channels("lo"), one);
        assert_eq!(channels("there-is-no-such-thing"), one);
    }

    #[test]
    fn the_loopback_interface_has_a_name_and_no_ethernet() {
        let index = interface_index("lo").unwrap();
        assert_eq!(interface_name(index).as_deref(), Some("lo"));
        assert_eq!(interface_name(u32::MAX), None);
        assert!(!is_ethernet("lo").unwrap());
        assert!(is_ethernet("no-such-thing").is_err());
    }
}
