//! What one Service contributes, judged by itself. In: the Service, its Namespace's word, its slices, and where this
//! node is. Out: each of its ports in each family, selected or left alone, and the problems met. Who gets an address
//! that two Services claim is not decided here.

use std::net::SocketAddr;
use std::sync::Arc;

use super::endpoints::{self, Chosen, Here};
use super::object::{EndpointSlice, InternalTrafficPolicy, Object, Service as Manifest};
use super::problem::Problem;
use super::reason::Reason;
use super::select::{self, Word};
use super::{Balancing, ServicePortName, balancing};
use crate::addr::ServiceAddr;

/// All of one Service's ports, in the order of the manifest.
#[derive(Debug, Default)]
pub(super) struct Part {
    pub(super) ports: Vec<Port>,
    pub(super) problems: Vec<Problem>,
}

/// One port in one family.
#[derive(Debug)]
pub(super) struct Port {
    pub(super) name: ServicePortName,
    /// Some where it is selected.
    pub(super) addr: Option<ServiceAddr>,
    pub(super) verdict: Verdict,
}

#[derive(Debug)]
pub(super) enum Verdict {
    LeftAlone(Reason),
    Selected(Balancing, Chosen),
}

impl Part {
    /// `slices`: all that are labelled with the Service's name.
    pub(super) fn of(
        service: &Arc<Manifest>,
        word_of_namespace: Option<&Arc<str>>,
        slices: &[Arc<EndpointSlice>],
        here: &Here,
    ) -> Part {
        let mut part = Part::default();
        select::check_keys(&Object::Service(service.clone()), &mut part.problems);
        let word = Word::of(service, word_of_namespace, &mut part.problems);
        let balancing = balancing::of(service, &mut part.problems);
        let local = service.spec.internal_traffic_policy == InternalTrafficPolicy::Local;
        for port in &service.spec.ports {
            let name = ServicePortName {
                namespace: service.metadata.namespace.clone(),
                service: service.metadata.name.clone(),
                port: port.name.clone(),
            };
            let reason = word.against(service, port, here);
            let mut addrs = service.spec.cluster_ips().map(|ip| ServiceAddr::new(SocketAddr::new(ip, port.port.get())));
            match reason {
                Some(reason) => {
                    let first = addrs.next();
                    for addr in [first].into_iter().chain(addrs.map(Some)) {
                        let verdict = Verdict::LeftAlone(reason.clone());
                        part.ports.push(Port { name: name.clone(), addr, verdict });
                    }
                }
                None => part.ports.extend(addrs.map(|addr| {
                    let chosen = endpoints::choose(slices, &port.name, addr.ip(), local, here);
                    Port { name: name.clone(), addr: Some(addr), verdict: Verdict::Selected(balancing, chosen) }
                })),
            }
        }
        part
    }

    /// The addresses that this Service would serve, each with the index of its port.
    pub(super) fn claims(&self) -> impl Iterator<Item = (ServiceAddr, usize)> {
        self.ports.iter().enumerate().filter_map(|(index, port)| match port.verdict {
            Verdict::Selected(..) => Some((port.addr?, index)),
            Verdict::LeftAlone(_) => None,
        })
    }

    /// Endpoints that are as before are held once: the workers hold the old ones.
    pub(super) fn share(&mut self, old: Option<&Part>) {
        let old = old.map_or(&[][..], |it| &it.ports);
        for (port, old) in self.ports.iter_mut().zip(old) {
            if let (Verdict::Selected(_, chosen), Verdict::Selected(_, before)) = (&mut port.verdict, &old.verdict)
                && chosen.endpoints == before.endpoints
            {
                chosen.endpoints = before.endpoints.clone();
            }
        }
    }
}
