//! Ports for flows whose client the backend does not see.
use std::net::IpAddr;

use super::shard::Shard;
use super::timeout::Timeouts;
use super::{Conntrack, Refused};
use crate::conntrack::connection::Connection;
use crate::flow::ports::PortSet;
use crate::flow::{Direction, Endpoint, Key, Protocol};
use crate::scheduler::Rng;
use crate::time::Instant;

/// Free ports that are looked at in vain before a share counts as full: flows that are not masqueraded may have them.
const MOST_TRIES: usize = 64;

/// What is to stand for a client.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// Who it is.
    pub client: Endpoint,
    /// The transport protocol.
    pub protocol: Protocol,
    /// Which server it is to speak to.
    pub server: Endpoint,
    /// The ports that may stand for it.
    pub ports: &'a PortSet,
}

impl Wanted<'_> {
    /// The key of the server's packets to a port of `address`.
    fn reply(&self, address: IpAddr, port: u16) -> Key {
        let server = (self.server.address.into(), self.server.port);
        Key::new(self.protocol, server, (address.into(), port))
    }
}

/// The shards that a search goes through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// The client's own. Its flow is found there with one lock.
    Own,
    /// All others.
    Others,
}

impl Conntrack {
    /// A port of one of `addresses` that no flow has towards the server; among those of a share the one that has been free
    /// longest, give or take 64.
    pub fn free_port(
        &self,
        wanted: &Wanted<'_>,
        addresses: impl Iterator<Item = IpAddr> + Clone,
        reach: Reach,
        now: Instant,
        rng: &mut Rng,
    ) -> Option<Endpoint> {
        self.search(wanted.client, reach, rng, |home, rng| {
            self.in_shard(home, |shard| {
                addresses.clone().find_map(|address| {
                    let share = self.share(home, address);
                    let port = shard.free_port(
                        &wanted.reply(address, 0),
                        (share, self.allowed(wanted, share)),
                        now,
                        rng,
                    )?;
                    Some(Endpoint::new(address, port))
                })
            })
        })
    }

    /// The same where all are taken: the port of a flow that yields, which is forgotten. `tries` counts down with each flow that
    /// is looked at; at 0 the search ends.
    pub fn yielded_port(
        &self,
        wanted: &Wanted<'_>,
        addresses: impl Iterator<Item = IpAddr> + Clone,
        (reach, timeouts): (Reach, &Timeouts),
        (now, rng): (Instant, &mut Rng),
        tries: &mut usize,
    ) -> Option<Endpoint> {
        self.search(wanted.client, reach, rng, |home, _| {
            self.in_shard(home, |shard| {
                addresses.clone().find_map(|address| {
                    let share = self.share(home, address);
                    let server = wanted.reply(address, 0);
                    let port =
                        shard.yielded_port(&server, (share, self.allowed(wanted, share)), (timeouts, now), tries)?;
                    Some(Endpoint::new(address, port))
                })
            })
        })
    }

    /// No address and port is left towards a server. Noted once a tick and worker at most.
    pub fn note_exhausted(&self, protocol: Protocol, server: Endpoint) {
        *self.exhausted.lock() = Some((protocol, server));
    }

    /// The server that was noted last to have no address and port left towards it, since this was asked last.
    pub fn take_exhausted(&self) -> Option<(Protocol, Endpoint)> {
        self.exhausted.lock().take()
    }

    /// Asks the client's own shard, or all others from any one on.
    fn search(
        &self,
        client: Endpoint,
        reach: Reach,
        rng: &mut Rng,
        mut ask: impl FnMut(u32, &mut Rng) -> Option<Endpoint>,
    ) -> Option<Endpoint> {
        let (own, count) = (self.shard_index(&client), self.shards.len());
        match reach {
            Reach::Own => ask(own as u32, rng),
            Reach::Others if count == 1 => None,
            Reach::Others => {
                let first = rng.usize(..count);
                let mut others = (0..count)
                    .map(|step| (first + step) % count)
                    .filter(|&home| home != own);
                others.find_map(|home| ask(home as u32, rng))
            }
        }
    }

    /// Runs `act`, which may remove flows, on a locked shard.
    pub(super) fn in_shard<R>(&self, home: u32, act: impl FnOnce(&mut Shard) -> R) -> R {
        let mut shard = self.lock(home);
        let result = self.accounted(&mut shard, act);
        self.release(shard);
        result
    }

    /// Which share of the ports of `address` leads to a shard.
    fn share(&self, home: u32, address: IpAddr) -> usize {
        let shares = self.shards.len();
        (home as usize).wrapping_sub(self.home(address.into(), 0) as usize) & (shares - 1)
    }

