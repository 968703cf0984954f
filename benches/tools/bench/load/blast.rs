//! Small UDP frames in many flows, straight to the client's device (packet(7)), bursts of 32 by one system call; as fast
//! as one CPU can, or at a rate.
use std::io::{self, IoSlice};
use std::net::SocketAddrV4;
use std::thread;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{MMsgHdr, SendAncillaryBuffer, SendFlags, sendmmsg};
use socket2::{Domain, SockAddr, SockAddrStorage, Socket, Type};

use super::frames::{self, LENGTH};
use super::probe::fine_timers;
use crate::Outcome;

/// Frames at once.
pub(crate) const BURST: usize = 32;

/// What to send.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Blast {
    pub(crate) target: SocketAddrV4,
    /// Flows that take turns.
    pub(crate) flows: u32,
    /// Frames a second; None: as many as can be.
    pub(crate) rate: Option<f64>,
    /// The Ethernet addresses of the client and of its gateway.
    pub(crate) macs: [[u8; 6]; 2],
    /// The number of the client's device.
    pub(crate) device: i32,
}

impl Blast {
    /// Sends, in the namespace that it is called in, until it is told to stop; says how many frames the device took.
    /// `goes_on` is told how many have been sent.
    pub(crate) fn send(&self, mut goes_on: impl FnMut(u64) -> bool) -> Outcome<u64> {
        fine_timers();
        let socket = Socket::new(Domain::PACKET, Type::RAW, None)?;
        socket.bind(&device_address(self.device)?)?;
        let mut burst = [frames::frame(self.macs, 0, self.target); BURST];
        let (mut next, mut sent, start) = (0, 0, Instant::now());
        while goes_on(sent) {
            for frame in &mut burst {
                frames::set_flow(frame, next);
                next = (next + 1) % self.flows;
            }
            sent += hand_over(&socket, &burst)?;
            self.pace(sent, start);
        }
        Ok(sent)
    }

    fn pace(&self, sent: u64, start: Instant) {
        if let Some(rate) = self.rate {
            thread::sleep(Duration::from_secs_f64(sent as f64 / rate).saturating_sub(start.elapsed()));
        }
    }
}

/// Gives the kernel a burst; what does not fit is lost, as on a wire.
fn hand_over(socket: &Socket, burst: &[[u8; LENGTH]]) -> Outcome<u64> {
    let slices: Vec<[IoSlice<'_>; 1]> = burst.iter().map(|frame| [IoSlice::new(frame)]).collect();
    let mut nothing: Vec<_> = burst.iter().map(|_frame| SendAncillaryBuffer::default()).collect();
    let messages = slices.iter().zip(&mut nothing);
    let mut messages: Vec<_> = messages.map(|(slice, control)| MMsgHdr::new(slice, control)).collect();
    match sendmmsg(socket, &mut messages, SendFlags::empty()) {
        Ok(count) => Ok(count as u64),
        Err(Errno::NOBUFS | Errno::AGAIN | Errno::INTR) => Ok(0),
        Err(error) => Err(format!("cannot send frames: {error}").into()),
    }
}

/// `struct sockaddr_ll` of packet(7): the device, and nothing received.
#[allow(unsafe_code, reason = "socket2 knows no sockaddr_ll")]
fn device_address(device: i32) -> io::Result<SockAddr> {
    let fill = |storage: *mut SockAddrStorage, length: *mut libc::socklen_t| {
        let address = libc::sockaddr_ll {
            sll_family: libc::AF_PACKET as u16,
            sll_protocol: 0,
            sll_ifindex: device,
            sll_hatype: 0,
            sll_pkttype: 0,
            sll_halen: 0,
            sll_addr: [0; 8],
        };
        // SAFETY: a sockaddr_storage has room for every kind of address, and both pointers are valid here.
        unsafe {
            storage.cast::<libc::sockaddr_ll>().write(address);
            length.write(size_of::<libc::sockaddr_ll>() as libc::socklen_t);
        }
        Ok(())
    };
    // SAFETY: the address is whole and its length right when the closure has returned.
    unsafe { SockAddr::try_init(fill) }.map(|((), address)| address)
}
