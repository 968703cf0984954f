//! The one hand that changes a running lbd: reloads, mode switches, changed node addresses. All or nothing each.
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};

use super::backends::{self, Turnover};
use super::collisions;
use super::drains::{self, Drains};
use super::leads::Leads;
use super::{Error, effective_policy, follow_own_sources, kept, own_sources};
use crate::config::edit::{self, Edit, Refusal, Which};
use crate::config::reload::{describe, refuse_restart_only};
use crate::config::shrinkage::{refuse_emptiness, warn_of_loss};
use crate::config::{Config, Loaded, load_again, save};
use crate::control::protocol::shadow::DisagreementView;
use crate::control::protocol::{DrainView, LastReload};
use crate::control::render::disagreement;
use crate::control::views::Rates;
use crate::engine::Engine;
use crate::io::steering::Steering;
use crate::io::xdp::interfaces::Interfaces;
use crate::io::xdp::next_hop::NextHops;
use crate::plumbing::{self, Device, Look, Plan};
use crate::policy::{Mode, OwnSources, Policy};
use crate::ruleset::Ruleset;
use crate::service::Service;
use crate::time::Instant;
use crate::worker::Clock;

/// How the last reload ended.
#[derive(Clone, Debug)]
struct Reload {
    at: Instant,
    result: Result<String, String>,
}

/// What changes while lbd runs.
struct State {
    config: Config,
    /// The file when it was last read; differs from `config` by live edits.
    file: Loaded,
    drains: Drains,
    /// None before they were installed and once they were taken down.
    leads: Option<Leads>,
    /// The state of routes and links that was followed last.
    generation: u64,
    /// The state of routes that the policy was made from.
    sources: u64,
    last_reload: Option<Reload>,
    rates: Rates,
    /// Those that the log has been told of, as long as they last.
    collisions: Vec<String>,
    /// What the configuration needs of the kernel; more stays in as long as flows need it.
    plan: Plan,
    /// What is in the kernel beyond the plan.
    surplus: Plan,
    /// Whether rules may be wider than the backends need that are there by now, and whether backends came or went since the
    /// last tick.
    wide: (bool, bool),
}

/// The running lbd, as its operator sees it.
pub(super) struct Control {
    file: PathBuf,
    datapath: Datapath,
    state: Mutex<State>,
}

/// What moves packets.
pub(super) struct Datapath {
    pub(super) engine: Arc<Engine>,
    pub(super) clock: Clock,
    pub(super) workers: usize,
    /// Packets that the device did not take.
    pub(super) unsent: Arc<AtomicU64>,
    pub(super) steering: Option<Steering>,
    /// Whether workers can send in the host's name.
    pub(super) returns_errors: bool,
    /// The state of routes that the first policy was made from.
    pub(super) generation: u64,
    /// Routes and neighbours, on AF_XDP.
    pub(super) hops: Option<Arc<NextHops>>,
}

impl Datapath {
    /// Has what depends on the services follow the ruleset in effect.
    fn follow(&self, state: &mut State) {
        let ruleset = self.engine.ruleset();
        state.rates.follow(ruleset.services.iter().map(|service| &**service));
        let collisions = collisions::of(&ruleset.policy);
        for new in collisions.iter().filter(|each| !state.collisions.contains(each)) {
            tracing::warn!("{new}");
        }
        state.collisions = collisions;
        let Some(steering) = &self.steering else { return };
        let endpoints = ruleset
            .services
            .iter()
            .flat_map(|service| service.endpoints.iter().copied());
        if let Err(error) = steering.set_services(endpoints) {
            tracing::warn!("packets of one flow may go to two workers: {error}");
        }
    }
}

/// What `policy` needs of the kernel, where an XDP program judges the packets of `interfaces`.
fn plan(policy: &Policy, interfaces: Option<&Interfaces>, returns_errors: bool) -> Result<Plan, Error> {
    let mut plan = Plan::new(policy, &policy.local_addresses)?;
    plan.returns_errors = returns_errors;
    if let Some(interfaces) = interfaces {
        plan.serve(interfaces.names(), policy.nat.own.as_ref());
    }
    Ok(plan)
}

/// So many flows are looked at in no time.
const FEW_FLOWS: usize = 10_000;

/// So many are told of at a time, every two seconds.
const DISAGREEMENTS: usize = 4;

