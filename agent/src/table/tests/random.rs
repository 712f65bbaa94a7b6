//! The heart of the table: after any row of updates it is what a build from scratch makes of the objects that are left,
//! and what was told on the way adds up to it. Seeded; over few names, so that everything collides.

use std::collections::{BTreeMap, HashSet};

use fastrand::Rng;
use serde_json::{Value, json};

use super::super::endpoints::{self, Here};
use super::super::object::Key;
use super::super::part::{Part, Verdict};
use super::super::select;
use super::*;

const NODE: &str = "n1";
const NAMESPACES: [&str; 2] = ["a", "b"];
const NAMES: [&str; 3] = ["s", "t", "u"];
const KINDS: [Kind; 9] = [
    Kind::Service,
    Kind::Service,
    Kind::Service,
    Kind::EndpointSlice,
    Kind::EndpointSlice,
    Kind::EndpointSlice,
    Kind::Pod,
    Kind::Namespace,
    Kind::Node,
];

fn any<T: Copy>(rng: &mut Rng, of: &[T]) -> T {
    of[rng.usize(..of.len())]
}

fn some_of<T: Copy>(rng: &mut Rng, of: &[T]) -> Vec<T> {
    of.iter().copied().filter(|_| rng.bool()).collect()
}

fn object(rng: &mut Rng, kind: Kind) -> Object {
    let word = any(rng, &[None, None, None, Some("true"), Some("false"), Some("grpc"), Some("yes!")]);
    let mut annotations = json!({});
    if let Some(word) = word {
        annotations["sluice.dev/redirect"] = word.into();
    }
    let name = any(rng, &NAMES);
    let metadata = json!({
        "namespace": any(rng, &NAMESPACES), "name": name, "uid": format!("u-{}", rng.u8(..3)), "annotations": annotations,
    });
    fn read<T: serde::de::DeserializeOwned>(value: Value) -> Arc<T> {
        Arc::new(serde_json::from_value(value).unwrap())
    }
    match kind {
        Kind::Service => Object::Service(read(service(rng, metadata))),
        Kind::EndpointSlice => Object::EndpointSlice(read(slice(rng, metadata))),
        Kind::Pod => {
            let spec = json!({ "nodeName": any(rng, &["n1", "n1", "n2"]), "hostNetwork": rng.bool() });
            let status = json!({ "phase": any(rng, &["Running", "Running", "Failed"]) });
            Object::Pod(read(json!({ "metadata": metadata, "spec": spec, "status": status })))
        }
        Kind::Namespace => {
            let name = any(rng, &NAMESPACES);
            Object::Namespace(read(json!({ "metadata": { "name": name, "annotations": annotations } })))
        }
        Kind::Node => {
            let labels = json!({ "topology.kubernetes.io/zone": any(rng, &["a", "b", ""]) });
            Object::Node(read(json!({ "metadata": { "name": any(rng, &["n1", "n1", "n2"]), "labels": labels } })))
        }
    }
}

fn service(rng: &mut Rng, metadata: Value) -> Value {
    let ips = some_of(rng, &["10.96.0.1", "10.96.0.2", "fd00::1"]);
    let names = some_of(rng, &["grpc", "h2c", "api"]);
    let ports = names.iter().map(|name| json!({ "name": name, "port": 1 + rng.u16(..2) })).collect::<Value>();
    let policy = any(rng, &["Cluster", "Cluster", "Local"]);
    let affinity = any(rng, &["None", "None", "None", "ClientIP"]);
    let spec = json!({
        "clusterIPs": ips, "ports": ports, "internalTrafficPolicy": policy, "sessionAffinity": affinity,
    });
    json!({ "metadata": metadata, "spec": spec })
}

