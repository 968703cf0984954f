//! The XDP program: loaded, attached to interfaces, told what is lbd's.
//!
//! All descriptors are lbd's own and nothing is pinned: when the process ends, however it does, the program is gone from
//! every interface and each packet goes to the kernel. Loading, attaching and [`Filter::set_socket`] come before
//! privileges are dropped; [`Filter::set_interest`], [`Filter::counters`] and [`KernelPath`] work afterwards too (before
//! Linux 5.19 only with CAP_BPF, unless `kernel.unprivileged_bpf_disabled` is 0).
use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use aya::maps::MapData;
use aya::programs::Xdp;
use aya::{Ebpf, EbpfLoader};

use super::counters::Counters;
pub use super::error::FilterError;
use super::interest::{Changes, Interest, Put, Replies};
use super::kernel_path::{KernelPath, REMEMBERED, nanoseconds};
use super::tables::{self, Entry, Place, Table};
use crate::io::bpf::{self, Map};

/// Compiled by build.rs.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/filter.o"));

/// `XDP_FLAGS_SKB_MODE` and `XDP_FLAGS_DRV_MODE` of include/uapi/linux/if_link.h.
const SKB_MODE: u32 = 1 << 1;
const DRV_MODE: u32 = 1 << 2;
/// `enum xdp_action` of include/uapi/linux/bpf.h.
const XDP_REDIRECT: u32 = 4;

/// An interface to attach to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its name, for messages.
    pub name: String,
    /// Its index.
    pub index: u32,
    /// Its MAC address: frames to another one are somebody else's.
    pub address: [u8; 6],
    /// How many receive queues it has.
    pub queues: u32,
}

/// How a program is to be attached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Attach {
    /// Native where the driver can, else generic.
    #[default]
    Auto,
    /// In the driver, before the kernel has made anything of the frame.
    Native,
    /// In the kernel's stack: works with every driver, slowly.
    Generic,
}

impl fmt::Display for Attach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Auto => "auto",
            Self::Native => "native",
            Self::Generic => "generic",
        })
    }
}

/// How a program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// In the driver.
    Native,
    /// In the kernel's stack.
    Generic,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Native => "native",
            Self::Generic => "generic",
        })
    }
}

/// What became of an attachment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attached {
    /// How it runs.
    pub mode: Mode,
    /// Why [`Attach::Auto`] became generic.
    pub native_refused: Option<String>,
}

/// What the filter does with a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judgement {
    /// lbd gets it.
    Taken,
    /// The kernel gets it.
    Passed,
}

/// The loaded program and everything it knows. Dropping it detaches it everywhere.
#[derive(Debug)]
pub struct Filter {
    program: OwnedFd,
    maps: Maps,
    kernel_path: KernelPath,
    attachments: BTreeMap<u32, Attachment>,
    interest: Interest,
}

#[derive(Debug)]
struct Attachment {
    /// The program is attached as long as this is open.
    _link: OwnedFd,
    /// The first of its places in the XSKMAP.
    base: u32,
    queues: u32,
}

#[derive(Debug)]
struct Maps {
    sockets: Map,
    interfaces: Map,
    near_interfaces: Map,
    settings: Map,
    counters: Map,
    hosts: Map,
    networks: Map,
    local_ports: Map,
    replies: Map,
    covers: Map,
    announced: Map,
    fragment_sources: Map,
    fragment_destinations: Map,
}

impl Filter {
    /// Loads the program with empty maps: it passes every frame.
    ///
    /// # Errors
    /// When the kernel refuses: for lack of capabilities or memory, or because it is too old.
    pub fn load() -> Result<Self, FilterError> {
        let mark = mark();
        let mut object = EbpfLoader::new()
            .override_global("reinjected", &mark, true)
            .load(OBJECT)
            .map_err(|error| FilterError::load(&error))?;
        // BPF_F_XDP_HAS_FRAGS came with Linux 5.18; without it, no interface with an MTU beyond a page.
        let program = load(&mut object, "filter_frames").or_else(|_| load(&mut object, "plain_filter"))?;
        let pass_on = load(&mut object, "pass_on")?;
        let pass_on_marked = load(&mut object, "pass_on_marked")?;
        let (passed, latest_passed) = (map(&mut object, "passed")?, map(&mut object, "latest_passed")?);
        Ok(Self {
            program,
            maps: Maps::new(&mut object)?,
            kernel_path: KernelPath::new(passed, latest_passed, pass_on, pass_on_marked),
            attachments: BTreeMap::new(),
            interest: Interest::default(),
        })
    }

