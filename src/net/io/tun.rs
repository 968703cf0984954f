//! A TUN device with many queues, whose packets come with a virtio-net header and as super-packets of up to 64 KB.
//!
//! Own ioctls over libc instead of tun-tap, which cannot ask for `IFF_MULTI_QUEUE`, `IFF_VNET_HDR` or `TUNSETOFFLOAD`;
//! without them one TCP stream gets 1.3 Gbit/s instead of 11 to 16 (docs: Documentation/networking/tuntap.rst).
#![expect(
    unsafe_code,
    reason = "ioctl, read and write on a descriptor have no safe wrapper in std"
)]

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;

use super::limits;
use super::own_sender::OwnSender;
use super::steering::Steering;
use super::{Decide, Exchanged, PacketIo};
use crate::io::xdp::channels::interface_index;
use lbd_core::packet::frame::{Checksum, Fate, Frame};

/// `struct virtio_net_hdr` without `num_buffers` (include/uapi/linux/virtio_net.h), the kernel's default for TUN.
const HEADER: usize = 10;
/// Offsets of `csum_start` and `csum_offset` in the header, which are in the machine's byte order.
const CSUM_START: usize = 6;
const CSUM_OFFSET: usize = 8;
/// `VIRTIO_NET_HDR_F_NEEDS_CSUM`
const NEEDS_CSUM: u8 = 1;
/// The longest IP packet.
const MAX_PACKET: usize = 65_535;
/// Packets a batch: few enough that their buffers stay in the second-level cache while small packets come.
const BATCH: usize = 32;
/// A batch also ends with this many bytes, so that super-packets are written while they are still in the cache.
const BATCH_BYTES: usize = 256 * 1024;

/// `TUN_F_*` of include/uapi/linux/if_tun.h, wished for from the most to the least; kernels before 6.2 lack USO.
const CSUM: libc::c_uint = 0x01;
const TSO4: libc::c_uint = 0x02;
const TSO6: libc::c_uint = 0x04;
const USO4: libc::c_uint = 0x20;
const USO6: libc::c_uint = 0x40;
const WISHES: [libc::c_uint; 3] = [CSUM | TSO4 | TSO6 | USO4 | USO6, CSUM | TSO4 | TSO6, CSUM];

/// What the device hands over unfinished.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offloads(libc::c_uint);

impl std::fmt::Display for Offloads {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names = [
            (CSUM, "csum"),
            (TSO4, "tso4"),
            (TSO6, "tso6"),
            (USO4, "uso4"),
            (USO6, "uso6"),
        ];
        let mut on = names.iter().filter(|(bit, _)| self.0 & bit != 0).map(|(_, name)| *name);
        f.write_str(on.next().unwrap_or("none"))?;
        on.try_for_each(|name| write!(f, " {name}"))
    }
}

/// Why a device cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// There is no TUN here, or lbd may not use it.
    #[error("/dev/net/tun: {said}; {remedy}", said = .0, remedy = device_remedy(.0))]
    Device(io::Error),
    /// lbd may not make the device.
    #[error("TUN device {name}: {error}; run lbd as root or with CAP_NET_ADMIN")]
    NotPermitted {
        /// Of the device.
        name: String,
        /// What the kernel says.
        error: io::Error,
    },
    /// The kernel does not give the device.
    #[error(
        "TUN device {name}: {error}; is it another program's, or a device of another kind? see `ip -d link show {name}`, or choose another [tun] name"
    )]
    Attach {
        /// Of the device.
        name: String,
        /// What the kernel says.
        error: io::Error,
    },
}

fn device_remedy(error: &io::Error) -> &'static str {
    limits::remedy(error).unwrap_or("load the module `tun` and run lbd as root or with CAP_NET_ADMIN")
}

/// One queue of a TUN device.
#[derive(Debug)]
pub struct Queue {
    file: File,
    buffers: Box<[Box<[u8]>]>,
    /// Sends in the host's name.
    own: Option<Arc<OwnSender>>,
}

/// A device and how it works.
#[derive(Debug)]
pub struct Opened {
    /// Its queues.
    pub queues: Vec<Queue>,
    /// What it hands over unfinished.
    pub offloads: Offloads,
    /// What chooses the queue, if that is lbd.
    pub steering: Option<Steering>,
    /// Whether packets with [`Fate::Return`] are sent in the host's name; else they go back like others that pass.
    pub returns: bool,
}

