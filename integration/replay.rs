//! `lbd replay` and `lbd check`: the program itself, files in and files out, no root.
#![allow(
    clippy::unwrap_used,
    reason = "a test ends at the first surprise, in its helpers too"
)]

use lbd_testkit::captures;
#[path = "support/fragments.rs"]
mod fragments;
use lbd_testkit::packets;

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};

use captures::{DataLink, Endianness, Timed, TsResolution, pcap, raw_pcap, read_pcap, read_pcapng};
use packets::{ACK, FIN, RST, SYN};
use tempfile::TempDir;

const CONFIG: &str = r#"mode = "ipvs"

[[services]]
name = "default/web:http"
protocol = "tcp"
address = "10.96.0.10:80"
scheduler = "rr"
backends = [{ address = "10.2.0.11:8080" }, { address = "10.2.0.12:8080" }]

[[services]]
name = "default/empty"
protocol = "udp"
address = "[fd00:96::10]:53"
backends = []
"#;

const CLIENT: &str = "10.1.0.2:40000";
const SERVICE: &str = "10.96.0.10:80";
const BACKEND: &str = "10.2.0.11:8080";
const SECOND: u64 = 1_000_000_000;
/// 2026-07-01.
const START: u64 = 1_782_864_000 * SECOND;

struct Run {
    directory: TempDir,
}

impl Run {
    fn new(config: &str, capture: &[u8]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("lbd.toml"), config).unwrap();
        fs::write(directory.path().join("in.pcap"), capture).unwrap();
        Self { directory }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// `lbd ARGS…` in the directory of the files.
    fn lbd(&self, args: &str) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lbd"));
        let args = args.split_whitespace();
        command.args(args).current_dir(self.directory.path()).output().unwrap()
    }

    /// A replay that must succeed; returns OUT and the verdicts.
    #[track_caller]
    fn replay(&self, options: &str) -> (Vec<u8>, String) {
        let done = self.lbd(&format!(
            "replay --config lbd.toml {options} --verdicts verdicts in.pcap out.pcap"
        ));
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        let out = fs::read(self.path("out.pcap")).unwrap();
        (out, fs::read_to_string(self.path("verdicts")).unwrap())
    }
}

#[track_caller]
fn assert_fails(done: &Output, code: i32, words: &str) {
    let said = String::from_utf8_lossy(&done.stderr);
    assert_eq!(done.status.code(), Some(code), "{said}");
    assert!(said.contains(words), "{said}");
}

/// A connection with an answer, a stray segment, a ping, a datagram to nobody.
fn conversation() -> Vec<Timed> {
    let packets = [
        packets::syn(CLIENT, SERVICE),
        packets::tcp(BACKEND, CLIENT, SYN | ACK, 5_000, 1_001, b""),
        packets::tcp(CLIENT, SERVICE, ACK, 1_001, 5_001, b"GET / HTTP/1.1\r\n\r\n"),
        packets::tcp("10.1.0.3:1", SERVICE, ACK, 1, 1, b""),
        packets::ping("10.1.0.2".parse().unwrap(), "10.96.0.10".parse().unwrap()),
        packets::udp("[fd00:1::2]:5000", "[fd00:96::10]:53", b"question"),
        packets::udp("10.1.0.2:5000", "10.99.0.1:53", b"question"),
        packets::syn("10.1.0.2:40001", SERVICE),
    ];
    (0..).map(|n| START + n * SECOND / 2).zip(packets).collect()
}

const VERDICTS: &str = r#"{"packet":1,"time":0.0,"verdict":"forward","direction":"original","service":"default/web:http","backend":"10.2.0.11:8080","source":"10.1.0.2:40000"}
{"packet":2,"time":0.5,"verdict":"forward","direction":"reply","service":"default/web:http","backend":"10.2.0.11:8080","source":"10.1.0.2:40000"}
{"packet":3,"time":1.0,"verdict":"forward","direction":"original","service":"default/web:http","backend":"10.2.0.11:8080","source":"10.1.0.2:40000"}
{"packet":4,"time":1.5,"verdict":"drop","reason":"not_syn"}
{"packet":5,"time":2.0,"verdict":"reject","reason":"echo"}
{"packet":6,"time":2.5,"verdict":"reject","reason":"no_backend"}
{"packet":7,"time":3.0,"verdict":"pass","reason":"no_match"}
{"packet":8,"time":3.5,"verdict":"forward","direction":"original","service":"default/web:http","backend":"10.2.0.12:8080","source":"10.1.0.2:40001"}
"#;

