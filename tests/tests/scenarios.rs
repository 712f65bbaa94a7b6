//! `loadtest scenarios` on a simulated node, short: what it says of kube-proxy and of sluice is what was done to the pods.
//! Needs root. Judges outcomes, not times.

use std::collections::BTreeSet;
use std::fs;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;
use testbed::{Node, Pod, Process, ServiceSpec, program};

const PORT: u16 = 50051;
const CONTROL: u16 = 50052;
const SOON: Duration = Duration::from_secs(20);
/// Calls of each run: 200 a second, for as long as the shortest run lasts that has all its phases.
const RATE: u64 = 200;
const SECONDS: u64 = 5;

/// A pod with a server that can be made to misbehave.
fn backend(node: &Node, name: &str) -> Result<(Pod, Process)> {
    let pod = node.pod(name)?;
    let server = pod
        .command(program("loadtest")?)
        .args(["server", "--listen", &format!("[::]:{PORT}"), "--control", &format!("[::]:{CONTROL}"), "--pod", name])
        .args(["--slots", "4", "--service-time", "5ms"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()?;
    pod.wait_listening(CONTROL, SOON)?;
    Ok((pod, server))
}

fn keys(object: &Value) -> BTreeSet<&str> {
    object.as_object().into_iter().flat_map(|object| object.keys().map(String::as_str)).collect()
}

fn number(run: &Value, field: &str) -> u64 {
    run[field].as_u64().unwrap_or_else(|| panic!("{field} is no number in {run:#}"))
}

fn sum(object: &Value) -> f64 {
    object.as_object().into_iter().flat_map(|object| object.values().filter_map(Value::as_f64)).sum()
}

#[test]
fn a_report_tells_what_was_done_to_the_pods_and_what_became_of_the_calls() -> Result<()> {
    let node = Node::new()?;
    let backends = ["echo-1", "echo-2", "echo-3"].map(|name| backend(&node, name));
    let backends: Vec<_> = backends.into_iter().collect::<Result<_>>()?;
    let off = ServiceSpec::grpc("off", PORT).annotation("sluice.dev/redirect", "false");
    let on = ServiceSpec::grpc("on", PORT).annotation("sluice.dev/load-balancer", "round-robin");
    let services = [node.service(off)?, node.service(on)?];
    for (pod, _) in &backends {
        services.iter().try_for_each(|service| service.add_endpoint(pod))?;
    }
    let client = node.pod("client")?;
    let _agent = node.agent().start()?;

    let [json, html, told] = ["report.json", "report.html", "told"].map(|name| node.folder().join(name));
    let controls: Vec<_> = backends.iter().map(|(pod, _)| format!("{}:{CONTROL}", pod.ip4())).collect();
    let hook = format!("before=echo $SLUICE_SCENARIO $SLUICE_VIA >> {}", told.display());
    client
        .command(program("loadtest")?)
        .args(["scenarios", "--control", &controls.join(","), "--only", "failing,black-hole,streams", "--hook", &hook])
        .args(["--via", &format!("kube-proxy={}", services[0].address4())])
        .args(["--via", &format!("sluice={}", services[1].address4())])
        .args(["--seconds", &SECONDS.to_string(), "--rate", &RATE.to_string(), "--connections", "20"])
        .args(["--timeout", "500ms"])
        .arg("--json")
        .arg(&json)
        .arg("--html")
        .arg(&html)
        .read()?;

    let report: Value = serde_json::from_str(&fs::read_to_string(&json)?)?;
    let scenarios = report["scenarios"].as_array().context("scenarios")?;
    let names: Vec<_> = scenarios.iter().filter_map(|scenario| scenario["name"].as_str()).collect();
    assert_eq!(names, ["failing-trailers-only", "failing-after-headers", "black-hole", "streams"]);
    let told = fs::read_to_string(told)?;
    let pairs: Vec<_> =
        names.iter().flat_map(|name| [format!("{name} kube-proxy"), format!("{name} sluice")]).collect();
    assert_eq!(told.lines().collect::<Vec<_>>(), pairs);

    let fields = "avoided_after_ms back_after_ms bad_ms bad_pod bad_share calls caught connections failed failed_by_code \
                  failed_share healthy_max_over_min hooks_ms latency_us open_seconds pods resent series \
                  streams_max_over_min target via";
    let series = "bad_pod calls failed open_streams p50_us p99_us pods";
    for scenario in scenarios {
        for run in scenario["runs"].as_array().context("runs")? {
            let what = format!("{} via {}", scenario["name"], run["via"]);
            assert_eq!(keys(run), fields.split_whitespace().collect(), "{what}");
            assert_eq!(keys(&run["series"]), series.split_whitespace().collect(), "{what}");
            assert_eq!(sum(&run["failed_by_code"]), number(run, "failed") as f64, "{what}");
            let calls: u64 = run["series"]["calls"].as_array().context("calls")?.iter().filter_map(Value::as_u64).sum();
            assert_eq!(calls, RATE * SECONDS, "{what}: each call that was due was made and ended");
            assert!(number(&run["latency_us"], "p50") > 0, "{what}");
        }
    }

    for run in scenarios[..2].iter().flat_map(|scenario| scenario["runs"].as_array().into_iter().flatten()) {
        let failed = number(&run["failed_by_code"], "UNAVAILABLE");
        assert!(failed > 0 && failed <= number(run, "caught"), "{run:#}");
        let bad = run["bad_pod"].as_str().context("a pod was bad")?;
        assert!(number(&run["pods"], bad) > 0, "it had calls when it was chosen: {run:#}");
    }
    for run in scenarios[2]["runs"].as_array().context("runs")? {
        assert!(number(run, "caught") > 0 && run["bad_ms"].as_array().is_some_and(|times| times.len() == 1), "{run:#}");
    }
    let lost = &scenarios[2]["runs"][0];
    assert!(
        lost["failed_by_code"]["DEADLINE_EXCEEDED"].as_u64() > Some(0),
        "kube-proxy knows of no black hole: {lost:#}"
    );
    for run in scenarios[3]["runs"].as_array().context("runs")? {
        assert!(sum(&run["open_seconds"]) > 0.0 && run["bad_pod"].is_null(), "{run:#}");
    }
    let spread = &scenarios[3]["runs"][1];
    assert_eq!((keys(&spread["open_seconds"]).len(), keys(&spread["pods"]).len()), (3, 3), "{spread:#}");

    let page = fs::read_to_string(html)?;
    assert_eq!(page.matches("<svg role=\"img\"").count(), 3 * scenarios.len());
    Ok(())
}
