//! What the options mean (`parse_options`, `process_options` of ipvsadm.c).
use std::net::IpAddr;

use super::Exit;
use super::combinations::{Combination, Command, NAMES, SPECS};
use super::parse::{ipv4, number, service};
use super::words::{Word, Words};
use lbd_core::flow::{Endpoint, Protocol};
use lbd_core::scheduler::Kind;

/// A virtual service by protocol and address.
pub(super) type Place = (Protocol, Endpoint);

/// `IPVS_SVC_PERSISTENT_TIMEOUT`, libipvs.h.
const PERSISTENT_TIMEOUT: u32 = 6 * 60;
/// `MAX_TIMEOUT`: 31 days.
const MAX_TIMEOUT: u32 = 86400 * 31;
const INT_MAX: u32 = i32::MAX as u32;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Forwarding {
    #[default]
    Gateway,
    Tunnel,
    Masquerade,
}

/// What is printed, and how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Format {
    pub(super) stats: bool,
    pub(super) rate: bool,
    pub(super) thresholds: bool,
    pub(super) persistent: bool,
    pub(super) tunnels: bool,
    pub(super) exact: bool,
    pub(super) unsorted: bool,
}

/// A whole command line.
#[derive(Clone, Debug)]
pub(super) struct Options {
    pub(super) command: Command,
    given: u64,
    /// None: not given. Some(None): by a firewall mark.
    pub(super) service: Option<Option<Place>>,
    pub(super) server: Endpoint,
    pub(super) scheduler: String,
    pub(super) has_engine: bool,
    flags: Option<String>,
    one_packet: bool,
    timeout: Option<u32>,
    mask: Mask,
    pub(super) weight: u32,
    pub(super) upper_threshold: u32,
    pub(super) lower_threshold: u32,
    forwarding: Forwarding,
    pub(super) format: Format,
}

#[derive(Clone, Copy, Debug)]
enum Mask {
    Whole,
    V4(u32),
    V6(u8),
}

impl Options {
    /// Reads arguments, all but the program's name.
    pub(super) fn parse(program: &str, arguments: &[String]) -> Result<Self, Exit> {
        let mut words = Words::new(SPECS, arguments);
        let first = words.option().ok().flatten();
        let command = first.and_then(|word| command(&word).transpose()).transpose()?;
        let command = command.ok_or_else(|| Exit::try_help(program))?;
        let mut options = Self::new(command);
        if matches!(command, Command::Help | Command::Version) {
            return Ok(options);
        }
        let mut reader = Reader {
            protocol: None,
            service: None,
            has_ipv6_mark: false,
            server: None,
        };
        while let Some(word) = words.option()? {
            options.take(&word, &mut reader)?;
        }
        let mut leftover = words.leftover.into_iter();
        if let Command::Set(values) = &mut options.command {
            *values = timeouts(&mut leftover)?;
        }
        if let Some(argument) = leftover.next() {
            return Err(Exit::usage(format!("unexpected argument {argument}")));
        }
        options.check_flags()?;
        options.check_combination()?;
        options.check_meaning(&reader)?;
        Ok(options)
    }

    fn new(command: Command) -> Self {
        Self {
            command,
            given: 0,
            service: None,
            server: Endpoint::new(IpAddr::from([0, 0, 0, 0]), 0),
            scheduler: String::new(),
            has_engine: false,
            flags: None,
            one_packet: false,
            timeout: None,
            mask: Mask::Whole,
            weight: 1,
            upper_threshold: 0,
            lower_threshold: 0,
            forwarding: Forwarding::default(),
            format: Format::default(),
        }
    }

    fn set(&mut self, name: &str) -> Result<(), Exit> {
        let bit = bit(name);
        if self.given & bit != 0 {
            return Err(Exit::usage(format!("multiple '{name}' options specified")));
        }
        self.given |= bit;
        Ok(())
    }

    fn has(&self, name: &str) -> bool {
        self.given & bit(name) != 0
    }

