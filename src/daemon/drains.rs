//! Backends that are being drained: since when, until when, and what is left.
use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use crate::config::edit::{BackendFields, Edit, Mistake, Refusal, Which};
use crate::control::protocol::DrainView;
use crate::control::selector::Selector;
use crate::engine::Engine;
use crate::flow::Endpoint;
use crate::policy::{BackendSpec, Policy, ServiceSpec};
use crate::ruleset::Ruleset;
use crate::time::Instant;

/// A backend of a service: the service's name and the backend's address.
pub(super) type Place = (String, Endpoint);

#[derive(Clone, Debug)]
struct Drain {
    place: Place,
    since: Instant,
    deadline: Option<Instant>,
    is_cut: bool,
}

/// Every drain under way.
#[derive(Clone, Debug, Default)]
pub(super) struct Drains(Vec<Drain>);

/// What gives the backends that `text` names weight 0, and which these are.
///
/// # Errors
/// When it names none.
pub(super) fn plan(policy: &Policy, text: &str, service: Option<&str>) -> Result<(Vec<Edit>, Vec<Place>), Refusal> {
    let selector = service.map(Selector::new);
    let picks = |spec: &&ServiceSpec| match &selector {
        Some(selector) => selector.picks(&spec.name, &spec.endpoints(&[]).collect::<Vec<_>>()),
        None => true,
    };
    let is_meant = |backend: &&BackendSpec| match text.parse::<Endpoint>() {
        Ok(endpoint) => backend.address == endpoint,
        Err(_) => text
            .parse::<IpAddr>()
            .is_ok_and(|address| backend.address.address == address),
    };
    let services = policy.services.iter().filter(picks);
    let places: Vec<Place> = services
        .flat_map(|spec| {
            let backends = spec.backends.iter().filter(is_meant);
            backends.map(|backend| (spec.name.clone(), backend.address))
        })
        .collect();
    if places.is_empty() {
        let whose = service.map_or_else(|| "no service".to_owned(), |name| format!("no service {name:?}"));
        return Err(Refusal {
            mistake: Mistake::NoSuchBackend,
            message: format!(
                "{whose} has a backend {text}: give ADDRESS:PORT or ADDRESS of one that `lbctl list -n` shows"
            ),
        });
    }
    let edit = |(service, address): &Place| Edit::EditBackend {
        service: Which::Named(service.clone()),
        address: *address,
        fields: BackendFields {
            weight: Some(0),
            ..BackendFields::default()
        },
    };
    Ok((places.iter().map(edit).collect(), places))
}

impl Drains {
    /// A drain begins, or gets another deadline.
    pub(super) fn begin(&mut self, place: Place, now: Instant, deadline: Option<Duration>) {
        let known = self.0.iter().find(|drain| drain.place == place);
        let since = known.map_or(now, |drain| drain.since);
        self.0.retain(|drain| drain.place != place);
        self.0.push(Drain {
            place,
            since,
            deadline: deadline.map(|deadline| now + deadline),
            is_cut: false,
        });
    }

    /// A drain ends with its backend, and when that has a weight again.
    pub(super) fn follow(&mut self, policy: &Policy) {
        self.0
            .retain(|drain| spec(policy, &drain.place).is_some_and(|backend| backend.weight == 0));
    }

    /// A new file: what the operator drains stays drained, unless the file says something new about that very backend.
    /// Returns what stays.
    pub(super) fn over_reload(&self, before: &Policy, after: &mut Policy) -> Vec<String> {
        let mut stay = Vec::new();
        for Drain { place, .. } in &self.0 {
            let unchanged = spec(before, place) == spec(after, place);
            let services = after.services.iter_mut().filter(|service| service.name == place.0);
            let mut backends = services.flat_map(|service| &mut service.backends);
            let backend = backends.find(|backend| backend.address == place.1);
            if let Some(backend) = backend.filter(|_| unchanged) {
                backend.weight = 0;
                stay.push(name(place));
            }
        }
        stay
    }

    /// Has the flows of those whose deadline has passed end, and returns these.
    pub(super) fn cut(&mut self, ruleset: &Ruleset, now: Instant) -> Vec<String> {
        let is_late = |drain: &&mut Drain| !drain.is_cut && drain.deadline.is_some_and(|deadline| deadline <= now);
        let mut cut = Vec::new();
        for drain in self.0.iter_mut().filter(is_late) {
            let (service, address) = &drain.place;
            let services = ruleset.services.iter().filter(|of| of.identity.name == *service);
            let mut backends = services.flat_map(|service| &service.backends);
            if let Some(backend) = backends.find(|backend| backend.address == *address) {
                backend.cut();
            }
            drain.is_cut = true;
            cut.push(name(&drain.place));
        }
        cut
    }

    /// What is left of each.
    pub(super) fn views(&self, engine: &Engine, now: Instant) -> Vec<DrainView> {
        if self.0.is_empty() {
            return Vec::new();
        }
        let mut left: HashMap<Place, (u64, Instant)> = HashMap::new();
        engine.conntrack().each(now, |flow| {
            let address = flow.backend.address;
            // The address decides in nearly all cases, without a copy of the name.
            if self.0.iter().any(|drain| drain.place.1 == address) {
                let place = (flow.backend.service.name.clone(), address);
                let (flows, oldest) = left.entry(place).or_insert((0, flow.opened));
                *flows += 1;
                *oldest = flow.opened.min(*oldest);
            }
        });
        self.0
            .iter()
            .map(|drain| drain.view(left.get(&drain.place).copied(), now))
            .collect()
    }
}

impl Drain {
    fn view(&self, left: Option<(u64, Instant)>, now: Instant) -> DrainView {
        let (service, backend) = self.place.clone();
        DrainView {
            service,
            backend,
            draining_seconds: (now - self.since).as_secs(),
            deadline_seconds: self.deadline.map(|deadline| (deadline - now).as_secs()),
            remaining_flows: left.map_or(0, |(flows, _)| flows),
            oldest_flow_seconds: left.map(|(_, oldest)| (now - oldest).as_secs()),
        }
    }
}

fn name((service, backend): &Place) -> String {
    format!("backend {backend} of service {service:?}")
}

fn spec<'a>(policy: &'a Policy, (service, address): &Place) -> Option<&'a BackendSpec> {
    let service = policy.services.iter().find(|spec| spec.name == *service)?;
    service.backends.iter().find(|backend| backend.address == *address)
}
