//! Services and backends as the packet path sees them: who is there, how loaded, and how much went through.
//!
//! A [`Backend`] outlives the configuration that named it: flows hold it, and a backend that is configured again
//! finds its flows and counts where it left them, as the kernel's trash of real servers does (`ip_vs_ctl.c`).
mod stats;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};

use parking_lot::Mutex;

pub use self::stats::{ServiceStats, Stats, Totals};

use crate::flow::{Address, Endpoint, Protocol, Tuple};
use crate::policy::{BackendSpec, OnBackendRemoved, Persistence};
use crate::prefetch;
use crate::scheduler::{Flags, Kind, Scheduler};

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
    pub on_backend_removed: Mutex<Option<OnBackendRemoved>>,
}

impl ServiceIdentity {
    /// A service that has had no backend yet.
    #[must_use]
    pub fn new(id: u64, name: &str) -> Self {
        Self {
            id,
            name: name.to_owned(),
            stats: ServiceStats::default(),
            on_backend_removed: Mutex::default(),
        }
    }
}

/// A real server, with its load.
#[derive(Debug)]
pub struct Backend {
    /// Unique among all backends there ever were.
    pub id: u64,
    /// Where it listens.
    pub address: Endpoint,
    /// The host of `address`, in words for the packet path.
    pub(crate) host: Address,
    /// Whose backend it is.
    pub service: Arc<ServiceIdentity>,
    /// Its traffic.
    pub stats: Stats,
    weight: AtomicU32,
    last_weight: AtomicU32,
    upper_threshold: AtomicU32,
    lower_threshold: AtomicU32,
    active: AtomicU32,
    inactive: AtomicU32,
    overloaded: AtomicBool,
    removed: AtomicBool,
    cut: AtomicBool,
    one_packet: AtomicBool,
}

impl Backend {
    /// A backend without flows; `lanes` is the number of workers.
    #[must_use]
    pub fn new(id: u64, spec: &BackendSpec, service: Arc<ServiceIdentity>, lanes: usize) -> Self {
        let backend = Self {
            id,
            address: spec.address,
            host: spec.address.address.into(),
            service,
            stats: Stats::new(lanes),
            weight: AtomicU32::new(0),
            last_weight: AtomicU32::new(0),
            upper_threshold: AtomicU32::new(0),
            lower_threshold: AtomicU32::new(0),
            active: AtomicU32::new(0),
            inactive: AtomicU32::new(0),
            overloaded: AtomicBool::new(false),
            removed: AtomicBool::new(false),
            cut: AtomicBool::new(false),
            one_packet: AtomicBool::new(false),
        };
        backend.service.stats.include(&backend.stats);
        backend.configure(spec);
        backend
    }

    /// It as it is now, with traffic counters of its own: to see what would be.
    #[must_use]
    pub fn copy(&self) -> Self {
        let number = |of: &AtomicU32| AtomicU32::new(of.load(Relaxed));
        let flag = |of: &AtomicBool| AtomicBool::new(of.load(Relaxed));
        Self {
            id: self.id,
            address: self.address,
            host: self.host,
            service: Arc::clone(&self.service),
            stats: Stats::new(0),
            weight: number(&self.weight),
            last_weight: number(&self.last_weight),
            upper_threshold: number(&self.upper_threshold),
            lower_threshold: number(&self.lower_threshold),
            active: number(&self.active),
            inactive: number(&self.inactive),
            overloaded: flag(&self.overloaded),
            removed: flag(&self.removed),
            cut: flag(&self.cut),
            one_packet: flag(&self.one_packet),
        }
    }

    /// Has the CPU fetch what a flow begins and ends with.
    #[inline]
    pub(crate) fn prefetch(&self) {
        prefetch::whole(self);
    }

    /// Has the CPU fetch what a new flow of `lane` is counted in.
    #[inline]
    pub(crate) fn prefetch_stats(&self, lane: usize) {
        self.stats.prefetch(lane);
    }

    /// Where it gets the packets of a client that asked for `port`: at its own port, or at that one where it has port 0
    /// (`ip_vs_schedule`, ip_vs_core.c).
    #[must_use]
    pub const fn server(&self, port: u16) -> Endpoint {
        Endpoint::new(self.address.address, self.port(port))
    }

    /// The port of [`Self::server`].
    #[inline]
    pub(crate) const fn port(&self, asked: u16) -> u16 {
        match self.address.port {
            0 => asked,
            own => own,
        }
    }

