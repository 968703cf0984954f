//! Every error, letter for letter, and its place.
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::config::Backend;
use lbd_core::matcher::rules::{Action, Probability};
use lbd_core::scheduler::{Flags, Kind};

/// A service, or a rule, that is right; written as its mark in configurations below and in errors.txt.
const SNIPPETS: [(&str, &str); 4] = [
    (
        "{web}",
        "[[services]]\nname = \"web\"\nprotocol = \"tcp\"\naddress = \"10.96.0.10:80\"\n",
    ),
    (
        "{web6}",
        "[[services]]\nname = \"web6\"\nprotocol = \"tcp\"\naddress = \"[fd00::10]:80\"\n",
    ),
    (
        "{other}",
        "[[services]]\nname = \"other\"\nprotocol = \"tcp\"\naddress = \"10.96.0.10:80\"\n",
    ),
    ("{rule}", "[[rules]]\naction = \"drop\"\n"),
];

/// The text with its marks replaced, each with the line end after it.
fn with_snippets(text: &str) -> String {
    let put = |text: String, (mark, snippet)| {
        let line = format!("{mark}\n");
        text.replace(&line, snippet).replace(mark, snippet)
    };
    SNIPPETS.into_iter().fold(text.to_owned(), put)
}

fn accepted(text: &str) -> Loaded {
    match parse("lbd.toml", &with_snippets(text)) {
        Ok(loaded) => loaded,
        Err(errors) => panic!("{errors:#?}"),
    }
}

/// What `lbd check` prints.
fn errors(text: &str) -> Vec<String> {
    match parse("lbd.toml", text) {
        Ok(_) => Vec::new(),
        Err(errors) => errors.iter().map(ToString::to_string).collect(),
    }
}

#[test]
fn every_error_is_reported_letter_for_letter_at_its_place() {
    let sections = include_str!("errors.txt").split("\n#### ").skip(1);
    let cases: Vec<&str> = sections.flat_map(|section| section.split("\n----\n").skip(1)).collect();
    assert!(cases.len() > 140, "{} cases", cases.len());
    for case in cases {
        let (text, expected) = case.split_once("=>\n").unwrap();
        let text = with_snippets(text);
        assert_eq!(errors(&text), expected.lines().collect::<Vec<_>>(), "{text}");
    }
}

#[test]
fn an_empty_file_means_every_default() {
    let Loaded { config, warnings, .. } = accepted("");
    assert_eq!(warnings, []);
    assert_eq!(config.policy.mode, Mode::Ipvs);
    assert_eq!(config.policy.scheduler, None);
    assert_eq!(config.policy.conntrack.max_flows, 1_048_576);
    let pool: Vec<String> = config.policy.nat.pool.iter().map(ToString::to_string).collect();
    assert_eq!(pool, ["198.18.0.0/28", "2001:2::/124"]);
    assert_eq!(config.node_addresses, None);
    assert_eq!(config.datapath.backend, Backend::Tun);
    assert_eq!((config.datapath.workers, config.datapath.seed), (None, None));
    assert_eq!(
        (config.tun.name.as_str(), config.tun.mtu, config.tun.offload),
        ("lbd0", 1500, true)
    );
    assert_eq!(config.control_socket, Path::new("/run/lbd/lbd.sock"));
}

#[test]
fn a_seed_of_zero_is_a_seed_and_workers_of_zero_are_automatic() {
    let config = accepted("[datapath]\nseed = 0\nworkers = 0\n").config;
    assert_eq!((config.datapath.seed, config.datapath.workers), (Some(0), None));
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
        assert_eq!((condition.negated, condition.value), (negated, expected), "{written}");
    }
}

#[test]
fn host_bits_of_a_network_are_masked_as_iptables_does() {
    let text =
        "[nat]\npool = [\"203.0.113.9/24\"]\n{rule}source = \"! 10.1.2.3/255.255.0.0\"\ndestination = \"10.9.9.9\"";
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
    for (written, expected) in [("0.5", 1 << 31), ("1", 1 << 32), ("1.0", 1 << 32), ("1e-30", 1)] {
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
    let text = "mode = \"iptables\"\n[[rules]]\nprotocol = \"tcp\"\naction = \"service:web\"\n{web}";
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
            ..Flags::default()
        }
    );
}

