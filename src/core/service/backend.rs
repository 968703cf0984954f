//! A real server: who it is, how loaded, and what it is to its flows.
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};

use super::versioned::{Standing, Versioned};
use super::{Generation, ServiceIdentity, Stats};
use crate::flow::{Address, Endpoint, Protocol};
use crate::policy::{BackendSpec, OnBackendRemoved};
use lbd_prefetch as prefetch;

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
    upper_threshold: AtomicU32,
    lower_threshold: AtomicU32,
    active: AtomicU32,
    inactive: AtomicU32,
    overloaded: AtomicBool,
    standing: Versioned<Standing>,
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
            upper_threshold: AtomicU32::new(spec.upper_threshold),
            lower_threshold: AtomicU32::new(spec.lower_threshold),
            active: AtomicU32::new(0),
            inactive: AtomicU32::new(0),
            overloaded: AtomicBool::new(false),
            standing: Versioned::new(Standing::default()),
        };
        backend.service.stats.include(&backend.stats);
        backend
    }

    /// It as it is now, with traffic counters of its own: to see what would be.
    #[must_use]
    pub fn copy(&self) -> Self {
        let number = |of: &AtomicU32| AtomicU32::new(of.load(Relaxed));
        Self {
            id: self.id,
            address: self.address,
            host: self.host,
            service: Arc::clone(&self.service),
            stats: Stats::new(0),
            upper_threshold: number(&self.upper_threshold),
            lower_threshold: number(&self.lower_threshold),
            active: number(&self.active),
            inactive: number(&self.inactive),
            overloaded: AtomicBool::new(self.is_overloaded()),
            standing: self.standing.copy(),
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

    /// Takes over thresholds. They are the backend's own, whichever ruleset is asked: flows that end have none at hand.
    pub fn set_thresholds(&self, (upper, lower): (u32, u32)) {
        let raised = upper == 0 || upper > self.upper_threshold.load(Relaxed);
        self.upper_threshold.store(upper, Relaxed);
        self.lower_threshold.store(lower, Relaxed);
        if raised {
            // As `__ip_vs_update_dest`: below a lower threshold it would have to fall first.
            self.overloaded.store(false, Relaxed);
        }
        self.update_overload();
    }

    /// It is configured from a generation on that is not in effect yet; one that was removed is revived. With a weight, its time
    /// to drain is not over any more.
    pub fn configure(&self, generation: Generation, weight: u32, one_packet: bool) {
        self.standing.set_from(generation, |standing| Standing {
            removed: false,
            cut: standing.cut && weight == 0,
            one_packet,
        });
    }

    /// Marks it as no longer configured from a generation on that is not in effect yet; its flows still hold it.
    pub fn remove(&self, generation: Generation) {
        self.standing.set_from(generation, |standing| Standing {
            removed: true,
            ..standing
        });
    }

    /// Its time to drain is over: its flows end, until it has a weight again.
    pub fn cut(&self) {
        self.standing.set_now(|standing| Standing { cut: true, ..standing });
    }

    /// What becomes of its flows of `protocol` at their next packet, where they have lost it; `general` is for services
    /// that say nothing about it.
    #[must_use]
    #[inline]
    pub fn orphans(
        &self,
        general: Option<OnBackendRemoved>,
        protocol: Protocol,
        generation: Generation,
    ) -> Option<OnBackendRemoved> {
        let Standing { removed, cut, .. } = self.standing.get(generation);
        (cut || removed).then(|| {
            let rule = self.service.on_backend_removed.get(generation).or(general);
            Self::fate(rule, protocol, cut)
        })
    }

    #[cold]
    fn fate(rule: Option<OnBackendRemoved>, protocol: Protocol, is_cut: bool) -> OnBackendRemoved {
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
    #[inline]
    pub fn is_one_packet(&self, generation: Generation) -> bool {
        self.standing.get(generation).one_packet
    }

    /// Whether it has left the configuration.
    #[must_use]
    pub fn is_removed(&self, generation: Generation) -> bool {
        self.standing.get(generation).removed
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
        backend.set_thresholds((4, 2));
        assert!(backend.is_overloaded(), "three flows are not below two");
        backend.set_thresholds((8, 2));
        assert!(!backend.is_overloaded(), "a higher threshold makes room");
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