#[test]
fn each_packet_gets_a_line_and_what_lbd_would_emit_is_in_out() {
    let run = Run::new(CONFIG, &raw_pcap(&conversation()));
    let (out, verdicts) = run.replay("");
    assert_eq!(verdicts, VERDICTS);
    let (header, out) = read_pcap(&out);
    assert_eq!(header.datalink, DataLink::RAW);
    let times: Vec<u64> = out.iter().map(|(time, _)| (time - START) * 2 / SECOND).collect();
    assert_eq!(times, [0, 1, 2, 4, 5, 7]);
    out.iter().for_each(|(_, packet)| packets::assert_valid(packet));
    let ends: Vec<String> = out[..3]
        .iter()
        .map(|(_, packet)| format!("{:?}", packets::endpoints(packet)))
        .collect();
    let expected = [
        "(10.1.0.2:40000, 10.2.0.11:8080)",
        "(10.96.0.10:80, 10.1.0.2:40000)",
        "(10.1.0.2:40000, 10.2.0.11:8080)",
    ];
    assert_eq!(ends, expected);
    assert_eq!(
        packets::addresses(&out[3].1).1.to_string(),
        "10.1.0.2",
        "the ping's answer"
    );
    assert_eq!(packets::addresses(&out[4].1).1.to_string(), "fd00:1::2");
}

#[test]
fn both_modes_emit_the_same() {
    let run = |mode: &str| Run::new(&CONFIG.replace("ipvs", mode), &raw_pcap(&conversation())).replay("");
    assert_eq!(run("ipvs"), run("iptables"));
}

#[test]
fn the_clock_is_the_captures_own() {
    let at = |seconds: u64, packet: Vec<u8>| (START + seconds * SECOND, packet);
    let ack = || packets::tcp(CLIENT, SERVICE, ACK, 2, 2, b"");
    let capture = [
        at(0, packets::syn(CLIENT, SERVICE)),
        at(1, ack()),
        at(900, ack()),
        at(1_801, ack()),
        at(1_802, packets::syn(CLIENT, SERVICE)),
        at(1_803, packets::tcp(CLIENT, SERVICE, RST, 3, 3, b"")),
        at(1_804, packets::tcp(CLIENT, SERVICE, FIN, 3, 3, b"")),
    ];
    let (_, verdicts) = Run::new(CONFIG, &raw_pcap(&capture)).replay("");
    let told: Vec<String> = verdicts
        .lines()
        .map(|line| {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            format!("{} {}", line["verdict"], line["backend"])
        })
        .collect();
    assert_eq!(
        told,
        [
            "\"forward\" \"10.2.0.11:8080\"",
            "\"forward\" \"10.2.0.11:8080\"",
            "\"forward\" \"10.2.0.11:8080\"",
            "\"drop\" null",
            "\"forward\" \"10.2.0.12:8080\"",
            "\"forward\" \"10.2.0.12:8080\"",
            "\"forward\" \"10.2.0.12:8080\"",
        ]
    );
}

/// 200 clients, and the backends that they get.
fn spread(seed: &str) -> (Vec<u8>, String) {
    let clients = (1..=200).map(|port| (START + port, packets::syn(format!("10.1.0.2:{port}"), SERVICE)));
    let nat = "[nat]\nmasquerade = \"always\"\n[[services]]";
    let config = CONFIG.replace("\"rr\"", "\"random\"").replacen("[[services]]", nat, 1);
    Run::new(&config, &raw_pcap(&clients.collect::<Vec<_>>())).replay(seed)
}

#[test]
fn the_same_seed_gives_the_same_bytes_and_another_one_other_choices() {
    assert_eq!(spread("--seed 1"), spread("--seed 1"));
    assert_eq!(spread(""), spread(""), "without one too");
    let (one, two) = (spread("--seed 1").1, spread("--seed 2").1);
    assert_ne!(one, two);
    let share = |verdicts: &str| verdicts.matches("10.2.0.11").count();
    assert!((70..130).contains(&share(&one)) && (70..130).contains(&share(&two)));
}

#[test]
fn the_seed_of_the_configuration_is_used_unless_another_one_is_given() {
    let capture: Vec<Timed> = (1..=50)
        .map(|port| (port, packets::syn(format!("10.1.0.2:{port}"), SERVICE)))
        .collect();
    let random = CONFIG.replace("\"rr\"", "\"random\"");
    let seeded = random.replacen("[[services]]", "[datapath]\nseed = 9\n[[services]]", 1);
    let capture = raw_pcap(&capture);
    let configured = Run::new(&seeded, &capture).replay("");
    assert_eq!(configured, Run::new(&random, &capture).replay("--seed 9"));
    assert_ne!(configured, Run::new(&seeded, &capture).replay("--seed 8"));
}

