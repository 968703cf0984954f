//! lbctl from the outside: the program, a real socket, and an lbd that answers from a script.
#![expect(
    clippy::unwrap_used,
    reason = "a test ends at the first surprise, in its helpers too"
)]
#[path = "lbctl/saving.rs"]
mod saving;
#[path = "lbctl/usage.rs"]
mod usage;

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;

use lbd::control::Handler;
use lbd::control::protocol::explanation::{Explanation, Question, Step};
use lbd::control::protocol::{
    BackendView, ConnectionView, Data, DrainView, Drops, FragmentsView, PacketCounts, RatesView, Reply, Request,
    RuleKind, RuleView, ServiceView, StatsView, Status, TimeoutsView,
};
use lbd::control::selector::Selector;
use lbd::control::server::Server;
use lbd::flow::{Endpoint, Protocol};
use lbd::policy::Mode;
use lbd::verdict::{Drop, Verdict};
use serde_json::{Value, json};
use tempfile::TempDir;

struct Scripted;

impl Handler for Scripted {
    fn handle(&self, request: Request) -> Reply {
        match request {
            Request::Status => Reply::Ok(Data::Status(Box::new(status()))),
            Request::List { service } => list(service.as_deref()),
            Request::Connections { .. } => Reply::Ok(Data::Connections(flows())),
            Request::Rules => Reply::Ok(Data::Rules(vec![rule()])),
            Request::Drops => Reply::Ok(Data::Drops(Drops::new(|verdict| {
                u64::from(verdict == Verdict::Drop(Drop::NotSyn)) * 3
            }))),
            Request::Explain { packet } => Reply::Ok(Data::Explanation(Box::new(explanation(packet)))),
            Request::Mode => Reply::Ok(Data::Mode(Mode::Ipvs)),
            Request::SwitchMode { mode } => Reply::message(format!("mode is now {}", mode.name())),
            Request::Reload => Reply::error("lbd.toml:3:1: one\nlbd.toml:4:1: two\n"),
            Request::Save => Reply::Ok(Data::Configuration("mode = \"ipvs\"\n".to_owned())),
            Request::Edit { edits } => Reply::message(serde_json::to_string(&edits).unwrap()),
            Request::Drain { backend, .. } => Reply::Ok(Data::Drains(vec![drain(&backend)])),
            Request::Drains => Reply::Ok(Data::Drains(Vec::new())),
            Request::Timeouts => Reply::Ok(Data::Timeouts(TimeoutsView {
                tcp_established_seconds: 900,
                tcp_fin_seconds: 120,
                udp_seconds: 300,
            })),
            Request::Zero { .. } => Reply::message("counting from zero"),
        }
    }
}

fn explanation(packet: Question) -> Explanation {
    let name = match packet {
        Question::First { source, .. } => source.to_string(),
        Question::Hex(bytes) => bytes.to_string(),
    };
    Explanation {
        mode: Mode::Ipvs,
        steps: vec![Step::NoFlow],
        verdict: "pass".into(),
        reason: Some("no_match".into()),
        service: None,
        backend: None,
        by_chance: false,
        notes: vec![name.into()],
    }
}

fn drain(backend: &str) -> DrainView {
    DrainView {
        service: "default/web:http".to_owned(),
        backend: endpoint(backend),
        draining_seconds: 0,
        deadline_seconds: Some(600),
        remaining_flows: 2,
        oldest_flow_seconds: Some(90),
    }
}

fn list(wanted: Option<&str>) -> Reply {
    let service = service();
    match wanted.map(Selector::new) {
        Some(only) if !only.picks(&service.name, &service.addresses) => Reply::error(only.unknown()),
        Some(_) | None => Reply::Ok(Data::Services(vec![service])),
    }
}

fn endpoint(text: &str) -> Endpoint {
    text.parse().unwrap()
}

fn service() -> ServiceView {
    ServiceView {
        name: "default/web:http".to_owned(),
        protocol: Protocol::Tcp,
        addresses: vec![endpoint("127.0.0.1:80"), endpoint("203.0.113.10:80")],
        scheduler: "rr".to_owned(),
        scheduler_flags: Vec::new(),
        one_packet: false,
        persistence: None,
        stats: StatsView {
            connections: 10,
            ..StatsView::default()
        },
        rates: RatesView {
            connections_per_second: 2,
            ..RatesView::default()
        },
        backends: vec![BackendView {
            address: endpoint("10.2.1.2:8080"),
            weight: 3,
            upper_threshold: 0,
            lower_threshold: 0,
            active_connections: 1,
            inactive_connections: 5,
            persistent_connections: 0,
            overloaded: false,
            stats: StatsView::default(),
            rates: RatesView::default(),
        }],
    }
}

