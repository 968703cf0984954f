//! Which queue a packet of a TUN device waits in: a pure function of its addresses and ports, so that no packet
//! overtakes another one of its flow and direction; and, where the client keeps its address, the same for both
//! directions, so that one worker has the flow in its cache.
//!
//! The endpoint that NAT leaves alone is the client's: the sender of a packet to a service, the receiver of any other
//! one. Which destinations are services, a bitmap tells, indexed by hash; a false positive costs the locality only.
//!
//! Left alone, the kernel moves a flow to the queue that last wrote a packet of its other direction
//! (`tun_automq_select_queue`, drivers/net/tun.c), while packets of it may still wait in the queue before. Hashing
//! without the bitmap cost half as much CPU again whenever the two directions met different workers.
#![expect(unsafe_code, reason = "ioctl has no safe wrapper in std")]

use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::os::fd::AsRawFd;

use super::bpf::{self, Instruction, Map};
use lbd_core::flow::Endpoint;

/// `BPF_FUNC_map_lookup_elem`
const MAP_LOOKUP_ELEM: i32 = 1;
/// `BPF_PSEUDO_MAP_FD`
const PSEUDO_MAP_FD: u8 = 1;
/// A power of two. At 10,000 services a seventh of the other destinations looks like one.
const BITS: usize = 1 << 16;
/// 2^32 divided by the golden ratio, odd, so that no bit is lost; sign-extended to 64 bits by the kernel.
const FACTOR: i32 = 0x9E37_79B1_u32 as i32;

const fn instruction(code: u8, to: u8, from: u8, offset: i16, immediate: i32) -> Instruction {
    Instruction {
        code,
        registers: to | from << 4,
        offset,
        immediate,
    }
}

/// `to = value`
const fn set(to: u8, value: i32) -> Instruction {
    instruction(0xb7, to, 0, 0, value)
}

