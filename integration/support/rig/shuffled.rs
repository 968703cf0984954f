//! Peers whose datagrams come in fragments in an order of their own making, past the kernel's, which sends the first one
//! first.
use std::io::{self, ErrorKind};
use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

use super::load::inside;
use super::talk::{parse, serve};
use crate::fragments::over;
use crate::packets;

const PATIENCE: Duration = Duration::from_secs(3);
const MTU: usize = 1_500;
/// Whoever sends with this protocol makes the IP header too (raw(7)).
const IPPROTO_RAW: i32 = 255;

/// Sends a datagram in fragments, the later ones first.
fn send(from: SocketAddr, to: SocketAddr, identification: u32, bytes: &[u8]) -> io::Result<()> {
    let raw = Socket::new(Domain::for_address(to), Type::RAW, Some(Protocol::from(IPPROTO_RAW)))?;
    let host = SocketAddr::new(to.ip(), 0).into();
    let datagram = packets::udp(from, to, bytes);
    for fragment in over(&datagram, identification, MTU).iter().rev() {
        raw.send_to(fragment, &host)?;
    }
    Ok(())
}

/// A UDP server in a namespace that gives back what it gets, the later fragments first.
pub(crate) fn shuffled_udp_echo(namespace: &str, address: &str) {
    let from = parse(address);
    serve(namespace, address, UdpSocket::bind, move |socket| {
        let mut buffer = vec![0; 65536];
        for identification in 1.. {
            if let Ok((length, client)) = socket.recv_from(&mut buffer) {
                send(from, client, identification, &buffer[..length]).expect("cannot send fragments");
            }
        }
    });
}

/// Sends datagrams of this many bytes from an address in a namespace to an echo server, one after the other, the later
/// fragments first; they came back whole, or what came in their place.
pub(crate) fn echo_shuffled(namespace: &str, from: &str, server: &str, size: usize, datagrams: u32) -> io::Result<()> {
    let (from, server) = (parse(from), parse(server));
    let asked = inside(namespace, move || {
        let socket = UdpSocket::bind(from)?;
        socket.connect(server)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        let mut heard = vec![0; 65536];
        for identification in 1..=datagrams {
            let sent: Vec<u8> = (0..size).map(|n| (n as u32 * identification) as u8).collect();
            send(from, server, identification, &sent)?;
            let length = socket.recv(&mut heard)?;
            if heard[..length] != sent {
                return Err(io::Error::new(ErrorKind::InvalidData, "it came back changed"));
            }
        }
        Ok(())
    });
    asked.join().map_err(|_panic| io::Error::other("the client panicked"))?
}
