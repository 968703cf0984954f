//! Which service a new flow is for: an ordered list of rules, or a hash table of virtual servers.
pub mod rules;
pub mod virtual_servers;

use std::sync::Arc;

use crate::flow::Tuple;
use crate::packet::Headers;
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
    Rules(rules::RuleList),
    /// `mode = "ipvs"`
    VirtualServers(virtual_servers::VirtualServers),
}

impl Matcher {
    /// Looks a packet up. `lane` is the worker whose rule counters count it.
    pub fn find(&self, headers: &Headers, tuple: Option<&Tuple>, rng: &mut Rng, lane: usize) -> Match<'_> {
        match self {
            Self::Rules(rules) => rules.find(headers, tuple, rng, lane),
            Self::VirtualServers(servers) => tuple.map_or(Match::None, |tuple| servers.find(tuple)),
        }
    }
}
