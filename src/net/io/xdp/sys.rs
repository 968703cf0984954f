//! The kernel's calls for AF_XDP, one function each: include/uapi/linux/if_xdp.h, net/xdp/xsk.c.
//!
//! Where a structure has grown in a later kernel than it first had, its name is with the function.
#![expect(unsafe_code, reason = "sockets of this family have no safe wrapper in std")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;

use libc::{c_int, c_void, socklen_t};

/// Set where the kernel sleeps in between and wants a call to look at the ring.
pub(super) const NEED_WAKEUP: u32 = libc::XDP_RING_NEED_WAKEUP;

/// `XDP_MAX_TX_SKB_BUDGET` (if_xdp.h since Linux 6.17; libc does not have it).
const MAX_TX_SKB_BUDGET: c_int = 9;

/// Which of a socket's four rings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Which {
    Fill,
    Completion,
    Receive,
    Transmit,
}

impl Which {
    const fn option(self) -> c_int {
        match self {
            Self::Fill => libc::XDP_UMEM_FILL_RING,
            Self::Completion => libc::XDP_UMEM_COMPLETION_RING,
            Self::Receive => libc::XDP_RX_RING,
            Self::Transmit => libc::XDP_TX_RING,
        }
    }

    /// Where in the socket's "file" the ring is mapped from.
    const fn page_offset(self) -> libc::off_t {
        match self {
            Self::Fill => libc::XDP_UMEM_PGOFF_FILL_RING as libc::off_t,
            Self::Completion => libc::XDP_UMEM_PGOFF_COMPLETION_RING as libc::off_t,
            Self::Receive => libc::XDP_PGOFF_RX_RING,
            Self::Transmit => libc::XDP_PGOFF_TX_RING,
        }
    }
}

/// Memory shared with the kernel, readable and writable, zero at first; unmapped when dropped.
#[derive(Debug)]
pub(super) struct Mapping {
    address: NonNull<u8>,
    length: usize,
}

// SAFETY: a mapping belongs to the process, not to a thread; who may touch which part of it is for its owners to say.
unsafe impl Send for Mapping {}
// SAFETY: see above; the mapping itself has no interior that a shared reference changes.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Memory of the process's own.
    pub(super) fn anonymous(length: usize) -> io::Result<Self> {
        Self::map(
            length,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_POPULATE,
            -1,
            0,
        )
    }

    /// A ring of a socket.
    pub(super) fn ring(socket: BorrowedFd<'_>, which: Which, length: usize) -> io::Result<Self> {
        let flags = libc::MAP_SHARED | libc::MAP_POPULATE;
        Self::map(length, flags, socket.as_raw_fd(), which.page_offset())
    }

    fn map(length: usize, flags: c_int, descriptor: c_int, offset: libc::off_t) -> io::Result<Self> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: the kernel chooses an address that nobody uses.
        let address = unsafe { libc::mmap(std::ptr::null_mut(), length, protection, flags, descriptor, offset) };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let address = NonNull::new(address.cast()).ok_or(io::ErrorKind::AddrNotAvailable)?;
        Ok(Self { address, length })
    }

    pub(super) const fn start(&self) -> NonNull<u8> {
        self.address
    }

    pub(super) const fn length(&self) -> usize {
        self.length
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: this is what was mapped, and its owners are gone.
        let _unmapped = unsafe { libc::munmap(self.address.as_ptr().cast(), self.length) };
    }
}

/// `socket(AF_XDP)`; asks for CAP_NET_RAW (`xsk_create`).
pub(super) fn socket() -> io::Result<OwnedFd> {
    // SAFETY: the call takes no pointer.
    let descriptor = checked(unsafe { libc::socket(libc::AF_XDP, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) })?;
    // SAFETY: the descriptor is new, so nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// `XDP_UMEM_REG`: the frames of this socket and of those that share them. The kernel holds the pages by itself.
///
/// `metadata` is the length of `struct xsk_tx_metadata` before each packet sent, 0 for none (Linux 6.8; EINVAL before).
pub(super) fn register(socket: BorrowedFd<'_>, memory: &Mapping, frame: u32, metadata: u32) -> io::Result<()> {
    let region = libc::xdp_umem_reg {
        addr: memory.address.as_ptr() as u64,
        len: memory.length as u64,
        chunk_size: frame,
        headroom: 0,
        flags: if metadata == 0 {
            0
        } else {
            libc::XDP_UMEM_TX_METADATA_LEN
        },
        tx_metadata_len: metadata,
    };
    set(socket, libc::SOL_XDP, libc::XDP_UMEM_REG, &region)
}

/// How many entries a ring has, a power of two.
pub(super) fn size_ring(socket: BorrowedFd<'_>, which: Which, entries: u32) -> io::Result<()> {
    set(socket, libc::SOL_XDP, which.option(), &entries)
}

/// `XDP_MMAP_OFFSETS`: where in the mapping of this ring its indices and entries are. With flags since Linux 5.4.
pub(super) fn offsets(socket: BorrowedFd<'_>, which: Which) -> io::Result<libc::xdp_ring_offset> {
    let none = libc::xdp_ring_offset {
        producer: 0,
        consumer: 0,
        desc: 0,
        flags: 0,
    };
    let mut all = libc::xdp_mmap_offsets {
        rx: none,
        tx: none,
        fr: none,
        cr: none,
    };
    let length = get(socket, libc::XDP_MMAP_OFFSETS, &mut all)?;
    if length < size_of::<libc::xdp_mmap_offsets>() {
        return Err(io::ErrorKind::Unsupported.into());
    }
    Ok(match which {
        Which::Fill => all.fr,
        Which::Completion => all.cr,
        Which::Receive => all.rx,
        Which::Transmit => all.tx,
    })
}

/// Binds to a queue of an interface; with `XDP_SHARED_UMEM` in `flags`, to use the frames of the socket `shared`.
pub(super) fn bind(
    socket: BorrowedFd<'_>,
    interface: u32,
    queue: u32,
    flags: u16,
    shared: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    let address = libc::sockaddr_xdp {
        sxdp_family: libc::AF_XDP as u16,
        sxdp_flags: flags,
        sxdp_ifindex: interface,
        sxdp_queue_id: queue,
        sxdp_shared_umem_fd: shared.map_or(0, |shared| shared.as_raw_fd() as u32),
    };
    let length = size_of::<libc::sockaddr_xdp>() as socklen_t;
    // SAFETY: the address is as long as said, and outlives the call.
    let result = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) };
    checked(result).map(|_zero| ())
}

