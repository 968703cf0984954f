//! What the engine is told to do: plain data, parsed and validated elsewhere (`config`), comparable for a diff.
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use crate::conntrack::tcp;
use crate::conntrack::timeout::Timeouts;
use crate::flow::ports::PortSet;
use crate::flow::{Endpoint, Protocol};
use crate::matcher::rules::Rule;
use crate::scheduler::{Flags, Kind};

/// How a packet's service is found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Mode {
    /// An ordered list of rules, walked until the first match.
    Iptables,
    /// A hash table of virtual servers.
    #[default]
    Ipvs,
}

impl Mode {
    /// `iptables` or `ipvs`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Iptables => "iptables",
            Self::Ipvs => "ipvs",
        }
    }

    /// The mode that this one is not.
    #[must_use]
    pub const fn other(self) -> Self {
        match self {
            Self::Iptables => Self::Ipvs,
            Self::Ipvs => Self::Iptables,
        }
    }

    /// The scheduler of services that name none, where the configuration names none either: kube-proxy's own defaults.
    #[must_use]
    pub const fn default_scheduler(self) -> Kind {
        match self {
            Self::Iptables => Kind::Random,
            Self::Ipvs => Kind::Rr,
        }
    }

    /// How long idle flows live where nobody says anything: as in IPVS; in iptables mode what kube-proxy sets for netfilter
    /// (`tcpEstablishedTimeout` and `tcpCloseWaitTimeout`, pkg/proxy/apis/config/v1alpha1/defaults.go), the rest as in IPVS.
    #[must_use]
    pub fn default_timeouts(self) -> Timeouts {
        let mut timeouts = Timeouts::default();
        match self {
            Self::Ipvs => {}
            Self::Iptables => {
                timeouts.tcp[tcp::State::Established as usize] = Duration::from_secs(24 * 3_600);
                timeouts.tcp[tcp::State::CloseWait as usize] = Duration::from_secs(3_600);
            }
        }
        timeouts
    }
}

/// How the ordered rules of [`Mode::Iptables`] are looked through. The answer is the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Evaluation {
    /// By a classifier, whose cost does not grow with the rules.
    #[default]
    Compiled,
    /// One by one, as the kernel does.
    Linear,
}

/// When a flow's source address is replaced by one of lbd's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Masquerade {
    /// Where the reply would not come back through lbd otherwise: a client on this node, or a backend that reaches itself.
    #[default]
    Auto,
    /// Every flow.
    Always,
    /// No flow.
    Never,
}

/// What becomes of a flow whose backend has left the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnBackendRemoved {
    /// It goes on to its backend.
    Preserve,
    /// Its next packet is answered with TCP RST or ICMP port unreachable.
    Reset,
    /// Its client's next packet is scheduled anew; a TCP segment that opens nothing is answered with RST, so the client
    /// reconnects. What the backend still answers to a datagram reaches the client until then.
    Reschedule,
    /// What its client sends is dropped, until the backend is back or the flow's time is over; a connection that is opened
    /// anew is scheduled anew. IPVS's own way (`expire_nodest_conn=0`).
    Drop,
}

impl OnBackendRemoved {
    /// Where nobody says anything: a connection goes on, for it may yet be served to its end. A datagram is sent elsewhere
    /// at once, for its client may go on from one port for ever, as a resolver does, and would never notice (kube-proxy
    /// deletes such entries of conntrack, pkg/proxy/conntrack/cleanup.go).
    #[must_use]
    pub const fn default_of(protocol: Protocol) -> Self {
        match protocol {
            Protocol::Tcp | Protocol::Sctp => Self::Preserve,
            Protocol::Udp => Self::Reschedule,
        }
    }
}

/// What becomes of a TCP segment to a service that belongs to no flow and does not open one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UnknownTcp {
    /// It is dropped.
    #[default]
    Drop,
    /// It is left to whom it would have gone to without lbd.
    Pass,
    /// It is answered with TCP RST.
    Reset,
}

