//! `cargo xtask demo`: one client with one connection calls five equal pods, once through kube-proxy and once through
//! sluice. In: nothing but root; out: a table and a report. Needs no cluster and leaves nothing behind.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Args;
use testbed::{Node, Service, ServiceSpec};

use crate::host::{self, step};
use crate::scene::{self, Backends};

/// Enough that two equal shares differ by chance, if picked at random, by about 2 % of a share.
const RPCS: u64 = 20_000;
const ENDPOINTS: usize = 5;
const PORT: u16 = 50051;

#[derive(Args)]
pub(crate) struct Options {
    /// Where report.json and report.html go [default: the build folder's demo-report]
    #[arg(long, value_name = "DIR")]
    report: Option<PathBuf>,
    /// Calls in each of the two runs
    #[arg(long, default_value_t = RPCS, value_parser = clap::value_parser!(u64).range(1..))]
    rpcs: u64,
    /// A folder with sluice-agent and loadtest, used instead of building them
    #[arg(long, value_name = "DIR")]
    programs: Option<PathBuf>,
    /// Worker threads of the agent
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
    workers: u16,
}

pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    host::need_root("demo")?;
    let report = options.report.clone().unwrap_or_else(|| host::target().join("demo-report"));
    scene::report_folder(&report)?;
    host::need_tools(&[("ip", "iproute2"), ("nft", "nftables")])?;
    let programs = host::programs(options.programs.as_deref(), &["sluice-agent", "loadtest"])?;
    let loadtest = programs.join("loadtest");

    step(&format!("making a node with {ENDPOINTS} endpoint pods and a client pod"));
    let node = Node::new()?;
    let backends = Backends::start(&node, "echo", ENDPOINTS, PORT, |pod| scene::echo_server(pod, &loadtest, PORT))?;
    let client = node.pod("client")?;

    // Two Services on the same pods, both served while the agent runs; it is told to leave one of them alone.
    let off = ServiceSpec::grpc("echo-without-sluice", PORT).annotation("sluice.dev/redirect", "false");
    let services = [node.service(off)?, node.service(ServiceSpec::grpc("echo", PORT))?];
    for pod in &backends.pods {
        services.iter().try_for_each(|service| service.add_endpoint(pod))?;
    }
    let [without, with] = services.each_ref().map(Service::address4);

    step("starting the agent");
    let mut agent = node.agent().binary(programs.join("sluice-agent")).workers(options.workers.into()).start()?;

    step(&format!("calling {} times each way, one connection each", options.rpcs));
    let expected: Vec<_> = backends.pods.iter().map(|pod| format!("{}:{PORT}", pod.ip4())).collect();
    let status = client
        .command(&loadtest)
        .args(["compare", "--connections", "1", "--streams", "50", "--rpcs", &options.rpcs.to_string()])
        .args(["--run", &format!("kube-proxy={without}"), "--run", &format!("sluice={with}")])
        .args(["--expect", &expected.join(",")])
        .arg("--json")
        .arg(std::path::absolute(&report)?.join("report.json"))
        .arg("--html")
        .arg(std::path::absolute(&report)?.join("report.html"))
        .status()?;
    if !status.success() {
        testbed::wait_for_cleaner();
        let kept = scene::keep_agent(&mut agent, &report).and_then(|()| backends.keep_logs(&report));
        if let Err(error) = kept {
            step(&format!("the report lacks what the agent and the backends say: {error:#}"));
        }
        bail!("loadtest compare: {status}; what the agent and the backends said is in {}", report.display());
    }
    println!("\nreport: {}", report.join("report.html").display());
    Ok(ExitCode::SUCCESS)
}
