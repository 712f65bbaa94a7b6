//! `cargo xtask bench`: what a call costs in the proxy, sluice beside HAProxy, in one interleaved run on a simulated node.
//! In: nothing but root; out: CPU microseconds per call of each, their medians and the ratio. It judges nothing.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use testbed::{Node, Pod, Process, ServiceSpec};

use crate::host::{self, step};
use crate::scene::{self, Backends};

const ENDPOINTS: usize = 4;
const PORT: u16 = 50051;
/// HAProxy's listener, in the client pod: a sidecar, as far from the client as sluice's own listener.
const SIDECAR: &str = "127.0.0.1:7000";
/// Payload of a call, bytes: with field tag and length it is a message of 34, with gRPC's prefix 39 bytes of DATA.
const PAYLOAD: u8 = 32;
/// The load: the shapes of many streams on few connections, and of many connections with one stream each.
const SHAPES: [(u32, u32); 2] = [(10, 20), (50, 1)];

#[derive(Args)]
pub(crate) struct Options {
    /// Calls in each measurement
    #[arg(long, default_value_t = 200_000, value_parser = clap::value_parser!(u64).range(1000..))]
    rpcs: u64,
    /// Measurements of each, in turn
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u8).range(1..))]
    rounds: u8,
    /// A folder with sluice-agent and loadtest, used instead of building them
    #[arg(long, value_name = "DIR")]
    programs: Option<PathBuf>,
}

pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    host::need_root("bench")?;
    let tools = [("ip", "iproute2"), ("nft", "nftables"), ("h2load", "nghttp2-client"), ("haproxy", "haproxy")];
    host::need_tools(&tools)?;
    let programs = host::programs(options.programs.as_deref(), &["sluice-agent", "loadtest"])?;
    let loadtest = programs.join("loadtest");

    step(&format!("making a node with {ENDPOINTS} endpoint pods and a client pod"));
    let node = Node::new()?;
    let backends = Backends::start(&node, "echo", ENDPOINTS, PORT, |pod| scene::echo_server(pod, &loadtest, PORT))?;
    let service = node.service(ServiceSpec::grpc("echo", PORT))?;
    backends.pods.iter().try_for_each(|pod| service.add_endpoint(pod))?;
    let client = node.pod("client")?;
    let agent = node.agent().binary(programs.join("sluice-agent")).workers(1).start()?;
    let haproxy = start_haproxy(&node, &client, &backends.pods)?;
    let message = node.folder().join("message");
    fs::write(&message, message_bytes())?;
    let proxies =
        [("sluice", service.address4().to_string(), agent.pid()), ("haproxy", SIDECAR.to_owned(), haproxy.pid())];

    println!("h2load, {} calls of {PAYLOAD} bytes a measurement, {ENDPOINTS} endpoints, one thread each", options.rpcs);
    println!("{:<10} {:<8} {:>8} {:>8} {:>8} {:>10}", "load", "proxy", "median", "min", "max", "RPC/s");
    for (connections, streams) in SHAPES {
        let mut costs = [const { Vec::new() }; 2];
        let mut rates = [const { Vec::new() }; 2];
        // The first round warms up: connections, HPACK tables, caches.
        for round in 0..=options.rounds {
            for (i, (_, target, pid)) in proxies.iter().enumerate() {
                let before = cpu(*pid)?;
                let seconds = load(&client, target, &message, options.rpcs, connections, streams)?;
                if round > 0 {
                    costs[i].push((cpu(*pid)? - before).as_secs_f64() * 1e6 / options.rpcs as f64);
                    rates[i].push(options.rpcs as f64 / seconds);
                }
            }
        }
        for (i, (name, ..)) in proxies.iter().enumerate() {
            let (costs, rates) = (sorted(&mut costs[i]), sorted(&mut rates[i]));
            println!(
                "{:<10} {name:<8} {:>5.2} µs {:>5.2} µs {:>5.2} µs {:>10.0}",
                format!("{connections}×{streams}"),
                median(costs),
                costs[0],
                costs[costs.len() - 1],
                median(rates),
            );
        }
        println!("           sluice/haproxy: {:.2}", median(&costs[0]) / median(&costs[1]));
    }
    Ok(ExitCode::SUCCESS)
}

