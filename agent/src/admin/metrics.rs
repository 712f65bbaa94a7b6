//! The page /metrics in Prometheus' text format 0.0.4. In: a view of the agent; out: text. Pure.

use std::fmt::{Display, Write};

use super::{State, View};
use crate::intercept::Verdict;
use crate::splitter::Bound;
use crate::table::Service;
use crate::worker::PodReport;

pub(super) fn page(view: &View) -> String {
    let snapshot = &view.snapshot;
    let mut page = Page(String::new());
    page.family("sluice_build_info", "gauge", "The agent's version.").sample(
        "sluice_build_info",
        &[("version", &env!("CARGO_PKG_VERSION"))],
        1,
    );
    page.single("sluice_ready", "Whether the agent is ready.", u64::from(snapshot.health.state == State::Ready));

    let verdicts = "sluice_kernel_verdicts_total";
    page.family(verdicts, "counter", "What the kernel programs did, by verdict.");
    for verdict in Verdict::ALL {
        page.sample(verdicts, &[("verdict", &verdict.name())], snapshot.verdicts.get(*verdict));
    }

    let services = &snapshot.built.table.services;
    page.single("sluice_services", "Service ports and families that are selected.", services.len());
    let left_alone = snapshot.built.left_alone.len();
    page.single("sluice_services_left_alone", "Service ports that are left to kube-proxy.", left_alone);
    let mut services: Vec<&Service> = services.values().map(AsRef::as_ref).collect();
    services.sort_by_key(|service| service.addr);
    page.family("sluice_endpoints", "gauge", "Usable endpoints.");
    for service in services {
        let labels: Labels<'_> = &[("service", &service.name), ("address", &service.addr)];
        page.sample("sluice_endpoints", labels, service.endpoints.len());
    }
    page.single("sluice_problems", "What is wrong with the source and its objects.", snapshot.problems().count());

    page.family("sluice_pods", "gauge", "Enrolled network namespaces of pods.");
    for worker in 0..snapshot.workers.len() {
        let pods = snapshot.pods.iter().filter(|pod| pod.entry.worker as usize == worker);
        page.sample("sluice_pods", &[("worker", &worker)], pods.count());
    }
    let opted_out = snapshot.pods.iter().filter(|pod| pod.entry.opted_out).count();
    page.single("sluice_pods_opted_out", "Enrolled namespaces whose pods opted out.", opted_out);
    page.family("sluice_worker_answers", "gauge", "Whether the worker answered within a second.");
    for (worker, report) in view.reports.iter().enumerate() {
        page.sample("sluice_worker_answers", &[("worker", &worker)], u64::from(report.is_some()));
    }

    page.traffic(view);
    page.0
}

/// A counter or gauge of a pod.
type Of = fn(&PodReport) -> u64;

/// Of each pod: name, type, help, value. A namespace's series ends with it.
const OF_PODS: [(&str, &str, &str, Of); 15] = [
    ("sluice_connections_accepted_total", "counter", "Redirected connections.", |pod| pod.accepted),
    ("sluice_connections_without_flow_total", "counter", "Closed: not redirected by us.", |pod| pod.without_flow),
    ("sluice_accepts_failed_total", "counter", "Accepts that failed for want of a descriptor.", |pod| {
        pod.accepts_failed
    }),
    ("sluice_dials_failed_total", "counter", "Endpoints that could not be dialled.", |pod| pod.dials_failed),
    ("sluice_streams_total", "counter", "HTTP/2 streams.", |pod| pod.splitter.streams),
    ("sluice_streams_failed_total", "counter", "Streams that no endpoint answered.", |pod| pod.splitter.streams_failed),
    ("sluice_protocol_errors_total", "counter", "Connections ended for a breach of HTTP/2.", |pod| {
        pod.splitter.protocol_errors
    }),
    ("sluice_floods_total", "counter", "Connections ended for a flood.", |pod| pod.splitter.floods),
    (
        "sluice_streams_replayed_total",
        "counter",
        "Streams sent to another endpoint as the first had provably not taken them.",
        |pod| pod.splitter.streams_replayed,
    ),
    (
        "sluice_replays_denied_total",
        "counter",
        "Streams that were refused and not sent again, since too many of their Service were of late.",
        |pod| pod.splitter.replays_denied,
    ),
    ("sluice_endpoint_connections_total", "counter", "HTTP/2 connections made to endpoints.", |pod| {
        pod.splitter.endpoint_connections
    }),
    ("sluice_endpoint_goaways_total", "counter", "GOAWAYs of endpoints.", |pod| pod.splitter.goaways),
    ("sluice_ejected_endpoints", "gauge", "Endpoints from which the pod's calls are kept now.", |pod| {
        pod.ejected.len() as u64
    }),
    ("sluice_open_streams", "gauge", "HTTP/2 streams open now.", |pod| pod.splitter.open_streams),
    ("sluice_undetected_connections", "gauge", "Connections whose protocol is not known yet.", |pod| {
        pod.undetected_connections as u64
    }),
];

type Labels<'a> = &'a [(&'a str, &'a dyn Display)];

struct Page(String);

impl Page {
    fn traffic(&mut self, view: &View) {
        let pods = || view.snapshot.pods.iter().filter_map(|pod| Some((pod, view.report_of(pod)?)));
        for (name, kind, help, of) in OF_PODS {
            self.family(name, kind, help);
            for (pod, report) in pods() {
                self.sample(name, &[("pod", &pod.name), ("netns", &pod.cookie.0)], of(report));
            }
        }
        let name = "sluice_limited_total";
        self.family(name, "counter", "How often peers ran into a limit.");
        for (pod, report) in pods() {
            for bound in Bound::ALL {
                let labels: Labels<'_> = &[("pod", &pod.name), ("netns", &pod.cookie.0), ("limit", &bound.name())];
                self.sample(name, labels, report.splitter.limited.get(bound));
            }
        }
        let name = "sluice_connections";
        self.family(name, "gauge", "Connections open now, clients' and endpoints'.");
        for (pod, report) in pods() {
            for (protocol, count) in [("http2", report.http2_connections), ("opaque", report.opaque_connections)] {
                let labels: Labels<'_> = &[("pod", &pod.name), ("netns", &pod.cookie.0), ("protocol", &protocol)];
                self.sample(name, labels, count);
            }
        }
    }

    fn family(&mut self, name: &str, kind: &str, help: &str) -> &mut Self {
        _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
        self
    }

    fn single(&mut self, name: &str, help: &str, value: impl Display) {
        self.family(name, "gauge", help).sample(name, &[], value);
    }

    fn sample(&mut self, name: &str, labels: Labels<'_>, value: impl Display) {
        self.0.push_str(name);
        for (nth, (label, text)) in labels.iter().enumerate() {
            let text = text.to_string().replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            _ = write!(self.0, "{}{label}=\"{text}\"", if nth == 0 { '{' } else { ',' });
        }
        let end = if labels.is_empty() { "" } else { "}" };
        _ = writeln!(self.0, "{end} {value}");
    }
}
