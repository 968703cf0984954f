//! Every error, letter for letter, and its place.
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::config::Backend;
use crate::matcher::rules::{Action, Probability};
use crate::scheduler::{Flags, Kind};

/// Written `{web}`, `{web6}`, `{other}` and `{rule}` in the cases.
const SNIPPETS: [(&str, &str); 4] = [
    (
        "{web}",
        r#"[[services]]
name = "web"
protocol = "tcp"
address = "10.96.0.10:80"
"#,
    ),
    (
        "{web6}",
        r#"[[services]]
name = "web6"
protocol = "tcp"
address = "[fd00::10]:80"
"#,
    ),
    (
        "{other}",
        r#"[[services]]
name = "other"
protocol = "tcp"
address = "10.96.0.10:80"
"#,
    ),
    (
        "{rule}",
        r#"[[rules]]
action = "drop"
"#,
    ),
];

fn with_snippets(text: &str) -> String {
    let put = |text: String, (mark, snippet)| text.replace(mark, snippet);
    SNIPPETS.into_iter().fold(text.to_owned(), put)
}

/// Asserts that each text is refused with exactly these lines.
#[track_caller]
fn refused(cases: &[(&str, &[&str])]) {
    for (text, expected) in cases {
        let text = with_snippets(text);
        let lines: Vec<String> = match parse("lbd.toml", &text) {
            Ok(_) => panic!("accepted: {text}"),
            Err(errors) => errors.iter().map(ToString::to_string).collect(),
        };
        assert_eq!(lines, *expected, "{text}");
    }
}

fn accepted(text: &str) -> Loaded {
    match parse("lbd.toml", &with_snippets(text)) {
        Ok(loaded) => loaded,
        Err(errors) => panic!("{errors:#?}"),
    }
}

