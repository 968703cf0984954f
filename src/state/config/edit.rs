//! Live edits: small changes to the running configuration, all of a list or none, valid by the rules of a file.
//!
//! What an edit changes of the configuration is written as TOML and read back, so that an edit can make nothing that a file could not
//! say, is refused in the words that a file is, and is what `lbctl save` writes.
use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::neighbours::{Novelties, changes, targets};
use super::text;
use super::{Config, parse, to_toml};
use lbd_core::conntrack::tcp::State;
use lbd_core::flow::{Endpoint, Protocol};
use lbd_core::policy::{BackendSpec, Persistence, Policy, ServiceSpec};
use lbd_core::scheduler::{Flags, Kind};

/// Which service is meant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Which {
    /// By its name, or by one of its addresses where only one protocol has it.
    Named(String),
    /// By one of its addresses.
    At {
        /// Its protocol.
        #[serde(with = "text")]
        protocol: Protocol,
        /// The address.
        #[serde(with = "text")]
        address: Endpoint,
    },
}

/// Keys of a service; None leaves one as it is, or at its default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ServiceFields {
    /// `name`; for a new service by default its protocol and address, e.g. `tcp 10.9.9.9:80`.
    pub name: Option<String>,
    /// `protocol`
    #[serde(with = "text::option")]
    pub protocol: Option<Protocol>,
    /// `address`
    #[serde(with = "text::option")]
    pub address: Option<Endpoint>,
    /// `external_addresses`
    pub external_addresses: Option<Vec<IpAddr>>,
    /// `node_port`; 0 takes it away.
    pub node_port: Option<u16>,
    /// `scheduler`
    #[serde(with = "text::option")]
    pub scheduler: Option<Kind>,
    /// `scheduler_flags`
    pub flags: Option<Vec<String>>,
    /// `persistence`
    pub persistence: Option<AffinityChange>,
}

/// What becomes of `persistence`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AffinityChange {
    /// None any more.
    Off,
    /// This from now on.
    On {
        /// After the last flow.
        timeout_seconds: u64,
        /// Leading bits of the client's address that count; None: all.
        prefix_length: Option<u8>,
    },
}

/// Keys of a backend; None leaves one as it is, or at its default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct BackendFields {
    /// `weight`
    pub weight: Option<u32>,
    /// `upper_threshold`
    pub upper_threshold: Option<u32>,
    /// `lower_threshold`
    pub lower_threshold: Option<u32>,
}

/// One change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "edit", rename_all = "snake_case")]
pub enum Edit {
    /// A new service, at the end of the list.
    AddService {
        /// Its keys; protocol and address are needed.
        fields: ServiceFields,
    },
    /// Other keys for a service.
    EditService {
        /// The service.
        service: Which,
        /// The keys.
        fields: ServiceFields,
    },
    /// A service less.
    DeleteService {
        /// The service.
        service: Which,
    },
    /// No service any more.
    Clear,
    /// A new backend.
    AddBackend {
        /// Its service.
        service: Which,
        /// Where it listens.
        #[serde(with = "text")]
        address: Endpoint,
        /// Its other keys.
        fields: BackendFields,
        /// At the head of the list, as the kernel does it, and not at its end.
        #[serde(default)]
        first: bool,
    },
    /// Other keys for a backend.
    EditBackend {
        /// Its service.
        service: Which,
        /// Where it listens.
        #[serde(with = "text")]
        address: Endpoint,
        /// The keys.
        fields: BackendFields,
    },
    /// A backend less.
    DeleteBackend {
        /// Its service.
        service: Which,
        /// Where it listened.
        #[serde(with = "text")]
        address: Endpoint,
    },
    /// Other timeouts, in seconds; None leaves one as it is.
    Timeouts {
        /// `tcp_established`
        tcp: Option<u64>,
        /// `tcp_fin`
        tcp_fin: Option<u64>,
        /// `udp`
        udp: Option<u64>,
    },
}

/// What kind of mistake an edit was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mistake {
    /// The service is not there.
    NoSuchService,
    /// The service is there already.
    ServiceExists,
    /// The backend is not there.
    NoSuchBackend,
    /// The backend is there already.
    BackendExists,
    /// A file that says so would be refused.
    Invalid,
}