    fn take(&mut self, word: &Word, reader: &mut Reader) -> Result<(), Exit> {
        let value = word.value.as_deref().unwrap_or_default();
        match word.long {
            "tcp-service" | "udp-service" | "sctp-service" => {
                self.set("service-address")?;
                reader.take_service(word.long, value)?;
                self.service = Some(reader.protocol.zip(reader.service));
                if reader.is_ipv6() {
                    // `parse_service` has set the mask, so -M comes after it.
                    self.mask = Mask::Whole;
                }
            }
            "fwmark-service" => {
                self.set("service-address")?;
                number(value, 1, u32::MAX)
                    .ok_or_else(|| Exit::usage(format!("invalid fwmark value `{value}' specified")))?;
                self.service = Some(None);
            }
            "ipv6" if self.service == Some(None) => reader.has_ipv6_mark = true,
            "ipv6" => return Err(Exit::usage("-6 used before -f\n")),
            "real-server" => {
                self.set("real-server")?;
                reader.take_server(value)?;
            }
            "persistent" => {
                self.set("persistent")?;
                self.timeout = Some(match &word.value {
                    None => PERSISTENT_TIMEOUT,
                    Some(value) => timeout(value, 1)?,
                });
            }
            "netmask" => {
                self.set("netmask")?;
                self.mask = netmask(value, reader.is_ipv6())?;
            }
            "scheduler" => {
                self.set("scheduler")?;
                value.clone_into(&mut self.scheduler);
            }
            "sched-flags" => {
                self.set("sched-flags")?;
                self.flags = Some(value.to_owned()).filter(|flags| !flags.is_empty());
            }
            "pe" => {
                self.set("pe")?;
                self.has_engine = true;
            }
            "ops" => {
                self.set("ops")?;
                self.one_packet = true;
            }
            _ => return self.take_number(word, value),
        }
        Ok(())
    }

    fn take_number(&mut self, word: &Word, value: &str) -> Result<(), Exit> {
        let long = word.long;
        let read = |least, most, what: &str| {
            number(value, least, most).ok_or_else(|| Exit::usage(format!("illegal {what} specified")))
        };
        match long {
            "weight" => {
                self.set(long)?;
                // Debian's build takes more than the 65535 of the manual page; lbd says itself that it does not.
                self.weight = read(0, INT_MAX, "weight")?;
            }
            "u-threshold" => {
                self.set(long)?;
                self.upper_threshold = read(0, INT_MAX, "u_threshold")?;
            }
            "l-threshold" => {
                self.set(long)?;
                self.lower_threshold = read(0, INT_MAX, "l_threshold")?;
            }
            "masquerading" => self.forward(Forwarding::Masquerade)?,
            "gatewaying" => self.forward(Forwarding::Gateway)?,
            "ipip" => self.forward(Forwarding::Tunnel)?,
            "syncid" => {
                self.set(long)?;
                read(0, 255, "syncid")?;
            }
            "mcast-port" => {
                self.set(long)?;
                read(1, 65535, "mcast-port")?;
            }
            "mcast-ttl" => {
                self.set(long)?;
                read(1, 255, "mcast-ttl")?;
            }
            "sync-maxlen" => {
                self.set(long)?;
                read(1, 65535 - 20 - 8, "sync-maxlen")?;
            }
            "mcast-group" => {
                self.set(long)?;
                check_group(value)?;
            }
            "tun-port" => {
                self.set(long)?;
                read(1, 65535, "tunnel port")?;
            }
            "tun-type" => {
                self.set(long)?;
                if !["ipip", "gue", "gre"].contains(&value) {
                    return Err(Exit::usage("illegal tunnel type specified"));
                }
            }
            _ => return self.take_switch(word),
        }
        Ok(())
    }

