//! Network namespaces without a name: in, nothing or a closure; out, a handle or the closure's result. Such a namespace
//! lives as long as a handle or a process is in it, so a killed owner leaves none behind. Does not configure anything.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::thread;

use anyhow::{Context, Result, bail};

/// A network namespace, kept alive by this handle.
#[derive(Debug)]
pub struct Netns {
    file: File,
}

impl Netns {
    /// Makes a new, empty namespace.
    pub fn new() -> Result<Self> {
        let make = || -> Result<Netns> {
            unshare(libc::CLONE_NEWNET).context("cannot make a network namespace: run as root (CAP_SYS_ADMIN)")?;
            Netns::current()
        };
        thread::scope(|scope| scope.spawn(make).join()).unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// The namespace of the calling thread.
    pub fn current() -> Result<Self> {
        let path = "/proc/thread-self/ns/net";
        Ok(Self { file: File::open(path).with_context(|| format!("cannot open {path}: is /proc mounted?"))? })
    }

    /// Runs `body` on a thread inside the namespace. Sockets made there stay there wherever they are used later.
    /// A panic of `body` goes on in the caller.
    pub fn run<T: Send>(&self, body: impl FnOnce() -> T + Send) -> Result<T> {
        let enter_and_run = || -> Result<T> {
            enter(self.fd()).context("cannot enter a network namespace: run as root (CAP_SYS_ADMIN)")?;
            Ok(body())
        };
        thread::scope(|scope| scope.spawn(enter_and_run).join())
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// A path of the namespace, for `nsenter --net=PATH` and `ip … netns PATH`; good while this process holds the handle.
    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), self.fd()))
    }

    /// Writes kernel settings of the namespace: pairs of a path below /proc/sys/net and a value.
    pub(crate) fn sysctl(&self, settings: &[(&str, &str)]) -> Result<()> {
        self.run(|| {
            for (name, value) in settings {
                let path = format!("/proc/sys/net/{name}");
                fs::write(&path, value)
                    .with_context(|| format!("cannot set {path} to {value}: is /proc/sys read-only?"))?;
            }
            Ok(())
        })?
    }

    /// Runs a tool of the host inside the namespace with `input` on its standard input; gives its standard output.
    pub(crate) fn tool(&self, program: &str, args: &[&str], input: &str) -> Result<String> {
        let run = || -> Result<Output> {
            let mut child = Command::new(find_tool(program).unwrap_or_else(|| program.into()))
                .args(args)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .with_context(|| format!("cannot start {program}: apt-get install {}", package_of(program)))?;
            if let Some(mut stdin) = child.stdin.take() {
                // A tool that dies early says why on standard error, below.
                let _ = stdin.write_all(input.as_bytes());
            }
            Ok(child.wait_with_output()?)
        };
        let output = self.run(run)??;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            bail!("{program} {}: {}: {}\n{input}", args.join(" "), output.status, said.trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    pub(crate) fn fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

/// Where a tool of the host lies. Looks also where a shell without a login does not: administrators' tools.
pub fn find_tool(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from));
    folders.map(|folder| folder.join(program)).find(|file| file.is_file())
}

/// The Debian package that brings a tool.
fn package_of(program: &str) -> &str {
    match program {
        "ip" | "bridge" => "iproute2",
        "nft" => "nftables",
        other => other,
    }
}

/// Moves the calling thread into the namespace behind `fd`. Async-signal-safe: may run between fork and exec.
pub(crate) fn enter(fd: RawFd) -> io::Result<()> {
    // SAFETY: setns takes plain integers; a wrong descriptor is an error, not undefined behaviour.
    check(unsafe { libc::setns(fd, libc::CLONE_NEWNET) })
}

/// Gives the calling thread namespaces of its own. Async-signal-safe.
pub(crate) fn unshare(flags: libc::c_int) -> io::Result<()> {
    // SAFETY: only called with CLONE_NEWNET and CLONE_NEWUTS, which share no memory or descriptors with other threads.
    check(unsafe { libc::unshare(flags) })
}

/// The error of a call that returned -1.
pub(crate) fn check(returned: libc::c_int) -> io::Result<()> {
    if returned == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
