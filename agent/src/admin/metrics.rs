//! The page /metrics, in Prometheus' text format 0.0.4 or as OpenMetrics 1.0. In: a view of the agent; out: text. Pure.
//! What there is to say is in `families`. Series are bounded: beyond so many clients, Services and endpoints, those that come
//! last by name are one, called `other`.

use std::collections::BTreeMap;
use std::fmt::{Display, Write};

use super::families::{self as f, Family, Kind};
use super::sums::{self, EndpointSum, ServiceSum};
use super::{State, View};
use crate::addr::EndpointAddr;
use crate::calls::{BOUNDS, CODES, HTTP_CLASSES, Histogram, MethodName};
use crate::intercept::Verdict;
use crate::splitter::Bound;
use crate::table::{Service, ServicePortName};
use crate::worker::PodReport;

/// Client pods told apart: more than a node runs.
const CLIENTS: usize = 500;
/// Service ports told apart.
const SERVICES: usize = 1_000;
/// Endpoints told apart, of all Services that pods of this node call.
const ENDPOINTS: usize = 5_000;
/// What the rest is called.
const OTHER: &str = "other";

/// The format of the page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    Prometheus,
    OpenMetrics,
}

impl Format {
    /// By a request's `Accept`.
    pub(super) fn wanted(accept: &str) -> Self {
        if accept.contains("application/openmetrics-text") { Format::OpenMetrics } else { Format::Prometheus }
    }

