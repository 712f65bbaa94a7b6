//! Which Service ports are ours, and why the others are not. In: a Service, its Namespace, a port. Out: selected, or
//! the reason why it is left to kube-proxy. Unreadable annotations become problems and the default applies.

use std::sync::Arc;

use super::ServicePortName;
use super::endpoints::Here;
use super::object::{
    Annotations, EJECTION, InternalTrafficPolicy, Key, LOAD_BALANCER, Object, Pod, Protocol, REDIRECT, SLOW_START,
    Service, ServicePort, ServiceType, SessionAffinity,
};
use super::problem::{Place, Problem};
use super::reason::{REDIRECT_ON_SERVICE, Reason};
use crate::addr::ServiceAddr;

const TRUE_OR_FALSE: &str = "write \"false\" or \"true\", in quotes";

/// The meaning of `sluice.dev/redirect`.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Redirect {
    All,
    Nothing,
    Ports(Vec<String>),
}

impl Redirect {
    /// None: unreadable.
    fn read(value: &str) -> Option<Redirect> {
        match value.trim() {
            "true" => Some(Redirect::All),
            "false" => Some(Redirect::Nothing),
            list => {
                let names: Vec<String> = list.split(',').map(|it| it.trim().to_owned()).collect();
                names.iter().all(|it| is_port_name(it)).then_some(Redirect::Ports(names))
            }
        }
    }

    /// What is not a Service has no ports to name: a "no" there would be a port's name, and nobody would hear of it.
    fn read_without_ports(value: &str) -> Option<Redirect> {
        Self::read(value).filter(|word| !matches!(word, Redirect::Ports(_)))
    }
}

/// A DNS label, as the API server demands of a Service's port names.
fn is_port_name(name: &str) -> bool {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    !name.is_empty() && name.len() <= 63 && name.bytes().all(plain) && !name.starts_with('-') && !name.ends_with('-')
}

/// What a Service's, or else its Namespace's, annotation says of all its ports.
pub(super) struct Word {
    redirect: Option<Redirect>,
    by_service: bool,
    unreadable: bool,
}

impl Word {
    /// `namespace`: the redirect annotation of the Service's Namespace. Its own problems are reported with the Namespace.
    pub(super) fn of(service: &Arc<Service>, namespace: Option<&Arc<str>>, problems: &mut Vec<Problem>) -> Word {
        let written = service.metadata.annotations.redirect.as_deref();
        let own = written.and_then(Redirect::read);
        let place = || place(&Object::Service(service.clone()));
        if let (Some(value), None) = (written, &own) {
            problems.push(unreadable(place(), REDIRECT, value, REDIRECT_ON_SERVICE));
        }
        if let Some(Redirect::Ports(names)) = &own {
            for name in names.iter().filter(|name| !service.spec.ports.iter().any(|port| *port.name == ***name)) {
                problems.push(Problem {
                    place: place(),
                    field: annotation(REDIRECT),
                    message: format!("the Service has no port named \"{name}\""),
                    cure: format!("its ports are {}; or {REDIRECT_ON_SERVICE}", port_names(service)),
                });
            }
        }
        let by_service = own.is_some();
        let redirect = own.or_else(|| namespace.and_then(|value| Redirect::read_without_ports(value)));
        Word { unreadable: written.is_some() && !by_service, redirect, by_service }
    }

    /// None: the port is selected and nothing speaks against it but, perhaps, the lack of addresses or endpoints.
    pub(super) fn against(&self, service: &Service, port: &ServicePort, here: &Here) -> Option<Reason> {
        let spec = &service.spec;
        // Before all else: what another reason's cure would change, would change nothing.
        if let Protocol::Udp | Protocol::Sctp = port.protocol {
            return Some(Reason::NotTcp(port.protocol));
        }
        let selected = match &self.redirect {
            Some(Redirect::Nothing) if self.by_service => return Some(Reason::OptedOutByService),
            Some(Redirect::Nothing) => return Some(Reason::OptedOutByNamespace),
            Some(Redirect::All) => true,
            Some(Redirect::Ports(names)) => names.iter().any(|it| **it == *port.name) || says_grpc(port),
            None => says_grpc(port),
        };
        if !selected {
            return Some(if self.unreadable { Reason::UnreadableAnnotation } else { Reason::NotSelected });
        }
        match spec.service_type {
            ServiceType::ExternalName => Some(Reason::ExternalName),
            _ if spec.headless() => Some(Reason::Headless),
            _ if spec.session_affinity == SessionAffinity::ClientIP => Some(Reason::SessionAffinity),
            _ if spec.internal_traffic_policy == InternalTrafficPolicy::Local && here.node.is_none() => {
                Some(Reason::OwnNodeUnknown)
            }
            _ if spec.cluster_ips().next().is_none() => Some(Reason::NoClusterIp),
            _ => None,
        }
    }
}

