//! The pods of this node and their network namespaces. In: the kubepods cgroup tree, and the kernel's word of connects
//! from namespaces that are not enrolled; out: namespaces found, with open listeners inside, and namespaces lost. It
//! tells neither workers nor kernel of them, and does not know which pods opted out.

use std::collections::{HashMap, HashSet, VecDeque};
use std::fs::File;
use std::future;
use std::io;
use std::net::TcpListener;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::addr::NetnsCookie;
use crate::netns::Home;

mod cgroupns;
mod connections;
mod enrolled;
mod kubepods;
mod layout;
mod listen;
mod look;
mod roster;
mod tree;

pub use cgroupns::{CgroupView, view_nodes_cgroups};
pub use connections::{Peers, connections};
pub use enrolled::{Enrolled, EnrolledPods};
pub use kubepods::{
    FoundBy, find as find_kubepods, groups_of_pods, is_cgroup2, locate as locate_kubepods, own_cgroup, own_group,
};
pub use layout::{Mount, PodUid, v2_mounts};
pub use listen::cookie_of;
use look::OffLimits;
pub use look::{nodes_namespace, processes};
use roster::Roster;
use tree::{Sign, Tree};

/// A namespace that was reported by a connect and could not be enrolled is not looked for again this soon.
const REPORTED_AGAIN: Duration = Duration::from_secs(1);

/// Namespaces remembered for [`REPORTED_AGAIN`]; more are forgotten early.
const MAX_REPORTED: usize = 1024;

/// A pod's network namespace with sluice's listeners in it.
#[derive(Debug)]
pub struct FoundPod {
    pub uid: PodUid,
    pub cookie: NetnsCookie,
    /// The open nsfs file: keeps the namespace alive, so drop it when the pod is removed.
    pub netns: File,
    /// On 127.0.0.1, a port of the kernel's choice, non-blocking.
    pub listener4: TcpListener,
    /// On ::1; none where the pod has no IPv6.
    pub listener6: Option<TcpListener>,
}

#[derive(Debug)]
pub enum Change {
    Found(FoundPod),
    /// The namespace has no process of its pod any more, or the pod is gone.
    Lost(NetnsCookie),
    /// Every pod that was there at the start has been looked at. Comes once.
    Scanned,
}

/// Watches the cgroup tree and looks into pods.
pub struct Discovery {
    tree: Tree,
    roster: Roster,
    off_limits: OffLimits,
    /// Of the namespaces off limits: their connects are reported, too, by pods of the host's network.
    ignored: HashSet<NetnsCookie>,
    home: Home,
    changes: VecDeque<Change>,
    scanned: bool,
    reported: HashMap<NetnsCookie, Instant>,
    warned_of_foreign_pids: bool,
}

impl Discovery {
    /// Starts to watch and notes every pod of the tree. Fails where the tree cannot be watched, or the host's own
    /// namespace cannot be told from the pods'.
    pub fn start(kubepods: &Path) -> Result<Self> {
        let home = Home::open().context("cannot open /proc/thread-self/ns/net: is /proc mounted?")?;
        let off_limits = OffLimits::read()?;
        let cookie = |netns| listen::cookie_of(&home, netns);
        let ignored = off_limits.handles.iter().map(cookie).collect::<io::Result<_>>();
        let mut discovery = Self {
            tree: Tree::new(kubepods)?,
            roster: Roster::default(),
            off_limits,
            ignored: ignored.context("cannot enter the host's network namespace: the agent needs CAP_SYS_ADMIN")?,
            home,
            changes: VecDeque::new(),
            scanned: false,
            reported: HashMap::new(),
            warned_of_foreign_pids: false,
        };
        let signs = discovery.tree.scan()?;
        discovery.take(signs);
        Ok(discovery)
    }

    /// The next change. May be cancelled: nothing is lost. To be called on the thread that started it. An error means
    /// that the tree can no longer be watched.
    pub async fn next(&mut self) -> Result<Change> {
        loop {
            self.look_at_due();
            if let Some(change) = self.changes.pop_front() {
                return Ok(change);
            }
            if !self.scanned {
                self.scanned = true;
                return Ok(Change::Scanned);
            }
            let next_look = self.roster.next_look();
            let signs = tokio::select! {
                signs = self.tree.signs() => signs?,
                () = until(next_look) => Vec::new(),
            };
            self.take(signs);
        }
    }

    /// The kernel saw a connect from a namespace that is not enrolled; `pid` is the process that made it.
    pub fn reported(&mut self, cookie: NetnsCookie, pid: u32) -> Result<()> {
        let now = Instant::now();
        let recently = |at: &Instant| now.duration_since(*at) < REPORTED_AGAIN;
        let known = self.ignored.contains(&cookie) || self.reported.get(&cookie).is_some_and(recently);
        if known || self.roster.is_enrolled(cookie) {
            return Ok(());
        }
        self.reported.retain(|_, at| recently(at));
        if self.reported.len() < MAX_REPORTED {
            self.reported.insert(cookie, now);
        }
        let cgroup = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        match layout::pod_of_process(&cgroup) {
            Some(uid) if self.tree.path(&uid).is_some() => self.roster.stirred(now, &uid),
            // Already gone, or another pid namespace's number: any pod may be meant.
            _ => {
                let signs = self.tree.scan()?;
                self.take(signs);
            }
        }
        Ok(())
    }

    fn take(&mut self, signs: Vec<Sign>) {
        let now = Instant::now();
        for sign in signs {
            match sign {
                Sign::Stirred(uid) => self.roster.stirred(now, &uid),
                Sign::Gone(uid) => self.changes.extend(self.roster.gone(&uid).into_iter().map(Change::Lost)),
            }
        }
    }

    fn look_at_due(&mut self) {
        for uid in self.roster.due(Instant::now()) {
            self.look_at(&uid);
        }
    }

    fn look_at(&mut self, uid: &PodUid) {
        let Some(path) = self.tree.path(uid) else { return };
        let mut look = look::into_pod(path, &self.off_limits);
        let now = Instant::now();
        if look.foreign_pid && !self.warned_of_foreign_pids {
            self.warned_of_foreign_pids = true;
            tracing::warn!(pod = %uid, "processes of pods are hidden from the agent: it needs hostPID: true");
        }
        let plan = self.roster.observe(now, uid, &look.seen);
        tracing::trace!(pod = %uid, namespaces = look.seen.namespaces.len(), unsettled = look.seen.unsettled, new = plan.enrol.len(), "looked at a pod");
        self.changes.extend(plan.remove.into_iter().map(Change::Lost));
        for inode in plan.enrol {
            // Without a handle the owner was uncertain; such a look is unsettled and comes again.
            let Some(netns) = look.handles.remove(&inode) else { continue };
            match listen::inside(&self.home, netns, uid) {
                Ok(found) => {
                    self.roster.enrolled(uid, inode, found.cookie);
                    self.changes.push_back(Change::Found(found));
                }
                Err(error) => match self.roster.failed(now, uid) {
                    false => tracing::debug!(pod = %uid, netns = inode.0, "not enrolled yet: {error:#}"),
                    true => tracing::warn!(
                        pod = %uid, netns = inode.0,
                        "the pod cannot be enrolled, its connections are left alone: {error:#}"
                    ),
                },
            }
        }
    }
}

/// For ever if there is no deadline.
async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => future::pending().await,
    }
}
