//! Client affinity (IPVS persistence): templates that say which backend a client's flows go to.
//!
//! As in `ip_vs_sched_persist` (ip_vs_core.c) a template lives for the service's timeout after its last new flow, and
//! as long as any of its flows lives. A backend that was removed gets no new flow by its template either, nor does one of
//! weight 0 with the kernel's `expire_quiescent_template=1`, which kube-proxy sets too and is the default here.
//!
//! A dashmap: templates are only looked at for new flows. A client's first choice is made under its lock, which is
//! always taken before the scheduler's.
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use ahash::RandomState;
use dashmap::DashMap;
use dashmap::mapref::entry::Entry;
use ipnet::IpNet;

use crate::policy::{Conntrack, Persistence};
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

    /// Keeps it until `expires`, since one of its flows was stored now.
    pub fn renew(&self, expires: Instant) {
        self.expires.store(expires.as_nanos(), Relaxed);
    }

    /// Whether new flows may still go by it. `template` is the one in the table.
    fn is_usable(template: &Arc<Self>, policy: &Conntrack, now: Instant) -> bool {
        template.may_be_followed(policy) && Self::is_alive(template, now)
    }

    /// `ip_vs_check_template` (ip_vs_conn.c).
    fn may_be_followed(&self, policy: &Conntrack) -> bool {
        let is_quiescent = policy.expire_quiescent_template && self.backend.weight() == 0;
        !self.backend.is_removed() && !is_quiescent
    }

    /// A flow holds it, or its time is not over.
    fn is_alive(template: &Arc<Self>, now: Instant) -> bool {
        Arc::strong_count(template) > 1 || template.expires.load(Relaxed) > now.as_nanos()
    }
}

/// Service and client network.
type Key = (u64, IpAddr);

/// The backend of a new flow, and the template that the flow must hold where the service has persistence.
pub type Choice = (Arc<Backend>, Option<Arc<Template>>);

/// Where a client's next new flow would go by its template, and how long the template lives without it.
#[derive(Clone, Debug)]
pub enum Outlook {
    /// The client is not known.
    New,
    /// The backend takes no new flow, or the template's time is over.
    Unusable(Arc<Backend>, Duration),
    /// To this backend.
    Used(Arc<Backend>, Duration),
}

/// Every template.
#[derive(Debug, Default)]
pub struct Affinity {
    templates: DashMap<Key, Arc<Template>, RandomState>,
}

impl Affinity {
    /// The backend for a new flow: the one that the client's flows go to, or else what `pick` chooses.
    ///
    /// Beyond `max_flows` templates a new client is not remembered: strangers who invent clients must not fill the memory.
    ///
    /// Two workers with flows of one client at once get one answer. A template that is made here lives as long as it is
    /// held: [`Template::renew`] it once the flow is stored, or else it is forgotten with the flow.
    pub fn choose(
        &self,
        service: &Service,
        client: IpAddr,
        now: Instant,
        policy: &Conntrack,
        pick: impl FnOnce() -> Option<Arc<Backend>>,
    ) -> Option<Choice> {
        let Some(persistence) = &service.persistence else {
            return Some((pick()?, None));
        };
        let key = key(service, persistence, client);
        if let Some(known) = self.templates.get(&key)
            && Template::is_usable(&known, policy, now)
        {
            return Some(choice(&known));
        }
        if self.templates.len() >= policy.max_flows && !self.templates.contains_key(&key) {
            return Some((pick()?, None));
        }
        let place = match self.templates.entry(key) {
            Entry::Occupied(known) if Template::is_usable(known.get(), policy, now) => {
                return Some(choice(known.get()));
            }
            place @ (Entry::Occupied(_) | Entry::Vacant(_)) => place,
        };
        let template = Arc::new(Template {
            backend: pick()?,
            expires: AtomicU64::new(0),
            assured: AtomicBool::new(false),
        });
        place.insert(Arc::clone(&template));
        Some(choice(&template))
    }

    /// What [`Self::choose`] would find, and the client or its network, where the service has persistence. The flow that
    /// holds `forgotten`, as does this copy of it, counts as no more.
    #[must_use]
    pub fn outlook(
        &self,
        service: &Service,
        client: IpAddr,
        now: Instant,
        policy: &Conntrack,
        forgotten: Option<&Arc<Template>>,
    ) -> Option<(IpAddr, Outlook)> {
        let key = key(service, service.persistence.as_ref()?, client);
        let Some(known) = self.templates.get(&key) else {
            return Some((key.1, Outlook::New));
        };
        let forgotten = forgotten.filter(|forgotten| Arc::ptr_eq(forgotten, &known));
        let holders = Arc::strong_count(&known) - 2 * usize::from(forgotten.is_some());
        let is_alive = holders > 1 || known.expires.load(Relaxed) > now.as_nanos();
        let (backend, left) = (Arc::clone(&known.backend), known.remaining(now));
        let outlook = match is_alive && known.may_be_followed(policy) {
            true => Outlook::Used(backend, left),
            false => Outlook::Unusable(backend, left),
        };
        Some((key.1, outlook))
    }

    /// How many templates there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.templates.len()
    }

    /// Whether no client is remembered.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.templates.is_empty()
    }

    /// Forgets templates whose time is over and that no flow holds.
    pub fn expire(&self, now: Instant) {
        self.templates.retain(|_, template| Template::is_alive(template, now));
    }

    /// Shows each template to `see`, with the service's id and the client or its network.
    pub fn each(&self, now: Instant, mut see: impl FnMut(u64, IpAddr, &Template)) {
        for entry in &self.templates {
            let &(service, client) = entry.key();
            if Template::is_alive(entry.value(), now) {
                see(service, client, entry.value());
            }
        }
    }
}

fn choice(template: &Arc<Template>) -> Choice {
    (Arc::clone(&template.backend), Some(Arc::clone(template)))
}

fn key(service: &Service, persistence: &Persistence, client: IpAddr) -> Key {
    let network = IpNet::new(client, persistence.prefix_length).map_or(client, |network| network.network());
    (service.identity.id, network)
}
