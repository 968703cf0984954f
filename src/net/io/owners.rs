//! Who on this host has a flow: its sockets and its connection tracking, asked by netlink about one datagram at a time.
//!
//! An answer comes within the call that asks, so nothing waits here. A question takes 3 us (Linux 6.18, shared machine); there is one for
//! each new UDP flow to a service at an address of this host, and one more where connections are tracked.
use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::FileExt;

use netlink_sys::protocols::{NETLINK_NETFILTER, NETLINK_SOCK_DIAG};
use netlink_sys::{Socket, SocketAddr};

use lbd_core::flow::{Endpoint, Tuple};
use lbd_core::host::Host;

/// `struct nlmsghdr`
const HEADER: usize = 16;
/// `NLM_F_REQUEST`
const REQUEST: u16 = 1;
/// `NLMSG_ERROR`
const ERROR: u16 = 2;
/// `SOCK_DIAG_BY_FAMILY` (include/uapi/linux/sock_diag.h)
const BY_FAMILY: u16 = 20;
/// `NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_GET` (include/uapi/linux/netfilter/nfnetlink_conntrack.h)
const GET_TRACKED: u16 = 1 << 8 | 1;
/// `NLA_F_NESTED`
const NESTED: u16 = 1 << 15;
/// Bits of an attribute's type that are none (`NLA_TYPE_MASK`).
const TYPE_MASK: u16 = 0x3fff;
/// `CTA_TUPLE_ORIG`, of what connection tracking knows; a question asks by it for either direction.
const TUPLE_ORIGINAL: u16 = 1;
/// `CTA_TUPLE_IP` and `CTA_TUPLE_PROTO`
const TUPLE_IP: u16 = 1;
const TUPLE_PROTOCOL: u16 = 2;
/// `TCP_ESTABLISHED`, which a datagram socket is in once it is connected.
const CONNECTED: u8 = 1;
/// How many entries there are in this network namespace. Absent without connection tracking, which nobody is to load by asking.
const TRACKED: &str = "/proc/sys/net/netfilter/nf_conntrack_count";
/// More than either answer has.
const ANSWER: usize = 4096;

/// See the module; of one thread.
#[derive(Debug)]
pub struct Owners {
    sockets: Channel,
    tracking: Channel,
    /// Kept open.
    tracked: Option<File>,
}

/// Which socket of the host a datagram would go to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    /// One that is connected with the sender.
    Connected,
    /// One that hears everybody.
    Open,
    None,
}

impl Owners {
    /// Opens channels to the kernel.
    ///
    /// # Errors
    /// When the system refuses them.
    pub fn open() -> io::Result<Self> {
        Ok(Self {
            sockets: Channel::open(NETLINK_SOCK_DIAG)?,
            tracking: Channel::open(NETLINK_NETFILTER)?,
            tracked: File::open(TRACKED).ok(),
        })
    }

    fn socket(&mut self, datagram: &Tuple) -> Found {
        match self.sockets.ask(BY_FAMILY, &socket_question(datagram)) {
            // `struct inet_diag_msg`: the family, then the state.
            Some(answer) if answer.get(1) == Some(&CONNECTED) => Found::Connected,
            Some(_) => Found::Open,
            None => Found::None,
        }
    }

    /// Whether connection tracking has anything; a host without firewall or NAT does not.
    fn is_tracking(&mut self) -> bool {
        if self.tracked.is_none() {
            self.tracked = File::open(TRACKED).ok();
        }
        let mut first = [0; 1];
        let read = self.tracked.as_ref().map(|file| file.read_at(&mut first, 0));
        matches!(read, Some(Ok(1))) && first != *b"0"
    }

    /// The sender and receiver of the first packet of the flow that connection tracking has for this datagram.
    fn tracked(&mut self, datagram: &Tuple) -> Option<(Endpoint, Endpoint)> {
        if !self.is_tracking() {
            return None;
        }
        let answer = self.tracking.ask(GET_TRACKED, &tracking_question(datagram))?;
        // `struct nfgenmsg` is before the attributes.
        first_packet(answer.get(4..)?)
    }
}

