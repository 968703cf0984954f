//! The part of iptables mode's list that users write.
use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;

use super::classifier::{Answer, Classifier, Found};
use super::difference::Difference;
use super::reach::Reach;
use super::rules::{Action, Rule};
use super::tally::{Tallies, Tally};
use crate::flow::Tuple;
use crate::packet::Headers;
use crate::scheduler::Rng;
use crate::service::Service;

/// A rule.
#[derive(Debug)]
pub(super) struct UserRule {
    pub(super) rule: Rule,
    /// Packets that it decided on.
    pub(super) stats: Tally,
}

/// What does not change with the services.
#[derive(Debug)]
struct Listed {
    rules: Vec<UserRule>,
    classifier: Classifier,
    /// Where rules lead to services.
    reach: Reach,
}

/// See the module.
#[derive(Clone, Debug)]
pub(super) struct UserRules {
    listed: Arc<Listed>,
    /// For each rule the service that it names.
    targets: Arc<Vec<Option<Arc<Service>>>>,
}

impl UserRules {
    /// The rules but for those that name a service that there is not. Those that are in `previous`, too, keep their
    /// counters.
    pub(super) fn new(rules: &[Rule], services: &[Arc<Service>], previous: Option<&Self>, lanes: usize) -> Self {
        let services = match rules.iter().any(|rule| names(rule).is_some()) {
            true => by_name(services.iter()),
            false => HashMap::new(),
        };
        let (mut counters, mut tallies) = (Counters::of(previous), Tallies::new(lanes, rules.len()));
        let (mut list, mut targets) = (Vec::new(), Vec::new());
        for rule in rules {
            let service = names(rule).map(|name| services.get(name));
            if service.is_some_and(|service| service.is_none()) {
                continue;
            }
            targets.push(service.flatten().map(|service| Arc::clone(service)));
            let stats = counters.take(rule).unwrap_or_else(|| tallies.next());
            let rule = rule.clone();
            list.push(UserRule { rule, stats });
        }
        let classifier = Classifier::new(list.iter().map(|each| &each.rule));
        let leading = list.iter().filter(|each| names(&each.rule).is_some());
        let reach = Reach::of(leading.map(|each| each.rule.destination.as_ref()));
        let rules = list;
        Self {
            listed: Arc::new(Listed {
                rules,
                classifier,
                reach,
            }),
            targets: Arc::new(targets),
        }
    }

    /// The same rules with services as they are now. None: other rules, or one that names a service that has gone or come.
    pub(super) fn changed(&self, rules: &[Rule], difference: &Difference<'_>) -> Option<Self> {
        if !self.in_order().map(|each| &each.rule).eq(rules) {
            return None;
        }
        let (old, new) = (by_name(difference.former()), by_name(difference.present()));
        let touches = |target: &Option<Arc<Service>>| {
            let service = target.as_ref();
            service.is_some_and(|service| old.contains_key(service.identity.name.as_str()))
        };
        if !self.targets.iter().any(touches) {
            return Some(self.clone());
        }
        let targets = self.targets.iter().map(|target| match target {
            Some(service) if touches(target) => {
                let service = new.get(service.identity.name.as_str())?;
                Some(Some(Arc::clone(service)))
            }
            Some(_) | None => Some(target.clone()),
        });
        let targets: Option<Vec<Option<Arc<Service>>>> = targets.collect();
        Some(Self {
            listed: Arc::clone(&self.listed),
            targets: Arc::new(targets?),
        })
    }

    /// The first rule that a packet meets.
    pub(super) fn find(&self, headers: &Headers, tuple: Option<&Tuple>, rng: &mut Rng) -> Option<usize> {
        let found = self.search(headers, tuple);
        let strikes = |index: &usize| {
            let share = self.listed.rules[*index].rule.probability;
            share.is_none_or(|share| share.strikes(rng))
        };
        found.perhaps.into_iter().find(strikes).or(found.certain)
    }

    /// The first rule that a packet meets for certain, and those before it that it may meet.
    pub(super) fn search(&self, headers: &Headers, tuple: Option<&Tuple>) -> Found {
        let Listed {
            rules,
            classifier,
            reach: _,
        } = &*self.listed;
        classifier.search(headers, tuple, |index| {
            match (self.meets(index, headers, tuple), rules[index].rule.probability) {
                (false, _) => Answer::No,
                (true, None) => Answer::Yes,
                (true, Some(_)) => Answer::Perhaps,
            }
        })
    }

    /// The same, found one by one.
    pub(super) fn walk(&self, headers: &Headers, tuple: Option<&Tuple>, rng: &mut Rng) -> Option<usize> {
        let rules = self.listed.rules.iter().enumerate();
        let mut met = rules.filter(|&(index, _)| self.meets(index, headers, tuple));
        let strikes = |(_, each): &(usize, &UserRule)| each.rule.probability.is_none_or(|share| share.strikes(rng));
        met.find(strikes).map(|(index, _)| index)
    }

    /// Whether a packet meets every condition but the probability. A service takes only packets of its own protocol.
    fn meets(&self, index: usize, headers: &Headers, tuple: Option<&Tuple>) -> bool {
        let fits = |service: &Arc<Service>| tuple.is_some_and(|tuple| service.takes(tuple));
        self.targets[index].as_ref().is_none_or(fits) && self.listed.rules[index].rule.matches(headers, tuple)
    }

    /// Whether a rule may lead packets to `destination` to a service.
    pub(super) fn may_lead(&self, destination: IpAddr) -> bool {
        self.listed.reach.contains(destination)
    }

    /// A rule and the service that it names.
    pub(super) fn get(&self, index: usize) -> (&UserRule, Option<&Arc<Service>>) {
        (&self.listed.rules[index], self.targets[index].as_ref())
    }

    /// Every rule in its order.
    pub(super) fn in_order(&self) -> impl Iterator<Item = &UserRule> {
        self.listed.rules.iter()
    }
}

/// The service that a rule sends packets to.
fn names(rule: &Rule) -> Option<&str> {
    match &rule.action {
        Action::Drop | Action::Reject | Action::Pass => None,
        Action::Service(name) => Some(name),
    }
}

fn by_name<'a>(services: impl Iterator<Item = &'a Arc<Service>>) -> HashMap<&'a str, &'a Arc<Service>> {
    services
        .map(|service| (service.identity.name.as_str(), service))
        .collect()
}

/// The counters of a former list, each given out once, in order: most rules stay in their order, and are found at the front.
struct Counters<'a>(VecDeque<&'a UserRule>);

impl<'a> Counters<'a> {
    fn of(previous: Option<&'a UserRules>) -> Self {
        Self(previous.into_iter().flat_map(UserRules::in_order).collect())
    }

    fn take(&mut self, rule: &Rule) -> Option<Tally> {
        let at = self.0.iter().position(|other| other.rule == *rule)?;
        self.0.remove(at).map(|other| other.stats.clone())
    }
}
