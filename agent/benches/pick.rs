//! What one choice of an endpoint costs, by policy and number of endpoints: `cargo bench -p sluice-agent --bench pick`.
//! Each endpoint has answered calls, so that all that is weighed has a value.

use std::hint::black_box;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use sluice_agent::addr::{EndpointAddr, ServiceAddr};
use sluice_agent::balance::{Outcome, Reach, ServiceLoad, Standing};
use sluice_agent::table::{Endpoint, Policy, Scope, Service, ServicePortName};

fn service(policy: Policy, endpoints: usize) -> Rc<ServiceLoad> {
    let rng = &mut fastrand::Rng::with_seed(7);
    let endpoint = |n: usize| {
        let addr = EndpointAddr::new(([10, 1, (n / 250) as u8, (n % 250) as u8], 50051).into());
        Endpoint { addr, identity: n.to_string().into(), place: None }
    };
    let load = ServiceLoad::new(
        Arc::new(Service {
            id: 1,
            addr: ServiceAddr::new(([10, 96, 0, 10], 50051).into()),
            name: ServicePortName { namespace: "shop".into(), service: "cart".into(), port: "grpc".into() },
            balancing: policy.into(),
            endpoints: (0..endpoints).map(endpoint).collect(),
            scope: Scope::All,
            usable: 0,
        }),
        rng,
    );
    let now = Instant::now();
    for _ in 0..50 {
        for endpoint in load.endpoints() {
            load.answered(now, &endpoint, Duration::from_micros(rng.u64(800..1200)), Outcome::Answered);
        }
    }
    load
}

fn pick(criterion: &mut Criterion) {
    let (rng, now) = (&mut fastrand::Rng::with_seed(7), Instant::now());
    for policy in Policy::ALL {
        let mut group = criterion.benchmark_group(policy.name());
        for endpoints in [10, 100, 1_000] {
            let load = service(policy, endpoints);
            // Some calls are open, as in real life.
            let _open: Vec<_> = (0..endpoints / 2).filter_map(|_| load.pick(now, rng, |_| Standing::Good)).collect();
            group.bench_function(BenchmarkId::new("all", endpoints), |bencher| {
                bencher.iter(|| black_box(load.pick(now, rng, |_| Standing::Good)));
            });
            let reach = Reach::default();
            group.bench_function(BenchmarkId::new("of a pod", endpoints), |bencher| {
                bencher.iter(|| black_box(reach.pick(now, &load, rng, |_| Standing::Good)));
            });
        }
        group.finish();
    }
}

fn answered(criterion: &mut Criterion) {
    let now = Instant::now();
    for endpoints in [10, 1_000] {
        let load = service(Policy::Ewma, endpoints);
        let all = load.endpoints();
        let mut next = 0;
        criterion.bench_function(&format!("answered/{endpoints}"), |bencher| {
            bencher.iter(|| {
                next = (next + 1) % all.len();
                load.answered(now, &all[next], Duration::from_millis(1), Outcome::Answered);
            });
        });
    }
}

criterion_group!(benches, pick, answered);
criterion_main!(benches);
