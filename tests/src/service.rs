//! A Service with its EndpointSlices, one per address family: in, ports and pods; out, the objects in the node's folder
//! and kube-proxy's rules, kept in step. Endpoints are given by hand; there is no selector.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::kube_proxy::Frontend;
use crate::node::{Inner, with_port};
use crate::pod::Pod;

/// One port of a Service.
#[derive(Clone, Debug)]
pub struct PortSpec {
    name: String,
    port: u16,
    target_port: u16,
    app_protocol: Option<String>,
}

impl PortSpec {
    /// A TCP port of that name on which the pods listen under the same number.
    pub fn new(name: &str, port: u16) -> Self {
        Self { name: name.to_owned(), port, target_port: port, app_protocol: None }
    }

    pub fn target_port(mut self, port: u16) -> Self {
        self.target_port = port;
        self
    }

    pub fn app_protocol(mut self, protocol: &str) -> Self {
        self.app_protocol = Some(protocol.to_owned());
        self
    }

    fn object(&self, target: Option<u16>) -> Value {
        let mut object = json!({ "name": self.name, "port": self.port, "protocol": "TCP" });
        if let Some(target) = target {
            object["targetPort"] = json!(target);
        }
        if let Some(protocol) = &self.app_protocol {
            object["appProtocol"] = json!(protocol);
        }
        object
    }
}

/// What a Service shall be like; in namespace `default` unless set.
#[derive(Clone, Debug)]
pub struct ServiceSpec {
    name: String,
    namespace: String,
    ports: Vec<PortSpec>,
    annotations: BTreeMap<String, String>,
    /// Merged over the object's `spec`.
    extra: BTreeMap<String, Value>,
}

impl ServiceSpec {
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            namespace: "default".to_owned(),
            ports: Vec::new(),
            annotations: BTreeMap::new(),
            extra: BTreeMap::new(),
        }
    }

    /// With one port named `grpc`, which sluice takes for gRPC by its name.
    pub fn grpc(name: &str, port: u16) -> Self {
        Self::new(name).port(PortSpec::new("grpc", port))
    }

    pub fn namespace(mut self, namespace: &str) -> Self {
        self.namespace = namespace.to_owned();
        self
    }

    pub fn port(mut self, port: PortSpec) -> Self {
        self.ports.push(port);
        self
    }

    pub fn annotation(mut self, key: &str, value: &str) -> Self {
        self.annotations.insert(key.to_owned(), value.to_owned());
        self
    }

    /// Any field of the object's `spec`, e.g. `("sessionAffinity", "ClientIP")`. kube-proxy's part does not know it.
    pub fn field(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.extra.insert(name.to_owned(), value.into());
        self
    }
}

/// An endpoint as the EndpointSlice controller sees it.
#[derive(Clone, Debug)]
struct Endpoint {
    pod: String,
    uid: String,
    ip4: Ipv4Addr,
    ip6: Ipv6Addr,
    ready: bool,
    terminating: bool,
}

/// A Service. Dropping it removes objects and rules.
#[derive(Debug)]
pub struct Service {
    node: Arc<Inner>,
    number: u16,
    ip4: Ipv4Addr,
    ip6: Ipv6Addr,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    spec: ServiceSpec,
    endpoints: Vec<Endpoint>,
}