/// Whether the port's own fields say that it speaks gRPC or HTTP/2 without TLS.
fn says_grpc(port: &ServicePort) -> bool {
    let by_protocol = matches!(port.app_protocol.as_deref(), Some("kubernetes.io/h2c" | "grpc"));
    by_protocol || matches!(&*port.name, "grpc" | "h2c") || port.name.starts_with("grpc-")
}

/// Whether a Pod's own connections are to be left alone.
pub(super) fn opts_out(pod: &Pod) -> bool {
    pod.metadata.annotations.redirect.as_deref().and_then(Redirect::read_without_ports) == Some(Redirect::Nothing)
}

/// What is wrong with an object's annotations, where that is no Service: a Service's are read with it.
pub(super) fn check(object: &Object, problems: &mut Vec<Problem>) {
    let written = object.metadata().annotations.redirect.as_deref();
    match (object, written) {
        (Object::Pod(pod), Some(_)) if opts_out(pod) && pod.metadata.uid.is_none() => problems.push(Problem {
            place: place(object),
            field: "metadata.uid".to_owned(),
            message: format!("{REDIRECT} is \"false\", but a Pod is recognised by its UID and this has none"),
            cure: "write metadata.uid as `kubectl get pod -o yaml` shows it".to_owned(),
        }),
        (Object::Namespace(_) | Object::Pod(_), Some(value)) if Redirect::read_without_ports(value).is_none() => {
            problems.push(unreadable(place(object), REDIRECT, value, TRUE_OR_FALSE));
        }
        _ => {}
    }
    if matches!(object, Object::Namespace(_) | Object::Pod(_)) {
        let Annotations { load_balancer, ejection, slow_start, .. } = &object.metadata().annotations;
        for (key, written) in [(LOAD_BALANCER, load_balancer), (EJECTION, ejection), (SLOW_START, slow_start)] {
            problems.extend(written.is_some().then(|| Problem {
                place: place(object),
                field: annotation(key),
                message: "has no effect here: a Service says how its endpoints are chosen".to_owned(),
                cure: "write it on the Services instead".to_owned(),
            }));
        }
        check_keys(object, problems);
    }
}

/// Keys under `sluice.dev/` that mean nothing are misspelt, as a rule.
pub(super) fn check_keys(object: &Object, problems: &mut Vec<Problem>) {
    let Annotations { unknown, .. } = &object.metadata().annotations;
    problems.extend(unknown.iter().map(|key| Problem {
        place: place(object),
        field: annotation(key),
        message: "sluice has no such annotation".to_owned(),
        cure: format!("write {REDIRECT}, {LOAD_BALANCER}, {EJECTION} or {SLOW_START}, or remove it"),
    }));
}

fn unreadable(place: Place, key: &str, value: &str, cure: &str) -> Problem {
    Problem {
        place,
        field: annotation(key),
        message: format!("\"{value}\" is unreadable, the default applies"),
        cure: cure.to_owned(),
    }
}

pub(super) fn annotation(key: &str) -> String {
    format!("metadata.annotations[{key}]")
}

pub(super) fn place(object: &Object) -> Place {
    let key: Key = object.key();
    Place::Object(key)
}

fn port_names(service: &Service) -> String {
    let names: Vec<&str> = service.spec.ports.iter().map(|port| &*port.name).filter(|name| !name.is_empty()).collect();
    if names.is_empty() { "without names".to_owned() } else { names.join(", ") }
}

/// One Service port in one family, as `status` names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeftAlone {
    pub name: ServicePortName,
    /// None where there is no ClusterIP.
    pub addr: Option<ServiceAddr>,
    pub reason: Reason,
}
