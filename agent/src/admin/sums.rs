//! What the workers say of Services and endpoints, added up. In: a view of the agent; out: one account for each Service port,
//! and for each of its endpoints. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::View;
use crate::addr::{EndpointAddr, ServiceAddr};
use crate::balance::EjectedEndpoint;
use crate::calls::{CallsReport, Histogram};
use crate::table::ServicePortName;

/// One Service port in one address family.
#[derive(Debug)]
pub(super) struct ServiceSum {
    pub(super) name: ServicePortName,
    pub(super) calls: CallsReport,
    pub(super) endpoints: BTreeMap<EndpointAddr, EndpointSum>,
}

/// One endpoint of it.
#[derive(Debug, Default)]
pub(super) struct EndpointSum {
    pub(super) open: u64,
    pub(super) picked: u64,
    pub(super) failed: u64,
    /// Of the workers that know it, by how much they use it.
    pub(super) latency: Option<Duration>,
    pub(super) weight: f64,
    pub(super) answers: Histogram,
    pub(super) connections: usize,
    /// The longest.
    pub(super) rtt: Duration,
    pub(super) retransmits: u64,
    pub(super) unacknowledged: u64,
    /// Pods that keep their calls from it.
    pub(super) ejected_by: Vec<(Arc<str>, EjectedEndpoint)>,
}

/// Those that pods of this node have dialled.
pub(super) fn services(view: &View) -> BTreeMap<ServiceAddr, ServiceSum> {
    let mut sums: BTreeMap<ServiceAddr, ServiceSum> = BTreeMap::new();
    for service in view.reports.iter().flatten().flat_map(|report| &report.services) {
        let sum = sums.entry(service.addr).or_insert_with(|| ServiceSum {
            name: service.name.clone(),
            calls: CallsReport::default(),
            endpoints: BTreeMap::new(),
        });
        sum.calls.add(service.calls.clone());
        for endpoint in &service.endpoints {
            let sum = sum.endpoints.entry(endpoint.addr).or_default();
            // What is known of it counts by how often it was chosen; one that never was says as much as its first call.
            let (before, now) = (sum.picked.max(1) as f64, endpoint.picked.max(1) as f64);
            let mean = |a: f64, b: f64| (a * before + b * now) / (before + now);
            sum.weight =
                if sum.picked == 0 { endpoint.weight.into() } else { mean(sum.weight, endpoint.weight.into()) };
            sum.latency = match (sum.latency, endpoint.latency) {
                (Some(a), Some(b)) => Some(Duration::from_secs_f64(mean(a.as_secs_f64(), b.as_secs_f64()))),
                (a, b) => a.or(b),
            };
            sum.open += u64::from(endpoint.open);
            sum.picked += endpoint.picked;
            sum.failed += endpoint.failed;
            sum.answers.add(&endpoint.answers);
        }
    }
    let pods = view.snapshot.pods.iter().filter_map(|pod| Some((pod, view.report_of(pod)?)));
    for (pod, report) in pods {
        for it in &report.endpoints {
            // A connection belongs to a Service's endpoint; two Services may share one.
            for sum in sums.values_mut().filter_map(|service| service.endpoints.get_mut(&it.addr)) {
                sum.connections += it.connections;
                sum.rtt = sum.rtt.max(it.rtt);
                sum.retransmits += it.retransmits;
                sum.unacknowledged += it.unacknowledged;
            }
        }
        for it in &report.ejected {
            if let Some(sum) = sums.get_mut(&it.service).and_then(|service| service.endpoints.get_mut(&it.addr)) {
                sum.ejected_by.push((Arc::clone(&pod.name), *it));
            }
        }
    }
    sums
}

/// The same by name: a dual-stack Service is one.
pub(super) fn by_name(sums: BTreeMap<ServiceAddr, ServiceSum>) -> BTreeMap<ServicePortName, ServiceSum> {
    let mut named: BTreeMap<ServicePortName, ServiceSum> = BTreeMap::new();
    for (_, sum) in sums {
        match named.get_mut(&sum.name) {
            Some(known) => {
                known.calls.add(sum.calls);
                known.endpoints.extend(sum.endpoints);
            }
            None => _ = named.insert(sum.name.clone(), sum),
        }
    }
    named
}
