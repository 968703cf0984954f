//! From what the packet path works with to what is told about it.
use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt::Display;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use super::estimator::Estimator;
use super::protocol::{
    BackendView, ConnectionView, PersistenceView, RatesView, RuleKind, RuleView, ServiceView, TimeoutsView,
};
use lbd_core::affinity::Affinity;
use lbd_core::conntrack::connection::Connection;
use lbd_core::conntrack::tcp::State;
use lbd_core::conntrack::timeout::Timeouts;
use lbd_core::flow::Endpoint;
use lbd_core::matcher::rules::{Action, Condition, Probability, Rule};
use lbd_core::policy::Persistence;
use lbd_core::ruleset::Ruleset;
use lbd_core::scheduler::{Flags, Kind};
use lbd_core::service::{Backend, Member, Service};
use lbd_core::time::Instant;

/// The rates of all services and backends.
#[derive(Clone, Debug, Default)]
pub struct Rates {
    services: HashMap<String, Estimator>,
    backends: HashMap<u64, Estimator>,
}

impl Rates {
    /// From now on these count: to be called for the first configuration and after each change. New ones begin at a
    /// rate of zero, and those that are no more are forgotten.
    pub fn follow<'a>(&mut self, services: impl IntoIterator<Item = &'a Service>) {
        let mut before = std::mem::take(self);
        for service in services {
            let name = &service.identity.name;
            let known = before.services.remove(name);
            let estimator = known.unwrap_or_else(|| Estimator::new(service.identity.stats.totals()));
            self.services.insert(name.clone(), estimator);
            for backend in &service.backends {
                let known = before.backends.remove(&backend.id);
                let estimator = known.unwrap_or_else(|| Estimator::new(backend.stats.totals()));
                self.backends.insert(backend.id, estimator);
            }
        }
    }

    /// A service has other backends, and nothing else changed.
    pub fn replace(&mut self, before: &Service, after: &Service) {
        let mut former: HashMap<u64, Option<Estimator>> = HashMap::new();
        for backend in &before.backends {
            former.insert(backend.id, self.backends.remove(&backend.id));
        }
        for backend in &after.backends {
            let known = former.remove(&backend.id).flatten();
            let estimator = known.unwrap_or_else(|| Estimator::new(backend.stats.totals()));
            self.backends.insert(backend.id, estimator);
        }
    }

    /// [`super::estimator::INTERVAL`] has passed.
    pub fn tick<'a>(&mut self, services: impl IntoIterator<Item = &'a Service>) {
        for service in services {
            if let Some(estimator) = self.services.get_mut(&service.identity.name) {
                estimator.tick(service.identity.stats.totals());
            }
            for backend in &service.backends {
                if let Some(estimator) = self.backends.get_mut(&backend.id) {
                    estimator.tick(backend.stats.totals());
                }
            }
        }
    }

    /// Counts from zero again, and so do the rates (`ip_vs_zero_estimator`).
    pub fn reset(&mut self, service: &Service) {
        let stats = &service.identity.stats;
        stats.reset();
        let estimator = Estimator::new(stats.totals());
        self.services.insert(service.identity.name.clone(), estimator);
        for backend in &service.backends {
            backend.stats.reset();
            self.backends.insert(backend.id, Estimator::new(backend.stats.totals()));
        }
    }

    fn of_service(&self, service: &Service) -> RatesView {
        let estimator = self.services.get(&service.identity.name);
        estimator.map(Estimator::rates).unwrap_or_default()
    }

    fn of_backend(&self, backend: &Backend) -> RatesView {
        let estimator = self.backends.get(&backend.id);
        estimator.map(Estimator::rates).unwrap_or_default()
    }
}

impl ServiceView {
    /// The service as it is now.
    #[must_use]
    pub fn new(service: &Service, rates: &Rates) -> Self {
        Self {
            name: service.identity.name.clone(),
            protocol: service.protocol,
            addresses: service.endpoints.clone(),
            scheduler: service.kind.name().to_owned(),
            scheduler_flags: flag_words(service.kind, service.flags),
            persistence: service.persistence.map(PersistenceView::from),
            one_packet: service.one_packet,
            stats: service.identity.stats.totals().into(),
            rates: rates.of_service(service),
            backends: service
                .backends
                .iter()
                .map(|backend| BackendView::new(backend, rates))
                .collect(),
        }
    }
}

impl BackendView {
    /// The backend as it is now.
    #[must_use]
    pub fn new(backend: &Member, rates: &Rates) -> Self {
        let (upper_threshold, lower_threshold) = backend.thresholds();
        Self {
            address: backend.address,
            weight: backend.weight(),
            upper_threshold,
            lower_threshold,
            active_connections: backend.active(),
            inactive_connections: backend.inactive(),
            persistent_connections: 0,
            overloaded: backend.is_overloaded(),
            stats: backend.stats.totals().into(),
            rates: rates.of_backend(backend),
        }
    }
}