#[test]
fn what_is_not_toml_is_shown_with_its_place() {
    refused(&[
        (
            "mode = ",
            &[
                r#"lbd.toml:1:8: not valid TOML: "mode =": a value is missing after =, e.g. "text", 80 or true"#,
            ],
        ),
        (
            r#"mode = "ipvs"
mode = "ipvs"
"#,
            &["lbd.toml:2:1: mode is given twice: remove one, or write [[ ]] for a list of tables"],
        ),
        (
            r#"[tun
name = "x"
"#,
            &[r#"lbd.toml:1:5: not valid TOML: "[tun": unclosed table, expected `]`"#],
        ),
        (
            "name",
            &[r#"lbd.toml:1:5: not valid TOML: "name": key with no value, expected `=`"#],
        ),
        (
            "[tun]
mtu = 1500
[tun]
",
            &["lbd.toml:3:2: tun is given twice: remove one, or write [[ ]] for a list of tables"],
        ),
        (
            r#"mode = "ip
"#,
            &[
                r#"lbd.toml:1:11: not valid TOML: "mode = \"ip": invalid basic string, expected `"`"#,
            ],
        ),
    ]);
}

#[test]
fn an_unknown_key_is_refused_with_the_known_ones() {
    refused(&[
        (
            r#"modus = "ipvs""#,
            &[
                r#"lbd.toml:1:1: unknown key "modus" in the top level: known keys: mode, scheduler, datapath, tun, af_xdp, node, nat, conntrack, control, rules, services"#,
            ],
        ),
        (
            "[tun]
mtuu = 1500",
            &[
                r#"lbd.toml:2:1: unknown key "mtuu" in [tun]: did you mean "mtu"? known keys: name, mtu, offload"#,
            ],
        ),
        (
            r#"[[services]]
schedular = "rr"
name = "a"
protocol = "udp"
address = "10.0.0.1:53""#,
            &[
                r#"lbd.toml:2:1: unknown key "schedular" in [[services]]: did you mean "scheduler"? known keys: name, protocol, address, external_addresses, node_port, scheduler, scheduler_flags, persistence, backends"#,
            ],
        ),
        (
            "frobnicate = 1",
            &[
                r#"lbd.toml:1:1: unknown key "frobnicate" in the top level: known keys: mode, scheduler, datapath, tun, af_xdp, node, nat, conntrack, control, rules, services"#,
            ],
        ),
        (
            "[conntrack]
tcp_fin_wait = 3",
            &[
                r#"lbd.toml:2:1: unknown key "tcp_fin_wait" in [conntrack]: did you mean "tcp_time_wait"? known keys: max_flows, on_backend_removed, tcp_none, tcp_established, tcp_syn_sent, tcp_syn_recv, tcp_fin, tcp_time_wait, tcp_close, tcp_close_wait, tcp_last_ack, tcp_listen, tcp_synack, udp"#,
            ],
        ),
        (
            r#"[services]
name = "a""#,
            &[
                "lbd.toml:1:1: services = {...}: expected a list: write [[services]] for each of them",
            ],
        ),
        (
            "services = 3",
            &["lbd.toml:1:12: services = 3: expected a list, in [ ]"],
        ),
        (
            "tun = 3",
            &["lbd.toml:1:7: tun = 3: expected a table, with keys out of: name, mtu, offload"],
        ),
        (
            "[control]
sock = 1",
            &[r#"lbd.toml:2:1: unknown key "sock" in [control]: known keys: socket"#],
        ),
        (
            r#"{web}persistence = { time = "3h" }"#,
            &[r#"lbd.toml:5:17: unknown key "time" in persistence: known keys: timeout, netmask"#],
        ),
        (
            r#"{web}backends = [{ adress = "10.2.0.1:80" }]
"#,
            &[
                r#"lbd.toml:5:13: "address" is missing in backends: add e.g. address = "10.2.0.11:8080""#,
                r#"lbd.toml:5:15: unknown key "adress" in backends: did you mean "address"? known keys: address, weight, upper_threshold, lower_threshold"#,
            ],
        ),
    ]);
}

#[test]
fn a_value_of_the_wrong_kind_says_what_is_expected() {
    refused(&[
        (
            "mode = 3",
            &["lbd.toml:1:8: mode = 3: expected a string, in quotes"],
        ),
        (
            r#"[tun]
mtu = "1500""#,
            &[r#"lbd.toml:2:7: mtu = "1500": expected a whole number, without quotes"#],
        ),
        (
            r#"[tun]
offload = "yes""#,
            &[r#"lbd.toml:2:11: offload = "yes": expected true or false, without quotes"#],
        ),
        (
            "[af_xdp]
zero_copy = 1",
            &[r#"lbd.toml:2:13: zero_copy = 1: expected "auto", true or false"#],
        ),
        (
            r#"[af_xdp]
zero_copy = "yes""#,
            &[r#"lbd.toml:2:13: zero_copy = "yes": expected "auto", true or false"#],
        ),
        (
            "[conntrack]
udp = 1.5",
            &["lbd.toml:2:7: udp = 1.5: expected a string or a whole number"],
        ),
        (
            r#"[nat]
pool = "198.18.0.0/28""#,
            &[r#"lbd.toml:2:8: pool = "198.18.0.0/28": expected a list, in [ ]"#],
        ),
        (
            "[nat]
pool = [3]",
            &["lbd.toml:2:9: pool = 3: expected a string, in quotes"],
        ),
        (
            r#"{rule}probability = "half""#,
            &[r#"lbd.toml:3:15: probability = "half": expected a number, e.g. 0.5"#],
        ),
        (
            "{rule}source_port = true",
            &["lbd.toml:3:15: source_port = true: expected a string or a whole number"],
        ),
        (
            "mode = 1979-05-27",
            &["lbd.toml:1:8: mode = 1979-05-27: expected a string, in quotes"],
        ),
        (
            r#"mode = ["ipvs"]"#,
            &["lbd.toml:1:8: mode = [...]: expected a string, in quotes"],
        ),
        (
            "mode = { a = 1 }",
            &["lbd.toml:1:8: mode = {...}: expected a string, in quotes"],
        ),
    ]);
}

#[test]
fn a_mistyped_word_is_refused_with_the_known_ones() {
    refused(&[
        (
            r#"mode = "ipv""#,
            &[
                r#"lbd.toml:1:8: mode = "ipv": unknown word: did you mean "ipvs"? known: ipvs, iptables"#,
            ],
        ),
        (
            r#"scheduler = "wrrr""#,
            &[
                r#"lbd.toml:1:13: scheduler = "wrrr": unknown word: did you mean "wrr"? known: random, rr, wrr, lc, wlc, lblc, lblcr, dh, sh, sed, nq, fo, ovf, mh, twos"#,
            ],
        ),
        (
            r#"[datapath]
backend = "af-xdp""#,
            &[
                r#"lbd.toml:2:11: backend = "af-xdp": unknown word: did you mean "af_xdp"? known: tun, af_xdp"#,
            ],
        ),
        (
            r#"[af_xdp]
attach = "nativ""#,
            &[
                r#"lbd.toml:2:10: attach = "nativ": unknown word: did you mean "native"? known: auto, native, generic"#,
            ],
        ),
        (
            r#"[nat]
masquerade = "all""#,
            &[r#"lbd.toml:2:14: masquerade = "all": unknown word: known: auto, always, never"#],
        ),
        (
            r#"[conntrack]
on_backend_removed = "keep""#,
            &[
                r#"lbd.toml:2:22: on_backend_removed = "keep": unknown word: known: preserve, reset, reschedule"#,
            ],
        ),
    ]);
}

#[test]
fn devices_threads_and_node_addresses_are_checked() {
    refused(&[
        (
            "[datapath]
workers = 257",
            &[
                "lbd.toml:2:11: workers = 257: must be 0 to 256; 0 means one a CPU (tun) or one a receive queue (af_xdp)",
            ],
        ),
        (
            "[datapath]
workers = -1",
            &[
                "lbd.toml:2:11: workers = -1: must be 0 to 256; 0 means one a CPU (tun) or one a receive queue (af_xdp)",
            ],
        ),
        (
            "[datapath]
seed = -1",
            &["lbd.toml:2:8: seed = -1: must be 0 to 18446744073709551615"],
        ),
        (
            "[datapath]
seed = 18446744073709551616",
            &["lbd.toml:2:8: seed = 18446744073709551616: must be 0 to 18446744073709551615"],
        ),
        (
            r#"[datapath]
backend = "af_xdp""#,
            &[
                r#"lbd.toml:2:11: backend = "af_xdp": no interface is named: add interfaces = ["eth0"] to [af_xdp]"#,
            ],
        ),
        (
            r#"[datapath]
backend = "af_xdp"
[af_xdp]
interfaces = []"#,
            &[
                r#"lbd.toml:2:11: backend = "af_xdp": no interface is named: add interfaces = ["eth0"] to [af_xdp]"#,
            ],
        ),
        (
            r#"[af_xdp]
interfaces = ["eth0", "eth0"]"#,
            &[r#"lbd.toml:2:23: interfaces = "eth0": given twice: remove one"#],
        ),
        (
            r#"[af_xdp]
interfaces = ["a/b"]"#,
            &[
                r#"lbd.toml:2:15: interfaces = "a/b": not a device name: 1 to 15 bytes without blanks, '/', ':' and '%', e.g. "lbd0""#,
            ],
        ),
        (
            r#"[tun]
name = "a name""#,
            &[
                r#"lbd.toml:2:8: name = "a name": not a device name: 1 to 15 bytes without blanks, '/', ':' and '%', e.g. "lbd0""#,
            ],
        ),
        (
            r#"[tun]
name = """#,
            &[
                r#"lbd.toml:2:8: name = "": not a device name: 1 to 15 bytes without blanks, '/', ':' and '%', e.g. "lbd0""#,
            ],
        ),
        (
            r#"[tun]
name = "sixteen-bytes-xx""#,
            &[
                r#"lbd.toml:2:8: name = "sixteen-bytes-xx": not a device name: 1 to 15 bytes without blanks, '/', ':' and '%', e.g. "lbd0""#,
            ],
        ),
        (
            r#"[tun]
name = "lbd%d""#,
            &[
                r#"lbd.toml:2:8: name = "lbd%d": not a device name: 1 to 15 bytes without blanks, '/', ':' and '%', e.g. "lbd0""#,
            ],
        ),
        (
            "[tun]
mtu = 575",
            &["lbd.toml:2:7: mtu = 575: must be 576 to 65535, e.g. 1500"],
        ),
        (
            "[tun]
mtu = 65536",
            &["lbd.toml:2:7: mtu = 65536: must be 576 to 65535, e.g. 1500"],
        ),
        (
            "[tun]
mtu = 1279
{web6}",
            &["lbd.toml:2:7: mtu = 1279: too small for IPv6 services: give at least 1280"],
        ),
        (
            r#"[control]
socket = """#,
            &[
                r#"lbd.toml:2:10: socket = "": not a path for a socket: 1 to 107 bytes, e.g. "/run/lbd/lbd.sock""#,
            ],
        ),
        (
            r#"[node]
addresses = ["192.168.0.2", "192.168.0.2"]"#,
            &[r#"lbd.toml:2:29: addresses = "192.168.0.2": given twice: remove one"#],
        ),
        (
            r#"[node]
addresses = ["node1"]"#,
            &[
                r#"lbd.toml:2:14: addresses = "node1": not an IP address without a port: write e.g. "203.0.113.10" or "fd00::10""#,
            ],
        ),
        (
            r#"[node]
addresses = ["192.168.0.2/24"]"#,
            &[
                r#"lbd.toml:2:14: addresses = "192.168.0.2/24": not an IP address without a port: write e.g. "203.0.113.10" or "fd00::10""#,
            ],
        ),
        (
            r#"[node]
addresses = ["198.18.0.3"]"#,
            &[
                r#"lbd.toml:2:14: addresses = "198.18.0.3": lies in nat.pool 198.18.0.0/28: take another address, or set another pool in [nat]"#,
            ],
        ),
    ]);
}

#[test]
fn a_pool_of_unusable_addresses_is_refused() {
    refused(&[
        (
            "[nat]
pool = []",
            &[
                r#"lbd.toml:2:8: pool = []: at least one address is needed: give e.g. ["198.18.0.0/28"], or leave the key out"#,
            ],
        ),
        (
            r#"[nat]
pool = ["198.18.0.0/33"]"#,
            &[
                r#"lbd.toml:2:9: pool = "198.18.0.0/33": bad prefix length after /: must be 0 to 32"#,
            ],
        ),
        (
            r#"[nat]
pool = ["benchmark"]"#,
            &[
                r#"lbd.toml:2:9: pool = "benchmark": not a network: write e.g. "203.0.113.0/24", "fd00::/64" or one address"#,
            ],
        ),
        (
            r#"[nat]
pool = ["198.18.0.0/28", "198.18.0.8/30"]"#,
            &[
                r#"lbd.toml:2:26: pool = "198.18.0.8/30": overlaps with 198.18.0.0/28: remove one of them"#,
            ],
        ),
        (
            r#"[nat]
pool = ["224.0.0.0/4"]"#,
            &[
                r#"lbd.toml:2:9: pool = "224.0.0.0/4": no host can have these addresses: give unused unicast ones, e.g. "198.18.0.0/28""#,
            ],
        ),
        (
            r#"[nat]
pool = ["::ffff:10.0.0.0/120"]"#,
            &[
                r#"lbd.toml:2:9: pool = "::ffff:10.0.0.0/120": an IPv4-mapped IPv6 address: write it as IPv4, 10.0.0.0"#,
            ],
        ),
        (
            r#"[nat]
pool = ["10.96.0.0/16"]
{web}"#,
            &[
                r#"lbd.toml:6:11: address = "10.96.0.10:80": lies in nat.pool 10.96.0.0/16: take another address, or set another pool in [nat]"#,
            ],
        ),
    ]);
}

#[test]
fn limits_and_timeouts_of_flows_are_checked() {
    refused(&[
        (
            "[conntrack]
max_flows = 0",
            &["lbd.toml:2:13: max_flows = 0: must be 1 to 1073741824 flows, e.g. 1048576"],
        ),
        (
            r#"[conntrack]
udp = "five minutes""#,
            &[
                r#"lbd.toml:2:7: udp = "five minutes": not a duration: write e.g. "90s", "15m", "1h 30m", or whole seconds without quotes"#,
            ],
        ),
        (
            "[conntrack]
udp = 0",
            &["lbd.toml:2:7: udp = 0: must be 1ms to 31days"],
        ),
        (
            "[conntrack]
udp = -1",
            &[
                r#"lbd.toml:2:7: udp = -1: not a duration: write e.g. "90s", "15m", "1h 30m", or whole seconds without quotes"#,
            ],
        ),
        (
            r#"[conntrack]
tcp_fin = "32days""#,
            &[r#"lbd.toml:2:11: tcp_fin = "32days": must be 1ms to 31days"#],
        ),
        (
            r#"[conntrack]
tcp_none = "1us""#,
            &[r#"lbd.toml:2:12: tcp_none = "1us": must be 1ms to 31days"#],
        ),
    ]);
}

#[test]
fn a_wrong_service_is_refused() {
    refused(&[
        (
            "[[services]]",
            &[
                r#"lbd.toml:1:1: "name" is missing in [[services]]: add e.g. name = "default/web:http""#,
                r#"lbd.toml:1:1: "protocol" is missing in [[services]]: add e.g. protocol = "tcp""#,
                r#"lbd.toml:1:1: "address" is missing in [[services]]: add e.g. address = "10.96.0.10:80""#,
            ],
        ),
        (
            r#"[[services]]
name = "a"
protocol = "tcp"
"#,
            &[
                r#"lbd.toml:1:1: "address" is missing in [[services]]: add e.g. address = "10.96.0.10:80""#,
            ],
        ),
        (
            r#"{web}[[services]]
name = "web"
protocol = "tcp"
address = "10.96.0.11:80"
"#,
            &[r#"lbd.toml:6:8: name = "web": another service has this name: names must be unique"#],
        ),
        (
            "{web}{other}",
            &[
                r#"lbd.toml:8:11: address = "10.96.0.10:80": tcp 10.96.0.10:80 is already taken by service "web": give another address or port"#,
            ],
        ),
        (
            r#"{web}external_addresses = ["203.0.113.10"]
[[services]]
name = "other"
protocol = "tcp"
address = "203.0.113.10:80"
"#,
            &[
                r#"lbd.toml:9:11: address = "203.0.113.10:80": tcp 203.0.113.10:80 is already taken by service "web": give another address or port"#,
            ],
        ),
        (
            r#"{web}external_addresses = ["203.0.113.10", "203.0.113.10"]
"#,
            &[
                r#"lbd.toml:5:39: external_addresses = "203.0.113.10": tcp 203.0.113.10:80 is given twice in this service: remove one"#,
            ],
        ),
        (
            r#"{web}external_addresses = ["fd00::1"]
"#,
            &[
                r#"lbd.toml:5:23: external_addresses = "fd00::1": the service 10.96.0.10:80 is IPv4: give an IPv4 address, or make a service for each family"#,
            ],
        ),
        (
            r#"{web}external_addresses = ["203.0.113.10:80"]
"#,
            &[
                r#"lbd.toml:5:23: external_addresses = "203.0.113.10:80": not an IP address without a port: write e.g. "203.0.113.10" or "fd00::10""#,
            ],
        ),
        (
            r#"{web}external_addresses = ["198.18.0.1"]
"#,
            &[
                r#"lbd.toml:5:23: external_addresses = "198.18.0.1": lies in nat.pool 198.18.0.0/28: take another address, or set another pool in [nat]"#,
            ],
        ),
        (
            r#"{web}node_port = 30080
[[services]]
name = "other"
protocol = "tcp"
address = "10.96.0.11:80"
node_port = 30080
"#,
            &[
                r#"lbd.toml:10:13: node_port = 30080: tcp 30080 is already taken by service "web": give another address or port"#,
            ],
        ),
        (
            r#"[node]
addresses = ["192.168.0.2"]
[[services]]
name = "web"
protocol = "tcp"
address = "192.168.0.2:30080"
{other}node_port = 30080
"#,
            &[
                r#"lbd.toml:11:13: node_port = 30080: tcp 192.168.0.2:30080 is already taken by service "web": give another address or port"#,
            ],
        ),
        (
            "{web}node_port = 0",
            &["lbd.toml:5:13: node_port = 0: must be 1 to 65535, e.g. 30080"],
        ),
        (
            r#"[[services]]
name = ""
protocol = "tcp"
address = "10.96.0.10:80"
"#,
            &[
                r#"lbd.toml:2:8: name = "": must not be empty, begin or end with a blank, or hold control characters; e.g. "default/web:http""#,
            ],
        ),
        (
            r#"[[services]]
name = "a\tb"
protocol = "tcp"
address = "10.96.0.10:80"
"#,
            &[
                r#"lbd.toml:2:8: name = "a\tb": must not be empty, begin or end with a blank, or hold control characters; e.g. "default/web:http""#,
            ],
        ),
        (
            r#"[[services]]
name = "web"
protocol = "sctp"
address = "10.96.0.10:80"
"#,
            &[
                r#"lbd.toml:3:12: protocol = "sctp": SCTP is not balanced by this version: remove the service, or give "tcp" or "udp""#,
            ],
        ),
        (
            r#"[[services]]
name = "web"
protocol = "tpc"
address = "10.96.0.10:80"
"#,
            &[
                r#"lbd.toml:3:12: protocol = "tpc": unknown word: did you mean "tcp"? known: tcp, udp, sctp"#,
            ],
        ),
        (
            r#"[[services]]
name = "web"
protocol = "tcp"
address = "10.96.0.10"
"#,
            &[
                r#"lbd.toml:4:11: address = "10.96.0.10": no port: write it after the address, e.g. "10.96.0.10:80""#,
            ],
        ),
        (
            r#"[[services]]
name = "web"
protocol = "tcp"
address = "fd00::10"
"#,
            &[
                r#"lbd.toml:4:11: address = "fd00::10": no port: write it after the address, e.g. "[fd00::10]:80""#,
            ],
        ),
        (
            r#"[[services]]
name = "web"
protocol = "tcp"
address = "10.96.0.10:0"
"#,
            &[
                r#"lbd.toml:4:11: address = "10.96.0.10:0": port 0 (all ports) is not supported: give a port"#,
            ],
        ),
        (
            r#"[[services]]
name = "web"
protocol = "tcp"
address = "10.96.0.10:65536"
"#,
            &[
                r#"lbd.toml:4:11: address = "10.96.0.10:65536": "65536" is no port: ports are 1 to 65535"#,
            ],
        ),
        (
            r#"[[services]]
name = "web"
protocol = "tcp"
address = "localhost:80"
"#,
            &[
                r#"lbd.toml:4:11: address = "localhost:80": not an address and a port: write e.g. "10.96.0.10:80" or "[fd00::10]:80""#,
            ],
        ),
        (
            r#"[[services]]
name = "web"
protocol = "tcp"
address = "[fe80::1%2]:80"
"#,
            &[
                r#"lbd.toml:4:11: address = "[fe80::1%2]:80": an interface (after %) cannot be given: leave it out"#,
            ],
        ),
        (
            r#"[[services]]
name = "web"
protocol = "tcp"
address = "0.0.0.0:80"
"#,
            &[
                r#"lbd.toml:4:11: address = "0.0.0.0:80": the unspecified address: give the address of one host"#,
            ],
        ),
        (
            r#"[[services]]
name = "web"
protocol = "tcp"
address = "224.0.0.1:80"
"#,
            &[
                r#"lbd.toml:4:11: address = "224.0.0.1:80": a multicast address: give the address of one host"#,
            ],
        ),
        (
            r#"[[services]]
name = "web"
protocol = "tcp"
address = "255.255.255.255:80"
"#,
            &[
                r#"lbd.toml:4:11: address = "255.255.255.255:80": the broadcast address: give the address of one host"#,
            ],
        ),
        (
            r#"[[services]]
name = "web"
protocol = "tcp"
address = "[::ffff:10.96.0.10]:80"
"#,
            &[
                r#"lbd.toml:4:11: address = "[::ffff:10.96.0.10]:80": an IPv4-mapped IPv6 address: write it as IPv4, 10.96.0.10"#,
            ],
        ),
        (
            r#"[[services]]
name = "web"
protocol = "tcp"
address = "198.18.0.5:80"
"#,
            &[
                r#"lbd.toml:4:11: address = "198.18.0.5:80": lies in nat.pool 198.18.0.0/28: take another address, or set another pool in [nat]"#,
            ],
        ),
        (
            r#"{web}scheduler = "maglev""#,
            &[
                r#"lbd.toml:5:13: scheduler = "maglev": unknown word: known: random, rr, wrr, lc, wlc, lblc, lblcr, dh, sh, sed, nq, fo, ovf, mh, twos"#,
            ],
        ),
        (
            r#"{web}scheduler_flags = ["sh-port"]"#,
            &[
                r#"lbd.toml:5:20: scheduler_flags = "sh-port": only for scheduler "sh", and this service's is "rr", which has no flags: remove it or change the scheduler"#,
            ],
        ),
        (
            r#"{web}scheduler = "sh"
scheduler_flags = ["mh-port"]"#,
            &[
                r#"lbd.toml:6:20: scheduler_flags = "mh-port": only for scheduler "mh", and this service's is "sh", whose flags are: sh-port, sh-fallback"#,
            ],
        ),
        (
            r#"{web}scheduler = "sh"
scheduler_flags = ["sh-prot"]"#,
            &[
                r#"lbd.toml:6:20: scheduler_flags = "sh-prot": unknown word: did you mean "sh-port"? known: sh-port, sh-fallback, mh-port, mh-fallback"#,
            ],
        ),
        (
            r#"{web}persistence = { timeout = "0s" }"#,
            &[r#"lbd.toml:5:27: timeout = "0s": must be 1s to 31days"#],
        ),
        (
            r#"{web}persistence = { timeout = "3h", netmask = "255.0.255.0" }"#,
            &[
                r#"lbd.toml:5:43: netmask = "255.0.255.0": not an IPv4 netmask: write e.g. "255.255.255.0" or 24 (0 to 32)"#,
            ],
        ),
        (
            "{web}persistence = { netmask = 33 }",
            &[
                r#"lbd.toml:5:27: netmask = 33: not an IPv4 netmask: write e.g. "255.255.255.0" or 24 (0 to 32)"#,
            ],
        ),
        (
            r#"{web6}persistence = { netmask = "255.255.255.0" }"#,
            &[
                r#"lbd.toml:5:27: netmask = "255.255.255.0": not an IPv6 netmask: write a prefix length, e.g. 64 (0 to 128)"#,
            ],
        ),
    ]);
}

#[test]
fn a_wrong_backend_is_refused() {
    refused(&[
        (
            "{web}backends = [{ weight = 1 }]
",
            &[
                r#"lbd.toml:5:13: "address" is missing in backends: add e.g. address = "10.2.0.11:8080""#,
            ],
        ),
        (
            r#"{web}backends = [{ address = "10.2.0.11:0" }]
"#,
            &[
                r#"lbd.toml:5:25: address = "10.2.0.11:0": port 0 (all ports) is not supported: give a port"#,
            ],
        ),
        (
            r#"{web}backends = [{ address = "10.2.0.11" }]
"#,
            &[
                r#"lbd.toml:5:25: address = "10.2.0.11": no port: write it after the address, e.g. "10.2.0.11:80""#,
            ],
        ),
        (
            r#"{web}backends = [{ address = "10.2.0.11:80", weight = 65536 }]
"#,
            &["lbd.toml:5:50: weight = 65536: must be 0 to 65535; 0 drains the backend"],
        ),
        (
            r#"{web}backends = [{ address = "10.2.0.11:80", weight = -1 }]
"#,
            &["lbd.toml:5:50: weight = -1: must be 0 to 65535; 0 drains the backend"],
        ),
        (
            r#"{web}backends = [
  { address = "10.2.0.11:80" },
  { address = "10.2.0.11:80", weight = 2 },
]
"#,
            &[
                r#"lbd.toml:7:15: address = "10.2.0.11:80": given twice in this service: remove one, and set its weight instead"#,
            ],
        ),
        (
            r#"{web}backends = [{ address = "[fd00::1]:80" }]
"#,
            &[
                r#"lbd.toml:5:25: address = "[fd00::1]:80": the service 10.96.0.10:80 is IPv4: give an IPv4 address, or make a service for each family"#,
            ],
        ),
        (
            r#"{web6}backends = [{ address = "10.2.0.11:80" }]"#,
            &[
                r#"lbd.toml:5:25: address = "10.2.0.11:80": the service [fd00::10]:80 is IPv6: give an IPv6 address, or make a service for each family"#,
            ],
        ),
        (
            r#"{web}backends = [{ address = "10.2.0.11:80", lower_threshold = 5 }]
"#,
            &[
                "lbd.toml:5:59: lower_threshold = 5: above upper_threshold = 0: give at most that, or raise upper_threshold",
            ],
        ),
        (
            r#"{web}backends = [{ address = "10.2.0.11:80", upper_threshold = 4, lower_threshold = 5 }]
"#,
            &[
                "lbd.toml:5:80: lower_threshold = 5: above upper_threshold = 4: give at most that, or raise upper_threshold",
            ],
        ),
        (
            r#"{web}backends = [{ address = "10.2.0.11:80", upper_threshold = 4294967296 }]
"#,
            &["lbd.toml:5:59: upper_threshold = 4294967296: must be 0 to 4294967295; 0 is none"],
        ),
        (
            r#"{web}backends = [{ address = "198.18.0.1:80" }]
"#,
            &[
                r#"lbd.toml:5:25: address = "198.18.0.1:80": lies in nat.pool 198.18.0.0/28: take another address, or set another pool in [nat]"#,
            ],
        ),
        (
            r#"{web}backends = [{ address = "10.96.0.10:80" }]
"#,
            &[
                r#"lbd.toml:5:25: address = "10.96.0.10:80": this is the service itself: give the address of a real server"#,
            ],
        ),
        (
            r#"{web}backends = ["10.2.0.11:80"]
"#,
            &[
                r#"lbd.toml:5:13: backends = "10.2.0.11:80": expected a table, with keys out of: address, weight, upper_threshold, lower_threshold"#,
            ],
        ),
    ]);
}

#[test]
fn a_wrong_rule_is_refused() {
    refused(&[
        (
            r#"mode = "iptables"
[[rules]]
"#,
            &[r#"lbd.toml:2:1: "action" is missing in [[rules]]: add e.g. action = "drop""#],
        ),
        (
            r#"{rule}source = "203.0.113.0/33""#,
            &[
                r#"lbd.toml:3:10: source = "203.0.113.0/33": bad prefix length after /: must be 0 to 32"#,
            ],
        ),
        (
            r#"{rule}source = "office""#,
            &[
                r#"lbd.toml:3:10: source = "office": not a network: write e.g. "203.0.113.0/24", "fd00::/64" or one address"#,
            ],
        ),
        (
            r#"{rule}source = "! office""#,
            &[
                r#"lbd.toml:3:10: source = "! office": not a network: write e.g. "203.0.113.0/24", "fd00::/64" or one address"#,
            ],
        ),
        (
            r#"{rule}destination = "10.0.0.0/255.0.255.0""#,
            &[
                r#"lbd.toml:3:15: destination = "10.0.0.0/255.0.255.0": bad prefix length after /: must be 0 to 32"#,
            ],
        ),
        (
            r#"{rule}source = "10.0.0.0/8"
destination = "fd00::/8""#,
            &[
                r#"lbd.toml:4:15: destination = "fd00::/8": source and destination are of different families, so no packet matches: make a rule for each"#,
            ],
        ),
        (
            r#"{rule}protocol = "icmp""#,
            &[
                r#"lbd.toml:3:12: protocol = "icmp": unknown word: known: tcp, udp, sctp, each with "!" before it or not"#,
            ],
        ),
        (
            r#"{rule}protocol = "!tpc""#,
            &[
                r#"lbd.toml:3:12: protocol = "!tpc": unknown word: did you mean "tcp"? known: tcp, udp, sctp, each with "!" before it or not"#,
            ],
        ),
        (
            r#"{rule}source_port = "http""#,
            &[
                r#"lbd.toml:3:15: source_port = "http": not a port or range: write e.g. "80" or "1024-65535""#,
            ],
        ),
        (
            "{rule}source_port = 65536",
            &[
                r#"lbd.toml:3:15: source_port = 65536: not a port or range: write e.g. "80" or "1024-65535""#,
            ],
        ),
        (
            "{rule}source_port = -1",
            &[
                r#"lbd.toml:3:15: source_port = -1: not a port or range: write e.g. "80" or "1024-65535""#,
            ],
        ),
        (
            r#"{rule}destination_port = "80-20""#,
            &[r#"lbd.toml:3:20: destination_port = "80-20": the range is reversed: write "20-80""#],
        ),
        (
            r#"{rule}destination_port = "80:90""#,
            &[
                r#"lbd.toml:3:20: destination_port = "80:90": not a port or range: write e.g. "80" or "1024-65535""#,
            ],
        ),
        (
            "{rule}probability = 0",
            &[
                "lbd.toml:3:15: probability = 0: must be above 0 and at most 1, e.g. 0.5 for half of the packets",
            ],
        ),
        (
            "{rule}probability = 1.5",
            &[
                "lbd.toml:3:15: probability = 1.5: must be above 0 and at most 1, e.g. 0.5 for half of the packets",
            ],
        ),
        (
            "{rule}probability = nan",
            &[
                "lbd.toml:3:15: probability = NaN: must be above 0 and at most 1, e.g. 0.5 for half of the packets",
            ],
        ),
        (
            r#"[[rules]]
action = "accept""#,
            &[
                r#"lbd.toml:2:10: action = "accept": unknown word: known: drop, reject, pass, service:NAME"#,
            ],
        ),
        (
            r#"[[rules]]
action = "rejct""#,
            &[
                r#"lbd.toml:2:10: action = "rejct": unknown word: did you mean "reject"? known: drop, reject, pass, service:NAME"#,
            ],
        ),
        (
            r#"{web}[[rules]]
action = "service:wbe""#,
            &[
                r#"lbd.toml:6:10: action = "service:wbe": there is no service "wbe": did you mean "web"? give the name of one of [[services]]"#,
            ],
        ),
        (
            r#"[[rules]]
action = "service:db""#,
            &[
                r#"lbd.toml:2:10: action = "service:db": there is no service "db": give the name of one of [[services]]"#,
            ],
        ),
        (
            r#"{web}[[rules]]
protocol = "udp"
action = "service:web""#,
            &[
                r#"lbd.toml:6:12: protocol = "udp": the service of this rule's action is tcp: write "tcp", or leave the key out"#,
            ],
        ),
        (
            r#"{web}[[rules]]
protocol = "! tcp"
action = "service:web""#,
            &[
                r#"lbd.toml:6:12: protocol = "! tcp": the service of this rule's action is tcp: write "tcp", or leave the key out"#,
            ],
        ),
        (
            r#"{web}[[rules]]
source = "fd00::/8"
action = "service:web""#,
            &[
                r#"lbd.toml:6:10: source = "fd00::/8": the service of this rule's action is IPv4: give an IPv4 network"#,
            ],
        ),
        (
            r#"{rule}name = """#,
            &[
                r#"lbd.toml:3:8: name = "": must not be empty, begin or end with a blank, or hold control characters; e.g. "default/web:http""#,
            ],
        ),
    ]);
}

#[test]
fn every_error_of_a_file_is_reported_at_once() {
    refused(&[
        (
            r#"mode = "x"
foo = 1
[tun]
mtu = 1
[[services]]
name = "web"
protocol = "tcp"
address = "10.96.0.10"
scheduler = "zz"
backends = [
  { address = "10.2.0.11:80", weight = -1 },
  { address = "[fd00::1]:80" },
]
"#,
            &[
                r#"lbd.toml:1:8: mode = "x": unknown word: known: ipvs, iptables"#,
                r#"lbd.toml:2:1: unknown key "foo" in the top level: known keys: mode, scheduler, datapath, tun, af_xdp, node, nat, conntrack, control, rules, services"#,
                "lbd.toml:4:7: mtu = 1: must be 576 to 65535, e.g. 1500",
                r#"lbd.toml:8:11: address = "10.96.0.10": no port: write it after the address, e.g. "10.96.0.10:80""#,
                r#"lbd.toml:9:13: scheduler = "zz": unknown word: known: random, rr, wrr, lc, wlc, lblc, lblcr, dh, sh, sed, nq, fo, ovf, mh, twos"#,
                "lbd.toml:11:40: weight = -1: must be 0 to 65535; 0 drains the backend",
            ],
        ),
        (
            "a = 
b = 
",
            &[
                r#"lbd.toml:1:5: not valid TOML: "a =": a value is missing after =, e.g. "text", 80 or true"#,
                r#"lbd.toml:2:5: not valid TOML: "b =": a value is missing after =, e.g. "text", 80 or true"#,
            ],
        ),
        (
            r#"# é
[tun]
name = "é è"  # über
"#,
            &[
                r#"lbd.toml:3:8: name = "é è": not a device name: 1 to 15 bytes without blanks, '/', ':' and '%', e.g. "lbd0""#,
            ],
        ),
    ]);
}

#[test]
fn an_empty_file_means_every_default() {
    let Loaded { config, warnings } = accepted("");
    assert_eq!(warnings, []);
    assert_eq!(config.policy.mode, Mode::Ipvs);
    assert_eq!(config.policy.scheduler, None);
    assert_eq!(config.policy.conntrack.max_flows, 1_048_576);
    let pool: Vec<String> = config
        .policy
        .nat
        .pool
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(pool, ["198.18.0.0/28", "2001:2::/124"]);
    assert_eq!(config.node_addresses, None);
    assert_eq!(config.datapath.backend, Backend::Tun);
    assert_eq!(
        (config.datapath.workers, config.datapath.seed),
        (None, None)
    );
    assert_eq!(
        (config.tun.name.as_str(), config.tun.mtu, config.tun.offload),
        ("lbd0", 1500, true)
    );
    assert_eq!(config.control_socket, Path::new("/run/lbd/lbd.sock"));
}

#[test]
fn a_seed_of_zero_is_a_seed_and_workers_of_zero_are_automatic() {
    let config = accepted("[datapath]\nseed = 0\nworkers = 0\n").config;
    assert_eq!(
        (config.datapath.seed, config.datapath.workers),
        (Some(0), None)
    );
}

#[test]
fn a_netmask_may_be_a_mask_or_a_prefix_length() {
    for (service, mask, expected) in [
        ("{web}", r#""255.255.255.0""#, 24),
        ("{web}", r#""/24""#, 24),
        ("{web}", r#""24""#, 24),
        ("{web}", "24", 24),
        ("{web}", r#""0.0.0.0""#, 0),
        ("{web6}", r#""64""#, 64),
        ("{web6}", r#""/64""#, 64),
        ("{web6}", r#""ffff:ffff::""#, 32),
    ] {
        let config = accepted(&format!("{service}persistence = {{ netmask = {mask} }}")).config;
        let persistence = config.policy.services[0].persistence.unwrap();
        assert_eq!(persistence.prefix_length, expected, "{mask}");
        assert_eq!(
            persistence.timeout,
            Duration::from_secs(360),
            "ipvsadm -p without a value"
        );
    }
}

#[test]
fn affinity_without_a_netmask_is_for_single_clients() {
    for (service, expected) in [("{web}", 32), ("{web6}", 128)] {
        let config = accepted(&format!("{service}persistence = {{ timeout = \"3h\" }}")).config;
        let persistence = config.policy.services[0].persistence.unwrap();
        assert_eq!(persistence.prefix_length, expected);
        assert_eq!(persistence.timeout, Duration::from_secs(10800));
    }
}

#[test]
fn ports_may_be_numbers_or_text_and_an_exclamation_mark_negates() {
    for (written, negated, expected) in [
        ("80", false, 80..=80),
        ("\"80\"", false, 80..=80),
        ("\"1024-65535\"", false, 1024..=65535),
        ("\"!80\"", true, 80..=80),
        ("\"! 80-90\"", true, 80..=90),
    ] {
        let config = accepted(&format!("{{rule}}destination_port = {written}")).config;
        let condition = config.policy.rules[0].destination_port.clone().unwrap();
        assert_eq!(
            (condition.negated, condition.value),
            (negated, expected),
            "{written}"
        );
    }
}

#[test]
fn host_bits_of_a_network_are_masked_as_iptables_does() {
    let text = "[nat]\npool = [\"203.0.113.9/24\"]\n{rule}source = \"! 10.1.2.3/255.255.0.0\"\ndestination = \"10.9.9.9\"";
    let policy = accepted(text).config.policy;
    assert_eq!(policy.nat.pool[0].to_string(), "203.0.113.0/24");
    let source = policy.rules[0].source.clone().unwrap();
    assert_eq!(
        (source.negated, source.value.to_string().as_str()),
        (true, "10.1.0.0/16")
    );
    let destination = policy.rules[0].destination.clone().unwrap();
    assert_eq!(destination.value.to_string(), "10.9.9.9/32");
}

#[test]
fn a_probability_becomes_a_share_of_two_to_the_32() {
    for (written, expected) in [
        ("0.5", 1 << 31),
        ("1", 1 << 32),
        ("1.0", 1 << 32),
        ("1e-30", 1),
    ] {
        let config = accepted(&format!("{{rule}}probability = {written}")).config;
        assert_eq!(
            config.policy.rules[0].probability,
            Some(Probability(expected)),
            "{written}"
        );
    }
}

#[test]
fn a_rule_may_name_a_service_that_comes_later_in_the_file() {
    let text =
        "mode = \"iptables\"\n[[rules]]\nprotocol = \"tcp\"\naction = \"service:web\"\n{web}";
    let policy = accepted(text).config.policy;
    assert_eq!(policy.rules[0].action, Action::Service("web".into()));
}

#[test]
fn flags_belong_to_the_scheduler_that_the_service_really_uses() {
    let config = accepted("scheduler = \"mh\"\n{web}scheduler_flags = [\"mh-port\"]").config;
    let service = &config.policy.services[0];
    assert_eq!(config.policy.scheduler_of(service), Kind::Mh);
    assert_eq!(
        service.flags,
        Flags {
            port: true,
            fallback: false
        }
    );
}

#[test]
fn tcp_and_udp_may_share_an_address_and_port() {
    accepted(
        "{web}[[services]]\nname = \"web-quic\"\nprotocol = \"udp\"\naddress = \"10.96.0.10:80\"",
    );
}

#[test]
fn two_families_may_share_a_node_port() {
    accepted("{web}node_port = 30080\n{web6}node_port = 30080\n");
}

#[test]
fn every_timeout_sets_the_state_it_is_named_after() {
    use crate::conntrack::tcp::State;
    for (key, state) in crate::config::words::TCP_TIMEOUTS
        .into_iter()
        .zip(State::ALL)
    {
        let config = accepted(&format!("[conntrack]\n{key} = 77")).config;
        let timeout = config.policy.conntrack.timeouts.tcp(state);
        assert_eq!(timeout, Duration::from_secs(77), "{key}");
        let word = key.trim_start_matches("tcp_").to_uppercase();
        assert!(state.name().starts_with(&word), "{key} is {}", state.name());
    }
}

fn warnings(text: &str) -> Vec<String> {
    accepted(text)
        .warnings
        .iter()
        .map(ToString::to_string)
        .collect()
}

#[test]
fn rules_in_ipvs_mode_are_warned_of() {
    assert_eq!(
        warnings("{rule}"),
        [
            r#"lbd.toml:1:1: [[rules]] are ignored in ipvs mode: set mode = "iptables" to have them checked, or remove them"#
        ]
    );
    assert!(warnings("mode = \"iptables\"\n{rule}").is_empty());
}

#[test]
fn a_pool_that_cannot_serve_a_family_is_warned_of() {
    let pool = "[nat]\npool = [\"198.18.0.0/28\"]\n";
    assert_eq!(
        warnings(&format!("{pool}{{web6}}")),
        [
            r#"lbd.toml:2:8: pool has no IPv6 address: flows of IPv6 services cannot be masqueraded; add e.g. "2001:2::/124", or set masquerade = "never""#
        ]
    );
    assert!(warnings(&format!("{pool}masquerade = \"never\"\n{{web6}}")).is_empty());
    assert!(warnings(&format!("{pool}{{web}}")).is_empty());
}

#[test]
fn a_file_that_cannot_be_read_is_named_without_a_line() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("lbd.toml");
    let line = || load(&path).unwrap_err()[0].to_string();
    let start = format!("{}: cannot read: ", path.display());
    assert_eq!(
        line(),
        format!("{start}No such file or directory (os error 2)")
    );
    std::fs::write(&path, b"mode = \"\xff\"").unwrap();
    assert_eq!(
        line(),
        format!("{start}byte 8 is not UTF-8: save the file as UTF-8")
    );
}

#[test]
fn windows_line_ends_and_a_byte_order_mark_do_no_harm() {
    accepted("\u{feff}mode = \"ipvs\"\r\n[tun]\r\nmtu = 1400\r\n");
    let errors = parse("lbd.toml", "\u{feff}mode = \"x\"\r\n").unwrap_err();
    assert_eq!((errors[0].line, errors[0].column), (1, 8));
}

/// Text made of what configurations are made of, so that most of it gets past the parser.
fn shaped_text() -> impl Strategy<Value = String> {
    let words = [
        "mode",
        "services",
        "[[services]]\n",
        "[[rules]]\n",
        "[nat]\n",
        "pool",
        " = ",
        "\"",
        "\n",
        "{",
        "}",
        "[",
        "]",
        ",",
        "address",
        "10.0.0.1",
        ":80",
        "/",
        "!",
        "-",
        "0",
        "1",
        "9999999999999999999999999999999999999999",
        "0x",
        "1e999",
        "nan",
        "%",
        "::",
        "é",
        "name",
        "action",
        "\"service:",
        "persistence",
        "netmask",
        "timeout",
        "5m",
        "{web}",
        "{web6}",
        "{rule}",
        "'",
        "\\u0000",
        ".",
        "weight",
        "\u{feff}",
        "backends = [{ address = \"",
        "destination_port = ",
        "source = \"",
        "probability = ",
        "1979-05-27",
    ];
    let word = proptest::sample::select(words.to_vec());
    proptest::collection::vec(word, 0..40).prop_map(|words| with_snippets(&words.concat()))
}

proptest! {
    #[test]
    fn no_text_whatever_makes_the_parser_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let (Ok(_) | Err(_)) = parse("lbd.toml", &String::from_utf8_lossy(&bytes));
    }

    #[test]
    fn no_broken_configuration_makes_the_validation_panic(text in shaped_text()) {
        if let Err(errors) = parse("lbd.toml", &text) {
            prop_assert!(!errors.is_empty());
            for error in errors {
                prop_assert!(error.line >= 1 && error.column >= 1, "{}", error);
                prop_assert_eq!(error.to_string().lines().count(), 1, "{}", error);
            }
        }
    }
}
