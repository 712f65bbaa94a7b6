//! What an update from the API server costs: one EndpointSlice changes in a cluster of so many Services with ten endpoints
//! each, and what differs is found. `cargo bench -p sluice-agent --bench table`.

use std::fmt::Write as _;
use std::hint::black_box;

use criterion::{BatchSize, BenchmarkId, Criterion, criterion_group, criterion_main};
use sluice_agent::table::object::Object;
use sluice_agent::table::{Catalog, Update};
use sluice_agent::watch::parse::parse;

fn objects(yaml: &str) -> Vec<Object> {
    let parsed = parse(&"bench.yaml".into(), yaml).unwrap_or_else(|problem| panic!("{problem}"));
    parsed.into_iter().map(|it| it.object).collect()
}

/// The slice of a Service, with the first `ready` of its ten endpoints ready.
fn slice(number: usize, ready: usize) -> String {
    let mut yaml = format!(
        "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: s{number}-x, namespace: d, \
         labels: {{kubernetes.io/service-name: s{number}}}}}\naddressType: IPv4\nports: [{{name: grpc, port: 8080}}]\nendpoints:\n"
    );
    for n in 0..10 {
        let (high, low) = ((number * 10 + n) / 250, (number * 10 + n) % 250);
        let _ = writeln!(
            yaml,
            "- {{addresses: [10.{}.{}.{low}], conditions: {{ready: {}}}}}",
            high / 250,
            high % 250,
            n < ready
        );
    }
    yaml
}

fn cluster(services: usize) -> Catalog {
    let mut yaml = String::new();
    for number in 0..services {
        let _ = write!(
            yaml,
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: s{number}, namespace: d}}\nspec: {{clusterIP: 10.96.{}.{}, \
             ports: [{{name: grpc, port: 50051}}]}}\n{}",
            number / 250,
            number % 250 + 1,
            slice(number, 10)
        );
    }
    let mut catalog = Catalog::new(None);
    catalog.apply(objects(&yaml).into_iter().map(Update::Apply));
    assert_eq!(catalog.table().services.len(), services);
    catalog
}

fn table(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("table");
    for services in [10, 100, 1_000] {
        let mut catalog = cluster(services);
        let slices = [9, 10].map(|ready| objects(&slice(services / 2, ready)));
        let mut turn = 0;
        group.bench_function(BenchmarkId::new("one slice changes, Services", services), |bencher| {
            bencher.iter_batched(
                || {
                    turn ^= 1;
                    objects_again(&slices[turn])
                },
                |update| {
                    let changes = catalog.apply(update);
                    assert_eq!(black_box(changes).services.len(), 1);
                },
                BatchSize::SmallInput,
            );
        });
    }
    group.finish();
}

fn objects_again(objects: &[Object]) -> Vec<Update> {
    objects.iter().cloned().map(Update::Apply).collect()
}

criterion_group!(benches, table);
criterion_main!(benches);
