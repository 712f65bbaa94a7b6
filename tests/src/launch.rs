//! Processes of a pod or of the node itself, started as runc starts them: fork, own pid into the cgroup, into the
//! namespaces, exec. In: a program; out: a guard that kills it and all it started. Knows no image and no mount namespace.

use std::ffi::{CString, OsStr};
use std::fs::{self, File};
use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::{io, thread};

use anyhow::{Context, Result, bail};

use crate::cgroup;
use crate::netns::{self, Netns, check};

/// Forks on one thread that lives as long as its node: the kernel's parent-death signal comes when the *thread* that
/// forked ends, and a test's thread may end long before its node.
#[derive(Debug)]
pub(crate) struct Spawner {
    jobs: Mutex<Option<Sender<Job>>>,
}

type Job = (Command, mpsc::SyncSender<io::Result<Child>>);

impl Spawner {
    pub(crate) fn start() -> Result<Self> {
        let (jobs, queue) = mpsc::channel::<Job>();
        let serve = move || {
            for (mut command, reply) in queue {
                // The one who asked waits for the answer; if it died meanwhile, the child has no owner.
                if let Err(mpsc::SendError(Ok(mut child))) = reply.send(command.spawn()) {
                    let _ = child.kill();
                    let _ = child.wait();
                }
            }
        };
        thread::Builder::new().name("testbed-spawner".into()).spawn(serve).context("cannot start a thread")?;
        Ok(Self { jobs: Mutex::new(Some(jobs)) })
    }

