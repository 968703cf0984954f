//! The traffic generator: servers and clients of TCP, and small UDP frames in as many flows as wanted. Nothing here knows
//! what stands between client and server.
pub(crate) mod attempt;
pub(crate) mod blast;
pub(crate) mod bulk;
pub(crate) mod connects;
pub(crate) mod frames;
pub(crate) mod probe;
pub(crate) mod requests;
pub(crate) mod serve;

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

use crate::rig::CLIENTS;

/// What a client says first, and what the server then does. It always first answers with its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wish {
    /// Close.
    Name = b'n' as isize,
    /// Answer each 64 bytes with 64 bytes.
    Echo = b'e' as isize,
    /// Take all that comes.
    Sink = b's' as isize,
    /// Send without end.
    Source = b'f' as isize,
}

impl Wish {
    pub(crate) fn letter(self) -> u8 {
        self as u8
    }

    pub(crate) fn of(letter: u8) -> Option<Self> {
        let all = [Self::Name, Self::Echo, Self::Sink, Self::Source];
        all.into_iter().find(|wish| wish.letter() == letter)
    }
}

/// Bytes of a request, and of its answer.
pub(crate) const REQUEST: usize = 64;

/// A connection from the `number`th of the client's addresses that waits `patience` for each answer, and the number of
/// the server that answered.
pub(crate) fn open(target: SocketAddrV4, number: u32, wish: Wish, patience: Duration) -> io::Result<(TcpStream, u8)> {
    use std::io::{Read, Write};
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
    bind_late(&socket, source(number))?;
    socket.connect_timeout(&target.into(), patience)?;
    let mut stream = TcpStream::from(socket);
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(patience))?;
    stream.write_all(&[wish.letter()])?;
    let mut name = [0];
    stream.read_exact(&mut name)?;
    Ok((stream, name[0]))
}

/// One of 64 addresses of the client.
pub(crate) fn source(number: u32) -> Ipv4Addr {
    let [a, b, c, first] = CLIENTS;
    Ipv4Addr::new(a, b, c, first + (number % 64) as u8)
}

/// The port is chosen when the destination is known (ip(7), `IP_BIND_ADDRESS_NO_PORT`), so one port serves many
/// destinations.
#[allow(unsafe_code, reason = "neither std nor socket2 knows IP_BIND_ADDRESS_NO_PORT")]
pub(crate) fn bind_late(socket: &Socket, address: Ipv4Addr) -> io::Result<()> {
    use std::os::fd::AsRawFd;
    let yes: libc::c_int = 1;
    // SAFETY: `yes` is an int and lives through the call, and the length is its length.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IP,
            libc::IP_BIND_ADDRESS_NO_PORT,
            (&raw const yes).cast(),
            size_of_val(&yes) as libc::socklen_t,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    socket.bind(&SocketAddrV4::new(address, 0).into())
}
