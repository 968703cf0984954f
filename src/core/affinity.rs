//! Client affinity (IPVS persistence): templates that say which backend a client's flows go to.
//!
//! As in `ip_vs_sched_persist` (ip_vs_core.c) a template lives for the service's timeout after its last new flow, and
//! as long as any of its flows lives. In iptables mode its flows do not count: kube-proxy's `recent` rules go by the time since a
//! client's last new connection (`--rcheck --seconds --reap`, and `--set` for each, pkg/proxy/iptables/proxier.go). A template
//! is kept while it has flows in that mode, too, so that after a switch to IPVS mode it is what it would have been there.
//! A backend that was removed gets no new flow by its template either, nor does one of
//! weight 0 with the kernel's `expire_quiescent_template=1`, which kube-proxy sets too and is the default here.
//!
//! Dashmaps: templates are only looked at for new flows. A client's first choice is made under their lock, which is always taken
//! before the scheduler's. There are many, so that packets wait for the sweeping of one only: of a million templates all at once
//! took 12 ms.
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use ahash::RandomState;
use dashmap::DashMap;
use dashmap::mapref::entry::Entry;
use ipnet::IpNet;

use crate::policy::{Mode, Persistence, Policy};
use crate::service::{Backend, Service};
use crate::time::Instant;

/// A client's (or client network's) backend for one service.
#[derive(Debug)]
pub struct Template {
    /// Where its flows go.
    pub backend: Arc<Backend>,
    /// In the service's list, when it was last looked for.
    place: AtomicU32,
    expires: AtomicU64,
    /// Whether a flow of it was ever established, or over UDP answered (`IP_VS_CTPL_S_ASSURED`).
    assured: AtomicBool,
    /// Whether one was ever established, for which a client has to be where it says that it is.
    proven: AtomicBool,
}

/// When a template expires whose first flow is not stored yet.
const UNSET: u64 = 0;

/// How long a template that still has flows is shown to live on (`ip_vs_conn_expire`, ip_vs_conn.c).
const GRACE: u64 = 60_000_000_000;

impl Template {
    /// One of its flows is established, or over UDP answered (`ip_vs_control_assure_ct`).
    pub fn assure(&self) {
        self.assured.store(true, Relaxed);
    }

    /// One of its flows is established.
    pub fn prove(&self) {
        self.proven.store(true, Relaxed);
    }