impl UnknownTcp {
    /// `drop`, `pass` or `reset`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Drop => "drop",
            Self::Pass => "pass",
            Self::Reset => "reset",
        }
    }
}

/// What becomes of a packet of no flow that a backend sends to a client of the service: a late answer, on a flow that lbd has
/// forgotten.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UnknownReply {
    /// It is dropped.
    #[default]
    Drop,
    /// The backend is answered with TCP RST, or ICMP port unreachable.
    Reset,
}

impl UnknownReply {
    /// `drop` or `reset`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Drop => "drop",
            Self::Reset => "reset",
        }
    }
}

/// ICMP messages that lbd itself sends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Icmp {
    /// Whether services' addresses answer echo requests.
    pub echo: bool,
    /// Errors a second, of each worker; 0 is no limit.
    pub rate_limit: u32,
}

impl Default for Icmp {
    /// As many errors as Linux sends (`icmp_msgs_per_sec`, Documentation/networking/ip-sysctl.rst).
    fn default() -> Self {
        Self {
            echo: true,
            rate_limit: 1000,
        }
    }
}

/// Source NAT.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Nat {
    /// Which flows.
    pub masquerade: Masquerade,
    /// Addresses that masqueraded flows come from.
    pub pool: Vec<IpNet>,
    /// This host's own addresses that they come from instead, where it is set so.
    pub own: Option<OwnSources>,
}

/// Masquerading with the host's own addresses, as `MASQUERADE` of iptables does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnSources {
    /// Ports that nobody else on this host uses.
    pub ports: Arc<PortSet>,
    /// The host's address towards each backend. One that is missing is reached from the pool.
    pub towards: Arc<BTreeMap<IpAddr, IpAddr>>,
}

/// Limits of the connection table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conntrack {
    /// Flows of all states together, at least 1.
    pub max_flows: usize,
    /// What becomes of flows of removed backends, where their service says nothing; None:
    /// [`OnBackendRemoved::default_of`] their protocol.
    pub on_backend_removed: Option<OnBackendRemoved>,
    /// What becomes of segments of unknown connections.
    pub unknown_tcp: UnknownTcp,
    /// What becomes of late answers.
    pub unknown_reply: UnknownReply,
    /// Whether a client that goes by affinity gets another backend once its own has weight 0 (`expire_quiescent_template`).
    pub expire_quiescent_template: bool,
    /// Whether a SYN or INIT from the port of a connection that is over is scheduled anew (`conn_reuse_mode` 1), or follows it
    /// to its backend (0).
    pub conn_reuse: bool,
    /// How long an idle flow lives, by state.
    pub timeouts: Timeouts,
}

/// Client affinity: all flows of one client (or client network) go to one backend for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Persistence {
    /// How long after the last flow.
    pub timeout: Duration,
    /// How many leading bits of the client's address count.
    pub prefix_length: u8,
}

/// A real server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendSpec {
    /// Where it listens.
    pub address: Endpoint,
    /// Its share; 0 drains it.
    pub weight: u32,
    /// No new flow once it has this many (0: no limit).
    pub upper_threshold: u32,
    /// New flows again once it has fewer than this (0: three quarters of the upper one).
    pub lower_threshold: u32,
}

/// A virtual server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceSpec {
    /// Unique.
    pub name: String,
    /// Transport protocol.
    pub protocol: Protocol,
    /// The cluster address.
    pub address: Endpoint,
    /// External and load-balancer addresses, served on the same port.
    pub external_addresses: Vec<IpAddr>,
    /// Served on every node address.
    pub node_port: Option<u16>,
    /// None: the default of the configuration, or else of the mode.
    pub scheduler: Option<Kind>,
    /// Variations of `sh` and `mh`.
    pub flags: Flags,
    /// Client affinity.
    pub persistence: Option<Persistence>,
    /// Each datagram is scheduled anew; UDP only.
    pub one_packet: bool,
    /// What becomes of flows of its removed backends; None: as for all services.
    pub on_backend_removed: Option<OnBackendRemoved>,
    /// In scheduling order.
    pub backends: Vec<BackendSpec>,
}

