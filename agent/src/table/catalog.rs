//! The table as it grows and shrinks. In: updates from a source. Out: the Service ports that differ. An update costs
//! what it concerns: the Services whose objects changed are judged anew, and the addresses they claim or claimed are
//! given out anew. What people ask for (status, reasons) is put together when they ask. Pure but for the log.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;

use super::endpoints::{self, Here};
use super::object::{EndpointSlice, Key, Kind, Object};
use super::part::{Part, Port, Verdict};
use super::pods::Pods;
use super::problem::{ByObject, Place, Problem};
use super::reason::Reason;
use super::select::{self, LeftAlone};
use super::store::{Changed, Name, Store, Update};
use super::{Service, ServicePortName, Table};
use crate::addr::ServiceAddr;

/// All that is known of Services and Pods.
#[derive(Debug, Default)]
pub struct Catalog {
    here: Here,
    store: Store,
    /// By Service, ordered by their own names.
    slices: HashMap<Name, Vec<Arc<EndpointSlice>>>,
    parts: BTreeMap<Name, Part>,
    /// Whoever would serve an address; the first one does.
    claims: BTreeSet<Claim>,
    table: Table,
    last_id: u32,
    pods: Pods,
    problems: ByObject,
}

/// Address, Service, and index of the port in its [`Part`].
type Claim = (ServiceAddr, Name, usize);

/// A Service port that is new, differs from before, or is gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    pub addr: ServiceAddr,
    /// None: it is gone.
    pub service: Option<Arc<Service>>,
}

/// What comes of updates.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// In order of address, each once.
    pub services: Vec<Change>,
    /// [`Catalog::pods`] may differ.
    pub pods: bool,
}

/// Everything that comes of the objects, for people.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Built {
    pub table: Table,
    /// Service ports that are left to kube-proxy, ordered by name. One without endpoints is in the table too.
    pub left_alone: Vec<LeftAlone>,
    /// Annotations and objects that sluice cannot make sense of, ordered by place.
    pub problems: Vec<Problem>,
}

/// What updates concern.
#[derive(Default)]
struct Marked {
    services: BTreeSet<Name>,
    all_services: bool,
    pods: bool,
}

impl Catalog {
    /// `node`: the name of the node that sluice runs on. Without it no endpoint is known to be near, and Pods of all
    /// nodes are ours.
    pub fn new(node: Option<Arc<str>>) -> Self {
        Self { here: Here { node, zone: None }, ..Self::default() }
    }

    /// The node that sluice runs on.
    pub fn node(&self) -> Option<&Arc<str>> {
        self.here.node.as_ref()
    }

    /// Takes in updates and tells what comes of them together.
    pub fn apply(&mut self, updates: impl IntoIterator<Item = Update>) -> Changes {
        let mut marked = Marked::default();
        for update in updates {
            let update = self.of_this_node(update);
            for changed in self.store.apply(update) {
                self.mark(&changed, &mut marked);
            }
        }
        if marked.pods {
            self.pods = Pods::of(&self.store);
        }
        if marked.all_services {
            marked.services.extend(self.store.services.keys().cloned());
        }
        let addrs = marked.services.iter().flat_map(|name| self.judge(name)).collect();
        let services = self.settle(&addrs);
        self.tell_problems(marked.services, &addrs);
        Changes { services, pods: marked.pods }
    }

    pub fn table(&self) -> &Table {
        &self.table
    }

    pub fn pods(&self) -> &Pods {
        &self.pods
    }

    /// Annotations and objects that sluice cannot make sense of, ordered by place.
    pub fn problems(&self) -> impl Iterator<Item = &Problem> {
        self.problems.list()
    }

    /// The UID of the object of this name, if there is one that has one.
    pub fn uid(&self, key: &Key) -> Option<Arc<str>> {
        self.store.get(key)?.metadata().uid.clone()
    }

    /// A copy for people. The Services and endpoints in it are shared, not copied.
    pub fn built(&self) -> Built {
        let mut left_alone = Vec::new();
        for (service, part) in &self.parts {
            for (index, port) in part.ports.iter().enumerate() {
                left_alone.extend(self.left_alone(service, index, port));
            }
        }
        Built { table: self.table.clone(), left_alone, problems: self.problems.list().cloned().collect() }
    }

