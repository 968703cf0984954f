use super::*;

const FILE: &str = "mode = \"ipvs\"\nscheduler = \"sh\"\n[[services]]\nname = \"web\"\nprotocol = \"tcp\"\n\
    address = \"10.96.0.10:80\"\nexternal_addresses = [\"203.0.113.10\"]\nscheduler_flags = [\"sh-port\"]\n\
    backends = [{ address = \"10.2.0.11:80\" }, { address = \"10.2.0.12:80\", weight = 2 }]\n";

fn config() -> Config {
    parse("test", FILE).unwrap().config
}

fn web() -> Which {
    Which::Named("web".to_owned())
}

fn backend(first: bool, fields: BackendFields) -> Edit {
    Edit::AddBackend {
        service: web(),
        address: "10.2.0.13:80".parse().unwrap(),
        fields,
        first,
    }
}

fn refusal(edit: Edit) -> Refusal {
    apply(&config(), &[], &[edit]).unwrap_err()
}

#[test]
fn an_edited_configuration_is_what_its_saved_file_gives() {
    let fields = ServiceFields {
        protocol: Some(Protocol::Udp),
        address: Some("10.96.0.53:53".parse().unwrap()),
        flags: Some(vec!["ops".to_owned()]),
        ..ServiceFields::default()
    };
    let edits = [Edit::AddService { fields }, backend(false, BackendFields::default())];
    let edited = apply(&config(), &[], &edits).unwrap();
    assert_eq!(parse("saved", &to_toml(&edited)).unwrap().config, edited);
    assert_eq!(edited.policy.services[1].name, "udp 10.96.0.53:53");
    assert!(edited.policy.services[1].one_packet);
    assert_eq!(edited.policy.services[0].backends.len(), 3);
}

#[test]
fn one_mistake_in_a_list_of_edits_and_none_is_made() {
    let wrong = Edit::DeleteBackend {
        service: web(),
        address: "10.2.0.99:80".parse().unwrap(),
    };
    let edits = [backend(true, BackendFields::default()), wrong];
    let refusal = apply(&config(), &[], &edits).unwrap_err();
    assert_eq!(refusal.mistake, Mistake::NoSuchBackend);
    assert!(
        refusal.message.contains("\"web\" has no backend 10.2.0.99:80"),
        "{refusal}"
    );
}

#[test]
fn a_new_backend_goes_to_the_head_of_the_list_or_to_its_end() {
    for (first, place) in [(true, 0), (false, 2)] {
        let edited = apply(&config(), &[], &[backend(first, BackendFields::default())]).unwrap();
        assert_eq!(
            edited.policy.services[0].backends[place].address.to_string(),
            "10.2.0.13:80"
        );
    }
}

#[test]
fn what_a_file_may_not_say_an_edit_may_not_either_and_is_told_in_the_same_words() {
    let weight = BackendFields {
        weight: Some(70_000),
        ..BackendFields::default()
    };
    let refused = refusal(backend(false, weight));
    assert_eq!(refused.mistake, Mistake::Invalid);
    assert!(
        refused.message.starts_with("weight = 70000: must be 0 to 65535"),
        "{refused}"
    );
    let threshold = BackendFields {
        lower_threshold: Some(3),
        ..BackendFields::default()
    };
    assert!(
        refusal(backend(false, threshold))
            .message
            .starts_with("lower_threshold = 3: above")
    );
}

#[test]
fn a_service_is_found_by_any_of_its_addresses_and_only_one_can_have_one() {
    let external = Which::Named("203.0.113.10:80".to_owned());
    let edited = apply(&config(), &[], &[Edit::DeleteService { service: external }]).unwrap();
    assert!(edited.policy.services.is_empty());
    let fields = ServiceFields {
        protocol: Some(Protocol::Tcp),
        address: Some("203.0.113.10:80".parse().unwrap()),
        ..ServiceFields::default()
    };
    let refused = refusal(Edit::AddService { fields });
    assert_eq!(refused.mistake, Mistake::ServiceExists);
    assert!(refused.message.contains("taken by service \"web\""), "{refused}");
}

#[test]
fn another_scheduler_has_none_of_the_flags_of_the_last_one() {
    let edit = |scheduler, flags: Option<&str>| Edit::EditService {
        service: web(),
        fields: ServiceFields {
            scheduler: Some(scheduler),
            flags: flags.map(|flag| vec![flag.to_owned()]),
            ..ServiceFields::default()
        },
    };
    let edited = apply(&config(), &[], &[edit(Kind::Mh, None)]).unwrap();
    assert_eq!(edited.policy.services[0].flags, Flags::default());
    let refused = refusal(edit(Kind::Rr, Some("sh-port")));
    assert!(refused.message.contains("no flag of scheduler \"rr\""), "{refused}");
}

