//! Discovery of pods on a real cgroup tree with real network namespaces. Needs root (CAP_SYS_ADMIN, CAP_NET_ADMIN) and
//! cgroup v2; fails without them. Everything made here goes when its guard is dropped.

use std::ffi::CString;
use std::fs::{self, File};
use std::net::TcpStream;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use sluice_agent::addr::NetnsCookie;
use sluice_agent::netns::Home;
use sluice_agent::pods::{Change, Discovery, FoundPod, PodUid};

/// Far longer than anything here takes; ends a test that would hang.
const PATIENCE: Duration = Duration::from_secs(30);

/// A kubepods tree of its own.
struct Kubepods(PathBuf);

impl Kubepods {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let line = mounts.lines().find(|line| line.contains(" - cgroup2 ")).expect("needs cgroup v2");
        let name = format!("sluice-pods-test-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = Path::new(line.split(' ').nth(4).unwrap()).join(name).join("kubepods");
        fs::create_dir_all(&path).expect("needs root and a writable cgroup v2");
        Self(path)
    }

    /// Makes a group below kubepods.
    fn group(&self, path: &str) -> PathBuf {
        let path = self.0.join(path);
        fs::create_dir_all(&path).unwrap();
        path
    }

    /// Kills all processes of a group and removes it.
    fn remove(&self, path: &str) {
        remove_group(&self.0.join(path));
    }
}

impl Drop for Kubepods {
    fn drop(&mut self) {
        remove_group(self.0.parent().unwrap());
    }
}

fn remove_group(path: &Path) {
    _ = fs::write(path.join("cgroup.kill"), "1");
    for child in fs::read_dir(path).into_iter().flatten().flatten().filter(|entry| entry.path().is_dir()) {
        remove_group(&child.path());
    }
    // A killed process leaves its group a moment later.
    while fs::remove_dir(path).is_err() && path.is_dir() {
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A new network namespace with loopback up.
fn namespace() -> File {
    std::thread::spawn(|| {
        // SAFETY: unshare takes an integer; this thread ends here.
        assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNET) }, 0, "needs root (CAP_SYS_ADMIN)");
        assert!(Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap().success());
        File::open("/proc/thread-self/ns/net").unwrap()
    })
    .join()
    .unwrap()
}

/// A process of a container: enters its group first, its namespace `late` afterwards, as a runtime does.
struct Process(Child);

impl Process {
    fn start(group: &Path, namespace: Option<&File>, late: Duration) -> Self {
        let procs = CString::new(group.join("cgroup.procs").as_os_str().as_bytes()).unwrap();
        let namespace = namespace.map(|file| file.try_clone().unwrap());
        let mut command = Command::new("sleep");
        command.arg("1000");
        let enter = move || {
            // SAFETY: plain system calls with valid arguments.
            unsafe {
                let fd = libc::open(procs.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
                if fd < 0 || libc::write(fd, c"0".as_ptr().cast(), 1) != 1 {
                    return Err(std::io::Error::last_os_error());
                }
                let Some(namespace) = &namespace else { return Ok(()) };
                std::thread::sleep(late);
                match libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) {
                    0 => Ok(()),
                    _ => Err(std::io::Error::last_os_error()),
                }
            }
        };
        // SAFETY: between fork and exec it makes system calls only; it allocates nothing and takes no lock.
        unsafe { command.pre_exec(enter) };
        Self(command.spawn().expect("starts `sleep` in a group and a namespace; needs root"))
    }

    fn in_namespace(group: &Path, namespace: &File) -> Self {
        Self::start(group, Some(namespace), Duration::ZERO)
    }

    fn in_host_network(group: &Path) -> Self {
        Self::start(group, None, Duration::ZERO)
    }

    fn end(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        _ = self.0.kill();
        _ = self.0.wait();
    }
}

async fn next(discovery: &mut Discovery) -> Change {
    tokio::time::timeout(PATIENCE, discovery.next()).await.expect("a change comes").unwrap()
}

async fn found(discovery: &mut Discovery) -> FoundPod {
    match next(discovery).await {
        Change::Found(pod) => pod,
        other => panic!("expected a pod, got {other:?}"),
    }
}

