//! The local table's rule at priority 0, whoever put it there.

use super::unshared::{inside, ip};
use super::{assert_same, delete_device, full_plan, host, install, state};

/// lbd comes and goes on a host whose rules are as `commands` leave them.
fn come_and_go(commands: &[&str]) {
    host();
    for command in commands {
        ip(command);
    }
    let before = state();
    let journal = tempfile::tempdir().unwrap();
    let plumbing = install(full_plan(), journal.path());
    for rules in [ip("rule"), ip("-6 rule")] {
        assert!(!rules.starts_with("0:"), "the local table comes first: {rules}");
        assert!(rules.contains("20:\tfrom all lookup local"), "{rules}");
    }
    plumbing.remove().unwrap();
    delete_device();
    assert_same(&before, &state());
}

#[test]
fn a_local_rule_that_was_put_back_by_hand_is_moved_and_put_back_as_it_was() {
    inside(
        "local_rule::a_local_rule_that_was_put_back_by_hand_is_moved_and_put_back_as_it_was",
        || {
            come_and_go(&[
                "rule add pref 0 lookup local",
                "rule del pref 0 protocol kernel lookup local",
                "-6 rule add pref 0 lookup local protocol static",
                "-6 rule del pref 0 protocol kernel lookup local",
            ]);
        },
    );
}

#[test]
fn two_local_rules_at_the_first_place_are_both_moved_and_both_put_back() {
    inside(
        "local_rule::two_local_rules_at_the_first_place_are_both_moved_and_both_put_back",
        || come_and_go(&["rule add pref 0 lookup local"]),
    );
}
