//! Services and backends as the packet path sees them: who is there, how loaded, and how much went through.
//!
//! A [`Backend`] outlives the configuration that named it: flows hold it, and a backend that is configured again
//! finds its flows and counts where it left them, as the kernel's trash of real servers does (`ip_vs_ctl.c`).
//!
//! A [`Service`] and its [`Member`]s are of one configuration and never change. What a configuration says about backends to those
//! who have no service at hand, flows, is told by [`Generation`].
mod backend;
mod member;
mod stats;
mod versioned;

use std::sync::Arc;

pub use self::backend::Backend;
pub use self::member::Member;
pub use self::stats::{ServiceStats, Stats, Totals};
pub use self::versioned::Generation;

use self::versioned::Versioned;
use crate::flow::{Endpoint, Protocol, Tuple};
use crate::policy::{OnBackendRemoved, Persistence};
use crate::scheduler::{Flags, Kind, Scheduler};
use lbd_prefetch as prefetch;

/// What stays the same of a service while its configuration changes.
#[derive(Debug)]
pub struct ServiceIdentity {
    /// Unique among all services there ever were.
    pub id: u64,
    /// Unique name.
    pub name: String,
    /// Traffic of all its backends, past ones included.
    pub stats: ServiceStats,
    /// What becomes of flows of its removed backends; asked only for these.
    on_backend_removed: Versioned<Option<OnBackendRemoved>>,
}

impl ServiceIdentity {
    /// A service that has had no backend yet.
    #[must_use]
    pub fn new(id: u64, name: &str) -> Self {
        Self {
            id,
            name: name.to_owned(),
            stats: ServiceStats::default(),
            on_backend_removed: Versioned::new(None),
        }
    }

    /// What becomes of flows of its removed backends, from a generation on that is not in effect yet; None: the general rule.
    pub fn set_on_backend_removed(&self, generation: Generation, rule: Option<OnBackendRemoved>) {
        self.on_backend_removed.set_from(generation, |_| rule);
    }
}

/// A virtual server under one configuration.
#[derive(Debug)]
pub struct Service {
    /// Name and traffic.
    pub identity: Arc<ServiceIdentity>,
    /// Transport protocol.
    pub protocol: Protocol,
    /// Where it answers: the cluster address, external addresses, then node ports.
    pub endpoints: Vec<Endpoint>,
    /// In scheduling order.
    pub backends: Vec<Member>,
    /// Which scheduler.
    pub kind: Kind,
    /// Its variations.
    pub flags: Flags,
    /// Who gets a new flow.
    pub scheduler: Scheduler,
    /// Client affinity.
    pub persistence: Option<Persistence>,
    /// One-packet scheduling.
    pub one_packet: bool,
}

impl Service {
    /// Has the CPU fetch what a new flow needs of the service itself.
    #[inline]
    pub(crate) fn prefetch(&self) {
        prefetch::whole(self);
    }

    /// Prefetches which backends it has, `count` of them, and whose turn it is.
    #[inline]
    pub(crate) fn prefetch_list(&self, count: usize) {
        let members = self.backends.iter().take(count);
        members.for_each(|member| prefetch::line(&raw const *member));
        self.scheduler.prefetch();
    }

    /// The backend as this configuration has it; None: it is none of this service's. It is found at once in the `place` that it
    /// had in the list the last time, and its place is returned with it.
    #[must_use]
    pub fn member(&self, backend: &Arc<Backend>, place: usize) -> Option<(usize, &Member)> {
        let is_it = |member: &&Member| Arc::ptr_eq(&member.backend, backend);
        if let Some(member) = self.backends.get(place).filter(is_it) {
            return Some((place, member));
        }
        self.backends.iter().enumerate().find(|(_, member)| is_it(member))
    }

    /// Whether it has a backend that may get new flows.
    #[must_use]
    pub fn is_usable(&self) -> bool {
        self.backends.iter().any(|member| member.weight() > 0)
    }

    /// Whether a packet of `tuple` can be sent to this service's backends: same protocol, same IP version.
    #[must_use]
    pub fn takes(&self, tuple: &Tuple) -> bool {
        let same_family = |endpoint: &Endpoint| endpoint.address.is_ipv4() == tuple.destination.address.is_ipv4();
        self.protocol == tuple.protocol && self.endpoints.first().is_some_and(same_family)
    }
}
