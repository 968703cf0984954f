//! Expected texts are lines of the sessions in reference/ipvsadm-samples, written down by hand.
use super::*;
use crate::render::{sample, session};
use lbd_core::flow::Protocol;

fn backend(address: &str, weight: u32, active: u32, inactive: u32) -> BackendView {
    BackendView {
        address: address.parse().unwrap(),
        weight,
        upper_threshold: 0,
        lower_threshold: 0,
        active_connections: active,
        inactive_connections: inactive,
        persistent_connections: 0,
        overloaded: false,
        stats: StatsView::default(),
        rates: RatesView::default(),
    }
}

fn service(protocol: Protocol, address: &str, scheduler: &str) -> ServiceView {
    ServiceView {
        name: format!("{protocol}/{address}"),
        protocol,
        addresses: vec![address.parse().unwrap()],
        scheduler: scheduler.to_owned(),
        scheduler_flags: Vec::new(),
        one_packet: false,
        persistence: None,
        stats: StatsView::default(),
        rates: RatesView::default(),
        backends: Vec::new(),
    }
}

fn totals(values: [u64; 5]) -> StatsView {
    let [connections, in_packets, out_packets, in_bytes, out_bytes] = values;
    StatsView {
        connections,
        in_packets,
        out_packets,
        in_bytes,
        out_bytes,
    }
}

fn per_second(values: [u64; 5]) -> RatesView {
    let [connections, in_packets, out_packets, in_bytes, out_bytes] = values;
    RatesView {
        connections_per_second: connections,
        in_packets_per_second: in_packets,
        out_packets_per_second: out_packets,
        in_bytes_per_second: in_bytes,
        out_bytes_per_second: out_bytes,
    }
}

/// The service of list.txt, stats.txt and rate.txt.
fn web() -> ServiceView {
    let first = BackendView {
        stats: totals([5, 31, 29, 2012, 2513]),
        rates: per_second([0, 3, 2, 169, 213]),
        ..backend("10.2.1.2:80", 1, 0, 5)
    };
    let second = BackendView {
        stats: totals([5, 30, 30, 1960, 2565]),
        rates: per_second([1, 3, 3, 189, 230]),
        ..backend("10.2.2.2:80", 3, 1, 5)
    };
    ServiceView {
        stats: totals([10, 61, 59, 3972, 5078]),
        rates: per_second([1, 6, 5, 358, 443]),
        backends: vec![second, first],
        ..service(Protocol::Tcp, "10.9.9.9:80", "rr")
    }
}

const WEB_LOAD: &str = "\
IP Virtual Server version 1.2.1 (size=4096)
Prot LocalAddress:Port Scheduler Flags
  -> RemoteAddress:Port           Forward Weight ActiveConn InActConn
TCP  10.9.9.9:80 rr
  -> 10.2.1.2:80                  Masq    1      0          5         \n  \
  -> 10.2.2.2:80                  Masq    3      1          5         \n";

const WEB_STATS: &str = "\
IP Virtual Server version 1.2.1 (size=4096)
Prot LocalAddress:Port               Conns   InPkts  OutPkts  InBytes OutBytes
  -> RemoteAddress:Port
TCP  10.9.9.9:80                        10       61       59     3972     5078
  -> 10.2.1.2:80                         5       31       29     2012     2513
  -> 10.2.2.2:80                         5       30       30     1960     2565
";

const WEB_RATE: &str = "\
IP Virtual Server version 1.2.1 (size=4096)
Prot LocalAddress:Port                 CPS    InPPS   OutPPS    InBPS   OutBPS
  -> RemoteAddress:Port
TCP  10.9.9.9:80                         1        6        5      358      443
  -> 10.2.1.2:80                         0        3        2      169      213
  -> 10.2.2.2:80                         1        3        3      189      230
";

fn all(services: &[ServiceView], columns: Columns) -> String {
    list(services, None, columns, &Names::numeric())
}

#[test]
fn the_tables_are_those_of_ipvsadm() {
    assert_eq!(all(&[web()], Columns::Load), WEB_LOAD);
    assert_eq!(all(&[web()], Columns::Stats), WEB_STATS);
    assert_eq!(all(&[web()], Columns::Rate), WEB_RATE);
}

#[test]
fn the_tables_are_those_of_the_recorded_sessions_to_the_byte() {
    let cases = [
        ("list.txt", "ipvsadm -Ln", Columns::Load),
        ("stats.txt", "ipvsadm -Ln --stats", Columns::Stats),
        ("rate.txt", "ipvsadm -Ln --rate", Columns::Rate),
    ];
    for (file, command, columns) in cases {
        let Some(sample) = sample(file) else { continue };
        assert_eq!(all(&[web()], columns), session(&sample, command), "{file}");
    }
    let Some(empty) = sample("empty.txt") else {
        return;
    };
    for (_, command, columns) in cases {
        assert_eq!(all(&[], columns), session(&empty, command), "{command}");
    }
}

