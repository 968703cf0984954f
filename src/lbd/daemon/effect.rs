//! How a configuration takes effect: first the kernel gets what the new one needs in addition, then the engine changes at
//! once, then the kernel loses what neither the new one nor any flow needs.
use std::sync::Arc;
use std::time::Duration;

use super::backends::{self, Turnover};
use super::control::{Control, Covers, Work, plan};
use super::leads::Leads;
use super::lingering::{difference, is_only_of_routes_and_replies, without};
use super::{Error, effective_policy, follow_own_sources, own_sources};
use lbd_core::policy::{OwnSources, Policy};
use lbd_core::service::Service;
use lbd_net::plumbing::Plan;
use lbd_state::config::Config;

/// No batch of packets takes longer.
const PATIENCE: Duration = Duration::from_millis(20);
/// Of the wait for that.
const STEP: Duration = Duration::from_millis(1);

/// So many flows are looked through in no time.
const FEW_FLOWS: usize = 10_000;

impl Control {
    /// Puts a configuration into effect. What may fail comes first.
    pub(super) fn put(&self, work: &mut Work, config: Config) -> Result<(), Error> {
        let hops = self.datapath.hops.as_ref();
        let generation = hops.map_or(0, |hops| hops.source_generation());
        let policy = effective_policy(&config, self.own_sources(work, &config))?;
        self.put_policy(work, config, policy)?;
        work.sources = generation;
        Ok(())
    }

    fn put_policy(&self, work: &mut Work, config: Config, policy: Policy) -> Result<(), Error> {
        let former = self.datapath.policy();
        if let Some(turnover) = Turnover::between(&former, &policy, &work.plan) {
            return self.turn_over(work, config, policy, &turnover);
        }
        let interfaces = work.leads.as_ref().and_then(Leads::interfaces);
        let plan = plan(&policy, interfaces, self.datapath.returns_errors)?;
        let is_same = *former == policy;
        if is_same && plan.served == work.plan.served {
            self.show(config);
            return Ok(());
        }
        self.go_on()?;
        if let Some(leads) = &mut work.leads {
            let both = plan.clone().union(leads.plan());
            leads.update(both, &policy)?;
            self.datapath.engine.refuse_other_ports(leads.other_hosts());
        }
        self.go_on()?;
        if !is_same {
            let before = self.datapath.services();
            self.datapath.engine.apply(Arc::new(policy));
            work.lingering.follow(&before, &self.datapath.services());
            self.follow_services(work);
        }
        self.show(config);
        work.plan = plan;
        if let Some(leads) = &work.leads {
            let surplus = difference(leads.plan(), &work.plan);
            let (policy, services) = (self.datapath.policy(), self.datapath.services());
            work.lingering.set(surplus, &former, &policy, &services);
        }
        self.settle();
        self.prune_now(work);
        Ok(())
    }

