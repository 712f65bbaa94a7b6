//! The objects as last heard of, whoever told: a folder or the API server. In: updates. Out: the objects by kind and
//! name, in order. Pure; it neither watches nor judges.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use super::object::{EndpointSlice, Key, Kind, Namespace, Node, Object, Pod, Service};

/// What a source tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Update {
    /// The object is new or has changed.
    Apply(Object),
    /// The object is gone. With a UID: only if it is still that one.
    Delete { key: Key, uid: Option<Arc<str>> },
    /// These are all objects of the kind, whatever was there before: a re-list after a gap. Those that are there but
    /// cannot be read as they are now stay as they were.
    Reset { kind: Kind, objects: Vec<Object>, unreadable: Vec<Key> },
}

/// An object that differs from before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Changed {
    /// None: it is new.
    pub(super) old: Option<Object>,
    /// None: it is gone.
    pub(super) new: Option<Object>,
}

/// Namespace and name, or an empty namespace and the name.
pub(super) type Name = (Arc<str>, Arc<str>);

/// All objects that the table is built from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Store {
    pub(super) services: BTreeMap<Name, Arc<Service>>,
    pub(super) slices: BTreeMap<Name, Arc<EndpointSlice>>,
    pub(super) pods: BTreeMap<Name, Arc<Pod>>,
    pub(super) namespaces: BTreeMap<Name, Arc<Namespace>>,
    pub(super) nodes: BTreeMap<Name, Arc<Node>>,
}

impl Store {
    /// Takes in one update and tells what differs from before.
    pub(super) fn apply(&mut self, update: Update) -> Vec<Changed> {
        match update {
            Update::Apply(object) => self.put(object).into_iter().collect(),
            Update::Delete { key, uid } => {
                let ours = self.get(&key).and_then(|it| it.metadata().uid.clone());
                if uid.is_some() && ours.is_some() && uid != ours {
                    return Vec::new();
                }
                self.remove(&key).into_iter().collect()
            }
            Update::Reset { kind, objects, unreadable } => {
                let keep: HashSet<Key> = objects.iter().map(Object::key).chain(unreadable).collect();
                let gone = self.keys(kind).into_iter().filter(|key| !keep.contains(key));
                let mut changed: Vec<Changed> = gone.filter_map(|key| self.remove(&key)).collect();
                changed.extend(objects.into_iter().filter_map(|object| self.put(object)));
                changed
            }
        }
    }

    /// The object of this kind and name.
    pub(super) fn get(&self, key: &Key) -> Option<Object> {
        let name = (key.namespace.clone(), key.name.clone());
        match key.kind {
            Kind::Service => self.services.get(&name).cloned().map(Object::Service),
            Kind::EndpointSlice => self.slices.get(&name).cloned().map(Object::EndpointSlice),
            Kind::Pod => self.pods.get(&name).cloned().map(Object::Pod),
            Kind::Namespace => self.namespaces.get(&name).cloned().map(Object::Namespace),
            Kind::Node => self.nodes.get(&name).cloned().map(Object::Node),
        }
    }

    /// None: it is as it was.
    fn put(&mut self, new: Object) -> Option<Changed> {
        let key = new.key();
        let old = self.get(&key);
        if old.as_ref() == Some(&new) {
            return None;
        }
        let name = (key.namespace, key.name);
        match new.clone() {
            Object::Service(it) => drop(self.services.insert(name, it)),
            Object::EndpointSlice(it) => drop(self.slices.insert(name, it)),
            Object::Pod(it) => drop(self.pods.insert(name, it)),
            Object::Namespace(it) => drop(self.namespaces.insert(name, it)),
            Object::Node(it) => drop(self.nodes.insert(name, it)),
        }
        Some(Changed { old, new: Some(new) })
    }

    fn remove(&mut self, key: &Key) -> Option<Changed> {
        let name = (key.namespace.clone(), key.name.clone());
        let old = match key.kind {
            Kind::Service => self.services.remove(&name).map(Object::Service),
            Kind::EndpointSlice => self.slices.remove(&name).map(Object::EndpointSlice),
            Kind::Pod => self.pods.remove(&name).map(Object::Pod),
            Kind::Namespace => self.namespaces.remove(&name).map(Object::Namespace),
            Kind::Node => self.nodes.remove(&name).map(Object::Node),
        };
        old.map(|old| Changed { old: Some(old), new: None })
    }

    fn keys(&self, kind: Kind) -> Vec<Key> {
        let key = |(namespace, name): &Name| Key { kind, namespace: namespace.clone(), name: name.clone() };
        match kind {
            Kind::Service => self.services.keys().map(key).collect(),
            Kind::EndpointSlice => self.slices.keys().map(key).collect(),
            Kind::Pod => self.pods.keys().map(key).collect(),
            Kind::Namespace => self.namespaces.keys().map(key).collect(),
            Kind::Node => self.nodes.keys().map(key).collect(),
        }
    }
}