impl Service {
    pub(crate) fn make(node: &Arc<Inner>, spec: ServiceSpec) -> Result<Self> {
        let number = node.number_service();
        let [high, low] = number.to_be_bytes();
        let service = Self {
            node: Arc::clone(node),
            number,
            ip4: Ipv4Addr::new(10, 96, high, low),
            ip6: Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, number),
            state: Mutex::new(State { spec, endpoints: Vec::new() }),
        };
        service.change(|_| {})?;
        Ok(service)
    }

    /// The ClusterIP.
    pub fn ip4(&self) -> Ipv4Addr {
        self.ip4
    }

    /// The second ClusterIP.
    pub fn ip6(&self) -> Ipv6Addr {
        self.ip6
    }

    /// ClusterIP and first port.
    pub fn address4(&self) -> SocketAddr {
        with_port(IpAddr::V4(self.ip4), self.first_port())
    }

    /// As [`Service::address4`], IPv6.
    pub fn address6(&self) -> SocketAddr {
        with_port(IpAddr::V6(self.ip6), self.first_port())
    }

    /// The pod becomes a ready endpoint; one that was marked is ready again.
    pub fn add_endpoint(&self, pod: &Pod) -> Result<()> {
        let endpoint = Endpoint {
            pod: pod.name().to_owned(),
            uid: pod.uid().to_owned(),
            ip4: pod.ip4(),
            ip6: pod.ip6(),
            ready: true,
            terminating: false,
        };
        self.change(|state| {
            state.endpoints.retain(|known| known.uid != endpoint.uid);
            state.endpoints.push(endpoint);
        })
    }

    /// The pod is no endpoint any more.
    pub fn remove_endpoint(&self, pod: &Pod) -> Result<()> {
        self.change(|state| state.endpoints.retain(|known| known.uid != pod.uid()))
    }

    /// The pod is being deleted and still serves: not ready, serving, terminating.
    pub fn mark_terminating(&self, pod: &Pod) -> Result<()> {
        self.change(|state| {
            for endpoint in state.endpoints.iter_mut().filter(|known| known.uid == pod.uid()) {
                (endpoint.ready, endpoint.terminating) = (false, true);
            }
        })
    }

    /// Sets (`Some`) or takes away an annotation.
    pub fn annotate(&self, key: &str, value: Option<&str>) -> Result<()> {
        self.change(|state| {
            match value {
                Some(value) => state.spec.annotations.insert(key.to_owned(), value.to_owned()),
                None => state.spec.annotations.remove(key),
            };
        })
    }

    /// Removes the Service now, and says what went wrong.
    pub fn delete(self) -> Result<()> {
        self.remove()
    }

    fn remove(&self) -> Result<()> {
        self.node.objects.remove(&self.locked().spec.file());
        self.node.proxy(self.number, None)
    }

    /// Changes the state and writes it out, objects and rules.
    fn change(&self, change: impl FnOnce(&mut State)) -> Result<()> {
        let mut state = self.locked();
        change(&mut state);
        let name = state.spec.name.clone();
        let objects = [self.service_object(&state), self.slice_object(&state, true), self.slice_object(&state, false)];
        self.node.objects.write(&state.spec.file(), &objects)?;
        self.node.proxy(self.number, Some(self.frontends(&state))).with_context(|| format!("Service {name}"))
    }

    fn locked(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn first_port(&self) -> u16 {
        self.locked().spec.ports.first().map_or(0, |port| port.port)
    }

    /// As kube-proxy chooses: the ready ones; if there is none, those that serve while they terminate.
    fn frontends(&self, state: &State) -> Vec<Frontend> {
        let ready: Vec<_> = state.endpoints.iter().filter(|endpoint| endpoint.ready).collect();
        let terminating: Vec<_> = state.endpoints.iter().filter(|endpoint| endpoint.terminating).collect();
        let usable = if ready.is_empty() { terminating } else { ready };
        let port = |port: &PortSpec| {
            [
                Frontend {
                    address: with_port(IpAddr::V4(self.ip4), port.port),
                    endpoints: usable.iter().map(|endpoint| IpAddr::V4(endpoint.ip4)).collect(),
                    target_port: port.target_port,
                },
                Frontend {
                    address: with_port(IpAddr::V6(self.ip6), port.port),
                    endpoints: usable.iter().map(|endpoint| IpAddr::V6(endpoint.ip6)).collect(),
                    target_port: port.target_port,
                },
            ]
        };
        state.spec.ports.iter().flat_map(port).collect()
    }

    fn service_object(&self, state: &State) -> Value {
        let spec = &state.spec;
        let ports: Vec<_> = spec.ports.iter().map(|port| port.object(Some(port.target_port))).collect();
        let mut object = json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": { "name": spec.name, "namespace": spec.namespace, "annotations": spec.annotations },
            "spec": {
                "type": "ClusterIP",
                "clusterIP": self.ip4.to_string(),
                "clusterIPs": [self.ip4.to_string(), self.ip6.to_string()],
                "ipFamilies": ["IPv4", "IPv6"],
                "ipFamilyPolicy": "RequireDualStack",
                "ports": ports,
            },
        });
        for (name, value) in &spec.extra {
            object["spec"][name] = value.clone();
        }
        object
    }

    fn slice_object(&self, state: &State, v4: bool) -> Value {
        let spec = &state.spec;
        let (family, suffix) = if v4 { ("IPv4", "ipv4") } else { ("IPv6", "ipv6") };
        let endpoint = |endpoint: &Endpoint| {
            let address = if v4 { endpoint.ip4.to_string() } else { endpoint.ip6.to_string() };
            json!({
                "addresses": [address],
                "conditions": {
                    "ready": endpoint.ready,
                    "serving": endpoint.ready || endpoint.terminating,
                    "terminating": endpoint.terminating,
                },
                "nodeName": self.node.name(),
                "targetRef": {
                    "kind": "Pod", "name": endpoint.pod, "namespace": spec.namespace, "uid": endpoint.uid,
                },
            })
        };
        let port = |port: &PortSpec| PortSpec { port: port.target_port, ..port.clone() }.object(None);
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {
                "name": format!("{}-{suffix}", spec.name), "namespace": spec.namespace,
                "labels": { "kubernetes.io/service-name": spec.name },
            },
            "addressType": family,
            "endpoints": state.endpoints.iter().map(endpoint).collect::<Vec<_>>(),
            "ports": spec.ports.iter().map(port).collect::<Vec<_>>(),
        })
    }
}

impl ServiceSpec {
    fn file(&self) -> String {
        format!("service-{}-{}", self.namespace, self.name)
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // After `delete` there is nothing left to remove; after the node's end neither.
        let _ = self.remove();
    }
}
