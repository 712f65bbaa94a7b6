//! Network namespaces: one closure run inside a pod's namespace on this thread, and the way back. A socket made in there
//! belongs to that namespace for good, so only `socket()` and `bind()` need to be inside (0.9 µs for both ways).
//! It opens no namespace but the thread's own.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// The network namespace that this thread belongs to. Used on the thread that opened it.
#[derive(Debug)]
pub struct Home(File);

impl Home {
    /// Fails where /proc is not mounted.
    pub fn open() -> io::Result<Self> {
        File::open("/proc/thread-self/ns/net").map(Self)
    }

    /// Runs `work` inside `netns` and comes back, also when `work` panics. Needs CAP_SYS_ADMIN. `work` is not run when
    /// the namespace cannot be entered.
    ///
    /// Coming back never fails for a namespace that is held open; if it does all the same, the process aborts: a thread
    /// in the wrong namespace would dial from the wrong pod.
    pub fn run_in<T>(&self, netns: BorrowedFd<'_>, work: impl FnOnce() -> T) -> io::Result<T> {
        enter(netns)?;
        let _way_back = WayBack(self.0.as_fd());
        Ok(work())
    }
}

struct WayBack<'a>(BorrowedFd<'a>);

impl Drop for WayBack<'_> {
    fn drop(&mut self) {
        if let Err(error) = enter(self.0) {
            tracing::error!(%error, "cannot leave a pod's network namespace; aborting");
            std::process::abort();
        }
    }
}

fn enter(netns: BorrowedFd<'_>) -> io::Result<()> {
    Ok(move_into_link_name_space(netns, Some(LinkNameSpaceType::Network))?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    fn inode() -> u64 {
        std::fs::metadata("/proc/thread-self/ns/net").unwrap().ino()
    }

    /// Another namespace, that lives as long as the file; its thread ends at once.
    fn other() -> File {
        std::thread::spawn(|| {
            #[allow(deprecated, reason = "this thread holds no other borrowed descriptor")]
            rustix::thread::unshare(rustix::thread::UnshareFlags::NEWNET).expect("needs root (CAP_SYS_ADMIN)");
            File::open("/proc/thread-self/ns/net").unwrap()
        })
        .join()
        .unwrap()
    }

    #[test]
    fn work_runs_inside_and_the_thread_comes_back() {
        let (home, other) = (Home::open().unwrap(), other());
        let before = inode();
        assert_eq!(home.run_in(other.as_fd(), inode).unwrap(), other.metadata().unwrap().ino());
        assert_eq!(inode(), before);
    }

    #[test]
    fn a_panic_inside_brings_the_thread_back_too() {
        let (home, other) = (Home::open().unwrap(), other());
        let before = inode();
        let work = std::panic::AssertUnwindSafe(|| home.run_in(other.as_fd(), || panic!("on purpose")));
        std::panic::catch_unwind(work).unwrap_err();
        assert_eq!(inode(), before);
    }

    #[test]
    fn what_is_no_network_namespace_is_not_entered() {
        let home = Home::open().unwrap();
        let file = File::open("/proc/self/ns/uts").unwrap();
        home.run_in(file.as_fd(), || unreachable!("must not run")).unwrap_err();
    }
}
