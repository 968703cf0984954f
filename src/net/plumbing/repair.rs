//! What others have taken out of the kernel goes back in: a network manager that clears rules and routes which are not its own
//! (systemd-networkd does, unless networkd.conf(5) has `ManageForeignRoutingPolicyRules=no` and `ManageForeignRoutes=no`), or a
//! hand that changed the device or took it down, with which its routes go.
//!
//! The device, and the rules, routes and forwarding of each IP version are seen to one by one: what is refused for one of
//! them keeps none of the others from being put back.
use std::collections::BTreeMap;
use std::fmt;

use super::device::Needs;
use super::error::Error;
use super::object::{DIVERT_TABLE, Family, Object, REFUSE_TABLE, Route, SERVICES_TABLE, Step};
use super::{Plan, Plumbing, forwarding, leftovers, sysctl};

/// What was missing or changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Repaired {
    /// Policy rules.
    pub rules: usize,
    /// Routes.
    pub routes: usize,
    /// Sysctls of the host.
    pub sysctls: usize,
    /// What the device was like.
    pub device: Vec<String>,
}

impl Repaired {
    /// Whether nothing was.
    #[must_use]
    pub fn is_nothing(&self) -> bool {
        *self == Self::default()
    }
}

impl fmt::Display for Repaired {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts = [
            (self.rules, "policy rules"),
            (self.routes, "routes"),
            (self.sysctls, "sysctls"),
        ];
        let counts = counts.iter().filter(|(count, _)| *count > 0);
        let mut parts: Vec<String> = counts.map(|(count, what)| format!("{count} {what}")).collect();
        if !self.device.is_empty() {
            parts.push(format!("the device ({})", self.device.join(", ")));
        }
        f.write_str(&parts.join(", "))
    }
}

/// How thorough a look is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// By how many rules there are, the routes of a small table, the device, and whether the host forwards.
    Quick,
    /// By how many routes there are, too, which takes a while where there are many services.
    Close,
}

/// What a look found and did.
#[derive(Debug, Default)]
pub struct Tended {
    /// What is as it should be again.
    pub repaired: Repaired,
    /// Why something is not, or was not when it was last tried.
    pub troubles: Vec<String>,
}

/// Routes and rules that the kernel refuses again and again are put back less and less often: to ask for all of them takes a
/// while where there are many.
#[derive(Debug, Default)]
pub(super) struct Setbacks(BTreeMap<Family, Setback>);

#[derive(Clone, Debug, Default)]
struct Setback {
    times: u32,
    why: Option<String>,
    /// Looks to let pass.
    wait: u32,
}

impl Setbacks {
    /// As often as 16 looks.
    const MOST: u32 = 4;

    fn may_try(&mut self, family: Family) -> bool {
        let setback = self.0.entry(family).or_default();
        let may = setback.wait == 0;
        setback.wait = setback.wait.saturating_sub(1);
        may
    }

    /// How a try ended.
    fn record(&mut self, family: Family, why: Option<String>) {
        let setback = self.0.entry(family).or_default();
        setback.times = if why.is_some() { setback.times + 1 } else { 0 };
        setback.wait = (1 << setback.times.min(Self::MOST)) - 1;
        setback.why = why;
    }

    fn why(&self, family: Family) -> Option<String> {
        self.0.get(&family).and_then(|setback| setback.why.clone())
    }

    fn forget(&mut self) {
        self.0.clear();
    }
}

impl Plumbing {
    /// Puts back whatever a look finds missing or changed.
    ///
    /// # Errors
    /// When the device is out of reach, in another network namespace say: nothing can be led to lbd any more.
    pub fn tend(&mut self, look: Look) -> Result<Tended, Error> {
        self.looks = self.looks.wrapping_add(1);
        let needs = self.needs(&self.plan);
        let device = self.device.tend(self.index, needs, &mut self.handle)?;
        if look == Look::Close || !device.changed.is_empty() {
            self.setbacks.forget();
        }
        let mut tended = Tended {
            troubles: device.refused.iter().map(ToString::to_string).collect(),
            repaired: Repaired {
                device: device.changed,
                ..Repaired::default()
            },
        };
        for family in self.families() {
            self.tend_forwarding(family, look, &mut tended);
            self.tend_routing(family, look, &mut tended);
        }
        Ok(tended)
    }