    fn take_switch(&mut self, word: &Word) -> Result<(), Exit> {
        let format = &mut self.format;
        match word.long {
            "stats" => format.stats = true,
            "rate" => format.rate = true,
            "thresholds" => format.thresholds = true,
            "persistent-conn" => format.persistent = true,
            "tun-info" => format.tunnels = true,
            "nosort" => format.unsorted = true,
            "exact" => format.exact = true,
            "sort" => return Ok(()),
            name if NAMES.contains(&name) => {}
            // A command: only the first option may be one.
            _ => return Err(Exit::usage(format!("invalid option `{}'", word.argument))),
        }
        self.set(word.long)
    }

    fn forward(&mut self, forwarding: Forwarding) -> Result<(), Exit> {
        self.set("forwarding-method")?;
        self.forwarding = forwarding;
        Ok(())
    }

    /// `generic_opt_check`
    fn check_combination(&self) -> Result<(), Exit> {
        let Combination {
            name: command,
            needs,
            one_of,
            takes,
        } = self.command.combination();
        let mut only: Option<&str> = None;
        for name in NAMES {
            if !self.has(name) {
                if needs.contains(&name) {
                    return Err(Exit::usage(format!(
                        "You need to supply the '{name}' option for the '{command}' command"
                    )));
                }
            } else if one_of.contains(&name) {
                if let Some(other) = only {
                    return Err(Exit::usage(format!(
                        "The option '{name}' conflicts with the '{other}' option in the '{command}' command"
                    )));
                }
                only = Some(name);
            } else if !needs.contains(&name) && !takes.contains(&name) {
                return Err(Exit::usage(format!(
                    "Illegal '{name}' option with the '{command}' command"
                )));
            }
        }
        Ok(())
    }

    /// The checks of `process_options`.
    fn check_meaning(&mut self, reader: &Reader) -> Result<(), Exit> {
        match self.command {
            Command::AddService | Command::EditService => {
                if let Some((protocol, address)) = self.place() {
                    if address.port == 0 && self.timeout.is_none() {
                        return Err(Exit::usage("Zero port specified for non-persistent service"));
                    }
                    if self.one_packet && protocol != Protocol::Udp {
                        return Err(Exit::usage("One-Packet Scheduling is only for UDP virtual services"));
                    }
                }
                if self.scheduler.is_empty() {
                    "wlc".clone_into(&mut self.scheduler);
                }
            }
            Command::AddServer | Command::EditServer => self.check_server(reader)?,
            Command::DeleteService
            | Command::Clear
            | Command::List
            | Command::DeleteServer
            | Command::Set(_)
            | Command::StartDaemon
            | Command::StopDaemon
            | Command::Restore
            | Command::Save
            | Command::Zero
            | Command::Help
            | Command::Version => {}
        }
        if let Some(server) = reader.server {
            self.server = server;
        }
        Ok(())
    }

    fn check_server(&self, reader: &Reader) -> Result<(), Exit> {
        let tunnels = self.forwarding == Forwarding::Tunnel;
        let service_is_v6 = reader.is_ipv6();
        if reader
            .server
            .is_some_and(|server| server.address.is_ipv6() != service_is_v6)
            && !tunnels
        {
            return Err(Exit::usage(
                "Different address family is allowed only for tunneling servers",
            ));
        }
        let keys = ["tun-type", "tun-port", "tun-nocsum", "tun-csum", "tun-remcsum"];
        if keys.into_iter().any(|key| self.has(key)) && !tunnels {
            return Err(Exit::usage("Tunnel options conflict with forward method"));
        }
        Ok(())
    }

    /// What lbd cannot do.
    pub(super) fn check_forwarding(&self) -> Result<(), Exit> {
        let what = match self.forwarding {
            Forwarding::Masquerade => return Ok(()),
            Forwarding::Gateway if self.has("forwarding-method") => "direct routing (-g)",
            Forwarding::Gateway => "direct routing (-g, the default of ipvsadm)",
            Forwarding::Tunnel => "tunneling (-i)",
        };
        Err(Exit::usage(format!(
            "lbd forwards by NAT only, {what} is not supported: give -m (masquerading)"
        )))
    }

