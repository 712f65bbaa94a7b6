//! What the source has told and what comes of it. In: updates; out: the table with all that belongs to it, and the names
//! of pods. Tells nobody.

use std::collections::HashMap;
use std::sync::Arc;

use crate::pods::PodUid;
use crate::table::{Built, Ids, Problems, Store, Update, build};

#[derive(Default)]
pub(super) struct Catalog {
    store: Store,
    ids: Ids,
    pub(super) built: Arc<Built>,
    /// By UID: `namespace/name`.
    pod_names: HashMap<Arc<str>, Arc<str>>,
    /// Those of `built`: logged when they come and go.
    problems: Problems,
}

impl Catalog {
    /// Takes updates in and tells whether something comes of them.
    pub(super) fn apply(&mut self, updates: Vec<Update>) -> bool {
        let mut changed = false;
        for update in updates {
            changed |= self.store.apply(update);
        }
        if changed {
            self.built = Arc::new(build(&self.store, &mut self.ids));
            self.problems.replace(self.built.problems.clone());
            let pods = self.store.pods.iter();
            let named = pods.filter_map(|((namespace, name), pod)| {
                Some((pod.metadata.uid.clone()?, format!("{namespace}/{name}").into()))
            });
            self.pod_names = named.collect();
            tracing::debug!(services = self.built.table.services.len(), "the source has changed");
        }
        changed
    }

    /// `namespace/name`, or the UID of a pod that the source does not know.
    pub(super) fn pod_name(&self, uid: &PodUid) -> Arc<str> {
        self.pod_names.get(uid.as_str()).cloned().unwrap_or_else(|| uid.as_str().into())
    }
}
