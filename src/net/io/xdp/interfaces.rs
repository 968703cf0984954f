//! The interfaces that lbd serves: opened together, told together what is lbd's, and left as they were.
use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;

use super::announced::Announced;
use super::bundle::{Bundle, Port, Settings as Sockets, ZeroCopy};
use super::channels::{self, Channels, channels};
use super::error::OpenError as SocketError;
use super::filter::counters::Counters;
use super::filter::error::FilterError;
use super::filter::interest::{Interest, Replies};
use super::filter::program::{Attach, Attached, Filter, Interface, Mode};
use super::forwarding::Forwarding;
use super::groups::Groups;
use super::kernel::{Kernel, Tally};
use super::meter::Meter;
use super::next_hop::{Follower, NextHops};
use super::queue::Queue;
use super::umem::{fits, frame_size};
use crate::io::tun;
use crate::plumbing::{self, Plan};
use crate::worker::Clock;

/// How interfaces are served.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Their names.
    pub names: Vec<String>,
    /// Where the XDP program runs.
    pub attach: Attach,
    /// Whether drivers write to lbd's memory themselves.
    pub zero_copy: ZeroCopy,
    /// Whether packets are fetched from the device, instead of interrupts.
    pub busy_poll: bool,
    /// Worker threads; None: one a receive queue.
    pub workers: Option<usize>,
    /// Whether lbd answers for service addresses that no interface has.
    pub announce: bool,
    /// Of random choices that strangers must not foresee.
    pub seed: u64,
}

