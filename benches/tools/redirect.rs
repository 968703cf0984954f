//! The smallest XDP program that AF_XDP needs: every packet goes to the socket of its queue, or to the kernel where there is
//! none. For tests and for the forwarder that lbd is measured against; lbd's own program is in C.
#![expect(unsafe_code, reason = "bpf(2) has no safe wrapper in std")]

use std::ffi::c_void;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// Commands and types of include/uapi/linux/bpf.h.
const MAP_CREATE: libc::c_int = 0;
const MAP_UPDATE_ELEM: libc::c_int = 2;
const PROG_LOAD: libc::c_int = 5;
const LINK_CREATE: libc::c_int = 28;
/// `BPF_MAP_TYPE_XSKMAP`
const XSKMAP: u32 = 17;
/// `BPF_PROG_TYPE_XDP`
const XDP_PROGRAM: u32 = 6;
/// `BPF_XDP` of `enum bpf_attach_type`.
const XDP_ATTACH: u32 = 37;
/// `BPF_F_XDP_HAS_FRAGS`: packets of more than one page come too (Linux 5.18).
const HAS_FRAGS: u32 = 1 << 5;
/// `XDP_FLAGS_SKB_MODE` and `XDP_FLAGS_DRV_MODE` of include/uapi/linux/if_link.h.
const GENERIC: u32 = 1 << 1;
const NATIVE: u32 = 1 << 2;
/// Receive queues that the map has room for.
const QUEUES: u32 = 64;

/// `struct bpf_insn`
#[repr(C)]
struct Instruction {
    code: u8,
    registers: u8,
    offset: i16,
    immediate: i32,
}

#[repr(C)]
struct CreateMap {
    kind: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    flags: u32,
}

#[repr(C)]
struct MapElement {
    map: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

#[repr(C)]
struct LoadProgram {
    kind: u32,
    count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buffer: u64,
    kernel_version: u32,
    flags: u32,
}

#[repr(C)]
struct CreateLink {
    program: u32,
    interface: u32,
    attach: u32,
    flags: u32,
}

/// The program on one interface, as long as this lives.
#[derive(Debug)]
pub(crate) struct Redirect {
    _link: OwnedFd,
    /// Whether the driver runs the program, not the kernel's stack.
    pub(crate) is_native: bool,
}

impl Redirect {
    /// Attaches to the interface of this number; packets of each of these queues go to its socket.
    pub(crate) fn attach<'a>(interface: u32, sockets: impl Iterator<Item = (u32, BorrowedFd<'a>)>) -> io::Result<Self> {
        let map = create_map()?;
        for (queue, socket) in sockets {
            set(&map, queue, socket)?;
        }
        let program = load(&map)?;
        let native = link(&program, interface, NATIVE);
        let is_native = native.is_ok();
        let link = native.or_else(|_not_native| link(&program, interface, GENERIC))?;
        Ok(Self { _link: link, is_native })
    }
}

fn create_map() -> io::Result<OwnedFd> {
    let mut attributes = CreateMap {
        kind: XSKMAP,
        key_size: 4,
        value_size: 4,
        max_entries: QUEUES,
        flags: 0,
    };
    // SAFETY: the attributes hold no pointer; the call yields a descriptor that nobody else has.
    unsafe { Ok(OwnedFd::from_raw_fd(bpf(MAP_CREATE, &mut attributes)?)) }
}

fn set(map: &OwnedFd, queue: u32, socket: BorrowedFd<'_>) -> io::Result<()> {
    let descriptor = socket.as_raw_fd();
    let mut attributes = MapElement {
        map: map.as_raw_fd() as u32,
        padding: 0,
        key: &raw const queue as u64,
        value: &raw const descriptor as u64,
        flags: 0,
    };
    // SAFETY: key and value are four bytes, as the map was made for, and outlive the call.
    unsafe { bpf(MAP_UPDATE_ELEM, &mut attributes) }.map(|_zero| ())
}

fn load(map: &OwnedFd) -> io::Result<OwnedFd> {
    let instruction = |code, registers, offset, immediate| Instruction {
        code,
        registers,
        offset,
        immediate,
    };
    let program = [
        // r2 = context->rx_queue_index
        instruction(0x61, 0x12, 16, 0),
        // r1 = map (BPF_PSEUDO_MAP_FD, two instructions long)
        instruction(0x18, 0x11, 0, map.as_raw_fd()),
        instruction(0, 0, 0, 0),
        // r3 = XDP_PASS, where the queue has no socket
        instruction(0xb7, 0x03, 0, 2),
        // return bpf_redirect_map(r1, r2, r3)
        instruction(0x85, 0, 0, 51),
        instruction(0x95, 0, 0, 0),
    ];
    let mut attributes = LoadProgram {
        kind: XDP_PROGRAM,
        count: program.len() as u32,
        instructions: program.as_ptr() as u64,
        license: c"Dual MIT/GPL".as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log_buffer: 0,
        kernel_version: 0,
        flags: HAS_FRAGS,
    };
    // SAFETY: what the attributes point to lives until the call returns; it yields a descriptor that nobody else has.
    unsafe { Ok(OwnedFd::from_raw_fd(bpf(PROG_LOAD, &mut attributes)?)) }
}

fn link(program: &OwnedFd, interface: u32, flags: u32) -> io::Result<OwnedFd> {
    let mut attributes = CreateLink {
        program: program.as_raw_fd() as u32,
        interface,
        attach: XDP_ATTACH,
        flags,
    };
    // SAFETY: the attributes hold no pointer; the call yields a descriptor that nobody else has.
    unsafe { Ok(OwnedFd::from_raw_fd(bpf(LINK_CREATE, &mut attributes)?)) }
}

/// # Safety
/// `attributes` must be the head of `union bpf_attr` for `command`, and its pointers valid during the call.
unsafe fn bpf<T>(command: libc::c_int, attributes: &mut T) -> io::Result<libc::c_int> {
    let pointer: *mut c_void = (&raw mut *attributes).cast();
    // SAFETY: the pointer is valid for as many bytes as are passed; the kernel takes the rest as zero.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, pointer, size_of::<T>() as libc::c_uint) };
    match result {
        0.. => Ok(result as libc::c_int),
        _ => Err(io::Error::last_os_error()),
    }
}
