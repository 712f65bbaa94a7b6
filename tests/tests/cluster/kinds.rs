//! Services of unusual making, and a client that is an endpoint itself: all endpoints answer one connection. And what
//! annotations do to connections made after they were changed. In: one Deployment and clients for all of it; out: the
//! pods that answer. One pod for all calls of a connection is kube-proxy's way, all pods are sluice's.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::sluice::{self, PORT, agent_on};
use crate::world::Namespace;

const ENDPOINTS: usize = 4;
/// The servers' second port.
const OTHER: u16 = PORT + 1;
const CLIENT: &str = "client";

#[test]
#[ignore = "beyond the short set: cargo xtask cluster test --all"]
fn services_of_every_making_are_spread_and_annotations_count_at_once() -> Result<()> {
    let cluster = sluice::installed()?;
    let space = Namespace::make(cluster, "kinds")?;
    let mut echo = sluice::echo("echo", ENDPOINTS);
    let listen = [PORT, OTHER].map(|port| format!("--listen=[::]:{port}"));
    echo["spec"]["template"]["spec"]["containers"][0]["args"] = json!(["server", listen[0], listen[1]]);
    space.apply(&[sluice::service("echo", "echo"), unready_deployment(), hand_made_service()])?;
    space.apply(&[sluice::service("unready", "unready"), published(sluice::service("published", "unready"))])?;
    space.apply(&[sluice::client(CLIENT, "node-a"), sluice::client("other", "node-a")])?;
    space.deploy(&echo)?;
    for pod in [CLIENT, "other"] {
        space.wait(&["--for=condition=Ready", &format!("pod/{pod}")])?;
    }

    both_families(&space)?;
    hand_made_slices(&space)?;
    pods_that_are_not_ready(&space)?;
    a_pods_own_service(&space)?;
    annotations(&space)
}

/// Each address leads to the endpoints of its own family.
fn both_families(space: &Namespace) -> Result<()> {
    for address in space.cluster_ips("echo")? {
        let target = format!("{address}:{PORT}");
        space.wait_reach(CLIENT, &target, ENDPOINTS)?;
        let report = space.loadtest(CLIENT, &["run", &target, "--rpcs", "400", "--max-failed", "0"])?;
        let calls: BTreeMap<String, u64> = serde_json::from_value(report["calls"].clone())?;
        println!("by {target}: {calls:?}");
        let family = |it: &str| it.starts_with('[');
        ensure!(calls.keys().all(|endpoint| family(endpoint) == family(&address)), "{calls:?}");
        // All of them together may be owed sixty turns.
        let even = |calls: &u64| calls.abs_diff(100) <= 60 / ENDPOINTS as u64 + 1;
        ensure!(calls.len() == ENDPOINTS && calls.values().all(even), "{calls:?}");
    }
    Ok(())
}

/// No selector, and two slices in which the port of the same name has different numbers.
fn hand_made_slices(space: &Namespace) -> Result<()> {
    let get = ["get", "pods", "--selector=app=echo", "--output=jsonpath={.items[*].status.podIP}"];
    let ips = space.kubectl(&get)?;
    let ips: Vec<&str> = ips.split_whitespace().collect();
    ensure!(ips.len() == ENDPOINTS, "{ips:?}");
    let halves = [(&ips[..2], PORT), (&ips[2..], OTHER)];
    for (number, (ips, port)) in halves.iter().enumerate() {
        let endpoints: Vec<_> = ips.iter().map(|ip| json!({ "addresses": [ip] })).collect();
        space.apply(&[json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": { "name": format!("made-{number}"), "labels": { "kubernetes.io/service-name": "made" } },
            "addressType": "IPv4", "endpoints": endpoints,
            "ports": [{ "name": "api", "port": port }, { "name": "other", "port": 1 }],
        })])?;
    }
    let expected: BTreeSet<String> =
        halves.iter().flat_map(|(ips, port)| ips.iter().map(move |ip| format!("{ip}:{port}"))).collect();
    let target = space.target("made")?;
    space.wait_reach(CLIENT, &target, ENDPOINTS)?;
    let report = space.loadtest(CLIENT, &["run", &target, "--rpcs", "100", "--max-failed", "0"])?;
    let calls: BTreeMap<String, u64> = serde_json::from_value(report["calls"].clone())?;
    println!("by slices made by hand: {calls:?}");
    assert_eq!(calls.into_keys().collect::<BTreeSet<_>>(), expected);
    Ok(())
}