    /// `parse_sched_flags`
    fn check_flags(&self) -> Result<(), Exit> {
        let scheduler = if self.scheduler.is_empty() {
            "wlc"
        } else {
            &self.scheduler
        };
        for flag in self.flags() {
            let owner = match flag {
                "flag-1" | "flag-2" | "flag-3" => continue,
                "sh-fallback" | "sh-port" => "sh",
                "mh-fallback" | "mh-port" => "mh",
                _ => return Err(Exit::usage(format!("invalid scheduler flag `{flag}'"))),
            };
            if owner != scheduler {
                return Err(Exit::usage(format!("incompatible scheduler flag `{flag}'")));
            }
        }
        Ok(())
    }

    fn flags(&self) -> impl Iterator<Item = &str> {
        let text = self.flags.as_deref().unwrap_or_default();
        text.split(',').filter(|flag| !flag.is_empty())
    }

    /// The flags in the words of the configuration.
    pub(super) fn flag_words(&self, kind: Kind) -> Result<Vec<String>, Exit> {
        let mut words = Vec::new();
        for flag in self.flags() {
            words.push(match (flag, kind) {
                ("flag-1", Kind::Sh | Kind::Mh) => format!("{kind}-fallback"),
                ("flag-2", Kind::Sh | Kind::Mh) => format!("{kind}-port"),
                ("flag-1" | "flag-2" | "flag-3", _) => {
                    let problem = format!("scheduler {kind} of lbd has no `{flag}': leave it out");
                    return Err(Exit::usage(problem));
                }
                (flag, _) => flag.to_owned(),
            });
        }
        words.extend(self.one_packet.then(|| "ops".to_owned()));
        Ok(words)
    }

    /// Timeout in seconds and how many leading bits of a client's address count.
    pub(super) fn persistence(&self) -> Result<Option<(u32, u8)>, Exit> {
        let Some(timeout) = self.timeout else {
            return Ok(None);
        };
        let v6 = self.place().is_some_and(|(_, address)| address.address.is_ipv6());
        let length = match self.mask {
            Mask::Whole if v6 => 128,
            Mask::Whole => 32,
            Mask::V6(length) => length,
            Mask::V4(mask) if mask.leading_ones() + mask.trailing_zeros() >= 32 => mask.leading_ones() as u8,
            Mask::V4(mask) => {
                return Err(Exit::usage(format!(
                    "lbd keeps clients by network: the netmask {} has holes; give e.g. -M 255.255.255.0",
                    std::net::Ipv4Addr::from_bits(mask)
                )));
            }
        };
        Ok(Some((timeout, length)))
    }

    pub(super) fn place(&self) -> Option<Place> {
        self.service.flatten()
    }

    pub(super) fn check_list(&self) -> Result<(), Exit> {
        let has = |names: &[&str]| names.iter().any(|name| self.has(name));
        let other = has(&["connection", "timeout", "daemon"]) && has(&["stats", "rate", "thresholds"]);
        if other || has(&["timeout", "daemon"]) && has(&["persistent-conn"]) {
            return Err(Exit::usage("options conflicts in the list command"));
        }
        Ok(())
    }

    pub(super) fn lists_connections(&self) -> bool {
        self.has("connection")
    }

    pub(super) fn lists_timeouts(&self) -> bool {
        self.has("timeout")
    }

    pub(super) fn lists_daemons(&self) -> bool {
        self.has("daemon")
    }

    pub(super) fn is_numeric(&self) -> bool {
        self.has("numeric")
    }
}

/// Addresses so far: what -r leaves out is taken from what came before it.
struct Reader {
    protocol: Option<Protocol>,
    service: Option<Endpoint>,
    /// -6 after -f.
    has_ipv6_mark: bool,
    server: Option<Endpoint>,
}

