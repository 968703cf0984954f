//! A network in one test: a client, a balancer and three servers in namespaces of their own, with real programs in them.
//!
//! ```text
//! client 10.1.0.2 ---- 10.1.0.1 lb 10.2.0.1 ---- 10.2.0.11 s1
//!        fd00:1::2              |            ---- 10.2.0.12 s2
//!                               lbd          ---- 10.2.0.13 s3
//! ```
//! Every server has a link of its own, as pods have, so that even what one server sends another passes `lb`.
//! [`isolated`] runs a test in fresh user, network, mount and process namespaces: nothing it does is seen outside, and
//! all of its processes end with it.
mod config;
mod daemon;
mod load;
mod namespaces;
mod peers;
mod ports;
mod shuffled;
mod talk;

pub(crate) use config::{Backend, Config, Family, Mode, Service, matrix};
pub(crate) use daemon::Lbd;
pub(crate) use load::{Load, udp_echo_integrity};
pub(crate) use namespaces::{isolated, isolated_with_sctp, isolated_xdp, isolated_xdp_with_vlans};
pub(crate) use peers::{BIG, write_big};
pub(crate) use ports::{Sender, reuse_port};
pub(crate) use shuffled::{echo_shuffled, shuffled_udp_echo};
pub(crate) use talk::{
    Conversation, Watch, echo_datagram, echo_datagram_from, tcp_close, tcp_echo, tcp_late, udp_echo,
};

use std::collections::BTreeSet;
use std::fs;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Pid;

/// Where a rig keeps its files: a private tmpfs.
pub(crate) const DIR: &str = "/run/rig";

/// A change of the network: everybody on one segment, `lb` with the one interface `eth0`; see the script.
pub(crate) const ONE_ARMED: &str = include_str!("one_armed.sh");

/// A change of the network: a narrow link between `lb` and `s1`; see the script.
pub(crate) const BEHIND: &str = include_str!("behind.sh");

/// A change of the network: a narrow link between `client` and `lb`; see the script.
pub(crate) const BEFORE: &str = include_str!("before.sh");

/// A change of the network: `lb` with one trunk `eth0`, client and servers in two VLANs; see the script.
pub(crate) const VLAN: &str = include_str!("vlan.sh");

/// The servers' namespaces; server `N` has the addresses `10.2.0.(10 + N)` and `fd00:2::(10 + N)`.
pub(crate) const SERVERS: [&str; 3] = ["s1", "s2", "s3"];

/// What a command did.
#[derive(Debug)]
pub(crate) struct Ran {
    /// Exit code; 124 after a timeout, -1 after a signal.
    pub(crate) code: i32,
    /// Standard output.
    pub(crate) out: String,
    /// Standard error.
    pub(crate) err: String,
    /// How long it ran.
    pub(crate) took: Duration,
}

impl Ran {
    fn new(output: &Output, took: Duration) -> Self {
        Self {
            code: output.status.code().unwrap_or(-1),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
            took,
        }
    }

    /// Its standard output, where it succeeded.
    #[track_caller]
    pub(crate) fn ok(self) -> String {
        assert_eq!(self.code, 0, "{self:#?}");
        self.out
    }
}

/// The namespaces with their links, addresses, routes and servers.
pub(crate) struct Rig(());

impl Rig {
    /// Lays the links and starts the servers. Call it inside [`isolated`] only.
    pub(crate) fn new() -> Self {
        Self::changed("")
    }

    /// The same after a shell script has changed the network; it runs as lay.sh does. The servers start after it, and want
    /// their addresses.
    pub(crate) fn changed(script: &str) -> Self {
        namespaces::lay(script);
        peers::start();
        Self(())
    }

    /// Runs a shell command in a namespace, for 60 s at most.
    pub(crate) fn sh(&self, namespace: &str, script: &str) -> Ran {
        let start = Instant::now();
        let mut command = within(namespace, 60);
        let output = command
            .args(["bash", "-o", "pipefail", "-c", script])
            .stdin(Stdio::null())
            .output()
            .expect("cannot run a shell");
        Ran::new(&output, start.elapsed())
    }

    /// Starts a shell command in a namespace; it may run for 120 s.
    pub(crate) fn spawn(&self, namespace: &str, script: &str) -> Running {
        let mut command = within(namespace, 120);
        command
            .args(["bash", "-o", "pipefail", "-c", script])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        Running(command.spawn().expect("cannot run a shell"), Instant::now())
    }

    /// One HTTP request by curl, each on a connection of its own: who answered.
    pub(crate) fn get(&self, namespace: &str, address: &str) -> Ran {
        self.sh(namespace, &format!("curl -sS --max-time 5 http://{address}/"))
    }

