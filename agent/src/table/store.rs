//! The objects as last heard of, whoever told: a folder or the API server. In: updates. Out: the objects by kind and
//! name, in order. Pure; it neither watches nor judges.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use super::object::{EndpointSlice, Key, Kind, Namespace, Object, Pod, Service};

/// What a source tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Update {
    /// The object is new or has changed.
    Apply(Object),
    /// The object is gone. With a UID: only if it is still that one.
    Delete { key: Key, uid: Option<Arc<str>> },
    /// These are all objects of the kind, whatever was there before: a re-list after a gap.
    Reset { kind: Kind, objects: Vec<Object> },
}

/// Namespace and name, or an empty namespace and the name.
pub type Name = (Arc<str>, Arc<str>);

/// All objects that the table is built from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Store {
    pub services: BTreeMap<Name, Arc<Service>>,
    pub slices: BTreeMap<Name, Arc<EndpointSlice>>,
    pub pods: BTreeMap<Name, Arc<Pod>>,
    pub namespaces: BTreeMap<Name, Arc<Namespace>>,
}

impl Store {
    /// Takes in one update and tells whether anything differs from before.
    pub fn apply(&mut self, update: Update) -> bool {
        match update {
            Update::Apply(object) => self.put(object),
            Update::Delete { key, uid } => {
                let ours = self.uid(&key);
                if uid.is_some() && ours.is_some() && uid != ours {
                    return false;
                }
                self.remove(&key)
            }
            Update::Reset { kind, objects } => {
                let keep: HashSet<Key> = objects.iter().map(Object::key).collect();
                let mut changed = false;
                for key in self.keys(kind).into_iter().filter(|key| !keep.contains(key)) {
                    changed |= self.remove(&key);
                }
                for object in objects {
                    changed |= self.put(object);
                }
                changed
            }
        }
    }

    fn put(&mut self, object: Object) -> bool {
        fn insert<T: PartialEq>(map: &mut BTreeMap<Name, Arc<T>>, name: Name, new: Arc<T>) -> bool {
            let changed = map.get(&name).is_none_or(|old| *old != new);
            map.insert(name, new);
            changed
        }
        let key = object.key();
        let name = (key.namespace, key.name);
        match object {
            Object::Service(it) => insert(&mut self.services, name, it),
            Object::EndpointSlice(it) => insert(&mut self.slices, name, it),
            Object::Pod(it) => insert(&mut self.pods, name, it),
            Object::Namespace(it) => insert(&mut self.namespaces, name, it),
        }
    }

    fn remove(&mut self, key: &Key) -> bool {
        let name = (key.namespace.clone(), key.name.clone());
        match key.kind {
            Kind::Service => self.services.remove(&name).is_some(),
            Kind::EndpointSlice => self.slices.remove(&name).is_some(),
            Kind::Pod => self.pods.remove(&name).is_some(),
            Kind::Namespace => self.namespaces.remove(&name).is_some(),
        }
    }

    fn uid(&self, key: &Key) -> Option<Arc<str>> {
        let name = (key.namespace.clone(), key.name.clone());
        match key.kind {
            Kind::Service => self.services.get(&name).and_then(|it| it.metadata.uid.clone()),
            Kind::EndpointSlice => self.slices.get(&name).and_then(|it| it.metadata.uid.clone()),
            Kind::Pod => self.pods.get(&name).and_then(|it| it.metadata.uid.clone()),
            Kind::Namespace => self.namespaces.get(&name).and_then(|it| it.metadata.uid.clone()),
        }
    }

    fn keys(&self, kind: Kind) -> Vec<Key> {
        let key = |(namespace, name): &Name| Key { kind, namespace: namespace.clone(), name: name.clone() };
        match kind {
            Kind::Service => self.services.keys().map(key).collect(),
            Kind::EndpointSlice => self.slices.keys().map(key).collect(),
            Kind::Pod => self.pods.keys().map(key).collect(),
            Kind::Namespace => self.namespaces.keys().map(key).collect(),
        }
    }
}
