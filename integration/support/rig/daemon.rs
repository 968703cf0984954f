//! `lbd` itself, running in `lb`.
use std::fs::{self, File};
use std::os::unix::net::UnixDatagram;
use std::process::{Child, Stdio};
use std::time::Duration;

use rustix::process::{Signal, kill_process};

use super::{Config, DIR, Ran, Rig, Running, enter, process_id, wait_until};

/// What lbd writes to stderr.
pub(crate) const LOG: &str = "/run/rig/lbd.log";
const CONFIG: &str = "/run/rig/lbd.toml";
const NOTIFY: &str = "/run/rig/notify";
const PROGRAM: &str = env!("CARGO_BIN_EXE_lbd");
const CLIENT: &str = env!("CARGO_BIN_EXE_lbctl");

/// A running `lbd`; killed when dropped.
pub(crate) struct Lbd<'a> {
    rig: &'a Rig,
    child: Child,
    notify: UnixDatagram,
}

impl<'a> Lbd<'a> {
    /// Starts it and waits for its `lbd ready:` line.
    #[track_caller]
    pub(crate) fn start(rig: &'a Rig, config: &Config) -> Self {
        fs::write(CONFIG, config.to_string()).expect("cannot write the configuration");
        let log = File::create(LOG).expect("cannot write the log");
        drop(fs::remove_file(NOTIFY)); // of the run before, if there was one
        let notify = UnixDatagram::bind(NOTIFY).expect("cannot bind the notify socket");
        let mut command = enter("lb");
        command.env("NOTIFY_SOCKET", NOTIFY);
        command
            .args([PROGRAM, "--config", CONFIG])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        let mut lbd = Self {
            rig,
            child: command.spawn().expect("cannot start lbd"),
            notify,
        };
        wait_until("`lbd ready:`", Duration::from_secs(60), || {
            let gone = lbd.child.try_wait().expect("cannot ask for a child");
            assert!(gone.is_none(), "lbd ended ({gone:?}) and said: {}", lbd.log());
            lbd.log().contains("lbd ready:")
        });
        lbd
    }

    /// What it said so far.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(LOG).unwrap_or_default()
    }

    /// Writes a new configuration and has it read by `lbctl reload`; returns what that said.
    pub(crate) fn reload(&self, config: &str) -> Ran {
        fs::write(CONFIG, config).expect("cannot write the configuration");
        self.lbctl("reload")
    }

    /// Writes a new configuration and has it read by SIGHUP; returns what lbd then logged.
    #[track_caller]
    pub(crate) fn hangup(&self, config: &str) -> String {
        fs::write(CONFIG, config).expect("cannot write the configuration");
        let before = self.log();
        self.signal(Signal::HUP);
        wait_until("a line about the reload", Duration::from_secs(30), || {
            self.log().len() > before.len()
        });
        self.log().split_off(before.len())
    }

    /// Starts `lbctl` in `lb`.
    pub(crate) fn lbctl_in_background(&self, arguments: &str) -> Running {
        self.rig
            .spawn("lb", &format!("{CLIENT} --socket {DIR}/lbd.sock {arguments}"))
    }

    /// Writes a new configuration that nobody reads yet.
    pub(crate) fn write(&self, config: &str) {
        fs::write(CONFIG, config).expect("cannot write the configuration");
    }

    /// Runs `lbctl` in `lb`.
    pub(crate) fn lbctl(&self, arguments: &str) -> Ran {
        self.rig
            .sh("lb", &format!("{CLIENT} --socket {DIR}/lbd.sock {arguments}"))
    }

    /// Waits until so many connections are established, by its own table.
    #[track_caller]
    pub(crate) fn wait_for_established(&self, count: usize) {
        wait_until("connections that are established", Duration::from_secs(30), || {
            let table = self.lbctl("ipvsadm -Lnc").ok();
            table.lines().filter(|line| line.contains(" ESTABLISHED ")).count() == count
        });
    }

    /// `lbctl status --json`.
    #[track_caller]
    pub(crate) fn status(&self) -> serde_json::Value {
        let json = self.lbctl("status --json").ok();
        serde_json::from_str(&json).expect("JSON")
    }

    /// Packets that came in from the TUN device and went out to it, by the kernel's own count.
    pub(crate) fn packets_on_tun(&self) -> u64 {
        let count = "ip -j -s link show dev lbd0 | tr ',{' '\\n\\n' | sed -n 's/^\"packets\"://p'";
        let counts = self.rig.sh("lb", count).ok();
        counts.lines().map(|line| line.parse::<u64>().expect("a count")).sum()
    }

    /// What it told systemd first.
    pub(crate) fn notified(&self) -> String {
        let mut buffer = [0; 1024];
        self.notify.set_nonblocking(true).expect("a socket can be non-blocking");
        let length = self.notify.recv(&mut buffer).unwrap_or(0);
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    }

    /// SIGTERM: it must end by itself, with exit code 0.
    #[track_caller]
    pub(crate) fn terminate(self) {
        self.end(Signal::TERM);
    }

    /// SIGINT, as Ctrl-C sends it: just so.
    #[track_caller]
    pub(crate) fn interrupt(self) {
        self.end(Signal::INT);
    }

    #[track_caller]
    fn end(mut self, signal: Signal) {
        self.signal(signal);
        let ended = || self.child.try_wait().is_ok_and(|gone| gone.is_some());
        wait_until("lbd's end", Duration::from_secs(30), ended);
        let status = self.child.wait().expect("cannot wait for lbd");
        assert_eq!(status.code(), Some(0), "lbd said: {}", self.log());
    }

    /// It must end by itself; yields its exit code and what it said.
    #[track_caller]
    pub(crate) fn ended(mut self) -> (Option<i32>, String) {
        let ended = || self.child.try_wait().is_ok_and(|gone| gone.is_some());
        wait_until("lbd's end", Duration::from_secs(20), ended);
        let status = self.child.wait().expect("cannot wait for lbd");
        (status.code(), self.log())
    }

    /// SIGKILL: it ends with nothing tidied.
    pub(crate) fn kill9(mut self) {
        self.child.kill().expect("cannot kill lbd");
        self.child.wait().expect("cannot wait for lbd");
    }

    /// Sends a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(process_id(&self.child), signal).expect("cannot signal lbd");
    }
}

impl Drop for Lbd<'_> {
    fn drop(&mut self) {
        // Already gone after `terminate` and `kill9`; there is nothing to do about an error here.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
