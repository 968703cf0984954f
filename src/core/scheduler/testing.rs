//! A service with a scheduler, driven by the tests of this room.
use std::sync::Arc;
use std::time::Duration;

use super::{Flags, Kind, Rng, Scheduler};
use crate::flow::{Endpoint, Protocol, Tuple};
use crate::policy::BackendSpec;
use crate::service::{Backend, Member, ServiceIdentity};
use crate::time::Instant;

/// What becomes of a flow before the next one begins.
#[derive(Clone, Copy)]
pub(super) enum Ending {
    /// It stays active.
    Open,
    /// It is in TIME_WAIT or CLOSE: inactive.
    Closed,
}

/// The 24 flows of the recorded kernel runs.
#[derive(Clone, Copy)]
pub(super) enum Pattern {
    /// 10.1.0.2, ports from 40000, to 10.9.9.9:80.
    Ports,
    /// 10.1.0.2 to 10.1.0.25, port 40000, to 10.9.9.9:80.
    Sources,
    /// 10.1.0.2, ports from 40000, to 10.9.9.1:80 to 10.9.9.24:80.
    Vips,
}

impl Pattern {
    fn tuple(self, number: u8) -> Tuple {
        let (client, port, service) = match self {
            Self::Ports => (2, 40_000 + u16::from(number), 9),
            Self::Sources => (2 + number, 40_000, 9),
            Self::Vips => (2, 40_000 + u16::from(number), 1 + number),
        };
        Tuple {
            protocol: Protocol::Tcp,
            source: Endpoint::new([10, 1, 0, client].into(), port),
            destination: Endpoint::new([10, 9, 9, service].into(), 80),
        }
    }
}

pub(super) fn flags(word: &str) -> Flags {
    Flags {
        fallback: word.ends_with("-fallback"),
        port: word.ends_with("-port"),
        ..Flags::default()
    }
}

fn spec(id: u64, weight: u32, upper_threshold: u32) -> BackendSpec {
    let [.., high, low] = id.to_be_bytes();
    BackendSpec {
        address: Endpoint::new([10, 2 + high, low, 2].into(), 80),
        weight,
        upper_threshold,
        lower_threshold: 0,
    }
}

pub(super) fn backend(id: u64, weight: u32) -> Member {
    let (service, spec) = (Arc::new(ServiceIdentity::new(1, "web")), spec(id, weight, 0));
    Member::new(Arc::new(Backend::new(id, &spec, service, 1)), &spec, None)
}

/// The same one with another weight.
pub(super) fn reweighed(member: &Member, weight: u32) -> Member {
    Member::new(Arc::clone(&member.backend), &spec(member.id, weight, 0), Some(member))
}

/// Backends 10.2.1.2:80, 10.2.2.2:80 and so on, with ids from 1.
pub(super) fn backends(weights: &[u32]) -> Vec<Member> {
    (1..).zip(weights).map(|(id, &it)| backend(id, it)).collect()
}

/// Gives it flows.
pub(super) fn bind(backend: &Backend, active: u32, inactive: u32) {
    (0..active + inactive).for_each(|_| backend.bind());
    (0..active).for_each(|_| backend.set_active(true));
}

/// Fills it up to its upper threshold.
pub(super) fn overload(backend: &Backend) {
    bind(backend, 1, 0);
    backend.set_thresholds((1, 0));
    assert!(backend.is_overloaded());
}

pub(super) struct World {
    scheduler: Scheduler,
    backends: Vec<Member>,
    now: Instant,
    rng: Rng,
    start: Box<dyn Fn() -> (Scheduler, Vec<Member>)>,
}

impl World {
    /// A service that had its backends from the beginning.
    pub(super) fn with(kind: Kind, flags: Flags, backends: Vec<Member>) -> Self {
        let start = move || (Scheduler::new(kind, flags, &backends), backends.clone());
        Self::starting(start)
    }

    /// Servers 1, 2, 3 with weights 1, 2, 3, added one by one at the head as `ipvsadm -a` does.
    pub(super) fn kernel(kind: Kind, flag: &str) -> Self {
        let flags = flags(flag);
        Self::starting(move || {
            let mut scheduler = Scheduler::new(kind, flags, &[]);
            let mut list = Vec::new();
            for new in backends(&[1, 2, 3]) {
                let before = list.clone();
                list.insert(0, new);
                scheduler.backends_changed(&before, &list);
            }
            (scheduler, list)
        })
    }

    fn starting(start: impl Fn() -> (Scheduler, Vec<Member>) + 'static) -> Self {
        let (scheduler, backends) = start();
        Self {
            scheduler,
            backends,
            now: Instant::ZERO,
            rng: Rng::with_seed(7),
            start: Box::new(start),
        }
    }

