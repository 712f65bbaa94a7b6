//! Which of a Service's pods get calls from which node: those to which kube-proxy would send connections, asked through
//! a twin of each Service that sluice leaves alone. In: Services with each field that makes the place matter, and pods on
//! both nodes or on one; out: the pods that answer. How evenly they do is not looked at here.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::sluice::{self, agent_on};
use crate::world::Namespace;

/// Connections which kube-proxy spreads at random: one of four pods gets none of them one time in 10^7.
const CONNECTIONS: usize = 60;

/// Each field with the Service's name.
const FIELDS: [(&str, &str, &str); 3] = [
    ("zone", "trafficDistribution", "PreferSameZone"),
    ("node", "trafficDistribution", "PreferSameNode"),
    ("local", "internalTrafficPolicy", "Local"),
];

#[test]
fn calls_go_where_kube_proxy_sends_connections() -> Result<()> {
    let cluster = sluice::installed()?;
    let space = Namespace::make(cluster, "topology")?;
    for (name, field, value) in FIELDS {
        space.apply(&twins(name).map(|mut service| {
            service["spec"][field] = value.into();
            service
        }))?;
    }
    for node in cluster.nodes() {
        space.apply(&[sluice::client(&client(node.name()), node.name())])?;
        space.deploy(&echo_on(node.name()))?;
    }
    for node in cluster.nodes() {
        space.wait(&["--for=condition=Ready", &format!("pod/{}", client(node.name()))])?;
    }
    let on = |node: &str| space.pods(&format!("app=echo-{node}"));
    let (on_a, on_b) = (on("node-a")?, on("node-b")?);
    ensure!(on_a.len() == 2 && on_b.len() == 2, "{on_a:?} and {on_b:?}");
    println!("PreferSameNode: the API server's slices have {}", hints(&space, "node")?);

    for (name, ..) in FIELDS {
        settle(&space, "node-a", name, &on_a)?;
        settle(&space, "node-b", name, &on_b)?;
    }

    // No endpoint on node-b: preferences fall back to all there are, the policy Local does not.
    space.kubectl(&["scale", "deployment/echo-node-b", "--replicas=0"])?;
    for name in ["zone", "node"] {
        settle(&space, "node-b", name, &on_a)?;
    }
    settle(&space, "node-a", "local", &on_a)?;
    without_local_endpoint(&space)?;

    // Back, and without hints.
    for name in ["zone", "node"] {
        for service in [name.to_owned(), plain(name)] {
            space.kubectl(&["patch", "service", &service, "--patch", r#"{"spec":{"trafficDistribution":null}}"#])?;
        }
    }
    space.kubectl(&["scale", "deployment/echo-node-b", "--replicas=2"])?;
    space.wait_rolled_out("deployment/echo-node-b")?;
    // Those that were scaled away may still be on their way out.
    let all = &on_a | &(&on("node-b")? - &on_b);
    ensure!(all.len() == 4, "{all:?}");
    for node in ["node-a", "node-b"] {
        settle(&space, node, "zone", &all)?;
        settle(&space, node, "node", &all)?;
    }
    Ok(())
}

/// Both ways lead to exactly these pods, as soon as everybody has heard of the last change.
fn settle(space: &Namespace, node: &str, service: &str, expected: &BTreeSet<String>) -> Result<()> {
    let mut seen = Default::default();
    let targets = [space.target(service)?, space.target(&plain(service))?];
    let waited = space.cluster().wait_until(&format!("{service} from {node} to lead to {expected:?}"), || {
        // Until there is an endpoint, there is no connection.
        let reached = |target, connections| {
            space.reached(&client(node), target, connections, 2 * CONNECTIONS).unwrap_or_default()
        };
        // By sluice a single connection suffices, and shows that it is sluice.
        seen = [reached(&targets[0], 1), reached(&targets[1], CONNECTIONS)];
        Ok(seen.iter().all(|reached| reached == expected))
    });
    println!("{service} from {node}: {} pods by sluice, {} by kube-proxy", seen[0].len(), seen[1].len());
    waited.with_context(|| format!("by sluice {:?}, by kube-proxy {:?}", seen[0], seen[1]))
}

/// Local, and no endpoint on the client's node: the connect fails as it does with kube-proxy, and the status says why.
fn without_local_endpoint(space: &Namespace) -> Result<()> {
    let cluster = space.cluster();
    let name = format!("{}/local:api", space.name());
    let expected = "internalTrafficPolicy Local, and no usable endpoint runs on this node";
    cluster.wait_until("node-b's agent to leave the Service alone", || {
        Ok(agent_on(cluster, "node-b")?.left_alone(&name)? == BTreeSet::from([expected.to_owned()]))
    })?;
    assert_eq!(agent_on(cluster, "node-a")?.left_alone(&name)?, BTreeSet::new(), "node-a has endpoints");
    let fail = |service: &str| -> Result<String> {
        let target = space.target(service)?;
        let error = match space.loadtest(&client("node-b"), &["run", &target, "--rpcs", "1"]) {
            Ok(report) => anyhow::bail!("{service} answers: {report:#}"),
            Err(error) => format!("{error:#}"),
        };
        ensure!(error.contains("cannot reach"), "{error}");
        // What the kernel said, without the address.
        let said = error.lines().find(|line| line.contains("cannot reach")).unwrap_or_default();
        Ok(said.replace(&target, "TARGET"))
    };
    let (by_sluice, by_kube_proxy) = std::thread::scope(|scope| {
        let by_kube_proxy = scope.spawn(|| fail(&plain("local")));
        let by_sluice = fail("local")?;
        anyhow::Ok((by_sluice, by_kube_proxy.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?))
    })?;
    println!("local from node-b without an endpoint: {by_sluice}");
    assert_eq!(by_sluice, by_kube_proxy);
    Ok(())
}

/// Which kinds of hints the endpoints of the Service have.
fn hints(space: &Namespace, service: &str) -> Result<String> {
    let selector = format!("kubernetes.io/service-name={service}");
    let slices = space.kubectl(&["get", "endpointslices", "--selector", &selector, "--output=json"])?;
    let slices: Value = serde_json::from_str(&slices)?;
    let endpoints = slices["items"].as_array().into_iter().flatten().flat_map(|it| it["endpoints"].as_array());
    let kinds = endpoints.flatten().flat_map(|it| it["hints"].as_object().into_iter().flatten());
    let kinds: BTreeSet<String> = kinds.map(|(kind, _)| kind.clone()).collect();
    ensure!(kinds.contains("forNodes"), "the hints are {kinds:?}: has this Kubernetes no PreferSameNode?");
    Ok(format!("the hints {kinds:?}"))
}

fn client(node: &str) -> String {
    format!("client-{node}")
}

fn plain(service: &str) -> String {
    format!("{service}-plain")
}

/// A Service on all of the pods, and the same left to kube-proxy.
fn twins(name: &str) -> [Value; 2] {
    [sluice::service(name, ""), sluice::service_without_sluice(&plain(name), "")].map(|mut service| {
        service["spec"]["selector"] = json!({ "group": "echo" });
        service
    })
}

/// Two servers on one node.
fn echo_on(node: &str) -> Value {
    let mut echo = sluice::echo(&format!("echo-{node}"), 2);
    let pod = &mut echo["spec"]["template"];
    pod["metadata"]["labels"]["group"] = "echo".into();
    pod["spec"]["nodeSelector"] = json!({ "kubernetes.io/hostname": node });
    echo
}
