//! The sender that a backend sees: the client itself, or an address and port of lbd's own pool, or of this host
//! (masquerading).
use std::net::IpAddr;
use std::sync::LazyLock;

use ahash::HashMap;
use ipnet::IpNet;

use crate::conntrack::Conntrack;
use crate::conntrack::bypass::Sighting;
use crate::conntrack::connection::Tenant;
use crate::conntrack::masquerade::{Reach, Wanted};
use crate::conntrack::timeout::Timeouts;
use crate::conntrack::wheel::Tick;
use crate::flow::ports::PortSet;
use crate::flow::{Endpoint, Tuple};
use crate::policy::{Masquerade, Nat};
use crate::ruleset::Ruleset;
use crate::scheduler::Rng;
use crate::service::Backend;
use crate::time::Instant;

/// Ports below it are privileged and stay unused, as `nf_nat`'s default range for clients does.
pub static POOL_PORTS: LazyLock<PortSet> = LazyLock::new(|| PortSet::from(1024..=u16::MAX));

/// The most addresses of a pool that one search looks at.
const MOST_ADDRESSES: u128 = 64;

/// Flows that are asked to yield their port, by all searches of a tick together, before a search ends early: as many as an address
/// has ports.
const MAX_TRIES: usize = 1 << 16;

/// The most that a search asks after that (`attempts_left` in `nf_nat_l4proto_unique_tuple`, nf_nat_core.c).
const ENOUGH_TRIES: usize = 128;

/// Why there is no sender for a new flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoSource {
    /// Another flow to the same backend, or a connection past the services, has this client's address and port, and
    /// masquerading is forbidden.
    InUse,
    /// Every address and port of the pool is taken, or the pool has no address of this IP version.
    PoolExhausted,
}

/// Why a flow has the sender that it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// The client itself is the sender.
    Client,
    /// Every flow is masqueraded.
    Always,
    /// The client is on this node, so the reply would not come back through lbd.
    LocalClient,
    /// The backend reaches itself, so the reply would not come back through lbd.
    BackendItself,
    /// Another flow to the backend, or a connection past the services, has the client's address and port.
    InUse,
}

impl Why {
    /// `client`, `always`, `local_client`, `backend_itself` or `in_use`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Always => "always",
            Self::LocalClient => "local_client",
            Self::BackendItself => "backend_itself",
            Self::InUse => "in_use",
        }
    }
}

/// Whether the client is to be the sender, or why not.
fn wanted(ruleset: &Ruleset, client: &IpAddr, backend: &Backend) -> Why {
    match ruleset.policy.nat.masquerade {
        Masquerade::Always => Why::Always,
        Masquerade::Never => Why::Client,
        Masquerade::Auto if ruleset.is_local(client) => Why::LocalClient,
        Masquerade::Auto if *client == backend.address.address => Why::BackendItself,
        Masquerade::Auto => Why::Client,
    }
}

/// Whether a client's own address and port can be its sender towards a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Claim {
    Free,
    /// One side of a connection past the services was heard. It may be there; or a sender is forged, or it was the late answer of
    /// a flow that is forgotten. So such a client is masqueraded where that is possible, and never refused.
    Doubtful,
    Taken,
}

impl Claim {
    const fn of(tenant: Tenant, past_services: Option<Sighting>) -> Self {
        match (tenant, past_services) {
            (Tenant::Nobody, None) => Self::Free,
            (Tenant::Nobody, Some(Sighting::OneSided)) => Self::Doubtful,
            (Tenant::Nobody, Some(Sighting::Confirmed)) | (Tenant::Idle | Tenant::Busy, _) => Self::Taken,
        }
    }
}

/// What [`source`] would come to, without a trace: whether it would find a sender, and why that one. `tenant` says who has a
/// reply's tuple, and `bypass` what is known of a connection past the services that has it.
///
/// # Errors
/// As [`source`].
pub fn outlook(
    ruleset: &Ruleset,
    tuple: &Tuple,
    backend: &Backend,
    tenant: impl Fn(&Tuple) -> Tenant,
    bypass: impl Fn(&Tuple) -> Option<Sighting>,
) -> (Why, Result<(), NoSource>) {
    let reply = |source| Tuple {
        protocol: tuple.protocol,
        source: backend.server(tuple.destination.port),
        destination: source,
    };
    let client = tuple.source;
    let claim = || {
        let own = reply(client);
        Claim::of(tenant(&own), bypass(&own))
    };
    let is_never = ruleset.policy.nat.masquerade == Masquerade::Never;
    let (why, is_doubtful) = match wanted(ruleset, &client.address, backend) {
        Why::Client => match claim() {
            Claim::Free => return (Why::Client, Ok(())),
            Claim::Doubtful if is_never => return (Why::Client, Ok(())),
            Claim::Taken if is_never => return (Why::InUse, Err(NoSource::InUse)),
            Claim::Doubtful => (Why::InUse, true),
            Claim::Taken => (Why::InUse, false),
        },
        why @ (Why::Always | Why::LocalClient | Why::BackendItself | Why::InUse) => (why, false),
    };
    // Any place will do, so it does not matter where the search begins.
    let (addresses, ports) = stand_ins(ruleset, client.address, backend, &mut Rng::with_seed(0));
    let is_free = |place: Endpoint| tenant(&reply(place)) != Tenant::Busy;
    let places = addresses.flat_map(|address| ports.iter().map(move |port| Endpoint::new(address, port)));
    match places.take(MAX_TRIES).any(is_free) {
        true => (why, Ok(())),
        false if is_doubtful => (Why::Client, Ok(())),
        false => (why, Err(NoSource::PoolExhausted)),
    }
}