/// What the other mode would have done otherwise, each once.
fn warn_of_disagreements(ruleset: &Ruleset, now: Instant) {
    let Some(shadow) = &ruleset.shadow else { return };
    for each in shadow.record().news(DISAGREEMENTS) {
        let view = DisagreementView::new(&each, now);
        let told = disagreement(&view, shadow.matcher().mode().name());
        tracing::warn!("shadow: {told}; `lbctl status` counts them");
    }
}

impl Control {
    pub(super) fn new(file: &Path, loaded: Loaded, datapath: Datapath) -> Self {
        let mut state = State {
            config: loaded.config.clone(),
            file: loaded,
            drains: Drains::default(),
            plan: Plan::default(),
            surplus: Plan::default(),
            wide: (false, false),
            leads: None,
            generation: datapath.generation,
            sources: datapath.generation,
            last_reload: None,
            rates: Rates::default(),
            collisions: Vec::new(),
        };
        datapath.follow(&mut state);
        Self {
            file: file.to_path_buf(),
            datapath,
            state: Mutex::new(state),
        }
    }

    /// Has the kernel lead traffic to lbd. Whoever asks for something meanwhile waits.
    pub(super) fn install(&self, device: Device, interfaces: Option<Interfaces>, journal: &Path) -> Result<(), Error> {
        let mut state = self.state.lock();
        let policy = Arc::clone(&self.datapath.engine.ruleset().policy);
        state.plan = plan(&policy, interfaces.as_ref(), self.datapath.returns_errors)?;
        let leads = Leads::install(device, interfaces, state.plan.clone(), &policy, journal)?;
        self.datapath.engine.refuse_other_ports(leads.other_hosts());
        state.leads = Some(leads);
        Ok(())
    }

    pub(super) const fn clock(&self) -> Clock {
        self.datapath.clock
    }

    pub(super) const fn engine(&self) -> &Arc<Engine> {
        &self.datapath.engine
    }

    pub(super) fn file(&self) -> &Path {
        &self.file
    }

    pub(super) const fn workers(&self) -> usize {
        self.datapath.workers
    }

    pub(super) fn unsent(&self) -> u64 {
        self.datapath.unsent.load(std::sync::atomic::Ordering::Relaxed)
    }

    pub(super) fn config(&self) -> Config {
        self.state.lock().config.clone()
    }

    pub(super) fn last_reload(&self) -> Option<LastReload> {
        let reload = self.state.lock().last_reload.clone()?;
        let succeeded = reload.result.is_ok();
        Some(LastReload {
            seconds_ago: (self.datapath.clock.now() - reload.at).as_secs(),
            succeeded,
            result: reload.result.unwrap_or_else(|error| error),
        })
    }

    /// Services with their rates. The state is locked before the ruleset, as everywhere: a reload holds the former
    /// while it waits for the latter.
    pub(super) fn with_rates<R>(&self, act: impl FnOnce(&Ruleset, &Rates) -> R) -> R {
        let state = self.state.lock();
        act(&self.datapath.engine.ruleset(), &state.rates)
    }

    /// The running configuration, as a file that would give it again.
    pub(super) fn save(&self) -> String {
        save::to_toml(&self.state.lock().config)
    }

    /// Reads the file again. One line says what changed; in an error, one line a mistake. The log is told as well, whoever asked:
    /// it is what is looked at later.
    pub(super) fn reload(&self) -> Result<String, String> {
        let mut state = self.state.lock();
        let result = self.reload_file(&mut state);
        if let Some(leads) = &mut state.leads {
            leads.look_after(Look::Close);
        }
        match &result {
            Ok(changes) => tracing::info!("reloaded {}: {changes}", self.file.display()),
            Err(errors) => tracing::error!("not reloaded, nothing was changed:\n{errors}"),
        }
        state.last_reload = Some(Reload {
            at: self.datapath.clock.now(),
            result: result.clone(),
        });
        result
    }

    /// Changes the running configuration by all `edits`, or by none. One line says what changed.
    pub(super) fn edit(&self, edits: &[Edit]) -> Result<String, Refusal> {
        self.edit_state(&mut self.state.lock(), edits)
    }

    fn edit_state(&self, state: &mut State, edits: &[Edit]) -> Result<String, Refusal> {
        let nodes = self.datapath.engine.ruleset().policy.node_addresses.clone();
        let config = edit::apply(&state.config, &nodes, edits)?;
        let changes = describe(&state.config, &config);
        let put = self.put(state, config);
        put.map_err(|error| Refusal::invalid(error.to_string()))?;
        tracing::info!("by lbctl: {changes}");
        Ok(changes.to_string())
    }