#[test]
fn a_flag_of_another_scheduler_is_warned_of_and_has_no_effect_but_is_saved() {
    for (scheduler, flag, owner, hint) in [
        (
            "wrr",
            "sh-port",
            "sh",
            "which has no flags: remove it or change the scheduler",
        ),
        ("sh", "mh-fallback", "mh", "whose flags are: sh-port, sh-fallback"),
    ] {
        let text = format!("{{web}}scheduler = \"{scheduler}\"\nscheduler_flags = [\"{flag}\"]");
        let Loaded { config, warnings, .. } = accepted(&text);
        assert_eq!(
            warnings[0].to_string(),
            format!(
                "lbd.toml:6:20: scheduler_flags = \"{flag}\": no effect: only for scheduler \"{owner}\", and this service's is \"{scheduler}\", {hint}"
            )
        );
        let flags = config.policy.services[0].flags;
        assert!(!flags.port && !flags.fallback, "{flag}");
        let saved = crate::config::to_toml(&config);
        assert!(saved.contains(&format!("scheduler_flags = [\"{flag}\"]")), "{saved}");
    }
}

#[test]
fn a_backend_may_have_the_address_of_a_service_of_another_protocol_or_port() {
    accepted("{web}backends = [{ address = \"10.96.0.10:81\" }]");
    accepted(
        "{web}[[services]]\nname = \"dns\"\nprotocol = \"udp\"\naddress = \"10.96.0.53:53\"\nbackends = [{ address = \"10.96.0.10:80\" }]",
    );
}

#[test]
fn tcp_and_udp_may_share_an_address_and_port() {
    accepted("{web}[[services]]\nname = \"web-quic\"\nprotocol = \"udp\"\naddress = \"10.96.0.10:80\"");
}

#[test]
fn two_families_may_share_a_node_port() {
    accepted("{web}node_port = 30080\n{web6}node_port = 30080\n");
}

#[test]
fn every_timeout_sets_the_state_it_is_named_after() {
    use lbd_core::conntrack::tcp::State;
    for (key, state) in crate::config::words::TCP_TIMEOUTS.into_iter().zip(State::ALL) {
        let config = accepted(&format!("[conntrack]\n{key} = 77")).config;
        let timeout = config.policy.conntrack.timeouts.tcp(state);
        assert_eq!(timeout, Duration::from_secs(77), "{key}");
        let word = key.trim_start_matches("tcp_").to_uppercase();
        assert!(state.name().starts_with(&word), "{key} is {}", state.name());
    }
    use lbd_core::conntrack::sctp;
    for (key, state) in crate::config::words::SCTP_TIMEOUTS.into_iter().zip(sctp::State::ALL) {
        let config = accepted(&format!("[conntrack]\n{key} = 77")).config;
        let timeout = config.policy.conntrack.timeouts.sctp(state);
        assert_eq!(timeout, Duration::from_secs(77), "{key}");
        // C-SENT and S-SENT are the kernel's words for what its source calls COOKIE_SENT and SHUTDOWN_SENT.
        let word = state
            .name()
            .replace("C-", "COOKIE-")
            .replace("S-", "SHUTDOWN-")
            .replace('-', "_");
        assert_eq!(key, format!("sctp_{}", word.to_lowercase()));
    }
}

