//! What a kernel test stands in: a cgroup and a network namespace of its own, with ClusterIPs on its loopback device.
//! A ClusterIP has a listener of its own, so that where a connect arrives shows what the programs did to it.
//! Tests take turns, because a process is in one cgroup. Everything goes when the test ends, however it ends.

use std::fs;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::num::NonZeroU16;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use sluice_agent::addr::{NetnsCookie, OriginalDst, ServiceAddr};
use sluice_agent::intercept::{Flows, Heartbeat, Intercept, PodEntry, Settings, Verdict};
use socket2::{Domain, Protocol, Socket, Type};
use tracing::level_filters::LevelFilter;

/// The ClusterIPs, on the namespace's loopback device; nothing outside the namespace has them.
pub(crate) const CLUSTER_IP4: &str = "10.96.0.10";
pub(crate) const CLUSTER_IP6: &str = "fd00:10:96::a";

/// The worker whose heartbeat stands for the test's agent.
pub(crate) const WORKER: u32 = 7;

/// Silent, and without a cgroup of its own.
pub(crate) const QUIET: Settings = Settings { own_cgroup: None, log_level: LevelFilter::OFF };

static TURN: Mutex<()> = Mutex::new(());

/// Runs `test` in a fresh cgroup and a fresh network namespace.
pub(crate) fn in_world(test: impl FnOnce(&World) + Send) {
    // SAFETY: no preconditions.
    assert_eq!(unsafe { libc::geteuid() }, 0, "kernel tests load BPF programs: run them as root");
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let cgroup = Cgroup::enter();
    let outcome = thread::scope(|scope| {
        let namespace = scope.spawn(|| {
            enter_new_netns();
            test(&World { cgroup: &cgroup, netns: netns_cookie() });
        });
        namespace.join()
    });
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}

/// The surroundings of one test; its thread, and threads made by it, are inside.
pub(crate) struct World<'a> {
    pub(crate) cgroup: &'a Cgroup,
    pub(crate) netns: NetnsCookie,
}

impl World<'_> {
    /// An agent attached here, with listeners in this namespace, enrolled, alive for the time of the test.
    pub(crate) fn agent(&self) -> Agent {
        self.agent_with(&QUIET)
    }

    pub(crate) fn agent_with(&self, settings: &Settings) -> Agent {
        let mut intercept = Intercept::load(settings).unwrap();
        intercept.attach(&self.cgroup.path).unwrap();
        let listener4 = TcpListener::bind("127.0.0.1:0").unwrap();
        let listener6 = TcpListener::bind("[::1]:0").unwrap();
        let mut heartbeat = intercept.heartbeat(WORKER).unwrap();
        // A stamp from the future is alive however slow the machine is.
        heartbeat.stamp(u64::MAX);
        let agent = Agent { flows: intercept.flows().unwrap(), intercept, listener4, listener6, heartbeat };
        agent.intercept.pods().unwrap().insert(self.netns, agent.entry()).unwrap();
        agent
    }

    /// A server on a ClusterIP, with its ServiceAddr.
    pub(crate) fn server(&self, ip: &str) -> (TcpListener, SocketAddr) {
        let listener = TcpListener::bind((ip, 0)).unwrap();
        let addr = listener.local_addr().unwrap();
        (listener, addr)
    }

    /// How many programs are attached to the cgroup itself.
    pub(crate) fn attached(&self) -> u32 {
        // BPF_CGROUP_SOCK_OPS, INET4/6_CONNECT, INET4/6_GETPEERNAME of linux/bpf.h.
        [3, 10, 11, 29, 30].into_iter().map(|hook| self.cgroup.attached(hook)).sum()
    }
}

/// An agent reduced to its kernel side and two listeners.
pub(crate) struct Agent {
    pub(crate) intercept: Intercept,
    pub(crate) listener4: TcpListener,
    pub(crate) listener6: TcpListener,
    pub(crate) heartbeat: Heartbeat,
    pub(crate) flows: Flows,
}

impl Agent {
    /// As this agent enrols the namespace.
    pub(crate) fn entry(&self) -> PodEntry {
        let port = |listener: &TcpListener| NonZeroU16::new(listener.local_addr().unwrap().port());
        PodEntry { port4: port(&self.listener4), port6: port(&self.listener6), worker: WORKER, opted_out: false }
    }

    pub(crate) fn serve(&self, service: SocketAddr) {
        self.intercept.services().unwrap().insert(ServiceAddr::new(service), 1).unwrap();
    }

    pub(crate) fn count(&self, verdict: Verdict) -> u64 {
        self.intercept.counters().unwrap().read().unwrap().get(verdict)
    }

    /// What the next connection at `listener` had dialled.
    pub(crate) fn accept(&mut self, family: Family, netns: NetnsCookie) -> Option<OriginalDst> {
        let listener = match family {
            Family::V4 => &self.listener4,
            Family::V6 => &self.listener6,
        };
        let (_stream, peer) = accept(listener);
        self.flows.take(netns, peer)
    }
}

