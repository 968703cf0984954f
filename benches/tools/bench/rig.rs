//! The network of the rig (`integration/support/rig/lay.sh`), its namespaces, and the programs that run in them.
use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use rustix::thread::{CpuSet, LinkNameSpaceType, move_into_link_name_space, sched_setaffinity};

use crate::Outcome;

/// Where the rig keeps its files: a private tmpfs.
pub(crate) const DIR: &str = "/run/rig";
/// Addresses that the client answers for, besides its own.
pub(crate) const CLIENTS: [u8; 4] = [10, 1, 0, 128];
/// The CPU that clients run on, and the CPU that servers run on; the balancer runs where the kernel puts it.
pub(crate) const CLIENT_CPU: usize = 0;

/// A namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Client,
    Balancer,
    /// Server 1 or 2.
    Server(u8),
}

impl Place {
    pub(crate) fn name(self) -> String {
        match self {
            Self::Client => "client".to_owned(),
            Self::Balancer => "lb".to_owned(),
            Self::Server(number) => format!("s{number}"),
        }
    }
}

/// The last CPU, or the only one.
pub(crate) fn server_cpu() -> usize {
    cpus().min(2) - 1
}

pub(crate) fn cpus() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

pub(crate) fn server_address(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 2, 0, 10 + number)
}

/// Settings that every system finds: forwarding, many local ports, many addresses at the client.
pub(crate) fn prepare() -> Outcome<()> {
    for place in [Place::Client, Place::Balancer, Place::Server(1), Place::Server(2)] {
        shell(
            place,
            "sysctl -qw net.ipv4.ip_local_port_range='1024 65535' net.ipv4.tcp_tw_reuse=1 net.core.somaxconn=4096",
        )?;
    }
    for server in [1, 2] {
        // A client's port may serve many service addresses at once, which a server does not see: what it remembers of one
        // connection would make it refuse some SYNs of the next one (RFC 1122 section 4.2.2.13), whoever balances.
        shell(Place::Server(server), "sysctl -qw net.ipv4.tcp_max_tw_buckets=0")?;
    }
    shell(Place::Balancer, "sysctl -qw net.ipv4.ip_forward=1")?;
    shell(Place::Client, "ip route add local 10.1.0.128/25 dev lo")?;
    Ok(())
}

/// Moves this thread into a namespace, and onto a CPU.
pub(crate) fn enter(place: Place, cpu: Option<usize>) -> Outcome<()> {
    let namespace = File::open(format!("/run/netns/{}", place.name()))?;
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
    if let Some(cpu) = cpu {
        let mut set = CpuSet::new();
        set.set(cpu);
        sched_setaffinity(None, &set)?;
    }
    Ok(())
}

/// Runs a task on a thread of its own in a namespace.
pub(crate) fn within<T: Send>(place: Place, cpu: usize, task: impl FnOnce() -> Outcome<T> + Send) -> Outcome<T> {
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            enter(place, Some(cpu))?;
            task()
        });
        thread.join().unwrap_or_else(|_panic| Err("a thread panicked".into()))
    })
}

/// Runs a shell command in a namespace, for 120 s at most; its standard output.
pub(crate) fn shell(place: Place, script: &str) -> Outcome<String> {
    let netns = format!("--net=/run/netns/{}", place.name());
    let output = Command::new("nsenter")
        .args([&netns, "timeout", "-k", "2", "120", "sh", "-c", script])
        .stdin(Stdio::null())
        .output()?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said: String = said.trim().chars().take(300).collect();
    let shown: String = script.chars().take(100).collect();
    Err(format!("`{shown}` in {}: {}: {said}", place.name(), output.status).into())
}

/// Waits until something is so.
pub(crate) fn wait_until(what: &str, limit: Duration, mut holds: impl FnMut() -> Outcome<bool>) -> Outcome<()> {
    let end = Instant::now() + limit;
    while !holds()? {
        if Instant::now() > end {
            return Err(format!("waited {limit:?} in vain for {what}").into());
        }
        thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// A program that runs in the balancer's namespace until it is stopped.
#[derive(Debug)]
pub(crate) struct Program {
    child: Child,
    name: String,
    log: String,
}

impl Program {
    /// Starts it; what it says goes to `/run/rig/NAME.log`.
    pub(crate) fn start(name: &str, arguments: &[&str]) -> Outcome<Self> {
        let log = format!("{DIR}/{name}.log");
        let file = File::create(&log)?;
        let child = Command::new("nsenter")
            .arg("--net=/run/netns/lb")
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()?;
        Ok(Self {
            child,
            name: name.to_owned(),
            log,
        })
    }

    /// Waits until something is so; gives up where the program has ended.
    pub(crate) fn until(
        &mut self,
        what: &str,
        limit: Duration,
        mut holds: impl FnMut(&str) -> Outcome<bool>,
    ) -> Outcome<()> {
        let (name, log) = (self.name.clone(), self.log.clone());
        let result = wait_until(what, limit, || {
            if let Some(status) = self.child.try_wait()? {
                return Err(format!("{name} ended: {status}").into());
            }
            holds(&fs::read_to_string(&log).unwrap_or_default())
        });
        result.map_err(|error| format!("{error}; it said: {}", self.last_words()).into())
    }

    fn last_words(&self) -> String {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        log.lines().rev().take(3).collect::<Vec<_>>().join(" | ")
    }

    /// What it said so far.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn signal(&self, signal: Signal) -> Outcome<()> {
        let id = i32::try_from(self.child.id())?;
        Ok(kill_process(Pid::from_raw(id).ok_or("no process id")?, signal)?)
    }

    /// Asks it to end, and ends it where it has not after 10 s.
    pub(crate) fn stop(mut self) -> Outcome<()> {
        self.signal(Signal::TERM)?;
        let ended = || Ok(self.child.try_wait()?.is_some());
        wait_until(&format!("the end of {}", self.name), Duration::from_secs(10), ended)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // Already gone after `stop`; there is nothing to do about an error here.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