    /// Gives backends weight 0, and has the flows that are left after `deadline` seconds reset.
    pub(super) fn drain(
        &self,
        backend: &str,
        service: Option<&str>,
        deadline: Option<u64>,
    ) -> Result<Vec<DrainView>, Refusal> {
        let mut state = self.state.lock();
        let (edits, drained) = drains::plan(&state.config.policy, backend, service)?;
        self.edit_state(&mut state, &edits)?;
        let now = self.datapath.clock.now();
        for place in &drained {
            state
                .drains
                .begin(place.clone(), now, deadline.map(Duration::from_secs));
        }
        let mut views = state.drains.views(&self.datapath.engine, now);
        views.retain(|view| {
            drained
                .iter()
                .any(|(name, address)| view.service == *name && view.backend == *address)
        });
        Ok(views)
    }

    /// Every backend that is being drained.
    pub(super) fn drains(&self) -> Vec<DrainView> {
        let state = self.state.lock();
        state.drains.views(&self.datapath.engine, self.datapath.clock.now())
    }

    /// Counts the traffic of one service, or of all, from zero again.
    pub(super) fn zero(&self, which: Option<&Which>) -> Result<String, Refusal> {
        let mut state = self.state.lock();
        let nodes = self.datapath.engine.ruleset().policy.node_addresses.clone();
        let only = which
            .map(|which| edit::find(&state.config.policy, &nodes, which))
            .transpose()?;
        let ruleset = self.datapath.engine.ruleset();
        // The services of a ruleset are in the order of its configuration.
        let picked = ruleset.services.iter().enumerate();
        let picked = picked.filter(|(at, _)| only.is_none_or(|only| only == *at));
        picked.for_each(|(_, service)| state.rates.reset(service));
        Ok("counting from zero".to_owned())
    }

    /// Uses the other matcher from the next packet on; flows stay.
    pub(super) fn switch_mode(&self, mode: Mode) -> Result<String, String> {
        let mut state = self.state.lock();
        let mut config = state.config.clone();
        config.policy.switch_mode(mode);
        let changes = describe(&state.config, &config);
        self.put(&mut state, config).map_err(|error| error.to_string())?;
        tracing::info!("by lbctl: {changes}");
        Ok(changes.to_string())
    }

    /// Something about a link changed.
    pub(super) fn links_changed(&self) {
        let mut state = self.state.lock();
        if let Some(Err(error)) = state.leads.as_mut().map(Leads::follow_links) {
            tracing::error!("a link changed, and lbd cannot follow: {error}");
        }
    }

    /// This node got or lost an address, or a link changed, a moment ago.
    pub(super) fn addresses_changed(&self) {
        self.links_changed();
        let mut state = self.state.lock();
        let config = state.config.clone();
        if let Err(error) = self.put(&mut state, config) {
            tracing::error!("the addresses of this node changed, and lbd cannot follow: {error}");
        }
        // Whose link changed may be lbd's own device.
        if let Some(leads) = &mut state.leads {
            leads.look_after(Look::Quick);
        }
    }

    /// What others took out of the kernel and cannot be put back, and why.
    pub(super) fn troubles(&self) -> Vec<String> {
        let state = self.state.lock();
        state
            .leads
            .as_ref()
            .map_or_else(Vec::new, |leads| leads.troubles().to_vec())
    }

    /// Why nothing can be led here any more, if it is so.
    pub(super) fn take_loss(&self) -> Option<plumbing::Error> {
        self.state.lock().leads.as_mut().and_then(Leads::take_loss)
    }

    /// Two seconds have passed.
    pub(super) fn tick(&self) {
        let mut state = self.state.lock();
        let ruleset = self.datapath.engine.ruleset();
        state.rates.tick(ruleset.services.iter().map(|service| &**service));
        for late in state.drains.cut(&ruleset, self.datapath.clock.now()) {
            tracing::info!("{late}: its time to drain is over, the flows that are left are reset");
        }
        warn_of_disagreements(&ruleset, self.datapath.clock.now());
        drop(ruleset);
        self.datapath.engine.reclaim();
        self.follow_routes(&mut state);
        if let Some(leads) = &mut state.leads {
            leads.watch_queues();
            leads.look_after(Look::Quick);
        }
        if let Err(error) = self.prune(&mut state).and_then(|()| self.narrow(&mut state)) {
            tracing::error!("cannot take out what no flow needs any more: {error}");
        }
    }

