//! From places and chains to services: one for each list of backends.
use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::time::Duration;

use super::empty::{self, Empty, NOT_DROPPED};
use super::endpoints::{Context, Endpoints};
use super::fences;
use super::frontends::{Entrances, Frontend, Place, Way};
use super::weights::are_equal;
use crate::import::kube_proxy::{LOCAL_ONLY, LOCAL_SERVICE};
use lbd_core::flow::{Endpoint, Protocol};
use lbd_core::matcher::rules::Rule;
use lbd_core::policy::{BackendSpec, Persistence, ServiceSpec};
use lbd_core::scheduler::{Flags, Kind};

/// A service, and the lines that it is made of.
#[derive(Clone, Debug)]
pub(super) struct Made {
    pub(super) spec: ServiceSpec,
    /// Where it answers.
    pub(super) places: Vec<(Place, usize)>,
    /// By index in `spec.backends`.
    pub(super) backends: Vec<usize>,
    /// The end of the names of its chains.
    pub(super) chain: String,
}

/// A rule, and the line that it is made of.
#[derive(Clone, Debug)]
pub(super) struct MadeRule {
    pub(super) rule: Rule,
    pub(super) line: usize,
    /// The service that it was made for; none for a rule that lbctl printed.
    pub(super) service: Option<String>,
}

/// Everything that was made.
#[derive(Debug, Default)]
pub(super) struct Making {
    pub(super) services: Vec<Made>,
    pub(super) rules: Vec<MadeRule>,
    /// What a user has to know of whole services.
    pub(super) notes: Vec<String>,
    /// The node's own addresses, where they are known.
    pub(super) nodes: Vec<(IpAddr, usize)>,
    names: HashSet<String>,
    /// How often each name was wanted.
    wanted: HashMap<String, u32>,
    resolved: HashMap<(String, bool, Protocol, u16), Endpoints>,
}

/// The places of one service that lead to the same backends.
#[derive(Debug)]
pub(super) struct Group {
    endpoints: Endpoints,
    port: Option<u16>,
    /// To the node's own endpoints only.
    local: bool,
    pub(super) members: Vec<Frontend>,
    pub(super) name: String,
}

impl Making {
    /// Makes services of all places.
    pub(super) fn make(&mut self, entrances: &mut Entrances, context: &mut Context<'_>) {
        let refusals = context.refusals;
        self.nodes.clone_from(&entrances.nodes);
        let empty = empty::sort_out(refusals, entrances, context);
        for members in by_service(&entrances.frontends) {
            self.service(&members, context);
        }
        for empty in empty {
            self.empty_service(empty, context);
        }
        fences::check(refusals, entrances, context.ledger);
    }

    fn empty_service(&mut self, empty: Empty, context: &mut Context<'_>) {
        let Empty {
            name,
            v4,
            members,
            dropping,
        } = empty;
        let mut group = Group::of(members, Endpoints::default());
        group.name = self.unique(name, v4);
        for member in group.members.iter().filter(|member| dropping.contains(&member.place)) {
            match member.address() {
                Some(_) => self.rules.push(fences::dropping(member, &group.name)),
                None => context.ledger.lost(member.line, NOT_DROPPED),
            }
        }
        group
            .members
            .retain(|member| member.address().is_some() || !dropping.contains(&member.place));
        self.group(&group, context);
    }

    fn resolve(&mut self, frontend: &Frontend, context: &mut Context<'_>) -> Option<Endpoints> {
        let list = frontend.way.list.clone()?;
        let Frontend { v4, protocol, .. } = *frontend;
        let key = (list, v4, protocol, frontend.place.port());
        if let Some(known) = self.resolved.get(&key) {
            return Some(known.clone());
        }
        let endpoints = context.endpoints(&key.0, v4, protocol, key.3);
        self.resolved.insert(key, endpoints.clone());
        Some(endpoints)
    }

