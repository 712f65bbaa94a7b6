//! An agent that lacks something: what its check and its log say, and that it goes on by itself when it gets it. In: copies
//! of the manifests' DaemonSet under another name, on one node each, with a right, a capability or a mount less; out:
//! their words. The manifests' own agents serve on beside them.

use std::process::Stdio;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use testbed::Cluster;

use crate::sluice::{self, SYSTEM};
use crate::world::Namespace;

const ROLE: &str = "sluice-agent";
/// The line of a check that failed for want of this right, and the beginning of its cure.
const NO_SLICES: [&str; 3] = [
    "fail  RBAC: endpointslices",
    "may neither list nor watch endpointslices of the whole cluster",
    "cure: add to the ClusterRole of the agent's ServiceAccount: {apiGroups: [\"discovery.k8s.io\"], resources: \
     [endpointslices], verbs: [list, watch]}",
];

#[test]
#[ignore = "takes a minute: cargo xtask cluster test --all"]
fn a_missing_right_is_named_with_its_cure_and_the_agent_goes_on_when_it_gets_it() -> Result<()> {
    let cluster = sluice::installed()?;
    let space = Namespace::make(cluster, "right")?;
    let role = Role::make(&space, |rule| rule["resources"] != json!(["endpointslices"]))?;
    // One without the check before it: an agent whose right went after it was checked.
    let mut unchecked = copy(cluster, "unchecked", "node-a")?;
    pod_of(&mut unchecked).as_object_mut().context("a pod")?.remove("initContainers");
    space.apply(&[unchecked, copy(cluster, "checked", "node-b")?])?;

    let (checked, unchecked) = (the_pod(&space, "checked")?, the_pod(&space, "unchecked")?);
    says(&space, &checked, "check", &NO_SLICES)?;
    let cannot = ["place=API server, endpointslices", "apply the ClusterRole of the manifests"];
    says(&space, &unchecked, "agent", &cannot)?;
    let exec = cluster
        .command("kubectl")
        .args(["--namespace", space.name(), "exec", &unchecked, "--", "/usr/bin/sluice-agent", "check"])
        .stdin(Stdio::null())
        .output()?;
    let said = String::from_utf8(exec.stdout)?;
    ensure!(!exec.status.success(), "the check has passed: {said}");
    for words in NO_SLICES {
        ensure!(said.contains(words), "{words:?} is not in\n{said}");
    }
    let ip = space.kubectl(&["get", "pod", &unchecked, "--output=jsonpath={.status.podIP}"])?;
    let [programs, _] = cluster.tools();
    let page = format!("http://{ip}:9966/readyz");
    let answer = cluster.node("node-a")?.command(programs.join("probe"))?.args(["get", &page]).output()?;
    let (page, status) = (String::from_utf8(answer.stdout)?, String::from_utf8(answer.stderr)?);
    println!("readyz: {}: {page}", status.trim());
    ensure!(status.contains("503 Service Unavailable"), "an agent without endpoints is ready: {status}");
    for words in ["waiting for all endpointslices", "apply the ClusterRole of the manifests"] {
        ensure!(page.contains(words), "{words:?} is not in {page}");
    }

    role.allow(|_| true)?;
    let start = Instant::now();
    for pod in [&unchecked, &checked] {
        space.wait(&["--for=condition=Ready", &format!("pod/{pod}")])?;
        println!("{pod} ready {:.1?} after it got the right", start.elapsed());
    }
    // By itself, and not anew.
    let restarts = ["get", "pod", &unchecked, "--output=jsonpath={.status.containerStatuses[0].restartCount}"];
    assert_eq!(space.kubectl(&restarts)?, "0");
    Ok(())
}

#[test]
#[ignore = "beyond the short set: cargo xtask cluster test --all"]
fn a_missing_capability_and_a_missing_mount_are_named_with_their_cures() -> Result<()> {
    let cluster = sluice::installed()?;
    let space = Namespace::make(cluster, "less")?;
    let _role = Role::make(&space, |_| true)?;
    let mut powerless = copy(cluster, "powerless", "node-a")?;
    for_containers(&mut powerless, |container| {
        if let Some(add) = container["securityContext"]["capabilities"]["add"].as_array_mut() {
            add.retain(|it| it != "SYS_PTRACE");
        }
    });
    let mut blind = copy(cluster, "blind", "node-b")?;
    pod_of(&mut blind).as_object_mut().context("a pod")?.remove("volumes");
    for_containers(&mut blind, |container| container["volumeMounts"] = json!([]));
    space.apply(&[powerless, blind])?;

    let (powerless, blind) = (the_pod(&space, "powerless")?, the_pod(&space, "blind")?);
    let capability = [
        "fail  CAP_SYS_PTRACE",
        "missing: finds the namespaces of pods' processes in /proc",
        "cure: in a pod securityContext.capabilities.add: [SYS_PTRACE]",
        "sluice cannot serve this node yet",
    ];
    says(&space, &powerless, "check", &capability)?;
    let mount = ["fail  ", "cgroup", "hostPath", "sluice cannot serve this node yet"];
    says(&space, &blind, "check", &mount)?;
    for pod in [&powerless, &blind] {
        let get = ["get", "pod", pod, "--output=jsonpath={.status.containerStatuses[0].started}"];
        assert_eq!(space.kubectl(&get)?, "false", "{pod}: the agent must not start after a check that failed");
    }
    Ok(())
}