/// Why interfaces cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// There is no interface of this name here.
    #[error("af_xdp.interfaces: {name:?}: {error}; `ip link` lists those that there are")]
    Missing {
        /// As it is configured.
        name: String,
        /// Why.
        error: io::Error,
    },
    /// It carries no Ethernet frames.
    #[error(
        "af_xdp.interfaces: {name:?}: no Ethernet interface; leave it out: what comes by it, and from this host itself, reaches lbd by its own device"
    )]
    NotEthernet {
        /// As it is configured.
        name: String,
    },
    /// The XDP program.
    #[error(transparent)]
    Filter(#[from] FilterError),
    /// The sockets.
    #[error(transparent)]
    Sockets(#[from] SocketError),
    /// Routes and neighbours.
    #[error(transparent)]
    NextHops(#[from] plumbing::Error),
    /// Descriptors.
    #[error("the system refuses a descriptor: {0}; raise the limit of open files (`ulimit -n`)")]
    Descriptor(io::Error),
}

/// An interface that is served.
#[derive(Clone, Debug)]
pub struct Served {
    /// Its name.
    pub name: String,
    /// Its number (`ifindex`).
    pub index: u32,
    /// Where the XDP program runs.
    pub mode: Mode,
    /// Whether it was removed since; one that comes back under its name is another one.
    pub gone: bool,
    address: [u8; 6],
    channels: Channels,
    /// How many it had when they were last looked at.
    receive_queues: u32,
    /// When its sockets were opened, and when it was last looked at; in bytes.
    mtu: u32,
    mtu_now: u32,
}

impl Served {
    /// Where packets come in one frame each, of `frame` bytes, longer ones are lost.
    fn follow_mtu(&mut self, mtu: u32, frame: u32) {
        let Self { name, mtu: before, .. } = self;
        if std::mem::replace(&mut self.mtu_now, mtu) != mtu && !fits(mtu, frame) {
            tracing::error!(
                "{name}: its MTU is {mtu} now, and was {before} when lbd was started: longer packets are lost until lbd is restarted"
            );
        }
    }

    fn follow_name(&mut self) {
        match channels::interface_name(self.index) {
            Some(name) if name != self.name => {
                tracing::info!("{} is called {name} now", self.name);
                self.name = name;
            }
            Some(_) => {}
            None if self.gone => {}
            None => {
                tracing::error!(
                    "{}: the interface was removed; should it come back, its packets reach lbd through the kernel until lbd is restarted",
                    self.name
                );
                self.gone = true;
            }
        }
    }
}

/// See the module. Dropped, they are as they were.
#[derive(Debug)]
pub struct Interfaces {
    filter: Filter,
    served: Vec<Served>,
    hops: Arc<NextHops>,
    follower: Follower,
    announced: Option<Arc<Announced>>,
    groups: Groups,
    /// Of each worker.
    gauges: Vec<(Arc<Meter>, Arc<Tally>)>,
}

/// Opens interfaces, which go on as before until [`Interfaces::lead`]; packets that lbd cannot send itself go out of `tun`,
/// the device `device`. Yields a queue for each worker.
///
/// # Errors
/// When the kernel refuses anything; the interfaces are as they were then.
pub fn open(
    settings: &Settings,
    device: &str,
    tun: &tun::Queue,
    clock: Clock,
) -> Result<(Interfaces, Vec<Queue>), OpenError> {
    let indices = settings.names.iter().map(|name| index_of(name));
    let indices: Vec<u32> = indices.collect::<Result<_, _>>()?;
    let (hops, follower) = Follower::start(&indices, device, clock)?;
    let mut filter = Filter::load()?;
    let mut served = Vec::new();
    for (name, &index) in settings.names.iter().zip(&indices) {
        served.push(attach(&mut filter, name, index, settings.attach, &hops)?);
    }
    let workers = workers(settings.workers, &served);
    let mut opening = Opening {
        settings,
        served: &served,
        workers,
        filter: &filter,
        hops: &hops,
        tun,
        gauges: Vec::new(),
    };
    let (announced, heard) = Announced::new();
    let announced = Arc::new(announced);
    let queues = (0..workers).map(|worker| opening.queue(worker, &announced));
    let mut queues: Vec<Queue> = queues.collect::<Result<_, _>>()?;
    if let Some(first) = queues.first_mut() {
        first.announcements = Some(heard);
        tell(&served, &first.bundle);
    }
    let gauges = opening.gauges;
    let interfaces = Interfaces {
        filter,
        served,
        hops,
        follower,
        announced: settings.announce.then_some(announced),
        groups: Groups::default(),
        gauges,
    };
    Ok((interfaces, queues))
}

fn index_of(name: &str) -> Result<u32, OpenError> {
    let missing = |error| OpenError::Missing {
        name: name.to_owned(),
        error,
    };
    let index = channels::interface_index(name).map_err(missing)?;
    match channels::is_ethernet(name).map_err(missing)? {
        true => Ok(index),
        false => Err(OpenError::NotEthernet { name: name.to_owned() }),
    }
}

fn attach(filter: &mut Filter, name: &str, index: u32, wanted: Attach, hops: &NextHops) -> Result<Served, OpenError> {
    let channels = channels(name);
    let gone = || OpenError::Missing {
        name: name.to_owned(),
        error: io::ErrorKind::NotFound.into(),
    };
    let address = hops.hardware_address(index).ok_or_else(gone)?;
    let interface = Interface {
        name: name.to_owned(),
        index,
        address,
        queues: channels.receive,
    };
    let Attached { mode, native_refused } = filter.attach(&interface, wanted)?;
    if let Some(reason) = native_refused {
        tracing::warn!(
            "{name}: its driver does not run XDP programs ({reason}), so this one runs in the kernel's stack, which is slower; \
             packets that were merged there are too long for it: ethtool -K {name} gro off"
        );
    }
    let mtu = hops.mtu(index).ok_or_else(gone)?;
    Ok(Served {
        name: name.to_owned(),
        index,
        mode,
        gone: false,
        address,
        receive_queues: channels.receive,
        channels,
        mtu,
        mtu_now: mtu,
    })
}

/// Each worker needs a queue of its own to receive from and to send by, on each interface.
fn workers(wanted: Option<usize>, served: &[Served]) -> usize {
    let channels = served
        .iter()
        .map(|served| served.channels.receive.min(served.channels.transmit));
    let most = channels.min().unwrap_or(1).max(1) as usize;
    match wanted {
        Some(wanted) if wanted > most => {
            tracing::warn!(
                "datapath.workers = {wanted}: {most} at the most, since an interface has no more queues; see `ethtool -l`"
            );
            most
        }
        Some(wanted) => wanted,
        None => most,
    }
}

fn tell(served: &[Served], bundle: &Bundle) {
    let copy = if bundle.is_zero_copy() {
        "zero copy"
    } else {
        "copy mode"
    };
    for Served {
        name, mode, channels, ..
    } in served
    {
        let queues = channels.receive;
        tracing::info!("{name}: {mode} XDP, {queues} receive queues, {copy}");
    }
    if !bundle.finishes_checksums() {
        tracing::info!(
            "checksums that a local sender leaves unfinished are finished by lbd; `ethtool -K DEVICE tx off` on the sender's side spares it that"
        );
    }
}

/// What queues are made of.
struct Opening<'a> {
    settings: &'a Settings,
    served: &'a [Served],
    workers: usize,
    filter: &'a Filter,
    hops: &'a Arc<NextHops>,
    tun: &'a tun::Queue,
    gauges: Vec<(Arc<Meter>, Arc<Tally>)>,
}

impl Opening<'_> {
    fn queue(&mut self, worker: usize, announced: &Arc<Announced>) -> Result<Queue, OpenError> {
        let ports: Vec<Port> = self.served.iter().map(|served| self.port(served, worker)).collect();
        let sockets = Sockets {
            zero_copy: self.settings.zero_copy,
            busy_poll: self.settings.busy_poll,
        };
        let bundle = Bundle::open(&sockets, &ports)?;
        for binding in bundle.bindings() {
            self.filter
                .set_socket(binding.interface, binding.queue, binding.descriptor)?;
        }
        let meter = Arc::new(Meter::new(&bundle).map_err(OpenError::Descriptor)?);
        let tally = Arc::new(Tally::default());
        self.gauges.push((Arc::clone(&meter), Arc::clone(&tally)));
        let sender = self.tun.sender().map_err(OpenError::Descriptor)?;
        Ok(Queue {
            bundle,
            interfaces: self.served.iter().map(|served| served.index).collect(),
            forwarding: Forwarding::new(Arc::clone(self.hops), self.settings.seed),
            kernel: Kernel::new(sender, self.filter.kernel_path(), tally),
            meter,
            announced: Arc::clone(announced),
            announcements: None,
            arrivals: Vec::new(),
        })
    }

    fn port(&self, served: &Served, worker: usize) -> Port {
        let queues = (worker as u32..served.channels.receive).step_by(self.workers);
        Port {
            name: served.name.clone(),
            index: served.index,
            mtu: served.mtu,
            queues: queues.collect(),
        }
    }
}

