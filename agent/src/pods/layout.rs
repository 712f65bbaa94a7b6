//! How a kubelet spells pods in the cgroup tree, and where that tree is. In: the text of /proc files and the names of
//! groups; out: uids, levels and paths. Pure: it reads nothing itself.

use std::fmt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

/// A Pod's `metadata.uid`; for a static pod the kubelet's hash of its manifest.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PodUid(Arc<str>);

impl PodUid {
    pub fn new(uid: &str) -> Self {
        Self(uid.into())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for PodUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for PodUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a group below kubepods stands for, by its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Group {
    /// `burstable`, `kubepods-besteffort.slice`: pods are one level deeper.
    QosClass,
    Pod(PodUid),
    /// Anything else; no pod of the kubelet is below it.
    Other,
}

/// Reads one group's name in either driver's spelling: cgroupfs (`pod<uid>`) or systemd (`…-pod<uid with _>.slice`).
pub(super) fn classify(name: &str) -> Group {
    match name.strip_suffix(".slice") {
        // A systemd slice spells its whole path, joined by `-`; that is why a uid's own `-` is written `_`.
        Some(slice) => match slice.rsplit('-').next().unwrap_or(slice) {
            "burstable" | "besteffort" => Group::QosClass,
            last => last.strip_prefix("pod").map_or(Group::Other, |uid| pod(&uid.replace('_', "-"))),
        },
        None => match name {
            "burstable" | "besteffort" => Group::QosClass,
            name => name.strip_prefix("pod").map_or(Group::Other, pod),
        },
    }
}

fn pod(uid: &str) -> Group {
    let plausible = !uid.is_empty() && uid.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    if plausible { Group::Pod(PodUid::new(uid)) } else { Group::Other }
}

/// The pod that a process belongs to, by the text of its /proc/PID/cgroup.
pub(super) fn pod_of_process(proc_cgroup: &str) -> Option<PodUid> {
    // Below kubepods only: a host service may well be called `podman`.
    let mut names = own_path(proc_cgroup)?.components().skip_while(|component| !is_kubepods(component));
    names.next()?;
    names.find_map(|component| match classify(component.as_os_str().to_str()?) {
        Group::Pod(uid) => Some(uid),
        _ => None,
    })
}

/// A process's group in the unified hierarchy, by the text of its /proc/PID/cgroup: the line `0::/path`.
pub(super) fn own_path(proc_cgroup: &str) -> Option<&Path> {
    proc_cgroup.lines().find_map(|line| line.strip_prefix("0::")).map(Path::new)
}

/// The path up to and with its `kubepods` component, also below a prefix (`/node-a/kubepods`,
/// `/kubelet.slice/kubelet-kubepods.slice`).
pub(super) fn kubepods_above(path: &Path) -> Option<PathBuf> {
    let mut above = PathBuf::new();
    for component in path.components() {
        above.push(component);
        if is_kubepods(&component) {
            return Some(above);
        }
    }
    None
}

fn is_kubepods(component: &Component<'_>) -> bool {
    component.as_os_str().to_str().is_some_and(|name| {
        name == "kubepods"
            || name.strip_suffix("kubepods.slice").is_some_and(|rest| rest.is_empty() || rest.ends_with('-'))
    })
}

/// A place where cgroup v2 is mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// The group that is seen at the mount point: `/` unless only a part is mounted. `/../..` where it lies above all that
    /// the reader's cgroup namespace has names for.
    pub root: PathBuf,
    pub point: PathBuf,
}

impl Mount {
    /// Where a group is in the file system, if this mount shows it.
    pub(super) fn locate(&self, group: &Path) -> Option<PathBuf> {
        group.strip_prefix(&self.root).ok().map(|below| self.below(below))
    }

    /// Where a group of the node is, if this mount shows it or may do so: a root without a name is taken for that of the
    /// whole tree, as in a container's mount of the node's /sys/fs/cgroup.
    pub(super) fn locate_on_node(&self, group: &Path) -> Option<PathBuf> {
        let nameless = self.root.starts_with("/..");
        if nameless { group.strip_prefix("/").ok().map(|below| self.below(below)) } else { self.locate(group) }
    }

    fn below(&self, path: &Path) -> PathBuf {
        // Joined with nothing it would end with a slash.
        if path.as_os_str().is_empty() { self.point.clone() } else { self.point.join(path) }
    }
}

/// All places where cgroup v2 is mounted, alone or beside v1, by the text of /proc/self/mountinfo
/// (proc_pid_mountinfo(5): fields 4 and 5 are root and mount point, the type is the first after the lone `-`).
pub fn v2_mounts(mountinfo: &str) -> Vec<Mount> {
    let mount = |line: &str| {
        let (mount, source) = line.split_once(" - ")?;
        let mut fields = mount.split(' ').skip(3);
        let (root, point) = (fields.next()?, fields.next()?);
        source.starts_with("cgroup2 ").then(|| Mount { root: unescape(root).into(), point: unescape(point).into() })
    };
    mountinfo.lines().filter_map(mount).collect()
}

/// mountinfo writes space, tab, newline and backslash as three octal digits.
fn unescape(field: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .iter()
        .fold(field.to_owned(), |text, (escaped, plain)| text.replace(escaped, plain))
}

#[cfg(test)]
mod tests {
    use super::*;