/// HAProxy with HTTP/2 on both sides, one thread, each stream to the next server, connections shared as freely as it can.
fn start_haproxy(node: &Node, client: &Pod, endpoints: &[Pod]) -> Result<Process> {
    let mut config = String::from(
        "global\n nbthread 1\n maxconn 2000\ndefaults\n mode http\n timeout client 60s\n timeout server 60s\n \
         timeout connect 5s\nfrontend grpc\n bind :7000 proto h2\n default_backend endpoints\nbackend endpoints\n \
         balance roundrobin\n http-reuse always\n",
    );
    for (i, pod) in endpoints.iter().enumerate() {
        writeln!(config, " server s{i} {}:{PORT} proto h2", pod.ip4())?;
    }
    let file = node.folder().join("haproxy.cfg");
    fs::write(&file, config)?;
    let launch = client.command("haproxy").args(["-db", "-f"]).arg(&file);
    let process = launch.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    client.wait_listening(7000, Duration::from_secs(10)).context("haproxy does not listen")?;
    Ok(process)
}

/// A gRPC message as it stands in DATA: prefix, then `EchoRequest { payload }`.
fn message_bytes() -> Vec<u8> {
    let mut bytes = vec![0, 0, 0, 0, PAYLOAD + 2, 0x0a, PAYLOAD];
    bytes.extend([b'x'; PAYLOAD as usize]);
    bytes
}

/// One measurement's seconds. An error unless every call succeeded.
fn load(client: &Pod, target: &str, message: &Path, rpcs: u64, connections: u32, streams: u32) -> Result<f64> {
    let said = client
        .command("h2load")
        .args(["-t", "1", "-n", &rpcs.to_string(), "-c", &connections.to_string(), "-m", &streams.to_string()])
        .args(["-H", "content-type: application/grpc", "-H", "te: trailers", "-d"])
        .arg(message)
        .arg(format!("http://{target}/sluice.loadtest.v1.Echo/Unary"))
        .read()?;
    if !said.contains(&format!("{rpcs} succeeded, 0 failed")) {
        bail!("not all calls to {target} succeeded:\n{said}");
    }
    seconds(&said).with_context(|| format!("h2load said no time:\n{said}"))
}

/// Of `finished in 1.65s, …` or `finished in 650.12ms, …`.
fn seconds(said: &str) -> Option<f64> {
    let time = said.split("finished in ").nth(1)?.split(',').next()?;
    match time.strip_suffix("ms") {
        Some(millis) => millis.parse::<f64>().ok().map(|millis| millis / 1e3),
        None => time.strip_suffix('s')?.parse().ok(),
    }
}

/// CPU time of all of a process's threads that live.
fn cpu(pid: u32) -> Result<Duration> {
    let mut total = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task")).context("the proxy has ended")? {
        let stat = fs::read_to_string(task?.path().join("schedstat"))?;
        total += stat.split(' ').next().and_then(|ns| ns.parse::<u64>().ok()).context("no schedstat in this kernel")?;
    }
    Ok(Duration::from_nanos(total))
}

fn sorted(values: &mut [f64]) -> &[f64] {
    values.sort_by(f64::total_cmp);
    values
}

/// Of sorted values.
fn median(values: &[f64]) -> f64 {
    values[values.len() / 2]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn h2loads_time_is_read_in_either_unit() {
        assert_eq!(seconds("x\nfinished in 1.65s, 121001.65 req/s, 12MB/s"), Some(1.65));
        assert_eq!(seconds("finished in 650.00ms, 1 req/s"), Some(0.65));
        assert_eq!(seconds("nothing"), None);
    }
}
