//! The pods behind all addresses of the scenarios, kept in step: in, Services and Envoy's file of endpoints; out, pods with
//! `loadtest server`, of which one can be replaced by a new one.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use testbed::{Node, Pod, Process, Service};

use super::PORT;
use crate::scene;

/// Where the servers' control listeners are, in each pod.
const CONTROL: u16 = 50052;
/// Number of the signal on every Linux.
const SIGTERM: i32 = 15;
/// What runs in each pod.
pub(super) struct Server {
    pub(super) program: PathBuf,
    pub(super) slots: u32,
    /// How long it works on a call.
    pub(super) time: String,
}

/// The pods, oldest first.
pub(super) struct Endpoints<'a> {
    node: &'a Node,
    services: Vec<Service>,
    clusters: Option<PathBuf>,
    server: Server,
    pods: Vec<(Pod, Process)>,
    started: usize,
}

impl<'a> Endpoints<'a> {
    pub(super) fn start(
        node: &'a Node,
        services: Vec<Service>,
        clusters: Option<PathBuf>,
        server: Server,
        count: usize,
    ) -> Result<Self> {
        let mut endpoints = Self { node, services, clusters, server, pods: Vec::new(), started: 0 };
        (0..count).try_for_each(|_| endpoints.add())?;
        Ok(endpoints)
    }

    pub(super) fn controls(&self) -> Vec<String> {
        self.pods.iter().map(|(pod, _)| format!("{}:{CONTROL}", pod.ip4())).collect()
    }

    /// One pod more: it is an endpoint when it listens.
    fn add(&mut self) -> Result<()> {
        self.started += 1;
        let name = format!("echo-{}", self.started);
        let pod = self.node.pod(name.as_str())?;
        let log = self.node.folder().join(format!("{name}.log"));
        let out = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
        let mut process = pod
            .command(&self.server.program)
            .args(["server", "--listen", &format!("[::]:{PORT}"), "--control", &format!("[::]:{CONTROL}")])
            .args(["--slots", &self.server.slots.to_string(), "--service-time", &self.server.time, "--pod", &name])
            .stdin(Stdio::null())
            .stdout(out.try_clone()?)
            .stderr(out)
            .spawn()?;
        scene::wait_listening(&pod, &mut process, &log, PORT)?;
        self.services.iter().try_for_each(|service| service.add_endpoint(&pod))?;
        self.pods.push((pod, process));
        self.tell_envoy()
    }

    /// As a Deployment does it: a new pod, and when it is ready the oldest one is told to end, while all are told that it
    /// does. It finishes what it has, and is gone.
    pub(super) fn replace(&mut self) -> Result<()> {
        self.add()?;
        let (pod, mut process) = self.pods.remove(0);
        self.services.iter().try_for_each(|service| service.mark_terminating(&pod))?;
        self.tell_envoy()?;
        process.signal(SIGTERM)?;
        let status = process.wait()?;
        ensure!(status.success(), "pod {}: {status}", pod.name());
        self.services.iter().try_for_each(|service| service.remove_endpoint(&pod))?;
        pod.delete()
    }

    /// In one step, as Envoy watches for a file that moves to the place of the old one.
    fn tell_envoy(&self) -> Result<()> {
        let Some(file) = &self.clusters else { return Ok(()) };
        let addresses: Vec<_> = self.pods.iter().map(|(pod, _)| pod.ip4()).collect();
        let draft = file.with_extension("draft");
        fs::write(&draft, super::envoy::endpoints(&addresses, PORT))
            .and_then(|()| fs::rename(&draft, file))
            .with_context(|| format!("cannot write {}", file.display()))
    }
}
