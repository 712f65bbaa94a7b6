//! gRPC's own interop suite (tests/interop) on a simulated node with the agent on: each case once straight to a pod and
//! once through the ClusterIP of a Service with two; the outcome must be the same, and the one must have been redirected
//! and the other not. Prints a table. Needs root, `sluice-agent` built, Go, and a JDK with Maven; fails without.

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use testbed::{Agent, Node, Pod, Process, Service, ServiceSpec, target_folder};

const PORT: u16 = 50051;
const LISTENS_WITHIN: Duration = Duration::from_secs(60);
/// Seconds. A case takes two at most; one that waits for ever shall fail its test.
const CASE_ENDS_WITHIN: &str = "120";
const SOAK_ENDS_WITHIN: &str = "1800";

/// Every case of the suite that needs no credentials, in both clients.
const EVERYWHERE: &[&str] = &[
    "empty_unary",
    "large_unary",
    "client_streaming",
    "server_streaming",
    "ping_pong",
    "empty_stream",
    "custom_metadata",
    "status_code_and_message",
    "special_status_message",
    "unimplemented_method",
    "unimplemented_service",
    "cancel_after_begin",
    "cancel_after_first_response",
    "timeout_on_sleeping_server",
    "orca_per_rpc",
];

/// Those that only grpc-java's client has. `noprobe`: neither server refuses a message that is not compressed as it says,
/// which is what the probe asks for.
const ONLY_JAVA: &[&str] = &[
    "cacheable_unary",
    "server_compressed_unary",
    "server_compressed_streaming",
    "client_compressed_unary_noprobe",
    "client_compressed_streaming_noprobe",
    "very_large_request",
];

/// Cases that fail without sluice, too: server, case, reason. They must fail in the same words.
const UNSUPPORTED: &[(&str, &str, &str)] = &[
    ("go", "cacheable_unary", "the server has no such method"),
    ("java", "cacheable_unary", "the server has no such method"),
    ("go", "very_large_request", "the server takes 4 MiB at most"),
    ("go", "client_compressed_unary_noprobe", "the server has no gzip"),
    ("go", "client_compressed_streaming_noprobe", "the server has no gzip"),
];

/// The case asks one call about what another one has set in the server: it needs a Service with a single one.
const OF_ONE_SERVER: &str = "orca_oob";

/// Given up at once, or after a millisecond, which may be before the client has dialled.
const MAY_NOT_DIAL: &[&str] = &["--test_case=cancel_after_begin", "--test_case=timeout_on_sleeping_server"];

/// The policy under which a client reports a server's load (the suite's own description of the ORCA cases).
const ORCA_POLICY: &str = r#"{"loadBalancingConfig":[{"test_backend_metrics_load_balancer":{}}]}"#;

/// Calls on one channel.
const SHORT_SOAK: u32 = 500;
const LONG_SOAK: u32 = 10_000;
/// Connections: grpc-go's client keeps all of them open until the end.
const SHORT_CHANNEL_SOAK: u32 = 100;
const LONG_CHANNEL_SOAK: u32 = 2_000;

#[test]
fn grpc_go_passes_the_interop_suite_of_grpc_go() {
    let bench = Bench::new("go", "go").unwrap();
    bench.all_alike(&[EVERYWHERE, &[OF_ONE_SERVER]].concat()).unwrap();
}

#[test]
fn grpc_go_passes_the_interop_suite_of_grpc_java() {
    let bench = Bench::new("go", "java").unwrap();
    bench.all_alike(&[EVERYWHERE, &[OF_ONE_SERVER]].concat()).unwrap();
}

#[test]
fn grpc_java_passes_the_interop_suite_of_grpc_go() {
    let bench = Bench::new("java", "go").unwrap();
    bench.all_alike(&[EVERYWHERE, ONLY_JAVA].concat()).unwrap();
}

#[test]
fn grpc_java_passes_the_cases_that_need_both_its_client_and_its_server() {
    Bench::new("java", "java").unwrap().all_alike(ONLY_JAVA).unwrap();
}

#[test]
#[ignore = "two minutes; what no other pair has runs without being named"]
fn grpc_java_passes_the_interop_suite_of_grpc_java() {
    let bench = Bench::new("java", "java").unwrap();
    bench.all_alike(&[EVERYWHERE, ONLY_JAVA].concat()).unwrap();
}

