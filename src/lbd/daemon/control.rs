//! What an operator asks of a running lbd: reloads, edits, mode switches. All or nothing each.
//!
//! Who changes something holds [`Work`], for as long as it takes. What is shown and counted lies beside it under locks of
//! its own that are held for an instant ([`Shown`]) or for as long as counting takes, so that `lbctl status` is answered
//! during any change. They are locked in the order of the fields of [`Control`], each before the ruleset.
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use parking_lot::Mutex;

use super::collisions;
use super::drains::{self, Drains};
use super::leads::Leads;
use super::lingering::Lingering;
use super::{Error, af_xdp, system};
use lbd_control::protocol::{AfXdpView, DrainView, LastReload};
use lbd_control::views::Rates;
use lbd_core::engine::Engine;
use lbd_core::policy::{Mode, Policy};
use lbd_core::service::Service;
use lbd_core::time::Instant;
use lbd_net::io::steering::Steering;
use lbd_net::io::xdp::interfaces::Interfaces;
use lbd_net::io::xdp::next_hop::NextHops;
use lbd_net::plumbing::firewall::{Firewall, Needs};
use lbd_net::plumbing::{self, Device, Halt, Look, Plan};
use lbd_net::worker::Clock;
use lbd_state::config::edit::{self, Edit, Refusal, Which};
use lbd_state::config::reload::{describe, refuse_restart_only};
use lbd_state::config::shrinkage::{refuse_emptiness, warn_of_loss};
use lbd_state::config::{Backend, Config, Firewall as OnFirewall, Loaded, load_again, save};

/// How the last reload ended.
#[derive(Clone, Debug)]
struct Reload {
    at: Instant,
    result: Result<String, String>,
}

/// What a change of the running lbd needs.
pub(super) struct Work {
    /// The file when it was last read; differs from what runs by live edits.
    file: Loaded,
    /// None before they were installed and once they were taken down.
    pub(super) leads: Option<Leads>,
    /// The state of routes and links that was followed last.
    pub(super) generation: u64,
    /// The state of routes that the policy was made from.
    pub(super) sources: u64,
    /// Those that the log has been told of, as long as they last.
    pub(super) collisions: Vec<String>,
    /// What the configuration needs of the kernel; more stays in as long as flows need it.
    pub(super) plan: Plan,
    pub(super) lingering: Lingering,
    pub(super) covers: Covers,
}

/// The rules that cover backends.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Covers {
    /// Whether they may be wider than the backends need that are there by now.
    pub(super) may_be_wide: bool,
    /// Whether backends came or went since the last tick.
    pub(super) have_changed: bool,
}

/// What is shown of the running lbd.
struct Shown {
    config: Arc<Config>,
    drains: Drains,
    last_reload: Option<Reload>,
    /// When there was last time to look.
    af_xdp: Option<AfXdpView>,
    /// What others took out of the kernel and cannot be put back, and why.
    troubles: Vec<String>,
}

/// The running lbd, as its operator sees it.
pub(super) struct Control {
    file: PathBuf,
    pub(super) datapath: Datapath,
    /// Set when lbd is to end: whatever takes long gives up.
    pub(super) halt: Halt,
    pub(super) work: Mutex<Work>,
    pub(super) rates: Mutex<Rates>,
    shown: Mutex<Shown>,
    /// None before and after the kernel leads traffic here.
    firewall: Mutex<Option<Firewall>>,
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
    /// The services in effect.
    pub(super) fn services(&self) -> Vec<Arc<Service>> {
        self.engine.ruleset().services.clone()
    }

    /// The policy in effect.
    pub(super) fn policy(&self) -> Arc<Policy> {
        Arc::clone(&self.engine.ruleset().policy)
    }
}

/// How long `lbctl status` waits for a change to be over before it tells what was known before.
const GLANCE: Duration = Duration::from_millis(20);

/// What `policy` needs of the kernel, where an XDP program judges the packets of `interfaces`.
pub(super) fn plan(policy: &Policy, interfaces: Option<&Interfaces>, returns_errors: bool) -> Result<Plan, Error> {
    let mut plan = Plan::new(policy, &policy.local_addresses)?;
    plan.returns_errors = returns_errors;
    if let Some(interfaces) = interfaces {
        plan.serve(interfaces.names(), policy.nat.own.as_ref());
    }
    Ok(plan)
}