/// So many that the table does not fit into a pipe.
fn flows() -> Vec<ConnectionView> {
    let flow = |port| ConnectionView {
        protocol: Protocol::Tcp,
        state: "ESTABLISHED".into(),
        expires_seconds: 897,
        client: Endpoint::new([10, 1, 0, 2].into(), port),
        virtual_address: endpoint("10.9.9.9:80"),
        backend: endpoint("10.2.2.2:80"),
        source: Endpoint::new([10, 1, 0, 2].into(), port),
        service: "web".to_owned(),
        masqueraded: false,
    };
    (1..=20_000).map(flow).collect()
}

fn rule() -> RuleView {
    RuleView {
        number: 1,
        name: Some("office only".to_owned()),
        kind: RuleKind::User,
        protocol: Some("tcp".to_owned()),
        source: Some("!203.0.113.0/24".to_owned()),
        destination: None,
        source_port: None,
        destination_port: Some("80".to_owned()),
        probability: None,
        action: "drop".to_owned(),
        packets: 7,
        bytes: 420,
    }
}

fn status() -> Status {
    Status {
        version: "0.1.0".to_owned(),
        mode: Mode::Ipvs,
        backend: "tun".to_owned(),
        config: "/etc/lbd.toml".into(),
        pid: 42,
        uptime_seconds: 61,
        workers: 2,
        services: 1,
        backends: 1,
        flows: 6,
        max_flows: 1_048_576,
        unknown_tcp: "drop".to_owned(),
        echo: true,
        flow_table_bytes: 0,
        flows_by_state: Vec::new(),
        packets: PacketCounts {
            received: 3,
            drop: 3,
            ..PacketCounts::default()
        },
        fragments: FragmentsView::default(),
        unsent: 0,
        last_reload: None,
        troubles: Vec::new(),
        firewall: Vec::new(),
        draining: Vec::new(),
        shadow: None,
        af_xdp: None,
    }
}

/// A served socket.
struct World {
    directory: TempDir,
    socket: PathBuf,
    _server: Server,
}

impl World {
    fn new() -> Self {
        let directory = TempDir::new().unwrap();
        let socket = directory.path().join("lbd.sock");
        let server = Server::start(&socket, Arc::new(Scripted)).unwrap();
        Self {
            directory,
            socket,
            _server: server,
        }
    }

    fn command(&self, args: &[&str]) -> Command {
        lbctl(&self.socket, args)
    }