/// The services of edit.txt that NAT can have.
fn edited() -> Vec<ServiceView> {
    let persistent = |timeout_seconds, prefix_length| {
        Some(PersistenceView {
            timeout_seconds,
            prefix_length,
        })
    };
    vec![
        ServiceView {
            backends: vec![backend("[fd00:2::2]:8080", 1, 0, 0)],
            persistence: persistent(60, 64),
            ..service(Protocol::Tcp, "[fd00::9]:80", "lc")
        },
        service(Protocol::Sctp, "10.9.9.9:3868", "nq"),
        ServiceView {
            persistence: persistent(300, 32),
            backends: vec![backend("10.2.2.2:5353", 2, 0, 3), backend("10.2.1.2:53", 1, 0, 0)],
            ..service(Protocol::Udp, "10.9.9.9:53", "wrr")
        },
        ServiceView {
            scheduler_flags: vec!["sh-port".to_owned(), "sh-fallback".to_owned()],
            backends: vec![backend("10.2.1.9:81", 65535, 0, 0), backend("10.2.1.9:80", 70000, 0, 0)],
            ..service(Protocol::Tcp, "10.9.9.9:443", "sh")
        },
        ServiceView {
            persistence: persistent(5, 24),
            ..service(Protocol::Tcp, "10.9.9.9:82", "rr")
        },
    ]
}

#[test]
fn services_and_servers_are_sorted_and_flags_are_shown_as_ipvsadm_does() {
    let expected = "\
TCP  10.9.9.9:82 rr persistent 5 mask 255.255.255.0
TCP  10.9.9.9:443 sh (sh-fallback,sh-port)
  -> 10.2.1.9:80                  Masq    70000  0          0         \n  \
  -> 10.2.1.9:81                  Masq    65535  0          0         \n\
UDP  10.9.9.9:53 wrr persistent 300
  -> 10.2.1.2:53                  Masq    1      0          0         \n  \
  -> 10.2.2.2:5353                Masq    2      0          3         \n\
SCTP 10.9.9.9:3868 nq
TCP  [fd00::9]:80 lc persistent 60 mask 64
  -> [fd00:2::2]:8080             Masq    1      0          0         \n";
    let text = all(&edited(), Columns::Load);
    let body: String = text.split_inclusive('\n').skip(3).collect();
    assert_eq!(body, expected);
}

#[test]
fn addresses_sort_as_numbers_and_not_as_words() {
    let services = ["10.96.0.10:80", "10.96.0.9:80", "9.0.0.1:80", "10.96.0.9:9"]
        .map(|address| service(Protocol::Tcp, address, "rr"));
    let text = all(&services, Columns::Load);
    let order: Vec<_> = text.lines().skip(3).collect();
    let expected = [
        "TCP  9.0.0.1:80 rr",
        "TCP  10.96.0.9:9 rr",
        "TCP  10.96.0.9:80 rr",
        "TCP  10.96.0.10:80 rr",
    ];
    assert_eq!(order, expected);
}

#[test]
fn a_service_with_several_addresses_has_a_block_for_each() {
    let mut service = web();
    service.addresses.push("203.0.113.10:80".parse().unwrap());
    let text = all(&[service], Columns::Stats);
    let row = "                        10       61       59     3972     5078\n";
    assert!(text.contains(&format!("TCP  10.9.9.9:80{row}")), "{text}");
    assert!(text.contains(&format!("TCP  203.0.113.10:80{}", &row[4..])), "{text}");
    assert_eq!(text.matches("  -> 10.2.1.2:80 ").count(), 2);
}

#[test]
fn one_service_alone_has_no_version_line_and_one_address_alone_one_block() {
    let mut both = web();
    both.addresses.push("203.0.113.10:80".parse().unwrap());
    let by_address = Selector::new("203.0.113.10:80");
    let text = list(&[both.clone()], Some(&by_address), Columns::Load, &Names::numeric());
    assert!(text.starts_with("Prot LocalAddress:Port Scheduler Flags\n"));
    assert!(text.contains("TCP  203.0.113.10:80 rr\n") && !text.contains("10.9.9.9"));
    let by_name = Selector::new("tcp/10.9.9.9:80");
    let text = list(&[both], Some(&by_name), Columns::Load, &Names::numeric());
    assert!(text.contains("203.0.113.10:80") && text.contains("10.9.9.9:80"));
}

#[test]
fn a_mask_of_no_bits_at_all_is_shown() {
    let mut service = service(Protocol::Tcp, "10.3.0.1:443", "rr");
    service.persistence = Some(PersistenceView {
        timeout_seconds: 10800,
        prefix_length: 0,
    });
    let text = all(&[service], Columns::Load);
    assert!(
        text.ends_with("TCP  10.3.0.1:443 rr persistent 10800 mask 0.0.0.0\n"),
        "{text}"
    );
}

#[test]
fn large_numbers_stay_within_nine_columns() {
    let cases = [
        (0, "        0"),
        (99_999_999, " 99999999"),
        (100_000_000, "  100000K"),
        (999_999_999, "  999999K"),
        (1_000_000_000, "    1000M"),
        (99_999_999_999, "   99999M"),
        (100_000_000_000, "     100G"),
        (99_999_999_999_999, "   99999G"),
        (100_000_000_000_000, "     100T"),
        (u64::MAX, "18446744T"),
    ];
    for (number, expected) in cases {
        assert_eq!(large_number(number), expected);
    }
}

#[test]
fn rates_of_servers_are_shortened_for_bytes_only() {
    let mut service = web();
    service.backends.truncate(1);
    service.backends[0].rates = per_second([100_000_000, 1, 1, 2_000_000_000, 3]);
    let text = all(&[service], Columns::Rate);
    let row = "  -> 10.2.2.2:80                  100000000        1        1    2000M        3\n";
    assert!(text.ends_with(row), "{text}");
}
