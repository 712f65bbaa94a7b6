//! A pod seen from its node: its processes, commands in its network namespace and cgroup, what its sockets carry, and a
//! client that dials again and again. Needs the API server only to find the pod, so that tests may stop it. Judges nothing.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use std::{fs, io};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use testbed::{Cluster, KubeNode};

use super::sluice::{Load, PORT};
use super::world::Namespace;

/// A pod that runs.
#[derive(Clone)]
pub struct Inside {
    /// The pod's cgroup; its containers' lie below.
    group: PathBuf,
}

impl Namespace {
    /// A pod of this namespace.
    pub fn inside(&self, pod: &str) -> Result<Inside> {
        Inside::find(self.cluster(), self.name(), pod)
    }

    /// `loadtest` in a pod as its node starts it: it goes on without the API server, and can be stopped.
    pub fn load_inside(&self, pod: &Inside, args: &[&str]) -> Result<Load> {
        let mut command = pod.command(super::sluice::loadtest_program()?)?;
        command.args(args).args(["--json", "-"]);
        Load::start(command)
    }
}

impl Inside {
    pub fn find(cluster: &Cluster, namespace: &str, pod: &str) -> Result<Self> {
        let get = ["--namespace", namespace, "get", "pod", pod, "--output=jsonpath={.metadata.uid} {.spec.nodeName}"];
        let said = cluster.kubectl(&get)?;
        let (uid, node) = said.split_once(' ').context("a pod on a node")?;
        let pods = cluster.node(node)?.kubepods()?;
        let classes = ["", "burstable", "besteffort"].map(|class| pods.join(class).join(format!("pod{uid}")));
        let group = classes.into_iter().find(|group| group.is_dir());
        Ok(Self { group: group.with_context(|| format!("{pod} has no cgroup below {}", pods.display()))? })
    }

    /// Whether it still has a cgroup.
    pub fn exists(&self) -> bool {
        self.group.exists()
    }

    /// Its containers' cgroups with the processes in them.
    fn containers(&self) -> Result<Vec<(PathBuf, Vec<i32>)>> {
        let entries = fs::read_dir(&self.group).with_context(|| format!("{} is gone", self.group.display()))?;
        let groups = entries.flatten().map(|entry| entry.path()).filter(|path| path.is_dir());
        groups
            .map(|group| {
                let pids = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
                Ok((group, pids.lines().map(str::parse).collect::<Result<_, _>>()?))
            })
            .collect()
    }

    /// Its processes, the sandbox's own with them.
    pub fn processes(&self) -> Result<Vec<i32>> {
        Ok(self.containers()?.into_iter().flat_map(|(_, pids)| pids).collect())
    }

    /// Sends SIGKILL to all its processes.
    pub fn kill(&self) -> Result<()> {
        self.processes()?.into_iter().try_for_each(|pid| signal(pid, libc::SIGKILL))
    }

    /// Sends SIGKILL to its processes of this program.
    pub fn kill_program(&self, name: &str) -> Result<()> {
        let runs = |pid: &i32| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim() == name);
        let pids: Vec<_> = self.processes()?.into_iter().filter(runs).collect();
        ensure!(!pids.is_empty(), "no {name} runs in {}", self.group.display());
        pids.into_iter().try_for_each(|pid| signal(pid, libc::SIGKILL))
    }

    /// A program of the machine's, as if the pod had it: in the pod's network namespace, and in its cgroup, where connects
    /// are seen.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Result<Command> {
        let lives = |(_, pids): &(_, Vec<i32>)| !pids.is_empty();
        let (group, pids) = self.containers()?.into_iter().find(lives).context("the pod runs nothing")?;
        let mut command = Command::new("sh");
        command.args(["-c", r#"echo $$ >"$0" && exec nsenter --target "$@""#]).arg(group.join("cgroup.procs"));
        command.arg(pids[0].to_string()).args(["--net", "--"]).arg(program);
        Ok(command)
    }

    fn read(&self, program: &str, args: &[&str]) -> Result<String> {
        let output = self.command(program)?.args(args).output().with_context(|| format!("cannot start {program}"))?;
        ensure!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr).trim());
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Sockets that listen in the pod, as `ss` shows them.
    pub fn listeners(&self) -> Result<Vec<String>> {
        Ok(self.read("ss", &["-Htln"])?.lines().map(str::to_owned).collect())
    }

    /// Bytes sent so far on connections to each server's port, by the server's address: with calls of one size a measure of
    /// their number. A redirected connection's own end is loopback and another port: what is seen is the agent's.
    pub fn sent(&self) -> Result<BTreeMap<SocketAddr, u64>> {
        let mut sent = BTreeMap::new();
        for line in self.read("ss", &["-HtinO", "dport", "=", &format!(":{PORT}")])?.lines() {
            let mut words = line.split_whitespace();
            let peer: SocketAddr = words.nth(4).context("ss: a peer")?.parse().with_context(|| line.to_owned())?;
            let bytes = words.find_map(|word| word.strip_prefix("bytes_sent:")).unwrap_or("0");
            *sent.entry(peer).or_default() += bytes.parse::<u64>()?;
        }
        Ok(sent)
    }
}

