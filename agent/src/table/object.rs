//! Kubernetes objects, in Kubernetes' own JSON shape but with only those fields that decide what is redirected and
//! where calls go. In: any serde source. Out: values that are valid one by one (an address is an address, a port is
//! 1 to 65535). It does not judge objects against each other.

use std::fmt;
use std::sync::Arc;

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};

mod intern;
mod read;
mod service;
mod slice;

pub use service::{InternalTrafficPolicy, Protocol, Service, ServicePort, ServiceSpec, ServiceType, SessionAffinity};
pub use slice::{AddressType, Conditions, EndpointSlice, Hints, Place, SliceAddress, SliceEndpoint, SlicePort};

use read::{namespace, null_is_default, optional_interned};

/// `sluice.dev/redirect` on a Service, Namespace or Pod.
pub const REDIRECT: &str = "sluice.dev/redirect";
/// `sluice.dev/load-balancer` on a Service.
pub const LOAD_BALANCER: &str = "sluice.dev/load-balancer";
/// `sluice.dev/ejection` on a Service.
pub const EJECTION: &str = "sluice.dev/ejection";
/// `sluice.dev/slow-start` on a Service.
pub const SLOW_START: &str = "sluice.dev/slow-start";
/// The label by which an EndpointSlice belongs to a Service of its namespace.
pub const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// The kinds that the table is built from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    Service,
    EndpointSlice,
    Pod,
    Namespace,
    Node,
}

impl Kind {
    pub const ALL: [Kind; 5] = [Kind::Service, Kind::EndpointSlice, Kind::Pod, Kind::Namespace, Kind::Node];

    pub fn name(self) -> &'static str {
        match self {
            Kind::Service => "Service",
            Kind::EndpointSlice => "EndpointSlice",
            Kind::Pod => "Pod",
            Kind::Namespace => "Namespace",
            Kind::Node => "Node",
        }
    }

    /// The resource's name in the API.
    pub fn plural(self) -> &'static str {
        match self {
            Kind::Service => "services",
            Kind::EndpointSlice => "endpointslices",
            Kind::Pod => "pods",
            Kind::Namespace => "namespaces",
            Kind::Node => "nodes",
        }
    }

    pub fn api_version(self) -> &'static str {
        match self {
            Kind::Service | Kind::Pod | Kind::Namespace | Kind::Node => "v1",
            Kind::EndpointSlice => "discovery.k8s.io/v1",
        }
    }

    /// Whether its objects are of no namespace.
    pub fn cluster_wide(self) -> bool {
        matches!(self, Kind::Namespace | Kind::Node)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What an object is called: unique at one time, while a UID is unique for ever.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    pub kind: Kind,
    /// Empty for a Namespace or a Node.
    pub namespace: Arc<str>,
    pub name: Arc<str>,
}

impl fmt::Display for Key {
    /// `Service shop/cart`, `Namespace shop`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind.cluster_wide() {
            true => write!(f, "{} {}", self.kind, self.name),
            false => write!(f, "{} {}/{}", self.kind, self.namespace, self.name),
        }
    }
}

/// One object of any kind that the table is built from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Object {
    Service(Arc<Service>),
    EndpointSlice(Arc<EndpointSlice>),
    Pod(Arc<Pod>),
    Namespace(Arc<Namespace>),
    Node(Arc<Node>),
}

impl Object {
    pub fn kind(&self) -> Kind {
        match self {
            Object::Service(_) => Kind::Service,
            Object::EndpointSlice(_) => Kind::EndpointSlice,
            Object::Pod(_) => Kind::Pod,
            Object::Namespace(_) => Kind::Namespace,
            Object::Node(_) => Kind::Node,
        }
    }

    pub fn metadata(&self) -> &Metadata {
        match self {
            Object::Service(it) => &it.metadata,
            Object::EndpointSlice(it) => &it.metadata,
            Object::Pod(it) => &it.metadata,
            Object::Namespace(it) => &it.metadata,
            Object::Node(it) => &it.metadata,
        }
    }

    pub fn key(&self) -> Key {
        let (kind, meta) = (self.kind(), self.metadata());
        let namespace = if kind.cluster_wide() { "".into() } else { meta.namespace.clone() };
        Key { kind, namespace, name: meta.name.clone() }
    }
}

/// `metadata` of any object.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Metadata {
    pub name: Arc<str>,
    /// `default` where a manifest names none, as kubectl has it.
    #[serde(default = "read::default_namespace", deserialize_with = "namespace")]
    pub namespace: Arc<str>,
    #[serde(default)]
    pub uid: Option<Arc<str>>,
    #[serde(default, deserialize_with = "null_is_default")]
    pub labels: Labels,
    #[serde(default, deserialize_with = "null_is_default")]
    pub annotations: Annotations,
}

/// The labels that matter here.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Labels {
    /// On an EndpointSlice: its Service.
    #[serde(default, rename = "kubernetes.io/service-name", deserialize_with = "optional_interned")]
    pub service_name: Option<Arc<str>>,
    /// On a Node: its zone.
    #[serde(default, rename = "topology.kubernetes.io/zone", deserialize_with = "optional_interned")]
    pub zone: Option<Arc<str>>,
}

/// sluice's own annotations, as written; what they mean is the table's business.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Annotations {
    pub redirect: Option<Arc<str>>,
    pub load_balancer: Option<Arc<str>>,
    pub ejection: Option<Arc<str>>,
    pub slow_start: Option<Arc<str>>,
    /// Keys under `sluice.dev/` that sluice does not know.
    pub unknown: Vec<Arc<str>>,
}

impl<'de> Deserialize<'de> for Annotations {
    fn deserialize<D: Deserializer<'de>>(de: D) -> Result<Self, D::Error> {
        struct Keep;
        impl<'de> Visitor<'de> for Keep {
            type Value = Annotations;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a mapping of annotations")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Annotations, A::Error> {
                let mut kept = Annotations::default();
                while let Some(key) = map.next_key::<String>()? {
                    match key.as_str() {
                        REDIRECT => kept.redirect = Some(map.next_value()?),
                        LOAD_BALANCER => kept.load_balancer = Some(map.next_value()?),
                        EJECTION => kept.ejection = Some(map.next_value()?),
                        SLOW_START => kept.slow_start = Some(map.next_value()?),
                        _ => {
                            map.next_value::<IgnoredAny>()?;
                            if key.starts_with("sluice.dev/") {
                                kept.unknown.push(key.into());
                            }
                        }
                    }
                }
                kept.unknown.sort();
                Ok(kept)
            }
        }
        de.deserialize_map(Keep)
    }
}

/// A Pod: looked at for its own word on redirection, and for where it runs.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Pod {
    pub metadata: Metadata,
    #[serde(default, deserialize_with = "null_is_default")]
    pub spec: PodSpec,
    #[serde(default, deserialize_with = "null_is_default")]
    pub status: PodStatus,
}

/// `spec` of a Pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodSpec {
    /// None until it is scheduled.
    #[serde(default, deserialize_with = "optional_interned")]
    pub node_name: Option<Arc<str>>,
    /// It runs in the node's own network namespace, which it shares with all other such Pods.
    #[serde(default, deserialize_with = "null_is_default")]
    pub host_network: bool,
}

/// `status` of a Pod.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct PodStatus {
    /// Phase Succeeded or Failed: no process of it will run any more.
    #[serde(default, rename = "phase", deserialize_with = "read::finished")]
    pub finished: bool,
}

/// A Namespace: looked at for its word on redirection.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Namespace {
    pub metadata: Metadata,
}

/// A Node: looked at for its zone.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Node {
    pub metadata: Metadata,
}
