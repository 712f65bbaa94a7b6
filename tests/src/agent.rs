//! The agent on a simulated node: in, its options; out, a guard for a ready `sluice-agent run` with signals and its admin
//! pages. Does not build the binary.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::launch::Process;
use crate::netns::Netns;
use crate::node::Node;
use crate::programs::program;

/// How long an agent may take until it is ready: loading programs through the verifier takes most of it.
const READY_WITHIN: Duration = Duration::from_secs(30);
/// How long an admin page may take.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// How the agent shall run. Made by [`Node::agent`].
#[must_use = "nothing runs until `start`"]
pub struct AgentBuilder<'a> {
    node: &'a Node,
    binary: Option<PathBuf>,
    workers: usize,
    admin: IpAddr,
    args: Vec<OsString>,
    env: Vec<(String, String)>,
    log: Option<PathBuf>,
}

impl<'a> AgentBuilder<'a> {
    pub(crate) fn new(node: &'a Node) -> Self {
        Self {
            node,
            binary: None,
            workers: 1,
            admin: Ipv4Addr::LOCALHOST.into(),
            args: Vec::new(),
            env: Vec::new(),
            log: None,
        }
    }

    /// The agent's file; unless set `$SLUICE_AGENT`, or `sluice-agent` beside the running program's own target folder.
    pub fn binary(mut self, path: impl Into<PathBuf>) -> Self {
        self.binary = Some(path.into());
        self
    }

    /// Worker threads; 1 unless set.
    pub fn workers(mut self, workers: usize) -> Self {
        self.workers = workers;
        self
    }

    /// The node's address of the admin pages; loopback unless set. The port is a free one.
    pub fn admin_ip(mut self, ip: impl Into<IpAddr>) -> Self {
        self.admin = ip.into();
        self
    }

    /// A further argument of `sluice-agent run`.
    pub fn arg(mut self, arg: impl Into<OsString>) -> Self {
        self.args.push(arg.into());
        self
    }

    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Where its output goes; a file in the node's folder unless set.
    pub fn log(mut self, path: impl Into<PathBuf>) -> Self {
        self.log = Some(path.into());
        self
    }

    /// Starts it and waits until `/readyz` says so.
    pub fn start(self) -> Result<Agent> {
        static NUMBER: AtomicU32 = AtomicU32::new(1);
        let node = self.node;
        let binary = match self.binary {
            Some(binary) => binary,
            None => find_binary("sluice-agent", "SLUICE_AGENT")?,
        };
        let free = node.run_in_netns(|| TcpListener::bind((self.admin, 0)).and_then(|it| it.local_addr()))?;
        let admin = free.with_context(|| format!("no free port on {} for the admin pages", self.admin))?;
        let log = self
            .log
            .unwrap_or_else(|| node.folder().join(format!("agent-{}.log", NUMBER.fetch_add(1, Ordering::Relaxed))));
        let out = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
        let mut launch = node.command(&binary);
        for (name, value) in &self.env {
            launch = launch.env(name, value);
        }
        let process = launch
            .arg("run")
            .arg("--source")
            .arg(node.source_dir())
            .arg("--cgroup")
            .arg(node.kubepods())
            .args(["--admin", &admin.to_string(), "--workers", &self.workers.to_string()])
            .args(&self.args)
            .stdin(Stdio::null())
            .stdout(out.try_clone()?)
            .stderr(out)
            .spawn()?;
        let mut agent = Agent { process, admin, log, netns: Arc::clone(&node.inner.netns) };
        agent.wait_ready()?;
        Ok(agent)
    }
}

/// A program of this workspace: named by the variable, or beside the running one.
pub(crate) fn find_binary(name: &str, variable: &str) -> Result<PathBuf> {
    match std::env::var_os(variable) {
        Some(path) => Ok(path.into()),
        None => program(name).with_context(|| format!("{variable}=PATH names another")),
    }
}

/// A running agent. Dropping it kills it.
#[derive(Debug)]
pub struct Agent {
    process: Process,
    admin: SocketAddr,
    log: PathBuf,
    netns: Arc<Netns>,
}

/// An answer of the admin pages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    pub status: u16,
    pub body: String,
}

impl Agent {
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Where its admin pages are, in the node's network namespace.
    pub fn admin(&self) -> SocketAddr {
        self.admin
    }

