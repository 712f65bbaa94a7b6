//! Pods whose program dials in its first instant: how many of these connections are sluice's. In: pods started one after
//! another on each node, two nodes at the same time; out: the pods that answered each one's calls, and the kernel's
//! verdicts. A connection that comes too early is kube-proxy's, and no call fails.

use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use testbed::KubeNode;

use crate::sluice::{self, agents};
use crate::world::Namespace;

const ENDPOINTS: usize = 3;

#[test]
fn pods_that_dial_in_their_first_instant_are_redirected() -> Result<()> {
    race(10)
}

#[test]
#[ignore = "takes 4 minutes: cargo xtask cluster test --all"]
fn of_a_hundred_pods_that_dial_in_their_first_instant_99_are_redirected() -> Result<()> {
    race(100)
}

/// At most one in a hundred comes too early.
fn race(pods: usize) -> Result<()> {
    let cluster = sluice::installed()?;
    let space = Namespace::make(cluster, "race")?;
    space.apply(&[sluice::service("echo", "echo")])?;
    space.deploy(&sluice::echo("echo", ENDPOINTS))?;
    space.wait_endpoints("echo", ENDPOINTS)?;
    // kube-proxy serves who comes too early.
    space.start_client("first", "node-a")?;
    let target = space.target("echo")?;
    space.wait_reach("first", &target, ENDPOINTS)?;

    let before = verdicts(&space)?;
    let start = Instant::now();
    let [on_a, on_b] = cluster.nodes();
    let [a, b] = std::thread::scope(|scope| {
        let other = scope.spawn(|| one_after_another(&space, on_b, &target, pods / 2));
        let a = one_after_another(&space, on_a, &target, pods - pods / 2);
        [a, other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))]
    });
    let reached: BTreeMap<String, usize> = a?.into_iter().chain(b?).collect();
    let after = verdicts(&space)?;

    let redirected = reached.values().filter(|pods| **pods > 1).count();
    println!("{redirected} of {pods} pods were redirected ({:.0?}, one after another on each node)", start.elapsed());
    for (name, count) in &after {
        let rose = count - before.get(name).unwrap_or(&0);
        if rose > 0 {
            println!("    {name}: {rose}");
        }
    }
    for (pod, _) in reached.iter().filter(|(_, pods)| **pods <= 1) {
        println!("    {pod}: all calls to one endpoint");
    }
    ensure!(redirected + pods / 100 >= pods, "only {redirected} of {pods} were redirected");
    Ok(())
}

/// Gives how many endpoints answered each pod's calls.
fn one_after_another(space: &Namespace, node: KubeNode, target: &str, pods: usize) -> Result<Vec<(String, usize)>> {
    (0..pods)
        .map(|number| {
            let name = format!("early-{}-{number}", node.name());
            space.apply(&[early(&name, node, target)])?;
            space.wait(&["--for=jsonpath={.status.phase}=Succeeded", &format!("pod/{name}")])?;
            let get = "--output=jsonpath={.status.containerStatuses[0].state.terminated.message}";
            let report = space.kubectl(&["get", "pod", &name, get])?;
            let report: Value = serde_json::from_str(&report).with_context(|| format!("{name}'s report: {report}"))?;
            ensure!(report["failed"] == 0 && report["rpcs"] == 6, "{name}: {report:#}");
            space.kubectl(&["delete", "pod", &name, "--wait=false"])?;
            Ok((name, sluice::answering(&report).len()))
        })
        .collect()
}

/// Its own program makes six calls on one connection, first of all.
fn early(name: &str, node: KubeNode, target: &str) -> Value {
    let mut pod = sluice::client(name, node.name());
    pod["spec"]["restartPolicy"] = "Never".into();
    let container = &mut pod["spec"]["containers"][0];
    container["command"] = json!(["/usr/bin/loadtest", "run", target, "--rpcs", "6", "--json", "/dev/termination-log"]);
    pod
}

/// Of all agents together.
fn verdicts(space: &Namespace) -> Result<BTreeMap<String, u64>> {
    let mut sum = BTreeMap::new();
    for agent in agents(space.cluster())? {
        let verdicts: BTreeMap<String, u64> = serde_json::from_value(agent.status()?["kernel_verdicts"].clone())?;
        for (name, count) in verdicts {
            *sum.entry(name).or_default() += count;
        }
    }
    Ok(sum)
}