fn slice(rng: &mut Rng, mut metadata: Value) -> Value {
    if rng.u8(..8) > 0 {
        metadata["labels"] = json!({ "kubernetes.io/service-name": any(rng, &NAMES) });
    }
    let (family, prefix) = any(rng, &[("IPv4", "10.1.0."), ("IPv4", "10.1.0."), ("IPv6", "fd00:1::"), ("FQDN", "p")]);
    let hinted = rng.bool();
    let endpoints = some_of(rng, &[1, 2, 3, 4]).into_iter().map(|last| {
        let (ready, ending) = (any(rng, &[true, true, false]), rng.bool());
        let names = |of: &[&str]| of.iter().map(|it| json!({ "name": it })).collect::<Value>();
        let zones = if hinted { vec![any(rng, &["a", "b"])] } else { some_of(rng, &["a"]) };
        json!({
            "addresses": [format!("{prefix}{last}")],
            "conditions": { "ready": ready, "serving": true, "terminating": ending && !ready },
            "nodeName": any(rng, &["n1", "n2"]),
            "hints": { "forZones": names(&zones), "forNodes": names(&some_of(rng, &["n1", "n2"])) },
            "targetRef": { "uid": format!("p-{}", rng.u8(..4)) },
        })
    });
    let endpoints = endpoints.collect::<Value>();
    let ports = some_of(rng, &["grpc", "grpc", "h2c", "api"]);
    let ports = ports.iter().map(|name| json!({ "name": name, "port": 80 })).collect::<Value>();
    json!({ "metadata": metadata, "addressType": family, "endpoints": endpoints, "ports": ports })
}

fn update(rng: &mut Rng, objects: &BTreeMap<Key, Object>) -> Update {
    let kind = any(rng, &KINDS);
    match rng.u8(..12) {
        0 => {
            let mut kept: BTreeMap<Key, Object> =
                objects.clone().into_iter().filter(|(key, _)| key.kind == kind).collect();
            kept.retain(|_, _| rng.u8(..4) > 0);
            let new = object(rng, kind);
            kept.insert(new.key(), new);
            Update::Reset { kind, objects: kept.into_values().collect(), unreadable: Vec::new() }
        }
        1..4 => {
            let uid = any(rng, &[None, None, Some("u-0"), Some("u-1")]).map(Arc::from);
            Update::Delete { key: object(rng, kind).key(), uid }
        }
        _ => Update::Apply(object(rng, kind)),
    }
}

/// The objects as updates leave them, kept in the plainest way.
fn keep(objects: &mut BTreeMap<Key, Object>, update: Update) {
    match update {
        Update::Apply(object) => drop(objects.insert(object.key(), object)),
        Update::Delete { key, uid } => {
            let ours = objects.get(&key).and_then(|it| it.metadata().uid.as_ref());
            if uid.is_none() || ours.is_none() || ours == uid.as_ref() {
                objects.remove(&key);
            }
        }
        Update::Reset { kind, objects: all, .. } => {
            objects.retain(|key, _| key.kind != kind);
            objects.extend(all.into_iter().map(|it| (it.key(), it)));
        }
    }
}

/// All that comes of the objects, Service by Service in the order of their names.
fn from_scratch(objects: &BTreeMap<Key, Object>) -> (BTreeMap<ServiceAddr, Service>, Vec<LeftAlone>, Vec<Problem>) {
    let own = objects.values().find(|it| it.kind() == Kind::Node && &*it.metadata().name == NODE);
    let zone = own.and_then(|it| it.metadata().labels.zone.clone()).filter(|it| !it.is_empty());
    let here = Here { node: Some(NODE.into()), zone };
    let (mut table, mut left_alone, mut problems) = (BTreeMap::<ServiceAddr, Service>::new(), Vec::new(), Vec::new());
    for object in objects.values() {
        match object {
            Object::EndpointSlice(slice) => endpoints::check(slice, &mut problems),
            Object::Namespace(_) => select::check(object, &mut problems),
            Object::Pod(pod) if pod.spec.node_name.as_deref() == Some(NODE) => select::check(object, &mut problems),
            Object::Service(_) | Object::Pod(_) | Object::Node(_) => {}
        }
        let Object::Service(service) = object else { continue };
        let key = Key { kind: Kind::Namespace, namespace: "".into(), name: service.metadata.namespace.clone() };
        let word = objects.get(&key).and_then(|it| it.metadata().annotations.redirect.as_ref());
        let slices: Vec<_> = objects
            .values()
            .filter_map(|it| if let Object::EndpointSlice(it) = it { Some(it) } else { None })
            .filter(|it| it.metadata.namespace == service.metadata.namespace)
            .filter(|it| it.metadata.labels.service_name.as_ref() == Some(&service.metadata.name))
            .cloned()
            .collect();
        let part = Part::of(service, word, &slices, &here);
        problems.extend(part.problems);
        for port in part.ports {
            let (name, addr) = (port.name, port.addr);
            let reason = match (port.verdict, addr) {
                (Verdict::LeftAlone(reason), _) => Some(reason),
                (Verdict::Selected(balancing, chosen), Some(addr)) => match table.get(&addr) {
                    Some(Service { name: by, .. }) => {
                        problems.push(Problem {
                            place: Place::Object(object.key()),
                            field: "spec.clusterIPs".to_owned(),
                            message: format!(
                                "{name} and {by} are both at {addr}; {by} is served, being the first by name"
                            ),
                            cure: "give one of the two another ClusterIP or port".to_owned(),
                        });
                        Some(Reason::AddressTaken(by.clone()))
                    }
                    None => {
                        let reason = chosen.without_endpoints();
                        let (endpoints, scope, usable) = (chosen.endpoints, chosen.scope, chosen.usable);
                        table.insert(
                            addr,
                            Service { id: 0, addr, name: name.clone(), balancing, endpoints, scope, usable },
                        );
                        reason
                    }
                },
                (Verdict::Selected(..), None) => panic!("{name} is selected without an address"),
            };
            left_alone.extend(reason.map(|reason| LeftAlone { name, addr, reason }));
        }
    }
    problems.sort();
    problems.dedup();
    (table, left_alone, problems)
}

