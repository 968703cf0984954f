//! Everything that leads packets to lbd: the kernel's routing, and the XDP program where there is one.
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::path::Path;

use crate::io::xdp::interfaces::{Interfaces, Wanted};
use crate::plumbing::{Device, Plan, Plumbing};
use crate::policy::Policy;

use super::Error;

/// See the module.
pub(super) struct Leads {
    plumbing: Plumbing,
    interfaces: Option<Interfaces>,
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
        let plumbing = Plumbing::install(device, plan, journal)?;
        if interfaces.is_some() {
            // Flows are masqueraded with this host's own addresses, and come out of the device with them.
            plumbing.accept_own_addresses()?;
        }
        let mut leads = Self { plumbing, interfaces };
        leads.lead(policy)?;
        Ok(leads)
    }

    /// Leads what `plan` and `policy` need from now on; all or nothing.
    pub(super) fn update(&mut self, plan: Plan, policy: &Policy) -> Result<(), Error> {
        let before = self.plumbing.plan().clone();
        self.plumbing.update(plan)?;
        let led = self.lead(policy);
        if led.is_err() {
            self.plumbing.update(before)?;
        }
        led
    }

    fn lead(&mut self, policy: &Policy) -> Result<(), Error> {
        let Some(interfaces) = &mut self.interfaces else {
            return Ok(());
        };
        let plan = self.plumbing.plan();
        interfaces.lead(Wanted {
            plan,
            masquerade: &own_sources(policy),
            addresses: &foreign_addresses(plan, policy),
        })?;
        Ok(())
    }

    /// What is led here now.
    pub(super) const fn plan(&self) -> &Plan {
        self.plumbing.plan()
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

    /// Leads nothing here any more.
    pub(super) fn remove(self) -> Result<(), Error> {
        drop(self.interfaces);
        Ok(self.plumbing.remove()?)
    }
}

fn own_sources(policy: &Policy) -> Vec<(IpAddr, RangeInclusive<u16>)> {
    let Some(own) = &policy.nat.own else {
        return Vec::new();
    };
    let addresses: BTreeSet<IpAddr> = own.towards.values().copied().collect();
    addresses
        .into_iter()
        .map(|address| (address, own.ports.clone()))
        .collect()
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
