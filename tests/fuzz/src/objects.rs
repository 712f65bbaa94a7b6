//! What users write: YAML of any kind is objects or a problem with its place and cure; annotations of any kind mean what
//! the documentation says, or are a problem and the default applies.

use std::sync::Arc;

use serde_json::json;
use sluice_agent::table::object::{Object, Service};
use sluice_agent::table::{Catalog, Policy, Problem, Update};
use sluice_agent::watch::parse::parse;

use crate::chance::Chance;

pub fn yaml(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    // A carriage return alone ends a line too (YAML 1.2.2 §5.4).
    let lines = text.replace("\r\n", "\n").split(['\n', '\r']).count() as u64;
    let parsed = match parse(&"fuzz.yaml".into(), &text) {
        Ok(parsed) => parsed,
        Err(problem) => {
            check_problem(&problem);
            if let sluice_agent::table::Place::File { line, .. } = problem.place {
                assert!((1..=lines).contains(&line), "line {line} of {lines}: {problem}");
            }
            return;
        }
    };
    assert!(parsed.iter().all(|it| (1..=lines).contains(&it.line)), "{parsed:?}");
    let objects: Vec<Object> = parsed.into_iter().map(|it| it.object).collect();
    let all = |catalog: &mut Catalog| catalog.apply(objects.iter().cloned().map(Update::Apply));
    let mut catalog = Catalog::new(Some("node".into()));
    all(&mut catalog);
    catalog.problems().for_each(check_problem);
    let built = catalog.built();
    assert_eq!(all(&mut catalog).services, [], "the same again changes nothing");
    assert_eq!(catalog.built(), built, "the same again changes nothing");
    catalog.apply(objects.iter().map(|object| Update::Delete { key: object.key(), uid: None }));
    let left = catalog.built();
    assert!(left.table.services.is_empty() && left.left_alone.is_empty() && left.problems.is_empty(), "{left:?}");
}

fn check_problem(problem: &Problem) {
    let line = problem.to_string();
    assert!(!problem.message.is_empty() && !problem.cure.is_empty(), "{line}");
    assert!(!line.contains(['\n', '\r']), "a problem is one line: {line:?}");
}

pub fn annotations(bytes: &[u8]) {
    let mut chance = Chance::new(bytes);
    let redirect = value(&mut chance, &["true", "false", "grpc", "grpc,web", " true ", "", "TRUE"]);
    let namespace = value(&mut chance, &["true", "false", "web", "?"]);
    let balancer = value(&mut chance, &["round-robin", "least-request", "ewma", ""]);
    let mut written = serde_json::Map::new();
    let mut write = |key: &str, value: &Option<String>| {
        value.iter().for_each(|value| drop(written.insert(key.to_owned(), value.clone().into())));
    };
    write("sluice.dev/redirect", &redirect);
    write("sluice.dev/load-balancer", &balancer);
    let service = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "cart", "namespace": "shop", "annotations": written},
        "spec": {"clusterIP": "10.96.0.10", "ports": [
            {"name": "grpc", "port": 1}, {"name": "web", "port": 2}, {"name": "dns", "port": 3, "protocol": "UDP"},
        ]},
    });
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": "cart", "namespace": "shop", "labels": {"kubernetes.io/service-name": "cart"}},
        "endpoints": [{"addresses": ["10.1.0.1"]}],
        "ports": [{"name": "grpc", "port": 1}, {"name": "web", "port": 2}, {"name": "dns", "port": 3, "protocol": "UDP"}],
    });
    let shop = json!({
        "apiVersion": "v1", "kind": "Namespace",
        "metadata": {"name": "shop", "annotations": {"sluice.dev/redirect": namespace.clone().unwrap_or_default()}},
    });
    let mut catalog = Catalog::new(None);
    let mut objects = vec![
        Object::Service(Arc::new(serde_json::from_value::<Service>(service).expect("a Service"))),
        Object::EndpointSlice(Arc::new(serde_json::from_value(slice).expect("an EndpointSlice"))),
    ];
    if namespace.is_some() {
        objects.push(Object::Namespace(Arc::new(serde_json::from_value(shop).expect("a Namespace"))));
    }
    catalog.apply(objects.into_iter().map(Update::Apply));
    let mut ports: Vec<u16> = catalog.table().services.keys().map(|addr| addr.port()).collect();
    ports.sort_unstable();
    // A Namespace has no ports to name.
    let whole = |value: &str| meaning(value).filter(|word| !matches!(word, Word::Names(_)));
    let word = redirect.as_deref().and_then(meaning).or_else(|| namespace.as_deref().and_then(whole));
    let expected: &[u16] = match word {
        Some(Word::Nothing) => &[],
        Some(Word::All) => &[1, 2],
        Some(Word::Names(names)) if names.iter().any(|name| name == "web") => &[1, 2],
        Some(Word::Names(_)) | None => &[1],
    };
    assert_eq!(ports, expected, "redirect {redirect:?}, Namespace {namespace:?}");
    let named = balancer.as_deref().and_then(|value| Policy::ALL.into_iter().find(|it| it.name() == value.trim()));
    let policy = named.unwrap_or_default();
    assert!(catalog.table().services.values().all(|service| service.balancing.policy == policy), "{balancer:?}");
    catalog.problems().for_each(check_problem);
    let told = |key: &str, kind: &str| {
        catalog.problems().any(|problem| problem.field.contains(key) && problem.place.to_string().starts_with(kind))
    };
    if redirect.as_deref().is_some_and(|value| meaning(value).is_none()) {
        assert!(told("redirect", "Service"), "{redirect:?} is not understood, and nobody is told");
    }
    if namespace.as_deref().is_some_and(|value| whole(value).is_none()) {
        assert!(told("redirect", "Namespace"), "{namespace:?} is not understood, and nobody is told");
    }
    let known = balancer.is_none() || named.is_some();
    assert_eq!(!known, told("load-balancer", "Service"), "{balancer:?}");
}

/// A word of the list, any text, or nothing.
fn value(chance: &mut Chance<'_>, words: &[&str]) -> Option<String> {
    match chance.byte() {
        0..0x20 => None,
        choice @ 0x20..0x80 => Some(words[usize::from(choice) % words.len()].to_owned()),
        choice @ 0x80.. => {
            let text = chance.take(usize::from(choice) % 80);
            Some(String::from_utf8_lossy(text).into_owned())
        }
    }
}

enum Word {
    All,
    Nothing,
    Names(Vec<String>),
}

/// What the documentation says of `sluice.dev/redirect`, written down a second time.
fn meaning(value: &str) -> Option<Word> {
    let names: Vec<String> = value.split(',').map(|name| name.trim().to_owned()).collect();
    let is_label = |name: &String| {
        let inner = name.chars().all(|c| matches!(c, 'a'..='z' | '0'..='9' | '-'));
        inner && (1..=63).contains(&name.len()) && !name.starts_with('-') && !name.ends_with('-')
    };
    match value.trim() {
        "true" => Some(Word::All),
        "false" => Some(Word::Nothing),
        _ => names.iter().all(is_label).then_some(Word::Names(names)),
    }
}
