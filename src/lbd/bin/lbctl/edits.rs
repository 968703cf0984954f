//! `service`, `backend` and `timeouts`: changes to a running lbd.
use std::net::IpAddr;
use std::time::Duration;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Subcommand};

use lbd::config::edit::{AffinityChange, BackendFields, Edit, ServiceFields, Which};
use lbd::control::protocol::Request;
use lbd::flow::{Endpoint, Protocol};
use lbd::scheduler::Kind;

use super::Json;

#[derive(Subcommand)]
pub(super) enum Service {
    /// Add a service
    Add {
        /// Its name
        name: String,
        /// tcp, udp or sctp
        #[arg(long)]
        protocol: Protocol,
        /// Where it answers, e.g. 10.96.0.10:80; port 0 is all ports
        #[arg(long, value_parser = endpoint)]
        address: Endpoint,
        #[command(flatten)]
        keys: ServiceKeys,
    },
    /// Change keys of a service; what is not given stays as it is
    Edit {
        /// Its name, or one of its ADDRESS:PORT
        service: String,
        /// Where it answers
        #[arg(long, value_parser = endpoint)]
        address: Option<Endpoint>,
        #[command(flatten)]
        keys: ServiceKeys,
    },
    /// Delete a service; its flows go on as `on_backend_removed` says
    Delete {
        /// Its name, or one of its ADDRESS:PORT
        service: String,
    },
}

#[derive(Args)]
pub(super) struct ServiceKeys {
    /// Another address that it answers on, at the same port; may be given several times; an empty text takes all away
    #[arg(long = "external-address", value_name = "ADDRESS", value_parser = external_address)]
    external_addresses: Option<Vec<External>>,
    /// A port of this node's own addresses that it answers on; 0 takes it away
    #[arg(long, value_parser = node_port)]
    node_port: Option<u16>,
    /// Which algorithm picks a backend
    #[arg(long, value_parser = scheduler())]
    scheduler: Option<Kind>,
    /// sh-port, sh-fallback, mh-port, mh-fallback, ops; an empty text takes all away
    #[arg(long = "scheduler-flags", value_delimiter = ',', value_name = "FLAGS")]
    flags: Option<Vec<String>>,
    /// Keep a client at its backend for so long after its last flow, e.g. 3h; or "off"
    #[arg(long, value_name = "TIMEOUT", value_parser = affinity)]
    persistence: Option<Affinity>,
    /// Leading bits of a client's address that count for persistence
    #[arg(long, value_name = "LENGTH", requires = "persistence")]
    prefix_length: Option<u8>,
}

/// None is an empty text.
#[derive(Clone, Copy)]
struct External(Option<IpAddr>);

#[derive(Clone, Copy)]
enum Affinity {
    Off,
    For(u64),
}

#[derive(Subcommand)]
pub(super) enum Backend {
    /// Add a backend at the end of a service's list
    Add {
        #[command(flatten)]
        place: Place,
        #[command(flatten)]
        keys: BackendKeys,
    },
    /// Change keys of a backend; what is not given stays as it is
    Edit {
        #[command(flatten)]
        place: Place,
        #[command(flatten)]
        keys: BackendKeys,
    },
    /// Delete a backend; its flows go on as `on_backend_removed` says
    Delete {
        #[command(flatten)]
        place: Place,
    },
    /// Give a backend no new flows, and show what is left of the old ones; without a name: every drain under way
    Drain {
        /// Its ADDRESS:PORT, or ADDRESS for all its ports; in all services
        #[arg(value_name = "BACKEND")]
        name: Option<String>,
        /// Only in this service
        #[arg(long, requires = "name")]
        service: Option<String>,
        /// Reset the flows that are left after this time, e.g. 10m
        #[arg(long, value_parser = seconds, requires = "name")]
        deadline: Option<u64>,
        #[command(flatten)]
        json: Json,
    },
}

#[derive(Args)]
pub(super) struct Place {
    /// The service: its name, or one of its ADDRESS:PORT
    service: String,
    /// Where the backend listens
    #[arg(value_parser = endpoint)]
    address: Endpoint,
}

#[derive(Args)]
pub(super) struct BackendKeys {
    /// Its share of new flows, 0 to 65535; 0 drains it
    #[arg(long)]
    weight: Option<u32>,
    /// No new flows at this many; 0: no limit
    #[arg(long)]
    upper_threshold: Option<u32>,
    /// New flows again below this; 0: three quarters of the upper one
    #[arg(long)]
    lower_threshold: Option<u32>,
}

#[derive(Args)]
pub(super) struct Timeouts {
    /// TCP, FIN and UDP: of established TCP flows, of closing ones, of UDP flows; e.g. 15m 2m 5m, and 0 leaves one as it is
    #[arg(num_args = 3, value_names = ["TCP", "FIN", "UDP"], value_parser = timeout, conflicts_with = "json")]
    values: Vec<u64>,
    #[command(flatten)]
    pub(super) json: Json,
}

/// Seconds, bare or as a duration.
fn seconds(text: &str) -> Result<u64, String> {
    if let Ok(seconds) = text.parse() {
        return Ok(seconds);
    }
    let duration = humantime::parse_duration(text);
    duration
        .map(|duration: Duration| duration.as_secs())
        .map_err(|error| format!("{error}: write e.g. 90s, 10m, 1h30m, or whole seconds"))
}

