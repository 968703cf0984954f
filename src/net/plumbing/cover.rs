//! Endpoints as few policy rules: prefixes and port ranges that cover them.
//!
//! The kernel walks policy rules one by one for each packet that it routes. UDP packets of 64 bytes forwarded over veth,
//! sender and receiver on the same two cores (Linux 6.18, iperf3; the best of two to four runs, the machine was shared and
//! single runs were down to half of it), by number of rules that do not match: 0: 200,000/s; 1: 176,000; 10: 170,000;
//! 128: 123,000; 1,000: 35,000; 10,000: 4,500.
//!
//! So endpoints with the same port become exactly covering prefixes, adjacent ports become ranges, and when more than
//! [`LIMIT`] rules are left they are widened until they are few. A packet that only a widened rule takes in belongs to
//! no flow and no service; lbd passes it on untouched, at the price of the detour and of one more hop in its TTL. The
//! port is never given up: without one, rules would match all that a host of backends says.
use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;

use lbd_core::flow::{Endpoint, Protocol};

/// Rules of one family and kind beyond which they are widened: at 128 forwarding has lost about a third.
pub(super) const LIMIT: usize = 128;

/// Prefix lengths that are tried one after the other, the widest last: a pod network has often a /24 or a /64 a node.
const WIDER_V4: [u8; 6] = [30, 28, 26, 24, 20, 16];
const WIDER_V6: [u8; 6] = [124, 120, 112, 96, 64, 48];

/// The endpoints in `net` with a port in `ports`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cover {
    /// Transport protocol.
    pub protocol: Protocol,
    /// Addresses.
    pub net: IpNet,
    /// First and last port.
    pub ports: (u16, u16),
}

impl Cover {
    /// Whether the endpoint is one of them.
    #[must_use]
    pub fn contains(&self, protocol: Protocol, endpoint: Endpoint) -> bool {
        let (first, last) = self.ports;
        self.protocol == protocol && (first..=last).contains(&endpoint.port) && self.net.contains(&endpoint.address)
    }
}

/// Covers backends of one family: exactly where [`LIMIT`] rules suffice, else with wider prefixes, then more ports.
pub(super) fn cover_backends(backends: &BTreeSet<(Protocol, Endpoint)>) -> Vec<Cover> {
    let exact = aggregate(by_port(backends));
    if exact.len() <= LIMIT {
        return exact;
    }
    let widened = widen_prefixes(backends);
    widen_ports(&widened, widened.len().saturating_sub(LIMIT))
}

/// Covers ports of this host, of one family: exactly where [`LIMIT`] rules suffice, else with more ports of the same
/// addresses, but never with an address beside them.
pub(super) fn cover_local_ports(ports: &BTreeSet<(Protocol, Endpoint)>) -> Vec<Cover> {
    let exact = aggregate(by_port(ports));
    if exact.len() <= LIMIT {
        return exact;
    }
    let whole = |&(protocol, Endpoint { address, port })| {
        let (net, ports) = (address.into(), range(port));
        Cover { protocol, net, ports }
    };
    let single: Vec<Cover> = ports.iter().map(whole).collect();
    widen_ports(&single, single.len().saturating_sub(LIMIT))
}

/// Port 0 stands for all of them; in policy rules it would stand for a fragment.
const fn range(port: u16) -> (u16, u16) {
    match port {
        0 => (1, u16::MAX),
        port => (port, port),
    }
}

type ByPort = BTreeMap<(Protocol, u16), Vec<IpNet>>;

fn by_port(endpoints: &BTreeSet<(Protocol, Endpoint)>) -> ByPort {
    let mut map = ByPort::new();
    for &(protocol, endpoint) in endpoints {
        let nets = map.entry((protocol, endpoint.port)).or_default();
        nets.push(endpoint.address.into());
    }
    map
}

fn aggregate(by_port: ByPort) -> Vec<Cover> {
    let mut covers = Vec::new();
    for ((protocol, port), nets) in by_port {
        for net in IpNet::aggregate(&nets) {
            let ports = range(port);
            covers.push(Cover { protocol, net, ports });
        }
    }
    widen_ports(&covers, 0)
}

fn widen_prefixes(endpoints: &BTreeSet<(Protocol, Endpoint)>) -> Vec<Cover> {
    let mut covers = Vec::new();
    for (length_v4, length_v6) in WIDER_V4.into_iter().zip(WIDER_V6) {
        let mut map = by_port(endpoints);
        for net in map.values_mut().flatten() {
            *net = shortened(*net, if net.addr().is_ipv4() { length_v4 } else { length_v6 });
        }
        covers = aggregate(map);
        if covers.len() <= LIMIT {
            break;
        }
    }
    covers
}

fn shortened(net: IpNet, length: u8) -> IpNet {
    IpNet::new(net.addr(), length).map_or(net, |wider| wider.trunc())
}

/// Joins port ranges of the same prefix: adjacent ones always, then the `count` pairs with the smallest gaps.
fn widen_ports(covers: &[Cover], count: usize) -> Vec<Cover> {
    let mut sorted = covers.to_vec();
    sorted.sort();
    let mut gaps: Vec<(u16, usize)> = (1..sorted.len())
        .filter_map(|index| Some((gap(&sorted[index - 1], &sorted[index])?, index)))
        .collect();
    gaps.sort_unstable();
    let joined = gaps
        .iter()
        .enumerate()
        .filter(|&(rank, &(gap, _))| gap <= 1 || rank < count);
    let joined: BTreeSet<usize> = joined.map(|(_, &(_, index))| index).collect();
    join(sorted, &joined)
}