    fn spawn(&self, command: Command) -> Result<Child> {
        let (reply, answer) = mpsc::sync_channel(1);
        match &*self.jobs.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(jobs) => jobs.send((command, reply)).ok().context("the node's spawner is gone")?,
            None => bail!("the node is gone: keep `Node` alive while its pods run something"),
        }
        Ok(answer.recv().context("the node's spawner is gone")??)
    }

    /// No more processes from now on.
    pub(crate) fn stop(&self) {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

/// A program about to start in a pod or on the node; made by `Pod::command` and `Node::command`.
#[must_use = "nothing runs until `spawn`, `status` or `output`"]
pub struct Launch {
    command: Command,
    program: String,
    cgroup: PathBuf,
    netns: Arc<Netns>,
    hostname: Option<String>,
    spawner: Arc<Spawner>,
}

impl Launch {
    pub(crate) fn new(program: &OsStr, cgroup: PathBuf, netns: Arc<Netns>, spawner: Arc<Spawner>) -> Self {
        let program_name = program.to_string_lossy().into_owned();
        Self { command: Command::new(program), program: program_name, cgroup, netns, hostname: None, spawner }
    }

    /// A UTS namespace of its own with this host name.
    pub fn hostname(mut self, name: &str) -> Self {
        self.hostname = Some(name.to_owned());
        self
    }

    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.command.arg(arg);
        self
    }

    pub fn args(mut self, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        self.command.args(args);
        self
    }

    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    pub fn current_dir(mut self, folder: impl AsRef<Path>) -> Self {
        self.command.current_dir(folder);
        self
    }

    pub fn stdin(mut self, stdin: impl Into<Stdio>) -> Self {
        self.command.stdin(stdin);
        self
    }

    pub fn stdout(mut self, stdout: impl Into<Stdio>) -> Self {
        self.command.stdout(stdout);
        self
    }

    pub fn stderr(mut self, stderr: impl Into<Stdio>) -> Self {
        self.command.stderr(stderr);
        self
    }

    /// Starts it. The standard streams are inherited unless set.
    pub fn spawn(mut self) -> Result<Process> {
        // Only the last directory: what a node that is gone had is not made again.
        fs::create_dir(&self.cgroup)
            .with_context(|| format!("cannot make the cgroup {}: is its pod gone?", self.cgroup.display()))?;
        let procs = self.cgroup.join("cgroup.procs");
        let procs = File::options().write(true).open(&procs).with_context(|| format!("cannot open {procs:?}"))?;
        let hostname = self.hostname.take().map(CString::new).transpose().context("a host name without NUL")?;
        let netns = Arc::clone(&self.netns);
        let enter = move || {
            // "0" is the writer itself.
            // SAFETY: the descriptor is open, owned by this closure, and the byte outlives the call.
            check(if unsafe { libc::write(procs.as_raw_fd(), c"0".as_ptr().cast(), 1) } == 1 { 0 } else { -1 })?;
            netns::enter(netns.fd())?;
            if let Some(name) = &hostname {
                netns::unshare(libc::CLONE_NEWUTS)?;
                // SAFETY: the pointer and the length are of one living string.
                check(unsafe { libc::sethostname(name.as_ptr(), name.as_bytes().len()) })?;
            }
            // SAFETY: takes plain integers.
            check(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) })
        };
        // SAFETY: the closure runs between fork and exec and makes only the async-signal-safe calls above: no
        // allocation, no lock.
        unsafe { self.command.pre_exec(enter) };
        match self.spawner.spawn(self.command) {
            Ok(child) => Ok(Process { child, program: self.program, cgroup: self.cgroup }),
            Err(error) => {
                let _ = cgroup::remove(&self.cgroup);
                Err(error.context(format!("cannot start {}", self.program)))
            }
        }
    }

    /// Runs it to its end.
    pub fn status(self) -> Result<ExitStatus> {
        self.spawn()?.wait()
    }

    /// Runs it to its end with empty input and collects what it says, whatever its status.
    pub fn output(self) -> Result<Output> {
        let mut process = self.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let (mut out, mut err) = (process.stdout().context("no stdout")?, process.stderr().context("no stderr")?);
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        thread::scope(|scope| {
            let reader = scope.spawn(|| err.read_to_end(&mut stderr));
            out.read_to_end(&mut stdout).and(reader.join().unwrap_or(Ok(0)))
        })
        .context("cannot read a process's output")?;
        Ok(Output { status: process.wait()?, stdout, stderr })
    }

    /// Runs it to its end and gives what it wrote to standard output; an error if its status is not 0.
    pub fn read(self) -> Result<String> {
        let program = self.program.clone();
        let output = self.output()?;
        if !output.status.success() {
            bail!("{program}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

/// A running process in a cgroup of its own. Dropping it kills it and everything it started.
#[derive(Debug)]
pub struct Process {
    child: Child,
    program: String,
    cgroup: PathBuf,
}

impl Process {
    /// Process id, as the host sees it.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its cgroup: in a pod, the container's.
    pub fn cgroup(&self) -> &Path {
        &self.cgroup
    }

    pub fn stdin(&mut self) -> Option<ChildStdin> {
        self.child.stdin.take()
    }

    pub fn stdout(&mut self) -> Option<ChildStdout> {
        self.child.stdout.take()
    }

    pub fn stderr(&mut self) -> Option<ChildStderr> {
        self.child.stderr.take()
    }

    /// Waits for its end.
    pub fn wait(&mut self) -> Result<ExitStatus> {
        self.child.wait().with_context(|| format!("cannot wait for {}", self.program))
    }

    /// Its status, if it has ended.
    pub fn try_wait(&mut self) -> Result<Option<ExitStatus>> {
        self.child.try_wait().with_context(|| format!("cannot wait for {}", self.program))
    }

    /// Sends a signal (`libc::SIGSTOP`, …) to the process alone. An error if it has ended.
    pub fn signal(&mut self, signal: libc::c_int) -> Result<()> {
        if let Some(status) = self.try_wait()? {
            bail!("{} has ended: {status}", self.program);
        }
        // SAFETY: takes plain integers; not waited for yet, so the id is still this child's.
        check(unsafe { libc::kill(self.child.id() as libc::pid_t, signal) })
            .with_context(|| format!("cannot signal {}", self.program))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        cgroup::kill(&self.cgroup);
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Err(error) = cgroup::remove(&self.cgroup) {
            eprintln!("testbed: {error:#}");
        }
    }
}