    fn service(&mut self, members: &[&Frontend], context: &mut Context<'_>) {
        let Some(first) = members.first() else { return };
        let mut groups = self.groups(members, context);
        let name = members.iter().find_map(|member| member.name.clone());
        let name = name.unwrap_or_else(|| default_name(first));
        for (index, group) in groups.iter_mut().enumerate() {
            let wanted = match (index, group.local) {
                (0, _) => name.clone(),
                (_, true) => format!("{name} local"),
                (_, false) => format!("{name} external"),
            };
            group.name = self.unique(wanted, first.v4);
        }
        for index in 0..groups.len() {
            self.rules.extend(fences::rules(&groups, index, context));
        }
        for group in &groups {
            self.group(group, context);
        }
    }

    /// The places by their backends; first those of the cluster address.
    fn groups(&mut self, members: &[&Frontend], context: &mut Context<'_>) -> Vec<Group> {
        let mut groups: Vec<Group> = Vec::new();
        let mut dropped = Vec::new();
        let mut sorted = members.to_vec();
        sorted.sort_by_key(|frontend| (frontend.external, frontend.address().is_none()));
        for mut frontend in sorted.into_iter().cloned() {
            let endpoints = self.resolve(&frontend, context).filter(|endpoints| !endpoints.drops);
            let Some(endpoints) = endpoints else {
                frontend.way.list = None;
                dropped.push(frontend);
                continue;
            };
            match groups.iter_mut().find(|group| group.takes(&frontend, &endpoints)) {
                Some(group) => group.join(frontend),
                None => groups.push(Group::of(vec![frontend], endpoints)),
            }
        }
        for frontend in dropped {
            drop_at(&mut groups, frontend, context);
        }
        shelter(groups, context)
    }

    fn group(&mut self, group: &Group, context: &mut Context<'_>) {
        let mut addresses: Vec<(&Frontend, Endpoint)> = group
            .members
            .iter()
            .filter_map(|member| Some((member, member.address()?)))
            .collect();
        addresses.sort_by_key(|(member, _)| member.external);
        let Some((&(first, address), rest)) = addresses.split_first() else {
            return;
        };
        let node_ports = || group.members.iter().filter(|member| member.address().is_none());
        for second in node_ports().skip(1) {
            context
                .ledger
                .lost(second.line, "a service has one node port, and this is its second");
        }
        let node_port = node_ports().next();
        let places = addresses.iter().map(|(member, _)| (member.place, member.line));
        let places = places.chain(node_port.map(|member| (member.place, member.line)));
        let uneven = !are_equal(&group.endpoints.backends);
        if uneven {
            let note = "its backends have unequal shares, and random gives equal ones: it has scheduler = \"wrr\"";
            self.notes.push(format!("service {:?}: {note}", group.name));
        }
        let mut persistence = group.endpoints.persistence;
        if address.port == 0 && persistence.is_none() {
            let note = "it is for all ports, so its clients stay with one backend: it has persistence of 3h";
            self.notes.push(format!("service {:?}: {note}", group.name));
            persistence = Some(all_ports_affinity(first.v4));
        }
        self.services.push(Made {
            places: places.collect(),
            backends: group.endpoints.lines.clone(),
            chain: first.service.clone(),
            spec: ServiceSpec {
                name: group.name.clone(),
                protocol: first.protocol,
                address,
                external_addresses: rest.iter().map(|(_, endpoint)| endpoint.address).collect(),
                node_port: node_port.map(|member| member.place.port()),
                scheduler: uneven.then_some(Kind::Wrr),
                flags: Flags::default(),
                persistence,
                one_packet: false,
                on_backend_removed: None,
                backends: group.endpoints.backends.iter().map(backend).collect(),
            },
        });
    }

    /// A name that no service has yet: the same service is in the dumps of both families.
    fn unique(&mut self, wanted: String, v4: bool) -> String {
        let family = if v4 { "ipv4" } else { "ipv6" };
        let first = self.wanted.entry(wanted.clone()).or_default();
        let from = *first;
        let name = |n: u32| match n {
            0 => wanted.clone(),
            1 => format!("{wanted} {family}"),
            n => format!("{wanted} {n}"),
        };
        let free = (from..).find(|&n| !self.names.contains(&name(n))).unwrap_or(from);
        *first = free.saturating_add(1);
        let name = name(free);
        self.names.insert(name.clone());
        name
    }
}

