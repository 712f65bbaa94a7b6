//! The page /status.json. In: a view of the agent; out: one JSON object. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::ser::{Serialize, SerializeMap, Serializer};
use serde_json::{Value, json};

use super::spread::{HOST_NETWORK, HOST_NETWORK_CURE, NotSpread};
use super::sums::{self, EndpointSum, ServiceSum};
use super::{Found, PodLine, Snapshot, State, View};
use crate::addr::ServiceAddr;
use crate::balance::EjectedEndpoint;
use crate::calls::{BOUNDS, CODES, CallsReport, Counts, HTTP_CLASSES, Histogram, MethodName};
use crate::intercept::Verdict;
use crate::pods::PodUid;
use crate::splitter::Bound;
use crate::table::{Ejection, Endpoint, LeftAlone, Problem, Service};
use crate::worker::{EndpointConnections, PodReport, Report, ServiceReport};

pub(super) fn page(view: &View, found: &Found) -> String {
    // A string takes whatever is written, and no key of the page is anything but a string.
    let page = Page { view, found, sums: sums::services(view) };
    let mut text = serde_json::to_string(&page).unwrap_or_default();
    text.push('\n');
    text
}

struct Page<'a> {
    view: &'a View,
    found: &'a Found,
    sums: BTreeMap<ServiceAddr, ServiceSum>,
}

impl Serialize for Page<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Page { view, found, sums } = self;
        let Snapshot { health, node, cgroup, built, pods, verdicts, workers, started, .. } = &view.snapshot;
        let state = match health.state {
            State::Syncing => "syncing",
            State::Scanning => "scanning",
            State::Ready => "ready",
            State::Draining => "draining",
        };
        let mut services: Vec<_> = built.table.services.values().collect();
        services.sort_by(|a, b| (&a.name, a.addr).cmp(&(&b.name, b.addr)));
        let verdicts: BTreeMap<_, _> = Verdict::ALL.iter().map(|it| (it.name(), verdicts.get(*it))).collect();

        let mut page = serializer.serialize_map(None)?;
        page.serialize_entry("node", node)?;
        page.serialize_entry("version", env!("CARGO_PKG_VERSION"))?;
        page.serialize_entry("state", state)?;
        page.serialize_entry("cgroup", &cgroup.to_string_lossy())?;
        page.serialize_entry("uptime_seconds", &started.elapsed().as_secs_f64())?;
        let with_sum = |service: &&Service| one_service(service, sums.get(&service.addr));
        page.serialize_entry("services", &Each(|| services.iter().map(|service| with_sum(&&***service))))?;
        page.serialize_entry("left_alone", &Each(|| built.left_alone.iter().map(left_alone)))?;
        page.serialize_entry("pods", &Each(|| pods.iter().map(|pod| one_pod(pod, view))))?;
        page.serialize_entry("not_served", &Each(|| not_served(&view.snapshot)))?;
        page.serialize_entry("not_spread", &Each(|| found.lines.iter().map(NotSpread::json)))?;
        page.serialize_entry("not_spread_seconds_ago", &found.at.elapsed().as_secs_f64())?;
        page.serialize_entry("kernel_verdicts", &verdicts)?;
        page.serialize_entry("problems", &Each(|| view.snapshot.problems().map(problem)))?;
        page.serialize_entry("workers", &Each(|| (0..workers.len()).map(|index| worker(index, view))))?;
        page.end()
    }
}

/// A list whose items are made one by one as they are written: a large cluster's endpoints are far more as JSON values
/// than as text.
struct Each<F>(F);

impl<I: Iterator<Item = Value>, F: Fn() -> I> Serialize for Each<F> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq((self.0)())
    }
}

fn one_service(service: &Service, sum: Option<&ServiceSum>) -> Value {
    let of_endpoint =
        |endpoint: &Endpoint| one_endpoint(endpoint, sum.and_then(|sum| sum.endpoints.get(&endpoint.addr)));
    let endpoints = service.endpoints.iter().map(of_endpoint);
    json!({
        "name": service.name.to_string(),
        "address": service.addr.to_string(),
        "id": service.id,
        "policy": service.balancing.policy.name(),
        "ejection": ejection(&service.balancing.ejection),
        "slow_start_seconds": service.balancing.slow_start.as_secs_f64(),
        "scope": service.scope.name(),
        "usable_endpoints": service.usable,
        "calls": sum.map(|sum| calls(&sum.calls)),
        "endpoints": endpoints.collect::<Value>(),
    })
}

/// None of the numbers where no pod of this node has dialled the Service.
fn one_endpoint(endpoint: &Endpoint, sum: Option<&EndpointSum>) -> Value {
    let place = endpoint.place.as_deref();
    let mut known = json!({
        "address": endpoint.addr.to_string(),
        "identity": endpoint.identity.split(' ').next(),
        "pod": endpoint.pod(),
        "node": place.and_then(|place| place.node.as_deref()),
        "zone": place.and_then(|place| place.zone.as_deref()),
    });
    if let (Some(known), Some(Value::Object(numbers))) = (known.as_object_mut(), sum.map(numbers)) {
        known.extend(numbers);
    }
    known
}

