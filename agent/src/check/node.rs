//! The node's processes and limits. In: what this process may do and the kubepods group; out: lines for processes of
//! pods, for entering their namespaces, for inotify and for open files.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use inotify::{Inotify, WatchMask};
use rustix::process::{Resource, getrlimit};

use super::item::Item;
use super::privileges::Privileges;
use crate::netns::Home;
use crate::pods;

const PROCESSES: &str = "processes of pods";
const NAMESPACES: &str = "network namespaces";
const INOTIFY: &str = "inotify";
const FILES: &str = "open files";

/// Watches for a pod: its group, and the events of that and of its containers' groups.
const WATCHES_OF_A_POD: u64 = 6;
/// Kubernetes recommends at most 110 pods for a node; large nodes run twice as many.
const MANY_PODS: u64 = 256;

/// A redirected connection takes two descriptors.
const MANY_FILES: u64 = 65_536;

pub(super) fn items(privileges: &Privileges, kubepods: Option<&Path>) -> Vec<Item> {
    let pods = kubepods.map(pods::groups_of_pods).unwrap_or_default();
    vec![
        match privileges.lacks_ptrace() {
            Some(lacks) => Item::not_tried(PROCESSES, lacks),
            None => processes(privileges, &Seen::look(&pods)),
        },
        match privileges.lacks_admin().or(privileges.lacks_ptrace()) {
            Some(lacks) => Item::not_tried(NAMESPACES, lacks),
            None => namespaces(privileges, enter_nodes()),
        },
        inotify(try_inotify(kubepods), limit("max_user_watches"), limit("max_user_instances"), pods.len() as u64),
        open_files(getrlimit(Resource::Nofile).maximum),
    ]
}

/// What /proc shows of pods' processes.
#[derive(Debug, Default, PartialEq, Eq)]
struct Seen {
    readable: usize,
    denied: usize,
    /// Outside of this process's pid namespace.
    foreign: usize,
    /// This process is the first of its pid namespace.
    is_first: bool,
    /// Threads of the kernel, which the node's own pid namespace alone has.
    kernel_threads: bool,
}

impl Seen {
    fn look(pods: &[std::path::PathBuf]) -> Self {
        let kernel_threads = fs::read_to_string("/proc/2/comm").is_ok_and(|name| name == "kthreadd\n");
        let is_first = std::process::id() == 1;
        let mut seen = Seen { kernel_threads, is_first, ..Seen::default() };
        for pid in pods.iter().flat_map(|pod| processes_below(pod)) {
            match File::open(format!("/proc/{pid}/ns/net")) {
                _ if pid == 0 => seen.foreign += 1,
                Ok(_) => seen.readable += 1,
                // It has ended meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(_) => seen.denied += 1,
            }
        }
        seen
    }
}

fn processes_below(group: &Path) -> Vec<u32> {
    let mut pids = pods::processes(group);
    let Ok(entries) = fs::read_dir(group) else { return pids };
    for child in entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        pids.extend(processes_below(&child.path()));
    }
    pids
}

fn processes(privileges: &Privileges, seen: &Seen) -> Item {
    let Seen { readable, denied, foreign, is_first, kernel_threads } = *seen;
    if foreign > 0 || is_first {
        return Item::fail(PROCESSES, "the node's processes are not visible from here", "in a pod set hostPID: true");
    }
    if denied > 0 {
        let (why, cure) = privileges.why_not_namespace();
        let found =
            format!("/proc/PID/ns/net may not be opened for {denied} of {} processes: {why}", denied + readable);
        return Item::fail(PROCESSES, found, cure);
    }
    if readable > 0 {
        return Item::ok(PROCESSES, format!("{readable} found, and their namespaces can be opened"));
    }
    if kernel_threads {
        return Item::ok(PROCESSES, "none at present; the node's processes are visible");
    }
    Item::warn(
        PROCESSES,
        "none are visible: nothing to tell by whether these are the node's processes",
        "in a pod set hostPID: true",
    )
}

/// Opens the node's own namespace, enters it and reads its cookie.
fn enter_nodes() -> Result<u64, (&'static str, io::Error)> {
    let home = Home::open().map_err(|error| ("/proc/thread-self/ns/net cannot be opened", error))?;
    let nodes = pods::nodes_namespace("net").map_err(|error| ("/proc/1/ns/net cannot be opened", error))?;
    let cookie = pods::cookie_of(&home, &nodes).map_err(|error| ("the node's own cannot be entered", error))?;
    Ok(cookie.0)
}