#[test]
fn link_headers_are_kept_as_they_came() {
    let frames: Vec<Timed> = conversation()
        .into_iter()
        .zip([&[][..], &[100], &[100, 200]].into_iter().cycle())
        .map(|((time, packet), vlans)| (time, packets::ethernet(&packet, vlans)))
        .chain([(START + 9 * SECOND, packets::arp())])
        .collect();
    let file = pcap(&frames, DataLink::ETHERNET, Endianness::Big, TsResolution::MicroSecond);
    let (out, verdicts) = Run::new(CONFIG, &file).replay("");
    let not_ip = "{\"packet\":9,\"time\":9.0,\"verdict\":\"pass\",\"reason\":\"not_ip\"}\n";
    assert_eq!(verdicts, format!("{VERDICTS}{not_ip}"));
    let (header, out) = read_pcap(&out);
    assert_eq!(header.datalink, DataLink::ETHERNET);
    assert_eq!(out.len(), 6);
    for (time, frame) in &out {
        let (_, came) = frames.iter().find(|(other, _)| other == time).unwrap();
        let header = came.len() - conversation().iter().find(|(other, _)| other == time).unwrap().1.len();
        assert_eq!(frame[..header], came[..header]);
        packets::assert_valid(&frame[header..]);
    }
}

#[test]
fn a_pcapng_stays_one() {
    let packets: Vec<(u32, Timed)> = conversation().into_iter().map(|packet| (0, packet)).collect();
    let file = captures::pcapng(&packets, &[DataLink::RAW], Endianness::Little);
    let (out, verdicts) = Run::new(CONFIG, &file).replay("");
    assert_eq!(verdicts, VERDICTS);
    assert_eq!(read_pcapng(&out).len(), 6);
}

#[test]
fn out_is_the_same_with_and_without_verdicts() {
    let run = Run::new(CONFIG, &raw_pcap(&conversation()));
    let (with, _) = run.replay("");
    assert!(run.lbd("replay --config lbd.toml in.pcap out2.pcap").status.success());
    assert_eq!(with, fs::read(run.path("out2.pcap")).unwrap());
}

#[test]
fn a_replay_that_cannot_be_done_says_why_and_leaves_no_files() {
    let run = Run::new(CONFIG, b"this is no capture, but it is long enough to be one");
    assert_fails(&run.lbd("replay --config lbd.toml in.pcap out.pcap"), 1, "in.pcap");
    assert_fails(
        &run.lbd("replay --config lbd.toml missing.pcap out.pcap"),
        1,
        "missing.pcap",
    );
    assert_fails(
        &run.lbd("replay --config missing.toml in.pcap out.pcap"),
        1,
        "missing.toml",
    );
    assert_fails(&run.lbd("replay --config lbd.toml in.pcap in.pcap"), 1, "same file");
    assert!(!run.path("out.pcap").exists());
}

#[test]
fn a_damaged_capture_is_replayed_up_to_the_damage_and_fails() {
    let mut capture = raw_pcap(&conversation());
    capture.truncate(capture.len() - 5);
    let run = Run::new(CONFIG, &capture);
    let done = run.lbd("replay --config lbd.toml --verdicts verdicts in.pcap out.pcap");
    assert_fails(&done, 1, "7 packets");
    assert_eq!(fs::read_to_string(run.path("verdicts")).unwrap().lines().count(), 7);
}

#[test]
fn check_accepts_a_good_file_silently_and_tells_every_error_of_a_bad_one() {
    let run = Run::new(CONFIG, b"");
    let good = run.lbd("check --config lbd.toml");
    assert_eq!(
        (good.status.code(), good.stdout, good.stderr),
        (Some(0), vec![], vec![])
    );
    fs::write(
        run.path("bad.toml"),
        CONFIG.replace("\"rr\"", "\"best\"").replace("\"ipvs\"", "\"magic\""),
    )
    .unwrap();
    let bad = run.lbd("check --config bad.toml");
    let said = String::from_utf8(bad.stderr.clone()).unwrap();
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(bad.status.code(), Some(1));
    assert!(
        lines[0].starts_with("bad.toml:1:8: ") && lines[0].contains("magic"),
        "{said}"
    );
    assert!(
        lines[1].starts_with("bad.toml:7:13: ") && lines[1].contains("best"),
        "{said}"
    );
    assert_eq!(lines.len(), 2, "one line an error");
    assert_fails(&run.lbd("check --config missing.toml"), 1, "missing.toml");
}

