//! Nothing of a cluster stays behind: after `down`, after a signal while it is made, after SIGKILL. Runs `cargo xtask
//! cluster` on a machine without a cluster (`cargo xtask cluster test` sees to that); needs root and fails without.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use testbed::{Cluster, Snapshot, program};

/// Every test here compares the machine before and after, so each runs alone.
static MACHINE: Mutex<()> = Mutex::new(());

fn alone() -> Result<MutexGuard<'static, ()>> {
    let guard = MACHINE.lock().unwrap_or_else(PoisonError::into_inner);
    ensure!(!Cluster::exists(), "a cluster is up: cargo xtask cluster down");
    Ok(guard)
}

/// Folders in which the programs of a cluster make some of their own unless they are told otherwise.
const TEMPTING: [&str; 8] =
    ["/etc", "/etc/cni", "/opt", "/root", "/usr/libexec", "/usr/libexec/kubernetes", "/var/lib", "/var/log"];
/// Settings of the whole machine which a kubelet or kube-proxy changes unless it cannot.
const SETTINGS: [&str; 7] = [
    "kernel/keys/root_maxbytes",
    "kernel/keys/root_maxkeys",
    "kernel/panic",
    "kernel/panic_on_oops",
    "net/netfilter/nf_conntrack_max",
    "vm/overcommit_memory",
    "vm/panic_on_oom",
];

/// The machine as a cluster must leave it, and not only what [`Snapshot`] knows of.
struct Before {
    snapshot: Snapshot,
    elsewhere: BTreeSet<String>,
}

impl Before {
    fn take() -> Result<Self> {
        Ok(Self { snapshot: Snapshot::take()?, elsewhere: elsewhere()? })
    }

    fn is_restored(&self) -> Result<()> {
        self.snapshot.wait_until_restored()?;
        let now = elsewhere()?;
        assert_eq!(now.difference(&self.elsewhere).collect::<Vec<_>>(), Vec::<&String>::new(), "new on the machine");
        assert_eq!(self.elsewhere.difference(&now).collect::<Vec<_>>(), Vec::<&String>::new(), "gone from the machine");
        Ok(())
    }
}

fn elsewhere() -> Result<BTreeSet<String>> {
    let mut things = BTreeSet::new();
    for folder in TEMPTING {
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        things.extend(entries.map(|entry| entry.path().display().to_string()));
    }
    for name in SETTINGS {
        let value = std::fs::read_to_string(Path::new("/proc/sys").join(name)).unwrap_or_default();
        things.insert(format!("{name} = {}", value.trim()));
    }
    for command in [&["route"][..], &["-6", "route"], &["rule"], &["-6", "rule"]] {
        let output = Command::new("ip").args(command).output().context("cannot start ip")?;
        things.extend(String::from_utf8(output.stdout)?.lines().map(|line| format!("ip {command:?} {line}")));
    }
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
    things.extend(mounts.lines().map(|line| format!("mount {line}")));
    Ok(things)
}

/// `cargo xtask cluster`, in a process group of its own, whom signals end as from a terminal.
fn xtask(task: &str) -> Result<Command> {
    let mut command = Command::new(program("xtask")?);
    command.args(["cluster", task]).process_group(0);
    let heed = || {
        for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
            // SAFETY: takes plain integers and is async-signal-safe.
            unsafe { libc::signal(signal, libc::SIG_DFL) };
        }
        // What is interrupted together with this test ends as well, and cleans up.
        // SAFETY: as above.
        unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM) };
        Ok(())
    };
    // SAFETY: the closure runs between fork and exec and only makes the calls above.
    unsafe { command.pre_exec(heed) };
    Ok(command)
}