#[test]
fn soaks_of_500_calls_lose_none() {
    for (client, server) in [("go", "go"), ("java", "go"), ("go", "java")] {
        Bench::new(client, server).unwrap().soaks_alike(SHORT_SOAK, SHORT_CHANNEL_SOAK).unwrap();
    }
}

#[test]
#[ignore = "some minutes"]
fn soaks_of_10000_calls_lose_none() {
    for (client, server) in [("go", "go"), ("java", "go"), ("go", "java"), ("java", "java")] {
        Bench::new(client, server).unwrap().soaks_alike(LONG_SOAK, LONG_CHANNEL_SOAK).unwrap();
    }
}

/// One client and the servers it talks to, on a node of their own.
struct Bench {
    agent: Agent,
    client: Pod,
    program: PathBuf,
    names: (&'static str, &'static str),
    several: Service,
    single: Service,
    servers: [(Pod, Process); 2],
    /// Last, so that it goes last.
    _node: Node,
}

/// How a client's process ended: in success, or with the line that says why not.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Outcome {
    Passed,
    Failed(String),
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Outcome::Passed => f.write_str("passed"),
            Outcome::Failed(why) => write!(f, "failed: {why}"),
        }
    }
}

impl Bench {
    fn new(client: &'static str, server: &'static str) -> Result<Self> {
        let programs = set_up(&[client, server])?;
        let node = Node::new()?;
        let servers = [1, 2].map(|number| start_server(&node, &programs, server, number));
        let [one, two] = servers;
        let servers = [one?, two?];
        let service = |name: &str, servers: &[(Pod, Process)]| {
            // In turn, so that both have their part.
            let spec = ServiceSpec::grpc(name, PORT).annotation("sluice.dev/load-balancer", "round-robin");
            let service = node.service(spec)?;
            servers.iter().try_for_each(|(pod, _)| service.add_endpoint(pod))?;
            anyhow::Ok(service)
        };
        Ok(Self {
            several: service("interop", &servers)?,
            single: service("single", &servers[..1])?,
            client: node.pod("client")?,
            agent: node.agent().start()?,
            program: programs.join(format!("{client}-client")),
            names: (client, server),
            servers,
            _node: node,
        })
    }

    /// Every case ends as it does straight to a pod, and well, but for those that are not supported.
    fn all_alike(&self, cases: &[&str]) -> Result<()> {
        let (client, server) = self.names;
        let mut table = Table::new(self.names);
        for case in cases {
            let service = if *case == OF_ONE_SERVER { &self.single } else { &self.several };
            let mut args = vec![format!("--test_case={case}")];
            if case.starts_with("orca") {
                args.push(format!("--service_config_json={ORCA_POLICY}"));
            }
            let reason = UNSUPPORTED.iter().find(|(of, name, _)| (*of, *name) == (server, *case));
            let (direct, through) = self.both(service, &args, CASE_ENDS_WITHIN)?;
            let as_it_should = direct == through && (direct == Outcome::Passed) == reason.is_none();
            table.row(case, &direct, &through, as_it_should);
            if let Some((.., reason)) = reason {
                println!("{:<36} {reason}", "");
            }
        }
        table.finish().with_context(|| format!("grpc-{client} to grpc-{server}\n{}", self.log()))?;
        self.nothing_was_amiss()
    }

    /// So many calls on one channel, and on so many channels one call each, without a failed one.
    fn soaks_alike(&self, calls: u32, channels: u32) -> Result<()> {
        let mut table = Table::new(self.names);
        for (case, iterations) in [("rpc_soak", calls), ("channel_soak", channels)] {
            let args = [
                format!("--test_case={case}"),
                format!("--soak_iterations={iterations}"),
                // What is asked is whether calls fail, not how fast this machine is.
                format!("--soak_overall_timeout_seconds={SOAK_ENDS_WITHIN}"),
                "--soak_per_iteration_max_acceptable_latency_ms=600000".to_owned(),
            ];
            let start = Instant::now();
            let (direct, through) = self.both(&self.several, &args, SOAK_ENDS_WITHIN)?;
            let name = format!("{case} {iterations}");
            table.row(&name, &direct, &through, direct == through && direct == Outcome::Passed);
            println!("{name}: both runs took {:.1} s", start.elapsed().as_secs_f64());
        }
        table.finish().with_context(|| self.log())?;
        self.nothing_was_amiss()
    }

