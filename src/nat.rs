//! The sender that a backend sees: the client itself, or an address and port of lbd's own pool, or of this host
//! (masquerading).
use std::net::IpAddr;
use std::ops::RangeInclusive;

use ahash::HashMap;
use ipnet::IpNet;

use crate::conntrack::Conntrack;
use crate::conntrack::bypass::Sighting;
use crate::conntrack::connection::Tenant;
use crate::conntrack::wheel::Tick;
use crate::flow::{Endpoint, Tuple};
use crate::policy::{Masquerade, Nat};
use crate::ruleset::Ruleset;
use crate::scheduler::Rng;
use crate::service::Backend;
use crate::time::Instant;

/// Ports below it are privileged and stay unused, as `nf_nat`'s default range for clients does.
pub(crate) const POOL_PORTS: RangeInclusive<u16> = 1024..=u16::MAX;

/// How many places of the pool are tried, by all flows of a tick together, before a search ends early: as many as an address has
/// ports.
const MAX_TRIES: usize = 1 << 16;

/// After so many the place of a flow that yields will do (`attempts_left` in `nf_nat_l4proto_unique_tuple`, nf_nat_core.c).
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
    conntrack: &Conntrack,
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
    let own = own_address(&ruleset.policy.nat, backend);
    let (ranges, ports) = match &own {
        Some((range, ports)) => (std::slice::from_ref(range), *ports),
        None => (ruleset.pool.of(client.address), &POOL_PORTS),
    };
    // Any place will do, so it does not matter where the search begins.
    let mut rng = Rng::with_seed(0);
    let mut places = places(ranges, ports, client, conntrack, &mut rng);
    match places.any(|place| tenant(&reply(place)) != Tenant::Busy) {
        true => (why, Ok(())),
        false if is_doubtful => (Why::Client, Ok(())),
        false => (why, Err(NoSource::PoolExhausted)),
    }
}

/// Towards which backends no place was found in this tick: to look again at every packet would cost the other flows dearly.
#[derive(Clone, Debug, Default)]
pub struct Exhausted {
    tick: Option<Tick>,
    servers: HashMap<Server, Vain>,
    /// Places tried in vain in this tick, towards all backends.
    tries: usize,
}

/// A backend, by its number and the port that is asked.
type Server = (u64, u16);

/// Searches in vain towards a server.
#[derive(Clone, Debug, Default)]
struct Vain {
    /// The shares of the connection table whose places are all taken.
    shares: Vec<usize>,
    /// Places tried. After [`MAX_TRIES`] nobody tries any more.
    tries: usize,
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

    fn holds(&self, server: Server, share: usize) -> bool {
        let vain = self.servers.get(&server);
        vain.is_some_and(|vain| vain.tries >= MAX_TRIES || vain.shares.contains(&share))
    }

    /// How many places may be tried.
    const fn patience(&self) -> usize {
        if self.tries < MAX_TRIES {
            MAX_TRIES
        } else {
            ENOUGH_TRIES
        }
    }