    /// Who gets the 24 flows: ids, X for nobody. Each virtual address is a service of its own.
    pub(super) fn run(&mut self, pattern: Pattern, ending: Ending) -> String {
        (0..24)
            .map(|number| {
                if matches!(pattern, Pattern::Vips) {
                    (self.scheduler, self.backends) = (self.start)();
                }
                self.flow(&pattern.tuple(number), Some(ending))
            })
            .collect()
    }

    /// Who would get the next flows of one client; their load is not counted.
    pub(super) fn picks(&mut self, count: u8) -> String {
        (0..count).map(|_| self.flow(&Pattern::Ports.tuple(0), None)).collect()
    }

    fn flow(&mut self, tuple: &Tuple, ending: Option<Ending>) -> String {
        let picked = self.scheduler.pick(tuple, &self.backends, self.now, &mut self.rng);
        let Some(backend) = picked.map(|index| &self.backends[index]) else {
            return "X".into();
        };
        match ending {
            Some(Ending::Open) => bind(backend, 1, 0),
            Some(Ending::Closed) => bind(backend, 0, 1),
            None => {}
        }
        backend.id.to_string()
    }

    fn backend(&self, id: u64) -> &Member {
        self.backends.iter().find(|it| it.id == id).unwrap()
    }

    pub(super) fn set_weight(&mut self, id: u64, weight: u32) {
        // A weight comes with thresholds, here none.
        self.backend(id).set_thresholds((0, 0));
        self.replace(|backends| {
            let of_id = backends.iter_mut().filter(|it| it.id == id);
            of_id.for_each(|it| *it = reweighed(it, weight));
        });
    }

    pub(super) fn load(&self, id: u64, active: u32, inactive: u32) {
        bind(self.backend(id), active, inactive);
    }

    pub(super) fn overload(&self, id: u64) {
        overload(self.backend(id));
    }

    pub(super) fn overload_with_inactive(&self, id: u64) {
        self.backend(id).bind();
        self.backend(id).set_thresholds((1, 0));
    }

    pub(super) fn recover(&self, id: u64) {
        self.backend(id).unbind(true);
        assert!(!self.backend(id).is_overloaded());
    }

    pub(super) fn remove(&mut self, id: u64) {
        self.replace(|backends| backends.retain(|backend| backend.id != id));
    }

    pub(super) fn add_at_head(&mut self, id: u64, weight: u32) {
        self.replace(|backends| backends.insert(0, backend(id, weight)));
    }

    pub(super) fn replace(&mut self, change: impl FnOnce(&mut Vec<Member>)) {
        let before = self.backends.clone();
        change(&mut self.backends);
        self.scheduler.backends_changed(&before, &self.backends);
    }

    pub(super) fn wait(&mut self, duration: Duration) {
        self.now = self.now + duration;
    }
}

/// Of `lblc` and `lblcr`: whichever flows come, those that have ended give no reason to leave the first choice.
pub(super) fn assert_stays(kind: Kind) {
    for pattern in [Pattern::Ports, Pattern::Sources, Pattern::Vips] {
        let choices = World::kernel(kind, "").run(pattern, Ending::Closed);
        assert_eq!(choices, "333333333333333333333333");
    }
}

/// Of `lblc` and `lblcr`: a virtual address leaves a backend that may not have it any more, and stays with the next.
pub(super) fn assert_moves_on(kind: Kind) {
    let mut world = World::with(kind, Flags::default(), backends(&[1, 1, 1, 1]));
    assert_eq!(world.picks(2), "11");
    world.set_weight(1, 0);
    assert_eq!(world.picks(2), "22");
    world.overload(2);
    assert_eq!(world.picks(2), "33");
    world.remove(3);
    assert_eq!(world.picks(2), "44");
    world.remove(4);
    assert_eq!(world.picks(2), "XX");
}

/// Of `sh` and `mh` without fallback: a drained backend keeps its buckets, a removed one does not.
pub(super) fn assert_refuses_then_moves(kind: Kind) {
    let mut world = World::with(kind, Flags::default(), backends(&[1, 1]));
    let first = world.picks(1).parse().unwrap();
    world.set_weight(first, 0);
    assert_eq!(world.picks(2), "XX");
    world.remove(first);
    assert_eq!(world.picks(1), (3 - first).to_string());
}

/// Whom 24 clients meet, of three backends of weight 1: before the first one is drained, and while it is.
pub(super) fn while_drained(kind: Kind, flag: &str) -> (String, String) {
    let mut world = World::with(kind, flags(flag), backends(&[1, 1, 1]));
    let before = world.run(Pattern::Sources, Ending::Closed);
    world.set_weight(1, 0);
    let drained = world.run(Pattern::Sources, Ending::Closed);
    (before, drained)
}
