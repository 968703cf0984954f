//! What is served: the services that every system gets alike.
use std::fmt::Write;
use std::net::{Ipv4Addr, SocketAddrV4};

use crate::rig::server_address;

/// Where servers listen.
pub(crate) const SERVER_PORT: u16 = 8080;
/// The port of the UDP service, at both ends.
pub(crate) const UDP_PORT: u16 = 9;
/// The range that all services are in.
pub(crate) const SERVICE_RANGE: &str = "10.96.0.0/16";

/// The services of one turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum World {
    /// One TCP service at port 80 and one UDP service at port 9, both with server 1 for a backend.
    Single,
    /// So many TCP services, each with both servers for backends; but the one in the middle, whose endpoint changes, has
    /// one.
    Many {
        services: u32,
        /// The server behind the service in the middle.
        middle: u8,
    },
}

impl World {
    pub(crate) fn many(services: u32) -> Self {
        Self::Many { services, middle: 1 }
    }

    /// How many TCP services.
    pub(crate) fn services(self) -> u32 {
        match self {
            Self::Single => 1,
            Self::Many { services, .. } => services,
        }
    }

    /// The service whose endpoint changes. Of a few services there is none, for they are to be alike.
    pub(crate) fn changing(self) -> Option<u32> {
        (self.services() >= 100).then_some(self.services() / 2)
    }

    /// The same after the endpoint has changed.
    pub(crate) fn changed(self) -> Self {
        match self {
            Self::Single => self,
            Self::Many { services, middle } => Self::Many {
                services,
                middle: 3 - middle,
            },
        }
    }

    /// The servers behind a TCP service.
    pub(crate) fn servers(self, service: u32) -> Vec<u8> {
        match self {
            Self::Single => vec![1],
            Self::Many { middle, .. } if Some(service) == self.changing() => vec![middle],
            Self::Many { .. } => vec![1, 2],
        }
    }

    pub(crate) fn backends(self, service: u32) -> Vec<SocketAddrV4> {
        self.servers(service).into_iter().map(backend).collect()
    }

    pub(crate) fn udp(self) -> Option<SocketAddrV4> {
        match self {
            Self::Single => Some(SocketAddrV4::new(*address(0).ip(), UDP_PORT)),
            Self::Many { .. } => None,
        }
    }

    /// The world in lbd's words, without the settings.
    pub(crate) fn toml(self) -> String {
        let mut text = String::new();
        for service in 0..self.services() {
            let backends = self.backends(service);
            push(&mut text, &name(service), "tcp", address(service), &backends);
        }
        if let Some(udp) = self.udp() {
            let backend = SocketAddrV4::new(server_address(1), UDP_PORT);
            push(&mut text, "bench/udp", "udp", udp, &[backend]);
        }
        text
    }
}

pub(crate) fn backend(server: u8) -> SocketAddrV4 {
    SocketAddrV4::new(server_address(server), SERVER_PORT)
}

pub(crate) fn name(service: u32) -> String {
    format!("bench/s{service}")
}

/// The address of a TCP service: from 10.96.0.16 on.
pub(crate) fn address(service: u32) -> SocketAddrV4 {
    let first = u32::from(Ipv4Addr::new(10, 96, 0, 16));
    SocketAddrV4::new(Ipv4Addr::from(first + service), 80)
}

fn push(text: &mut String, name: &str, protocol: &str, address: SocketAddrV4, backends: &[SocketAddrV4]) {
    let backends = backends.iter().map(|backend| format!("{{ address = \"{backend}\" }}"));
    let backends = backends.collect::<Vec<_>>().join(", ");
    let service = format!(
        "[[services]]\nname = \"{name}\"\nprotocol = \"{protocol}\"\naddress = \"{address}\"\nbackends = [{backends}]\n"
    );
    text.write_str(&service).unwrap_or_default();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_service_in_the_middle_changes() {
        let before = World::many(100);
        let after = before.changed();
        let differ = (0..100).filter(|&service| before.servers(service) != after.servers(service));
        assert_eq!(differ.collect::<Vec<_>>(), [50]);
        assert_eq!(after.servers(50), [2]);
    }

    #[test]
    fn lbd_understands_every_world() {
        for world in [World::Single, World::many(1), World::many(300)] {
            let toml = format!("mode = \"ipvs\"\n{}", world.toml());
            assert!(lbd::config::parse("world.toml", &toml).is_ok(), "{world:?}");
        }
    }
}
