//! `sluice-agent log-level`: what the kernel programs and the agent say is changed while they run, and a slip changes nothing.

use anyhow::{Result, ensure};
use testbed::scene::{in_turn, serve, wait_for};
use testbed::{Agent, Node, Service};

use crate::cli::Cli;
use crate::peers::{Client, Endpoint};
use crate::scene::enrolled;

struct Scene {
    service: Service,
    _endpoint: Endpoint,
    client: Client,
    agent: Agent,
    node: Node,
}

impl Scene {
    fn new() -> Result<Self> {
        let node = Node::new()?;
        let endpoint = Endpoint::start(&node, "one")?;
        let service = serve(&node, in_turn("shop"), [&endpoint.pod])?;
        let client = Client::start(&node, "client")?;
        let agent = node.agent().start()?;
        Ok(Self { service, _endpoint: endpoint, client, agent, node })
    }

    fn cli(&self) -> Cli<'_> {
        Cli::new(&self.node, &self.agent)
    }

    /// Lines in which this stands.
    fn lines(&self, part: &str) -> Result<Vec<String>> {
        Ok(self.agent.log()?.lines().filter(|line| line.contains(part)).map(str::to_owned).collect())
    }

    fn connect(&self) -> Result<()> {
        self.client.dial(self.service.address4()).map(drop)
    }
}

#[test]
fn the_kernels_verdicts_are_said_from_the_moment_they_are_asked_for_and_no_longer() -> Result<()> {
    let scene = Scene::new()?;
    let kernel = "sluice::kernel";
    ensure!(scene.cli().say(&["log-level"])? == "kernel programs: off\nagent: info\n");
    scene.connect()?;
    ensure!(scene.lines(kernel)?.is_empty());

    ensure!(scene.cli().say(&["log-level", "--bpf", "debug"])? == "kernel programs: debug\nagent: info\n");
    scene.connect()?;
    let lines = wait_for("a verdict in the log", || Ok(Some(scene.lines(kernel)?).filter(|lines| !lines.is_empty())))?;
    ensure!(lines.iter().any(|line| line.contains("DEBUG") && line.contains("redirected")), "{lines:?}");
    lines.iter().for_each(|line| println!("{line}"));

    let levels = scene.cli().json(&["log-level", "--bpf", "off"])?;
    ensure!(levels == serde_json::json!({ "bpf": "off", "log": "info" }), "{levels}");
    // What was said before is in the log when this is; the kernel's words come by another way than the agent's.
    std::thread::sleep(std::time::Duration::from_millis(500));
    let said = scene.lines(kernel)?.len();
    (0..5).try_for_each(|_| scene.connect())?;
    std::thread::sleep(std::time::Duration::from_millis(500));
    ensure!(scene.lines(kernel)?.len() == said, "{:?}", scene.lines(kernel)?);
    Ok(())
}

#[test]
fn the_agents_own_level_changes_too() -> Result<()> {
    let scene = Scene::new()?;
    let (enrolment, debug, trace) = ("sluice_agent::run::enrol: pod enrolled", " DEBUG ", " TRACE ");
    let enrol = |name: &str| -> Result<usize> {
        let before = scene.lines(enrolment)?.len();
        let pod = scene.node.pod(name)?;
        wait_for("the enrolment is in the log", || Ok((scene.lines(enrolment)?.len() > before).then_some(())))?;
        enrolled(&scene.agent, &pod)?;
        Ok(scene.lines(trace)?.len())
    };
    ensure!(enrol("first")? == 0 && scene.lines(debug)?.is_empty());

    ensure!(scene.cli().say(&["log-level", "--log", "trace"])? == "kernel programs: off\nagent: trace\n");
    enrol("second")?;
    // Spans tell what a line is about, and how long it took. The pod's object may not be known yet, and its name with it.
    let took = || scene.lines("close time.busy");
    wait_for("the span of the enrolment", || Ok(took()?.iter().any(|line| line.contains("enrol{pod=")).then_some(())))?;
    ensure!(!scene.lines(" TRACE sluice_agent::pods: looked at a pod")?.is_empty(), "{}", scene.agent.log()?);

    // For one part alone.
    scene.cli().say(&["log-level", "--log", "error,sluice_agent::run::enrol=info"])?;
    let traces = scene.lines(trace)?.len();
    ensure!(enrol("third")? == traces);
    Ok(())
}

#[test]
fn a_level_that_is_none_is_refused_with_its_flag_and_cure_and_changes_nothing() -> Result<()> {
    let scene = Scene::new()?;
    for (args, flag, cure) in [
        (["--bpf", "loud"], "--bpf", "off, error, warn, info, debug, trace"),
        (["--log", "info,sluice=loud"], "--log", "info"),
    ] {
        let said = scene.cli().output(&[&["log-level"], &args[..]].concat())?;
        let why = String::from_utf8_lossy(&said.stderr).into_owned();
        ensure!(!said.status.success() && said.stdout.is_empty(), "{said:?}");
        ensure!(why.contains(flag) && why.contains(args[1]) && why.contains(cure), "{args:?}: {why}");
        println!("{}", why.lines().take(3).collect::<Vec<_>>().join("\n"));
    }
    ensure!(scene.cli().say(&["log-level"])? == "kernel programs: off\nagent: info\n");
    Ok(())
}
