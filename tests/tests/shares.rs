//! Equal endpoints get equal shares of a client's calls and of twenty pods' calls together, under every policy; and what a
//! Service costs that has more endpoints than a pod uses at a time. Prints its figures. Needs root, `loadtest` and
//! `sluice-agent` built. The long forms: `cargo test -p testbed --test shares -- --ignored --nocapture --test-threads 1`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use testbed::{Agent, Node, Pod, Process, Service, ServiceSpec, program};

const PORT: u16 = 50051;
const POLICIES: [&str; 3] = ["ewma", "least-request", "round-robin"];
const SOON: Duration = Duration::from_secs(20);
/// Calls of one measurement, by all clients together.
const CALLS: usize = 10_000;
/// Endpoints that a pod uses at a time, at most.
const PART: usize = 128;

#[test]
fn ten_endpoints_get_equal_shares_of_one_client_and_of_twenty_pods() -> Result<()> {
    equal_shares(&[10])
}

#[test]
#[ignore = "a minute and a half"]
fn endpoints_from_two_to_a_hundred_get_equal_shares() -> Result<()> {
    equal_shares(&[2, 3, 5, 10, 20, 50, 100])
}

fn equal_shares(sizes: &[usize]) -> Result<()> {
    let most = sizes.iter().max().copied().unwrap_or(0);
    let stage = Stage::new(most, 20)?;
    let mut uneven = Vec::new();
    for policy in POLICIES {
        let spec = ServiceSpec::grpc(policy, PORT).annotation("sluice.dev/load-balancer", policy);
        let service = stage.node.service(spec)?;
        for size in sizes {
            for backend in &stage.backends {
                service.remove_endpoint(&backend.pod)?;
            }
            stage.backends[..*size].iter().try_for_each(|backend| service.add_endpoint(&backend.pod))?;
            stage.wait_endpoints(&service, *size)?;
            for clients in [1, 20] {
                let load = Load::start(&stage, &service, clients, &["--rpcs", &(CALLS / clients).to_string()])?;
                let shares = load.finish((CALLS / clients) as u64)?;
                let spread = max_over_min(&shares, *size);
                println!("{policy}: {size} endpoints, {clients} clients: max/min {spread:.3}");
                if spread > 1.05 {
                    uneven.push(format!("{policy}: {size} endpoints, {clients} clients: {shares:?}"));
                }
            }
        }
    }
    ensure!(uneven.is_empty(), "{}", uneven.join("\n"));
    Ok(())
}

#[test]
#[ignore = "three hundred pods, three minutes"]
fn three_hundred_endpoints_cost_what_the_rule_for_large_services_says() -> Result<()> {
    const ENDPOINTS: usize = 300;
    const CLIENTS: usize = 20;
    const SECONDS: usize = 120;
    const RATE: usize = 100;
    let stage = Stage::new(ENDPOINTS, CLIENTS)?;
    let service = stage.node.service(ServiceSpec::grpc("large", PORT))?;
    stage.backends.iter().try_for_each(|backend| service.add_endpoint(&backend.pod))?;
    stage.wait_endpoints(&service, ENDPOINTS)?;
    println!("idle: the agent has {} MB", stage.resident()? >> 20);
    let calls = SECONDS * RATE;
    let options = ["--rate", &RATE.to_string(), "--rpcs", &calls.to_string()];
    let load = Load::start(&stage, &service, CLIENTS, &options)?;
    let mut most = 0;
    for second in 1..SECONDS {
        std::thread::sleep(Duration::from_secs(1));
        let used = stage.endpoints_in_use()?;
        most = used.values().copied().chain([most]).max().unwrap_or(0);
        if second % 30 == 0 {
            let connections: usize = used.values().sum();
            println!(
                "{second} s: {connections} endpoint connections of {} pods, {} MB",
                used.len(),
                stage.resident()? >> 20
            );
        }
    }
    let shares = load.finish(calls as u64)?;
    println!("at most {most} endpoints in use by a pod; max/min {:.3}", max_over_min(&shares, ENDPOINTS));
    // Connections outlive the part's moving on by the time they may be idle.
    ensure!(most <= PART + 64, "{most} endpoints in use by a pod");
    ensure!(max_over_min(&shares, ENDPOINTS) <= 1.25, "{shares:?}");
    Ok(())
}