    /// `count` HTTP requests one after the other, each on a connection of its own: who answered how often (s1, s2, s3).
    #[track_caller]
    pub(crate) fn spread(&self, namespace: &str, address: &str, count: usize) -> [usize; 3] {
        let url = format!("http://{address}/?[1-{count}]");
        let answers = self
            .sh(
                namespace,
                &format!("curl -sS --fail --max-time 20 -H 'Connection: close' '{url}'"),
            )
            .ok();
        let spread = SERVERS.map(|name| answers.lines().filter(|line| *line == name).count());
        assert_eq!(
            spread.iter().sum::<usize>(),
            count,
            "some answers came from nobody: {answers}"
        );
        spread
    }

    /// One DNS question by dig: who answered.
    pub(crate) fn dig(&self, namespace: &str, server: &str) -> Ran {
        let question = format!("dig @{server} +short +tries=1 +time=3 TXT who.lbd.test | tr -d '\"'");
        self.sh(namespace, &question)
    }

    /// Starts `lbd` in `lb` and waits until it serves.
    #[track_caller]
    pub(crate) fn lbd(&self, config: &Config) -> Lbd<'_> {
        Lbd::start(self, config)
    }

    /// All network settings in `lb`, but for those of lbd's own device.
    pub(crate) fn settings(&self) -> BTreeSet<String> {
        let told = self.told_by(&SETTINGS);
        let lines = told
            .lines()
            .filter(|line| line.starts_with("net.") && !line.contains(".lbd0."));
        lines.map(str::to_owned).collect()
    }

    /// Has a router on the link of a namespace say that it is one, until `lb` has a route by it.
    #[track_caller]
    pub(crate) fn advertise_router(&self, namespace: &str) {
        wait_until("a route by router advertisement", Duration::from_secs(10), || {
            let advertised = load::inside(namespace, || crate::router::advertise("eth0"));
            advertised.join().expect("cannot advertise a router");
            self.has_advertised_router()
        });
    }

    /// Whether `lb` has a default route by router advertisement.
    pub(crate) fn has_advertised_router(&self) -> bool {
        let route = self.sh("lb", "ip -6 route show default proto ra").ok();
        route.contains("via fe80::")
    }

    /// The kernel's rules, routes, links with their XDP programs and features, and sysctls in `lb`: what lbd may change,
    /// and must put back.
    pub(crate) fn kernel_state(&self) -> String {
        self.told_by(&ROUTING) + &self.told_by(&SETTINGS)
    }

    fn told_by(&self, commands: &[&str]) -> String {
        let told = |command: &&str| format!("# {command}\n{}", self.sh("lb", command).out);
        commands.iter().map(told).collect()
    }
}

const ROUTING: [&str; 7] = [
    "ip -4 rule",
    "ip -6 rule",
    "ip -4 route show table all | sort",
    "ip -6 route show table all | sort",
    "ip -o addr | sed 's/ *valid_lft.*//'",
    "ip -o link | sed 's/qlen.*//'",
    "ip -o link | grep -o '^[0-9]*: [^ ]*\\|prog/xdp.*'",
];

const SETTINGS: [&str; 2] = [
    "for link in $(ip -o link | cut -d: -f2 | cut -d@ -f1); do ethtool -k $link; done",
    // Without what nobody sets: the kernel counts there.
    "sysctl -a --pattern '^net\\.' 2>/dev/null | grep -v nf_conntrack_count",
];

impl Drop for Rig {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = fs::read_to_string(daemon::LOG).unwrap_or_default();
            let kernel = self.told_by(&ROUTING);
            println!("--- what lbd said:\n{log}--- the kernel in lb:\n{kernel}");
        }
    }
}

/// A command that runs while the test goes on.
pub(crate) struct Running(Child, Instant);

impl Running {
    /// Waits for its end.
    pub(crate) fn wait(self) -> Ran {
        let output = self.0.wait_with_output().expect("cannot wait for a child");
        Ran::new(&output, self.1.elapsed())
    }

    /// Whether it has not ended yet.
    pub(crate) fn runs(&mut self) -> bool {
        self.0.try_wait().expect("cannot ask for a child").is_none()
    }
}

/// A command prefix that enters a namespace; what follows keeps its process id.
fn enter(namespace: &str) -> Command {
    let mut command = Command::new("nsenter");
    command.arg(format!("--net=/run/netns/{namespace}"));
    command
}

/// A command prefix that enters a namespace and ends after some seconds.
fn within(namespace: &str, seconds: u32) -> Command {
    let mut command = enter(namespace);
    command.args(["timeout", "-k", "1", &seconds.to_string()]);
    command
}

fn process_id(child: &Child) -> Pid {
    let id = i32::try_from(child.id()).ok();
    id.and_then(Pid::from_raw).expect("a process id")
}

/// Waits until `done`, looking often: at least so many times, for on a busy machine one look may take all the time.
#[track_caller]
pub(crate) fn wait_until(what: &str, limit: Duration, mut done: impl FnMut() -> bool) {
    const LOOKS: u32 = 20;
    let (start, mut looks) = (Instant::now(), 1);
    while !done() {
        let goes_on = looks < LOOKS || start.elapsed() < limit;
        assert!(goes_on, "waited {limit:?} in vain for {what}");
        std::thread::sleep(Duration::from_millis(10));
        looks += 1;
    }
}
