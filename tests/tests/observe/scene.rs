//! What is looked at: backends with `loadtest server`, `loadtest run` as the load, and waiting. In: a node; out: guards.
//! Judges nothing.

use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use testbed::{Agent, Node, Pod, Process, Service, ServiceSpec, program};

pub(crate) const PORT: u16 = 50051;

/// For what takes milliseconds, on a machine that may be busy; more than the five seconds for which the agent's status
/// keeps what it saw of connections.
pub(crate) const SOON: Duration = Duration::from_secs(30);

/// A pod with an Echo server.
pub(crate) struct Backend {
    pub(crate) pod: Pod,
    _server: Process,
}

impl Backend {
    /// With further options of `loadtest server`.
    pub(crate) fn start(node: &Node, name: &str, options: &[&str]) -> Result<Self> {
        let pod = node.pod(name)?;
        let server = pod
            .command(program("loadtest")?)
            .args(["server", "--listen", &format!("[::]:{PORT}"), "--pod", name])
            .args(options)
            .stdout(Stdio::null())
            .spawn()?;
        pod.wait_listening(PORT, SOON)?;
        Ok(Self { pod, _server: server })
    }
}

/// Calls shared out in turn, so that shares are exact.
pub(crate) fn in_turn(name: &str) -> ServiceSpec {
    ServiceSpec::grpc(name, PORT).annotation("sluice.dev/load-balancer", "round-robin")
}

/// A Service with these pods behind it.
pub(crate) fn serve<'a>(node: &Node, spec: ServiceSpec, pods: impl IntoIterator<Item = &'a Pod>) -> Result<Service> {
    let service = node.service(spec)?;
    pods.into_iter().try_for_each(|pod| service.add_endpoint(pod))?;
    Ok(service)
}

/// Starts calls from the pod to the Service, as options of `loadtest run` say.
pub(crate) fn load(pod: &Pod, service: &Service, options: &[&str]) -> Result<Process> {
    let command = pod.command(program("loadtest")?).args(["run", &service.address4().to_string()]).args(options);
    command.stdin(Stdio::null()).stdout(Stdio::null()).spawn()
}

/// Makes calls to their end.
pub(crate) fn calls(pod: &Pod, service: &Service, options: &[&str]) -> Result<()> {
    let status = load(pod, service, options)?.wait()?;
    ensure!(status.success(), "loadtest run: {status}; what it said stands above");
    Ok(())
}

/// Waits until `done` gives something; an error with `what` if it does not do so soon.
pub(crate) fn wait_for<T>(what: &str, mut done: impl FnMut() -> Result<Option<T>>) -> Result<T> {
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

/// The items of a list, none if it is none.
pub(crate) fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// The status page's entry of a pod, once it is enrolled.
pub(crate) fn enrolled(agent: &Agent, pod: &Pod) -> Result<Value> {
    wait_for(&format!("{} is enrolled", pod.name()), || {
        let status = agent.status()?;
        Ok(list(&status["pods"]).iter().find(|line| line["uid"] == pod.uid()).cloned())
    })
}

/// `namespace/name`, as the agent calls a pod.
pub(crate) fn name(pod: &Pod) -> String {
    format!("{}/{}", pod.namespace(), pod.name())
}

/// Adds the agent's log to an error.
pub(crate) fn with_log<T>(agent: &Agent, result: Result<T>) -> Result<T> {
    result.with_context(|| {
        let log = agent.log().unwrap_or_else(|error| format!("{error:#}"));
        let lines: Vec<_> = log.lines().collect();
        format!("the agent's last words:\n{}", lines[lines.len().saturating_sub(40)..].join("\n"))
    })
}
