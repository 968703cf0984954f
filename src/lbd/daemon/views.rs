//! What lbctl asks, answered from the running lbd.
use std::borrow::Cow;
use std::collections::BTreeMap;

use super::control::Control;
use lbd_control::explain::{explain, packet};
use lbd_control::protocol::explanation::Question;
use lbd_control::protocol::shadow::ShadowView;
use lbd_control::protocol::{
    ConnectionView, Data, Drops, FragmentsView, PacketCounts, Reply, Request, RuleKind, RuleView, ServiceView,
    StateCount, Status,
};
use lbd_control::selector::Selector;
use lbd_control::views;
use lbd_control::{Connections, Handler};
use lbd_core::conntrack::Cursor;
use lbd_core::flow::Protocol;
use lbd_core::fragments::Holding;
use lbd_core::matcher::Matcher;
use lbd_core::matcher::rules::{Action, Condition, Entry, Origin, Rule};
use lbd_core::time::Instant;
use lbd_state::config::Backend;
use lbd_state::config::edit::Refusal;

impl Handler for Control {
    fn handle(&self, request: Request) -> Reply {
        match request {
            Request::Status => Reply::Ok(Data::Status(Box::new(self.status()))),
            Request::List { service } => self.services(service.as_deref()),
            Request::Connections { service } => match self.connections(service.as_deref()) {
                Ok(all) => Reply::Ok(Data::Connections(all.collect())),
                Err(refusal) => refusal,
            },
            Request::Rules => self.rules(),
            Request::Drops => Reply::Ok(Data::Drops(Drops::new(|verdict| self.engine().count(verdict)))),
            Request::Explain { packet } => self.explain(&packet),
            Request::Mode => Reply::Ok(Data::Mode(self.config().policy.mode)),
            Request::SwitchMode { mode } => done(self.switch_mode(mode)),
            Request::Reload => done(self.reload()),
            Request::Save => Reply::Ok(Data::Configuration(self.save())),
            Request::Edit { edits } => edited(self.edit(&edits)),
            Request::Drain {
                backend,
                service,
                deadline_seconds,
            } => match self.drain(&backend, service.as_deref(), deadline_seconds) {
                Ok(drains) => Reply::Ok(Data::Drains(drains)),
                Err(refusal) => refusal.into(),
            },
            Request::Drains => Reply::Ok(Data::Drains(self.drains())),
            Request::Timeouts => Reply::Ok(Data::Timeouts((&self.config().policy.conntrack.timeouts).into())),
            Request::Zero { service } => edited(self.zero(service.as_ref())),
        }
    }

    fn connections(&self, service: Option<&str>) -> Result<Connections<'_>, Reply> {
        if let Some(selector) = service.map(Selector::new) {
            let ruleset = self.engine().ruleset();
            let mut services = ruleset.services.iter();
            if !services.any(|service| selector.picks(&service.identity.name, &service.endpoints)) {
                return Err(Reply::error(selector.unknown()));
            }
        }
        Ok(Box::new(self.flows(service.map(str::to_owned))))
    }
}

fn done(result: Result<String, String>) -> Reply {
    result.map_or_else(Reply::error, Reply::message)
}

fn edited(result: Result<String, Refusal>) -> Reply {
    result.map_or_else(Reply::from, Reply::message)
}