/// Why no edit of a list was made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// In short.
    pub mistake: Mistake,
    /// The object, the value, and what would be right; may have several lines.
    pub message: String,
}

impl Refusal {
    /// A configuration that cannot be.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self {
            mistake: Mistake::Invalid,
            message: message.into(),
        }
    }

    fn no_service(which: &Which) -> Self {
        Self {
            mistake: Mistake::NoSuchService,
            message: format!(
                "no service {which}: give a name or ADDRESS:PORT of one that `lbctl list -n --json` shows"
            ),
        }
    }
}

impl std::fmt::Display for Which {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Named(name) => write!(f, "{name:?}"),
            Self::At { protocol, address } => write!(f, "{protocol} {address}"),
        }
    }
}

/// The configuration with all `edits` made, one after the other. `nodes` are this node's addresses, where node ports
/// answer.
///
/// # Errors
/// When one of them is a mistake: then none is made.
pub fn apply(config: &Config, nodes: &[IpAddr], edits: &[Edit]) -> Result<Config, Refusal> {
    let mut edited = config.clone();
    for edit in edits {
        step(&mut edited.policy, nodes, edit)?;
    }
    validated(config, edited, nodes)
}

/// Writes what changed, and what that has to get along with, and reads it back.
fn validated(before: &Config, edited: Config, nodes: &[IpAddr]) -> Result<Config, Refusal> {
    let (old, new) = changes(&before.policy.services, &edited.policy.services);
    let named = targets(&edited.policy.rules);
    let needs_rules = old.iter().any(|service| named.contains(service.name.as_str()));
    let novelties = Novelties::new(old.into_iter(), new.iter().copied(), nodes);
    let changed: HashSet<*const ServiceSpec> = new.into_iter().map(Arc::as_ptr).collect();
    let matters = |service: &Arc<ServiceSpec>| {
        changed.contains(&Arc::as_ptr(service))
            || novelties.concern(service, nodes)
            || (needs_rules && named.contains(service.name.as_str()))
    };
    let services = edited.policy.services.iter().filter(|service| matters(service));
    let part = Policy {
        services: services.map(Arc::clone).collect(),
        rules: if needs_rules {
            edited.policy.rules.clone()
        } else {
            Vec::new()
        },
        ..edited.policy.clone()
    };
    let part = Config {
        policy: part,
        ..edited.clone()
    };
    match parse("", &to_toml(&part)) {
        Ok(read) => Ok(joined(edited, &part.policy.services, read.config)),
        // What is right instead may be said of services that were left out.
        Err(_) => whole(&edited),
    }
}

/// Writes all of a configuration and reads it back.
fn whole(config: &Config) -> Result<Config, Refusal> {
    let loaded = parse("", &to_toml(config)).map_err(|errors| {
        let lines: Vec<&str> = errors.iter().map(|error| error.message.as_str()).collect();
        Refusal::invalid(lines.join("\n"))
    })?;
    Ok(loaded.config)
}

/// The whole of what was edited, with what was read back of `part` of the services, in their order.
fn joined(edited: Config, part: &[Arc<ServiceSpec>], mut read: Config) -> Config {
    let back: HashMap<*const ServiceSpec, Arc<ServiceSpec>> =
        part.iter().map(Arc::as_ptr).zip(read.policy.services).collect();
    let mut services = edited.policy.services;
    for service in &mut services {
        // What did not change is the very same as before, so that nobody has to look for differences there.
        if let Some(back) = back.get(&Arc::as_ptr(service)).filter(|back| *back != service) {
            *service = Arc::clone(back);
        }
    }
    read.policy.services = services;
    read.policy.rules = edited.policy.rules;
    read
}

