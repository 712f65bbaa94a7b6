//! What sluice says of objects: an Event for what cannot be read, and in the status a reason for each Service port that is
//! left alone. In: Services with mistakes, and of kinds that are not for sluice; out: what `kubectl describe` and
//! `status.json` say of them.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::sluice::{self, PORT, agents};
use crate::world::Namespace;

#[test]
fn an_unreadable_annotation_gives_one_event_and_every_port_left_alone_has_its_reason() -> Result<()> {
    let cluster = sluice::installed()?;
    let space = Namespace::make(cluster, "words")?;
    space.apply(&[sluice::service("echo", "echo"), sluice::client("client", "node-a")])?;
    space.deploy(&sluice::echo("echo", 2))?;
    space.wait(&["--for=condition=Ready", "pod/client"])?;
    an_unreadable_annotation(&space)?;
    a_namespace_that_names_ports(&space)?;
    reasons(&space)
}

/// "no" would be a port's name on a Service; a Namespace has none, and its owner is told.
fn a_namespace_that_names_ports(space: &Namespace) -> Result<()> {
    let cluster = space.cluster();
    cluster.kubectl(&["annotate", "namespace", space.name(), "sluice.dev/redirect=no"])?;
    let field =
        format!("--field-selector=type=Warning,involvedObject.kind=Namespace,involvedObject.name={}", space.name());
    let mut told = String::new();
    cluster.wait_until("an Event on the Namespace", || {
        told = cluster.kubectl(&["--namespace", "default", "get", "events", &field])?;
        Ok(told.contains("\"no\" is unreadable"))
    })?;
    println!("kubectl get events: {told}");
    space.wait_reach("client", &space.target("echo")?, 2)?;
    cluster.kubectl(&["annotate", "namespace", space.name(), "sluice.dev/redirect-"]).map(drop)
}

fn an_unreadable_annotation(space: &Namespace) -> Result<()> {
    let cluster = space.cluster();
    let place = format!("Service {}/echo", space.name());
    // Of each agent, what is wrong with the Service.
    let problems = || -> Result<Vec<Vec<Value>>> {
        let of_service = |problem: &Value| problem["place"] == place.as_str();
        let mut all = Vec::new();
        for agent in agents(cluster)? {
            let status = agent.status()?;
            all.push(
                status["problems"].as_array().into_iter().flatten().filter(|it| of_service(it)).cloned().collect(),
            );
        }
        Ok(all)
    };
    assert_eq!(problems()?, [[], []] as [[Value; 0]; 2]);
    space.kubectl(&["annotate", "service", "echo", "sluice.dev/redirect=yes please"])?;
    cluster.wait_until("both agents to see it", || Ok(problems()?.iter().all(|problems| problems.len() == 1)))?;
    println!("status: {}", problems()?[0][0]);

    let events =
        || space.kubectl(&["get", "events", "--field-selector=type=Warning,involvedObject.name=echo", "--output=json"]);
    let count = || -> Result<usize> {
        Ok(serde_json::from_str::<Value>(&events()?)?["items"].as_array().context("items")?.len())
    };
    cluster.wait_until("an Event", || Ok(count()? > 0))?;
    // Calls are served meanwhile: appProtocol still says gRPC.
    space.wait_reach("client", &space.target("echo")?, 2)?;
    let described = space.kubectl(&["describe", "service", "echo"])?;
    let (_, shown) = described.split_once("Events:").context("no Events in kubectl describe")?;
    println!("kubectl describe service:{shown}");
    let warnings: Vec<&str> = shown.lines().filter(|line| line.contains("UnreadableAnnotation")).collect();
    ensure!(warnings.len() == 1 && count()? == 1, "not exactly one Event: {described}");
    for word in ["Warning", "sluice.dev/agent", "\"yes please\" is unreadable", "cure: write \"true\", \"false\""] {
        ensure!(warnings[0].contains(word), "{word:?} is not in {:?}", warnings[0]);
    }

    space.kubectl(&["annotate", "service", "echo", "sluice.dev/redirect=true", "--overwrite"])?;
    cluster.wait_until("both agents to see that it is mended", || Ok(problems()?.iter().all(Vec::is_empty)))?;
    // Both agents have had their turn by now.
    assert_eq!(count()?, 1, "one for each agent, or another for the mending");
    space.wait_reach("client", &space.target("echo")?, 2)
}

/// One Service for each reason that a cluster's objects can give.
fn reasons(space: &Namespace) -> Result<()> {
    let cluster = space.cluster();
    let with = |name: &str, pointer: &str, value: Value| {
        let mut service = sluice::service(name, "echo");
        let (parent, key) = pointer.rsplit_once('/').expect("a pointer");
        service.pointer_mut(parent).expect("the parent")[key] = value;
        service
    };
    let mut udp = with("udp", "/spec/ports/0/protocol", "UDP".into());
    udp["spec"]["ports"][0]["targetPort"] = PORT.into();
    let external = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "name": "external" },
        "spec": { "type": "ExternalName", "externalName": "echo.example", "ports": [{ "name": "grpc", "port": PORT }] },
    });
    let mut unreadable = with("unreadable", "/spec/ports/0/appProtocol", Value::Null);
    unreadable["metadata"]["annotations"]["sluice.dev/redirect"] = "Yes!".into();
    let cases = [
        (with("http", "/spec/ports/0/appProtocol", "http".into()), "not selected: neither appProtocol"),
        (unreadable, "not selected: the annotation sluice.dev/redirect is unreadable"),
        (sluice::service_without_sluice("out", "echo"), "opted out: sluice.dev/redirect is \"false\" on the Service"),
        (with("headless", "/spec/clusterIP", "None".into()), "headless"),
        (external, "type ExternalName"),
        (udp, "UDP"),
        (with("sticky", "/spec/sessionAffinity", "ClientIP".into()), "sessionAffinity ClientIP"),
        (sluice::service("empty", "nobody"), "no usable endpoints"),
    ];
    for (service, _) in &cases {
        space.apply(std::slice::from_ref(service))?;
    }
    for agent in agents(cluster)? {
        for (service, expected) in &cases {
            let name = service["metadata"]["name"].as_str().unwrap_or_default();
            let port = service["spec"]["ports"][0]["name"].as_str().unwrap_or_default();
            let name = format!("{}/{name}:{port}", space.name());
            let mut reasons = BTreeSet::new();
            let waited = cluster.wait_until(&format!("the reason of {name}"), || {
                reasons = agent.left_alone(&name)?;
                Ok(reasons.len() == 1 && reasons.iter().all(|reason| reason.starts_with(expected)))
            });
            waited.with_context(|| format!("{} says {reasons:?}, not {expected:?}", agent.node))?;
            println!("{} of {name}: {reasons:?}", agent.node);
        }
    }
    Ok(())
}
