//! Which queue a packet of a TUN device waits in: a pure function of its addresses and ports, so that no packet
//! overtakes another one of its flow and direction.
//!
//! Left alone, the kernel moves a flow to the queue that last wrote a packet of its other direction
//! (`tun_automq_select_queue`, drivers/net/tun.c), while packets of it may still wait in the queue before.
#![expect(unsafe_code, reason = "bpf(2) and ioctl have no safe wrapper in std")]

use std::ffi::c_void;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// `BPF_PROG_LOAD` (include/uapi/linux/bpf.h).
const PROG_LOAD: libc::c_int = 5;
/// `BPF_PROG_TYPE_SOCKET_FILTER`, which TUNSETSTEERINGEBPF asks for.
const SOCKET_FILTER: u32 = 1;

/// `struct bpf_insn`
#[repr(C)]
#[derive(Clone, Copy)]
struct Instruction {
    code: u8,
    /// Destination in the low four bits, source in the high ones.
    registers: u8,
    offset: i16,
    immediate: i32,
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

const fn instruction(code: u8, to: u8, from: u8, offset: i16, immediate: i32) -> Instruction {
    Instruction {
        code,
        registers: to | from << 4,
        offset,
        immediate,
    }
}

/// 64-bit `to = from`.
const fn copy(to: u8, from: u8) -> Instruction {
    instruction(0xbf, to, from, 0, 0)
}

/// `r0` = the byte at `offset` of the packet; ends the program with 0 where there is none.
const fn byte(offset: i32) -> Instruction {
    instruction(0x30, 0, 0, 0, offset)
}

/// `r0` = the 16-bit word at `offset`.
const fn half(offset: i32) -> Instruction {
    instruction(0x28, 0, 0, 0, offset)
}

/// `r0` = the 32-bit word at `offset`.
const fn word(offset: i32) -> Instruction {
    instruction(0x20, 0, 0, 0, offset)
}

/// `r7 = (r7 + r0) * FACTOR`
const fn mix() -> [Instruction; 2] {
    // Sign-extended to 64 bits; odd, so that nothing is lost. The high half of the product is what is used.
    const FACTOR: i32 = 0x9E37_79B1_u32 as i32;
    [instruction(0x0f, 7, 0, 0, 0), instruction(0x27, 7, 0, 0, FACTOR)]
}

/// `if r0 == value` go on `skip` instructions later.
const fn if_equal(value: i32, skip: i16) -> Instruction {
    instruction(0x15, 0, 0, skip, value)
}

/// Hashes addresses, and ports where the packet surely has them (a fragment goes by its addresses).
fn program() -> Vec<Instruction> {
    let finish = [
        copy(0, 7),
        // r0 >>= 32
        instruction(0x77, 0, 0, 0, 32),
        instruction(0x95, 0, 0, 0, 0),
    ];
    // r0 = the ports behind a header of r8 bytes, then done.
    let ports = [&[instruction(0x40, 0, 8, 0, 0)][..], &mix(), &finish].concat();
    // TCP, UDP, SCTP: to the ports; all else: done.
    let by_protocol = [if_equal(6, 5), if_equal(17, 4), if_equal(132, 3)];
    let transport = [&by_protocol[..], &finish, &ports].concat();

    let v4 = [
        &[word(12)][..],
        &mix(),
        &[word(16)],
        &mix(),
        &[
            byte(0),
            // r0 &= 15, r0 <<= 2, r8 = r0
            instruction(0x57, 0, 0, 0, 15),
            instruction(0x67, 0, 0, 0, 2),
            copy(8, 0),
            half(6),
            instruction(0x57, 0, 0, 0, 0x3fff),
            if_equal(0, 3),
        ],
        &finish,
        &[byte(9)],
        &transport,
    ]
    .concat();
    let v6_addresses = (0..8).flat_map(|index| {
        let [add, multiply] = mix();
        [word(8 + 4 * index), add, multiply]
    });
    let v6: Vec<Instruction> = v6_addresses
        .chain([instruction(0xb7, 8, 0, 0, 40), byte(6)])
        .chain(transport)
        .collect();
    let start = [
        // r6 = the packet, which byte(), half() and word() expect there; r7 = 0
        copy(6, 1),
        instruction(0xb7, 7, 0, 0, 0),
        byte(0),
        // r0 >>= 4
        instruction(0x77, 0, 0, 0, 4),
        if_equal(6, v4.len() as i16),
    ];
    [&start[..], &v4, &v6].concat()
}

/// Has the kernel steer packets of this device by [`program`].
///
/// # Errors
/// Where the process may not load programs, as in a user namespace.
pub(super) fn by_flow(device: &File) -> io::Result<()> {
    let program = load(&program())?;
    let fd = program.as_raw_fd();
    // SAFETY: both descriptors are open, and the call reads one int.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), libc::TUNSETSTEERINGEBPF, &raw const fd) };
    // The device holds the program from here on.
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn load(program: &[Instruction]) -> io::Result<OwnedFd> {
    let attributes = LoadProgram {
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
    let size = size_of::<LoadProgram>() as libc::c_uint;
    let pointer: *const c_void = (&raw const attributes).cast();
    // SAFETY: the attributes are as long as `size` says, and what they point to lives until the call returns.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, PROG_LOAD, pointer, size) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as libc::c_int) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_takes_the_steering_program() {
        match load(&program()) {
            Ok(_) => {}
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => {
                println!("skipped: bpf(2) is not permitted here: {error}");
            }
            Err(error) => panic!("{error}"),
        }
    }
}
