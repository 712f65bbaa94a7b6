//! Control groups (v2) in the layout of a kubelet: in, a pod's uid and class; out, directories that are emptied and
//! removed again. Finds v2 also where it is mounted beside v1. Sets no limits.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// How long processes may take to leave a killed group. Killed processes leave within milliseconds; one in
/// uninterruptible sleep may take longer.
const EMPTY_WITHIN: Duration = Duration::from_secs(10);

/// How the kubelet spells groups.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Driver {
    /// `kubepods/burstable/pod<uid>/<container>`
    #[default]
    Cgroupfs,
    /// `kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod<uid with _>.slice/cri-containerd-<container>.scope`
    Systemd,
}

/// A pod's quality-of-service class.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Qos {
    /// Directly below kubepods.
    Guaranteed,
    #[default]
    Burstable,
    BestEffort,
}

impl Driver {
    /// The directory of all pods, below the node's own.
    pub(crate) fn kubepods(self) -> &'static str {
        match self {
            Driver::Cgroupfs => "kubepods",
            Driver::Systemd => "kubepods.slice",
        }
    }

    /// A pod's directory, below [`Driver::kubepods`].
    pub(crate) fn pod(self, qos: Qos, uid: &str) -> PathBuf {
        let class = match qos {
            Qos::Guaranteed => None,
            Qos::Burstable => Some("burstable"),
            Qos::BestEffort => Some("besteffort"),
        };
        match (self, class) {
            (Driver::Cgroupfs, None) => PathBuf::from(format!("pod{uid}")),
            (Driver::Cgroupfs, Some(class)) => PathBuf::from(format!("{class}/pod{uid}")),
            (Driver::Systemd, None) => PathBuf::from(format!("kubepods-pod{}.slice", uid.replace('-', "_"))),
            (Driver::Systemd, Some(class)) => {
                PathBuf::from(format!("kubepods-{class}.slice/kubepods-{class}-pod{}.slice", uid.replace('-', "_")))
            }
        }
    }

    /// A container's directory, below its pod's.
    pub(crate) fn container(self, id: &str) -> String {
        match self {
            Driver::Cgroupfs => id.to_owned(),
            Driver::Systemd => format!("cri-containerd-{id}.scope"),
        }
    }
}

/// Where cgroup v2 is mounted in this process's view.
pub(crate) fn v2_mount() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("cannot read /proc/self/mountinfo")?;
    v2_mount_in(&mounts).context("no cgroup v2 is mounted: mount -t cgroup2 none /sys/fs/cgroup/unified")
}

/// proc_pid_mountinfo(5): the fifth field is the mount point, the file system's type comes first after the lone `-`.
fn v2_mount_in(mountinfo: &str) -> Option<PathBuf> {
    mountinfo.lines().find_map(|line| {
        let (mount, source) = line.split_once(" - ")?;
        let point = mount.split(' ').nth(4)?;
        source.starts_with("cgroup2 ").then(|| PathBuf::from(point))
    })
}

/// Makes the group and all above it.
pub(crate) fn make(path: &Path) -> Result<()> {
    fs::create_dir_all(path)
        .with_context(|| format!("cannot make the cgroup {}: run as root, with cgroups writable", path.display()))
}

/// Makes the group `root/path` and those between, but not `root`: of a node that is gone nothing comes back.
pub(crate) fn make_below(root: &Path, path: &Path) -> Result<()> {
    let mut group = root.to_owned();
    for name in path {
        group.push(name);
        match fs::create_dir(&group) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(error).with_context(|| format!("cannot make the cgroup {}", group.display()));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Kills every process of the group and of those below, waits until they are gone and removes the directories.
/// A group that is not there is fine.
pub(crate) fn remove(path: &Path) -> Result<()> {
    let deadline = Instant::now() + EMPTY_WITHIN;
    loop {
        kill(path);
        match remove_directories(path) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) if Instant::now() > deadline => {
                bail!("cannot remove the cgroup {}: {error}; processes left: {:?}", path.display(), processes(path))
            }
            Err(_) => thread::sleep(Duration::from_millis(2)),
        }
    }
}

/// Sends SIGKILL to every process of the group and of those below.
pub(crate) fn kill(path: &Path) {
    // One write reaches the whole tree, also what forks meanwhile (Linux 5.14).
    if fs::write(path.join("cgroup.kill"), "1").is_err() {
        for pid in processes(path) {
            // SAFETY: kill takes plain integers; the pid was read from a group that we made.
            unsafe { libc::kill(pid, libc::SIGKILL) };
        }
    }
}

/// The processes of the group and of those below.
pub(crate) fn processes(path: &Path) -> Vec<libc::pid_t> {
    let mut pids: Vec<_> = fs::read_to_string(path.join("cgroup.procs"))
        .unwrap_or_default()
        .lines()
        .filter_map(|line| line.parse().ok())
        .collect();
    for child in children(path) {
        pids.extend(processes(&child));
    }
    pids
}

fn remove_directories(path: &Path) -> io::Result<()> {
    for child in children(path) {
        match remove_directories(&child) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    fs::remove_dir(path)
}

/// The groups directly below.
pub(crate) fn children(path: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(path) else { return Vec::new() };
    entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|e| e.path()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_2_is_found_beside_version_1_and_alone() {
        let beside = "32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu\n\
                      38 31 0:31 / /sys/fs/cgroup/unified rw,relatime shared:4 - cgroup2 cgroup2 rw\n";
        let alone = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n";
        assert_eq!(v2_mount_in(beside), Some(PathBuf::from("/sys/fs/cgroup/unified")));
        assert_eq!(v2_mount_in(alone), Some(PathBuf::from("/sys/fs/cgroup")));
        assert_eq!(v2_mount_in("32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n"), None);
    }

    #[test]
    fn a_pods_group_is_spelled_as_each_driver_spells_it() {
        let uid = "0f29edf9-959e-4e40-bddc-080bf2690000";
        assert_eq!(
            Driver::Cgroupfs.pod(Qos::Burstable, uid),
            Path::new("burstable/pod0f29edf9-959e-4e40-bddc-080bf2690000")
        );
        assert_eq!(
            Driver::Systemd.pod(Qos::BestEffort, uid),
            Path::new("kubepods-besteffort.slice/kubepods-besteffort-pod0f29edf9_959e_4e40_bddc_080bf2690000.slice")
        );
        assert_eq!(
            Driver::Systemd.pod(Qos::Guaranteed, uid),
            Path::new("kubepods-pod0f29edf9_959e_4e40_bddc_080bf2690000.slice")
        );
    }
}