/// What has to come through this host's packet filters.
fn firewall_needs(config: &Config) -> Needs {
    let services = &config.policy.services;
    let serves = |v4: bool| services.iter().any(|service| service.address.address.is_ipv4() == v4);
    Needs {
        device: config.tun.name.clone(),
        af_xdp: config.datapath.backend == Backend::AfXdp,
        families: (serves(true), serves(false)),
        node_ports: services.iter().filter_map(|service| service.node_port).collect(),
        open: config.tun.firewall == OnFirewall::Open,
    }
}

impl Control {
    pub(super) fn new(file: &Path, loaded: Loaded, datapath: Datapath) -> Self {
        let shown = Shown {
            config: Arc::new(loaded.config.clone()),
            drains: Drains::default(),
            last_reload: None,
            af_xdp: None,
            troubles: Vec::new(),
        };
        let work = Work {
            file: loaded,
            leads: None,
            generation: datapath.generation,
            sources: datapath.generation,
            collisions: Vec::new(),
            plan: Plan::default(),
            lingering: Lingering::default(),
            covers: Covers::default(),
        };
        let control = Self {
            file: file.to_path_buf(),
            datapath,
            halt: Halt::default(),
            work: Mutex::new(work),
            rates: Mutex::default(),
            shown: Mutex::new(shown),
            firewall: Mutex::default(),
        };
        control.follow_services(&mut control.work.lock());
        control
    }

    /// Has the kernel lead traffic to lbd. Whoever wants to change something meanwhile waits.
    pub(super) fn install(&self, device: Device, interfaces: Option<Interfaces>, journal: &Path) -> Result<(), Error> {
        let mut work = self.work.lock();
        let policy = self.datapath.policy();
        work.plan = plan(&policy, interfaces.as_ref(), self.datapath.returns_errors)?;
        let mut leads = Leads::install(device, interfaces, work.plan.clone(), &policy, journal)?;
        leads.heed(self.halt.clone());
        self.datapath.engine.refuse_other_ports(leads.other_hosts());
        work.leads = Some(leads);
        let firewall = Firewall::start(firewall_needs(&self.config()));
        *self.firewall.lock() = Some(firewall.map_err(system("a thread that watches this host's packet filters"))?);
        Ok(())
    }

    /// What of this host's own drops packets of lbd's.
    pub(super) fn firewall_lines(&self) -> Vec<String> {
        self.firewall.lock().as_ref().map(Firewall::lines).unwrap_or_default()
    }

