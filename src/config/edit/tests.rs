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
