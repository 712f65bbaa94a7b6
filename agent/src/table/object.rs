//! Kubernetes objects, in Kubernetes' own JSON shape but with only those fields that decide what is redirected and
//! where calls go. In: any serde source. Out: values that are valid one by one (an address is an address, a port is
//! 1 to 65535). It does not judge objects against each other.

use std::fmt;
use std::net::IpAddr;
use std::num::NonZeroU16;
use std::sync::Arc;

use serde::de::{self, DeserializeOwned, Deserializer, IgnoredAny, MapAccess, Unexpected, Visitor};
use serde::{Deserialize, de::Error as _};

/// `sluice.dev/redirect` on a Service, Namespace or Pod.
pub const REDIRECT: &str = "sluice.dev/redirect";
/// `sluice.dev/load-balancer` on a Service.
pub const LOAD_BALANCER: &str = "sluice.dev/load-balancer";
/// The label by which an EndpointSlice belongs to a Service of its namespace.
pub const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// The kinds that the table is built from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    Service,
    EndpointSlice,
    Pod,
    Namespace,
}

impl Kind {
    pub const ALL: [Kind; 4] = [Kind::Service, Kind::EndpointSlice, Kind::Pod, Kind::Namespace];

    pub fn name(self) -> &'static str {
        match self {
            Kind::Service => "Service",
            Kind::EndpointSlice => "EndpointSlice",
            Kind::Pod => "Pod",
            Kind::Namespace => "Namespace",
        }
    }

    pub fn api_version(self) -> &'static str {
        match self {
            Kind::Service | Kind::Pod | Kind::Namespace => "v1",
            Kind::EndpointSlice => "discovery.k8s.io/v1",
        }
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
    /// Empty for a Namespace.
    pub namespace: Arc<str>,
    pub name: Arc<str>,
}

impl fmt::Display for Key {
    /// `Service shop/cart`, `Namespace shop`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            Kind::Namespace => write!(f, "{} {}", self.kind, self.name),
            _ => write!(f, "{} {}/{}", self.kind, self.namespace, self.name),
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
}

impl Object {
    pub fn kind(&self) -> Kind {
        match self {
            Object::Service(_) => Kind::Service,
            Object::EndpointSlice(_) => Kind::EndpointSlice,
            Object::Pod(_) => Kind::Pod,
            Object::Namespace(_) => Kind::Namespace,
        }
    }

    pub fn metadata(&self) -> &Metadata {
        match self {
            Object::Service(it) => &it.metadata,
            Object::EndpointSlice(it) => &it.metadata,
            Object::Pod(it) => &it.metadata,
            Object::Namespace(it) => &it.metadata,
        }
    }

    pub fn key(&self) -> Key {
        let (kind, meta) = (self.kind(), self.metadata());
        let namespace = if kind == Kind::Namespace { "".into() } else { meta.namespace.clone() };
        Key { kind, namespace, name: meta.name.clone() }
    }
}

/// `metadata` of any object.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Metadata {
    pub name: Arc<str>,
    /// `default` where a manifest names none, as kubectl has it.
    #[serde(default = "default_namespace", deserialize_with = "namespace")]
    pub namespace: Arc<str>,
    #[serde(default)]
    pub uid: Option<Arc<str>>,
    #[serde(default, deserialize_with = "null_is_default")]
    pub labels: Labels,
    #[serde(default, deserialize_with = "null_is_default")]
    pub annotations: Annotations,
}

/// The one label that matters here.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Labels {
    #[serde(default, rename = "kubernetes.io/service-name")]
    pub service_name: Option<Arc<str>>,
}

/// sluice's own annotations, as written; what they mean is the table's business.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Annotations {
    pub redirect: Option<Arc<str>>,
    pub load_balancer: Option<Arc<str>>,
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

/// A Service.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Service {
    pub metadata: Metadata,
    #[serde(default)]
    pub spec: ServiceSpec,
}

/// `spec` of a Service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceSpec {
    #[serde(default, rename = "type")]
    pub service_type: ServiceType,
    #[serde(default, rename = "clusterIP", deserialize_with = "null_is_default")]
    cluster_ip: ClusterIp,
    #[serde(default, rename = "clusterIPs", deserialize_with = "null_is_default")]
    cluster_ips: Vec<ClusterIp>,
    #[serde(default, deserialize_with = "null_is_default")]
    pub ports: Vec<ServicePort>,
    #[serde(default)]
    pub session_affinity: SessionAffinity,
    #[serde(default)]
    pub internal_traffic_policy: InternalTrafficPolicy,
}

