//! bpf(2): maps, links, test runs, and what little is made without the XDP program's loader.
#![expect(unsafe_code, reason = "bpf(2) has no safe wrapper in std")]

use std::ffi::c_void;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// Commands and constants: include/uapi/linux/bpf.h.
const MAP_CREATE: libc::c_int = 0;
const MAP_LOOKUP_ELEM: libc::c_int = 1;
const MAP_UPDATE_ELEM: libc::c_int = 2;
const MAP_DELETE_ELEM: libc::c_int = 3;
const PROG_LOAD: libc::c_int = 5;
const PROG_TEST_RUN: libc::c_int = 10;
const LINK_CREATE: libc::c_int = 28;
/// `BPF_MAP_TYPE_ARRAY`
const ARRAY: u32 = 2;
/// `BPF_PROG_TYPE_SOCKET_FILTER`
const SOCKET_FILTER: u32 = 1;
/// `enum bpf_attach_type`
const BPF_XDP: u32 = 37;
/// `BPF_F_TEST_XDP_LIVE_FRAMES`, Linux 5.18.
const LIVE_FRAMES: u32 = 1 << 1;

/// A map whose keys and values are of fixed lengths.
#[derive(Debug)]
pub(in crate::io) struct Map {
    pub(in crate::io) descriptor: OwnedFd,
    /// As in filter_maps.h, for messages.
    pub(in crate::io) name: &'static str,
    pub(in crate::io) key_size: usize,
    /// Of one value; a per-CPU map has as many as `values`.
    pub(in crate::io) value_size: usize,
    /// 1, or the number of possible CPUs.
    pub(in crate::io) values: usize,
    pub(in crate::io) max_entries: u32,
}

/// The head of `union bpf_attr` for `BPF_MAP_*_ELEM`.
#[repr(C)]
struct Element {
    map: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

impl Map {
    /// Puts or replaces an entry.
    pub(in crate::io) fn put(&self, key: &[u8], value: &[u8]) -> io::Result<()> {
        assert!(key.len() == self.key_size && value.len() == self.value_size * self.values);
        let mut element = self.element(key, value.as_ptr() as u64);
        // SAFETY: key and value are as long as the map's, and outlive the call.
        unsafe { bpf(MAP_UPDATE_ELEM, &mut element) }.map(|_zero| ())
    }

    /// Removes an entry; it is no error if there is none.
    pub(in crate::io) fn remove(&self, key: &[u8]) -> io::Result<()> {
        assert!(key.len() == self.key_size);
        let mut element = self.element(key, 0);
        // SAFETY: the key is as long as the map's, and outlives the call.
        match unsafe { bpf(MAP_DELETE_ELEM, &mut element) } {
            Err(error) if error.raw_os_error() != Some(libc::ENOENT) => Err(error),
            _ => Ok(()),
        }
    }

    /// The value, or the values of all CPUs one after the other.
    pub(in crate::io) fn get(&self, key: &[u8]) -> io::Result<Vec<u8>> {
        assert!(key.len() == self.key_size);
        let mut value = vec![0; self.value_size * self.values];
        let mut element = self.element(key, value.as_mut_ptr() as u64);
        // SAFETY: the kernel writes as many bytes as `value` has.
        unsafe { bpf(MAP_LOOKUP_ELEM, &mut element) }.map(|_zero| value)
    }

