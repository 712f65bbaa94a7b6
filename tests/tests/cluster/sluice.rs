//! sluice on the cluster, as a user installs it, and gRPC in pods beside it: in, `kubectl apply -k manifests` and the
//! images that `cargo xtask image` made; out, the agents' own words, servers, clients and their reports. Judges nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Mutex;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use testbed::{Cluster, Image, set_up_client, target_folder};

use super::world::{self, Namespace};

pub const PORT: u16 = 50051;
/// The namespace of the manifests.
pub const SYSTEM: &str = "sluice-system";

/// The repository's folder of manifests.
const MANIFESTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../manifests");

/// The cluster with sluice on it: installed afresh by the first test that asks, ready on every node.
pub fn installed() -> Result<&'static Cluster> {
    static INSTALLED: Mutex<bool> = Mutex::new(false);
    let cluster = world::cluster()?;
    let mut installed = INSTALLED.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if !*installed {
        let build = build()?;
        let get = ["get", "namespace", SYSTEM, "--ignore-not-found", "--output=jsonpath={.metadata.labels.build}"];
        if cluster.kubectl(&get)? != build {
            images(cluster)?;
            // Another build's.
            uninstall(cluster)?;
            install_marked(cluster)?;
        }
        *installed = true;
    }
    install(cluster)?;
    Ok(cluster)
}

/// What tells one build of the agent from another.
fn build() -> Result<String> {
    use std::hash::{DefaultHasher, Hasher};
    let mut hasher = DefaultHasher::new();
    for name in ["sluice-agent", "sluice-loadtest"] {
        hasher.write(&std::fs::read(archive(name)?)?);
    }
    Ok(format!("{:016x}", hasher.finish()))
}

fn archive(name: &str) -> Result<PathBuf> {
    let archive = target_folder()?.join("images").join(format!("{name}-{}.tar", env!("CARGO_PKG_VERSION")));
    ensure!(archive.is_file(), "no {}: run `cargo xtask cluster test`, which makes it", archive.display());
    Ok(archive)
}

/// `kubectl apply -k manifests`, and every agent ready. Repeats harmlessly.
pub fn install(cluster: &Cluster) -> Result<()> {
    cluster.kubectl(&["apply", "--kustomize", MANIFESTS])?;
    settle(cluster)
}

/// The same, and the mark that tells which build it is.
pub fn install_marked(cluster: &Cluster) -> Result<()> {
    install(cluster)?;
    cluster.kubectl(&["label", "--overwrite", "namespace", SYSTEM, &format!("build={}", build()?)]).map(drop)
}

/// Waits until every node's agent is the one that the DaemonSet describes, and ready.
pub fn settle(cluster: &Cluster) -> Result<()> {
    cluster.wait_rolled_out(SYSTEM, "ds/sluice-agent").with_context(|| {
        let said = |args: &[&str]| cluster.kubectl(&[&["--namespace", SYSTEM], args].concat()).unwrap_or_default();
        let logs = ["logs", "--selector=app.kubernetes.io/name=sluice-agent", "--all-containers", "--tail=20"];
        format!("{}\n{}", said(&["describe", "pods"]), said(&logs))
    })
}

/// `kubectl delete -k manifests`, until nothing of it is left.
pub fn uninstall(cluster: &Cluster) -> Result<()> {
    let args = ["delete", "--ignore-not-found", "--wait", "--timeout=300s", "--kustomize", MANIFESTS];
    cluster.kubectl(&args).map(drop)
}

/// Gives the nodes the images: the agent and the load test as users get them, and one with tools for client pods.
fn images(cluster: &Cluster) -> Result<()> {
    for name in ["sluice-agent", "sluice-loadtest"] {
        cluster.import_image(&archive(name)?)?;
    }
    set_up_client("go", &target_folder()?)?;
    let [programs, _] = cluster.tools();
    let kit = Image::of_program("sluice-kit", "1", &programs.join("probe"))?
        .file("/usr/bin/loadtest", std::fs::read(loadtest_program()?)?, 0o755)
        .file("/usr/bin/echo-client", std::fs::read(target_folder()?.join("clients/go/bin/echo"))?, 0o755);
    let archive = cluster.folder()?.join("kit.tar");
    kit.write(&archive)?;
    cluster.import_image(&archive)
}