async fn lost(discovery: &mut Discovery) -> NetnsCookie {
    match next(discovery).await {
        Change::Lost(cookie) => cookie,
        other => panic!("expected the loss of a pod, got {other:?}"),
    }
}

/// Nothing changes for a while, in which all signs of what was done before have been taken.
async fn quiet(discovery: &mut Discovery) {
    let change = tokio::time::timeout(Duration::from_millis(300), discovery.next()).await;
    assert!(change.is_err(), "{change:?}");
}

async fn scanned(kubepods: &Kubepods) -> Discovery {
    let mut discovery = Discovery::start(&kubepods.0).unwrap();
    assert!(matches!(next(&mut discovery).await, Change::Scanned));
    discovery
}

fn assert_in(pod: &FoundPod, namespace: &File) {
    assert_eq!(pod.netns.metadata().unwrap().ino(), namespace.metadata().unwrap().ino());
}

#[tokio::test]
async fn a_pod_that_appears_is_found_and_its_listeners_are_reached_from_inside_only() {
    let kubepods = Kubepods::new();
    let mut discovery = scanned(&kubepods).await;
    let uid = "0f29edf9-959e-4e40-bddc-080bf2690000";
    for pod in [
        format!("pod{uid}"),
        format!("burstable/pod{uid}"),
        format!("kubepods-besteffort.slice/kubepods-besteffort-pod{}.slice", uid.replace('-', "_")),
    ] {
        let namespace = namespace();
        let _process = Process::in_namespace(&kubepods.group(&format!("{pod}/container")), &namespace);
        let found = found(&mut discovery).await;
        assert_eq!(found.uid, PodUid::new(uid));
        assert_in(&found, &namespace);
        for listener in [&found.listener4, found.listener6.as_ref().expect("the namespace has IPv6")] {
            let address = listener.local_addr().unwrap();
            assert!(address.ip().is_loopback());
            let client = Home::open().unwrap().run_in(namespace.as_fd(), || TcpStream::connect(address)).unwrap();
            let (_, peer) = listener.accept().expect("a connection waits");
            assert_eq!(peer, client.unwrap().local_addr().unwrap());
        }
        kubepods.remove(&pod);
        assert_eq!(lost(&mut discovery).await, found.cookie);
    }
}

#[tokio::test]
async fn pods_that_were_there_before_the_agent_come_before_the_end_of_the_scan() {
    let kubepods = Kubepods::new();
    let namespaces = [namespace(), namespace()];
    let _processes = [
        Process::in_namespace(&kubepods.group("poda/c"), &namespaces[0]),
        Process::in_namespace(&kubepods.group("besteffort/podb/c"), &namespaces[1]),
    ];
    let mut discovery = Discovery::start(&kubepods.0).unwrap();
    let (one, other) = (found(&mut discovery).await, found(&mut discovery).await);
    assert_ne!(one.uid, other.uid);
    assert_ne!(one.cookie, other.cookie);
    assert!(matches!(next(&mut discovery).await, Change::Scanned));
}

#[tokio::test]
async fn a_process_that_enters_its_namespace_after_its_group_is_found() {
    let kubepods = Kubepods::new();
    let mut discovery = scanned(&kubepods).await;
    let group = kubepods.group("burstable/poda/c");
    let namespace = namespace();
    let inside = namespace.try_clone().unwrap();
    let start = std::thread::spawn(move || Process::start(&group, Some(&inside), Duration::from_millis(50)));
    assert_in(&found(&mut discovery).await, &namespace);
    start.join().unwrap();
}

#[tokio::test]
async fn a_second_container_of_a_pod_changes_nothing_and_a_remade_sandbox_replaces_the_first() {
    let kubepods = Kubepods::new();
    let mut discovery = scanned(&kubepods).await;
    let namespaces = [namespace(), namespace()];
    let sandbox = Process::in_namespace(&kubepods.group("poda/sandbox"), &namespaces[0]);
    let first = found(&mut discovery).await;
    let app = Process::in_namespace(&kubepods.group("poda/app"), &namespaces[0]);

    let _new_sandbox = Process::in_namespace(&kubepods.group("poda/sandbox-2"), &namespaces[1]);
    let second = found(&mut discovery).await;
    assert_in(&second, &namespaces[1]);
    sandbox.end();
    app.end();
    assert_eq!(lost(&mut discovery).await, first.cookie);
    kubepods.remove("poda");
    assert_eq!(lost(&mut discovery).await, second.cookie);
}