    fn tend_forwarding(&mut self, family: Family, look: Look, tended: &mut Tended) {
        let device = &self.device.name;
        let mut outcomes = vec![forwarding::switch_on(family, device, &mut self.journal)];
        if sysctl::has_routed_first(&self.journal) {
            outcomes.push(sysctl::route_first(&mut self.journal));
        }
        // It looks at every interface.
        let is_time = look == Look::Close || self.looks.is_multiple_of(8);
        if family == Family::V6 && is_time {
            outcomes.push(forwarding::keep_hearing(device, &mut self.journal));
        }
        for outcome in outcomes {
            match outcome {
                Ok(changed) => tended.repaired.sysctls += changed,
                Err(error) => tended.troubles.push(error.to_string()),
            }
        }
    }

    fn tend_routing(&mut self, family: Family, look: Look, tended: &mut Tended) {
        match self.is_whole(family, look) {
            Ok(true) => self.setbacks.record(family, None),
            Ok(false) => {
                if self.setbacks.may_try(family) {
                    let refused = self.put_back(family, &mut tended.repaired).err();
                    self.setbacks.record(family, refused.map(|error| error.to_string()));
                }
                tended.troubles.extend(self.setbacks.why(family));
            }
            Err(error) => tended.troubles.push(error.to_string()),
        }
    }

    fn is_whole(&mut self, family: Family, look: Look) -> Result<bool, Error> {
        let rules = self.installed.iter().filter(|object| is_rule(object, family)).count();
        let (found, has_first_local) = leftovers::look_at_rules(&mut self.handle, family)?;
        // Where the local table's rule has been moved, one at priority 0 is in the way of local ports.
        let is_in_the_way = has_first_local && self.has_moved_local_rule(family);
        if found < rules || is_in_the_way || !self.has_routes(family, DIVERT_TABLE)? {
            return Ok(false);
        }
        match look {
            Look::Quick => Ok(true),
            Look::Close => Ok(self.has_routes(family, SERVICES_TABLE)? && self.has_routes(family, REFUSE_TABLE)?),
        }
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

    fn put_back(&mut self, family: Family, repaired: &mut Repaired) -> Result<(), Error> {
        let of_family = self.installed.iter().filter(|object| object.family() == family);
        let mut steps: Vec<Step> = of_family.cloned().map(Step::Install).collect();
        if self.has_moved_local_rule(family) {
            // By whomever they were put there.
            let back = leftovers::first_local_rules(&mut self.handle, family)?;
            steps.extend(
                back.into_iter()
                    .map(|mark| Step::Install(Object::NoFirstLocalRule(family, mark))),
            );
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

    pub(super) fn needs(&self, plan: &Plan) -> Needs {
        Needs {
            ipv6: plan.uses(Family::V6),
            own_addresses: self.accepts_own_addresses || plan.has_local_ports(),
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_refused_again_and_again_is_tried_less_and_less_often_and_the_other_family_at_once() {
        let mut setbacks = Setbacks::default();
        let mut tries = |looks: usize| {
            let tried = (0..looks).filter(|_| {
                let may = setbacks.may_try(Family::V6);
                if may {
                    setbacks.record(Family::V6, Some("refused".into()));
                }
                assert!(setbacks.may_try(Family::V4));
                may
            });
            tried.count()
        };
        assert_eq!(tries(15), 4, "at the looks 0, 2, 6 and 14");
        assert_eq!(tries(160), 10);
    }

    #[test]
    fn what_was_put_back_is_told_and_nothing_else() {
        let repaired = Repaired {
            rules: 2,
            device: vec!["its MTU was 576".into(), "it was down".into()],
            ..Repaired::default()
        };
        let said = "2 policy rules, the device (its MTU was 576, it was down)";
        assert_eq!(repaired.to_string(), said);
    }
}
