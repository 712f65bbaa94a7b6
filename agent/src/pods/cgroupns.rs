//! The node's view of the cgroup tree. In: nothing; out: this process in the node's cgroup namespace. A container
//! of its own cgroup namespace reads its own group as `/` and every other pod's as `/../..`, without names; the node's
//! paths tell pods apart. Changes nothing but how paths in /proc are spelled.

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::look::nodes_namespace;

/// The inode of the first cgroup namespace (`PROC_CGROUP_INIT_INO` of linux/proc_ns.h).
const FIRST: u64 = 0xEFFF_FFFB;

/// Whose paths this process reads.
#[derive(Debug)]
pub enum CgroupView {
    /// The node's, from the start.
    Nodes,
    /// The node's: it was the container's own before.
    Entered,
    /// The container's own, and why it stays so.
    Containers(io::Error),
}

/// Moves this thread, and those that it starts later, into the cgroup namespace of process 1, with hostPID the node's. To be called before there are other threads. Needs CAP_SYS_ADMIN and CAP_SYS_PTRACE.
pub fn view_nodes_cgroups() -> CgroupView {
    match enter() {
        Ok(view) => view,
        Err(error) => CgroupView::Containers(error),
    }
}

fn enter() -> io::Result<CgroupView> {
    let own = fs::metadata("/proc/thread-self/ns/cgroup")?.ino();
    if own == FIRST {
        return Ok(CgroupView::Nodes);
    }
    let nodes = nodes_namespace("cgroup")?;
    if nodes.metadata()?.ino() == own {
        return Ok(CgroupView::Nodes);
    }
    move_into_link_name_space(nodes.as_fd(), Some(LinkNameSpaceType::ControlGroup))?;
    Ok(CgroupView::Entered)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_of_another_cgroup_namespace_comes_to_the_nodes() {
        let inode = || fs::metadata("/proc/thread-self/ns/cgroup").unwrap().ino();
        let nodes = nodes_namespace("cgroup").unwrap();
        std::thread::spawn(move || {
            #[allow(deprecated, reason = "this thread holds no borrowed descriptor")]
            rustix::thread::unshare(rustix::thread::UnshareFlags::NEWCGROUP).expect("needs root (CAP_SYS_ADMIN)");
            assert_ne!(inode(), nodes.metadata().unwrap().ino());
            assert!(matches!(view_nodes_cgroups(), CgroupView::Entered));
            assert_eq!(inode(), nodes.metadata().unwrap().ino());
        })
        .join()
        .unwrap();
    }
}