impl Host for Owners {
    fn owns(&mut self, datagram: &Tuple) -> bool {
        let socket = self.socket(datagram);
        if socket == Found::Connected {
            return true;
        }
        match self.tracked(datagram) {
            // As what opened the flow it may be a client's as well: the kernel has seen it on its way here.
            Some((sender, _)) if sender == datagram.source => false,
            // An answer to the host itself needs one who hears it: lbd's own answers leave entries, too. Other senders are those
            // that the host masquerades.
            Some((sender, _)) => sender != datagram.destination || socket == Found::Open,
            None => false,
        }
    }
}

/// A netlink socket on which one question is asked at a time.
#[derive(Debug)]
struct Channel {
    socket: Socket,
    sequence: u32,
    question: Vec<u8>,
    answer: Vec<u8>,
}

impl Channel {
    fn open(protocol: isize) -> io::Result<Self> {
        let mut socket = Socket::new(protocol)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self {
            socket,
            sequence: 0,
            question: Vec::new(),
            answer: Vec::with_capacity(ANSWER),
        })
    }

    /// What is behind the header of the answer; None where the kernel has nothing, or does not answer.
    fn ask(&mut self, kind: u16, body: &[u8]) -> Option<&[u8]> {
        self.sequence = self.sequence.wrapping_add(1);
        self.question.clear();
        // At most a few hundred bytes.
        let length = (HEADER + body.len()) as u32;
        self.question.extend(length.to_ne_bytes());
        self.question.extend(kind.to_ne_bytes());
        self.question.extend(REQUEST.to_ne_bytes());
        self.question.extend(self.sequence.to_ne_bytes());
        self.question.extend([0; 4]);
        self.question.extend(body);
        self.socket.send(&self.question, 0).ok()?;
        loop {
            self.answer.clear();
            self.socket.recv(&mut self.answer, libc::MSG_DONTWAIT).ok()?;
            let sequence = self.answer.get(8..12)?;
            // Left from a question whose answer did not come in time, which the kernel does not do.
            if sequence == self.sequence.to_ne_bytes() {
                break;
            }
        }
        let kind = u16::from_ne_bytes([self.answer[4], self.answer[5]]);
        self.answer.get(HEADER..).filter(|_| kind != ERROR)
    }
}

fn family(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => libc::AF_INET as u8,
        IpAddr::V6(_) => libc::AF_INET6 as u8,
    }
}

/// An address in the first bytes of 16.
fn padded(address: IpAddr) -> [u8; 16] {
    let mut bytes = [0; 16];
    match address {
        IpAddr::V4(v4) => bytes[..4].copy_from_slice(&v4.octets()),
        IpAddr::V6(v6) => bytes = v6.octets(),
    }
    bytes
}

/// `struct inet_diag_req_v2` (include/uapi/linux/inet_diag.h). The ends are those of the packet, not of the socket ("src and dst
/// are swapped for historical reasons", `udp_dump_one`, net/ipv4/udp_diag.c).
fn socket_question(datagram: &Tuple) -> Vec<u8> {
    let mut question = vec![family(datagram.source.address), datagram.protocol.number(), 0, 0];
    // Whatever its state.
    question.extend(u32::MAX.to_ne_bytes());
    question.extend(datagram.source.port.to_be_bytes());
    question.extend(datagram.destination.port.to_be_bytes());
    question.extend(padded(datagram.source.address));
    question.extend(padded(datagram.destination.address));
    // By whatever interface, and whatever its cookie (`INET_DIAG_NOCOOKIE`).
    question.extend([0; 4]);
    question.extend([0xff; 8]);
    question
}

/// `struct nfgenmsg`, and the tuple.
fn tracking_question(datagram: &Tuple) -> Vec<u8> {
    let mut question = vec![family(datagram.source.address), 0, 0, 0];
    let (source, destination) = (datagram.source, datagram.destination);
    let address = |number: u16, address: IpAddr| match address {
        // `CTA_IP_V4_SRC` and `CTA_IP_V4_DST`, then the same for IPv6.
        IpAddr::V4(v4) => attribute(number, &v4.octets()),
        IpAddr::V6(v6) => attribute(number + 2, &v6.octets()),
    };
    let ip = [address(1, source.address), address(2, destination.address)].concat();
    // `CTA_PROTO_NUM`, `CTA_PROTO_SRC_PORT`, `CTA_PROTO_DST_PORT`
    let protocol = [
        attribute(1, &[datagram.protocol.number()]),
        attribute(2, &source.port.to_be_bytes()),
        attribute(3, &destination.port.to_be_bytes()),
    ];
    let parts = [
        attribute(TUPLE_IP | NESTED, &ip),
        attribute(TUPLE_PROTOCOL | NESTED, &protocol.concat()),
    ];
    question.extend(attribute(TUPLE_ORIGINAL | NESTED, &parts.concat()));
    question
}

