use super::*;

const HEAD: &str = "mode = \"iptables\"\n[node]\naddresses = [\"192.168.0.2\"]\n";
const RULE: &str = "[[rules]]\ndestination = \"10.9.0.0/16\"\naction = \"service:web\"\n";

fn service(name: &str, address: &str, rest: &str) -> String {
    format!("[[services]]\nname = \"{name}\"\nprotocol = \"tcp\"\naddress = \"{address}\"\n{rest}\n")
}

fn backends(of: &[&str]) -> String {
    let tables = of.iter().map(|address| format!("  {{ address = \"{address}\" }},\n"));
    format!("backends = [\n{}]", tables.collect::<String>())
}

fn text(parts: &[&str]) -> String {
    parts.concat()
}

/// A text to begin with: three services, the second of which a rule leads to.
fn beginning() -> [String; 6] {
    [
        HEAD.to_owned(),
        service("dns", "10.96.0.53:53", &backends(&["10.2.0.1:53", "10.2.0.2:53"])),
        service("web", "10.96.0.10:80", &backends(&["10.2.0.3:80"])),
        service(
            "db",
            "10.96.0.20:5432",
            "node_port = 30080\n[services.persistence]\ntimeout = 600",
        ),
        RULE.to_owned(),
        "[tun]\nmtu = 1400".to_owned(),
    ]
}

fn loaded(text: &str) -> Loaded {
    parse("a.toml", text).unwrap()
}

/// The outcome is that of reading all; whether only what changed was read.
fn is_quick(before: &str, after: &str) -> bool {
    let before = loaded(before);
    assert_eq!(parse_again("a.toml", after, &before), parse("a.toml", after), "{after}");
    read_changes("a.toml", after, &before).is_some()
}

/// The text to begin with, with a part replaced.
fn with(part: usize, by: &str) -> (String, String) {
    let (before, mut after) = (beginning(), beginning());
    after[part] = by.to_owned();
    (before.concat(), after.concat())
}

#[test]
fn another_backend_is_read_without_the_other_services() {
    let (before, after) = with(2, &service("web", "10.96.0.10:80", &backends(&["10.2.0.4:80"])));
    assert!(is_quick(&before, &after));
}

#[test]
fn services_that_come_and_go_are_read_without_the_others() {
    let parts = beginning();
    let whole = parts.concat();
    let more = service("new", "10.96.0.30:80", "") + &service("newer", "10.96.0.31:80", "");
    let with_more = text(&[&parts[0], &parts[1], &more, &parts[2], &parts[3], &parts[4], &parts[5]]);
    assert!(is_quick(&whole, &with_more));
    assert!(is_quick(&with_more, &whole));
    let reordered = text(&[&parts[0], &parts[3], &parts[2], &parts[1], &parts[4], &parts[5]]);
    assert!(is_quick(&whole, &reordered));
    let twice = text(&[
        &parts[0], &parts[1], &parts[2], &parts[3], &parts[1], &parts[4], &parts[5],
    ]);
    assert!(!is_quick(&whole, &twice), "names are unique");
}

#[test]
fn what_did_not_change_is_shared_with_the_former_configuration() {
    let (before, after) = with(3, "");
    let before = loaded(&before);
    let after = parse_again("a.toml", &after, &before).unwrap();
    let (old, new) = (&before.config.policy.services, &after.config.policy.services);
    assert_eq!(new.len(), 2);
    assert!(Arc::ptr_eq(&old[1], &new[1]));
}

#[test]
fn a_comment_or_the_very_same_text_changes_nothing() {
    let (before, after) = with(3, &format!("# for a while\n{}", beginning()[3]));
    assert!(is_quick(&before, &before));
    assert!(is_quick(&before, &after));
}

#[test]
fn mistakes_and_what_is_set_against_other_services_are_told_with_their_lines() {
    let wrong = [
        "[[services]]\nname = \"web\"\n".to_owned(),
        service("web", "10.96.0.10:99999", ""),
        service("web", "10.96.0.10:80", "weigth = 1"),
        service("dns", "10.96.0.10:80", ""),
        service("web", "10.96.0.53:53", ""),
        service("web", "10.96.0.10:53", "external_addresses = [\"10.96.0.53\"]"),
        service("web", "10.96.0.10:80", "node_port = 30080"),
        service("web", "192.168.0.2:30080", ""),
        service("web", "10.96.0.10:80", &backends(&["10.96.0.53:53"])),
        service("web", "10.2.0.1:53", ""),
        service("web", "[fd00::1]:80", ""),
        service("renamed", "10.96.0.10:80", ""),
        service("web", "10.96.0.10:80", "[tun]\nmtu = 1400"),
        String::new(),
        "[[services]\n".to_owned(),
    ];
    for part in wrong {
        let (before, after) = with(2, &part);
        assert!(!is_quick(&before, &after), "{after}");
    }
}

