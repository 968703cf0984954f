//! Client affinity (IPVS persistence): templates that say which backend a client's flows go to.
//!
//! As in `ip_vs_sched_persist` (ip_vs_core.c) a template lives for the service's timeout after its last new flow, and
//! as long as any of its flows lives. A backend that was removed or has weight 0 gets no new flow by its template
//! either; the kernel's `expire_quiescent_template=1`, which kube-proxy sets too.
//!
//! A dashmap: templates are only looked at for new flows, and no lock is held while anything else is.
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

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
        // The table, this function, and any flow.
        let held = Arc::strong_count(&template) > 2;
        (usable && (held || template.expires.load(Relaxed) > now.as_nanos())).then_some(template)
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
        });
        self.templates.insert(key, Arc::clone(&template));
        Some(template)
    }

    /// Forgets templates whose time is over and that no flow holds.
    pub fn expire(&self, now: Instant) {
        self.templates
            .retain(|_, template| Arc::strong_count(template) > 1 || template.expires.load(Relaxed) > now.as_nanos());
    }
}

fn key(service: &Service, persistence: &Persistence, client: IpAddr) -> Key {
    let network = IpNet::new(client, persistence.prefix_length).map_or(client, |network| network.network());
    (service.identity.id, network)
}
