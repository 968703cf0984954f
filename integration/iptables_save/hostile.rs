//! Any text gives a configuration that lbd takes, or an error; never a panic.
use lbd::config::parse;
use lbd::import::iptables_save::import;
use proptest::prelude::*;

/// Lines made of the words of real rules, and of others.
fn line() -> impl Strategy<Value = String> {
    let word = prop_oneof![
        prop::sample::select(vec![
            "-A",
            "-j",
            "!",
            "-s",
            "-d",
            "-p",
            "-m",
            "tcp",
            "udp",
            "--dport",
            "--comment",
            "\"a cluster IP\"",
            "KUBE-SERVICES",
            "KUBE-NODEPORTS",
            "KUBE-SVC-A",
            "KUBE-SVC-B",
            "KUBE-SEP-A",
            "KUBE-EXT-A",
            "KUBE-FW-A",
            "KUBE-XLB-A",
            "KUBE-SVL-A",
            "KUBE-MARK-MASQ",
            "KUBE-MARK-DROP",
            "LBD-RULES",
            "LBD-DROP",
            "DNAT",
            "--to-destination",
            "10.0.0.1:80",
            "[fd00::1]:80",
            "10.0.0.1",
            "10.0.0.0/8",
            "fd00::1",
            "80",
            "0",
            "65536",
            "--probability",
            "0.5",
            "1",
            "statistic",
            "recent",
            "--rcheck",
            "--seconds",
            "99999999999999",
            "--mask",
            "255.0.255.0",
            "*nat",
            "*filter",
            "COMMIT",
            ":KUBE-SVC-A",
            "-",
            "REJECT",
            "DROP",
            "--dst-type",
            "LOCAL",
            "-6",
            "-4",
            "KUBE-EXTERNAL-SERVICES",
            "KUBE-PROXY-FIREWALL",
            "\"",
        ])
        .prop_map(str::to_owned),
        "\\PC{0,6}",
    ];
    prop::collection::vec(word, 0..14).prop_map(|words| words.join(" "))
}

/// A rule of the right form, between any two chains.
fn rule() -> impl Strategy<Value = String> {
    let chains = vec![
        "KUBE-SERVICES",
        "KUBE-NODEPORTS",
        "KUBE-SVC-A",
        "KUBE-SVC-B",
        "KUBE-SEP-A",
        "KUBE-SEP-B",
        "KUBE-EXT-A",
        "KUBE-FW-A",
        "KUBE-XLB-A",
        "KUBE-SVL-A",
        "KUBE-MARK-MASQ",
        "KUBE-MARK-DROP",
        "LBD-RULES",
        "REJECT",
        "DROP",
        "KUBE-EXTERNAL-SERVICES",
        "DNAT --to-destination 10.2.0.1:8080",
        "DNAT --to-destination 10.2.0.2:8080",
        "DNAT --to-destination 10.96.0.1:80",
    ];
    let conditions = vec![
        "",
        "-s 10.1.0.0/16",
        "! -s 10.1.0.0/16",
        "-d 10.96.0.1/32 -p tcp --dport 80",
        "-d 10.96.0.2/32 -p tcp --dport 80",
        "-d 203.0.113.1/32 -p tcp --dport 80",
        "-p tcp --dport 30080",
        "-p tcp",
        "-m addrtype --src-type LOCAL",
        "-m statistic --mode random --probability 0.5",
        "-m statistic --mode random --probability 0.1",
        "-m recent --rcheck --seconds 60 --reap",
        "-d 10.96.0.9/32 -p tcp",
        "-p tcp -m addrtype --dst-type LOCAL --dport 30081",
    ];
    let name = vec![
        "",
        "-m comment --comment \"a:b cluster IP\"",
        "-m comment --comment \"c: external IP\"",
    ];
    let parts = (
        prop::sample::select(chains.clone()),
        prop::sample::select(conditions),
        prop::sample::select(name),
        prop::sample::select(chains),
    );
    parts.prop_map(|(chain, condition, name, target)| {
        let chain = chain.split(' ').next().unwrap_or(chain);
        format!("-A {chain} {condition} {name} -j {target}")
    })
}

fn is_taken_or_refused(text: &str) -> Result<(), TestCaseError> {
    match import("any", text) {
        Ok(imported) => prop_assert!(parse("", &imported.toml).is_ok(), "{}", imported.toml),
        Err(error) => prop_assert!(error.starts_with("any: "), "{error}"),
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_text_is_imported_or_refused(text in "\\PC{0,200}") {
        is_taken_or_refused(&text)?;
    }

    #[test]
    fn any_words_of_iptables_are_imported_or_refused(lines in prop::collection::vec(line(), 0..30)) {
        is_taken_or_refused(&lines.join("\n"))?;
    }

    #[test]
    fn any_tangle_of_chains_gives_a_configuration(lines in prop::collection::vec(rule(), 0..60)) {
        is_taken_or_refused(&lines.join("\n"))?;
    }
}