    /// Attaches the program to `interface`, where it passes all frames as long as there are no sockets or no interest.
    ///
    /// # Errors
    /// When the kernel or the driver refuses, or all interfaces together have too many queues.
    pub fn attach(&mut self, interface: &Interface, wanted: Attach) -> Result<Attached, FilterError> {
        let base = self.free_places(interface)?;
        let (link, attached) = self.link(interface, wanted)?;
        self.kernel_path
            .set_generic(interface.index, attached.mode == Mode::Generic);
        let attachment = Attachment {
            _link: link,
            base,
            queues: interface.queues,
        };
        self.attachments.insert(interface.index, attachment);
        self.set_hardware_address(interface.index, interface.address)?;
        Ok(attached)
    }

    /// Takes the program off the interface with this index; does nothing where it is not.
    ///
    /// # Errors
    /// When a map refuses; the program is off then too.
    pub fn detach(&mut self, interface: u32) -> Result<(), FilterError> {
        let Some(Attachment { base, queues, .. }) = self.attachments.remove(&interface) else {
            return Ok(());
        };
        self.kernel_path.set_generic(interface, false);
        self.maps.put_near(interface, Place::default())?;
        remove(&self.maps.interfaces, &interface.to_ne_bytes())?;
        (base..base + queues).try_for_each(|place| remove(&self.maps.sockets, &place.to_ne_bytes()))
    }

    /// Frames that come by this queue of the interface, and are lbd's, go to this AF_XDP socket, which must be bound to
    /// just that queue. They stop when the socket is closed.
    ///
    /// # Errors
    /// When the program is not attached there, or the kernel refuses the socket.
    pub fn set_socket(&self, interface: u32, queue: u32, socket: BorrowedFd<'_>) -> Result<(), FilterError> {
        let attachment = self.attachment(interface)?;
        if queue >= attachment.queues {
            let source = io::Error::from_raw_os_error(libc::E2BIG);
            let map = self.maps.sockets.name;
            return Err(FilterError::Map { map, source });
        }
        let place = attachment.base + queue;
        put(&self.maps.sockets, &place.to_ne_bytes(), &bpf::socket_value(socket))
    }

    /// The interface has this MAC address now.
    ///
    /// # Errors
    /// When the program is not attached there, or the kernel refuses.
    pub fn set_hardware_address(&self, interface: u32, address: [u8; 6]) -> Result<(), FilterError> {
        let attachment = self.attachment(interface)?;
        let place = Place {
            index: interface,
            base: attachment.base,
            queues: attachment.queues,
            address,
        };
        put(&self.maps.interfaces, &interface.to_ne_bytes(), &place.value())?;
        self.maps.put_near(interface, place)
    }

    /// From now on the filter takes what `wanted` says. New entries come before old ones go, so that nothing that stays
    /// is missed meanwhile. Also lets the filter forget which flows it was told to pass: with another configuration they
    /// may be lbd's.
    ///
    /// # Errors
    /// When a map is full or the kernel refuses; what was added is taken out again then. An old entry that cannot be
    /// removed is only logged: its packets make a detour by lbd.
    pub fn set_interest(&mut self, wanted: Interest) -> Result<(), FilterError> {
        let changes = wanted.changes_from(&self.interest);
        let tables = wanted.tables();
        self.change(changes, tables)?;
        self.interest = wanted;
        Ok(())
    }

    /// The same for backends alone, at the cost of those that come and go.
    ///
    /// # Errors
    /// As for [`Self::set_interest`].
    pub fn change_replies(&mut self, come: &Replies, gone: &Replies) -> Result<(), FilterError> {
        let changes = self.interest.change_replies(come, gone);
        let tables = self.interest.tables();
        let changed = self.change(changes, tables);
        if changed.is_err() {
            self.interest.change_replies(gone, come);
        }
        changed
    }