    fn element(&self, key: &[u8], value: u64) -> Element {
        Element {
            map: self.descriptor.as_raw_fd() as u32,
            padding: 0,
            key: key.as_ptr() as u64,
            value,
            flags: 0,
        }
    }
}

/// The head of `union bpf_attr` for `BPF_MAP_CREATE`.
#[repr(C)]
struct CreateMap {
    kind: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    flags: u32,
}

/// An array with one value, zeroed.
pub(in crate::io) fn create_single(name: &'static str, value_size: usize) -> io::Result<Map> {
    let mut attributes = CreateMap {
        kind: ARRAY,
        key_size: 4,
        value_size: value_size as u32,
        max_entries: 1,
        flags: 0,
    };
    // SAFETY: the attributes hold no pointer; the call yields a descriptor that nobody else has.
    let descriptor = unsafe { OwnedFd::from_raw_fd(bpf(MAP_CREATE, &mut attributes)?) };
    Ok(Map {
        descriptor,
        name,
        key_size: 4,
        value_size,
        values: 1,
        max_entries: 1,
    })
}

/// `struct bpf_insn`
#[repr(C)]
#[derive(Clone, Copy)]
pub(in crate::io) struct Instruction {
    pub(in crate::io) code: u8,
    /// Destination in the low four bits, source in the high ones.
    pub(in crate::io) registers: u8,
    pub(in crate::io) offset: i16,
    pub(in crate::io) immediate: i32,
}

/// The head of `union bpf_attr` for `BPF_PROG_LOAD`.
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

/// Loads a program that looks at socket buffers.
pub(in crate::io) fn load_socket_filter(program: &[Instruction]) -> io::Result<OwnedFd> {
    let mut attributes = LoadProgram {
        kind: SOCKET_FILTER,
        count: program.len() as u32,
        instructions: program.as_ptr() as u64,
        license: c"Dual MIT/GPL".as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log_buffer: 0,
        kernel_version: 0,
        flags: 0,
    };
    // SAFETY: what the attributes point to lives until the call returns; it yields a descriptor that nobody else has.
    unsafe { Ok(OwnedFd::from_raw_fd(bpf(PROG_LOAD, &mut attributes)?)) }
}

/// The head of `union bpf_attr` for `BPF_LINK_CREATE`.
#[repr(C)]
struct CreateLink {
    program: u32,
    interface: u32,
    attach_type: u32,
    flags: u32,
}

/// Attaches an XDP program for as long as the returned descriptor is open. `flags`: `XDP_FLAGS_*_MODE`.
pub(in crate::io) fn attach(program: &OwnedFd, interface: u32, flags: u32) -> io::Result<OwnedFd> {
    let mut attributes = CreateLink {
        program: program.as_raw_fd() as u32,
        interface,
        attach_type: BPF_XDP,
        flags,
    };
    // SAFETY: the attributes hold no pointer; the call yields a descriptor that nobody else has.
    unsafe { Ok(OwnedFd::from_raw_fd(bpf(LINK_CREATE, &mut attributes)?)) }
}

/// `struct xdp_md`
#[repr(C)]
struct Context {
    data: u32,
    data_end: u32,
    data_meta: u32,
    ingress_interface: u32,
    queue: u32,
    egress_interface: u32,
}

/// The head of `union bpf_attr` for `BPF_PROG_TEST_RUN`.
#[repr(C)]
#[derive(Default)]
struct TestRun {
    program: u32,
    result: u32,
    input_size: u32,
    output_size: u32,
    input: u64,
    output: u64,
    repeat: u32,
    duration: u32,
    context_size: u32,
    context_output_size: u32,
    context: u64,
    context_output: u64,
    flags: u32,
    cpu: u32,
    batch: u32,
    padding: u32,
}

/// What the program returns for a frame that came by queue 0 of `interface`.
pub(in crate::io) fn try_frame(program: &OwnedFd, interface: u32, frame: &[u8]) -> io::Result<u32> {
    test_run(program, interface, frame, TestRun::default())
}

/// Lets a frame come by queue 0 of `interface` once more, with only this program before it.
pub(in crate::io) fn run_live(program: &OwnedFd, interface: u32, frame: &[u8]) -> io::Result<()> {
    let live = TestRun {
        flags: LIVE_FRAMES,
        // A batch is allocated before the frame runs, 64 by default.
        batch: 1,
        ..TestRun::default()
    };
    test_run(program, interface, frame, live).map(|_zero| ())
}

/// What a program of [`load_socket_filter`] returns for a packet behind this Ethernet header.
#[cfg(test)]
pub(in crate::io) fn run_socket_filter(program: &OwnedFd, frame: &[u8]) -> io::Result<u32> {
    let mut attributes = TestRun {
        program: program.as_raw_fd() as u32,
        input_size: frame.len() as u32,
        input: frame.as_ptr() as u64,
        repeat: 1,
        ..TestRun::default()
    };
    // SAFETY: the frame is only read, and outlives the call, which writes its results to the attributes.
    unsafe { bpf(PROG_TEST_RUN, &mut attributes) }.map(|_zero| attributes.result)
}

fn test_run(program: &OwnedFd, interface: u32, frame: &[u8], options: TestRun) -> io::Result<u32> {
    let context = Context {
        data: 0,
        data_end: frame.len() as u32,
        data_meta: 0,
        ingress_interface: interface,
        queue: 0,
        egress_interface: 0,
    };
    let mut attributes = TestRun {
        program: program.as_raw_fd() as u32,
        input_size: frame.len() as u32,
        input: frame.as_ptr() as u64,
        repeat: 1,
        context_size: size_of::<Context>() as u32,
        context: &raw const context as u64,
        ..options
    };
    // SAFETY: frame and context are only read, and outlive the call, which writes its results to the attributes.
    unsafe { bpf(PROG_TEST_RUN, &mut attributes) }.map(|_zero| attributes.result)
}

/// The clock of `bpf_ktime_get_ns`, in nanoseconds.
pub(in crate::io) fn clock() -> io::Result<u64> {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call writes one timespec.
    match unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) } {
        0 => Ok(now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The descriptor as a value of an XSKMAP.
pub(in crate::io) fn socket_value(socket: BorrowedFd<'_>) -> [u8; 4] {
    socket.as_raw_fd().to_ne_bytes()
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