fn step(policy: &mut Policy, nodes: &[IpAddr], edit: &Edit) -> Result<(), Refusal> {
    match edit {
        Edit::AddService { fields } => return add_service(policy, nodes, fields),
        Edit::EditService { service, fields } => {
            let at = find(policy, nodes, service)?;
            let kind = fields
                .scheduler
                .unwrap_or_else(|| policy.scheduler_of(&policy.services[at]));
            change_service(Arc::make_mut(&mut policy.services[at]), fields, kind)?;
        }
        Edit::DeleteService { service } => {
            let at = find(policy, nodes, service)?;
            policy.services.remove(at);
        }
        Edit::Clear => policy.services.clear(),
        Edit::AddBackend {
            service,
            address,
            fields,
            first,
        } => {
            let at = find(policy, nodes, service)?;
            return add_backend(Arc::make_mut(&mut policy.services[at]), *address, *fields, *first);
        }
        Edit::EditBackend {
            service,
            address,
            fields,
        } => {
            let at = find(policy, nodes, service)?;
            let (_, backend) = find_backend(Arc::make_mut(&mut policy.services[at]), *address)?;
            change_backend(backend, *fields);
        }
        Edit::DeleteBackend { service, address } => {
            let at = find(policy, nodes, service)?;
            let service = Arc::make_mut(&mut policy.services[at]);
            let (index, _) = find_backend(service, *address)?;
            service.backends.remove(index);
        }
        Edit::Timeouts { tcp, tcp_fin, udp } => change_timeouts(policy, *tcp, *tcp_fin, *udp),
    }
    Ok(())
}

/// Where in the list the service is.
///
/// # Errors
/// When it is not there.
pub fn find(policy: &Policy, nodes: &[IpAddr], which: &Which) -> Result<usize, Refusal> {
    let services = || policy.services.iter().enumerate();
    let has = |service: &ServiceSpec, address| service.endpoints(nodes).any(|endpoint| endpoint == address);
    let found: Vec<usize> = match which {
        Which::At { protocol, address } => {
            let is_it = |service: &ServiceSpec| service.protocol == *protocol && has(service, *address);
            services()
                .filter(|(_, service)| is_it(service))
                .map(|(at, _)| at)
                .collect()
        }
        Which::Named(name) => match services().find(|(_, service)| service.name == *name) {
            Some((at, _)) => vec![at],
            None => match name.parse() {
                Ok(address) => services()
                    .filter(|(_, service)| has(service, address))
                    .map(|(at, _)| at)
                    .collect(),
                Err(_) => Vec::new(),
            },
        },
    };
    match found[..] {
        [at] => Ok(at),
        [] => Err(Refusal::no_service(which)),
        [_, ..] => Err(Refusal::invalid(format!(
            "{which} is an address of more than one service: give the name of one"
        ))),
    }
}

fn add_service(policy: &mut Policy, nodes: &[IpAddr], fields: &ServiceFields) -> Result<(), Refusal> {
    let (Some(protocol), Some(address)) = (fields.protocol, fields.address) else {
        return Err(Refusal::invalid("a new service needs a protocol and an address"));
    };
    let name = fields.name.clone().unwrap_or_else(|| format!("{protocol} {address}"));
    let at = Which::At { protocol, address };
    let taken = policy.services.iter().find(|service| service.name == name);
    let taken = match (taken, find(policy, nodes, &at)) {
        (Some(owner), _) => Some(format!(
            "there is a service {:?} already: give another name",
            owner.name
        )),
        (None, Ok(owner)) => {
            let owner = &policy.services[owner].name;
            Some(format!(
                "{at} is already taken by service {owner:?}: give another address or port"
            ))
        }
        (None, Err(_)) => None,
    };
    if let Some(message) = taken {
        return Err(Refusal {
            mistake: Mistake::ServiceExists,
            message,
        });
    }
    let mut service = ServiceSpec {
        name,
        protocol,
        address,
        external_addresses: Vec::new(),
        node_port: None,
        scheduler: None,
        flags: Flags::default(),
        persistence: None,
        one_packet: false,
        on_backend_removed: None,
        backends: Vec::new(),
    };
    let kind = fields.scheduler.or(policy.scheduler);
    change_service(
        &mut service,
        fields,
        kind.unwrap_or_else(|| policy.mode.default_scheduler()),
    )?;
    policy.services.push(Arc::new(service));
    Ok(())
}