#[derive(Clone, Copy)]
pub(crate) enum Family {
    V4,
    V6,
}

/// The connection that has arrived at `listener`. A loopback connect is in its queue before it returns: nothing there means
/// that it went elsewhere, and the test fails instead of waiting.
pub(crate) fn accept(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    listener.set_nonblocking(true).unwrap();
    listener.accept().unwrap_or_else(|error| panic!("no connection arrived at {listener:?}: {error}"))
}

/// A TCP socket of the address's family, not connected.
pub(crate) fn tcp(addr: SocketAddr) -> Socket {
    Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP)).unwrap()
}

/// The peer as getpeername tells the application, in the socket's own family.
pub(crate) fn peer(socket: &Socket) -> SocketAddr {
    socket.peer_addr().unwrap().as_socket().unwrap()
}

/// Breaks the association of a TCP socket, so that it may be connected again: connect(2) with AF_UNSPEC.
pub(crate) fn disconnect(socket: &Socket) {
    // SAFETY: a sockaddr of zeroes is a value, and AF_UNSPEC is 0.
    let unspecified: libc::sockaddr = unsafe { std::mem::zeroed() };
    // SAFETY: the pointer is to a sockaddr of the given length.
    let result = unsafe { libc::connect(socket.as_raw_fd(), &unspecified, size_of::<libc::sockaddr>() as u32) };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
}

/// A cgroup v2 that this process is in.
pub(crate) struct Cgroup {
    pub(crate) path: PathBuf,
    came_from: PathBuf,
}

impl Cgroup {
    fn enter() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let mount = cgroup2_mount();
        let own = fs::read_to_string("/proc/self/cgroup").unwrap();
        let own = own.lines().find_map(|line| line.strip_prefix("0::/")).expect("a process is in a v2 cgroup");
        let name = format!("sluice-kernel-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let cgroup = Self { path: mount.join(name), came_from: mount.join(own) };
        fs::create_dir(&cgroup.path).unwrap();
        join(&cgroup.path).unwrap();
        cgroup
    }

    /// As the kernel numbers it.
    pub(crate) fn id(&self) -> u64 {
        fs::metadata(&self.path).unwrap().ino()
    }

    fn attached(&self, hook: u32) -> u32 {
        /// The part of `union bpf_attr` that BPF_PROG_QUERY reads.
        #[repr(C)]
        #[derive(Default)]
        struct Query {
            target_fd: u32,
            attach_type: u32,
            query_flags: u32,
            attach_flags: u32,
            prog_ids: u64,
            prog_cnt: u32,
            pad: u32,
        }
        const BPF_PROG_QUERY: libc::c_long = 16;
        let directory = fs::File::open(&self.path).unwrap();
        let mut query = Query { target_fd: directory.as_raw_fd() as u32, attach_type: hook, ..Query::default() };
        // SAFETY: the kernel reads and writes no more than the given size of the struct; without ids it only counts.
        let result = unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_QUERY, &raw mut query, size_of::<Query>()) };
        assert_eq!(result, 0, "{}", io::Error::last_os_error());
        query.prog_cnt
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let left = join(&self.came_from).and_then(|()| fs::remove_dir(&self.path));
        if let Err(error) = left {
            eprintln!("cgroup {} is left behind: {error}", self.path.display());
        }
    }
}

fn join(cgroup: &Path) -> io::Result<()> {
    fs::write(cgroup.join("cgroup.procs"), std::process::id().to_string())
}

fn cgroup2_mount() -> PathBuf {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let mount = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>()).find(|fields| fields[2] == "cgroup2");
    mount.expect("kernel tests need a cgroup v2 mount").get(1).unwrap().into()
}

/// Moves this thread into a new network namespace, which goes with the last thread and socket in it.
fn enter_new_netns() {
    // SAFETY: no memory is involved; only this thread changes its namespace.
    assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNET) }, 0, "{}", io::Error::last_os_error());
    for arguments in [
        "link set lo up".to_owned(),
        format!("address add {CLUSTER_IP4}/32 dev lo"),
        format!("address add {CLUSTER_IP6}/128 dev lo nodad"),
    ] {
        let status = Command::new("ip").args(arguments.split(' ')).stdin(Stdio::null()).status().expect("iproute2");
        assert!(status.success(), "ip {arguments}");
    }
}

/// Cookie of this thread's network namespace.
fn netns_cookie() -> NetnsCookie {
    const SO_NETNS_COOKIE: i32 = 71;
    // SAFETY: no memory is involved; the descriptor is ours alone.
    let socket = unsafe { OwnedFd::from_raw_fd(libc::socket(libc::AF_INET, libc::SOCK_STREAM, 0)) };
    let mut cookie = 0_u64;
    let mut length = size_of::<u64>() as u32;
    // SAFETY: the pointers are to a value of the given length and to that length.
    let result = unsafe {
        let cookie = (&raw mut cookie).cast();
        libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, SO_NETNS_COOKIE, cookie, &mut length)
    };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
    NetnsCookie(cookie)
}
