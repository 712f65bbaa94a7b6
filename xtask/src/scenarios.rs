//! `cargo xtask scenarios`: `loadtest scenarios` on a simulated node, the same five pods behind kube-proxy, behind sluice
//! with each policy, and behind Envoy in the client pod. In: nothing but root; out: tables, and a report where asked.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};
use testbed::{Node, ServiceSpec};

use crate::host::{self, step};
use crate::scene;

mod endpoints;
pub(crate) mod envoy;
mod hooks;

use endpoints::{Endpoints, Server};
use hooks::Hooks;

const ENDPOINTS: usize = 5;
const PORT: u16 = 50051;
/// What `loadtest scenarios` has; a word of several means all of them.
const NAMES: [&str; 10] = [
    "equal",
    "slow",
    "failing",
    "failing-trailers-only",
    "failing-after-headers",
    "black-hole",
    "flapping",
    "roll-out",
    "bursts",
    "streams",
];

#[derive(Args)]
pub(crate) struct Options {
    /// Scenarios [default: all]; `loadtest scenarios --help` says what they are
    #[arg(value_name = "NAME", value_parser = NAMES)]
    names: Vec<String>,
    /// How long each run of a scenario lasts
    #[arg(long, value_name = "N", default_value_t = 60, value_parser = clap::value_parser!(u64).range(4..=3600))]
    seconds: u64,
    /// What the calls go through
    #[arg(
        long,
        value_name = "NAME,…",
        value_delimiter = ',',
        default_value = "kube-proxy,ewma,least-request,round-robin,envoy,envoy-ejecting"
    )]
    via: Vec<Via>,
    /// Calls per second in the mean [default: 60 % of what the pods can do]
    #[arg(long, value_name = "PER_SECOND", value_parser = rate)]
    rate: Option<f64>,
    /// How many calls a pod works on at a time
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    slots: u32,
    /// How long a pod works on a call
    #[arg(long, value_name = "DURATION", default_value = "5ms")]
    service_time: String,
    /// Write the report as JSON to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write the report as one HTML file
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// A folder with sluice-agent and loadtest, used instead of building them
    #[arg(long, value_name = "DIR")]
    programs: Option<PathBuf>,
    /// A further argument of `sluice-agent run`
    #[arg(long, value_name = "ARG", allow_hyphen_values = true)]
    agent_arg: Vec<String>,
}

/// What stands between the client and the pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Via {
    KubeProxy,
    /// sluice, with the policy of this name; so the next two
    Ewma,
    LeastRequest,
    RoundRobin,
    /// Envoy as a sidecar: LEAST_REQUEST, outlier detection with its defaults (which eject no pod of five), one thread
    Envoy,
    /// The same, but half of the pods may be ejected
    EnvoyEjecting,
}

impl Via {
    fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }

    /// The Service that leads this way; Envoy needs none.
    fn service(self) -> Option<ServiceSpec> {
        let spec = ServiceSpec::grpc(&format!("echo-{}", self.name()), PORT);
        match self {
            Self::KubeProxy => Some(spec.annotation("sluice.dev/redirect", "false")),
            Self::Ewma | Self::LeastRequest | Self::RoundRobin => {
                Some(spec.annotation("sluice.dev/load-balancer", &self.name()))
            }
            Self::Envoy | Self::EnvoyEjecting => None,
        }
    }

    /// Where Envoy listens for it.
    fn listener(self) -> &'static str {
        if self == Self::EnvoyEjecting { envoy::EJECTING } else { envoy::DEFAULTS }
    }
}

/// As `loadtest` takes it, said before anything slow begins.
fn rate(text: &str) -> Result<f64, String> {
    let rate = text.parse().ok().filter(|rate| (0.001..=10_000_000.0).contains(rate));
    rate.ok_or_else(|| "write calls per second from 0.001 to 10000000, without a unit".into())
}

pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    host::need_root("scenarios")?;
    host::can_write([&options.json, &options.html])?;
    host::need_tools(&[("ip", "iproute2"), ("nft", "nftables")])?;
    let with_envoy = options.via.iter().any(|via| via.service().is_none());
    let envoy_program = if with_envoy { envoy::install()? } else { None };
    let programs = host::programs(options.programs.as_deref(), &["sluice-agent", "loadtest"])?;
    let loadtest = programs.join("loadtest");

    step(&format!("making a node with {ENDPOINTS} endpoint pods and a client pod"));
    let node = Node::new()?;
    let client = node.pod("client")?;
    let (mut services, mut vias) = (Vec::new(), Vec::new());
    for via in &options.via {
        let address = match via.service() {
            Some(spec) => {
                let service = node.service(spec)?;
                let address = service.address4().to_string();
                services.push(service);
                address
            }
            None if envoy_program.is_none() => continue,
            None => via.listener().to_owned(),
        };
        vias.push(format!("{}={address}", via.name()));
    }
    let clusters = envoy_program.is_some().then(|| node.folder().join("envoy-endpoints.json"));
    let server = Server { program: loadtest.clone(), slots: options.slots, time: options.service_time.clone() };
    let mut endpoints = Endpoints::start(&node, services, clusters.clone(), server, ENDPOINTS)?;

    // Each run meets a peer that remembers nothing of the run before.
    let start_agent = || {
        let agent = node.agent().binary(programs.join("sluice-agent"));
        options.agent_arg.iter().fold(agent, |agent, arg| agent.arg(arg)).start()
    };
    let start_envoy = || match (&envoy_program, &clusters) {
        (Some(program), Some(clusters)) => envoy::start(&node, &client, program, clusters).map(Some),
        _ => Ok(None),
    };
    step("starting the agent");
    let mut agent = Some(start_agent()?);
    let mut envoy = None;
    let mut renew = |via: &str| -> Result<()> {
        if via.starts_with("envoy") {
            drop(envoy.take());
            envoy = start_envoy()?;
        } else if via != Via::KubeProxy.name() {
            drop(agent.take());
            agent = Some(start_agent()?);
        }
        Ok(())
    };

    let hooks = Hooks::new(node.folder());
    let mut launch = client.command(&loadtest).arg("scenarios").args(["--control", &endpoints.controls().join(",")]);
    launch = launch.args(["--seconds", &options.seconds.to_string()]);
    launch = launch.args(["--hook", &format!("before={}", hooks.command("renew $SLUICE_VIA"))]);
    launch = launch.args(["--hook", &format!("roll-out={}", hooks.command("replace"))]);
    for via in &vias {
        launch = launch.args(["--via", via]);
    }
    if !options.names.is_empty() {
        launch = launch.args(["--only", &options.names.join(",")]);
    }
    if let Some(rate) = options.rate {
        launch = launch.args(["--rate", &rate.to_string()]);
    }
    for (flag, file) in [("--json", &options.json), ("--html", &options.html)] {
        if let Some(file) = file {
            launch = launch.arg(flag).arg(std::path::absolute(file)?);
        }
    }
    let mut process = launch.spawn()?;
    hooks.serve(
        || Ok(process.try_wait()?.is_some()),
        |words| match words.split_once(' ') {
            Some((_, via)) => renew(via).map(|()| String::new()),
            None => endpoints.replace().map(|()| endpoints.controls().join("\n")),
        },
    )?;
    let status = process.wait()?;
    if !status.success() {
        testbed::wait_for_cleaner();
        let report = host::target().join("scenarios");
        scene::report_folder(&report)?;
        if let Some(agent) = &mut agent {
            scene::keep_agent(agent, &report)?;
        }
        bail!("loadtest scenarios: {status}; what the agent said is in {}", report.display());
    }
    Ok(ExitCode::SUCCESS)
}