/// Runs a task to its end.
fn run(task: &str) -> Result<String> {
    let output = xtask(task)?.output()?;
    ensure!(output.status.success(), "cluster {task}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

/// Starts `up`, waits until it says `line` and sends the signal to the whole group; gives it at its end.
fn interrupt_up(line: &str, signal: libc::c_int) -> Result<()> {
    let mut up: Child = xtask("up")?.stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
    let said = BufReader::new(up.stderr.take().context("no stderr")?).lines();
    let mut all = String::new();
    for next in said.map_while(Result::ok) {
        all += &format!("{next}\n");
        if next.contains(line) {
            // SAFETY: takes plain integers; not waited for yet, so the group is still this child's.
            unsafe { libc::kill(-(up.id() as libc::pid_t), signal) };
        }
    }
    let status = up.wait()?;
    ensure!(status.signal() == Some(signal), "at {line:?} with signal {signal}: {status}: {all}");
    Ok(())
}

#[test]
fn nothing_stays_behind_a_cluster_that_was_up() -> Result<()> {
    let _exclusive = alone()?;
    let before = Before::take()?;
    let start = Instant::now();
    run("up")?;
    println!("up takes {:.1} s", start.elapsed().as_secs_f32());
    let during = Snapshot::take()?.new_since(&before.snapshot);
    for kind in ["cluster ", "link "] {
        assert!(during.iter().any(|thing| thing.starts_with(kind)), "a running cluster shows a {kind}: {during:?}");
    }
    assert!(run("up")?.starts_with("the cluster is up already"));
    let cluster = Cluster::attach()?;
    assert_eq!(cluster.kubectl(&["get", "nodes", "--output=name"])?, "node/node-a\nnode/node-b\n");
    run_a_pod(&cluster)?;

    let start = Instant::now();
    assert_eq!(run("down")?, "the cluster is gone\n");
    println!("down takes {:.1} s", start.elapsed().as_secs_f32());
    assert!(Cluster::attach().is_err());
    before.is_restored()?;
    assert_eq!(run("down")?, "there is no cluster\n");
    before.is_restored()
}

/// With its container, sandbox, shim, volumes, mounts and links.
fn run_a_pod(cluster: &Cluster) -> Result<()> {
    let pod = r#"{ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "probe" }, "spec": { "containers": [
        { "name": "probe", "image": "sluice-probe:1", "imagePullPolicy": "Never" } ] } }"#;
    cluster.apply(pod)?;
    cluster.wait(&["--for=condition=Ready", "pod/probe"])
}

#[test]
fn nothing_stays_behind_a_signal_while_it_is_made() -> Result<()> {
    let _exclusive = alone()?;
    let lines = ["making two nodes", "starting the control plane", "starting the nodes"];
    for (line, signal) in lines.into_iter().zip([libc::SIGINT, libc::SIGTERM, libc::SIGINT]) {
        let before = Before::take()?;
        interrupt_up(line, signal)?;
        assert!(!Cluster::exists(), "{line}");
        before.is_restored().with_context(|| line.to_owned())?;
    }
    Ok(())
}

#[test]
fn what_a_killed_process_left_is_removed_by_down() -> Result<()> {
    let _exclusive = alone()?;
    let before = Before::take()?;
    interrupt_up("starting the nodes", libc::SIGKILL)?;
    assert!(Cluster::exists());
    assert!(Cluster::attach().is_err(), "a half-made cluster is none");
    assert_eq!(run("down")?, "the cluster is gone\n");
    before.is_restored()
}

#[test]
fn what_is_no_clusters_is_named_and_stays() -> Result<()> {
    let _exclusive = alone()?;
    let before = Before::take()?;
    let ip = |args: &[&str]| -> Result<()> {
        ensure!(Command::new("ip").args(args).status()?.success(), "ip {args:?}");
        Ok(())
    };
    let refusal = || -> Result<String> {
        let output = xtask("up")?.output()?;
        ensure!(!output.status.success(), "it came up");
        Ok(String::from_utf8_lossy(&output.stderr).into_owned())
    };
    ip(&["link", "add", "sluice0", "type", "bridge"])?;
    let (said, down) = (refusal(), run("down"));
    let stays = Path::new("/sys/class/net/sluice0").exists();
    ip(&["link", "del", "sluice0"])?;
    let said = said?;
    assert!(stays && said.contains("sluice0") && said.contains("ip link del"), "{said}");
    assert_eq!(down?, "there is no cluster\n");

    let folder = Path::new("/var/lib/sluice-cluster");
    std::fs::create_dir(folder)?;
    std::fs::write(folder.join("mine"), "")?;
    let (said, down) = (refusal(), run("down"));
    let stays = folder.join("mine").exists();
    std::fs::remove_dir_all(folder)?;
    let said = said?;
    assert!(stays && said.contains("/var/lib/sluice-cluster is in the way"), "{said}");
    assert_eq!(down?, "there is no cluster\n");
    before.is_restored()
}

#[test]
fn a_half_dead_cluster_is_made_anew_by_up() -> Result<()> {
    let _exclusive = alone()?;
    let before = Before::take()?;
    run("up")?;
    Cluster::attach()?.stop_api_server()?;
    let dead = format!("{:#}", Cluster::attach().unwrap_err());
    assert!(dead.contains("kube-apiserver ended"), "{dead}");
    let shell = xtask("shell")?.args(["--", "true"]).output()?;
    let said = String::from_utf8_lossy(&shell.stderr);
    assert!(
        !shell.status.success() && said.contains("kube-apiserver ended"),
        "it is not for a shell to remove: {said}"
    );
    run("up")?;
    assert_eq!(Cluster::attach()?.kubectl(&["get", "--raw", "/readyz"])?, "ok");
    run("down")?;
    before.is_restored()
}
