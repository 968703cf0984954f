//! The systems that are measured: how each is set up for a world, changed, and taken down.
mod bare;
mod generator;
mod ipvs;
mod kube_proxy;
mod lbd;
mod nftables;
mod proxies;

use std::fs;
use std::net::SocketAddrV4;
use std::path::Path;

use crate::Outcome;
use crate::conntrack;
use crate::rig::{Place, Program, shell};
use crate::world::{self, World};

pub(crate) use self::lbd::{Device, Mode};

/// What carries the traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum System {
    /// Nothing: what the generator sends is dropped where it reaches the balancer. What is left is its own cost.
    Generator,
    /// Nothing: the client sends to the server, and the kernel routes.
    Routing,
    Iptables,
    Nftables,
    Ipvs,
    Haproxy,
    Nginx,
    Lbd(Device, Mode),
    /// A forwarder on lbd's AF_XDP sockets that knows nothing but addresses.
    Bare,
}

/// In the order of the tables.
pub(crate) const ALL: [System; 12] = [
    System::Generator,
    System::Routing,
    System::Iptables,
    System::Nftables,
    System::Ipvs,
    System::Haproxy,
    System::Nginx,
    System::Lbd(Device::Tun, Mode::Iptables),
    System::Lbd(Device::Tun, Mode::Ipvs),
    System::Lbd(Device::AfXdp, Mode::Iptables),
    System::Lbd(Device::AfXdp, Mode::Ipvs),
    System::Bare,
];

/// How an endpoint is changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// iptables-restore of all chains, as kube-proxy did before 1.27 and does in a full synchronization.
    RestoreAll,
    /// iptables-restore of the list of services and the changed chains, as kube-proxy does since 1.27.
    RestoreChanged,
    /// One transaction of nft, as kube-proxy does.
    NftTransaction,
    Ipvsadm,
    /// HAProxy's runtime API.
    RuntimeApi,
    /// A new file, and the signal for it.
    Reload,
    /// lbctl backend add, lbctl backend delete.
    Lbctl,
}

impl Way {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::RestoreAll => "all chains",
            Self::RestoreChanged => "changed chains",
            Self::NftTransaction => "nft -f",
            Self::Ipvsadm => "ipvsadm",
            Self::RuntimeApi => "runtime API",
            Self::Reload => "reload",
            Self::Lbctl => "lbctl",
        }
    }
}

impl System {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Generator => "generator",
            Self::Routing => "routing",
            Self::Iptables => "iptables",
            Self::Nftables => "nftables",
            Self::Ipvs => "ipvs",
            Self::Haproxy => "haproxy",
            Self::Nginx => "nginx",
            Self::Lbd(Device::Tun, Mode::Iptables) => "lbd-tun-iptables",
            Self::Lbd(Device::Tun, Mode::Ipvs) => "lbd-tun-ipvs",
            Self::Lbd(Device::AfXdp, Mode::Iptables) => "lbd-afxdp-iptables",
            Self::Lbd(Device::AfXdp, Mode::Ipvs) => "lbd-afxdp-ipvs",
            Self::Bare => "bare-afxdp",
        }
    }

    pub(crate) fn named(name: &str) -> Result<Self, String> {
        let found = ALL.into_iter().find(|system| system.name() == name);
        let names = || ALL.map(Self::name).join(" ");
        found.ok_or_else(|| format!("no system is called `{name}`; there are: {}", names()))
    }

    /// Why it cannot run on this machine, if so.
    pub(crate) fn missing(self) -> Option<String> {
        let command = match self {
            Self::Routing | Self::Lbd(Device::Tun, _) => return None,
            Self::Iptables => "iptables-restore",
            Self::Generator | Self::Nftables => "nft",
            Self::Ipvs => return ipvs::missing(),
            Self::Haproxy => "haproxy",
            Self::Nginx => return proxies::nginx_missing(),
            Self::Lbd(Device::AfXdp, _) | Self::Bare => return lbd::xdp_missing(),
        };
        (!has_command(command)).then(|| format!("there is no `{command}` here"))
    }

    /// Whether it carries UDP; why not.
    pub(crate) fn without_udp(self) -> Option<&'static str> {
        (self == Self::Haproxy).then_some("HAProxy forwards no UDP")
    }

    pub(crate) fn without_tcp(self) -> Option<&'static str> {
        match self {
            Self::Generator => Some("it carries nothing"),
            Self::Bare => Some("it translates no replies, so it carries no connection"),
            Self::Routing
            | Self::Iptables
            | Self::Nftables
            | Self::Ipvs
            | Self::Haproxy
            | Self::Nginx
            | Self::Lbd(..) => None,
        }
    }

    /// A process of its own ends the client's connections and opens others to the server.
    pub(crate) fn is_proxy(self) -> bool {
        matches!(self, Self::Haproxy | Self::Nginx)
    }

    /// How its endpoints are changed.
    pub(crate) fn ways(self) -> &'static [Way] {
        match self {
            Self::Generator | Self::Routing | Self::Bare => &[],
            Self::Iptables => &[Way::RestoreAll, Way::RestoreChanged],
            Self::Nftables => &[Way::NftTransaction],
            Self::Ipvs => &[Way::Ipvsadm],
            Self::Haproxy => &[Way::RuntimeApi, Way::Reload],
            Self::Nginx => &[Way::Reload],
            // In this order: a file that says what it said when it was last read would leave live edits alone.
            Self::Lbd(..) => &[Way::Reload, Way::Lbctl],
        }
    }
}

