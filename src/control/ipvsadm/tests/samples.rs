//! reference/ipvsadm-samples: sessions of the real ipvsadm, from the same commands and equivalent traffic.
//!
//! Not repeated: what concerns direct routing, tunnels, firewall marks and netmasks with holes (lbd refuses them), and
//! a weight of 70000 that no command of the samples gives.
use std::time::Duration;

use super::lab::{Lab, Tcp};
use crate::render::{sample, session};
use lbd_core::service::Totals;

const VIP: &str = "10.9.9.9:80";

/// After the commands of setup.txt.
fn set_up() -> Lab {
    let mut lab = Lab::new();
    lab.ok("-A -t 10.9.9.9:80 -s rr");
    lab.ok("-a -t 10.9.9.9:80 -r 10.2.1.2:80 -m");
    lab.ok("-a -t 10.9.9.9:80 -r 10.2.2.2:80 -m -w 3");
    lab
}

fn check(lab: &mut Lab, file: &str, arguments: &str) {
    if let Some(text) = sample(file) {
        assert_eq!(
            lab.ok(arguments),
            session(&text, &format!("ipvsadm {arguments}")),
            "{file}"
        );
    }
}

fn connect(lab: &mut Lab, port: u16) -> Tcp {
    lab.connect(&format!("10.1.0.2:{port}"), VIP).unwrap()
}

const fn totals(in_packets: u64, out_packets: u64, in_bytes: u64, out_bytes: u64) -> Totals {
    Totals {
        connections: 0,
        in_packets,
        out_packets,
        in_bytes,
        out_bytes,
    }
}

#[test]
fn an_empty_table_looks_as_that_of_the_real_one() {
    let mut lab = Lab::new();
    for arguments in [
        "-Ln",
        "-Ln --stats",
        "-Ln --rate",
        "-Lnc",
        "-Sn",
        "-Ln --timeout",
        "-Ln --daemon",
    ] {
        check(&mut lab, "empty.txt", arguments);
    }
}

#[test]
fn the_session_of_two_servers_and_eleven_connections_is_the_recorded_one() {
    let mut lab = set_up();
    let flows: Vec<Tcp> = (40_000..40_010).map(|port| connect(&mut lab, port)).collect();
    flows.iter().for_each(|flow| lab.close(flow));
    // Servers take turns, the one that was added last first.
    lab.fill(&flows[1], "10.2.1.2:80", totals(31, 29, 2012, 2513));
    lab.fill(&flows[0], "10.2.2.2:80", totals(30, 30, 1960, 2565));
    check(&mut lab, "stats.txt", "-Ln --stats");
    let open = connect(&mut lab, 40_010);
    check(&mut lab, "list.txt", "-Ln");
    lab.fill(&open, "10.2.2.2:80", totals(33, 32, 2149, 2677));
    check(&mut lab, "stats.txt", "-Ln --stats --exact");
    check(&mut lab, "save.txt", "-Sn");
    check(&mut lab, "timeout.txt", "-Ln --timeout");
}

#[test]
fn rates_follow_the_traffic_of_the_last_two_seconds_by_a_quarter() {
    let mut lab = set_up();
    let flows: Vec<Tcp> = (40_000..40_009).map(|port| connect(&mut lab, port)).collect();
    lab.fill(&flows[1], "10.2.1.2:80", totals(24, 16, 1350, 1704));
    lab.fill(&flows[0], "10.2.2.2:80", totals(24, 24, 1512, 1840));
    lab.pass(Duration::from_secs(2));
    check(&mut lab, "rate.txt", "-Ln --rate");
}

#[test]
fn connections_are_listed_with_state_and_time_left() {
    let mut lab = set_up();
    // Port, and tenths of a second before the listing.
    let opened = [
        (43182, 55),
        (43194, 55),
        (43198, 45),
        (43212, 45),
        (43226, 45),
        (43236, 45),
        (43242, 45),
        (43244, 35),
        (43254, 35),
        (43256, 35),
        (51304, 25),
    ];
    let mut before = 60;
    for (port, tenths) in opened {
        lab.pass(Duration::from_millis(100 * (before - tenths)));
        before = tenths;
        let flow = connect(&mut lab, port);
        if port != 51304 {
            lab.close(&flow);
        }
    }
    lab.pass(Duration::from_millis(100 * before));
    let Some(text) = sample("conns.txt") else { return };
    let sorted = |text: &str| {
        let mut lines: Vec<String> = text.lines().skip(2).map(str::to_owned).collect();
        lines.sort();
        lines
    };
    // The kernel lists its hash table, which has no order.
    assert_eq!(sorted(&lab.ok("-Lnc")), sorted(&session(&text, "ipvsadm -Lnc")));
}

#[test]
fn the_second_setup_and_the_edits_give_the_recorded_lines() {
    let mut lab = set_up();
    for command in [
        "-A -u 10.9.9.9:53 -s wrr -p 300",
        "-a -u 10.9.9.9:53 -r 10.2.1.2:53 -m -w 1",
        "-a -u 10.9.9.9:53 -r 10.2.2.2:5353 -m -w 2 -x 100 -y 50",
        "-A -t 10.9.9.9:443 -s sh -b sh-port,sh-fallback",
        "-A -t [fd00::9]:80 -s lc",
        "-A --sctp-service 10.9.9.9:3868 -s nq",
        "-a -t [fd00::9]:80 -r [fd00:2::2]:8080 -m",
        "-e -t 10.9.9.9:80 -r 10.2.1.2:80 -m -w 9",
        "-E -t 10.9.9.9:80 -s wrr -p 120",
    ] {
        assert_eq!(lab.ok(command), "", "{command}");
    }
    for (file, command) in [
        ("setup2.txt", "-A -t 10.9.9.9:21 -s mh -o"),
        ("edit.txt", "-Sn -t 10.9.9.9:80"),
    ] {
        let output = lab.ipvsadm(command);
        let Some(text) = sample(file) else { return };
        let shown = format!("{}{}[exit {}]\n", output.out, output.err, output.code);
        assert_eq!(shown, session(&text, &format!("ipvsadm {command}")));
    }
    let Some(text) = sample("edit.txt") else { return };
    let recorded = session(&text, "ipvsadm -Ln");
    let table = lab.ok("-Ln");
    // Servers that had connections when the sample was taken.
    let busy = ["  -> 10.2.1.2:80 ", "  -> 10.2.2.2:80 ", "  -> 10.2.2.2:5353 "];
    for line in table
        .lines()
        .filter(|line| !busy.iter().any(|busy| line.starts_with(busy)))
    {
        assert!(recorded.lines().any(|recorded| recorded == line), "{line:?}");
    }
    assert_eq!(table.lines().count(), 3 + 5 + 5, "{table}");
    lab.ok("-Z");
    lab.ok("-d -t 10.9.9.9:80 -r 10.2.1.2:80");
    lab.ok("-D -t 10.9.9.9:80");
    assert!(!lab.ok("-Ln").contains("10.9.9.9:80 "));
}
