//! HAProxy in TCP mode and nginx's stream module: a listener for each service, each in its own words, otherwise as they
//! come.
use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::time::Duration;

use super::{Change, has_command, write};
use crate::Outcome;
use crate::limits;
use crate::rig::{DIR, Place, Program, shell};
use crate::world::{self, SERVICE_RANGE, UDP_PORT, World};

/// Debian puts it here; others compile it in.
const STREAM_MODULE: &str = "/usr/lib/nginx/modules/ngx_stream_module.so";
/// Connections that each is made for, where the limit of open files allows it.
const CONNECTIONS: u64 = 50_000;

const HAPROXY: &str = "\
global
  stats socket DIR/haproxy.sock mode 600 level admin
  maxconn CONNECTIONS
defaults
  mode tcp
  balance roundrobin
  timeout connect 5s
  timeout client 5m
  timeout server 5m
";

const NGINX: &str = "\
user root;
worker_processes auto;
daemon off;
pid DIR/nginx.pid;
error_log DIR/nginx-errors.log crit;
events { worker_connections CONNECTIONS; }
";

pub(super) fn nginx_missing() -> Option<String> {
    if !has_command("nginx") {
        return Some("there is no `nginx` here".to_owned());
    }
    let has_stream = Path::new(STREAM_MODULE).exists() || is_compiled_in();
    (!has_stream).then(|| "nginx has no stream module here (Debian: libnginx-mod-stream)".to_owned())
}

fn is_compiled_in() -> bool {
    let asked = std::process::Command::new("nginx").arg("-V").output();
    asked.is_ok_and(|output| String::from_utf8_lossy(&output.stderr).contains("--with-stream "))
}

pub(super) fn start_haproxy(world: World) -> Outcome<Program> {
    let path = write("haproxy.cfg", &haproxy(world))?;
    own_addresses()?;
    let mut program = Program::start("haproxy", &["haproxy", "-W", "-f", &path])?;
    let socket = format!("{DIR}/haproxy.sock");
    program.until("HAProxy", Duration::from_secs(30), |_log| {
        Ok(std::os::unix::net::UnixStream::connect(&socket).is_ok())
    })?;
    Ok(program)
}

pub(super) fn start_nginx(world: World) -> Outcome<Program> {
    let path = write("nginx.conf", &nginx(world))?;
    own_addresses()?;
    drop(fs::remove_file(format!("{DIR}/nginx.pid"))); // of the turn before, if there was one
    let mut program = Program::start(
        "nginx",
        &["nginx", "-e", &format!("{DIR}/nginx-errors.log"), "-c", &path],
    )?;
    program.until("nginx", Duration::from_secs(30), |_log| {
        Ok(Path::new(&format!("{DIR}/nginx.pid")).exists())
    })?;
    Ok(program)
}

/// Every service address is the balancer's own, so that a proxy can listen there.
fn own_addresses() -> Outcome<()> {
    shell(
        Place::Balancer,
        &format!("ip route replace local {SERVICE_RANGE} dev lo"),
    )
    .map(drop)
}

pub(super) fn forget_addresses() -> Outcome<()> {
    shell(Place::Balancer, &format!("ip route del local {SERVICE_RANGE} dev lo")).map(drop)
}

pub(super) fn runtime_api(after: World, service: u32) -> Outcome<Change> {
    let backend = after.backends(service)[0];
    let words = format!("set server s{service}/b0 addr {} port {}", backend.ip(), backend.port());
    // One connection to the socket and no program but the shell's own would need socat; this one is there anyway.
    let this = std::env::current_exe()?;
    Ok(Change::of(format!(
        "{} tell {DIR}/haproxy.sock '{words}'",
        this.display()
    )))
}

pub(super) fn reload_haproxy(after: World, program: &Program) -> Outcome<Change> {
    let new = write("haproxy.new", &haproxy(after))?;
    Ok(Change::of(format!(
        "cat {new} >{DIR}/haproxy.cfg && kill -USR2 {}",
        program.id()
    )))
}

pub(super) fn reload_nginx(after: World, program: &Program) -> Outcome<Change> {
    let new = write("nginx.new", &nginx(after))?;
    Ok(Change::of(format!(
        "cat {new} >{DIR}/nginx.conf && kill -HUP {}",
        program.id()
    )))
}

fn haproxy(world: World) -> String {
    let mut text = filled(HAPROXY, connections(world));
    for service in 0..world.services() {
        push(
            &mut text,
            &format!("listen s{service}\n  bind {}", world::address(service)),
        );
        for (number, backend) in world.backends(service).into_iter().enumerate() {
            push(&mut text, &format!("  server b{number} {backend}"));
        }
    }
    text
}

fn nginx(world: World) -> String {
    // Its number holds both sides of a connection, and the listeners.
    let mut text = filled(NGINX, 2 * connections(world) + u64::from(world.services()));
    if Path::new(STREAM_MODULE).exists() {
        text = format!("load_module {STREAM_MODULE};\n{text}");
    }
    text += "stream {\n";
    for service in 0..world.services() {
        let servers = world
            .backends(service)
            .into_iter()
            .map(|backend| format!("server {backend};"));
        let servers = servers.collect::<Vec<_>>().join(" ");
        push(&mut text, &format!("upstream s{service} {{ {servers} }}"));
        let address = world::address(service);
        push(
            &mut text,
            &format!("server {{ listen {address}; proxy_pass s{service}; proxy_timeout 5m; }}"),
        );
    }
    if let Some(udp) = world.udp() {
        // A listener for each worker, or the datagrams of one client would meet several sessions; no answer is due.
        let backend = format!("{}:{UDP_PORT}", world::backend(1).ip());
        push(
            &mut text,
            &format!("server {{ listen {udp} udp reuseport; proxy_pass {backend}; proxy_timeout 10s; }}"),
        );
    }
    text + "}\n"
}

/// Each takes two files, each service one, and a few more are needed.
fn connections(world: World) -> u64 {
    let for_traffic = limits::files().saturating_sub(u64::from(world.services()) + 1_000);
    CONNECTIONS.min(for_traffic / 2)
}

fn filled(template: &str, connections: u64) -> String {
    template
        .replace("DIR", DIR)
        .replace("CONNECTIONS", &connections.to_string())
}

fn push(text: &mut String, line: &str) {
    writeln!(text, "{line}").unwrap_or_default();
}