impl ServiceSpec {
    /// All ClusterIPs: `clusterIPs`, or `clusterIP` alone where a hand-written manifest has only that.
    pub fn cluster_ips(&self) -> impl Iterator<Item = IpAddr> {
        let single = if self.cluster_ips.is_empty() { Some(&self.cluster_ip) } else { None };
        self.cluster_ips.iter().chain(single).filter_map(|it| match it {
            ClusterIp::Ip(ip) => Some(*ip),
            ClusterIp::Unset | ClusterIp::Headless => None,
        })
    }

    pub fn headless(&self) -> bool {
        self.cluster_ip == ClusterIp::Headless || self.cluster_ips.contains(&ClusterIp::Headless)
    }
}

/// One of `clusterIPs`: an address, `None` for a headless Service, or nothing yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum ClusterIp {
    #[default]
    Unset,
    Headless,
    Ip(IpAddr),
}

impl<'de> Deserialize<'de> for ClusterIp {
    fn deserialize<D: Deserializer<'de>>(de: D) -> Result<Self, D::Error> {
        let text = String::deserialize(de)?;
        match text.as_str() {
            "" => Ok(ClusterIp::Unset),
            "None" => Ok(ClusterIp::Headless),
            _ => match text.parse::<IpAddr>() {
                Ok(ip) if !ip.is_unspecified() && !ip.is_multicast() => Ok(ClusterIp::Ip(ip.to_canonical())),
                _ => Err(D::Error::invalid_value(Unexpected::Str(&text), &"an IP address or None")),
            },
        }
    }
}

/// `spec.type` of a Service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub enum ServiceType {
    #[default]
    ClusterIP,
    NodePort,
    LoadBalancer,
    ExternalName,
}

/// `spec.sessionAffinity` of a Service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub enum SessionAffinity {
    #[default]
    None,
    ClientIP,
}

/// `spec.internalTrafficPolicy` of a Service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub enum InternalTrafficPolicy {
    #[default]
    Cluster,
    Local,
}

/// The protocol of a port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Protocol {
    #[default]
    Tcp,
    Udp,
    Sctp,
}

/// One of a Service's ports.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServicePort {
    /// Empty for the only port of a Service.
    #[serde(default = "no_name", deserialize_with = "null_is_no_name")]
    pub name: Arc<str>,
    #[serde(default, deserialize_with = "null_is_default")]
    pub protocol: Protocol,
    #[serde(default)]
    pub app_protocol: Option<Arc<str>>,
    #[serde(deserialize_with = "port")]
    pub port: NonZeroU16,
}

/// Some of a Service's endpoints, all of one address family.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointSlice {
    pub metadata: Metadata,
    pub address_type: AddressType,
    #[serde(default, deserialize_with = "null_is_default")]
    pub endpoints: Vec<SliceEndpoint>,
    #[serde(default, deserialize_with = "null_is_default")]
    pub ports: Vec<SlicePort>,
}

/// `addressType` of an EndpointSlice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum AddressType {
    IPv4,
    IPv6,
    #[serde(rename = "FQDN")]
    Fqdn,
}

impl AddressType {
    /// Whether an address may stand in a slice of this type.
    pub fn admits(self, address: &SliceAddress) -> bool {
        match (self, address) {
            (AddressType::IPv4, SliceAddress::Ip(ip)) => ip.is_ipv4(),
            (AddressType::IPv6, SliceAddress::Ip(ip)) => ip.is_ipv6(),
            (AddressType::Fqdn, _) => true,
            (AddressType::IPv4 | AddressType::IPv6, SliceAddress::Name(_)) => false,
        }
    }

    /// As it is written in a manifest.
    pub fn name(self) -> &'static str {
        match self {
            AddressType::IPv4 => "IPv4",
            AddressType::IPv6 => "IPv6",
            AddressType::Fqdn => "FQDN",
        }
    }
}

/// One endpoint of a slice.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SliceEndpoint {
    #[serde(deserialize_with = "null_is_default")]
    pub addresses: Vec<SliceAddress>,
    #[serde(default, deserialize_with = "null_is_default")]
    pub conditions: Conditions,
    #[serde(default)]
    pub target_ref: Option<TargetRef>,
}

/// `conditions` of an endpoint, as written. What an absent one means is said by the methods.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Conditions {
    #[serde(default)]
    ready: Option<bool>,
    #[serde(default)]
    serving: Option<bool>,
    #[serde(default)]
    terminating: Option<bool>,
}

impl Conditions {
    /// Takes new connections; already true for every endpoint of a Service with `publishNotReadyAddresses`.
    pub fn ready(self) -> bool {
        self.ready.unwrap_or(true)
    }

