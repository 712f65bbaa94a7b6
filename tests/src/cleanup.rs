//! What must go when a node goes: in, a node's cgroup and folder; out, nothing left of them, be it on drop, on a signal,
//! or at the next start after a SIGKILL. Namespaces, links and nftables rules need no care: they go with the last process.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering};
use std::sync::{Mutex, Once, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::cgroup;
use crate::netns::check;

/// What every node's name begins with.
const PREFIX: &str = "sluice-node-";
/// What ends a process that holds nodes.
const SIGNALS: [libc::c_int; 3] = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP];

/// How long a folder is tried to be removed while files appear in it.
const FOLDER_WITHIN: Duration = Duration::from_secs(5);

type Remove = fn() -> Result<()>;

/// The nodes of this process, by name.
static NODES: Mutex<BTreeMap<String, Leftovers>> = Mutex::new(BTreeMap::new());
static NUMBER: AtomicU32 = AtomicU32::new(0);
/// What else a signal removes: a cluster that is half made, say.
static ELSE: Mutex<Option<Remove>> = Mutex::new(None);

/// What a node has that outlives its processes. Removed by [`remove`].
#[derive(Clone, Debug)]
pub(crate) struct Leftovers {
    pub(crate) name: String,
    pub(crate) cgroup: PathBuf,
    pub(crate) folder: PathBuf,
}

