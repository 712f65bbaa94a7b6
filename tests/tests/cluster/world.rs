//! What the cluster's tests share: the cluster, namespaces that go with their guard, and objects. In: names; out: answers
//! of kubectl. Every wait ends by itself, with an error that shows the pods.

use std::collections::BTreeSet;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use testbed::{Cluster, KubeNode};

/// The one that is up.
pub fn cluster() -> Result<&'static Cluster> {
    static CLUSTER: OnceLock<Cluster> = OnceLock::new();
    if let Some(cluster) = CLUSTER.get() {
        return Ok(cluster);
    }
    let found = Cluster::attach().context("these tests run by `cargo xtask cluster test`")?;
    Ok(CLUSTER.get_or_init(|| found))
}

/// A namespace of one test, removed with all that is in it.
pub struct Namespace {
    cluster: &'static Cluster,
    name: String,
}

impl Namespace {
    pub fn make(cluster: &'static Cluster, name: &str) -> Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(1);
        // Another run's, or another test's, may still be going away.
        let name = format!("{name}-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        cluster.kubectl(&["create", "namespace", &name])?;
        let space = Self { cluster, name };
        // No pod is admitted without it.
        let account = ["get", "serviceaccount", "default"];
        cluster.wait_until("the namespace's account", || Ok(space.kubectl(&account).is_ok()))?;
        Ok(space)
    }

    pub fn cluster(&self) -> &'static Cluster {
        self.cluster
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn kubectl(&self, args: &[&str]) -> Result<String> {
        self.cluster.kubectl(&[&["--namespace", &self.name], args].concat())
    }

    pub fn apply(&self, objects: &[Value]) -> Result<()> {
        objects.iter().try_for_each(|object| {
            let mut object = object.clone();
            object["metadata"]["namespace"] = json!(self.name);
            self.cluster.apply(&object.to_string()).map(drop)
        })
    }

    pub fn wait(&self, args: &[&str]) -> Result<()> {
        self.cluster.wait(&[&["--namespace", &self.name], args].concat())
    }

    pub fn wait_rolled_out(&self, object: &str) -> Result<()> {
        self.cluster.wait_rolled_out(&self.name, object)
    }

    /// Names of the pods with this label.
    pub fn pods(&self, selector: &str) -> Result<BTreeSet<String>> {
        let names = ["get", "pods", "--selector", selector, "--output=jsonpath={.items[*].metadata.name}"];
        Ok(self.kubectl(&names)?.split_whitespace().map(str::to_owned).collect())
    }

    /// The Service's addresses as a URL has them: IPv4, `[IPv6]`.
    pub fn cluster_ips(&self, service: &str) -> Result<Vec<String>> {
        let all = self.kubectl(&["get", "service", service, "--output=jsonpath={.spec.clusterIPs[*]}"])?;
        let in_url = |ip: &str| if ip.contains(':') { format!("[{ip}]") } else { ip.to_owned() };
        let all: Vec<_> = all.split_whitespace().map(in_url).collect();
        anyhow::ensure!(all.len() == 2, "the Service has the addresses {all:?}, not one of each family");
        Ok(all)
    }

    /// Runs the probe in a pod and gives what it says.
    pub fn exec(&self, pod: &str, args: &[&str]) -> Result<String> {
        self.kubectl(&[&["exec", pod, "--", "/usr/bin/probe"], args].concat())
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if let Err(error) = self.cluster.kubectl(&["delete", "namespace", &self.name, "--wait=false"]) {
            eprintln!("the namespace {} stays: {error:#}", self.name);
        }
    }
}

/// What a node gets from each of the addresses.
pub fn get_from_node(cluster: &Cluster, node: KubeNode, addresses: &[String]) -> Result<Vec<String>> {
    let [programs, _] = cluster.tools();
    addresses
        .iter()
        .map(|address| {
            let output = node.command(programs.join("probe"))?.args(["get", &format!("http://{address}/")]).output()?;
            let (said, complaint) = (String::from_utf8(output.stdout)?, String::from_utf8_lossy(&output.stderr));
            anyhow::ensure!(output.status.success(), "{} gets from {address}: {complaint}", node.name());
            Ok(said)
        })
        .collect()
}

/// A pod that waits to be told what to do, on a node.
pub fn probe_pod(name: &str, node: &str) -> [Value; 1] {
    [json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name },
        "spec": {
            "nodeName": node,
            "terminationGracePeriodSeconds": 1,
            "containers": [{ "name": "probe", "image": "sluice-probe:1", "imagePullPolicy": "Never" }],
        },
    })]
}

/// So many pods of one container, as many on the one node as on the other, which get `grace` seconds for their end.
pub fn deployment(name: &str, replicas: usize, grace: u32, container: &Value) -> Value {
    let labels = json!({ "app": name });
    let spread = json!({
        "maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "DoNotSchedule",
        "labelSelector": { "matchLabels": labels }, "matchLabelKeys": ["pod-template-hash"],
    });
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": name },
        "spec": {
            "replicas": replicas,
            "selector": { "matchLabels": labels },
            "template": {
                "metadata": { "labels": labels },
                "spec": {
                    "terminationGracePeriodSeconds": grace,
                    "topologySpreadConstraints": [spread],
                    "containers": [container],
                },
            },
        },
    })
}

/// A server in as many pods, as many on the one node as on the other, and its Service with addresses of both families.
pub fn spread_server(name: &str, replicas: usize) -> [Value; 2] {
    let server = json!({
        "name": "server", "image": "sluice-probe:1", "imagePullPolicy": "Never",
        "args": ["serve", ":8080"],
        "ports": [{ "name": "http", "containerPort": 8080 }],
        "readinessProbe": { "httpGet": { "path": "/", "port": "http" }, "periodSeconds": 1 },
    });
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "name": name },
        "spec": {
            "ipFamilyPolicy": "RequireDualStack",
            "selector": { "app": name },
            "ports": [{ "name": "http", "port": 80, "targetPort": "http" }],
        },
    });
    [deployment(name, replicas, 1, &server), service]
}
