//! The Service table: what the workers and the kernel need to know of Services and endpoints, built from Kubernetes
//! objects. Pure: objects in, table and differences out; it neither watches nor publishes.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use crate::addr::{EndpointAddr, ServiceAddr};

pub mod object;

mod catalog;
mod endpoints;
mod part;
mod pods;
mod problem;
mod select;
mod store;
#[cfg(test)]
mod tests;

pub use catalog::{Built, Catalog, Change, Changes};
pub use endpoints::misplaced;
pub use pods::Pods;
pub use problem::{Place, Problem, Problems};
pub use select::{LeftAlone, Reason};
pub use store::Update;

/// How an endpoint is chosen for a stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    /// Each endpoint in turn.
    #[default]
    RoundRobin,
    /// The endpoint with the fewest open streams of two drawn at random; ties in turn.
    LeastRequest,
}

/// One usable endpoint of a Service port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    pub addr: EndpointAddr,
    /// The `targetRef` UID, or the address where there is none: a reused pod IP is another endpoint.
    pub identity: Arc<str>,
}

/// The Kubernetes name of a Service port.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServicePortName {
    pub namespace: Arc<str>,
    pub service: Arc<str>,
    /// Empty where the Service's only port has no name.
    pub port: Arc<str>,
}

impl fmt::Display for ServicePortName {
    /// `namespace/service:port`, without the colon where the port has no name.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.service)?;
        if self.port.is_empty() { Ok(()) } else { write!(f, ":{}", self.port) }
    }
}

/// Which of a Service port's usable endpoints are used from this node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Scope {
    /// All of them, wherever they are.
    #[default]
    All,
    /// Those with a hint for this node's zone.
    SameZone,
    /// Those with a hint for this node.
    SameNode,
    /// internalTrafficPolicy Local: those that run on this node.
    Local,
}

impl Scope {
    /// As Kubernetes calls it, or `all`.
    pub fn name(self) -> &'static str {
        match self {
            Scope::All => "all",
            Scope::SameZone => "PreferSameZone",
            Scope::SameNode => "PreferSameNode",
            Scope::Local => "Local",
        }
    }
}

/// One selected Service port in one address family: a dual-stack Service with two ports is four of these.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Stable while the process lives; the value in the kernel's SERVICES map.
    pub id: u32,
    pub addr: ServiceAddr,
    pub name: ServicePortName,
    pub policy: Policy,
    /// Where new streams go. Empty: the Service is left to kube-proxy, and streams on open connections are refused.
    pub endpoints: Arc<[Endpoint]>,
    /// Why it is these endpoints and no others.
    pub scope: Scope,
    /// How many endpoints there were if `scope` was `All`.
    pub usable: u32,
}

/// All selected Service ports.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    pub services: HashMap<ServiceAddr, Arc<Service>>,
}