struct Stage {
    backends: Vec<Backend>,
    clients: Vec<Pod>,
    agent: Agent,
    node: Node,
}

struct Backend {
    pod: Pod,
    _server: Process,
}

impl Stage {
    fn new(endpoints: usize, clients: usize) -> Result<Self> {
        let node = Node::new()?;
        let clients = (1..=clients).map(|n| node.pod(format!("client-{n}"))).collect::<Result<_>>()?;
        let backends = (1..=endpoints).map(|n| backend(&node, &format!("echo-{n}"))).collect::<Result<Vec<_>>>()?;
        for backend in &backends {
            backend.pod.wait_listening(PORT, SOON)?;
        }
        let agent = node.agent().start()?;
        Ok(Self { backends, clients, agent, node })
    }

    fn wait_endpoints(&self, service: &Service, count: usize) -> Result<()> {
        let address = service.address4().to_string();
        for _ in 0..2_000 {
            let status = self.agent.status()?;
            let services = status["services"].as_array().context("services")?;
            let known = services.iter().find(|line| line["address"] == *address);
            if known.and_then(|line| line["endpoints"].as_array()).map_or(0, Vec::len) == count {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        anyhow::bail!("the agent does not know {count} endpoints of {address}")
    }

    /// How many endpoints each pod has connections to.
    fn endpoints_in_use(&self) -> Result<BTreeMap<String, usize>> {
        let status = self.agent.status()?;
        let pods = status["pods"].as_array().context("pods")?;
        let used = pods.iter().filter_map(|pod| {
            let endpoints: BTreeSet<_> =
                pod["traffic"]["endpoints"].as_array()?.iter().map(|it| it["address"].to_string()).collect();
            (!endpoints.is_empty()).then(|| (pod["name"].to_string(), endpoints.len()))
        });
        Ok(used.collect())
    }

    /// The agent's memory, bytes.
    fn resident(&self) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.agent.pid()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("VmRSS")?;
        Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? << 10)
    }
}

fn backend(node: &Node, name: &str) -> Result<Backend> {
    let pod = node.pod(name)?;
    let server = pod
        .command(program("loadtest")?)
        .args(["server", "--listen", &format!("[::]:{PORT}"), "--pod", name])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()?;
    Ok(Backend { pod, _server: server })
}

/// A `loadtest run` in each of some pods.
struct Load(Vec<(Process, std::path::PathBuf)>);

impl Load {
    fn start(stage: &Stage, service: &Service, clients: usize, options: &[&str]) -> Result<Self> {
        let run = |pod: &Pod| {
            let json = stage.node.folder().join(format!("load-{}.json", pod.name()));
            let load = pod.command(program("loadtest")?).args(["run", &service.address4().to_string()]).args(options);
            let load = load.args(["--connections", "1", "--streams", "10", "--json"]).arg(&json);
            Ok((load.stdin(Stdio::null()).stdout(Stdio::null()).spawn()?, json))
        };
        Ok(Self(stage.clients[..clients].iter().map(run).collect::<Result<_>>()?))
    }

    /// Calls by endpoint of all together, each of which made so many, and none failed.
    fn finish(self, calls: u64) -> Result<BTreeMap<String, u64>> {
        let mut shares = BTreeMap::new();
        for (mut process, json) in self.0 {
            let status = process.wait()?;
            ensure!(status.success(), "loadtest run: {status}");
            let result: Value = serde_json::from_str(&fs::read_to_string(&json)?)?;
            let figures = ["rpcs", "failed", "not_started"].map(|name| result[name].as_u64());
            ensure!(figures == [Some(calls), Some(0), Some(0)], "{result:#}");
            for (endpoint, calls) in result["calls"].as_object().context("calls")? {
                *shares.entry(endpoint.clone()).or_insert(0) += calls.as_u64().context("a count")?;
            }
        }
        Ok(shares)
    }
}

fn max_over_min(shares: &BTreeMap<String, u64>, endpoints: usize) -> f64 {
    let least = if shares.len() < endpoints { 0 } else { shares.values().min().copied().unwrap_or(0) };
    shares.values().max().copied().unwrap_or(0) as f64 / least as f64
}
