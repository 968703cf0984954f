//! What it costs to take over one changed backend among 10,000 services with 10 backends each: from the file, and from a
//! command; of the whole, and of what changed only.
//!
//! `cargo bench --bench reload` writes `target/bench/reload.md`.
use std::fmt::Write;
use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ahash::RandomState;
use criterion::Criterion;
use lbd::config::edit::{self, BackendFields, Edit, Which};
use lbd::config::reload::describe;
use lbd::config::{Loaded, parse, parse_again, to_toml};
use lbd::engine::{Engine, Seeds};
use lbd::plumbing::Plan;
use lbd::time::Instant;

const SERVICES: u32 = 10_000;
const BACKENDS: u32 = 10;

/// The steps in their order: what they are called, how they are measured before and now.
const STEPS: [(&str, Option<&str>, Option<&str>); 6] = [
    (
        "read the file: parse and validate",
        Some("parse-whole"),
        Some("parse-changes"),
    ),
    (
        "a command: change, write, read back",
        Some("edit-whole"),
        Some("edit-changes"),
    ),
    ("say what changed", None, Some("describe")),
    ("compare with the running policy", None, Some("compare")),
    ("what the kernel is to lead here", Some("plan-whole"), None),
    ("have packets judged by it", None, Some("apply")),
];

fn text(port: u32) -> String {
    let mut text = String::from("mode = \"iptables\"\n");
    for service in 0..SERVICES {
        let (high, low) = (service >> 8, service & 255);
        write!(
            text,
            "[[services]]\nname = \"ns/service-{service}:http\"\nprotocol = \"tcp\"\naddress = \"10.96.{high}.{low}:80\"\nbackends = [\n"
        )
        .unwrap_or_default();
        for each in 0..BACKENDS {
            let number = service * BACKENDS + each;
            let host = format!("10.{}.{}.{}", number >> 16, number >> 8 & 255, number & 255);
            // The one that changes.
            let port = if number == SERVICES * BACKENDS / 2 { port } else { 8080 };
            writeln!(text, "  {{ address = \"{host}:{port}\", weight = 1 }},").unwrap_or_default();
        }
        text.push_str("]\n");
    }
    text
}

fn loaded(text: &str) -> Loaded {
    parse("bench.toml", text).expect("a valid file")
}

fn added() -> Edit {
    Edit::AddBackend {
        service: Which::Named(format!("ns/service-{}:http", SERVICES / 2)),
        address: "10.200.0.1:80".parse().expect("an endpoint"),
        fields: BackendFields::default(),
        first: false,
    }
}

fn measure(criterion: &mut Criterion) {
    let (one, other) = (loaded(&text(8080)), text(8081));
    let again = parse_again("bench.toml", &other, &one).expect("a valid file");
    let edits = [added()];
    let edited = edit::apply(&one.config, &[], &edits).expect("a valid edit");
    let mut group = criterion.benchmark_group("reload");
    group.sample_size(10);
    let mut bench = |name: &str, work: &mut dyn FnMut()| {
        group.bench_function(name, |bencher| bencher.iter(&mut *work));
    };
    bench("parse-whole", &mut || drop(black_box(parse("bench.toml", &other))));
    bench("parse-changes", &mut || {
        drop(black_box(parse_again("bench.toml", &other, &one)));
    });
    bench("edit-whole", &mut || drop(black_box(parse("", &to_toml(&edited)))));
    bench("edit-changes", &mut || {
        drop(black_box(edit::apply(&one.config, &[], &edits)));
    });
    bench("describe", &mut || {
        drop(black_box(describe(&one.config, &again.config)));
    });
    bench("compare", &mut || {
        black_box(one.config.policy == again.config.policy);
    });
    bench("plan-whole", &mut || {
        drop(black_box(Plan::new(&one.config.policy, &[])));
    });
    let (before, after) = (Arc::new(one.config.policy.clone()), Arc::new(again.config.policy));
    let seeds = Seeds {
        choices: 1,
        hashing: RandomState::with_seed(1),
    };
    let (engine, _) = Engine::new(Arc::clone(&before), 2, seeds, Instant::ZERO);
    bench("apply", &mut || {
        engine.apply(Arc::clone(&after));
        engine.apply(Arc::clone(&before));
    });
}

/// Milliseconds that criterion measured.
fn measured(results: &Path, name: &str) -> Option<f64> {
    let file = results.join(format!("reload/{name}/new/estimates.json"));
    let estimates: serde_json::Value = serde_json::from_slice(&std::fs::read(file).ok()?).ok()?;
    // Two policies are applied at a time.
    let share = if name == "apply" { 0.5 } else { 1.0 };
    Some(estimates["median"]["point_estimate"].as_f64()? * share / 1e6)
}

fn table(results: &Path) -> String {
    let mut text = String::from(
        "Milliseconds, one of 100,000 backends changed:\n\n| | of all | of what changed |\n| --- | ---: | ---: |\n",
    );
    for (step, whole, changes) in STEPS {
        let cell = |name: Option<&str>| match name.and_then(|name| measured(results, name)) {
            Some(millis) => format!("{millis:.2}"),
            None => "-".to_owned(),
        };
        writeln!(text, "| {step} | {} | {} |", cell(whole), cell(changes)).unwrap_or_default();
    }
    text
}

fn target() -> PathBuf {
    let given = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    given.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("target"))
}

fn main() -> std::io::Result<()> {
    let directory = target().join("bench");
    let results = directory.join("criterion");
    let mut criterion = Criterion::default().output_directory(&results).configure_from_args();
    measure(&mut criterion);
    // Run as a test, there may be nothing to show.
    if measured(&results, "apply").is_some() {
        std::fs::write(directory.join("reload.md"), table(&results))?;
    }
    Ok(())
}
