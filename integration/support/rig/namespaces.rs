//! Namespaces for one test, as root or without: the test's own process is run again inside them.
use std::any::type_name;
use std::fs;
use std::io::{Write, stderr};
use std::process::{Command, Output};
use std::sync::{Once, OnceLock};

use socket2::{Domain, Socket, Type};

use super::Backend;

/// Set in the inner process.
const INSIDE: &str = "LBD_RIG_INSIDE";

/// How long one test may take, in seconds.
const LIMIT: &str = "300";

/// What a rig runs, besides util-linux and coreutils.
const TOOLS: [&str; 12] = [
    "ip",
    "iptables",
    "nginx",
    "dnsmasq",
    "dig",
    "curl",
    "sysctl",
    "iperf3",
    "ethtool",
    "ping",
    "tcpdump",
    "traceroute",
];

/// Runs a test (a closure written in a `#[test]` function, whose name is taken from its type) in namespaces of its own.
/// Where there can be none, or not with what the backend of this run needs, says why on stderr and returns.
pub(crate) fn isolated<F: FnOnce()>(test: F) {
    isolated_over(Backend::of_this_run(), test);
}

/// The same for a test that is about AF_XDP, whatever the backend of this run.
pub(crate) fn isolated_xdp<F: FnOnce()>(test: F) {
    isolated_over(Backend::AfXdp, test);
}

/// The same where the kernel has VLAN devices, which not every one has that has XDP.
pub(crate) fn isolated_xdp_with_vlans<F: FnOnce()>(test: F) {
    const VLAN: &str = "ip link add port type veth peer name other && ip link add link port type vlan id 100";
    if std::env::var_os(INSIDE).is_none()
        && let Ok(flags) = how_to_unshare()
        && let Err(why) = try_in_namespaces(flags, VLAN)
    {
        return tell(&format!(
            "skipped: {}: this kernel has no VLAN devices: {why}",
            test_name::<F>()
        ));
    }
    isolated_xdp(test);
}

/// The same where there are programs that speak SCTP.
pub(crate) fn isolated_with_sctp<F: FnOnce()>(test: F) {
    const PROGRAM: &str = "/usr/lib/usrsctp/echo_server";
    match fs::exists(PROGRAM) {
        Ok(true) => isolated(test),
        Ok(false) | Err(_) => tell(&format!(
            "skipped: {}: there is no {PROGRAM} here; scripts/test installs it",
            test_name::<F>()
        )),
    }
}

fn isolated_over<F: FnOnce()>(backend: Backend, test: F) {
    static TOLD: Once = Once::new();
    if std::env::var_os(INSIDE).is_some() {
        return test();
    }
    let name = test_name::<F>();
    match how_to_unshare() {
        Err(why) => tell(&format!("skipped: {name}: {why}")),
        Ok(flags) => match (backend, xdp_is_permitted(flags)) {
            (Backend::AfXdp, Err(why)) => TOLD.call_once(|| tell(&format!("skipped: every rig over AF_XDP: {why}"))),
            (Backend::AfXdp, Ok(())) | (Backend::Tun, _) => run_again(name, flags),
        },
    }
}

/// Not eprintln: the test harness would hide it.
fn tell(line: &str) {
    let told = stderr().write_all(format!("{line}\n").as_bytes());
    told.expect("cannot write to stderr");
}

/// Loading an XDP program takes a capability on the host itself; one in a user namespace does not count.
fn xdp_is_permitted(flags: &[&str]) -> Result<(), String> {
    /// include/uapi/linux/capability.h
    const CAPABILITIES: [(u32, &str); 2] = [(12, "CAP_NET_ADMIN"), (13, "CAP_NET_RAW")];
    const BPF: [u32; 2] = [39, 21]; // CAP_BPF, or CAP_SYS_ADMIN, which holds it
    /// include/linux/socket.h; libc has it only for some targets
    const AF_XDP: i32 = 44;
    if flags.contains(&"--user") || !in_the_first_user_namespace() {
        return Err("an XDP program cannot be loaded from a user namespace".to_owned());
    }
    let held = effective_capabilities();
    let holds = |bit: u32| held >> bit & 1 == 1;
    if let Some((_, missing)) = CAPABILITIES.into_iter().find(|(bit, _)| !holds(*bit)) {
        return Err(format!("no {missing} here"));
    }
    if !BPF.into_iter().any(holds) {
        return Err("no CAP_BPF here".to_owned());
    }
    let socket = Socket::new(Domain::from(AF_XDP), Type::RAW, None);
    socket
        .map(drop)
        .map_err(|error| format!("no AF_XDP sockets here: {error}"))
}

