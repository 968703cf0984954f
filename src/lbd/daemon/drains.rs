//! Backends that are being drained: since when, until when, and what is left.
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use lbd_control::protocol::DrainView;
use lbd_control::selector::Selector;
use lbd_core::engine::Engine;
use lbd_core::flow::Endpoint;
use lbd_core::policy::{BackendSpec, Policy, ServiceSpec};
use lbd_core::service::{Backend, Service};
use lbd_core::time::Instant;
use lbd_state::config::edit::{BackendFields, Edit, Mistake, Refusal, Which};

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
    let picks = |spec: &&Arc<ServiceSpec>| match &selector {
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
            let mut backends = services.flat_map(|service| &mut Arc::make_mut(service).backends);
            let backend = backends.find(|backend| backend.address == place.1);
            if let Some(backend) = backend.filter(|_| unchanged) {
                backend.weight = 0;
                stay.push(name(place));
            }
        }
        stay
    }

    /// Whether there are such whose deadline has passed.
    pub(super) fn are_late(&self, now: Instant) -> bool {
        self.0.iter().any(|drain| drain.is_late(now))
    }

    /// Has the flows of those whose deadline has passed end, and returns these.
    pub(super) fn cut(&mut self, services: &[Arc<Service>], now: Instant) -> Vec<String> {
        let mut cut = Vec::new();
        for drain in self.0.iter_mut().filter(|drain| drain.is_late(now)) {
            let (service, address) = &drain.place;
            let services = services.iter().filter(|of| of.identity.name == *service);
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
        // The address decides in nearly all cases, without a copy of the name.
        let is_drained = |backend: &Backend| self.0.iter().any(|drain| drain.place.1 == backend.address);
        engine.conntrack().each_of(now, is_drained, |flow| {
            let place = (flow.backend.service.name.clone(), flow.backend.address);
            let (flows, oldest) = left.entry(place).or_insert((0, flow.opened));
            *flows += 1;
            *oldest = flow.opened.min(*oldest);
        });
        self.0
            .iter()
            .map(|drain| drain.view(left.get(&drain.place).copied(), now))
            .collect()
    }
}

impl Drain {
    fn is_late(&self, now: Instant) -> bool {
        !self.is_cut && self.deadline.is_some_and(|deadline| deadline <= now)
    }

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

#[cfg(test)]
mod tests {
    use ahash::RandomState;
    use std::sync::Arc;

    use super::*;
    use lbd_core::engine::Seeds;
    use lbd_core::flow::Protocol;
    use lbd_state::config::{Config, edit, parse};

    const FILE: &str = "mode = \"ipvs\"\n[[services]]\nname = \"web\"\nprotocol = \"tcp\"\naddress = \"10.96.0.10:80\"\n\
        backends = [{ address = \"10.2.0.11:80\" }, { address = \"10.2.0.11:81\" }, { address = \"10.2.0.12:80\" }]\n";

    fn config(text: &str) -> Config {
        parse("test", text).unwrap().config
    }

    fn seconds(seconds: u64) -> Instant {
        Instant::from_duration(Duration::from_secs(seconds))
    }

    /// A drain of 10.2.0.12:80 that begins at 100 s, with ten seconds to go, and the policy with it.
    fn begun() -> (Drains, Config) {
        let config = config(FILE);
        let (edits, places) = plan(&config.policy, "10.2.0.12:80", Some("web")).unwrap();
        let mut drains = Drains::default();
        drains.begin(places[0].clone(), seconds(100), Some(Duration::from_secs(10)));
        (drains, edit::apply(&config, &[], &edits).unwrap())
    }

    #[test]
    fn a_host_means_all_its_ports_and_a_stranger_is_refused() {
        let policy = config(FILE).policy;
        assert_eq!(plan(&policy, "10.2.0.11", None).unwrap().1.len(), 2);
        assert_eq!(plan(&policy, "10.2.0.11:81", None).unwrap().1.len(), 1);
        let error = plan(&policy, "10.2.0.99", None).unwrap_err();
        assert!(
            error.message.starts_with("no service has a backend 10.2.0.99"),
            "{error}"
        );
        assert!(plan(&policy, "10.2.0.11", Some("dns")).is_err());
    }

    #[test]
    fn at_the_deadline_a_backend_is_cut_once_and_until_it_has_a_weight_again() {
        let (mut drains, config) = begun();
        let seeds = Seeds {
            choices: 1,
            hashing: RandomState::with_seeds(1, 2, 3, 4),
        };
        let (engine, _) = Engine::new(Arc::new(config.policy), 1, seeds, seconds(100));
        assert!(drains.cut(&engine.ruleset().services, seconds(109)).is_empty());
        assert_eq!(
            drains.cut(&engine.ruleset().services, seconds(110)),
            ["backend 10.2.0.12:80 of service \"web\""]
        );
        assert!(drains.cut(&engine.ruleset().services, seconds(112)).is_empty());
        let orphans = |engine: &Engine| {
            let rule = lbd_core::policy::OnBackendRemoved::Preserve;
            let ruleset = engine.ruleset();
            ruleset.services[0].backends[2].orphans(Some(rule), Protocol::Tcp, ruleset.generation)
        };
        assert_eq!(orphans(&engine), Some(lbd_core::policy::OnBackendRemoved::Reset));
        assert_eq!(drains.views(&engine, seconds(112))[0].deadline_seconds, Some(0));
        engine.apply(Arc::new(self::config(FILE).policy));
        assert_eq!(orphans(&engine), None);
    }

    #[test]
    fn a_drain_outlives_a_new_file_unless_the_file_says_something_new_of_its_backend() {
        let (drains, _) = begun();
        let before = config(FILE).policy;
        let mut other = config(&FILE.replace("10.2.0.11:81\"", "10.2.0.13:80\"")).policy;
        assert_eq!(drains.over_reload(&before, &mut other).len(), 1);
        assert_eq!(other.services[0].backends[2].weight, 0);
        let mut about_it = config(&FILE.replace("10.2.0.12:80\"", "10.2.0.12:80\", weight = 3")).policy;
        assert!(drains.over_reload(&before, &mut about_it).is_empty());
        assert_eq!(about_it.services[0].backends[2].weight, 3);
    }

    #[test]
    fn a_drain_ends_with_its_backend_or_when_that_has_a_weight_again() {
        let (drains, edited) = begun();
        let left = |policy: &Policy| {
            let mut drains = drains.clone();
            drains.follow(policy);
            drains.0.len()
        };
        assert_eq!(left(&edited.policy), 1);
        assert_eq!(left(&config(FILE).policy), 0, "a weight");
        assert_eq!(left(&config("mode = \"ipvs\"\n").policy), 0, "no such backend");
    }
}
