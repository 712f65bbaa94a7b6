//! What is known of Pods by their UIDs, by which the cgroup tree knows them too. In: the store. Out: names, and who is
//! to be treated otherwise. Made anew as a whole: a node has some hundred Pods.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::select;
use super::store::Store;

/// The Pods of this node; of all nodes where the own one is not known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pods {
    names: HashMap<Arc<str>, Arc<str>>,
    /// UIDs of the Pods whose own connections are left alone.
    pub opted_out: HashSet<Arc<str>>,
    /// UIDs of the Pods that run in the node's own network namespace.
    pub host_network: HashSet<Arc<str>>,
}

impl Pods {
    pub(super) fn of(store: &Store) -> Self {
        let mut pods = Self::default();
        for ((namespace, name), pod) in &store.pods {
            let Some(uid) = &pod.metadata.uid else { continue };
            pods.names.insert(uid.clone(), format!("{namespace}/{name}").into());
            // One that has finished connects to nothing.
            if pod.status.finished {
                continue;
            }
            pods.opted_out.extend(select::opts_out(pod).then(|| uid.clone()));
            pods.host_network.extend(pod.spec.host_network.then(|| uid.clone()));
        }
        pods
    }

    /// `namespace/name`, by UID.
    pub fn names(&self) -> &HashMap<Arc<str>, Arc<str>> {
        &self.names
    }

    /// `namespace/name`.
    pub fn name(&self, uid: &str) -> Option<&Arc<str>> {
        self.names.get(uid)
    }
}
