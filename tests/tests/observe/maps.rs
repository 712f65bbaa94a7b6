//! `sluice-agent maps`: the kernel's maps in words are what the status says, and what happened.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use testbed::scene::{in_turn, serve};
use testbed::{Node, PodSpec};

use crate::cli::Cli;
use crate::peers::{ADD, Client, Endpoint};
use crate::scene::list;

#[test]
fn the_kernels_maps_in_words_are_what_the_status_says() -> Result<()> {
    let node = Node::new()?;
    let endpoint = Endpoint::start(&node, "one")?;
    let services = [in_turn("shop"), in_turn("bank")].map(|spec| serve(&node, spec, [&endpoint.pod]));
    let [shop, _bank] = services.map(Result::unwrap);
    let client = Client::start(&node, "client")?;
    let _out = node.pod(PodSpec::new("out").annotation("sluice.dev/redirect", "false"))?;
    let agent = node.agent().workers(2).start()?;
    let cli = Cli::new(&node, &agent);
    for _ in 0..3 {
        client.connect(shop.address4())?.call(ADD, &[])?;
    }
    client.connect((endpoint.pod.ip4(), 50051).into())?.call(ADD, &[])?;

    let (maps, status) = (cli.json(&["maps"])?, cli.json(&["status"])?);
    let of = |list_of: &Value, keys: &[&str]| -> BTreeSet<String> {
        let entry = |entry: &Value| keys.iter().map(|key| entry[*key].to_string()).collect::<Vec<_>>().join(" ");
        list(list_of).iter().map(entry).collect()
    };
    for (map, page, keys) in [
        ("SERVICES", "services", &["address", "id"][..]),
        ("PODS", "pods", &["netns_cookie", "port4", "port6", "worker", "opted_out"]),
    ] {
        let (said, known) = (of(&maps[map], keys), of(&status[page], keys));
        ensure!(said == known && said.len() == 4 - usize::from(map == "PODS"), "{map}: {said:?}, {page}: {known:?}");
    }
    ensure!(maps["COUNTERS"] == status["kernel_verdicts"], "{maps:#} {status:#}");
    ensure!(maps["COUNTERS"]["redirected"] == 3 && maps["COUNTERS"]["not_service"] == 1, "{maps:#}");
    let beats = list(&maps["HEARTBEAT"]);
    ensure!(beats.len() == 2, "{maps:#}");
    let ages: Vec<_> = beats.iter().filter_map(|beat| beat["age_ms"].as_u64()).collect();
    println!("heartbeats are {ages:?} ms old; {}", maps["COUNTERS"]);
    ensure!(list(&maps["FLOWS"]).is_empty(), "every flow was taken: {maps:#}");
    ensure!(maps["CONFIG"]["verdicts_said"] == false, "{maps:#}");
    cli.say(&["log-level", "--bpf", "debug"])?;
    ensure!(cli.json(&["maps", "config"])?["CONFIG"]["verdicts_said"] == true);

    // For people, all of them or one; and a slip is told what there is.
    let text = cli.say(&["maps"])?;
    for part in ["SERVICES: 4 entries", "PODS: 3 entries", &shop.address4().to_string(), "redirected", "own_cgroup"] {
        ensure!(text.contains(part), "{part} is not in {text}");
    }
    let one = cli.say(&["maps", "services"])?;
    ensure!(one.starts_with("SERVICES") && !one.contains("PODS"), "{one}");
    let slip = cli.output(&["maps", "sevices"])?;
    let why = String::from_utf8(slip.stderr).context("text")?;
    ensure!(!slip.status.success() && why.contains("give one of") && why.contains("SERVICES"), "{why}");
    Ok(())
}
