//! What the source has told and what comes of it. In: updates; out: the Service ports that differ, and the names of
//! pods. Tells nobody.

use std::sync::Arc;

use crate::pods::PodUid;
use crate::table::{Built, Changes, Pods, Table, Update};

pub(super) struct Catalog(crate::table::Catalog);

impl Catalog {
    /// `node`: the name of the Node that the agent runs on.
    pub(super) fn new(node: Option<Arc<str>>) -> Self {
        Self(crate::table::Catalog::new(node))
    }

    /// Takes updates in and tells what comes of them.
    pub(super) fn apply(&mut self, updates: Vec<Update>) -> Changes {
        let updates_taken = updates.len();
        let changes = self.0.apply(updates);
        tracing::debug!(updates = updates_taken, services_changed = changes.services.len(), "the source has changed");
        changes
    }

    pub(super) fn table(&self) -> &Table {
        self.0.table()
    }

    pub(super) fn pods(&self) -> &Pods {
        self.0.pods()
    }

    /// For the admin pages: put together when they ask.
    pub(super) fn built(&self) -> Built {
        self.0.built()
    }

    /// `namespace/name`, or the UID of a pod that the source does not know.
    pub(super) fn pod_name(&self, uid: &PodUid) -> Arc<str> {
        self.pods().name(uid.as_str()).cloned().unwrap_or_else(|| uid.as_str().into())
    }
}
