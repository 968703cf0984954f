//! The servers: a real HTTP server and a real DNS server in each of `s1` to `s3`, which tell who they are.
use std::fs;
use std::process::Stdio;
use std::time::Duration;

use super::{DIR, SERVERS, wait_until, within};

/// Bytes of `/big` and `/slow`; the latter takes about 4 s.
pub(crate) const BIG: usize = 200_000_000;
const SLOW: usize = 16_000_000;

/// Writes the files to serve and starts nginx and dnsmasq in every server's namespace.
pub(crate) fn start() {
    fs::write(format!("{DIR}/slow"), noise(SLOW)).expect("cannot write the file to serve");
    for name in SERVERS {
        let dir = format!("{DIR}/{name}");
        fs::create_dir_all(format!("{dir}/put")).expect("cannot make a directory");
        start_nginx(name, &dir);
        start_dnsmasq(name, &dir);
    }
}

/// Puts `/big` where every server serves it.
pub(crate) fn write_big() {
    fs::write(format!("{DIR}/big"), noise(BIG)).expect("cannot write the file to serve");
}

/// Bytes that repeat nowhere near (xorshift64), the same in every run.
fn noise(bytes: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut words = Vec::with_capacity(bytes);
    while words.len() < bytes {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        words.extend_from_slice(&state.to_le_bytes());
    }
    words.truncate(bytes);
    words
}

fn start_nginx(name: &str, dir: &str) {
    let config = include_str!("nginx.conf").replace("NAME", name).replace("RIG", DIR);
    let path = format!("{dir}/nginx.conf");
    fs::write(&path, config).expect("cannot write nginx.conf");
    let mut command = within(name, 10);
    let output = command
        .args(["nginx", "-e", &format!("{dir}/error.log"), "-c", &path])
        .output()
        .expect("cannot run nginx");
    assert!(output.status.success(), "nginx does not start: {output:?}");
}

/// `-d`: in the foreground and as the user that it is.
fn start_dnsmasq(name: &str, dir: &str) {
    let number = name.trim_start_matches('s');
    let log = format!("{dir}/dns.log");
    let mut command = within(name, 600);
    command.args([
        "dnsmasq",
        "-d",
        "--conf-file=/dev/null",
        "--no-resolv",
        "--no-hosts",
        "--bind-interfaces",
    ]);
    command
        .arg(format!("--log-facility={log}"))
        .arg(format!("--txt-record=who.lbd.test,{name}"));
    command.arg(format!("--listen-address=10.2.0.1{number},fd00:2::1{number}"));
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    drop(command.spawn().expect("cannot run dnsmasq"));
    let started = || fs::read_to_string(&log).is_ok_and(|text| text.contains("started"));
    wait_until("dnsmasq", Duration::from_secs(30), started);
}
