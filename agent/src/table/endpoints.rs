//! Where the calls of a Service port go. In: all EndpointSlices of one Service, and where this node is. Out: the
//! endpoints for a port name and an address family that are to be used from here, each once, in order of address. The
//! rules are kube-proxy's (k8s.io/kubernetes v1.36, pkg/proxy/topology.go), so that both serve a Service alike.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::object::{AddressType, EndpointSlice, Hints, Key, Kind, Protocol, SliceAddress, SliceEndpoint};
use super::problem::{Place, Problem};
use super::reason::Reason;
use super::{Endpoint, Scope};
use crate::addr::EndpointAddr;

/// The node for which the table is built.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Here {
    pub(super) node: Option<Arc<str>>,
    pub(super) zone: Option<Arc<str>>,
}

impl Here {
    fn is_node_of(&self, endpoint: &SliceEndpoint) -> bool {
        self.node.is_some() && endpoint.place.as_ref().is_some_and(|place| self.node == place.node)
    }
}

/// The endpoints of a Service port in one family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Chosen {
    pub(super) endpoints: Arc<[Endpoint]>,
    pub(super) scope: Scope,
    /// How many could be used if `scope` were `All`.
    pub(super) usable: u32,
}

impl Chosen {
    /// Why a selected port is left alone for the moment all the same.
    pub(super) fn without_endpoints(&self) -> Option<Reason> {
        match self.scope {
            _ if !self.endpoints.is_empty() => None,
            Scope::Local => Some(Reason::NoLocalEndpoints),
            Scope::All | Scope::SameZone | Scope::SameNode => Some(Reason::NoEndpoints),
        }
    }
}

/// What an endpoint is good for. One that is neither counts for nothing, not even for the hints.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum State {
    Ready,
    /// Still serves while it terminates: the last resort where none is ready.
    Ending,
}

/// An endpoint in one of its slices.
struct Listed<'a> {
    addr: EndpointAddr,
    state: State,
    endpoint: &'a SliceEndpoint,
}

/// The endpoints for the Service's port of this name that clients on this node may reach by this ClusterIP. `local`:
/// internalTrafficPolicy Local.
pub(super) fn choose(
    slices: &[Arc<EndpointSlice>],
    port_name: &str,
    cluster_ip: IpAddr,
    local: bool,
    here: &Here,
) -> Chosen {
    let listed = listed(slices, port_name, cluster_ip);
    let any_ready = listed.iter().any(|it| it.state == State::Ready);
    let anywhere = if any_ready { State::Ready } else { State::Ending };
    let usable = listed.iter().filter(|it| it.state == anywhere).count();
    let usable = u32::try_from(usable).unwrap_or(u32::MAX);
    let pick = |of: &dyn Fn(&Listed<'_>) -> bool| {
        listed.iter().filter(|it| of(it)).map(|it| endpoint(it.endpoint, it.addr)).collect()
    };
    if local {
        let ours = |it: &Listed<'_>| here.is_node_of(it.endpoint);
        let state =
            if listed.iter().any(|it| ours(it) && it.state == State::Ready) { State::Ready } else { State::Ending };
        return Chosen { endpoints: pick(&|it| ours(it) && it.state == state), scope: Scope::Local, usable };
    }
    let scope = if any_ready { hinted(&listed, here) } else { Scope::All };
    let endpoints = pick(&|it| it.state == anywhere && reaches(scope, it.endpoint, here));
    Chosen { endpoints, scope, usable }
}

/// All that are of use, each address once. A Service's endpoint stands in two slices while the control plane moves it,
/// and a Pod that ends has its address in common with the Pod that got it next: the ready one is meant.
fn listed<'a>(slices: &'a [Arc<EndpointSlice>], port_name: &str, cluster_ip: IpAddr) -> Vec<Listed<'a>> {
    let family = if cluster_ip.is_ipv4() { AddressType::IPv4 } else { AddressType::IPv6 };
    let mut listed = Vec::new();
    for slice in slices.iter().filter(|slice| slice.address_type == family) {
        // The number behind a named target port may differ from Pod to Pod, and then from slice to slice.
        let of_port = |it: &&super::object::SlicePort| *it.name == *port_name && it.protocol == Protocol::Tcp;
        for port in slice.ports.iter().filter(of_port).filter_map(|it| it.port) {
            for endpoint in &slice.endpoints {
                let state = match endpoint.conditions {
                    it if it.ready() => State::Ready,
                    it if it.serving_while_terminating() => State::Ending,
                    _ => continue,
                };
                // The first address only: the others of an endpoint are the same Pod, and the API deprecates them.
                if let Some(SliceAddress::Ip(ip)) = endpoint.addresses.first().filter(|it| family.admits(it)) {
                    let addr = EndpointAddr::new(SocketAddr::new(*ip, port.get()));
                    listed.push(Listed { addr, state, endpoint });
                }
            }
        }
    }
    listed.sort_by_key(|it| (it.addr, it.state));
    listed.dedup_by_key(|it| it.addr);
    listed
}

