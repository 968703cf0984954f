//! What others have taken out of the kernel goes back in: a network manager that clears rules and routes which are not its own
//! (systemd-networkd does, unless networkd.conf(5) has `ManageForeignRoutingPolicyRules=no` and `ManageForeignRoutes=no`), or a
//! hand that took the device down, with which its routes go.
use std::fmt;

use super::error::Error;
use super::object::{DIVERT_TABLE, Family, Object, REFUSE_TABLE, Route, SERVICES_TABLE, Step};
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

impl Repaired {
    /// Whether nothing was missing.
    #[must_use]
    pub fn is_nothing(&self) -> bool {
        *self == Self::default()
    }
}

impl fmt::Display for Repaired {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rules, routes, sysctls } = self;
        write!(f, "{rules} policy rules, {routes} routes and {sysctls} sysctls")
    }
}

impl Plumbing {
    /// Whether all seems to be there, by what is looked at quickly: how many rules there are, the routes of a small table, and
    /// whether the host forwards.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn is_whole(&mut self) -> Result<bool, Error> {
        for family in self.families() {
            let rules = self.installed.iter().filter(|object| is_rule(object, family)).count();
            let (found, has_first_local) = leftovers::look_at_rules(&mut self.handle, family)?;
            // Where the local table's rule has been moved, one at priority 0 is in the way of local ports.
            let is_in_the_way = has_first_local && self.has_moved_local_rule(family);
            let whole = found >= rules
                && !is_in_the_way
                && self.has_routes(family, DIVERT_TABLE)?
                && sysctl::is_forwarding(family)?;
            if !whole {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The same, and by how many routes there are, which takes a while where there are many services.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn is_complete(&mut self) -> Result<bool, Error> {
        for family in self.families() {
            for table in [SERVICES_TABLE, REFUSE_TABLE] {
                if !self.has_routes(family, table)? {
                    return Ok(false);
                }
            }
        }
        self.is_whole()
    }

    fn has_routes(&mut self, family: Family, table: u32) -> Result<bool, Error> {
        let installed = self
            .installed
            .iter()
            .filter(|object| is_route(object, family, table))
            .count();
        Ok(leftovers::count_routes(&mut self.handle, family, table)? >= installed)
    }

    fn has_moved_local_rule(&self, of: Family) -> bool {
        self.installed
            .iter()
            .any(|object| matches!(object, Object::NoFirstLocalRule(family, _) if *family == of))
    }

    /// Puts back whatever is missing. What was, also where the kernel then refuses something else.
    pub fn repair(&mut self) -> (Repaired, Result<(), Error>) {
        let mut repaired = Repaired::default();
        let result = self.put_back(&mut repaired).and_then(|()| {
            for family in self.families() {
                if !sysctl::is_forwarding(family)? {
                    sysctl::prepare(family, &self.device.name, &mut self.journal)?;
                    repaired.sysctls += 1;
                }
            }
            Ok(())
        });
        (repaired, result)
    }

    fn put_back(&mut self, repaired: &mut Repaired) -> Result<(), Error> {
        self.index = self.device.bring_up(&mut self.handle)?;
        let mut steps: Vec<Step> = self.installed.iter().cloned().map(Step::Install).collect();
        let back = leftovers::first_local_rules(&mut self.handle)?;
        for family in self
            .families()
            .into_iter()
            .filter(|&family| self.has_moved_local_rule(family))
        {
            // By whomever they were put there.
            let marks = back.of(family).iter();
            steps.extend(marks.map(|&mark| Step::Install(Object::NoFirstLocalRule(family, mark))));
        }
        let (done, result) = self.handle.put_back(&steps, &self.context());
        for step in done {
            match step.object() {
                Object::Route(_) => repaired.routes += 1,
                Object::Rule(_) | Object::NoFirstLocalRule(..) => repaired.rules += 1,
            }
        }
        result
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

fn is_route(object: &Object, of: Family, in_table: u32) -> bool {
    if let Object::Route(Route { net, table, .. }) = object {
        *table == in_table && Family::of(net.addr()) == of
    } else {
        false
    }
}