    /// Has what depends on the services follow the ruleset in effect.
    pub(super) fn follow_services(&self, work: &mut Work) {
        let (policy, services) = (self.datapath.policy(), self.datapath.services());
        self.rates.lock().follow(services.iter().map(|service| &**service));
        let collisions = collisions::of(&policy);
        for new in collisions.iter().filter(|each| !work.collisions.contains(each)) {
            tracing::warn!("{new}");
        }
        work.collisions = collisions;
        let Some(steering) = &self.datapath.steering else {
            return;
        };
        let endpoints = services.iter().flat_map(|service| service.endpoints.iter().copied());
        if let Err(error) = steering.set_services(endpoints) {
            tracing::warn!("packets of one flow may go to two workers: {error}");
        }
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

    pub(super) fn config(&self) -> Arc<Config> {
        Arc::clone(&self.shown.lock().config)
    }

    /// From now on this runs.
    pub(super) fn show(&self, config: Config) {
        let config = Arc::new(config);
        if let Some(firewall) = self.firewall.lock().as_mut() {
            firewall.follow(firewall_needs(&config));
        }
        let mut shown = self.shown.lock();
        shown.drains.follow(&config.policy);
        shown.config = config;
    }

    pub(super) fn last_reload(&self) -> Option<LastReload> {
        let reload = self.shown.lock().last_reload.clone()?;
        let succeeded = reload.result.is_ok();
        Some(LastReload {
            seconds_ago: (self.datapath.clock.now() - reload.at).as_secs(),
            succeeded,
            result: reload.result.unwrap_or_else(|error| error),
        })
    }

    /// Services with their rates.
    pub(super) fn with_rates<R>(&self, act: impl FnOnce(&[Arc<Service>], &Rates) -> R) -> R {
        let rates = self.rates.lock();
        let services = self.datapath.services();
        act(&services, &rates)
    }

    /// The running configuration, as a file that would give it again.
    pub(super) fn save(&self) -> String {
        save::to_toml(&self.config())
    }

    /// Whether lbd is to end.
    pub(super) fn go_on(&self) -> Result<(), Error> {
        match self.halt.is_set() {
            true => Err(plumbing::Error::Halted.into()),
            false => Ok(()),
        }
    }

    /// Reads the file again. One line says what changed; in an error, one line a mistake. The log is told as well, whoever asked:
    /// it is what is looked at later.
    pub(super) fn reload(&self) -> Result<String, String> {
        let mut work = self.work.lock();
        let result = self.reload_file(&mut work);
        if let (Ok(()), Some(leads)) = (self.go_on(), &mut work.leads) {
            leads.look_after(Look::Close);
        }
        self.show_troubles(&work);
        match &result {
            Ok(changes) => tracing::info!("reloaded {}: {changes}", self.file.display()),
            Err(errors) => tracing::error!("not reloaded, nothing was changed:\n{errors}"),
        }
        self.shown.lock().last_reload = Some(Reload {
            at: self.datapath.clock.now(),
            result: result.clone(),
        });
        result
    }

    /// Changes the running configuration by all `edits`, or by none. One line says what changed.
    pub(super) fn edit(&self, edits: &[Edit]) -> Result<String, Refusal> {
        self.edit_with(&mut self.work.lock(), edits)
    }

    fn edit_with(&self, work: &mut Work, edits: &[Edit]) -> Result<String, Refusal> {
        let (running, nodes) = (self.config(), self.datapath.policy().node_addresses.clone());
        let config = edit::apply(&running, &nodes, edits)?;
        let changes = describe(&running, &config);
        let put = self.put(work, config);
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
        let mut work = self.work.lock();
        let (edits, drained) = drains::plan(&self.config().policy, backend, service)?;
        self.edit_with(&mut work, &edits)?;
        let now = self.datapath.clock.now();
        let mut shown = self.shown.lock();
        for place in &drained {
            let deadline = deadline.map(Duration::from_secs);
            shown.drains.begin(place.clone(), now, deadline);
        }
        drop(shown);
        drop(work);
        let mut views = self.drains();
        views.retain(|view| {
            drained
                .iter()
                .any(|(name, address)| view.service == *name && view.backend == *address)
        });
        Ok(views)
    }

    /// Every backend that is being drained.
    pub(super) fn drains(&self) -> Vec<DrainView> {
        // The flows are looked through with nothing locked.
        let drains = self.shown.lock().drains.clone();
        drains.views(&self.datapath.engine, self.datapath.clock.now())
    }

    /// Has the flows of backends end whose time to drain is over, and returns these.
    pub(super) fn cut_drains(&self) -> Vec<String> {
        let now = self.datapath.clock.now();
        let mut shown = self.shown.lock();
        match shown.drains.are_late(now) {
            true => shown.drains.cut(&self.datapath.services(), now),
            false => Vec::new(),
        }
    }

    /// Counts the traffic of one service, or of all, from zero again.
    pub(super) fn zero(&self, which: Option<&Which>) -> Result<String, Refusal> {
        let work = self.work.lock();
        let nodes = self.datapath.policy().node_addresses.clone();
        let only = which
            .map(|which| edit::find(&self.config().policy, &nodes, which))
            .transpose()?;
        let mut rates = self.rates.lock();
        // The services of a ruleset are in the order of its configuration, which does not change meanwhile.
        let services = self.datapath.services();
        drop(work);
        let picked = services.iter().enumerate();
        let picked = picked.filter(|(at, _)| only.is_none_or(|only| only == *at));
        picked.for_each(|(_, service)| rates.reset(service));
        Ok("counting from zero".to_owned())
    }

    /// Uses the other matcher from the next packet on; flows stay.
    pub(super) fn switch_mode(&self, mode: Mode) -> Result<String, String> {
        let mut work = self.work.lock();
        let running = self.config();
        let mut config = Config::clone(&running);
        config.policy.switch_mode(mode);
        let changes = describe(&running, &config);
        self.put(&mut work, config).map_err(|error| error.to_string())?;
        tracing::info!("by lbctl: {changes}");
        Ok(changes.to_string())
    }

    /// What of the interfaces that are served by AF_XDP is to be told; during a long change as it was before.
    pub(super) fn af_xdp(&self) -> Option<AfXdpView> {
        // On TUN there are none.
        self.datapath.hops.as_ref()?;
        if let Some(work) = self.work.try_lock_for(GLANCE) {
            self.show_af_xdp(&work);
        }
        self.shown.lock().af_xdp.clone()
    }

    /// Takes note of what `lbctl status` tells of these.
    pub(super) fn show_af_xdp(&self, work: &Work) {
        let interfaces = work.leads.as_ref().and_then(Leads::interfaces);
        let view = interfaces.map(af_xdp::view);
        self.shown.lock().af_xdp = view;
    }

    /// What others took out of the kernel and cannot be put back, and why.
    pub(super) fn troubles(&self) -> Vec<String> {
        self.shown.lock().troubles.clone()
    }

    /// Takes note of these after a look.
    pub(super) fn show_troubles(&self, work: &Work) {
        let troubles = work.leads.as_ref().map_or(&[][..], Leads::troubles);
        self.shown.lock().troubles = troubles.to_vec();
    }

    /// Why nothing can be led here any more, if it is so, as far as can be told now.
    pub(super) fn take_loss(&self) -> Option<plumbing::Error> {
        self.work.try_lock()?.leads.as_mut().and_then(Leads::take_loss)
    }

    /// Takes everything out of the kernel.
    pub(super) fn take_down(&self) -> Result<(), Error> {
        let leads = self.work.lock().leads.take();
        let removed = leads.map_or(Ok(()), Leads::remove);
        // Last, so that nothing is dropped that is still under way.
        let firewall = self.firewall.lock().take();
        drop(firewall);
        removed
    }

    fn reload_file(&self, work: &mut Work) -> Result<String, String> {
        self.go_on().map_err(|error| error.to_string())?;
        let lines = |errors: Vec<String>| errors.join("\n");
        let loaded = load_again(&self.file, &work.file)
            .map_err(|errors| lines(errors.iter().map(ToString::to_string).collect()))?;
        let running = self.config();
        let mut refused = refuse_restart_only(&running, &loaded.config);
        refused.extend(refuse_emptiness(&work.file.config, &loaded.config));
        if !refused.is_empty() {
            let place = |reason: String| format!("{}: {reason}", self.file.display());
            return Err(lines(refused.into_iter().map(place).collect()));
        }
        for warning in &loaded.warnings {
            tracing::warn!("{warning}");
        }
        if loaded.config == work.file.config {
            work.file = loaded;
            let edits = describe(&work.file.config, &running);
            return Ok(match edits.is_nothing() {
                true => edits.to_string(),
                false => format!("nothing changed; live edits stay: {edits}"),
            });
        }
        self.take_over(work, loaded, &running)
    }

    /// The file says something new: it is the truth again.
    fn take_over(&self, work: &mut Work, loaded: Loaded, running: &Config) -> Result<String, String> {
        let dropped = describe(&work.file.config, running);
        let mut config = loaded.config.clone();
        let drains = self.shown.lock().drains.clone();
        for backend in drains.over_reload(&work.file.config.policy, &mut config.policy) {
            tracing::info!("{backend} stays drained; `lbctl backend edit` gives it a weight again");
        }
        let changes = describe(running, &config);
        let loss = warn_of_loss(&changes, running.policy.services.len());
        self.put(work, config).map_err(|error| error.to_string())?;
        work.file = loaded;
        if !dropped.is_nothing() {
            tracing::warn!("the file changed, so what was edited live no longer counts: {dropped}");
        }
        let Some(loss) = loss else {
            return Ok(changes.to_string());
        };
        tracing::warn!("{}: {loss}", self.file.display());
        Ok(format!("{changes}; warning: {loss}"))
    }
}