fn pods(objects: &BTreeMap<Key, Object>) -> [HashSet<Arc<str>>; 2] {
    let pods = objects.values().filter_map(|it| if let Object::Pod(it) = it { Some(it) } else { None });
    let pods: Vec<_> = pods.filter(|it| it.spec.node_name.as_deref() == Some(NODE) && !it.status.finished).collect();
    let uids = |of: &dyn Fn(&object::Pod) -> bool| {
        pods.iter().filter(|it| of(it)).filter_map(|it| it.metadata.uid.clone()).collect()
    };
    [uids(&|it| it.metadata.annotations.redirect.as_deref() == Some("false")), uids(&|it| it.spec.host_network)]
}

#[test]
fn after_any_updates_the_table_is_what_a_build_from_scratch_makes() {
    let (mut told, mut taken) = (0, 0);
    for seed in 0..150 {
        let rng = &mut Rng::with_seed(seed);
        let mut catalog = Catalog::new(Some(NODE.into()));
        let mut objects = BTreeMap::new();
        let mut mirror: BTreeMap<ServiceAddr, Arc<Service>> = BTreeMap::new();
        let mut last_id = 0;
        for step in 0..60 {
            let at = format!("seed {seed}, step {step}");
            let batch: Vec<Update> = (0..rng.usize(1..4)).map(|_| update(rng, &objects)).collect();
            batch.iter().for_each(|it| keep(&mut objects, it.clone()));
            let pods_before = catalog.pods().clone();
            let changes = catalog.apply(batch);
            assert!(changes.services.is_sorted_by(|a, b| a.addr < b.addr), "{at}");
            for Change { addr, service } in &changes.services {
                let before = mirror.get(addr);
                assert_ne!(before, service.as_ref(), "{at}: told without a difference");
                match service {
                    Some(service) => {
                        let new = before.is_none();
                        assert!(new == (service.id > last_id) && before.is_none_or(|it| it.id == service.id), "{at}");
                        last_id = last_id.max(service.id);
                        mirror.insert(*addr, service.clone());
                    }
                    None => drop(mirror.remove(addr)),
                }
            }
            told += changes.services.len();

            let built = catalog.built();
            let table: BTreeMap<_, _> = built.table.services.iter().map(|(addr, it)| (*addr, it.clone())).collect();
            assert_eq!(table, mirror, "{at}: what was told adds up");
            assert!(table.iter().all(|(addr, it)| Arc::ptr_eq(it, &mirror[addr])), "{at}: unchanged, but made anew");

            let (expected, left_alone, problems) = from_scratch(&objects);
            let without_id = |it: &Arc<Service>| Service { id: 0, ..Service::clone(it) };
            let table: BTreeMap<_, _> = table.iter().map(|(addr, it)| (*addr, without_id(it))).collect();
            assert_eq!(table, expected, "{at}");
            assert_eq!(built.left_alone, left_alone, "{at}");
            assert_eq!(built.problems, problems, "{at}");
            taken += left_alone.iter().filter(|it| matches!(it.reason, Reason::AddressTaken(_))).count();

            let now = catalog.pods();
            assert_eq!([&now.opted_out, &now.host_network], pods(&objects).each_ref(), "{at}");
            assert!(changes.pods || *now == pods_before, "{at}: Pods differ and nobody is told");
        }
    }
    assert!(told > 5_000 && taken > 1_000, "the updates collide: {told} changes, {taken} addresses taken");
}