    /// Of these addresses those that are endpoints, each with the Services that list it.
    pub fn owners(&self, addrs: &HashSet<SocketAddr>) -> HashMap<SocketAddr, Vec<ServicePortName>> {
        let mut owners: HashMap<SocketAddr, Vec<ServicePortName>> = HashMap::new();
        for ((namespace, service), slices) in &self.slices {
            for slice in slices {
                for (addr, port) in endpoints::addresses(slice).filter(|(addr, _)| addrs.contains(addr)) {
                    let name =
                        ServicePortName { namespace: namespace.clone(), service: service.clone(), port: port.clone() };
                    owners.entry(addr).or_default().push(name);
                }
            }
        }
        owners
    }

    /// Nodes and Pods elsewhere are no business of ours: such an object is as good as gone.
    fn of_this_node(&self, update: Update) -> Update {
        let ours = |object: &Object| match object {
            Object::Node(node) => self.here.node.as_ref() == Some(&node.metadata.name),
            Object::Pod(pod) => {
                self.here.node.is_none() || pod.spec.node_name.is_none() || pod.spec.node_name == self.here.node
            }
            Object::Service(_) | Object::EndpointSlice(_) | Object::Namespace(_) => true,
        };
        match update {
            Update::Apply(object) if !ours(&object) => Update::Delete { key: object.key(), uid: None },
            Update::Reset { kind, mut objects, unreadable } => {
                objects.retain(ours);
                Update::Reset { kind, objects, unreadable }
            }
            Update::Apply(_) | Update::Delete { .. } => update,
        }
    }

    fn mark(&mut self, changed: &Changed, marked: &mut Marked) {
        let Some(object) = changed.new.as_ref().or(changed.old.as_ref()) else { return };
        let key = object.key();
        let mut problems = Vec::new();
        match object {
            Object::Service(_) => {
                // Its problems depend on others' claims too, and are told when those are settled.
                marked.services.insert((key.namespace, key.name));
                return;
            }
            Object::EndpointSlice(_) => {
                for (object, stays) in [(&changed.old, false), (&changed.new, true)] {
                    let Some(Object::EndpointSlice(slice)) = object else { continue };
                    if stays {
                        endpoints::check(slice, &mut problems);
                    }
                    if let Some(service) = &slice.metadata.labels.service_name {
                        let service = (slice.metadata.namespace.clone(), service.clone());
                        self.list_slice(&service, slice, stays);
                        marked.services.insert(service);
                    }
                }
            }
            Object::Namespace(_) => {
                let from = (key.name.clone(), Arc::from(""));
                let services = self.store.services.range(from..).map(|(name, _)| name);
                marked.services.extend(services.take_while(|(namespace, _)| *namespace == key.name).cloned());
            }
            Object::Pod(_) => marked.pods = true,
            Object::Node(_) => {
                let node = self.store.nodes.values().next();
                self.here.zone = node.and_then(|it| it.metadata.labels.zone.clone()).filter(|zone| !zone.is_empty());
                marked.all_services = true;
            }
        }
        if let Some(new) = &changed.new {
            select::check(new, &mut problems);
        }
        self.problems.replace(key, problems);
    }

    fn list_slice(&mut self, service: &Name, slice: &Arc<EndpointSlice>, stays: bool) {
        let slices = self.slices.entry(service.clone()).or_default();
        let at = slices.binary_search_by(|it| it.metadata.name.cmp(&slice.metadata.name));
        match (at, stays) {
            (Ok(at), true) => slices[at] = slice.clone(),
            (Err(at), true) => slices.insert(at, slice.clone()),
            (Ok(at), false) => drop(slices.remove(at)),
            (Err(_), false) => {}
        }
        if slices.is_empty() {
            self.slices.remove(service);
        }
    }

    /// Judges a Service anew; the addresses that it claims or claimed.
    fn judge(&mut self, name: &Name) -> Vec<ServiceAddr> {
        let mut addrs = Vec::new();
        let old = self.parts.remove(name);
        for (addr, index) in old.iter().flat_map(Part::claims) {
            self.claims.remove(&(addr, name.clone(), index));
            addrs.push(addr);
        }
        let Some(service) = self.store.services.get(name) else { return addrs };
        let namespace = self.store.namespaces.get(&("".into(), name.0.clone()));
        let word = namespace.and_then(|it| it.metadata.annotations.redirect.as_ref());
        let slices = self.slices.get(name).map_or(&[][..], |it| it);
        let mut part = Part::of(service, word, slices, &self.here);
        part.share(old.as_ref());
        for (addr, index) in part.claims() {
            self.claims.insert((addr, name.clone(), index));
            addrs.push(addr);
        }
        self.parts.insert(name.clone(), part);
        addrs
    }

    /// All claims on an address, in the order of their right to it.
    fn claims_on(&self, addr: ServiceAddr) -> impl Iterator<Item = &Claim> {
        let nobody = (addr, (Arc::from(""), Arc::from("")), 0);
        self.claims.range(nobody..).take_while(move |(claimed, ..)| *claimed == addr)
    }

