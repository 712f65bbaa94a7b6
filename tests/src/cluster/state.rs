//! What a cluster is on this machine: one folder, one cgroup in every hierarchy, and links. In: files, tools and processes
//! that make it; out: the same gone without a trace, however the cluster ended. Each thing is made under one lock, which
//! the removal takes too: what a signal removes does not come back. Knows nothing of Kubernetes.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::network;
use crate::cgroup;
use crate::cleanup::{self, started_at};
use crate::netns::{check, find_tool};

/// Everything of the cluster that is a file. Fixed, because there is one cluster at a time on a machine; short, because
/// paths of sockets are limited to 107 bytes.
const FOLDER: &str = "/var/lib/sluice-cluster";
/// In the folder: says that it is ours to remove, and so the links.
const MARK: &str = "made-by-cargo-xtask-cluster";
/// The cgroup of everything that runs, in every hierarchy: `system`, and one for each node's pods.
pub(super) const CGROUP: &str = "sluice-cluster";
/// Where programs that are no part of the cluster are looked for.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Lines of a log that an error shows.
const LOG_SHOWN: usize = 15;

static MAKING: Mutex<()> = Mutex::new(());

fn making() -> MutexGuard<'static, ()> {
    MAKING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A path of the cluster's folder.
pub(super) fn path(inner: impl AsRef<Path>) -> PathBuf {
    Path::new(FOLDER).join(inner)
}

/// Held by the one who makes or removes the cluster; gone with the process.
pub(super) fn lock() -> Result<UnixListener> {
    // An abstract name: no file, so nothing to leave behind.
    let address = SocketAddr::from_abstract_name(CGROUP)?;
    UnixListener::bind_addr(&address).map_err(|error| match error.kind() {
        io::ErrorKind::AddrInUse => anyhow::anyhow!(
            "another `cargo xtask cluster` is just making or removing the cluster, and a machine has one: try again \
             when that has ended"
        ),
        _ => anyhow::Error::new(error).context("cannot bind an abstract socket"),
    })
}

/// From now on a signal removes the cluster before it ends this process; or not any more.
pub(super) fn remove_on_signal(wanted: bool) -> Result<()> {
    let remove_for_good = || {
        // Never released: the process ends, and until then nothing more is made.
        std::mem::forget(making());
        // Standard error may be gone together with what sent the signal.
        let _ = writeln!(io::stderr(), "removing the cluster");
        remove_what_is_there()
    };
    cleanup::on_signal(wanted.then_some(remove_for_good))
}

/// What is there of a cluster, alive or not: its folder and its cgroups.
pub(crate) fn traces() -> Vec<PathBuf> {
    let groups = hierarchies().unwrap_or_default().into_iter().map(|root| root.join(CGROUP));
    groups.filter(|path| path.exists()).chain(is_ours().then(|| path(""))).collect()
}

/// Whether the folder is a cluster's: somebody else's of that name is neither used nor removed.
fn is_ours() -> bool {
    path(MARK).exists()
}

/// Makes the folder and the cgroups: `system` for the cluster's own processes, and these.
pub(super) fn make(nodes: &[&str]) -> Result<()> {
    let _making = making();
    if path("").exists() && !is_ours() {
        bail!("{FOLDER} is in the way and is no cluster's: look at it, and move or remove it");
    }
    fs::create_dir(path("")).with_context(|| format!("cannot make {FOLDER}"))?;
    fs::write(path(MARK), "").with_context(|| format!("cannot write {MARK} in {FOLDER}"))?;
    for folder in ["processes", "log"] {
        fs::create_dir(path(folder))?;
    }
    for root in hierarchies()? {
        let cluster = root.join(CGROUP);
        for group in [&cluster].into_iter().chain(&nodes.iter().map(|node| cluster.join(node)).collect::<Vec<_>>()) {
            cgroup::make(group)?;
            settle(group)?;
        }
    }
    cgroup::make(&system()?)
}

