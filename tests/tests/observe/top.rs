//! `sluice-agent top`: rates and shares are those of the load, for people, for programs, and on a terminal that is drawn on.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use testbed::scene::{Backend, in_turn, serve, with_log};
use testbed::{Agent, Node, Pod, Process, Service, program};

use crate::cli::Cli;
use crate::scene::{calls, list, load};

/// Calls a second.
const RATE: f64 = 300.0;

/// Three endpoints and a steady load.
struct Scene {
    _load: Process,
    _client: Pod,
    _service: Service,
    backends: Vec<Backend>,
    agent: Agent,
    node: Node,
}

impl Scene {
    fn new() -> Result<Self> {
        let node = Node::new()?;
        let start = |number| Backend::start(&node, &format!("echo-{number}"));
        let backends = (1..=3).map(start).collect::<Result<Vec<_>>>()?;
        let service = serve(&node, in_turn("echo"), backends.iter().map(|it| &it.pod))?;
        let client = node.pod("client")?;
        let agent = node.agent().workers(2).start()?;
        calls(&client, &service, &["--rpcs", "10"])?;
        let load = load(&client, &service, &["--rate", &RATE.to_string(), "--duration", "120s", "--streams", "50"])?;
        Ok(Self { _load: load, _client: client, _service: service, backends, agent, node })
    }

    fn cli(&self) -> Cli<'_> {
        Cli::new(&self.node, &self.agent)
    }
}

/// The sum of a number over all lines.
fn sum(lines: &Value, key: &str) -> f64 {
    list(lines).iter().filter_map(|line| line[key].as_f64()).sum()
}

/// What is counted is what was asked for, give or take what a busy machine does.
fn is_the_load(lines: &Value) -> Result<()> {
    let rate = sum(lines, "calls_per_second");
    ensure!(rate > RATE / 2.0 && rate < RATE * 1.5, "{rate} calls a second, not {RATE}: {lines}");
    Ok(())
}

#[test]
fn top_shows_rates_and_shares_that_add_up_to_the_load() -> Result<()> {
    let scene = Scene::new()?;
    for by in ["service", "endpoint", "method"] {
        let said = scene.cli().say(&["top", "--count", "2", "--every", "500ms", "--by", by, "--output", "json"])?;
        let looks = said.lines().map(serde_json::from_str).collect::<Result<Vec<Value>, _>>().context(said)?;
        ensure!(looks.len() == 2, "{looks:?}");
        for lines in &looks {
            is_the_load(lines)?;
            ensure!(list(lines).iter().all(|line| line["service"] == "default/echo:grpc"), "{lines}");
            ensure!(sum(lines, "failed") == 0.0 && list(lines)[0]["p99_ms"].as_f64() > Some(0.0), "{lines}");
        }
        let last = &looks[1];
        let of: Vec<_> = list(last).iter().filter_map(|line| line["of"].as_str()).collect();
        println!("by {by}: {:.0} calls/s of {RATE}", sum(last, "calls_per_second"));
        match by {
            "service" => ensure!(of == [""], "{last}"),
            "method" => ensure!(of == ["sluice.loadtest.v1.Echo/Unary"], "{last}"),
            _ => {
                ensure!(of.len() == 3, "{last}");
                let shares: Vec<_> = list(last).iter().filter_map(|line| line["share"].as_f64()).collect();
                println!("shares {shares:.4?}");
                ensure!(shares.iter().all(|share| (share - 1.0 / 3.0).abs() < 0.05), "{last}");
                ensure!((shares.iter().sum::<f64>() - 1.0).abs() < 1e-6, "{last}");
            }
        }
    }
    Ok(())
}

#[test]
fn top_prints_tables_where_there_is_no_terminal() -> Result<()> {
    let scene = Scene::new()?;
    let said = scene.cli().say(&["top", "--count", "2", "--every", "500ms", "--by", "endpoint"])?;
    let heads: Vec<_> = said.lines().filter(|line| line.starts_with("SERVICE")).collect();
    ensure!(heads.len() == 2 && heads[0].contains("ENDPOINT") && heads[0].contains("CALLS/S"), "{said}");
    for backend in &scene.backends {
        let address = format!("{}:50051", backend.pod.ip4());
        ensure!(said.matches(&address).count() == 2 && said.contains("100.00"), "{said}");
    }
    ensure!(!said.contains('\x1b'), "colours are for terminals: {said:?}");
    println!("{said}");
    Ok(())
}

#[test]
fn top_draws_on_a_terminal_heeds_keys_and_leaves_it_as_it_was() -> Result<()> {
    let scene = Scene::new()?;
    let endpoint = format!("{}:50051", scene.backends[0].pod.ip4());
    let steps = json!([
        ["", ["sluice-agent top", "ready", "[s service]", "default/echo:grpc", "round-robin, 3 endpoints"]],
        ["e", ["[e endpoint]", endpoint, "33."]],
        ["m", ["[m method]", "sluice.loadtest.v1.Echo/Unary", "100.00"]],
        ["s", ["[s service]", "round-robin, 3 endpoints"]],
    ]);
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/observe/terminal.py");
    let admin = scene.agent.admin().to_string();
    let top = scene.node.command("python3").arg(script).arg(steps.to_string()).arg(program("sluice-agent")?);
    let said = with_log(&scene.agent, top.args(["top", "--every", "500ms", "--admin", &admin]).read())?;
    let seen: Value = serde_json::from_str(&said)?;
    ensure!(list(&seen["missing"]).is_empty(), "not drawn: {}; but {:#}", seen["missing"], seen["drawn"]);
    ensure!(seen["status"] == 0, "q ends it well: {seen:#}");
    for what in ["raw", "restored", "screen", "cursor"] {
        ensure!(seen[what] == true, "{what}: {seen:#}");
    }
    println!("{}", seen["drawn"][1].as_str().unwrap_or_default().replace("\n\n", "\n").trim());
    Ok(())
}

#[test]
fn top_and_tap_end_when_whoever_reads_them_has_read_enough() -> Result<()> {
    let scene = Scene::new()?;
    for command in ["top", "tap"] {
        // The status is that of `timeout`, which is 124 where the time was up.
        let script = r#"set -o pipefail; timeout 30 "$@" | head -n 1"#;
        let piped = scene.node.command("bash").args(["-c", script, "bash"]).arg(program("sluice-agent")?);
        let said = piped.args([command, "--admin", &scene.agent.admin().to_string()]).read()?;
        ensure!(said.lines().count() == 1, "{command}: {said}");
    }
    ensure!(scene.cli().taps()? == 0, "somebody looks on");
    Ok(())
}
