//! What the filter is to take off the interfaces: a plan of the plumbing, lbd's own ports, and announced addresses.
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use super::tables::Entry;
use crate::plumbing::{Cover, Plan, has_host};
use lbd_core::flow::{Endpoint, Protocol};

/// All that is lbd's; the default is nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interest {
    routes: BTreeSet<IpNet>,
    local_ports: BTreeSet<(Protocol, Endpoint)>,
    replies: BTreeSet<(Protocol, Endpoint)>,
    covers: Covers,
    announced: BTreeSet<IpAddr>,
    fragment_sources: Hosts,
    fragment_destinations: Hosts,
}

/// Backends.
pub type Replies = BTreeSet<(Protocol, Endpoint)>;

/// Addresses of which all fragments are taken, by protocol.
type Hosts = BTreeSet<(Protocol, IpAddr)>;

/// First and last port by destination. The filter finds the longest prefix only, so the ports at each prefix are widened
/// to those of the prefixes around it.
type Covers = BTreeMap<(Protocol, IpNet), (u16, u16)>;

/// The way from one interest to another. Keys are distinct in `put` and not in `remove`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Changes {
    pub(super) put: Vec<Put>,
    pub(super) remove: Vec<Entry>,
}

/// An entry to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Put {
    pub(super) entry: Entry,
    /// What has the same key before.
    pub(super) replaces: Option<Entry>,
}

impl Interest {
    /// What `plan` leads to lbd, and ARP requests and neighbour solicitations for `announced`.
    #[must_use]
    pub fn new(plan: &Plan, announced: impl IntoIterator<Item = IpAddr>) -> Self {
        let diverted = plan.diverted.iter().chain(&plan.diverted_locally);
        Self {
            routes: plan.routes.iter().map(IpNet::trunc).collect(),
            local_ports: plan.local_ports.clone(),
            replies: plan.replies.clone(),
            covers: widened(diverted.chain(&plan.masqueraded).copied()),
            announced: announced.into_iter().collect(),
            fragment_sources: hosts(&plan.replies),
            fragment_destinations: hosts(&plan.local_ports),
        }
    }

    /// What is to be done where `old` is in place.
    pub(super) fn changes_from(&self, old: &Self) -> Changes {
        let mut changes = Changes::default();
        let mut set = |is: bool, entry| match is {
            true => changes.put.push(Put { entry, replaces: None }),
            false => changes.remove.push(entry),
        };
        differ(&old.routes, &self.routes, |is, &net| set(is, route(net)));
        differ(&old.local_ports, &self.local_ports, |is, &(protocol, endpoint)| {
            set(is, Entry::LocalPort(protocol, endpoint));
        });
        differ(&old.replies, &self.replies, |is, &(protocol, endpoint)| {
            set(is, Entry::Reply(protocol, endpoint));
        });
        differ(&old.announced, &self.announced, |is, &address| {
            set(is, Entry::Announced(address));
        });
        differ(
            &old.fragment_sources,
            &self.fragment_sources,
            |is, &(protocol, address)| {
                set(is, Entry::FragmentSource(protocol, address));
            },
        );
        differ(
            &old.fragment_destinations,
            &self.fragment_destinations,
            |is, &(protocol, address)| {
                set(is, Entry::FragmentDestination(protocol, address));
            },
        );
        changes.put.extend(self.cover_puts(old));
        let gone = old.covers.iter().filter(|(key, _)| !self.covers.contains_key(key));
        changes.remove.extend(gone.map(cover_entry));
        changes
    }

    /// Adds and removes backends. Those of `come` are new ones, and those of `gone` are there.
    pub(super) fn change_replies(&mut self, come: &Replies, gone: &Replies) -> Changes {
        self.replies.extend(come);
        for reply in gone {
            self.replies.remove(reply);
        }
        let mut changes = Changes::default();
        let mut put = |entry| changes.put.push(Put { entry, replaces: None });
        come.iter().for_each(|reply| put(reply_entry(reply)));
        for host in hosts(come) {
            if self.fragment_sources.insert(host) {
                put(Entry::FragmentSource(host.0, host.1));
            }
        }
        changes.remove.extend(gone.iter().map(reply_entry));
        for host in hosts(gone).into_iter().filter(|host| !has_host(&self.replies, *host)) {
            self.fragment_sources.remove(&host);
            changes.remove.push(Entry::FragmentSource(host.0, host.1));
        }
        changes
    }

