//! Client affinity (IPVS persistence): templates that say which backend a client's flows go to.
//!
//! As in `ip_vs_sched_persist` (ip_vs_core.c) a template lives for the service's timeout after its last new flow, and
//! as long as any of its flows lives. A backend that was removed or has weight 0 gets no new flow by its template
//! either; the kernel's `expire_quiescent_template=1`, which kube-proxy sets too.
//!
//! A dashmap: templates are only looked at for new flows, and no lock is held while anything else is.
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use ahash::RandomState;
use dashmap::DashMap;
use ipnet::IpNet;

use crate::policy::Persistence;
use crate::service::{Backend, Service};
use crate::time::Instant;

/// A client's (or client network's) backend for one service.
#[derive(Debug)]
pub struct Template {
    /// Where its flows go.
    pub backend: Arc<Backend>,
    expires: AtomicU64,
    /// Whether a flow of it was ever established (`IP_VS_CTPL_S_ASSURED`).
    assured: AtomicBool,
}

/// How long a template that still has flows is shown to live on (`ip_vs_conn_expire`, ip_vs_conn.c).
const GRACE: u64 = 60_000_000_000;

impl Template {
    /// One of its flows is established (`ip_vs_control_assure_ct`).
    pub fn assure(&self) {
        self.assured.store(true, Relaxed);
    }

    /// In the words of `ipvsadm -Lc`.
    #[must_use]
    pub fn state(&self) -> &'static str {
        match self.assured.load(Relaxed) {
            true => "ASSURED",
            false => "NONE",
        }
    }

    /// How long it lives without a new flow; while it has flows that time is prolonged again and again.
    #[must_use]
    pub fn remaining(&self, now: Instant) -> Duration {
        let (now, expires) = (now.as_nanos(), self.expires.load(Relaxed));
        match expires.checked_sub(now) {
            Some(left) => Duration::from_nanos(left),
            None => Duration::from_nanos(GRACE - (now - expires) % GRACE),
        }
    }

    fn is_alive(&self, holders: usize, now: Instant) -> bool {
        holders > 0 || self.expires.load(Relaxed) > now.as_nanos()
    }
}

/// Service and client network.
type Key = (u64, IpAddr);

/// Every template.
#[derive(Debug, Default)]
pub struct Affinity {
    templates: DashMap<Key, Arc<Template>, RandomState>,
}

impl Affinity {
    /// The backend that this client's flows go to, if it may still take new ones. Holding the template keeps it alive.
    #[must_use]
    pub fn find(&self, service: &Service, client: IpAddr, now: Instant) -> Option<Arc<Template>> {
        let persistence = service.persistence.as_ref()?;
        let template = Arc::clone(&*self.templates.get(&key(service, persistence, client))?);
        let usable = !template.backend.is_removed() && template.backend.weight() > 0;
        // Besides the table and this function.
        let flows = Arc::strong_count(&template) - 2;
        (usable && template.is_alive(flows, now)).then_some(template)
    }

    /// Remembers a choice for a service with persistence, or that it was used again.
    pub fn remember(
        &self,
        service: &Service,
        client: IpAddr,
        backend: &Arc<Backend>,
        now: Instant,
    ) -> Option<Arc<Template>> {
        let persistence = service.persistence.as_ref()?;
        let expires = (now + persistence.timeout).as_nanos();
        let key = key(service, persistence, client);
        if let Some(known) = self.templates.get(&key)
            && Arc::ptr_eq(&known.backend, backend)
        {
            known.expires.store(expires, Relaxed);
            return Some(Arc::clone(&known));
        }
        let template = Arc::new(Template {
            backend: Arc::clone(backend),
            expires: AtomicU64::new(expires),
            assured: AtomicBool::new(false),
        });
        self.templates.insert(key, Arc::clone(&template));
        Some(template)
    }

    /// Forgets templates whose time is over and that no flow holds.
    pub fn expire(&self, now: Instant) {
        self.templates
            .retain(|_, template| template.is_alive(Arc::strong_count(template) - 1, now));
    }

    /// Shows each template to `see`, with the service's id and the client or its network.
    pub fn each(&self, now: Instant, mut see: impl FnMut(u64, IpAddr, &Template)) {
        for entry in &self.templates {
            let &(service, client) = entry.key();
            let flows = Arc::strong_count(entry.value()) - 1;
            if entry.value().is_alive(flows, now) {
                see(service, client, entry.value());
            }
        }
    }
}

fn key(service: &Service, persistence: &Persistence, client: IpAddr) -> Key {
    let network = IpNet::new(client, persistence.prefix_length).map_or(client, |network| network.network());
    (service.identity.id, network)
}