    fn allowed<'a>(&self, wanted: &Wanted<'a>, share: usize) -> &'a [u64] {
        wanted.ports.share(share, self.shards.len())
    }

    /// Stores a flow in the shard of its port, with a note in that of its client.
    pub(super) fn insert_away(&self, connection: Connection, now: Instant) -> Result<(), Refused> {
        let original = Key::from(connection.arriving(Direction::Original));
        let [of_client, home] = [connection.client, connection.source].map(|end| self.shard_index(&end) as u32);
        match self.announce(of_client, &original, home, now) {
            Ok(ticket) => self
                .store(home, connection, Some(ticket), now)
                .inspect_err(|_| self.lock(of_client).away.forget(&original, ticket)),
            Err(refused) => {
                self.give_back_room();
                Err(refused)
            }
        }
    }

    /// Notes in a client's shard that its flow will be in another one; the key of its packets must be nobody's there.
    fn announce(&self, of_client: u32, original: &Key, host: u32, now: Instant) -> Result<u32, Refused> {
        if !self.is_vacant(of_client, original, now) {
            return Err(Refused::InUse);
        }
        let hash = self.hash(original);
        self.in_shard(of_client, |shard| {
            let is_free = shard.away.host(original).is_none() && shard.is_free(original, hash, now);
            is_free.then(|| shard.away.note(*original, host)).ok_or(Refused::InUse)
        })
    }

    /// Whether no other shard has a flow with a client's packets, by what its own shard knows; a note that is out of date is
    /// forgotten.
    pub(super) fn is_vacant(&self, of_client: u32, original: &Key, now: Instant) -> bool {
        let Some(host) = self.lock(of_client).away.host(original) else {
            return true;
        };
        let is_alive = self.lock(host).find(original, self.hash(original), now).is_some();
        if !is_alive {
            self.lock(of_client).away.forget_all(original);
        }
        !is_alive
    }

    /// Tells other shards of flows that are gone from this one.
    pub(super) fn forget_departed(&self, departed: Vec<(Key, u32)>) {
        for (original, ticket) in departed {
            let of_client = self.home(original.source, original.source_port());
            self.lock(of_client).away.forget(&original, ticket);
        }
    }
}

impl Shard {
    /// A port out of a share that no flow has towards `server`, the key of its packets to port 0. Of the share, `allowed` has a
    /// bit for each port that may be given.
    fn free_port(
        &mut self,
        server: &Key,
        (share, allowed): (usize, &[u64]),
        now: Instant,
        rng: &mut Rng,
    ) -> Option<u16> {
        for _ in 0..MOST_TRIES {
            let place = self.allocator.next_free(server, allowed, rng)?;
            let port = self.allocator.port(share, place);
            let key = server.with_destination_port(port);
            let hash = self.hash(&key);
            if self.is_free(&key, hash, now) {
                return Some(port);
            }
        }
        None
    }

