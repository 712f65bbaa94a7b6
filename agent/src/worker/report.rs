//! What a worker has open, as a snapshot for `status` and metrics. It counts on demand and costs nothing in between.

use std::sync::Arc;

use super::arena::Key;
use super::event_loop::{Kind, Worker};
use crate::addr::{EndpointAddr, NetnsCookie, ServiceAddr};
use crate::balance::EjectedEndpoint;
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
    /// Connections whose protocol is not known yet.
    pub undetected_connections: usize,
    /// Since the pod was added, as all that follow.
    pub accepted: u64,
    /// Accepted and closed, because the kernel knew nothing of them.
    pub without_flow: u64,
    /// Tries to accept that found the process without a free descriptor; the connections wait.
    pub accepts_failed: u64,
    pub dials_failed: u64,
    /// Endpoints that could not be dialled from this pod and get nothing of it now, as long as others can.
    pub ejected: Vec<EjectedEndpoint>,
    pub splitter: Stats,
}

#[derive(Clone, Debug)]
pub struct ServiceReport {
    pub addr: ServiceAddr,
    pub name: ServicePortName,
    pub endpoints: Vec<EndpointReport>,
}

#[derive(Clone, Debug)]
pub struct EndpointReport {
    pub addr: EndpointAddr,
    /// Streams and opaque connections open on it now.
    pub open: u32,
}

impl Worker {
    pub(super) fn report(&self) -> Report {
        let services = self.services.dialled().map(|load| {
            let service = load.service();
            let endpoints = load.endpoints();
            let endpoints =
                endpoints.iter().map(|load| EndpointReport { addr: load.addr(), open: load.open() }).collect();
            ServiceReport { addr: service.addr, name: service.name.clone(), endpoints }
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
                    undetected_connections: 0,
                    accepted: pod.accepted,
                    without_flow: pod.without_flow,
                    accepts_failed: pod.accepts_failed,
                    dials_failed: pod.dials_failed,
                    ejected: pod.reach.ejected(),
                    splitter: pod.splitter.as_ref().map(Splitter::stats).unwrap_or_default(),
                };
                (key, report)
            })
            .collect();
        for (_, conn) in self.io.conns.iter() {
            let Ok(at) = pods.binary_search_by_key(&conn.pod, |(key, _)| *key) else { continue };
            let report = &mut pods[at].1;
            match &conn.kind {
                Kind::Http2(_) => report.http2_connections += 1,
                Kind::Relay(pair) if pair.is_detecting() => report.undetected_connections += 1,
                Kind::Relay(_) => report.opaque_connections += 1,
            }
        }
        Report {
            worker: self.index,
            pods: pods.into_iter().map(|(_, report)| report).collect(),
            services: services.collect(),
        }
    }
}
