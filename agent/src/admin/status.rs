//! The page /status.json. In: a view of the agent; out: one JSON object. Pure.

use serde_json::{Value, json};

use super::{PodLine, Snapshot, State, View};
use crate::balance::EjectedEndpoint;
use crate::intercept::Verdict;
use crate::table::{LeftAlone, Policy, Problem, Service};
use crate::worker::{PodReport, Report};

pub(super) fn page(view: &View) -> String {
    let Snapshot { health, cgroup, built, pods, verdicts, workers, .. } = &view.snapshot;
    let mut services: Vec<_> = built.table.services.values().collect();
    services.sort_by(|a, b| (&a.name, a.addr).cmp(&(&b.name, b.addr)));
    let verdicts = Verdict::ALL.iter().map(|verdict| (verdict.name().to_owned(), verdicts.get(*verdict).into()));
    let page = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "state": match health.state {
            State::Syncing => "syncing",
            State::Scanning => "scanning",
            State::Ready => "ready",
            State::Draining => "draining",
        },
        "cgroup": cgroup,
        "services": services.into_iter().map(|service| one_service(service)).collect::<Value>(),
        "left_alone": built.left_alone.iter().map(left_alone).collect::<Value>(),
        "pods": pods.iter().map(|pod| one_pod(pod, view)).collect::<Value>(),
        "kernel_verdicts": Value::Object(verdicts.collect()),
        "problems": view.snapshot.problems().map(problem).collect::<Value>(),
        "workers": (0..workers.len()).map(|index| worker(index, view)).collect::<Value>(),
    });
    format!("{page:#}\n")
}

fn one_service(service: &Service) -> Value {
    let endpoints = service
        .endpoints
        .iter()
        .map(|endpoint| json!({ "address": endpoint.addr.to_string(), "identity": endpoint.identity }));
    json!({
        "name": service.name.to_string(),
        "address": service.addr.to_string(),
        "id": service.id,
        "policy": match service.policy {
            Policy::RoundRobin => "round-robin",
            Policy::LeastRequest => "least-request",
        },
        "scope": service.scope.name(),
        "usable_endpoints": service.usable,
        "endpoints": endpoints.collect::<Value>(),
    })
}

fn left_alone(port: &LeftAlone) -> Value {
    json!({
        "name": port.name.to_string(),
        "address": port.addr.map(|addr| addr.to_string()),
        "reason": port.reason.to_string(),
        "cure": port.reason.cure(),
    })
}

fn one_pod(pod: &PodLine, view: &View) -> Value {
    json!({
        "uid": pod.uid.as_str(),
        "name": pod.name,
        "netns_cookie": pod.cookie.0,
        "port4": pod.entry.port4,
        "port6": pod.entry.port6,
        "worker": pod.entry.worker,
        "opted_out": pod.entry.opted_out,
        "traffic": view.report_of(pod).map(traffic),
    })
}

fn traffic(report: &PodReport) -> Value {
    json!({
        "http2_connections": report.http2_connections,
        "opaque_connections": report.opaque_connections,
        "undetected_connections": report.undetected_connections,
        "accepted": report.accepted,
        "without_flow": report.without_flow,
        "accepts_failed": report.accepts_failed,
        "dials_failed": report.dials_failed,
        "ejected": report.ejected.iter().map(ejected).collect::<Value>(),
        "open_streams": report.splitter.open_streams,
        "streams": report.splitter.streams,
        "streams_failed": report.splitter.streams_failed,
        "streams_replayed": report.splitter.streams_replayed,
        "protocol_errors": report.splitter.protocol_errors,
        "floods": report.splitter.floods,
    })
}

fn ejected(endpoint: &EjectedEndpoint) -> Value {
    json!({ "address": endpoint.addr.to_string(), "failures": endpoint.failures })
}

fn problem(problem: &Problem) -> Value {
    json!({
        "place": problem.place.to_string(),
        "field": problem.field,
        "message": problem.message,
        "cure": problem.cure,
    })
}

fn worker(index: usize, view: &View) -> Value {
    let report: Option<&Report> = view.reports.get(index).and_then(Option::as_ref);
    json!({
        "worker": index,
        "answers": report.is_some(),
        "pods": report.map(|report| report.pods.len()),
    })
}
