//! What one decision costs, for each scheduler, with few and with many backends.
use std::hint::black_box;
use std::net::Ipv4Addr;
use std::sync::Arc;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use lbd::flow::{Endpoint, Protocol, Tuple};
use lbd::policy::BackendSpec;
use lbd::scheduler::{Flags, Kind, Rng, Scheduler};
use lbd::service::{Backend, Member, ServiceIdentity};
use lbd::time::Instant;

const SIZES: [u32; 3] = [3, 100, 10_000];

/// Weights 1 to 3 and a few flows each, so that no comparison ends early.
fn backends(count: u32) -> Vec<Member> {
    let identity = Arc::new(ServiceIdentity::new(1, "bench"));
    (0..count)
        .map(|number| {
            let address = Ipv4Addr::from_bits(Ipv4Addr::new(10, 2, 0, 0).to_bits() + number);
            let spec = BackendSpec {
                address: Endpoint::new(address.into(), 80),
                weight: number % 3 + 1,
                upper_threshold: 0,
                lower_threshold: 0,
            };
            let backend = Backend::new(u64::from(number), &spec, Arc::clone(&identity), 1);
            backend.bind();
            backend.set_active(true);
            Member::new(Arc::new(backend), &spec, None)
        })
        .collect()
}

fn tuple(client: u32) -> Tuple {
    Tuple {
        protocol: Protocol::Tcp,
        source: Endpoint::new(Ipv4Addr::from_bits(client).into(), client as u16),
        destination: Endpoint::new([10, 9, 9, 9].into(), 80),
    }
}

fn decisions(criterion: &mut Criterion) {
    for kind in Kind::ALL {
        let mut group = criterion.benchmark_group(format!("scheduler/{kind}"));
        for size in SIZES {
            let backends = backends(size);
            let scheduler = Scheduler::new(kind, Flags::default(), &backends);
            let mut rng = Rng::with_seed(1);
            let mut client = 0_u32;
            group.bench_function(BenchmarkId::from_parameter(size), |bencher| {
                bencher.iter(|| {
                    client = client.wrapping_add(0x9E37_79B9);
                    let tuple = tuple(black_box(client));
                    black_box(scheduler.pick(&tuple, &backends, Instant::ZERO, &mut rng))
                });
            });
        }
        group.finish();
    }
}

criterion_group!(benches, decisions);
criterion_main!(benches);
