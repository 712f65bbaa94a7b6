//! Finds the node's kubepods group. In: `--cgroup`, or nothing; out: a directory in cgroup v2, or an error that names
//! the flag and the cure. Looks into no pod.

use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::layout::{self, Group, Mount};
use super::look;

/// Where kubelets put their pods when the agent's own path does not tell: an agent outside of any pod, or one that could
/// not leave its container's cgroup namespace, which reads `/`.
const USUAL: [&str; 4] = ["/kubepods.slice", "/kubepods", "/kubelet.slice/kubelet-kubepods.slice", "/kubelet/kubepods"];

/// Magic number of cgroup v2 (`CGROUP2_SUPER_MAGIC`, statfs(2)).
const CGROUP2_MAGIC: u64 = 0x6367_7270;

/// By which rule the kubepods group was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FoundBy {
    /// `--cgroup` names it.
    Flag,
    /// The agent is in a pod, and so below it.
    OwnPath,
    /// It is where kubelets usually have it.
    UsualPlace,
}

/// Why there is no kubepods group, and the cure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotFound {
    pub what: String,
    pub cure: &'static str,
}

impl fmt::Display for NotFound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {}", self.what, self.cure)
    }
}

impl std::error::Error for NotFound {}

/// The group that `--cgroup` names, or else the kubepods group above the agent's own, or else the usual places.
pub fn find(flag: Option<&Path>) -> anyhow::Result<PathBuf> {
    Ok(locate(flag)?.0)
}

/// As [`find`], with the rule.
pub fn locate(flag: Option<&Path>) -> Result<(PathBuf, FoundBy), NotFound> {
    if let Some(path) = flag {
        verify(path)?;
        return Ok((path.to_owned(), FoundBy::Flag));
    }
    let read = |path: &str| {
        let unreadable = |error| NotFound { what: format!("cannot read {path}: {error}"), cure: "mount /proc" };
        fs::read_to_string(path).map_err(unreadable)
    };
    let mounts = layout::v2_mounts(&read("/proc/self/mountinfo")?);
    if mounts.is_empty() {
        return Err(NotFound {
            what: "cgroup v2 is not mounted here".into(),
            cure: "mount the node's /sys/fs/cgroup into the agent's container, or on a node with cgroup v1 alone run \
                   `mount -t cgroup2 none /sys/fs/cgroup/unified` and pass --cgroup",
        });
    }
    let own = read("/proc/self/cgroup")?;
    let found = candidates(&mounts, layout::own_path(&own)).into_iter().find(|(path, _)| path.is_dir());
    found.ok_or_else(|| {
        let points: Vec<_> = mounts.iter().map(|mount| mount.point.display().to_string()).collect();
        let what = format!(
            "no kubepods group found in {}: this process is not in a pod (its group is {}), and none of {} is there",
            points.join(", "),
            layout::own_path(&own).unwrap_or(Path::new("unknown")).display(),
            USUAL.join(", "),
        );
        NotFound {
            what,
            cure: "pass --cgroup (or SLUICE_CGROUP) with the group that holds the node's pods, such as \
                   /sys/fs/cgroup/kubepods.slice",
        }
    })
}

/// The directory of this process's own group, if it is mounted here.
pub fn own_group() -> Option<PathBuf> {
    let mounts = layout::v2_mounts(&fs::read_to_string("/proc/self/mountinfo").ok()?);
    let cgroup = fs::read_to_string("/proc/self/cgroup").ok()?;
    let own = layout::own_path(&cgroup)?;
    mounts.iter().filter_map(|mount| mount.locate(own)).find(|path| path.is_dir())
}

/// The id of this process's own group, as the kernel programs see it: the inode of its directory.
pub fn own_cgroup() -> Option<u64> {
    fs::metadata(own_group()?).ok().map(|metadata| metadata.ino())
}