    /// A batch that began before is judged by the former policy, and may open flows that need what it needed.
    #[expect(
        clippy::disallowed_methods,
        reason = "a worker without packets does not tell that it is at no batch"
    )]
    fn settle(&self) {
        let mut left = PATIENCE;
        while self.datapath.engine.reclaim() > 0 && !left.is_zero() {
            std::thread::sleep(STEP);
            left = left.saturating_sub(STEP);
        }
    }

    fn prune_now(&self, work: &mut Work) {
        if let Err(error) = self.prune(work) {
            tracing::warn!("the old routes and rules stay in for now: {error}");
        }
    }

    /// Which of its addresses the host reaches each backend with. Routes are asked for new backends only, while they are
    /// what they were.
    fn own_sources(&self, work: &Work, config: &Config) -> Option<OwnSources> {
        let hops = self.datapath.hops.as_deref();
        let known = self.datapath.policy().nat.own.clone();
        match (known, hops) {
            (Some(mut own), Some(hops))
                if config.masquerades_as_itself() && work.sources == hops.source_generation() =>
            {
                follow_own_sources(&mut own, &self.config(), config, hops);
                Some(own)
            }
            _ => own_sources(config, hops),
        }
    }

    /// Puts a configuration into effect in which a few services have other backends, at the cost of these.
    fn turn_over(&self, work: &mut Work, config: Config, policy: Policy, turnover: &Turnover) -> Result<(), Error> {
        let Turnover { places, come, gone } = turnover;
        if let Some(leads) = &mut work.leads {
            leads.add_replies(&come.difference(&leads.plan().replies).copied().collect())?;
        }
        let some = || -> Vec<Arc<Service>> {
            let ruleset = self.datapath.engine.ruleset();
            let services = places.iter().map(|&place| &ruleset.services[place]);
            services.map(Arc::clone).collect()
        };
        let before = some();
        self.datapath.engine.apply(Arc::new(policy));
        let after = some();
        let mut rates = self.rates.lock();
        before
            .iter()
            .zip(&after)
            .for_each(|(before, after)| rates.replace(before, after));
        drop(rates);
        self.show(config);
        for reply in come {
            work.plan.replies.insert(*reply);
        }
        for reply in gone {
            work.plan.replies.remove(reply);
        }
        work.lingering.follow(&before, &after);
        work.lingering.turn_over(come, gone);
        work.covers.may_be_wide |= !come.is_empty() || !gone.is_empty();
        work.covers.have_changed = true;
        // As above; else the next tick does.
        if self.datapath.engine.reclaim() == 0 {
            self.prune_now(work);
        }
        Ok(())
    }

    /// Once no more backends come and go, rules are made as narrow as they can be.
    pub(super) fn narrow(&self, work: &mut Work) -> Result<(), Error> {
        let is_quiet = !std::mem::replace(&mut work.covers.have_changed, false);
        let Some(leads) = work.leads.as_mut().filter(|_| is_quiet && work.covers.may_be_wide) else {
            return Ok(());
        };
        leads.update(leads.plan().clone(), &self.datapath.policy())?;
        work.covers.may_be_wide = false;
        Ok(())
    }

    /// Takes out of the kernel what no flow needs any more, as far as counts tell, or a look at few flows.
    pub(super) fn prune(&self, work: &mut Work) -> Result<(), Error> {
        let gone = work.lingering.unneeded();
        self.take_out(work, &gone)?;
        let start = self.datapath.clock.now();
        let are_few = self.datapath.engine.conntrack().len() < FEW_FLOWS;
        let Some(mut query) = work.lingering.query(start).filter(|_| are_few) else {
            return Ok(());
        };
        self.answer(&mut query);
        let gone = work.lingering.answered(query, start, self.datapath.clock.now());
        self.take_out(work, &gone)
    }

    /// Takes out of the kernel what needs a look through all flows to be told from what they need.
    pub(super) fn search(&self) -> Result<(), Error> {
        let start = self.datapath.clock.now();
        let Some(mut query) = self.work.lock().lingering.query(start) else {
            return Ok(());
        };
        self.answer(&mut query);
        let mut work = self.work.lock();
        let gone = work.lingering.answered(query, start, self.datapath.clock.now());
        self.take_out(&mut work, &gone)
    }

    fn answer(&self, query: &mut super::lingering::Query) {
        let (conntrack, now) = (self.datapath.engine.conntrack(), self.datapath.clock.now());
        let mut cursor = lbd_core::conntrack::Cursor::default();
        while !query.is_over() && !self.halt.is_set() && conntrack.visit(&mut cursor, now, |flow| query.see(flow)) {}
    }

    fn take_out(&self, work: &mut Work, gone: &Plan) -> Result<(), Error> {
        let Some(leads) = work.leads.as_mut().filter(|_| *gone != Plan::default()) else {
            return Ok(());
        };
        let policy = self.datapath.policy();
        if is_only_of_routes_and_replies(gone) && backends::are_many_without(leads.plan(), gone) {
            leads.remove_routes(&gone.routes, &policy)?;
            if !gone.replies.is_empty() {
                leads.remove_replies(&gone.replies)?;
                // Rules that cover other backends, too, are narrowed when it is quiet.
                work.covers = Covers {
                    may_be_wide: true,
                    have_changed: true,
                };
            }
        } else {
            leads.update(without(leads.plan(), gone), &policy)?;
        }
        work.lingering.forget(gone);
        Ok(())
    }
}
