//! Every metric that there is, said once: the page /metrics writes these and no others, and METRICS.md is this table.

use std::fmt::Write;

/// How a metric behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Rises, and begins at 0 with the agent, the pod or the Service's first call.
    Counter,
    Gauge,
    Histogram,
}

/// One metric.
#[derive(Debug)]
pub struct Family {
    pub name: &'static str,
    pub kind: Kind,
    pub labels: &'static [&'static str],
    pub help: &'static str,
}

impl Kind {
    pub(super) fn name(self) -> &'static str {
        match self {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        }
    }
}

impl Family {
    /// The base unit by which a name ends (Prometheus: metric and label naming); none: a plain number.
    pub(super) fn unit(&self) -> Option<&'static str> {
        let name = self.name.trim_end_matches("_total");
        ["seconds", "bytes"].into_iter().find(|unit| name.ends_with(&format!("_{unit}")))
    }
}

macro_rules! families {
    ($($id:ident = $kind:ident $name:literal [$($label:literal),*] $help:literal;)+) => {
        $(pub(super) static $id: Family =
            Family { name: $name, kind: Kind::$kind, labels: &[$($label),*], help: $help };)+

        /// All of them, in the order of the page.
        pub static ALL: &[&Family] = &[$(&$id),+];
    };
}

