//! What others have taken out of the kernel goes back in: a network manager that clears rules and routes which are not its own
//! (systemd-networkd does, unless networkd.conf(5) has `ManageForeignRoutingPolicyRules=no` and `ManageForeignRoutes=no`), or a
//! hand that took the device down, with which its routes go.
use std::fmt;

use super::error::Error;
use super::object::{DIVERT_TABLE, Family, Object, Route, Step};
use super::{Plumbing, leftovers, sysctl};

/// What was missing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Repaired {
    /// Policy rules.
    pub rules: usize,
    /// Routes.
    pub routes: usize,
    /// IP versions that were not forwarded any more.
    pub sysctls: usize,
}

impl fmt::Display for Repaired {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rules, routes, sysctls } = self;
        write!(f, "{rules} policy rules, {routes} routes and {sysctls} sysctls")
    }
}

impl Plumbing {
    /// Whether all seems to be there, by what is looked at quickly: how many rules there are, and the routes of one small table.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn is_whole(&mut self) -> Result<bool, Error> {
        for family in self.families() {
            let rules = self.installed.iter().filter(|object| is_rule(object, family)).count();
            let routes = self.installed.iter().filter(|object| is_diverting(object, family));
            let whole = leftovers::count_rules(&mut self.handle, family)? >= rules
                && leftovers::routes(&mut self.handle, family, DIVERT_TABLE)?.len() >= routes.count()
                && sysctl::is_forwarding(family)?;
            if !whole {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Puts back whatever is missing. None: nothing was.
    ///
    /// # Errors
    /// When the kernel refuses; what could be put back before that stays.
    pub fn repair(&mut self) -> Result<Option<Repaired>, Error> {
        let mut repaired = Repaired::default();
        self.index = self.device.bring_up(&mut self.handle)?;
        for family in self.families() {
            repaired.sysctls += usize::from(sysctl::forward_again(family)?);
        }
        let steps: Vec<Step> = self.installed.iter().cloned().map(Step::Install).collect();
        for step in self.handle.put_back(&steps, &self.context())? {
            match step.object() {
                Object::Route(_) => repaired.routes += 1,
                Object::Rule(_) | Object::NoFirstLocalRule(..) => repaired.rules += 1,
            }
        }
        Ok((repaired != Repaired::default()).then_some(repaired))
    }

    fn families(&self) -> Vec<Family> {
        let used = Family::BOTH.into_iter().filter(|&family| self.plan.uses(family));
        used.collect()
    }
}

fn is_rule(object: &Object, of: Family) -> bool {
    if let Object::Rule(rule) = object {
        rule.family == of
    } else {
        false
    }
}

fn is_diverting(object: &Object, of: Family) -> bool {
    if let Object::Route(Route { net, table, .. }) = object {
        *table == DIVERT_TABLE && Family::of(net.addr()) == of
    } else {
        false
    }
}