/// Sends a signal to a process of the cluster's.
pub fn signal(pid: i32, signal: i32) -> Result<()> {
    // SAFETY: takes plain integers.
    match unsafe { libc::kill(pid, signal) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()).with_context(|| format!("cannot signal the process {pid}")),
    }
}

/// What of sluice the kernel has for a node: ids of the programs that are attached at its pods' cgroup, by name.
pub fn attached(node: KubeNode) -> Result<Vec<(String, u64)>> {
    let group = fs::metadata(node.kubepods()?)?.ino();
    let programs = bpftool("prog")?;
    let name = |id: &Value| {
        let found = programs.iter().find(|program| program["id"] == *id);
        found.and_then(|program| program["name"].as_str()).unwrap_or_default().to_owned()
    };
    let links = bpftool("link")?;
    let ours = links.iter().filter(|link| link["cgroup_id"] == group);
    let mut all: Vec<_> = ours.map(|link| (name(&link["prog_id"]), link["prog_id"].as_u64().unwrap_or(0))).collect();
    all.retain(|(name, _)| name.starts_with("sluice_"));
    all.sort();
    Ok(all)
}

/// Ids of the maps that these programs use.
pub fn maps_of(programs: &[(String, u64)]) -> Result<Vec<u64>> {
    let all = bpftool("prog")?;
    let ours = all.iter().filter(|program| programs.iter().any(|(_, id)| program["id"] == *id));
    Ok(ours.flat_map(|program| program["map_ids"].as_array().into_iter().flatten()).filter_map(Value::as_u64).collect())
}

/// All objects of a kind that the kernel has: `prog`, `map`, `link`.
pub fn bpftool(kind: &str) -> Result<Vec<Value>> {
    let output = Command::new("bpftool").args(["--json", kind, "show"]).output();
    let output = output.context("cannot start bpftool: apt-get install bpftool")?;
    ensure!(output.status.success(), "bpftool: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).context("bpftool's JSON")
}

/// What became of one connection that was dialled for one call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// The agent had it.
    Redirected,
    /// kube-proxy had it.
    LeftAlone,
    /// No connection, or no answer.
    Failed(String),
}

/// A client in a pod that dials, makes one call, closes, and dials again.
pub struct Dialler {
    process: Child,
    stop: Arc<AtomicBool>,
    dials: Dials,
    thread: Option<JoinHandle<Result<()>>>,
}

/// When each was dialled, and what came of it.
type Dials = Arc<Mutex<Vec<(Instant, Fate)>>>;

/// Between two dials.
const PAUSE: Duration = Duration::from_millis(3);

impl Dialler {
    /// `target` is a Service's IPv4 address and its port.
    pub fn start(pod: &Inside, target: &str) -> Result<Self> {
        let target: SocketAddr = target.parse()?;
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/promises/probe.py");
        let mut command = pod.command("python3")?;
        command.arg(script).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = command.spawn().context("cannot start python3")?;
        let mut commands = process.stdin.take().context("stdin")?;
        let mut answers = BufReader::new(process.stdout.take().context("stdout")?).lines();
        let (stop, dials) = (Arc::new(AtomicBool::new(false)), Dials::default());
        let (stopped, noted) = (Arc::clone(&stop), Arc::clone(&dials));
        let ask = json!({ "do": "http2", "address": target.ip().to_string(), "port": target.port() });
        let thread = thread::spawn(move || {
            // "ready"
            answers.next().context("the client does not start")??;
            while !stopped.load(Ordering::Relaxed) {
                let at = Instant::now();
                writeln!(commands, "{ask}").context("the client is gone")?;
                let answer = answers.next().context("the client is gone")??;
                let fate = fate(&serde_json::from_str(&answer)?)?;
                noted.lock().unwrap_or_else(PoisonError::into_inner).push((at, fate));
                thread::sleep(PAUSE);
            }
            Ok(())
        });
        Ok(Self { process, stop, dials, thread: Some(thread) })
    }

    /// Those so far; an error if it has died.
    pub fn dials(&self) -> Result<Vec<(Instant, Fate)>> {
        ensure!(self.thread.as_ref().is_some_and(|it| !it.is_finished()), "the client that dials has died");
        Ok(self.dials.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }

    /// Waits until a connection that is dialled from now on meets this fate.
    pub fn wait_for(&self, cluster: &Cluster, fate: &Fate) -> Result<()> {
        let now = Instant::now();
        let met = || Ok(self.dials()?.iter().rev().take_while(|(at, _)| *at >= now).any(|(_, it)| it == fate));
        cluster.wait_until(&format!("a connect to be {fate:?}"), met)
    }
}

impl Drop for Dialler {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

fn fate(answer: &Value) -> Result<Fate> {
    if let Some(error) = answer[0]["error"].as_str() {
        return Ok(Fate::Failed(error.to_owned()));
    }
    let local: std::net::IpAddr = answer[0]["local"].as_str().context("an address")?.parse()?;
    Ok(if local.is_loopback() { Fate::Redirected } else { Fate::LeftAlone })
}