impl Reader {
    fn is_ipv6(&self) -> bool {
        self.has_ipv6_mark || self.service.is_some_and(|service| service.address.is_ipv6())
    }

    fn take_service(&mut self, long: &str, value: &str) -> Result<(), Exit> {
        let protocol = match long {
            "tcp-service" => Protocol::Tcp,
            "udp-service" => Protocol::Udp,
            _ => Protocol::Sctp,
        };
        self.protocol = Some(protocol);
        let (address, port) = service(value, self.protocol)
            .ok_or_else(|| Exit::usage("illegal virtual server address[:port] specified"))?;
        self.service = Some(Endpoint::new(address, port.unwrap_or(0)));
        Ok(())
    }

    fn take_server(&mut self, value: &str) -> Result<(), Exit> {
        let (address, port) =
            service(value, self.protocol).ok_or_else(|| Exit::usage("illegal real server address[:port] specified"))?;
        let same = self.service.map_or(0, |service| service.port);
        self.server = Some(Endpoint::new(address, port.unwrap_or(same)));
        Ok(())
    }
}

/// The command that the first option is, if it is one.
fn command(word: &Word) -> Result<Option<Command>, Exit> {
    let value = word.value.as_deref().unwrap_or_default();
    let is_role = ["master", "backup"].contains(&value);
    Ok(Some(match word.long {
        "add-service" => Command::AddService,
        "edit-service" => Command::EditService,
        "delete-service" => Command::DeleteService,
        "clear" => Command::Clear,
        "list" => Command::List,
        "add-server" => Command::AddServer,
        "edit-server" => Command::EditServer,
        "delete-server" => Command::DeleteServer,
        "set" => Command::Set([0; 3]),
        "restore" => Command::Restore,
        "save" => Command::Save,
        "zero" => Command::Zero,
        "help" => Command::Help,
        "version" => Command::Version,
        "start-daemon" if is_role => Command::StartDaemon,
        "start-daemon" => return Err(Exit::usage("illegal start-daemon parameter specified")),
        "stop-daemon" if is_role => Command::StopDaemon,
        "stop-daemon" => return Err(Exit::usage("illegal start_daemon specified")),
        _ => return Ok(None),
    }))
}

fn bit(name: &str) -> u64 {
    let at = NAMES.iter().position(|known| *known == name);
    at.map_or(0, |at| 1 << at)
}

fn timeout(text: &str, least: u32) -> Result<u32, Exit> {
    number(text, least, MAX_TIMEOUT).ok_or_else(|| Exit::usage(format!("invalid timeout value `{text}' specified")))
}

fn timeouts<'a>(values: &mut impl Iterator<Item = &'a str>) -> Result<[u32; 3], Exit> {
    let (Some(tcp), Some(fin), Some(udp)) = (values.next(), values.next(), values.next()) else {
        return Err(Exit::usage("--set option requires 3 timeout values"));
    };
    Ok([timeout(tcp, 0)?, timeout(fin, 0)?, timeout(udp, 0)?])
}

fn netmask(text: &str, v6: bool) -> Result<Mask, Exit> {
    if !v6 {
        let mask = ipv4(text).ok_or_else(|| Exit::usage("illegal virtual server persistent mask specified"))?;
        return Ok(Mask::V4(mask.to_bits()));
    }
    // `atoi`: the digits that come first.
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let length = text[..end].parse().ok().filter(|length| (1..=128).contains(length));
    length
        .map(Mask::V6)
        .ok_or_else(|| Exit::usage("illegal ipv6 netmask specified"))
}

fn check_group(text: &str) -> Result<(), Exit> {
    let family = if text.contains(':') { "IPv6" } else { "IPv4" };
    let group = text.parse::<IpAddr>().ok();
    match group.filter(|group| group.is_multicast() && group.is_ipv6() == (family == "IPv6")) {
        Some(_) => Ok(()),
        None => Err(Exit::usage(format!("invalid {family} mcast-group `{text}'"))),
    }
}
