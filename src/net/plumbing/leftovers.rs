//! What a killed lbd has left in the kernel: rules without a device, unreachable routes, changed sysctls.
use std::fmt;
use std::path::Path;

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::LinkAttribute;
use netlink_packet_route::route::{RouteAttribute, RouteMessage};
use netlink_packet_route::rule::RuleMessage;

use super::error::Error;
use super::forwarding;
use super::journal::Journal;
use super::message;
use super::netlink::Handle;
use super::object::{DIVERT_TABLE, Family, KERNEL, LOCAL, Object, REFUSE_TABLE, Route, SERVICES_TABLE, Step};

/// What was cleared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Policy rules taken out.
    pub rules: usize,
    /// Routes taken out.
    pub routes: usize,
    /// Sysctls put back.
    pub sysctls: usize,
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rules, routes, sysctls } = self;
        write!(
            f,
            "{rules} policy rules and {routes} routes removed, {sysctls} sysctls put back"
        )
    }
}

/// Clears what an lbd that did not end properly has left in this network namespace; `journal` is the directory given to
/// [`super::Plumbing::install`]. None: there was nothing. Call it before `install`.
///
/// # Errors
/// When another lbd still runs here, or the kernel refuses to undo something.
pub fn clear_leftovers(journal: &Path) -> Result<Option<Summary>, Error> {
    let mut handle = Handle::open()?;
    let mut journal = Journal::left_behind(journal)?;
    let routes = our_routes(&mut handle)?;
    refuse_if_in_use(&mut handle, &routes, journal.as_ref())?;
    let mut summary = Summary::default();
    for family in Family::BOTH.into_iter().filter(|family| family.is_supported()) {
        summary.rules += clear_rules(&mut handle, family)?;
    }
    summary.routes = clear_routes(&mut handle, &routes)?;
    if let Some(journal) = &mut journal {
        let (restored, result) = forwarding::restore(journal.settings());
        summary.sysctls = restored;
        result?;
        journal.delete()?;
    }
    Ok((summary != Summary::default()).then_some(summary))
}

/// By whom each rule for the local table at priority 0, where the kernel puts one, is marked.
pub(super) fn first_local_rules(handle: &mut Handle, family: Family) -> Result<Vec<u8>, Error> {
    let rules = rules(handle, family)?;
    let first = rules.iter().filter(|rule| is_first_local(rule));
    Ok(first.map(message::mark).collect())
}

fn is_first_local(rule: &RuleMessage) -> bool {
    message::is_local_rule(rule) && message::priority(rule) == 0
}

/// A route through a device with a carrier means that a process holds that device: another lbd. The journal of an lbd
/// that is gone is proof to the contrary for its own device (a persistent one, opened anew by our caller).
fn refuse_if_in_use(
    handle: &mut Handle,
    routes: &[(Route, Option<u32>)],
    journal: Option<&Journal>,
) -> Result<(), Error> {
    for link in handle.links()? {
        let used = routes.iter().any(|(_, device)| *device == Some(link.header.index));
        let has_carrier = link.attributes.contains(&LinkAttribute::Carrier(1));
        let name = link.attributes.iter().find_map(|attribute| {
            if let LinkAttribute::IfName(name) = attribute {
                Some(name.as_str())
            } else {
                None
            }
        });
        let name = name.unwrap_or("?");
        let proved_dead = journal.is_some_and(|journal| journal.device() == name);
        if used && has_carrier && !proved_dead {
            return Err(Error::AlreadyRunning {
                who: format!("device {name}"),
            });
        }
    }
    Ok(())
}

fn rules(handle: &mut Handle, family: Family) -> Result<Vec<RuleMessage>, Error> {
    if !family.is_supported() {
        return Ok(Vec::new());
    }
    let mut query = RuleMessage::default();
    query.header.family = message::address_family(family);
    let dumped = handle.dump(RouteNetlinkMessage::GetRule(query))?;
    let rule = |message| {
        if let RouteNetlinkMessage::NewRule(rule) = message {
            Some(rule)
        } else {
            None
        }
    };
    Ok(dumped.into_iter().filter_map(rule).collect())
}

/// The local table's rule goes back to its place before the moved one is taken out.
fn clear_rules(handle: &mut Handle, family: Family) -> Result<usize, Error> {
    let (ours, others): (Vec<_>, Vec<_>) = rules(handle, family)?.into_iter().partition(message::is_ours);
    let moved = ours
        .iter()
        .any(|rule| message::is_local_rule(rule) && message::priority(rule) == LOCAL);
    // Who has a local rule elsewhere by now, as Cilium does at 100, does not want it at 0.
    if moved && !others.iter().any(message::is_local_rule) {
        // By whom it was marked has died with that lbd; the kernel's own mark is what all but few have.
        let back = Step::Undo(Object::NoFirstLocalRule(family, KERNEL));
        if let Some(error) = handle.run_all(&[back], message::Context::nowhere()) {
            return Err(error);
        }
    }
    let messages: Vec<_> = ours.iter().rev().cloned().map(RouteNetlinkMessage::DelRule).collect();
    handle.delete_all(&messages, "ip rule del … proto 108")?;
    Ok(ours.len())
}

/// How many rules of lbd's there are, and whether one for the local table is at priority 0.
pub(super) fn look_at_rules(handle: &mut Handle, family: Family) -> Result<(usize, bool), Error> {
    let rules = rules(handle, family)?;
    let ours = rules.iter().filter(|rule| message::is_ours(rule)).count();
    Ok((ours, rules.iter().any(is_first_local)))
}

fn our_routes(handle: &mut Handle) -> Result<Vec<(Route, Option<u32>)>, Error> {
    let mut found = Vec::new();
    for family in Family::BOTH.into_iter().filter(|family| family.is_supported()) {
        for table in [SERVICES_TABLE, DIVERT_TABLE, REFUSE_TABLE] {
            found.extend(routes(handle, family, table)?);
        }
    }
    Ok(found)
}

/// lbd's routes in one of its tables, each with the index of its device.
fn routes(handle: &mut Handle, family: Family, table: u32) -> Result<Vec<(Route, Option<u32>)>, Error> {
    let found = all_routes(handle, family, table)?;
    let ours = found.iter().filter_map(message::our_route);
    Ok(ours.filter(|(route, _)| route.table == table).collect())
}

/// How many routes there are in one of lbd's tables, by whomever.
pub(super) fn count_routes(handle: &mut Handle, family: Family, table: u32) -> Result<usize, Error> {
    Ok(all_routes(handle, family, table)?.len())
}

fn all_routes(handle: &mut Handle, family: Family, table: u32) -> Result<Vec<RouteMessage>, Error> {
    let mut query = RouteMessage::default();
    query.header.address_family = message::address_family(family);
    query.attributes.push(RouteAttribute::Table(table));
    let dumped = handle.dump_if_any(RouteNetlinkMessage::GetRoute(query))?;
    let route = |message| {
        if let RouteNetlinkMessage::NewRoute(route) = message {
            Some(route)
        } else {
            None
        }
    };
    Ok(dumped.into_iter().filter_map(route).collect())
}

fn clear_routes(handle: &mut Handle, routes: &[(Route, Option<u32>)]) -> Result<usize, Error> {
    for (route, device) in routes {
        let step = Step::Undo(Object::Route(route.clone()));
        let context = message::Context {
            device: String::new(),
            index: device.unwrap_or(0),
        };
        if let Some(error) = handle.run_all(&[step], context) {
            return Err(error);
        }
    }
    Ok(routes.len())
}