/// `struct nlattr` with its value, at a multiple of four.
fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = ((4 + value.len()) as u16).to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// The value of the first attribute of this kind.
fn find(mut attributes: &[u8], wanted: u16) -> Option<&[u8]> {
    loop {
        let &[length_low, length_high, kind_low, kind_high] = attributes.first_chunk()?;
        let length = usize::from(u16::from_ne_bytes([length_low, length_high]));
        let kind = u16::from_ne_bytes([kind_low, kind_high]) & TYPE_MASK;
        let value = attributes.get(4..length)?;
        if kind == wanted {
            return Some(value);
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
}

/// Sender and receiver by the attributes of an entry.
fn first_packet(entry: &[u8]) -> Option<(Endpoint, Endpoint)> {
    let tuple = find(entry, TUPLE_ORIGINAL)?;
    let (ip, ports) = (find(tuple, TUPLE_IP)?, find(tuple, TUPLE_PROTOCOL)?);
    let address = |number: u16| -> Option<IpAddr> {
        let v4 = find(ip, number).and_then(|bytes| <[u8; 4]>::try_from(bytes).ok());
        let v6 = || find(ip, number + 2).and_then(|bytes| <[u8; 16]>::try_from(bytes).ok());
        v4.map(IpAddr::from).or_else(|| v6().map(IpAddr::from))
    };
    let port = |number| find(ports, number).and_then(|bytes| Some(u16::from_be_bytes(bytes.try_into().ok()?)));
    Some((
        Endpoint::new(address(1)?, port(2)?),
        Endpoint::new(address(2)?, port(3)?),
    ))
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;
    use lbd_core::flow::Protocol;

    fn datagram(from: std::net::SocketAddr, to: std::net::SocketAddr) -> Tuple {
        Tuple {
            protocol: Protocol::Udp,
            source: Endpoint::new(from.ip(), from.port()),
            destination: Endpoint::new(to.ip(), to.port()),
        }
    }

    #[test]
    fn a_datagram_from_whom_a_socket_is_connected_with_is_the_hosts_and_anybody_elses_is_not() {
        for any in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(peer) = UdpSocket::bind(any) else { continue };
            let (own, stranger) = (UdpSocket::bind(any).unwrap(), UdpSocket::bind(any).unwrap());
            own.connect(peer.local_addr().unwrap()).unwrap();
            let mut owners = Owners::open().unwrap();
            let mut from = |peer: &UdpSocket| {
                let datagram = datagram(peer.local_addr().unwrap(), own.local_addr().unwrap());
                (owners.socket(&datagram), owners.owns(&datagram))
            };
            assert_eq!(from(&peer), (Found::Connected, true));
            assert_eq!(from(&stranger), (Found::None, false));
        }
    }

    #[test]
    fn a_socket_that_hears_everybody_owns_nothing_by_itself() {
        let own = UdpSocket::bind("127.0.0.1:0").unwrap();
        let datagram = datagram("127.0.0.9:9".parse().unwrap(), own.local_addr().unwrap());
        let mut owners = Owners::open().unwrap();
        assert_eq!(owners.socket(&datagram), Found::Open);
        assert!(!owners.owns(&datagram));
    }

    #[test]
    fn the_question_about_an_entry_is_read_as_the_answer_is() {
        for (from, to) in [
            ("192.0.2.1:7", "192.0.2.2:40080"),
            ("[2001:db8::1]:7", "[2001:db8::2]:40080"),
        ] {
            let datagram = datagram(from.parse().unwrap(), to.parse().unwrap());
            let read = first_packet(&tracking_question(&datagram)[4..]);
            assert_eq!(read, Some((datagram.source, datagram.destination)));
        }
    }

    #[test]
    fn an_answer_that_is_cut_short_says_nothing() {
        let datagram = datagram("192.0.2.1:7".parse().unwrap(), "192.0.2.2:40080".parse().unwrap());
        let whole = tracking_question(&datagram);
        for length in 4..whole.len() {
            assert_eq!(first_packet(&whole[4..length]), None, "{length}");
        }
    }
}