    fn cover_puts(&self, old: &Self) -> impl Iterator<Item = Put> {
        self.covers.iter().filter_map(|(key, ports)| {
            let before = old.covers.get(key);
            (before != Some(ports)).then(|| Put {
                entry: cover_entry((key, ports)),
                replaces: before.map(|before| cover_entry((key, before))),
            })
        })
    }

    /// Which maps have entries: `enum tables` of filter_maps.h.
    pub(super) fn tables(&self) -> u32 {
        let whole =
            |endpoints: &BTreeSet<(Protocol, Endpoint)>| endpoints.iter().any(|(_, endpoint)| endpoint.port == 0);
        let exact =
            |endpoints: &BTreeSet<(Protocol, Endpoint)>| endpoints.iter().any(|(_, endpoint)| endpoint.port != 0);
        let flags = [
            self.routes.iter().any(is_host),
            !self.routes.iter().all(is_host),
            exact(&self.local_ports),
            whole(&self.local_ports),
            exact(&self.replies),
            whole(&self.replies),
            !self.covers.is_empty(),
            !self.announced.is_empty(),
        ];
        flags
            .iter()
            .rev()
            .fold(0, |tables, &flag| tables << 1 | u32::from(flag))
    }
}

const fn reply_entry(&(protocol, endpoint): &(Protocol, Endpoint)) -> Entry {
    Entry::Reply(protocol, endpoint)
}

/// Of the protocols whose fragments lbd translates.
fn hosts(endpoints: &BTreeSet<(Protocol, Endpoint)>) -> Hosts {
    let hosts = endpoints
        .iter()
        .map(|&(protocol, endpoint)| (protocol, endpoint.address));
    hosts.filter(|(protocol, _)| protocol.has_fragments()).collect()
}

fn widened(covers: impl Iterator<Item = Cover>) -> Covers {
    let mut exact = Covers::new();
    for Cover { protocol, net, ports } in covers {
        let at = exact.entry((protocol, net.trunc())).or_insert(ports);
        *at = hull(*at, ports);
    }
    let widen = |(&(protocol, net), &ports): (&(Protocol, IpNet), &(u16, u16))| {
        let around = std::iter::successors(net.supernet(), IpNet::supernet);
        let wide = around
            .filter_map(|net| exact.get(&(protocol, net)))
            .fold(ports, |ports, &more| hull(ports, more));
        ((protocol, net), wide)
    };
    exact.iter().map(widen).collect()
}

fn hull((first, last): (u16, u16), (other_first, other_last): (u16, u16)) -> (u16, u16) {
    (first.min(other_first), last.max(other_last))
}

fn differ<T: Ord>(old: &BTreeSet<T>, new: &BTreeSet<T>, mut set: impl FnMut(bool, &T)) {
    new.difference(old).for_each(|item| set(true, item));
    old.difference(new).for_each(|item| set(false, item));
}

fn is_host(net: &IpNet) -> bool {
    net.prefix_len() == net.max_prefix_len()
}

fn route(net: IpNet) -> Entry {
    if is_host(&net) {
        Entry::Host(net.addr())
    } else {
        Entry::Network(net)
    }
}

fn cover_entry((&(protocol, net), &ports): (&(Protocol, IpNet), &(u16, u16))) -> Entry {
    Entry::Cover(protocol, net, ports)
}

#[cfg(test)]
mod tests {
    use super::*;
    use lbd_core::policy::OwnSources;

    fn cover(protocol: Protocol, net: &str, ports: (u16, u16)) -> Cover {
        let net = net.parse().unwrap();
        Cover { protocol, net, ports }
    }

    fn plan(routes: &[&str], replies: &[&str], diverted: &[Cover]) -> Plan {
        let tcp = |text: &&str| (Protocol::Tcp, text.parse().unwrap());
        Plan {
            routes: routes.iter().map(|text| text.parse().unwrap()).collect(),
            replies: replies.iter().map(tcp).collect(),
            diverted: diverted.iter().copied().collect(),
            ..Plan::default()
        }
    }

    fn interest(plan: &Plan) -> Interest {
        Interest::new(plan, [])
    }

    fn reply(text: &str) -> Entry {
        Entry::Reply(Protocol::Tcp, text.parse().unwrap())
    }

    #[test]
    fn an_equal_interest_needs_no_change() {
        let plan = plan(
            &["10.96.0.10/32", "198.18.0.0/28"],
            &["10.2.0.11:80"],
            &[cover(Protocol::Tcp, "10.0.0.0/8", (80, 80))],
        );
        let changes = interest(&plan).changes_from(&interest(&plan));
        assert_eq!(changes, Changes::default());
    }