    /// Straight to the first server, then through the Service.
    fn both(&self, service: &Service, args: &[String], seconds: &str) -> Result<(Outcome, Outcome)> {
        let before = self.redirected()?;
        let direct = self.run((self.servers[0].0.ip4(), PORT).into(), args, seconds)?;
        ensure!(self.redirected()? == before, "{args:?}: straight to a pod, and redirected all the same");
        let through = self.run(service.address4(), args, seconds)?;
        let dialled = !args.iter().any(|arg| MAY_NOT_DIAL.contains(&arg.as_str()));
        ensure!(!dialled || self.redirected()? > before, "{args:?}: through the ClusterIP, and not redirected");
        Ok((direct, through))
    }

    fn run(&self, to: SocketAddr, args: &[String], seconds: &str) -> Result<Outcome> {
        let output = self
            .client
            .command("timeout")
            .arg(seconds)
            .arg(&self.program)
            .args([format!("--server_host={}", to.ip()), format!("--server_port={}", to.port())])
            .args(args)
            .arg("--use_tls=false")
            .output()?;
        let words = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        if output.status.success() {
            return Ok(Outcome::Passed);
        }
        // The line that names the reason; grpc-go's begins with date and time.
        let why = words.lines().find_map(|line| {
            line.find("FATAL: ").or_else(|| line.find("Exception in thread")).map(|start| line[start..].to_owned())
        });
        Ok(Outcome::Failed(why.unwrap_or_else(|| format!("{}: {words}", output.status))))
    }

    fn redirected(&self) -> Result<u64> {
        self.agent.status()?["kernel_verdicts"]["redirected"].as_u64().context("a counter of redirected connections")
    }

    /// Both servers had calls, and the agent saw no misbehaviour in what were all well-behaved programs.
    fn nothing_was_amiss(&self) -> Result<()> {
        let status = self.agent.status()?;
        let pods = status["pods"].as_array().context("pods")?;
        let pod = pods.iter().find(|pod| pod["uid"] == self.client.uid()).context("the client's pod")?;
        for count in ["floods", "protocol_errors", "dials_failed"] {
            ensure!(pod["traffic"][count] == 0, "{count}: {pod:#}\n{}", self.log());
        }
        Ok(())
    }

    fn log(&self) -> String {
        format!("the agent's log:\n{}", self.agent.log().unwrap_or_else(|error| format!("{error:#}")))
    }
}

/// case × (direct, through), printed as it grows.
struct Table {
    differ: Vec<String>,
}

impl Table {
    fn new((client, server): (&str, &str)) -> Self {
        println!("{:<36} {:<28} through sluice", format!("grpc-{client} → grpc-{server}"), "direct");
        Self { differ: Vec::new() }
    }

    fn row(&mut self, case: &str, direct: &Outcome, through: &Outcome, as_it_should: bool) {
        let [left, right] = [direct, through].map(|it| if *it == Outcome::Passed { "passed" } else { "failed" });
        println!("{case:<36} {left:<28} {right}");
        if !as_it_should {
            self.differ.push(format!("{case}: direct {direct}; through sluice {through}"));
        }
    }

    fn finish(self) -> Result<()> {
        ensure!(self.differ.is_empty(), "not as they should be:\n{}", self.differ.join("\n"));
        Ok(())
    }
}

fn start_server(node: &Node, programs: &Path, language: &str, number: u32) -> Result<(Pod, Process)> {
    let pod = node.pod(format!("server-{number}"))?;
    let mut launch = pod.command(programs.join(format!("{language}-server"))).arg(format!("--port={PORT}"));
    if language == "java" {
        launch = launch.arg("--use_tls=false");
    }
    let server = launch.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    pod.wait_listening(PORT, LISTENS_WITHIN)?;
    Ok((pod, server))
}

/// Builds or fetches the programs unless that is done, and gives their folder.
fn set_up(languages: &[&str]) -> Result<PathBuf> {
    let target = target_folder()?;
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/interop/setup.sh");
    let status = Command::new(script).args(languages).env("CARGO_TARGET_DIR", &target).status()?;
    ensure!(status.success(), "{script}: {status}; what is missing stands above");
    Ok(target.join("interop/run"))
}