impl Control {
    fn status(&self) -> Status {
        let config = self.config();
        let services = &config.policy.services;
        let conntrack = self.engine().conntrack();
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            mode: config.policy.mode,
            backend: config.datapath.backend.name().to_owned(),
            config: self.file().to_path_buf(),
            pid: std::process::id(),
            uptime_seconds: (self.clock().now() - Instant::ZERO).as_secs(),
            workers: self.workers(),
            services: services.len(),
            backends: services.iter().map(|service| service.backends.len()).sum(),
            flows: conntrack.len(),
            max_flows: conntrack.max_flows(),
            flow_table_bytes: conntrack.memory(),
            unknown_tcp: config.policy.conntrack.unknown_tcp.name().to_owned(),
            echo: config.policy.icmp.echo,
            flows_by_state: self.flows_by_state(),
            packets: PacketCounts::new(|verdict| self.engine().count(verdict)),
            fragments: self.fragments(),
            unsent: self.unsent(),
            last_reload: self.last_reload(),
            troubles: self.troubles(),
            firewall: self.firewall_lines(),
            draining: self.drains(),
            shadow: self.shadow(),
            af_xdp: self.af_xdp(),
        }
    }

    fn shadow(&self) -> Option<ShadowView> {
        let ruleset = self.engine().ruleset();
        let shadow = ruleset.shadow.as_ref()?;
        Some(ShadowView::new(shadow, self.clock().now()))
    }

    fn fragments(&self) -> FragmentsView {
        let Holding {
            datagrams,
            packets,
            bytes,
        } = self.engine().fragments();
        FragmentsView {
            datagrams,
            held: packets,
            held_bytes: bytes,
        }
    }

    fn flows_by_state(&self) -> Vec<StateCount> {
        let mut counts: BTreeMap<(Protocol, &'static str), u64> = BTreeMap::new();
        for (state, flows) in self.engine().conntrack().states() {
            *counts.entry((state.protocol(), state.name())).or_default() += flows;
        }
        let count = |((protocol, state), flows)| StateCount {
            protocol,
            state: Cow::Borrowed(state),
            flows,
        };
        counts.into_iter().map(count).collect()
    }

    fn services(&self, wanted: Option<&str>) -> Reply {
        let selector = wanted.map(Selector::new);
        let views: Vec<ServiceView> = self.with_rates(|services, rates| {
            let picked = services.iter().filter(|service| {
                let picks = |selector: &Selector<'_>| selector.picks(&service.identity.name, &service.endpoints);
                selector.as_ref().is_none_or(picks)
            });
            let mut views: Vec<ServiceView> = picked.map(|service| ServiceView::new(service, rates)).collect();
            let (affinity, now) = (self.engine().affinity(), self.clock().now());
            views::count_persistent(&mut views, affinity, &self.engine().ruleset(), now);
            views
        });
        match selector {
            Some(selector) if views.is_empty() => Reply::error(selector.unknown()),
            Some(_) | None => Reply::Ok(Data::Services(views)),
        }
    }

    /// None but this service's, if one is wanted.
    fn flows(&self, wanted: Option<String>) -> impl Iterator<Item = ConnectionView> + '_ {
        let (conntrack, now) = (self.engine().conntrack(), self.clock().now());
        let picks = move |wanted: &Option<String>, name: &str, address| {
            let selector = wanted.as_deref().map(Selector::new);
            selector.is_none_or(|selector| selector.picks_address(name, address))
        };
        let of_templates = wanted.clone();
        let mut cursor = Cursor::default();
        let parts = std::iter::from_fn(move || {
            let mut part = Vec::new();
            let goes_on = conntrack.visit(&mut cursor, now, |flow| {
                if picks(&wanted, &flow.backend.service.name, flow.virtual_address) {
                    part.push(ConnectionView::new(flow, now));
                }
            });
            goes_on.then_some(part)
        });
        let templates = std::iter::once_with(move || {
            let all = views::templates(self.engine().affinity(), &self.engine().ruleset(), now);
            all.filter(move |view| picks(&of_templates, &view.service, view.virtual_address))
        });
        parts.flatten().chain(templates.flatten())
    }

    fn explain(&self, question: &Question) -> Reply {
        let bytes = match packet(question) {
            Ok(bytes) => bytes,
            Err(error) => return Reply::error(error),
        };
        let backend = self.config().datapath.backend;
        let mut explanation = explain(self.engine(), &bytes, self.clock().now());
        match backend {
            Backend::Tun => {}
            Backend::AfXdp => explanation.notes.push(Cow::Borrowed(
                "where lbd itself routes (AF_XDP), the MTU of the way on and the packet's hop limit were not looked at",
            )),
        }
        let obstacles = self.firewall_lines();
        let notes = obstacles
            .into_iter()
            .map(|line| Cow::Owned(format!("this host: {line}")));
        explanation.notes.extend(notes);
        Reply::Ok(Data::Explanation(Box::new(explanation)))
    }

    fn rules(&self) -> Reply {
        let ruleset = self.engine().ruleset();
        let entries = match &ruleset.matcher {
            Matcher::Rules(rules) => rules.entries(),
            // They are ignored, as the log has said.
            Matcher::VirtualServers(_) => Vec::new(),
        };
        let numbered = entries.iter().enumerate();
        Reply::Ok(Data::Rules(
            numbered.map(|(index, entry)| rule_view(index + 1, entry)).collect(),
        ))
    }
}

fn rule_view(number: usize, entry: &Entry) -> RuleView {
    let totals = entry.stats.totals();
    let (kind, rule) = match &entry.origin {
        Origin::User(rule) => (RuleKind::User, rule.clone()),
        Origin::Service {
            name,
            protocol,
            endpoint,
        } => (
            RuleKind::Service,
            Rule {
                name: Some(name.clone()),
                source: None,
                destination: Some(exactly(endpoint.address.into())),
                protocol: Some(exactly(*protocol)),
                source_port: None,
                destination_port: Some(exactly(endpoint.port..=endpoint.port)),
                probability: None,
                action: Action::Service(name.clone()),
            },
        ),
    };
    RuleView::new(number, kind, &rule, totals.in_packets, totals.in_bytes)
}

const fn exactly<T>(value: T) -> Condition<T> {
    Condition { negated: false, value }
}