/// The manifests' DaemonSet under another name, on one node.
fn copy(cluster: &Cluster, name: &str, node: &str) -> Result<Value> {
    let get = ["--namespace", SYSTEM, "get", "daemonset", "sluice-agent", "--output=json"];
    let own: Value = serde_json::from_str(&cluster.kubectl(&get)?)?;
    let labels = json!({ "app": name });
    let mut copy = json!({
        "apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": { "name": name },
        "spec": {
            "selector": { "matchLabels": labels },
            "template": {
                "metadata": { "labels": labels, "annotations": own["spec"]["template"]["metadata"]["annotations"] },
                "spec": own["spec"]["template"]["spec"],
            },
        },
    });
    let pod = pod_of(&mut copy);
    pod["serviceAccountName"] = ROLE.into();
    pod["nodeSelector"] = json!({ "kubernetes.io/hostname": node });
    pod.as_object_mut().context("a pod")?.remove("serviceAccount");
    Ok(copy)
}

fn pod_of(set: &mut Value) -> &mut Value {
    &mut set["spec"]["template"]["spec"]
}

fn for_containers(set: &mut Value, change: impl Fn(&mut Value)) {
    for kind in ["initContainers", "containers"] {
        pod_of(set)[kind].as_array_mut().into_iter().flatten().for_each(&change);
    }
}

/// The DaemonSet's only pod.
fn the_pod(space: &Namespace, set: &str) -> Result<String> {
    let pods = || space.pods(&format!("app={set}"));
    space.cluster().wait_until(&format!("{set}'s pod"), || Ok(pods()?.len() == 1))?;
    pods()?.pop_first().context("it was there")
}

/// Waits until a container has said all of this, and prints the lines in which it stands.
fn says(space: &Namespace, pod: &str, container: &str, words: &[&str]) -> Result<()> {
    let mut log = String::new();
    let waited = space.cluster().wait_until(&format!("{words:?} of {pod}"), || {
        // It has none before it was started.
        log = space.kubectl(&["logs", pod, "--container", container]).unwrap_or_default();
        Ok(words.iter().all(|words| log.contains(words)))
    });
    for line in log.lines().filter(|line| line.starts_with("fail") || words.iter().any(|it| line.contains(it))) {
        println!("{pod}: {line}");
    }
    waited.with_context(|| format!("it has said\n{log}"))
}

/// Rights of a namespace's copies: those of the manifests, or less. Gone with its guard.
struct Role<'a> {
    space: &'a Namespace,
}

impl<'a> Role<'a> {
    fn make(space: &'a Namespace, keep: impl Fn(&Value) -> bool) -> Result<Self> {
        let role = Self { space };
        let account = json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "name": ROLE } });
        space.apply(&[account])?;
        role.allow(keep)?;
        let binding = json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
            "metadata": { "name": space.name() },
            "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": space.name() },
            "subjects": [{ "kind": "ServiceAccount", "name": ROLE, "namespace": space.name() }],
        });
        space.cluster().apply(&binding.to_string())?;
        Ok(role)
    }

    /// Those rules of the manifests which `keep` keeps.
    fn allow(&self, keep: impl Fn(&Value) -> bool) -> Result<()> {
        let cluster = self.space.cluster();
        let own: Value = serde_json::from_str(&cluster.kubectl(&["get", "clusterrole", ROLE, "--output=json"])?)?;
        let rules: Vec<_> = own["rules"].as_array().context("rules")?.iter().filter(|rule| keep(rule)).collect();
        let role = json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
            "metadata": { "name": self.space.name() }, "rules": rules,
        });
        cluster.apply(&role.to_string()).map(drop)
    }
}

impl Drop for Role<'_> {
    fn drop(&mut self) {
        for kind in ["clusterrolebinding", "clusterrole"] {
            let name = self.space.name();
            if let Err(error) = self.space.cluster().kubectl(&["delete", kind, name, "--ignore-not-found"]) {
                eprintln!("the {kind} {name} stays: {error:#}");
            }
        }
    }
}
