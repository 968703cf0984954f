//! What lbctl says of values that cannot be, before it asks lbd.
use serde_json::{Value, json};

use super::{World, stderr};

/// Bad usage: what is said of it.
#[track_caller]
fn refused(arguments: &[&str]) -> String {
    let output = World::new().command(arguments).output().unwrap();
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(2), "{said}");
    said
}

#[track_caller]
fn assert_says(arguments: &[&str], words: &[&str]) {
    let said = refused(arguments);
    for word in words {
        assert!(said.contains(word), "{word:?} is missing: {said}");
    }
}

const ADD: [&str; 5] = ["service", "add", "web", "--protocol", "tcp"];

#[test]
fn an_unknown_scheduler_is_answered_with_all_that_there_are() {
    let add = [&ADD[..], &["--address", "10.96.0.1:80", "--scheduler", "foo"]].concat();
    assert_says(&add, &["foo", "--scheduler", "random, rr, wrr, lc, wlc,", "mh, twos"]);
}

#[test]
fn an_address_without_a_port_is_answered_with_one_that_has_one() {
    let words = ["10.96.1.1", "ADDRESS:PORT", "10.96.1.1:80"];
    assert_says(&[&ADD[..], &["--address", "10.96.1.1"]].concat(), &words);
    assert_says(&["backend", "add", "web", "10.96.1.1"], &words);
    let words = ["nonsense", "ADDRESS:PORT", "10.96.0.10:80", "[fd00::10]:80"];
    assert_says(&[&ADD[..], &["--address", "nonsense"]].concat(), &words);
    assert_says(
        &["service", "edit", "web", "--address", "fd00::1"],
        &["e.g. [fd00::1]:80"],
    );
}

#[test]
fn a_node_port_that_is_none_is_answered_with_the_range() {
    for port in ["abc", "70000", "-1"] {
        let given = format!("--node-port={port}");
        let add = [&ADD[..], &["--address", "10.96.0.1:80", &given]].concat();
        assert_says(&add, &[port, "--node-port", "a port, 0 to 65535"]);
    }
}

#[test]
fn a_timeout_out_of_range_is_named_as_it_was_typed() {
    assert_says(&["timeouts", "100d", "0", "0"], &["'100d'", "1s to 31days", "0 leaves"]);
    assert_says(&["timeouts", "0", "10ms", "0"], &["'10ms'", "1s to 31days"]);
    assert_says(&["timeouts", "0", "0", "soon"], &["'soon'", "e.g. 90s, 10m"]);
}

#[test]
fn an_empty_external_address_takes_all_of_them_away() {
    let world = World::new();
    let sent = |addresses: &[&str]| {
        let given = addresses.iter().flat_map(|address| ["--external-address", address]);
        let arguments: Vec<&str> = ["service", "edit", "web"].into_iter().chain(given).collect();
        let edits: Value = serde_json::from_str(&world.prints(&arguments)).unwrap();
        edits[0]["fields"]["external_addresses"].clone()
    };
    assert_eq!(sent(&[""]), json!([]));
    assert_eq!(
        sent(&["203.0.113.1", "203.0.113.2"]),
        json!(["203.0.113.1", "203.0.113.2"])
    );
    assert_eq!(sent(&[]), Value::Null);
    let wrong = refused(&["service", "edit", "web", "--external-address", "10.0.0.1:80"]);
    assert!(wrong.contains("an address without a port"), "{wrong}");
}