fn warnings(text: &str) -> Vec<String> {
    accepted(text).warnings.iter().map(ToString::to_string).collect()
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
fn rules_that_refuse_what_never_comes_to_lbd_are_warned_of() {
    let rule = |action: &str, more: &str| {
        format!("mode = \"iptables\"\n[[rules]]\ndestination = \"10.2.0.0/24\"\naction = \"{action}\"\n{more}{{web}}")
    };
    assert_eq!(
        warnings(&rule("drop", "")),
        [
            "lbd.toml:2:1: the rule has no effect: no service has an address in destination = \"10.2.0.0/24\": \
             lbd does not see packets to other addresses; refuse them by the host's own firewall"
        ]
    );
    assert!(warnings(&rule("pass", "")).is_empty());
    let leading = "[[rules]]\ndestination = \"10.2.0.0/23\"\naction = \"service:web\"\n";
    assert!(warnings(&rule("reject", leading)).is_empty());
    assert!(warnings(&rule("reject", "").replace("10.2.0.0/24", "!10.2.0.0/24")).is_empty());
}

#[test]
fn rules_that_refuse_more_than_comes_to_lbd_are_warned_of_with_the_part_that_comes() {
    let rule = |net: &str, more: &str| {
        let rule = format!("[[rules]]\ndestination = \"{net}\"\naction = \"drop\"\n");
        format!("mode = \"iptables\"\n{rule}{more}{{web}}")
    };
    let part = |net: &str, part: &str| {
        format!(
            "lbd.toml:2:1: of destination = \"{net}\" the rule refuses only packets to {part}: lbd does not see packets to \
             other addresses; refuse them by the host's own firewall"
        )
    };
    let alone = "10.96.0.10, where services are";
    assert_eq!(warnings(&rule("10.96.0.0/16", "")), [part("10.96.0.0/16", alone)]);
    assert_eq!(warnings(&rule("10.96.0.10/31", "")), [part("10.96.0.10/31", alone)]);
    assert!(warnings(&rule("10.96.0.10", "")).is_empty());
    // What a rule leads to a service comes to lbd, too.
    let leading = |net: &str| format!("[[rules]]\ndestination = \"{net}\"\naction = \"service:web\"\n");
    assert!(warnings(&rule("10.96.0.0/16", &leading("10.96.0.0/12"))).is_empty());
    assert!(warnings(&rule("10.96.0.0/16", "[[rules]]\naction = \"service:web\"\n")).is_empty());
    let half = "10.96.0.10, 10.96.128.0/17, where services are";
    assert_eq!(
        warnings(&rule("10.96.0.0/16", &leading("10.96.128.0/17"))),
        [part("10.96.0.0/16", half)]
    );
    let more = "[[services]]\nname = \"n\"\nprotocol = \"tcp\"\naddress = \"10.96.0.12:80\"\nnode_port = 30080\n\
                external_addresses = [\"10.96.0.14\", \"10.96.0.16\"]\n";
    let many = "10.96.0.10, 10.96.0.12, 10.96.0.14 and 1 more, where services are, beside node ports";
    assert_eq!(warnings(&rule("10.96.0.0/16", more)), [part("10.96.0.0/16", many)]);
}

#[test]
fn interfaces_that_nothing_serves_are_warned_of() {
    let interfaces = "[af_xdp]\ninterfaces = [\"eth0\"]\n";
    assert_eq!(
        warnings(interfaces),
        [
            r#"lbd.toml:2:15: interfaces are ignored with backend = "tun", the default: set backend = "af_xdp" in [datapath] to have them served, or "tun" to have it so"#
        ]
    );
    for backend in ["af_xdp", "tun"] {
        assert!(warnings(&format!("[datapath]\nbackend = \"{backend}\"\n{interfaces}")).is_empty());
    }
    assert!(warnings("[af_xdp]\ninterfaces = []\n").is_empty());
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
    assert_eq!(line(), format!("{start}No such file or directory (os error 2)"));
}

#[test]
fn text_that_is_not_utf_8_is_found_by_line_and_column() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("lbd.toml");
    std::fs::write(&path, b"# \xc3\xa9\nmode = \"\xc3\xa9\xff\"").unwrap();
    let expected = format!(
        "{}:2:10: byte 0xff is not UTF-8: save the file as UTF-8",
        path.display()
    );
    assert_eq!(load(&path).unwrap_err()[0].to_string(), expected);
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

#[test]
fn nesting_without_end_is_refused() {
    for text in [
        format!("a = {}", "[".repeat(100_000)),
        format!("a = {}", "{a=".repeat(100_000)),
        format!("{}a = 1", "a.".repeat(100_000)),
        format!("[{}a]", "a.".repeat(100_000)),
    ] {
        assert!(parse("lbd.toml", &text).is_err());
    }
}