    /// Takes over weight and thresholds, and revives a removed backend.
    pub fn configure(&self, spec: &BackendSpec) {
        self.weight.store(spec.weight, Relaxed);
        if spec.weight != 0 {
            self.cut.store(false, Relaxed);
        }
        // `__ip_vs_update_dest` keeps the last weight that was not 0, for mh, unless the server is added anew.
        if spec.weight != 0 || self.is_removed() {
            self.last_weight.store(spec.weight, Relaxed);
        }
        let raised = spec.upper_threshold == 0 || spec.upper_threshold > self.upper_threshold.load(Relaxed);
        self.upper_threshold.store(spec.upper_threshold, Relaxed);
        self.lower_threshold.store(spec.lower_threshold, Relaxed);
        self.removed.store(false, Relaxed);
        if raised {
            // As `__ip_vs_update_dest`: below a lower threshold it would have to fall first.
            self.overloaded.store(false, Relaxed);
        }
        self.update_overload();
    }

    /// Marks it as no longer configured; its flows still hold it.
    pub fn remove(&self) {
        self.removed.store(true, Relaxed);
    }

    /// Its time to drain is over: its flows end, until it has a weight again.
    pub fn cut(&self) {
        self.cut.store(true, Relaxed);
    }

    /// What becomes of its flows of `protocol` at their next packet, where they have lost it; `general` is for services
    /// that say nothing about it.
    #[must_use]
    #[inline]
    pub fn orphans(&self, general: Option<OnBackendRemoved>, protocol: Protocol) -> Option<OnBackendRemoved> {
        let is_cut = self.cut.load(Relaxed);
        (is_cut || self.is_removed()).then(|| self.fate(general, protocol, is_cut))
    }

    #[cold]
    fn fate(&self, general: Option<OnBackendRemoved>, protocol: Protocol, is_cut: bool) -> OnBackendRemoved {
        let rule = self.service.on_backend_removed.lock().or(general);
        match rule.unwrap_or_else(|| OnBackendRemoved::default_of(protocol)) {
            OnBackendRemoved::Preserve if is_cut => OnBackendRemoved::Reset,
            rule @ (OnBackendRemoved::Preserve
            | OnBackendRemoved::Reset
            | OnBackendRemoved::Reschedule
            | OnBackendRemoved::Drop) => rule,
        }
    }

    /// Whether each datagram is scheduled anew (`IP_VS_SVC_F_ONEPACKET`).
    #[must_use]
    pub fn is_one_packet(&self) -> bool {
        self.one_packet.load(Relaxed)
    }

    /// Sets [`Self::is_one_packet`].
    pub fn set_one_packet(&self, one_packet: bool) {
        self.one_packet.store(one_packet, Relaxed);
    }

    /// Whether it has left the configuration.
    #[must_use]
    pub fn is_removed(&self) -> bool {
        self.removed.load(Relaxed)
    }

    /// Its share of new flows; 0 drains it.
    #[must_use]
    pub fn weight(&self) -> u32 {
        self.weight.load(Relaxed)
    }

    /// The last weight that was not 0 (`dest->last_weight`).
    #[must_use]
    pub fn last_weight(&self) -> u32 {
        self.last_weight.load(Relaxed)
    }

    /// The configured thresholds, upper and lower; 0 is none.
    #[must_use]
    pub fn thresholds(&self) -> (u32, u32) {
        (self.upper_threshold.load(Relaxed), self.lower_threshold.load(Relaxed))
    }

    /// Whether the upper threshold keeps new flows away (`IP_VS_DEST_F_OVERLOAD`).
    #[must_use]
    pub fn is_overloaded(&self) -> bool {
        self.overloaded.load(Relaxed)
    }

    /// Flows in an active state (`dest->activeconns`).
    #[must_use]
    pub fn active(&self) -> u32 {
        self.active.load(Relaxed)
    }

    /// All other flows (`dest->inactconns`).
    #[must_use]
    pub fn inactive(&self) -> u32 {
        self.inactive.load(Relaxed)
    }

    /// `ip_vs_dest_conn_overhead()` of include/net/ip_vs.h: an active flow weighs as much as 256 inactive ones.
    #[must_use]
    pub fn overhead(&self) -> u64 {
        (u64::from(self.active()) << 8) + u64::from(self.inactive())
    }

    /// A flow begins; flows begin inactive (`ip_vs_bind_dest`).
    pub fn bind(&self) {
        self.inactive.fetch_add(1, Relaxed);
        self.update_overload();
    }

    /// A flow ends, in the state it had.
    pub fn unbind(&self, was_active: bool) {
        let counter = if was_active { &self.active } else { &self.inactive };
        counter.fetch_sub(1, Relaxed);
        self.update_overload();
    }