/// The static `loadtest` of the images.
pub fn loadtest_program() -> Result<PathBuf> {
    Ok(target_folder()?.join(format!("{}-unknown-linux-gnu/release/loadtest", std::env::consts::ARCH)))
}

/// One node's agent.
pub struct Agent {
    pub pod: String,
    pub node: String,
    cluster: &'static Cluster,
}

/// The agents that run and are not on their way out, ordered by node.
pub fn agents(cluster: &'static Cluster) -> Result<Vec<Agent>> {
    let get = ["--namespace", SYSTEM, "get", "pods", "--selector=app.kubernetes.io/name=sluice-agent", "--output=json"];
    let pods: Value = serde_json::from_str(&cluster.kubectl(&get)?)?;
    let stays = |pod: &&Value| pod["metadata"]["deletionTimestamp"].is_null();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let agent =
        |pod: &Value| Agent { pod: text(&pod["metadata"]["name"]), node: text(&pod["spec"]["nodeName"]), cluster };
    let mut agents: Vec<_> = pods["items"].as_array().into_iter().flatten().filter(stays).map(agent).collect();
    agents.sort_by(|a, b| a.node.cmp(&b.node));
    Ok(agents)
}

impl Agent {
    /// Its page `/status.json`.
    pub fn status(&self) -> Result<Value> {
        let page = format!("/api/v1/namespaces/{SYSTEM}/pods/{}:9966/proxy/status.json", self.pod);
        serde_json::from_str(&self.cluster.kubectl(&["get", "--raw", &page])?).context("/status.json")
    }

    /// How many connects met this verdict in the kernel.
    pub fn verdict(&self, name: &str) -> Result<u64> {
        self.status()?["kernel_verdicts"][name].as_u64().with_context(|| format!("no verdict {name}"))
    }

    pub fn log(&self) -> Result<String> {
        self.cluster.kubectl(&["--namespace", SYSTEM, "logs", &self.pod, "--all-containers"])
    }

    /// Why the Service port `namespace/service:port` is left alone, each of its addresses once; empty if it is not.
    pub fn left_alone(&self, name: &str) -> Result<BTreeSet<String>> {
        let status = self.status()?;
        let rows = status["left_alone"].as_array().context("left_alone")?.iter().filter(|row| row["name"] == name);
        Ok(rows.filter_map(|row| row["reason"].as_str()).map(str::to_owned).collect())
    }

    /// What it says of a pod, `namespace/name`: once for each network namespace of the pod's, which is one as a rule.
    pub fn pod(&self, name: &str) -> Result<Vec<Value>> {
        let status = self.status()?;
        Ok(status["pods"].as_array().context("pods")?.iter().filter(|pod| pod["name"] == name).cloned().collect())
    }
}

/// The agent on a node.
pub fn agent_on(cluster: &'static Cluster, node: &str) -> Result<Agent> {
    agents(cluster)?.into_iter().find(|agent| agent.node == node).with_context(|| format!("no agent on {node}"))
}

/// Names of the pods that answered.
pub fn answering(report: &Value) -> BTreeSet<String> {
    let calls = report["calls"].as_object().into_iter().flatten().filter(|(_, calls)| calls.as_u64() > Some(0));
    calls.filter_map(|(endpoint, _)| report["pods"][endpoint].as_str()).map(str::to_owned).collect()
}

