//! Who gets a new flow, and from whom it seems to come.
use std::borrow::Cow;
use std::sync::Arc;

use super::Way;
use crate::protocol::explanation::{AffinityStep, Candidate, RewriteStep, SchedulerStep, SourceStep, Step};
use lbd_core::affinity::Outlook;
use lbd_core::conntrack::connection::{Class, Connection, Tenant};
use lbd_core::flow::ports::PortSet;
use lbd_core::flow::{Direction, Endpoint, Tuple};
use lbd_core::nat::{self, NoSource, Why};
use lbd_core::packet::Headers;
use lbd_core::scheduler::{Kind, Rng};
use lbd_core::service::{Backend, Member, Service};
use lbd_core::verdict::{Drop, Reject, Verdict};

impl Way<'_> {
    /// `Processor::establish`, in the place of the flow that is `forgotten`.
    pub(super) fn establish(
        &mut self,
        headers: &Headers,
        tuple: &Tuple,
        service: &Service,
        forgotten: Option<&Connection>,
    ) -> Verdict {
        let chosen = match self.remembered(tuple, service, forgotten) {
            Some(backend) => Some(backend),
            None => self.scheduled(tuple, service, forgotten),
        };
        let Some(backend) = chosen else {
            return self.refuse(headers, Reject::NoBackend);
        };
        let server = backend.server(tuple.destination.port);
        self.told.backend = Some(server);
        let source = match self.source(tuple, &backend, forgotten) {
            Ok(source) => source,
            Err(NoSource::InUse) => return Verdict::Drop(Drop::TupleInUse),
            Err(NoSource::PoolExhausted) => return Verdict::Drop(Drop::PoolExhausted),
        };
        if !self.has_room(forgotten) {
            return Verdict::Drop(Drop::TableFull);
        }
        self.push(Step::Rewrite(RewriteStep {
            protocol: tuple.protocol,
            source,
            destination: server,
            of_quoted: false,
        }));
        Verdict::Forward
    }

    /// The backend that client affinity has for the client.
    fn remembered(&mut self, tuple: &Tuple, service: &Service, forgotten: Option<&Connection>) -> Option<Arc<Backend>> {
        let template = forgotten.and_then(|flow| flow.template.as_ref());
        let affinity = self.engine.affinity();
        let (client, outlook) =
            affinity.outlook(service, tuple.source.address, self.now, &self.ruleset.policy, template)?;
        let (backend, expires, outcome) = match outlook {
            Outlook::New => (None, None, "none"),
            Outlook::Unusable(backend, left) => (Some(backend), Some(left), "unusable"),
            Outlook::Used(backend, left) => (Some(backend), Some(left), "used"),
        };
        self.push(Step::Affinity(AffinityStep {
            client: client.to_string(),
            backend: backend.as_ref().map(|backend| backend.address),
            expires_seconds: expires.map(|left| left.as_secs()),
            outcome: Cow::Borrowed(outcome),
        }));
        backend.filter(|_| outcome == "used")
    }

    /// The choice of the scheduler, made on a copy of it.
    fn scheduled(&mut self, tuple: &Tuple, service: &Service, forgotten: Option<&Connection>) -> Option<Arc<Backend>> {
        let backends = without(&service.backends, forgotten);
        let scheduler = service.scheduler.copy();
        let pick = scheduler.pick(tuple, &backends, self.now, &mut Rng::with_seed(0));
        let free = |backend: &&Member| backend.weight() != 0 && !backend.is_overloaded();
        let by_chance = is_by_chance(service.kind) && backends.iter().filter(free).count() > 1;
        let pick = pick.and_then(|index| service.backends.get(index));
        let pick = pick.map(|member| Arc::clone(&member.backend));
        self.told.by_chance |= by_chance;
        if by_chance {
            let note = "the backend is chosen by chance: the one shown is one of those that may be";
            self.told.notes.push(Cow::Borrowed(note));
        }
        self.push(Step::Scheduler(SchedulerStep {
            scheduler: service.kind.name().to_owned(),
            candidates: backends.iter().map(candidate).collect(),
            pick: pick.as_ref().map(|backend| backend.address),
            by_chance,
        }));
        pick
    }

    /// The sender that the backend sees; None: by chance.
    fn source(
        &mut self,
        tuple: &Tuple,
        backend: &Backend,
        forgotten: Option<&Connection>,
    ) -> Result<Option<Endpoint>, NoSource> {
        let table = self.engine.conntrack();
        let forgotten = forgotten.map(|flow| flow.arriving(Direction::Original));
        let policy = &self.ruleset.policy;
        let timeouts = &policy.conntrack.timeouts;
        let tenant = |reply: &Tuple| match table.get(reply, self.now) {
            Some((flow, _)) if Some(flow.arriving(Direction::Original)) != forgotten => {
                Tenant::of(flow.state, flow.dialogue, flow.expires, timeouts, self.now)
            }
            Some(_) | None => Tenant::Nobody,
        };
        let bypass = |reply: &Tuple| table.bypass(reply, timeouts, self.now);
        let (why, found) = nat::outlook(self.ruleset, tuple, backend, tenant, bypass);
        let masqueraded = why != Why::Client && found != Err(NoSource::InUse);
        let source = (!masqueraded && found.is_ok()).then_some(tuple.source);
        let (addresses, ports) = match masqueraded {
            true => self.stand_ins(tuple, backend),
            false => (Vec::new(), None),
        };
        self.push(Step::Source(SourceStep {
            masqueraded,
            source,
            addresses,
            ports,
            why: Cow::Borrowed(why.name()),
            found: found.is_ok(),
        }));
        found.map(|()| source)
    }

    /// The addresses and ports that may stand for the client.
    fn stand_ins(&self, tuple: &Tuple, backend: &Backend) -> (Vec<String>, Option<String>) {
        let nat = &self.ruleset.policy.nat;
        let range = nat::ports(nat);
        let own = nat
            .own
            .as_ref()
            .and_then(|own| own.towards.get(&backend.address.address));
        let (addresses, ports): (_, &PortSet) = match own {
            Some(address) => (vec![address.to_string()], range),
            None => {
                let v4 = tuple.source.address.is_ipv4();
                let pool = nat.pool.iter().filter(|network| network.addr().is_ipv4() == v4);
                (pool.map(ToString::to_string).collect(), &nat::POOL_PORTS)
            }
        };
        (addresses, Some(ports.to_string()))
    }

    /// Whether the connection table takes another flow (`Conntrack::reserve`).
    fn has_room(&mut self, forgotten: Option<&Connection>) -> bool {
        let table = self.engine.conntrack();
        let flows = table.len().saturating_sub(usize::from(forgotten.is_some()));
        let max_flows = table.max_flows();
        let outcome = match flows < max_flows {
            true => "stored",
            false => {
                let mut may_go = 0;
                table.each(self.now, |flow| {
                    may_go += usize::from(flow.class() != Class::Established);
                });
                let gone = forgotten.is_some_and(|flow| flow.class() != Class::Established);
                if may_go > usize::from(gone) { "evicts" } else { "full" }
            }
        };
        self.push(Step::Table {
            flows,
            max_flows,
            outcome: Cow::Borrowed(outcome),
        });
        outcome != "full"
    }
}

/// The backends as they are once a flow is forgotten: schedulers look at their load.
fn without(backends: &[Member], forgotten: Option<&Connection>) -> Vec<Member> {
    let lighter = |backend: &Member| match forgotten {
        Some(flow) if flow.backend.id == backend.id => {
            let copy = backend.copy();
            copy.unbind(flow.state.is_active());
            backend.with(Arc::new(copy))
        }
        Some(_) | None => backend.clone(),
    };
    backends.iter().map(lighter).collect()
}

fn candidate(backend: &Member) -> Candidate {
    Candidate {
        backend: backend.address,
        weight: backend.weight(),
        active_connections: backend.active(),
        inactive_connections: backend.inactive(),
        drained: backend.weight() == 0,
        overloaded: backend.is_overloaded(),
    }
}

const fn is_by_chance(kind: Kind) -> bool {
    match kind {
        Kind::Random | Kind::Twos => true,
        Kind::Rr
        | Kind::Wrr
        | Kind::Lc
        | Kind::Wlc
        | Kind::Sh
        | Kind::Dh
        | Kind::Mh
        | Kind::Sed
        | Kind::Nq
        | Kind::Fo
        | Kind::Ovf
        | Kind::Lblc
        | Kind::Lblcr => false,
    }
}
