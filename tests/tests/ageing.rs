//! Servers that end each connection after two seconds (MAX_CONNECTION_AGE, as operators set it to have load move) fail no
//! call: stock grpc-go, and `loadtest server`, which is on hyper. Needs root, `loadtest` and `sluice-agent` built, and what
//! tests/clients/README.md lists for Go.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use testbed::{Node, Pod, Process, ServiceSpec, program, target_folder};

const PORT: u16 = 50051;
const ENDPOINTS: usize = 5;
const RATE: u64 = 2_000;
const SOON: Duration = Duration::from_secs(20);

#[test]
fn grpc_go_servers_that_end_connections_every_two_seconds_fail_no_call() -> Result<()> {
    go(10)
}

#[test]
fn hyper_servers_that_end_connections_every_two_seconds_fail_no_call() -> Result<()> {
    hyper(10)
}

#[test]
#[ignore = "five minutes"]
fn grpc_go_servers_that_end_connections_every_two_seconds_fail_no_call_in_five_minutes() -> Result<()> {
    go(300)
}

#[test]
#[ignore = "five minutes"]
fn hyper_servers_that_end_connections_every_two_seconds_fail_no_call_in_five_minutes() -> Result<()> {
    hyper(300)
}

fn go(seconds: u64) -> Result<()> {
    let program = testbed::set_up_client("go", &target_folder()?)?;
    no_call_fails(&program, "serve", seconds)
}

fn hyper(seconds: u64) -> Result<()> {
    no_call_fails(&program("loadtest")?, "server", seconds)
}

fn no_call_fails(server: &Path, command: &str, seconds: u64) -> Result<()> {
    let node = Node::new()?;
    let servers: Vec<(Pod, Process)> =
        (1..=ENDPOINTS).map(|n| start(&node, &format!("echo-{n}"), server, command)).collect::<Result<_>>()?;
    let service = node.service(ServiceSpec::grpc("echo", PORT))?;
    servers.iter().try_for_each(|(pod, _)| service.add_endpoint(pod))?;
    let client = node.pod("client")?;
    let agent = node.agent().start()?;
    let (json, calls) = (node.folder().join("load.json"), RATE * seconds);
    client
        .command(program("loadtest")?)
        .args(["run", &service.address4().to_string(), "--rate", &RATE.to_string(), "--rpcs", &calls.to_string()])
        .args(["--connections", "4", "--streams", "50", "--json"])
        .arg(&json)
        .read()?;

    let result: Value = serde_json::from_str(&std::fs::read_to_string(&json)?)?;
    println!("calls by endpoint {}, latency {}", result["calls"], result["latency_us"]);
    let figures = ["rpcs", "failed", "not_started", "connections"].map(|name| result[name].as_u64());
    let log = || format!("{result:#}\nthe agent's log:\n{}", agent.log().unwrap_or_default());
    ensure!(figures == [Some(calls), Some(0), Some(0), Some(4)], "{}", log());
    let status = agent.status()?;
    let pods = status["pods"].as_array().context("pods")?;
    let sum = |field: &str| -> u64 { pods.iter().filter_map(|pod| pod["traffic"][field].as_u64()).sum() };
    let (connections, goaways) = (sum("endpoint_connections"), sum("goaways"));
    println!("{connections} connections to endpoints, {goaways} GOAWAYs, {} sent again", sum("streams_replayed"));
    ensure!(goaways >= ENDPOINTS as u64 * (seconds / 4), "the servers were to end connections: {goaways} GOAWAYs");
    Ok(())
}

fn start(node: &Node, name: &str, server: &Path, command: &str) -> Result<(Pod, Process)> {
    let pod = node.pod(name)?;
    let process = pod
        .command(server)
        .args([command, "--listen", &format!("[::]:{PORT}"), "--pod", name, "--max-connection-age", "2s"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()?;
    pod.wait_listening(PORT, SOON)?;
    Ok((pod, process))
}