impl Leftovers {
    /// Sweeps what dead processes left, then makes a cgroup and a folder under a name of their own.
    pub(crate) fn make() -> Result<Self> {
        let (groups, folders) = (cgroup::v2_mount()?, std::env::temp_dir());
        handle_signals()?;
        sweep(&groups, &folders);
        let pid = std::process::id();
        let started = started_at(pid).context("cannot read /proc/self/stat")?;
        let name = format!("{PREFIX}{pid}-{started}-{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        let made = Self { cgroup: groups.join(&name), folder: folders.join(&name), name };
        // Held while they are made: a signal's cleaner finds a node whole or not at all.
        let mut nodes = nodes();
        nodes.insert(made.name.clone(), made.clone());
        cgroup::make(&made.cgroup)?;
        fs::create_dir(&made.folder).with_context(|| format!("cannot make the folder {}", made.folder.display()))?;
        Ok(made)
    }

    /// Kills the node's processes and removes its cgroup and folder. May be called again.
    pub(crate) fn remove(&self) -> Result<()> {
        let removed = self.remove_what_is_there();
        nodes().remove(&self.name);
        removed
    }

    fn remove_what_is_there(&self) -> Result<()> {
        let groups = cgroup::remove(&self.cgroup);
        let deadline = Instant::now() + FOLDER_WITHIN;
        let folder = loop {
            match fs::remove_dir_all(&self.folder) {
                Err(_) if !self.folder.exists() => break Ok(()),
                // Another thread has just put a file there.
                Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty && Instant::now() < deadline => {}
                result => break result.with_context(|| format!("cannot remove {}", self.folder.display())),
            }
        };
        groups.and(folder)
    }
}

/// From now on, until it is told otherwise, a signal that ends this process first calls `remove`. What runs meanwhile on
/// other threads is for `remove` to hold up.
pub(crate) fn on_signal(remove: Option<Remove>) -> Result<()> {
    handle_signals()?;
    *ELSE.lock().unwrap_or_else(PoisonError::into_inner) = remove;
    Ok(())
}

/// Returns unless a signal is just ending this process: who would end it first waits here.
pub fn wait_for_cleaner() {
    drop(nodes());
    drop(ELSE.lock().unwrap_or_else(PoisonError::into_inner));
}

fn nodes() -> std::sync::MutexGuard<'static, BTreeMap<String, Leftovers>> {
    NODES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Removes the cgroups and folders of nodes whose process is dead.
fn sweep(groups: &Path, folders: &Path) {
    for parent in [groups, folders] {
        for path in cgroup::children(parent) {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if owner(name).is_none_or(|(pid, started)| started_at(pid) == Some(started)) {
                continue;
            }
            let removed = if parent == groups {
                cgroup::remove(&path)
            } else {
                fs::remove_dir_all(&path).with_context(|| format!("cannot remove {}", path.display()))
            };
            // Another process may be sweeping the same: only what stays is worth a word.
            if let Err(error) = removed
                && path.exists()
            {
                eprintln!("testbed: leftover of a dead node stays: {error:#}");
            }
        }
    }
}

/// Who made a node of this name: process id and start time (the pair is unique until the machine restarts).
pub(crate) fn owner(name: &str) -> Option<(u32, u64)> {
    let mut parts = name.strip_prefix(PREFIX)?.split('-');
    let (pid, started) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    Some((pid, started))
}

/// When the process started, in clock ticks since the machine did; none: no such process, or a zombie, which holds nothing.
pub(crate) fn started_at(pid: u32) -> Option<u64> {
    // proc_pid_stat(5): the second field, in parentheses, may contain anything; state is the third, start time the 22nd.
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    let state = fields.next()?;
    if matches!(state, "Z" | "X") { None } else { fields.nth(18)?.parse().ok() }
}

/// On standard error, which may be gone together with what sent the signal: then `eprintln` would panic, and nothing more
/// be removed.
pub(crate) fn complain(error: &anyhow::Error) {
    let _ = writeln!(io::stderr(), "testbed: {error:#}");
}

/// The writing end of the pipe that wakes the cleaner; -1 until it exists.
static WAKE: AtomicI32 = AtomicI32::new(-1);

extern "C" fn wake_the_cleaner(signal: libc::c_int) {
    let byte = signal as u8;
    // SAFETY: write is async-signal-safe; the pipe is never closed and `byte` outlives the call.
    unsafe { libc::write(WAKE.load(Ordering::Relaxed), (&raw const byte).cast(), 1) };
}

/// From now on a signal that ends this process first removes its nodes. A signal that is ignored or handled stays so.
fn handle_signals() -> Result<()> {
    static ONCE: Once = Once::new();
    let mut result = Ok(());
    ONCE.call_once(|| result = install());
    result
}

fn install() -> Result<()> {
    let (mut reader, writer) = std::io::pipe().context("cannot make a pipe")?;
    let writer = OwnedFd::from(writer);
    WAKE.store(writer.as_raw_fd(), Ordering::Relaxed);
    std::mem::forget(writer);
    let cleaner = move || {
        let mut signal = [0];
        if reader.read_exact(&mut signal).is_err() {
            return;
        }
        // Held to the end: no thread makes another node, and none that fails for want of its node ends the process first.
        let nodes = nodes();
        let _ = writeln!(io::stderr(), "testbed: interrupted; removing what was made here");
        for node in nodes.values() {
            if let Err(error) = node.remove_what_is_there() {
                complain(&error);
            }
        }
        let remove_else = ELSE.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(Err(error)) = remove_else.map(|remove| remove()) {
            complain(&error);
        }
        // Die of the signal, as the caller expects.
        // SAFETY: both take plain integers; nothing of this process runs after them that would need a handler.
        unsafe {
            libc::signal(i32::from(signal[0]), libc::SIG_DFL);
            libc::kill(libc::getpid(), i32::from(signal[0]));
        }
    };
    thread::Builder::new().name("testbed-cleaner".into()).spawn(cleaner).context("cannot start a thread")?;
    for signal in SIGNALS {
        // SAFETY: both structures are plain data for which zero is a value; the handler does only what
        // signal-safety(7) allows.
        unsafe {
            let mut old: libc::sigaction = std::mem::zeroed();
            check(libc::sigaction(signal, std::ptr::null(), &mut old)).context("cannot read a signal's handler")?;
            if old.sa_sigaction == libc::SIG_DFL {
                let mut new: libc::sigaction = std::mem::zeroed();
                new.sa_sigaction = wake_the_cleaner as *const () as usize;
                new.sa_flags = libc::SA_RESTART;
                check(libc::sigaction(signal, &new, std::ptr::null_mut())).context("cannot handle a signal")?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nodes_name_tells_who_made_it() {
        assert_eq!(owner("sluice-node-17-123456-0"), Some((17, 123_456)));
        assert_eq!(owner("sluice-node-x"), None);
        assert_eq!(owner("kubepods"), None);
    }

    #[test]
    fn a_process_is_known_by_its_start_time() {
        let me = std::process::id();
        assert!(started_at(me).is_some());
        assert_eq!(started_at(me), started_at(me));
        assert_eq!(started_at(u32::MAX), None);
    }
}