    fn change(&self, changes: Changes, tables: u32) -> Result<(), FilterError> {
        let Changes {
            put: added,
            remove: gone,
        } = changes;
        for (done, Put { entry, .. }) in added.iter().enumerate() {
            if let Err(error) = self.maps.put(entry) {
                self.maps.undo(&added[..done]);
                return Err(error);
            }
        }
        if let Err(error) = self.maps.set_settings(tables) {
            self.maps.undo(&added);
            return Err(error);
        }
        for error in gone.iter().filter_map(|entry| self.maps.remove(entry).err()) {
            tracing::warn!("the XDP program takes more than it should: {error}");
        }
        Ok(())
    }

    /// What the filter did so far.
    ///
    /// # Errors
    /// When the kernel refuses to tell.
    pub fn counters(&self) -> io::Result<Counters> {
        Counters::read(&self.maps.counters)
    }

    /// The way back to the kernel, for workers.
    #[must_use]
    pub fn kernel_path(&self) -> KernelPath {
        self.kernel_path.clone()
    }

    /// What the filter would do with `frame`, had it come by queue 0 of the interface. It is counted, but goes nowhere.
    ///
    /// # Errors
    /// When the kernel does not run it: the frame is shorter than an Ethernet header, or there is no such interface.
    pub fn judge(&self, interface: u32, frame: &[u8]) -> io::Result<Judgement> {
        match bpf::try_frame(&self.program, interface, frame)? {
            XDP_REDIRECT => Ok(Judgement::Taken),
            _ => Ok(Judgement::Passed),
        }
    }

    fn attachment(&self, index: u32) -> Result<&Attachment, FilterError> {
        self.attachments.get(&index).ok_or(FilterError::NotAttached { index })
    }

    /// The lowest gap in the XSKMAP that all queues fit in.
    fn free_places(&self, interface: &Interface) -> Result<u32, FilterError> {
        let queues = interface.queues;
        let mut taken: Vec<(u32, u32)> = self.attachments.values().map(|at| (at.base, at.queues)).collect();
        taken.sort_unstable();
        let mut base = 0;
        for (start, length) in taken {
            if base + queues <= start {
                break;
            }
            base = start + length;
        }
        let limit = self.maps.sockets.max_entries;
        if queues.checked_add(base).is_none_or(|end| end > limit) {
            let interface = interface.name.clone();
            return Err(FilterError::TooManyQueues {
                interface,
                queues,
                limit,
            });
        }
        Ok(base)
    }

    fn link(&self, interface: &Interface, wanted: Attach) -> Result<(OwnedFd, Attached), FilterError> {
        let attach = |mode, native_refused| {
            let flags = match mode {
                Mode::Native => DRV_MODE,
                Mode::Generic => SKB_MODE,
            };
            let link = bpf::attach(&self.program, interface.index, flags)?;
            Ok((link, Attached { mode, native_refused }))
        };
        let result = match wanted {
            Attach::Native => attach(Mode::Native, None),
            Attach::Generic => attach(Mode::Generic, None),
            Attach::Auto => attach(Mode::Native, None).or_else(|error: io::Error| match error.raw_os_error() {
                Some(libc::EPERM | libc::EACCES | libc::EBUSY | libc::EEXIST | libc::ENODEV) => Err(error),
                _ => attach(Mode::Generic, Some(error.to_string())),
            }),
        };
        result.map_err(|source| FilterError::Attach {
            interface: interface.name.clone(),
            wanted,
            source,
        })
    }
}

impl Maps {
    fn new(object: &mut Ebpf) -> Result<Self, FilterError> {
        let mut map = |name| map(object, name);
        Ok(Self {
            sockets: map("sockets")?,
            interfaces: map("interfaces")?,
            near_interfaces: map("near_interfaces")?,
            settings: map("settings")?,
            counters: per_cpu(map("counters")?)?,
            hosts: map("hosts")?,
            networks: map("networks")?,
            local_ports: map("local_ports")?,
            replies: map("replies")?,
            covers: map("covers")?,
            announced: map("announced")?,
            fragment_sources: map("fragment_sources")?,
            fragment_destinations: map("fragment_destinations")?,
        })
    }

    /// Where another interface was, the filter finds it in the hash.
    fn put_near(&self, interface: u32, place: Place) -> Result<(), FilterError> {
        let near = interface % self.near_interfaces.max_entries;
        put(&self.near_interfaces, &near.to_ne_bytes(), &place.value())
    }

