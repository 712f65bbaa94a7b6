//! Two network namespaces with a wire between: a pod's, in which a worker listens and dials, and another node's, which
//! can vanish: packets to it get lost from then on, and nothing comes from it.

use std::fs::File;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::process::Command;

use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};

/// The pod's address on the wire.
pub(crate) const POD: &str = "10.9.0.1";
/// The other node's.
pub(crate) const OTHER: &str = "10.9.0.2";

pub(crate) struct Nodes {
    pub(crate) pod: File,
    other: File,
}

impl Nodes {
    pub(crate) fn new() -> Self {
        let nodes = Self { pod: namespace(), other: namespace() };
        let peer = format!("/proc/{}/fd/{}", std::process::id(), nodes.other.as_raw_fd());
        nodes.in_pod(|| {
            ip("link set lo up");
            ip(&format!("link add wire type veth peer name wire netns {peer}"));
            ip(&format!("addr add {POD}/24 dev wire"));
            ip("link set wire up");
        });
        nodes.in_other(|| {
            ip("link set lo up");
            ip(&format!("addr add {OTHER}/24 dev wire"));
            ip("link set wire up");
        });
        nodes
    }

    pub(crate) fn in_pod<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        inside(&self.pod, work)
    }

    pub(crate) fn in_other<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        inside(&self.other, work)
    }

    /// As if the other node had lost its power. Its link stays: the pod's kernel must not learn it from there.
    pub(crate) fn other_vanishes(&self) {
        self.in_other(|| ip(&format!("addr del {OTHER}/24 dev wire")));
    }
}

fn namespace() -> File {
    let make = || {
        #[allow(deprecated, reason = "this thread holds no other borrowed descriptor")]
        rustix::thread::unshare(UnshareFlags::NEWNET).expect("needs root (CAP_SYS_ADMIN)");
        File::open("/proc/thread-self/ns/net").unwrap()
    };
    std::thread::spawn(make).join().unwrap()
}

fn inside<T: Send>(namespace: &File, work: impl FnOnce() -> T + Send) -> T {
    let enter_and_work = || {
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
        work()
    };
    std::thread::scope(|scope| scope.spawn(enter_and_work).join()).unwrap()
}

fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split(' ')).status().expect("needs ip (iproute2)");
    assert!(status.success(), "ip {arguments}: {status}");
}
