//! Where the node's pods are in the cgroup tree. In: `--cgroup` and whose paths this process reads; out: lines for the
//! mount, for the namespace and for the kubepods group, and that group.

use std::fs;
use std::path::{Path, PathBuf};

use super::item::Item;
use crate::pods::{self, CgroupView, FoundBy, Mount};

const MOUNT: &str = "cgroup v2";
const NAMESPACE: &str = "cgroup namespace";
const KUBEPODS: &str = "pods' cgroup";

pub(super) fn items(view: &CgroupView, flag: Option<&Path>) -> (Vec<Item>, Option<PathBuf>) {
    let mountinfo = |who: &str| fs::read_to_string(format!("/proc/{who}/mountinfo")).unwrap_or_default();
    let mut items = vec![hierarchy(&mountinfo("self"), &mountinfo("1")), namespace(view)];
    let mounted = items[0].is_ok();
    match pods::locate_kubepods(flag) {
        Ok((path, by)) => {
            let (pods, own) = (pods::groups_of_pods(&path), pods::own_group());
            let above_own = own.is_some_and(|own| own.starts_with(&path));
            items.push(kubepods(&path, by, pods.len(), above_own));
            (items, Some(path))
        }
        // Without a mount there is no more to say.
        Err(_) if !mounted => {
            items.push(Item::not_tried(KUBEPODS, MOUNT));
            (items, None)
        }
        Err(error) => {
            items.push(Item::fail(KUBEPODS, error.what, error.cure));
            (items, None)
        }
    }
}

/// In: what this process sees mounted, and what process 1 does.
fn hierarchy(own: &str, nodes: &str) -> Item {
    let (here, there) = (pods::v2_mounts(own), pods::v2_mounts(nodes));
    let beside = |mountinfo: &str| mountinfo.lines().any(|line| line.contains(" - cgroup "));
    let points = |mounts: &[Mount]| {
        let mut points: Vec<_> = mounts.iter().map(|mount| mount.point.display().to_string()).collect();
        points.dedup();
        points.join(", ")
    };
    if !here.is_empty() {
        let beside = if beside(own) { ", beside version 1" } else { "" };
        return Item::ok(MOUNT, format!("mounted at {}{beside}", points(&here)));
    }
    if !there.is_empty() {
        let node = points(&there);
        let cure = format!("mount the node's {node} into the agent's container (a hostPath volume at the same path)");
        return Item::fail(MOUNT, format!("the node has it at {node}, this process does not see it"), cure);
    }
    if beside(own) || beside(nodes) {
        return Item::fail(
            MOUNT,
            "only cgroup v1 is mounted; programs attach to cgroup v2",
            "boot the node with systemd.unified_cgroup_hierarchy=1, kubelet and container runtime follow; or keep v1 and \
             mount v2 beside it: mkdir /sys/fs/cgroup/unified && mount -t cgroup2 none /sys/fs/cgroup/unified (this very \
             path: runc puts pods into v2 only there), then restart the pods that are to be served",
        );
    }
    Item::fail(
        MOUNT,
        "no cgroup is mounted here",
        "mount the node's /sys/fs/cgroup into the agent's container (a hostPath volume at the same path)",
    )
}

fn namespace(view: &CgroupView) -> Item {
    match view {
        CgroupView::Nodes => Item::ok(NAMESPACE, "the node's"),
        CgroupView::Entered => Item::ok(NAMESPACE, "the container's own; the node's can be entered"),
        CgroupView::Containers(error) => Item::warn(
            NAMESPACE,
            format!(
                "the container's own, and the node's cannot be entered ({error}): the pods' cgroup is looked for in the \
                     usual places only"
            ),
            "in a pod set hostPID: true and allow SYS_ADMIN and SYS_PTRACE; or give --cgroup",
        ),
    }
}

fn kubepods(path: &Path, by: FoundBy, pods: usize, above_own: bool) -> Item {
    let by = match by {
        FoundBy::Flag => "given by --cgroup",
        FoundBy::OwnPath => "above this process's own group",
        FoundBy::UsualPlace => "a usual place",
    };
    let own = if above_own { ", this one among them" } else { "" };
    match pods {
        0 => Item::warn(
            KUBEPODS,
            format!("{} ({by}) holds no pods", path.display()),
            "if the node has pods, they are elsewhere: find one in /proc/PID/cgroup (the line 0::) and give the kubepods \
             group above it by --cgroup; on a node with both versions of cgroups the runtime must put pods into v2 as well \
             (runc 1.0 or newer, v2 at /sys/fs/cgroup/unified)",
        ),
        1 => Item::ok(KUBEPODS, format!("{} ({by}), 1 pod{own}", path.display())),
        _ => Item::ok(KUBEPODS, format!("{} ({by}), {pods} pods{own}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::item::Level;

    const V1: &str = "32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu\n";
    const V2: &str = "38 31 0:31 / /sys/fs/cgroup rw,relatime shared:4 - cgroup2 cgroup2 rw\n";
    const BESIDE: &str = "38 31 0:31 / /sys/fs/cgroup/unified rw,relatime shared:4 - cgroup2 cgroup2 rw\n";

    #[test]
    fn version_2_alone_and_beside_version_1_will_do() {
        assert_eq!(hierarchy(V2, V2), Item::ok(MOUNT, "mounted at /sys/fs/cgroup"));
        let both = format!("{V1}{BESIDE}");
        assert_eq!(hierarchy(&both, &both), Item::ok(MOUNT, "mounted at /sys/fs/cgroup/unified, beside version 1"));
    }

    #[test]
    fn version_1_alone_fails_and_the_cure_says_how_to_get_version_2() {
        let item = hierarchy(V1, V1);
        assert_eq!(item.level, Level::Fail);
        let cure = item.cure.unwrap();
        assert!(
            cure.contains("unified_cgroup_hierarchy=1")
                && cure.contains("mount -t cgroup2 none /sys/fs/cgroup/unified")
        );
    }

    #[test]
    fn a_container_without_the_nodes_mount_is_told_which_one_to_take() {
        let item = hierarchy("", BESIDE);
        assert!(item.cure.unwrap().contains("the node's /sys/fs/cgroup/unified"));
        assert_eq!(hierarchy("", "").level, Level::Fail);
    }

    #[test]
    fn a_namespace_that_cannot_be_left_is_a_warning() {
        assert_eq!(namespace(&CgroupView::Entered).level, Level::Ok);
        let stuck = namespace(&CgroupView::Containers(std::io::Error::from_raw_os_error(libc::EPERM)));
        assert!(stuck.level == Level::Warn && stuck.cure.unwrap().contains("hostPID: true"));
    }

    #[test]
    fn a_group_without_pods_is_most_likely_the_wrong_one() {
        let path = Path::new("/sys/fs/cgroup/kubepods.slice");
        assert_eq!(kubepods(path, FoundBy::OwnPath, 0, false).level, Level::Warn);
        let found = kubepods(path, FoundBy::OwnPath, 12, true).found;
        assert_eq!(
            found,
            "/sys/fs/cgroup/kubepods.slice (above this process's own group), 12 pods, this one among them"
        );
    }
}