fn numbers(sum: &EndpointSum) -> Value {
    json!({
        "picked": sum.picked,
        "failed": sum.failed,
        "open": sum.open,
        "latency_us": sum.latency.map(|latency| latency.as_micros() as u64),
        "weight": sum.weight,
        "connections": sum.connections,
        "rtt_us": sum.rtt.as_micros() as u64,
        "retransmits": sum.retransmits,
        "unacknowledged": sum.unacknowledged,
        "answers": histogram(&sum.answers),
        "ejected_by": sum.ejected_by.iter().map(|(pod, it)| {
            let mut line = ejected(it);
            line["pod"] = json!(pod);
            line
        }).collect::<Value>(),
    })
}

fn calls(calls: &CallsReport) -> Value {
    let ended: u64 = calls.methods.iter().map(|(_, counts)| counts.total()).sum();
    let failed: u64 = calls.methods.iter().map(|(_, counts)| counts.failed).sum();
    json!({
        "open": calls.open,
        "ended": ended,
        "failed": failed,
        "request_bytes": calls.request_bytes,
        "response_bytes": calls.response_bytes,
        "methods": calls.methods.iter().map(method).collect::<Value>(),
    })
}

fn method((name, counts): &(MethodName, Counts)) -> Value {
    let (service, method) = name.parts();
    let grpc = CODES.iter().zip(counts.grpc);
    let codes = grpc.chain(HTTP_CLASSES.iter().zip(counts.http)).filter(|(_, count)| *count > 0);
    json!({
        "grpc_service": service,
        "grpc_method": method,
        "ended": counts.total(),
        "failed": counts.failed,
        "codes": codes.collect::<BTreeMap<_, _>>(),
        "latency": histogram(&counts.duration),
    })
}

/// Upper bounds in seconds with their counts, where there are any; the last bucket has no bound.
fn histogram(histogram: &Histogram) -> Value {
    let buckets = histogram.counts().iter().enumerate().filter(|(_, count)| **count > 0);
    buckets.map(|(at, count)| json!([BOUNDS.get(at), count])).collect()
}

/// In the annotation's words; null: nothing ejects.
fn ejection(settings: &Ejection) -> Value {
    if settings.is_off() {
        return Value::Null;
    }
    json!({
        "failures": settings.failures,
        "rate_percent": settings.rate,
        "most_percent": settings.most,
        "back_off_seconds": settings.back_off.as_secs_f64(),
        "longest_seconds": settings.longest.as_secs_f64(),
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

/// Pods of this node that have no network namespace of their own.
fn not_served(snapshot: &Snapshot) -> impl Iterator<Item = Value> {
    let name = |uid: &Arc<str>| snapshot.pod_name(&PodUid::new(uid));
    let mut pods: Vec<_> = snapshot.host_network.iter().map(|uid| (name(uid), uid)).collect();
    pods.sort();
    pods.into_iter()
        .map(|(name, uid)| json!({ "uid": uid, "name": name, "reason": HOST_NETWORK, "cure": HOST_NETWORK_CURE }))
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
        "opaque": report.opaque.iter().map(|it| {
            json!({ "service": it.service.to_string(), "tls": it.tls, "other": it.other })
        }).collect::<Value>(),
        "ejected": report.ejected.iter().map(ejected).collect::<Value>(),
        "endpoints": report.endpoints.iter().map(connections).collect::<Value>(),
        "open_streams": report.splitter.open_streams,
        "streams": report.splitter.streams,
        "streams_failed": report.splitter.streams_failed,
        "streams_replayed": report.splitter.streams_replayed,
        "replays_denied": report.splitter.replays_denied,
        "endpoint_connections": report.splitter.endpoint_connections,
        "goaways": report.splitter.goaways,
        "protocol_errors": report.splitter.protocol_errors,
        "floods": report.splitter.floods,
        "limited": Bound::ALL.iter().map(|it| (it.name(), report.splitter.limited.get(*it))).collect::<BTreeMap<_, _>>(),
    })
}

fn ejected(endpoint: &EjectedEndpoint) -> Value {
    json!({
        "address": endpoint.addr.to_string(),
        "cause": endpoint.cause.name(),
        "failures": endpoint.failures,
        "since_seconds": endpoint.since.elapsed().as_secs_f64(),
        "retry_in_seconds": endpoint.until.saturating_duration_since(std::time::Instant::now()).as_secs_f64(),
    })
}

fn connections(endpoint: &EndpointConnections) -> Value {
    json!({
        "address": endpoint.addr.to_string(),
        "connections": endpoint.connections,
        "rtt_us": endpoint.rtt.as_micros() as u64,
        "retransmits": endpoint.retransmits,
        "unacknowledged": endpoint.unacknowledged,
    })
}

/// How a worker spreads the calls of a Service.
pub(super) fn spread(service: &ServiceReport) -> Value {
    let endpoints = service.endpoints.iter().map(|endpoint| {
        json!({
            "address": endpoint.addr.to_string(),
            "open": endpoint.open,
            "picked": endpoint.picked,
            "failed": endpoint.failed,
            "latency_us": endpoint.latency.map(|latency| latency.as_micros() as u64),
            "weight": endpoint.weight,
        })
    });
    json!({
        "name": service.name.to_string(),
        "address": service.addr.to_string(),
        "endpoints": endpoints.collect::<Value>(),
    })
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
        "services": report.map(|report| report.services.iter().map(spread).collect::<Value>()),
    })
}