    const UID: &str = "0f29edf9-959e-4e40-bddc-080bf2690000";

    fn pod(uid: &str) -> Group {
        Group::Pod(PodUid::new(uid))
    }

    #[test]
    fn both_drivers_spellings_name_the_same_pod() {
        for name in [
            "pod0f29edf9-959e-4e40-bddc-080bf2690000",
            "kubepods-pod0f29edf9_959e_4e40_bddc_080bf2690000.slice",
            "kubepods-burstable-pod0f29edf9_959e_4e40_bddc_080bf2690000.slice",
            "kubepods-besteffort-pod0f29edf9_959e_4e40_bddc_080bf2690000.slice",
            "kubelet-kubepods-burstable-pod0f29edf9_959e_4e40_bddc_080bf2690000.slice",
        ] {
            assert_eq!(classify(name), pod(UID), "{name}");
        }
    }

    #[test]
    fn a_static_pods_hash_is_its_uid() {
        let hash = "1fd5e1d4b1b2a3e9c4d5f60718293a4b";
        assert_eq!(classify(&format!("pod{hash}")), pod(hash));
        assert_eq!(classify(&format!("kubepods-burstable-pod{hash}.slice")), pod(hash));
    }

    #[test]
    fn classes_are_levels_and_everything_else_is_nothing() {
        for name in ["burstable", "besteffort", "kubepods-burstable.slice", "kubelet-kubepods-besteffort.slice"] {
            assert_eq!(classify(name), Group::QosClass, "{name}");
        }
        for name in ["pod", "podman.service", "kubepods.slice", "kubepods", "cri-containerd-0a1b.scope", "0a1b2c", ""] {
            assert_eq!(classify(name), Group::Other, "{name}");
        }
    }

    #[test]
    fn a_process_is_found_in_its_pod_in_either_spelling_and_at_any_depth() {
        for path in [
            "/kubepods/burstable/pod0f29edf9-959e-4e40-bddc-080bf2690000/0a1b2c",
            "/node-a/kubepods/pod0f29edf9-959e-4e40-bddc-080bf2690000/0a1b2c/inner",
            "/kubepods.slice/kubepods-pod0f29edf9_959e_4e40_bddc_080bf2690000.slice/cri-containerd-0a.scope",
            "/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-besteffort.slice/\
             kubelet-kubepods-besteffort-pod0f29edf9_959e_4e40_bddc_080bf2690000.slice/crio-0a.scope/container",
        ] {
            let text = format!("4:memory:/somewhere\n0::{path}\n");
            assert_eq!(pod_of_process(&text), Some(PodUid::new(UID)), "{path}");
        }
        assert_eq!(pod_of_process("0::/system.slice/podman.service\n"), None);
        assert_eq!(pod_of_process("0::/machine/pod7/x\n"), None);
        assert_eq!(pod_of_process("1:name=systemd:/kubepods/pod7\n"), None);
    }

    #[test]
    fn kubepods_is_found_above_any_container_also_below_a_prefix() {
        for (path, above) in [
            ("/kubepods/burstable/pod1/c", "/kubepods"),
            ("/kubepods.slice/kubepods-burstable.slice/x", "/kubepods.slice"),
            ("/node-a/kubepods/pod1/c", "/node-a/kubepods"),
            ("/kubelet.slice/kubelet-kubepods.slice/x", "/kubelet.slice/kubelet-kubepods.slice"),
        ] {
            assert_eq!(kubepods_above(Path::new(path)), Some(PathBuf::from(above)), "{path}");
        }
        for path in ["/", "/system.slice/sluice.service", "/mykubepods.slice"] {
            assert_eq!(kubepods_above(Path::new(path)), None, "{path}");
        }
    }

    #[test]
    fn version_2_is_found_alone_and_beside_version_1() {
        let both = "32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu\n\
                    38 31 0:31 / /sys/fs/cgroup/unified rw,relatime shared:4 - cgroup2 cgroup2 rw\n\
                    39 31 0:31 /kubepods /mnt/the\\040pods rw - cgroup2 cgroup2 rw\n";
        let mounts = v2_mounts(both);
        assert_eq!(mounts.len(), 2);
        assert_eq!(mounts[0].point, Path::new("/sys/fs/cgroup/unified"));
        assert_eq!(mounts[0].locate(Path::new("/kubepods")), Some("/sys/fs/cgroup/unified/kubepods".into()));
        assert_eq!(mounts[1].locate(Path::new("/kubepods/burstable")), Some("/mnt/the pods/burstable".into()));
        assert_eq!(mounts[1].locate(Path::new("/other")), None);
        let from_a_namespace = v2_mounts("40 31 0:31 /../../.. /host/cgroup rw - cgroup2 cgroup2 rw\n");
        assert_eq!(from_a_namespace[0].locate_on_node(Path::new("/kubepods")), Some("/host/cgroup/kubepods".into()));
        assert_eq!(
            from_a_namespace[0].locate(Path::new("/")),
            None,
            "the reader's own group, which is somewhere below"
        );
        assert_eq!(v2_mounts("32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n"), []);
    }
}
