//! A running lbd: everything built, served, reloaded and taken down again.
mod af_xdp;
mod backends;
mod background;
mod collisions;
mod control;
mod crew;
mod drains;
mod effect;
mod leads;
pub mod lingering;
mod notify;
mod ports;
pub mod preflight;
mod upkeep;
mod views;

use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ahash::RandomState;
use mio::unix::SourceFd;

use mio::{Events, Interest, Poll, Token, Waker};
use sd_notify::NotifyState;
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1};
use signal_hook_mio::v1_0::Signals;

use control::{Control, Datapath};
use crew::Crew;
use lbd_control::estimator;
use lbd_control::server::Server;
use lbd_core::engine::{Engine, Seeds};
use lbd_core::policy::{OwnSources, Policy, differing};
use lbd_core::time::Instant;
use lbd_net::io::xdp::bundle::ZeroCopy;
use lbd_net::io::xdp::filter::error::FilterError;
use lbd_net::io::xdp::filter::program;
use lbd_net::io::xdp::interfaces::Interfaces;
use lbd_net::io::xdp::next_hop::NextHops;
use lbd_net::io::{PacketIo, limits, tun, xdp};
use lbd_net::plumbing::{self, Device, Monitor};
use lbd_net::worker::Clock;
use lbd_state::config::{AfXdp, Attach, Backend, Config, Loaded};
use notify::notify;
use upkeep::Upkeep;

/// Why lbd cannot run, or not go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The process or the host lacks something that the configuration needs.
    #[error(transparent)]
    Missing(#[from] preflight::Report),
    /// The interfaces, with `backend = "af_xdp"`.
    #[error(transparent)]
    Xdp(#[from] xdp::interfaces::OpenError),
    /// The XDP program does not take what a configuration needs.
    #[error(transparent)]
    Filter(#[from] FilterError),
    /// The TUN device.
    #[error(transparent)]
    Tun(#[from] tun::OpenError),
    /// The kernel's routing.
    #[error(transparent)]
    Plumbing(#[from] plumbing::Error),
    /// A configuration that the kernel's routing cannot serve.
    #[error(transparent)]
    Plan(#[from] plumbing::PlanError),
    /// The control socket.
    #[error(
        "control.socket = {}: {error}; run lbd as root, or set another socket in [control], in a directory that lbd may write to",
        path.display()
    )]
    Control {
        /// Of the configuration.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// A worker's device failed.
    #[error("worker {index}: {error}; was the TUN device removed?")]
    Worker {
        /// Which one.
        index: usize,
        /// Why.
        error: io::Error,
    },
    /// A bug in lbd. It ends, so that whoever watches it starts it again, rather than serve with fewer workers.
    #[error("worker {index} panicked; this is a bug in lbd, and the lines above say where")]
    Panicked {
        /// Which one.
        index: usize,
    },
    /// A bug in lbd. It ends rather than send to where neighbours were.
    #[error(
        "the thread that follows routes and neighbours panicked; this is a bug in lbd, and the lines above say where"
    )]
    Blind,
    /// A bug in lbd. It ends rather than follow no signal and no change any more.
    #[error(
        "a thread that reloads or looks after routes panicked; this is a bug in lbd, and the lines above say where"
    )]
    Neglected,
    /// Threads, signals or epoll.
    #[error("the system refuses {what}: {error}{}", limits::remedy(error).map_or_else(String::new, |remedy| format!("; {remedy}")))]
    System {
        /// What was asked for.
        what: &'static str,
        /// Why.
        error: io::Error,
    },
}

fn system(what: &'static str) -> impl FnOnce(io::Error) -> Error {
    move |error| Error::System { what, error }
}

/// SIGHUP reloads, the others end lbd: also what HAProxy calls a soft stop (SIGUSR1, management guide, section 4) and what a
/// terminal sends on Ctrl-\ (termios(3), `VQUIT`), which would else leave routes and rules behind.
const SIGNALS_TAKEN: [i32; 5] = [SIGHUP, SIGTERM, SIGINT, SIGQUIT, SIGUSR1];

