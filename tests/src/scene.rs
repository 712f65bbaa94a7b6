//! What many tests stand in: backend pods with `loadtest server`, a Service of pods, and waiting. In: a node; out: guards.
//! Judges nothing.

use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::agent::Agent;
use crate::launch::Process;
use crate::node::Node;
use crate::pod::Pod;
use crate::programs::program;
use crate::service::{Service, ServiceSpec};

/// Where backends listen.
pub const PORT: u16 = 50051;

/// For what takes milliseconds, on a machine that may be busy; more than the seconds for which the agent's status keeps
/// what it saw of connections.
pub const SOON: Duration = Duration::from_secs(30);

/// Lines of an agent's log that an error comes with.
const LAST_WORDS: usize = 40;

/// A pod with an Echo server.
pub struct Backend {
    pub pod: Pod,
    server: Process,
}

impl Backend {
    pub fn start(node: &Node, name: &str) -> Result<Self> {
        Self::start_with(node, name, &[])
    }

    /// With further options of `loadtest server`.
    pub fn start_with(node: &Node, name: &str, options: &[&str]) -> Result<Self> {
        let pod = node.pod(name)?;
        let server = pod
            .command(program("loadtest")?)
            .args(["server", "--listen", &format!("[::]:{PORT}"), "--pod", name])
            .args(options)
            .stdout(Stdio::null())
            .spawn()?;
        pod.wait_listening(PORT, SOON)?;
        Ok(Self { pod, server })
    }

    /// `echo-1`, `echo-2`, …
    pub fn start_some(node: &Node, count: usize) -> Result<Vec<Self>> {
        (1..=count).map(|number| Self::start(node, &format!("echo-{number}"))).collect()
    }

    /// SIGTERM, then the process's own end, which must be a clean one.
    pub fn terminate(&mut self) -> Result<()> {
        self.server.signal(libc::SIGTERM)?;
        let status = self.server.wait()?;
        ensure!(status.success(), "{}: {status}", self.pod.name());
        Ok(())
    }
}

impl AsRef<Pod> for Backend {
    fn as_ref(&self) -> &Pod {
        &self.pod
    }
}

/// A gRPC Service whose calls are shared out in turn, so that shares are exact.
pub fn in_turn(name: &str) -> ServiceSpec {
    ServiceSpec::grpc(name, PORT).annotation("sluice.dev/load-balancer", "round-robin")
}

/// A Service with these pods behind it.
pub fn serve(node: &Node, spec: ServiceSpec, pods: impl IntoIterator<Item = impl AsRef<Pod>>) -> Result<Service> {
    let service = node.service(spec)?;
    pods.into_iter().try_for_each(|pod| service.add_endpoint(pod.as_ref()))?;
    Ok(service)
}

/// Waits until `done` gives something; an error with `what` if it does not do so soon.
pub fn wait_for<T>(what: &str, mut done: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let deadline = Instant::now() + SOON;
    loop {
        if let Some(value) = done()? {
            return Ok(value);
        }
        if Instant::now() > deadline {
            bail!("not within {SOON:?}: {what}");
        }
        thread::sleep(Duration::from_millis(20));
    }
}

/// Adds the agent's log to an error.
pub fn with_log<T>(agent: &Agent, result: Result<T>) -> Result<T> {
    result.with_context(|| {
        let log = agent.log().unwrap_or_else(|error| format!("{error:#}"));
        let lines: Vec<_> = log.lines().collect();
        format!("the agent's last words:\n{}", lines[lines.len().saturating_sub(LAST_WORDS)..].join("\n"))
    })
}