    #[test]
    fn another_backend_replaces_one_and_touches_nothing_else() {
        let old = interest(&plan(&["10.96.0.10/32"], &["10.2.0.11:80", "10.2.0.12:80"], &[]));
        let new = interest(&plan(&["10.96.0.10/32"], &["10.2.0.12:80", "10.2.0.13:80"], &[]));
        let changes = new.changes_from(&old);
        let fragments = |address: &str| Entry::FragmentSource(Protocol::Tcp, address.parse().unwrap());
        let added = [reply("10.2.0.13:80"), fragments("10.2.0.13")];
        assert_eq!(changes.put, added.map(|entry| Put { entry, replaces: None }));
        assert_eq!(changes.remove, [reply("10.2.0.11:80"), fragments("10.2.0.11")]);
    }

    #[test]
    fn a_service_is_a_host_and_a_pool_is_a_network() {
        let new = interest(&plan(&["198.18.0.5/28", "fd00::10/128"], &[], &[]));
        let changes = new.changes_from(&Interest::default());
        let entries: Vec<Entry> = changes.put.iter().map(|put| put.entry).collect();
        let network = Entry::Network("198.18.0.0/28".parse().unwrap());
        assert_eq!(entries, [network, Entry::Host("fd00::10".parse().unwrap())]);
    }

    #[test]
    fn a_prefix_has_the_ports_of_the_prefixes_around_it_too() {
        let covers = [
            cover(Protocol::Tcp, "10.0.0.0/8", (80, 80)),
            cover(Protocol::Tcp, "10.1.0.0/16", (443, 443)),
            cover(Protocol::Udp, "10.1.2.0/24", (53, 53)),
            cover(Protocol::Tcp, "11.0.0.0/8", (22, 22)),
        ];
        let widened = widened(covers.into_iter());
        let ports = |protocol, net: &str| widened[&(protocol, net.parse().unwrap())];
        assert_eq!(ports(Protocol::Tcp, "10.0.0.0/8"), (80, 80));
        assert_eq!(ports(Protocol::Tcp, "10.1.0.0/16"), (80, 443));
        assert_eq!(ports(Protocol::Udp, "10.1.2.0/24"), (53, 53));
        assert_eq!(ports(Protocol::Tcp, "11.0.0.0/8"), (22, 22));
    }

    #[test]
    fn other_ports_of_a_rule_replace_the_old_ones_and_can_be_put_back() {
        let with = |ports| interest(&plan(&[], &[], &[cover(Protocol::Tcp, "10.0.0.0/8", ports)]));
        let changes = with((80, 81)).changes_from(&with((80, 80)));
        let entry = |ports| Entry::Cover(Protocol::Tcp, "10.0.0.0/8".parse().unwrap(), ports);
        let put = Put {
            entry: entry((80, 81)),
            replaces: Some(entry((80, 80))),
        };
        assert_eq!((changes.put, changes.remove), (vec![put], Vec::new()));
    }

    #[test]
    fn masqueraded_ports_of_an_own_address_are_taken_in_every_protocol() {
        let (backend, own) = ("10.2.0.11".parse().unwrap(), "192.0.2.1".parse().unwrap());
        let own = OwnSources {
            ports: std::sync::Arc::new((32_768..=60_999).into()),
            towards: std::sync::Arc::new([(backend, own)].into()),
        };
        let mut plan = Plan::default();
        plan.serve(BTreeSet::new(), Some(&own));
        let interest = interest(&plan);
        let ports: Vec<_> = interest.covers.values().collect();
        assert_eq!(ports, [&(32_768, 60_999); 3]);
    }

    #[test]
    fn only_maps_with_entries_are_looked_at() {
        assert_eq!(Interest::default().tables(), 0);
        assert_eq!(
            interest(&plan(&["10.96.0.10/32"], &["10.2.0.11:80"], &[])).tables(),
            1 | 1 << 4
        );
        assert_eq!(
            interest(&plan(&["10.0.0.0/8"], &["10.2.0.11:0"], &[])).tables(),
            1 << 1 | 1 << 5
        );
        let announced = Interest::new(&Plan::default(), ["10.96.0.10".parse().unwrap()]);
        assert_eq!(announced.tables(), 1 << 7);
    }
}
