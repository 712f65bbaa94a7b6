//! All cases of h2spec (RFC 9113 and RFC 7541 as a client sees them, the strict ones too) through the agent on a simulated
//! node, in both families: none fails, none is skipped. h2spec is a tool of the Go module tests/conformance.
//! Needs root, Go, and `sluice-agent` and `loadtest` built; fails without.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use testbed::{Agent, Launch, Node, Pod, Process, ServiceSpec, program, target_folder};

const PORT: u16 = 50051;
/// Cases of h2spec 2.2.1 with `--strict`.
const CASES: usize = 146;
const LISTENS_WITHIN: Duration = Duration::from_secs(20);
/// Seconds. All cases take about one; a case that waits for what never comes takes the 5 s that it is given.
const ENDS_WITHIN: &str = "300";

#[test]
fn h2spec_finds_no_fault_in_front_of_a_plain_server() -> Result<()> {
    let programs = build()?;
    // It speaks of each breach that reaches it.
    no_fault(&programs, |pod| {
        pod.command(programs.join("conformance")).arg(format!(":{PORT}")).stdout(Stdio::null()).stderr(Stdio::null())
    })
}

/// One that ends connections on which many streams were reset, whoever reset them.
#[test]
fn h2spec_finds_no_fault_in_front_of_a_grpc_server() -> Result<()> {
    let loadtest = program("loadtest")?;
    no_fault(&build()?, |pod| {
        pod.command(&loadtest).args(["server", "--listen", &format!("[::]:{PORT}")]).stdout(Stdio::null())
    })
}

fn no_fault(programs: &Path, server: impl Fn(&Pod) -> Launch) -> Result<()> {
    let node = Node::new()?;
    let service = node.service(ServiceSpec::grpc("h2", PORT))?;
    let mut servers: Vec<(Pod, Process)> = Vec::new();
    for name in ["h2-1", "h2-2", "h2-3"] {
        let pod = node.pod(name)?;
        let server = server(&pod).stdin(Stdio::null()).spawn()?;
        pod.wait_listening(PORT, LISTENS_WITHIN)?;
        service.add_endpoint(&pod)?;
        servers.push((pod, server));
    }
    let client = node.pod("client")?;
    let agent = node.agent().start()?;
    let hosts = [service.address4().ip().to_string(), format!("[{}]", service.address6().ip())];
    for (run, host) in hosts.iter().enumerate() {
        let said = cases(&client, programs, host)?;
        let last = said.lines().rfind(|line| !line.trim().is_empty()).unwrap_or_default();
        let wanted = format!("{CASES} tests, {CASES} passed, 0 skipped, 0 failed");
        ensure!(last == wanted, "{host}: {last}\n{said}\nthe agent's log:\n{}", agent.log()?);
        // One connection a case: they were the agent's.
        let accepted = accepted(&agent, &client)?;
        ensure!(accepted >= ((run + 1) * CASES) as u64, "{host}: only {accepted} connections came to the agent");
    }
    Ok(())
}

/// What h2spec says.
fn cases(client: &Pod, programs: &Path, host: &str) -> Result<String> {
    let output = client
        .command("timeout")
        .arg(ENDS_WITHIN)
        .arg(programs.join("h2spec"))
        .args(["--strict", "--timeout", "5", "--host", host, "--port", &PORT.to_string()])
        .output()?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// How many connections of this pod the agent took.
fn accepted(agent: &Agent, client: &Pod) -> Result<u64> {
    let status = agent.status()?;
    let pods = status["pods"].as_array().context("pods")?;
    let line = pods.iter().find(|line| line["uid"] == client.uid()).context("the client is not enrolled")?;
    line["traffic"]["accepted"].as_u64().with_context(|| format!("no accepted in {line}"))
}

/// h2spec and its server, below cargo's target folder; Go itself knows whether there is anything to do.
fn build() -> Result<PathBuf> {
    // One test writes what the other runs.
    static BUILDING: Mutex<()> = Mutex::new(());
    let _alone = BUILDING.lock().unwrap_or_else(PoisonError::into_inner);
    let (source, programs) =
        (Path::new(env!("CARGO_MANIFEST_DIR")).join("conformance"), target_folder()?.join("conformance"));
    let status = Command::new("go")
        .args(["install", "-buildvcs=false", ".", "github.com/summerwind/h2spec/cmd/h2spec"])
        .current_dir(&source)
        .env("GOBIN", &programs)
        .env("CGO_ENABLED", "0")
        .env("GOTOOLCHAIN", "local")
        .env("GOFLAGS", "-mod=readonly")
        .status()
        .context("cannot start go; on Debian: apt-get install golang-go (1.26 or newer)")?;
    ensure!(status.success(), "go install in {}: {status}; it needs Go 1.26 or newer", source.display());
    Ok(programs)
}
