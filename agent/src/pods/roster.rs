//! Which namespaces are enrolled, which are to be, and when to look again. In: what a look into a pod's groups saw, and
//! `now`; out: what to enrol and to remove, and the next look. Pure: it opens nothing.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::{Duration, Instant};

use super::layout::PodUid;
use crate::addr::NetnsCookie;

/// After each sign of life a pod is looked at until it is settled, at most this often: a runtime puts a process into
/// its group first and into its namespace some milliseconds later, and nothing announces the second step. A pod of the
/// host's network never settles, so the looks end.
const LOOKS: [Duration; 12] = [
    Duration::from_millis(1),
    Duration::from_millis(2),
    Duration::from_millis(5),
    Duration::from_millis(10),
    Duration::from_millis(20),
    Duration::from_millis(50),
    Duration::from_millis(100),
    Duration::from_millis(200),
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(4),
];

/// After so many of [`LOOKS`], two seconds, a pod that cannot be enrolled is worth a word.
const TELL_AFTER: usize = 10;

/// Namespaces of one pod that are enrolled at most: a pod has one, two while its sandbox is made anew, more only if it
/// runs containers inside itself. It must not be able to fill the map for all others.
const NAMESPACES_PER_POD: usize = 8;

/// A namespace by the inode of its nsfs file. Unique only while something holds the namespace, as an enrolment does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct NetnsInode(pub(super) u64);

/// What a look into a pod's groups saw.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// Namespaces with a living process of the pod, the host's and the agent's left out.
    pub(super) namespaces: BTreeSet<NetnsInode>,
    /// A process was still (or is for ever) in the host's namespace, or could not be read.
    pub(super) unsettled: bool,
}

/// What to do about one pod.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    pub(super) enrol: Vec<NetnsInode>,
    pub(super) remove: Vec<NetnsCookie>,
}

#[derive(Default)]
struct Pod {
    enrolled: BTreeMap<NetnsInode, NetnsCookie>,
    /// How many of [`LOOKS`] were spent, and when the next one is due.
    looks: usize,
    next: Option<Instant>,
    /// That it cannot be enrolled was said.
    told: bool,
}

/// All pods of the node that the cgroup tree shows.
#[derive(Default)]
pub(super) struct Roster {
    pods: HashMap<PodUid, Pod>,
}

impl Roster {
    /// Something happened in the pod: it is to be looked at now, and the back-off begins anew.
    pub(super) fn stirred(&mut self, now: Instant, uid: &PodUid) {
        let pod = self.pods.entry(uid.clone()).or_default();
        (pod.looks, pod.next) = (0, Some(now));
    }

    /// The pods whose look is due, each once.
    pub(super) fn due(&mut self, now: Instant) -> Vec<PodUid> {
        let due = self.pods.iter_mut().filter(|(_, pod)| pod.next.is_some_and(|next| next <= now));
        due.map(|(uid, pod)| {
            pod.next = None;
            uid.clone()
        })
        .collect()
    }

    /// When the next look is due.
    pub(super) fn next_look(&self) -> Option<Instant> {
        self.pods.values().filter_map(|pod| pod.next).min()
    }

    /// Compares what was seen with what is enrolled, and plans the next look.
    pub(super) fn observe(&mut self, now: Instant, uid: &PodUid, seen: &Seen) -> Plan {
        let taken =
            |inode: &NetnsInode| self.pods.iter().any(|(other, pod)| other != uid && pod.enrolled.contains_key(inode));
        let fresh: Vec<_> = seen.namespaces.iter().copied().filter(|inode| !taken(inode)).collect();
        let shared = fresh.len() != seen.namespaces.len();
        let Some(pod) = self.pods.get_mut(uid) else { return Plan::default() };

        let gone = pod.enrolled.extract_if(.., |inode, _| !seen.namespaces.contains(inode));
        let remove: Vec<_> = gone.map(|(_, cookie)| cookie).collect();
        let room = NAMESPACES_PER_POD - pod.enrolled.len();
        let enrol = fresh.into_iter().filter(|inode| !pod.enrolled.contains_key(inode)).take(room).collect();
        if seen.unsettled || shared {
            pod.look_later(now);
        }
        Plan { enrol, remove }
    }

    /// A planned enrolment was done.
    pub(super) fn enrolled(&mut self, uid: &PodUid, inode: NetnsInode, cookie: NetnsCookie) {
        let pod = self.pods.entry(uid.clone()).or_default();
        pod.enrolled.insert(inode, cookie);
        pod.told = false;
    }

    /// A planned enrolment failed: look later, with what is left of the back-off. True once, when that has gone on for so
    /// long that somebody is to know.
    pub(super) fn failed(&mut self, now: Instant, uid: &PodUid) -> bool {
        let Some(pod) = self.pods.get_mut(uid) else { return false };
        pod.look_later(now);
        pod.looks >= TELL_AFTER && !std::mem::replace(&mut pod.told, true)
    }

    /// The pod's group is gone: what was enrolled of it is to be removed.
    pub(super) fn gone(&mut self, uid: &PodUid) -> Vec<NetnsCookie> {
        self.pods.remove(uid).map(|pod| pod.enrolled.into_values().collect()).unwrap_or_default()
    }

    pub(super) fn is_enrolled(&self, cookie: NetnsCookie) -> bool {
        self.pods.values().any(|pod| pod.enrolled.values().any(|enrolled| *enrolled == cookie))
    }
}