    /// The port of a flow that yields, from where the last search ended on.
    fn yielded_port(
        &mut self,
        server: &Key,
        (share, allowed): (usize, &[u64]),
        (timeouts, now): (&Timeouts, Instant),
        tries: &mut usize,
    ) -> Option<u16> {
        let hand = self.allocator.hand(server);
        for (begin, end) in [(hand, self.allocator.places()), (0, hand)] {
            let mut from = begin;
            while let Some(place) = self
                .allocator
                .next_taken(server, allowed, from)
                .filter(|&place| place < end)
            {
                let port = self.allocator.port(share, place);
                let key = server.with_destination_port(port);
                let hash = self.hash(&key);
                self.allocator.set_hand(server, place + 1);
                if self.reclaim(&key, hash, timeouts, now) {
                    return Some(port);
                }
                *tries = tries.checked_sub(1)?;
                from = place + 1;
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use ahash::RandomState;

    use super::*;
    use crate::conntrack::Sweep;
    use crate::conntrack::connection::{Dialogue, State};
    use crate::conntrack::window::Window;
    use crate::policy::BackendSpec;
    use crate::service::{Backend, ServiceIdentity};

    const NOW: Instant = Instant::from_nanos(1_000_000_000_000);
    const OWN: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));

    fn table(workers: usize, ports: &PortSet) -> Conntrack {
        Conntrack::new(workers, ports.len(), 1 << 20, RandomState::with_seeds(1, 2, 3, 4), NOW)
    }

    fn backend() -> Arc<Backend> {
        let spec = BackendSpec {
            address: "10.2.0.11:8080".parse().unwrap(),
            weight: 1,
            upper_threshold: 0,
            lower_threshold: 0,
        };
        Arc::new(Backend::new(1, &spec, Arc::new(ServiceIdentity::new(1, "web")), 1))
    }

    fn flow(backend: &Arc<Backend>, client: Endpoint, source: Endpoint) -> Connection {
        Connection {
            protocol: Protocol::Udp,
            client,
            virtual_address: "10.96.0.10:80".parse().unwrap(),
            source,
            backend: Arc::clone(backend),
            template: None,
            state: State::Udp,
            dialogue: Dialogue::Continued,
            window: Window::default(),
            opened: NOW,
            expires: NOW + Duration::from_secs(300),
        }
    }

    /// Has one client open flows from these ports until no port is left to stand for it.
    fn fill(table: &Conntrack, ports: &PortSet, from: impl Iterator<Item = u16>) -> Vec<Connection> {
        let (backend, mut rng, mut flows) = (backend(), Rng::with_seed(1), Vec::new());
        for port in from {
            let client = Endpoint::new([10, 1, 0, 2].into(), port);
            let wanted = Wanted {
                client,
                protocol: Protocol::Udp,
                server: backend.address,
                ports,
            };
            let mut free = |reach| table.free_port(&wanted, std::iter::once(OWN), reach, NOW, &mut rng);
            let Some(source) = free(Reach::Own).or_else(|| free(Reach::Others)) else {
                break;
            };
            assert!(ports.contains(source.port), "{source}");
            let flow = flow(&backend, client, source);
            table.insert(flow.clone(), NOW).unwrap();
            flows.push(flow);
        }
        flows
    }

    fn notes(table: &Conntrack) -> usize {
        table.shards.iter().map(|shard| shard.lock().away.notes()).sum()
    }

    #[test]
    fn one_client_has_all_ports_whatever_it_chooses_its_own_by_and_however_many_workers_there_are() {
        for workers in [1, 2, 16] {
            for (first, step) in [(1_024, 1), (32_768, 2), (2_000, 8)] {
                let ports = PortSet::from(61_000..=65_535);
                let table = table(workers, &ports);
                let flows = fill(&table, &ports, (first..=u16::MAX).step_by(step));
                assert_eq!(flows.len(), ports.len(), "{workers} workers, each {step}th port");
                for flow in &flows {
                    for way in [Direction::Original, Direction::Reply] {
                        let (found, direction) = table.get(&flow.arriving(way), NOW).unwrap();
                        assert_eq!((found.source, direction), (flow.source, way));
                    }
                }
            }
        }
    }

    #[test]
    fn a_client_has_ports_of_its_own_share_as_long_as_there_are_some() {
        let ports = PortSet::from(1_024..=65_535);
        let table = table(2, &ports);
        assert_eq!(fill(&table, &ports, (32_768..50_000).step_by(2)).len(), 8_616);
        assert_eq!(notes(&table), 0, "flows that live elsewhere");
    }

    #[test]
    fn nothing_is_left_of_flows_that_lived_in_another_shard() {
        let ports = PortSet::from(61_000..=65_535);
        let table = table(2, &ports);
        let flows = fill(&table, &ports, 1_024..=u16::MAX);
        assert!(notes(&table) > 0);
        // Opened again, as a client does whose connection is over: with its note it is another flow's.
        assert!(matches!(table.insert(flows[4_535].clone(), NOW), Err(Refused::InUse)));
        let later = NOW + Duration::from_secs(600);
        let mut sweep = Sweep::new(0, 1);
        table.begin(&mut sweep);
        while sweep.is_under_way() {
            table.expire(&mut sweep, later);
        }
        assert_eq!((table.len(), notes(&table)), (0, 0));
        assert_eq!(fill(&table, &ports, 1_024..=u16::MAX).len(), ports.len());
    }

    #[test]
    fn a_note_that_is_out_of_date_is_in_nobodys_way() {
        let ports = PortSet::from(61_000..=65_535);
        let table = table(2, &ports);
        let client = Endpoint::new([10, 1, 0, 2].into(), 5_000);
        let flow = flow(&backend(), client, client);
        let original = Key::from(flow.arriving(Direction::Original));
        let home = table.shard_index(&client) as u32;
        table.lock(home).away.note(original, (home + 1) % 64);
        assert!(table.get(&flow.arriving(Direction::Original), NOW).is_none());
        table.insert(flow, NOW).unwrap();
        assert_eq!((table.len(), notes(&table)), (1, 0));
    }
}
