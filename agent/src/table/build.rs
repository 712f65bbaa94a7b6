//! From objects to the table. In: the store, and the ids given out before. Out: all selected Service ports with their
//! endpoints, a reason for each port that is left alone, and the problems met. Pure and in a fixed order.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;

use super::object::{EndpointSlice, Object, Service as Manifest, ServicePort};
use super::problem::{Place, Problem};
use super::select::{self, LeftAlone, Reason, Word};
use super::store::Store;
use super::{Service, ServicePortName, Table, endpoints};
use crate::addr::ServiceAddr;

/// The ids given to Service ports: an address keeps its id while it is in the table, and no id is given out twice.
#[derive(Clone, Debug, Default)]
pub struct Ids {
    by_addr: HashMap<ServiceAddr, u32>,
    last: u32,
}

impl Ids {
    fn of(&mut self, addr: ServiceAddr) -> u32 {
        *self.by_addr.entry(addr).or_insert_with(|| {
            self.last += 1;
            self.last
        })
    }
}

/// What comes of the objects.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Built {
    pub table: Table,
    /// Service ports that are left to kube-proxy, ordered by name. One without endpoints is in the table too.
    pub left_alone: Vec<LeftAlone>,
    /// UIDs of the Pods whose own connections are left alone.
    pub opted_out_pods: HashSet<Arc<str>>,
    /// Annotations and objects that sluice cannot make sense of.
    pub problems: Vec<Problem>,
}

/// Builds the table from all objects.
pub fn build(store: &Store, ids: &mut Ids) -> Built {
    let mut building = Building { ids, built: Built::default(), taken: BTreeMap::new() };
    let slices = slices_by_service(store);
    for namespace in store.namespaces.values() {
        let object = Object::Namespace(namespace.clone());
        select::check_namespace(&object, &mut building.built.problems);
        select::check_keys(&object, &mut building.built.problems);
    }
    for slice in store.slices.values() {
        endpoints::check(slice, &mut building.built.problems);
    }
    for (name, service) in &store.services {
        let namespace = store.namespaces.get(&("".into(), name.0.clone()));
        let word_of_namespace = namespace.and_then(|it| it.metadata.annotations.redirect.as_ref());
        let slices = slices.get(&(&*name.0, &*name.1)).map_or(&[][..], |it| &it[..]);
        select::check_keys(&Object::Service(service.clone()), &mut building.built.problems);
        let word = Word::of(service, word_of_namespace, &mut building.built.problems);
        building.service(service, &word, slices);
    }
    for pod in store.pods.values() {
        let object = Object::Pod(pod.clone());
        select::check_keys(&object, &mut building.built.problems);
        let opted_out = select::opted_out_pod(&object, &mut building.built.problems);
        building.built.opted_out_pods.extend(opted_out);
    }
    let Building { ids, built, .. } = building;
    ids.by_addr.retain(|addr, _| built.table.services.contains_key(addr));
    built
}

/// All slices of each Service, whatever their names: the label says to whom they belong.
fn slices_by_service(store: &Store) -> HashMap<(&str, &str), Vec<Arc<EndpointSlice>>> {
    let mut by_service: HashMap<(&str, &str), Vec<_>> = HashMap::new();
    for ((namespace, _), slice) in &store.slices {
        if let Some(service) = &slice.metadata.labels.service_name {
            by_service.entry((namespace, service)).or_default().push(slice.clone());
        }
    }
    by_service
}

struct Building<'a> {
    ids: &'a mut Ids,
    built: Built,
    taken: BTreeMap<ServiceAddr, ServicePortName>,
}

impl Building<'_> {
    fn service(&mut self, service: &Arc<Manifest>, word: &Word, slices: &[Arc<EndpointSlice>]) {
        let policy = select::policy(service, &mut self.built.problems);
        for port in &service.spec.ports {
            let name = ServicePortName {
                namespace: service.metadata.namespace.clone(),
                service: service.metadata.name.clone(),
                port: port.name.clone(),
            };
            let addrs = addrs(service, port);
            match word.against(service, port) {
                Some(reason) if addrs.is_empty() => self.leave(&name, None, reason),
                Some(reason) => addrs.iter().for_each(|addr| self.leave(&name, Some(*addr), reason.clone())),
                None => {
                    for addr in addrs {
                        let endpoints = endpoints::usable(slices, &port.name, addr.ip());
                        if let Some(by) = self.taken.get(&addr) {
                            let by = by.clone();
                            self.built.problems.push(taken(service, addr, &name, &by));
                            self.leave(&name, Some(addr), Reason::AddressTaken(by));
                            continue;
                        }
                        if endpoints.is_empty() {
                            self.leave(&name, Some(addr), Reason::NoEndpoints);
                        }
                        self.taken.insert(addr, name.clone());
                        let row = Service { id: self.ids.of(addr), addr, name: name.clone(), policy, endpoints };
                        self.built.table.services.insert(addr, Arc::new(row));
                    }
                }
            }
        }
    }

    fn leave(&mut self, name: &ServicePortName, addr: Option<ServiceAddr>, reason: Reason) {
        self.built.left_alone.push(LeftAlone { name: name.clone(), addr, reason });
    }
}

fn addrs(service: &Manifest, port: &ServicePort) -> Vec<ServiceAddr> {
    service.spec.cluster_ips().map(|ip| ServiceAddr::new(SocketAddr::new(ip, port.port.get()))).collect()
}

fn taken(service: &Arc<Manifest>, addr: ServiceAddr, name: &ServicePortName, by: &ServicePortName) -> Problem {
    Problem {
        place: Place::Object(Object::Service(service.clone()).key()),
        field: "spec.clusterIPs".to_owned(),
        message: format!("{name} and {by} are both at {addr}; {by} is served, being the first by name"),
        cure: "give one of the two another ClusterIP or port".to_owned(),
    }
}
