//! Everything that leads packets to lbd: the kernel's routing, and the XDP program where there is one.
use std::collections::{BTreeSet, HashSet};
use std::net::IpAddr;
use std::path::Path;

use ipnet::IpNet;

use lbd_core::policy::Policy;
use lbd_net::io::xdp::interfaces::{Interfaces, Wanted};
use lbd_net::plumbing::{self, Device, Halt, Look, Plan, Plumbing, Repaired, Tended};

use super::Error;
use super::backends::Replies;

/// See the module.
pub(super) struct Leads {
    plumbing: Plumbing,
    interfaces: Option<Interfaces>,
    /// Service addresses that no interface of this host has, as long as anything is led to lbd for them.
    foreign: BTreeSet<IpAddr>,
    /// How often something had to be put back.
    repairs: u32,
    /// What could not be put back, and why, as the log has been told.
    troubles: Vec<String>,
    /// Why nothing can be led here any more.
    lost: Option<plumbing::Error>,
}

impl Leads {
    /// Leads what `plan` and `policy` need; all or nothing.
    pub(super) fn install(
        device: Device,
        interfaces: Option<Interfaces>,
        plan: Plan,
        policy: &Policy,
        journal: &Path,
    ) -> Result<Self, Error> {
        let plumbing = Plumbing::install(device, plan.answers(), journal)?;
        let mut leads = Self {
            plumbing,
            interfaces,
            foreign: BTreeSet::new(),
            repairs: 0,
            troubles: Vec::new(),
            lost: None,
        };
        if leads.interfaces.is_some() {
            // Flows are masqueraded with this host's own addresses, and come out of the device with them.
            leads.plumbing.accept_own_addresses()?;
            // Before the kernel leads requests to lbd: answers come at once, and reset their connections if nobody takes them.
            leads.lead(&plan, policy)?;
        }
        leads.plumbing.update(plan)?;
        Ok(leads)
    }

    /// See [`Plumbing::heed`].
    pub(super) fn heed(&mut self, halt: Halt) {
        self.plumbing.heed(halt);
    }

    /// Leads what `plan` and `policy` need from now on; all or nothing.
    pub(super) fn update(&mut self, plan: Plan, policy: &Policy) -> Result<(), Error> {
        let before = self.plumbing.plan().clone();
        self.plumbing.update(plan.clone())?;
        let led = self.lead(&plan, policy);
        if led.is_err() {
            self.plumbing.update(before)?;
        }
        led
    }

    /// Leads what these backends answer here, too; all or nothing.
    pub(super) fn add_replies(&mut self, come: &Replies) -> Result<(), Error> {
        self.plumbing.add_replies(come)?;
        let led = self.change_replies(come, &Replies::new());
        if led.is_err() {
            self.plumbing.remove_replies(come)?;
        }
        led
    }

    /// Leads what these backends answer here no more, as far as no others depend on it.
    pub(super) fn remove_replies(&mut self, gone: &Replies) -> Result<(), Error> {
        self.plumbing.remove_replies(gone)?;
        self.change_replies(&Replies::new(), gone)
    }

    /// Leads these addresses here no more.
    pub(super) fn remove_routes(&mut self, gone: &BTreeSet<IpNet>, policy: &Policy) -> Result<(), Error> {
        if gone.is_empty() {
            return Ok(());
        }
        self.plumbing.remove_routes(gone)?;
        if self.interfaces.is_none() {
            return Ok(());
        }
        let rest = self.plumbing.plan().clone();
        self.lead(&rest, policy)
    }

    fn change_replies(&mut self, come: &Replies, gone: &Replies) -> Result<(), Error> {
        match &mut self.interfaces {
            Some(interfaces) => Ok(interfaces.change_replies(come, gone)?),
            None => Ok(()),
        }
    }

