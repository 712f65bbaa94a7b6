//! A Service as the API has it, with only what decides whether a port is ours and who its endpoints may be.

use std::net::IpAddr;
use std::num::NonZeroU16;
use std::sync::Arc;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, Unexpected};

use super::Metadata;
use super::read::{interned_or_empty, null_is_default, optional_interned, port};

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
    cluster_ips: Box<[ClusterIp]>,
    #[serde(default, deserialize_with = "null_is_default")]
    pub ports: Box<[ServicePort]>,
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

    /// It has a ClusterIP and nothing behind it, which the API server refuses.
    pub fn has_no_ports(&self) -> bool {
        self.ports.is_empty() && self.service_type != ServiceType::ExternalName && self.cluster_ips().next().is_some()
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
    #[serde(default = "super::read::no_name", deserialize_with = "interned_or_empty")]
    pub name: Arc<str>,
    #[serde(default, deserialize_with = "null_is_default")]
    pub protocol: Protocol,
    #[serde(default, deserialize_with = "optional_interned")]
    pub app_protocol: Option<Arc<str>>,
    #[serde(deserialize_with = "port")]
    pub port: NonZeroU16,
}
