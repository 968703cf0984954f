//! Where services answer, as a key of hash tables.
use std::hash::{Hash, Hasher};
use std::net::IpAddr;

use crate::flow::{Endpoint, Protocol, Tuple};
use crate::service::Service;

/// A protocol, an address and a port; port 0 stands for all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Address {
    pub(crate) protocol: Protocol,
    pub(crate) endpoint: Endpoint,
}

impl Address {
    /// Where a packet goes.
    pub(crate) const fn of(tuple: &Tuple) -> Self {
        Self {
            protocol: tuple.protocol,
            endpoint: tuple.destination,
        }
    }

    /// All addresses of a service, in their order.
    pub(crate) fn all_of(service: &Service) -> impl Iterator<Item = Self> + '_ {
        let protocol = service.protocol;
        service
            .endpoints
            .iter()
            .map(move |&endpoint| Self { protocol, endpoint })
    }

    /// The same address, all ports.
    pub(crate) const fn on_all_ports(self) -> Self {
        let endpoint = Endpoint::new(self.endpoint.address, 0);
        Self { endpoint, ..self }
    }

    /// Whether it stands for all ports.
    pub(crate) const fn is_for_all_ports(&self) -> bool {
        self.endpoint.port == 0
    }

    /// Whether packets of `tuple` go there.
    pub(crate) fn takes(&self, tuple: &Tuple) -> bool {
        let Self { protocol, endpoint } = *self;
        let port = self.is_for_all_ports() || endpoint.port == tuple.destination.port;
        port && endpoint.address == tuple.destination.address && protocol == tuple.protocol
    }
}

impl Hash for Address {
    /// In one or two steps; the derived one takes seven.
    fn hash<H: Hasher>(&self, state: &mut H) {
        let rest = u64::from(self.protocol.number()) << 16 | u64::from(self.endpoint.port);
        match self.endpoint.address {
            IpAddr::V4(address) => state.write_u64(u64::from(address.to_bits()) << 32 | rest),
            IpAddr::V6(address) => {
                state.write_u128(address.to_bits());
                state.write_u64(rest);
            }
        }
    }
}
