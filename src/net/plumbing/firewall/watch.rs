//! The thread that looks at the host's filters: at the start, and when they change.
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, unbounded};
use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket, SocketAddr};
use parking_lot::Mutex;

use super::host::{Filters, open, told};
use super::judge::probes;
use super::{Needs, Obstacle, of_sysctls};

/// How often is looked whether anything changed.
const TICK: Duration = Duration::from_secs(2);
/// So many ticks pass before a look without word of a change: `ip_tables` tells of none.
const UNASKED: u32 = 15;
/// One more tick passes before the next look for each so many bytes of rules, so that large rulesets cost little.
const BYTES_A_TICK: usize = 1 << 20;

/// What the thread is told.
enum Order {
    Needs(Needs),
    Stop,
}

/// What is known by now.
#[derive(Debug, Default)]
struct Known {
    obstacles: Vec<Obstacle>,
    unknown: Option<String>,
}

/// Looks at this host's filters as long as it lives; then takes out what it has put in.
#[derive(Debug)]
pub struct Firewall {
    known: Arc<Mutex<Known>>,
    orders: Sender<Order>,
    needs: Needs,
    thread: Option<JoinHandle<()>>,
}

impl Firewall {
    /// Looks for the first time, and goes on in a thread. With `open` the way is free when this returns.
    ///
    /// # Errors
    /// When the system refuses a thread.
    pub fn start(needs: Needs) -> std::io::Result<Self> {
        let known = Arc::<Mutex<Known>>::default();
        let (orders, taken) = unbounded();
        let mut watch = Watch {
            needs: needs.clone(),
            known: Arc::clone(&known),
            news: News::open(),
            pause: 0,
            idle: 0,
            trouble: None,
            opened: 0,
        };
        if needs.open {
            watch.look();
        }
        let thread = std::thread::Builder::new()
            .name("firewall".into())
            .spawn(move || watch.run(&taken))?;
        Ok(Self {
            known,
            orders,
            needs,
            thread: Some(thread),
        })
    }

    /// Looks for what is needed now, where that is another thing.
    pub fn follow(&mut self, needs: Needs) {
        if self.needs != needs {
            self.needs = needs.clone();
            self.orders.send(Order::Needs(needs)).ok();
        }
    }

    /// What drops lbd's packets, a line each, and what could not be looked at.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        let known = self.known.lock();
        let unknown = known
            .unknown
            .iter()
            .map(|why| format!("nftables are not looked at: {why}"));
        known.obstacles.iter().map(Obstacle::to_string).chain(unknown).collect()
    }
}

