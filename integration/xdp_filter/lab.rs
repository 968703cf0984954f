//! A filter on the loopback device of a fresh network namespace, with a socket that could receive.
use std::net::IpAddr;
use std::os::fd::AsFd;

use ipnet::IpNet;
use lbd::flow::{Endpoint, Protocol};
use lbd::io::xdp::filter::interest::Interest;
use lbd::io::xdp::filter::program::{Attach, Filter, FilterError, Interface, Judgement};
use lbd::plumbing::{Cover, Plan};
use lbd::policy::OwnSources;
use socket2::{Domain, Socket, Type};

use crate::packets::{self, DESTINATION_MAC};
use crate::unshared::inside_with;

/// The index of `lo` in every network namespace.
pub(crate) const LO: u32 = 1;

/// Runs `body` with a filter in a fresh network namespace.
pub(crate) fn with_filter(name: &str, body: impl FnOnce(Filter)) {
    inside_with("-n", name, || match Filter::load() {
        Ok(filter) => body(filter),
        Err(error) if error.to_string().contains("CAP_BPF") => println!("skipped: {error}"),
        Err(error) => panic!("{error}"),
    });
}

/// A filter that was told its interest, and is asked.
pub(crate) struct Lab {
    pub(crate) filter: Filter,
    _socket: Socket,
}

impl Lab {
    pub(crate) fn new(mut filter: Filter, interest: Interest) -> Self {
        filter.attach(&loopback(), Attach::Generic).unwrap();
        let socket = xdp_socket();
        filter.set_socket(LO, 0, socket.as_fd()).unwrap();
        filter.set_interest(interest).unwrap();
        Self {
            filter,
            _socket: socket,
        }
    }

    /// Whether lbd gets this IP packet, sent to this host's MAC address.
    pub(crate) fn takes(&self, packet: &[u8]) -> bool {
        self.takes_frame(&packets::ethernet(packet, &[]))
    }

    pub(crate) fn takes_frame(&self, frame: &[u8]) -> bool {
        self.filter.judge(LO, frame).unwrap() == Judgement::Taken
    }
}

/// The loopback device, as if it had a MAC address and two queues.
pub(crate) fn loopback() -> Interface {
    Interface {
        name: "lo".into(),
        index: LO,
        address: DESTINATION_MAC,
        queues: 2,
    }
}

/// Of AF_XDP, not bound: enough for an XSKMAP.
pub(crate) fn xdp_socket() -> Socket {
    const AF_XDP: i32 = 44;
    Socket::new(Domain::from(AF_XDP), Type::RAW, None).unwrap()
}

/// What lbd wants, piece by piece.
#[derive(Clone, Default)]
pub(crate) struct Wish {
    plan: Plan,
    announced: Vec<IpAddr>,
}

impl Wish {
    pub(crate) fn route(mut self, net: &str) -> Self {
        self.plan.routes.insert(net.parse::<IpNet>().unwrap());
        self
    }

    pub(crate) fn local_port(mut self, protocol: Protocol, endpoint: &str) -> Self {
        let endpoint: Endpoint = endpoint.parse().unwrap();
        self.plan.local_ports.insert((protocol, endpoint));
        self
    }

    pub(crate) fn backend(mut self, protocol: Protocol, endpoint: &str) -> Self {
        let endpoint: Endpoint = endpoint.parse().unwrap();
        self.plan.replies.insert((protocol, endpoint));
        self
    }

    pub(crate) fn rule(mut self, protocol: Protocol, net: &str, ports: (u16, u16)) -> Self {
        let net = net.parse().unwrap();
        self.plan.diverted.insert(Cover { protocol, net, ports });
        self
    }

    pub(crate) fn masquerade(mut self, address: &str, ports: std::ops::RangeInclusive<u16>) -> Self {
        let own = OwnSources {
            ports: std::sync::Arc::new(ports.into()),
            towards: std::sync::Arc::new([("10.2.0.11".parse().unwrap(), address.parse().unwrap())].into()),
        };
        self.plan.serve(std::collections::BTreeSet::new(), Some(&own));
        self
    }

    pub(crate) fn announce(mut self, address: &str) -> Self {
        self.announced.push(address.parse().unwrap());
        self
    }

    pub(crate) fn interest(&self) -> Interest {
        Interest::new(&self.plan, self.announced.iter().copied())
    }
}

/// Runs a test named as its function is, with a lab that has this wish.
pub(crate) fn lab(name: &str, wish: &Wish, body: impl FnOnce(Lab)) {
    with_filter(name, |filter| body(Lab::new(filter, wish.interest())));
}

/// The text of an error that must be.
pub(crate) fn refused<T>(result: Result<T, FilterError>) -> String {
    match result {
        Ok(_) => panic!("this should have been refused"),
        Err(error) => error.to_string(),
    }
}