fn namespaces(privileges: &Privileges, entered: Result<u64, (&'static str, io::Error)>) -> Item {
    match entered {
        Ok(cookie) => Item::ok(NAMESPACES, format!("the node's own was entered and left again (cookie {cookie})")),
        Err((_, error)) if error.raw_os_error() == Some(libc::ENOPROTOOPT) => Item::fail(
            NAMESPACES,
            "the kernel tells no cookie of a network namespace (SO_NETNS_COOKIE)",
            "boot a kernel of Linux 5.15 or newer",
        ),
        Err((what, error)) if matches!(error.raw_os_error(), Some(libc::EPERM | libc::EACCES)) => {
            let (why, cure) = privileges.why_not_namespace();
            Item::fail(NAMESPACES, format!("{what}, though the capabilities are there: {why}"), cure)
        }
        Err((what, error)) => Item::fail(NAMESPACES, format!("{what}: {error}"), "mount /proc, without hidepid"),
    }
}

/// The agent's own two steps: an instance, and a watch of the pods' cgroup.
fn try_inotify(kubepods: Option<&Path>) -> io::Result<()> {
    let inotify = Inotify::init()?;
    if let Some(kubepods) = kubepods {
        inotify.watches().add(kubepods, WatchMask::CREATE | WatchMask::DELETE | WatchMask::ONLYDIR)?;
    }
    Ok(())
}

fn limit(name: &str) -> Option<u64> {
    fs::read_to_string(format!("/proc/sys/fs/inotify/{name}")).ok()?.trim().parse().ok()
}

fn inotify(tried: io::Result<()>, watches: Option<u64>, instances: Option<u64>, pods: u64) -> Item {
    let shown = |limit: Option<u64>| limit.map_or("unknown".into(), |limit| limit.to_string());
    let limits = format!("max_user_watches {}, max_user_instances {}", shown(watches), shown(instances));
    let needed = pods.max(MANY_PODS) * WATCHES_OF_A_POD;
    let cure = "on the node: sysctl -w fs.inotify.max_user_watches=524288 fs.inotify.max_user_instances=512 (for good in \
                /etc/sysctl.d)";
    match tried {
        Err(error) => match error.raw_os_error() {
            Some(libc::EMFILE) => Item::fail(INOTIFY, format!("no instance is left ({limits})"), cure),
            Some(libc::ENOSPC) => Item::fail(INOTIFY, format!("no watch is left ({limits})"), cure),
            _ => Item::fail(INOTIFY, format!("the pods' cgroup cannot be watched: {error} ({limits})"), cure),
        },
        Ok(()) if watches.is_some_and(|watches| watches < needed) => {
            let found = format!("{limits}; about {needed} watches are needed for {} pods", pods.max(MANY_PODS));
            Item::warn(INOTIFY, format!("{found}: a pod without one is found by its first connect only"), cure)
        }
        Ok(()) => Item::ok(INOTIFY, limits),
    }
}

/// None: no limit.
fn open_files(hard: Option<u64>) -> Item {
    match hard {
        None => Item::ok(FILES, "no limit"),
        Some(hard) if hard >= MANY_FILES => Item::ok(FILES, format!("up to {hard}")),
        Some(hard) => Item::warn(
            FILES,
            format!("up to {hard}, which is enough for about {} redirected connections", hard / 2),
            "raise the limit of the container runtime's service (systemd: LimitNOFILE=1048576), or ulimit -Hn",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::privileges::tests::with;
    use super::*;
    use crate::check::item::Level;

    const ROOT: u64 = u64::MAX >> 23;

    fn seen(readable: usize, denied: usize, foreign: usize) -> Seen {
        Seen { readable, denied, foreign, is_first: false, kernel_threads: false }
    }

    #[test]
    fn processes_of_pods_must_be_visible_and_readable() {
        let judge = |seen: Seen| processes(&with(ROOT), &seen);
        assert_eq!(judge(seen(7, 0, 0)), Item::ok(PROCESSES, "7 found, and their namespaces can be opened"));
        assert_eq!(judge(seen(1, 0, 6)).cure.unwrap(), "in a pod set hostPID: true");
        assert_eq!(judge(Seen { is_first: true, ..seen(1, 0, 0) }).level, Level::Fail);
        let denied = judge(seen(1, 6, 0));
        assert!(denied.level == Level::Fail && denied.found.contains("6 of 7"), "{denied:?}");
        assert_eq!(judge(seen(0, 0, 0)).level, Level::Warn);
        assert_eq!(judge(Seen { kernel_threads: true, ..seen(0, 0, 0) }).level, Level::Ok);
    }

    #[test]
    fn a_namespace_that_cannot_be_entered_fails_for_its_own_reason() {
        let judge = |code| namespaces(&with(ROOT), Err(("it", io::Error::from_raw_os_error(code))));
        assert!(judge(libc::ENOPROTOOPT).cure.unwrap().contains("5.15"));
        assert!(judge(libc::EPERM).found.contains("though the capabilities are there"));
        assert!(judge(libc::ENOENT).cure.unwrap().contains("/proc"));
    }

    #[test]
    fn inotify_limits_fail_when_used_up_and_warn_when_small() {
        let full = |code| inotify(Err(io::Error::from_raw_os_error(code)), Some(8192), Some(128), 1);
        assert!(full(libc::EMFILE).found.contains("instance") && full(libc::ENOSPC).found.contains("watch"));
        assert_eq!(full(libc::EMFILE).level, Level::Fail);
        assert_eq!(inotify(Ok(()), Some(1_000), Some(128), 1).level, Level::Warn);
        assert_eq!(inotify(Ok(()), Some(8192), Some(128), 1).level, Level::Ok);
        assert_eq!(inotify(Ok(()), Some(8192), Some(128), 2_000).level, Level::Warn);
    }

    #[test]
    fn few_open_files_are_a_warning_with_their_worth_in_connections() {
        assert!(open_files(Some(4096)).found.contains("2048"));
        assert_eq!(open_files(Some(1 << 20)).level, Level::Ok);
        assert_eq!(open_files(None).level, Level::Ok);
    }
}
