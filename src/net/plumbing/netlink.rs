//! A synchronous netlink socket: many requests a send, dumps, and who of them was refused.
use std::io;
use std::net::IpAddr;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkAttribute, LinkMessage};
use netlink_packet_route::neighbour::NeighbourMessage;
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};

use super::error::Error;
use super::halt::Halt;
use super::message::{self, Context};
use super::object::{Object, Step};

/// Requests a send: about 12 KB, and even if all are refused their answers fit into the default receive buffer
/// (212,992 bytes, below 1 KB for each answer of a capped length).
const BATCH: usize = 128;

/// Look-ups a send: each has two answers, of which the receive buffer holds some hundred.
const LOOKUPS: usize = 32;

/// More than the largest datagram of a dump (`netlink_dump` allocates 32 KB at most).
const RECEIVE_BUFFER: usize = 64 * 1024;

/// So often a dump is asked for that changes interrupt each time: for longer than a burst of them lasts.
const DUMPS: u32 = 100;

/// A connection to the kernel's routing.
#[derive(Debug)]
pub(crate) struct Handle {
    socket: Socket,
    sequence: u32,
}

/// What became of a list of steps.
#[derive(Debug)]
pub(super) struct Outcome {
    /// Those that the kernel has carried out, in order.
    pub(super) done: Vec<Step>,
    /// The first refusal; later batches were not sent.
    pub(super) error: Option<Error>,
    /// How many steps were sent.
    sent: usize,
}

impl Handle {
    pub(crate) fn open() -> Result<Self, Error> {
        let open = || {
            let mut socket = Socket::new(NETLINK_ROUTE)?;
            socket.bind_auto()?;
            socket.connect(&SocketAddr::new(0, 0))?;
            socket.set_cap_ack(true)?;
            // Lets the kernel filter a dump by table, instead of sending every route of the host (Linux 4.20).
            socket.set_netlink_get_strict_chk(true)?;
            Ok(Self { socket, sequence: 0 })
        };
        open().map_err(|source| Error::Netlink {
            what: "open a socket",
            source,
        })
    }

    /// Carries out `steps` until the first batch in which one is refused, or until `halt` is set.
    pub(super) fn run(&mut self, steps: &[Step], context: Context, halt: &Halt) -> Outcome {
        let mut outcome = Outcome {
            done: Vec::new(),
            error: None,
            sent: 0,
        };
        for batch in batches(steps) {
            if halt.is_set() {
                outcome.error = Some(Error::Halted);
                break;
            }
            outcome.sent += batch.len();
            match self.run_batch(batch, &context) {
                Ok(refusals) => outcome.record(batch, refusals),
                Err(error) => outcome.error = Some(error),
            }
            if outcome.error.is_some() {
                break;
            }
        }
        outcome
    }

    /// Carries out `steps`, going on after a refusal, but not past the host's local table. Yields the first refusal.
    pub(super) fn run_all(&mut self, mut steps: &[Step], context: Context) -> Option<Error> {
        let mut first = None;
        while !steps.is_empty() {
            let outcome = self.run(steps, context.clone(), &Halt::default());
            let error = outcome.error?;
            let stuck = steps[outcome.sent - 1].is_barrier();
            steps = &steps[outcome.sent..];
            first.get_or_insert(error);
            if stuck {
                break;
            }
        }
        first
    }

    /// Carries out those of `steps`, all of them installations, whose objects are missing, and yields them, with the first
    /// refusal. It goes on after one, but then leaves the host's local table where it is.
    pub(super) fn put_back(&mut self, steps: &[Step], context: &Context) -> (Vec<Step>, Result<(), Error>) {
        let mut done = Vec::new();
        let mut result = Ok(());
        for batch in batches(steps) {
            if result.is_err() && batch.iter().any(Step::is_barrier) {
                continue;
            }
            let mut refusals = match self.run_batch(batch, context) {
                Ok(refusals) => refusals,
                Err(error) => return (done, result.and(Err(error))),
            };
            let missing = (0..batch.len()).filter(|index| refusals.iter().all(|(refused, _)| refused != index));
            done.extend(missing.map(|index| batch[index].clone()));
            refusals.retain(|(index, refusal)| !is_there(&batch[*index], refusal));
            if let Some((index, source)) = refusals.into_iter().next() {
                let what = batch[index].to_string();
                result = result.and(Err(Error::Refused { what, source }));
            }
        }
        (done, result)
    }