    fn port(&self, (_, service, index): &Claim) -> Option<&Port> {
        self.parts.get(service)?.ports.get(*index)
    }

    /// Gives these addresses to whom they belong now.
    fn settle(&mut self, addrs: &BTreeSet<ServiceAddr>) -> Vec<Change> {
        let mut changes = Vec::new();
        for &addr in addrs {
            let before = self.table.services.get(&addr);
            let service = match self.claims_on(addr).next().and_then(|claim| self.port(claim)) {
                Some(Port { name, verdict: Verdict::Selected(balancing, chosen), .. }) => {
                    let id = before.map_or(self.last_id + 1, |it| it.id);
                    let (name, endpoints) = (name.clone(), chosen.endpoints.clone());
                    let (balancing, scope, usable) = (*balancing, chosen.scope, chosen.usable);
                    Some(Arc::new(Service { id, addr, name, balancing, endpoints, scope, usable }))
                }
                Some(Port { verdict: Verdict::LeftAlone(_), .. }) | None => None,
            };
            if before == service.as_ref() {
                continue;
            }
            if addrs.len() <= MANY {
                log_change(before, service.as_ref());
            }
            match &service {
                Some(service) => {
                    self.last_id = self.last_id.max(service.id);
                    self.table.services.insert(addr, service.clone());
                }
                None => drop(self.table.services.remove(&addr)),
            }
            changes.push(Change { addr, service });
        }
        if addrs.len() > MANY && !changes.is_empty() {
            tracing::info!(changed = changes.len(), services = self.table.services.len(), "Services have changed");
        }
        changes
    }

    /// The problems of the Services that were judged, and of those that share an address with them.
    fn tell_problems(&mut self, judged: BTreeSet<Name>, addrs: &BTreeSet<ServiceAddr>) {
        let mut services = judged;
        for (_, service, _) in addrs.iter().flat_map(|addr| self.claims_on(*addr)) {
            if !services.contains(service) {
                services.insert(service.clone());
            }
        }
        for service in services {
            let mut problems = Vec::new();
            let key = Key { kind: Kind::Service, namespace: service.0.clone(), name: service.1.clone() };
            if let Some(part) = self.parts.get(&service) {
                problems.extend(part.problems.iter().cloned());
                for (index, port) in part.ports.iter().enumerate() {
                    if let Some(LeftAlone { name, addr: Some(addr), reason: Reason::AddressTaken(by) }) =
                        self.left_alone(&service, index, port)
                    {
                        problems.push(Problem {
                            place: Place::Object(key.clone()),
                            field: "spec.clusterIPs".to_owned(),
                            message: format!(
                                "{name} and {by} are both at {addr}; {by} is served, being the first by name"
                            ),
                            cure: "give one of the two another ClusterIP or port".to_owned(),
                        });
                    }
                }
            }
            self.problems.replace(key, problems);
        }
    }

    fn left_alone(&self, service: &Name, index: usize, port: &Port) -> Option<LeftAlone> {
        let reason = match (&port.verdict, port.addr) {
            (Verdict::LeftAlone(reason), _) => Some(reason.clone()),
            (Verdict::Selected(_, chosen), Some(addr)) => {
                let first = self.claims_on(addr).next();
                match first.filter(|(_, by, of)| (by, *of) != (service, index)).and_then(|it| self.port(it)) {
                    Some(other) => Some(Reason::AddressTaken(other.name.clone())),
                    None => chosen.without_endpoints(),
                }
            }
            (Verdict::Selected(..), None) => None,
        }?;
        Some(LeftAlone { name: port.name.clone(), addr: port.addr, reason })
    }
}

/// Changes of more addresses than this at once (a start, a re-list) are told by their number.
const MANY: usize = 32;

fn log_change(before: Option<&Arc<Service>>, now: Option<&Arc<Service>>) {
    match (before, now) {
        (Some(before), None) => {
            let Service { name, addr, .. } = &**before;
            tracing::info!(service = %name, %addr, "Service is no longer redirected");
        }
        (before, Some(now)) if before.is_none_or(|it| it.endpoints != now.endpoints || it.scope != now.scope) => {
            let Service { name, addr, usable, .. } = &**now;
            let (endpoints, scope) = (now.endpoints.len(), now.scope.name());
            tracing::info!(service = %name, %addr, endpoints, usable, scope, "endpoints have changed");
        }
        (_, Some(_)) | (None, None) => {}
    }
}