impl Drop for Firewall {
    fn drop(&mut self) {
        self.orders.send(Order::Stop).ok();
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

/// Word of changes of nftables; none where the kernel gives none.
struct News(Option<Socket>);

impl News {
    fn open() -> Self {
        let open = || {
            let mut socket = Socket::new(NETLINK_NETFILTER)?;
            socket.bind(&SocketAddr::new(0, 0))?;
            // NFNLGRP_NFTABLES, uapi/linux/netfilter/nfnetlink.h.
            socket.add_membership(7)?;
            socket.set_non_blocking(true)?;
            std::io::Result::Ok(socket)
        };
        Self(open().ok())
    }

    /// Whether there was any since the last call; one that got lost counts, too.
    fn any(&self) -> bool {
        let Some(socket) = &self.0 else { return false };
        let mut buffer = Vec::with_capacity(65_536);
        let mut any = false;
        loop {
            buffer.clear();
            match socket.recv(&mut buffer, 0) {
                Ok(_) => any = true,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return any,
                // ENOBUFS: more than the socket holds.
                Err(_) => return true,
            }
        }
    }
}

struct Watch {
    needs: Needs,
    known: Arc<Mutex<Known>>,
    news: News,
    /// Ticks to pass before the next look.
    pause: u32,
    /// Ticks since the last one.
    idle: u32,
    /// As the log has been told.
    trouble: Option<String>,
    /// How often rules were put in.
    opened: u32,
}

impl Watch {
    fn run(&mut self, orders: &Receiver<Order>) {
        if !self.needs.open {
            self.look();
        }
        let mut changed = false;
        loop {
            match orders.recv_timeout(TICK) {
                Ok(Order::Needs(needs)) => {
                    self.needs = needs;
                    self.look();
                }
                Ok(Order::Stop) | Err(RecvTimeoutError::Disconnected) => return self.close(),
                Err(RecvTimeoutError::Timeout) => {
                    changed |= self.news.any();
                    (self.idle, self.pause) = (self.idle + 1, self.pause.saturating_sub(1));
                    if self.pause == 0 && (changed || self.idle >= UNASKED) {
                        changed = false;
                        self.look();
                    } else {
                        self.look_at_sysctls();
                    }
                }
            }
        }
    }

    fn look(&mut self) {
        self.idle = 0;
        let mut filters = Filters::read();
        let device = self.needs.device.clone();
        if !self.needs.open {
            // Of an lbd that was killed, or that was told otherwise.
            let closed = filters.close();
            self.tell_of(closed.err());
        }
        let probes = self.probes();
        let mut found = filters.judge(&probes, &device);
        if self.needs.open && !found.is_empty() {
            let opened = open(&found, &device);
            if let Ok(rules) = opened {
                self.opened += 1;
                tell_of_opening(rules, &device, self.opened);
            }
            self.tell_of(opened.err());
            filters = Filters::read();
            found = filters.judge(&probes, &device);
        }
        self.pause = u32::try_from(filters.size / BYTES_A_TICK).unwrap_or(u32::MAX);
        // Of one's own changes there is word, too.
        self.news.any();
        let mut obstacles = told(&found, &device);
        obstacles.extend(of_sysctls(&self.needs, sysctl));
        self.publish(obstacles, Some(filters.unknown));
    }

    fn probes(&self) -> Vec<super::judge::Probe> {
        let (v4, v6) = self.needs.families;
        let of = |v4: bool| probes(v4, self.needs.af_xdp);
        let families = [(v4, true), (v6, false)].into_iter().filter(|(used, _)| *used);
        families.flat_map(|(_, v4)| of(v4)).collect()
    }

    fn look_at_sysctls(&self) {
        let mut obstacles = self.known.lock().obstacles.clone();
        obstacles.retain(|obstacle| obstacle.opens);
        obstacles.extend(of_sysctls(&self.needs, sysctl));
        self.publish(obstacles, None);
    }

    /// Tells the log what is new, and what is gone.
    fn publish(&self, obstacles: Vec<Obstacle>, unknown: Option<Option<String>>) {
        let mut known = self.known.lock();
        for new in obstacles.iter().filter(|each| !known.obstacles.contains(each)) {
            tracing::warn!("this host drops packets of lbd's, or takes them: {new}");
        }
        for gone in known.obstacles.iter().filter(|each| !obstacles.contains(each)) {
            tracing::info!("no longer in lbd's way: {}", gone.what);
        }
        known.obstacles = obstacles;
        if let Some(unknown) = unknown {
            known.unknown = unknown;
        }
    }

    /// Once, for as long as it is the same.
    fn tell_of(&mut self, trouble: Option<String>) {
        if let Some(trouble) = trouble
            .as_ref()
            .filter(|trouble| self.trouble.as_ref() != Some(trouble))
        {
            tracing::error!("cannot change this host's packet filters: {trouble}");
        }
        self.trouble = trouble;
    }

    fn close(&mut self) {
        if self.needs.open {
            let closed = Filters::read().close();
            self.tell_of(closed.err());
        }
    }
}

/// Who takes them out again and again is told of less and less often.
fn tell_of_opening(rules: usize, device: &str, times: u32) {
    if times.is_power_of_two() {
        tracing::info!(
            "{rules} rules let packets from and to {device} through this host's filters (times so far: {times})"
        );
    }
}

fn sysctl(key: &str) -> Option<String> {
    std::fs::read_to_string(format!("/proc/sys/{key}")).ok()
}
