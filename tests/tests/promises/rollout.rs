//! Endpoints come and go under load, as in a Deployment's rollout: a new one is used on connections already open, one
//! that leaves fails no call, however its process ends.

use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use testbed::scene::{Backend, PORT, serve};
use testbed::{Node, ServiceSpec};

use crate::probe::Probe;
use crate::scene::{Load, calls_of, echo, monotonic_ns, wait_endpoints};

/// Calls of each load that must not notice, and calls per second.
const CALLS: u64 = 20_000;
const RATE: &str = "2000";

#[test]
fn a_new_endpoint_takes_its_even_share_of_connections_already_open() -> Result<()> {
    // The policy that applies unless a Service says otherwise, and calls in turn.
    for spec in [ServiceSpec::grpc("echo", PORT), echo()] {
        let node = Node::new()?;
        let backends = Backend::start_some(&node, 3)?;
        let new = Backend::start(&node, "new")?;
        let service = serve(&node, spec, &backends)?;
        let client = node.pod("client")?;
        let agent = node.agent().start()?;
        let mut probe = Probe::start(&client)?;
        let opened = probe.one(service.address4(), json!({ "keep": "open", "calls": 30 }))?;
        ensure!(opened.redirected(), "{opened:?}");

        probe.begin("until", None, json!({ "kept": "open", "pod": "new", "limit": 20 }))?;
        let before = monotonic_ns();
        service.add_endpoint(&new.pod)?;
        let first = probe.answer()?;
        let at = first["at"].as_i64().with_context(|| format!("the new endpoint got no call: {first}"))?;
        let milliseconds = (at - before) / 1_000_000;
        println!("first call of a new endpoint {milliseconds} ms after its object was written");

        wait_endpoints(&agent, &service, 4)?;
        let spread = probe.more("open", 400)?;
        let (least, most) = (spread.values().min().copied(), spread.values().max().copied());
        println!("400 calls on the open connection: {spread:?}");
        ensure!(spread.len() == 4 && spread["new"] >= 95 && most <= least.map(|n| n * 105 / 100), "{spread:?}");
    }
    Ok(())
}

/// 20,000 calls on four connections while `leave` lets the first of four endpoints go. Its share is told, so that a test can
/// see that it did serve and did leave.
fn leaves_unnoticed(leave: impl FnOnce(&testbed::Service, &mut Backend) -> Result<()>) -> Result<()> {
    let node = Node::new()?;
    let mut backends = Backend::start_some(&node, 4)?;
    let service = serve(&node, echo(), &backends)?;
    let client = node.pod("client")?;
    let agent = node.agent().start()?;
    let options = ["--rate", RATE, "--rpcs", &CALLS.to_string(), "--connections", "4", "--streams", "10"];
    let load = Load::start(&node, &client, &service, &options)?;
    thread::sleep(Duration::from_secs(2));
    leave(&service, &mut backends[0])?;
    let result = testbed::scene::with_log(&agent, load.finish_without_failure(CALLS))?;
    let calls: Vec<_> = backends.iter().map(|backend| calls_of(&result, backend)).collect();
    println!("calls by endpoint, the first one left: {calls:?}; latency {}", result["latency_us"]);
    let (left, stayed) = (calls[0], calls[1..].iter().min().copied().unwrap_or(0));
    ensure!(left > 0 && left < stayed / 2, "it served at first and not to the end: {calls:?}");
    ensure!(result["connections"] == 4 && result["resent"] == 0, "the client had nothing to do: {result:#}");
    Ok(())
}

#[test]
fn a_removed_endpoint_fails_no_call() -> Result<()> {
    leaves_unnoticed(|service, backend| {
        service.remove_endpoint(&backend.pod)?;
        thread::sleep(Duration::from_secs(1));
        backend.terminate()
    })
}

#[test]
fn a_terminating_endpoint_fails_no_call() -> Result<()> {
    leaves_unnoticed(|service, backend| {
        // The pod's preStop hook: a moment between the mark and the signal.
        service.mark_terminating(&backend.pod)?;
        thread::sleep(Duration::from_secs(1));
        backend.terminate()?;
        service.remove_endpoint(&backend.pod)
    })
}

#[test]
fn an_endpoint_that_shuts_down_before_anybody_is_told_fails_no_call() -> Result<()> {
    leaves_unnoticed(|service, backend| {
        // SIGTERM first: GOAWAY and a closed listener are all the news there is for a while.
        backend.terminate()?;
        thread::sleep(Duration::from_millis(500));
        service.mark_terminating(&backend.pod)?;
        service.remove_endpoint(&backend.pod)
    })
}
