//! The enrolled pods as workers and kernel know them. In: pods found and lost, and who opted out; out: which worker takes
//! a pod, and the kernel's entries. Pure: it tells neither.

use std::collections::{BTreeMap, HashSet};
use std::num::NonZeroU16;
use std::sync::Arc;

use super::{FoundPod, PodUid};
use crate::addr::NetnsCookie;
use crate::intercept::PodEntry;

/// One network namespace of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Enrolled {
    pub uid: PodUid,
    /// As the kernel's PODS map holds it.
    pub entry: PodEntry,
}

/// All namespaces that are enrolled.
#[derive(Debug)]
pub struct EnrolledPods {
    workers: u32,
    pods: BTreeMap<NetnsCookie, Enrolled>,
    opted_out: HashSet<Arc<str>>,
}

impl EnrolledPods {
    /// For that many workers, at least one.
    pub fn new(workers: u32) -> Self {
        Self { workers, pods: BTreeMap::new(), opted_out: HashSet::new() }
    }

    /// The entry for a pod that was found: the worker with the fewest pods takes it.
    pub fn entry(&self, found: &FoundPod) -> PodEntry {
        let port = |listener: &std::net::TcpListener| {
            listener.local_addr().ok().and_then(|address| NonZeroU16::new(address.port()))
        };
        PodEntry {
            port4: port(&found.listener4),
            port6: found.listener6.as_ref().and_then(port),
            worker: self.idlest_worker(),
            opted_out: self.is_opted_out(&found.uid),
        }
    }

    pub fn insert(&mut self, cookie: NetnsCookie, uid: PodUid, entry: PodEntry) {
        self.pods.insert(cookie, Enrolled { uid, entry });
    }

    pub fn remove(&mut self, cookie: NetnsCookie) -> Option<Enrolled> {
        self.pods.remove(&cookie)
    }

    /// These are all UIDs that opted out. Returns the entries that change by it.
    pub fn opt_out(&mut self, uids: &HashSet<Arc<str>>) -> Vec<(NetnsCookie, PodEntry)> {
        self.opted_out.clone_from(uids);
        let mut changed = Vec::new();
        for (cookie, pod) in &mut self.pods {
            let opted_out = uids.contains(pod.uid.as_str());
            if pod.entry.opted_out != opted_out {
                pod.entry.opted_out = opted_out;
                changed.push((*cookie, pod.entry));
            }
        }
        changed
    }

    pub fn iter(&self) -> impl Iterator<Item = (NetnsCookie, &Enrolled)> {
        self.pods.iter().map(|(cookie, pod)| (*cookie, pod))
    }

    pub fn len(&self) -> usize {
        self.pods.len()
    }

    pub fn is_empty(&self) -> bool {
        self.pods.is_empty()
    }

    fn is_opted_out(&self, uid: &PodUid) -> bool {
        self.opted_out.contains(uid.as_str())
    }

    fn idlest_worker(&self) -> u32 {
        let pods = |worker: &u32| self.pods.values().filter(|pod| pod.entry.worker == *worker).count();
        (0..self.workers).min_by_key(pods).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::net::{Ipv4Addr, Ipv6Addr, TcpListener};

    fn found(uid: &str, cookie: u64) -> FoundPod {
        FoundPod {
            uid: PodUid::new(uid),
            cookie: NetnsCookie(cookie),
            netns: File::open("/proc/self/ns/net").unwrap(),
            listener4: TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap(),
            listener6: TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).ok(),
        }
    }

    fn enrol(pods: &mut EnrolledPods, uid: &str, cookie: u64) -> PodEntry {
        let found = found(uid, cookie);
        let entry = pods.entry(&found);
        pods.insert(found.cookie, found.uid, entry);
        entry
    }

    #[test]
    fn the_entry_names_the_listeners_ports() {
        let pods = EnrolledPods::new(1);
        let mut found = found("a", 1);
        let entry = pods.entry(&found);
        assert_eq!(entry.port4.unwrap().get(), found.listener4.local_addr().unwrap().port());
        assert_eq!(entry.port6.is_some(), found.listener6.is_some());
        found.listener6 = None;
        assert_eq!(pods.entry(&found).port6, None);
    }

    #[test]
    fn the_worker_with_the_fewest_pods_takes_the_next() {
        let mut pods = EnrolledPods::new(3);
        let workers: Vec<_> = (0..6).map(|n| enrol(&mut pods, &n.to_string(), n).worker).collect();
        assert_eq!(workers, [0, 1, 2, 0, 1, 2]);
        pods.remove(NetnsCookie(1));
        pods.remove(NetnsCookie(4));
        assert_eq!(enrol(&mut pods, "x", 7).worker, 1);
        assert_eq!(enrol(&mut pods, "y", 8).worker, 1);
        assert_eq!(enrol(&mut pods, "z", 9).worker, 0);
    }

    #[test]
    fn an_opt_out_flips_the_pods_entries_and_back_and_holds_for_those_to_come() {
        let mut pods = EnrolledPods::new(1);
        enrol(&mut pods, "a", 1);
        enrol(&mut pods, "b", 2);
        enrol(&mut pods, "a", 3);
        let out = HashSet::from(["a".into(), "later".into()]);
        let flipped = pods.opt_out(&out);
        assert_eq!(flipped.iter().map(|(cookie, _)| cookie.0).collect::<Vec<_>>(), [1, 3]);
        assert!(flipped.iter().all(|(_, entry)| entry.opted_out));
        assert_eq!(pods.opt_out(&out), []);
        assert!(enrol(&mut pods, "later", 4).opted_out);

        let back = pods.opt_out(&HashSet::new());
        assert_eq!(back.iter().map(|(cookie, _)| cookie.0).collect::<Vec<_>>(), [1, 3, 4]);
        assert!(back.iter().all(|(_, entry)| !entry.opted_out));
    }
}
