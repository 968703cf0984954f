//! Fills the tables from the kernel and follows its changes, on a thread of its own.
//!
//! It listens before it asks, so nothing is missed: what changes during a dump is told afterwards. Links, addresses and
//! neighbours are followed one by one. Routes are dumped anew, because the kernel drops IPv4 routes without a word when
//! a device or an address goes (`fib_table_flush`); a pause between dumps keeps that cheap.
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token, Waker};
use netlink_packet_core::{NLM_F_CREATE, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::AddressMessage;
use netlink_packet_route::neighbour::{NeighbourMessage, NeighbourState};
use netlink_packet_route::route::RouteMessage;
use netlink_packet_route::rule::RuleMessage;
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};

use super::neighbours::Key;
use super::tables::{Change, Routing, Tables};
use super::upkeep::{self, Requested};
use super::{Family, NextHops, message, rules};
use crate::plumbing::{DIVERT_TABLE, Error, Handle, SERVICES_TABLE};
use crate::worker::Clock;
use lbd_core::time::Instant;

const CHANGES: Token = Token(0);
const WAKE: Token = Token(1);

/// From the first change to the dump of routes; changes come in bunches.
const PAUSE: Duration = Duration::from_millis(10);

/// Between dumps, in units of what the last one took: at most a tenth of a CPU goes into them.
const REST: u32 = 9;

/// Until the next attempt after netlink has failed.
const RETRY: Duration = Duration::from_secs(1);

const GROUPS: [u32; 9] = [
    libc::RTNLGRP_LINK,
    libc::RTNLGRP_NEIGH,
    libc::RTNLGRP_IPV4_IFADDR,
    libc::RTNLGRP_IPV6_IFADDR,
    libc::RTNLGRP_IPV4_ROUTE,
    libc::RTNLGRP_IPV6_ROUTE,
    libc::RTNLGRP_IPV4_RULE,
    libc::RTNLGRP_IPV6_RULE,
    libc::RTNLGRP_NEXTHOP,
];

/// Keeps a [`NextHops`] up to date until it is dropped.
#[derive(Debug)]
pub struct Follower {
    stop: Arc<AtomicBool>,
    waker: Arc<Waker>,
    thread: Option<JoinHandle<()>>,
}

impl Follower {
    /// Learns the ways of this thread's network namespace, and starts to follow them. Frames may leave by `interfaces`
    /// (indices); `device` is lbd's own, as [`crate::plumbing`] knows it.
    ///
    /// Needs CAP_NET_ADMIN as long as it runs, to have neighbours resolved and confirmed. When the kernel cannot be
    /// asked any longer that is logged, every answer is [`super::Way::Kernel`], and it tries again each second.
    ///
    /// # Errors
    /// When the kernel does not tell, or gives no descriptor or thread.
    pub fn start(interfaces: &[u32], device: &str, clock: Clock) -> Result<(Arc<NextHops>, Self), Error> {
        let prepare = |source| Error::Netlink {
            what: "follow routes and neighbours",
            source,
        };
        let poll = Poll::new().map_err(prepare)?;
        let waker = Arc::new(Waker::new(poll.registry(), WAKE).map_err(prepare)?);
        let (requests, requested) = upkeep::channel(Arc::clone(&waker));
        let hops = Arc::new(NextHops::new(Tables::new(interfaces), requests));
        let stop = Arc::new(AtomicBool::new(false));
        let mut following = Following {
            socket: listen(&poll).map_err(prepare)?,
            handle: Handle::open()?,
            hops: Arc::clone(&hops),
            interfaces: interfaces.to_vec(),
            device: device.to_owned(),
            requested,
            clock,
            due: None,
            rest: PAUSE,
            failure: None,
        };
        following.dump(Due::Everything)?;
        let stopped = Arc::clone(&stop);
        let named = Builder::new().name("lbd-next-hops".into());
        let thread = named.spawn(move || following.run(poll, &stopped)).map_err(prepare)?;
        let follower = Self {
            stop,
            waker,
            thread: Some(thread),
        };
        Ok((hops, follower))
    }

