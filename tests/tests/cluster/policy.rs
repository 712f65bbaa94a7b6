//! A NetworkPolicy that forbids a client some endpoints of a Service, as the nftables rules that policy engines make of
//! it on the client's node. In: such rules, dropping or rejecting; out: calls that all succeed by the other endpoints, a
//! forbidden one that is dialled seldom, another pod that notices nothing, and all shares even again without the rules.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use testbed::KubeNode;

use crate::sluice::{self, PORT, agent_on, answering};
use crate::world::Namespace;

const ENDPOINTS: usize = 3;
const SECONDS: usize = 10;

#[test]
#[ignore = "beyond the short set: cargo xtask cluster test --all"]
fn calls_keep_to_a_policy_that_drops_and_come_back_without_it() -> Result<()> {
    // A dial is given up after five seconds, in which the kernel sends a SYN each second (tcp_syn_linear_timeouts); a
    // back-off of about a second follows: in ten seconds there is room for two dials.
    keep_to_the_policy("policy-drop", "drop", 2 * 5)
}

#[test]
#[ignore = "takes half a minute: cargo xtask cluster test --all"]
fn calls_keep_to_a_policy_that_rejects_and_come_back_without_it() -> Result<()> {
    // A dial fails at once. Back-offs of about 1, 2, 4 and 8 s (a quarter of each is chance): at most four dials in ten
    // seconds, and the one after them where the load begins late.
    keep_to_the_policy("policy-reject", "reject with icmp type admin-prohibited", 5)
}

/// `at_most`: SYNs to the forbidden endpoint while the load lasts.
fn keep_to_the_policy(name: &str, verdict: &str, at_most: u64) -> Result<()> {
    let cluster = sluice::installed()?;
    let space = Namespace::make(cluster, name)?;
    let [node, _] = cluster.nodes();
    space.apply(&[sluice::service("echo", "echo")])?;
    for client in ["client", "other"] {
        space.apply(&[sluice::client(client, node.name())])?;
    }
    space.deploy(&sluice::echo("echo", ENDPOINTS))?;
    for client in ["client", "other"] {
        space.wait(&["--for=condition=Ready", &format!("pod/{client}")])?;
    }
    let target = space.target("echo")?;
    space.wait_reach("other", &target, ENDPOINTS)?;
    let pods = space.pods("app=echo")?;
    let forbidden = pods.first().context("a pod")?;
    let ip = |pod: &str| space.kubectl(&["get", "pod", pod, "--output=jsonpath={.status.podIP}"]);
    let allowed = pods.iter().skip(1).map(|pod| ip(pod)).collect::<Result<Vec<_>>>()?;
    let policy = Policy::impose(node, &ip("client")?, &allowed, verdict)?;

    let duration = format!("{SECONDS}s");
    let args = ["run", &target, "--rate", "1000", "--duration", &duration, "--connections", "2", "--streams", "100"];
    let [load, others] = [space.load("client", &args)?, space.load("other", &args)?];
    let (load, others) = (load.finish_without_failure()?, others.finish_without_failure()?);
    let dropped = policy.dropped()?;
    println!("{verdict}: {} by the client, {} by another pod", load["calls"], others["calls"]);
    println!("{verdict}: {dropped} SYNs to the forbidden endpoint in {SECONDS} s; latency {}", load["latency_us"]);
    let expected: BTreeSet<_> = pods.iter().skip(1).cloned().collect();
    assert_eq!(answering(&load), expected, "the endpoints that the policy allows");
    assert_eq!(answering(&others), pods, "all endpoints, for the pod without a policy");
    // The one that the client keeps away from has a third of the calls that the others have, and is a little faster for it.
    for (report, most) in [(&load, 1.05), (&others, 1.25)] {
        let even = report["max_over_min"].as_f64().context("max/min")?;
        ensure!(even <= most, "max/min {even}: {report:#}");
    }
    ensure!((1..=at_most).contains(&dropped), "{dropped} SYNs to the forbidden endpoint");

    let status = |client: &str| -> Result<Value> {
        let pod = agent_on(cluster, node.name())?.pod(&format!("{}/{client}", space.name()))?;
        Ok(pod.iter().flat_map(|netns| netns["traffic"]["ejected"].as_array()).flatten().cloned().collect())
    };
    let (ejected, of_other) = (status("client")?, status("other")?);
    println!("{verdict}: ejected {ejected}");
    assert_eq!(ejected[0]["address"], format!("{}:{PORT}", ip(forbidden)?));
    assert_eq!((ejected.as_array().map(Vec::len), of_other), (Some(1), json!([])), "of the client, of the other pod");

    // The last back-off, and the dial that was under way: a dropped one is given up after five seconds.
    let failures = ejected[0]["failures"].as_u64().context("failures")?;
    let within = Duration::from_secs((1 << failures) + 5);
    drop(policy);
    let start = Instant::now();
    space.wait_reach("client", &target, ENDPOINTS)?;
    let back = start.elapsed();
    println!("{verdict}: the third endpoint answers {back:?} after the rules are gone (failures: {failures})");
    // As much again, and ten seconds for a busy machine.
    ensure!(back < within * 2 + Duration::from_secs(10), "back after {back:?}, not within {within:?}");
    let report = space.loadtest("client", &["run", &target, "--rpcs", "3000", "--max-failed", "0"])?;
    println!("{verdict}: afterwards {}", report["calls"]);
    ensure!(report["max_over_min"].as_f64().context("max/min")? <= 1.05, "{report:#}");
    assert_eq!(status("client")?, json!([]));
    Ok(())
}

/// Default deny for what a pod sends, but to these addresses; gone with its guard.
struct Policy {
    node: KubeNode,
    table: String,
}

impl Policy {
    fn impose(node: KubeNode, client: &str, allowed: &[String], verdict: &str) -> Result<Self> {
        let policy = Self { node, table: format!("sluice_test_{}", std::process::id()) };
        // Packets between two pods of the node pass here, too: each pod has a link of its own.
        policy.nft(&format!(
            "add table inet {table}
             add chain inet {table} forward {{ type filter hook forward priority filter; policy accept; }}
             add counter inet {table} dropped
             add rule inet {table} forward ip saddr {client} ip daddr {{ {} }} accept
             add rule inet {table} forward ip saddr {client} tcp flags syn / syn,ack counter name dropped
             add rule inet {table} forward ip saddr {client} {verdict}
             ",
            allowed.join(", "),
            table = policy.table
        ))?;
        Ok(policy)
    }

    /// SYNs that were not let through.
    fn dropped(&self) -> Result<u64> {
        let list: Value =
            serde_json::from_str(&self.nft_args(&["--json", "list", "counter", "inet", &self.table, "dropped"])?)?;
        let objects = list["nftables"].as_array().context("nftables")?;
        objects.iter().find_map(|it| it["counter"]["packets"].as_u64()).context("the counter")
    }

    fn nft(&self, commands: &str) -> Result<String> {
        self.nft_args(&[commands])
    }

    fn nft_args(&self, args: &[&str]) -> Result<String> {
        let output = self.node.command("nft")?.args(args).output()?;
        ensure!(output.status.success(), "nft {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8(output.stdout)?)
    }
}

impl Drop for Policy {
    fn drop(&mut self) {
        if let Err(error) = self.nft(&format!("delete table inet {}", self.table)) {
            eprintln!("rules stay on {}: {error:#}", self.node.name());
        }
    }
}