/// What a new group needs before processes can join it or those below: version 1's cpuset starts without processors,
/// version 2 gives no controller away unless told.
fn settle(group: &Path) -> Result<()> {
    let parent = group.parent().context("a group below a root")?;
    for file in ["cpuset.cpus", "cpuset.mems"] {
        if parent.join(file).is_file() && !group.join("cgroup.controllers").exists() {
            fs::write(group.join(file), fs::read(parent.join(file))?)
                .with_context(|| format!("cannot set {}", group.join(file).display()))?;
        }
    }
    for controller in fs::read_to_string(group.join("cgroup.controllers")).unwrap_or_default().split_whitespace() {
        // Some cannot be given away on some machines; the kubelet says which one it misses.
        let _ = fs::write(group.join("cgroup.subtree_control"), format!("+{controller}"));
    }
    Ok(())
}

/// Makes a folder outside of the cluster's own unless it is there; it goes with the cluster, if nothing is in it then.
pub(super) fn mount_point(folder: &str) -> Result<()> {
    let _making = making();
    if !Path::new(folder).exists() {
        let mut list = File::options().create(true).append(true).open(path("mount-points"))?;
        writeln!(list, "{folder}")?;
        fs::create_dir(folder).with_context(|| format!("cannot make {folder}"))?;
    }
    Ok(())
}

/// Makes a folder of the cluster's, and those above.
pub(super) fn folder(inner: impl AsRef<Path>) -> Result<PathBuf> {
    let _making = making();
    anyhow::ensure!(path("").exists(), "the cluster is gone");
    let folder = path(inner);
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    Ok(folder)
}

/// Writes a file of the cluster's, in a folder that is there.
pub(super) fn write(inner: impl AsRef<Path>, content: impl AsRef<[u8]>) -> Result<PathBuf> {
    let _making = making();
    let file = path(inner);
    fs::write(&file, content).with_context(|| format!("cannot write {}", file.display()))?;
    Ok(file)
}

/// A command with nothing of this process's environment: no proxy, no settings of the user's.
pub(super) fn command(program: impl AsRef<Path>) -> Command {
    let program = program.as_ref();
    let found = program.to_str().filter(|name| !name.contains('/')).and_then(find_tool);
    let mut command = Command::new(found.unwrap_or_else(|| program.to_owned()));
    command.env_clear().env("PATH", PATH).env("HOME", FOLDER);
    command
}

/// Runs a tool that makes something, with `input`, to its end.
pub(super) fn run(command: &mut Command, input: &str) -> Result<String> {
    let _making = making();
    output(command, input.as_bytes())
}

