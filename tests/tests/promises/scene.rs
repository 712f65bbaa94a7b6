//! What the promises look at: `loadtest run` as the load, and the agent's counters by name. In: a node; out: guards and
//! figures. Judges nothing.

use std::fs;
use std::path::PathBuf;
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use testbed::scene::{Backend, PORT, in_turn, wait_for};
use testbed::{Agent, Node, Pod, Process, Service, ServiceSpec, program};

/// A gRPC Service named `echo`, balanced in turn.
pub(crate) fn echo() -> ServiceSpec {
    in_turn("echo")
}

/// A `loadtest run` under way.
pub(crate) struct Load {
    process: Process,
    json: PathBuf,
}

impl Load {
    /// From the pod to the Service, as `options` say; it has made its connections when this returns, if it was to.
    pub(crate) fn start(node: &Node, pod: &Pod, service: &Service, options: &[&str]) -> Result<Self> {
        let json = node.folder().join(format!("load-{}.json", pod.name()));
        let process = pod
            .command(program("loadtest")?)
            .args(["run", &service.address4().to_string()])
            .args(options)
            .arg("--json")
            .arg(&json)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()?;
        Ok(Self { process, json })
    }

    /// Its result, when it has ended by itself.
    pub(crate) fn finish(mut self) -> Result<Value> {
        let status = self.process.wait()?;
        ensure!(status.success(), "loadtest run: {status}; what it said stands above");
        serde_json::from_str(&fs::read_to_string(&self.json)?).context("loadtest's JSON")
    }

    /// Its result, in which every one of `calls` calls has succeeded.
    pub(crate) fn finish_without_failure(self, calls: u64) -> Result<Value> {
        let result = self.finish()?;
        let figures = ["rpcs", "failed", "not_started"].map(|name| result[name].as_u64());
        ensure!(figures == [Some(calls), Some(0), Some(0)], "not all of {calls} calls succeeded: {result:#}");
        Ok(result)
    }
}

/// How many calls an endpoint answered.
pub(crate) fn calls_of(result: &Value, backend: &Backend) -> u64 {
    result["calls"][format!("{}:{PORT}", backend.pod.ip4())].as_u64().unwrap_or(0)
}

/// The counter of a kernel verdict.
pub(crate) fn verdict(agent: &Agent, name: &str) -> Result<u64> {
    agent.status()?["kernel_verdicts"][name].as_u64().with_context(|| format!("no verdict {name}"))
}

/// The counters of several.
pub(crate) fn verdicts<const N: usize>(agent: &Agent, names: [&str; N]) -> Result<[u64; N]> {
    let status = agent.status()?;
    Ok(names.map(|name| status["kernel_verdicts"][name].as_u64().unwrap_or(u64::MAX)))
}

/// Of the agent's account of a pod: a field of `traffic`.
pub(crate) fn traffic(agent: &Agent, pod: &Pod, field: &str) -> Result<u64> {
    let status = agent.status()?;
    let line = pod_line(&status, pod)?;
    line["traffic"][field].as_u64().with_context(|| format!("no {field} in {line}"))
}

/// The status page's entry of a pod.
pub(crate) fn pod_line<'a>(status: &'a Value, pod: &Pod) -> Result<&'a Value> {
    let pods = status["pods"].as_array().context("pods")?;
    pods.iter().find(|line| line["uid"] == pod.uid()).with_context(|| format!("{} is not enrolled", pod.name()))
}

/// Waits until the agent knows so many usable endpoints of the Service's first port, IPv4.
pub(crate) fn wait_endpoints(agent: &Agent, service: &Service, count: usize) -> Result<()> {
    let address = service.address4().to_string();
    wait_for("the agent's endpoints", || {
        let status = agent.status()?;
        let services = status["services"].as_array().context("services")?;
        let known = services.iter().find(|line| line["address"] == *address);
        let endpoints = known.and_then(|line| line["endpoints"].as_array()).map_or(0, Vec::len);
        Ok((endpoints == count).then_some(()))
    })
}

/// CLOCK_MONOTONIC, as Python's `time.monotonic_ns` reads it.
pub(crate) fn monotonic_ns() -> i64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to a timespec of ours.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    now.tv_sec * 1_000_000_000 + now.tv_nsec
}