/// What of the traffic is lbd's.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// What is led into the TUN device as well.
    pub plan: &'a Plan,
    /// Service addresses that no interface has.
    pub addresses: &'a BTreeSet<IpAddr>,
}

impl Interfaces {
    /// Whether lbd announces service addresses as its own.
    #[must_use]
    pub const fn announces(&self) -> bool {
        self.announced.is_some()
    }

    /// Leads what is lbd's to its sockets, and everything else past them.
    ///
    /// # Errors
    /// When the program's maps cannot hold it; then all is as before.
    pub fn lead(&mut self, wanted: Wanted<'_>) -> Result<(), FilterError> {
        let none = BTreeSet::new();
        let announced = match &self.announced {
            Some(_) => wanted.addresses,
            None => &none,
        };
        let interest = Interest::new(wanted.plan, announced.iter().copied());
        self.filter.set_interest(interest)?;
        if let Some(announced) = &self.announced {
            let interfaces: Vec<u32> = self.served.iter().map(|served| served.index).collect();
            self.groups.follow(&interfaces, wanted.addresses);
            announced.set(wanted.addresses);
        }
        Ok(())
    }

    /// The same for backends alone, at the cost of those that come and go.
    ///
    /// # Errors
    /// As for [`Self::lead`].
    pub fn change_replies(&mut self, come: &Replies, gone: &Replies) -> Result<(), FilterError> {
        self.filter.change_replies(come, gone)
    }

    /// What the interfaces are called now, but for those that were removed.
    #[must_use]
    pub fn names(&self) -> BTreeSet<String> {
        let names = self.served.iter().map(|served| channels::interface_name(served.index));
        names.flatten().collect()
    }

    /// Follows changed hardware addresses: the filter leaves frames to others alone. Tells of what only a restart can
    /// follow: an interface that was removed, or takes longer packets now.
    ///
    /// # Errors
    /// When the program's map cannot be changed.
    pub fn follow_links(&mut self) -> Result<(), FilterError> {
        let frame = frame_size(self.served.iter().map(|served| served.mtu));
        let in_one_frame = self.served.iter().all(|served| fits(served.mtu, frame));
        for served in &mut self.served {
            served.follow_name();
            if let (true, Some(mtu)) = (in_one_frame, self.hops.mtu(served.index)) {
                served.follow_mtu(mtu, frame);
            }
            match self.hops.hardware_address(served.index) {
                Some(address) if address != served.address => {
                    self.filter.set_hardware_address(served.index, address)?;
                    served.address = address;
                }
                Some(_) | None => {}
            }
        }
        Ok(())
    }

    /// Warns of receive queues that came after the start: they have no socket, so what comes by them goes to the kernel,
    /// answers untranslated.
    pub fn watch_queues(&mut self) {
        for served in &mut self.served {
            let now = channels(&served.name).receive;
            if std::mem::replace(&mut served.receive_queues, now) < now {
                let (name, known) = (&served.name, served.channels.receive);
                tracing::warn!(
                    "{name} has {now} receive queues by now, and lbd serves the {known} that it had at the start, so \
                     connections fail: restart lbd, or `ethtool -L {name}` to {known} again"
                );
            }
        }
    }

    /// Whether routes and neighbours are followed no longer, because of a defect of lbd.
    #[must_use]
    pub fn is_blind(&self) -> bool {
        !self.follower.is_running()
    }

    /// Routes and neighbours.
    #[must_use]
    pub const fn next_hops(&self) -> &Arc<NextHops> {
        &self.hops
    }

    /// The interfaces, in the order of the configuration.
    #[must_use]
    pub fn served(&self) -> &[Served] {
        &self.served
    }

    /// What happened at each worker's sockets, and what went through the kernel.
    #[must_use]
    pub fn gauges(&self) -> &[(Arc<Meter>, Arc<Tally>)] {
        &self.gauges
    }

    /// What the filter took and passed.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn counters(&self) -> io::Result<Counters> {
        self.filter.counters()
    }
}