/// Opens a device of `name` with this many queues; it vanishes when the last of them is closed.
///
/// # Errors
/// When the kernel has no TUN, or the name is taken.
pub fn open(name: &str, queues: usize, offload: bool) -> Result<Opened, OpenError> {
    let files = (0..queues).map(|_| attach(name, queues > 1));
    let files: Vec<File> = files.collect::<Result<_, _>>()?;
    let offloads = files.first().map_or(Offloads(0), |file| set_offload(file, offload));
    let steering = match files.as_slice() {
        [first, _, ..] => steer(name, first),
        [] | [_] => None,
    };
    let own = OwnSender::open().map(Arc::new);
    if let Err(error) = &own {
        tracing::warn!(
            "{name}: without CAP_NET_RAW clients are not told of most ICMP errors of this host about their packets ({error}); run lbd with CAP_NET_RAW"
        );
    }
    let own = own.ok();
    let returns = own.is_some();
    let queues = files.into_iter().map(|file| Queue {
        own: own.clone(),
        file,
        buffers: (0..BATCH)
            .map(|_| vec![0; HEADER + MAX_PACKET].into_boxed_slice())
            .collect(),
    });
    Ok(Opened {
        queues: queues.collect(),
        offloads,
        steering,
        returns,
    })
}

fn steer(name: &str, file: &File) -> Option<Steering> {
    let steering = Steering::attach(file);
    let explained = steering.map_err(|error| {
        tracing::warn!("{name}: the kernel chooses queues, and may reorder a flow when it moves one ({error}); run lbd with CAP_BPF and CAP_PERFMON, or set [datapath] workers = 1");
    });
    explained.ok()
}

fn attach(name: &str, many: bool) -> Result<File, OpenError> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open("/dev/net/tun")
        .map_err(OpenError::Device)?;
    let failed = |error| OpenError::Attach {
        name: name.to_owned(),
        error,
    };
    let c_name = CString::new(name).map_err(|nul| failed(nul.into()))?;
    // SAFETY: all zero is a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    let name_bytes = c_name.as_bytes_with_nul();
    if name_bytes.len() > request.ifr_name.len() {
        return Err(failed(io::ErrorKind::InvalidInput.into()));
    }
    for (to, &from) in request.ifr_name.iter_mut().zip(name_bytes) {
        *to = from as libc::c_char;
    }
    let queue_flag = if many { libc::IFF_MULTI_QUEUE } else { 0 };
    request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR | queue_flag) as libc::c_short;
    // SAFETY: the descriptor is open and the request is a valid ifreq, which the call reads and writes.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    match result {
        0 => Ok(file),
        _ => Err(refused(name, io::Error::last_os_error())),
    }
}

/// What the kernel says to TUNSETIFF, with its cause.
fn refused(name: &str, error: io::Error) -> OpenError {
    let name = name.to_owned();
    // Whoever may open /dev/net/tun may still not make a device (`tun_set_iff`, drivers/net/tun.c).
    match error.raw_os_error() {
        Some(libc::EPERM) if interface_index(&name).is_err() => OpenError::NotPermitted { name, error },
        _ => OpenError::Attach { name, error },
    }
}

/// Asks for as much as the kernel has. The setting is the device's, so one queue's call serves all.
fn set_offload(file: &File, wanted: bool) -> Offloads {
    let wishes: &[libc::c_uint] = if wanted { &WISHES } else { &[] };
    let accepted = wishes.iter().copied().find(|&wish| try_offload(file, wish));
    let offloads = accepted.unwrap_or_else(|| {
        // A device that outlived its program keeps its offloads; nothing less than this turns them off.
        let _off = try_offload(file, 0);
        0
    });
    Offloads(offloads)
}

fn try_offload(file: &File, offloads: libc::c_uint) -> bool {
    // SAFETY: the descriptor is open; TUNSETOFFLOAD takes its argument by value.
    unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(offloads)) == 0 }
}

