//! The sender that a backend sees: the client itself, or an address and port of lbd's own pool (masquerading).
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::conntrack::Conntrack;
use crate::flow::{Endpoint, Tuple};
use crate::policy::Masquerade;
use crate::ruleset::Ruleset;
use crate::scheduler::Rng;
use crate::service::Backend;
use crate::time::Instant;

/// Ports below it are privileged and stay unused, as `nf_nat`'s default range for clients does.
const FIRST_PORT: u32 = 1024;
const PORTS_PER_ADDRESS: u128 = (1 << 16) - FIRST_PORT as u128;

/// How many places of the pool are tried before it counts as exhausted: all of a single address, which only fails
/// for a bigger pool when all but a few in a hundred thousand places are taken.
const MAX_TRIES: u128 = 1 << 16;

/// Why there is no sender for a new flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoSource {
    /// Another flow to the same backend has this client's address and port, and masquerading is forbidden.
    InUse,
    /// Every address and port of the pool is taken, or the pool has no address of this IP version.
    PoolExhausted,
}

/// Chooses the sender for a new flow from `tuple.source` to `backend`.
///
/// # Errors
/// When no sender is free.
pub fn source(
    ruleset: &Ruleset,
    conntrack: &Conntrack,
    tuple: &Tuple,
    backend: &Arc<Backend>,
    now: Instant,
    rng: &mut Rng,
) -> Result<Endpoint, NoSource> {
    let server = match backend.address.port {
        0 => Endpoint::new(backend.address.address, tuple.destination.port),
        _ => backend.address,
    };
    let reply = |source| Tuple {
        protocol: tuple.protocol,
        source: server,
        destination: source,
    };
    let client = tuple.source;
    let nat = &ruleset.policy.nat;
    let wanted = match nat.masquerade {
        Masquerade::Always => true,
        Masquerade::Never => false,
        Masquerade::Auto => ruleset.is_local(&client.address) || client.address == backend.address.address,
    };
    if !wanted {
        if conntrack.is_free(&reply(client), now) {
            return Ok(client);
        }
        if nat.masquerade == Masquerade::Never {
            return Err(NoSource::InUse);
        }
        // The same client port to the same backend, directly or through another service address: the replies could not
        // be told apart (kubernetes#90042), so this flow comes from the pool.
    }
    places(&nat.pool, client.address.is_ipv4(), rng)
        .find(|place| conntrack.same_shard(&client, place) && conntrack.is_free(&reply(*place), now))
        .ok_or(NoSource::PoolExhausted)
}

/// Every address and port of the pool's networks of one IP version, from a random place on.
fn places(pool: &[IpNet], v4: bool, rng: &mut Rng) -> impl Iterator<Item = Endpoint> {
    let networks: Vec<(u128, u128, bool)> = pool
        .iter()
        .filter(|network| network.addr().is_ipv4() == v4)
        .map(|network| match network {
            IpNet::V4(v4) => (u128::from(u32::from(v4.network())), 1 << (32 - v4.prefix_len()), true),
            // A pool of more than 2^64 addresses is used in its first 2^64.
            IpNet::V6(v6) => (u128::from(v6.network()), 1 << (128 - v6.prefix_len()).min(64), false),
        })
        .collect();
    let total: u128 = networks.iter().map(|(_, size, _)| size * PORTS_PER_ADDRESS).sum();
    let start = if total == 0 { 0 } else { rng.u128(..total) };
    (0..total.min(MAX_TRIES)).filter_map(move |step| place(&networks, (start + step) % total))
}

fn place(networks: &[(u128, u128, bool)], mut number: u128) -> Option<Endpoint> {
    for &(first, size, v4) in networks {
        if number < size * PORTS_PER_ADDRESS {
            let address = first + number / PORTS_PER_ADDRESS;
            // Below 2^16, and below 2^32 for an IPv4 network.
            let port = (u128::from(FIRST_PORT) + number % PORTS_PER_ADDRESS) as u16;
            let address = match v4 {
                true => IpAddr::from((address as u32).to_be_bytes()),
                false => IpAddr::from(address.to_be_bytes()),
            };
            return Some(Endpoint::new(address, port));
        }
        number -= size * PORTS_PER_ADDRESS;
    }
    None
}