/// `XDP_OPTIONS`: whether the driver writes to the frames itself.
pub(super) fn is_zero_copy(socket: BorrowedFd<'_>) -> io::Result<bool> {
    let mut options = libc::xdp_options { flags: 0 };
    get(socket, libc::XDP_OPTIONS, &mut options)?;
    Ok(options.flags & libc::XDP_OPTIONS_ZEROCOPY != 0)
}

/// `XDP_STATISTICS`; before Linux 5.9 only the first three counters, the others stay zero.
pub(super) fn statistics(socket: BorrowedFd<'_>) -> io::Result<libc::xdp_statistics> {
    let mut statistics = libc::xdp_statistics {
        rx_dropped: 0,
        rx_invalid_descs: 0,
        tx_invalid_descs: 0,
        rx_ring_full: 0,
        rx_fill_ring_empty_descs: 0,
        tx_ring_empty_descs: 0,
    };
    get(socket, libc::XDP_STATISTICS, &mut statistics)?;
    Ok(statistics)
}

/// Has the kernel look at the fill ring, and poll the device where busy polling is on (`xsk_recvmsg`).
pub(super) fn wake_receive(socket: BorrowedFd<'_>) -> io::Result<()> {
    let flags = libc::MSG_DONTWAIT;
    // SAFETY: nothing is written: the buffer is of length zero.
    let result = unsafe { libc::recv(socket.as_raw_fd(), std::ptr::null_mut(), 0, flags) };
    checked(result as c_int).map(|_zero| ())
}

/// Has the kernel look at the send ring; in copy mode it sends there and then, as many as its budget is (`xsk_sendmsg`).
pub(super) fn wake_send(socket: BorrowedFd<'_>) -> io::Result<()> {
    let flags = libc::MSG_DONTWAIT;
    // SAFETY: nothing is read: the buffer is of length zero.
    let result = unsafe { libc::send(socket.as_raw_fd(), std::ptr::null(), 0, flags) };
    checked(result as c_int).map(|_zero| ())
}

/// Packets are fetched from the device by the calls of this socket's owner, not by interrupts
/// (Documentation/networking/napi.rst, "preferred busy polling"; Linux 5.11).
pub(super) fn busy_poll(socket: BorrowedFd<'_>, microseconds: c_int, packets: c_int) -> io::Result<()> {
    set(socket, libc::SOL_SOCKET, libc::SO_PREFER_BUSY_POLL, &1_i32)?;
    set(socket, libc::SOL_SOCKET, libc::SO_BUSY_POLL, &microseconds)?;
    set(socket, libc::SOL_SOCKET, libc::SO_BUSY_POLL_BUDGET, &packets)
}

/// How many packets one call of [`wake_send`] sends in copy mode: at least 32, at most the ring; needs the send ring.
pub(super) fn send_budget(socket: BorrowedFd<'_>, packets: u32) -> io::Result<()> {
    set(socket, libc::SOL_XDP, MAX_TX_SKB_BUDGET, &packets)
}

/// How many bytes of socket buffers may be under way in copy mode, past `wmem_max` (socket(7), `SO_SNDBUFFORCE`).
pub(super) fn send_buffer(socket: BorrowedFd<'_>, bytes: c_int) -> io::Result<()> {
    set(socket, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, &bytes)
}

fn set<T>(socket: BorrowedFd<'_>, level: c_int, option: c_int, value: &T) -> io::Result<()> {
    let pointer: *const c_void = std::ptr::from_ref(value).cast();
    // SAFETY: the kernel reads at most as many bytes as the value has.
    let result = unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, pointer, size_of::<T>() as socklen_t) };
    checked(result).map(|_zero| ())
}

/// The bytes of `value` that the kernel has written; only called for structures of plain integers.
fn get<T: Copy>(socket: BorrowedFd<'_>, option: c_int, value: &mut T) -> io::Result<usize> {
    let mut length = size_of::<T>() as socklen_t;
    let pointer: *mut c_void = std::ptr::from_mut(value).cast();
    // SAFETY: the kernel writes at most `length` bytes, the size of the value, any bytes of which are valid integers.
    let result = unsafe { libc::getsockopt(socket.as_raw_fd(), libc::SOL_XDP, option, pointer, &raw mut length) };
    checked(result)?;
    Ok(length as usize)
}

fn checked(result: c_int) -> io::Result<c_int> {
    match result {
        0.. => Ok(result),
        _ => Err(io::Error::last_os_error()),
    }
}