/// The groups of all pods that are there now.
pub fn groups_of_pods(kubepods: &Path) -> Vec<PathBuf> {
    let mut pods = Vec::new();
    for group in look::children(kubepods) {
        match group.file_name().and_then(|name| name.to_str()).map_or(Group::Other, layout::classify) {
            Group::QosClass => pods.extend(groups_of_pods(&group)),
            Group::Pod(_) => pods.push(group),
            Group::Other => {}
        }
    }
    pods
}

/// Whether the path is in a cgroup v2 file system.
pub fn is_cgroup2(path: &Path) -> io::Result<bool> {
    Ok(u64::try_from(rustix::fs::statfs(path)?.f_type) == Ok(CGROUP2_MAGIC))
}

/// Where the kubepods group may be, best first.
fn candidates(mounts: &[Mount], own: Option<&Path>) -> Vec<(PathBuf, FoundBy)> {
    let above = own.and_then(layout::kubepods_above);
    let above = above.iter().flat_map(|group| mounts.iter().filter_map(|mount| mount.locate(group)));
    let usual = USUAL.iter().map(Path::new);
    let usual = usual.flat_map(|group| mounts.iter().filter_map(move |mount| mount.locate_on_node(group)));
    above.map(|path| (path, FoundBy::OwnPath)).chain(usual.map(|path| (path, FoundBy::UsualPlace))).collect()
}

fn verify(path: &Path) -> Result<(), NotFound> {
    let what = match is_cgroup2(path) {
        Ok(true) if path.is_dir() => return Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => "does not exist".into(),
        Err(error) => format!("cannot be examined ({error})"),
        Ok(_) if !path.is_dir() => "is not a directory".into(),
        Ok(_) => "is not in a cgroup v2 file system".into(),
    };
    Err(NotFound {
        what: format!("--cgroup {}: {what}", path.display()),
        cure: "pass the group that holds the node's pods, such as /sys/fs/cgroup/kubepods.slice",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(root: &str, point: &str) -> Mount {
        Mount { root: root.into(), point: point.into() }
    }

    #[test]
    fn the_agents_own_tree_comes_before_the_usual_places() {
        let mounts = [mount("/", "/sys/fs/cgroup")];
        let found = candidates(&mounts, Some(Path::new("/node-a/kubepods/burstable/pod1/c")));
        assert_eq!(found[0], ("/sys/fs/cgroup/node-a/kubepods".into(), FoundBy::OwnPath));
        assert_eq!(found[1], ("/sys/fs/cgroup/kubepods.slice".into(), FoundBy::UsualPlace));
    }

    #[test]
    fn an_agent_that_sees_only_its_own_group_looks_at_the_usual_places() {
        let mounts = [mount("/../../..", "/host/cgroup")];
        let found = candidates(&mounts, Some(Path::new("/")));
        assert_eq!(found[0], ("/host/cgroup/kubepods.slice".into(), FoundBy::UsualPlace));
        assert_eq!(found.len(), USUAL.len());
    }

    #[test]
    fn a_mount_of_the_containers_own_group_does_not_hide_the_nodes() {
        let mounts = [mount("/kubepods/pod1/c", "/sys/fs/cgroup"), mount("/", "/host/cgroup")];
        let found = candidates(&mounts, Some(Path::new("/kubepods/pod1/c")));
        assert_eq!(found[0], ("/host/cgroup/kubepods".into(), FoundBy::OwnPath));
    }

    #[test]
    fn a_wrong_flag_is_refused_with_path_flag_and_cure() {
        for (path, what) in [
            ("/no/such/group", "does not exist"),
            ("/proc/self/status", "is not a directory"),
            ("/proc", "is not in a cgroup v2"),
        ] {
            let error = find(Some(Path::new(path))).unwrap_err().to_string();
            assert!(error.starts_with(&format!("--cgroup {path}: {what}")), "{error}");
            assert!(error.contains("kubepods.slice"), "{error}");
        }
    }
}
