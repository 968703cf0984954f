//! A running lbd: everything built, served, reloaded and taken down again.
mod control;
mod drains;
mod kept;
mod views;

use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::thread::JoinHandle;

use ahash::RandomState;
use crossbeam_channel::{Receiver, Sender};
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token, Waker};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook_mio::v1_0::Signals;

use crate::config::{Backend, Config};
use crate::control::estimator;
use crate::control::server::Server;
use crate::engine::{Engine, Lane, Seeds};
use crate::io::tun::{self, Opened};
use crate::plumbing::{self, Device, Monitor, Plan, Plumbing};
use crate::policy::Policy;
use crate::worker::{Clock, Stopper, Worker};
use control::{Control, Datapath};

/// Why lbd cannot run, or not go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not in this version.
    #[error("datapath.backend = \"af_xdp\": this version of lbd serves \"tun\" only; set backend = \"tun\"")]
    NoAfXdp,
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
    #[error("control socket {}: {error}", path.display())]
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
    /// Threads, signals or epoll.
    #[error("the system refuses {what}: {error}")]
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
        write!(
            f,
            "lbd ready: mode={mode} backend=tun services={services} backends={backends}"
        )
    }
}

/// Serves `config`, which was read from `file`, until SIGTERM or SIGINT. `on_ready` is told once traffic is served.
///
/// # Errors
/// When the kernel refuses what lbd needs. Whatever was put into the kernel has been taken out again.
pub fn run(file: &Path, config: Config, on_ready: impl FnOnce(Ready<'_>)) -> Result<(), Error> {
    if config.datapath.backend == Backend::AfXdp {
        return Err(Error::NoAfXdp);
    }
    let clock = Clock::start();
    // Before anything is put into the kernel: an early SIGTERM must take it out again.
    let mut signals = Signals::new([SIGHUP, SIGTERM, SIGINT]).map_err(system("signal handlers"))?;
    let journal = config
        .control_socket
        .parent()
        .unwrap_or_else(|| Path::new("."))
        .to_path_buf();
    if let Some(cleared) = plumbing::clear_leftovers(&journal)? {
        tracing::warn!("a former lbd did not exit cleanly; cleared what it left: {cleared}");
    }
    let workers = config.datapath.workers.unwrap_or_else(available_workers);
    let Opened {
        queues,
        offloads,
        steering,
    } = tun::open(&config.tun.name, workers, config.tun.offload)?;
    tracing::info!("{}: {workers} queues, offloads: {offloads}", config.tun.name);

    let policy = Arc::new(effective_policy(&config)?);
    let (engine, lanes) = Engine::new(Arc::clone(&policy), workers, seeds(&config), clock.now());
    let engine = Arc::new(engine);
    let plan = Plan::new(&policy, &plumbing::owned_addresses(&config.tun.name)?)?;
    let device = Device {
        name: config.tun.name.clone(),
        mtu: config.tun.mtu,
    };
    let unsent = Arc::new(AtomicU64::new(0));
    let mut crew = Crew::start(queues, lanes, &engine, clock, &unsent)?;
    let plumbing = Plumbing::install(device, plan, &journal)?;
    let socket = config.control_socket.clone();
    let datapath = Datapath {
        engine: Arc::clone(&engine),
        clock,
        workers,
        unsent,
        steering,
    };
    let control = Arc::new(Control::new(file, config, plumbing, datapath));
    let handler: Arc<Control> = Arc::clone(&control);
    let server = Server::start(&socket, handler).map_err(|error| Error::Control { path: socket, error })?;
    on_ready(Ready(&control.config()));
    notify(&[sd_notify::NotifyState::Ready]);

    let outcome = serve(&control, &crew, &mut signals);
    notify(&[sd_notify::NotifyState::Stopping]);
    server.stop();
    let undone = control.take_down();
    crew.stop();
    outcome.and(undone)
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

/// The policy with this node's own addresses, from the configuration or else from the kernel.
fn effective_policy(config: &Config) -> Result<Policy, Error> {
    let mut policy = config.policy.clone();
    policy.node_addresses = match &config.node_addresses {
        Some(addresses) => addresses.clone(),
        None => plumbing::local_addresses(&config.tun.name)?,
    };
    Ok(policy)
}

fn notify(state: &[sd_notify::NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!("cannot notify systemd over $NOTIFY_SOCKET: {error}");
    }
}

/// Waits for signals, changed addresses and failed workers.
fn serve(control: &Control, crew: &Crew, signals: &mut Signals) -> Result<(), Error> {
    let mut poll = Poll::new().map_err(system("epoll"))?;
    let mut monitor = Monitor::open()?;
    let registry = poll.registry();
    let watched = registry.register(signals, SIGNALS, Interest::READABLE);
    watched.map_err(system("to wait for signals"))?;
    let watched = registry.register(&mut SourceFd(&monitor.as_raw_fd()), ADDRESSES, Interest::READABLE);
    watched.map_err(system("to wait for netlink"))?;
    crew.wake_on_failure(Waker::new(registry, WORKERS).map_err(system("a waker"))?);
    let mut events = Events::with_capacity(8);
    let mut next_tick = control.clock().now() + estimator::INTERVAL;
    loop {
        let left = next_tick - control.clock().now();
        match poll.poll(&mut events, Some(left)) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(system("epoll")(error)),
            Err(_) | Ok(()) => {}
        }
        for signal in signals.pending() {
            match signal {
                SIGHUP => control.reload_and_log(),
                _ => return Ok(()),
            }
        }
        if let Some(error) = crew.failure() {
            return Err(error);
        }
        if monitor.drain() {
            control.addresses_changed();
        }
        while control.clock().now() >= next_tick {
            next_tick = next_tick + estimator::INTERVAL;
            control.tick();
        }
    }
}

/// The threads that move packets.
struct Crew {
    members: Vec<(Stopper, JoinHandle<()>)>,
    failures: Receiver<Error>,
    on_failure: Sender<Waker>,
}

impl Crew {
    fn start(
        queues: Vec<tun::Queue>,
        lanes: Vec<Lane>,
        engine: &Arc<Engine>,
        clock: Clock,
        unsent: &Arc<AtomicU64>,
    ) -> Result<Self, Error> {
        let (failed, failures) = crossbeam_channel::bounded(queues.len());
        let (on_failure, wakers) = crossbeam_channel::bounded::<Waker>(1);
        let mut crew = Self {
            members: Vec::new(),
            failures,
            on_failure,
        };
        for (index, (queue, lane)) in queues.into_iter().zip(lanes).enumerate() {
            let (failed, wakers) = (failed.clone(), wakers.clone());
            let (worker, stopper) = Worker::new(queue, Arc::clone(engine), lane, clock, Arc::clone(unsent))
                .map_err(system("epoll for a worker"))?;
            let body = move || {
                let Err(error) = worker.run() else { return };
                let told = failed.send(Error::Worker { index, error });
                let woken = wakers.recv().map(|waker| waker.wake());
                if told.is_err() || woken.is_err() {
                    tracing::error!("a worker failed while lbd was stopping");
                }
            };
            let builder = std::thread::Builder::new().name(format!("lbd-worker-{index}"));
            let thread = builder.spawn(body).map_err(system("a thread"))?;
            crew.members.push((stopper, thread));
        }
        Ok(crew)
    }

    fn wake_on_failure(&self, waker: Waker) {
        if self.on_failure.try_send(waker).is_err() {
            tracing::error!("failures of workers will be seen late");
        }
    }

    fn failure(&self) -> Option<Error> {
        self.failures.try_recv().ok()
    }

    fn stop(&mut self) {
        for (stopper, thread) in self.members.drain(..) {
            if let Err(error) = stopper.stop() {
                tracing::warn!("cannot wake a worker, it stops within a second: {error}");
            }
            if thread.join().is_err() {
                tracing::error!("a worker panicked");
            }
        }
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        self.stop();
    }
}
