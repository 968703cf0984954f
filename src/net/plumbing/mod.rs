//! What lbd asks of the kernel in TUN mode: device up, routes, policy rules, sysctls; and how all of it is undone.
//!
//! The caller opens a non-persistent TUN device, so the device and every route over it vanish with the process.
//! The rest is put in by [`Plumbing::install`], follows the configuration by [`Plumbing::update`], is taken out by
//! [`Plumbing::remove`], and what a killed lbd left behind is taken out by [`clear_leftovers`].
//!
//! A packet's way, as policy rules (all marked with `object::OWNER`, `ip rule` shows `proto 108`):
//!
//! ```text
//!  10: iif lbd0 goto 20                          what lbd wrote is never taken in again      (only with
//!  11: to NODE ipproto tcp dport 30080 -> 7763   node ports and services on local addresses   local
//!  12: sport 1-65534 goto 20                     whole packets, and the same with dport
//!  13: to NODE ipproto tcp -> 7763               fragments, whose ports the kernel does not see
//!  20: lookup local                              moved here from 0                            ports)
//!  30: iif lbd0 goto 39
//!  30: iif eth0 goto 37                          what the XDP program on eth0 left to the kernel   (only with AF_XDP)
//!  31: from BACKEND ipproto tcp sport 8080 -> 7763   replies, so that clients keep their address
//!      (and `to` destinations of iptables-mode rules that lead to a service)
//!  32: from 0.0.0.0 iif lo ipproto icmp dport 768-783 -> 7763   the kernel's word that a packet which lbd wrote does not
//!                                                arrive, and the same from backends that are this host ...
//!  33: iif lo ipproto icmp goto 37               (what else this host says in ICMP is none of lbd's)
//!  34: ipproto icmp -> 7763                      ... and a router's, about a packet that lbd led to a backend
//!  35: sport 1-65534 goto 37                     whole packets, and the same with dport
//!  36: from BACKEND ipproto tcp -> 7763          fragments of replies
//!  36: from BACKEND iif lo -> 7763               RSTs that the host's firewall sends in a backend's name
//!  37: lookup 7762                               service, external and pool addresses -> lbd0
//!  39: iif lbd0 lookup 7764                      the same addresses, unreachable: nobody serves that port, unless the
//!                                                address is another host's
//! 32766: lookup main
//! ```
//!
//! Facts about the kernel that this rests on (measured on 6.18, each has a test in `integration/plumbing`):
//! - A device without any IPv4 address has strict reverse path filtering even when it is set to loose
//!   (`__fib_validate_source`, `no_addr`), so the device gets `device::DUMMY_ADDRESS` at host scope. That scope
//!   keeps the address from being chosen as a source: a local client's packet to a service carries the address of
//!   another interface. On a host with no other address, IPv4 clients send from 0.0.0.0 and IPv6 clients from ::1.
//! - The kernel walks policy rules one by one for each packet; see `cover` for the cost and what is done about it.
//! - Rules cannot tell an ICMP error from an echo, nor whom an error is about. So all ICMP that this host forwards takes
//!   the way over lbd, which passes on what is about none of its flows, at the price of one more hop in its TTL.
//!   Where every flow is masqueraded, the errors come to lbd's own addresses, and there are no such rules.
//! - Of what this host itself says in ICMP, rules can tell the type and code, as a destination port, and in IPv4 whether it is about
//!   a packet that was to be forwarded: then no source is chosen yet. Such errors are led to lbd. What of them is about none of its
//!   flows it sends in the host's name, by a raw socket, with one hop less in its TTL ([`crate::io`]): out of the device it would be
//!   INVALID to connection tracking. Where lbd may open no raw socket, only errors that connection tracking knows are led to it, and
//!   come back from an address of this host that may be another interface's than without lbd. The rest is left alone: a ping would
//!   choose a wrong source address.
//! - RSTs by which the host's firewall rejects a segment to a backend come from the backend, and the kernel asks for their way without
//!   protocol and port in IPv4. Not led are those in the name of backends that are this host itself, from which it sends more.
//! - A rule with a port never matches a fragment, not even the first one (its ports are not dissected). So the fragments of
//!   all that a backend says go to lbd, which passes on what is of no flow of its.
mod address;
mod cover;
mod device;
mod directory;
mod error;
pub mod firewall;
mod forwarding;
mod halt;
mod identity;
mod journal;
mod leftovers;
mod message;
mod netlink;
mod object;
mod plan;
mod repair;
mod replies;
mod sysctl;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;

use ipnet::IpNet;

pub use address::{Monitor, local_addresses, owned_addresses};
pub use cover::Cover;
pub use device::Device;
pub use directory::journal_directory;
pub use error::Error;
pub use halt::Halt;
pub use leftovers::{Summary, clear_leftovers};
pub(crate) use plan::has_host;
pub use plan::{Plan, PlanError};
pub use repair::{Look, Repaired, Tended};