    /// One request, acknowledged.
    pub(super) fn request(&mut self, message: &RouteNetlinkMessage, flags: u16, what: String) -> Result<(), Error> {
        let refusals = self.exchange(&[(message.clone(), flags)])?;
        match refusals.into_iter().next() {
            Some((_, source)) => Err(Error::Refused { what, source }),
            None => Ok(()),
        }
    }

    /// The device `name`.
    pub(super) fn link(&mut self, name: &str) -> Result<LinkMessage, Error> {
        let mut query = LinkMessage::default();
        query.attributes.push(LinkAttribute::IfName(name.into()));
        let what = || format!("ip link show {name}");
        let found = self
            .find_link(query)
            .map_err(|source| Error::Refused { what: what(), source })?;
        let missing = || io::Error::from_raw_os_error(libc::ENODEV);
        found.ok_or_else(|| Error::Refused {
            what: what(),
            source: missing(),
        })
    }

    /// The device with this number, unless it is gone.
    pub(super) fn link_of(&mut self, index: u32) -> Result<Option<LinkMessage>, Error> {
        let mut query = LinkMessage::default();
        query.header.index = index;
        match self.find_link(query) {
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(None),
            found => found.map_err(|source| Error::Netlink {
                what: "look at a link",
                source,
            }),
        }
    }

    fn find_link(&mut self, query: LinkMessage) -> io::Result<Option<LinkMessage>> {
        let found = self.query(RouteNetlinkMessage::GetLink(query), 0)?;
        Ok(found.into_iter().find_map(|message| {
            if let RouteNetlinkMessage::NewLink(link) = message {
                Some(link)
            } else {
                None
            }
        }))
    }

    /// All devices.
    pub(crate) fn links(&mut self) -> Result<Vec<LinkMessage>, Error> {
        let dumped = self.dump(RouteNetlinkMessage::GetLink(LinkMessage::default()))?;
        Ok(dumped
            .into_iter()
            .filter_map(|message| {
                if let RouteNetlinkMessage::NewLink(link) = message {
                    Some(link)
                } else {
                    None
                }
            })
            .collect())
    }

    /// Everything that `request` asks for.
    pub(crate) fn dump(&mut self, request: RouteNetlinkMessage) -> Result<Vec<RouteNetlinkMessage>, Error> {
        let dumped = self.query(request, NLM_F_DUMP);
        dumped.map_err(|source| Error::Netlink {
            what: "list links, addresses, routes or rules",
            source,
        })
    }

    /// Like [`Self::dump`]; a table that does not exist is empty (ENOENT, `inet_dump_fib`).
    pub(super) fn dump_if_any(&mut self, request: RouteNetlinkMessage) -> Result<Vec<RouteNetlinkMessage>, Error> {
        match self.query(request, NLM_F_DUMP) {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(Vec::new()),
            dumped => dumped.map_err(|source| Error::Netlink {
                what: "list routes",
                source,
            }),
        }
    }

    /// The neighbour that `query` names, unless the kernel has none.
    pub(crate) fn neighbour(&mut self, query: NeighbourMessage) -> Result<Option<NeighbourMessage>, Error> {
        let found = match self.query(RouteNetlinkMessage::GetNeighbour(query), 0) {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(Vec::new()),
            found => found,
        };
        let found = found.map_err(|source| Error::Netlink {
            what: "look at a neighbour",
            source,
        })?;
        Ok(found.into_iter().find_map(|message| {
            if let RouteNetlinkMessage::NewNeighbour(neighbour) = message {
                Some(neighbour)
            } else {
                None
            }
        }))
    }