    pub(super) fn content_type(self) -> &'static str {
        match self {
            Format::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
            Format::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

pub(super) fn page(view: &View, format: Format) -> String {
    let mut page = Page { text: String::new(), format };
    page.agent(view);
    page.services(view);
    page.clients(view);
    if format == Format::OpenMetrics {
        page.text.push_str("# EOF\n");
    }
    page.text
}

type Labels<'a> = &'a [&'a dyn Display];

struct Page {
    text: String,
    format: Format,
}

/// A counter or gauge of a pod.
type Of = fn(&PodReport) -> u64;

/// Of each client pod.
static OF_PODS: [(&Family, Of); 13] = [
    (&f::ACCEPTED, |pod| pod.accepted),
    (&f::WITHOUT_FLOW, |pod| pod.without_flow),
    (&f::ACCEPTS_FAILED, |pod| pod.accepts_failed),
    (&f::DIALS_FAILED, |pod| pod.dials_failed),
    (&f::STREAMS, |pod| pod.splitter.streams),
    (&f::STREAMS_FAILED, |pod| pod.splitter.streams_failed),
    (&f::OPEN_STREAMS, |pod| pod.splitter.open_streams),
    (&f::RETRIES, |pod| pod.splitter.streams_replayed),
    (&f::RETRIES_DENIED, |pod| pod.splitter.replays_denied),
    (&f::DIALLED, |pod| pod.splitter.endpoint_connections),
    (&f::GOAWAYS, |pod| pod.splitter.goaways),
    (&f::PROTOCOL_ERRORS, |pod| pod.splitter.protocol_errors),
    (&f::FLOODS, |pod| pod.splitter.floods),
];

impl Page {
    /// The agent as a whole.
    fn agent(&mut self, view: &View) {
        let snapshot = &view.snapshot;
        self.family(&f::BUILD_INFO, [([&env!("CARGO_PKG_VERSION") as &dyn Display], 1)]);
        self.single(&f::READY, u64::from(snapshot.health.state == State::Ready));
        let ages = snapshot.sync_ages.iter().map(|(kind, age)| ([kind as &dyn Display], age.as_secs_f64()));
        self.family(&f::SYNC_AGE, ages);
        self.single(&f::PROBLEMS, snapshot.problems().count());
        let verdicts =
            Verdict::ALL.iter().map(|verdict| (verdict.name(), snapshot.verdicts.get(*verdict))).collect::<Vec<_>>();
        self.family(&f::VERDICTS, verdicts.iter().map(|(name, count)| ([name as &dyn Display], count)));

        let services = &snapshot.built.table.services;
        self.single(&f::SERVICES, services.len());
        self.single(&f::LEFT_ALONE, snapshot.built.left_alone.len());
        let mut services: Vec<&Service> = services.values().map(AsRef::as_ref).collect();
        services.sort_by_key(|service| (&service.name, service.addr));
        let (listed, rest) = services.split_at(services.len().min(SERVICES));
        self.head(&f::ENDPOINTS);
        for service in listed {
            self.sample(&f::ENDPOINTS, "", &[&service.name, &service.addr], service.endpoints.len());
        }
        if !rest.is_empty() {
            let endpoints: usize = rest.iter().map(|service| service.endpoints.len()).sum();
            self.sample(&f::ENDPOINTS, "", &[&OTHER, &OTHER], endpoints);
        }

        let pods_of =
            |worker: usize| snapshot.pods.iter().filter(move |pod| pod.entry.worker as usize == worker).count();
        let workers: Vec<_> = (0..view.reports.len()).map(|worker| (worker, pods_of(worker))).collect();
        self.family(&f::PODS, workers.iter().map(|(worker, pods)| ([worker as &dyn Display], pods)));
        self.single(&f::PODS_OPTED_OUT, snapshot.pods.iter().filter(|pod| pod.entry.opted_out).count());
        let answers: Vec<_> = view.reports.iter().map(|report| u64::from(report.is_some())).enumerate().collect();
        self.family(&f::WORKER_ANSWERS, answers.iter().map(|(worker, answers)| ([worker as &dyn Display], answers)));
        self.single(&f::TAPS, snapshot.taps);
    }

    /// Services that pods of this node call.
    fn services(&mut self, view: &View) {
        let services = bounded(sums::by_name(sums::services(view)));
        let methods = || {
            let all = services
                .iter()
                .flat_map(|(name, sum)| sum.calls.methods.iter().map(move |(method, it)| (name, method, it)));
            all.filter(|(_, method, _)| **method != MethodName::Http)
        };
        self.head(&f::RPCS);
        for (name, method, counts) in methods() {
            let (service, method) = method.parts();
            for (code, count) in CODES.iter().zip(counts.grpc).filter(|(_, count)| *count > 0) {
                self.sample(&f::RPCS, "", &[name, &service, &method, code], count);
            }
        }
        self.head(&f::RPC_DURATION);
        for (name, method, counts) in methods() {
            let (service, method) = method.parts();
            self.histogram(&f::RPC_DURATION, &[name, &service, &method], &counts.duration);
        }
        self.head(&f::HTTP_REQUESTS);
        for (name, sum) in &services {
            for (_, counts) in sum.calls.methods.iter().filter(|(method, _)| *method == MethodName::Http) {
                for (class, count) in HTTP_CLASSES.iter().zip(counts.http).filter(|(_, count)| *count > 0) {
                    self.sample(&f::HTTP_REQUESTS, "", &[name, class], count);
                }
            }
        }
        let each =
            |of: fn(&ServiceSum) -> u64| services.iter().map(move |(name, sum)| ([name as &dyn Display], of(sum)));
        self.family(&f::IN_FLIGHT, each(|sum| sum.calls.open));
        self.family(&f::REQUEST_BYTES, each(|sum| sum.calls.request_bytes));
        self.family(&f::RESPONSE_BYTES, each(|sum| sum.calls.response_bytes));

        let all =
            || services.iter().flat_map(|(name, sum)| sum.endpoints.iter().map(move |(addr, it)| (name, addr, it)));
        let (listed, rest) = (all().take(ENDPOINTS).collect::<Vec<_>>(), all().skip(ENDPOINTS).collect::<Vec<_>>());
        self.endpoints(&f::ENDPOINT_RPCS, &listed, &rest, |it| it.picked);
        self.endpoints(&f::ENDPOINT_FAILURES, &listed, &rest, |it| it.failed);
        self.endpoints(&f::ENDPOINT_OPEN, &listed, &rest, |it| it.open);
        self.endpoints(&f::ENDPOINT_CONNECTIONS, &listed, &rest, |it| it.connections as u64);
        self.endpoints(&f::ENDPOINT_EJECTED, &listed, &rest, |it| it.ejected_by.len() as u64);
        self.head(&f::ENDPOINT_WEIGHT);
        for (name, addr, it) in &listed {
            self.sample(&f::ENDPOINT_WEIGHT, "", &[name, addr], it.weight);
        }
        self.head(&f::ENDPOINT_LATENCY);
        for (name, addr, it) in &listed {
            if let Some(latency) = it.latency {
                self.sample(&f::ENDPOINT_LATENCY, "", &[name, addr], latency.as_secs_f64());
            }
        }
    }

    fn endpoints(&mut self, family: &Family, listed: &[Listed<'_>], rest: &[Listed<'_>], of: fn(&EndpointSum) -> u64) {
        self.head(family);
        for (name, addr, it) in listed {
            self.sample(family, "", &[name, addr], of(it));
        }
        if !rest.is_empty() {
            self.sample(family, "", &[&OTHER, &OTHER], rest.iter().map(|(.., it)| of(it)).sum::<u64>());
        }
    }

    /// Pods of this node that dial. Namespaces of one name are one: a sandbox that was made anew takes over its pod's series.
    fn clients(&mut self, view: &View) {
        let mut by_name: BTreeMap<&str, Vec<&PodReport>> = BTreeMap::new();
        for pod in &view.snapshot.pods {
            let Some(report) = view.report_of(pod) else { continue };
            // A pod that never dialled a Service of ours has nothing to tell.
            if report.accepted > 0 {
                let known = by_name.len() < CLIENTS || by_name.contains_key(&*pod.name);
                by_name.entry(if known { &pod.name } else { OTHER }).or_default().push(report);
            }
        }
        let clients: Vec<_> = by_name.into_iter().collect();
        for (family, of) in OF_PODS {
            let sums = clients
                .iter()
                .map(|(name, pods)| ([name as &dyn Display], pods.iter().map(|pod| of(pod)).sum::<u64>()));
            self.family(family, sums);
        }
        self.head(&f::EJECTIONS);
        for (name, pods) in &clients {
            for (cause, count) in [
                ("unreachable", pods.iter().map(|pod| pod.ejections.unreachable).sum::<u64>()),
                ("failing", pods.iter().map(|pod| pod.ejections.failing).sum::<u64>()),
            ] {
                self.sample(&f::EJECTIONS, "", &[name, &cause], count);
            }
        }
        self.head(&f::CONNECTIONS);
        for (name, pods) in &clients {
            for (protocol, count) in [
                ("http2", pods.iter().map(|pod| pod.http2_connections).sum::<usize>()),
                ("opaque", pods.iter().map(|pod| pod.opaque_connections).sum()),
                ("undetected", pods.iter().map(|pod| pod.undetected_connections).sum()),
            ] {
                self.sample(&f::CONNECTIONS, "", &[name, &protocol], count);
            }
        }
        self.head(&f::LIMITED);
        for (name, pods) in &clients {
            for bound in Bound::ALL {
                let count: u64 = pods.iter().map(|pod| pod.splitter.limited.get(bound)).sum();
                self.sample(&f::LIMITED, "", &[name, &bound.name()], count);
            }
        }
    }

    fn single(&mut self, family: &Family, value: impl Display) {
        self.head(family);
        self.sample(family, "", &[], value);
    }

    fn family<'a, const N: usize, V: Display>(
        &mut self,
        family: &Family,
        samples: impl IntoIterator<Item = ([&'a dyn Display; N], V)>,
    ) {
        self.head(family);
        for (labels, value) in samples {
            self.sample(family, "", &labels, value);
        }
    }

    fn head(&mut self, family: &Family) {
        // OpenMetrics names a counter without what its samples end with, and knows units.
        let open = self.format == Format::OpenMetrics;
        let name = if open { family.name.trim_end_matches("_total") } else { family.name };
        _ = writeln!(self.text, "# HELP {name} {}\n# TYPE {name} {}", family.help, family.kind.name());
        if let Some(unit) = family.unit().filter(|_| open) {
            _ = writeln!(self.text, "# UNIT {name} {unit}");
        }
    }

    fn sample(&mut self, family: &Family, suffix: &str, values: Labels<'_>, value: impl Display) {
        debug_assert!(family.kind != Kind::Histogram || !suffix.is_empty());
        self.text.push_str(family.name);
        self.text.push_str(suffix);
        let labels = family.labels.iter().chain(&["le"]).zip(values);
        for (nth, (label, value)) in labels.enumerate() {
            self.text.push(if nth == 0 { '{' } else { ',' });
            self.text.push_str(label);
            self.text.push_str("=\"");
            _ = write!(Escaped(&mut self.text), "{value}");
            self.text.push('"');
        }
        let end = if values.is_empty() { "" } else { "}" };
        _ = writeln!(self.text, "{end} {value}");
    }

    /// Every second bound: the buckets of a native histogram of schema 0.
    fn histogram(&mut self, family: &Family, labels: Labels<'_>, histogram: &Histogram) {
        let counts = histogram.counts();
        let mut below = 0;
        for (at, bound) in BOUNDS.iter().enumerate() {
            below += counts.get(at).copied().unwrap_or(0);
            if at.is_multiple_of(2) {
                // With a point, as OpenMetrics writes numbers of this label.
                let bound = format!("{bound:?}");
                self.sample(family, "_bucket", &[labels, &[&bound]].concat(), below);
            }
        }
        let all: u64 = counts.iter().sum();
        self.sample(family, "_bucket", &[labels, &[&"+Inf"]].concat(), all);
        self.sample(family, "_sum", labels, histogram.seconds());
        self.sample(family, "_count", labels, all);
    }
}

/// A Service, an endpoint's address, and its account.
type Listed<'a> = (&'a String, &'a EndpointAddr, &'a EndpointSum);

/// By the name that stands in the label; those beyond the bound are one.
fn bounded(named: BTreeMap<ServicePortName, ServiceSum>) -> Vec<(String, ServiceSum)> {
    let mut services: Vec<(String, ServiceSum)> = Vec::new();
    for (name, sum) in named {
        if let Some((_, other)) = services.get_mut(SERVICES) {
            other.calls.add(sum.calls);
            other.endpoints.extend(sum.endpoints);
        } else {
            let name = if services.len() == SERVICES { OTHER.to_owned() } else { name.to_string() };
            services.push((name, sum));
        }
    }
    services
}

/// A label's value, as it stands between quotes.
struct Escaped<'a>(&'a mut String);

impl Write for Escaped<'_> {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        for c in text.chars() {
            match c {
                '\\' => self.0.push_str("\\\\"),
                '"' => self.0.push_str("\\\""),
                '\n' => self.0.push_str("\\n"),
                c => self.0.push(c),
            }
        }
        Ok(())
    }
}