    fn lead(&mut self, plan: &Plan, policy: &Policy) -> Result<(), Error> {
        let Some(interfaces) = &mut self.interfaces else {
            return Ok(());
        };
        let mut foreign = foreign_addresses(plan, policy);
        // Flows of services that are gone need theirs still.
        let kept = self
            .foreign
            .iter()
            .filter(|&&address| plan.routes.contains(&address.into()));
        foreign.extend(kept);
        interfaces.lead(Wanted {
            plan,
            addresses: &foreign,
        })?;
        self.foreign = foreign;
        Ok(())
    }

    /// Puts back what others have taken out of the kernel or changed, where a look finds it so.
    pub(super) fn look_after(&mut self, look: Look) {
        if self.lost.is_some() {
            return;
        }
        match self.plumbing.tend(look) {
            Ok(Tended { repaired, troubles }) => {
                if !repaired.is_nothing() {
                    self.repairs += 1;
                    self.tell_of(&repaired);
                }
                self.tell(troubles);
            }
            Err(error) => self.lost = Some(error),
        }
    }

    /// Why nothing can be led here any more, if it is so.
    pub(super) const fn take_loss(&mut self) -> Option<plumbing::Error> {
        self.lost.take()
    }

    /// Who takes them out again and again is told of less and less often.
    fn tell_of(&self, repaired: &Repaired) {
        const FEW: u32 = 5;
        if self.repairs <= FEW || self.repairs.is_power_of_two() {
            tracing::warn!(
                "of what lbd needs in the kernel this was gone or changed, and is put back (times so far: {}): {repaired}; \
                 does another program manage this host's network? \
                 (systemd-networkd: ManageForeignRoutingPolicyRules=no and ManageForeignRoutes=no in networkd.conf)",
                self.repairs
            );
        }
    }

    /// Each once, for as long as it is the same.
    fn tell(&mut self, troubles: Vec<String>) {
        for new in troubles.iter().filter(|trouble| !self.troubles.contains(trouble)) {
            tracing::error!("cannot put back what lbd needs in the kernel: {new}");
        }
        self.troubles = troubles;
    }

    /// What could not be put back, and why.
    pub(super) fn troubles(&self) -> &[String] {
        &self.troubles
    }

    /// What is led here now.
    pub(super) const fn plan(&self) -> &Plan {
        self.plumbing.plan()
    }

    /// Service addresses that other hosts have, so that ports which no service has there are theirs. What lbd announces as its
    /// own is not.
    pub(super) fn other_hosts(&self) -> HashSet<IpAddr> {
        let announced = self.interfaces.as_ref().is_some_and(Interfaces::announces);
        let others = self.plumbing.other_hosts();
        others.filter(|_| !announced).collect()
    }

    /// The interfaces that are served by AF_XDP.
    pub(super) const fn interfaces(&self) -> Option<&Interfaces> {
        self.interfaces.as_ref()
    }

    /// See [`Interfaces::follow_links`].
    pub(super) fn follow_links(&mut self) -> Result<(), Error> {
        match &mut self.interfaces {
            Some(interfaces) => Ok(interfaces.follow_links()?),
            None => Ok(()),
        }
    }

    /// See [`Interfaces::watch_queues`].
    pub(super) fn watch_queues(&mut self) {
        if let Some(interfaces) = &mut self.interfaces {
            interfaces.watch_queues();
        }
    }

    /// Leads nothing here any more.
    pub(super) fn remove(self) -> Result<(), Error> {
        // Requests first: an answer that is not translated resets its connection.
        let removed = self.plumbing.remove();
        drop(self.interfaces);
        Ok(removed?)
    }
}

/// Service addresses that no interface of this host has.
fn foreign_addresses(plan: &Plan, policy: &Policy) -> BTreeSet<IpAddr> {
    let endpoints = policy
        .services
        .iter()
        .flat_map(|service| service.endpoints(&policy.node_addresses));
    let addresses = endpoints.map(|endpoint| endpoint.address);
    addresses
        .filter(|&address| plan.routes.contains(&address.into()))
        .collect()
}