/// Runs a command with `input` to its end and gives what it says.
pub(super) fn output(command: &mut Command, input: &[u8]) -> Result<String> {
    let shown = format!("{command:?}");
    let shown = shown.rsplit(" -- ").next().unwrap_or(&shown).replace('"', "");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("cannot start {shown}"))?;
    let mut stdin = child.stdin.take().context("no stdin")?;
    let output = thread::scope(|scope| {
        // A tool that dies early says why on standard error, below.
        scope.spawn(move || stdin.write_all(input));
        child.wait_with_output()
    })?;
    if !output.status.success() {
        bail!("{shown}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Starts a process that outlives this one, in the cluster's cgroup, with a log and a session of its own.
pub(super) fn spawn(name: &str, mut command: Command) -> Result<u32> {
    let _making = making();
    let log = File::options().create(true).append(true).open(path("log").join(format!("{name}.log")))?;
    let procs = File::options().write(true).open(system()?.join("cgroup.procs")).context("the cluster is gone")?;
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    let begin = move || {
        // SAFETY: all are async-signal-safe; the descriptor is owned by this closure ("0" is the writer itself).
        unsafe {
            check(libc::setsid())?;
            let written = libc::write(std::os::fd::AsRawFd::as_raw_fd(&procs), c"0".as_ptr().cast(), 1);
            check(if written == 1 { 0 } else { -1 })?;
            // It outlives this process, and must not go on to hold what that was given: a lock of the caller's, a pipe.
            check(libc::close_range(3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC as libc::c_int))
        }
    };
    // SAFETY: the closure runs between fork and exec and makes only the async-signal-safe calls above.
    unsafe { command.pre_exec(begin) };
    let mut child = command.spawn().with_context(|| format!("cannot start {name}"))?;
    let pid = child.id();
    let started = started_at(pid).with_context(|| format!("{name} died at once: {}", log_end(name)))?;
    fs::write(path("processes").join(name), format!("{pid} {started}"))?;
    // Whoever starts it collects it; if that process ends first, init does.
    thread::Builder::new().name(format!("wait-{name}")).spawn(move || child.wait())?;
    Ok(pid)
}

/// The process of this name, if it lives.
pub(super) fn process(name: &str) -> Option<u32> {
    let record = fs::read_to_string(path("processes").join(name)).ok()?;
    let (pid, started) = record.split_once(' ')?;
    let (pid, started) = (pid.parse().ok()?, started.parse().ok()?);
    (started_at(pid) == Some(started)).then_some(pid)
}

/// The names of processes that should live and do not.
pub(super) fn dead() -> Vec<String> {
    let Ok(entries) = fs::read_dir(path("processes")) else { return Vec::new() };
    let names = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter(|name| process(name).is_none()).collect()
}

/// Ends a process as a crash would.
pub(super) fn kill(name: &str) -> Result<()> {
    let _making = making();
    let pid = process(name).with_context(|| format!("{name} does not run"))?;
    // SAFETY: takes plain integers; the process is the one that was started, by its start time.
    check(unsafe { libc::kill(pid as libc::pid_t, libc::SIGKILL) }).with_context(|| format!("cannot kill {name}"))?;
    wait_for(&format!("{name} to end"), || Ok(process(name).is_none()))
}

/// How long anything may take. Generous: the machine may be a slow one, and busy.
const WITHIN: Duration = Duration::from_secs(300);

/// Asks until the answer is yes, or an error.
pub(super) fn wait_for(what: &str, mut done: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + WITHIN;
    while !done().with_context(|| format!("waited for {what}"))? {
        if Instant::now() > deadline {
            bail!("waited {WITHIN:?} in vain for {what}");
        }
        thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

/// What a process has said so far; nothing if there is no such process.
pub(super) fn log(name: &str) -> String {
    fs::read_to_string(path("log").join(format!("{name}.log"))).unwrap_or_default()
}

/// The last lines of a process's log.
pub(super) fn log_end(name: &str) -> String {
    let log = log(name);
    let lines: Vec<_> = log.lines().collect();
    lines[lines.len().saturating_sub(LOG_SHOWN)..].join("\n")
}

/// Removes everything of the cluster. Fine if there is nothing.
pub(super) fn remove() -> Result<()> {
    let _making = making();
    remove_what_is_there()
}

fn remove_what_is_there() -> Result<()> {
    // The processes hold the namespaces, and these the mounts, links and rules: all of it goes with them.
    let mut results: Vec<_> = hierarchies()?.iter().map(|root| cgroup::remove(&root.join(CGROUP))).collect();
    if is_ours() {
        results.push(network::remove());
        for folder in fs::read_to_string(path("mount-points")).unwrap_or_default().lines() {
            // Somebody else may have put something there meanwhile: then it stays.
            let _ = fs::remove_dir(folder);
        }
        results.push(remove_folder().with_context(|| format!("cannot remove {FOLDER}")));
    }
    results.into_iter().collect()
}

/// The mark goes last: what a killed process leaves is still ours.
fn remove_folder() -> io::Result<()> {
    for entry in fs::read_dir(path(""))? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        } else if entry.file_name() != MARK {
            fs::remove_file(entry.path())?;
        }
    }
    fs::remove_file(path(MARK))?;
    fs::remove_dir(path(""))
}

fn system() -> Result<PathBuf> {
    Ok(cgroup::v2_mount()?.join(CGROUP).join("system"))
}

/// The roots of all cgroup hierarchies; version 2 first, because its groups can be killed at once.
fn hierarchies() -> Result<Vec<PathBuf>> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("cannot read /proc/self/mountinfo")?;
    let second = cgroup::v2_mount()?;
    let first = mounts.lines().filter_map(|line| {
        let (mount, source) = line.split_once(" - ")?;
        source.starts_with("cgroup ").then(|| mount.split(' ').nth(4).map(PathBuf::from))?
    });
    Ok([second].into_iter().chain(first).collect())
}