impl Group {
    fn of(members: Vec<Frontend>, endpoints: Endpoints) -> Self {
        Self {
            endpoints,
            port: members.iter().find_map(|member| Some(member.address()?.port)),
            local: members.iter().any(|member| is_local(&member.way)),
            members,
            name: String::new(),
        }
    }

    /// All addresses of a service have one port.
    fn has_room_for(&self, frontend: &Frontend) -> bool {
        let port = frontend.address().map(|endpoint| endpoint.port);
        self.port.is_none() || port.is_none() || self.port == port
    }

    fn takes(&self, frontend: &Frontend, endpoints: &Endpoints) -> bool {
        self.has_room_for(frontend) && self.endpoints.same_as(endpoints)
    }

    fn join(&mut self, frontend: Frontend) {
        self.port = self.port.or_else(|| frontend.address().map(|endpoint| endpoint.port));
        self.members.push(frontend);
    }
}

/// Those of one service together, in the order of the dump.
fn by_service(frontends: &[Frontend]) -> Vec<Vec<&Frontend>> {
    let mut all: Vec<Vec<&Frontend>> = Vec::new();
    let mut known: HashMap<(bool, Protocol, &str), usize> = HashMap::new();
    for frontend in frontends {
        let key = (frontend.v4, frontend.protocol, frontend.service.as_str());
        let index = *known.entry(key).or_insert_with(|| {
            all.push(Vec::new());
            all.len() - 1
        });
        all[index].push(frontend);
    }
    all
}

fn default_name(frontend: &Frontend) -> String {
    match frontend.place {
        Place::At(endpoint) => format!("{} {endpoint}", frontend.protocol),
        Place::NodePort(port) => format!("{} node port {port}", frontend.protocol),
    }
}

/// An address whose packets are dropped is an address of the service all the same, with a rule that drops them.
fn drop_at(groups: &mut Vec<Group>, frontend: Frontend, context: &mut Context<'_>) {
    if frontend.address().is_none() {
        context.ledger.lost(frontend.line, NOT_DROPPED);
        return;
    }
    match groups.iter_mut().find(|group| group.has_room_for(&frontend)) {
        Some(group) => group.join(frontend),
        None => groups.push(Group::of(vec![frontend], Endpoints::default())),
    }
}

/// A service has an address: node ports that have a list of backends for themselves go with the first one's.
fn shelter(groups: Vec<Group>, context: &mut Context<'_>) -> Vec<Group> {
    let (mut housed, homeless): (Vec<Group>, Vec<Group>) = groups.into_iter().partition(|group| group.port.is_some());
    let kept: HashSet<usize> = housed.iter().flat_map(|group| group.endpoints.lines.clone()).collect();
    for group in homeless {
        let Some(first) = housed.first_mut() else {
            let why = "a service needs an address beside its node port, and no rule of this dump gives one";
            for frontend in group.members {
                context.ledger.lost(frontend.line, why);
            }
            continue;
        };
        let why = "a node port has the backends of its service's address, not only those on this node";
        for &line in group.endpoints.lines.iter().filter(|line| !kept.contains(line)) {
            context.ledger.lost(line, why);
        }
        for frontend in group.members {
            context.ledger.partly(frontend.line, why);
            first.join(frontend);
        }
    }
    housed
}

fn is_local(way: &Way) -> bool {
    let list = way.list.as_deref().unwrap_or("");
    list.starts_with(LOCAL_SERVICE) || list.starts_with(LOCAL_ONLY)
}

/// kube-proxy's own timeout of client affinity.
const fn all_ports_affinity(v4: bool) -> Persistence {
    Persistence {
        timeout: Duration::from_secs(3 * 60 * 60),
        prefix_length: if v4 { 32 } else { 128 },
    }
}

fn backend(&(address, weight): &(Endpoint, u32)) -> BackendSpec {
    BackendSpec {
        address,
        weight,
        upper_threshold: 0,
        lower_threshold: 0,
    }
}
