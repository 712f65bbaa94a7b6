//! Enrols pods with workers and kernel. In: namespaces found and lost, and who opted out; out: a worker that listens
//! before the kernel sends it anything, and a kernel that sends nothing before the worker lets go.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use crate::addr::NetnsCookie;
use crate::admin::PodLine;
use crate::intercept::{PodEntry, PodMap};
use crate::pods::{EnrolledPods, FoundPod, PodUid};
use crate::table::Pods;
use crate::worker::{Command, Pod, WorkerHandle};

pub(super) struct Enrolment {
    map: PodMap,
    workers: Vec<WorkerHandle>,
    pub(super) pods: EnrolledPods,
    /// UIDs of the pods of the node's own network. Not served: what comes and goes of them is a namespace for a moment, which
    /// their runtime makes on the way.
    host_network: HashSet<Arc<str>>,
    /// Enrolled before the source knew them: their workers know them by UID.
    nameless: HashMap<NetnsCookie, (PodUid, WorkerHandle)>,
}

impl Enrolment {
    pub(super) fn new(map: PodMap, workers: Vec<WorkerHandle>) -> Self {
        let count = u32::try_from(workers.len()).expect("at most 256 workers");
        Self { map, workers, pods: EnrolledPods::new(count), host_network: HashSet::new(), nameless: HashMap::new() }
    }

    /// Gives the pod to a worker, and tells the kernel when the worker serves it. A pod that cannot be enrolled is left
    /// to kube-proxy.
    #[tracing::instrument(name = "enrol", level = "debug", skip_all, fields(pod = %name))]
    pub(super) async fn add(&mut self, found: FoundPod, name: Arc<str>) {
        let (entry, cookie, uid) = (self.pods.entry(&found), found.cookie, found.uid.clone());
        let worker = self.workers[entry.worker as usize].clone();
        let pod = Pod {
            cookie,
            netns: found.netns.into(),
            listener4: Some(found.listener4),
            listener6: found.listener6,
            name: name.clone(),
        };
        if worker.add_pod(pod).await.is_err() {
            let worker = entry.worker;
            tracing::warn!(pod = %name, worker, "the worker did not take the pod; its connections are left alone");
            return;
        }
        if let Err(error) = self.map.insert(cookie, entry) {
            tracing::warn!(pod = %name, "the pod's connections are left alone: {error:#}");
            _ = worker.remove_pod(cookie).await;
            return;
        }
        let hosts = self.host_network.contains(uid.as_str());
        if *name == *uid.as_str() {
            self.nameless.insert(cookie, (uid.clone(), worker));
        }
        self.pods.insert(cookie, uid, entry);
        let PodEntry { worker, opted_out, .. } = entry;
        if hosts {
            tracing::debug!(pod = %name, netns = cookie.0, "a pod of the node's own network, left alone");
            return;
        }
        tracing::info!(pod = %name, netns = cookie.0, worker, opted_out, "pod enrolled");
    }

    /// Takes the namespace from the kernel first, from its worker then. Afterwards nothing here keeps it alive.
    pub(super) async fn remove(&mut self, cookie: NetnsCookie) {
        let Some(pod) = self.pods.remove(cookie) else { return };
        self.nameless.remove(&cookie);
        if let Err(error) = self.map.remove(cookie) {
            // No process is left in there that could connect, and a cookie is never used again.
            tracing::warn!(uid = %pod.uid, "{error:#}");
        }
        _ = self.workers[pod.entry.worker as usize].remove_pod(cookie).await;
        if !self.host_network.contains(pod.uid.as_str()) {
            tracing::info!(uid = %pod.uid, netns = cookie.0, "pod removed");
        }
    }

    /// Heeds what is known of pods now.
    pub(super) fn learn(&mut self, pods: &Pods) {
        self.name_those_without(pods);
        self.leave_alone(pods);
    }

    fn name_those_without(&mut self, pods: &Pods) {
        self.nameless.retain(|cookie, (uid, worker)| {
            let name = pods.name(uid.as_str());
            name.inspect(|name| worker.send(Command::RenamePod(*cookie, Arc::clone(name)))).is_none()
        });
    }

    /// Pods that opted out, and those in the node's own network namespace, are left alone from now on; all others not.
    fn leave_alone(&mut self, pods: &Pods) {
        let uids: HashSet<Arc<str>> = pods.opted_out.union(&pods.host_network).cloned().collect();
        self.host_network.clone_from(&pods.host_network);
        for (cookie, entry) in self.pods.opt_out(&uids) {
            self.change(cookie, entry);
        }
    }

    fn change(&mut self, cookie: NetnsCookie, entry: PodEntry) {
        match self.map.insert(cookie, entry) {
            Ok(()) => tracing::info!(netns = cookie.0, opted_out = entry.opted_out, "a pod's annotation has changed"),
            Err(error) => tracing::warn!(netns = cookie.0, "a pod's changed annotation is not heeded: {error:#}"),
        }
    }

    pub(super) fn lines(&self, pods: &Pods) -> Vec<PodLine> {
        let line = |(cookie, pod): (NetnsCookie, &crate::pods::Enrolled)| PodLine {
            cookie,
            uid: pod.uid.clone(),
            name: name(pods, &pod.uid),
            entry: pod.entry,
        };
        self.pods.iter().map(line).collect()
    }
}

/// `namespace/name`, or the UID of a pod that the source does not know.
pub(super) fn name(pods: &Pods, uid: &PodUid) -> Arc<str> {
    pods.name(uid.as_str()).cloned().unwrap_or_else(|| uid.as_str().into())
}
