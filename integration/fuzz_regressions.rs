//! Every input that a fuzzer has once broken lbd with, and the seeds, through the fuzz targets' own code.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::duplicate_mod,
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    reason = "the code of the fuzz targets, which are programs of their own and end at the first surprise; the test names the \
              input that it tries"
)]

#[path = "fuzz/bodies/mod.rs"]
mod bodies;
use lbd_testkit::captures;
#[path = "fuzz/seeds.rs"]
mod seeds;

use std::fs;
use std::path::PathBuf;

type Target = (&'static str, fn(&[u8]));

const TARGETS: [Target; 5] = [
    ("packet", bodies::packet::run),
    ("engine", bodies::engine::run),
    ("config", bodies::config::run),
    ("control", bodies::control::run),
    ("capture", bodies::capture::run),
];

fn directory(kind: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("integration/fuzz")
        .join(kind)
}

#[test]
fn what_a_fuzzer_has_once_found_is_found_no_more() {
    for entry in fs::read_dir(directory("regressions")).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        let (_, run) = TARGETS
            .iter()
            .find(|(target, _)| *target == name)
            .expect("a directory for each target");
        for file in fs::read_dir(entry.path()).unwrap() {
            let path = file.unwrap().path();
            println!("{}", path.display());
            run(&fs::read(&path).unwrap());
        }
    }
}

#[test]
fn every_seed_of_the_fuzzers_is_well() {
    for (target, run) in TARGETS {
        let seeds = seeds::of(target);
        assert!(!seeds.is_empty(), "{target}");
        for seed in seeds {
            run(&seed);
        }
    }
}

/// `scripts/fuzz` gives the fuzzers what this writes to begin with.
#[test]
fn the_seeds_are_written_where_they_are_wanted() {
    let Some(wanted) = std::env::var_os("LBD_FUZZ_SEEDS").map(PathBuf::from) else {
        return;
    };
    for (target, _) in TARGETS {
        let directory = wanted.join(target);
        fs::create_dir_all(&directory).unwrap();
        for (number, seed) in seeds::of(target).into_iter().enumerate() {
            fs::write(directory.join(format!("seed-{number}")), seed).unwrap();
        }
    }
}