    /// False after the thread has died, which would be a defect of lbd.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.thread.as_ref().is_some_and(|thread| !thread.is_finished())
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Err(error) = self.waker.wake() {
            tracing::error!("cannot stop the thread that follows routes: {error}");
            return;
        }
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread that follows routes had died");
        }
    }
}

fn listen(poll: &Poll) -> io::Result<Socket> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind(&SocketAddr::new(0, 0))?;
    for group in GROUPS {
        match socket.add_membership(group) {
            // Linux before 5.3 has no nexthop objects (EINVAL).
            Err(error) if group != libc::RTNLGRP_NEXTHOP => return Err(error),
            Err(_) | Ok(()) => {}
        }
    }
    socket.set_non_blocking(true)?;
    poll.registry()
        .register(&mut SourceFd(&socket.as_raw_fd()), CHANGES, Interest::READABLE)?;
    Ok(socket)
}

/// What is to be dumped anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Due {
    Routes,
    Everything,
}

struct Following {
    socket: Socket,
    handle: Handle,
    hops: Arc<NextHops>,
    interfaces: Vec<u32>,
    device: String,
    requested: Requested,
    clock: Clock,
    due: Option<(Due, Instant)>,
    /// Between a change and the dump.
    rest: Duration,
    failure: Option<String>,
}

impl Following {
    fn run(mut self, mut poll: Poll, stop: &AtomicBool) {
        let mut events = Events::with_capacity(2);
        while !stop.load(Ordering::Acquire) {
            let wait = self.due.map(|(_, at)| at.saturating_since(self.clock.now()));
            match poll.poll(&mut events, wait) {
                Err(error) if error.kind() != io::ErrorKind::Interrupted => self.fail(&error.to_string()),
                Err(_) | Ok(()) => {}
            }
            self.hear();
            self.attend();
            self.catch_up();
        }
    }