    /// A flow becomes active or inactive.
    pub fn set_active(&self, active: bool) {
        let (from, to) = if active {
            (&self.inactive, &self.active)
        } else {
            (&self.active, &self.inactive)
        };
        // In this order: another worker must not see one flow more than there is, and find an upper threshold reached.
        from.fetch_sub(1, Relaxed);
        to.fetch_add(1, Relaxed);
    }

    /// The hysteresis of `ip_vs_bind_dest` and `ip_vs_unbind_dest` (ip_vs_conn.c).
    fn update_overload(&self) {
        let (upper, lower) = self.thresholds();
        let flows = self.active().saturating_add(self.inactive());
        let below = match (upper, lower) {
            (0, _) => true,
            (_, 0) => u64::from(flows) * 4 < u64::from(upper) * 3,
            (_, lower) => flows < lower,
        };
        if upper != 0 && flows >= upper {
            self.overloaded.store(true, Relaxed);
        } else if below {
            self.overloaded.store(false, Relaxed);
        }
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
    pub backends: Vec<Arc<Backend>>,
    /// Which scheduler.
    pub kind: Kind,
    /// Its variations.
    pub flags: Flags,
    /// Its state, locked for a new flow only.
    pub scheduler: Mutex<Scheduler>,
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

    /// Has the CPU fetch which backends it has.
    #[inline]
    pub(crate) fn prefetch_list(&self) {
        prefetch::line(self.backends.as_ptr());
    }

    /// Whether it has a backend that may get new flows.
    #[must_use]
    pub fn is_usable(&self) -> bool {
        self.backends.iter().any(|backend| backend.weight() > 0)
    }

    /// Whether a packet of `tuple` can be sent to this service's backends: same protocol, same IP version.
    #[must_use]
    pub fn takes(&self, tuple: &Tuple) -> bool {
        let same_family = |endpoint: &Endpoint| endpoint.address.is_ipv4() == tuple.destination.address.is_ipv4();
        self.protocol == tuple.protocol && self.endpoints.first().is_some_and(same_family)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backend(upper_threshold: u32, lower_threshold: u32) -> Backend {
        let service = Arc::new(ServiceIdentity::new(1, "web"));
        let spec = BackendSpec {
            address: "10.2.0.11:80".parse().unwrap(),
            weight: 1,
            upper_threshold,
            lower_threshold,
        };
        Backend::new(1, &spec, service, 1)
    }

    #[test]
    fn a_backend_at_its_upper_threshold_is_overloaded_until_it_falls_below_the_lower_one() {
        let backend = backend(4, 2);
        let loads: Vec<bool> = (0..4)
            .map(|_| {
                backend.bind();
                backend.is_overloaded()
            })
            .collect();
        assert_eq!(loads, [false, false, false, true]);
        backend.unbind(false);
        backend.unbind(false);
        assert!(backend.is_overloaded(), "two flows are not below two");
        backend.unbind(false);
        assert!(!backend.is_overloaded());
    }

    #[test]
    fn without_a_lower_threshold_a_backend_recovers_below_three_quarters() {
        let backend = backend(4, 0);
        (0..4).for_each(|_| backend.bind());
        backend.unbind(false);
        assert!(backend.is_overloaded(), "three of four are not below three quarters");
        backend.unbind(false);
        assert!(!backend.is_overloaded());
    }

    #[test]
    fn an_overloaded_backend_stays_so_when_something_else_of_its_service_changes() {
        let backend = backend(4, 2);
        (0..4).for_each(|_| backend.bind());
        backend.unbind(false);
        let same = |upper_threshold| BackendSpec {
            address: backend.address,
            weight: 7,
            upper_threshold,
            lower_threshold: 2,
        };
        backend.configure(&same(4));
        assert!(backend.is_overloaded(), "three flows are not below two");
        backend.configure(&same(8));
        assert!(!backend.is_overloaded(), "a higher threshold makes room");
    }

    #[test]
    fn a_backend_that_comes_back_with_weight_0_has_no_place_in_the_table_of_mh_that_it_had() {
        let backend = backend(0, 0);
        let drained = BackendSpec {
            address: backend.address,
            weight: 0,
            upper_threshold: 0,
            lower_threshold: 0,
        };
        backend.configure(&drained);
        assert_eq!(backend.last_weight(), 1, "drained: nobody else's clients move");
        backend.remove();
        backend.configure(&drained);
        assert_eq!(backend.last_weight(), 0);
    }

    #[test]
    fn an_active_flow_weighs_as_much_as_256_inactive_ones() {
        let backend = backend(0, 0);
        backend.bind();
        assert_eq!(backend.overhead(), 1);
        backend.set_active(true);
        assert_eq!(backend.overhead(), 256);
    }
}
