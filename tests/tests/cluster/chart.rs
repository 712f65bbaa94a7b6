//! The Helm chart: in, `helm install`; out, what the API server says to it, and a sluice that spreads calls as the manifests'
//! own does until `helm uninstall`. Which values there are is not looked at here.

use std::process::{Output, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use testbed::Cluster;

use crate::sluice::{self, SYSTEM};
use crate::world::Namespace;

const CHART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../manifests/chart");
const NAMESPACE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../manifests/namespace.yaml");
const ENDPOINTS: usize = 2;

#[test]
fn the_api_server_accepts_the_chart_and_helm_refuses_a_second_sluice() -> Result<()> {
    let cluster = sluice::installed()?;
    let space = Namespace::make(cluster, "chart")?;
    let try_out = ["install", "sluice", CHART, "--namespace", space.name(), "--dry-run=server", "--output=json"];
    let all = helm(cluster, &[&try_out[..], &["--take-ownership", "--set", "networkPolicy.enabled=true"]].concat())?;
    ensure!(all.status.success(), "{}", String::from_utf8_lossy(&all.stderr));
    let release: Value = serde_json::from_slice(&all.stdout).context("helm's JSON")?;
    let manifest = release["manifest"].as_str().context("manifest")?;
    // Helm has asked the API server for its kinds only; this is all of the way but storing it.
    let file = cluster.folder()?.join("chart.yaml");
    std::fs::write(&file, manifest)?;
    let path = file.to_str().context("a path in UTF-8")?;
    let accepted = cluster.kubectl(&["apply", "--dry-run=server", "--validate=strict", "--filename", path])?;
    std::fs::remove_file(&file)?;
    println!("{accepted}");
    for kind in ["serviceaccount", "clusterrole", "clusterrolebinding", "daemonset", "networkpolicy"] {
        ensure!(accepted.lines().any(|line| line.starts_with(kind)), "no {kind} in\n{accepted}");
    }

    // The manifests' objects are there: neither way of installing takes them from the other.
    let second = helm(cluster, &try_out)?;
    let complaint = String::from_utf8_lossy(&second.stderr);
    ensure!(!second.status.success() && complaint.contains("exists and cannot be imported"), "{complaint}");
    Ok(())
}

#[test]
#[ignore = "takes 2 minutes: cargo xtask cluster test --all"]
fn helm_installs_a_sluice_that_serves_and_uninstalls_it() -> Result<()> {
    let cluster = sluice::installed()?;
    let space = Namespace::make(cluster, "helm")?;
    space.apply(&[sluice::service("echo", "echo"), sluice::client("client", "node-a")])?;
    space.deploy(&sluice::echo("echo", ENDPOINTS))?;
    space.wait(&["--for=condition=Ready", "pod/client"])?;
    let target = space.target("echo")?;

    let _manifests = Manifests::remove(cluster)?;
    space.wait_reach("client", &target, 1)?;
    cluster.kubectl(&["apply", "--filename", NAMESPACE])?;
    succeeds(cluster, &["install", "sluice", CHART, "--namespace", SYSTEM, "--wait", "--timeout=300s"])?;
    sluice::settle(cluster)?;
    space.wait_reach("client", &target, ENDPOINTS)?;
    succeeds(cluster, &["uninstall", "sluice", "--namespace", SYSTEM, "--wait", "--timeout=300s"])?;
    space.wait_reach("client", &target, 1)
}

fn helm(cluster: &Cluster, args: &[&str]) -> Result<Output> {
    cluster.command("helm").args(args).stdin(Stdio::null()).output().context("cannot start helm")
}

fn succeeds(cluster: &Cluster, args: &[&str]) -> Result<()> {
    let output = helm(cluster, args)?;
    ensure!(output.status.success(), "helm {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// sluice is away as `kubectl delete -k manifests` removes it, and comes back when this goes.
struct Manifests {
    cluster: &'static Cluster,
    /// By which the tests know which build is installed.
    build: String,
}

impl Manifests {
    fn remove(cluster: &'static Cluster) -> Result<Self> {
        let label = "--output=jsonpath={.metadata.labels.build}";
        let build = cluster.kubectl(&["get", "namespace", SYSTEM, label])?;
        let manifests = Self { cluster, build };
        sluice::uninstall(cluster)?;
        Ok(manifests)
    }

    fn put_back(&self) -> Result<()> {
        // Helm's objects have the same names.
        sluice::uninstall(self.cluster)?;
        sluice::install(self.cluster)?;
        self.cluster.kubectl(&["label", "namespace", SYSTEM, &format!("build={}", self.build)]).map(drop)
    }
}

impl Drop for Manifests {
    fn drop(&mut self) {
        if let Err(error) = self.put_back() {
            eprintln!("sluice is not installed again: {error:#}");
        }
    }
}
