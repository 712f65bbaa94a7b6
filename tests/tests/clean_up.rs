//! Nothing of a simulated node stays behind: on drop, on panic, on signals, after SIGKILL; and the snapshot that says so
//! tells what is there. Needs root and fails without.

use std::io::{BufRead, BufReader};
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;

use anyhow::{Context, Result};
use testbed::{Netns, Node, Pod, Process, Service, ServiceSpec, Snapshot, program};

/// Every test here compares the machine before and after, so each runs alone.
static MACHINE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    MACHINE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A node with one of everything in it. Its parts are dropped in this order.
struct BusyNode {
    processes: Vec<Process>,
    services: Vec<Service>,
    pods: Vec<Pod>,
    node: Node,
}

fn busy_node() -> Result<BusyNode> {
    let node = Node::new()?;
    let pods = vec![node.pod("client")?, node.pod("server")?];
    let service = node.service(ServiceSpec::grpc("echo", 7000))?;
    service.add_endpoint(&pods[1])?;
    let processes = vec![
        pods[0].command("sh").args(["-c", "setsid sleep 1000 & sleep 1000"]).spawn()?,
        pods[1].command("sleep").arg("1000").spawn()?,
        node.command("sleep").arg("1000").spawn()?,
    ];
    Ok(BusyNode { processes, services: vec![service], pods, node })
}

#[test]
fn nothing_stays_behind_a_dropped_node() -> Result<()> {
    let _exclusive = alone();
    let before = Snapshot::take()?;
    let busy = busy_node()?;
    let during = Snapshot::take()?.new_since(&before);
    for kind in ["process ", "netns ", "cgroup ", "folder "] {
        assert!(during.iter().any(|thing| thing.starts_with(kind)), "a running node shows a {kind}: {during:?}");
    }
    let touched = during.iter().find(|thing| thing.starts_with("link ") || thing.starts_with("nft "));
    assert_eq!(touched, None, "the host's own links and tables are not the node's");
    drop(busy);
    before.wait_until_restored()
}

#[test]
fn nothing_stays_behind_when_the_node_goes_first() -> Result<()> {
    let _exclusive = alone();
    let before = Snapshot::take()?;
    let BusyNode { node, pods, services, processes } = busy_node()?;
    drop(node);
    assert!(pods[0].command("true").status().is_err(), "a pod without its node runs nothing");
    drop((pods, services, processes));
    before.wait_until_restored()
}

#[test]
fn nothing_stays_behind_a_panic() -> Result<()> {
    let _exclusive = alone();
    let before = Snapshot::take()?;
    let outcome = thread::spawn(|| {
        let _busy = busy_node().unwrap();
        panic!("on purpose");
    })
    .join();
    assert!(outcome.is_err());
    before.wait_until_restored()
}

/// Loads the least program there is, a socket filter that returns 0.
fn load_program() -> Result<OwnedFd> {
    #[repr(C)]
    struct Load {
        program_type: u32,
        instruction_count: u32,
        instructions: *const u64,
        license: *const libc::c_char,
        zero: [u64; 12],
    }
    // bpf(2): BPF_PROG_LOAD, BPF_PROG_TYPE_SOCKET_FILTER; `r0 = 0; exit`.
    let instructions = [0xb7_u64, 0x95];
    let load = Load {
        program_type: 1,
        instruction_count: 2,
        instructions: instructions.as_ptr(),
        license: c"Apache-2.0".as_ptr(),
        zero: [0; 12],
    };
    // SAFETY: the kernel reads `load` and what it points to, all of which outlives the call; it returns a new
    // descriptor that nobody else owns.
    unsafe {
        let fd = libc::syscall(libc::SYS_bpf, 5, &raw const load, size_of::<Load>());
        anyhow::ensure!(fd >= 0, "bpf(BPF_PROG_LOAD): {}", std::io::Error::last_os_error());
        Ok(OwnedFd::from_raw_fd(fd as i32))
    }
}

#[test]
fn a_snapshot_tells_a_program_and_a_namespace_that_are_still_held() -> Result<()> {
    let _exclusive = alone();
    let before = Snapshot::take()?;
    let (program, namespace) = (load_program()?, Netns::new()?);
    let held = Snapshot::take()?.new_since(&before);
    assert_eq!(held.len(), 2, "{held:?}");
    assert!(held.iter().any(|thing| thing.starts_with("bpf prog ")), "{held:?}");
    assert!(held.iter().any(|thing| thing.starts_with("netns net:[")), "{held:?}");
    drop((program, namespace));
    before.wait_until_restored()
}

/// Another process that holds a node, and the node's cgroup.
fn run_elsewhere() -> Result<(Child, PathBuf)> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_busy-node"));
    heed_signals(&mut command);
    let mut child = command.stdout(Stdio::piped()).spawn()?;
    let mut cgroup = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut cgroup)?;
    Ok((child, PathBuf::from(cgroup.trim())))
}

/// Lets signals end what is started, as from a terminal.
fn heed_signals(command: &mut Command) {
    // A background job of a shell ignores SIGINT, and so would its children; under nohup it is SIGHUP.
    let heed = || {
        for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
            // SAFETY: takes plain integers and is async-signal-safe.
            unsafe { libc::signal(signal, libc::SIG_DFL) };
        }
        Ok(())
    };
    // SAFETY: the closure runs between fork and exec and only makes the call above.
    unsafe { command.pre_exec(heed) };
}

