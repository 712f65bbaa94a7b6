//! Where the calls of a Service port go. In: all EndpointSlices of one Service. Out: the usable endpoints for a port
//! name and an address family, each once, in order. Slices are merged: one Service has as many as it needs.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::Endpoint;
use super::object::{AddressType, EndpointSlice, Key, Kind, Protocol, SliceAddress, SliceEndpoint};
use super::problem::{Place, Problem};
use crate::addr::EndpointAddr;

/// The endpoints for the Service's port of this name that clients of this ClusterIP may reach. Ready ones; where none
/// is ready, those that still serve while they terminate, as kube-proxy has it.
pub(super) fn usable(slices: &[Arc<EndpointSlice>], port_name: &str, cluster_ip: IpAddr) -> Arc<[Endpoint]> {
    let family = if cluster_ip.is_ipv4() { AddressType::IPv4 } else { AddressType::IPv6 };
    let mut ready = BTreeMap::new();
    let mut last_resort = BTreeMap::new();
    for slice in slices.iter().filter(|slice| slice.address_type == family) {
        // The number behind a named target port may differ from Pod to Pod, and then from slice to slice.
        let of_port = |it: &&super::object::SlicePort| *it.name == *port_name && it.protocol == Protocol::Tcp;
        for port in slice.ports.iter().filter(of_port).filter_map(|it| it.port) {
            for endpoint in &slice.endpoints {
                let list = if endpoint.conditions.ready() {
                    &mut ready
                } else if endpoint.conditions.serving_while_terminating() {
                    &mut last_resort
                } else {
                    continue;
                };
                // The first address only: the others of an endpoint are the same Pod, and the API deprecates them.
                if let Some(SliceAddress::Ip(ip)) = endpoint.addresses.first().filter(|it| family.admits(it)) {
                    let addr = EndpointAddr::new(SocketAddr::new(*ip, port.get()));
                    list.entry(addr).or_insert_with(|| Endpoint { addr, identity: identity(endpoint, addr) });
                }
            }
        }
    }
    let chosen = if ready.is_empty() { last_resort } else { ready };
    chosen.into_values().collect()
}

fn identity(endpoint: &SliceEndpoint, addr: EndpointAddr) -> Arc<str> {
    let uid = endpoint.target_ref.as_ref().and_then(|it| it.uid.clone());
    uid.unwrap_or_else(|| addr.to_string().into())
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
