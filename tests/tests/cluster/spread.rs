//! What users install it for: one client with one connection reaches one pod through kube-proxy, and all of them through
//! sluice, evenly.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::sluice::{self, PORT};
use crate::world::Namespace;

const ENDPOINTS: usize = 6;
const RPCS: u64 = 20_000;

#[test]
fn one_connection_reaches_one_pod_by_kube_proxy_and_all_pods_evenly_by_sluice() -> Result<()> {
    let cluster = sluice::installed()?;
    let space = Namespace::make(cluster, "spread")?;
    space.deploy(&sluice::echo("echo", ENDPOINTS))?;
    space.apply(&[sluice::service("echo", "echo"), sluice::service_without_sluice("plain", "echo")])?;
    for node in cluster.nodes() {
        let client = format!("client-{}", node.name());
        space.start_client(&client, node.name())?;
        space.wait_endpoints("echo", ENDPOINTS)?;

        let runs = [format!("kube-proxy={}", space.target("plain")?), format!("sluice={}", space.target("echo")?)];
        let rpcs = RPCS.to_string();
        let args = ["compare", "--rpcs", &rpcs, "--streams", "50", "--run", &runs[0], "--run", &runs[1]];
        let report = space.loadtest(&client, &args)?;
        let [kube_proxy, sluice] = [0, 1].map(|run| &report["runs"][run]);
        println!("{client}: by kube-proxy {}, by sluice {}", kube_proxy["calls"], sluice["calls"]);
        println!("{client}: by sluice max/min {}, p50 and p99 {}", sluice["max_over_min"], sluice["latency_us"]);
        for run in [kube_proxy, sluice] {
            ensure!(run["rpcs"] == RPCS && run["failed"] == 0 && run["not_started"] == 0, "{run:#}");
        }
        assert_eq!((answering(kube_proxy), answering(sluice)), (1, ENDPOINTS), "endpoints that answered");
        let even = sluice["max_over_min"].as_f64().context("max/min")?;
        ensure!(even <= 1.05, "max/min {even}: {sluice:#}");
        // Half of the pods are on the other node.
        let by_node = space.calls_by_node(sluice)?;
        assert_eq!(by_node.len(), 2, "{by_node:?}");

        stock_grpc_go(&space, &client, &space.cluster_ips("echo")?)?;
    }
    Ok(())
}

fn answering(run: &Value) -> usize {
    run["calls"].as_object().into_iter().flatten().filter(|(_, calls)| calls.as_u64() > Some(0)).count()
}

/// An unmodified grpc-go beside it, by both families: every scenario of tests/clients/README.md, and even shares.
fn stock_grpc_go(space: &Namespace, client: &str, addresses: &[String]) -> Result<()> {
    for address in addresses {
        let target = format!("{address}:{PORT}");
        let lines = space.kubectl(&["exec", client, "--", "/usr/bin/echo-client", "--expect-peer", &target])?;
        let facts: Vec<Value> = lines.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
        ensure!(facts.len() == 13 && facts.iter().all(|it| it["ok"] == true), "{target}: {lines}");
        let spread = facts.iter().find(|it| it["scenario"] == "unary_spread").context("unary_spread")?;
        let pods: BTreeMap<String, u64> = serde_json::from_value(spread["pods"].clone())?;
        println!("{client}: grpc-go to {target}: {pods:?}");
        let (least, most) = (pods.values().min(), pods.values().max());
        ensure!(pods.len() == ENDPOINTS && most <= least.map(|it| it + 1).as_ref(), "{target}: {pods:?}");
    }
    Ok(())
}