/// Towards which servers no port was found in this tick: to look again at every packet would cost the other flows dearly.
#[derive(Clone, Debug, Default)]
pub struct Exhausted {
    tick: Option<Tick>,
    servers: HashMap<Server, Lack>,
    /// Flows that were asked in vain in this tick to yield, towards all servers.
    tries: usize,
}

/// A backend, by its number and the port that is asked.
type Server = (u64, u16);

/// What there is none of towards a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lack {
    /// No free port in another share of the table.
    Free,
    /// Nor one of a flow that yields.
    Any,
}

impl Exhausted {
    fn begin(&mut self, tick: Tick) {
        if self.tick != Some(tick) {
            *self = Self {
                tick: Some(tick),
                ..Self::default()
            };
        }
    }

    fn of(&self, server: Server) -> Option<Lack> {
        self.servers.get(&server).copied()
    }

    /// After so many were asked in vain, all ports towards `server` are in use.
    fn note_vain(&mut self, server: Server, tries: usize) {
        self.tries += tries;
        self.servers.insert(server, Lack::Any);
    }

    /// How many flows may be asked to yield.
    const fn patience(&self) -> usize {
        if self.tries < MAX_TRIES {
            MAX_TRIES
        } else {
            ENOUGH_TRIES
        }
    }
}

/// Chooses the sender for a new flow from `tuple.source` to `backend`.
///
/// # Errors
/// When no sender is free.
pub fn source(
    ruleset: &Ruleset,
    conntrack: &Conntrack,
    tuple: &Tuple,
    backend: &Backend,
    now: Instant,
    rng: &mut Rng,
    exhausted: &mut Exhausted,
) -> Result<Endpoint, NoSource> {
    let client = tuple.source;
    if wanted(ruleset, &client.address, backend) != Why::Client {
        return stand_in(ruleset, conntrack, tuple, backend, now, rng, exhausted);
    }
    let timeouts = &ruleset.policy.conntrack.timeouts;
    let reply = Tuple {
        protocol: tuple.protocol,
        source: backend.server(tuple.destination.port),
        destination: client,
    };
    let claim = Claim::of(
        conntrack.tenant(&reply, timeouts, now),
        conntrack.bypass(&reply, timeouts, now),
    );
    // The same client port to the same backend, directly or through another service address: the replies could not be told
    // apart (kubernetes#90042), so this flow comes from the pool.
    match (claim, ruleset.policy.nat.masquerade == Masquerade::Never) {
        (Claim::Free, _) | (Claim::Doubtful, true) => Ok(client),
        (Claim::Taken, true) => Err(NoSource::InUse),
        (Claim::Taken, false) => stand_in(ruleset, conntrack, tuple, backend, now, rng, exhausted),
        (Claim::Doubtful, false) => {
            let other = stand_in(ruleset, conntrack, tuple, backend, now, rng, exhausted);
            other.or(Ok(client))
        }
    }
}

/// Finds a place that stands for the client.
fn stand_in(
    ruleset: &Ruleset,
    conntrack: &Conntrack,
    tuple: &Tuple,
    backend: &Backend,
    now: Instant,
    rng: &mut Rng,
    exhausted: &mut Exhausted,
) -> Result<Endpoint, NoSource> {
    let client = tuple.source;
    let timeouts = &ruleset.policy.conntrack.timeouts;
    let (addresses, ports) = stand_ins(ruleset, client.address, backend, rng);
    let wanted = Wanted {
        client,
        protocol: tuple.protocol,
        server: backend.server(tuple.destination.port),
        ports,
    };
    exhausted.begin(Tick::at(now));
    let search = Search {
        conntrack,
        wanted,
        addresses,
        timeouts,
        now,
    };
    search.run((backend.id, wanted.server.port), exhausted, rng)
}

/// A search for a port that may stand for a client.
struct Search<'a, A> {
    conntrack: &'a Conntrack,
    wanted: Wanted<'a>,
    addresses: A,
    timeouts: &'a Timeouts,
    now: Instant,
}