fn gap(left: &Cover, right: &Cover) -> Option<u16> {
    let same = left.protocol == right.protocol && left.net == right.net;
    same.then(|| right.ports.0.saturating_sub(left.ports.1))
}

fn join(sorted: Vec<Cover>, joined: &BTreeSet<usize>) -> Vec<Cover> {
    let mut result: Vec<Cover> = Vec::with_capacity(sorted.len());
    for (index, cover) in sorted.into_iter().enumerate() {
        match result.last_mut() {
            Some(last) if joined.contains(&index) => last.ports.1 = last.ports.1.max(cover.ports.1),
            Some(_) | None => result.push(cover),
        }
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn tcp(text: &str) -> (Protocol, Endpoint) {
        (Protocol::Tcp, text.parse().unwrap())
    }

    fn covers(endpoints: &[&str]) -> Vec<String> {
        let set = endpoints.iter().map(|text| tcp(text)).collect();
        let show = |cover: &Cover| format!("{} {}-{}", cover.net, cover.ports.0, cover.ports.1);
        cover_backends(&set).iter().map(show).collect()
    }

    fn is_covered(covers: &[Cover], protocol: Protocol, endpoint: Endpoint) -> bool {
        covers.iter().any(|cover| {
            cover.protocol == protocol
                && cover.net.contains(&endpoint.address)
                && (cover.ports.0..=cover.ports.1).contains(&endpoint.port)
        })
    }

    #[test]
    fn neighbouring_backends_on_one_port_share_a_rule() {
        let backends = [
            "10.2.0.8:80",
            "10.2.0.9:80",
            "10.2.0.10:80",
            "10.2.0.11:80",
            "10.2.0.13:80",
        ];
        assert_eq!(covers(&backends), ["10.2.0.8/30 80-80", "10.2.0.13/32 80-80"]);
    }

    #[test]
    fn neighbouring_ports_of_one_address_share_a_rule() {
        let ports = ["10.2.0.8:80", "10.2.0.8:81", "10.2.0.8:83"];
        assert_eq!(covers(&ports), ["10.2.0.8/32 80-81", "10.2.0.8/32 83-83"]);
    }

    #[test]
    fn port_0_covers_every_port_of_its_address_and_nothing_beside() {
        assert_eq!(covers(&["10.2.0.8:0", "10.2.0.8:80"]), ["10.2.0.8/32 1-65535"]);
        assert_eq!(
            covers(&["10.2.0.8:0", "10.2.0.9:80"]),
            ["10.2.0.8/32 1-65535", "10.2.0.9/32 80-80"]
        );
    }

    #[test]
    fn a_protocol_is_never_widened_into_another() {
        let set = BTreeSet::from([tcp("10.2.0.8:53"), (Protocol::Udp, "10.2.0.9:53".parse().unwrap())]);
        assert_eq!(cover_backends(&set).len(), 2);
    }

    #[test]
    fn ten_thousand_scattered_backends_need_few_rules() {
        let address = |i: u32| std::net::Ipv4Addr::from(0x0a02_0000 + i * 3);
        let set: BTreeSet<_> = (0..10_000)
            .map(|i| (Protocol::Tcp, Endpoint::new(address(i).into(), 8080)))
            .collect();
        let covers = cover_backends(&set);
        assert!(covers.len() <= LIMIT, "{}", covers.len());
        assert!(
            set.iter()
                .all(|&(protocol, endpoint)| is_covered(&covers, protocol, endpoint))
        );
    }

    #[test]
    fn thousands_of_node_ports_need_few_rules_and_leave_other_ports_alone() {
        let set: BTreeSet<_> = (0..1_000)
            .map(|i| tcp(&format!("192.0.2.1:{}", 30_000 + i * 2)))
            .collect();
        let covers = cover_local_ports(&set);
        assert!(covers.len() <= LIMIT, "{}", covers.len());
        assert!(!is_covered(&covers, Protocol::Tcp, "192.0.2.1:22".parse().unwrap()));
        assert!(!is_covered(&covers, Protocol::Tcp, "192.0.2.2:30000".parse().unwrap()));
    }

    proptest! {
        #[test]
        fn up_to_the_limit_the_cover_is_exact(ends in prop::collection::btree_set((0u8..16, 1u16..6), 1..60)) {
            let endpoint = |host: u8, port: u16| Endpoint::new([10, 2, 0, host].into(), port);
            let set: BTreeSet<_> = ends.iter().map(|&(h, p)| (Protocol::Tcp, endpoint(h, p))).collect();
            let covers = cover_backends(&set);
            for host in 0..16 {
                for port in 0..7 {
                    let end = endpoint(host, port);
                    prop_assert_eq!(is_covered(&covers, Protocol::Tcp, end), set.contains(&(Protocol::Tcp, end)));
                }
            }
        }

        #[test]
        fn beyond_the_limit_nothing_is_missed(ends in prop::collection::btree_set((any::<u32>(), 1u16..2000), 129..400)) {
            let set: BTreeSet<_> = ends.iter()
                .map(|&(a, p)| (Protocol::Tcp, Endpoint::new(std::net::Ipv4Addr::from(a & 0x00ff_ffff | 0x0a00_0000).into(), p)))
                .collect();
            let covers = cover_backends(&set);
            for &(protocol, end) in &set {
                prop_assert!(is_covered(&covers, protocol, end));
            }
        }
    }
}