    /// Takes in what the kernel has told.
    fn hear(&mut self) {
        let mut buffer = Vec::with_capacity(64 * 1024);
        loop {
            buffer.clear();
            match self.socket.recv(&mut buffer, 0) {
                Ok(_) => {
                    let due = apply(&self.hops, &buffer);
                    self.schedule(due);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // So much came that some was lost.
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => self.schedule(Some(Due::Everything)),
                Err(error) => return self.fail(&error.to_string()),
            }
        }
    }

    /// Has the kernel resolve and confirm neighbours.
    fn attend(&mut self) {
        let neighbours = self.requested.take(self.clock.now());
        if neighbours.is_empty() {
            return;
        }
        for neighbour in neighbours {
            if let Err(error) = self.attend_one(neighbour) {
                return self.fail(&error.to_string());
            }
        }
    }

    fn attend_one(&mut self, neighbour: Key) -> Result<(), Error> {
        // The tables may not show yet that an operator has just made it permanent, and using would undo that.
        let known = match self.handle.neighbour(message::name_neighbour(neighbour)) {
            // Its device has just gone.
            Err(Error::Netlink { source, .. }) if source.raw_os_error() == Some(libc::ENODEV) => return Ok(()),
            known => known?,
        };
        if known.is_some_and(|known| known.header.state == NeighbourState::Permanent) {
            return Ok(());
        }
        let request = (message::use_neighbour(neighbour), NLM_F_CREATE);
        for refusal in self.handle.request_all(&[request])? {
            tracing::debug!("the kernel does not resolve a neighbour: {refusal}");
        }
        Ok(())
    }

    fn schedule(&mut self, due: Option<Due>) {
        let Some(due) = due else { return };
        let first = self.clock.now() + self.rest;
        let (before, at) = self.due.unwrap_or((due, first));
        self.due = Some((due.max(before), at));
    }

    fn catch_up(&mut self) {
        let now = self.clock.now();
        let Some((due, _)) = self.due.filter(|(_, at)| *at <= now) else {
            return;
        };
        self.due = None;
        match self.dump(due) {
            Ok(()) => self.rest = PAUSE.max((self.clock.now() - now) * REST),
            Err(error) => self.fail(&error.to_string()),
        }
    }

    /// Nothing is known for sure any longer: the kernel is to route until it can be asked again.
    fn fail(&mut self, reason: &str) {
        if self.failure.as_deref() != Some(reason) {
            tracing::error!(
                "cannot follow the kernel's routes, so all packets go through the kernel for now: {reason}"
            );
        }
        self.failure = Some(reason.to_owned());
        let reason = format!("the kernel's routes cannot be followed: {reason}");
        self.hops.change(|tables| {
            let changes = Family::BOTH.map(|family| tables.detour_all(family, &reason));
            changes[0] | changes[1]
        });
        self.due = Some((Due::Everything, self.clock.now() + RETRY));
    }

    fn dump(&mut self, due: Due) -> Result<(), Error> {
        if due == Due::Everything {
            let mut fresh = self.dump_objects()?;
            self.hops.change(|tables| tables.replace_objects(&mut fresh));
        }
        let rules = self.dump_rules()?;
        for family in Family::BOTH {
            let routing = self.dump_routes(family, &rules)?;
            self.report(family, routing.detour.as_deref());
            self.hops.set_routing(family, routing);
        }
        if self.failure.take().is_some() {
            tracing::info!("the kernel's routes are followed again");
        }
        Ok(())
    }

    fn dump_objects(&mut self) -> Result<Tables, Error> {
        let mut fresh = Tables::new(&self.interfaces);
        let addresses = RouteNetlinkMessage::GetAddress(AddressMessage::default());
        let neighbours = RouteNetlinkMessage::GetNeighbour(NeighbourMessage::default());
        for link in self.handle.links()? {
            apply_one(&mut fresh, &RouteNetlinkMessage::NewLink(link));
        }
        for request in [addresses, neighbours] {
            for message in self.handle.dump(request)? {
                apply_one(&mut fresh, &message);
            }
        }
        Ok(fresh)
    }

    fn dump_rules(&mut self) -> Result<Vec<rules::Rule>, Error> {
        let mut found = Vec::new();
        for family in Family::BOTH {
            let mut query = RuleMessage::default();
            query.header.family = message::family_number(family);
            for message in self.handle.dump(RouteNetlinkMessage::GetRule(query))? {
                if let RouteNetlinkMessage::NewRule(rule) = message {
                    // A kernel without IPv6 tells of IPv4's rules once more.
                    found.extend(message::rule(&rule).filter(|rule| rule.family == family));
                }
            }
        }
        Ok(found)
    }

    fn dump_routes(&mut self, family: Family, rules: &[rules::Rule]) -> Result<Routing, Error> {
        let mut routing = Routing::default();
        let order = {
            let tables = self.hops.tables.read();
            rules::order(rules, family, &self.device, |name| tables.links.is_name_of_ours(name))
        };
        match order {
            Ok(order) => routing.order = order,
            Err(rule) => routing.detour = Some(format!("the policy rule `{rule}`")),
        }
        if routing.detour.is_some() {
            // Not for ways, but for the choice of a source address.
            routing.order = [libc::RT_TABLE_LOCAL, libc::RT_TABLE_MAIN, libc::RT_TABLE_DEFAULT]
                .map(|table| u32::from(table).into())
                .to_vec();
        }
        let mut query = RouteMessage::default();
        query.header.address_family = message::family_number(family);
        for message in self.handle.dump(RouteNetlinkMessage::GetRoute(query))? {
            let RouteNetlinkMessage::NewRoute(route) = message else {
                continue;
            };
            let wanted = |table| table != SERVICES_TABLE && table != DIVERT_TABLE;
            if let Some((of, table, net, route)) = message::route(&route)
                && of == family
                && wanted(table)
            {
                routing.tables.entry(table).or_default().add(net, route);
            }
        }
        Ok(routing)
    }

    fn report(&self, family: Family, detour: Option<&str>) {
        let before = self.hops.detour(family);
        if before.as_deref() == detour {
            return;
        }
        let name = match family {
            Family::V4 => "IPv4",
            Family::V6 => "IPv6",
        };
        match detour {
            Some(reason) => tracing::warn!(
                "all {name} packets go through the kernel, which is slower, because of {reason}; lbd sends them itself \
                 when that rule is gone, or is only for marked packets or other devices"
            ),
            None => tracing::info!("{name} packets are sent by lbd itself"),
        }
    }
}

/// Applies a datagram of changes.
fn apply(hops: &NextHops, mut datagram: &[u8]) -> Option<Due> {
    let mut messages = Vec::new();
    let mut due = None;
    while let Some((heard, rest)) = split(datagram) {
        datagram = rest;
        match heard {
            Heard::Message(message) => messages.push(message),
            Heard::NextHop => due = due.max(Some(Due::Routes)),
            Heard::Unreadable => due = Some(Due::Everything),
        }
    }
    let change = hops.change(|tables| {
        let changes = messages.iter().map(|message| apply_one(tables, message));
        changes.fold(Change::NOTHING, |all, one| all | one)
    });
    due.max(change.routes.then_some(Due::Routes))
}

/// One message of a datagram.
enum Heard {
    Message(RouteNetlinkMessage),
    /// About a nexthop object: routes that use it lead elsewhere.
    NextHop,
    Unreadable,
}

/// `RTM_NEWNEXTHOP` and `RTM_DELNEXTHOP` of include/uapi/linux/rtnetlink.h
const NEXT_HOP_MESSAGES: [u16; 2] = [104, 105];

/// The first message, and the rest.
fn split(datagram: &[u8]) -> Option<(Heard, &[u8])> {
    let (header, _) = datagram.split_first_chunk::<6>()?;
    let [a, b, c, d, kind @ ..] = *header;
    let length = u32::from_ne_bytes([a, b, c, d]) as usize;
    if length < header.len() || length > datagram.len() {
        return Some((Heard::Unreadable, &[]));
    }
    let rest = datagram.get(length.next_multiple_of(4)..).unwrap_or(&[]);
    if NEXT_HOP_MESSAGES.contains(&u16::from_ne_bytes(kind)) {
        return Some((Heard::NextHop, rest));
    }
    let payload =
        NetlinkMessage::<RouteNetlinkMessage>::deserialize(&datagram[..length]).map(|message| message.payload);
    let heard = match payload {
        Ok(NetlinkPayload::InnerMessage(message)) => Heard::Message(message),
        Ok(_) | Err(_) => Heard::Unreadable,
    };
    Some((heard, rest))
}

fn apply_one(tables: &mut Tables, message: &RouteNetlinkMessage) -> Change {
    use RouteNetlinkMessage as Told;
    let change = if let Told::NewLink(link) = message {
        message::link(link).map(|(index, link)| tables.set_link(index, link))
    } else if let Told::DelLink(link) = message {
        message::is_of_device(link).then(|| tables.remove_link(link.header.index))
    } else if let Told::NewAddress(address) = message {
        message::address(address).map(|(device, address)| tables.set_address(device, address))
    } else if let Told::DelAddress(address) = message {
        message::address(address).map(|(device, address)| tables.remove_address(device, address))
    } else if let Told::NewNeighbour(neighbour) = message {
        message::neighbour(neighbour).map(|(key, neighbour)| tables.set_neighbour(key, neighbour))
    } else if let Told::DelNeighbour(neighbour) = message {
        message::neighbour(neighbour).map(|(key, _)| tables.remove_neighbour(key))
    } else {
        // Routes or rules.
        return Change::UNTOLD;
    };
    change.unwrap_or(Change::NOTHING)
}