/// Hints bind only if all ready endpoints have them and one is for us; those for Nodes before those for zones.
fn hinted(listed: &[Listed<'_>], here: &Here) -> Scope {
    let binds = |names: fn(&Hints) -> &[Arc<str>], here: &Option<Arc<str>>| {
        let Some(here) = here else { return false };
        let mut for_us = false;
        for it in listed.iter().filter(|it| it.state == State::Ready) {
            let names = it.endpoint.hints.as_deref().map_or(&[][..], names);
            if names.is_empty() {
                return false;
            }
            for_us |= names.contains(here);
        }
        for_us
    };
    if binds(|it| &it.nodes, &here.node) {
        Scope::SameNode
    } else if binds(|it| &it.zones, &here.zone) {
        Scope::SameZone
    } else {
        Scope::All
    }
}

fn reaches(scope: Scope, endpoint: &SliceEndpoint, here: &Here) -> bool {
    let names = |names: &[Arc<str>], here: &Option<Arc<str>>| here.as_ref().is_some_and(|here| names.contains(here));
    let hints = endpoint.hints.as_deref();
    match scope {
        Scope::All => true,
        Scope::SameNode => hints.is_some_and(|it| names(&it.nodes, &here.node)),
        Scope::SameZone => hints.is_some_and(|it| names(&it.zones, &here.zone)),
        Scope::Local => here.is_node_of(endpoint),
    }
}

fn endpoint(listed: &SliceEndpoint, addr: EndpointAddr) -> Endpoint {
    let identity = listed.target.clone().unwrap_or_else(|| addr.to_string().into());
    Endpoint { addr, identity, place: listed.place.clone() }
}

/// Everything that a slice lists, ready or not, with the name of each port.
pub(super) fn addresses(slice: &EndpointSlice) -> impl Iterator<Item = (SocketAddr, &Arc<str>)> {
    let ports = slice.ports.iter().filter_map(|port| Some((port.port?.get(), &port.name)));
    ports.flat_map(|(port, name)| {
        let ips = slice.endpoints.iter().flat_map(|endpoint| &endpoint.addresses);
        ips.filter_map(move |address| match address {
            SliceAddress::Ip(ip) => Some((SocketAddr::new(*ip, port), name)),
            _ => None,
        })
    })
}

/// What is wrong with a slice as a whole.
pub(super) fn check(slice: &EndpointSlice, problems: &mut Vec<Problem>) {
    let metadata = &slice.metadata;
    let place = || {
        let (namespace, name) = (metadata.namespace.clone(), metadata.name.clone());
        Place::Object(Key { kind: Kind::EndpointSlice, namespace, name })
    };
    if slice.address_type == AddressType::Fqdn {
        problems.push(Problem {
            place: place(),
            field: "addressType".to_owned(),
            message: "slices of DNS names are ignored".to_owned(),
            cure: "list IP addresses in a slice of addressType IPv4 or IPv6".to_owned(),
        });
    }
    if let Some((endpoint, address)) = misplaced(slice) {
        let wrong = &slice.endpoints[endpoint].addresses[address];
        problems.push(Problem {
            place: place(),
            field: format!("endpoints[{endpoint}].addresses[{address}]"),
            message: format!("{wrong} is no {} address and is ignored", slice.address_type.name()),
            cure: "move it to a slice of its own addressType, or correct it".to_owned(),
        });
    }
}

/// Endpoint and address index of the first address that is not of the slice's type.
pub fn misplaced(slice: &EndpointSlice) -> Option<(usize, usize)> {
    slice.endpoints.iter().enumerate().find_map(|(endpoint, it)| {
        let address = it.addresses.iter().position(|address| !slice.address_type.admits(address))?;
        Some((endpoint, address))
    })
}
