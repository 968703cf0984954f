//! Services that have one address and port, as they may where this node's own addresses are the kernel's to tell: then no
//! validation can see it, and addresses come and go. Where `[node] addresses` gives them such a file is refused.
use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use lbd_core::flow::Protocol;
use lbd_core::policy::{Policy, ServiceSpec};

/// The services with a node port, by protocol, port and whether it is of IPv4.
type NodePorts<'p> = HashMap<(Protocol, u16, bool), (usize, &'p ServiceSpec)>;

/// A line for each.
pub(super) fn of(policy: &Policy) -> Vec<String> {
    let node_ports = node_ports(policy);
    if node_ports.is_empty() {
        return Vec::new();
    }
    let nodes: HashSet<IpAddr> = policy.node_addresses.iter().copied().collect();
    let services = policy.services.iter().enumerate();
    services
        .flat_map(|(place, service)| told(place, service, &node_ports, &nodes))
        .collect()
}

fn node_ports(policy: &Policy) -> NodePorts<'_> {
    let services = policy.services.iter().enumerate();
    let with_port = services.filter_map(|(place, service)| {
        let key = (service.protocol, service.node_port?, service.address.address.is_ipv4());
        Some((key, (place, &**service)))
    });
    with_port.collect()
}

fn told(place: usize, service: &ServiceSpec, node_ports: &NodePorts<'_>, nodes: &HashSet<IpAddr>) -> Vec<String> {
    // Its addresses but for node ports, of which the validation knows already that no two are the same.
    let own = service.endpoints(&[]).filter(|own| nodes.contains(&own.address));
    let shared = own.filter_map(|own| {
        let key = (service.protocol, own.port, own.address.is_ipv4());
        let (other_place, other) = *node_ports.get(&key).filter(|(other, _)| *other != place)?;
        // Both matchers go by the order of the configuration.
        let served = if place < other_place { service } else { other };
        Some(format!(
            "{} {own} is an address of service {:?} and, as this node has {}, of node_port = {} of service {:?}: the first in \
             the configuration, {:?}, is served there; give one of them another port or address",
            service.protocol, service.name, own.address, own.port, other.name, served.name
        ))
    });
    shared.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use lbd_state::config::parse;

    fn of_services(services: &str, nodes: &[&str]) -> Vec<String> {
        let mut policy = parse("lbd.toml", services).unwrap().config.policy;
        policy.node_addresses = nodes.iter().map(|text| text.parse().unwrap()).collect();
        of(&policy)
    }

    fn service(name: &str, protocol: &str, rest: &str) -> String {
        format!("[[services]]\nname = \"{name}\"\nprotocol = \"{protocol}\"\n{rest}\n")
    }

    #[test]
    fn both_services_are_named_and_the_first_is_the_one_that_is_served() {
        let a = service("a", "tcp", "address = \"10.96.0.1:80\"\nnode_port = 30080");
        let b = service(
            "b",
            "tcp",
            "address = \"10.96.0.2:30080\"\nexternal_addresses = [\"10.1.0.1\"]",
        );
        for (file, served) in [(format!("{a}{b}"), "a"), (format!("{b}{a}"), "b")] {
            let expected = format!(
                "tcp 10.1.0.1:30080 is an address of service \"b\" and, as this node has 10.1.0.1, of node_port = 30080 of \
                 service \"a\": the first in the configuration, \"{served}\", is served there; give one of them another port or \
                 address"
            );
            assert_eq!(of_services(&file, &["10.1.0.1", "10.2.0.1"]), [expected]);
        }
    }

    #[test]
    fn another_protocol_another_node_and_the_service_itself_are_no_collision() {
        let a = service("a", "tcp", "address = \"10.1.0.1:30080\"\nnode_port = 30080");
        let b = service("b", "udp", "address = \"10.1.0.1:30080\"");
        let c = service("c", "tcp", "address = \"10.1.0.9:30080\"");
        assert_eq!(of_services(&format!("{a}{b}{c}"), &["10.1.0.1"]), Vec::<String>::new());
        assert_eq!(of_services(&format!("{a}{b}{c}"), &["10.1.0.9"]).len(), 1);
    }
}
