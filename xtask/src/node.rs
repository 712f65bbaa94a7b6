//! `cargo xtask node run`: a simulated node as a playground. In: a command, and optionally what the backends shall be;
//! out: the command's own output and status. The command runs in a client pod, with the agent on or off.

use std::ffi::{OsStr, OsString};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, ExitStatus, Stdio};

use anyhow::{Context, Result};
use clap::Args;
use testbed::{Agent, Launch, Node, Pod, Service, ServiceSpec};

use crate::host::{self, step};
use crate::scene::{self, Backends};

#[derive(Args)]
pub(crate) struct Options {
    /// Backend pods
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(0..=1000))]
    endpoints: u16,
    /// What serves in each backend pod, for `sh -c`; {pod}, {ip} and {port} are replaced, $POD_NAME, $POD_IP and $PORT
    /// are set, `loadtest` is in $PATH [default: loadtest server]
    #[arg(long, value_name = "CMD")]
    backend: Option<String>,
    /// Where the backends listen, and the Service's port
    #[arg(long, default_value_t = 50051, value_parser = clap::value_parser!(u16).range(1..))]
    port: u16,
    /// Client pods; COMMAND runs in each at once, the first has the standard input
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1000))]
    client_pods: u16,
    /// Without sluice: kube-proxy alone
    #[arg(long)]
    no_agent: bool,
    /// A folder with sluice-agent and loadtest, used instead of building them
    #[arg(long, value_name = "DIR")]
    programs: Option<PathBuf>,
    /// Worker threads of the agent
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
    workers: u16,
    /// Where the agent's status.json, metrics.txt and agent.log and the backends' logs go
    #[arg(long, value_name = "DIR")]
    report: Option<PathBuf>,
    /// What to run. It finds $SLUICE_SERVICE (host:port; also $SLUICE_SERVICE_HOST, $SLUICE_SERVICE_PORT),
    /// $SLUICE_SERVICE6 (IPv6), $SLUICE_MANIFESTS (the folder that the
    /// agent reads), $SLUICE_AGENT_PID, $SLUICE_AGENT_LOG and $SLUICE_ADMIN (host:port of the agent's pages), and `loadtest`
    /// in $PATH. `nsenter -n -t $SLUICE_AGENT_PID sluice-agent top` looks into the agent
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    host::need_root("node run")?;
    if let Some(report) = &options.report {
        scene::report_folder(report)?;
    }
    host::need_tools(&[("ip", "iproute2"), ("nft", "nftables")])?;
    let packages: &[&str] = if options.no_agent { &["loadtest"] } else { &["sluice-agent", "loadtest"] };
    let programs = host::programs(options.programs.as_deref(), packages)?;
    let loadtest = programs.join("loadtest");

    // COMMAND and backends find what was built, after what is installed.
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path = std::env::join_paths(std::env::split_paths(&path).chain([programs.clone()]))?;

    step(&format!("making a node with {} backend and {} client pods", options.endpoints, options.client_pods));
    let node = Node::new()?;
    let backends =
        Backends::start(&node, "backend", options.endpoints.into(), options.port, |pod| match &options.backend {
            Some(command) => own_backend(pod, command, options.port).env("PATH", &path),
            None => scene::echo_server(pod, &loadtest, options.port),
        })?;
    let service = node.service(ServiceSpec::grpc("sluice-service", options.port))?;
    backends.pods.iter().try_for_each(|pod| service.add_endpoint(pod))?;
    let clients: Vec<_> = (1..=options.client_pods).map(|i| node.pod(format!("client-{i}"))).collect::<Result<_>>()?;
    let mut agent = if options.no_agent {
        None
    } else {
        step("starting the agent");
        let agent = node.agent().binary(programs.join("sluice-agent")).workers(options.workers.into());
        Some(agent.admin_ip(node.ip4()).start()?)
    };

    let command = |pod: &Pod, first: bool| {
        let launch = client_command(pod, &options.command, &programs, &service, node.source_dir(), agent.as_ref())?
            .env("PATH", &path);
        launch.stdin(if first { Stdio::inherit() } else { Stdio::null() }).spawn()
    };
    let running: Vec<_> = clients.iter().enumerate().map(|(i, pod)| command(pod, i == 0)).collect::<Result<_>>()?;
    let mut worst = 0;
    for mut process in running {
        let code = exit_code(process.wait()?);
        worst = if worst == 0 { code } else { worst };
    }
    if let Some(report) = &options.report {
        backends.keep_logs(report)?;
        if let Some(agent) = &mut agent {
            scene::keep_agent(agent, report)?;
        }
    }
    Ok(ExitCode::from(worst))
}

/// The user's command line for a pod.
fn own_backend(pod: &Pod, command: &str, port: u16) -> Launch {
    let command = fill_in(command, pod.name(), &pod.ip4().to_string(), port);
    pod.command("sh").arg("-c").arg(command).env("PORT", port.to_string())
}

fn fill_in(command: &str, pod: &str, ip: &str, port: u16) -> String {
    command.replace("{pod}", pod).replace("{ip}", ip).replace("{port}", &port.to_string())
}

/// COMMAND as it runs in a client pod.
fn client_command(
    pod: &Pod,
    command: &[OsString],
    programs: &Path,
    service: &Service,
    manifests: &Path,
    agent: Option<&Agent>,
) -> Result<Launch> {
    let (program, args) = command.split_first().context("no command")?;
    let address = service.address4();
    let mut launch = pod
        .command(find_program(program, programs))
        .args(args)
        .env("SLUICE_SERVICE", address.to_string())
        .env("SLUICE_SERVICE_HOST", address.ip().to_string())
        .env("SLUICE_SERVICE_PORT", address.port().to_string())
        .env("SLUICE_SERVICE6", service.address6().to_string())
        .env("SLUICE_MANIFESTS", manifests);
    if let Some(agent) = agent {
        launch = launch.env("SLUICE_AGENT_PID", agent.pid().to_string());
        launch = launch.env("SLUICE_ADMIN", agent.admin().to_string()).env("SLUICE_AGENT_LOG", agent.log_file());
    }
    Ok(launch)
}

/// A program that was just built, where the name alone means one and PATH has no other.
fn find_program(name: &OsStr, programs: &Path) -> PathBuf {
    let ours = programs.join(name);
    let plain = name.to_str().filter(|name| !name.contains('/') && testbed::find_tool(name).is_none());
    if plain.is_some() && ours.is_file() { ours } else { PathBuf::from(name) }
}

/// As a shell has it: 128 and the number of the signal that ended it.
pub(crate) fn exit_code(status: ExitStatus) -> u8 {
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    u8::try_from(code).unwrap_or(u8::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backends_command_line_is_filled_in_for_each_pod() {
        assert_eq!(
            fill_in("serve --name {pod} {ip}:{port} $X {x}", "b-1", "10.0.0.2", 80),
            "serve --name b-1 10.0.0.2:80 $X {x}"
        );
    }

    #[test]
    fn the_exit_status_is_the_commands_own() {
        assert_eq!(exit_code(ExitStatus::from_raw(7 << 8)), 7);
        assert_eq!(exit_code(ExitStatus::from_raw(9)), 137);
    }
}