fn in_the_first_user_namespace() -> bool {
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    map.split_whitespace().eq(["0", "0", "4294967295"])
}

fn effective_capabilities() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    line.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .unwrap_or(0)
}

/// `rigs::traffic::a_test::{{closure}}` is the type of a closure in the test `traffic::a_test`.
fn test_name<F>() -> &'static str {
    let path = type_name::<F>();
    let path = path.split_once("::").map_or(path, |(_crate, rest)| rest);
    path.split_once("::{{closure}}").map_or(path, |(test, _)| test)
}

fn run_again(name: &str, flags: &[&str]) {
    let this = std::env::current_exe().expect("the test has a file");
    let mut command = Command::new("timeout");
    command.args(["-k", "5", LIMIT, "unshare"]).args(flags).arg(this);
    let output = command
        .args(["--exact", name, "--nocapture"])
        .env(INSIDE, "1")
        .env("RUST_BACKTRACE", "0")
        .output()
        .expect("cannot run timeout");
    let said = String::from_utf8_lossy(&output.stdout);
    // What failed comes first: the rest is long, and where it is shortened it loses its end.
    assert!(
        output.status.success() && said.contains("1 passed"),
        "{}\n{said}",
        String::from_utf8_lossy(&output.stderr),
    );
}

/// The flags of `unshare` that work here. With a process namespace of its own nothing of a test outlives it.
fn how_to_unshare() -> &'static Result<Vec<&'static str>, String> {
    const AS_ROOT: [&str; 5] = ["--net", "--mount", "--pid", "--fork", "--kill-child"];
    const AS_ANYBODY: [&str; 2] = ["--user", "--map-root-user"];
    static FLAGS: OnceLock<Result<Vec<&str>, String>> = OnceLock::new();
    FLAGS.get_or_init(|| {
        if let Some(tool) = TOOLS.iter().find(|tool| which(tool).is_none()) {
            return Err(format!("there is no `{tool}` here; scripts/test installs it"));
        }
        let as_root = AS_ROOT.to_vec();
        let as_anybody = [&AS_ANYBODY[..], &AS_ROOT[..]].concat();
        // The variable lets root see what others see.
        let force_user = std::env::var_os("LBD_RIG_USERNS").is_some();
        if !force_user && probe(&as_root).is_ok() {
            return Ok(as_root);
        }
        probe(&as_anybody).map(|()| as_anybody)
    })
}

/// Whether these flags give what a rig needs: namespaces, and a TUN device in them.
fn probe(flags: &[&str]) -> Result<(), String> {
    let script =
        "mount -t tmpfs tmpfs /run && mkdir /run/netns && ip netns add probe && ip tuntap add dev probe0 mode tun";
    try_in_namespaces(flags, script).map_err(|why| format!("no namespaces with a TUN device here: {why}"))
}

fn try_in_namespaces(flags: &[&str], script: &str) -> Result<(), String> {
    let output = Command::new("unshare").args(flags).args(["sh", "-c", script]).output();
    let output = output.map_err(|error| format!("cannot run unshare: {error}"))?;
    if output.status.success() {
        Ok(())
    } else {
        Err(first_line(&output))
    }
}

fn first_line(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr)
        .lines()
        .next()
        .unwrap_or("no reason given")
        .to_owned()
}

fn which(tool: &str) -> Option<()> {
    let path = std::env::var("PATH").unwrap_or_default();
    let sbin = ["/usr/sbin", "/sbin"].into_iter();
    path.split(':')
        .chain(sbin)
        .any(|dir| fs::exists(format!("{dir}/{tool}")).unwrap_or(false))
        .then_some(())
}

/// The five namespaces, their links, addresses and routes; a private /run for their names and the rig's files. Then
/// whatever a test changes in that.
pub(crate) fn lay(change: &str) {
    const SCRIPT: &str = include_str!("lay.sh");
    let script = format!("{SCRIPT}\n{change}");
    let output = Command::new("sh")
        .args(["-eu", "-c", &script])
        .output()
        .expect("cannot run sh");
    assert!(output.status.success(), "cannot lay the rig: {output:?}");
}