    /// Is on its way out but still answers: the last resort where nothing is ready.
    pub fn serving_while_terminating(self) -> bool {
        self.serving.unwrap_or(true) && self.terminating.unwrap_or(false)
    }
}

/// What stands behind an endpoint: a Pod, as a rule.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct TargetRef {
    #[serde(default)]
    pub uid: Option<Arc<str>>,
}

/// An endpoint's address: an IP address, or a DNS name in slices of type FQDN.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SliceAddress {
    Ip(IpAddr),
    Name(Arc<str>),
}

impl fmt::Display for SliceAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SliceAddress::Ip(ip) => ip.fmt(f),
            SliceAddress::Name(name) => name.fmt(f),
        }
    }
}

impl<'de> Deserialize<'de> for SliceAddress {
    fn deserialize<D: Deserializer<'de>>(de: D) -> Result<Self, D::Error> {
        let text = String::deserialize(de)?;
        match text.parse::<IpAddr>() {
            Ok(ip) if !ip.is_unspecified() && !ip.is_multicast() => Ok(SliceAddress::Ip(ip.to_canonical())),
            Err(_) if is_dns_name(&text) => Ok(SliceAddress::Name(text.into())),
            _ => Err(D::Error::invalid_value(Unexpected::Str(&text), &"an IP address of an endpoint")),
        }
    }
}

/// RFC 1123, and a last label that is not all digits: `10.1.0.300` is a mistyped address, not a name.
fn is_dns_name(text: &str) -> bool {
    let label = |it: &str| {
        !it.is_empty()
            && it.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !it.starts_with('-')
            && !it.ends_with('-')
    };
    let last = text.rsplit('.').next().unwrap_or_default();
    text.split('.').all(label) && !last.bytes().all(|b| b.is_ascii_digit())
}

/// One of a slice's ports, where the Service's target port has already become a number.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct SlicePort {
    /// The name of the Service's port, empty where that has none.
    #[serde(default = "no_name", deserialize_with = "null_is_no_name")]
    pub name: Arc<str>,
    #[serde(default, deserialize_with = "null_is_default")]
    pub protocol: Protocol,
    /// None: "all ports", which no Service port asks for.
    #[serde(default, deserialize_with = "optional_port")]
    pub port: Option<NonZeroU16>,
}

/// A Pod: looked at for its own word on redirection.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Pod {
    pub metadata: Metadata,
}

/// A Namespace: looked at for its word on redirection.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Namespace {
    pub metadata: Metadata,
}

fn default_namespace() -> Arc<str> {
    "default".into()
}

fn no_name() -> Arc<str> {
    "".into()
}

fn namespace<'de, D: Deserializer<'de>>(de: D) -> Result<Arc<str>, D::Error> {
    let written = Option::<Arc<str>>::deserialize(de)?;
    Ok(written.filter(|it| !it.is_empty()).unwrap_or_else(default_namespace))
}

fn null_is_no_name<'de, D: Deserializer<'de>>(de: D) -> Result<Arc<str>, D::Error> {
    Ok(Option::<Arc<str>>::deserialize(de)?.unwrap_or_else(no_name))
}

/// Go writes an empty list or mapping as null.
fn null_is_default<'de, D: Deserializer<'de>, T: DeserializeOwned + Default>(de: D) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(de)?.unwrap_or_default())
}

fn optional_port<'de, D: Deserializer<'de>>(de: D) -> Result<Option<NonZeroU16>, D::Error> {
    Option::<Port>::deserialize(de).map(|it| it.map(|port| port.0))
}

fn port<'de, D: Deserializer<'de>>(de: D) -> Result<NonZeroU16, D::Error> {
    Port::deserialize(de).map(|it| it.0)
}

struct Port(NonZeroU16);

impl<'de> Deserialize<'de> for Port {
    fn deserialize<D: Deserializer<'de>>(de: D) -> Result<Self, D::Error> {
        struct Number;
        impl Visitor<'_> for Number {
            type Value = NonZeroU16;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a port from 1 to 65535")
            }

            fn visit_u64<E: de::Error>(self, n: u64) -> Result<NonZeroU16, E> {
                let port = u16::try_from(n).ok().and_then(NonZeroU16::new);
                port.ok_or_else(|| E::invalid_value(Unexpected::Unsigned(n), &self))
            }

            fn visit_i64<E: de::Error>(self, n: i64) -> Result<NonZeroU16, E> {
                match u64::try_from(n) {
                    Ok(n) => self.visit_u64(n),
                    Err(_) => Err(E::invalid_value(Unexpected::Signed(n), &self)),
                }
            }
        }
        de.deserialize_i64(Number).map(Port)
    }
}