impl PacketIo for Queue {
    fn exchange(&mut self, decide: &mut Decide<'_>) -> io::Result<Exchanged> {
        let mut frames: Vec<Frame<'_>> = Vec::with_capacity(BATCH);
        let mut bytes = 0;
        for buffer in &mut self.buffers {
            let Some(length) = receive(&mut self.file, buffer)? else {
                break;
            };
            bytes += length;
            let checksum = match buffer[0] & NEEDS_CSUM {
                0 => Checksum::Complete,
                _ => Checksum::Partial {
                    start: usize::from(field(buffer, CSUM_START)),
                    offset: field(buffer, CSUM_OFFSET),
                },
            };
            frames.push(Frame::new(buffer, HEADER, length, checksum));
            if bytes >= BATCH_BYTES {
                break;
            }
        }
        if frames.is_empty() {
            return Ok(Exchanged::default());
        }
        decide(&mut frames, None);
        // A packet that is not lbd's goes back to the kernel like any other.
        let kept = frames.iter_mut().filter(|frame| frame.fate != Fate::Discard);
        let sent = kept.map(|frame| match (frame.fate, &self.own) {
            (Fate::Return, Some(own)) => own.send(frame.bytes_mut()),
            (Fate::Return | Fate::Send | Fate::Pass | Fate::Discard, _) => send(&mut self.file, frame).map(drop),
        });
        let unsent = sent.filter(Result::is_err).count();
        Ok(Exchanged {
            received: frames.len(),
            unsent,
            waiting: false,
        })
    }

    fn send(&mut self, packet: &mut [u8], fate: Fate) -> io::Result<()> {
        match fate {
            Fate::Send | Fate::Pass | Fate::Return => write_packet(&self.file, packet, Checksum::Complete),
            Fate::Discard => Ok(()),
        }
    }

    fn readiness(&self) -> Vec<RawFd> {
        vec![self.file.as_raw_fd()]
    }
}

/// Writes packets of others' making into the device, for the kernel to route.
#[derive(Debug)]
pub struct Sender(File);

impl Queue {
    /// Another hand to write with, for another thread.
    ///
    /// # Errors
    /// When the process has no descriptor left.
    pub fn sender(&self) -> io::Result<Sender> {
        self.file.try_clone().map(Sender)
    }
}

impl Sender {
    /// Gives an IP packet to the kernel, which finishes its checksum where that is to be done.
    ///
    /// # Errors
    /// When the kernel has no buffer, or refuses the packet.
    pub fn send(&self, packet: &[u8], checksum: Checksum) -> io::Result<()> {
        write_packet(&self.0, packet, checksum)
    }
}

/// Writes a packet that did not come with a header.
fn write_packet(mut file: &File, packet: &[u8], checksum: Checksum) -> io::Result<()> {
    let mut header = [0; HEADER];
    if let Checksum::Partial { start, offset } = checksum {
        header[0] = NEEDS_CSUM;
        header[CSUM_START..CSUM_OFFSET].copy_from_slice(&(start as u16).to_ne_bytes());
        header[CSUM_OFFSET..].copy_from_slice(&offset.to_ne_bytes());
    }
    let parts = [IoSlice::new(&header), IoSlice::new(packet)];
    file.write_vectored(&parts).map(|_whole| ())
}

fn field(header: &[u8], at: usize) -> u16 {
    u16::from_ne_bytes([header[at], header[at + 1]])
}

/// Reads one packet with its header; None when there is none.
fn receive(file: &mut File, buffer: &mut [u8]) -> io::Result<Option<usize>> {
    loop {
        match file.read(buffer) {
            Ok(length) if length > HEADER => return Ok(Some(length)),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

fn send(file: &mut File, frame: &mut Frame<'_>) -> io::Result<usize> {
    file.write(frame.with_header(HEADER))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_names_the_missing_capability_unless_there_is_a_device_that_may_be_anothers() {
        let said = |name| refused(name, io::Error::from_raw_os_error(libc::EPERM)).to_string();
        let unprivileged = said("lbd-no-such-0");
        assert!(
            unprivileged.starts_with("TUN device lbd-no-such-0: Operation not permitted")
                && unprivileged.ends_with("; run lbd as root or with CAP_NET_ADMIN"),
            "{unprivileged}"
        );
        let taken = said("lo");
        assert!(taken.contains("is it another program's"), "{taken}");
        let busy = refused("lbd-no-such-0", io::Error::from_raw_os_error(libc::EBUSY)).to_string();
        assert!(busy.contains("is it another program's"), "{busy}");
    }
}
