//! What a worker has open, as a snapshot for `status` and metrics. It counts on demand and costs nothing in between.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::arena::Key;
use super::event_loop::{Ejections, Kind, Worker};
use super::tcp_info;
use crate::addr::{EndpointAddr, NetnsCookie, ServiceAddr};
use crate::balance::{EjectedEndpoint, EndpointLoad};
use crate::calls::{CallsReport, Histogram};
use crate::splitter::{Splitter, Stats};
use crate::table::ServicePortName;

#[derive(Clone, Debug, Default)]
pub struct Report {
    pub worker: usize,
    pub pods: Vec<PodReport>,
    /// Those that pods of this worker have dialled.
    pub services: Vec<ServiceReport>,
}

#[derive(Clone, Debug)]
pub struct PodReport {
    pub cookie: NetnsCookie,
    pub name: Arc<str>,
    pub listeners: usize,
    /// HTTP/2 connections open now, clients' and endpoints'.
    pub http2_connections: usize,
    /// Opaque connections open now.
    pub opaque_connections: usize,
    /// Of those, by Service.
    pub opaque: Vec<OpaqueReport>,
    /// Connections whose protocol is not known yet.
    pub undetected_connections: usize,
    /// Since the pod was added, as all that follow.
    pub accepted: u64,
    /// Accepted and closed, because the kernel knew nothing of them.
    pub without_flow: u64,
    /// Tries to accept that found the process without a free descriptor; the connections wait.
    pub accepts_failed: u64,
    pub dials_failed: u64,
    pub ejections: Ejections,
    /// Endpoints that could not be dialled from this pod and get nothing of it now, as long as others can.
    pub ejected: Vec<EjectedEndpoint>,
    /// Endpoints that it has HTTP/2 connections to.
    pub endpoints: Vec<EndpointConnections>,
    pub splitter: Stats,
}

/// A pod's connections to a Service that are not HTTP/2: each went to one endpoint with all that is on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpaqueReport {
    pub service: ServicePortName,
    pub tls: usize,
    pub other: usize,
}

/// A pod's HTTP/2 connections to one endpoint, as the kernel accounts for them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointConnections {
    pub addr: EndpointAddr,
    pub connections: usize,
    /// The longest of them.
    pub rtt: Duration,
    /// Segments sent again, since the connections began.
    pub retransmits: u64,
    /// Segments that are not acknowledged now.
    pub unacknowledged: u64,
}

#[derive(Clone, Debug)]
pub struct ServiceReport {
    pub addr: ServiceAddr,
    pub name: ServicePortName,
    pub endpoints: Vec<EndpointReport>,
    pub calls: CallsReport,
}

#[derive(Clone, Debug)]
pub struct EndpointReport {
    pub addr: EndpointAddr,
    /// Streams and opaque connections open on it now.
    pub open: u32,
    /// How often it was chosen.
    pub picked: u64,
    /// Calls that failed there by its own fault, or seemingly.
    pub failed: u64,
    /// The usual time until it answers a call; none: too few to say.
    pub latency: Option<Duration>,
    /// The share of a turn that it gets, from 0 to 1.
    pub weight: f32,
    /// From the whole request to the first byte of the answer.
    pub answers: Histogram,
}

impl PodReport {
    fn count_opaque(&mut self, to: Option<(ServicePortName, bool)>) {
        self.opaque_connections += 1;
        let Some((service, tls)) = to else { return };
        let at = self.opaque.iter().position(|known| known.service == service).unwrap_or_else(|| {
            self.opaque.push(OpaqueReport { service, tls: 0, other: 0 });
            self.opaque.len() - 1
        });
        let known = &mut self.opaque[at];
        *if tls { &mut known.tls } else { &mut known.other } += 1;
    }

    fn count(&mut self, addr: EndpointAddr, info: &tcp_info::Info) {
        let at = self.endpoints.binary_search_by_key(&addr, |endpoint| endpoint.addr).unwrap_or_else(|at| {
            let new =
                EndpointConnections { addr, connections: 0, rtt: Duration::ZERO, retransmits: 0, unacknowledged: 0 };
            self.endpoints.insert(at, new);
            at
        });
        let endpoint = &mut self.endpoints[at];
        endpoint.connections += 1;
        endpoint.rtt = endpoint.rtt.max(info.rtt);
        endpoint.retransmits += u64::from(info.all_retransmits);
        endpoint.unacknowledged += u64::from(info.unacknowledged);
    }
}

impl Worker {
    pub(super) fn report(&self) -> Report {
        let services = self.services.dialled().map(|load| {
            let service = load.service();
            let endpoints = load.endpoints();
            let report = |endpoint: &Rc<EndpointLoad>| EndpointReport {
                addr: endpoint.addr(),
                open: endpoint.open(),
                picked: endpoint.given(),
                failed: endpoint.failed(),
                latency: endpoint.latency(),
                weight: load.weight(self.io.now, endpoint),
                answers: endpoint.answers(),
            };
            let endpoints = endpoints.iter().map(report).collect();
            ServiceReport { addr: service.addr, name: service.name.clone(), endpoints, calls: load.calls().report() }
        });
        let mut pods: Vec<(Key, PodReport)> = self
            .pods
            .iter()
            .map(|(key, pod)| {
                let report = PodReport {
                    cookie: pod.cookie,
                    name: Arc::clone(&pod.name),
                    listeners: self.io.listeners.iter().filter(|(_, listener)| listener.pod == key).count(),
                    http2_connections: 0,
                    opaque_connections: 0,
                    opaque: Vec::new(),
                    undetected_connections: 0,
                    accepted: pod.accepted,
                    without_flow: pod.without_flow,
                    accepts_failed: pod.accepts_failed,
                    dials_failed: pod.dials_failed,
                    ejections: pod.ejections,
                    ejected: pod.reach.ejected(),
                    endpoints: Vec::new(),
                    splitter: pod.splitter.as_ref().map(Splitter::stats).unwrap_or_default(),
                };
                (key, report)
            })
            .collect();
        for (_, conn) in self.io.conns.iter() {
            let Ok(at) = pods.binary_search_by_key(&conn.pod, |(key, _)| *key) else { continue };
            let report = &mut pods[at].1;
            match &conn.kind {
                Kind::Http2(link) => {
                    report.http2_connections += 1;
                    if let (Some(endpoint), Some(info)) = (link.endpoint, conn.socket.info()) {
                        report.count(endpoint, &info);
                    }
                }
                Kind::Relay(pair) if pair.is_detecting() => report.undetected_connections += 1,
                Kind::Relay(pair) => {
                    report.count_opaque(pair.service().map(|(load, tls)| (load.service().name.clone(), tls)))
                }
            }
        }
        Report {
            worker: self.index,
            pods: pods.into_iter().map(|(_, report)| report).collect(),
            services: services.collect(),
        }
    }
}