const SIGNALS: Token = Token(0);
const ADDRESSES: Token = Token(1);
const WORKERS: Token = Token(2);

/// What a start made of a configuration, for the line that says so.
#[derive(Clone, Copy, Debug)]
pub struct Ready<'a>(&'a Config);

impl std::fmt::Display for Ready<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let policy = &self.0.policy;
        let backends: usize = policy.services.iter().map(|service| service.backends.len()).sum();
        let (mode, services) = (policy.mode.name(), policy.services.len());
        let backend = self.0.datapath.backend.name();
        write!(
            f,
            "lbd ready: mode={mode} backend={backend} services={services} backends={backends}"
        )
    }
}

/// What wakes the main thread.
pub struct Watch {
    poll: Poll,
    signals: Signals,
    waker: Arc<Waker>,
}

impl Watch {
    /// From now on SIGHUP and the signals that end lbd wait until [`run`] looks at them: to be called before anything else, so
    /// that none of them ends it with its work half done.
    ///
    /// # Errors
    /// When the system refuses signal handlers.
    pub fn start() -> Result<Self, Error> {
        let poll = Poll::new().map_err(system("epoll"))?;
        let mut signals = Signals::new(SIGNALS_TAKEN).map_err(system("signal handlers"))?;
        let watched = poll.registry().register(&mut signals, SIGNALS, Interest::READABLE);
        watched.map_err(system("to wait for signals"))?;
        let waker = Waker::new(poll.registry(), WORKERS).map_err(system("a waker"))?;
        Ok(Self {
            poll,
            signals,
            waker: Arc::new(waker),
        })
    }
}