/// An Echo server's Deployment, as many pods on the one node as on the other, that goes the way well-made servers go: it
/// serves on for a moment after it was told to end.
pub fn echo(name: &str, replicas: usize) -> Value {
    let container = json!({
        "name": "server", "image": format!("sluice-loadtest:{}", env!("CARGO_PKG_VERSION")), "imagePullPolicy": "Never",
        "args": ["server"],
        "env": [{ "name": "POD_NAME", "valueFrom": { "fieldRef": { "fieldPath": "metadata.name" } } }],
        "ports": [{ "name": "grpc", "containerPort": PORT }],
        "readinessProbe": { "tcpSocket": { "port": "grpc" }, "periodSeconds": 1 },
        "lifecycle": { "preStop": { "sleep": { "seconds": 3 } } },
    });
    world::deployment(name, replicas, 20, &container)
}

/// A Service on the pods of a Deployment, gRPC by its port's protocol.
pub fn service(name: &str, app: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "name": name, "annotations": {} },
        "spec": {
            "ipFamilyPolicy": "RequireDualStack",
            "selector": { "app": app },
            "ports": [{ "name": "api", "port": PORT, "targetPort": "grpc", "appProtocol": "kubernetes.io/h2c" }],
        },
    })
}

/// The same, left to kube-proxy.
pub fn service_without_sluice(name: &str, app: &str) -> Value {
    let mut service = service(name, app);
    service["metadata"]["annotations"]["sluice.dev/redirect"] = "false".into();
    service
}

/// A pod on this node that waits to be told what to do, with `loadtest` and `echo-client` in it.
pub fn client(name: &str, node: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name },
        "spec": {
            "nodeName": node,
            "terminationGracePeriodSeconds": 1,
            "containers": [{ "name": "kit", "image": "sluice-kit:1", "imagePullPolicy": "Never" }],
        },
    })
}

impl Namespace {
    /// Applies a Deployment and waits until all its pods are ready.
    pub fn deploy(&self, deployment: &Value) -> Result<()> {
        self.apply(std::slice::from_ref(deployment))?;
        let name = deployment["metadata"]["name"].as_str().context("a name")?;
        self.wait_rolled_out(&format!("deployment/{name}"))
    }

    /// Starts a client pod on a node and waits until it can be told something.
    pub fn start_client(&self, name: &str, node: &str) -> Result<()> {
        self.apply(&[client(name, node)])?;
        self.wait(&["--for=condition=Ready", &format!("pod/{name}")])
    }

    /// A Service's address of IPv4 and its port.
    pub fn target(&self, service: &str) -> Result<String> {
        Ok(format!("{}:{PORT}", self.cluster_ips(service)?[0]))
    }

    /// Waits until every agent knows so many endpoints of the Service, and every kube-proxy at least one.
    pub fn wait_endpoints(&self, service: &str, count: usize) -> Result<()> {
        let cluster = self.cluster();
        let name = format!("{}/{service}:api", self.name());
        cluster.wait_until(&format!("{count} endpoints of {name} at every agent"), || {
            Ok(agents(cluster)?.iter().all(|agent| {
                let status = agent.status().unwrap_or_default();
                let rows: Vec<_> = status["services"].as_array().into_iter().flatten().cloned().collect();
                let mut rows = rows.iter().filter(|row| row["name"] == name.as_str()).peekable();
                rows.peek().is_some() && rows.all(|row| row["endpoints"].as_array().is_some_and(|it| it.len() == count))
            }))
        })
    }

    /// Runs `loadtest` in a pod and gives its JSON; an error if it fails.
    pub fn loadtest(&self, pod: &str, args: &[&str]) -> Result<Value> {
        self.load(pod, args)?.finish()
    }

    /// Starts `loadtest` in a pod.
    pub fn load(&self, pod: &str, args: &[&str]) -> Result<Load> {
        let mut command = self.cluster().command("kubectl");
        command.args(["--namespace", self.name(), "exec", pod, "--", "/usr/bin/loadtest"]).args(args);
        command.args(["--json", "-"]);
        Load::start(command)
    }