#[test]
fn bad_usage_exits_with_2_and_help_with_0() {
    let run = Run::new(CONFIG, b"");
    for args in [
        "",
        "check",
        "frobnicate",
        "--config",
        "--config lbd.toml surplus",
        "check --config lbd.toml surplus",
        "replay --config lbd.toml",
        "replay --config lbd.toml in.pcap",
        "replay in.pcap out.pcap",
        "replay --config lbd.toml --seed many in.pcap out.pcap",
        "replay --config lbd.toml in.pcap out.pcap surplus",
    ] {
        assert_fails(&run.lbd(args), 2, "");
    }
    for args in ["--help", "--version", "help", "check --help", "replay --help"] {
        assert_eq!(run.lbd(args).status.code(), Some(0), "{args}");
    }
}

const DNS: &str = r#"
[[services]]
name = "default/dns"
protocol = "udp"
address = "10.96.0.53:53"
backends = [{ address = "10.2.0.11:53" }]
"#;

/// The later fragments of one datagram first, a stray packet among them, and a datagram whose first fragment is missing.
fn shuffled() -> Vec<Timed> {
    let datagram = |port: u16| packets::udp(format!("10.1.0.2:{port}"), "10.96.0.53:53", &[7; 3_000]);
    let whole = fragments::over(&datagram(4_000), 1, 1_500);
    let lost = fragments::over(&datagram(4_001), 2, 1_500);
    let stray = packets::syn("10.1.0.2:1", "10.99.0.1:80");
    let packets = [
        whole[2].clone(),
        lost[1].clone(),
        whole[1].clone(),
        stray,
        whole[0].clone(),
        lost[2].clone(),
    ];
    (0..).map(|n| START + n * SECOND).zip(packets).collect()
}

#[test]
fn a_fragment_that_came_too_early_has_its_line_in_its_place_and_leaves_with_the_one_it_waited_for() {
    const FORWARD: &str = r#","verdict":"forward","direction":"original","service":"default/dns","backend":"10.2.0.11:53","source":"10.1.0.2:4000"}"#;
    const LOST: &str = r#","verdict":"drop","reason":"fragment_timeout"}"#;
    const STRAY: &str = r#","verdict":"pass","reason":"no_match"}"#;
    let run = Run::new(DNS, &raw_pcap(&shuffled()));
    let (out, verdicts) = run.replay("");
    let ends = [FORWARD, LOST, FORWARD, STRAY, FORWARD, LOST];
    let lines = (0..)
        .zip(ends)
        .map(|(n, end)| format!("{{\"packet\":{},\"time\":{n}.0{end}\n", n + 1));
    assert_eq!(verdicts, lines.collect::<String>());
    let (_, out) = read_pcap(&out);
    let times: Vec<u64> = out.iter().map(|(time, _)| (time - START) / SECOND).collect();
    assert_eq!(times, [4, 4, 4], "when the first fragment came");
    let left: Vec<Vec<u8>> = out.into_iter().map(|(_, packet)| packet).collect();
    let expected = packets::udp("10.1.0.2:4000", "10.2.0.11:53", &[7; 3_000]);
    assert_eq!(fragments::whole(&left), expected);
}

#[test]
fn an_early_fragment_keeps_its_link_header_apart_and_a_replay_without_verdicts_emits_the_same() {
    let frames: Vec<Timed> = shuffled()
        .into_iter()
        .map(|(time, packet)| (time, packets::ethernet(&packet, &[7])))
        .collect();
    let run = Run::new(
        DNS,
        &pcap(
            &frames,
            DataLink::ETHERNET,
            Endianness::Little,
            TsResolution::NanoSecond,
        ),
    );
    let (out, _) = run.replay("");
    let done = run.lbd("replay --config lbd.toml in.pcap other.pcap");
    assert!(done.status.success());
    assert_eq!(fs::read(run.path("other.pcap")).unwrap(), out);
    let (_, out) = read_pcap(&out);
    let left: Vec<Vec<u8>> = out.iter().map(|(_, frame)| frame[18..].to_vec()).collect();
    assert!(out.iter().all(|(_, frame)| {
        frame[..18]
            == packets::ethernet(&[], &[7])[..16]
                .iter()
                .copied()
                .chain([8, 0])
                .collect::<Vec<_>>()
    }));
    assert_eq!(
        packets::endpoints(&fragments::whole(&left)).1,
        packets::socket("10.2.0.11:53")
    );
}