    /// In the words of `ipvsadm -Lc`.
    #[must_use]
    pub fn state(&self) -> &'static str {
        match self.assured.load(Relaxed) {
            true => "ASSURED",
            false => "NONE",
        }
    }

    /// How long it lives without a new flow; while it has flows that time is prolonged again and again, in IPVS mode.
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

    /// Whether new flows of the service may still go by it. `template` is the one in the table.
    fn is_usable(template: &Arc<Self>, service: &Service, policy: &Policy, now: Instant) -> bool {
        let Some(place) = template.place(service, policy) else {
            return false;
        };
        if place != template.place.load(Relaxed) {
            template.place.store(place, Relaxed);
        }
        template.is_valid(Arc::strong_count(template) > 1, policy.mode, now)
    }

    /// Where its backend is in the list of the service, if it may get new flows by it: `ip_vs_check_template` (ip_vs_conn.c).
    fn place(&self, service: &Service, policy: &Policy) -> Option<u32> {
        let (place, member) = service.member(&self.backend, self.place.load(Relaxed) as usize)?;
        let is_quiescent = policy.conntrack.expire_quiescent_template && member.weight() == 0;
        (!is_quiescent).then_some(place as u32)
    }

    /// No flow holds it, and none that ever did was established.
    fn may_be_forged(self: &Arc<Self>) -> bool {
        Arc::strong_count(self) == 1 && !self.proven.load(Relaxed)
    }

    /// Whether its time is not over, by the mode: with `has_flows` IPVS prolongs it.
    fn is_valid(&self, has_flows: bool, mode: Mode, now: Instant) -> bool {
        let expires = self.expires.load(Relaxed);
        let is_held = match mode {
            Mode::Ipvs => has_flows,
            // Its first flow is about to be stored, by another worker perhaps.
            Mode::Iptables => has_flows && expires == UNSET,
        };
        is_held || expires > now.as_nanos()
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

/// One of them is swept in each tick of the wheel with packets, so each every nine seconds where there is traffic.
const PARTS: usize = 64;

/// Every template.
#[derive(Debug)]
pub struct Affinity {
    parts: Box<[Part]>,
    hasher: RandomState,
    count: AtomicUsize,
    /// Which part is swept next.
    next: AtomicUsize,
}

type Part = DashMap<Key, Arc<Template>, RandomState>;

impl Affinity {
    /// No template; `hasher` is seeded once a process against hash flooding.
    #[must_use]
    pub fn new(hasher: &RandomState) -> Self {
        let part = || DashMap::with_hasher_and_shard_amount(hasher.clone(), 2);
        Self {
            parts: std::iter::repeat_with(part).take(PARTS).collect(),
            hasher: hasher.clone(),
            count: AtomicUsize::new(0),
            next: AtomicUsize::new(0),
        }
    }

    fn part(&self, key: &Key) -> &Part {
        // The parts themselves use the other half of the same hash.
        &self.parts[(self.hasher.hash_one(key) >> 32) as usize % PARTS]
    }

    /// The backend for a new flow: the one that the client's flows go to, or else what `pick` chooses.
    ///
    /// Beyond `max_flows` templates a new client is not remembered: strangers who invent clients must not fill the memory. What
    /// they have left there is cleared away by [`Self::expire`].
    ///
    /// Two workers with flows of one client at once get one answer. A template that is made here lives as long as it is
    /// held: [`Template::renew`] it once the flow is stored, or else it is forgotten with the flow.
    pub fn choose(
        &self,
        service: &Service,
        client: IpAddr,
        now: Instant,
        policy: &Policy,
        pick: impl FnOnce() -> Option<Arc<Backend>>,
    ) -> Option<Choice> {
        let Some(persistence) = &service.persistence else {
            return Some((pick()?, None));
        };
        let key = key(service, persistence, client);
        let part = self.part(&key);
        if let Some(known) = part.get(&key)
            && Template::is_usable(&known, service, policy, now)
        {
            return Some(choice(&known));
        }
        if self.len() >= policy.conntrack.max_flows && !part.contains_key(&key) {
            return Some((pick()?, None));
        }
        let place = match part.entry(key) {
            Entry::Occupied(known) if Template::is_usable(known.get(), service, policy, now) => {
                return Some(choice(known.get()));
            }
            place @ (Entry::Occupied(_) | Entry::Vacant(_)) => place,
        };
        let template = Arc::new(Template {
            backend: pick()?,
            place: AtomicU32::new(0),
            expires: AtomicU64::new(UNSET),
            assured: AtomicBool::new(false),
            proven: AtomicBool::new(false),
        });
        self.count
            .fetch_add(usize::from(matches!(place, Entry::Vacant(_))), Relaxed);
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
        policy: &Policy,
        forgotten: Option<&Arc<Template>>,
    ) -> Option<(IpAddr, Outlook)> {
        let key = key(service, service.persistence.as_ref()?, client);
        let Some(known) = self.part(&key).get(&key) else {
            return Some((key.1, Outlook::New));
        };
        let forgotten = forgotten.filter(|forgotten| Arc::ptr_eq(forgotten, &known));
        let holders = Arc::strong_count(&known) - 2 * usize::from(forgotten.is_some());
        let is_valid = known.is_valid(holders > 1, policy.mode, now);
        let (backend, left) = (Arc::clone(&known.backend), known.remaining(now));
        let outlook = match is_valid && known.place(service, policy).is_some() {
            true => Outlook::Used(backend, left),
            false => Outlook::Unusable(backend, left),
        };
        Some((key.1, outlook))
    }

    /// How many templates there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.count.load(Relaxed)
    }

    /// Whether no client is remembered.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Forgets, in one part of the table, templates whose time is over and that no flow holds; at `max_flows` templates also those
    /// of clients that may be forged, as `ip_vs_random_dropentry` (ip_vs_conn.c) does first.
    pub fn expire(&self, max_flows: usize, now: Instant) {
        let is_full = self.len() >= max_flows;
        let part = &self.parts[self.next.fetch_add(1, Relaxed) % PARTS];
        let mut gone = 0;
        part.retain(|_, template| {
            let stays = Template::is_alive(template, now) && !(is_full && template.may_be_forged());
            gone += usize::from(!stays);
            stays
        });
        self.count.fetch_sub(gone, Relaxed);
    }

    /// Shows each template that is in force in a mode to `see`, with the service's id and the client or its network.
    pub fn each(&self, mode: Mode, now: Instant, mut see: impl FnMut(u64, IpAddr, &Template)) {
        for entry in self.parts.iter().flatten() {
            let &(service, client) = entry.key();
            let template = entry.value();
            if template.is_valid(Arc::strong_count(template) > 1, mode, now) {
                see(service, client, template);
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
