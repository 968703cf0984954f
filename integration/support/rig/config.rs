//! Configurations of the rigs, written out as TOML.
use std::fmt::{self, Display, Formatter};

use super::DIR;

/// How lbd finds a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// `mode = "ipvs"`
    Ipvs,
    /// `mode = "iptables"`
    Iptables,
}

impl Mode {
    /// As in the configuration.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Ipvs => "ipvs",
            Self::Iptables => "iptables",
        }
    }
}

/// By what packets come in and go out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Backend {
    /// `backend = "tun"`
    Tun,
    /// `backend = "af_xdp"`
    AfXdp,
}

impl Backend {
    /// What the tests of both run over: `LBD_RIG_BACKEND`, TUN where it is not set.
    pub(crate) fn of_this_run() -> Self {
        match std::env::var("LBD_RIG_BACKEND").as_deref() {
            Err(_) | Ok("tun") => Self::Tun,
            Ok("af_xdp") => Self::AfXdp,
            Ok(other) => panic!("LBD_RIG_BACKEND = {other:?}: must be \"tun\" or \"af_xdp\""),
        }
    }

    /// As in the configuration.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Tun => "tun",
            Self::AfXdp => "af_xdp",
        }
    }
}

/// Which Internet protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    /// IPv4
    V4,
    /// IPv6
    V6,
}

impl Family {
    /// The web service's address and port.
    pub(crate) fn web(self) -> String {
        self.vip(80)
    }

    /// A port of the web service's address.
    pub(crate) fn vip(self, port: u16) -> String {
        self.endpoint("10.96.0.10", "fd00:96::10", port)
    }

    /// Both of them.
    pub(crate) const BOTH: [Self; 2] = [Self::V4, Self::V6];

    /// An address as `ip`, `ping` and others want it: without a port and brackets.
    pub(crate) fn host(endpoint: &str) -> &str {
        let (host, _port) = endpoint.rsplit_once(':').expect("an address with a port");
        host.trim_matches(['[', ']'])
    }

    /// The DNS service's address.
    pub(crate) const fn dns(self) -> &'static str {
        match self {
            Self::V4 => "10.96.0.53",
            Self::V6 => "fd00:96::53",
        }
    }

    /// A port of server 1, 2 or 3.
    pub(crate) fn server(self, number: usize, port: u16) -> String {
        self.endpoint(&format!("10.2.0.1{number}"), &format!("fd00:2::1{number}"), port)
    }

    /// A port of the balancer's own address towards the client.
    pub(crate) fn balancer(self, port: u16) -> String {
        self.endpoint("10.1.0.1", "fd00:1::1", port)
    }

    fn endpoint(self, v4: &str, v6: &str, port: u16) -> String {
        match self {
            Self::V4 => format!("{v4}:{port}"),
            Self::V6 => format!("[{v6}]:{port}"),
        }
    }
}

/// Every mode with every family.
pub(crate) fn matrix() -> impl Iterator<Item = (Mode, Family)> {
    let modes = [Mode::Ipvs, Mode::Iptables].into_iter();
    modes
        .flat_map(|mode| [(mode, Family::V4), (mode, Family::V6)])
        .inspect(|case| println!("--- {case:?}"))
}

/// A `[[services]]` table.
#[derive(Clone, Debug)]
pub(crate) struct Service {
    /// `name`
    pub(crate) name: String,
    /// `protocol`
    pub(crate) protocol: &'static str,
    /// `address`
    pub(crate) address: String,
    /// `scheduler`
    pub(crate) scheduler: &'static str,
    /// `node_port`
    pub(crate) node_port: Option<u16>,
    /// `backends`: address and weight
    pub(crate) backends: Vec<(String, u16)>,
}

impl Service {
    /// The web service over all three servers.
    pub(crate) fn web(family: Family) -> Self {
        Self::tcp(family, 80, 8080, &[1, 2, 3])
    }

    /// A TCP service on a port of the web address, over some servers.
    pub(crate) fn tcp(family: Family, port: u16, target: u16, servers: &[usize]) -> Self {
        let backends = servers
            .iter()
            .map(|number| (family.server(*number, target), 1))
            .collect();
        let (name, address) = (format!("test/web:{family:?}-{port}"), family.vip(port));
        Self {
            name,
            protocol: "tcp",
            address,
            scheduler: "rr",
            node_port: None,
            backends,
        }
    }

    /// The DNS service over all three servers.
    pub(crate) fn dns(family: Family) -> Self {
        let backends = (1..=3).map(|number| (family.server(number, 53), 1)).collect();
        let address = family.endpoint(Family::V4.dns(), Family::V6.dns(), 53);
        Self {
            name: format!("test/dns:{family:?}"),
            protocol: "udp",
            address,
            scheduler: "rr",
            node_port: None,
            backends,
        }
    }
}

/// A whole configuration file.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    /// `mode`
    pub(crate) mode: Mode,
    /// `[datapath] backend`
    pub(crate) backend: Backend,
    /// `[af_xdp] interfaces`
    pub(crate) interfaces: Vec<&'static str>,
    /// More of `[af_xdp]`, as it is written.
    pub(crate) af_xdp: &'static str,
    /// `[tun] offload`
    pub(crate) offload: bool,
    /// More of `[tun]`, as it is written.
    pub(crate) tun: &'static str,
    /// `[[services]]`
    pub(crate) services: Vec<Service>,
    /// Other tables, as they are written.
    pub(crate) more: &'static str,
}

impl Config {
    /// The mode, these services, the backend of this run on every link of `lb`, and the defaults for the rest.
    pub(crate) fn new(mode: Mode, services: Vec<Service>) -> Self {
        Self {
            mode,
            backend: Backend::of_this_run(),
            interfaces: vec!["client", "s1", "s2", "s3"],
            af_xdp: "",
            offload: true,
            tun: "",
            services,
            more: "",
        }
    }

    /// The same over AF_XDP, whatever the backend of this run.
    pub(crate) fn xdp(mode: Mode, services: Vec<Service>) -> Self {
        let backend = Backend::AfXdp;
        Self {
            backend,
            ..Self::new(mode, services)
        }
    }
}

impl Display for Config {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "mode = \"{}\"", self.mode.name())?;
        writeln!(f, "[datapath]\nbackend = \"{}\"", self.backend.name())?;
        writeln!(f, "[tun]\noffload = {}\n{}", self.offload, self.tun)?;
        if self.backend == Backend::AfXdp {
            writeln!(f, "[af_xdp]\ninterfaces = {:?}\n{}", self.interfaces, self.af_xdp)?;
        }
        writeln!(f, "[control]\nsocket = \"{DIR}/lbd.sock\"")?;
        self.services.iter().try_for_each(|service| service.fmt(f))?;
        f.write_str(self.more)
    }
}

impl Display for Service {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self {
            name,
            protocol,
            address,
            scheduler,
            node_port,
            backends,
        } = self;
        writeln!(
            f,
            "[[services]]\nname = \"{name}\"\nprotocol = \"{protocol}\"\naddress = \"{address}\""
        )?;
        writeln!(f, "scheduler = \"{scheduler}\"")?;
        if let Some(port) = node_port {
            writeln!(f, "node_port = {port}")?;
        }
        writeln!(f, "backends = [")?;
        for (backend, weight) in backends {
            writeln!(f, "  {{ address = \"{backend}\", weight = {weight} }},")?;
        }
        writeln!(f, "]")
    }
}