/// A system at work.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) system: System,
    pub(crate) world: World,
    /// Its process, if it has one.
    pub(crate) program: Option<Program>,
}

impl Running {
    /// Sets it up.
    pub(crate) fn start(system: System, world: World) -> Outcome<Self> {
        let program = match Self::program(system, world) {
            Ok(program) => program,
            Err(error) => {
                // What was half set up must not stand in the way of the next system.
                clean(system).unwrap_or_default();
                return Err(error);
            }
        };
        Ok(Self { system, world, program })
    }

    fn program(system: System, world: World) -> Outcome<Option<Program>> {
        Ok(match system {
            System::Generator => generator::start().map(|()| None)?,
            System::Routing => None,
            System::Iptables => kube_proxy::start(world).map(|()| None)?,
            System::Nftables => nftables::start(world).map(|()| None)?,
            System::Ipvs => ipvs::start(world).map(|()| None)?,
            System::Haproxy => Some(proxies::start_haproxy(world)?),
            System::Nginx => Some(proxies::start_nginx(world)?),
            System::Lbd(device, mode) => Some(lbd::start(device, mode, world)?),
            System::Bare => Some(bare::start()?),
        })
    }

    /// Where clients connect to for each service.
    pub(crate) fn targets(&self) -> Vec<SocketAddrV4> {
        if self.system == System::Routing {
            [1, 2].map(world::backend).to_vec()
        } else {
            (0..self.world.services()).map(world::address).collect()
        }
    }

    /// Where the one service is.
    pub(crate) fn target(&self) -> SocketAddrV4 {
        self.targets()[0]
    }

    /// Where the datagrams go.
    pub(crate) fn udp_target(&self) -> Outcome<SocketAddrV4> {
        if self.system == System::Routing {
            return Ok(SocketAddrV4::new(*world::backend(1).ip(), world::UDP_PORT));
        }
        self.world.udp().ok_or_else(|| "this world has no UDP service".into())
    }

    /// Makes ready what is needed to move the endpoint of the service in the middle to the other server. What the
    /// control plane would compute in real life is computed here and not measured; running the outcome is.
    pub(crate) fn prepare_change(&self, way: Way) -> Outcome<Change> {
        let after = self.world.changed();
        let service = self.world.changing().ok_or("no service changes in this world")?;
        match way {
            Way::RestoreAll => kube_proxy::all(after),
            Way::RestoreChanged => kube_proxy::changed(after, service),
            Way::NftTransaction => nftables::change(after, service),
            Way::Ipvsadm => ipvs::change(self.world, after, service),
            Way::RuntimeApi => proxies::runtime_api(after, service),
            Way::Reload => match (self.system, &self.program) {
                (System::Haproxy, Some(program)) => proxies::reload_haproxy(after, program),
                (System::Nginx, Some(program)) => proxies::reload_nginx(after, program),
                (System::Lbd(device, mode), Some(program)) => lbd::reload(device, mode, after, program),
                _ => Err("it has nothing to reload".into()),
            },
            Way::Lbctl => lbd::edit(self.world, after, service),
        }
    }

    /// Takes it down; the balancer is a plain router afterwards that knows no flow.
    pub(crate) fn stop(self) -> Outcome<()> {
        if let Some(program) = self.program {
            program.stop()?;
        }
        clean(self.system)
    }
}

/// Takes out of the kernel what a system has put there, and all flows.
fn clean(system: System) -> Outcome<()> {
    match system {
        System::Iptables => kube_proxy::stop()?,
        System::Generator | System::Nftables => nftables::stop()?,
        System::Ipvs => ipvs::stop()?,
        System::Haproxy | System::Nginx => proxies::forget_addresses()?,
        System::Routing | System::Lbd(..) | System::Bare => {}
    }
    conntrack::flush()
}

/// A command in the balancer's namespace that changes an endpoint.
#[derive(Debug)]
pub(crate) struct Change {
    command: String,
}

impl Change {
    fn of(command: impl Into<String>) -> Self {
        Self {
            command: command.into(),
        }
    }

    /// Runs it to its end.
    pub(crate) fn run(&self) -> Outcome<()> {
        shell(Place::Balancer, &self.command).map(drop)
    }
}

/// Writes a file of the rig; its path.
fn write(name: &str, text: &str) -> Outcome<String> {
    let path = format!("{}/{name}", crate::rig::DIR);
    fs::write(&path, text)?;
    Ok(path)
}

pub(crate) fn has_command(name: &str) -> bool {
    let path = std::env::var("PATH").unwrap_or_default();
    path.split(':')
        .any(|directory| Path::new(directory).join(name).exists())
}

/// A program of this build: beside this one, or one directory up.
pub(crate) fn built(name: &str) -> Outcome<String> {
    let this = std::env::current_exe()?;
    let directories = this.ancestors().skip(1).take(2);
    let found = directories
        .map(|directory| directory.join(name))
        .find(|path| path.exists());
    let path = found.ok_or_else(|| format!("`{name}` is not built: cargo build --release --bins --examples"))?;
    Ok(path.to_string_lossy().into_owned())
}
