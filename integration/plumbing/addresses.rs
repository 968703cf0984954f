//! This host's own addresses, and word of their changes.
use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::process::Command;

use lbd::plumbing::{Monitor, local_addresses, owned_addresses};

use crate::unshared::{inside, ip};
use crate::{full_plan, host, install};

#[test]
fn this_hosts_addresses_are_known_and_their_changes_are_told() {
    inside(
        "addresses::this_hosts_addresses_are_known_and_their_changes_are_told",
        || {
            host();
            let journal = tempfile::tempdir().unwrap();
            let plumbing = install(full_plan(), journal.path());
            let address = |text: &str| text.parse::<IpAddr>().unwrap();
            let local = local_addresses("lbd0").unwrap();
            assert_eq!(local, [address("192.168.0.2"), address("fd00:1::2")]);
            let owned = owned_addresses("lbd0").unwrap();
            assert!(owned.contains(&address("127.0.0.1")) && !owned.contains(&address("192.0.0.8")));
            let mut monitor = Monitor::open().unwrap();
            assert!(!monitor.drain());
            ip("address add 192.168.0.3/24 dev eth0");
            assert!(monitor.drain());
            assert!(!monitor.drain());
            assert!(local_addresses("lbd0").unwrap().contains(&address("192.168.0.3")));
            plumbing.remove().unwrap();
        },
    );
}

#[test]
fn no_address_is_overlooked_while_others_come_and_go() {
    inside("addresses::no_address_is_overlooked_while_others_come_and_go", || {
        let steady: Vec<IpAddr> = (0..600)
            .map(|number: u16| IpAddr::from([10, 0, number.to_be_bytes()[0], number.to_be_bytes()[1]]))
            .collect();
        let added = steady
            .iter()
            .map(|address| format!("address add {address}/32 dev lo\n"));
        let files = tempfile::tempdir().unwrap();
        let batch = |name: &str, lines: String| {
            let file = files.path().join(name);
            fs::write(&file, lines).unwrap();
            file.to_str().unwrap().to_owned()
        };
        ip("link set lo up");
        ip(&format!("-batch {}", batch("steady", added.collect())));
        // One of host scope stands before the others in the kernel's list (`__inet_insert_ifa`), and moves them all.
        let moves = "address add 10.1.0.1/32 dev lo scope host\naddress del 10.1.0.1/32 dev lo\n".repeat(50);
        let moves = format!(
            "for _ in $(seq 300); do ip -batch {}; sleep 0.01; done",
            batch("moves", moves)
        );
        let mut moving = Command::new("sh").args(["-c", &moves]).spawn().unwrap();
        for _ in 0..300 {
            let owned: BTreeSet<IpAddr> = owned_addresses("lbd0").unwrap().into_iter().collect();
            let missing = steady.iter().find(|address| !owned.contains(address));
            assert_eq!(missing, None);
        }
        moving.kill().unwrap();
        moving.wait().unwrap();
    });
}
