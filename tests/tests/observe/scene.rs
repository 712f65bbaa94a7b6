//! What is looked at: calls of `loadtest run`, and what the status says of pods. In: pods and Services; out: guards. Judges
//! nothing.

use std::process::Stdio;

use anyhow::{Result, ensure};
use serde_json::Value;
use testbed::scene::wait_for;
use testbed::{Agent, Pod, Process, Service, program};

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