impl ConnectionView {
    /// The flow as it is now.
    #[must_use]
    pub fn new(flow: &Connection, now: Instant) -> Self {
        Self {
            protocol: flow.protocol,
            state: Cow::Borrowed(flow.state.name()),
            expires_seconds: (flow.expires - now).as_secs(),
            client: flow.client,
            virtual_address: flow.virtual_address,
            backend: flow.server(),
            source: flow.source,
            service: flow.backend.service.name.clone(),
            masqueraded: flow.is_masqueraded(),
        }
    }

    /// A template of `service` as IPVS keeps it: an entry with client port 0.
    fn of_template(service: &Service, template: &Kept) -> Option<Self> {
        let client = Endpoint::new(template.client, 0);
        Some(Self {
            protocol: service.protocol,
            state: Cow::Borrowed(template.state),
            expires_seconds: template.remaining.as_secs(),
            client,
            virtual_address: *service.endpoints.first()?,
            backend: template.backend,
            source: client,
            service: service.identity.name.clone(),
            masqueraded: false,
        })
    }
}

/// A template, in little memory.
#[derive(Clone, Copy, Debug)]
struct Kept {
    service: u64,
    client: IpAddr,
    backend: Endpoint,
    state: &'static str,
    remaining: Duration,
}

/// The templates of client affinity among the flows.
pub fn templates(affinity: &Affinity, ruleset: &Ruleset, now: Instant) -> impl Iterator<Item = ConnectionView> + use<> {
    let services = ruleset
        .services
        .iter()
        .map(|service| (service.identity.id, Arc::clone(service)));
    let by_id: HashMap<u64, Arc<Service>> = services.collect();
    let mut all = Vec::new();
    affinity.each(ruleset.policy.mode, now, |service, client, template| {
        all.push(Kept {
            service,
            client,
            backend: template.backend.address,
            state: template.state(),
            remaining: template.remaining(now),
        });
    });
    all.into_iter()
        .filter_map(move |kept| ConnectionView::of_template(by_id.get(&kept.service)?, &kept))
}

/// Fills in how many clients affinity keeps at each backend (`persistconns`).
pub fn count_persistent(views: &mut [ServiceView], affinity: &Affinity, ruleset: &Ruleset, now: Instant) {
    let names: HashMap<u64, &str> = ruleset
        .services
        .iter()
        .map(|service| (service.identity.id, service.identity.name.as_str()))
        .collect();
    let mut counts: HashMap<(&str, Endpoint), u32> = HashMap::new();
    affinity.each(ruleset.policy.mode, now, |id, _, template| {
        if let Some(name) = names.get(&id) {
            *counts.entry((name, template.backend.address)).or_default() += 1;
        }
    });
    for ServiceView { name, backends, .. } in views {
        for backend in backends {
            backend.persistent_connections = counts.get(&(name.as_str(), backend.address)).copied().unwrap_or(0);
        }
    }
}

impl From<&Timeouts> for TimeoutsView {
    fn from(timeouts: &Timeouts) -> Self {
        Self {
            tcp_established_seconds: timeouts.tcp(State::Established).as_secs(),
            tcp_fin_seconds: timeouts.tcp(State::FinWait).as_secs(),
            udp_seconds: timeouts.udp.as_secs(),
        }
    }
}

impl From<Persistence> for PersistenceView {
    fn from(persistence: Persistence) -> Self {
        Self {
            timeout_seconds: persistence.timeout.as_secs(),
            prefix_length: persistence.prefix_length,
        }
    }
}

impl RuleView {
    /// A rule that counts nothing here.
    #[must_use]
    pub fn of_rule(number: usize, rule: &Rule) -> Self {
        Self::new(number, RuleKind::User, rule, 0, 0)
    }

    /// A rule with the packets and bytes that it matched.
    #[must_use]
    pub fn new(number: usize, kind: RuleKind, rule: &Rule, packets: u64, bytes: u64) -> Self {
        Self {
            number,
            name: rule.name.clone(),
            kind,
            protocol: rule.protocol.as_ref().map(condition),
            source: rule.source.as_ref().map(condition),
            destination: rule.destination.as_ref().map(condition),
            source_port: rule.source_port.as_ref().map(ports),
            destination_port: rule.destination_port.as_ref().map(ports),
            probability: rule.probability.map(share),
            action: action(&rule.action),
            packets,
            bytes,
        }
    }
}

fn flag_words(kind: Kind, flags: Flags) -> Vec<String> {
    let scheduler = match kind {
        Kind::Sh | Kind::Mh => kind.name(),
        Kind::Random
        | Kind::Rr
        | Kind::Wrr
        | Kind::Lc
        | Kind::Wlc
        | Kind::Dh
        | Kind::Sed
        | Kind::Nq
        | Kind::Fo
        | Kind::Ovf
        | Kind::Lblc
        | Kind::Lblcr
        | Kind::Twos => return Vec::new(),
    };
    let words = [(flags.fallback, "fallback"), (flags.port, "port")];
    let set = words.into_iter().filter(|(is_set, _)| *is_set);
    set.map(|(_, word)| format!("{scheduler}-{word}")).collect()
}

fn condition(condition: &Condition<impl Display>) -> String {
    let not = if condition.negated { "!" } else { "" };
    format!("{not}{}", condition.value)
}