#[test]
fn timeouts_that_are_not_given_stay() {
    let edit = Edit::Timeouts {
        tcp: Some(7200),
        tcp_fin: None,
        udp: Some(60),
    };
    let edited = apply(&config(), &[], &[edit]).unwrap();
    let timeouts = &edited.policy.conntrack.timeouts;
    let seconds = [
        timeouts.tcp(State::Established),
        timeouts.tcp(State::FinWait),
        timeouts.udp,
    ];
    assert_eq!(seconds.map(|timeout| timeout.as_secs()), [7200, 120, 60]);
}

/// What the edits give where all of the configuration is written and read back.
fn by_all(config: &Config, edits: &[Edit]) -> Result<Config, Refusal> {
    let mut edited = config.clone();
    for edit in edits {
        step(&mut edited.policy, &[], edit)?;
    }
    whole(&edited)
}

/// Any edit of a few services that get into each other's way.
fn any_edit(rng: &mut fastrand::Rng) -> Edit {
    let number = |rng: &mut fastrand::Rng| rng.u8(1..6);
    let endpoint = |rng: &mut fastrand::Rng| -> Endpoint {
        let text = [
            "10.96.0.N:80",
            "10.2.0.N:80",
            "[fd00::N]:80",
            "10.96.0.N:0",
            "203.0.113.N:80",
        ];
        let text = text[rng.usize(..text.len() * 2) % text.len()];
        text.replace('N', &rng.u8(1..6).to_string()).parse().unwrap()
    };
    let service = Which::Named(format!("s{}", number(rng)));
    let fields = ServiceFields {
        name: Some(format!("s{}", number(rng))),
        protocol: (rng.u8(..3) == 0).then_some(Protocol::Udp),
        address: rng.bool().then(|| endpoint(rng)),
        external_addresses: (rng.u8(..4) == 0).then(|| vec![endpoint(rng).address]),
        node_port: (rng.u8(..4) == 0).then(|| 30_000 + u16::from(number(rng))),
        scheduler: (rng.u8(..4) == 0).then_some(Kind::Wrr),
        ..ServiceFields::default()
    };
    match rng.u8(..8) {
        0 => Edit::AddService {
            fields: ServiceFields {
                protocol: Some(Protocol::Tcp),
                address: Some(endpoint(rng)),
                ..fields
            },
        },
        1 => Edit::EditService { service, fields },
        2 if rng.u8(..4) == 0 => Edit::DeleteService { service },
        3 => Edit::DeleteBackend {
            service,
            address: endpoint(rng),
        },
        4 => Edit::Timeouts {
            tcp: Some(rng.u64(0..100)),
            tcp_fin: None,
            udp: None,
        },
        _ => Edit::AddBackend {
            service,
            address: endpoint(rng),
            fields: BackendFields {
                weight: rng.bool().then(|| rng.u32(..70_000)),
                ..BackendFields::default()
            },
            first: rng.bool(),
        },
    }
}

#[test]
fn what_edits_make_or_how_they_are_refused_is_as_if_all_services_were_looked_at() {
    let rules = "[[rules]]\ndestination = \"10.9.0.0/16\"\nprotocol = \"tcp\"\naction = \"service:s1\"\n";
    let service = |n: u8| {
        let address = format!("10.96.0.{n}:80");
        format!("[[services]]\nname = \"s{n}\"\nprotocol = \"tcp\"\naddress = \"{address}\"\n")
    };
    let file = format!("mode = \"iptables\"\n{rules}{}{}{}", service(1), service(2), service(3));
    let start = parse("test", &file).unwrap().config;
    let (mut made, mut refused) = (0, 0);
    for seed in 0..200 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut config = start.clone();
        for _ in 0..20 {
            let count = rng.usize(1..3);
            let edits: Vec<Edit> = (0..count).map(|_| any_edit(&mut rng)).collect();
            let outcome = apply(&config, &[], &edits);
            assert_eq!(outcome, by_all(&config, &edits), "{edits:#?}\n{}", to_toml(&config));
            match outcome {
                Ok(edited) => (made, config) = (made + 1, edited),
                Err(refusal) => refused += usize::from(refusal.mistake == Mistake::Invalid),
            }
        }
    }
    assert!(made > 500 && refused > 500, "{made} made, {refused} refused");
}
