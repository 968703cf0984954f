//! Flows as `ipvsadm -Lc` shows them (ipvsadm.c `list_conn`, `print_conn`).
use std::fmt::Write;

use super::protocol_word;
use crate::names::Names;
use crate::protocol::ConnectionView;

/// What stands above [`connection_rows`].
pub const CONNECTIONS_TITLE: &str = "IPVS connection entries
pro expire state       source             virtual            destination
";

/// The table of these flows, by protocol and client; the kernel's has no order.
#[must_use]
pub fn connections(connections: &[ConnectionView], names: &Names) -> String {
    CONNECTIONS_TITLE.to_owned() + &connection_rows(connections, names)
}

/// The rows of these flows, in the same order.
#[must_use]
pub fn connection_rows(connections: &[ConnectionView], names: &Names) -> String {
    let mut sorted: Vec<&ConnectionView> = connections.iter().collect();
    sorted.sort_unstable_by_key(|connection| {
        let ConnectionView {
            protocol,
            client,
            virtual_address,
            backend,
            ..
        } = connection;
        (*protocol, *client, *virtual_address, *backend)
    });
    let mut text = String::new();
    for connection in sorted {
        row(&mut text, connection, names);
    }
    text
}

fn row(text: &mut String, connection: &ConnectionView, names: &Names) {
    let protocol = connection.protocol;
    let minutes = connection.expires_seconds / 60;
    let seconds = connection.expires_seconds % 60;
    let expires = format!("{minutes:02}:{seconds:02}");
    let written = writeln!(
        text,
        "{:<3} {expires:<6} {:<11} {:<18} {:<18} {}",
        protocol_word(protocol),
        connection.state,
        names.show(protocol, connection.client),
        names.show(protocol, connection.virtual_address),
        names.show(protocol, connection.backend),
    );
    debug_assert!(written.is_ok(), "a String takes everything");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::render::{sample, session};
    use lbd_core::flow::{Endpoint, Protocol};

    fn flow(protocol: Protocol, expires_seconds: u64, state: &'static str, ends: [&str; 3]) -> ConnectionView {
        let [client, virtual_address, backend] = ends.map(|end| end.parse::<Endpoint>().unwrap());
        ConnectionView {
            protocol,
            state: state.into(),
            expires_seconds,
            client,
            virtual_address,
            backend,
            source: client,
            service: "web".to_owned(),
            masqueraded: false,
        }
    }

    #[test]
    fn the_table_is_that_of_ipvsadm_sorted_by_protocol_and_client() {
        let flows = [
            flow(
                Protocol::Sctp,
                3599,
                "ESTABLISHED",
                ["10.1.0.2:5", "10.9.9.9:3868", "10.2.1.2:3868"],
            ),
            flow(
                Protocol::Udp,
                264,
                "UDP",
                ["192.168.127.89:44117", "192.168.127.89:514", "10.2.1.2:514"],
            ),
            flow(
                Protocol::Tcp,
                897,
                "ESTABLISHED",
                ["10.1.0.2:51304", "10.9.9.9:80", "10.2.2.2:80"],
            ),
            flow(
                Protocol::Tcp,
                114,
                "TIME_WAIT",
                ["10.1.0.2:43182", "10.9.9.9:80", "10.2.2.2:80"],
            ),
            flow(
                Protocol::Tcp,
                6000,
                "FIN_WAIT",
                ["[fd00::1]:40000", "[fd00::9]:80", "[fd00:2::2]:8080"],
            ),
        ];
        let expected = "\
IPVS connection entries
pro expire state       source             virtual            destination
TCP 01:54  TIME_WAIT   10.1.0.2:43182     10.9.9.9:80        10.2.2.2:80
TCP 14:57  ESTABLISHED 10.1.0.2:51304     10.9.9.9:80        10.2.2.2:80
TCP 100:00 FIN_WAIT    [fd00::1]:40000    [fd00::9]:80       [fd00:2::2]:8080
UDP 04:24  UDP         192.168.127.89:44117 192.168.127.89:514 10.2.1.2:514
SCTP 59:59  ESTABLISHED 10.1.0.2:5         10.9.9.9:3868      10.2.1.2:3868
";
        assert_eq!(connections(&flows, &Names::numeric()), expected);
    }

    #[test]
    fn the_recorded_session_is_reproduced_but_for_its_order() {
        let Some(sample) = sample("conns.txt") else {
            return;
        };
        let recorded = session(&sample, "ipvsadm -Lnc");
        let flows: Vec<_> = recorded.lines().skip(2).map(parse).collect();
        assert!(!flows.is_empty());
        let shown = connections(&flows, &Names::numeric());
        let sorted = |text: &str| {
            let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
            lines.sort();
            lines
        };
        assert_eq!(sorted(&shown), sorted(&recorded));
    }

    fn parse(line: &str) -> ConnectionView {
        let words: Vec<&str> = line.split_whitespace().collect();
        let (minutes, seconds) = words[1].split_once(':').unwrap();
        let expires = minutes.parse::<u64>().unwrap() * 60 + seconds.parse::<u64>().unwrap();
        let mut view = flow(words[0].parse().unwrap(), expires, "", [words[3], words[4], words[5]]);
        view.state = words[2].to_owned().into();
        view
    }
}
