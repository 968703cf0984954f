//! What the fuzzers begin with: good inputs of every kind, so that they need not find out what a packet looks like.
use lbd_testkit::packets;

use std::fs;
use std::path::{Path, PathBuf};

use super::captures::{self, DataLink, Endianness, TsResolution};
use packets::{ACK, IcmpError, SYN, icmp_error};

/// The seeds of a target.
pub fn of(target: &str) -> Vec<Vec<u8>> {
    match target {
        "packet" => samples().iter().map(|packet| prefixed(&[9; 24], packet)).collect(),
        "engine" => steps(),
        "config" => texts("configs", "toml"),
        "control" => control(),
        "capture" => files(),
        other => panic!("no target is called {other}"),
    }
}

/// Packets of every kind, of both IP versions.
pub fn samples() -> Vec<Vec<u8>> {
    let pairs = [
        ("10.1.0.20:40000", "10.96.0.10:80"),
        ("[fd00:1::20]:40000", "[fd00:96::10]:80"),
    ];
    let mut all = Vec::new();
    for (client, service) in pairs {
        let router = packets::socket(service).ip();
        let mut some = vec![
            packets::syn(client, service),
            packets::tcp(client, service, ACK, 5, 6, b"GET / HTTP/1.1\r\n"),
            packets::tcp(client, service, SYN | ACK, 5, 6, b""),
            packets::udp(client, service, b"a datagram"),
            packets::sctp_of(client, service, &packets::chunk(1, &[0; 16])),
            packets::sctp_of(client, service, &packets::chunk(0, b"data")),
            packets::ping(packets::socket(client).ip(), router),
        ];
        let errors: Vec<Vec<u8>> = some
            .iter()
            .map(|about| icmp_error(router, IcmpError::TooBig { mtu: 1_280 }, about))
            .collect();
        some.extend(errors);
        all.extend(some);
    }
    all
}

fn prefixed(prefix: &[u8], rest: &[u8]) -> Vec<u8> {
    [prefix, rest].concat()
}

/// Noise is as good as anything: every byte string is a list of steps.
fn steps() -> Vec<Vec<u8>> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut noise = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    (0..16_usize)
        .map(|number| (0..64 + number * 64).map(|_| noise()).collect())
        .collect()
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn texts(directory: impl AsRef<Path>, extension: &str) -> Vec<Vec<u8>> {
    let mut paths: Vec<PathBuf> = fs::read_dir(root().join(directory))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|found| found == extension))
        .collect();
    paths.sort();
    paths.iter().map(|path| fs::read(path).unwrap()).collect()
}

const REQUESTS: [&str; 9] = [
    r#"{"command":"status"}"#,
    r#"{"command":"list","service":"10.96.0.10:80"}"#,
    r#"{"command":"switch_mode","mode":"iptables"}"#,
    r#"{"command":"drain","backend":"10.2.0.11:8080","deadline_seconds":5}"#,
    r#"{"command":"zero","service":{"named":"default/web:http"}}"#,
    r#"{"command":"explain","packet":{"hex":"45 00"}}"#,
    r#"{"command":"explain","packet":{"first":{"protocol":"udp","source":"10.1.0.2:1","destination":"10.96.0.53:53"}}}"#,
    r#"{"command":"edit","edits":["clear",{"add_service":{"fields":{"protocol":"tcp","address":"10.9.9.9:80"}}}]}"#,
    r#"{"command":"edit","edits":[{"delete_service":{"service":{"at":{"protocol":"tcp","address":"10.96.0.10:80"}}}}]}"#,
];

const COMMAND_LINES: [&str; 8] = [
    "-A -t 10.9.9.9:80 -s wrr -p 300 -M 255.255.0.0",
    "-a -t 10.96.0.10:80 -r 10.2.0.19:8080 -m -w 3 -x 10 -y 5",
    "-E -u 10.96.0.53:53 -s mh -b mh-port,mh-fallback -O",
    "-e -t [fd00:96::10]:80 -r [fd00:2::11]:8080 -m -w 0",
    "-D --sctp-service 10.9.9.9:80",
    "-L -n --stats --sort --exact",
    "--set 900 120 300",
    "-Z -f 7",
];

const SAVED: &str = "-A -t 10.9.9.9:80 -s rr\n-a -t 10.9.9.9:80 -r 10.2.0.1:80 -m -w 1\n-A -u [fd00::1]:53 -s sh -b sh-port\n\
                     -a -u [fd00::1]:53 -r [fd00:2::1]:53 -m -w 2 -x 9 -y 3\n-A --sctp-service 10.9.9.9:9 -s wlc -p 60\n";

fn control() -> Vec<Vec<u8>> {
    let mut all: Vec<Vec<u8>> = REQUESTS.map(|line| prefixed(&[0], line.as_bytes())).into();
    all.extend(COMMAND_LINES.map(|line| prefixed(&[1], line.as_bytes())));
    all.extend([2, 4].map(|kind| prefixed(&[kind], SAVED.as_bytes())));
    all.extend(
        texts("integration/dumps", "txt")
            .iter()
            .map(|dump| prefixed(&[3], dump)),
    );
    all
}

fn files() -> Vec<Vec<u8>> {
    let timed: Vec<captures::Timed> = (7..).zip(samples().into_iter().take(4)).collect();
    let tagged: Vec<captures::Timed> = timed
        .iter()
        .map(|(time, packet)| (*time, packets::ethernet(packet, &[7, 8])))
        .collect();
    let both: Vec<(u32, captures::Timed)> = (0..).zip([timed[0].clone(), tagged[1].clone()]).collect();
    let links = [DataLink::RAW, DataLink::ETHERNET];
    vec![
        captures::raw_pcap(&timed),
        captures::pcap(&tagged, DataLink::ETHERNET, Endianness::Big, TsResolution::MicroSecond),
        captures::pcapng(&both, &links, Endianness::Little),
        captures::pcapng(&both, &links, Endianness::Big),
    ]
}
