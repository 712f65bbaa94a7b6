//! Connections of this node's pods whose calls are not spread, and why. In: a view of the agent, the peers of pods'
//! connections, and whose endpoints they are; out: a line for each pod and peer, with the cure. Pure.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::SocketAddr;

use serde_json::{Value, json};

use super::View;
use crate::addr::ServiceAddr;
use crate::pods::{Peers, PodUid};
use crate::table::{LeftAlone, Reason, ServicePortName};

/// Lines at most; more than anybody reads.
const LINES: usize = 1_000;

/// Calls of a pod that all end on one endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct NotSpread {
    /// `namespace/name`, or the UID where the source does not know the pod.
    pub(super) pod: String,
    pub(super) service: String,
    pub(super) connections: usize,
    pub(super) reason: String,
    pub(super) cure: String,
}

impl NotSpread {
    pub(super) fn json(&self) -> Value {
        let Self { pod, service, connections, reason, cure } = self;
        json!({ "pod": pod, "service": service, "connections": connections, "reason": reason, "cure": cure })
    }
}

/// Peers that may be endpoints: whose they are is to be asked.
pub(super) fn unknown(view: &View, connections: &[(PodUid, Peers)]) -> HashSet<SocketAddr> {
    let services = &view.snapshot.built.table.services;
    let all = connections.iter().flat_map(|(_, peers)| peers.keys().copied());
    all.filter(|peer| !peer.ip().is_loopback() && !services.contains_key(&ServiceAddr::new(*peer))).collect()
}

/// `owners`: the Services of those among the peers that are endpoints.
pub(super) fn not_spread(
    view: &View,
    connections: &[(PodUid, Peers)],
    owners: &HashMap<SocketAddr, Vec<ServicePortName>>,
) -> Vec<NotSpread> {
    let built = &view.snapshot.built;
    let left_alone = |addr| built.left_alone.iter().find(|port| port.addr.is_some_and(|it| it.socket_addr() == addr));
    let mut lines: BTreeMap<(String, String, String), NotSpread> = BTreeMap::new();
    let mut add = |pod: &str, service: String, connections: usize, reason: String, cure: &str| {
        let key = (pod.to_owned(), service.clone(), reason.clone());
        let line = || NotSpread { pod: pod.to_owned(), service, connections: 0, reason, cure: cure.to_owned() };
        lines.entry(key).or_insert_with(line).connections += connections;
    };
    for (uid, peers) in connections {
        let enrolled = view.snapshot.pods.iter().find(|pod| pod.uid == *uid);
        let hosts = view.snapshot.host_network.contains(uid.as_str());
        let pod = enrolled.map_or_else(|| view.snapshot.pod_name(uid), |pod| pod.name.clone());
        for (&peer, &count) in peers {
            if let Some(service) = built.table.services.get(&ServiceAddr::new(peer)) {
                let (reason, cure) = match enrolled {
                    _ if hosts => (HOST_NETWORK, HOST_NETWORK_CURE),
                    Some(line) if line.entry.opted_out => (OPTED_OUT, OPTED_OUT_CURE),
                    Some(_) if service.endpoints.is_empty() => continue,
                    Some(_) => (OLDER, OLDER_CURE),
                    None => (NOT_ENROLLED, NOT_ENROLLED_CURE),
                };
                add(&pod, service.name.to_string(), count, reason.to_owned(), cure);
            } else if let Some(LeftAlone { name, reason, .. }) = left_alone(peer) {
                add(
                    &pod,
                    name.to_string(),
                    count,
                    format!("the Service's port is left alone: {reason}"),
                    reason.cure(),
                );
            } else if let Some(owners) = owners.get(&peer) {
                let selected = owners.iter().find(|name| built.table.services.values().any(|it| it.name == **name));
                let headless = || {
                    let is_headless = |name: &&ServicePortName| {
                        built.left_alone.iter().any(|it| it.name == **name && it.reason == Reason::Headless)
                    };
                    owners.iter().find(is_headless)
                };
                match (selected, headless()) {
                    (_, Some(name)) => add(&pod, name.to_string(), count, HEADLESS.to_owned(), Reason::Headless.cure()),
                    (Some(name), None) => add(&pod, name.to_string(), count, DIRECT.to_owned(), DIRECT_CURE),
                    (None, None) => {}
                }
            }
        }
    }
    for pod in &view.snapshot.pods {
        for opaque in view.report_of(pod).map(|report| &report.opaque[..]).unwrap_or_default() {
            for (count, reason, cure) in [(opaque.tls, TLS, TLS_CURE), (opaque.other, NOT_HTTP2, NOT_HTTP2_CURE)] {
                if count > 0 {
                    add(&pod.name, opaque.service.to_string(), count, reason.to_owned(), cure);
                }
            }
        }
    }
    lines.into_values().take(LINES).collect()
}

/// Why a pod is not served at all, and what would change that.
pub(super) const HOST_NETWORK: &str =
    "hostNetwork: it has the node's own network namespace; its calls are left to kube-proxy";
pub(super) const HOST_NETWORK_CURE: &str = "without hostNetwork its calls would be spread";
const OPTED_OUT: &str = "the pod opted out: sluice.dev/redirect is \"false\" on it";
const OPTED_OUT_CURE: &str = "remove the annotation from the Pod's template, and let the client dial again";
const OLDER: &str = "the connection is older than the agent, or than the port's selection or the pod's enrolment, was \
                     dialled while the agent hung, or from a socket that is bound to a device: it stays where kube-proxy sent it";
const OLDER_CURE: &str = "the client has to dial again: restart its pod (kubectl rollout restart), or let servers set a \
                          maximum connection age. If its new connections stay here too, see which counter of `kernel:` \
                          rises as it dials: with bound_to_device the client must not use SO_BINDTODEVICE";
const NOT_ENROLLED: &str = "the pod is not enrolled: sluice has no listener in its network namespace";
const NOT_ENROLLED_CURE: &str = "see what `sluice-agent check` and the agent's log say of the pod; new connections are redirected once it is enrolled";
const HEADLESS: &str = "the client dials the pods of a headless Service: there is no ClusterIP to redirect";
const DIRECT: &str = "the client dials endpoints itself (client-side load balancing, xDS, or addresses of pods)";
const DIRECT_CURE: &str =
    "let the client dial the Service's name and ClusterIP, without a load-balancing resolver of its own";
const TLS: &str = "the client speaks TLS: sluice cannot see its calls, and spreads connections, not calls";
const TLS_CURE: &str =
    "let the client speak gRPC in plain text to the Service (insecure credentials), or encrypt below it";
const NOT_HTTP2: &str = "the client does not speak HTTP/2: its connections are relayed as a whole";
const NOT_HTTP2_CURE: &str = "none is needed for other protocols; for these, take the port out of sluice: annotate the Service sluice.dev/redirect: \"false\"";
