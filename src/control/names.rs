//! Names of hosts and ports for tables without `-n`, looked up before anything is rendered.
mod resolver;

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, ToSocketAddrs};

pub use self::resolver::Resolver;
use lbd_core::flow::{Endpoint, Protocol};

/// The system's list of service names; getnameinfo(3) knows its TCP and UDP ones only.
const SERVICES_FILE: &str = "/etc/services";

/// A fuzzer asks no other machine, and waits for none.
const MAY_ASK: bool = !cfg!(fuzzing);

/// Names of some addresses and ports; the others are shown as numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    /// A host without a name maps to None, so that it is asked for once only.
    hosts: HashMap<IpAddr, Option<String>>,
    ports: HashMap<(Protocol, u16), Option<String>>,
}

impl Names {
    /// None at all: everything is shown as numbers.
    #[must_use]
    pub fn numeric() -> Self {
        Self::default()
    }

    /// Asks the system's resolver for the names of these, as ipvsadm does, but many at once and for a few seconds: what has no
    /// name by then is shown as a number.
    pub fn look_up(endpoints: impl IntoIterator<Item = (Protocol, Endpoint)>) -> Self {
        let mut names = Self::default();
        names.learn(endpoints, &mut Resolver::system());
        names
    }

    /// The same for more of them.
    pub fn learn(&mut self, endpoints: impl IntoIterator<Item = (Protocol, Endpoint)>, resolver: &mut Resolver) {
        if !MAY_ASK {
            return;
        }
        for (protocol, endpoint) in endpoints {
            if let Entry::Vacant(host) = self.hosts.entry(endpoint.address) {
                host.insert(None);
                resolver.ask(endpoint.address);
            }
            if let Entry::Vacant(port) = self.ports.entry((protocol, endpoint.port)) {
                port.insert(port_name(protocol, endpoint.port));
            }
        }
        self.hosts.extend(resolver.answers());
    }

    /// `10.96.0.10:80`, `web.example:http`, `[fd00::10]:80`: cut to 59 bytes, ipvsadm's buffer (`addrport_to_anyname`).
    #[must_use]
    pub fn show(&self, protocol: Protocol, endpoint: Endpoint) -> String {
        let host = self.hosts.get(&endpoint.address).and_then(Option::as_deref);
        let port = self.ports.get(&(protocol, endpoint.port));
        let port = port.and_then(Option::as_deref);
        let host = host.map_or_else(|| endpoint.address.to_string(), str::to_owned);
        let port = port.map_or_else(|| endpoint.port.to_string(), str::to_owned);
        let mut text = match endpoint.address {
            IpAddr::V4(_) => format!("{host}:{port}"),
            IpAddr::V6(_) => format!("[{host}]:{port}"),
        };
        cut(&mut text, 59);
        text
    }
}

/// The IPv4 address of a host of this name.
pub(super) fn host(name: &str) -> Option<Ipv4Addr> {
    let mut found = MAY_ASK.then(|| (name, 0).to_socket_addrs().ok()).flatten()?;
    found.find_map(|address| match address.ip() {
        IpAddr::V4(address) => Some(address),
        IpAddr::V6(_) => None,
    })
}

/// The port of a service of this name or alias, in services(5) (`getservbyname`).
pub(super) fn port_of(name: &str, protocol: Protocol) -> Option<u16> {
    listed_port(&std::fs::read_to_string(SERVICES_FILE).ok()?, name, protocol)
}

fn listed_port(services: &str, name: &str, protocol: Protocol) -> Option<u16> {
    services.lines().find_map(|line| {
        let mut words = line.split('#').next()?.split_whitespace();
        let official = words.next()?;
        let (port, of) = words.next()?.split_once('/')?;
        let is_it = of == protocol.name() && (official == name || words.any(|alias| alias == name));
        is_it.then(|| port.parse().ok()).flatten()
    })
}

/// Shortens `text` to at most `columns` bytes, but never within a character.
pub(super) fn cut(text: &mut String, columns: usize) {
    text.truncate(text.floor_char_boundary(columns));
}

fn port_name(protocol: Protocol, port: u16) -> Option<String> {
    let flags = match protocol {
        Protocol::Tcp => 0,
        Protocol::Udp => libc::NI_DGRAM,
        Protocol::Sctp => return listed_name(&std::fs::read_to_string(SERVICES_FILE).ok()?, port),
    };
    let nowhere = SocketAddr::new(IpAddr::from([0, 0, 0, 0]), port);
    let (_, name) = dns_lookup::getnameinfo(&nowhere, flags | libc::NI_NUMERICHOST).ok()?;
    // A port without a name comes back as its number.
    (name != port.to_string()).then_some(name)
}

/// The name of an SCTP port in the format of services(5).
fn listed_name(services: &str, port: u16) -> Option<String> {
    let wanted = format!("{port}/sctp");
    services.lines().find_map(|line| {
        let mut words = line.split('#').next()?.split_whitespace();
        let name = words.next()?;
        (words.next()? == wanted).then(|| name.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(text: &str) -> Endpoint {
        text.parse().unwrap()
    }

    #[test]
    fn without_names_addresses_and_ports_are_numbers() {
        let names = Names::numeric();
        assert_eq!(names.show(Protocol::Tcp, endpoint("10.9.9.9:80")), "10.9.9.9:80");
        assert_eq!(names.show(Protocol::Tcp, endpoint("[fd00::9]:80")), "[fd00::9]:80");
    }

    #[test]
    fn a_host_and_a_port_of_this_machine_are_shown_by_name() {
        let local = endpoint("127.0.0.1:80");
        let names = Names::look_up([(Protocol::Tcp, local)]);
        let shown = names.show(Protocol::Tcp, local);
        assert!(shown.starts_with("localhost"), "{shown}");
        assert!(shown.ends_with(":http"), "{shown}");
    }

    #[test]
    fn a_port_that_has_no_name_stays_a_number() {
        assert_eq!(port_name(Protocol::Udp, 40_001), None);
    }

    #[test]
    fn sctp_ports_are_named_from_the_services_file() {
        let services = "# comment\namqp 5672/tcp\namqp\t\t5672/sctp # queue\n";
        assert_eq!(listed_name(services, 5672).as_deref(), Some("amqp"));
        assert_eq!(listed_name(services, 5673), None);
    }

    #[test]
    fn a_long_name_is_cut_to_the_buffer_of_ipvsadm() {
        let long = endpoint("10.0.0.1:80");
        let mut names = Names::numeric();
        names.hosts.insert(long.address, Some("h".repeat(80)));
        assert_eq!(names.show(Protocol::Tcp, long), "h".repeat(59));
    }
}