    /// Whether the host reaches each address on a link, or by a route to it alone: then it is another host's. Any other route may
    /// lead to who sends it back here.
    pub(super) fn are_other_hosts(&mut self, addresses: &[IpAddr], halt: &Halt) -> Result<Vec<bool>, Error> {
        let mut told = Vec::with_capacity(addresses.len());
        for some in addresses.chunks(LOOKUPS) {
            if halt.is_set() {
                return Err(Error::Halted);
            }
            let answers = self.look_up(some).map_err(|source| Error::Netlink {
                what: "look up a route",
                source,
            })?;
            told.extend(answers);
        }
        Ok(told)
    }

    fn look_up(&mut self, addresses: &[IpAddr]) -> io::Result<Vec<bool>> {
        let mut buffer = Vec::new();
        let first = self.sequence.wrapping_add(1);
        for &address in addresses {
            let way = RouteNetlinkMessage::GetRoute(message::way_to(address));
            self.append(&mut buffer, &way, NLM_F_REQUEST | NLM_F_ACK);
        }
        self.send(&buffer)?;
        // Refused is what has no route, or one that refuses (`inet_rtm_getroute`).
        let mut told = vec![false; addresses.len()];
        self.receive_until(self.sequence, |header, payload| {
            let place = header.sequence_number.wrapping_sub(first) as usize;
            if let (NetlinkPayload::InnerMessage(way), Some(told)) = (&payload, told.get_mut(place)) {
                *told |= message::leads_to_one_host(way);
            }
            Ok(())
        })?;
        Ok(told)
    }

    /// Sends all `requests`, each with its flags; yields what was refused.
    pub(crate) fn request_all(&mut self, requests: &[(RouteNetlinkMessage, u16)]) -> Result<Vec<io::Error>, Error> {
        let mut refusals = Vec::new();
        for batch in requests.chunks(BATCH) {
            refusals.extend(self.exchange(batch)?.into_iter().map(|(_, refusal)| refusal));
        }
        Ok(refusals)
    }

    /// Sends all `deletions`; what is gone already is no error.
    pub(super) fn delete_all(&mut self, deletions: &[RouteNetlinkMessage], what: &str) -> Result<(), Error> {
        for batch in deletions.chunks(BATCH) {
            let batch: Vec<_> = batch.iter().map(|message| (message.clone(), 0)).collect();
            let refusals = self.exchange(&batch)?;
            let refused = refusals
                .into_iter()
                .find(|(_, error)| error.raw_os_error() != Some(libc::ENOENT));
            if let Some((_, source)) = refused {
                return Err(Error::Refused {
                    what: what.into(),
                    source,
                });
            }
        }
        Ok(())
    }

    /// A dump comes in pieces. What changes between two may hide entries that did not change, which the kernel then tells
    /// (`nl_dump_check_consistent`, include/net/netlink.h).
    fn query(&mut self, request: RouteNetlinkMessage, flags: u16) -> io::Result<Vec<RouteNetlinkMessage>> {
        for _ in 0..DUMPS {
            if let Some(answers) = self.try_query(&request, flags)? {
                return Ok(answers);
            }
        }
        Err(io::Error::other("they changed each time while they were listed"))
    }

    /// None: a change came in between.
    fn try_query(&mut self, request: &RouteNetlinkMessage, flags: u16) -> io::Result<Option<Vec<RouteNetlinkMessage>>> {
        let mut buffer = Vec::new();
        let flags = flags | NLM_F_REQUEST | if flags & NLM_F_DUMP == 0 { NLM_F_ACK } else { 0 };
        let last = self.append(&mut buffer, request, flags);
        self.send(&buffer)?;
        let mut answers = Vec::new();
        let mut interrupted = false;
        self.receive_until(last, |header, payload| {
            interrupted |= header.flags & NLM_F_DUMP_INTR != 0;
            if let NetlinkPayload::InnerMessage(message) = payload {
                answers.push(message);
                return Ok(());
            }
            refusal(&payload).map_or(Ok(()), Err)
        })?;
        Ok((!interrupted).then_some(answers))
    }