#[test]
fn nothing_stays_behind_a_signal() -> Result<()> {
    let _exclusive = alone();
    for signal in ["INT", "TERM", "HUP"] {
        let before = Snapshot::take()?;
        let (mut child, cgroup) = run_elsewhere()?;
        assert!(cgroup.exists());
        assert!(Command::new("kill").args([&format!("-{signal}"), &child.id().to_string()]).status()?.success());
        let status = child.wait()?;
        let number = [("INT", 2), ("TERM", 15), ("HUP", 1)].iter().find(|(name, _)| *name == signal).map(|it| it.1);
        assert_eq!(status.signal(), number, "the process dies of the signal: {status}");
        assert!(!cgroup.exists(), "{signal}");
        before.wait_until_restored()?;
    }
    Ok(())
}

#[test]
fn what_a_killed_process_left_is_swept_by_the_next_node() -> Result<()> {
    let _exclusive = alone();
    let before = Snapshot::take()?;
    let (mut child, cgroup) = run_elsewhere()?;
    assert!(cgroup.exists());
    child.kill()?;
    child.wait()?;
    drop(Node::new()?);
    assert!(!cgroup.exists());
    before.wait_until_restored()
}

#[test]
fn a_living_processs_node_is_not_swept() -> Result<()> {
    let _exclusive = alone();
    let before = Snapshot::take()?;
    let (mut child, cgroup) = run_elsewhere()?;
    drop(Node::new()?);
    assert!(cgroup.join("kubepods").exists());
    assert!(Command::new("kill").arg(child.id().to_string()).status()?.success());
    child.wait()?;
    before.wait_until_restored()
}

/// `cargo xtask` with programs that are built already.
fn xtask(task: &[&str]) -> Result<Command> {
    ["sluice-agent", "loadtest"].into_iter().try_for_each(|name| program(name).map(drop))?;
    let xtask = program("xtask")?;
    let folder = xtask.parent().context("a program lies in a folder")?;
    let mut command = Command::new(&xtask);
    command.args(task).arg("--programs").arg(folder).process_group(0);
    heed_signals(&mut command);
    Ok(command)
}

/// A folder for reports, gone with the guard.
struct Reports(PathBuf);

impl Reports {
    fn new() -> Result<Self> {
        let path = std::env::temp_dir().join(format!("sluice-reports-{}", std::process::id()));
        std::fs::create_dir_all(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Reports {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn nothing_stays_behind_a_demo_and_a_playground() -> Result<()> {
    let _exclusive = alone();
    let reports = Reports::new()?;
    let before = Snapshot::take()?;
    let demo = xtask(&["demo", "--rpcs", "500"])?.arg("--report").arg(&reports.0).output()?;
    assert!(demo.status.success(), "{}", String::from_utf8_lossy(&demo.stderr));
    assert!(reports.0.join("report.html").is_file());
    before.wait_until_restored()?;

    let script = "loadtest run $SLUICE_SERVICE --rpcs 500 --max-failed 0 && exit 7";
    let playground = xtask(&["node", "run"])?.args(["--", "sh", "-c", script]).output()?;
    assert_eq!(playground.status.code(), Some(7), "{}", String::from_utf8_lossy(&playground.stderr));
    before.wait_until_restored()
}

/// Starts the task, waits until it says `line`, sends SIGINT to the whole group as a terminal does, and waits for its end.
fn interrupt(mut task: Command, line: &str) -> Result<()> {
    let mut child = task.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let said = BufReader::new(child.stderr.take().unwrap()).lines();
    let (mut told, mut all) = (false, String::new());
    for next in said.map_while(Result::ok) {
        all += &format!("{next}\n");
        if !told && next.contains(line) {
            told = true;
            // SAFETY: takes plain integers; not waited for yet, so the group is still this child's.
            unsafe { libc::kill(-(child.id() as libc::pid_t), libc::SIGINT) };
        }
    }
    let status = child.wait()?;
    anyhow::ensure!(told, "it never said {line:?}: {status}: {all}");
    assert_eq!(status.signal(), Some(libc::SIGINT), "{line}: {status}: {all}");
    Ok(())
}

#[test]
fn nothing_stays_behind_a_demo_or_a_playground_that_is_interrupted() -> Result<()> {
    let _exclusive = alone();
    let reports = Reports::new()?;
    for line in ["making a node", "starting the agent", "calling"] {
        let before = Snapshot::take()?;
        let mut demo = xtask(&["demo", "--rpcs", "10000000"])?;
        demo.arg("--report").arg(&reports.0);
        interrupt(demo, line)?;
        before.wait_until_restored()?;
    }
    let before = Snapshot::take()?;
    let mut playground = xtask(&["node", "run", "--client-pods", "2"])?;
    // What ignores the signal goes as well.
    playground.args(["--", "sh", "-c", "trap '' INT; echo it runs >&2; while sleep 1; do :; done"]);
    interrupt(playground, "it runs")?;
    before.wait_until_restored()
}
