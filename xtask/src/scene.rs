//! What demo and playground have in common: in, a node; out, backend pods that listen, and the agent's own account of a
//! run as files. Makes no node and no client.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use testbed::{Agent, Launch, Node, Pod, Process};

use crate::host::step;

/// How long a backend may take until it listens; a JVM needs seconds.
const LISTENS_WITHIN: Duration = Duration::from_secs(60);
/// Who waits longer is told for what.
const TOLD_AFTER: Duration = Duration::from_secs(3);

/// Pods with a server in each. Dropping it ends them.
pub(crate) struct Backends {
    servers: Vec<Process>,
    pub(crate) pods: Vec<Pod>,
    logs: Vec<PathBuf>,
}

impl Backends {
    /// Starts `count` pods named `NAME-1`… with what `command` makes of each, and waits until all listen on `port`.
    pub(crate) fn start(
        node: &Node,
        name: &str,
        count: usize,
        port: u16,
        command: impl Fn(&Pod) -> Launch,
    ) -> Result<Self> {
        let mut started = Self { servers: Vec::new(), pods: Vec::new(), logs: Vec::new() };
        for number in 1..=count {
            let pod = node.pod(format!("{name}-{number}"))?;
            let log = node.folder().join(format!("{}.log", pod.name()));
            let out = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
            let launch = command(&pod).stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out);
            started.servers.push(launch.spawn()?);
            started.pods.push(pod);
            started.logs.push(log);
        }
        for (pod, (server, log)) in started.pods.iter().zip(started.servers.iter_mut().zip(&started.logs)) {
            wait_listening(pod, server, log, port)?;
        }
        Ok(started)
    }

    /// Copies what the backends said into the folder.
    pub(crate) fn keep_logs(&self, folder: &Path) -> Result<()> {
        for log in &self.logs {
            let name = log.file_name().context("a log has a name")?;
            fs::copy(log, folder.join(name)).with_context(|| format!("cannot write to {}", folder.display()))?;
        }
        Ok(())
    }
}

/// Until the pod's server listens; an error as soon as it has ended instead, with what it said.
pub(crate) fn wait_listening(pod: &Pod, server: &mut Process, log: &Path, port: u16) -> Result<()> {
    let began = Instant::now();
    let mut told = false;
    while pod.wait_listening(port, Duration::from_secs(1)).is_err() {
        let what = match server.try_wait()? {
            Some(status) => format!("the server of pod {} ended: {status}", pod.name()),
            None if began.elapsed() > LISTENS_WITHIN => {
                let limit = LISTENS_WITHIN.as_secs();
                format!("nothing listens on {}:{port} of pod {} after {limit} s", pod.ip4(), pod.name())
            }
            None => {
                if !told && began.elapsed() > TOLD_AFTER {
                    told = true;
                    step(&format!("waiting until pod {} listens on port {port}", pod.name()));
                }
                continue;
            }
        };
        bail!("{what}; it said:\n{}", fs::read_to_string(log).unwrap_or_default().trim_end());
    }
    Ok(())
}

/// The built-in backend.
pub(crate) fn echo_server(pod: &Pod, loadtest: &Path, port: u16) -> Launch {
    pod.command(loadtest).args(["server", "--listen", &format!("[::]:{port}"), "--pod", pod.name()])
}

/// Makes the folder of a report, before the work whose result it shall hold.
pub(crate) fn report_folder(path: &Path) -> Result<()> {
    fs::create_dir_all(path).with_context(|| format!("cannot make the report's folder {}", path.display()))
}

/// Writes the agent's account into the folder: status.json, metrics.txt, agent.log. An agent that is gone has only a log.
pub(crate) fn keep_agent(agent: &mut Agent, folder: &Path) -> Result<()> {
    let write = |name: &str, text: String| {
        let path = folder.join(name);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
    };
    write("agent.log", agent.log()?)?;
    if let Some(status) = agent.try_wait()? {
        step(&format!("the agent has ended ({status}): the report holds its log only"));
        // Of an earlier run they would be taken for this one's.
        for name in ["status.json", "metrics.txt"] {
            let _ = fs::remove_file(folder.join(name));
        }
        return Ok(());
    }
    write("status.json", format!("{:#}\n", agent.status()?))?;
    write("metrics.txt", agent.metrics()?)
}