    const fn of(&self, table: Table) -> &Map {
        match table {
            Table::Hosts => &self.hosts,
            Table::Networks => &self.networks,
            Table::LocalPorts => &self.local_ports,
            Table::Replies => &self.replies,
            Table::Covers => &self.covers,
            Table::Announced => &self.announced,
            Table::FragmentSources => &self.fragment_sources,
            Table::FragmentDestinations => &self.fragment_destinations,
        }
    }

    fn put(&self, entry: &Entry) -> Result<(), FilterError> {
        put(self.of(entry.table()), entry.key().bytes(), &entry.value())
    }

    fn remove(&self, entry: &Entry) -> Result<(), FilterError> {
        remove(self.of(entry.table()), entry.key().bytes())
    }

    /// As well as it can be done: the reason for it is reported already.
    fn undo(&self, done: &[Put]) {
        for Put { entry, replaces } in done.iter().rev() {
            let _undone = match replaces {
                Some(before) => self.put(before),
                None => self.remove(entry),
            };
        }
    }

    fn set_settings(&self, tables: u32) -> Result<(), FilterError> {
        let map = self.settings.name;
        let now = bpf::clock().map_err(|source| FilterError::Map { map, source })?;
        // Whatever was remembered before now ends before that.
        let forgotten = now + nanoseconds(REMEMBERED);
        put(
            &self.settings,
            &0_u32.to_ne_bytes(),
            &tables::settings(forgotten, tables),
        )
    }
}

fn put(map: &Map, key: &[u8], value: &[u8]) -> Result<(), FilterError> {
    let name = map.name;
    map.put(key, value).map_err(|source| match source.raw_os_error() {
        // A hash says E2BIG (kernel/bpf/hashtab.c), a trie ENOSPC (kernel/bpf/lpm_trie.c).
        Some(libc::E2BIG | libc::ENOSPC) => FilterError::Full {
            map: name,
            limit: map.max_entries,
        },
        _ => FilterError::Map { map: name, source },
    })
}

fn remove(map: &Map, key: &[u8]) -> Result<(), FilterError> {
    let name = map.name;
    map.remove(key).map_err(|source| FilterError::Map { map: name, source })
}

/// A source address for reinjected frames that nobody has: locally administered, not a group's (IEEE 802-2014 section
/// 8.4), otherwise random.
fn mark() -> [u8; 6] {
    let mut mark = [0; 6];
    mark.fill_with(|| fastrand::u8(..));
    mark[0] = mark[0] & 0xfc | 2;
    mark
}

fn load(object: &mut Ebpf, name: &str) -> Result<OwnedFd, FilterError> {
    let program = object.program_mut(name).ok_or_else(|| FilterError::missing(name))?;
    let program: &mut Xdp = program.try_into().map_err(|error| FilterError::load(&error))?;
    program.load().map_err(|error| FilterError::load(&error))?;
    let descriptor = program.fd().map_err(|error| FilterError::load(&error))?;
    own(descriptor.as_fd())
}

fn map(object: &mut Ebpf, name: &'static str) -> Result<Map, FilterError> {
    let data = object
        .take_map(name)
        .and_then(data)
        .ok_or_else(|| FilterError::missing(name))?;
    let info = data.info().map_err(|error| FilterError::load(&error))?;
    Ok(Map {
        descriptor: own(data.fd().as_fd())?,
        name,
        key_size: info.key_size() as usize,
        value_size: info.value_size() as usize,
        values: 1,
        max_entries: info.max_entries(),
    })
}

fn per_cpu(map: Map) -> Result<Map, FilterError> {
    let values = aya::util::nr_cpus().map_err(|(_, error)| FilterError::load(&error))?;
    Ok(Map { values, ..map })
}

/// Of the kinds of maps that filter_maps.h has.
fn data(map: aya::maps::Map) -> Option<MapData> {
    use aya::maps::Map::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, XskMap};
    let (Array(data) | HashMap(data) | LpmTrie(data) | LruHashMap(data) | PerCpuArray(data) | XskMap(data)) = map
    else {
        return None;
    };
    Some(data)
}

fn own(descriptor: BorrowedFd<'_>) -> Result<OwnedFd, FilterError> {
    descriptor
        .try_clone_to_owned()
        .map_err(|error| FilterError::load(&error))
}
