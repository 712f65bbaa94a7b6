//! What `status` says of an agent that does not answer, of a name that nothing has, and of pods that are not served.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use testbed::scene::{in_turn, serve};
use testbed::{Node, PodSpec};

use crate::cli::Cli;
use crate::peers::{ADD, Client, Endpoint};
use crate::scene::{enrolled, list, name};

#[test]
fn who_looks_at_an_agent_that_hangs_is_told_so_within_seconds() -> Result<()> {
    let node = Node::new()?;
    let mut agent = node.agent().start()?;
    let pid = agent.pid();
    agent.signal(libc::SIGSTOP)?;
    let cli = Cli::new(&node, &agent);
    for args in [&["status"][..], &["status", "--output", "json"], &["top", "--count", "1"], &["log-level"], &["tap"]] {
        let start = Instant::now();
        let said = cli.output(args)?;
        let (took, why) = (start.elapsed(), String::from_utf8_lossy(&said.stderr).into_owned());
        ensure!(said.status.code() == Some(1) && said.stdout.is_empty(), "{args:?}: {said:?}");
        ensure!(took > Duration::from_secs(2) && took < Duration::from_secs(10), "{args:?}: {took:?}");
        for part in [&format!("the agent with PID {pid} does not answer"), "redirection has ended", "kill -CONT"] {
            ensure!(why.contains(part), "{args:?}: {why}");
        }
        println!("{args:?} after {took:?}: {}", why.trim());
    }
    // The cure is one.
    agent.signal(libc::SIGCONT)?;
    Cli::new(&node, &agent).say(&["status"]).map(drop)
}

#[test]
fn status_of_a_name_keeps_the_totals_and_a_name_that_nothing_has_is_an_error() -> Result<()> {
    let node = Node::new()?;
    let endpoint = Endpoint::start(&node, "one")?;
    let service = serve(&node, in_turn("shop"), [&endpoint.pod])?;
    let client = Client::start(&node, "client")?;
    let agent = node.agent().start()?;
    for pod in [&endpoint.pod, &client.pod] {
        enrolled(&agent, pod)?;
    }
    let connection = client.connect(service.address4())?;
    connection.call(ADD, &[])?;
    let cli = Cli::new(&node, &agent);
    let head =
        "2 namespaces of pods enrolled, 0 opted out; connections open: HTTP/2 1 of clients, 1 to endpoints; 0 opaque, ";
    for args in [&["status"][..], &["status", "shop"], &["status", "client"]] {
        let text = cli.say(args)?;
        ensure!(text.contains(head) && !text.contains("No Service port"), "{args:?}: {text}");
    }
    let text = cli.say(&["status", "client"])?;
    ensure!(!text.contains("default/shop:grpc"), "{text}");
    for args in [&["status", "nobody"][..], &["status", "nobody", "--output", "json"]] {
        let said = cli.output(args)?;
        let why = String::from_utf8_lossy(&said.stderr);
        ensure!(said.status.code() == Some(1) && said.stdout.is_empty(), "{said:?}");
        ensure!(why.trim_end().ends_with("nothing here has \"nobody\" in its name"), "{why}");
    }
    Ok(())
}

#[test]
fn status_names_pods_of_the_nodes_own_network_and_their_calls_are_left_alone() -> Result<()> {
    let node = Node::new()?;
    let endpoint = Endpoint::start(&node, "one")?;
    let service = serve(&node, in_turn("shop"), [&endpoint.pod])?;
    let client = Client::start(&node, PodSpec::new("host").host_network())?;
    let agent = node.agent().start()?;
    let connection = client.connect(service.address4())?;
    connection.call(ADD, &[])?;
    let cli = Cli::new(&node, &agent);
    let page = cli.json(&["status"])?;
    let pod = list(&page["not_served"]).first().with_context(|| page.to_string())?;
    ensure!(pod["name"] == name(&client.pod) && pod["uid"] == client.pod.uid(), "{pod}");
    ensure!(list(&page["not_served"]).len() == 1 && list(&page["not_spread"]).is_empty(), "{page}");
    ensure!(!list(&page["pods"]).iter().any(|it| it["uid"] == client.pod.uid()), "{}", page["pods"]);
    ensure!(page["services"][0]["calls"].is_null(), "its call was not spread: {}", page["services"]);
    let line = "\nPods that are not served\n  default/host: hostNetwork: it has the node's own network namespace; its calls are \
                left to kube-proxy\n    cure: without hostNetwork its calls would be spread\n";
    for args in [&["status"][..], &["status", "host"]] {
        let text = cli.say(args)?;
        ensure!(text.contains(line), "{text}");
    }
    Ok(())
}
