//! An endpoint whose packets are lost without a word, under load: its connection stays, and nobody is told.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use testbed::scene::{Backend, serve, wait_for, with_log};
use testbed::{Node, Pod};

use crate::scene::{Load, calls_of, echo, pod_line, traffic};

const CALLS: u64 = 5_000;
const RATE: &str = "500";

/// Calls in turn: nothing but the kernel's account of the connection tells that the endpoint does not answer.
fn gets_no_new_calls_and_loses_none(what: &str, hooks: &[&str]) -> Result<()> {
    let node = Node::new()?;
    let backends = Backend::start_some(&node, 3)?;
    let service = serve(&node, echo(), &backends)?;
    let client = node.pod("client")?;
    let agent = node.agent().start()?;
    let options = ["--rate", RATE, "--rpcs", &CALLS.to_string(), "--connections", "2", "--streams", "1000"];
    let load = Load::start(&node, &client, &service, &options)?;
    thread::sleep(Duration::from_secs(1));

    let [lost, others @ ..] = &backends[..] else { unreachable!("three") };
    drop_packets(&lost.pod, hooks)?;
    let start = Instant::now();
    let address = format!("{}:{}", lost.pod.ip4(), testbed::scene::PORT);
    with_log(
        &agent,
        wait_for("the endpoint to be ejected, long before its connection is given up", || {
            let status = agent.status()?;
            let ejected = &pod_line(&status, &client)?["traffic"]["ejected"];
            let is_it = |it: &serde_json::Value| it["address"] == address && it["cause"] == "unreachable";
            Ok(ejected.as_array().is_some_and(|list| list.iter().any(is_it)).then_some(()))
        }),
    )?;
    println!("{what}: ejected {} ms after its packets were lost", start.elapsed().as_millis());
    thread::sleep(Duration::from_secs(2));
    run(&lost.pod, &["delete", "table", "inet", "lost"])?;

    // Those that it had were kept by TCP, and nothing was sent twice.
    let result = with_log(&agent, load.finish_without_failure(CALLS))?;
    ensure!(traffic(&agent, &client, "streams_replayed")? == 0 && result["resent"] == 0, "{result:#}");
    let least = others.iter().map(|backend| calls_of(&result, backend)).min().unwrap_or_default();
    println!("{what}: {} calls of {CALLS} were its, {least} another's", calls_of(&result, lost));
    ensure!(calls_of(&result, lost) + 200 < least, "in two seconds each gets 333 calls: {result:#}");
    Ok(())
}

fn drop_packets(pod: &Pod, hooks: &[&str]) -> Result<()> {
    run(pod, &["add", "table", "inet", "lost"])?;
    hooks.iter().try_for_each(|hook| {
        let chain = format!("add chain inet lost {hook} {{ type filter hook {hook} priority 0; policy drop; }}");
        run(pod, &[&chain])
    })
}

fn run(pod: &Pod, nft: &[&str]) -> Result<()> {
    pod.command("nft").args(nft).read().map(drop)
}

#[test]
fn an_endpoint_that_vanishes_gets_no_new_calls_and_loses_none_that_it_had() -> Result<()> {
    gets_no_new_calls_and_loses_none("no packet passes", &["input", "output"])
}

#[test]
fn an_endpoint_that_is_heard_and_hears_nothing_gets_no_new_calls_and_loses_none_that_it_had() -> Result<()> {
    gets_no_new_calls_and_loses_none("no packet passes to it", &["input"])
}
