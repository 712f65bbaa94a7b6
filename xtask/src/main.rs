//! `cargo xtask`: what is done with this repository besides compiling it. In: a command line; out: an exit status.
//! Each task is a file of its own.

mod bench;
mod cluster;
mod demo;
mod ebpf;
mod fuzz;
mod host;
mod image;
mod manifests;
mod node;
mod scenarios;
mod scene;
mod test;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Parser, Subcommand};

/// Tasks of the sluice repository.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Show on a simulated node what sluice changes: the same calls through kube-proxy and through sluice
    Demo(demo::Options),
    /// Measure what calls cost: no proxy, sluice, HAProxy, nginx and Envoy side by side
    Bench(bench::Options),
    /// What `bench` runs in a pod
    #[command(name = bench::connects::TASK, hide = true)]
    MeasureConnects(bench::connects::Options),
    /// Slow, failing, vanished and flapping pods, roll-outs, bursts and long streams: kube-proxy, sluice and Envoy side by side
    Scenarios(scenarios::Options),
    /// A simulated node as a playground
    #[command(subcommand)]
    Node(NodeTask),
    /// Make a container image, without a container engine
    Image(image::Options),
    /// Render what `kubectl apply -k manifests` applies from the Helm chart
    Manifests(manifests::Options),
    /// A real Kubernetes cluster of two nodes on this machine
    #[command(subcommand)]
    Cluster(cluster::Task),
    /// Run all tests, or one layer of them
    Test(test::Options),
    /// Look for inputs that break sluice, guided by coverage
    Fuzz(fuzz::Options),
    /// Rebuild the BPF object from source
    Ebpf(EbpfOptions),
}

#[derive(Subcommand)]
enum NodeTask {
    /// Run a command in a client pod, beside backends and the agent
    Run(node::Options),
}

#[derive(Args)]
struct EbpfOptions {
    /// Change nothing; fail if the committed object is not what the source builds
    #[arg(long)]
    check: bool,
}

fn main() -> ExitCode {
    match run(Cli::parse().task) {
        Ok(code) => code,
        Err(error) => {
            // An interrupt breaks much at once, and is told by itself.
            testbed::wait_for_cleaner();
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task) -> Result<ExitCode> {
    match task {
        Task::Demo(options) => demo::run(&options),
        Task::Bench(options) => bench::run(&options),
        Task::MeasureConnects(options) => bench::connects::run(&options),
        Task::Scenarios(options) => scenarios::run(&options),
        Task::Node(NodeTask::Run(options)) => node::run(&options),
        Task::Image(options) => image::run(&options).map(|()| ExitCode::SUCCESS),
        Task::Manifests(options) => manifests::run(&options).map(|()| ExitCode::SUCCESS),
        Task::Cluster(task) => cluster::run(&task),
        Task::Test(options) => test::run(&options),
        Task::Fuzz(options) => fuzz::run(&options),
        Task::Ebpf(options) => {
            let check = options.check.then(|| "--check".to_owned());
            ebpf::run(check.as_slice()).map(|()| ExitCode::SUCCESS)
        }
    }
}