/// Of lbd's own timeouts: `MAX_TIMEOUT` of ipvsadm.c.
const LONGEST: u64 = 31 * 24 * 60 * 60;

/// Seconds of a timeout, or 0. A part of a second would be 0, too, and change nothing.
fn timeout(text: &str) -> Result<u64, String> {
    let seconds = seconds(text)?;
    let is_part = seconds == 0 && humantime::parse_duration(text).is_ok_and(|duration| !duration.is_zero());
    match seconds {
        0..=LONGEST if !is_part => Ok(seconds),
        _ => Err("must be 1s to 31days; 0 leaves it as it is".to_owned()),
    }
}

fn endpoint(text: &str) -> Result<Endpoint, String> {
    match (text.parse(), text.parse()) {
        (Ok(endpoint), _) => Ok(endpoint),
        (Err(_), Ok(address)) => {
            let example = Endpoint::new(address, 80);
            Err(format!("no port: write ADDRESS:PORT, e.g. {example}"))
        }
        (Err(_), Err(_)) => Err("not ADDRESS:PORT: write e.g. 10.96.0.10:80 or [fd00::10]:80".to_owned()),
    }
}

fn external_address(text: &str) -> Result<External, String> {
    match (text, text.parse()) {
        ("", _) => Ok(External(None)),
        (_, Ok(address)) => Ok(External(Some(address))),
        (_, Err(_)) => Err("not an address without a port: write e.g. 203.0.113.10 or fd00::10".to_owned()),
    }
}

fn node_port(text: &str) -> Result<u16, String> {
    let port = text.parse().ok();
    port.ok_or_else(|| "not a port, 0 to 65535; 0 takes it away".to_owned())
}

/// Knows the names, so that it can list them.
fn scheduler() -> impl TypedValueParser<Value = Kind> {
    PossibleValuesParser::new(Kind::ALL.map(Kind::name)).try_map(|name| name.parse())
}

fn affinity(text: &str) -> Result<Affinity, String> {
    match text {
        "off" => Ok(Affinity::Off),
        _ => seconds(text).map(Affinity::For),
    }
}

fn edit(edit: Edit) -> Request {
    Request::Edit { edits: vec![edit] }
}

impl ServiceKeys {
    fn fields(&self) -> ServiceFields {
        let affinity = |affinity| match affinity {
            Affinity::Off => AffinityChange::Off,
            Affinity::For(timeout_seconds) => AffinityChange::On {
                timeout_seconds,
                prefix_length: self.prefix_length,
            },
        };
        let given = |addresses: &Vec<External>| addresses.iter().filter_map(|External(address)| *address).collect();
        let words = |flags: &Vec<String>| flags.iter().filter(|flag| !flag.is_empty()).cloned().collect();
        ServiceFields {
            name: None,
            protocol: None,
            address: None,
            external_addresses: self.external_addresses.as_ref().map(given),
            node_port: self.node_port,
            scheduler: self.scheduler,
            flags: self.flags.as_ref().map(words),
            persistence: self.persistence.map(affinity),
        }
    }
}

impl Service {
    pub(super) fn request(&self) -> Request {
        edit(match self {
            Self::Add {
                name,
                protocol,
                address,
                keys,
            } => Edit::AddService {
                fields: ServiceFields {
                    name: Some(name.clone()),
                    protocol: Some(*protocol),
                    address: Some(*address),
                    ..keys.fields()
                },
            },
            Self::Edit { service, address, keys } => Edit::EditService {
                service: Which::Named(service.clone()),
                fields: ServiceFields {
                    address: *address,
                    ..keys.fields()
                },
            },
            Self::Delete { service } => Edit::DeleteService {
                service: Which::Named(service.clone()),
            },
        })
    }
}

impl BackendKeys {
    const fn fields(&self) -> BackendFields {
        BackendFields {
            weight: self.weight,
            upper_threshold: self.upper_threshold,
            lower_threshold: self.lower_threshold,
        }
    }
}

impl Backend {
    pub(super) fn request(&self) -> Request {
        let service = |place: &Place| Which::Named(place.service.clone());
        edit(match self {
            Self::Add { place, keys } => Edit::AddBackend {
                service: service(place),
                address: place.address,
                fields: keys.fields(),
                first: false,
            },
            Self::Edit { place, keys } => Edit::EditBackend {
                service: service(place),
                address: place.address,
                fields: keys.fields(),
            },
            Self::Delete { place } => Edit::DeleteBackend {
                service: service(place),
                address: place.address,
            },
            Self::Drain { name: None, .. } => return Request::Drains,
            Self::Drain {
                name: Some(backend),
                service,
                deadline,
                ..
            } => {
                return Request::Drain {
                    backend: backend.clone(),
                    service: service.clone(),
                    deadline_seconds: *deadline,
                };
            }
        })
    }
}

impl Timeouts {
    pub(super) fn request(&self) -> Request {
        let given = |seconds: u64| (seconds != 0).then_some(seconds);
        match self.values[..] {
            [tcp, tcp_fin, udp] => edit(Edit::Timeouts {
                tcp: given(tcp),
                tcp_fin: given(tcp_fin),
                udp: given(udp),
            }),
            _ => Request::Timeouts,
        }
    }
}
