//! What a new flow costs, from packet to packet and to find its service alone, and a change of one service, among few
//! services and among many.
//!
//! `cargo bench --bench rules` writes `flows.svg`, `rules.svg` and `rules.md` in `target/bench`.
#[path = "support/openings.rs"]
mod openings;
#[path = "support/plot.rs"]
mod plot;

use std::convert::identity;
use std::fmt::Write;
use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ahash::RandomState;
use criterion::measurement::WallTime;
use criterion::{BatchSize, BenchmarkGroup, BenchmarkId, Criterion};
use etherparse::{IpFragOffset, IpNumber, Ipv4Header};
use ipnet::IpNet;
use lbd::conntrack::timeout::Timeouts;
use lbd::engine::{Engine, Seeds};
use lbd::flow::{Endpoint, Protocol};
use lbd::matcher::Matcher;
use lbd::matcher::rules::{Action, Condition, Rule};
use lbd::packet::frame::{Checksum, Frame};
use lbd::packet::{Headers, Payload, Ports, TcpFlags, Version};
use lbd::policy::{BackendSpec, Conntrack, Evaluation, Icmp, Mode, Nat, Policy, ServiceSpec, UnknownReply, UnknownTcp};
use lbd::ruleset::Registry;
use lbd::scheduler::{Flags, Rng};
use lbd::time::Instant;
use lbd::verdict::{Pass, Verdict};

use openings::Openings;

const SIZES: [u32; 6] = [1, 10, 100, 1_000, 10_000, 100_000];

/// How the rules are looked through.
const WAYS: [(&str, Mode, Evaluation); 3] = [
    ("linear", Mode::Iptables, Evaluation::Linear),
    ("compiled", Mode::Iptables, Evaluation::Compiled),
    ("ipvs", Mode::Ipvs, Evaluation::Compiled),
];

/// Which services the flows are for.
#[derive(Clone, Copy)]
enum Popular {
    /// Ten, evenly over the list: what more rules cost.
    Ten,
    /// Any, at random: what more rules cost when none is in a near cache.
    Any,
}