pub(crate) use message::is_ours as is_own_rule;
pub(crate) use netlink::Handle;
pub(crate) use object::{DIVERT_TABLE, SERVICES_TABLE};

use journal::Journal;
use object::{Family, FirstLocalRules, Object, Step};
use repair::Setbacks;

use lbd_core::flow::{Endpoint, Protocol};

/// Everything lbd has put into the kernel, and how to undo it. Dropping it undoes it too, but hides errors.
#[derive(Debug)]
pub struct Plumbing {
    handle: Handle,
    device: Device,
    index: u32,
    journal: Journal,
    /// Those that stood at priority 0 before lbd came.
    first_local_rules: FirstLocalRules,
    plan: Plan,
    /// Of the plan's addresses those that other hosts have: what no service takes there goes on to them.
    elsewhere: BTreeSet<IpNet>,
    installed: Vec<Object>,
    /// Whatever the plan says of it.
    accepts_own_addresses: bool,
    setbacks: Setbacks,
    /// Looks at what others did, so far.
    looks: u32,
    halt: Halt,
    removed: bool,
}

impl Plumbing {
    /// Brings `device` up and puts `plan` into the kernel; all or nothing. The old values of sysctls are kept in a
    /// file in the directory `journal` (created when missing; one file a network namespace) before they are changed.
    /// Call [`clear_leftovers`] before.
    ///
    /// # Errors
    /// When another lbd runs in this network namespace, or the kernel refuses anything.
    pub fn install(device: Device, plan: Plan, journal: &Path) -> Result<Self, Error> {
        let mut handle = Handle::open()?;
        let journal = Journal::claim(journal, &device.name)?;
        let first_local_rules = FirstLocalRules {
            v4: leftovers::first_local_rules(&mut handle, Family::V4)?,
            v6: leftovers::first_local_rules(&mut handle, Family::V6)?,
        };
        let index = device.bring_up(&mut handle)?;
        let mut plumbing = Self {
            handle,
            device,
            index,
            journal,
            first_local_rules,
            plan: Plan::default(),
            elsewhere: BTreeSet::new(),
            installed: Vec::new(),
            accepts_own_addresses: false,
            setbacks: Setbacks::default(),
            looks: 0,
            halt: Halt::default(),
            removed: false,
        };
        // On failure `plumbing` is dropped, which undoes the sysctls that were already set.
        plumbing.update(plan)?;
        Ok(plumbing)
    }

    /// Has changes end early once `halt` is set, with what they have done so far left in place: [`Self::remove`] is to follow.
    pub fn heed(&mut self, halt: Halt) {
        self.halt = halt;
    }

    /// Changes what is installed into `plan`: first adds what is new, then removes what is gone; all or nothing.
    ///
    /// # Errors
    /// When the kernel refuses anything; then what was changed has been changed back.
    pub fn update(&mut self, plan: Plan) -> Result<(), Error> {
        let needs = self.needs(&plan);
        if needs != self.needs(&self.plan) {
            for outcome in sysctl::prepare_device(&self.device.name, needs) {
                outcome?;
            }
        }
        for family in Family::BOTH {
            if plan.uses(family) && !self.plan.uses(family) {
                sysctl::prepare(family, &self.device.name, &mut self.journal)?;
            }
        }
        let elsewhere = self.elsewhere(&plan)?;
        let wanted = object::objects(&plan, &elsewhere, &self.first_local_rules);
        let steps = object::difference(&self.installed, &wanted);
        self.apply(&steps)?;
        self.installed = wanted;
        self.elsewhere = elsewhere;
        self.plan = plan;
        Ok(())
    }

    /// The kernel can be asked about an address before lbd leads it to itself, and not after.
    fn elsewhere(&mut self, plan: &Plan) -> Result<BTreeSet<IpNet>, Error> {
        let hosts = plan
            .routes
            .iter()
            .filter(|net| net.prefix_len() == net.max_prefix_len());
        let (known, new): (Vec<IpNet>, Vec<IpNet>) = hosts.partition(|net| self.plan.routes.contains(*net));
        let addresses: Vec<IpAddr> = new.iter().map(IpNet::addr).collect();
        let told = self.handle.are_other_hosts(&addresses, &self.halt)?;
        let known = known.into_iter().filter(|net| self.elsewhere.contains(net));
        let new = new.into_iter().zip(told).filter(|(_, is_elsewhere)| *is_elsewhere);
        Ok(known.chain(new.map(|(net, _)| net)).collect())
    }

