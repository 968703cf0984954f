//! SCTP through a running lbd. No kernel has to know SCTP for it: both ends are programs of usrsctp, the stack of FreeBSD
//! in user space (Debian's libusrsctp-examples), over raw sockets.
use std::time::Duration;

use crate::rig::{Config, Family, Mode, Rig, SERVERS, Service, isolated_with_sctp, matrix, wait_until};

/// The echo server has this one.
const ECHO: u16 = 7;
const PORT: u16 = 3868;

/// Servers on port 7, and a client that cannot reach them but through lbd: usrsctp tells its peer all addresses of its host,
/// and would try those beside the service's ("one address a side").
fn rig() -> Rig {
    let rig = Rig::new();
    rig.sh(
        "client",
        "ip route add blackhole 10.2.0.0/24; ip route add blackhole fd00:2::/64",
    )
    .ok();
    rig
}

fn serve(rig: &Rig) -> [crate::rig::Running; 3] {
    SERVERS.map(|server| {
        let running = rig.spawn(server, "exec /usr/lib/usrsctp/echo_server");
        // One for each family, below a title.
        let sockets = || rig.sh(server, "tail -qn +2 /proc/net/raw /proc/net/raw6").ok();
        let listens = || sockets().lines().count() == 2;
        wait_until("an SCTP server", Duration::from_secs(30), listens);
        running
    })
}

/// Says something, stays for as many seconds, says it again, and closes.
fn converse(family: Family, words: &str, seconds: u32) -> String {
    let host = family.vip(PORT);
    let host = Family::host(&host);
    format!(
        "(echo {words}; sleep {seconds}; echo {words} again; sleep 1) | timeout 20 /usr/lib/usrsctp/client {host} {PORT}"
    )
}

/// Everything came back, and the association was closed from both ends.
#[track_caller]
fn assert_heard(told: &str, words: &str) {
    assert!(told.starts_with(&format!("{words}\n{words} again\n")), "{told}");
    assert!(told.contains("SCTP_SHUTDOWN_COMP"), "{told}");
}

fn service(family: Family) -> Service {
    Service {
        protocol: "sctp",
        ..Service::tcp(family, PORT, ECHO, &[1, 2, 3])
    }
}

#[test]
fn an_association_says_something_and_hears_it_back_from_every_server() {
    isolated_with_sctp(|| {
        let rig = rig();
        let _servers = serve(&rig);
        for (mode, family) in matrix() {
            let lbd = rig.lbd(&Config::new(mode, vec![service(family)]));
            // One after the other: two stacks in user space on one host hear each other's packets.
            for word in ["one", "two", "three"] {
                let client = rig.spawn("client", &converse(family, word, 1));
                lbd.wait_for_established(1);
                assert_heard(&client.wait().ok(), word);
            }
            let mut table = String::new();
            wait_until("the end of three associations", Duration::from_secs(10), || {
                table = lbd.lbctl("ipvsadm -Lnc").ok();
                table.matches(" CLOSED ").count() >= 3
            });
            for number in 1..=3 {
                let server = family.server(number, ECHO);
                assert_eq!(
                    table.lines().filter(|line| line.contains(&server)).count(),
                    1,
                    "{table}"
                );
            }
            assert_eq!(
                table.lines().filter(|line| line.contains(" CLOSED ")).count(),
                3,
                "{table}"
            );
            lbd.terminate();
        }
    });
}

#[test]
fn an_association_outlives_a_reload_that_takes_its_server_away() {
    isolated_with_sctp(|| {
        let rig = rig();
        let _servers = serve(&rig);
        let mut config = Config::new(Mode::Ipvs, vec![service(Family::V4)]);
        config.services[0].backends.truncate(1);
        let lbd = rig.lbd(&config);
        let client = rig.spawn("client", &converse(Family::V4, "hello", 3));
        lbd.wait_for_established(1);
        config.services[0].backends[0].0 = Family::V4.server(2, ECHO);
        lbd.reload(&config.to_string()).ok();
        assert_heard(&client.wait().ok(), "hello");
        lbd.terminate();
    });
}
