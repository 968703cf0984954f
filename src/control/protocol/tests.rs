use super::explanation::{FlowStep, RewriteStep, Step};
use super::*;
use lbd_core::flow::Tuple;
use lbd_core::verdict::{Drop, Pass, Reject};

fn round_trip(reply: &Reply) -> String {
    let text = serde_json::to_string(reply).unwrap();
    assert_eq!(serde_json::from_str::<Reply>(&text).unwrap(), *reply, "{text}");
    assert!(!text.contains('\n'), "a reply is one line");
    text
}

fn endpoint(text: &str) -> Endpoint {
    text.parse().unwrap()
}

#[test]
fn every_request_survives_the_wire() {
    let service = Some("default/web:http".to_owned());
    let requests = [
        (Request::Status, r#"{"command":"status"}"#),
        (Request::List { service: None }, r#"{"command":"list"}"#),
        (
            Request::Connections { service },
            r#"{"command":"connections","service":"default/web:http"}"#,
        ),
        (Request::Rules, r#"{"command":"rules"}"#),
        (Request::Drops, r#"{"command":"drops"}"#),
        (
            Request::Explain {
                packet: Question::First {
                    protocol: Protocol::Tcp,
                    source: endpoint("10.1.0.2:40000"),
                    destination: endpoint("10.96.0.10:80"),
                },
            },
            r#"{"command":"explain","packet":{"first":{"protocol":"tcp","source":"10.1.0.2:40000","destination":"10.96.0.10:80"}}}"#,
        ),
        (
            Request::Explain {
                packet: Question::Hex("0x45 00:00 2A".parse().unwrap()),
            },
            r#"{"command":"explain","packet":{"hex":"4500002a"}}"#,
        ),
        (Request::Mode, r#"{"command":"mode"}"#),
        (
            Request::SwitchMode { mode: Mode::Iptables },
            r#"{"command":"switch_mode","mode":"iptables"}"#,
        ),
        (Request::Reload, r#"{"command":"reload"}"#),
        (Request::Save, r#"{"command":"save"}"#),
    ];
    for (request, text) in requests {
        assert_eq!(serde_json::to_string(&request).unwrap(), text);
        assert_eq!(serde_json::from_str::<Request>(text).unwrap(), request);
    }
}

#[test]
fn a_mode_that_does_not_exist_is_named_in_the_error() {
    let text = r#"{"command":"switch_mode","mode":"nftables"}"#;
    let error = serde_json::from_str::<Request>(text).unwrap_err().to_string();
    assert!(
        error.contains("nftables") && error.contains("ipvs or iptables"),
        "{error}"
    );
}

#[test]
fn a_service_keeps_its_keys_and_its_numbers_stay_numbers() {
    let service = ServiceView {
        name: "web".to_owned(),
        protocol: Protocol::Tcp,
        addresses: vec![endpoint("10.96.0.10:80"), endpoint("[fd00::10]:80")],
        scheduler: "mh".to_owned(),
        scheduler_flags: vec!["mh-port".to_owned()],
        persistence: Some(PersistenceView {
            timeout_seconds: 10800,
            prefix_length: 32,
        }),
        one_packet: false,
        stats: StatsView {
            in_bytes: u64::MAX,
            ..StatsView::default()
        },
        rates: RatesView::default(),
        backends: vec![BackendView {
            address: endpoint("10.2.0.11:8080"),
            weight: 2,
            upper_threshold: 1000,
            lower_threshold: 800,
            active_connections: 1,
            inactive_connections: 0,
            persistent_connections: 0,
            overloaded: false,
            stats: StatsView::default(),
            rates: RatesView::default(),
        }],
    };
    let text = round_trip(&Reply::Ok(Data::Services(vec![service])));
    let start = r#"{"ok":{"services":[{"name":"web","protocol":"tcp","addresses":["10.96.0.10:80","[fd00::10]:80"],"scheduler":"mh","scheduler_flags":["mh-port"],"persistence":{"timeout_seconds":10800,"prefix_length":32},"one_packet":false,"stats":{"connections":0,"in_packets":0,"out_packets":0,"in_bytes":18446744073709551615,"out_bytes":0},"rates":{"connections_per_second":0,"#;
    assert!(text.starts_with(start), "{text}");
    assert!(
        text.contains(r#""backends":[{"address":"10.2.0.11:8080","weight":2,"upper_threshold":1000,"#),
        "{text}"
    );
}

#[test]
fn a_connection_names_its_virtual_address_virtual() {
    let connection = ConnectionView {
        protocol: Protocol::Udp,
        state: "UDP".into(),
        expires_seconds: 300,
        client: endpoint("10.1.0.2:5"),
        virtual_address: endpoint("10.96.0.10:53"),
        backend: endpoint("10.2.0.11:5353"),
        source: endpoint("198.18.0.1:1024"),
        service: "dns".to_owned(),
        masqueraded: true,
    };
    let text = round_trip(&Reply::Ok(Data::Connections(vec![connection])));
    let expected = r#"{"ok":{"connections":[{"protocol":"udp","state":"UDP","expires_seconds":300,"client":"10.1.0.2:5","virtual":"10.96.0.10:53","backend":"10.2.0.11:5353","source":"198.18.0.1:1024","service":"dns","masqueraded":true}]}}"#;
    assert_eq!(text, expected);
}

#[test]
fn an_explanation_survives_the_wire_and_each_step_says_which_it_is() {
    let (client, service, backend) = ("10.1.0.2:5", "10.96.0.10:53", "10.2.0.11:5353");
    let leaving = Tuple {
        protocol: Protocol::Udp,
        source: endpoint(client),
        destination: endpoint(backend),
    };
    let flow = FlowStep {
        service: "dns".to_owned(),
        backend: endpoint(backend),
        client: endpoint(client),
        virtual_address: endpoint(service),
        source: endpoint(client),
        direction: "original".into(),
        state: "UDP".into(),
        next_state: "UDP".into(),
        expires_seconds: 300,
        backend_removed: false,
        outcome: "follows".into(),
    };
    let explanation = Explanation {
        mode: Mode::Ipvs,
        steps: vec![
            Step::Flow(Box::new(flow)),
            Step::NoFlow,
            Step::Rewrite(RewriteStep::to(&leaving, false)),
        ],
        verdict: "forward".into(),
        reason: None,
        service: Some("dns".to_owned()),
        backend: Some(endpoint(backend)),
        by_chance: false,
        notes: Vec::new(),
    };
    let text = round_trip(&Reply::Ok(Data::Explanation(Box::new(explanation))));
    let expected = r#"{"ok":{"explanation":{"mode":"ipvs","steps":[{"step":"flow","service":"dns","backend":"10.2.0.11:5353","client":"10.1.0.2:5","virtual":"10.96.0.10:53","source":"10.1.0.2:5","direction":"original","state":"UDP","next_state":"UDP","expires_seconds":300,"backend_removed":false,"outcome":"follows"},{"step":"no_flow"},{"step":"rewrite","protocol":"udp","source":"10.1.0.2:5","destination":"10.2.0.11:5353","of_quoted":false}],"verdict":"forward","reason":null,"service":"dns","backend":"10.2.0.11:5353","by_chance":false,"notes":[]}}}"#;
    assert_eq!(text, expected);
}

#[test]
fn what_is_no_hexadecimal_packet_is_named_in_the_error() {
    use super::explanation::Hex;
    for (text, named) in [
        ("45x0", "'x'"),
        ("450", "3 hexadecimal digits"),
        ("", "0 hexadecimal digits"),
    ] {
        let error = text.parse::<Hex>().unwrap_err().to_string();
        assert!(error.contains(named) && error.contains("two digits a byte"), "{error}");
    }
}

#[test]
fn errors_modes_and_messages_survive_the_wire() {
    assert_eq!(round_trip(&Reply::error("a\nb")), r#"{"error":{"message":"a\nb"}}"#);
    assert_eq!(
        round_trip(&Reply::Ok(Data::Mode(Mode::Ipvs))),
        r#"{"ok":{"mode":"ipvs"}}"#
    );
    assert_eq!(round_trip(&Reply::message("done")), r#"{"ok":{"message":"done"}}"#);
}

#[test]
fn drops_come_first_in_the_order_of_the_counters_and_json_keeps_it() {
    let drops = Drops::new(|verdict| match verdict {
        Verdict::Forward => 1_000,
        Verdict::Drop(Drop::Malformed) => 1,
        Verdict::Reject(Reject::NoBackend) => 2,
        Verdict::Pass(Pass::NoMatch) => 3,
        Verdict::Drop(_) | Verdict::Reject(_) | Verdict::Pass(_) | Verdict::Hold => 0,
    });
    assert_eq!(drops.0.len(), Verdict::COUNT - 2, "all but forward and hold");
    round_trip(&Reply::Ok(Data::Drops(drops.clone())));
    let text = serde_json::to_string(&drops.by_verdict()).unwrap();
    assert!(
        text.starts_with(r#"{"drops":{"malformed":1,"fragment":0,"rule":0,"not_syn":0,"#),
        "{text}"
    );
    assert!(text.contains(r#"},"rejects":{"no_backend":2,"rule":0,"#), "{text}");
    assert!(text.contains(r#"},"passes":{"no_match":3,"rule":0,"#), "{text}");
}

#[test]
fn packets_in_are_the_sum_of_all_verdicts() {
    let counts = PacketCounts::new(|verdict| verdict.index() as u64 + 1);
    // What is held is not counted yet.
    let all = Verdict::COUNT as u64 - 1;
    assert_eq!(counts.received, all * (all + 1) / 2);
    assert_eq!(
        counts.received,
        counts.forward + counts.pass + counts.reject + counts.drop
    );
    assert_eq!(counts.forward, 1);
    let text = serde_json::to_string(&counts).unwrap();
    assert!(text.starts_with(r#"{"in":"#), "{text}");
}