    /// Calls of one client, by the node whose pods answered.
    pub fn calls_by_node(&self, report: &Value) -> Result<BTreeMap<String, u64>> {
        let get = ["get", "pods", "--output=json"];
        let pods: Value = serde_json::from_str(&self.kubectl(&get)?)?;
        let mut by_node = BTreeMap::new();
        for (endpoint, calls) in report["calls"].as_object().context("calls")? {
            let pod = report["pods"][endpoint].as_str().unwrap_or_default();
            let mut items = pods["items"].as_array().into_iter().flatten();
            let found = items.find(|it| it["metadata"]["name"] == pod);
            let node = found.and_then(|it| it["spec"]["nodeName"].as_str()).with_context(|| format!("no pod {pod}"))?;
            *by_node.entry(node.to_owned()).or_default() += calls.as_u64().unwrap_or(0);
        }
        Ok(by_node)
    }

    /// The pods that answer one client which makes so many calls over so many new connections.
    pub fn reached(&self, client: &str, target: &str, connections: usize, calls: usize) -> Result<BTreeSet<String>> {
        let (connections, calls) = (connections.to_string(), calls.to_string());
        let args =
            ["run", target, "--connections", &connections, "--streams", "1", "--rpcs", &calls, "--max-failed", "0"];
        Ok(answering(&self.loadtest(client, &args)?))
    }

    /// Waits until all calls of one connection are answered by so many pods: by one where kube-proxy serves it, by every
    /// endpoint where sluice does.
    pub fn wait_reach(&self, client: &str, target: &str, pods: usize) -> Result<()> {
        let mut seen = Ok(BTreeSet::new());
        let waited = self.cluster().wait_until(&format!("{pods} pods to answer {client}"), || {
            seen = self.reached(client, target, 1, 40);
            Ok(seen.as_ref().is_ok_and(|seen| seen.len() == pods))
        });
        waited.with_context(|| format!("last by {seen:?}"))
    }
}

/// A `loadtest` under way.
pub struct Load {
    process: Child,
}

impl Load {
    pub fn start(mut command: Command) -> Result<Self> {
        let process = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        Ok(Self { process: process.with_context(|| format!("cannot start {command:?}"))? })
    }

    /// Its JSON, when it has ended by itself.
    pub fn finish(mut self) -> Result<Value> {
        let (status, json, table) = self.end()?;
        ensure!(status.success(), "loadtest: {status}\n{table}");
        serde_json::from_str(&json).with_context(|| format!("loadtest's JSON: {json:?}\n{table}"))
    }

    fn end(&mut self) -> Result<(ExitStatus, String, String)> {
        // The table goes there, and is short enough to wait in the pipe.
        let mut json = String::new();
        let mut table = String::new();
        self.process.stdout.take().context("stdout")?.read_to_string(&mut json)?;
        self.process.stderr.take().context("stderr")?.read_to_string(&mut table)?;
        Ok((self.process.wait()?, json, table))
    }

    /// The same; an error if a call failed or was not made.
    pub fn finish_without_failure(self) -> Result<Value> {
        let report = self.finish()?;
        ensure!(report["failed"] == 0 && report["not_started"] == 0, "not all calls succeeded: {report:#}");
        Ok(report)
    }

    /// Lets the calls under way finish and gives its JSON, in which `not_started` has the calls that were still to come. For
    /// a load whose process is this one's own child ([`Namespace::load_inside`]); an error if it ended before.
    pub fn stop(mut self) -> Result<Value> {
        ensure!(self.process.try_wait()?.is_none(), "the load ended too early: {:?}", self.end());
        super::inside::signal(self.process.id().try_into()?, libc::SIGINT)?;
        let (_, json, table) = self.end()?;
        serde_json::from_str(&json).with_context(|| format!("loadtest's JSON: {json:?}\n{table}"))
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