    /// What lbctl printed; it must have succeeded and not complained.
    fn prints(&self, args: &[&str]) -> String {
        let output = self.command(args).output().unwrap();
        assert_eq!(stderr(&output), "", "{args:?}");
        assert_eq!(output.status.code(), Some(0), "{args:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn json(&self, args: &[&str]) -> Value {
        serde_json::from_str(&self.prints(args)).unwrap()
    }
}

fn lbctl(socket: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lbctl"));
    command.arg("--socket").arg(socket).args(args);
    command
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn list_is_the_table_of_ipvsadm() {
    let expected = "\
IP Virtual Server version 1.2.1 (size=4096)
Prot LocalAddress:Port Scheduler Flags
  -> RemoteAddress:Port           Forward Weight ActiveConn InActConn
TCP  127.0.0.1:80 rr
  -> 10.2.1.2:8080                Masq    3      1          5         \n\
TCP  203.0.113.10:80 rr
  -> 10.2.1.2:8080                Masq    3      1          5         \n";
    assert_eq!(World::new().prints(&["list", "-n"]), expected);
}

#[test]
fn list_without_n_shows_names() {
    let text = World::new().prints(&["list", "127.0.0.1:80"]);
    assert!(text.contains("TCP  localhost:http rr\n"), "{text}");
}

#[test]
fn one_service_is_chosen_by_name_or_by_address() {
    let world = World::new();
    let by_name = world.prints(&["list", "-n", "--stats", "default/web:http"]);
    assert_eq!(by_name.matches("TCP  ").count(), 2, "{by_name}");
    let by_address = world.prints(&["list", "-n", "--rate", "203.0.113.10:80"]);
    assert_eq!(by_address.matches("TCP  ").count(), 1, "{by_address}");
    assert!(
        by_address.starts_with("Prot LocalAddress:Port                 CPS"),
        "{by_address}"
    );
}

#[test]
fn a_service_that_does_not_exist_fails_and_is_named() {
    let output = World::new().command(&["list", "nobody"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).starts_with("no service \"nobody\": "),
        "{}",
        stderr(&output)
    );
    assert!(output.stdout.is_empty());
}

#[test]
fn list_as_json_has_stable_keys_and_numbers() {
    let list = World::new().json(&["list", "--json"]);
    let service = &list["services"][0];
    assert_eq!(service["addresses"], json!(["127.0.0.1:80", "203.0.113.10:80"]));
    assert_eq!(service["stats"]["connections"], json!(10));
    assert_eq!(service["rates"]["connections_per_second"], json!(2));
    assert_eq!(service["backends"][0]["inactive_connections"], json!(5));
}

#[test]
fn connections_are_the_table_of_ipvsadm_and_json() {
    let world = World::new();
    let text = world.prints(&["connections", "-n"]);
    let expected = "\
IPVS connection entries
pro expire state       source             virtual            destination
TCP 14:57  ESTABLISHED 10.1.0.2:1         10.9.9.9:80        10.2.2.2:80
TCP 14:57  ESTABLISHED 10.1.0.2:2         10.9.9.9:80        10.2.2.2:80
";
    assert!(text.starts_with(expected), "{}", &text[..400]);
    let json = world.json(&["connections", "--json"]);
    assert_eq!(json["connections"].as_array().unwrap().len(), 20_000);
    assert_eq!(json["connections"][0]["virtual"], json!("10.9.9.9:80"));
}

#[test]
fn a_reader_that_has_seen_enough_is_no_failure() {
    let world = World::new();
    let mut child = world
        .command(&["connections", "-n"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut first = [0; 23];
    child.stdout.take().unwrap().read_exact(&mut first).unwrap();
    assert_eq!(&first, b"IPVS connection entries");
    let output = child.wait_with_output().unwrap();
    assert_eq!(stderr(&output), "");
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn rules_and_drops_are_tables_and_json() {
    let world = World::new();
    let rules = world.prints(&["rules"]);
    let row = "\n1        7   420 drop   tcp  !203.0.113.0/24      any                  dpt:80 /* office only */\n";
    assert!(rules.ends_with(row), "{rules}");
    assert_eq!(world.json(&["rules", "--json"])["rules"][0]["packets"], json!(7));
    let drops = world.prints(&["drops"]);
    let is_row = |line: &str| line.split_whitespace().eq(["drop", "not_syn", "3"]);
    assert!(drops.lines().any(is_row), "{drops}");
    let json = world.json(&["drops", "--json"]);
    assert_eq!(json["drops"]["not_syn"], json!(3));
    assert_eq!(json["drops"]["fragment"], json!(0));
    assert_eq!(json["rejects"]["no_backend"], json!(0));
    assert_eq!(json["passes"]["no_match"], json!(0));
}

#[test]
fn rules_are_printed_as_kube_proxy_would_have_written_them() {
    let world = World::new();
    let text = world.prints(&["rules", "--format", "iptables-save"]);
    assert!(
        text.starts_with("# Generated by lbctl rules --format iptables-save\n# not shown: mode"),
        "{text}"
    );
    assert!(text.contains("\n*nat\n:PREROUTING ACCEPT [0:0]\n"), "{text}");
    let both = world
        .command(&["rules", "--format", "iptables-save", "--json"])
        .output()
        .unwrap();
    assert_eq!(both.status.code(), Some(2));
    assert_eq!(world.prints(&["rules", "--format", "table"]), world.prints(&["rules"]));
}

#[test]
fn status_is_for_people_and_for_programs() {
    let world = World::new();
    let text = world.prints(&["status"]);
    assert!(text.contains("flows        6 of 1048576\n"), "{text}");
    let json = world.json(&["status", "--json"]);
    assert_eq!(json["pid"], json!(42));
    assert_eq!(json["mode"], json!("ipvs"));
    assert_eq!(json["packets"]["in"], json!(3));
    assert_eq!(json["last_reload"], Value::Null);
}

#[test]
fn the_mode_is_read_and_switched() {
    let world = World::new();
    assert_eq!(world.prints(&["mode"]), "ipvs\n");
    assert_eq!(world.json(&["mode", "--json"]), json!({"mode": "ipvs"}));
    assert_eq!(world.prints(&["mode", "iptables"]), "mode is now iptables\n");
}

#[test]
fn a_reload_that_is_refused_prints_a_line_an_error() {
    let output = World::new().command(&["reload"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(stderr(&output), "lbd.toml:3:1: one\nlbd.toml:4:1: two\n");
}

#[test]
fn the_configuration_is_printed_or_written_to_a_file() {
    let world = World::new();
    assert_eq!(world.prints(&["save"]), "mode = \"ipvs\"\n");
    assert_eq!(world.json(&["save", "--json"]), json!({"mode": "ipvs"}));
    let file = world.directory.path().join("saved.toml");
    std::fs::File::create(&file).unwrap().write_all(b"old").unwrap();
    assert_eq!(world.prints(&["save", "--output", file.to_str().unwrap()]), "");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "mode = \"ipvs\"\n");
    let names = std::fs::read_dir(world.directory.path()).unwrap();
    assert_eq!(names.count(), 2, "the socket and the file, and no draft");
}

#[test]
fn a_file_that_cannot_be_written_is_named() {
    let world = World::new();
    let output = world
        .command(&["save", "--output", "/nonexistent/x.toml"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).starts_with("cannot write /nonexistent/x.toml: "),
        "{}",
        stderr(&output)
    );
}

#[test]
fn without_lbd_the_error_names_the_socket_and_the_remedy() {
    let output = lbctl(Path::new("/nonexistent/lbd.sock"), &["status"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let text = stderr(&output);
    assert!(
        text.starts_with("cannot reach lbd at /nonexistent/lbd.sock: "),
        "{text}"
    );
    assert!(
        text.contains("start `lbd --config FILE` or give --socket PATH"),
        "{text}"
    );
}

#[test]
fn an_explanation_is_shown_for_people_and_for_programs() {
    let world = World::new();
    let tuple = ["explain", "tcp", "10.1.0.2:40000", "10.96.0.10:80"];
    let expected = "\
flow           none
verdict        pass: no_match
note           10.1.0.2:40000
";
    assert_eq!(world.prints(&tuple), expected);
    let told = world.json(&["explain", "--json", "--hex", "45 00"]);
    assert_eq!(told["steps"], json!([{"step": "no_flow"}]));
    assert_eq!(told["verdict"], "pass");
    assert_eq!(told["notes"], json!(["4500"]));
}

#[test]
fn bad_usage_exits_with_2() {
    for args in [
        &["fly"][..],
        &["explain"],
        &["explain", "icmp", "10.1.0.2:1", "10.96.0.10:80"],
        &["explain", "tcp", "10.1.0.2", "10.96.0.10:80"],
        &["explain", "tcp", "10.1.0.2:1"],
        &["explain", "tcp", "10.1.0.2:1", "[fd00::10]:80"],
        &["explain", "--hex", "4x"],
        &["explain", "tcp", "10.1.0.2:1", "10.96.0.10:80", "--hex", "45"],
        &["list", "--stats", "--rate"],
        &["mode", "nftables"],
        &[],
    ] {
        let output = lbctl(Path::new("/nonexistent/lbd.sock"), args).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{args:?}");
    }
}

#[test]
fn edits_are_sent_as_they_were_asked_for() {
    let world = World::new();
    for (arguments, expected) in [
        (
            &["backend", "add", "web", "10.2.0.13:80", "--weight", "3"][..],
            json!([{"edit": "add_backend", "service": {"named": "web"}, "address": "10.2.0.13:80", "first": false,
                "fields": {"weight": 3, "upper_threshold": null, "lower_threshold": null}}]),
        ),
        (
            &["service", "delete", "10.96.0.10:80"],
            json!([{"edit": "delete_service", "service": {"named": "10.96.0.10:80"}}]),
        ),
        (
            &["timeouts", "1h", "0", "90"],
            json!([{"edit": "timeouts", "tcp": 3600, "tcp_fin": null, "udp": 90}]),
        ),
    ] {
        let output = world.command(arguments).output().unwrap();
        let sent: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(sent, expected);
    }
    let output = world
        .command(&[
            "service",
            "add",
            "web",
            "--protocol",
            "icmp",
            "--address",
            "10.96.0.10:80",
        ])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
}

#[test]
fn a_drain_tells_what_is_left_for_people_and_for_programs() {
    let world = World::new();
    let drain = ["backend", "drain", "10.2.0.11:80", "--deadline", "10m"];
    let text = String::from_utf8(world.command(&drain).output().unwrap().stdout).unwrap();
    assert!(
        text.contains("flows left: 2, the oldest 1m 30s old; reset in 10m"),
        "{text}"
    );
    let output = world.command(&drain).arg("--json").output().unwrap();
    let value: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(value["drains"][0]["oldest_flow_seconds"], 90);
}

#[test]
fn ipvsadm_has_its_own_help_and_its_own_errors() {
    let world = World::new();
    let help = world.command(&["ipvsadm", "-h"]).output().unwrap();
    assert!(
        String::from_utf8(help.stdout)
            .unwrap()
            .starts_with("ipvsadm v1.31 2019/12/24 (compiled with popt")
    );
    let timeouts = world.command(&["ipvsadm", "-L", "--timeout"]).output().unwrap();
    assert_eq!(timeouts.stdout, b"Timeout (tcp tcpfin udp): 900 120 300\n");
    let wrong = world.command(&["ipvsadm", "-A"]).output().unwrap();
    assert_eq!(wrong.status.code(), Some(2));
    assert_eq!(
        stderr(&wrong),
        "You need to supply the 'service-address' option for the 'add-service' command\n"
    );
}

#[test]
fn a_saved_table_of_ipvsadm_is_imported_and_what_is_lost_is_told() {
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("saved");
    let saved = "-A -t 10.9.9.9:80 -s rr\n-a -t 10.9.9.9:80 -r 10.2.1.2:80 -m -w 1\n-A -f 7 -s rr\n";
    std::fs::write(&file, saved).unwrap();
    let arguments = ["import", "ipvsadm-save", file.to_str().unwrap()];
    let output = lbctl(Path::new("/nowhere"), &arguments).output().unwrap();
    assert!(output.status.success());
    let toml = String::from_utf8(output.stdout.clone()).unwrap();
    assert!(lbd::config::parse("imported", &toml).is_ok(), "{toml}");
    assert!(
        stderr(&output).contains("saved:3: not carried over: -A -f 7 -s rr: "),
        "{}",
        stderr(&output)
    );
}

#[test]
fn a_dump_of_a_node_is_imported_and_what_is_lost_is_told() {
    let dump = Path::new(env!("CARGO_MANIFEST_DIR")).join("integration/dumps/kube-1.30.txt");
    let arguments = ["import", "iptables-save", dump.to_str().unwrap()];
    let output = lbctl(Path::new("/nowhere"), &arguments).output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    let toml = String::from_utf8(output.stdout.clone()).unwrap();
    let config = lbd::config::parse("imported", &toml).unwrap().config;
    assert_eq!(config.policy.services.len(), 6);
    let told = stderr(&output);
    assert!(
        told.contains("kube-1.30.txt:31: not carried over: -A KUBE-NODEPORTS "),
        "{told}"
    );
    assert!(
        told.contains("lines not needed: jumps into kube-proxy's chains"),
        "{told}"
    );
}

#[test]
fn a_file_that_is_no_dump_of_a_node_is_refused() {
    let output = lbctl(Path::new("/nowhere"), &["import", "iptables-save", "Cargo.toml"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(output.stdout, b"");
    assert!(stderr(&output).starts_with("Cargo.toml: no line of it is a rule of kube-proxy: give "));
    let missing = lbctl(Path::new("/nowhere"), &["import", "iptables-save", "/nowhere"])
        .output()
        .unwrap();
    assert_eq!(missing.status.code(), Some(1));
    assert_eq!(
        lbctl(Path::new("/nowhere"), &["import", "iptables-save"])
            .output()
            .unwrap()
            .status
            .code(),
        Some(2)
    );
}
