//! Why a Service port is left to kube-proxy, in words, and what to do about it.

use std::fmt;

use super::ServicePortName;
use super::object::{Protocol, REDIRECT};

/// Cure of an unreadable `sluice.dev/redirect` on a Service.
pub(super) const REDIRECT_ON_SERVICE: &str =
    "write \"true\", \"false\" or names of the Service's ports with commas between, in quotes";

/// Why connections to a Service port are not redirected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Nothing says that the port speaks gRPC.
    NotSelected,
    /// Nothing readable does: the annotation's value is not understood.
    UnreadableAnnotation,
    /// `sluice.dev/redirect: "false"` on the Service.
    OptedOutByService,
    /// `sluice.dev/redirect: "false"` on the Namespace, and no word of the Service's own.
    OptedOutByNamespace,
    ExternalName,
    Headless,
    NoClusterIp,
    /// UDP or SCTP.
    NotTcp(Protocol),
    SessionAffinity,
    /// internalTrafficPolicy Local, while sluice does not know which node is its own.
    OwnNodeUnknown,
    /// internalTrafficPolicy Local, and no usable endpoint runs on this node.
    NoLocalEndpoints,
    /// No slice of the ClusterIP's family has a usable endpoint for the port.
    NoEndpoints,
    /// Another Service, earlier by name, has the same ClusterIP and port.
    AddressTaken(ServicePortName),
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::NotSelected => f.write_str("not selected: neither appProtocol, port name nor annotation says gRPC"),
            Reason::UnreadableAnnotation => write!(f, "not selected: the annotation {REDIRECT} is unreadable"),
            Reason::OptedOutByService => write!(f, "opted out: {REDIRECT} is \"false\" on the Service"),
            Reason::OptedOutByNamespace => write!(f, "opted out: {REDIRECT} is \"false\" on the Namespace"),
            Reason::ExternalName => f.write_str("type ExternalName: there is no ClusterIP to redirect"),
            Reason::Headless => f.write_str("headless: clients dial pod addresses, there is no ClusterIP to redirect"),
            Reason::NoClusterIp => f.write_str("no ClusterIP"),
            Reason::NotTcp(Protocol::Sctp) => f.write_str("SCTP"),
            Reason::NotTcp(Protocol::Udp | Protocol::Tcp) => f.write_str("UDP"),
            Reason::SessionAffinity => f.write_str("sessionAffinity ClientIP binds a client to one endpoint"),
            Reason::OwnNodeUnknown => {
                f.write_str("internalTrafficPolicy Local, and it is not known on which node sluice runs")
            }
            Reason::NoLocalEndpoints => {
                f.write_str("internalTrafficPolicy Local, and no usable endpoint runs on this node")
            }
            Reason::NoEndpoints => f.write_str("no usable endpoints"),
            Reason::AddressTaken(by) => write!(f, "the same ClusterIP and port belong to {by}"),
        }
    }
}

impl Reason {
    /// What to do so that the port is redirected.
    pub fn cure(&self) -> &'static str {
        match self {
            Reason::NotSelected => {
                "set appProtocol: kubernetes.io/h2c, or name the port grpc, or annotate the Service sluice.dev/redirect: \"true\""
            }
            Reason::UnreadableAnnotation => REDIRECT_ON_SERVICE,
            Reason::OptedOutByService => "remove the annotation from the Service",
            Reason::OptedOutByNamespace => {
                "remove the annotation from the Namespace, or annotate the Service sluice.dev/redirect: \"true\""
            }
            Reason::ExternalName => "make it a Service of type ClusterIP",
            Reason::Headless => "give the Service a ClusterIP: leave out clusterIP: None",
            Reason::NoClusterIp => {
                "in a folder of manifests, write spec.clusterIP; in a cluster, wait for the API server to give one"
            }
            Reason::NotTcp(_) => "none: gRPC runs over TCP",
            Reason::SessionAffinity => "set sessionAffinity: None",
            Reason::OwnNodeUnknown => {
                "give sluice-agent its node's name: --node-name, or SLUICE_NODE_NAME from the field spec.nodeName"
            }
            Reason::NoLocalEndpoints => {
                "none is needed where no client runs on this node; else run an endpoint on it, or set internalTrafficPolicy: Cluster"
            }
            Reason::NoEndpoints => {
                "see why no Pod of the Service is ready; in a folder of manifests, see that an EndpointSlice has the label kubernetes.io/service-name and a port of the same name"
            }
            Reason::AddressTaken(_) => "give one of the two Services another ClusterIP or port",
        }
    }
}