impl Popular {
    const ALL: [(&'static str, Self); 2] = [("ten", Self::Ten), ("any", Self::Any)];

    /// The service of a flow.
    fn service(self, flow: u32, services: u32) -> u32 {
        let random = (u64::from(flow.wrapping_mul(0x9E37_79B9)) * u64::from(services)) >> 32;
        match self {
            Self::Ten if services > 10 => (flow % 10) * (services / 10) + services / 20,
            Self::Ten => flow % services,
            Self::Any => random as u32,
        }
    }
}

fn address(base: [u8; 4], number: u32) -> IpAddr {
    Ipv4Addr::from_bits(Ipv4Addr::from(base).to_bits() + number).into()
}

fn service(number: u32, backends: u32) -> ServiceSpec {
    let backend = |each| BackendSpec {
        address: Endpoint::new(address([11, 0, 0, 0], number * backends + each), 8080),
        weight: 1,
        upper_threshold: 0,
        lower_threshold: 0,
    };
    ServiceSpec {
        name: format!("service-{number}"),
        protocol: Protocol::Tcp,
        address: Endpoint::new(address([10, 96, 0, 0], number), 80),
        external_addresses: Vec::new(),
        node_port: None,
        scheduler: None,
        flags: Flags::default(),
        persistence: None,
        one_packet: false,
        on_backend_removed: None,
        backends: (0..backends).map(backend).collect(),
    }
}

fn policy(mode: Mode, evaluation: Evaluation, services: u32, backends: u32) -> Policy {
    Policy {
        mode,
        shadow: false,
        evaluation,
        scheduler: None,
        node_addresses: Vec::new(),
        local_addresses: Vec::new(),
        nat: Nat::default(),
        conntrack: Conntrack {
            max_flows: 1,
            on_backend_removed: None,
            unknown_tcp: UnknownTcp::Drop,
            unknown_reply: UnknownReply::Drop,
            expire_quiescent_template: true,
            conn_reuse: true,
            timeouts: Timeouts::default(),
        },
        icmp: Icmp::default(),
        rules: Vec::new(),
        services: (0..services)
            .map(|number| Arc::new(service(number, backends)))
            .collect(),
    }
}

fn first_packet(flow: u32, service: u32) -> Headers {
    let ports = Ports {
        source: 1024 + (flow as u16 & 0x7fff),
        destination: 80,
    };
    Headers {
        version: Version::V4,
        source: address([100, 64, 0, 0], flow & 0xffff).into(),
        destination: address([10, 96, 0, 0], service).into(),
        protocol: 6,
        transport: 20,
        length: 60,
        payload: Payload::Tcp(ports, TcpFlags(TcpFlags::SYN)),
    }
}

fn lookup(group: &mut BenchmarkGroup<'_, WallTime>, name: &str, matcher: &Matcher, popular: Popular, services: u32) {
    let (mut rng, mut flow) = (Rng::with_seed(1), 0_u32);
    group.bench_function(BenchmarkId::new(name, services), |bencher| {
        bencher.iter(|| {
            flow = flow.wrapping_add(1);
            let headers = first_packet(flow, popular.service(flow, services));
            let tuple = headers.tuple();
            black_box(matcher.find(black_box(&headers), tuple.as_ref(), &mut rng, 0));
        });
    });
}

fn lookups(criterion: &mut Criterion) {
    for services in SIZES {
        for (name, mode, evaluation) in WAYS {
            let policy = Arc::new(policy(mode, evaluation, services, 0));
            let ruleset = Registry::new(1).prepare(policy, None).commit(identity);
            for (flows, popular) in Popular::ALL {
                let mut group = criterion.benchmark_group(format!("rules-{flows}"));
                lookup(&mut group, name, &ruleset.matcher, popular, services);
                group.finish();
            }
        }
    }
}

fn flows(criterion: &mut Criterion) {
    for services in SIZES {
        for (name, mode, evaluation) in WAYS {
            for (flows, popular) in Popular::ALL {
                let mut openings = Openings::new(policy(mode, evaluation, services, 1));
                let mut group = criterion.benchmark_group(format!("flows-{flows}"));
                group.warm_up_time(Duration::from_millis(500));
                group.measurement_time(Duration::from_secs(2));
                group.bench_function(BenchmarkId::new(name, services), |bencher| {
                    bencher.iter(|| openings.batch(|flow| popular.service(flow, services)));
                });
                group.finish();
            }
        }
    }
}

/// Packets of no service and none of the rules: whole ones, and fragments behind the first one of a datagram.
fn strangers(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("rules-strangers");
    for rules in [10, 1_000, 20_000] {
        let mut policy = policy(Mode::Iptables, Evaluation::Compiled, 10, 1);
        policy.rules = (0..rules).map(banned).collect();
        let engine = Engine::new(Arc::new(policy), 1, seeds(), Instant::ZERO);
        let (engine, mut lanes) = engine;
        for (name, fragment) in [("whole", false), ("fragment", true)] {
            let mut number = 0_u32;
            let mut buffer = [0; 256];
            group.bench_function(BenchmarkId::new(name, rules), |bencher| {
                bencher.iter(|| {
                    number = number.wrapping_add(1);
                    let end = datagram(number, fragment, &mut buffer);
                    let mut frame = Frame::new(&mut buffer, 0, end, Checksum::Complete);
                    let verdict = engine
                        .enter(&mut lanes[0], Instant::ZERO)
                        .process(&mut frame, Instant::ZERO);
                    assert_eq!(verdict, Verdict::Pass(Pass::NoMatch));
                });
            });
        }
    }
    group.finish();
}

fn banned(number: u32) -> Rule {
    let condition = |base, number| {
        Some(Condition {
            negated: false,
            value: IpNet::from(address(base, number)),
        })
    };
    Rule {
        name: None,
        source: condition([172, 16, 0, 0], number),
        destination: None,
        protocol: None,
        source_port: None,
        destination_port: None,
        probability: None,
        action: Action::Drop,
    }
}

/// Writes a datagram to nobody that lbd knows, whole or only its second half; returns its length.
fn datagram(number: u32, fragment: bool, buffer: &mut [u8]) -> usize {
    let mut header = Ipv4Header::new(32, 64, IpNumber::UDP, [100, 64, 0, 1], [192, 0, 2, 1]).expect("a short packet");
    header.identification = number as u16;
    if fragment {
        header.fragment_offset = IpFragOffset::try_new(8).expect("a small one");
    }
    header.header_checksum = header.calc_header_checksum();
    let (packet, length) = (header.to_bytes(), 52);
    buffer[..20].copy_from_slice(&packet);
    buffer[20..length].fill(0);
    buffer[20..28].copy_from_slice(&[4, 0, 4, 1, 0, 32, 0, 0]);
    length
}

fn seeds() -> Seeds {
    Seeds {
        choices: 1,
        hashing: RandomState::with_seed(1),
    }
}

/// The same policy with another backend for a service in the middle of the list.
fn with_another_backend(policy: &Policy) -> Policy {
    let mut policy = policy.clone();
    let middle = policy.services.len() / 2;
    let port = &mut Arc::make_mut(&mut policy.services[middle]).backends[0].address.port;
    *port += 1;
    policy
}

fn updates(criterion: &mut Criterion) {
    for (services, backends) in [(10_000, 10), (100_000, 2)] {
        for (name, mode, evaluation) in &WAYS[1..] {
            let before = Arc::new(policy(*mode, *evaluation, services, backends));
            let after = Arc::new(with_another_backend(&before));
            let (engine, _) = Engine::new(Arc::clone(&before), 2, seeds(), Instant::ZERO);
            let mut group = criterion.benchmark_group("rules-update");
            group.sample_size(10);
            group.bench_function(BenchmarkId::new(format!("{name}-one-backend"), services), |bencher| {
                bencher.iter(|| {
                    engine.apply(Arc::clone(&after));
                    engine.apply(Arc::clone(&before));
                });
            });
            group.bench_function(BenchmarkId::new(format!("{name}-anew"), services), |bencher| {
                let anew = || Registry::new(2).prepare(Arc::clone(&before), None).commit(identity);
                bencher.iter_batched(|| (), |()| anew(), BatchSize::PerIteration);
            });
            group.finish();
        }
    }
}

/// Nanoseconds that criterion measured.
fn measured(results: &Path, group: &str, name: &str, services: u32) -> Option<f64> {
    let file = results.join(format!("{group}/{name}/{services}/new/estimates.json"));
    let estimates: serde_json::Value = serde_json::from_slice(&std::fs::read(file).ok()?).ok()?;
    estimates["median"]["point_estimate"].as_f64()
}

/// Of `kind`, each of whose iterations is about so many flows.
fn curves(results: &Path, kind: &str, flows_each: usize) -> Vec<plot::Curve> {
    let mut curves = Vec::new();
    for (name, ..) in WAYS {
        for (flows, _) in Popular::ALL {
            let point = |&services: &u32| {
                let nanos = measured(results, &format!("{kind}-{flows}"), name, services)?;
                Some((f64::from(services), nanos / flows_each as f64))
            };
            curves.push(plot::Curve {
                name: format!("{name}, {flows}"),
                points: SIZES.iter().filter_map(point).collect(),
            });
        }
    }
    curves
}

fn table(title: &str, curves: &[plot::Curve]) -> String {
    let mut text = format!("{title}:\n\n| services |");
    let rule = |text: &mut String, columns: usize| text.push_str(&format!("\n|{}\n", " ---: |".repeat(columns)));
    curves
        .iter()
        .for_each(|curve| text.push_str(&format!(" {} |", curve.name)));
    rule(&mut text, curves.len() + 1);
    for (row, services) in SIZES.iter().enumerate() {
        write!(text, "| {services} |").unwrap_or_default();
        for curve in curves {
            write!(text, " {:.1} |", curve.points[row].1).unwrap_or_default();
        }
        text.push('\n');
    }
    text + "\n"
}

fn update_table(results: &Path) -> String {
    let mut text =
        String::from("Milliseconds to apply a policy with one other backend, and to make a ruleset anew:\n\n");
    text += "| services | compiled | anew | ipvs | anew |\n| ---: | ---: | ---: | ---: | ---: |\n";
    for services in [10_000, 100_000] {
        write!(text, "| {services} |").unwrap_or_default();
        // An iteration applies two policies.
        for (name, share) in [
            ("compiled-one-backend", 0.5),
            ("compiled-anew", 1.0),
            ("ipvs-one-backend", 0.5),
            ("ipvs-anew", 1.0),
        ] {
            let nanos = measured(results, "rules-update", name, services).unwrap_or(f64::NAN);
            write!(text, " {:.2} |", nanos * share / 1e6).unwrap_or_default();
        }
        text.push('\n');
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
    flows(&mut criterion);
    lookups(&mut criterion);
    strangers(&mut criterion);
    updates(&mut criterion);
    let all = [
        ("flows", "A new flow", openings::BATCH),
        ("rules", "Finding the service of a new flow", 1),
    ];
    let mut text = String::new();
    for (kind, title, flows_each) in all {
        let curves = curves(&results, kind, flows_each);
        // Run as a test, or with a filter, there may be nothing to show.
        if curves.iter().any(|curve| curve.points.len() < SIZES.len()) {
            return Ok(());
        }
        let title = format!("{title}, nanoseconds: to ten services, and to any at random");
        let picture = plot::svg(&title, "services", "ns", &curves);
        std::fs::write(directory.join(format!("{kind}.svg")), picture)?;
        text += &table(&title, &curves);
    }
    std::fs::write(directory.join("rules.md"), text + &update_table(&results))?;
    Ok(())
}
