//! A pod: network namespace, cgroup, the sandbox's pause process and an object in the node's folder. In: a description;
//! out: a guard that starts programs in the pod. Containers are plain processes; each has a cgroup of its own.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::json;

use crate::cgroup::{self, Qos};
use crate::launch::{Launch, Process};
use crate::netns::Netns;
use crate::node::{Inner, container_id, uid, with_port};

/// What a pod shall be like. A plain name makes one in namespace `default` without labels.
#[derive(Clone, Debug)]
pub struct PodSpec {
    name: String,
    namespace: String,
    labels: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
    qos: Qos,
    host_network: bool,
}

impl PodSpec {
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            namespace: "default".to_owned(),
            labels: BTreeMap::from([("app".to_owned(), name.to_owned())]),
            annotations: BTreeMap::new(),
            qos: Qos::default(),
            host_network: false,
        }
    }

    pub fn namespace(mut self, namespace: &str) -> Self {
        self.namespace = namespace.to_owned();
        self
    }

    pub fn label(mut self, key: &str, value: &str) -> Self {
        self.labels.insert(key.to_owned(), value.to_owned());
        self
    }

    pub fn annotation(mut self, key: &str, value: &str) -> Self {
        self.annotations.insert(key.to_owned(), value.to_owned());
        self
    }

    pub fn qos(mut self, qos: Qos) -> Self {
        self.qos = qos;
        self
    }

    /// In the node's own network namespace, with the node's addresses.
    pub fn host_network(mut self) -> Self {
        self.host_network = true;
        self
    }
}

impl From<&str> for PodSpec {
    fn from(name: &str) -> Self {
        Self::new(name)
    }
}

impl From<String> for PodSpec {
    fn from(name: String) -> Self {
        Self::new(&name)
    }
}

/// A running pod. Dropping it kills its processes and removes it, its object included.
#[derive(Debug)]
pub struct Pod {
    node: Arc<Inner>,
    netns: Arc<Netns>,
    spec: PodSpec,
    number: u16,
    uid: String,
    cgroup: PathBuf,
    ip4: Ipv4Addr,
    ip6: Ipv6Addr,
    /// Keeps namespace and cgroup in use while nothing else runs, as a sandbox's pause container does.
    sandbox: Option<Process>,
}

impl Pod {
    pub(crate) fn start(node: &Arc<Inner>, spec: PodSpec) -> Result<Self> {
        let (number, uid) = (node.number_pod(), uid()?);
        let [high, low] = number.to_be_bytes();
        let group = node.driver.pod(spec.qos, &uid);
        let own = (Ipv4Addr::new(10, 244, high, low), Ipv6Addr::new(0xfd00, 0x10, 0x244, 0, 0, 0, 0, number));
        let (ip4, ip6) = if spec.host_network { (Inner::GATEWAY4, Inner::GATEWAY6) } else { own };
        let mut pod = Self {
            node: Arc::clone(node),
            netns: if spec.host_network { Arc::clone(&node.netns) } else { Arc::new(Netns::new()?) },
            number,
            cgroup: node.kubepods().join(&group),
            ip4,
            ip6,
            sandbox: None,
            uid,
            spec,
        };
        // In a cluster the object is there before the kubelet makes the sandbox.
        pod.node.objects.write(&pod.file(), &[pod.object()])?;
        cgroup::make_below(&node.kubepods(), &group)?;
        if !pod.spec.host_network {
            pod.node.plug(&pod.netns, number, pod.ip4, pod.ip6)?;
        }
        let pause = pod.command("sleep").arg("infinity").stdin(Stdio::null()).stdout(Stdio::null());
        pod.sandbox = Some(pause.spawn()?);
        Ok(pod)
    }

    /// A program in this pod, in a container of its own, with the pod's name as host name.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Launch {
        let cgroup = self.cgroup.join(self.node.driver.container(&container_id()));
        Launch::new(program.as_ref(), cgroup, Arc::clone(&self.netns), Arc::clone(&self.node.spawner))
            .hostname(&self.spec.name)
            .env("POD_NAME", &self.spec.name)
            .env("POD_IP", self.ip4.to_string())
    }

    /// Runs `body` on a thread inside the pod's network namespace, but outside of its cgroup: its sockets are not the
    /// pod's in the eyes of cgroup programs.
    pub fn run_in_netns<T: Send>(&self, body: impl FnOnce() -> T + Send) -> Result<T> {
        self.netns.run(body)
    }

    /// Waits until something listens on the pod's TCP port, at most `limit`.
    pub fn wait_listening(&self, port: u16, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        let address = with_port(IpAddr::V4(self.ip4), port);
        self.run_in_netns(|| {
            while let Err(error) = TcpStream::connect_timeout(&address, limit) {
                if Instant::now() > deadline {
                    bail!("pod {}: nothing listens on {address} after {limit:?}: {error}", self.spec.name);
                }
                thread::sleep(Duration::from_millis(10));
            }
            Ok(())
        })?
    }

    pub fn name(&self) -> &str {
        &self.spec.name
    }

    pub fn namespace(&self) -> &str {
        &self.spec.namespace
    }

    pub fn uid(&self) -> &str {
        &self.uid
    }

    pub fn ip4(&self) -> Ipv4Addr {
        self.ip4
    }

    pub fn ip6(&self) -> Ipv6Addr {
        self.ip6
    }

    /// The pod's cgroup; its containers' are below.
    pub fn cgroup(&self) -> &Path {
        &self.cgroup
    }

    /// Writes the pod's object again with an annotation set (`Some`) or taken away.
    pub fn annotate(&mut self, key: &str, value: Option<&str>) -> Result<()> {
        match value {
            Some(value) => self.spec.annotations.insert(key.to_owned(), value.to_owned()),
            None => self.spec.annotations.remove(key),
        };
        self.node.objects.write(&self.file(), &[self.object()])
    }

    /// Removes the pod now, and says what went wrong.
    pub fn delete(mut self) -> Result<()> {
        self.remove()
    }

    fn remove(&mut self) -> Result<()> {
        self.node.objects.remove(&self.file());
        self.sandbox = None;
        let groups = cgroup::remove(&self.cgroup);
        self.unplug().and(groups).with_context(|| format!("pod {}", self.spec.name))
    }

    fn unplug(&self) -> Result<()> {
        if self.spec.host_network { Ok(()) } else { self.node.unplug(self.number) }
    }

    fn file(&self) -> String {
        format!("pod-{}-{}", self.spec.namespace, self.spec.name)
    }

    fn object(&self) -> serde_json::Value {
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "name": self.spec.name, "namespace": self.spec.namespace, "uid": self.uid,
                "labels": self.spec.labels, "annotations": self.spec.annotations,
            },
            "spec": {
                "nodeName": self.node.name(), "hostNetwork": self.spec.host_network,
                "containers": [{ "name": "app", "image": "none" }],
            },
            "status": {
                "phase": "Running",
                "podIP": self.ip4.to_string(),
                "podIPs": [{ "ip": self.ip4.to_string() }, { "ip": self.ip6.to_string() }],
            },
        })
    }
}

impl AsRef<Pod> for Pod {
    fn as_ref(&self) -> &Pod {
        self
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        // After `delete`, and after the node's own end, there is nothing left to find.
        self.node.objects.remove(&self.file());
        self.sandbox = None;
        let _ = cgroup::remove(&self.cgroup);
        let _ = self.unplug();
    }
}
