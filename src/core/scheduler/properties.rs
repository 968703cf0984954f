//! What holds for all schedulers, whatever the weights, loads and changes of the list.
use std::collections::HashMap;
use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::*;

use super::testing::{backend, backends, bind, overload, reweighed};
use super::{Flags, Kind, Rng, Scheduler};
use crate::flow::{Endpoint, Protocol, Tuple};
use crate::service::{Backend, Member};
use crate::time::Instant;

fn tuple(client: u32, service: u8) -> Tuple {
    Tuple {
        protocol: Protocol::Udp,
        source: Endpoint::new(client.to_be_bytes().into(), client as u16),
        destination: Endpoint::new([10, 9, 9, service].into(), 53),
    }
}

fn any_weight() -> impl Strategy<Value = u32> {
    prop_oneof![Just(0), 1..5_u32, 1..=65_535_u32, Just(u32::MAX), any::<u32>()]
}

#[derive(Clone, Debug)]
enum Step {
    Flow { client: u32, service: u8, active: bool },
    Weight { which: usize, weight: u32 },
    Overload { which: usize },
    Add { at: usize, weight: u32 },
    Remove { which: usize },
    Reverse,
    Wait { seconds: u64 },
}

fn any_step() -> impl Strategy<Value = Step> {
    let flow = (any::<u32>(), any::<u8>(), any::<bool>());
    prop_oneof![
        12 => flow.prop_map(|(client, service, active)| Step::Flow { client, service, active }),
        2 => (any::<usize>(), any_weight()).prop_map(|(which, weight)| Step::Weight { which, weight }),
        1 => any::<usize>().prop_map(|which| Step::Overload { which }),
        1 => (any::<usize>(), any_weight()).prop_map(|(at, weight)| Step::Add { at, weight }),
        1 => any::<usize>().prop_map(|which| Step::Remove { which }),
        1 => Just(Step::Reverse),
        1 => (0..200_000_u64).prop_map(|seconds| Step::Wait { seconds }),
    ]
}

struct Run {
    scheduler: Scheduler,
    list: Vec<Member>,
    now: Instant,
    rng: Rng,
    next_id: u64,
}

impl Run {
    fn new(kind: Kind, flags: Flags, weights: &[u32]) -> Self {
        let list = backends(weights);
        Self {
            scheduler: Scheduler::new(kind, flags, &list),
            list,
            now: Instant::ZERO,
            rng: Rng::with_seed(1),
            next_id: 1000,
        }
    }

    fn at(&self, which: usize) -> Option<&Member> {
        self.list.get(which % self.list.len().max(1))
    }

    fn change(&mut self, change: impl FnOnce(&mut Vec<Member>)) {
        let before = self.list.clone();
        change(&mut self.list);
        self.scheduler.backends_changed(&before, &self.list);
    }

    fn flow(&mut self, tuple: &Tuple, active: bool) {
        let picked = self.scheduler.pick(tuple, &self.list, self.now, &mut self.rng);
        let Some(index) = picked else {
            assert!(self.may_refuse(), "someone could have taken it");
            return;
        };
        let backend = &self.list[index];
        assert_ne!(backend.weight(), 0, "a drained backend got a flow");
        assert!(!backend.is_overloaded(), "an overloaded backend got a flow");
        bind(backend, u32::from(active), u32::from(!active));
    }