    fn run_batch(&mut self, batch: &[Step], context: &Context) -> Result<Vec<(usize, io::Error)>, Error> {
        let messages: Vec<_> = batch.iter().map(|step| message::of_step(step, context)).collect();
        self.exchange(&messages)
    }

    /// Sends all `messages` at once; yields which of them were refused. Only the last one asks for an
    /// acknowledgement: the kernel works through them in order, and refusals are always reported (`netlink_rcv_skb`).
    fn exchange(&mut self, messages: &[(RouteNetlinkMessage, u16)]) -> Result<Vec<(usize, io::Error)>, Error> {
        let mut buffer = Vec::new();
        let first = self.sequence.wrapping_add(1);
        let mut last = first;
        for (position, (message, flags)) in messages.iter().enumerate() {
            let ack = if position + 1 == messages.len() { NLM_F_ACK } else { 0 };
            last = self.append(&mut buffer, message, flags | NLM_F_REQUEST | ack);
        }
        let mut refusals = Vec::new();
        let exchanged = self.send(&buffer).and_then(|()| {
            self.receive_until(last, |header, payload| {
                if let Some(error) = refusal(&payload) {
                    refusals.push((header.sequence_number.wrapping_sub(first) as usize, error));
                }
                Ok(())
            })
        });
        exchanged.map_err(|source| Error::Netlink {
            what: "change routes and rules",
            source,
        })?;
        Ok(refusals)
    }

    fn append(&mut self, buffer: &mut Vec<u8>, message: &RouteNetlinkMessage, flags: u16) -> u32 {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = flags;
        header.sequence_number = self.sequence;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::from(message.clone()));
        message.finalize();
        let start = buffer.len();
        // NLMSG_ALIGN: messages start at multiples of four.
        buffer.resize(start + message.buffer_len().next_multiple_of(4), 0);
        message.serialize(&mut buffer[start..]);
        self.sequence
    }

    fn send(&self, buffer: &[u8]) -> io::Result<()> {
        let sent = self.socket.send(buffer, 0)?;
        if sent == buffer.len() {
            Ok(())
        } else {
            Err(io::ErrorKind::WriteZero.into())
        }
    }

    /// Receives until the acknowledgement, refusal or end of dump of request `last`.
    fn receive_until(
        &self,
        last: u32,
        mut each: impl FnMut(NetlinkHeader, NetlinkPayload<RouteNetlinkMessage>) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut buffer = Vec::with_capacity(RECEIVE_BUFFER);
        loop {
            buffer.clear();
            receive(&self.socket, &mut buffer)?;
            let mut rest = buffer.as_slice();
            while let Some((message, after)) = split(rest)? {
                rest = after;
                let (header, payload) = message.into_parts();
                let ends = matches!(payload, NetlinkPayload::Error(_) | NetlinkPayload::Done(_));
                each(header, payload)?;
                if ends && header.sequence_number == last {
                    return Ok(());
                }
            }
        }
    }
}

/// A request is refused by an error, a dump that fails on its way by its end (`netlink_dump_done`, af_netlink.c).
fn refusal(payload: &NetlinkPayload<RouteNetlinkMessage>) -> Option<io::Error> {
    if let NetlinkPayload::Error(error) = payload {
        error.code.map(|_| error.to_io())
    } else if let NetlinkPayload::Done(done) = payload {
        (done.code < 0).then(|| io::Error::from_raw_os_error(-done.code))
    } else {
        None
    }
}