    /// Which of its addresses the host reaches a backend with may have changed.
    fn follow_routes(&self, state: &mut State) {
        let Some(hops) = &self.datapath.hops else { return };
        let generation = hops.source_generation();
        if state.generation == generation {
            return;
        }
        let followed = state.leads.as_mut().map_or(Ok(()), Leads::follow_links);
        match followed.and_then(|()| self.follow_sources(state, hops)) {
            Ok(()) => (state.generation, state.sources) = (generation, generation),
            // And tries again, in two seconds.
            Err(error) => tracing::error!("routes changed, and lbd cannot follow: {error}"),
        }
    }

    /// Neighbours change all the time, and nothing else depends on routes: a large configuration is left alone.
    fn follow_sources(&self, state: &mut State, hops: &NextHops) -> Result<(), Error> {
        let own = own_sources(&state.config, Some(hops));
        if self.datapath.engine.ruleset().policy.nat.own == own {
            return Ok(());
        }
        let config = state.config.clone();
        self.put(state, config)
    }

    /// Whether routes and neighbours are followed no longer.
    pub(super) fn is_blind(&self) -> bool {
        self.with_interfaces(Interfaces::is_blind).unwrap_or(false)
    }

    /// What of the interfaces that are served by AF_XDP is to be told.
    pub(super) fn with_interfaces<R>(&self, tell: impl FnOnce(&Interfaces) -> R) -> Option<R> {
        let state = self.state.lock();
        state.leads.as_ref().and_then(Leads::interfaces).map(tell)
    }

    /// Takes everything out of the kernel.
    pub(super) fn take_down(&self) -> Result<(), Error> {
        match self.state.lock().leads.take() {
            Some(leads) => leads.remove(),
            None => Ok(()),
        }
    }

    fn reload_file(&self, state: &mut MutexGuard<'_, State>) -> Result<String, String> {
        let lines = |errors: Vec<String>| errors.join("\n");
        let loaded = load_again(&self.file, &state.file)
            .map_err(|errors| lines(errors.iter().map(ToString::to_string).collect()))?;
        let mut refused = refuse_restart_only(&state.config, &loaded.config);
        refused.extend(refuse_emptiness(&state.file.config, &loaded.config));
        if !refused.is_empty() {
            let place = |reason: String| format!("{}: {reason}", self.file.display());
            return Err(lines(refused.into_iter().map(place).collect()));
        }
        for warning in &loaded.warnings {
            tracing::warn!("{warning}");
        }
        if loaded.config == state.file.config {
            state.file = loaded;
            let edits = describe(&state.file.config, &state.config);
            return Ok(match edits.is_nothing() {
                true => edits.to_string(),
                false => format!("nothing changed; live edits stay: {edits}"),
            });
        }
        let dropped = describe(&state.file.config, &state.config);
        let mut config = loaded.config.clone();
        for backend in state.drains.over_reload(&state.file.config.policy, &mut config.policy) {
            tracing::info!("{backend} stays drained; `lbctl backend edit` gives it a weight again");
        }
        let changes = describe(&state.config, &config);
        let loss = warn_of_loss(&changes, state.config.policy.services.len());
        self.put(state, config).map_err(|error| error.to_string())?;
        state.file = loaded;
        if !dropped.is_nothing() {
            tracing::warn!("the file changed, so what was edited live no longer counts: {dropped}");
        }
        let Some(loss) = loss else {
            return Ok(changes.to_string());
        };
        tracing::warn!("{}: {loss}", self.file.display());
        Ok(format!("{changes}; warning: {loss}"))
    }

    /// Puts a configuration into effect. What may fail comes first: the kernel gets what the new one needs in addition,
    /// then the engine changes at once, then the kernel loses what neither the new one nor any flow needs.
    fn put(&self, state: &mut State, config: Config) -> Result<(), Error> {
        let hops = self.datapath.hops.as_ref();
        let generation = hops.map_or(0, |hops| hops.source_generation());
        let policy = effective_policy(&config, self.own_sources(state, &config))?;
        self.put_policy(state, config, policy)?;
        state.sources = generation;
        Ok(())
    }