fn ports(ports: &Condition<RangeInclusive<u16>>) -> String {
    let (first, last) = (ports.value.start(), ports.value.end());
    let value = if first == last {
        first.to_string()
    } else {
        format!("{first}-{last}")
    };
    condition(&Condition {
        negated: ports.negated,
        value,
    })
}

/// To nine digits, as many as 1/2^32 can tell apart: 0.1 shall not be shown as 0.10000000009313226.
fn share(Probability(parts): Probability) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "at most 2^32, which an f64 holds exactly")]
    let share = parts as f64 / (1_u64 << 32) as f64;
    (share * 1e9).round() / 1e9
}

fn action(action: &Action) -> String {
    match action {
        Action::Drop => "drop".to_owned(),
        Action::Reject => "reject".to_owned(),
        Action::Pass => "pass".to_owned(),
        Action::Service(name) => format!("service:{name}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lbd_core::flow::Protocol;
    use lbd_core::policy::BackendSpec;
    use lbd_core::scheduler::Scheduler;
    use lbd_core::service::ServiceIdentity;

    fn service() -> Service {
        let identity = Arc::new(ServiceIdentity::new(1, "web"));
        let spec = BackendSpec {
            address: "10.2.0.11:8080".parse().unwrap(),
            weight: 2,
            upper_threshold: 1,
            lower_threshold: 0,
        };
        let flags = Flags {
            fallback: true,
            port: true,
            ..Flags::default()
        };
        let backend = Arc::new(Backend::new(7, &spec, Arc::clone(&identity), 1));
        let backends = vec![Member::new(backend, &spec, None)];
        Service {
            identity,
            protocol: Protocol::Tcp,
            endpoints: vec!["10.96.0.10:80".parse().unwrap()],
            kind: Kind::Mh,
            flags,
            scheduler: Scheduler::new(Kind::Mh, flags, &backends),
            backends,
            persistence: Some(Persistence {
                timeout: Duration::from_secs(10_800),
                prefix_length: 24,
            }),
            one_packet: false,
        }
    }

    #[test]
    fn a_service_is_shown_with_its_load_and_counts() {
        let service = service();
        service.backends[0].stats.count_in(0, 60);
        service.backends[0].bind();
        let view = ServiceView::new(&service, &Rates::default());
        assert_eq!(view.name, "web");
        assert_eq!(view.scheduler, "mh");
        assert_eq!(view.scheduler_flags, ["mh-fallback", "mh-port"]);
        assert_eq!(view.persistence.unwrap().timeout_seconds, 10_800);
        assert_eq!((view.stats.in_packets, view.stats.in_bytes), (1, 60));
        let backend = &view.backends[0];
        assert_eq!((backend.weight, backend.inactive_connections), (2, 1));
        assert!(backend.overloaded);
    }

    #[test]
    fn flags_are_shown_for_the_schedulers_that_have_them_only() {
        let flags = Flags {
            port: true,
            ..Flags::default()
        };
        assert_eq!(flag_words(Kind::Sh, flags), ["sh-port"]);
        assert!(flag_words(Kind::Rr, flags).is_empty());
    }

    #[test]
    fn rates_are_followed_over_a_reload_and_forgotten_with_the_service() {
        let service = service();
        let mut rates = Rates::default();
        rates.follow([&service]);
        (0..8).for_each(|_| service.backends[0].stats.count_connection(0));
        rates.tick([&service]);
        rates.follow([&service]);
        let view = ServiceView::new(&service, &rates);
        // 4 a second, a quarter of which is taken over.
        assert_eq!(view.backends[0].rates.connections_per_second, 1);
        assert_eq!(view.rates.connections_per_second, 1);
        rates.follow([]);
        assert!(rates.services.is_empty() && rates.backends.is_empty());
    }

    #[test]
    fn a_rule_is_shown_in_the_words_of_the_configuration() {
        let rule = Rule {
            name: Some("office only".to_owned()),
            source: Some(Condition {
                negated: true,
                value: "203.0.113.0/24".parse().unwrap(),
            }),
            destination: None,
            protocol: Some(Condition {
                negated: false,
                value: Protocol::Udp,
            }),
            source_port: Some(Condition {
                negated: false,
                value: 1024..=65535,
            }),
            destination_port: Some(Condition {
                negated: true,
                value: 80..=80,
            }),
            probability: Some(Probability(429_496_730)),
            action: Action::Service("web".to_owned()),
        };
        let view = RuleView::new(3, RuleKind::User, &rule, 1, 60);
        assert_eq!(view.source.as_deref(), Some("!203.0.113.0/24"));
        assert_eq!(view.destination, None);
        assert_eq!(view.protocol.as_deref(), Some("udp"));
        assert_eq!(view.source_port.as_deref(), Some("1024-65535"));
        assert_eq!(view.destination_port.as_deref(), Some("!80"));
        assert_eq!(view.probability, Some(0.1));
        assert_eq!(view.action, "service:web");
        assert_eq!((view.number, view.packets, view.bytes), (3, 1, 60));
    }
}
