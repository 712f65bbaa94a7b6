//! The Service table: what the workers and the kernel need to know of Services and endpoints, built from Kubernetes
//! objects. Pure: objects in, table and differences out; it neither watches nor publishes.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::addr::{EndpointAddr, ServiceAddr};

pub mod object;

mod balancing;
mod catalog;
mod endpoints;
mod part;
mod pods;
mod problem;
mod reason;
mod select;
mod store;
#[cfg(test)]
mod tests;

pub use catalog::{Built, Catalog, Change, Changes};
pub use endpoints::misplaced;
pub use pods::Pods;
pub use problem::{Place, Problem, Problems};
pub use reason::Reason;
pub use select::LeftAlone;
pub use store::Update;

/// How an endpoint is chosen for a stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    /// As least-request, and endpoints that take longer than others get fewer turns.
    #[default]
    Ewma,
    /// Each endpoint in turn; but one with more open streams than another drawn at random lets that one go first.
    LeastRequest,
    /// Each endpoint in turn.
    RoundRobin,
}

impl Policy {
    pub const ALL: [Policy; 3] = [Policy::Ewma, Policy::LeastRequest, Policy::RoundRobin];

    /// As in `sluice.dev/load-balancer`.
    pub fn name(self) -> &'static str {
        match self {
            Policy::Ewma => "ewma",
            Policy::LeastRequest => "least-request",
            Policy::RoundRobin => "round-robin",
        }
    }
}

/// When an endpoint whose calls fail gets no more of them: `sluice.dev/ejection`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ejection {
    /// Failures in a row of the kind that is the endpoint's own fault; 0: they do not eject.
    pub failures: u32,
    /// Percent of its calls that fail more than at the others; 0: that does not eject.
    pub rate: u8,
    /// Percent of the endpoints that may be ejected at a time, at least 1; one always may, the last never.
    pub most: u8,
    /// How long the first time; it doubles each time,
    pub back_off: Duration,
    /// up to this.
    pub longest: Duration,
}

impl Ejection {
    /// Nothing ejects.
    pub fn is_off(&self) -> bool {
        self.failures == 0 && self.rate == 0
    }
}

impl Default for Ejection {
    fn default() -> Self {
        let second = Duration::from_secs(1);
        Self { failures: 5, rate: 20, most: 50, back_off: second, longest: 8 * second }
    }
}

/// What a Service says of how its calls are spread.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Balancing {
    pub policy: Policy,
    pub ejection: Ejection,
    /// How long a new endpoint takes to get its whole share; 0: no time.
    pub slow_start: Duration,
}

impl From<Policy> for Balancing {
    fn from(policy: Policy) -> Self {
        Self { policy, ..Self::default() }
    }
}

/// One usable endpoint of a Service port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    pub addr: EndpointAddr,
    /// The `targetRef`'s UID, a space and the Pod's name, or the address where there is none: a reused pod IP is another
    /// endpoint.
    pub identity: Arc<str>,
    pub place: Option<Arc<object::Place>>,
}

impl Endpoint {
    /// The name of the Pod behind it.
    pub fn pod(&self) -> Option<&str> {
        self.identity.split_once(' ').map(|(_, name)| name)
    }
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
    pub balancing: Balancing,
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