impl ServiceSpec {
    /// Every address that this service answers on: the cluster address, external addresses, then node ports.
    pub fn endpoints<'a>(&'a self, node_addresses: &'a [IpAddr]) -> impl Iterator<Item = Endpoint> + 'a {
        let external = self
            .external_addresses
            .iter()
            .map(|&address| Endpoint::new(address, self.address.port));
        let same_family = move |node: &&IpAddr| node.is_ipv4() == self.address.address.is_ipv4();
        let node_ports = self.node_port.into_iter().flat_map(move |port| {
            let nodes = node_addresses.iter().filter(same_family);
            nodes.map(move |&address| Endpoint::new(address, port))
        });
        std::iter::once(self.address).chain(external).chain(node_ports)
    }
}

/// Everything the engine needs to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Which matcher.
    pub mode: Mode,
    /// Whether the other mode's matcher is asked, too, and both answers are compared.
    pub shadow: bool,
    /// How rules are looked through, in iptables mode.
    pub evaluation: Evaluation,
    /// For services that name no scheduler.
    pub scheduler: Option<Kind>,
    /// This node's own addresses: node ports answer on them, and clients at them are local.
    pub node_addresses: Vec<IpAddr>,
    /// Further addresses of this node that local clients may have, where the kernel was asked.
    pub local_addresses: Vec<IpAddr>,
    /// Source NAT.
    pub nat: Nat,
    /// The connection table.
    pub conntrack: Conntrack,
    /// ICMP.
    pub icmp: Icmp,
    /// Checked in order before the services' own rules, in iptables mode.
    pub rules: Vec<Rule>,
    /// In the order of the configuration. Policies share the services that they have in common.
    pub services: Vec<Arc<ServiceSpec>>,
}

/// What is left of two lists without what they have in common at their beginning and at their end.
#[must_use]
pub fn differing<'a, T: PartialEq>(old: &'a [T], new: &'a [T]) -> (&'a [T], &'a [T]) {
    let (head, tail) = common(old, new);
    (&old[head..old.len() - tail], &new[head..new.len() - tail])
}

/// How many members two lists have in common at their beginning, and of the others at their end.
#[must_use]
pub fn common<T: PartialEq>(old: &[T], new: &[T]) -> (usize, usize) {
    let head = old.iter().zip(new).take_while(|(old, new)| old == new).count();
    let both = old[head..].iter().rev().zip(new[head..].iter().rev());
    (head, both.take_while(|(old, new)| old == new).count())
}

impl Policy {
    /// Uses the other matcher, with that mode's timeouts wherever they were those that this mode has by itself.
    pub fn switch_mode(&mut self, mode: Mode) {
        self.conntrack.timeouts = self.timeouts_in(mode);
        self.mode = mode;
    }

    /// The timeouts after a switch to `mode`.
    #[must_use]
    pub fn timeouts_in(&self, mode: Mode) -> Timeouts {
        let (old, new) = (self.mode.default_timeouts(), mode.default_timeouts());
        let mut timeouts = self.conntrack.timeouts.clone();
        let follow = |timeout: &mut Duration, old: Duration, new: Duration| {
            if *timeout == old {
                *timeout = new;
            }
        };
        let tcp = timeouts.tcp.iter_mut().zip(old.tcp).zip(new.tcp);
        tcp.for_each(|((timeout, old), new)| follow(timeout, old, new));
        let sctp = timeouts.sctp.iter_mut().zip(old.sctp).zip(new.sctp);
        sctp.for_each(|((timeout, old), new)| follow(timeout, old, new));
        follow(&mut timeouts.udp, old.udp, new.udp);
        timeouts
    }

    /// The scheduler that `service` really uses.
    #[must_use]
    pub fn scheduler_of(&self, service: &ServiceSpec) -> Kind {
        service
            .scheduler
            .or(self.scheduler)
            .unwrap_or_else(|| self.mode.default_scheduler())
    }
}