families! {
    BUILD_INFO = Gauge "sluice_build_info" ["version"] "The agent's version; always 1.";
    READY = Gauge "sluice_ready" [] "1: the agent redirects, and every pod that was there at its start has been looked at.";
    SYNC_AGE = Gauge "sluice_source_sync_age_seconds" ["kind"]
        "How long ago the objects of a kind were last followed at their source, or waited for since the start; 0 while they are followed.";
    PROBLEMS = Gauge "sluice_problems" [] "What is wrong with the source and its objects; status names each with its cure.";
    VERDICTS = Counter "sluice_kernel_verdicts_total" ["verdict"] "What the kernel programs did with a connect.";
    SERVICES = Gauge "sluice_services" [] "Service ports (in each address family) that are redirected.";
    LEFT_ALONE = Gauge "sluice_services_left_alone" [] "Service ports that are left to kube-proxy; status says why.";
    ENDPOINTS = Gauge "sluice_endpoints" ["service", "address"] "Endpoints that take new streams.";
    PODS = Gauge "sluice_pods" ["worker"] "Network namespaces of pods that are enrolled.";
    PODS_OPTED_OUT = Gauge "sluice_pods_opted_out" [] "Those of them whose pods opted out.";
    WORKER_ANSWERS = Gauge "sluice_worker_answers" ["worker"] "1: the worker answered within a second.";
    TAPS = Gauge "sluice_taps" [] "Who looks at calls now: tap, and the access log.";
    RPCS = Counter "sluice_rpcs_total" ["service", "grpc_service", "grpc_method", "grpc_code"]
        "gRPC calls that have ended, by the status that the client got.";
    RPC_DURATION = Histogram "sluice_rpc_duration_seconds" ["service", "grpc_service", "grpc_method"]
        "Time from a call's head to the end of its answer; streams last as long as they are open.";
    HTTP_REQUESTS = Counter "sluice_http_requests_total" ["service", "code"]
        "HTTP/2 requests that are not gRPC, by the first digit of their status.";
    IN_FLIGHT = Gauge "sluice_rpcs_in_flight" ["service"] "Calls and requests that are open.";
    REQUEST_BYTES = Counter "sluice_rpc_request_bytes_total" ["service"] "Payload of the requests that have ended.";
    RESPONSE_BYTES = Counter "sluice_rpc_response_bytes_total" ["service"] "Payload of their responses.";
    ENDPOINT_RPCS = Counter "sluice_endpoint_rpcs_total" ["service", "endpoint"] "Calls given to the endpoint.";
    ENDPOINT_FAILURES = Counter "sluice_endpoint_failures_total" ["service", "endpoint"]
        "Calls that speak against the endpoint: UNAVAILABLE, UNKNOWN, INTERNAL, DATA_LOSS, DEADLINE_EXCEEDED, or a broken connection.";
    ENDPOINT_OPEN = Gauge "sluice_endpoint_open_streams" ["service", "endpoint"] "Calls open on the endpoint.";
    ENDPOINT_CONNECTIONS = Gauge "sluice_endpoint_connections" ["service", "endpoint"] "HTTP/2 connections open to the endpoint.";
    ENDPOINT_EJECTED = Gauge "sluice_endpoint_ejected_by" ["service", "endpoint"]
        "Pods of this node that keep their calls from the endpoint now.";
    ENDPOINT_WEIGHT = Gauge "sluice_endpoint_weight" ["service", "endpoint"]
        "The share of a turn that the endpoint gets: 1 like all, less where it is slow or new.";
    ENDPOINT_LATENCY = Gauge "sluice_endpoint_latency_seconds" ["service", "endpoint"]
        "The usual time from the whole request to the first byte of the answer.";
    ACCEPTED = Counter "sluice_connections_accepted_total" ["client"] "Redirected connections.";
    WITHOUT_FLOW = Counter "sluice_connections_without_flow_total" ["client"] "Connections closed since the kernel did not redirect them.";
    ACCEPTS_FAILED = Counter "sluice_accepts_failed_total" ["client"] "Accepts that failed for want of a descriptor; the connection waits.";
    DIALS_FAILED = Counter "sluice_dials_failed_total" ["client"] "Dials of endpoints that failed.";
    STREAMS = Counter "sluice_streams_total" ["client"] "HTTP/2 streams.";
    STREAMS_FAILED = Counter "sluice_streams_failed_total" ["client"] "Streams that the agent answered itself, since no endpoint did.";
    OPEN_STREAMS = Gauge "sluice_open_streams" ["client"] "HTTP/2 streams open.";
    RETRIES = Counter "sluice_streams_replayed_total" ["client"]
        "Streams sent once more, to another endpoint or connection, as the first had provably not taken them. One that moved on unsent, after a dial that failed, is not among them.";
    RETRIES_DENIED = Counter "sluice_replays_denied_total" ["client"]
        "Streams that were refused and not sent again, since too many of their Service were of late.";
    DIALLED = Counter "sluice_endpoint_dials_total" ["client"] "HTTP/2 connections made to endpoints.";
    GOAWAYS = Counter "sluice_endpoint_goaways_total" ["client"] "GOAWAYs of endpoints.";
    PROTOCOL_ERRORS = Counter "sluice_protocol_errors_total" ["client"] "Connections ended for a breach of HTTP/2.";
    FLOODS = Counter "sluice_floods_total" ["client"] "Connections ended for a flood.";
    EJECTIONS = Counter "sluice_ejections_total" ["client", "cause"]
        "How often a pod began to keep its calls from an endpoint: it was unreachable, or failing.";
    CONNECTIONS = Gauge "sluice_connections" ["client", "protocol"]
        "Connections open: http2 (clients' and endpoints'), opaque (relayed as a whole), undetected (not known yet).";
    LIMITED = Counter "sluice_limited_total" ["client", "limit"] "How often peers ran into a limit.";
}

/// The table for people.
pub fn table() -> String {
    let mut table = String::from("| metric | type | labels | what it says |\n| --- | --- | --- | --- |\n");
    for Family { name, kind, labels, help } in ALL {
        let labels = labels.iter().map(|label| format!("`{label}`")).collect::<Vec<_>>().join(", ");
        _ = writeln!(table, "| `{name}` | {} | {labels} | {help} |", kind.name());
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_conventions_and_are_there_once() {
        // OpenMetrics names a counter without its end.
        let mut names: Vec<_> = ALL.iter().map(|family| family.name.trim_end_matches("_total")).collect();
        for family in ALL {
            assert!(family.name.starts_with("sluice_") && family.help.ends_with('.'), "{}", family.name);
            assert_eq!(family.name.ends_with("_total"), family.kind == Kind::Counter, "{}", family.name);
            assert!(family.labels.iter().all(|label| !matches!(*label, "pod" | "namespace" | "instance" | "job")));
        }
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), ALL.len());
        assert_eq!((RPC_DURATION.unit(), REQUEST_BYTES.unit(), RPCS.unit()), (Some("seconds"), Some("bytes"), None));
    }
}