#[tokio::test]
async fn a_removed_pods_namespace_is_not_kept_alive() {
    let kubepods = Kubepods::new();
    let mut discovery = scanned(&kubepods).await;
    let namespace = namespace();
    let process = Process::in_namespace(&kubepods.group("poda/c"), &namespace);
    // A veth pair lives as long as both its ends' namespaces.
    let link = format!("slp{}", process.0.id());
    let (pid, end) = (process.0.id().to_string(), Path::new("/sys/class/net").join(&link));
    let add = ["link", "add", &link, "type", "veth", "peer", "name", "eth0", "netns", &pid];
    assert!(Command::new("ip").args(add).status().unwrap().success());
    let found = found(&mut discovery).await;
    drop(namespace);
    process.end();
    assert_eq!(lost(&mut discovery).await, found.cookie);
    assert!(end.exists(), "whoever took the pod still holds the namespace");

    drop(found);
    while end.exists() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_pod_of_the_hosts_network_is_never_found() {
    let kubepods = Kubepods::new();
    let _host = Process::in_host_network(&kubepods.group("burstable/podhost/c"));
    let mut discovery = scanned(&kubepods).await;
    let _another = Process::in_host_network(&kubepods.group("burstable/podhost/c2"));
    let namespace = namespace();
    let _process = Process::in_namespace(&kubepods.group("poda/c"), &namespace);
    assert_eq!(found(&mut discovery).await.uid, PodUid::new("a"));
    quiet(&mut discovery).await;
}

#[tokio::test]
async fn a_pod_in_the_network_of_a_node_that_is_itself_a_namespace_is_never_found() {
    let kubepods = Kubepods::new();
    let mut discovery = scanned(&kubepods).await;
    let node = namespace();
    // A runtime of that node starts a process of the pod, which stays in its network.
    let procs = kubepods.group("podhost/c").join("cgroup.procs");
    let mut runtime = Command::new("sh");
    runtime.args(["-c", &format!("sleep 1000 & echo $! > {}; wait", procs.display())]);
    let network = node.try_clone().unwrap();
    let enter = move || {
        // SAFETY: the descriptor is open, and this process is to stay there.
        match unsafe { libc::setns(network.as_raw_fd(), libc::CLONE_NEWNET) } {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        }
    };
    // SAFETY: between fork and exec it makes one system call.
    unsafe { runtime.pre_exec(enter) };
    let _runtime = Process(runtime.spawn().unwrap());
    while fs::read_to_string(&procs).unwrap().is_empty() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let namespace = namespace();
    let _process = Process::in_namespace(&kubepods.group("poda/c"), &namespace);
    assert_eq!(found(&mut discovery).await.uid, PodUid::new("a"));
    quiet(&mut discovery).await;
}

#[tokio::test]
async fn a_namespace_that_the_kernel_reports_is_found_though_nothing_else_told_of_it() {
    let kubepods = Kubepods::new();
    let mut discovery = scanned(&kubepods).await;
    let namespaces = [namespace(), namespace()];
    let group = kubepods.group("poda/c");
    let _first = Process::in_namespace(&group, &namespaces[0]);
    found(&mut discovery).await;
    quiet(&mut discovery).await;
    // The group has a process already, so a second one raises no event.
    let second = Process::in_namespace(&group, &namespaces[1]);
    quiet(&mut discovery).await;
    discovery.reported(NetnsCookie(u64::MAX), second.0.id()).unwrap();
    assert_in(&found(&mut discovery).await, &namespaces[1]);
}

#[tokio::test]
async fn a_tree_that_goes_away_is_an_error() {
    let kubepods = Kubepods::new();
    let mut discovery = scanned(&kubepods).await;
    fs::remove_dir(&kubepods.0).unwrap();
    let error = tokio::time::timeout(PATIENCE, discovery.next()).await.unwrap().unwrap_err();
    assert!(error.to_string().contains("kubepods is gone"), "{error}");
}