#[test]
fn other_settings_and_what_might_be_no_table_are_read_whole() {
    let spread = [
        (0, "mode = \"ipvs\"\n"),
        (5, "[tun]\nmtu = 1300"),
        (5, "  [tun]\nmtu = 1400"),
        (5, "[\"tun\"]\nmtu = 1400"),
        (5, "[tun]\nmtu = 1400\n[tun]\nmtu = 1400"),
        (
            0,
            "mode = \"iptables\"\nservices = []\n[node]\naddresses = [\"192.168.0.2\"]\n",
        ),
        (
            2,
            "[[ services ]]\nname = \"web\"\nprotocol = \"tcp\"\naddress = \"10.96.0.10:80\"\n",
        ),
        (
            2,
            "  [[services]]\nname = \"web\"\nprotocol = \"tcp\"\naddress = \"10.96.0.10:80\"\n",
        ),
        (
            4,
            "[[rules]]\nname = \"\"\"a\n[[services]]\n\"\"\"\naction = \"service:web\"\n",
        ),
    ];
    for (part, by) in spread {
        let (before, after) = with(part, by);
        assert!(!is_quick(&before, &after), "{after}");
    }
}

#[test]
fn a_warning_is_told_again_with_its_line() {
    let flags = |rest: &str| {
        service(
            "web",
            "10.96.0.10:80",
            &format!("scheduler_flags = [\"sh-port\"]\n{rest}"),
        )
    };
    let (before, after) = (beginning(), beginning());
    let parts = |mut parts: [String; 6], web: String, dns: &str| {
        parts[1] = format!("{}{dns}", parts[1]);
        parts[2] = web;
        parts.concat()
    };
    let (before, after) = (parts(before, flags(""), ""), parts(after, flags(""), "# a line more\n"));
    assert_eq!(loaded(&before).warnings.len(), 1);
    assert!(is_quick(&before, &after));
}

#[test]
fn whatever_is_cut_out_or_put_in_the_outcome_is_that_of_reading_all() {
    let pieces = [
        beginning().to_vec(),
        vec![
            service("dns", "10.96.0.53:53", ""),
            service("mail", "10.96.0.25:25", &backends(&["10.96.0.53:53"])),
            service("mail", "10.2.0.1:53", ""),
            "[services.persistence]\n".to_owned(),
            "[[services.backends]]\naddress = \"10.2.0.9:80\"\n".to_owned(),
            "# nothing\n".to_owned(),
            "node_port = 30081\n".to_owned(),
            "scheduler_flags = [\"sh-port\"]\n".to_owned(),
            service("six", "[fd00::10]:80", ""),
            "[nat]\npool = [\"198.18.0.0/28\"]\n".to_owned(),
            "mode = \"ipvs\"\n".to_owned(),
        ],
    ]
    .concat();
    let mut rng = fastrand::Rng::with_seed(7);
    let (mut parts, mut before) = (beginning().to_vec(), loaded(&beginning().concat()));
    let (mut quick, mut valid) = (0, 0);
    for _ in 0..3_000 {
        let mut next = parts.clone();
        for _ in 0..rng.usize(1..3) {
            let at = rng.usize(..=next.len());
            match rng.u8(..3) {
                0 => next.insert(at, pieces[rng.usize(..pieces.len())].clone()),
                1 if at < next.len() => drop(next.remove(at)),
                _ if at < next.len() => {
                    let other = rng.usize(..next.len());
                    next.swap(at, other);
                }
                _ => {}
            }
        }
        let text = next.concat();
        let whole = parse("a.toml", &text);
        assert_eq!(
            parse_again("a.toml", &text, &before),
            whole,
            "{text}\n--- after\n{}",
            before.text
        );
        if let Ok(loaded) = whole {
            quick += u32::from(read_changes("a.toml", &text, &before).is_some());
            (valid, parts, before) = (valid + 1, next, loaded);
        }
    }
    assert!(quick > 100, "{quick} of {valid} valid texts");
}