const fn jump(skip: i16) -> Instruction {
    instruction(0x05, 0, 0, skip, 0)
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

/// [`step`] as instructions: `r7 = (r7 + r0) * FACTOR; r7 ^= r7 >> 32`.
const fn mix() -> [Instruction; 5] {
    [
        instruction(0x0f, 7, 0, 0, 0),
        instruction(0x27, 7, 0, 0, FACTOR),
        copy(1, 7),
        instruction(0x77, 1, 0, 0, 32),
        instruction(0xaf, 7, 1, 0, 0),
    ]
}

/// The word at each of `offsets` mixed in.
fn mix_words(offsets: impl Iterator<Item = i32>) -> Vec<Instruction> {
    offsets
        .flat_map(|offset| [&[word(offset)][..], &mix()].concat())
        .collect()
}

/// `if r0 == value` go on `skip` instructions later.
const fn if_equal(value: i32, skip: i16) -> Instruction {
    instruction(0x15, 0, 0, skip, value)
}

/// One step of the hash, in the program and here. Without the shift, the low half would never see the high one.
const fn step(hash: u64, word: u32) -> u64 {
    let product = hash.wrapping_add(word as u64).wrapping_mul(FACTOR as i64 as u64);
    product ^ product >> 32
}

/// The number of a service's bit.
fn bit_of(endpoint: &Endpoint) -> usize {
    let words: Vec<u32> = match endpoint.address {
        IpAddr::V4(address) => vec![u32::from(address)],
        IpAddr::V6(address) => {
            let octets = address.octets();
            let (words, _) = octets.as_chunks::<4>();
            words.iter().map(|&word| u32::from_be_bytes(word)).collect()
        }
    };
    let hash = words.into_iter().chain([u32::from(endpoint.port)]).fold(0, step);
    (hash >> 32) as usize % BITS
}

const FINISH: [Instruction; 3] = [
    copy(0, 7),
    // r0 >>= 32
    instruction(0x77, 0, 0, 0, 32),
    instruction(0x95, 0, 0, 0, 0),
];

/// `r7` = the hash of the address at `offsets` and the port at `port` behind the header of `r8` bytes.
fn hash_endpoint(offsets: std::ops::Range<i32>, port: i32) -> Vec<Instruction> {
    let addresses = mix_words(offsets.step_by(4));
    [
        &[set(7, 0)][..],
        &addresses,
        &[instruction(0x48, 0, 8, 0, port)],
        &mix(),
    ]
    .concat()
}

/// `r7` = the client's hash, of the receiver's and the sender's; then done.
fn choose(source: std::ops::Range<i32>, destination: std::ops::Range<i32>, bitmap: i32) -> Vec<Instruction> {
    let bit = [
        // The element at index 0: r1 = the map, r2 = where the index is.
        instruction(0x62, 10, 0, -4, 0),
        instruction(0x18, 1, PSEUDO_MAP_FD, 0, bitmap),
        instruction(0, 0, 0, 0, 0),
        copy(2, 10),
        instruction(0x07, 2, 0, 0, -4),
        instruction(0x85, 0, 0, 0, MAP_LOOKUP_ELEM),
        if_equal(0, 10),
        // r2 = (r9 >> 32) % BITS; r1 = the byte at r2 / 8; its bit r2 % 8 says whether the receiver is a service.
        copy(2, 9),
        instruction(0x77, 2, 0, 0, 32),
        instruction(0x57, 2, 0, 0, BITS as i32 - 1),
        copy(3, 2),
        instruction(0x77, 3, 0, 0, 3),
        instruction(0x0f, 0, 3, 0, 0),
        instruction(0x71, 1, 0, 0, 0),
        instruction(0x57, 2, 0, 0, 7),
        instruction(0x7f, 1, 2, 0, 0),
        // if r1 & 1 skip: the sender is the client
        instruction(0x45, 1, 0, 1, 1),
        copy(7, 9),
    ];
    [
        hash_endpoint(destination, 2),
        vec![copy(9, 7)],
        hash_endpoint(source, 0),
        bit.to_vec(),
        FINISH.to_vec(),
    ]
    .concat()
}

/// Hashes the client's endpoint, or both addresses where a packet has no ports: a fragment, another protocol.
fn program(bitmap: i32) -> Vec<Instruction> {
    let version = |destination: std::ops::Range<i32>, source: std::ops::Range<i32>, protocol: &[Instruction]| {
        let addresses = mix_words(source.clone().chain(destination.clone()).step_by(4));
        let fallback = [&addresses[..], &FINISH].concat();
        let skip = fallback.len() as i16;
        let by_protocol = [if_equal(6, skip + 2), if_equal(17, skip + 1), if_equal(132, skip)];
        [protocol, &by_protocol, &fallback, &choose(source, destination, bitmap)].concat()
    };
    // r8 = header length; r0 = the protocol, or 0 (an IPv6 option header, nothing in IPv4) for a fragment.
    let v4 = version(
        16..20,
        12..16,
        &[
            byte(0),
            instruction(0x57, 0, 0, 0, 15),
            instruction(0x67, 0, 0, 0, 2),
            copy(8, 0),
            half(6),
            instruction(0x57, 0, 0, 0, 0x3fff),
            if_equal(0, 2),
            set(0, 0),
            jump(1),
            byte(9),
        ],
    );
    let v6 = version(24..40, 8..24, &[set(8, 40), byte(6)]);
    let start = [
        // r6 = the packet, which byte(), half() and word() expect there
        copy(6, 1),
        set(7, 0),
        byte(0),
        // r0 >>= 4
        instruction(0x77, 0, 0, 0, 4),
        if_equal(6, v4.len() as i16),
    ];
    [&start[..], &v4, &v6].concat()
}

/// Steers the packets of a device as long as the device lives.
#[derive(Debug)]
pub struct Steering {
    bitmap: Map,
}

impl Steering {
    /// Has the kernel steer packets of this device by `program`.
    ///
    /// # Errors
    /// Where the process may not load programs, as in a user namespace.
    pub(super) fn attach(device: &File) -> io::Result<Self> {
        let bitmap = bpf::create_single("bitmap", BITS / 8)?;
        // TUNSETSTEERINGEBPF asks for a program of this type.
        let program = bpf::load_socket_filter(&program(bitmap.descriptor.as_raw_fd()))?;
        let fd = program.as_raw_fd();
        // SAFETY: both descriptors are open, and the call reads one int. The device holds the program from here on.
        let result = unsafe { libc::ioctl(device.as_raw_fd(), libc::TUNSETSTEERINGEBPF, &raw const fd) };
        match result {
            0 => Ok(Self { bitmap }),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// From now on these are the addresses of services.
    ///
    /// # Errors
    /// When the kernel refuses; flows then may lose their locality, never their order.
    pub fn set_services(&self, endpoints: impl IntoIterator<Item = Endpoint>) -> io::Result<()> {
        let mut bits = vec![0_u8; BITS / 8];
        for bit in endpoints.into_iter().map(|endpoint| bit_of(&endpoint)) {
            bits[bit / 8] |= 1 << (bit % 8);
        }
        self.bitmap.put(&0_u32.to_ne_bytes(), &bits)
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;

    use super::*;
    use lbd_testkit::packets;

    #[test]
    fn the_kernel_takes_the_steering_program() {
        let loaded = bpf::create_single("bitmap", BITS / 8)
            .and_then(|bitmap| bpf::load_socket_filter(&program(bitmap.descriptor.as_raw_fd())));
        match loaded {
            Ok(_) => {}
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => {
                println!("skipped: bpf(2) is not permitted here: {error}");
            }
            Err(error) => panic!("{error}"),
        }
    }

    /// The number that the kernel's own run of the program gives to a packet.
    fn run(program: &OwnedFd, packet: &[u8]) -> u32 {
        // The kernel takes an Ethernet header away first.
        let ethertype = if packet[0] >> 4 == 4 {
            [0x08, 0x00]
        } else {
            [0x86, 0xdd]
        };
        let input = [&[0; 12][..], &ethertype, packet].concat();
        bpf::run_socket_filter(program, &input).unwrap()
    }

    #[test]
    fn a_request_and_its_reply_go_to_one_worker_and_clients_are_spread() {
        let Ok(bitmap) = bpf::create_single("bitmap", BITS / 8) else {
            println!("skipped: bpf(2) is not permitted here");
            return;
        };
        let program = bpf::load_socket_filter(&program(bitmap.descriptor.as_raw_fd())).unwrap();
        let steering = Steering { bitmap };
        for (service, backend, client) in [
            ("10.96.0.10:80", "10.2.0.11:8080", "10.1.0.2"),
            ("[fd00:96::10]:80", "[fd00:2::11]:8080", "[fd00:1::2]"),
        ] {
            let service: Endpoint = service.parse().unwrap();
            steering.set_services([service]).unwrap();
            let queues = (40_000..40_064).map(|port| {
                let client = format!("{client}:{port}");
                let request = packets::udp(&client, service, b"question");
                let reply = packets::udp(backend, &client, b"an answer");
                let number = run(&program, &request);
                assert_eq!(number, run(&program, &reply), "{client}");
                number % 2
            });
            let second: u32 = queues.sum();
            assert!(
                (16..48).contains(&second),
                "{second} of 64 clients at the second of two workers"
            );
        }
    }
}
