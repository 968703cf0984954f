//! A server less: whose choice changes, and whose flow never does.
use proptest::collection::vec;
use proptest::prelude::*;

use super::lab::{Answer, Lab};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn removing_a_server_moves_no_flow_of_the_others_whatever_the_scheduler(
        scheduler in prop::sample::select(vec!["mh", "sh", "dh", "wrr", "wlc", "lblc", "lblcr", "nq", "fo", "random"]),
        weights in vec(1..9_u32, 2..6),
        removed in any::<prop::sample::Index>(),
    ) {
        let mut lab = Lab::new();
        lab.ok(&format!("-A -t 10.9.9.9:80 -s {scheduler}"));
        for (number, weight) in weights.iter().enumerate() {
            lab.ok(&format!("-a -t 10.9.9.9:80 -r 10.2.{number}.2:80 -m -w {weight}"));
        }
        let clients = (0..40).map(|number| format!("10.1.{number}.2:40000"));
        let flows: Vec<_> = clients.map(|client| lab.connect(&client, "10.9.9.9:80").unwrap()).collect();
        let removed = removed.index(weights.len());
        lab.ok(&format!("-d -t 10.9.9.9:80 -r 10.2.{removed}.2:80"));
        for flow in &flows {
            // Those of the removed one, too: preserved.
            prop_assert_eq!(lab.exchange(flow, 1, 1), Answer::From(flow.server));
        }
    }
}
