//! The configuration file: written as TOML ([`raw`]), valid once it is a [`Config`].
mod again;
mod defaults;
pub mod diagnostic;
pub mod edit;
mod neighbours;
pub mod raw;
pub mod reload;
pub mod save;
mod settings;
pub mod shrinkage;
mod suggest;
pub mod text;
pub mod validate;
mod words;

pub use again::parse_again;
pub use diagnostic::Diagnostic;
pub use save::to_toml;
pub use validate::{Loaded, load, load_again, parse};

use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;

use lbd_core::policy::Policy;

/// Which device packets come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Backend {
    /// A TUN device.
    #[default]
    Tun,
    /// AF_XDP sockets on network interfaces.
    AfXdp,
}

impl Backend {
    /// `tun` or `af_xdp`.
    #[must_use]
    pub fn name(self) -> &'static str {
        words::word_of(self, words::BACKEND)
    }
}

/// Where the XDP program of `[af_xdp]` is to run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Attach {
    /// Native where the driver can, else generic.
    #[default]
    Auto,
    /// In the driver, before the kernel has allocated a packet for the frame.
    Native,
    /// In the kernel's stack: works with every driver, slowly.
    Generic,
}

/// `[datapath]`
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Datapath {
    /// Which device packets come from.
    pub backend: Backend,
    /// Worker threads; None: one a CPU (tun) or one a receive queue (af_xdp).
    pub workers: Option<usize>,
    /// Makes random choices repeatable.
    pub seed: Option<u64>,
}

/// `[tun]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tun {
    /// Device name.
    pub name: String,
    /// Bytes of the largest packet on the wire.
    pub mtu: u16,
    /// Super-packets and unfinished checksums.
    pub offload: bool,
    /// What is done about filters of this host that drop lbd's packets.
    pub firewall: Firewall,
}

/// `[tun] firewall`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Firewall {
    /// They are told of.
    #[default]
    Warn,
    /// They get accept rules, removed at exit.
    Open,
}

/// `[af_xdp]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AfXdp {
    /// Interfaces to serve.
    pub interfaces: Vec<String>,
    /// Where the XDP program runs.
    pub attach: Attach,
    /// None: where the driver can.
    pub zero_copy: Option<bool>,
    /// Poll the device instead of waiting for interrupts.
    pub busy_poll: bool,
    /// Answer ARP and neighbour solicitations for service addresses that no interface has.
    pub announce: bool,
    /// Source ports of flows that are masqueraded with an interface's own address.
    pub masquerade_ports: RangeInclusive<u16>,
}

/// A configuration; it is valid because it exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// What the engine is told to do. `node_addresses` is filled from `node_addresses` below, or left empty.
    pub policy: Policy,
    /// Whether a reload to this file is meant although it has no services.
    pub allow_empty: bool,
    /// `[node] addresses`; None: to be read from the kernel.
    pub node_addresses: Option<Vec<IpAddr>>,
    /// `[datapath]`
    pub datapath: Datapath,
    /// `[tun]`
    pub tun: Tun,
    /// `[af_xdp]`
    pub af_xdp: AfXdp,
    /// `[control] socket`
    pub control_socket: PathBuf,
}

impl Config {
    /// Whether masqueraded flows come from this host's own addresses: on AF_XDP, where no pool of others is set.
    #[must_use]
    pub fn masquerades_as_itself(&self) -> bool {
        self.datapath.backend == Backend::AfXdp && self.policy.nat.pool == defaults::pool()
    }
}
