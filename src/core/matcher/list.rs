//! iptables mode: the ordered list, its user rules first, then those made from the services. The first match wins.
//!
//! The answer to a packet is found by a classifier ([`super::classifier`] and [`super::service_rules`]), or by walking the
//! list as the kernel does. It is the same: the same rule, the same random draws on the way, the same counts.
use std::net::IpAddr;
use std::sync::Arc;

use super::Match;
use super::address::Address;
use super::difference::Difference;
use super::rules::{Action, Probability, Rule};
use super::service_rules::ServiceRules;
use super::tally::Tally;
use super::user_rules::UserRules;
use crate::flow::{Endpoint, Protocol, Tuple};
use crate::packet::Headers;
use crate::policy::{Evaluation, Policy};
use crate::scheduler::Rng;
use crate::service::Service;

/// Where a rule comes from; it keeps its counters over a reload while this stays the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// `[[rules]]`
    User(Rule),
    /// One address of a service.
    Service {
        /// The service's name.
        name: String,
        /// Its protocol.
        protocol: Protocol,
        /// The address.
        endpoint: Endpoint,
    },
}

/// A rule in its place in the list.
#[derive(Debug)]
pub struct Entry {
    /// Where it comes from.
    pub origin: Origin,
    /// New flows that it decided on, and their first packets' bytes.
    pub stats: Tally,
}

/// The ordered list: user rules first, then one rule for each address of each service.
#[derive(Clone, Debug)]
pub struct RuleList {
    evaluation: Evaluation,
    users: UserRules,
    services: ServiceRules,
}

impl RuleList {
    /// Builds the list; counters of rules that were in `previous` go on.
    #[must_use]
    pub fn new(policy: &Policy, services: &[Arc<Service>], previous: Option<&Self>, lanes: usize) -> Self {
        let users = previous.map(|previous| &previous.users);
        Self {
            evaluation: policy.evaluation,
            users: UserRules::new(&policy.rules, services, users, lanes),
            services: ServiceRules::new(services, previous.map(|previous| &previous.services), lanes),
        }
    }

    /// The list with other rules for some services. `services` are all there are now. None: it has to be built anew.
    #[must_use]
    pub fn changed(
        &self,
        policy: &Policy,
        services: &[Arc<Service>],
        difference: &Difference<'_>,
        lanes: usize,
    ) -> Option<Self> {
        let users = self.users.changed(&policy.rules, difference);
        Some(Self {
            evaluation: policy.evaluation,
            users: users.unwrap_or_else(|| UserRules::new(&policy.rules, services, Some(&self.users), lanes)),
            services: self.services.changed(difference, lanes)?,
        })
    }

    /// The first rule that matches. `lane` is the worker whose counters count it.
    pub fn find(&self, headers: &Headers, tuple: Option<&Tuple>, rng: &mut Rng, lane: usize) -> Match<'_> {
        let user = match self.evaluation {
            Evaluation::Compiled => self.users.find(headers, tuple, rng),
            Evaluation::Linear => self.users.walk(headers, tuple, rng),
        };
        if let Some(index) = user {
            let (rule, _) = self.users.get(index);
            rule.stats.count(lane, headers.length);
            return self.decision(index);
        }
        let rule = tuple.and_then(|tuple| match self.evaluation {
            Evaluation::Compiled => self.services.find(tuple),
            Evaluation::Linear => self.services.walk(tuple),
        });
        rule.map_or(Match::None, |rule| {
            rule.stats.count(lane, headers.length);
            Match::Service(&rule.service)
        })
    }

    /// Every answer that the list could give, each with the place of the user rule that it comes from: first those of
    /// rules that a random draw decides on, last the one that is left. Draws nothing and counts nothing.
    #[must_use]
    pub fn possible(&self, headers: &Headers, tuple: Option<&Tuple>) -> Vec<(Option<usize>, Match<'_>)> {
        let found = self.users.search(headers, tuple);
        let mut answers = Vec::with_capacity(1);
        for index in found.perhaps.into_iter().chain(found.certain) {
            let (rule, _) = self.users.get(index);
            let Probability(share) = rule.rule.probability.unwrap_or(Probability::ONE);
            if share > 0 {
                answers.push((Some(index), self.decision(index)));
            }
            if share >= Probability::ONE.0 {
                return answers;
            }
        }
        let service = tuple.and_then(|tuple| self.services.find(tuple));
        let rest = service.map_or(Match::None, |rule| Match::Service(&rule.service));
        answers.push((None, rest));
        answers
    }

    /// Whether a user rule may lead packets to `destination`, with or without ports, to a service.
    pub(super) fn may_lead(&self, destination: IpAddr) -> bool {
        self.users.may_lead(destination)
    }

    /// What a user rule says.
    fn decision(&self, index: usize) -> Match<'_> {
        let (rule, service) = self.users.get(index);
        match (&rule.rule.action, service) {
            (Action::Drop, _) => Match::Drop,
            (Action::Reject, _) => Match::Reject,
            (Action::Pass, _) => Match::Pass,
            (Action::Service(_), service) => service.map_or(Match::None, Match::Service),
        }
    }

    /// The service that has this very address and port, and what its rule counts.
    pub(super) fn at(&self, address: &Address) -> Option<(&Arc<Service>, &Tally)> {
        let rule = self.services.at(address)?;
        Some((&rule.service, &rule.stats))
    }

    /// The rules in the order in which they are checked.
    #[must_use]
    pub fn entries(&self) -> Vec<Entry> {
        let users = self.users.in_order().map(|rule| Entry {
            origin: Origin::User(rule.rule.clone()),
            stats: rule.stats.clone(),
        });
        let services = self.services.in_order().map(|(address, rule)| Entry {
            origin: Origin::Service {
                name: rule.service.identity.name.clone(),
                protocol: address.protocol,
                endpoint: address.endpoint,
            },
            stats: rule.stats.clone(),
        });
        users.chain(services).collect()
    }
}
