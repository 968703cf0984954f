//! Many bytes, both ways, with and without super-packets: every one arrives, and as it was sent.
use std::time::Duration;

use crate::rig::{
    BIG, Backend, Config, DIR, Family, Mode, Rig, Service, isolated, udp_echo_integrity, wait_until, write_big,
};

#[test]
fn two_hundred_megabytes_arrive_unchanged_over_tcp_in_both_directions() {
    isolated(|| {
        let rig = Rig::new();
        write_big();
        let expected = rig.sh("client", &format!("sha256sum < {DIR}/big")).ok();
        for (offload, family) in cases() {
            let mut config = Config::new(Mode::Ipvs, vec![Service::tcp(family, 80, 8080, &[1])]);
            config.offload = offload;
            let lbd = rig.lbd(&config);
            let get = format!("curl -sS --max-time 50 http://{}/big | sha256sum", family.web());
            assert_eq!(rig.sh("client", &get).ok(), expected, "down");
            let put = format!(
                "curl -sS --fail --max-time 50 -T {DIR}/big http://{}/put/{family:?}",
                family.web()
            );
            rig.sh("client", &put).ok();
            let stored = rig.sh(
                "client",
                &format!("sha256sum < {DIR}/s1/put/{family:?} && rm {DIR}/s1/put/{family:?}"),
            );
            assert_eq!(stored.ok(), expected, "up");
            lbd.terminate();
        }
    });
}

#[test]
fn twenty_megabytes_of_datagrams_arrive_unchanged_in_both_directions() {
    isolated(|| {
        let rig = Rig::new();
        for (offload, family) in cases() {
            let service = Service {
                protocol: "udp",
                ..Service::tcp(family, 7, 7, &[1])
            };
            let mut config = Config::new(Mode::Ipvs, vec![service]);
            config.offload = offload;
            let lbd = rig.lbd(&config);
            let again = udp_echo_integrity(&family.server(1, 7), &family.vip(7), BIG / 10);
            println!("{again} datagrams were sent twice");
            lbd.terminate();
        }
    });
}

/// Order by iperf3's own sequence numbers. A receiver that gets no CPU loses datagrams; whether lbd did, its counters and
/// its device's say.
#[test]
fn paced_datagrams_are_not_reordered_and_none_is_lost_in_lbd() {
    isolated(|| {
        let rig = Rig::new();
        for ((offload, family), first) in cases().zip((5201..).step_by(2)) {
            let runs = [(first, ""), (first + 1, "--reverse")];
            let services = runs.iter().flat_map(|(port, _)| both_protocols(family, *port));
            let mut config = Config::new(Mode::Ipvs, services.collect());
            config.offload = offload;
            let lbd = rig.lbd(&config);
            for (port, direction) in runs {
                let report = iperf3(&rig, family, port, direction);
                assert!(
                    !report.contains("out-of-order") && !report.contains("OUT OF ORDER"),
                    "{report}"
                );
                assert!(receiver_lost(&report) < 99.0, "nothing arrived: {report}");
            }
            let lost = rig
                .sh("lb", "ip -s -j link show lbd0 | jq '.[].stats64.tx.dropped'")
                .ok();
            assert_eq!(lost.trim(), "0", "dropped before lbd read them");
            let counts = lbd.lbctl("status --json").ok();
            assert!(
                counts.contains("\"drop\":0") && counts.contains("\"unsent\":0"),
                "{counts}"
            );
            lbd.terminate();
        }
    });
}

fn both_protocols(family: Family, port: u16) -> [Service; 2] {
    let tcp = Service::tcp(family, port, port, &[1]);
    let udp = Service {
        protocol: "udp",
        name: format!("udp-{port}"),
        ..tcp.clone()
    };
    [tcp, udp]
}

/// Each run with a server of its own: one that has served before may be at the end of that still, and takes a datagram of
/// the old client, where one comes late, for the new client's first.
#[track_caller]
fn iperf3(rig: &Rig, family: Family, port: u16, direction: &str) -> String {
    rig.sh("s1", &format!("iperf3 -s -1 -D -p {port}")).ok();
    wait_until("iperf3's server", Duration::from_secs(10), || {
        !rig.sh("s1", &format!("ss -Hltn sport = :{port}")).ok().is_empty()
    });
    let vip = family.vip(port);
    let client = format!(
        "iperf3 -c {} -p {port} -u -b 40M -l 1200 -t 2 {direction}",
        Family::host(&vip)
    );
    rig.sh("client", &client).ok()
}

/// Percent lost, from the line `… 0/8333 (0%)  receiver`.
fn receiver_lost(report: &str) -> f64 {
    let line = report
        .lines()
        .find(|line| line.contains("receiver"))
        .expect("a line of the receiver");
    let percent = line
        .split_once('(')
        .and_then(|(_, rest)| rest.split_once('%'))
        .expect("a percentage")
        .0;
    percent.parse().expect("a number")
}

/// Over AF_XDP there are no super-packets to be had.
fn cases() -> impl Iterator<Item = (bool, Family)> {
    let offloads: &[bool] = match Backend::of_this_run() {
        Backend::Tun => &[true, false],
        Backend::AfXdp => &[true],
    };
    let families = [Family::V4, Family::V6].into_iter();
    families
        .flat_map(|family| offloads.iter().map(move |offload| (*offload, family)))
        .inspect(|case| println!("--- offload, family: {case:?}"))
}