impl Pod {
    fn look_later(&mut self, now: Instant) {
        if let Some(pause) = LOOKS.get(self.looks) {
            self.looks += 1;
            self.next = Some(now + *pause);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: NetnsInode = NetnsInode(100);
    const B: NetnsInode = NetnsInode(200);

    fn seen(namespaces: &[NetnsInode], unsettled: bool) -> Seen {
        Seen { namespaces: namespaces.iter().copied().collect(), unsettled }
    }

    fn stirred_pod(now: Instant) -> (Roster, PodUid) {
        let (mut roster, uid) = (Roster::default(), PodUid::new("a"));
        roster.stirred(now, &uid);
        assert_eq!(roster.due(now), std::slice::from_ref(&uid));
        (roster, uid)
    }

    #[test]
    fn a_new_namespace_is_enrolled_once() {
        let now = Instant::now();
        let (mut roster, uid) = stirred_pod(now);
        assert_eq!(roster.observe(now, &uid, &seen(&[A], false)), Plan { enrol: vec![A], remove: vec![] });
        roster.enrolled(&uid, A, NetnsCookie(1));
        assert_eq!(roster.observe(now, &uid, &seen(&[A], false)), Plan::default());
        assert_eq!(roster.next_look(), None);
        assert!(roster.is_enrolled(NetnsCookie(1)));
    }

    #[test]
    fn a_remade_sandbox_replaces_the_old_one_when_nobody_lives_there() {
        let now = Instant::now();
        let (mut roster, uid) = stirred_pod(now);
        roster.enrolled(&uid, A, NetnsCookie(1));
        assert_eq!(roster.observe(now, &uid, &seen(&[A, B], false)), Plan { enrol: vec![B], remove: vec![] });
        roster.enrolled(&uid, B, NetnsCookie(2));
        assert_eq!(roster.observe(now, &uid, &seen(&[B], false)), Plan { enrol: vec![], remove: vec![NetnsCookie(1)] });
        assert_eq!(roster.gone(&uid), [NetnsCookie(2)]);
        assert_eq!(roster.gone(&uid), []);
    }

    #[test]
    fn a_process_that_is_not_in_its_namespace_yet_is_looked_at_again_with_growing_pauses_that_end() {
        let mut now = Instant::now();
        let (mut roster, uid) = stirred_pod(now);
        let began = now;
        let mut pauses = Vec::new();
        loop {
            assert_eq!(roster.observe(now, &uid, &seen(&[], true)), Plan::default());
            let Some(next) = roster.next_look() else { break };
            pauses.push(next - now);
            assert_eq!(roster.due(next - Duration::from_micros(1)), []);
            now = next;
            assert_eq!(roster.due(now), std::slice::from_ref(&uid));
        }
        assert_eq!(pauses, LOOKS);
        assert!(now - began > Duration::from_secs(5));

        roster.stirred(now, &uid);
        assert_eq!(roster.due(now).len(), 1);
        assert_eq!(roster.observe(now, &uid, &seen(&[A], false)).enrol, [A]);
    }

    #[test]
    fn a_failed_enrolment_is_tried_again() {
        let now = Instant::now();
        let (mut roster, uid) = stirred_pod(now);
        assert_eq!(roster.observe(now, &uid, &seen(&[A], false)).enrol, [A]);
        assert!(!roster.failed(now, &uid));
        assert_eq!(roster.next_look(), Some(now + LOOKS[0]));
    }

    #[test]
    fn a_pod_that_cannot_be_enrolled_is_told_of_once_and_again_after_it_was_enrolled() {
        let now = Instant::now();
        let (mut roster, uid) = stirred_pod(now);
        let tries = |roster: &mut Roster| {
            roster.stirred(now, &uid);
            (1..=20).filter(|_| roster.failed(now, &uid)).count()
        };
        assert_eq!([tries(&mut roster), tries(&mut roster)], [1, 0]);
        roster.enrolled(&uid, A, NetnsCookie(1));
        assert_eq!(tries(&mut roster), 1);
    }

    #[test]
    fn a_namespace_belongs_to_one_pod_and_passes_on_when_that_pod_goes() {
        let now = Instant::now();
        let (mut roster, first) = stirred_pod(now);
        roster.enrolled(&first, A, NetnsCookie(1));
        let second = PodUid::new("b");
        roster.stirred(now, &second);
        roster.due(now);
        assert_eq!(roster.observe(now, &second, &seen(&[A], false)), Plan::default());
        assert!(roster.next_look().is_some());
        roster.gone(&first);
        assert_eq!(roster.observe(now, &second, &seen(&[A], false)).enrol, [A]);
    }

    #[test]
    fn one_pod_does_not_fill_the_map() {
        let now = Instant::now();
        let (mut roster, uid) = stirred_pod(now);
        let many: Vec<_> = (0..100).map(NetnsInode).collect();
        let plan = roster.observe(now, &uid, &seen(&many, false));
        assert_eq!(plan.enrol.len(), NAMESPACES_PER_POD);
        for (cookie, inode) in (0..).zip(plan.enrol) {
            roster.enrolled(&uid, inode, NetnsCookie(cookie));
        }
        assert_eq!(roster.observe(now, &uid, &seen(&many, false)), Plan::default());
    }

    #[test]
    fn what_is_said_of_a_pod_that_is_gone_changes_nothing() {
        let now = Instant::now();
        let (mut roster, uid) = stirred_pod(now);
        roster.gone(&uid);
        assert_eq!(roster.observe(now, &uid, &seen(&[A], true)), Plan::default());
        assert_eq!(roster.next_look(), None);
    }
}
