//! What /metrics costs a live agent with a large Service: the page's size, the time until it is there, and memory, however
//! often it is asked for. Prints its figures: `cargo build --release -p sluice-agent`, then with
//! SLUICE_AGENT=$PWD/target/release/sluice-agent `cargo test -p testbed --test observe -- --ignored --nocapture scrapes`.

use std::collections::BTreeSet;
use std::fs;
use std::net::Ipv4Addr;
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use testbed::scene::{PORT, in_turn, wait_for, with_log};
use testbed::{Agent, Launch, Node, Service};

use crate::peers::{Client, Endpoint};
use crate::scene::list;

const ENDPOINTS: usize = 1_000;
const METHODS: usize = 50;
const WORKERS: usize = 2;
/// A pod uses 128 endpoints at a time, and those of a worker's pods lie side by side: these use all.
const CLIENTS: usize = WORKERS * ENDPOINTS.div_ceil(128);
/// Of each client.
const CALLS: usize = 1_000;
/// Scrapes whose times are told, and those whose memory is.
const TIMED: usize = 50;
const FIRST: usize = 10;
const ALL: usize = 500;
/// The page is a line of some hundred bytes for each number of an endpoint and each bucket of a method.
const SIZE: usize = 2 << 20;
/// By how much the agent may be larger at the peak of many scrapes than at that of a few, KiB.
const GROWTH: u64 = 4 << 10;

#[test]
#[ignore = "prints figures"]
fn five_hundred_scrapes_of_a_thousand_endpoints_and_fifty_methods_take_no_more_memory_than_ten() -> Result<()> {
    let scene = Scene::new()?;
    let agent = &scene.agent;
    let rest = memory(agent, "VmRSS:")?;
    with_log(agent, scene.call_all())?;
    println!("{ENDPOINTS} endpoints, {METHODS} methods, {CLIENTS} client pods on {WORKERS} workers");
    println!("resident when ready {rest} KiB, after the calls {} KiB", memory(agent, "VmRSS:")?);

    let page = agent.metrics()?;
    let of = |label| values(&page, "sluice_endpoint_rpcs_total{service=\"default/wide:grpc\"", label);
    ensure!(of("endpoint").len() == ENDPOINTS, "{} endpoints in the page", of("endpoint").len());
    let methods = values(&page, "sluice_rpc_duration_seconds_count{service=\"default/wide:grpc\"", "grpc_method");
    ensure!(methods.len() == METHODS, "{methods:?}");
    println!("/metrics: {} bytes, {} lines", page.len(), page.lines().count());
    ensure!(page.len() <= SIZE, "{} bytes", page.len());

    let [few, _] = scene.scrapes(FIRST)?;
    let [many, now] = scene.scrapes(ALL)?;
    println!("resident at most in {FIRST} scrapes {few} KiB, in {ALL} {many} KiB; then {now} KiB");
    ensure!(many <= few + GROWTH, "{ALL} scrapes took {many} KiB, {FIRST} took {few}");
    Ok(())
}

struct Scene {
    clients: Vec<Client>,
    service: Service,
    agent: Agent,
    _endpoint: Endpoint,
    _node: Node,
}

impl Scene {
    /// All endpoints are addresses of one pod.
    fn new() -> Result<Self> {
        let node = Node::new()?;
        let endpoint = Endpoint::start(&node, "wide")?;
        let pod = &endpoint.pod;
        let run = |launch: Launch, args: &str| launch.args(args.split(' ')).read().map(drop);
        run(pod.command("ip"), "route add local 10.245.0.0/22 dev lo")?;
        run(node.command("ip"), &format!("route add 10.245.0.0/22 via {} dev cni0", pod.ip4()))?;
        let address = |n: usize| Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 245, 0, 1)) + n as u32);
        let slice = json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": { "name": "wide", "labels": { "kubernetes.io/service-name": "wide" } },
            "endpoints": (0..ENDPOINTS).map(|n| json!({ "addresses": [address(n)] })).collect::<Vec<_>>(),
            "ports": [{ "name": "grpc", "port": PORT }],
        });
        let service = node.service(in_turn("wide"))?;
        fs::write(node.source_dir().join("wide.yaml"), slice.to_string())?;
        let clients = (1..=CLIENTS).map(|n| Client::start(&node, format!("client-{n}"))).collect::<Result<_>>()?;
        let agent = node.agent().workers(WORKERS).start()?;
        Ok(Self { clients, service, agent, _endpoint: endpoint, _node: node })
    }

    /// Every client calls every method, until every endpoint has had calls.
    fn call_all(&self) -> Result<()> {
        let to = self.service.address4();
        let call = |client: &Client| {
            let connection = client.connect(to)?;
            (0..CALLS).try_for_each(|n| {
                let answer = connection.call(&format!("/shop.Cart/Method{}", n % METHODS), &[])?;
                ensure!(answer.grpc.as_deref() == Some("0"), "{answer:?}");
                Ok(())
            })
        };
        wait_for("calls at all endpoints", || {
            thread::scope(|scope| {
                let calling: Vec<_> = self.clients.iter().map(|client| scope.spawn(|| call(client))).collect();
                calling.into_iter().try_for_each(|it| it.join().expect("no panic"))
            })?;
            let status = self.agent.status()?;
            let service = list(&status["services"]).iter().find(|it| it["name"] == "default/wide:grpc");
            let endpoints = list(&service.context("the Service")?["endpoints"]);
            let called = endpoints.iter().filter(|it| it["picked"].as_u64() > Some(0)).count();
            Ok((called == ENDPOINTS).then_some(()))
        })
    }

    /// Resident memory at most during so many scrapes, and after them, KiB.
    fn scrapes(&self, count: usize) -> Result<[u64; 2]> {
        fs::write(format!("/proc/{}/clear_refs", self.agent.pid()), "5")?;
        let mut times = Vec::new();
        for _ in 0..count {
            let start = Instant::now();
            self.agent.metrics()?;
            times.push(start.elapsed());
        }
        if let Some(times) = times.first_chunk_mut::<TIMED>() {
            times.sort_unstable();
            let [least, half, most] = [0, TIMED / 2, TIMED - 1].map(|n| times[n]);
            println!("{TIMED} scrapes: from {least:.1?}, median {half:.1?}, to {most:.1?}");
        }
        Ok([memory(&self.agent, "VmHWM:")?, memory(&self.agent, "VmRSS:")?])
    }
}

/// The values that a label has in the series that begin so.
fn values<'a>(page: &'a str, start: &'a str, label: &str) -> BTreeSet<&'a str> {
    let label = format!("{label}=\"");
    let series = page.lines().filter(|line| line.starts_with(start));
    series.filter_map(|line| line.split_once(&label)?.1.split('"').next()).collect()
}

/// Of the agent, KiB.
fn memory(agent: &Agent, field: &str) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{}/status", agent.pid()))?;
    let line = status.lines().find_map(|line| line.strip_prefix(field)).with_context(|| format!("no {field}"))?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}