    /// The file that it writes to.
    pub fn log_file(&self) -> &Path {
        &self.log
    }

    /// Everything it has written so far.
    pub fn log(&self) -> Result<String> {
        fs::read_to_string(&self.log).with_context(|| format!("cannot read {}", self.log.display()))
    }

    /// Sends a signal: `libc::SIGKILL`, `SIGSTOP`, `SIGCONT`, `SIGTERM`.
    pub fn signal(&mut self, signal: i32) -> Result<()> {
        self.process.signal(signal)
    }

    /// Waits for its end, which something else must have brought about.
    pub fn wait(&mut self) -> Result<ExitStatus> {
        self.process.wait()
    }

    /// Its status, if it has ended.
    pub fn try_wait(&mut self) -> Result<Option<ExitStatus>> {
        self.process.try_wait()
    }

    /// SIGTERM, then its end however long it drains.
    pub fn stop(mut self) -> Result<ExitStatus> {
        self.signal(libc::SIGTERM)?;
        self.wait()
    }

    /// `GET path` of the admin pages.
    pub fn get(&self, path: &str) -> Result<Response> {
        self.netns.run(|| get(self.admin, path))?
    }

    /// `/status.json`.
    pub fn status(&self) -> Result<Value> {
        let response = self.get("/status.json")?;
        if response.status != 200 {
            bail!("/status.json: {}: {}", response.status, response.body);
        }
        serde_json::from_str(&response.body).context("/status.json is not JSON")
    }

    /// `/metrics`, the Prometheus text.
    pub fn metrics(&self) -> Result<String> {
        let response = self.get("/metrics")?;
        if response.status != 200 {
            bail!("/metrics: {}: {}", response.status, response.body);
        }
        Ok(response.body)
    }

    fn wait_ready(&mut self) -> Result<()> {
        let deadline = Instant::now() + READY_WITHIN;
        loop {
            let answer = self.get("/readyz");
            if answer.as_ref().is_ok_and(|response| response.status == 200) {
                return Ok(());
            }
            if let Some(status) = self.try_wait()? {
                bail!("the agent ended before it was ready: {status}\n{}", self.log()?);
            }
            if Instant::now() > deadline {
                bail!("the agent is not ready after {READY_WITHIN:?}: {answer:?}\n{}", self.log()?);
            }
            thread::sleep(Duration::from_millis(20));
        }
    }
}

fn get(address: SocketAddr, path: &str) -> Result<Response> {
    let mut stream =
        TcpStream::connect_timeout(&address, ANSWER_WITHIN).with_context(|| format!("nothing answers on {address}"))?;
    stream.set_read_timeout(Some(ANSWER_WITHIN))?;
    write!(stream, "GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).with_context(|| format!("no whole answer to GET {path} from {address}"))?;
    parse(&String::from_utf8_lossy(&answer)).with_context(|| format!("not an HTTP answer to GET {path}"))
}

/// Only what the agent sends: a body up to the end of the connection, or in chunks.
fn parse(answer: &str) -> Option<Response> {
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    let chunked = head.to_ascii_lowercase().contains("\r\ntransfer-encoding: chunked");
    let body = if chunked { join_chunks(body)? } else { body.to_owned() };
    Some(Response { status, body })
}

fn join_chunks(mut rest: &str) -> Option<String> {
    let mut body = String::new();
    loop {
        let (size, after) = rest.split_once("\r\n")?;
        let size = usize::from_str_radix(size.split(';').next()?.trim(), 16).ok()?;
        if size == 0 {
            return Some(body);
        }
        body += after.get(..size)?;
        rest = after.get(size..)?.strip_prefix("\r\n")?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_with_and_without_chunks_read_the_same() {
        let whole = "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello";
        let chunks = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3;x=y\r\nllo\r\n0\r\n\r\n";
        let hello = Response { status: 200, body: "hello".to_owned() };
        assert_eq!(parse(whole), Some(hello.clone()));
        assert_eq!(parse(chunks), Some(hello));
        assert_eq!(parse("HTTP/1.1 503 Service Unavailable\r\n\r\n").unwrap().status, 503);
        assert_eq!(parse("SSH-2.0"), None);
    }
}