    /// Leads what these backends answer to lbd, too; all or nothing. It costs what they cost, not what all backends cost,
    /// unless so many are covered one by one by then that wider rules are needed.
    ///
    /// # Errors
    /// When the kernel refuses; then all is as before.
    pub fn add_replies(&mut self, replies: &BTreeSet<(Protocol, Endpoint)>) -> Result<(), Error> {
        match replies::additions(&self.installed, &self.plan, replies) {
            Some(rules) => {
                let steps: Vec<Step> = rules.iter().cloned().map(Object::Rule).map(Step::Install).collect();
                self.apply(&steps)?;
                replies::insert(&mut self.installed, rules);
                self.plan.replies.extend(replies);
                Ok(())
            }
            None => {
                let mut plan = self.plan.clone();
                plan.replies.extend(replies);
                self.update(plan)
            }
        }
    }

    /// Leads what these backends answer to lbd no more, at the cost of these. Rules that cover others beside them stay as
    /// wide as they are until the next [`Self::update`].
    ///
    /// # Errors
    /// When the kernel refuses; then all is as before.
    pub fn remove_replies(&mut self, replies: &BTreeSet<(Protocol, Endpoint)>) -> Result<(), Error> {
        for reply in replies {
            self.plan.replies.remove(reply);
        }
        let alone = replies::alone(&self.installed, replies, &self.plan.replies);
        let steps: Vec<Step> = alone.iter().rev().cloned().map(Step::Undo).collect();
        if let Err(error) = self.apply(&steps) {
            self.plan.replies.extend(replies);
            return Err(error);
        }
        self.installed.retain(|object| !alone.contains(object));
        Ok(())
    }

    /// Leads these addresses to lbd no more, at the cost of these.
    ///
    /// # Errors
    /// When the kernel refuses; then all is as before.
    pub fn remove_routes(&mut self, gone: &BTreeSet<IpNet>) -> Result<(), Error> {
        let used = Family::BOTH.map(|family| self.plan.uses(family));
        let before: Vec<IpNet> = self.plan.routes.extract_if(.., |net| gone.contains(net)).collect();
        if Family::BOTH.map(|family| self.plan.uses(family)) != used {
            // The rules of a family go with its last route.
            let rest = self.plan.clone();
            self.plan.routes.extend(before);
            return self.update(rest);
        }
        let is_gone = |object: &Object| object.service_address().is_some_and(|net| gone.contains(&net));
        let there = self.installed.iter().rev().filter(|object| is_gone(object));
        let steps: Vec<Step> = there.cloned().map(Step::Undo).collect();
        if let Err(error) = self.apply(&steps) {
            self.plan.routes.extend(before);
            return Err(error);
        }
        self.installed.retain(|object| !is_gone(object));
        self.elsewhere.retain(|net| !gone.contains(net));
        Ok(())
    }

    /// Has the kernel take packets from this host's own addresses out of the device.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn accept_own_addresses(&mut self) -> Result<(), Error> {
        self.accepts_own_addresses = true;
        sysctl::accept_local(&self.device.name).map(|_| ())
    }

    /// Takes everything out of the kernel again. The device stays, down to its owner.
    ///
    /// # Errors
    /// What the kernel refused to undo first; the rest has been undone as far as that is safe.
    pub fn remove(mut self) -> Result<(), Error> {
        self.undo()
    }

    /// What is installed now.
    #[must_use]
    pub const fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Of the routed addresses those that other hosts have.
    pub fn other_hosts(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.elsewhere.iter().map(IpNet::addr)
    }

    fn apply(&mut self, steps: &[Step]) -> Result<(), Error> {
        let outcome = self.handle.run(steps, self.context(), &self.halt);
        let Some(error) = outcome.error else {
            return Ok(());
        };
        if matches!(error, Error::Halted) {
            let new = outcome.done.into_iter().filter(|step| !step.is_removal());
            self.installed.extend(new.map(Step::into_object));
            return Err(error);
        }
        let back: Vec<Step> = outcome.done.into_iter().rev().map(Step::inverse).collect();
        let rollback = self.handle.run_all(&back, self.context());
        if let Some(second) = rollback {
            tracing::error!("could not undo a failed change of routes and rules: {second}");
        }
        Err(error)
    }

    fn undo(&mut self) -> Result<(), Error> {
        self.removed = true;
        let steps = object::difference(&self.installed, &[]);
        let refused = self.handle.run_all(&steps, self.context());
        self.installed.clear();
        let tidied = self.device.tidy(self.index, &mut self.handle);
        let sysctls = sysctl::restore(&mut self.journal);
        match refused {
            Some(error) => Err(error),
            None => tidied.and(sysctls),
        }
    }

    fn context(&self) -> message::Context {
        message::Context {
            device: self.device.name.clone(),
            index: self.index,
        }
    }
}

impl Drop for Plumbing {
    fn drop(&mut self) {
        if self.removed {
            return;
        }
        if let Err(error) = self.undo() {
            tracing::error!("could not undo what lbd put into the kernel: {error}");
        }
    }
}