/// publishNotReadyAddresses: all; without it the same pods are no endpoints, and the status says so.
fn pods_that_are_not_ready(space: &Namespace) -> Result<()> {
    let cluster = space.cluster();
    space.wait_reach(CLIENT, &space.target("published")?, 2)?;
    let ready =
        ["get", "pods", "--selector=app=unready", "--output=jsonpath={.items[*].status.containerStatuses[0].ready}"];
    assert_eq!(space.kubectl(&ready)?, "false false");
    let name = format!("{}/unready:api", space.name());
    for agent in sluice::agents(cluster)? {
        assert_eq!(agent.left_alone(&name)?, BTreeSet::from(["no usable endpoints".to_owned()]), "{}", agent.node);
    }
    Ok(())
}

/// A server that calls the Service which it is an endpoint of: it answers its own calls, too.
fn a_pods_own_service(space: &Namespace) -> Result<()> {
    let target = space.target("echo")?;
    let pods = space.pods("app=echo")?;
    let pod = pods.first().context("a pod")?;
    let report = space.loadtest(pod, &["run", &target, "--rpcs", "400", "--max-failed", "0"])?;
    println!("{pod} calls its own Service: {}", report["calls"]);
    assert_eq!(sluice::answering(&report), pods);
    Ok(())
}

fn annotations(space: &Namespace) -> Result<()> {
    let target = space.target("echo")?;
    // Each: the object, the annotation, and how many pods answer one connection of the client and of another client.
    let service = ["service", "echo"];
    let namespace = ["namespace", space.name()];
    let pod = ["pod", CLIENT];
    let changes: [([&str; 2], &str, usize, usize); 8] = [
        (service, "=false", 1, 1),
        (service, "=true", ENDPOINTS, ENDPOINTS),
        // The Service's own word wins.
        (namespace, "=false", ENDPOINTS, ENDPOINTS),
        (service, "-", 1, 1),
        (namespace, "-", ENDPOINTS, ENDPOINTS),
        (pod, "=false", 1, ENDPOINTS),
        // A Pod's word is about its own connections, whatever the Service says.
        (service, "=true", 1, ENDPOINTS),
        (pod, "-", ENDPOINTS, ENDPOINTS),
    ];
    for ([kind, name], value, of_client, of_other) in changes {
        let annotation = format!("sluice.dev/redirect{value}");
        space.kubectl(&["annotate", kind, name, &annotation, "--overwrite"])?;
        let start = Instant::now();
        space.wait_reach(CLIENT, &target, of_client)?;
        space.wait_reach("other", &target, of_other)?;
        println!("{kind} {annotation}: {of_client} and {of_other} pods after {:?}", start.elapsed());
        if value == "=false" && kind == "pod" {
            // The kernel counts what it left alone, and nothing of this is sent to the listener.
            let agent = agent_on(space.cluster(), "node-a")?;
            let counts = || anyhow::Ok((agent.verdict("pod_opted_out")?, agent.verdict("redirected")?));
            let before = counts()?;
            space.reached(CLIENT, &target, 10, 10)?;
            let after = counts()?;
            assert_eq!((after.0 - before.0, after.1 - before.1), (10, 0), "of 10 connects: opted out, redirected");
        }
    }
    Ok(())
}

/// Two servers that never become ready.
fn unready_deployment() -> Value {
    let mut echo = sluice::echo("unready", 2);
    let container = &mut echo["spec"]["template"]["spec"]["containers"][0];
    container["readinessProbe"] = json!({ "tcpSocket": { "port": 1 }, "periodSeconds": 1 });
    echo
}

fn published(mut service: Value) -> Value {
    service["spec"]["publishNotReadyAddresses"] = true.into();
    service
}

fn hand_made_service() -> Value {
    let mut service = sluice::service("made", "");
    service["spec"].as_object_mut().expect("a Service has a spec").remove("selector");
    service
}
