//! `cargo xtask cluster`: a real Kubernetes cluster of two nodes on this machine, built from source. In: a task; out: a
//! cluster that stays until `down`, a shell in it, or its tests' results. Uses no image registry and no container engine
//! of the machine's.

mod programs;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::Instant;

use anyhow::{Context, Result};
use clap::Subcommand;
use testbed::Cluster;

use crate::host::{self, step};
use crate::image;
use crate::node::exit_code;

#[derive(Subcommand)]
pub(crate) enum Task {
    /// Bring it up; it stays until `down`
    Up,
    /// Remove it, or what is left of one
    Down,
    /// A shell, or COMMAND, with kubectl, helm, node-a and node-b for it; brings it up if there is none, and leaves it up
    Shell {
        /// What to run in place of $SHELL
        #[arg(last = true)]
        command: Vec<OsString>,
    },
    /// Install sluice on it by its manifests and run the tests; brings it up if need be, and takes it down again then
    Test {
        /// Only tests whose name contains this
        filter: Option<String>,
        /// Also those that take minutes each
        #[arg(long)]
        all: bool,
    },
}

pub(crate) fn run(task: &Task) -> Result<ExitCode> {
    match task {
        Task::Up => up(),
        Task::Down => down(),
        Task::Shell { command } => shell(command),
        Task::Test { filter, all } => test(filter.as_deref(), *all),
    }
}

fn up() -> Result<ExitCode> {
    host::need_root("cluster up")?;
    if Cluster::attach().is_ok() {
        println!("the cluster is up already");
    } else {
        bring_up()?.keep()?;
    }
    println!(
        "a shell in it:   cargo xtask cluster shell    (kubectl, helm; `node-a COMMAND` runs COMMAND on a node)\n\
         an image for it: cargo xtask cluster shell -- node-a ctr images import FILE    (and the same on node-b)\n\
         from elsewhere:  export KUBECONFIG={}\n\
         remove it:       cargo xtask cluster down",
        Cluster::attach()?.kubeconfig().display()
    );
    Ok(ExitCode::SUCCESS)
}

fn down() -> Result<ExitCode> {
    host::need_root("cluster down")?;
    let existed = Cluster::exists();
    Cluster::down()?;
    println!("{}", if existed { "the cluster is gone" } else { "there is no cluster" });
    Ok(ExitCode::SUCCESS)
}

fn shell(command: &[OsString]) -> Result<ExitCode> {
    host::need_root("cluster shell")?;
    // One that is half dead has what somebody may want to look at.
    let cluster = if Cluster::exists() { Cluster::attach() } else { bring_up() }?;
    cluster.keep()?;
    let own = [std::env::var_os("SHELL").unwrap_or_else(|| "/bin/sh".into())];
    let (program, args) = if command.is_empty() { &own[..] } else { command }.split_first().context("no command")?;
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders: Vec<PathBuf> = cluster.tools().into_iter().chain(std::env::split_paths(&path)).collect();
    let mut shell = Command::new(program);
    shell.args(args).envs(cluster.environment());
    shell.env("PATH", std::env::join_paths(folders).context("a PATH that can be extended")?);
    // A proxy of this machine does not know the cluster's addresses.
    for name in ["no_proxy", "NO_PROXY"] {
        let given = std::env::var(name).map(|given| format!("{given},")).unwrap_or_default();
        shell.env(name, format!("{given}{}", cluster.api_server_ip()));
    }
    let status = shell.status().with_context(|| format!("cannot start {}", program.display()))?;
    Ok(ExitCode::from(exit_code(status)))
}

fn test(filter: Option<&str>, all: bool) -> Result<ExitCode> {
    host::need_root("cluster test")?;
    let ours = Cluster::attach().is_err();
    // What the tests install.
    image::make()?;
    let mut passed = true;
    if ours {
        prepare()?;
        Cluster::down()?;
        Cluster::remove_on_signal()?;
        if all {
            step("testing that a cluster leaves nothing behind");
            passed &= run_tests("cluster_clean_up", filter, &[])?;
            // What a failed one left.
            Cluster::down()?;
        }
        bring_up()?;
    }
    let (which, args): (_, &[&str]) =
        if all { ("all of the", &["--include-ignored"]) } else { ("the short ones (--all: every one) of the", &[]) };
    step(&format!("running {which} cluster's tests"));
    let outcome = run_tests("cluster", filter, args);
    if ours {
        step("removing the cluster");
        Cluster::down()?;
    } else {
        step("the cluster was up before and stays up");
    }
    passed &= outcome?;
    Ok(if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Runs a test target, whose own lines are the result; gives whether all passed.
fn run_tests(target: &str, filter: Option<&str>, args: &[&str]) -> Result<bool> {
    let mut cargo = host::cargo();
    cargo.args(["test", "--quiet", "--package", "testbed", "--test", target, "--"]);
    // One after another: one's load is not another's delay. What a test prints are its figures.
    cargo.args(["--test-threads=1", "--format=pretty", "--show-output"]).args(args).args(filter);
    Ok(cargo.env("RUST_BACKTRACE", "0").status().context("cannot start cargo")?.success())
}

fn bring_up() -> Result<Cluster> {
    let programs = prepare()?;
    let start = Instant::now();
    let cluster = Cluster::up(&programs, step)?;
    step(&format!("the cluster is up after {} s", start.elapsed().as_secs()));
    Ok(cluster)
}

/// Everything a cluster is made of; gives the folder of the programs.
fn prepare() -> Result<PathBuf> {
    host::need_tools(&[
        ("containerd", "containerd"),
        ("ctr", "containerd"),
        ("runc", "runc"),
        ("/usr/lib/cni/ptp", "containernetworking-plugins"),
        ("nft", "nftables"),
        ("iptables", "iptables"),
        ("ip", "iproute2"),
        ("openssl", "openssl"),
        ("nsenter", "util-linux"),
        ("mount", "mount"),
        ("go", "golang-go"),
    ])?;
    programs::build()
}