    fn note(&mut self, server: Server, share: usize, tries: usize) {
        let vain = self.servers.entry(server).or_default();
        vain.shares.push(share);
        vain.tries += tries;
        self.tries += tries;
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
    let reply = |source| Tuple {
        protocol: tuple.protocol,
        source: backend.server(tuple.destination.port),
        destination: source,
    };
    let client = tuple.source;
    let timeouts = &ruleset.policy.conntrack.timeouts;
    let (server, share) = (
        (backend.id, backend.port(tuple.destination.port)),
        conntrack.share(&client),
    );
    exhausted.begin(Tick::at(now));
    if exhausted.holds(server, share) {
        return Err(NoSource::PoolExhausted);
    }
    let own = own_address(&ruleset.policy.nat, backend);
    let (ranges, ports) = match &own {
        Some((range, ports)) => (std::slice::from_ref(range), *ports),
        None => (ruleset.pool.of(client.address), &POOL_PORTS),
    };
    let places = places(ranges, ports, client, conntrack, rng).take(exhausted.patience());
    match search(places, |place| conntrack.tenant(&reply(place), timeouts, now)) {
        Search::Free(place) => Ok(place),
        // A packet of it may have come in between.
        Search::Idle(place) => match conntrack.reclaim(&reply(place), timeouts, now) {
            true => Ok(place),
            false => Err(NoSource::PoolExhausted),
        },
        Search::Vain(tries) => {
            exhausted.note(server, share, tries);
            Err(NoSource::PoolExhausted)
        }
    }
}

/// What a search for a place has come to.
enum Search {
    Free(Endpoint),
    /// A flow has it that yields.
    Idle(Endpoint),
    /// After so many tries.
    Vain(usize),
}

fn search(places: impl Iterator<Item = Endpoint>, tenant: impl Fn(Endpoint) -> Tenant) -> Search {
    let (mut idle, mut tries) = (None, 0);
    for place in places {
        tries += 1;
        match tenant(place) {
            Tenant::Nobody => return Search::Free(place),
            Tenant::Idle => idle = idle.or(Some(place)),
            Tenant::Busy => {}
        }
        if idle.is_some() && tries >= ENOUGH_TRIES {
            break;
        }
    }
    idle.map_or(Search::Vain(tries), Search::Idle)
}

/// Ports that an address which stands for clients has.
#[must_use]
pub fn ports(nat: &Nat) -> &RangeInclusive<u16> {
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

/// The host's own address towards a backend, and its ports that are lbd's.
fn own_address<'a>(nat: &'a Nat, backend: &Backend) -> Option<(Range, &'a RangeInclusive<u16>)> {
    let own = nat.own.as_ref()?;
    let first = match *own.towards.get(&backend.address.address)? {
        IpAddr::V4(address) => u32::from(address).into(),
        IpAddr::V6(address) => address.into(),
    };
    Some((Range { first, size: 1 }, &own.ports))
}

/// Places that can stand for `client`, from a random one on: the ports of a random address, then the next address.
fn places(
    ranges: &[Range],
    ports: &RangeInclusive<u16>,
    client: Endpoint,
    conntrack: &Conntrack,
    rng: &mut Rng,
) -> impl Iterator<Item = Endpoint> {
    let v4 = client.address.is_ipv4();
    let (lowest, highest) = (*ports.start(), usize::from(*ports.end()));
    let addresses: u128 = ranges.iter().map(|range| range.size).sum();
    let start = if addresses == 0 { 0 } else { rng.u128(..addresses) };
    let first_turn = rng.usize(..MAX_TRIES);
    let ring = (0..addresses).filter_map(move |step| address(ranges, (start + step) % addresses, v4));
    let places = ring.flat_map(move |address| {
        let (first, stride) = conntrack.ports_beside(&client, &address, lowest);
        let count = (highest + stride).saturating_sub(first) / stride;
        (0..count).map(move |turn| {
            // At most `highest` by the count.
            let port = first + (first_turn + turn) % count * stride;
            Endpoint::new(address, port as u16)
        })
    });
    places.take(MAX_TRIES)
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
    use crate::time::Instant;

    #[test]
    fn pools_that_are_exhausted_towards_several_backends_are_searched_once_a_tick_each() {
        let tick = Tick::at(Instant::from_nanos(1_000_000_000));
        let mut exhausted = Exhausted::default();
        for backend in [1, 2, 3] {
            exhausted.begin(tick);
            assert!(!exhausted.holds((backend, 80), 0));
            exhausted.note((backend, 80), 0, exhausted.patience());
        }
        exhausted.begin(tick);
        assert_eq!([1, 2, 3].map(|backend| exhausted.holds((backend, 80), 0)), [true; 3]);
        assert_eq!(
            exhausted.tries,
            MAX_TRIES + 2 * ENOUGH_TRIES,
            "one long search, then short ones"
        );
        exhausted.begin(Tick::at(Instant::from_nanos(2_000_000_000)));
        assert_eq!([1, 2, 3].map(|backend| exhausted.holds((backend, 80), 0)), [false; 3]);
    }
}