fn change_service(service: &mut ServiceSpec, fields: &ServiceFields, kind: Kind) -> Result<(), Refusal> {
    let ServiceFields {
        name,
        protocol,
        address,
        external_addresses,
        node_port,
        scheduler,
        flags,
        persistence,
    } = fields.clone();
    service.name = name.unwrap_or_else(|| service.name.clone());
    service.protocol = protocol.unwrap_or(service.protocol);
    service.address = address.unwrap_or(service.address);
    if let Some(addresses) = external_addresses {
        service.external_addresses = addresses;
    }
    if let Some(port) = node_port {
        service.node_port = Some(port).filter(|&port| port != 0);
    }
    if scheduler.is_some() && scheduler != service.scheduler {
        service.scheduler = scheduler;
        service.flags = Flags::default();
    }
    if let Some(words) = flags {
        (service.flags, service.one_packet) = read_flags(&words, kind)?;
    }
    match persistence {
        None => {}
        Some(AffinityChange::Off) => service.persistence = None,
        Some(AffinityChange::On {
            timeout_seconds,
            prefix_length,
        }) => {
            let whole = if service.address.address.is_ipv4() { 32 } else { 128 };
            service.persistence = Some(Persistence {
                timeout: Duration::from_secs(timeout_seconds),
                prefix_length: prefix_length.unwrap_or(whole),
            });
        }
    }
    Ok(())
}

/// Words that the scheduler does not know would not be written, and so not be seen by the validation.
fn read_flags(words: &[String], kind: Kind) -> Result<(Flags, bool), Refusal> {
    let mut flags = Flags::default();
    let mut one_packet = false;
    for word in words {
        match (word.as_str(), kind) {
            (super::validate::ONE_PACKET, _) => one_packet = true,
            ("sh-port", Kind::Sh) | ("mh-port", Kind::Mh) => flags.port = true,
            ("sh-fallback", Kind::Sh) | ("mh-fallback", Kind::Mh) => flags.fallback = true,
            _ => {
                return Err(Refusal::invalid(format!(
                    "scheduler_flags = {word:?}: no flag of scheduler \"{kind}\": known: ops for all, \
                     sh-port and sh-fallback for sh, mh-port and mh-fallback for mh"
                )));
            }
        }
    }
    Ok((flags, one_packet))
}

fn add_backend(
    service: &mut ServiceSpec,
    address: Endpoint,
    fields: BackendFields,
    first: bool,
) -> Result<(), Refusal> {
    if find_backend(service, address).is_ok() {
        let name = &service.name;
        return Err(Refusal {
            mistake: Mistake::BackendExists,
            message: format!("service {name:?} has backend {address} already: use edit to change it"),
        });
    }
    let mut backend = BackendSpec {
        address,
        weight: super::defaults::WEIGHT,
        upper_threshold: 0,
        lower_threshold: 0,
    };
    change_backend(&mut backend, fields);
    let at = if first { 0 } else { service.backends.len() };
    service.backends.insert(at, backend);
    Ok(())
}

fn find_backend(service: &mut ServiceSpec, address: Endpoint) -> Result<(usize, &mut BackendSpec), Refusal> {
    let name = &service.name;
    let mut backends = service.backends.iter_mut().enumerate();
    backends
        .find(|(_, backend)| backend.address == address)
        .ok_or_else(|| Refusal {
            mistake: Mistake::NoSuchBackend,
            message: format!("service {name:?} has no backend {address}: give one that `lbctl list -n` shows"),
        })
}

fn change_backend(backend: &mut BackendSpec, fields: BackendFields) {
    backend.weight = fields.weight.unwrap_or(backend.weight);
    backend.upper_threshold = fields.upper_threshold.unwrap_or(backend.upper_threshold);
    backend.lower_threshold = fields.lower_threshold.unwrap_or(backend.lower_threshold);
}

fn change_timeouts(policy: &mut Policy, tcp: Option<u64>, tcp_fin: Option<u64>, udp: Option<u64>) {
    let timeouts = &mut policy.conntrack.timeouts;
    let change = |timeout: &mut Duration, seconds: Option<u64>| {
        *timeout = seconds.map_or(*timeout, Duration::from_secs);
    };
    change(&mut timeouts.tcp[State::Established as usize], tcp);
    change(&mut timeouts.tcp[State::FinWait as usize], tcp_fin);
    change(&mut timeouts.udp, udp);
}

#[cfg(test)]
mod tests;