/// Serves what `file` said when it was `loaded`, until a signal ends it. `on_ready` is told once traffic is served.
///
/// # Errors
/// When the kernel refuses what lbd needs. Whatever was put into the kernel has been taken out again.
pub fn run(file: &Path, loaded: Loaded, watch: Watch, on_ready: impl FnOnce(Ready<'_>)) -> Result<(), Error> {
    let config = &loaded.config;
    preflight::check(config, tun_workers(config))?;
    let clock = Clock::start();
    let socket = config.control_socket.clone();
    let device = Device {
        name: config.tun.name.clone(),
        mtu: config.tun.mtu,
    };
    let journal = plumbing::journal_directory(&socket, std::env::var_os("RUNTIME_DIRECTORY"));
    if let Some(cleared) = plumbing::clear_leftovers(&journal)? {
        tracing::warn!("a former lbd did not exit cleanly; cleared what it left: {cleared}");
    }
    if config.masquerades_as_itself()
        && let Some(warning) = ports::warning(&config.af_xdp.masquerade_ports)
    {
        tracing::warn!("{warning}");
    }
    let (datapath, interfaces, mut crew) = start_datapath(config, clock, &watch.waker)?;
    let control = Arc::new(Control::new(file, loaded, datapath));
    let handler: Arc<Control> = Arc::clone(&control);
    // Before the kernel leads any traffic here: a socket that is in use must not cost a packet.
    let server = Server::start(&socket, handler).map_err(|error| Error::Control { path: socket, error })?;
    control.install(device, interfaces, &journal)?;
    on_ready(Ready(&control.config()));
    notify(&[NotifyState::Ready]);

    let upkeep = Upkeep::start(&control, &watch.waker)?;
    let outcome = serve(&control, &crew, &upkeep, watch);
    notify(&[NotifyState::Stopping]);
    // What is under way would be undone next.
    control.halt.set();
    server.stop();
    drop(upkeep);
    let undone = control.take_down();
    crew.stop();
    outcome.and(undone)
}

/// Opens the devices and has them served.
fn start_datapath(
    config: &Config,
    clock: Clock,
    waker: &Arc<Waker>,
) -> Result<(Datapath, Option<Interfaces>, Crew), Error> {
    let tun_workers = tun_workers(config);
    let name = &config.tun.name;
    let opened = tun::open(name, tun_workers, config.tun.offload)?;
    tracing::info!("{name}: {tun_workers} queues, offloads: {}", opened.offloads);
    let (interfaces, express) = match (config.datapath.backend, opened.queues.first()) {
        (Backend::AfXdp, Some(queue)) => {
            let (interfaces, queues) = xdp::interfaces::open(&xdp_settings(config), name, queue, clock)?;
            (Some(interfaces), queues)
        }
        (Backend::Tun | Backend::AfXdp, _) => (None, Vec::new()),
    };
    let mut queues: Vec<Box<dyn PacketIo>> = Vec::new();
    queues.extend(
        express
            .into_iter()
            .map(|queue| -> Box<dyn PacketIo> { Box::new(queue) }),
    );
    let workers = match queues.len() {
        0 => tun_workers,
        express => express,
    };
    queues.extend(
        opened
            .queues
            .into_iter()
            .map(|queue| -> Box<dyn PacketIo> { Box::new(queue) }),
    );
    let hops = interfaces.as_ref().map(|interfaces| Arc::clone(interfaces.next_hops()));
    let generation = hops.as_ref().map_or(0, |hops| hops.source_generation());
    let policy = effective_policy(config, own_sources(config, hops.as_deref()));
    let policy = Arc::new(policy?);
    let (engine, lanes) = Engine::new(policy, queues.len(), seeds(config), clock.now());
    let datapath = Datapath {
        engine: Arc::new(engine.built_by(background::run)),
        clock,
        workers,
        unsent: Arc::default(),
        steering: opened.steering,
        returns_errors: opened.returns,
        generation,
        hops,
    };
    let crew = Crew::start(queues, lanes, &datapath, waker)?;
    Ok((datapath, interfaces, crew))
}

fn xdp_settings(config: &Config) -> xdp::interfaces::Settings {
    let AfXdp {
        interfaces,
        attach,
        zero_copy,
        busy_poll,
        announce,
        masquerade_ports: _,
    } = &config.af_xdp;
    xdp::interfaces::Settings {
        names: interfaces.clone(),
        attach: match attach {
            Attach::Auto => program::Attach::Auto,
            Attach::Native => program::Attach::Native,
            Attach::Generic => program::Attach::Generic,
        },
        zero_copy: match zero_copy {
            None => ZeroCopy::Auto,
            Some(true) => ZeroCopy::Required,
            Some(false) => ZeroCopy::Never,
        },
        busy_poll: *busy_poll,
        workers: config.datapath.workers,
        announce: *announce,
        seed: fastrand::u64(..),
    }
}

/// Workers that serve the TUN device.
fn tun_workers(config: &Config) -> usize {
    match config.datapath.backend {
        Backend::Tun => config.datapath.workers.unwrap_or_else(available_workers),
        // For this host's own clients, and what lbd cannot send itself.
        Backend::AfXdp => 1,
    }
}

fn available_workers() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Configured choices are repeatable; the hash of the connection table never is, since strangers choose its keys.
fn seeds(config: &Config) -> Seeds {
    Seeds {
        choices: config.datapath.seed.unwrap_or_else(|| fastrand::u64(..)),
        hashing: RandomState::new(),
    }
}

/// The policy with this node's own addresses, from the configuration or else from the kernel; with those that stand for
/// clients.
fn effective_policy(config: &Config, own: Option<OwnSources>) -> Result<Policy, Error> {
    let mut policy = config.policy.clone();
    policy.node_addresses = match &config.node_addresses {
        Some(addresses) => addresses.clone(),
        None => plumbing::local_addresses(&config.tun.name)?,
    };
    policy.local_addresses = plumbing::owned_addresses(&config.tun.name)?;
    policy.local_addresses.sort_unstable();
    policy.nat.own = own;
    Ok(policy)
}

/// Which of the host's addresses stands for clients towards each backend, if any is to.
fn own_sources(config: &Config, hops: Option<&NextHops>) -> Option<OwnSources> {
    let hops = hops.filter(|_| config.masquerades_as_itself())?;
    let backends = config.policy.services.iter().flat_map(|service| &service.backends);
    let towards = backends.filter_map(|backend| {
        let address = backend.address.address;
        Some((address, hops.masquerade_source(address)?))
    });
    Some(OwnSources {
        ports: Arc::new(config.af_xdp.masquerade_ports.clone().into()),
        towards: Arc::new(towards.collect()),
    })
}

/// The same, where it was known for `former`, and neither routes nor settings changed since.
fn follow_own_sources(own: &mut OwnSources, former: &Config, config: &Config, hops: &NextHops) {
    let (_, new) = differing(&former.policy.services, &config.policy.services);
    for backend in new.iter().flat_map(|service| &service.backends) {
        let address = backend.address.address;
        if !own.towards.contains_key(&address)
            && let Some(source) = hops.masquerade_source(address)
        {
            Arc::make_mut(&mut own.towards).insert(address, source);
        }
    }
}

/// Addresses and links of a node change in bursts; lbd looks once they have been quiet for as long as this, or soon after.
const SETTLING: Duration = Duration::from_millis(100);

/// Waits for signals, changed addresses and failed workers, and has others do what takes longer than an instant.
fn serve(control: &Control, crew: &Crew, upkeep: &Upkeep, watch: Watch) -> Result<(), Error> {
    let Watch {
        mut poll, mut signals, ..
    } = watch;
    let mut monitor = Monitor::open()?;
    let descriptor = monitor.as_raw_fd();
    let watched = poll
        .registry()
        .register(&mut SourceFd(&descriptor), ADDRESSES, Interest::READABLE);
    watched.map_err(system("to wait for netlink"))?;
    let clock = control.clock();
    let mut events = Events::with_capacity(8);
    let mut next_tick = clock.now() + estimator::INTERVAL;
    let mut look_at_addresses = None;
    loop {
        let next = look_at_addresses.unwrap_or(next_tick).min(next_tick);
        match poll.poll(&mut events, Some(next - clock.now())) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(system("epoll")(error)),
            Err(_) | Ok(()) => {}
        }
        if let Some(error) = crew.failure() {
            return Err(error);
        }
        for signal in signals.pending() {
            match signal {
                SIGHUP => upkeep.reload(),
                _ => return Ok(()),
            }
        }
        if monitor.drain() {
            // At once, since frames to a new hardware address go past lbd until then; and once more when all is quiet.
            upkeep.links_changed();
            look_at_addresses.get_or_insert_with(|| clock.now() + SETTLING);
        }
        if look_at_addresses.is_some_and(|time| time <= clock.now()) {
            look_at_addresses = None;
            upkeep.addresses_changed();
        }
        let now = clock.now();
        if next_tick <= now {
            next_tick = tick_after(next_tick, now);
            upkeep.tick();
        }
        if upkeep.has_failed() {
            return Err(Error::Neglected);
        }
        if control.is_blind() {
            return Err(Error::Blind);
        }
        if let Some(loss) = control.take_loss() {
            return Err(loss.into());
        }
    }
}

/// The next one in the row. Those that were missed are skipped.
fn tick_after(tick: Instant, now: Instant) -> Instant {
    let next = tick + estimator::INTERVAL;
    if next > now { next } else { now + estimator::INTERVAL }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_that_were_missed_are_skipped() {
        let seconds = |seconds| Instant::from_duration(Duration::from_secs(seconds));
        assert_eq!(tick_after(seconds(10), seconds(10)), seconds(12));
        assert_eq!(tick_after(seconds(10), seconds(11)), seconds(12), "in step");
        assert_eq!(tick_after(seconds(10), seconds(12)), seconds(14));
        assert_eq!(tick_after(seconds(10), seconds(75)), seconds(77));
    }
}
