//! What takes a while and is asked for by a signal, the kernel or the time: done on threads of their own, so that the main
//! thread is there for signals whatever goes on.
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::Duration;

use mio::Waker;
use parking_lot::{Condvar, Mutex};
use sd_notify::NotifyState;

use super::control::{Control, Work};
use super::leads::Leads;
use super::notify::notify;
use super::{Error, own_sources, system};
use lbd_control::protocol::shadow::DisagreementView;
use lbd_control::render::disagreement;
use lbd_core::shadow::Shadow;
use lbd_core::time::Instant;
use lbd_net::io::xdp::interfaces::Interfaces;
use lbd_net::io::xdp::next_hop::NextHops;
use lbd_net::plumbing::Look;
use lbd_state::config::Config;

/// For a change under way to be over, before other jobs get their turn.
const PATIENCE: Duration = Duration::from_millis(100);

/// So many are told of at a time, every two seconds.
const DISAGREEMENTS: usize = 4;

/// What a thread is to do. A job that is asked for again before its turn is done once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Jobs {
    reload: bool,
    links: bool,
    addresses: bool,
    tick: bool,
    end: bool,
}

/// Where jobs wait.
#[derive(Debug, Default)]
struct Mailbox {
    jobs: Mutex<Jobs>,
    news: Condvar,
}

impl Mailbox {
    fn ask(&self, add: impl FnOnce(&mut Jobs)) {
        add(&mut self.jobs.lock());
        self.news.notify_one();
    }

    fn wait(&self) -> Jobs {
        let mut jobs = self.jobs.lock();
        while *jobs == Jobs::default() {
            self.news.wait(&mut jobs);
        }
        std::mem::take(&mut *jobs)
    }
}

/// Tells the main thread of the end of another one, also if that panics.
struct Farewell {
    has_ended: Arc<AtomicBool>,
    waker: Arc<Waker>,
}

impl Drop for Farewell {
    fn drop(&mut self) {
        self.has_ended.store(true, Relaxed);
        if let Err(error) = self.waker.wake() {
            tracing::error!("cannot wake the main thread: {error}");
        }
    }
}

/// A thread that does jobs. Dropped, it ends with the one it is at.
struct Helper {
    mailbox: Arc<Mailbox>,
    has_ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Helper {
    fn start(
        name: &str,
        control: &Arc<Control>,
        waker: &Arc<Waker>,
        work: fn(&Control, &Mailbox),
    ) -> Result<Self, Error> {
        let mailbox: Arc<Mailbox> = Arc::default();
        let has_ended: Arc<AtomicBool> = Arc::default();
        let farewell = Farewell {
            has_ended: Arc::clone(&has_ended),
            waker: Arc::clone(waker),
        };
        let (control, jobs) = (Arc::clone(control), Arc::clone(&mailbox));
        let builder = std::thread::Builder::new().name(name.to_owned());
        let thread = builder.spawn(move || {
            let _farewell = farewell;
            work(&control, &jobs);
        });
        Ok(Self {
            mailbox,
            has_ended,
            thread: Some(thread.map_err(system("a thread"))?),
        })
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        self.mailbox.ask(|jobs| jobs.end = true);
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("a thread that reloads or looks after routes panicked");
        }
    }
}

/// See the module. Dropped, its threads end with what they are at.
pub(super) struct Upkeep {
    reloader: Helper,
    keeper: Helper,
}

impl Upkeep {
    /// Starts the threads; `waker` is woken should one fail.
    pub(super) fn start(control: &Arc<Control>, waker: &Arc<Waker>) -> Result<Self, Error> {
        Ok(Self {
            reloader: Helper::start("lbd-reload", control, waker, reload_when_asked)?,
            keeper: Helper::start("lbd-upkeep", control, waker, keep_up)?,
        })
    }

    /// The file is to be read again.
    pub(super) fn reload(&self) {
        self.reloader.mailbox.ask(|jobs| jobs.reload = true);
    }

    /// Something about a link changed.
    pub(super) fn links_changed(&self) {
        self.keeper.mailbox.ask(|jobs| jobs.links = true);
    }

    /// This node got or lost an address, or a link changed, a moment ago.
    pub(super) fn addresses_changed(&self) {
        self.keeper.mailbox.ask(|jobs| jobs.addresses = true);
    }

    /// Two seconds have passed.
    pub(super) fn tick(&self) {
        self.keeper.mailbox.ask(|jobs| jobs.tick = true);
    }

    /// Whether one of the threads is no more, because of a defect of lbd.
    pub(super) fn has_failed(&self) -> bool {
        let helpers = [&self.reloader, &self.keeper];
        helpers.iter().any(|helper| helper.has_ended.load(Relaxed))
    }
}

fn reload_when_asked(control: &Control, mailbox: &Mailbox) {
    while !mailbox.wait().end {
        match NotifyState::monotonic_usec_now() {
            Ok(now) => notify(&[NotifyState::Reloading, now]),
            Err(error) => tracing::warn!("cannot tell systemd of a reload: {error}"),
        }
        // On SIGHUP there is nobody to answer but the log, which has been told either way, and systemd
        // (`Type=notify-reload`).
        control.reload().ok();
        notify(&[NotifyState::Ready]);
    }
}