    /// Nobody is free, or the scheduler is one that refuses rather than take another.
    fn may_refuse(&self) -> bool {
        let hashes = matches!(self.scheduler.kind(), Kind::Sh | Kind::Dh | Kind::Mh | Kind::Ovf);
        let is_free = |backend: &Member| backend.weight() != 0 && !backend.is_overloaded();
        hashes || !self.list.iter().any(is_free)
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Flow {
                client,
                service,
                active,
            } => self.flow(&tuple(client, service), active),
            Step::Weight { which, weight } => self.reweigh(which, weight),
            Step::Overload { which } => {
                if let Some(backend) = self.at(which) {
                    overload(backend);
                }
            }
            Step::Add { at, weight } => {
                self.next_id += 1;
                let new = backend(self.next_id, weight);
                self.change(|list| list.insert(at % (list.len() + 1), new));
            }
            Step::Remove { which } => self.change(|list| {
                if !list.is_empty() {
                    list.remove(which % list.len());
                }
            }),
            Step::Reverse => self.change(|list| list.reverse()),
            Step::Wait { seconds } => self.now = self.now + Duration::from_secs(seconds),
        }
    }

    fn reweigh(&mut self, which: usize, weight: u32) {
        if let Some(backend) = self.at(which) {
            backend.set_thresholds((0, 0));
            let at = which % self.list.len();
            self.change(|list| list[at] = reweighed(&list[at], weight));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn only_backends_that_are_free_get_flows_whatever_happens(
        weights in vec(any_weight(), 0..8),
        steps in vec(any_step(), 0..120),
        fallback: bool,
        port: bool,
    ) {
        for kind in Kind::ALL {
            let mut run = Run::new(kind, Flags { fallback, port, ..Flags::default() }, &weights);
            for step in &steps {
                run.step(step.clone());
            }
            prop_assert_eq!(run.scheduler.kind(), kind);
        }
    }

    #[test]
    fn in_a_full_cycle_of_wrr_everyone_gets_as_many_flows_as_its_weight(
        weights in vec(0..30_u32, 1..8),
        scale in 1..5_u32,
    ) {
        let divisor = super::load::common_divisor(weights.iter().copied());
        prop_assume!(divisor == 1);
        let scaled: Vec<u32> = weights.iter().map(|weight| weight * scale).collect();
        let list = backends(&scaled);
        let scheduler = Scheduler::new(Kind::Wrr, Flags::default(), &list);
        let mut counts = vec![0; list.len()];
        for _ in 0..weights.iter().sum::<u32>() {
            let picked = scheduler.pick(&tuple(1, 1), &list, Instant::ZERO, &mut Rng::with_seed(1));
            counts[picked.unwrap()] += 1;
        }
        prop_assert_eq!(counts, weights);
    }

    #[test]
    fn wrr_takes_every_level_in_turn_even_where_it_skips_those_that_nobody_reaches(
        weights in vec(0..40_u32, 0..6),
        scale in 1..4_u32,
        steps in vec((any::<prop::sample::Index>(), any::<bool>(), 1..9_usize), 0..30),
    ) {
        let weights: Vec<u32> = weights.iter().map(|weight| weight * scale).collect();
        let list = backends(&weights);
        let scheduler = Scheduler::new(Kind::Wrr, Flags::default(), &list);
        let mut walker = Walker::new(&weights);
        for (which, recovers, flows) in steps {
            if let Some(backend) = list.get(which.index(list.len().max(1))) {
                set_overloaded(backend, !recovers);
            }
            for _ in 0..flows {
                let picked = scheduler.pick(&tuple(1, 1), &list, Instant::ZERO, &mut Rng::with_seed(1));
                prop_assert_eq!(picked, walker.pick(&list));
            }
        }
    }

    #[test]
    fn the_shares_of_mh_follow_the_weights(weights in vec(1..10_u32, 1..8)) {
        let list = backends(&weights);
        let shares = mh_clients(&list).into_values().fold(HashMap::new(), |mut shares, id| {
            *shares.entry(id).or_insert(0) += 1;
            shares
        });
        let total: u32 = weights.iter().sum();
        for backend in &list {
            let share = f64::from(shares.get(&backend.id).copied().unwrap_or(0)) / f64::from(CLIENTS);
            let due = f64::from(backend.weight()) / f64::from(total);
            prop_assert!((share - due).abs() < 0.03, "{} of {}", share, due);
        }
    }

    #[test]
    fn removing_a_backend_moves_few_clients_of_the_others_of_mh(
        weights in vec(1..4_u32, 3..12),
        gone: prop::sample::Index,
    ) {
        let list = backends(&weights);
        let mut fewer = list.clone();
        let gone = fewer.remove(gone.index(list.len())).id;
        let after = mh_clients(&fewer);
        let stayed_put = mh_clients(&list).into_iter().filter(|&(_, id)| id != gone);
        let (all, moved) = stayed_put.fold((0, 0), |(all, moved), (client, id)| {
            (all + 1, moved + u32::from(after[&client] != id))
        });
        prop_assert!(moved * 10 < all, "{} of {} moved", moved, all);
    }

    #[test]
    fn draining_a_backend_moves_no_client_of_the_others_of_mh(weights in vec(1..9_u32, 2..8)) {
        let mut run = Run::new(Kind::Mh, Flags::default(), &weights);
        let before = mh_clients(&run.list);
        run.reweigh(0, 0);
        for (client, id) in before.into_iter().filter(|&(_, id)| id != 1) {
            let picked = run.scheduler.pick(&tuple(client, 1), &run.list, run.now, &mut run.rng);
            prop_assert_eq!(picked.map(|index| run.list[index].id), Some(id));
        }
    }
}

/// Overloaded or not, without a flow of its own.
fn set_overloaded(backend: &Backend, overloaded: bool) {
    if overloaded != backend.is_overloaded() {
        if overloaded {
            overload(backend);
        } else {
            backend.unbind(true);
        }
    }
}

/// The slow, plain form of `wrr`: a cursor that visits the head and every backend in turn, and comes one level down at
/// each visit of the head.
struct Walker {
    /// 0 is the head, n the n-th backend.
    cursor: usize,
    level: u32,
    highest: u32,
    step: u32,
}

impl Walker {
    fn new(weights: &[u32]) -> Self {
        let step = super::load::common_divisor(weights.iter().copied()).max(1);
        let highest = (weights.iter().max().copied().unwrap_or(0) + 1).saturating_sub(step);
        Self {
            cursor: 0,
            level: highest,
            highest,
            step,
        }
    }

    /// In vain it walks every level of the list once, from where it is to where it was, but never further than the end
    /// of a lowest level that it walked as a whole.
    fn pick(&mut self, list: &[Member]) -> Option<usize> {
        if self.highest == 0 {
            return None;
        }
        let (start, mut is_whole, mut wrapped) = (self.cursor, self.cursor == 0, false);
        loop {
            self.cursor = (self.cursor + 1) % (list.len() + 1);
            if self.cursor == 0 {
                let was_lowest = self.level <= self.step;
                self.level = if was_lowest {
                    self.highest
                } else {
                    self.level - self.step
                };
                if was_lowest && is_whole {
                    return None;
                }
                wrapped |= was_lowest;
                is_whole = true;
                continue;
            }
            let backend = &list[self.cursor - 1];
            if !backend.is_overloaded() && backend.weight() >= self.level {
                return Some(self.cursor - 1);
            }
            if wrapped && self.level <= self.step && self.cursor == start {
                return None;
            }
        }
    }
}

const CLIENTS: u32 = 10_000;

/// Whom `mh` gives many clients to.
fn mh_clients(list: &[Member]) -> HashMap<u32, u64> {
    let scheduler = Scheduler::new(Kind::Mh, Flags::default(), list);
    let mut rng = Rng::with_seed(1);
    (0..CLIENTS)
        .map(|client| {
            let picked = scheduler.pick(&tuple(client, 1), list, Instant::ZERO, &mut rng);
            (client, list[picked.unwrap()].id)
        })
        .collect()
}
