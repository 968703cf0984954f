//! Which service a new flow is for: an ordered list of rules, or a hash table of virtual servers.
//!
//! What it takes to find it, in nanoseconds, on one core of two shared ones (AMD EPYC, L2 1 MB a core, virtual), by
//! `cargo bench --bench rules`, which draws it, too. *Ten*: the flows are for ten services, evenly over the list. *Any*: for any,
//! at random, so that with many services none is in a near cache.
//!
//! | services | linear, ten | any | compiled, ten | any | ipvs, ten | any |
//! | ---: | ---: | ---: | ---: | ---: | ---: | ---: |
//! | 1 | 19 | 29 | 37 | 37 | 30 | 31 |
//! | 10 | 32 | 32 | 36 | 36 | 30 | 30 |
//! | 100 | 96 | 98 | 36 | 37 | 31 | 31 |
//! | 1,000 | 695 | 671 | 36 | 40 | 32 | 33 |
//! | 10,000 | 6,060 | 6,521 | 36 | 54 | 33 | 40 |
//! | 100,000 | 61,883 | 64,808 | 39 | 206 | 32 | 67 |
//!
//! So more services cost nothing but memory: the 100,000 rules and their counters are 9 MB, more than the near caches (and
//! their page tables) hold. The last figure scatters between 200 and 320 with what the neighbours do.
//!
//! A whole new flow, parsed, matched, scheduled, stored and rewritten, in batches as a worker does it, forgetting old flows
//! included, on a machine that did nothing else:
//!
//! | services | compiled, ten | any | ipvs, ten | any |
//! | ---: | ---: | ---: | ---: | ---: |
//! | 10 | 373 | 372 | 363 | 359 |
//! | 1,000 | 370 | 388 | 358 | 375 |
//! | 10,000 | 374 | 435 | 370 | 428 |
//! | 100,000 | 383 | 580 | 368 | 580 |
//!
//! (Linear: 374 to 49,000.) With *any* of 100,000 services it is not the lookup that costs, but that the service, its
//! scheduler, its backend and the counters of both are in no cache either: a dozen cache lines and page-table entries a flow.
//! They are fetched ahead for a whole batch ([`crate::ruleset::Ruleset::prefetch`]). The last two figures were 1,400 without
//! that, and 1,057 and 974 with plain reads in the place of prefetches, with which all from 1,000 services on took 400 and more.
//!
//! To apply a policy in which one service of 10,000 (10 backends each) or of 100,000 (2 each) has another backend took 85 and
//! 392 ms in iptables mode, and 32 and 291 in ipvs mode, when all was built anew each time. Now that a ruleset shares with
//! the former one what has not changed (`shared_map`, [`Difference`]) it takes 0.5 and 12, and 0.5 and 17 ms.
mod address;
mod bucket;
mod classifier;
mod difference;
mod list;
mod reach;
pub mod rules;
mod service_rules;
pub(crate) mod shared_map;
mod tally;
mod user_rules;
pub mod virtual_servers;

use std::net::IpAddr;
use std::sync::Arc;

pub use self::difference::Difference;
pub use self::tally::Tally;

use self::address::Address;
use self::rules::RuleList;
use self::virtual_servers::VirtualServers;
use crate::flow::Tuple;
use crate::packet::Headers;
use crate::policy::{Mode, Policy};
use crate::scheduler::Rng;
use crate::service::Service;

/// What a packet without a flow is.
#[derive(Clone, Copy, Debug)]
pub enum Match<'a> {
    /// It is for this service.
    Service(&'a Arc<Service>),
    /// A rule says to discard it.
    Drop,
    /// A rule says to refuse it.
    Reject,
    /// A rule says to leave it alone.
    Pass,
    /// It is none of ours.
    None,
}

/// The matcher of the mode.
#[derive(Debug)]
pub enum Matcher {
    /// `mode = "iptables"`
    Rules(RuleList),
    /// `mode = "ipvs"`
    VirtualServers(VirtualServers),
}

impl Matcher {
    /// The matcher of a mode, with rule counters of `lanes` workers.
    #[must_use]
    pub fn new(mode: Mode, policy: &Policy, services: &[Arc<Service>], lanes: usize) -> Self {
        match mode {
            Mode::Ipvs => Self::VirtualServers(VirtualServers::new(services)),
            Mode::Iptables => Self::Rules(RuleList::new(policy, services, None, lanes)),
        }
    }

    /// Whose matcher it is.
    #[must_use]
    pub const fn mode(&self) -> Mode {
        match self {
            Self::Rules(_) => Mode::Iptables,
            Self::VirtualServers(_) => Mode::Ipvs,
        }
    }

    /// The same as [`Self::new`], at the cost of what is different. `services` are all that there are now. Rules that
    /// were there before keep their counters.
    #[must_use]
    pub fn changed(
        &self,
        policy: &Policy,
        services: &[Arc<Service>],
        difference: &Difference<'_>,
        lanes: usize,
    ) -> Self {
        let is_small = !difference.is_most_of(services.len());
        match self {
            Self::Rules(rules) => {
                let changed = is_small.then(|| rules.changed(policy, services, difference, lanes));
                let anew = || RuleList::new(policy, services, Some(rules), lanes);
                Self::Rules(changed.flatten().unwrap_or_else(anew))
            }
            Self::VirtualServers(servers) => {
                let changed = is_small.then(|| servers.changed(difference));
                Self::VirtualServers(changed.flatten().unwrap_or_else(|| VirtualServers::new(services)))
            }
        }
    }

    /// Looks a packet up. `lane` is the worker whose rule counters count it.
    pub fn find(&self, headers: &Headers, tuple: Option<&Tuple>, rng: &mut Rng, lane: usize) -> Match<'_> {
        match self {
            Self::Rules(rules) => rules.find(headers, tuple, rng, lane),
            Self::VirtualServers(servers) => tuple.map_or(Match::None, |tuple| servers.find(tuple)),
        }
    }

    /// The service of the packet's protocol whose very address and port is the packet's destination. Has the CPU fetch what its
    /// rule counts for `lane`, if one does.
    pub(crate) fn prefetch(&self, tuple: &Tuple, lane: usize) -> Option<&Arc<Service>> {
        let address = Address::of(tuple);
        match self {
            Self::Rules(rules) => {
                let (service, tally) = rules.at(&address)?;
                tally.prefetch(lane);
                Some(service)
            }
            Self::VirtualServers(servers) => servers.at(&address),
        }
    }

    /// Whether a rule may lead packets to `destination` to a service that does not have this address.
    #[must_use]
    pub fn may_lead(&self, destination: IpAddr) -> bool {
        match self {
            Self::Rules(rules) => rules.may_lead(destination),
            Self::VirtualServers(_) => false,
        }
    }

    /// Whether the packet's destination is the very address and port of a service of its protocol.
    #[must_use]
    pub fn is_address(&self, tuple: &Tuple) -> bool {
        self.has(&Address::of(tuple))
    }

    /// Whether the packet's destination is the address of a service of its protocol that answers on all ports.
    #[must_use]
    pub fn is_address_of_all_ports(&self, tuple: &Tuple) -> bool {
        self.has(&Address::of(tuple).on_all_ports())
    }

    fn has(&self, address: &Address) -> bool {
        match self {
            Self::Rules(rules) => rules.at(address).is_some(),
            Self::VirtualServers(servers) => servers.at(address).is_some(),
        }
    }
}

#[cfg(test)]
mod tests;