fn keep_up(control: &Control, mailbox: &Mailbox) {
    loop {
        let jobs = mailbox.wait();
        if jobs.end {
            return;
        }
        if jobs.tick {
            control.count();
        }
        if !control.keep_up(jobs) {
            // The next tick comes by itself.
            mailbox.ask(|waiting| {
                waiting.links |= jobs.links;
                waiting.addresses |= jobs.addresses;
            });
        }
    }
}

impl Control {
    /// What every tick counts, whatever else goes on.
    fn count(&self) {
        let mut rates = self.rates.lock();
        rates.tick(self.datapath.services().iter().map(|service| &**service));
        drop(rates);
        for late in self.cut_drains() {
            tracing::info!("{late}: its time to drain is over, the flows that are left are reset");
        }
        if let Some(shadow) = &self.engine().ruleset().shadow {
            warn_of_disagreements(shadow, self.clock().now());
        }
    }

    /// Does these jobs. False: a change is under way.
    fn keep_up(&self, jobs: Jobs) -> bool {
        self.engine().reclaim();
        let Some(mut work) = self.work.try_lock_for(PATIENCE) else {
            return false;
        };
        if jobs.links || jobs.addresses {
            follow_links(&mut work);
        }
        if jobs.addresses {
            self.follow_addresses(&mut work);
        }
        if jobs.tick {
            self.look_after(&mut work);
        }
        drop(work);
        if jobs.tick
            && let Err(error) = self.search()
        {
            tell_of_leftovers(&error);
        }
        true
    }

    fn follow_addresses(&self, work: &mut Work) {
        let config = Config::clone(&self.config());
        if let Err(error) = self.put(work, config) {
            tracing::error!("the addresses of this node changed, and lbd cannot follow: {error}");
        }
        // Whose link changed may be lbd's own device.
        if let Some(leads) = &mut work.leads {
            leads.look_after(Look::Quick);
        }
        self.show_troubles(work);
    }

    fn look_after(&self, work: &mut Work) {
        self.follow_routes(work);
        if let Some(leads) = &mut work.leads {
            leads.watch_queues();
            leads.look_after(Look::Quick);
        }
        self.show_troubles(work);
        if let Err(error) = self.prune(work).and_then(|()| self.narrow(work)) {
            tell_of_leftovers(&error);
        }
        self.show_af_xdp(work);
    }

    /// Which of its addresses the host reaches a backend with may have changed.
    fn follow_routes(&self, work: &mut Work) {
        let Some(hops) = &self.datapath.hops else { return };
        let generation = hops.source_generation();
        if work.generation == generation {
            return;
        }
        let followed = work.leads.as_mut().map_or(Ok(()), Leads::follow_links);
        match followed.and_then(|()| self.follow_sources(work, hops)) {
            Ok(()) => (work.generation, work.sources) = (generation, generation),
            // And tries again, in two seconds.
            Err(error) => tracing::error!("routes changed, and lbd cannot follow: {error}"),
        }
    }

    /// Neighbours change all the time, and nothing else depends on routes: a large configuration is left alone.
    fn follow_sources(&self, work: &mut Work, hops: &NextHops) -> Result<(), Error> {
        let config = self.config();
        let own = own_sources(&config, Some(hops));
        if self.datapath.policy().nat.own == own {
            return Ok(());
        }
        self.put(work, Config::clone(&config))
    }

    /// Whether routes and neighbours are followed no longer, as far as can be told now.
    pub(super) fn is_blind(&self) -> bool {
        let work = self.work.try_lock();
        let interfaces = work.as_ref().and_then(|work| work.leads.as_ref()?.interfaces());
        interfaces.is_some_and(Interfaces::is_blind)
    }
}

fn follow_links(work: &mut Work) {
    if let Some(Err(error)) = work.leads.as_mut().map(Leads::follow_links) {
        tracing::error!("a link changed, and lbd cannot follow: {error}");
    }
}

fn tell_of_leftovers(error: &Error) {
    tracing::error!("cannot take out what no flow needs any more: {error}");
}

/// What the other mode would have done otherwise, each once.
fn warn_of_disagreements(shadow: &Shadow, now: Instant) {
    for each in shadow.record().news(DISAGREEMENTS) {
        let view = DisagreementView::new(&each, now);
        let told = disagreement(&view, shadow.matcher().mode().name());
        tracing::warn!("shadow: {told}; `lbctl status` counts them");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_that_is_asked_for_again_before_its_turn_is_done_once() {
        let mailbox = Mailbox::default();
        mailbox.ask(|jobs| jobs.tick = true);
        mailbox.ask(|jobs| jobs.links = true);
        mailbox.ask(|jobs| jobs.tick = true);
        let expected = Jobs {
            tick: true,
            links: true,
            ..Jobs::default()
        };
        assert_eq!(mailbox.wait(), expected);
        mailbox.ask(|jobs| jobs.end = true);
        assert!(mailbox.wait().end, "and nothing of the former is left");
    }
}