    fn put_policy(&self, state: &mut State, config: Config, policy: Policy) -> Result<(), Error> {
        let former = Arc::clone(&self.datapath.engine.ruleset().policy);
        if let Some(turnover) = Turnover::between(&former, &policy, &state.plan) {
            return self.turn_over(state, config, policy, &turnover);
        }
        let interfaces = state.leads.as_ref().and_then(Leads::interfaces);
        let plan = plan(&policy, interfaces, self.datapath.returns_errors)?;
        let is_same = *self.datapath.engine.ruleset().policy == policy;
        if is_same && plan.served == state.plan.served {
            state.config = config;
            return Ok(());
        }
        if let Some(leads) = &mut state.leads {
            let both = plan.clone().union(leads.plan());
            leads.update(both, &policy)?;
            self.datapath.engine.refuse_other_ports(leads.other_hosts());
        }
        if !is_same {
            self.datapath.engine.apply(Arc::new(policy));
            self.datapath.follow(state);
        }
        state.config = config;
        state.drains.follow(&state.config.policy);
        state.plan = plan;
        if let Some(leads) = &state.leads {
            state.surplus = kept::gone(leads.plan(), &state.plan);
        }
        self.prune_now(state);
        Ok(())
    }

    fn prune_now(&self, state: &mut State) {
        if let Err(error) = self.prune(state) {
            tracing::warn!("the old routes and rules stay in for now: {error}");
        }
    }

    /// Which of its addresses the host reaches each backend with. Routes are asked for new backends only, while they are
    /// what they were.
    fn own_sources(&self, state: &State, config: &Config) -> Option<OwnSources> {
        let hops = self.datapath.hops.as_deref();
        let known = self.datapath.engine.ruleset().policy.nat.own.clone();
        match (known, hops) {
            (Some(mut own), Some(hops))
                if config.masquerades_as_itself() && state.sources == hops.source_generation() =>
            {
                follow_own_sources(&mut own, &state.config, config, hops);
                Some(own)
            }
            _ => own_sources(config, hops),
        }
    }

    /// Puts a configuration into effect in which a few services have other backends, at the cost of these.
    fn turn_over(&self, state: &mut State, config: Config, policy: Policy, turnover: &Turnover) -> Result<(), Error> {
        let Turnover { places, come, gone } = turnover;
        if let Some(leads) = &mut state.leads {
            leads.add_replies(&come.difference(&leads.plan().replies).copied().collect())?;
        }
        let before: Vec<Arc<Service>> = {
            let ruleset = self.datapath.engine.ruleset();
            places
                .iter()
                .map(|&place| Arc::clone(&ruleset.services[place]))
                .collect()
        };
        self.datapath.engine.apply(Arc::new(policy));
        let ruleset = self.datapath.engine.ruleset();
        for (before, &place) in before.iter().zip(places) {
            state.rates.replace(before, &ruleset.services[place]);
        }
        drop(ruleset);
        state.config = config;
        state.drains.follow(&state.config.policy);
        for reply in come {
            state.plan.replies.insert(*reply);
            state.surplus.replies.remove(reply);
        }
        for reply in gone {
            state.plan.replies.remove(reply);
            state.surplus.replies.insert(*reply);
        }
        state.wide = (state.wide.0 || !come.is_empty() || !gone.is_empty(), true);
        // To look at each of many flows takes a while; the next tick does.
        if self.datapath.engine.conntrack().len() < FEW_FLOWS {
            self.prune_now(state);
        }
        Ok(())
    }

    /// Once no more backends come and go, rules are made as narrow as they can be.
    fn narrow(&self, state: &mut State) -> Result<(), Error> {
        let is_quiet = !std::mem::replace(&mut state.wide.1, false);
        let Some(leads) = state.leads.as_mut().filter(|_| is_quiet && state.wide.0) else {
            return Ok(());
        };
        let policy = Arc::clone(&self.datapath.engine.ruleset().policy);
        leads.update(leads.plan().clone(), &policy)?;
        state.wide.0 = false;
        Ok(())
    }

    fn prune(&self, state: &mut State) -> Result<(), Error> {
        let Some(leads) = &mut state.leads else {
            return Ok(());
        };
        let gone = &state.surplus;
        if *gone == Plan::default() {
            return Ok(());
        }
        let mut kept = Plan::default();
        let conntrack = self.datapath.engine.conntrack();
        conntrack.each(self.datapath.clock.now(), |flow| kept::keep(&mut kept, gone, flow));
        if kept == *gone {
            return Ok(());
        }
        if backends::are_many(&state.plan) && kept::is_only_of_replies(gone) {
            leads.remove_replies(&gone.replies.difference(&kept.replies).copied().collect())?;
            // Rules that cover other backends, too, are narrowed when it is quiet.
            state.wide = (true, true);
        } else {
            let policy = Arc::clone(&self.datapath.engine.ruleset().policy);
            leads.update(state.plan.clone().union(&kept), &policy)?;
        }
        state.surplus = kept;
        Ok(())
    }
}