impl<A: Iterator<Item = IpAddr> + Clone> Search<'_, A> {
    /// First the free ports, those of the client's own share of the table before all others, then those of flows that yield.
    fn run(&self, server: Server, exhausted: &mut Exhausted, rng: &mut Rng) -> Result<Endpoint, NoSource> {
        let lack = exhausted.of(server);
        if lack == Some(Lack::Any) {
            return Err(NoSource::PoolExhausted);
        }
        if let Some(free) = self.free(Reach::Own, rng) {
            return Ok(free);
        }
        if lack.is_none() {
            if let Some(free) = self.free(Reach::Others, rng) {
                return Ok(free);
            }
            exhausted.servers.insert(server, Lack::Free);
        }
        let patience = exhausted.patience();
        let mut tries = patience;
        let mut yielded = |reach| self.yielded(reach, rng, &mut tries);
        let found = yielded(Reach::Own).or_else(|| yielded(Reach::Others));
        if found.is_none() {
            exhausted.note_vain(server, patience - tries);
            self.conntrack.note_exhausted(self.wanted.protocol, self.wanted.server);
        }
        found.ok_or(NoSource::PoolExhausted)
    }

    fn free(&self, reach: Reach, rng: &mut Rng) -> Option<Endpoint> {
        let addresses = self.addresses.clone();
        self.conntrack.free_port(&self.wanted, addresses, reach, self.now, rng)
    }

    fn yielded(&self, reach: Reach, rng: &mut Rng, tries: &mut usize) -> Option<Endpoint> {
        let addresses = self.addresses.clone();
        let (whom, when) = ((reach, self.timeouts), (self.now, rng));
        self.conntrack.yielded_port(&self.wanted, addresses, whom, when, tries)
    }
}

/// Ports that an address which stands for clients has.
#[must_use]
pub fn ports(nat: &Nat) -> &PortSet {
    nat.own.as_ref().map_or(&POOL_PORTS, |own| &own.ports)
}

/// The masquerade pool, by IP version.
#[derive(Clone, Debug, Default)]
pub struct Pool {
    v4: Vec<Range>,
    v6: Vec<Range>,
}

/// Consecutive addresses, as numbers.
#[derive(Clone, Copy, Debug)]
struct Range {
    first: u128,
    size: u128,
}

impl Pool {
    /// The addresses of these networks, network and broadcast addresses included: the pool is no link.
    #[must_use]
    pub fn new(networks: &[IpNet]) -> Self {
        let mut pool = Self::default();
        for network in networks {
            // 2^64 addresses of a network are enough, and keep all numbers within 128 bits.
            let size = 1 << (network.max_prefix_len() - network.prefix_len()).min(64);
            match network.network() {
                IpAddr::V4(first) => pool.v4.push(Range {
                    first: u32::from(first).into(),
                    size,
                }),
                IpAddr::V6(first) => pool.v6.push(Range {
                    first: first.into(),
                    size,
                }),
            }
        }
        pool
    }

    fn of(&self, client: IpAddr) -> &[Range] {
        match client {
            IpAddr::V4(_) => &self.v4,
            IpAddr::V6(_) => &self.v6,
        }
    }
}

/// The addresses that may stand for a client towards `backend`, from any one on, and the ports of each: the host's own address and
/// those of its ports that are lbd's, or else the pool.
fn stand_ins<'a>(
    ruleset: &'a Ruleset,
    client: IpAddr,
    backend: &Backend,
    rng: &mut Rng,
) -> (impl Iterator<Item = IpAddr> + Clone + 'a, &'a PortSet) {
    let own = ruleset.policy.nat.own.as_ref();
    let own = own.and_then(|own| Some((*own.towards.get(&backend.address.address)?, &*own.ports)));
    let (ranges, ports): (&[Range], &PortSet) = match own {
        Some((_, ports)) => (&[], ports),
        None => (ruleset.pool.of(client), &POOL_PORTS),
    };
    let v4 = client.is_ipv4();
    let size: u128 = ranges.iter().map(|range| range.size).sum();
    let start = if size < 2 { 0 } else { rng.u128(..size) };
    let steps = 0..size.min(MOST_ADDRESSES);
    let pool = steps.filter_map(move |step| address(ranges, (start + step) % size, v4));
    (own.map(|(address, _)| address).into_iter().chain(pool), ports)
}

fn address(ranges: &[Range], mut number: u128, v4: bool) -> Option<IpAddr> {
    for range in ranges {
        if number < range.size {
            let address = range.first + number;
            return Some(match v4 {
                // Below 2^32, since the range is a network's.
                true => IpAddr::from((address as u32).to_be_bytes()),
                false => IpAddr::from(address.to_be_bytes()),
            });
        }
        number -= range.size;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pools_that_are_exhausted_towards_several_backends_are_searched_once_a_tick_each() {
        let tick = Tick::at(Instant::from_nanos(1_000_000_000));
        let mut exhausted = Exhausted::default();
        for backend in [1, 2, 3] {
            exhausted.begin(tick);
            assert_eq!(exhausted.of((backend, 80)), None);
            exhausted.note_vain((backend, 80), exhausted.patience());
        }
        exhausted.begin(tick);
        assert_eq!(
            [1, 2, 3].map(|backend| exhausted.of((backend, 80))),
            [Some(Lack::Any); 3]
        );
        assert_eq!(
            exhausted.tries,
            MAX_TRIES + 2 * ENOUGH_TRIES,
            "one long search, then short ones"
        );
        exhausted.begin(Tick::at(Instant::from_nanos(2_000_000_000)));
        assert_eq!([1, 2, 3].map(|backend| exhausted.of((backend, 80))), [None; 3]);
    }
}
