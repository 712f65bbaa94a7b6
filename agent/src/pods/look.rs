//! A look into one pod's groups. In: its directory in the cgroup tree; out: the network namespaces its processes live
//! in, each with an open handle. Reads /proc and cgroup.procs; enters nothing and remembers nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::roster::{NetnsInode, Seen};

/// Levels below a pod's group: container, its inner group (crun), one more. Deeper are containers' own containers.
const DEPTH: usize = 3;

/// Namespaces that are never enrolled: the host's and the agent's own. A process seen there may be on its way into its
/// pod's.
#[derive(Debug)]
pub(super) struct OffLimits {
    inodes: BTreeSet<NetnsInode>,
    /// Open, so that no other namespace gets their inodes.
    pub(super) handles: Vec<File>,
}

impl OffLimits {
    /// The host's namespace is that of process 1, and of the kernel's own threads where the agent may not look at
    /// process 1.
    pub(super) fn read() -> Result<Self> {
        let kernel = is_kernel_thread(2).then(|| File::open(netns_of(2))).and_then(io::Result::ok);
        let first = match (File::open(netns_of(1)), kernel) {
            (Ok(first), kernel) => vec![first].into_iter().chain(kernel).collect(),
            (Err(_), Some(kernel)) => vec![kernel],
            (Err(error), None) => {
                return Err(error).context(
                    "cannot open /proc/1/ns/net, to tell the host's network from pods': the agent needs hostPID: true \
                     and CAP_SYS_PTRACE",
                );
            }
        };
        let own = File::open("/proc/self/ns/net").context("cannot open /proc/self/ns/net: is /proc mounted?")?;
        let handles: Vec<File> = first.into_iter().chain([own]).collect();
        let inode = |file: &File| file.metadata().map(|metadata| NetnsInode(metadata.ino()));
        let inodes = handles.iter().map(inode).collect::<io::Result<_>>().context("cannot examine /proc/1/ns/net")?;
        Ok(Self { inodes, handles })
    }
}

/// The node's namespace of a kind (`net`, `cgroup`): process 1's, or that of the kernel's own threads where this process
/// may not look at process 1.
pub fn nodes_namespace(kind: &str) -> io::Result<File> {
    File::open(format!("/proc/1/ns/{kind}")).or_else(|error| {
        if is_kernel_thread(2) { File::open(format!("/proc/2/ns/{kind}")).map_err(|_| error) } else { Err(error) }
    })
}

/// kthreadd is 2 on a host; in a node that is itself a container 2 is anything.
fn is_kernel_thread(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name == "kthreadd\n")
}

/// What was seen, and a handle for each namespace whose owner was certain.
#[derive(Debug, Default)]
pub(super) struct Look {
    pub(super) seen: Seen,
    pub(super) handles: BTreeMap<NetnsInode, File>,
    /// A process of the pod is outside the agent's own pid namespace: hostPID is missing.
    pub(super) foreign_pid: bool,
}

/// Looks at every process of the pod.
pub(super) fn into_pod(pod: &Path, off_limits: &OffLimits) -> Look {
    let mut look = Look::default();
    let groups = groups(pod, DEPTH);
    let pids: BTreeSet<u32> = groups.values().flatten().copied().collect();
    let not_its_own = |pid, inode| off_limits.inodes.contains(&inode) || is_inherited(pid, inode, &pids);
    for (group, pids) in &groups {
        look.group(group, pids, not_its_own);
    }
    look
}

/// All processes of a pod, but for those outside of the reader's pid namespace.
pub(super) fn processes_below(pod: &Path) -> impl Iterator<Item = u32> {
    groups(pod, DEPTH).into_values().flatten().filter(|pid| *pid != 0)
}

/// The processes of a pod's group and of those below it.
fn groups(group: &Path, depth: usize) -> BTreeMap<PathBuf, Vec<u32>> {
    let mut all = BTreeMap::from([(group.to_owned(), processes(group))]);
    if depth > 0 {
        all.extend(children(group).into_iter().flat_map(|child| groups(&child, depth - 1)));
    }
    all
}

/// Whether a process has its network namespace from the runtime that started it from outside of the pod: it is on its
/// way into its own, or the pod has the node's. This tells the node's network, too, where the node is itself a namespace
/// of the machine, and not that of process 1.
fn is_inherited(pid: u32, netns: NetnsInode, pod: &BTreeSet<u32>) -> bool {
    let parent = parent(pid).filter(|parent| !pod.contains(parent));
    parent.is_some_and(|parent| inode(&netns_of(parent)).is_ok_and(|it| it == netns))
}

/// proc(5): the fourth field of `stat`; the second is a name in brackets that may hold anything.
fn parent(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok().filter(|parent| *parent != 0)
}

impl Look {
    fn group(&mut self, group: &Path, pids: &[u32], not_its_own: impl Fn(u32, NetnsInode) -> bool) {
        let mut living: BTreeMap<NetnsInode, Vec<u32>> = BTreeMap::new();
        for &pid in pids {
            if pid == 0 {
                self.foreign_pid = true;
                continue;
            }
            match inode(&netns_of(pid)) {
                Ok(inode) if not_its_own(pid, inode) => self.seen.unsettled = true,
                Ok(inode) => living.entry(inode).or_default().push(pid),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => {
                    tracing::debug!(pid, %error, "cannot read a pod's process");
                    self.seen.unsettled = true;
                }
            }
        }
        for (inode, pids) in living {
            self.seen.namespaces.insert(inode);
            if self.handles.contains_key(&inode) {
                continue;
            }
            match pids.iter().find_map(|pid| open(group, *pid, inode)) {
                Some(file) => _ = self.handles.insert(inode, file),
                None => self.seen.unsettled = true,
            }
        }
    }
}

/// Opens the namespace of `pid`. Numbers of processes are used again, so it counts only if the process is in the
/// group still after the namespace was opened.
fn open(group: &Path, pid: u32, expected: NetnsInode) -> Option<File> {
    let file = File::open(netns_of(pid)).ok()?;
    let same = file.metadata().is_ok_and(|metadata| NetnsInode(metadata.ino()) == expected);
    (same && processes(group).contains(&pid)).then_some(file)
}

fn netns_of(pid: u32) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}/ns/net"))
}

fn inode(path: &Path) -> io::Result<NetnsInode> {
    fs::metadata(path).map(|metadata| NetnsInode(metadata.ino()))
}

/// The processes of a group, 0 for each outside of the reader's pid namespace. A group that is gone has none.
pub fn processes(group: &Path) -> Vec<u32> {
    let text = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    text.lines().filter_map(|line| line.parse().ok()).collect()
}

/// The groups directly below; none if the group is gone.
pub(super) fn children(group: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(group) else { return Vec::new() };
    entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|e| e.path()).collect()
}
