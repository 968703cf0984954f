//! Every scheduler chooses what a real kernel chose: the recorded runs of reference/scheduler-sequences.json, replayed.
//!
//! The recordings are shared material and no part of this repository: `LBD_SHARED` says where they are, by default
//! `shared` beside the repository. Without them this test says that it is skipped; the unit tests of each scheduler
//! hold the same orders, written out.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "helpers of a test; clippy spares only the test functions themselves"
)]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use lbd::flow::{Endpoint, Protocol, Tuple};
use lbd::policy::BackendSpec;
use lbd::scheduler::{Flags, Kind, Rng, Scheduler};
use lbd::service::{Backend, Member, ServiceIdentity};
use lbd::time::Instant;
use serde_json::Value;

#[test]
fn every_deterministic_run_of_the_kernel_is_repeated_choice_by_choice() {
    let Some(recording) = recording() else {
        return;
    };
    let runs = recording["runs"].as_array().unwrap();
    let mut replayed = 0;
    for run in runs.iter().filter(|run| run["deterministic"] == true) {
        let expected: Vec<Option<u64>> = sequence(run).iter().map(Value::as_u64).collect();
        assert_eq!(replay(run), expected, "{}", describe(run));
        replayed += 1;
    }
    println!("{replayed} of {} runs are deterministic", runs.len());
    assert!(replayed > 0);
}

#[test]
fn runs_that_the_kernel_drew_at_random_keep_to_the_same_servers() {
    let Some(recording) = recording() else {
        return;
    };
    let runs = recording["runs"].as_array().unwrap();
    for run in runs.iter().filter(|run| run["deterministic"] == false) {
        assert_eq!(run["scheduler"], "twos");
        assert!(replay(run).iter().all(Option::is_some), "{}", describe(run));
    }
}

fn recording() -> Option<Value> {
    let shared = std::env::var_os("LBD_SHARED").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared"),
        PathBuf::from,
    );
    let path = shared.join("reference/scheduler-sequences.json");
    if !path.exists() {
        println!("SKIPPED: no recordings at {}; set LBD_SHARED", path.display());
        return None;
    }
    let text = std::fs::read_to_string(path).unwrap();
    Some(serde_json::from_str(&text).unwrap())
}

fn describe(run: &Value) -> String {
    ["scheduler", "flags", "mode", "pattern"]
        .map(|key| run[key].to_string())
        .join(" ")
}

fn sequence(run: &Value) -> &[Value] {
    let sequence = run["sequence"].as_array().unwrap();
    let is_choice = |it: &Value| it.is_u64() || it == "ECONNREFUSED";
    assert!(sequence.iter().all(is_choice), "{}", describe(run));
    sequence
}

fn replay(run: &Value) -> Vec<Option<u64>> {
    let stays_open = match run["mode"].as_str().unwrap() {
        "open" => true,
        "close" | "reset" => false,
        other => panic!("unknown mode {other}"),
    };
    let pattern = run["pattern"].as_str().unwrap();
    let mut rng = Rng::with_seed(1);
    let mut service = Service::new(run);
    (0..sequence(run).len())
        .map(|number| {
            if pattern == "vips" {
                service = Service::new(run);
            }
            let number = u8::try_from(number).unwrap();
            service.connect(&tuple(pattern, number), stays_open, &mut rng)
        })
        .collect()
}

fn tuple(pattern: &str, number: u8) -> Tuple {
    let (client, port, service) = match pattern {
        "ports" => (2, 40_000 + u16::from(number), 9),
        "sources" => (2 + number, 40_000, 9),
        "vips" => (2, 40_000 + u16::from(number), 1 + number),
        other => panic!("unknown pattern {other}"),
    };
    Tuple {
        protocol: Protocol::Tcp,
        source: Endpoint::new([10, 1, 0, client].into(), port),
        destination: Endpoint::new([10, 9, 9, service].into(), 80),
    }
}

struct Service {
    scheduler: Scheduler,
    backends: Vec<Member>,
}

impl Service {
    /// `ipvsadm -A`, and `ipvsadm -a` for each server: the kernel puts a new server at the head of its list.
    fn new(run: &Value) -> Self {
        let kind: Kind = run["scheduler"].as_str().unwrap().parse().unwrap();
        let mut service = Self {
            scheduler: Scheduler::new(kind, flags(run["flags"].as_str().unwrap_or("")), &[]),
            backends: Vec::new(),
        };
        for (id, weight) in (1..).zip(run["weights"].as_array().unwrap()) {
            let weight = u32::try_from(weight.as_u64().unwrap()).unwrap();
            service.add(backend(id, weight));
        }
        service
    }

    fn add(&mut self, backend: Member) {
        let before = self.backends.clone();
        self.backends.insert(0, backend);
        self.scheduler.backends_changed(&before, &self.backends);
    }

    /// A connection that is established, and closed unless it `stays_open`: then it is in TIME_WAIT or CLOSE.
    fn connect(&self, tuple: &Tuple, stays_open: bool, rng: &mut Rng) -> Option<u64> {
        let index = self.scheduler.pick(tuple, &self.backends, Instant::ZERO, rng)?;
        let backend = &self.backends[index];
        backend.bind();
        backend.set_active(true);
        if !stays_open {
            backend.set_active(false);
        }
        Some(backend.id)
    }
}

fn flags(words: &str) -> Flags {
    let mut flags = Flags::default();
    for word in words.split(',').filter(|word| !word.is_empty()) {
        match word {
            "sh-fallback" | "mh-fallback" => flags.fallback = true,
            "sh-port" | "mh-port" => flags.port = true,
            other => panic!("unknown flag {other}"),
        }
    }
    flags
}

fn backend(id: u8, weight: u32) -> Member {
    let identity = Arc::new(ServiceIdentity::new(1, "recorded"));
    let spec = BackendSpec {
        address: Endpoint::new([10, 2, id, 2].into(), 80),
        weight,
        upper_threshold: 0,
        lower_threshold: 0,
    };
    let backend = Backend::new(u64::from(id), &spec, identity, 1);
    Member::new(Arc::new(backend), &spec, None)
}