/// Runs of at most [`BATCH`] steps. The kernel goes on after a refusal within a send, so a barrier stands alone, and
/// removals never go along with the additions that must have worked before.
fn batches(steps: &[Step]) -> impl Iterator<Item = &[Step]> {
    let joined = |left: &Step, right: &Step| {
        !left.is_barrier() && !right.is_barrier() && left.is_removal() == right.is_removal()
    };
    steps.chunk_by(joined).flat_map(|run| run.chunks(BATCH))
}

fn receive(socket: &Socket, buffer: &mut Vec<u8>) -> io::Result<()> {
    loop {
        match socket.recv(buffer, 0) {
            Ok(_) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

type Message = NetlinkMessage<RouteNetlinkMessage>;

/// The first message of a datagram, and the rest.
fn split(datagram: &[u8]) -> io::Result<Option<(Message, &[u8])>> {
    let Some(length) = datagram.first_chunk::<4>() else {
        return Ok(None);
    };
    let length = u32::from_ne_bytes(*length) as usize;
    let Some(bytes) = datagram.get(..length) else {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "a netlink message was cut short",
        ));
    };
    let message = Message::deserialize(bytes);
    let message = message.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
    let rest = datagram.get(length.next_multiple_of(4)..).unwrap_or(&[]);
    Ok(Some((message, rest)))
}

impl Outcome {
    fn record(&mut self, batch: &[Step], mut refusals: Vec<(usize, io::Error)>) {
        refusals.retain(|(index, refusal)| !is_already_so(&batch[*index], refusal));
        let is_refused = |index: &usize| refusals.iter().any(|(refused, _)| refused == index);
        let done = (0..batch.len()).filter(|index| !is_refused(index));
        self.done.extend(done.map(|index| batch[index].clone()));
        let first = refusals.into_iter().next();
        self.error = first.map(|(index, source)| Error::Refused {
            what: batch[index].to_string(),
            source,
        });
    }
}

/// What is to be put back is there.
fn is_there(step: &Step, refusal: &io::Error) -> bool {
    let code = refusal.raw_os_error();
    match step {
        Step::Install(Object::NoFirstLocalRule(..)) => code == Some(libc::ENOENT),
        Step::Install(Object::Route(_) | Object::Rule(_)) => code == Some(libc::EEXIST),
        Step::Undo(_) => false,
    }
}

/// What is to be undone is undone already: the object is gone, or the rule at priority 0 is back.
fn is_already_so(step: &Step, refusal: &io::Error) -> bool {
    let code = refusal.raw_os_error();
    match step {
        Step::Undo(Object::NoFirstLocalRule(..)) => code == Some(libc::EEXIST),
        Step::Undo(Object::Route(_) | Object::Rule(_)) => {
            [libc::ENOENT, libc::ESRCH, libc::ENODEV].map(Some).contains(&code)
        }
        Step::Install(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plumbing::object::{Family, KERNEL};

    #[test]
    fn the_change_of_the_local_rule_is_sent_alone() {
        let first = Step::Undo(Object::NoFirstLocalRule(Family::V4, KERNEL));
        let rule = || {
            let net = "10.0.0.0/8".parse().unwrap();
            let target = crate::plumbing::object::Target::Unreachable;
            Step::Install(Object::Route(crate::plumbing::object::Route { net, table: 1, target }))
        };
        let mut steps: Vec<Step> = (0..200).map(|_| rule()).collect();
        steps.push(first);
        steps.push(rule());
        let sizes: Vec<usize> = batches(&steps).map(<[Step]>::len).collect();
        assert_eq!(sizes, [128, 72, 1, 1]);
    }

    #[test]
    fn a_cut_short_datagram_is_an_error_and_no_panic() {
        assert!(split(&[40, 0, 0, 0, 1]).is_err());
        assert!(split(&[3, 0, 0]).unwrap().is_none());
        assert!(split(&[0; 16]).is_err());
    }
}
